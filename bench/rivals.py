"""The ways to compute a workload that are compared: ours, and everything a user could pick instead.

Each is a function of the workload and its inputs that makes beforehand what a model would, and returns a `Job`; or
raises `Missing`, with the reason: nobody is left out in silence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch._functorch.config
import torch.nn.functional as F
from torch import Tensor

from stn_triton import geometry, reference, transform_sample
from stn_triton.demo.torch_grids import (
    Grid,
    affine_grid,
    attention_grid,
    homography_grid,
    mesh_grid,
    projective_grid,
)

from .inputs import Inputs, lattice, transform_of
from .polynomial import torch_basis
from .workloads import Workload


class Missing(Exception):
    """Why a rival does not take part in a workload."""


class Job(NamedTuple):
    """A way to compute a workload."""

    call: Callable[[Tensor, Tensor], Any]  #: image and parameters to the output, or the output and the mask
    parameters: Tensor  #: its own leaf: theta, or what it takes instead
    grid: Grid  #: what these parameters mean, in float64: the sampling grid (N, h, w, 2), or of N M samples
    align_corners: bool
    forward_only: bool = False


def ours(workload: Workload, inputs: Inputs) -> Job:
    """`stn_triton.transform_sample`."""
    transform, options = transform_of(workload), _options(workload)
    fill, mask = inputs.fill, workload.mask

    def call(image: Tensor, theta: Tensor) -> Any:
        return transform_sample(transform, image, theta, workload.size, fill=fill, return_mask=mask, **options)

    return Job(call, inputs.theta, exact_grid(workload), workload.align_corners)


def pytorch(workload: Workload, inputs: Inputs) -> Job:
    """A grid, and `F.grid_sample`; of M transforms on an expanded image.

    Splines as models precompute them: a product of a constant basis (h w, K + 3) with each sample's coefficients.
    Fills and masks by sampling ones too. Half types as under autocast, with the image in float32.
    """
    grid = grid_of(workload, inputs.theta.dtype, inputs.theta.device)

    def call(image: Tensor, theta: Tensor) -> Any:
        return sample(workload, image, grid(theta), inputs.fill)

    return Job(call, inputs.theta, exact_grid(workload), workload.align_corners)


def other_corners(workload: Workload, inputs: Inputs) -> Job:
    """PyTorch with align_corners the other way: a GPU's bilinear zeros go to cuDNN where it is True."""
    return pytorch(dataclasses.replace(workload, align_corners=not workload.align_corners), inputs)


def half_grid(workload: Workload, inputs: Inputs) -> Job:
    """PyTorch with the grid in the image's half type, as it asks for outside autocast.

    Off by up to a tenth of a pixel on 112 x 112, and so most often red: then the gate says how far off.
    """
    if workload.dtype == "float32":
        raise Missing("the image is float32")
    if inputs.image.device.type == "cpu":
        raise Missing("torch's sampler gives wrong values or crashes on half types on a CPU")
    grid = grid_of(workload, inputs.theta.dtype, inputs.theta.device)

    def call(image: Tensor, theta: Tensor) -> Any:
        return F.grid_sample(image, grid(theta).to(image.dtype), **_options(workload))

    return Job(call, inputs.theta, exact_grid(workload), workload.align_corners)


def stacked_grid(workload: Workload, inputs: Inputs) -> Job:
    """PyTorch's of M transforms, with their grids below each other as one: the image is not expanded."""
    if not workload.transforms:
        raise Missing("one transform of each image")
    grid = grid_of(workload, inputs.theta.dtype, inputs.theta.device)

    def call(image: Tensor, theta: Tensor) -> Any:
        return sample_stacked(workload, image, grid(theta), inputs.fill)

    return Job(call, inputs.theta, exact_grid(workload), workload.align_corners)


def one_gemm(workload: Workload, inputs: Inputs) -> Job:
    """Splines by a single product for the batch, with the system's inverse multiplied into the basis."""
    if workload.transform != "tps":
        raise Missing("no spline")
    theta = inputs.theta
    basis, system = _spline(workload)
    weights = torch.tensor(basis @ system, dtype=theta.dtype, device=theta.device)

    def call(image: Tensor, theta: Tensor) -> Any:
        n, count, _ = theta.shape
        grid = weights @ theta.permute(1, 0, 2).reshape(count, -1)
        return sample(workload, image, grid.view(*workload.size, n, 2).permute(2, 0, 1, 3), inputs.fill)

    return Job(call, theta, exact_grid(workload), workload.align_corners)


