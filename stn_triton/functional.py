"""What users call: arguments are checked here, and errors name the argument, what was expected and what was got."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from .caches import BoundedCache
from .checks import (
    check_bool,
    check_choice,
    check_count,
    check_device,
    check_dtype,
    check_fill,
    check_image,
    check_size,
    check_tensor,
    whole_numbers,
)
from .ops import warp
from .spec import MODES, PADDING_MODES, WarpSpec
from .transforms import (
    TRANSFORMS,
    Flow,
    FreeThinPlateSpline,
    PiecewiseAffine,
    ThinPlateSpline,
    Transform,
    find_transform,
)
from .transforms.thin_plate_spline import checked_lam, checked_points

UNITS = ("pixels", "normalised")
Warped: TypeAlias = Any  #: the output, or the pair (output, mask) if that is asked for: no type says which


def attention_sample(
    image: Tensor,
    theta: Tensor,
    size: Sequence[int] | None = None,
    *,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
    fill: float | Sequence[float] | Tensor | None = None,
    return_mask: bool = False,
    deterministic: bool = False,
) -> Warped:
    r"""Crops a part of an image and scales it: attention, eq. 2 of the paper.

    out at (x, y) is the image at :math:`(u, v) = s\,(x, y) + (t_x, t_y)`.

    Args:
        image: (N, C, H, W).
        theta: (N, 3): s, t_x, t_y; or (1, 3) for the whole batch; or (N, M, 3), so that affine parameters (N, 2, 3)
            are two attentions of each image here.
        size, mode, padding_mode, align_corners, fill, return_mask, deterministic: as in `affine_sample`, like dtypes,
            convention, result and errors.
    """
    return transform_sample(
        "attention", image, theta, size,
        mode=mode, padding_mode=padding_mode, align_corners=align_corners, fill=fill, return_mask=return_mask,
        deterministic=deterministic,
    )  # fmt: skip


def affine_sample(
    image: Tensor,
    theta: Tensor,
    size: Sequence[int] | None = None,
    *,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
    fill: float | Sequence[float] | Tensor | None = None,
    return_mask: bool = False,
    deterministic: bool = False,
) -> Warped:
    r"""Warps an image by an affine map: a spatial transformer (Jaderberg et al., 2015, eqs. 1 and 3).

    The same as ``F.grid_sample(image, F.affine_grid(theta, (N, C, h, w)))`` without the grid: out at (x, y) is
    the image at :math:`(u, v) = \theta\,(x, y, 1)^T`. Gradients go to image and theta.

    Convention: normalised coordinates, x to the right, y downwards, [-1, 1] over the image (pixel edges, or the
    outer pixel centres with ``align_corners``), as in PyTorch. theta maps output points to image points.

    Args:
        image: (N, C, H, W), float16, bfloat16, float32 or float64, any strides.
        theta: (N, 2, 3), or (1, 2, 3) for the whole batch, of any floating dtype. Coordinates are computed in
            float32, in float64 for float64 images. (N, M, 2, 3) or (1, M, 2, 3): M transforms of every image, which is
            not copied; its gradient is the sum of theirs.
        size: (h, w) of the output; the image's own by default.
        mode: "bilinear", "bicubic" (A = -0.75), or "nearest" (no gradient to theta: zeros).
        padding_mode: outside the image "zeros", "border" (the edge pixel), "reflection", or "fill" (a colour).
        align_corners: see the convention.
        fill: the colour, with padding_mode "fill": a number, C numbers (copied to a GPU at every call), or a tensor (),
            (C,) or (N, C) of any floating dtype, which gets its gradient. Pixels partly outside are blended with it.
            NaN and infinities mark them, and pull at nothing.
        return_mask: return (out, mask), the mask (N, 1, h, w), of M transforms (N, M, 1, h, w): how much of each output
            pixel the image covers, that is the image of ones, warped likewise (with "zeros" for "fill"). Its gradient
            goes to theta.
        deterministic: the gradient to the image is the same, bit for bit, on every run, as all else always is. So it is
            under `torch.use_deterministic_algorithms(True)`, and on a CPU; and without either wherever it is gathered,
            not scattered: by attention, affine and projective maps under "zeros" and "fill", but for those that are
            singular or zoom in by far. It takes 16 bytes of memory for every element of the image, and elsewhere time;
            there a d_out that is not finite makes the gradient of its channel of that image NaN. ValueError on a device
            that is no CPU and where no kernel runs, if the image needs a gradient.

    Returns:
        (N, C, h, w), of M transforms (N, M, C, h, w), in the image's dtype and memory format; 0 (or the fill) where
        theta gives no finite point.

    Raises:
        TypeError: not a tensor, or not a floating-point one.
        ValueError: a shape, size, mode or device that does not fit.
    """
    return transform_sample(
        "affine", image, theta, size,
        mode=mode, padding_mode=padding_mode, align_corners=align_corners, fill=fill, return_mask=return_mask,
        deterministic=deterministic,
    )  # fmt: skip


def projective_sample(
    image: Tensor,
    theta: Tensor,
    size: Sequence[int] | None = None,
    *,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
    fill: float | Sequence[float] | Tensor | None = None,
    return_mask: bool = False,
    deterministic: bool = False,
) -> Warped:
    r"""Warps an image by a homography, the paper's plane projective transformation.

    out at (x, y) is the image at :math:`(u, v) = (p, q) / r` with :math:`(p, q, r) = \theta\,(x, y, 1)^T`, in
    normalised coordinates; `stn_triton.geometry` converts matrices of pixels. theta and its negative are one map: the
    sign is taken that makes theta's last entry positive, so that the middle of the output is in front of the camera.
    Where :math:`r \le 10^{-6} (|\theta_{31}| + |\theta_{32}| + |\theta_{33}|)` (or :math:`10^{-18}`), behind the
    camera or on the horizon, there is no source: the output is 0 under every padding, and so is the gradient.

    Args:
        image: (N, C, H, W).
        theta: (N, 8), the matrix row by row without its last entry, which is 1; or (N, 3, 3), of any scale that
            keeps r above the bound; with a 1 in place of N for the whole batch; or (N, M, 8), (N, M, 3, 3).
        size, mode, padding_mode, align_corners, fill, return_mask, deterministic: as in `affine_sample`, like dtypes,
            convention, result and errors.
    """
    transform = "homography" if isinstance(theta, Tensor) and theta.shape[-2:] == (3, 3) else "projective"
    return transform_sample(
        transform, image, theta, size,
        mode=mode, padding_mode=padding_mode, align_corners=align_corners, fill=fill, return_mask=return_mask,
        deterministic=deterministic,
    )  # fmt: skip


def flow_sample(
    image: Tensor,
    flow: Tensor,
    *,
    units: str,
    channels_first: bool,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
    fill: float | Sequence[float] | Tensor | None = None,
    return_mask: bool = False,
    deterministic: bool = False,
) -> Warped:
    """Warps an image by displacements: out at each pixel is the image as far away from it as the flow says.

    As in optical flow and registration (backward warping). What the flow's numbers mean is never guessed from them.

    Args:
        image: (N, C, H, W).
        flow: (N, h, w, 2), or (N, 2, h, w) with channels_first: displacements (x, y), for outputs of size (h, w). With
            1 in place of N for the whole batch; or with M after N.
        units: "pixels" of the image, or "normalised": the image's width or height is 2 (with align_corners: the
            distance of its outer pixel centres).
        channels_first: which of the two shapes flow has.
        mode, padding_mode, align_corners, fill, return_mask, deterministic: as in `affine_sample`, like dtypes,
            convention, result and errors. Where the sizes are equal align_corners matters to normalised units, to
            reflection and to image axes of one pixel, which have no extent with it: finite displacements along them, in
            either unit, do nothing and get no gradient. A finite displacement of any size, up to 3.4e38, leads as far
            outside as padding_mode says; one that is not finite gives 0 (or the fill).
    """
    check_choice("units", units, UNITS)
    check_image("image", image)
    check_tensor("flow", flow)
    channels_first = check_bool("channels_first", channels_first)
    if flow.dim() not in (4, 5) or flow.shape[-3 if channels_first else -1] != 2 or flow.device != image.device:
        layout = "(N, 2, h, w)" if channels_first else "(N, h, w, 2)"
        raise ValueError(f"flow: expected shape {layout} on {image.device}, got {tuple(flow.shape)} on {flow.device}")
    if flow.shape[0] != 1 and flow.shape[0] != image.shape[0]:  # by symbols, under torch.compile
        raise ValueError(f"flow: expected the image's batch size {image.shape[0]} or 1, got {flow.shape[0]}")
    axes = slice(-2, None) if channels_first else slice(-3, -1)
    image_size = (image.shape[2], image.shape[3]) if units == "pixels" else None
    return transform_sample(
        Flow(channels_first=channels_first, image_size=image_size), image, flow, tuple(flow.shape[axes]),
        mode=mode, padding_mode=padding_mode, align_corners=align_corners, fill=fill, return_mask=return_mask,
        deterministic=deterministic,
    )  # fmt: skip


def tps_sample(
    image: Tensor,
    theta: Tensor,
    size: Sequence[int] | None = None,
    *,
    control_points: Any = None,
    lam: float = 0.0,
    check: bool = False,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
    fill: float | Sequence[float] | Tensor | None = None,
    return_mask: bool = False,
    deterministic: bool = False,
) -> Warped:
    r"""Warps an image by a thin plate spline (Bookstein, 1989), the paper's most flexible transformation.

    out at (x, y) is the image at :math:`(u, v) = (x, y) + a + A\,(x, y)^T + \sum_k c_k\,\varphi(|(x, y) - p_k|)` with
    :math:`\varphi(r) = r^2 \log r^2`: the smoothest map that takes the control points p to theta. With theta the
    control points it is the identity.

    Args:
        image: (N, C, H, W).
        theta: (N, K, 2): where the control points lie in the image, (u, v) normalised; or (1, K, 2) for the whole
            batch; or (N, M, K, 2).
        control_points: K points of the output, (x, y) normalised, at least 3 and not all on one line. None: the 4 x 4
            grid over [-1, 1] x [-1, 1], row by row. Constants, (K, 2): numbers, an array, or a tensor that needs no
            gradient, which is read back from a GPU at every call; a `ThinPlateSpline` in `transform_sample` is made
            once, and works under `torch.compile`. Of each sample, or with gradients: a tensor (N, K, 2), (1, K, 2)
            or (K, 2) that needs one, for M transforms (N, M, K, 2).
        lam: regularisation, added to the diagonal of the spline's matrix: 0 goes through theta exactly; the larger,
            the closer to the best affine map.
        check: wait for the device and raise ValueError where points of a sample are all on one line or two in one
            place. Else such samples give zeros, and no gradient.
        size, mode, padding_mode, align_corners, fill, return_mask, deterministic: as in `affine_sample`, like dtypes,
            convention, result and errors.
    """
    check_tensor("theta", theta)
    lam, check = checked_lam(lam), check_bool("check", check)
    spline: Transform
    if isinstance(control_points, Tensor) and (control_points.dim() > 2 or control_points.requires_grad):
        theta = _with_control_points(theta, control_points)
        spline = free = FreeThinPlateSpline(theta.shape[-2], lam)
        if check and bool(free.is_singular(theta).any()):
            raise ValueError(
                "control_points: expected points of a sample not on one line and not in one place, got such"
            )
    elif control_points is None and lam == 0:
        spline = TRANSFORMS["tps"]
    else:
        points = None if control_points is None else np.ascontiguousarray(checked_points(control_points), np.float64)
        spline = _spline(points, lam)
    return transform_sample(
        spline, image, theta, size,
        mode=mode, padding_mode=padding_mode, align_corners=align_corners, fill=fill, return_mask=return_mask,
        deterministic=deterministic,
    )  # fmt: skip


def _spline(points: np.ndarray | None, lam: float) -> ThinPlateSpline:
    """One object for equal points: their system is solved once, and launches are planned once for each."""
    key = (None if points is None else (points.shape, points.tobytes()), lam)
    return _splines.get(key, lambda: ThinPlateSpline(points, lam))


#: The most recently used splines, with the systems that they solved on their images' devices.
_splines: BoundedCache[ThinPlateSpline] = BoundedCache(
    max_entries=64, max_bytes=2**26, bytes_of=ThinPlateSpline.bytes_of_systems
)


def _with_control_points(theta: Tensor, control_points: Tensor) -> Tensor:
    """theta of `FreeThinPlateSpline`, (..., K, 4)."""
    check_tensor("control_points", control_points)
    if theta.dim() < 2 or theta.shape[-1] != 2 or control_points.shape[-2:] != theta.shape[-2:]:
        expected = f"expected shape (..., K, 2) like theta's {tuple(theta.shape)}"
        raise ValueError(f"control_points: {expected}, got {tuple(control_points.shape)}")
    if control_points.device != theta.device:
        raise ValueError(f"control_points: expected theta's device {theta.device}, got {control_points.device}")
    try:
        return torch.cat(torch.broadcast_tensors(theta, control_points), -1)
    except RuntimeError:
        expected = f"expected axes before (K, 2) that go with theta's {tuple(theta.shape)}"
        raise ValueError(f"control_points: {expected}, got {tuple(control_points.shape)}") from None


def piecewise_affine_sample(
    image: Tensor,
    theta: Tensor,
    size: Sequence[int] | None = None,
    *,
    mesh: Sequence[int] = (4, 4),
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
    fill: float | Sequence[float] | Tensor | None = None,
    return_mask: bool = False,
    deterministic: bool = False,
) -> Warped:
    r"""Warps an image by a mesh of triangles, the paper's piecewise affine transformation.

    out at (x, y) is the image at :math:`(u, v) = \sum_k h_k(x, y)\,\theta_k`, the hats :math:`h_k` affine on every
    triangle of a regular mesh over the output, 1 at their vertex and 0 at the others: vertices go to theta, and each
    triangle by the affine map of its three. With theta the vertices of the mesh it is the identity.

    Args:
        image: (N, C, H, W).
        theta: (N, gh * gw, 2): where the vertices lie in the image, (u, v) normalised, row by row; or (1, gh * gw, 2)
            for the whole batch; or (N, M, gh * gw, 2).
        mesh: (gh, gw), vertices in a column and in a row, at least 2. Its corners are (-1, -1) and (1, 1) of the
            output, pixel edges or with align_corners pixel centres; each cell is split from top left to bottom right.
        size, mode, padding_mode, align_corners, fill, return_mask, deterministic: as in `affine_sample`, like dtypes,
            convention, result and errors. A point reads nothing where a vertex of its triangle is not finite.
    """
    return transform_sample(
        PiecewiseAffine(mesh), image, theta, size,
        mode=mode, padding_mode=padding_mode, align_corners=align_corners, fill=fill, return_mask=return_mask,
        deterministic=deterministic,
    )  # fmt: skip


def transform_sample(
    transform: str | Transform,
    image: Tensor,
    theta: Tensor,
    size: Sequence[int] | None = None,
    *,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
    fill: float | Sequence[float] | Tensor | None = None,
    return_mask: bool = False,
    deterministic: bool = False,
) -> Warped:
    """`affine_sample` for any transform: by name or object, theta as in its ``layout``, or with M after N."""
    transform = find_transform(transform)
    check_image("image", image)
    hw = (image.shape[2], image.shape[3]) if size is None else check_size(size)
    if transform.image_size is not None and transform.image_size != (image.shape[2], image.shape[3]):
        raise ValueError(f"image: expected size {transform.image_size} as {transform} has it, got {tuple(image.shape)}")
    transforms = transform.check_theta(theta, hw, image.shape[0])
    if theta.shape[0] != 1 and theta.shape[0] != image.shape[0]:  # by symbols, under torch.compile
        raise ValueError(
            f"theta: expected the image's batch size {image.shape[0]} or 1, got {theta.shape[0]}"
            + (", or expand the image: image.expand(N, -1, -1, -1) copies nothing" if image.shape[0] == 1 else "")
        )
    if theta.device != image.device:
        raise ValueError(f"theta: expected the image's device {image.device}, got {theta.device}")
    check_choice("mode", mode, MODES)
    check_choice("padding_mode", padding_mode, PADDING_MODES)
    align_corners = check_bool("align_corners", align_corners)
    mask = check_bool("return_mask", return_mask)
    deterministic = check_bool("deterministic", deterministic)
    colour = _colour(fill, padding_mode, image)
    spec = WarpSpec(transform, mode, padding_mode, align_corners, hw, transforms, mask, deterministic)
    warped = warp(spec, image, theta, colour)
    return warped if mask else warped[0]


def _colour(fill: Any, padding_mode: str, image: Tensor) -> Tensor | None:
    """(N, C) of the fill that goes with the padding, None without."""
    check_fill(fill, padding_mode)
    if fill is None:
        return None
    compute = torch.promote_types(image.dtype, torch.float32)
    if isinstance(fill, np.ndarray):
        fill = fill.tolist()
    if isinstance(fill, Real):
        fill = torch.full((), _as_float(fill, compute), dtype=compute, device=image.device)  # waits for no GPU
    if not isinstance(fill, Tensor):
        if (
            not isinstance(fill, Sequence)
            or isinstance(fill, bytes)
            or not all(isinstance(number, Real) for number in fill)
        ):
            raise TypeError(f"fill: expected a number, C numbers or one tensor, got {fill!r}")
        fill = torch.tensor([_as_float(number, compute) for number in fill], dtype=compute, device=image.device)
    check_tensor("fill", fill)
    if fill.device != image.device:
        raise ValueError(f"fill: expected the image's device {image.device}, got {fill.device}")
    n, channels = image.shape[:2]
    if fill.shape not in ((), (channels,), (1, channels), (n, channels)):
        expected = f"expected shape (), (C,) or (N, C) with N = {n}, C = {channels}"
        raise ValueError(f"fill: {expected}, got {tuple(fill.shape)}")
    # In float32 at least before it is spread over the batch, so that its gradient is rounded once.
    return fill.to(torch.promote_types(fill.dtype, compute)).expand(n, channels)


def _as_float(number: Real, dtype: torch.dtype) -> float:
    """Raises ValueError for a finite number beyond the dtype's, which would turn into a mark."""
    most = torch.finfo(dtype).max
    if most < abs(number) < math.inf:  # type: ignore[operator]
        raise ValueError(
            f"fill: expected numbers up to {most:.1e}, or infinity, for an image of its dtype, got {number!r:.40}"
        )
    return float(number)


