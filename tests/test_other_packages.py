"""Against independent systems: kornia and OpenCV, by way of their own matrices of pixels.

Conventions: their matrices map pixels of the image to pixels of the output, the opposite way, which is what
`geometry.from_pixel_matrix` is for. kornia's normalised coordinates are those of ``align_corners=True``, its default.
OpenCV rounds a coordinate to 1/32 of a pixel, kornia nothing; outside the image both read zeros, tap by tap.
"""

import cv2
import kornia.geometry.transform as kornia
import numpy as np
import pytest
import torch

from stn_triton import affine_sample, geometry, projective_sample

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
