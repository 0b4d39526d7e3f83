"""Values that are not finite, in image, theta, fill and gradients, propagate where they are read, and nowhere else."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from cases import MODES, PADDING_MODES
from conftest import Path
from tolerance import to_numpy
from torch.fx.experimental.proxy_tensor import make_fx

from stn_triton import TRANSFORMS, affine_sample, grid_sample, piecewise_affine_sample, reference, transform_sample

NOT_FINITE = (float("nan"), float("inf"), float("-inf"))
KINDS = tuple(TRANSFORMS)
#: A spline costs the interpreter a second.
INTERPRETED = tuple(kind for kind in KINDS if kind != "tps")


class Warp(NamedTuple):
    """A warp and the gradients of its results, float64; without a fill or a mask they are None."""

    kind: str
    image: np.ndarray
    theta: np.ndarray
    fill: np.ndarray | None
    d_out: np.ndarray
    d_mask: np.ndarray | None
    mode: str
    padding_mode: str
    align_corners: bool
    layout: torch.memory_format


def draw(rng: np.random.Generator, kinds=KINDS) -> Warp:
    """Ordinary numbers, of which here and there one is not finite; no point of the output lies on a kink."""
    kind, mode, padding_mode = rng.choice(kinds), rng.choice(MODES), rng.choice(PADDING_MODES)
    n, c = rng.integers(1, 3), rng.integers(1, 5)
    (H, W), size = rng.integers(1, 8, 2), tuple(map(int, rng.integers(1, 8, 2)))

    def spoil(values, rate):
        spoiled = rng.uniform(size=values.shape) < rate
        return np.where(spoiled, rng.choice(NOT_FINITE, values.shape), values)

    rates = rng.choice([0, 0, 0.1, 0.3], 5)
    identity = TRANSFORMS[kind].identity(size, dtype=torch.float64).numpy()
    theta = identity * rng.uniform(0.6, 1.9) + rng.uniform(-0.4, 0.4, (n, *identity.shape))
    return Warp(
        kind,
        spoil(rng.standard_normal((n, c, H, W)), rates[0] / 2),
        spoil(theta, rates[1] / identity[..., 0].size),
        spoil(rng.standard_normal((n, c)), rates[2]) if padding_mode == "fill" else None,
        spoil(rng.standard_normal((n, c, *size)), rates[3]),
        spoil(rng.standard_normal((n, 1, *size)), rates[4]) if rng.uniform() < 0.5 else None,
        mode,
        padding_mode,
        bool(rng.integers(2)),
        (torch.contiguous_format, torch.channels_last)[rng.integers(2)],
    )


def results(warp: Warp, device: torch.device) -> dict[str, torch.Tensor]:
    given = {name: getattr(warp, name) for name in ("image", "theta", "fill")}
    tensors = {name: torch.tensor(t, device=device) for name, t in given.items() if t is not None}
    tensors["image"] = tensors["image"].contiguous(memory_format=warp.layout)
    for tensor in tensors.values():
        tensor.requires_grad_()
    outputs = transform_sample(
        warp.kind, tensors["image"], tensors["theta"], warp.d_out.shape[2:],
        mode=warp.mode, padding_mode=warp.padding_mode, align_corners=warp.align_corners, fill=tensors.get("fill"),
        return_mask=warp.d_mask is not None,
    )  # fmt: skip
    out, mask = outputs if warp.d_mask is not None else (outputs, None)
    of, given = [out], [torch.tensor(warp.d_out, device=device)]
    if mask is not None and mask.requires_grad:
        of, given = [out, mask], [*given, torch.tensor(warp.d_mask, device=device)]
    gradients = torch.autograd.grad(of, list(tensors.values()), given)
    named = {"out": out, "mask": mask, **{f"d_{name}": g for name, g in zip(tensors, gradients, strict=True)}}
    return {name: to_numpy(value.detach()) for name, value in named.items() if value is not None}


def truth(warp: Warp) -> dict[str, np.ndarray]:
    """The results that the reference gives."""
    size, in_size = warp.d_out.shape[2:], warp.image.shape[2:]
    if warp.kind == "dense":
        grid, finite = warp.theta, np.ones(warp.d_out[:, 0].shape, bool)
    else:
        grid, finite = reference._points(warp.kind, warp.theta, len(warp.image), size, warp.align_corners)
    options = warp.mode, warp.padding_mode, warp.align_corners
    fill = () if warp.fill is None else (warp.fill,)
    colour = 0.0 if warp.fill is None else warp.fill[:, :, None, None]
    d_out, seen = np.where(finite[:, None], warp.d_out, 0), finite[:, None]
    d_image, d_grid = reference.grid_sample_backward(d_out, warp.image, grid, *options, *fill)
    named = {"out": np.where(seen, reference.grid_sample(warp.image, grid, *options, *fill), colour)}
    if warp.d_mask is not None:
        named["mask"] = np.where(seen, reference.coverage(grid, in_size, *options), 0)
        if warp.mode != "nearest":
            d_grid = d_grid + reference.coverage_backward(np.where(seen, warp.d_mask, 0), grid, in_size, *options)
    backward = reference.GRIDS[warp.kind][1] if warp.kind != "dense" else lambda d_grid, *args: d_grid
    named |= {"d_image": d_image, "d_theta": backward(d_grid, warp.theta, size, warp.align_corners)}
    if warp.fill is not None:
        d_fill = reference.fill_backward(d_out, warp.fill, grid, in_size, *options)
        unseen = np.where(seen, 0, warp.d_out).sum((2, 3))  # there the fill is all there is
        named["d_fill"] = np.where(np.isfinite(warp.fill), d_fill + unseen, 0)
    return named


def on_a_kink(warp: Warp) -> bool:
    """Whether a rounding decides what is read: pixels by a point, or vertices of a mesh by a pixel."""
    size, in_size = warp.d_out.shape[2:], warp.image.shape[2:]
    grid = warp.theta
    if warp.kind != "dense":
        grid, _ = reference._points(warp.kind, warp.theta, len(warp.image), size, warp.align_corners)
    places = [2 * reference.pixels(grid[..., k], in_size[1 - k], warp.align_corners) for k in (0, 1)]
    if warp.kind == "piecewise_affine":
        a, b = np.moveaxis((reference.target_points(size, warp.align_corners) + 1) * 1.5, -1, 0)
        places += [a, b, a - b]
    with np.errstate(invalid="ignore"):
        return any((np.abs(t - np.rint(t)) < 1e-6).any() for t in places)


def taps_of_weight_0(warp: Warp) -> np.ndarray:
    """The pixels to which PyTorch's samplers add 0 times a d_out that is not finite: the second tap on an edge."""
    size, in_size = warp.d_out.shape[2:], warp.image.shape[2:]
    touched = np.zeros(warp.image.shape, bool)
    if warp.mode != "bilinear":
        return touched
    if warp.kind == "dense":
        grid, finite = warp.theta, reference._known(warp.theta, in_size, warp.padding_mode, warp.align_corners)
    else:
        grid, finite = reference._points(warp.kind, warp.theta, len(warp.image), size, warp.align_corners)
    spoilt = ~np.isfinite(warp.d_out)
    for i, j, inside, weight, _, _ in reference._corners(
        grid, in_size, "bilinear", warp.padding_mode, warp.align_corners
    ):
        n, k, l = np.nonzero(inside & (weight == 0) & finite)  # noqa: E741
        np.logical_or.at(touched, (n, slice(None), i[n, k, l], j[n, k, l]), spoilt[n, :, k, l])
    return touched