def warmup(
    shape: Sequence[int],
    size: Sequence[int] | None = None,
    *,
    transform: str | Transform = "affine",
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
    device: torch.device | str | None = None,
    transforms: int | None = None,
    return_mask: bool = False,
    deterministic: bool = False,
    image_gradient: bool = True,
    theta_gradient: bool = True,
    fill_gradient: bool = False,
    theta_dtype: torch.dtype | None = None,
) -> float:
    """Compiles and loads the kernels of a warp before they are needed: seconds that a first call would take instead.

    One call forward, and backward if a gradient is asked for, on zeros of that shape. What is compiled serves every
    batch (N = 1 is enough), height and width; other numbers of channels, outputs of at most 16 columns, another layout
    or dtype can have kernels of their own. Triton keeps compiled code on disk, where the next process finds it.

    Args:
        shape: (N, C, H, W) of the image.
        size: (h, w) of the output; the image's own by default.
        transform: its name or an object; theta is its identity, so it must have one.
        mode, padding_mode, align_corners: as in `affine_sample`.
        dtype, memory_format, device: of the image. The device is the GPU by default, or the CPU where there is none and
            nothing to compile.
        transforms: M, if each image is to have several.
        return_mask: whether the mask will be asked for.
        deterministic: as in `affine_sample`; these kernels are others.
        image_gradient, theta_gradient, fill_gradient: which gradients will be needed, together, of the one call
            backward.
        theta_dtype: float32, or float64 for float64 images, by default.

    Returns:
        The seconds that it took, with the device waited for.

    Raises:
        TypeError, ValueError: an argument that does not fit.
    """
    start = time.perf_counter()
    device = check_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    transform = find_transform(transform)
    check_dtype("dtype", dtype)
    wide = theta_dtype or torch.promote_types(dtype, torch.float32)
    check_dtype("theta_dtype", wide)
    with torch.inference_mode(False), torch.enable_grad():
        image = torch.zeros(whole_numbers(shape), dtype=dtype, device=device)
        check_image("shape", image)
        image = image.contiguous(memory_format=memory_format).requires_grad_(image_gradient)
        hw = check_size(image.shape[2:] if size is None else size)
        try:
            theta = transform.identity(hw, align_corners=bool(align_corners), dtype=wide, device=device)
        except ValueError as error:
            expected = f"expected one that has an identity, which warmup takes for theta, got {transform}"
            instead = "call transform_sample and its backward once instead, on tensors of the shapes you will use"
            raise ValueError(f"transform: {expected}: {instead} ({error})") from None
        batch = image.shape[:1] if transforms is None else (image.shape[0], check_count("transforms", transforms))
        theta = theta.repeat(*batch, *[1] * theta.dim()).requires_grad_(theta_gradient)
        warped = transform_sample(
            transform, image, theta, hw, mode=mode, padding_mode=padding_mode, align_corners=align_corners,
            fill=torch.zeros((), device=device, requires_grad=fill_gradient) if padding_mode == "fill" else None,
            return_mask=return_mask, deterministic=deterministic,
        )  # fmt: skip
        out = warped[0] if isinstance(warped, tuple) else warped
        if out.requires_grad:
            out.backward(torch.zeros_like(out))
    if out.is_cuda:
        torch.cuda.synchronize(out.device)
    return time.perf_counter() - start


