"""hypothesis over shapes, strides, dtypes and parameters, special values among them, against the reference."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from cases import MODES, PYTORCH_PADDINGS, TRANSFORM_CASES, theta_dtype
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from test_layouts import LAYOUTS
from tolerance import MOVES, OVERSHOOT, to_numpy

from stn_triton import TRANSFORMS, affine_sample, reference
from stn_triton.transforms.projective import HORIZON, LEAST

SPECIAL = [0.0, 1.0, -1.0, 0.5, -0.5, 2.0, 1 / 3, 1e-30, 1e6]
# A spline takes the interpreter a second an example: test_tps.py has cases of its own.
KINDS = [name for name in TRANSFORM_CASES if name != "tps"]
NONFINITE = [float("nan"), float("inf"), float("-inf")]
entries = st.one_of(st.sampled_from(SPECIAL), st.floats(-3, 3, width=32))
anything = st.one_of(entries, st.sampled_from(NONFINITE))
sizes = st.integers(1, 8)
fuzz = settings(
    deadline=None,
    derandomize=True,
    report_multiple_bugs=False,  # an assertion fails as itself
    max_examples=20,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@st.composite
def warps(draw, parameters):
    """(kind, image, theta, d_out, size, options); image and d_out in any layout."""
    kind = draw(st.sampled_from(KINDS))
    n, c = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    shape, size = (n, c, draw(sizes), draw(sizes)), (draw(sizes), draw(sizes))
    dtype = draw(st.sampled_from([torch.float64, torch.float64, torch.float32, torch.float16, torch.bfloat16]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    theta_shape = (n, *TRANSFORMS[kind].parameter_shape(size))
    count = int(np.prod(theta_shape))
    values = draw(st.lists(parameters, min_size=min(count, 18), max_size=min(count, 18)))
    theta = torch.tensor(np.resize(values, theta_shape), dtype=theta_dtype(dtype))
    image = torch.tensor(rng.standard_normal(shape)).to(dtype)
    d_out = torch.tensor(rng.standard_normal((n, c, *size))).to(dtype)
    image, d_out = (LAYOUTS[draw(st.sampled_from(list(LAYOUTS)))](t) for t in (image, d_out))
    options = draw(st.sampled_from(MODES)), draw(st.sampled_from(PYTORCH_PADDINGS)), draw(st.booleans())
    return kind, image, theta, d_out, size, options


def run(path, kind, image, theta, d_out, size, options):
    image, theta = (t.to(path.device).detach().requires_grad_() for t in (image, theta))
    out = TRANSFORM_CASES[kind].sample(image, theta, size, *options)
    return (out.detach(), *torch.autograd.grad(out, [image, theta], d_out.to(path.device)))


class Coordinates(NamedTuple):
    """float64 source pixels of every target, and what ``theta``'s dtype may do to them. All (N, h, w, 2)."""

    pixels: np.ndarray
    slack: np.ndarray  #: how far off they may be, in pixels
    steepness: np.ndarray  #: the largest derivative in an entry of theta, over that of an affine map

    @property
    def smooth(self) -> np.ndarray:
        """Where rounding does not decide: well away from kinks, ties and mirrors, which are half pixels."""
        kink = np.abs(2 * self.pixels - np.rint(2 * self.pixels))
        return ((kink > 4 * self.slack) & (self.slack < 0.1)).all(-1)


def coordinates(kind, image, theta, size, align_corners) -> Coordinates:
    """A coordinate is a sum of at most three products, then scaled: under 8 roundings of its largest term.

    A quotient of two such sums p / r is off by their errors over r. Points behind the camera read nothing: 0.25, a
    smooth place, stands for them; where rounding decides whether they do, their slack has no bound.
    """
    theta = theta.double()
    grid = TRANSFORMS[kind].grid(theta, size, align_corners).numpy()
    bound, steepness = np.abs(grid), np.ones_like(grid)
    if kind == "affine":
        bound = np.abs(to_numpy(theta)).sum(-1)[:, None, None]
    elif kind == "attention":
        bound = np.abs(to_numpy(theta)).sum(-1)[:, None, None, None]
    elif kind in ("projective", "homography"):
        matrix = to_numpy(TRANSFORMS[kind].matrix(theta))
        depth = reference.affine_grid(matrix, size, align_corners)[..., 2:]
        terms = np.abs(matrix).sum(-1)[:, None, None]
        horizon = np.maximum(HORIZON * terms[..., 2:], LEAST)
        seen = depth > horizon
        true_depth, depth = depth, np.where(seen, depth, 1.0)
        grid = np.where(seen, grid, 0.0)
        bound = seen * (terms[..., :2] + np.abs(grid) * terms[..., 2:]) / depth
        steepness = seen * (1 + np.abs(grid).max(-1, keepdims=True)) / depth * terms[..., 2:] / depth
    elif kind == "piecewise_affine":  # a place in a cell is off by some roundings, times what the vertices differ by
        bound = 2 * (1 + np.abs(to_numpy(theta)).max(axis=(1, 2)))[:, None, None, None]
    extent = np.array(image.shape[:1:-1])
    pixels = np.stack([reference.pixels(grid[..., k], int(extent[k]), align_corners) for k in range(2)], -1)
    slack = 8 * torch.finfo(image.dtype if image.dtype == torch.float64 else torch.float32).eps * (bound + 1) * extent
    if kind in ("projective", "homography"):
        unsure = np.abs(true_depth - horizon) < 1e-6 * terms[..., 2:]
        pixels = np.where(seen, pixels, 0.25)
        slack = np.where(unsure, np.inf, np.where(seen, slack, 0.0))
    return Coordinates(pixels, np.broadcast_to(slack, grid.shape), np.broadcast_to(steepness, grid.shape))