def ready_grid(workload: Workload, inputs: Inputs) -> Job:
    """No rival but a yardstick: torch's sampler, the grid given for free."""
    if workload.transform == "dense":
        raise Missing("the grid is theta: PyTorch's is the same")
    with torch.no_grad():
        grid = exact_grid(workload)(inputs.theta.double()).to(inputs.theta.dtype)

    look = sample_stacked if workload.transforms else sample

    def call(image: Tensor, grid: Tensor) -> Any:
        return look(workload, image, grid, inputs.fill)

    leaf = grid.contiguous().requires_grad_(workload.needs_theta)
    return Job(call, leaf, lambda grid: grid, workload.align_corners)


def compiled(workload: Workload, inputs: Inputs) -> Job:
    """`torch.compile` of PyTorch's; of M transforms, of the stacked grid."""
    return _compiled(workload, inputs)


def compiled_max(workload: Workload, inputs: Inputs) -> Job:
    """The same with ``mode="max-autotune"``, its CUDA graphs left to the runner."""
    if inputs.image.device.type == "cpu":
        raise Missing("on a GPU only")
    return _compiled(workload, inputs, mode="max-autotune-no-cudagraphs")


def _compiled(workload: Workload, inputs: Inputs, **options: Any) -> Job:
    if inputs.image.device.type == "cuda":
        torch._functorch.config.donated_buffer = False  # a graph that is replayed keeps what backward reads
    job = (stacked_grid if workload.transforms else pytorch)(workload, inputs)
    return job._replace(call=torch.compile(job.call, dynamic=False, **options))


def kornia(workload: Workload, inputs: Inputs) -> Job:
    """kornia's own warps by its own parameters: matrices of pixels, or splines, or maps.

    Its grids are those of ``align_corners=True`` for matrices. Its spline's coefficients are given as ours are, by a
    constant product: its own solve makes another spline, and takes longer. Half types as under autocast.
    """
    try:
        import kornia.geometry.transform as theirs
    except ImportError as error:
        raise Missing(f"not installed ({error})") from None
    if workload.mask:
        raise Missing("it gives no mask")
    options = _options(workload)
    theta, size = inputs.theta, workload.size
    if workload.transform in ("dense", "flow"):
        if workload.padding_mode == "fill":
            raise Missing("its remap has no fill")
        of_theta = grid_of(workload, theta.dtype, theta.device)

        def remap(image: Tensor, theta: Tensor) -> Tensor:
            x, y = of_theta(theta).unbind(-1)
            return theirs.remap(image.to(x), x, y, normalized_coordinates=True, **options).to(image.dtype)

        return Job(remap, theta, exact_grid(workload), workload.align_corners)
    if workload.transform == "tps":
        if workload.image[2:] != size:
            raise Missing("its spline has the image's size")
        centres = torch.tensor(lattice(workload), dtype=theta.dtype, device=theta.device)
        system = torch.tensor(_spline(workload)[1], dtype=theta.dtype, device=theta.device)
        del options["mode"]

        def spline(image: Tensor, theta: Tensor) -> Tensor:
            coefficients = system @ theta  # of r^2 log r^2, twice its own kernel
            weights, affine = 2 * coefficients[:, :-3], coefficients[:, -3:]
            given = image.to(theta), centres.expand(len(theta), -1, -1), weights, affine
            return theirs.warp_image_tps(*given, **options).to(image.dtype)

        return Job(spline, theta, exact_grid(workload), workload.align_corners)
    if workload.transform not in ("affine", "attention", "projective", "homography"):
        raise Missing(f"it has no {workload.transform}")
    corners = {"align_corners": workload.align_corners}
    sizes = workload.image[2:], size
    affine = workload.transform in ("affine", "attention")
    with torch.no_grad():
        exact = _as_matrix(workload, theta.double().flatten(0, 1) if workload.transforms else theta.double())
        matrix = geometry.to_pixel_matrix(exact, *sizes, **corners)[:, : 2 if affine else 3]
    warp = theirs.warp_affine if affine else theirs.warp_perspective
    options |= {"align_corners": True}
    if inputs.fill is not None:
        options |= {"fill_value": inputs.fill}
    many = workload.transforms

    def warped(image: Tensor, matrix: Tensor) -> Tensor:
        wide = image.to(matrix)
        if many:
            wide = wide[:, None].expand(-1, many, -1, -1, -1).flatten(0, 1)
        out = warp(wide, matrix, size, **options).to(image.dtype)
        return out.unflatten(0, (-1, many)) if many else out

    def meaning(matrix: Tensor) -> Tensor:
        its_theta = geometry.from_pixel_matrix(matrix, *sizes, align_corners=True)
        make = affine_grid if affine else homography_grid
        return make(size, True, matrix.dtype, matrix.device)(its_theta)

    leaf = matrix.to(theta.dtype).contiguous().requires_grad_(workload.needs_theta)
    return Job(warped, leaf, meaning, True)