def grid_sample(
    input: Tensor,
    grid: Tensor,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = None,
) -> Tensor:
    """`torch.nn.functional.grid_sample` in two dimensions, same signature and meaning.

    It is the warp by the dense transform: the same kernels as `affine_sample`, with the grid as theta. Beyond
    PyTorch: input and grid may differ in floating dtype (coordinates are float32 at least), half types work on
    a CPU, and non-finite grids are safe everywhere: 0 under zeros, an edge pixel under border and reflection (the
    table in `stn_triton.reference`).

    Args:
        input: (N, C, H, W), floating point, any strides.
        grid: (N, h, w, 2) of normalised source points (x, y).
        mode: "bilinear", "nearest" or "bicubic".
        padding_mode: "zeros", "border" or "reflection".
        align_corners: None means False, with PyTorch's warning.

    Returns:
        (N, C, h, w), of the input's dtype and memory format.

    Raises:
        RuntimeError, ValueError: for the mistakes PyTorch raises them for (NotImplementedError for 5-D inputs).
    """
    check_tensor("input", input, NotImplementedError)
    check_tensor("grid", grid, NotImplementedError)
    check_choice("mode", mode, MODES)
    check_choice("padding_mode", padding_mode, [each for each in PADDING_MODES if each != "fill"])
    if align_corners is None:
        _warn_align_corners("grid_sample")
        align_corners = False
    if input.device != grid.device:
        raise RuntimeError(f"grid: expected the input's device {input.device}, got {grid.device}")
    if input.dim() == 5:
        raise NotImplementedError(
            f"input: expected 4 dimensions (N, C, H, W), 3-D is not there yet, got {tuple(input.shape)}"
        )
    if input.dim() != 4 or 0 in input.shape[2:]:
        raise RuntimeError(f"input: expected shape (N, C, H, W) with H and W at least 1, got {tuple(input.shape)}")
    if grid.dim() != 4 or grid.shape[-1] != 2 or grid.shape[0] != input.shape[0]:
        raise RuntimeError(f"grid: expected shape (N, h, w, 2) with N = {input.shape[0]}, got {tuple(grid.shape)}")
    size = (grid.shape[1], grid.shape[2])
    align_corners = check_bool("align_corners", align_corners)
    return warp(WarpSpec(TRANSFORMS["dense"], mode, padding_mode, align_corners, size), input, grid)[0]


