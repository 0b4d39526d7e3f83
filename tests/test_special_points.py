"""Where semantics are easiest to get wrong: kinks, ties, edges, seams, one-pixel axes, non-finite and huge."""

import numpy as np
import pytest
import torch
from cases import MODES, PYTORCH_PADDINGS
from tolerance import MOVES, OVERSHOOT, to_numpy

from stn_triton import TRANSFORMS, affine_sample, grid_sample, projective_sample, reference, transform_sample

INF, NAN = float("inf"), float("nan")


def as_grid(pixels, size, align_corners, device, dtype=torch.float64):
    """Grid whose u axis runs through these pixel coordinates of an axis of that size; v is the middle row."""
    t = torch.tensor(pixels, dtype=torch.float64, device=device)
    u = 2 * t / (size - 1) - 1 if align_corners else (2 * t + 1) / size - 1
    return torch.stack([u, torch.zeros_like(u)], -1)[None, None].to(dtype)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", PYTORCH_PADDINGS)
@pytest.mark.parametrize("mode", MODES)
def test_exact_coordinates(path, mode, padding_mode, align_corners):
    """Integers, halves, both edges, beyond them and mirror seams, each representable, compared without slack."""
    size = 5 if align_corners else 4  # powers of two divide exactly
    pixels = [k / 2 for k in range(-20, 30)]
    image = torch.randn(1, 2, 3, size, dtype=torch.float64, device=path.device, requires_grad=True)
    grid = as_grid(pixels, size, align_corners, path.device).requires_grad_()
    options = mode, padding_mode, align_corners
    out = grid_sample(image, grid, *options)
    d_out = torch.randn_like(out)
    out.backward(d_out)
    tensors = to_numpy(image), to_numpy(grid)
    np.testing.assert_allclose(to_numpy(out), reference.grid_sample(*tensors, *options), rtol=0, atol=4e-15)
    truth = reference.grid_sample_backward(to_numpy(d_out), *tensors, *options)
    for ours, expected in zip((image.grad, grid.grad), truth, strict=True):
        np.testing.assert_allclose(to_numpy(ours), expected, rtol=0, atol=4e-14)


def test_derivative_at_an_integer(path):
    """U[j+1] - U[j], the difference to the right, per pixel of coordinate."""
    image = torch.tensor([1.0, 10.0, 100.0, 1000.0], device=path.device).view(1, 1, 1, 4)
    grid = as_grid([0, 1, 2, 3], 4, False, path.device, torch.float32).requires_grad_()
    grid_sample(image, grid, align_corners=False).sum().backward()
    assert grid.grad[0, 0, :, 0].tolist() == [18, 180, 1800, -2000]  # half a width per unit: 4 / 2


@pytest.mark.parametrize(
    ("align_corners", "pixels", "expected"),
    [(False, [-0.5, 0.5, 1.5, 2.5, 3.5], [0, 0, 2, 2, -1]), (True, [0.5, 1.5, 2.5, 3.5], [0, 2, 2, 4])],
)
def test_nearest_ties_go_to_even(path, align_corners, pixels, expected):
    size = 5 if align_corners else 4
    image = torch.arange(float(size), device=path.device).view(1, 1, 1, -1) + 1
    grid = as_grid(pixels, size, align_corners, path.device, torch.float32)
    out = grid_sample(image, grid, "nearest", "zeros", align_corners)
    assert (out.flatten() - 1).tolist() == expected  # -1: outside


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", PYTORCH_PADDINGS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("shape", "dtype"), [
    ((1, 1), torch.float32), ((1, 4), torch.float64), ((3, 1), torch.float32), ((3, 4), torch.float64),
], ids=str)  # fmt: skip
def test_nonfinite_grid(path, mode, padding_mode, align_corners, shape, dtype):
    """The reference's table: nothing out of bounds, no NaN that the image does not hold, gradients as written."""
    values = torch.tensor([NAN, INF, -INF, 0.3, -0.7], dtype=dtype, device=path.device)
    grid = torch.cartesian_prod(values, values).view(1, 5, 5, 2).requires_grad_()
    image = torch.randn(1, 2, *shape, dtype=dtype, device=path.device, requires_grad=True)
    options = mode, padding_mode, align_corners
    out = grid_sample(image, grid, *options)
    d_out = torch.randn_like(out)
    out.backward(d_out)
    with np.errstate(invalid="ignore"):
        truth = reference.grid_sample(to_numpy(image), to_numpy(grid), *options)
        gradients = reference.grid_sample_backward(to_numpy(d_out), to_numpy(image), to_numpy(grid), *options)
    with np.errstate(invalid="ignore"):
        tensors = to_numpy(d_out), to_numpy(image), to_numpy(grid)
        magnitudes = reference.grid_sample_backward(*tensors, *options, magnitude=True)
    # The finite coordinates, 0.3 and -0.7, are rounded too: by an ulp of the extent, times the steepest slope.
    value, weight, slope = (moves * max(shape) for moves in MOVES[mode])
    largest = np.abs(tensors[1]).max()
    scales = largest * (1 + value), magnitudes[0].max() + 2 * weight, magnitudes[1].max() + largest * slope
    for ours, expected, scale in zip((out, image.grad, grid.grad), (truth, *gradients), scales, strict=True):
        np.testing.assert_allclose(to_numpy(ours), expected, rtol=0, atol=4 * torch.finfo(dtype).eps * scale)