def triton_augment(workload: Workload, inputs: Inputs) -> Job:
    """triton-augment's affine, forward: it takes angles and scales, and its images are their outputs' size."""
    if workload.transform != "affine" or workload.image[2:] != workload.size:
        raise Missing("it has affine warps of the image's own size only")
    if (workload.mode, workload.padding_mode, workload.mask) != ("bilinear", "zeros", False):
        raise Missing("nearest and bilinear, zeros, without a mask: others are not compared")
    if inputs.image.device.type != "cuda":
        raise Missing("it runs on CUDA GPUs only")
    try:
        from triton_augment import InterpolationMode
        from triton_augment.functional import affine
    except ImportError as error:
        raise Missing(f"not installed ({error})") from None
    n, _, height, width = workload.image
    # of each sample: degrees, scale, and a shift in pixels
    generator = torch.Generator().manual_seed(0)
    draw = torch.rand(n, 4, generator=generator) * 2 - 1
    parameters = (draw * torch.tensor([30.0, 0.1, 5, 5]) + torch.tensor([0.0, 1, 0, 0])).to(inputs.theta)

    def call(image: Tensor, parameters: Tensor) -> Tensor:
        angle, scale, shift = parameters[:, 0], parameters[:, 1], parameters[:, 2:]
        return affine(
            image, angle, shift, scale, torch.zeros_like(shift), interpolation=InterpolationMode.BILINEAR, fill=0.0
        )

    def meaning(parameters: Tensor) -> Tensor:
        """torchvision's convention, about the middle of the image, with pixel centres at halves."""
        angle, scale, shift = parameters[:, 0].deg2rad(), parameters[:, 1], parameters[:, 2:]
        cos, sin = angle.cos() / scale, angle.sin() / scale
        linear = torch.stack([cos, sin, -sin, cos], 1).unflatten(1, (2, 2))
        half = torch.tensor([width / 2, height / 2], dtype=parameters.dtype, device=parameters.device)
        moved = -(linear @ shift[..., None])
        theta = torch.cat([linear * half, moved], 2) / half[:, None]
        return affine_grid(workload.size, False, parameters.dtype, parameters.device)(theta)

    return Job(call, parameters, meaning, False, forward_only=True)


#: By name, in the order of the tables.
RIVALS: dict[str, Callable[[Workload, Inputs], Job]] = {
    "ours": ours,
    "pytorch": pytorch,
    "other_corners": other_corners,
    "half_grid": half_grid,
    "stacked_grid": stacked_grid,
    "one_gemm": one_gemm,
    "compile": compiled,
    "compile_max": compiled_max,
    "kornia": kornia,
    "triton_augment": triton_augment,
    "ready_grid": ready_grid,
}


