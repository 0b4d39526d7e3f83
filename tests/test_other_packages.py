"""Against independent systems: kornia and OpenCV, by way of their own matrices of pixels.

Conventions: their matrices map pixels of the image to pixels of the output, the opposite way, which is what
`geometry.from_pixel_matrix` is for. kornia's normalised coordinates are those of ``align_corners=True``, its default.
OpenCV rounds a coordinate to 1/32 of a pixel (5.0 no longer in `remap`), kornia nothing; outside the image both read
zeros, tap by tap.
"""

import cv2
import kornia.geometry.transform as kornia
import numpy as np
import pytest
import torch

from stn_triton import (
    ThinPlateSpline,
    affine_sample,
    flow_sample,
    geometry,
    grid_sample,
    projective_sample,
    reference,
    tps_sample,
)

H, W, SIZE = 23, 31, (19, 27)
RNG = np.random.default_rng(0)
IMAGE = RNG.standard_normal((2, 3, H, W))
ANGLES = np.array([0.3, -1.1])
AFFINE = np.stack(
    [[[1.2 * np.cos(a), -0.9 * np.sin(a), 3 + 5 * a], [1.1 * np.sin(a), 0.8 * np.cos(a), 4 - 2 * a]] for a in ANGLES]
)
MATRIX = np.concatenate([AFFINE, [[[0.004, -0.006, 1]], [[-0.003, 0.01, 1.1]]]], 1)
PADDING = {"zeros": cv2.BORDER_CONSTANT, "border": cv2.BORDER_REPLICATE}
MODES = {"bilinear": cv2.INTER_LINEAR, "nearest": cv2.INTER_NEAREST}

theirs_and_ours = pytest.mark.parametrize(
    ("matrix", "kornia_warp", "cv2_warp", "sample"),
    [
        pytest.param(AFFINE, kornia.warp_affine, cv2.warpAffine, affine_sample, id="affine"),
        pytest.param(MATRIX, kornia.warp_perspective, cv2.warpPerspective, projective_sample, id="perspective"),
    ],
)


def ours(sample, image, matrix, align_corners, **options):
    theta = geometry.from_pixel_matrix(matrix, image.shape[2:], SIZE, align_corners=align_corners)
    return sample(image, theta, SIZE, align_corners=align_corners, **options)


@theirs_and_ours
@pytest.mark.parametrize(
    ("padding_mode", "align_corners"),
    [("zeros", False), ("zeros", True), ("border", False), ("border", True), ("reflection", True)],  # its own mirrors
)
def test_kornia(path, matrix, kornia_warp, cv2_warp, sample, padding_mode, align_corners):
    """Output, and gradients to image and matrix: by theta in either convention the same as kornia in its own."""
    image, matrix = (torch.tensor(a, device=path.device, requires_grad=True) for a in (IMAGE, matrix))
    out = ours(sample, image, matrix, align_corners, padding_mode=padding_mode)
    expected = kornia_warp(image, matrix, SIZE, padding_mode=padding_mode, align_corners=True)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-11)
    d_out = torch.randn_like(out)
    gradients, truths = (torch.autograd.grad(o, [image, matrix], d_out) for o in (out, expected))
    for gradient, truth in zip(gradients, truths, strict=True):
        torch.testing.assert_close(gradient, truth, rtol=1e-9, atol=1e-9)