@pytest.mark.parametrize(
    "transform", [name for name in TRANSFORMS if name not in ("dense", "flow", "piecewise_affine")]
)
@pytest.mark.parametrize(
    ("mode", "padding_mode"),
    [*(("bilinear", padding_mode) for padding_mode in PYTORCH_PADDINGS), ("nearest", "border"), ("bicubic", "border")],
)
def test_nonfinite_theta_reads_nothing(path, transform, mode, padding_mode):
    """A sample with any non-finite parameter is 0 under every padding; its neighbours are untouched."""
    identity = TRANSFORMS[transform].identity((3, 4))
    places = range(0, identity.numel(), 1 + identity.numel() // 12)
    count = len(places)
    bad = identity.repeat(count + 1, *[1] * identity.dim())
    for k, place in enumerate(places):
        bad[k].view(-1)[place] = (NAN, INF, -INF)[k % 3]
    theta = bad.to(path.device).requires_grad_()
    image = torch.randn(count + 1, 2, 4, 5, device=path.device, requires_grad=True)
    options = {"mode": mode, "padding_mode": padding_mode}
    out = transform_sample(transform, image, theta, (3, 4), **options)
    out.sum().backward()
    assert (out[:-1] == 0).all()
    assert (theta.grad[:-1] == 0).all()
    assert (image.grad[:-1] == 0).all()
    alone = transform_sample(transform, image[-1:], theta[-1:], (3, 4), **options)
    torch.testing.assert_close(out[-1:], alone)
    assert image.grad[-1].abs().sum() > 0
    assert torch.isfinite(theta.grad).all()


def vanishing(*last_rows):
    """Homographies with these last rows."""
    return torch.tensor([[[1.0, 0.2, 0.1], [-0.1, 1.0, 0.3], list(row)] for row in last_rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("padding_mode", PYTORCH_PADDINGS)
def test_nothing_lies_behind_the_camera(path, padding_mode, dtype):
    """Zero beyond the horizon under every padding, and all gradients finite as the denominator nears 0."""
    theta = vanishing((1.2, 0, 1), (0, -3, 1), (1, 1, 1), (1, 0, 1e-3), (1e-7, 0, 1e-7)).to(path.device, dtype)
    theta.requires_grad_()
    image = torch.ones(5, 1, 6, 7, device=path.device, dtype=dtype, requires_grad=True)
    size = (40, 41)
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, n, dtype=torch.float64) for n in size), indexing="ij")
    g, h, i = theta[:, 2].detach().cpu().double().unbind(-1)
    depth = g.view(-1, 1, 1) * x + h.view(-1, 1, 1) * y + i.view(-1, 1, 1)
    scale = (g.abs() + h.abs() + i.abs()).view(-1, 1, 1)
    out = projective_sample(image, theta, size, padding_mode=padding_mode, align_corners=True)
    assert (out.cpu()[:, 0][depth < 0.9e-6 * scale] == 0).all()
    if padding_mode != "zeros":  # everywhere else there is something, and all of it is 1
        torch.testing.assert_close(out.cpu()[:, 0][depth > 1.1e-6 * scale].min(), torch.ones([], dtype=dtype))
    assert ((depth < 0).flatten(1).any(1) & (depth > 0).flatten(1).any(1))[:3].all()  # both sides are seen
    gradients = torch.autograd.grad(out.square().sum(), [image, theta])
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_depth_zero_on_a_pixel(path):
    """r = 0 at a pixel centre: nothing there, and a finite gradient."""
    theta = vanishing((1, 0, 0.5)).to(path.device).requires_grad_()  # r = 0 at x = -0.5, a pixel of five from -1 to 1
    image = torch.rand(1, 2, 6, 7, device=path.device)
    for padding_mode in PYTORCH_PADDINGS:
        out = projective_sample(image, theta, (5, 5), padding_mode=padding_mode, align_corners=True)
        assert (out[..., :2] == 0).all()  # r = -0.5 and 0
        (d_theta,) = torch.autograd.grad(out.sum(), theta)
        assert torch.isfinite(d_theta).all()


