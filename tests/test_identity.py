"""An identity theta gives the image back, bit for bit, through the kernels."""

import pytest
import torch
from cases import MODES, PYTORCH_PADDINGS

from stn_triton import TRANSFORMS, affine_sample, plan, reference, transform_sample
from stn_triton.configs import LaunchConfig

SIZES = [(1, 1), (1, 6), (5, 1), (7, 7), (8, 8), (5, 8), (31, 47)]


by_theta = pytest.mark.parametrize("transform", [name for name in TRANSFORMS if name != "dense"])


@by_theta
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", PYTORCH_PADDINGS)
@pytest.mark.parametrize("mode", MODES)
def test_bit_exact(kernel_path, transform, mode, padding_mode, align_corners):
    options = {"mode": mode, "padding_mode": padding_mode, "align_corners": align_corners}
    everywhere = (mode, padding_mode) == ("bilinear", "zeros")  # the same coordinates: elsewhere some sizes do
    for index, size in enumerate(SIZES if everywhere else SIZES[1::2]):
        dtype = (torch.float32, torch.float64, torch.float16, torch.bfloat16)[index % 4]
        image = torch.randn(1, 2, *size, device=kernel_path.device).to(dtype)
        theta = TRANSFORMS[transform].identity(size, align_corners=align_corners, device=kernel_path.device)[None]
        assert torch.equal(transform_sample(transform, image, theta, **options), image), (size, dtype)


@by_theta
@pytest.mark.parametrize("align_corners", [False, True])
def test_every_width(kernel_path, monkeypatch, transform, align_corners):
    """All widths up to a warp's, and some far beyond float32's easy divisors, as one row each."""
    if plan.INTERPRETED:  # one program each, which costs it more than a tile: more threads than a GPU has
        monkeypatch.setattr(plan, "_config", lambda *args: LaunchConfig(1, 16384, loop=False))
    for width in [*range(1, 30), 41, 47, 55, 61, 83, 97, 107, 4095, 8191, 16383]:
        image = torch.randn(1, 1, 1, width, device=kernel_path.device)
        identity = TRANSFORMS[transform].identity((1, width), align_corners=align_corners, device=kernel_path.device)
        out = transform_sample(transform, image, identity[None], align_corners=align_corners)
        assert torch.equal(out, image), width


@pytest.mark.parametrize("align_corners", [False, True])
def test_integer_shift_is_exact(kernel_path, align_corners):
    """A translation by whole pixels moves the image and rounds nothing; zeros come in."""
    image = torch.randn(1, 1, 8, 16, device=kernel_path.device)
    theta = torch.eye(2, 3, device=kernel_path.device)[None].clone()
    theta[0, 0, 2] = 2 * 3 / (15 if align_corners else 16)
    if align_corners:
        theta = theta.double()  # 6 / 15 is no float32
        theta[0, 0, 2] = 6 / 15
        image = image.double()
    out = affine_sample(image, theta, align_corners=align_corners)
    moved = torch.cat([image[..., 3:], torch.zeros_like(image[..., :3])], -1)
    torch.testing.assert_close(out, moved, rtol=0, atol=1e-14 if align_corners else 0)


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("align_corners", [False, True])
def test_identity_parameters(transform, align_corners):
    """Every transform's identity maps the grid and points onto themselves."""
    size = (3, 5)
    theta = transform.identity(size, align_corners=align_corners, dtype=torch.float64)
    assert theta.shape == transform.parameter_shape(size)
    grid = transform.grid(theta[None], size, align_corners)
    truth = reference.affine_grid(torch.eye(2, 3)[None].numpy(), size, align_corners)
    torch.testing.assert_close(grid, torch.from_numpy(truth), rtol=0, atol=1e-15)
