"""What transform objects tell about themselves: grids, points, identity."""

import numpy as np
import pytest
import torch
from cases import TRANSFORM_CASES
from tolerance import to_numpy

from stn_triton import TRANSFORMS, Affine, Dense, Transform, affine_sample, grid_sample, reference


def test_every_transform_is_in_the_table_of_cases():
    assert set(TRANSFORMS) == set(TRANSFORM_CASES)
    assert all(isinstance(transform, Transform) for transform in TRANSFORMS.values())


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_sampling_through_the_grid_is_the_same(path, name, align_corners):
    case, size = TRANSFORM_CASES[name], (4, 6)
    theta = torch.tensor(case.theta(np.random.default_rng(0), 2, size), device=path.device)
    image = torch.randn(2, 3, 5, 7, dtype=torch.float64, device=path.device)
    grid = TRANSFORMS[name].grid(theta, size, align_corners)
    assert grid.shape == (2, *size, 2)
    torch.testing.assert_close(
        case.sample(image, theta, size, "bilinear", "border", align_corners),
        grid_sample(image, grid, padding_mode="border", align_corners=align_corners),
    )


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_points_at_pixel_centres_are_the_grid(name, align_corners):
    case, size, transform = TRANSFORM_CASES[name], (4, 6), TRANSFORMS[name]
    theta = torch.tensor(case.theta(np.random.default_rng(0), 2, size))
    xy = torch.from_numpy(reference.affine_grid(np.eye(2, 3)[None], size, align_corners)).view(-1, 2)
    grid = transform.grid(theta, size, align_corners).view(2, -1, 2)
    torch.testing.assert_close(transform.points(theta, xy, align_corners), grid)
    torch.testing.assert_close(transform.points(theta, xy.expand(2, -1, 2), align_corners), grid)


def test_points_of_an_empty_batch():
    theta, xy = torch.zeros(0, 9, 9, 2), torch.zeros(0, 10_000, 2)
    assert TRANSFORMS["dense"].points(theta, xy).shape == xy.shape


@pytest.mark.parametrize("name", TRANSFORMS)
def test_grid_and_points_are_differentiable(name):
    case, size, transform = TRANSFORM_CASES[name], (2, 3), TRANSFORMS[name]
    theta = torch.tensor(case.theta(np.random.default_rng(0), 2, size), requires_grad=True)
    xy = (torch.rand(2, 4, 2, dtype=torch.float64) * 1.2 - 0.6).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: transform.grid(t, size), theta)
    assert torch.autograd.gradcheck(transform.points, (theta, xy))


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize(("theta_dtype", "xy_dtype"), [
    (torch.float32, torch.float64), (torch.float64, torch.float32), (torch.bfloat16, torch.float32),
    (torch.float32, torch.float16), (torch.bfloat16, torch.bfloat16),
])  # fmt: skip
def test_points_of_any_two_dtypes(name, theta_dtype, xy_dtype):
    """Of the very coefficients that the warp uses, computed in float32 at least, rounded once to xy's dtype."""
    transform = TRANSFORMS[name]
    theta = transform.identity((64, 64), dtype=torch.float64)[None].to(theta_dtype)
    xy = (torch.rand(50, 2, dtype=torch.float64) * 1.8 - 0.9).to(xy_dtype)
    points = transform.points(theta, xy)
    assert points.dtype == xy_dtype
    exact = transform.points_of(transform.coefficients(theta, torch.float64).double(), xy.double())
    coarser = max(torch.finfo(xy_dtype).eps, torch.finfo(torch.promote_types(theta_dtype, torch.float32)).eps)
    torch.testing.assert_close(points.double(), exact, rtol=0, atol=32 * coarser if coarser < 1e-6 else coarser)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_several_transforms_of_each_image(name):
    """Grids and points of theta (N, M, ...) are those of each, bit for bit; half types are rounded once."""
    case, size, transform = TRANSFORM_CASES[name], (4, 6), TRANSFORMS[name]
    theta = torch.tensor(case.theta(np.random.default_rng(0), 6, size)).unflatten(0, (2, 3))
    grid = transform.grid(theta, size, True)
    assert torch.equal(grid, torch.stack([transform.grid(each, size, True) for each in theta.unbind(1)], 1))
    half = theta.to(torch.bfloat16)
    coefficients = transform.coefficients(half, torch.float32).flatten(0, 1).float()
    rounded = transform.grid_of(coefficients, size, True).to(torch.bfloat16).unflatten(0, (2, 3))
    # Two ways to one number differ in its last bits, and may be rounded to neighbours: a unit of the last place.
    torch.testing.assert_close(transform.grid(half, size, True), rounded, rtol=2**-7, atol=0)
    for shape in ((5, 2), (2, 5, 2), (1, 5, 2), (2, 3, 5, 2), (2, 1, 5, 2)):
        xy = torch.rand(*shape, dtype=torch.float64) * 1.6 - 0.8
        points = transform.points(theta, xy, True)
        assert points.shape == (2, 3, 5, 2)
        for m in range(3):
            of_each = xy[:, m % xy.shape[1]] if xy.dim() == 4 else xy
            assert torch.equal(points[:, m], transform.points(theta[:, m], of_each, True))
    for_the_batch = transform.points(theta[:1], torch.rand(4, 5, 2, dtype=torch.float64))
    assert for_the_batch.shape == (4, 3, 5, 2)
    assert transform.points(theta[:0], torch.rand(5, 2)).shape == (0, 3, 5, 2)