def sample(workload: Workload, image: Tensor, grid: Tensor, fill: Tensor | None) -> Any:
    """What PyTorch makes of an image (N, C, H, W) and a grid (N, h, w, 2), or one of N M samples, in image's dtype.

    A fill and a mask come from a second sampling, of ones.
    """
    dtype, options = image.dtype, _options(workload)
    many = workload.transforms
    image = image.to(grid.dtype)
    if many:
        image = image[:, None].expand(-1, many, -1, -1, -1).flatten(0, 1)
    if fill is not None:
        options["padding_mode"] = "zeros"
    out = F.grid_sample(image, grid, **options)
    mask = None
    if workload.mask or fill is not None:
        mask = F.grid_sample(torch.ones_like(image[:, :1]), grid, **options)
        if fill is not None:
            out = out + fill.to(grid.dtype)[:, None, None] * (1 - mask)
    out, mask = (t if t is None or not many else t.unflatten(0, (-1, many)) for t in (out, mask))
    return (out.to(dtype), mask.to(dtype)) if workload.mask else out.to(dtype)


def sample_stacked(workload: Workload, image: Tensor, grid: Tensor, fill: Tensor | None) -> Any:
    """`sample` of M transforms as one output (N, C, M h, w), seen as (N, M, C, h, w)."""
    assert workload.transforms is not None
    n_m, m_h = (-1, workload.transforms), (workload.transforms, -1)
    stacked = sample(dataclasses.replace(workload, transforms=None), image, grid.unflatten(0, n_m).flatten(1, 2), fill)
    if workload.mask:
        return tuple(each.unflatten(2, m_h).transpose(1, 2) for each in stacked)
    return stacked.unflatten(2, m_h).transpose(1, 2)


def grid_of(workload: Workload, dtype: torch.dtype, device: torch.device) -> Grid:
    """PyTorch's way from theta (N, ...), or (N, M, ...), to a grid of all samples."""
    size, align_corners = workload.size, workload.align_corners
    made = size, align_corners, dtype, device
    grid: Grid
    if workload.transform in NAMED_GRIDS:
        grid = NAMED_GRIDS[workload.transform](*made)
    elif workload.transform == "tps":
        basis, system = (torch.tensor(a, dtype=dtype, device=device) for a in _spline(workload))

        def grid(theta: Tensor) -> Tensor:
            return torch.bmm(basis.expand(len(theta), -1, -1), system @ theta).unflatten(1, size)

    else:
        xy = torch.tensor(reference.target_points(size, align_corners), dtype=dtype, device=device)
        if workload.transform == "polynomial":
            basis = torch_basis(*xy.unbind(-1)).flatten(1).T.contiguous()  # (h w, K)

            def grid(theta: Tensor) -> Tensor:
                return (basis @ theta.mT).unflatten(1, size)

        elif workload.transform == "flow":
            _, _, h, w = workload.image
            lengths = [max(n - 1, 1) if align_corners else n for n in (w, h)]
            unit = torch.tensor([2 / n for n in lengths], dtype=dtype, device=device)

            def grid(theta: Tensor) -> Tensor:
                return xy + theta * unit

        else:

            def grid(theta: Tensor) -> Tensor:
                return theta

    return (lambda theta: grid(theta.flatten(0, 1))) if workload.transforms else grid


def exact_grid(workload: Workload) -> Grid:
    """The same of theta in float64, for the truth."""
    return lambda theta: grid_of(workload, theta.dtype, theta.device)(theta)


NAMED_GRIDS = {
    "affine": affine_grid,
    "attention": attention_grid,
    "projective": projective_grid,
    "homography": homography_grid,
    "piecewise_affine": mesh_grid,
}


def _options(workload: Workload) -> dict[str, Any]:
    return {"mode": workload.mode, "padding_mode": workload.padding_mode, "align_corners": workload.align_corners}


def _spline(workload: Workload) -> tuple[Any, Any]:
    """A constant basis (h w, K + 3), and what makes its coefficients (K + 3, 2) of theta, in float64."""
    points = lattice(workload)
    xy = reference.target_points(workload.size, workload.align_corners)
    basis = reference.spline_basis(xy, points).reshape(-1, len(points) + 3)
    return basis, reference.spline_system(points, 0.0)


def _as_matrix(workload: Workload, theta: Tensor) -> Tensor:
    if workload.transform == "attention":
        scale = torch.diag_embed(theta[:, :1].expand(-1, 2))
        theta = torch.cat([scale, theta[:, 1:, None]], 2)
    return geometry.as_matrix(theta)