@theirs_and_ours
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding_mode", PADDING)
def test_opencv(path, matrix, kornia_warp, cv2_warp, sample, padding_mode, mode, align_corners):
    """Within the 1/64 of a pixel that its coordinates are off: of a slope of at most two differences, both ways."""
    image, matrix = IMAGE.astype(np.float32), np.array(matrix)
    options = {"flags": MODES[mode], "borderMode": PADDING[padding_mode]}
    each = zip(image.transpose(0, 2, 3, 1), matrix, strict=True)
    expected = np.stack([cv2_warp(i, m, SIZE[::-1], **options) for i, m in each]).transpose(0, 3, 1, 2)
    tensors = torch.tensor(image, device=path.device), torch.tensor(matrix, device=path.device)
    out = ours(sample, *tensors, align_corners, mode=mode, padding_mode=padding_mode).cpu().numpy()
    error = np.abs(out - expected)
    if mode == "bilinear":
        assert error.max() <= 4 * np.abs(image).max() / 64
        assert error.mean() <= np.abs(image).max() / 64 / 4
    else:  # a rounding decides here and there
        assert (error == 0).mean() > 0.97


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
@pytest.mark.parametrize("align_corners", [False, True])
def test_kornia_tps(path, padding_mode, align_corners):
    """Its warp by our spline's coefficients: output, and gradients to image and theta.

    Its conventions: points are (x, y) from output to image and normalised by ``align_corners``, as ours; its kernel is
    r^2 log r, half of ours, so that weights are twice ours; the affine part's rows are 1, x, y.
    """
    rng = np.random.default_rng(1)
    points = rng.permutation(reference.four_by_four() * 0.9 + rng.uniform(-0.1, 0.1, (16, 2)))[:11]
    theta = 0.9 * points + rng.uniform(-0.2, 0.2, (2, 11, 2))
    image, theta = (torch.tensor(a, device=path.device, requires_grad=True) for a in (IMAGE, theta))
    options = {"padding_mode": padding_mode, "align_corners": align_corners}
    out = tps_sample(image, theta, control_points=points, **options)
    coefficients = torch.tensor(reference.spline_system(points, 0.0), device=path.device) @ theta
    centres = torch.tensor(points, device=path.device).expand(2, -1, -1)
    expected = kornia.warp_image_tps(image, centres, 2 * coefficients[:, :11], coefficients[:, 11:], **options)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)
    d_out = torch.randn_like(out)
    gradients, truths = (torch.autograd.grad(o, [image, theta], d_out) for o in (out, expected))
    for gradient, truth in zip(gradients, truths, strict=True):
        torch.testing.assert_close(gradient, truth, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("align_corners", [False, True])
def test_kornia_tps_transform(path, align_corners):
    """Its own coefficients put the kernels at theta instead of at the control points: another spline between them.

    So the two meet at the control points, and everywhere where theta is an affine map of these, which bends nothing.
    """
    points = torch.tensor(reference.four_by_four(), device=path.device).expand(2, -1, -1)
    bent = 0.9 * points + 0.2 * torch.rand(points.shape, dtype=points.dtype, device=path.device)
    at_points = kornia.warp_points_tps(points, bent, *kornia.get_tps_transform(points, bent))
    torch.testing.assert_close(ThinPlateSpline().points(bent, points), at_points, rtol=0, atol=1e-10)
    theta = points @ torch.tensor([[0.8, 0.3], [-0.2, 0.7]], dtype=points.dtype, device=path.device) + 0.1
    image = torch.tensor(IMAGE, device=path.device, requires_grad=True)
    out = tps_sample(image, theta, align_corners=align_corners)
    weights = kornia.get_tps_transform(points, theta)
    expected = kornia.warp_image_tps(image, theta, *weights, align_corners=align_corners)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-10)
    gradients = [torch.autograd.grad(o.square().sum(), image)[0] for o in (out, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("padding_mode", PADDING)
@pytest.mark.parametrize("as_flow", [False, True], ids=["grid", "flow"])
@pytest.mark.parametrize("exact", [True, False], ids=["32nds", "any"])
def test_opencv_remap(path, padding_mode, as_flow, exact):
    """At coordinates of whole 32nds of a pixel to the rounding of its float32 sums.

    At any others within 1/64 of a pixel, which versions with tables of weights are off, in either axis: of an
    interpolant whose slopes are at most the largest differences of neighbours.
    """
    image = IMAGE.astype(np.float32)
    at = np.random.default_rng(2).uniform(-4, [W + 4, H + 4], (2, *SIZE, 2))  # (column, row)
    at = np.rint(at * 32) / 32 if exact else at
    x, y = np.moveaxis(at, -1, 0).astype(np.float32)
    options = {"interpolation": cv2.INTER_LINEAR, "borderMode": PADDING[padding_mode]}
    expected = np.stack([cv2.remap(image[n].transpose(1, 2, 0), x[n], y[n], **options) for n in (0, 1)])
    source = torch.tensor(image, device=path.device).double()
    if as_flow:
        # Target pixels of an image of another size lie on it scaled: from their places there.
        identity = reference.target_points(SIZE, False)
        flow = at - (((identity + 1) * [W, H]) - 1) / 2
        flow = torch.tensor(flow, device=path.device)
        out = flow_sample(source, flow, units="pixels", channels_first=False, padding_mode=padding_mode)
    else:
        grid = torch.tensor((2 * at + 1) / [W, H] - 1, device=path.device)
        out = grid_sample(source, grid, padding_mode=padding_mode, align_corners=False)
    error = np.abs(out.cpu().numpy().transpose(0, 2, 3, 1) - expected).max()
    padded = np.pad(image, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="constant" if padding_mode == "zeros" else "edge")
    slopes = sum(np.abs(np.diff(padded, axis=axis)).max() for axis in (2, 3))
    rounding = 8 * np.finfo(np.float32).eps * np.abs(image).max()
    assert error <= (rounding if exact else slopes * (1 / 64 + 2**-18) + rounding)