def affine_grid(theta: Tensor, size: Sequence[int], align_corners: bool | None = None) -> Tensor:
    """`torch.nn.functional.affine_grid` in two dimensions, same signature and meaning.

    For those who want to look at the grid; `affine_sample` needs none.

    Args:
        theta: (N, 2, 3), floating point. Half types are computed in float32 and rounded once.
        size: (N, C, h, w) of the output; C does not matter.
        align_corners: None means False, with PyTorch's warning. True has PyTorch's other warning where h or w is 1:
            such an axis has no two corners to align, and its target point is 0.

    Returns:
        (N, h, w, 2) of source points (u, v), normalised, in theta's dtype.

    Raises:
        RuntimeError, ValueError: for the mistakes PyTorch raises them for (NotImplementedError for 5-D sizes).
    """
    check_tensor("theta", theta, ValueError)
    if align_corners is None:
        _warn_align_corners("affine_grid")
        align_corners = False
    align_corners = check_bool("align_corners", align_corners)
    size = whole_numbers(size)
    if len(size) != 4:
        raise NotImplementedError(f"size: expected 4 numbers (N, C, h, w), 3-D is not there yet, got {size}")
    if theta.dim() != 3 or theta.shape[1:] != (2, 3):
        raise ValueError(f"theta: expected shape (N, 2, 3), got {tuple(theta.shape)}")
    if align_corners and min(size[2:]) == 1:
        _warn(
            "Since version 1.3.0, affine_grid behavior has changed for unit-size grids when align_corners=True: "
            f"an axis of one pixel has no two corners to align, and its target point is 0, got size {size}",
            stacklevel=3,
        )
    elif min(size) <= 0:
        raise ValueError(f"size: expected positive numbers, got {size}")
    if theta.shape[0] != size[0]:
        raise RuntimeError(f"theta: expected a batch of {size[0]} as in size, got {theta.shape[0]}")
    return TRANSFORMS["affine"].grid(theta, (size[2], size[3]), align_corners)


def _warn_align_corners(name: str) -> None:
    _warn(
        f"{name}: align_corners is not given and taken as False, PyTorch's default since 1.3; say which",
        stacklevel=4,
    )


def _warn(message: str, stacklevel: int) -> None:
    """Warns, unless torch.compile is tracing: a warning would break the graph."""
    if not torch.compiler.is_compiling():
        warnings.warn(message, stacklevel=stacklevel)