@pytest.mark.parametrize("padding_mode", PYTORCH_PADDINGS)
def test_the_least_denominator(path, padding_mode):
    """A homography too small to be divided by is behind the camera on both paths; 1e5 times it is not."""
    image = torch.ones(2, 1, 4, 4, device=path.device)
    theta = torch.eye(3, device=path.device) * torch.tensor([1e-20, 1e-15], device=path.device).view(2, 1, 1)
    theta.requires_grad_()
    for each, expected in ((slice(0, 1), 0.0), (slice(1, 2), 1.0)):  # alone, as a CPU judges a batch as a whole
        out = projective_sample(image[each], theta[each], padding_mode=padding_mode)
        torch.testing.assert_close(out, torch.full_like(out, expected))
        assert torch.autograd.grad(out.square().sum(), theta)[0].isfinite().all()


def test_far_points_keep_their_gradient_in_float64(path):
    """4e9 pixels away a float64 still says where in a mirror image a point lies."""
    theta = torch.eye(3, dtype=torch.float64, device=path.device)[None].clone()
    theta[0, 0, 2] = 4e9 + 0.13
    theta.requires_grad_()
    image = torch.randn(1, 1, 4, 5, dtype=torch.float64, device=path.device)
    out = projective_sample(image, theta, padding_mode="reflection")
    (d_theta,) = torch.autograd.grad(out.square().sum(), theta)
    affine = theta[:, :2].detach().requires_grad_()
    out = affine_sample(image, affine, padding_mode="reflection")
    (expected,) = torch.autograd.grad(out.square().sum(), affine)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(d_theta[:, :2], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [-1.0, 2.0, -0.5, 1024.0, 2.0**-30])
def test_a_homography_has_no_scale_and_no_sign(path, scale):
    """Powers of two change no bit of the output; the gradient is divided by the scale."""
    theta = (torch.eye(3) + 0.2 * torch.randn(3, 3, 3)).to(path.device)
    theta[..., 2, 2] = torch.tensor([1.0, -0.8, 1.3])
    image, d_out = (torch.rand(3, 2, 6, 7, device=path.device) for _ in range(2))
    one, other = theta.clone().requires_grad_(), (theta * scale).requires_grad_()
    out, scaled = projective_sample(image, one), projective_sample(image, other)
    assert torch.equal(out, scaled)
    d_one, d_other = torch.autograd.grad(out, one, d_out)[0], torch.autograd.grad(scaled, other, d_out)[0]
    torch.testing.assert_close(d_other * scale, d_one)


def test_a_last_entry_of_zero_is_positive(path):
    """sign(0) = +1: the right half of the output is in front."""
    theta = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [1, 0, 0]]], device=path.device)
    out = projective_sample(torch.ones(1, 1, 4, 4, device=path.device), theta, padding_mode="border")
    assert out[0, 0, 0].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("padding_mode", PYTORCH_PADDINGS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_huge_coordinates(path, mode, padding_mode, dtype):
    """Far beyond every integer type: inside the image's range of values, finite, the same forward and back."""
    scales = torch.tensor([1e4, 1e6, 3e9, 1e19, 1e30, 3e38], dtype=torch.float32, device=path.device)
    theta = (scales[:, None, None] * torch.tensor([[1.0, 0.3, -0.2], [-0.4, 1, 0.7]], device=path.device)).clone()
    theta.requires_grad_()
    image = torch.rand(6, 1, 4, 5, device=path.device).to(dtype).requires_grad_()
    for sample, parameters in (
        (affine_sample, theta),
        (grid_sample, (theta.detach()[:, :, :2, None] * torch.ones(2, device=path.device)).requires_grad_()),
    ):
        options = {"mode": mode, "padding_mode": padding_mode, "align_corners": False}
        out = sample(image, parameters, **options)
        assert (out.abs() <= OVERSHOOT[mode] * image.max()).all()
        assert mode == "bicubic" or (out >= 0).all()
        gradients = torch.autograd.grad(out.sum(), [image, parameters])
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
        if padding_mode == "zeros":
            assert (out[2:] == 0).all()
        if padding_mode == "border" and sample is grid_sample:  # corners and edges, where float32 says which
            expected = reference.grid_sample(to_numpy(image), to_numpy(parameters), **options)
            np.testing.assert_allclose(to_numpy(out[1:]), expected[1:], rtol=0, atol=4 * torch.finfo(dtype).eps)


def test_inputs_outside_the_footprint_do_not_leak(path):
    """NaN and inf in pixels that no tap reads stay where they are."""
    image = torch.full((1, 1, 5, 5), NAN, device=path.device)
    image[..., 1:4, 1:4] = 1.0
    theta = torch.tensor([[[0.3, 0, 0], [0, 0.3, 0]]], device=path.device, requires_grad=True)
    out = affine_sample(image, theta, (4, 4))
    out.sum().backward()
    assert (out == 1).all()
    assert torch.isfinite(theta.grad).all()