def assert_by_the_table(warp: Warp, path: Path) -> None:
    expected = truth(warp)
    if path.name == "torch":
        expected["d_image"] = np.where(taps_of_weight_0(warp), np.nan, expected["d_image"])
        if warp.kind == "dense":  # a coordinate that is infinite has been clipped before
            expected["d_theta"] = np.where(np.isinf(warp.theta), 0, expected["d_theta"])
    ours = results(warp, path.device)
    if path.name == "torch" and (warp.mode, warp.padding_mode, warp.kind) == ("bicubic", "reflection", "dense"):
        # No coordinate sends all taps of torch's sampler to pixel 0: others, which may not be finite, weigh 0.
        ours["out"] = np.where(np.isfinite(warp.theta).all(-1)[:, None], ours["out"], expected["out"])
    for name, values in ours.items():
        finite = np.isfinite(expected[name])
        assert (np.isfinite(values) == finite).all(), name
        np.testing.assert_allclose(values[finite], expected[name][finite], rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("block", range(4))
def test_by_the_table(path, block):
    """In random warps with values that are not finite, exactly what the reference's table says becomes so."""
    for k in range(15 if path.name == "kernel" else 100):
        warp = draw(np.random.default_rng([block, k]), INTERPRETED if path.name == "kernel" else KINDS)
        if not on_a_kink(warp):
            assert_by_the_table(warp, path)


def example(path: Path, **options):
    """An image and a theta that looks beyond every side of it."""
    image = 0.5 + torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    theta = torch.tensor([[[1.5, 0.1, 0.05], [-0.1, 1.4, 0.03]]])
    return (tensor.to(path.device).requires_grad_() for tensor in (image, theta))


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_gradient_that_nothing_reads_is_nothing(path, deterministic):
    """The root of 0 has an infinite slope, outside the image."""
    image, theta = example(path)
    out, mask = affine_sample(image, theta, return_mask=True, deterministic=deterministic)
    gradients = torch.autograd.grad(out.sqrt().sum(), [image, theta], retain_graph=True)
    inside = torch.where(mask > 0, out, 1).sqrt().sum()
    for gradient, expected in zip(gradients, torch.autograd.grad(inside, [image, theta]), strict=True):
        assert expected.isfinite().all()
        torch.testing.assert_close(gradient, expected)


def gradient_of_compiled(loss, theta):
    leaf = theta.clone().requires_grad_()
    return torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(leaf), leaf)[0]


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.parametrize("differentiate", [
    lambda loss, theta: torch.func.grad(loss)(theta),
    lambda loss, theta: torch.func.vmap(torch.func.grad(loss))(theta[None])[0],
    lambda loss, theta: torch.func.grad(lambda thetas: torch.func.vmap(loss)(thetas).sum())(theta[None])[0],
    gradient_of_compiled,
    lambda loss, theta: make_fx(torch.func.grad(loss))(theta)(theta),
], ids=["grad", "vmap of grad", "grad of vmap", "torch.compile", "make_fx"])  # fmt: skip
def test_a_gradient_that_nothing_reads_is_nothing_in_a_trace(path, differentiate):
    """Traces and transforms of `torch.func` give the gradient that the eager call gives."""
    image, theta = (tensor.detach() for tensor in example(path))

    def loss(theta):
        return affine_sample(image, theta).sqrt().sum()

    leaf = theta.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    assert expected.isfinite().all()
    torch.testing.assert_close(differentiate(loss, theta), expected)