def test_grid_and_points_are_what_a_half_theta_is_warped_by():
    """The identity that bfloat16 has rounded is the identity to the warp, and so to the points."""
    spline = TRANSFORMS["tps"]
    theta = spline.identity(dtype=torch.bfloat16)[None]
    xy = torch.rand(9, 2)
    torch.testing.assert_close(spline.points(theta, xy)[0], xy)
    identity = torch.eye(2, 3, dtype=torch.bfloat16)[None]
    torch.testing.assert_close(spline.grid(theta, (5, 6)), Affine().grid(identity, (5, 6)), rtol=2**-8, atol=1e-6)


def test_points_follow_the_image():
    """A mark at a source point is seen at the target point that maps to it."""
    theta = torch.tensor([[[0.5, 0.0, 0.25], [0.0, 0.5, -0.25]]])
    image = torch.zeros(1, 1, 16, 16)
    image[0, 0, 5, 9] = 1
    row, column = divmod(affine_sample(image, theta, (32, 32)).argmax().item(), 32)
    xy = torch.tensor([[(2 * column + 1) / 32 - 1, (2 * row + 1) / 32 - 1]])
    u, v = Affine().points(theta, xy)[0, 0].tolist()
    assert abs(((u + 1) * 16 - 1) / 2 - 9) <= 0.5
    assert abs(((v + 1) * 16 - 1) / 2 - 5) <= 0.5


@pytest.mark.parametrize("name", TRANSFORMS)
def test_integer_points_are_not_truncated(name):
    theta = TRANSFORMS[name].identity((8, 8))[None] * 0.5
    corners = torch.tensor([[-1, -1], [1, 1]])
    assert torch.equal(TRANSFORMS[name].points(theta, corners), TRANSFORMS[name].points(theta, corners.float()))


def test_affine_points_of_a_batch_of_one():
    theta = torch.eye(2, 3)[None]
    xy = torch.rand(5, 7, 2)
    torch.testing.assert_close(Affine().points(theta, xy), xy)


def test_dense_grid_has_one_size():
    with pytest.raises(ValueError, match=r"theta: expected shape \(N, h, w, 2\) = \(N, 5, 6, 2\), got \(1, 3, 4, 2\)"):
        Dense().grid(torch.zeros(1, 3, 4, 2), (5, 6))


@pytest.mark.parametrize("align_corners", [False, True])
def test_reduced_precision_branch_is_the_same_grid(monkeypatch, align_corners):
    """The two ways to evaluate M_theta B: thin products, and broadcasts."""
    from stn_triton.transforms import homogeneous

    theta = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    by_product = Affine().grid(theta, (4, 5), align_corners)
    monkeypatch.setattr(homogeneous, "products_are_exact", lambda device: False)
    by_broadcast = Affine().grid(theta, (4, 5), align_corners)
    torch.testing.assert_close(by_product, by_broadcast)
    gradients = [torch.autograd.grad(grid.square().sum(), theta)[0] for grid in (by_product, by_broadcast)]
    torch.testing.assert_close(*gradients)
    np.testing.assert_allclose(
        to_numpy(by_product), reference.affine_grid(to_numpy(theta), (4, 5), align_corners), atol=1e-14
    )
