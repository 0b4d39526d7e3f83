"""Where semantics are easiest to get wrong: kinks, ties, edges, seams, one-pixel axes, non-finite and huge."""

import numpy as np
import pytest
import torch
from cases import MODES, PADDING_MODES
from tolerance import to_numpy

from stn_triton import affine_sample, grid_sample, reference

INF, NAN = float("inf"), float("nan")


def as_grid(pixels, size, align_corners, device, dtype=torch.float64):
    """Grid whose u axis runs through these pixel coordinates of an axis of that size; v is the middle row."""
    t = torch.tensor(pixels, dtype=torch.float64, device=device)
    u = 2 * t / (size - 1) - 1 if align_corners else (2 * t + 1) / size - 1
    return torch.stack([u, torch.zeros_like(u)], -1)[None, None].to(dtype)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
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
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (3, 1), (3, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
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
    moved = 2 * np.abs(tensors[1]).max() * max(shape)
    scales = np.abs(tensors[1]).max() + moved, magnitudes[0].max() + 2 * max(shape), magnitudes[1].max() + moved
    for ours, expected, scale in zip((out, image.grad, grid.grad), (truth, *gradients), scales, strict=True):
        np.testing.assert_allclose(to_numpy(ours), expected, rtol=0, atol=4 * torch.finfo(dtype).eps * scale)


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("mode", MODES)
def test_nonfinite_theta_reads_nothing(path, mode, padding_mode):
    """A sample with any non-finite parameter is 0 under every padding; its neighbours are untouched."""
    bad = torch.eye(2, 3).repeat(7, 1, 1)
    for k in range(6):
        bad[k].view(-1)[k] = (NAN, INF, -INF)[k % 3]
    theta = bad.to(path.device).requires_grad_()
    image = torch.randn(7, 2, 4, 5, device=path.device, requires_grad=True)
    out = affine_sample(image, theta, (3, 4), mode=mode, padding_mode=padding_mode)
    out.sum().backward()
    assert (out[:6] == 0).all()
    assert (theta.grad[:6] == 0).all()
    assert (image.grad[:6] == 0).all()
    alone = affine_sample(image[6:], theta[6:], (3, 4), mode=mode, padding_mode=padding_mode)
    torch.testing.assert_close(out[6:], alone)
    assert image.grad[6].abs().sum() > 0
    assert torch.isfinite(theta.grad).all()


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
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
        assert ((out >= 0) & (out <= image.max())).all()
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