def test_the_mask_of_what_lies_outside_may_divide(path):
    """0 / 0 outside is discarded by torch.where, but its gradient is NaN."""
    image, theta = example(path)
    out, mask = affine_sample(image, theta, return_mask=True)
    ratio = torch.where(mask > 0, out / mask, 0).square().sum()
    gradient = torch.autograd.grad(ratio, theta, retain_graph=True)[0]
    safe = torch.where(mask > 0, out / torch.where(mask > 0, mask, 1), 0).square().sum()
    torch.testing.assert_close(gradient, torch.autograd.grad(safe, theta)[0])


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_a_tap_of_weight_0_gets_no_gradient(kernel_path, padding_mode):
    """Gathered or scattered, under an identity each pixel gets its own d_out alone."""
    image = torch.zeros(1, 1, 4, 4, device=kernel_path.device, requires_grad=True)
    d_out = torch.ones_like(image)
    d_out[..., 1, 2] = float("inf")
    theta = torch.eye(2, 3, device=kernel_path.device)[None]
    affine_sample(image, theta, padding_mode=padding_mode).backward(d_out)
    assert torch.equal(image.grad, d_out)


@pytest.mark.parametrize(("row", "column", "vertices"), [(1, 2, [0, 1, 5]), (2, 1, [0, 4, 5])], ids=["upper", "lower"])
def test_of_a_cell_three_vertices_are_read(path, row, column, vertices):
    """The cell's fourth vertex gets nothing of a gradient that is not finite."""
    image = torch.rand(1, 1, 9, 9, device=path.device, dtype=torch.float64)
    theta = TRANSFORMS["piecewise_affine"].identity(dtype=torch.float64, device=path.device)[None].requires_grad_()
    out = piecewise_affine_sample(image, 0.97 * theta)
    d_out = torch.zeros_like(out)
    d_out[..., row, column] = float("nan")  # in that triangle of the first cell
    out.backward(d_out)
    lost = theta.grad.isnan().any(-1)[0].nonzero().flatten().tolist()
    assert lost == vertices


def test_a_fill_that_is_not_seen_gets_nothing(path):
    """An infinite d_out reaches the fill only where the fill is seen."""
    image, _ = example(path)
    fill = torch.zeros(3, device=path.device, requires_grad=True)
    for zoom, expected in ((0.5, 0.0), (2.0, float("inf"))):
        theta = zoom * torch.eye(2, 3, device=path.device)[None]
        out = affine_sample(image, theta, padding_mode="fill", fill=fill)
        (gradient,) = torch.autograd.grad(out, fill, torch.full_like(out, float("inf")))
        assert gradient.tolist() == [expected] * 3


@pytest.mark.parametrize(("far", "pixel"), [(float("inf"), -1), (float("-inf"), 0), (1e12, -1), (-1e12, 0)])
def test_beyond_every_fraction_bicubic_reads_one_pixel(path, far, pixel):
    """All of its taps go to the edge pixel: the one beside it may be NaN."""
    image = torch.rand(1, 1, 3, 6, device=path.device)
    image[..., [1, -2]] = float("nan")
    grid = torch.tensor([[[[far, 0.0]]]], device=path.device)
    out = grid_sample(image, grid, "bicubic", "border", align_corners=False)
    torch.testing.assert_close(out.flatten(), image[0, 0, 1, pixel].reshape(1))