@fuzz
@given(data=st.data())
def test_against_the_reference(path, data):
    """Wherever the answer is smooth in the coordinate, it is within what the coordinate's rounding explains.

    Target pixels on a kink or a jump, where rounding decides, are left out of the comparison: their d_out is 0.
    """
    kind, image, theta, d_out, size, options = data.draw(warps(entries))
    mode, _, align_corners = options
    at = coordinates(kind, image, theta, size, align_corners)
    assume(at.smooth.any())
    d_out = d_out * torch.from_numpy(at.smooth)[:, None]
    slack = np.where(at.smooth[..., None], at.slack, 0.0)
    steepest = (at.steepness * at.smooth[..., None]).max()

    out, d_image, d_theta = run(path, kind, image, theta, d_out, size, options)
    tensors = to_numpy(image), to_numpy(theta)
    case = TRANSFORM_CASES[kind]
    truth = case.reference(*tensors, size, *options)
    d_image_truth, d_theta_truth = case.reference_backward(to_numpy(d_out), *tensors, *options)
    magnitudes = case.reference_backward(to_numpy(d_out), *tensors, *options, magnitude=True)

    # Coordinates are off by up to `slack`.
    largest, (value_moves, weight_moves, slope_moves) = np.abs(to_numpy(image)).max(), MOVES[mode]
    eps = 4 * torch.finfo(out.dtype).eps
    error = np.abs(to_numpy(out) - truth).max(1)
    allowed = eps * OVERSHOOT[mode] * largest + value_moves * largest * at.slack.sum(-1)
    where = np.ones_like(at.smooth) if mode != "nearest" else at.smooth  # the others are continuous, nearest jumps
    assert (error <= allowed)[where].all()
    total = np.abs(to_numpy(d_out)).sum((2, 3)).max()
    moved = 2 * weight_moves * slack.max() * total
    assert np.abs(to_numpy(d_image) - d_image_truth).max() <= eps * magnitudes[0].max() + moved
    # d_theta's terms are derivatives of values, times at most the extent and 1.
    turned = slope_moves * largest * slack.max() * np.abs(to_numpy(d_out)).sum() * max(image.shape[2:]) * steepest
    eps_theta = 4 * torch.finfo(theta.dtype).eps * max(1, steepest)
    assert np.abs(to_numpy(d_theta) - d_theta_truth).max() <= eps_theta * magnitudes[1].max() + turned


@fuzz
@given(data=st.data())
def test_anything_goes_in_nothing_wild_comes_out(path, data):
    """Non-finite and huge parameters: never a crash, a NaN, or a value that is not the image's."""
    kind, image, theta, d_out, size, options = data.draw(warps(anything))
    out, d_image, d_theta = run(path, kind, image, theta, d_out, size, options)
    assert all(torch.isfinite(t).all() for t in (out, d_image, d_theta))
    assert out.abs().max() <= image.abs().max() * OVERSHOOT[options[0]] * (1 + 4 * torch.finfo(image.dtype).eps)


@fuzz
@given(
    extent=st.sampled_from([2, 3, 5, 8, 17, 32, 33, 100, 224]),
    scale=st.floats(0.5, 1.5, width=32),
    shift=st.floats(-1, 1, width=32),
    align_corners=st.booleans(),
    mode=st.sampled_from(MODES),
)
def test_theta_at_the_edge_reads_no_guard(path, extent, scale, shift, align_corners, mode):
    """NaN rows and columns around the image: a tap out of the row would show."""
    guarded = torch.full((1, 1, extent + 2, extent + 2), float("nan"))
    guarded[..., 1:-1, 1:-1] = torch.rand(extent, extent)
    image = guarded.to(path.device)[..., 1:-1, 1:-1]
    theta = torch.tensor([[[scale, 0, shift], [0, -scale, shift]]], device=path.device)
    for padding_mode in PYTORCH_PADDINGS:
        out = affine_sample(image, theta, (16, 16), mode=mode, padding_mode=padding_mode, align_corners=align_corners)
        assert torch.isfinite(out).all()
        assert (out.abs() <= OVERSHOOT[mode] + 1e-6).all()
        assert mode == "bicubic" or (out >= 0).all()


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("pixels", lambda u, n, align_corners: PIXELS(u, n, align_corners) + 0.5),
        ("pixels_per_unit", lambda n, align_corners: -n / 2),  # seen by d_theta alone
    ],
)
def test_the_fuzzer_is_no_rubber_stamp(monkeypatch, name, broken):
    """A reference that is off by half a pixel, or in one gradient, fails it."""
    from conftest import use_path

    monkeypatch.setattr(reference, name, broken)
    with pytest.raises(AssertionError):
        test_against_the_reference(use_path("torch", monkeypatch))


PIXELS = reference.pixels
