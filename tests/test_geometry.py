"""Parameters as geometry: what composed, inverted, pixel-space and posed parameters do to points and images."""

import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stn_triton import Affine, Homography, Projective, affine_sample, geometry, projective_sample, transform_sample

AFFINE, EIGHT, MATRIX = Affine(), Projective(), Homography()
SQUARE = torch.tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=torch.float64)
TRANSFORMS = {(2, 3): AFFINE, (8,): EIGHT, (3, 3): MATRIX}


def some(shape, batch=(4,), dtype=torch.float64):
    """Parameters near the identity."""
    identity = TRANSFORMS[shape].identity(dtype=dtype)
    return identity + 0.15 * torch.randn(*batch, *shape, dtype=dtype)


def points(theta, xy):
    return TRANSFORMS[tuple(theta.shape[1:])].points(theta, xy)


@pytest.mark.parametrize("first", TRANSFORMS, ids=str)
@pytest.mark.parametrize("then", TRANSFORMS, ids=str)
def test_compose_is_one_warp_after_the_other(first, then):
    first, then = some(first), some(then)
    xy = torch.rand(7, 2, dtype=torch.float64) - 0.5
    theta = geometry.compose(first, then)
    assert theta.shape[1:] == ((2, 3) if first.shape[1:] == then.shape[1:] == (2, 3) else (3, 3))
    torch.testing.assert_close(points(theta, xy), points(first, points(then, xy)))


def test_one_transform_of_each_image_composed_with_several():
    several, one = some((2, 3), (3, 3)), some((8,), (3,))
    for n in range(3):
        for m in range(3):
            expected = geometry.compose(several[n, m], one[n])
            torch.testing.assert_close(geometry.compose(several, one[:, None])[n, m], expected)
    with pytest.raises(ValueError, match=r"then: .* write then\[:, None\]$"):
        geometry.compose(several, one)


@pytest.mark.parametrize("batch", [(), (1,), (1, 1), (1, 1, 1)], ids=str)
def test_one_transform_for_all_is_composed_with_any(batch):
    one, several = some((2, 3), ()), some((3, 3), (2, 3))
    for compose in (geometry.compose, lambda first, then: geometry.compose(then, first)):
        composed = compose(one.expand(*batch, 2, 3), several)
        assert composed.shape == (1,) * (len(batch) - 2) + (2, 3, 3, 3)
        torch.testing.assert_close(composed.view(2, 3, 3, 3), compose(one.expand(2, 3, 2, 3), several))


def test_composed_parameters_warp_as_two_warps():
    """On a smooth image, within what the first interpolation blurs."""
    y, x = torch.meshgrid(torch.linspace(-5, 5, 128), torch.linspace(-5, 5, 128), indexing="ij")
    image = torch.exp(-((x - 0.5) ** 2) - 2 * y**2)[None, None]
    first = torch.tensor([[[1.1, 0.2, 0.1], [-0.2, 0.9, -0.1]]])
    then = torch.tensor([[[0.9, -0.4, 0.2], [0.3, 1.2, 0.1]]])
    two = affine_sample(affine_sample(image, first, (256, 256)), then)
    one = affine_sample(image, geometry.compose(first, then), (256, 256))
    other_order = affine_sample(image, geometry.compose(then, first), (256, 256))
    assert (one - two).abs().max() < 0.02
    assert (one - other_order).abs().max() > 0.2


@pytest.mark.parametrize("shape", TRANSFORMS, ids=str)
def test_inverse(shape):
    theta, xy = some(shape), torch.rand(7, 2, dtype=torch.float64) - 0.5
    inverse = geometry.invert(theta)
    torch.testing.assert_close(points(inverse, points(theta, xy)), xy.expand(4, 7, 2))
    torch.testing.assert_close(points(theta, points(inverse, xy)), xy.expand(4, 7, 2))
    exact = torch.linalg.inv(geometry.as_matrix(theta))
    torch.testing.assert_close(geometry.as_matrix(inverse), exact)


def test_a_singular_map_has_no_inverse_and_reads_nothing():
    theta = torch.tensor([[[1.0, 2, 0], [2, 4, 0]]])
    for parameters in (theta, geometry.as_matrix(theta)):
        inverse = geometry.invert(parameters)
        assert not inverse.isfinite().all()
        name = "affine" if inverse.shape[1:] == (2, 3) else "homography"
        assert (transform_sample(name, torch.ones(1, 1, 3, 3), inverse) == 0).all()


THETA = torch.tensor([[0.9, 0.2, 0.1], [-0.1, 1.1, -0.2]])
FLAT = (
    0 * THETA,
    torch.tensor([[1.0, 2, 0], [2, 4, 0]]),
    torch.tensor([[0, 0.2, 0.1], [0, 1.1, -0.2]]),
    THETA.clone().fill_diagonal_(torch.nan),
    THETA.clone().fill_diagonal_(torch.inf),
)
MATRIX_3, FLAT_3 = geometry.as_matrix(THETA), (torch.zeros(3, 3), *map(geometry.as_matrix, FLAT))
CORNERS = 0.8 * SQUARE.float() + 0.1 * torch.arange(8.0).sin().view(4, 2)
FLAT_CORNERS = (0 * CORNERS, CORNERS[:1].repeat(4, 1), CORNERS[:, :1].repeat(1, 2), CORNERS / 0)


def to_pixels(theta):
    return geometry.to_pixel_matrix(theta, (6, 5), (4, 7))


def from_pixels(matrix):
    return geometry.from_pixel_matrix(matrix, (6, 5), (4, 7))


def through_a_pose(theta):
    return geometry.from_pose(geometry.to_pose(theta))


CLOSED_FORMS = {  # formula, a regular sample, singular samples
    "inverse of affine": (geometry.invert, THETA, FLAT),
    "inverse of eight": (geometry.invert, MATRIX_3.flatten()[:8], (torch.zeros(8), torch.ones(8))),
    "inverse of a matrix": (geometry.invert, MATRIX_3, FLAT_3),
    "to pixels": (to_pixels, MATRIX_3, FLAT_3),
    "from pixels": (from_pixels, MATRIX_3, FLAT_3),
    "from pixels, affine": (from_pixels, THETA, FLAT),
    "corners": (geometry.from_corners, CORNERS, FLAT_CORNERS),
    "pose": (through_a_pose, THETA, FLAT),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_a_sample_without_a_value_reads_nothing_and_gets_no_gradient(path, name):
    """A singular sample must not disturb the others: a network sums their gradients."""
    function, good, bad = CLOSED_FORMS[name]
    image = torch.rand(1, 1, 5, 6, device=path.device)

    def warp_and_gradient(theta):
        theta = theta.to(path.device).requires_grad_()
        result = function(theta)
        transform = "affine" if result.shape[1:] == (2, 3) else "homography"
        out = transform_sample(transform, image.expand(len(theta), -1, -1, -1), result)
        return out.detach(), *torch.autograd.grad(out.square().sum(), theta)

    out, d_theta = warp_and_gradient(torch.stack([good, *bad]))
    alone, d_alone = warp_and_gradient(good[None])
    assert (out[1:] == 0).all()
    assert (d_theta[1:] == 0).all()
    assert d_alone.abs().sum() > 0
    torch.testing.assert_close((out[:1], d_theta[:1]), (alone, d_alone))


def numbers_of_a_pose(theta):
    return torch.cat([part.reshape(len(theta), -1) for part in geometry.to_pose(theta)], 1)


def inverse_of_any_scale(matrix):
    """Normalises away the homography's arbitrary scale."""
    inverse = geometry.invert(matrix)
    return inverse / inverse.detach().abs().amax((1, 2), keepdim=True)


@pytest.mark.parametrize(
    ("function", "good", "vanishing", "smallest_factor"),
    [
        (geometry.invert, THETA, [[1, 1, 1], [0, 0, 0]], 1e-15),
        (geometry.invert, THETA, [[0, 1, 0], [0, 1, 0]], 1e-15),
        (geometry.invert, THETA, [[1, 1, 0], [1, 1, 0]], 1e-15),
        (inverse_of_any_scale, MATRIX_3, [[0, 0, 0], [0, 0, 0], [1, 1, 1]], 1e-15),
        (inverse_of_any_scale, MATRIX_3, [[0, 1, 1], [0, 1, 1], [0, 1, 1]], 1e-10),  # as small in two directions
        (inverse_of_any_scale, MATRIX_3, [[1, 1, 1], [1, 1, 1], [1, 1, 1]], 1e-30),
        (geometry.from_corners, CORNERS, [[0, 1]], 1e-15),
        (geometry.from_corners, CORNERS, [[1, 1]], 1e-30),
        (numbers_of_a_pose, THETA, [[1, 0, 0], [1, 0, 0]], 1e-15),
        (numbers_of_a_pose, THETA, [[0, 1, 0], [0, 1, 0]], 1e-15),
        (numbers_of_a_pose, THETA, [[1, 1, 0], [1, 1, 0]], 1e-15),
        (numbers_of_a_pose, THETA, [[0, 0, 0], [1, 1, 0]], 1e-15),
        (numbers_of_a_pose, THETA, [[1, 0, 0], [0, 0, 0]], 1e-15),
        (numbers_of_a_pose, THETA * torch.tensor([1, 1e25, 1]), [[1, 0, 0], [1, 0, 0]], 1e-6),
        (numbers_of_a_pose, torch.tensor([[1e-12, 100, 0], [0, 1, 0]]), [[0, 0, 0], [0, 1, 0]], 1e-7),
    ],
)
def test_no_gradient_where_derivatives_leave_the_range_of_the_type(function, good, vanishing, smallest_factor):
    """The entries marked 1 vanish by ever smaller factors: values stay right; gradients do down to a smallest one."""
    factors = torch.logspace(0, -44, 45, dtype=torch.float64)
    theta = good * torch.where(torch.tensor(vanishing) == 1, factors[:, None, None], 1)
    theta = theta.float().requires_grad_()
    exact = theta.detach().double().requires_grad_()
    value, truth = function(theta), function(exact)
    (d_theta,), (d_exact,) = (torch.autograd.grad(x.sum(), t) for x, t in ((value, theta), (truth, exact)))
    assert d_theta.isfinite().all()
    for ours, true, smallest in ((value.detach(), truth.detach(), 1e-18), (d_theta, d_exact, smallest_factor)):
        held = factors > 0.9 * smallest
        ours, true = (each[held].flatten(1).double() for each in (ours, true))
        scale = true.abs().amax(1, keepdim=True)
        torch.testing.assert_close(ours / scale, true / scale, rtol=0, atol=1e-3)


@pytest.mark.parametrize("shape", TRANSFORMS, ids=str)
def test_what_is_composed_with_no_number_gets_no_gradient(path, shape):
    inverse = geometry.invert(torch.stack([THETA, 0 * THETA])).to(path.device)
    image = torch.rand(2, 1, 5, 6, device=path.device)
    for turned_round in (False, True):
        other = some(shape, (2,), torch.float32).to(path.device).requires_grad_()
        theta = geometry.compose(*((inverse, other) if turned_round else (other, inverse)))
        out = transform_sample("affine" if shape == (2, 3) else "homography", image, theta)
        (d_other,) = torch.autograd.grad(out.square().sum(), other)
        assert (out[1] == 0).all()
        assert (d_other[1] == 0).all()
        assert d_other[0].isfinite().all()
        assert d_other[0].abs().sum() > 0


def test_what_is_posed_with_no_number_gets_no_gradient():
    singular = geometry.to_pose(torch.stack([THETA, 0 * THETA]))
    parts = [torch.rand_like(part).requires_grad_() for part in singular]
    for k, part in enumerate(singular):
        if not part.isfinite().all():
            pose = geometry.Pose(*(part if j == k else other for j, other in enumerate(parts)))
            theta = geometry.from_pose(pose)
            assert not theta[1].isfinite().all()
            for j, gradient in enumerate(torch.autograd.grad(theta[:1].sum(), parts, allow_unused=True)):
                assert (gradient is None) if j == k else (gradient[1] == 0).all() and gradient[0].isfinite().all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.func.jacfwd's own
@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_function_transforms_and_a_whole_graph_of_singular_samples(name):
    function, good, bad = CLOSED_FORMS[name]
    theta = torch.stack([good, *bad])
    expected = torch.autograd.functional.jacobian(function, good)
    for jacobian in (torch.func.jacrev, torch.func.jacfwd):
        derivative = torch.func.vmap(jacobian(function))(theta)
        torch.testing.assert_close(derivative[0], expected)
        assert (derivative[1:] == 0).all()
    compiled = torch.compile(function, backend="eager", fullgraph=True)
    theta.requires_grad_()
    result = compiled(theta)
    torch.testing.assert_close(result, function(theta), equal_nan=True)
    (d_theta,) = torch.autograd.grad(result[:1].sum(), theta)
    torch.testing.assert_close(d_theta[0], torch.autograd.functional.jacobian(lambda t: function(t).sum(), good))
    assert (d_theta[1:] == 0).all()


def test_nothing_is_waited_for():
    """The meta device has no values, so that any synchronisation would fail."""
    for function, good, _ in CLOSED_FORMS.values():
        assert function(good.to("meta")).is_meta
    assert geometry.compose(THETA.to("meta"), MATRIX_3.to("meta")).is_meta


def test_an_empty_batch():
    for function, good, _ in CLOSED_FORMS.values():
        theta = good.new_zeros(0, *good.shape, requires_grad=True)
        assert torch.autograd.grad(function(theta).sum(), theta)[0].shape == theta.shape


def some_corners(batch=(4,), dtype=torch.float64):
    """Convex quadrilaterals, the first of each batch the output's own corners."""
    corners = SQUARE.to(dtype) + 0.4 * (2 * torch.rand(*batch, 4, 2, dtype=dtype) - 1)
    corners[0] = SQUARE
    return corners


@pytest.mark.parametrize("scale", [1, 1e-22, 1e22])
def test_a_homography_from_its_corners(scale):
    corners = some_corners()
    corners[1] = corners[1].flip(0)  # mirrored
    corners *= scale
    theta = geometry.from_corners(corners)
    torch.testing.assert_close(points(theta, SQUARE), corners, atol=1e-12 * scale, rtol=1e-12)
    torch.testing.assert_close(theta[:, 2, 2], torch.ones(4, dtype=torch.float64))
    in_float32 = geometry.from_corners(corners.float())
    torch.testing.assert_close(in_float32[:, :2].double(), theta[:, :2], atol=1e-6 * scale, rtol=1e-5)
    # No bend in a line: the output's centre is where the diagonals cross.
    centre = points(theta, torch.zeros(1, 2, dtype=torch.float64))
    for k in (0, 1):
        along, across = (corners[:, k + 2] - corners[:, k]), (centre[:, 0] - corners[:, k])
        assert (along[:, 0] * across[:, 1] - along[:, 1] * across[:, 0]).abs().max() < 1e-12 * scale**2


def test_corners_of_the_output_itself_are_the_identity():
    assert torch.equal(geometry.from_corners(SQUARE.float()), torch.eye(3))


def test_corner_areas():
    trapezium = torch.tensor([[-1.0, -1], [1, -1], [3, 1], [-3, 1]])
    assert geometry.corner_areas(trapezium).tolist() == [6, 6, 2, 2]
    assert geometry.corner_areas(trapezium[[1, 0, 3, 2]]).tolist() == [-6, -6, -2, -2]
    dented = torch.tensor([[-1.0, -1], [1, -1], [-0.5, -0.5], [-1, 1]])
    assert geometry.corner_areas(dented).sign().tolist() == [-1, 1, 1, 1]


def test_corners_on_one_line_make_no_homography():
    line = torch.tensor([[-1.0, 0], [0, 0], [1, 0], [3, 0]])
    assert not geometry.from_corners(line).isfinite().any()


@pytest.mark.parametrize("shape", TRANSFORMS, ids=str)
@pytest.mark.parametrize("align_corners", [False, True])
def test_pixel_matrix_maps_image_pixels_to_output_pixels(shape, align_corners):
    """Against the same map done by hand: pixel of the output to a unit, by theta, to a pixel of the image."""
    (H, W), (h, w) = (20, 31), (11, 17)
    theta = some(shape)
    matrix = geometry.to_pixel_matrix(theta, (H, W), (h, w), align_corners=align_corners)
    pixel = torch.tensor([[0.0, 0], [16, 10], [3.5, 7]], dtype=torch.float64)
    extent = torch.tensor([[w, h], [W, H]], dtype=torch.float64) - int(align_corners)
    unit = (2 * pixel - torch.tensor([w - 1, h - 1])) / extent[0]
    source = (points(theta, unit) * extent[1] + torch.tensor([W - 1, H - 1])) / 2
    back = torch.einsum("nrk,npk->npr", matrix, torch.nn.functional.pad(source, (0, 1), value=1))
    torch.testing.assert_close(back[..., :2] / back[..., 2:], pixel.expand(4, 3, 2))


@pytest.mark.parametrize("shape", [(2, 3), (3, 3)], ids=str)
@pytest.mark.parametrize("align_corners", [False, True])
def test_from_pixel_matrix_is_the_way_back(shape, align_corners):
    theta, sizes = some(shape), ((20, 31), (11, 17))
    matrix = geometry.to_pixel_matrix(theta, *sizes, align_corners=align_corners)
    if shape == (2, 3):
        torch.testing.assert_close(matrix[:, 2], torch.tensor([0.0, 0, 1], dtype=torch.float64).expand(4, 3))
        matrix = matrix[:, :2]
    again = geometry.from_pixel_matrix(matrix, *sizes, align_corners=align_corners)
    assert again.shape == theta.shape
    torch.testing.assert_close(again, theta)


def test_the_identity_of_pixels_is_a_crop():
    """Pixels stay where they are, at any output size."""
    image = torch.rand(1, 1, 9, 8)
    theta = geometry.from_pixel_matrix(torch.eye(2, 3)[None], (9, 8), (4, 5))
    torch.testing.assert_close(affine_sample(image, theta, (4, 5)), image[..., :4, :5])


def test_one_pixel_has_no_extent():
    theta = torch.eye(2, 3)[None]
    assert geometry.to_pixel_matrix(theta, (1, 3)).isfinite().all()
    with pytest.raises(ValueError, match=r"size: expected two numbers \(h, w\) of at least 2, got \(1, 3\)"):
        geometry.to_pixel_matrix(theta, (4, 4), (1, 3), align_corners=True)
    with pytest.raises(ValueError, match=r"image_size: expected two numbers \(h, w\) of at least 1, got \(0, 3\)"):
        geometry.from_pixel_matrix(theta, (0, 3))


def test_pose_of_known_maps():
    turned = geometry.from_pose(geometry.Pose(*map(torch.tensor, ([2.0, 0.5], math.pi / 2, 0.0, [0.1, 0.2]))))
    torch.testing.assert_close(turned, torch.tensor([[0.0, -0.5, 0.1], [2, 0, 0.2]]))
    mirrored = geometry.to_pose(torch.tensor([[1.0, 0, 0], [0, -1, 0]]))
    assert mirrored.scale.tolist() == [1, -1]
    assert mirrored.rotation.item() == mirrored.shear.item() == 0
    leaning = geometry.to_pose(torch.tensor([[1.0, 0.5, 0], [0, 2, 0]]))
    assert leaning.shear.item() == 0.25  # y goes along x by a quarter of its own length


def test_pose_and_parameters_are_two_names_of_a_map():
    theta = torch.randn(50, 3, 2, 3, dtype=torch.float64)
    pose = geometry.to_pose(theta)
    assert (pose.scale[..., 0] > 0).all()
    torch.testing.assert_close(geometry.from_pose(pose), theta)
    again = geometry.to_pose(geometry.from_pose(pose))
    for part, expected in zip(again, pose, strict=True):
        torch.testing.assert_close(part, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_any_dtype_and_leading_axes(dtype):
    theta = some((2, 3), (2, 5), dtype)
    for result in (
        geometry.compose(theta, theta[:1]),
        geometry.invert(theta),
        geometry.as_matrix(theta),
        geometry.to_pixel_matrix(theta, (4, 6)),
        geometry.from_pixel_matrix(theta, (4, 6)),
        *geometry.to_pose(theta),
        geometry.from_pose(geometry.to_pose(theta)),
    ):
        assert result.dtype == dtype
        assert result.shape[:2] == (2, 5)
    assert geometry.as_matrix(some((8,), ())).shape == (3, 3)


def test_everything_is_differentiable():
    theta, matrix = (some(shape, (2,)).requires_grad_() for shape in ((2, 3), (3, 3)))
    check = torch.autograd.gradcheck
    assert check(geometry.compose, (theta, matrix))
    assert check(geometry.invert, theta)
    assert check(geometry.invert, matrix)
    assert check(lambda t: geometry.to_pixel_matrix(t, (5, 7), (4, 6)), matrix)
    assert check(lambda t: geometry.from_pixel_matrix(t, (5, 7), (4, 6)), theta)
    assert check(lambda t: geometry.from_pose(geometry.to_pose(t)), theta)
    assert check(lambda t: tuple(geometry.to_pose(t)), theta)
    assert check(geometry.from_corners, some_corners((2,)).requires_grad_())
    check = torch.autograd.gradgradcheck
    assert check(geometry.compose, (theta, matrix))
    assert check(geometry.invert, theta)
    assert check(geometry.invert, matrix)
    assert check(lambda t: tuple(geometry.to_pose(t)), theta)
    assert check(lambda t: geometry.from_pose(geometry.to_pose(t)), theta)
    assert check(geometry.from_corners, some_corners((2,)).requires_grad_())


def test_no_matrix_product_whose_precision_could_be_reduced():
    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            called.add(function.overloadpacket.__name__)
            return function(*args, **kwargs or {})

    called = set()
    theta, matrix = some((2, 3)), some((3, 3))
    with Operations():
        geometry.compose(theta, matrix)
        for parameters in (theta, matrix):
            geometry.invert(parameters)
            geometry.from_pixel_matrix(geometry.to_pixel_matrix(parameters, (4, 6)), (4, 6))
        geometry.from_pose(geometry.to_pose(theta))
        geometry.from_corners(some_corners())
    assert "mul" in called
    assert not called & {"mm", "bmm", "addmm", "baddbmm", "matmul", "linalg_inv_ex", "linalg_solve_ex"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_are_computed_in_float32_and_rounded_once(dtype):
    theta, matrix = some((2, 3), dtype=dtype), some((3, 3), dtype=dtype)
    for function in (
        lambda t, m: geometry.compose(t, m),
        lambda t, m: geometry.invert(t),
        lambda t, m: geometry.invert(m),
        lambda t, m: geometry.to_pixel_matrix(m, (4, 6)),
        lambda t, m: geometry.from_pixel_matrix(t, (4, 6)),
        lambda t, m: torch.cat(geometry.to_pose(t)[::3], -1),
    ):
        assert torch.equal(function(theta, matrix), function(theta.float(), matrix.float()).to(dtype))
    corners = some_corners(dtype=dtype)
    assert torch.equal(geometry.from_corners(corners), geometry.from_corners(corners.float()).to(dtype))


@pytest.mark.parametrize("scale", [1e-25, 1e-16, 1e13, 1e20])
def test_very_large_and_small_maps(scale):
    """In float32, whose range products of three such entries would leave."""
    theta, matrix = some((2, 3), dtype=torch.float32), some((3, 3), dtype=torch.float32)
    torch.testing.assert_close(geometry.invert(matrix * scale) * scale, geometry.invert(matrix), rtol=1e-4, atol=1e-5)
    linear = theta * torch.tensor([scale, scale, 1])
    expected = geometry.invert(theta)
    torch.testing.assert_close(geometry.invert(linear) * scale, expected, rtol=1e-4, atol=1e-5)
    pose, small = geometry.to_pose(linear), geometry.to_pose(theta)
    torch.testing.assert_close(pose.scale / scale, small.scale, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pose.shear, small.shear, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scales", [(1e25, 1e25), (1e-25, 1e-25), (1e-30, 1e-5), (1e25, 1e-25), (1e38, 1e10)], ids=str)
def test_composed_homographies_of_any_scale(scales):
    """One map, with its gradients, though float32 does not hold the products of their entries."""
    maps, xy = [some((3, 3), (2,)).requires_grad_() for _ in scales], torch.rand(7, 2, dtype=torch.float64) - 0.5
    truth = points(maps[0] @ maps[1], xy)
    ours = points(geometry.compose(*((m * scale).float() for m, scale in zip(maps, scales, strict=True))), xy)
    torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-5)
    d_ours, d_truth = (torch.autograd.grad(out.sum(), maps) for out in (ours, truth))
    torch.testing.assert_close(d_ours, d_truth, rtol=1e-4, atol=1e-4)


def test_a_composition_of_ordinary_scale_is_the_product_itself():
    first, then = some((3, 3)), some((8,))
    assert torch.equal(geometry.compose(first, torch.eye(3).double()), first)
    torch.testing.assert_close(geometry.compose(first, then), first @ geometry.as_matrix(then))
    assert (geometry.compose(first.float() * 0, then.float()) == 0).all()


def test_a_horizon_may_change_sides_when_composed():
    """The limit that the module states: the middle of the output is in front, and here it was not."""
    image = torch.ones(1, 1, 32, 32)
    first = torch.tensor([[[0.2, 0, 0], [0, 0.2, 0], [0.8, 0, 1]]])
    then = torch.tensor([[[1.0, 0, -1.3], [0, 1, 0]]])
    two = affine_sample(projective_sample(image, first), then)
    one = projective_sample(image, geometry.compose(first, then))
    assert (two[0, 0, 16, -8:] == 1).all()
    assert (one[0, 0, 16, -8:] == 0).all()
    assert (projective_sample(image, -geometry.compose(first, then)) == one).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: geometry.invert(torch.ones(1, 2, 3, dtype=torch.int64)), TypeError, "theta: expected dtype float16"),
        (lambda: geometry.invert(np.eye(3)), TypeError, "theta: expected a tensor, got ndarray"),
        (lambda: geometry.invert(torch.zeros(2, 4)), ValueError, r"theta: expected shape .*, got \(2, 4\)"),
        (lambda: geometry.compose(torch.eye(3), torch.zeros(4)), ValueError, "then: expected shape"),
        (lambda: geometry.compose(torch.zeros([]), torch.eye(3)), ValueError, "first: expected shape"),
        (
            lambda: geometry.compose(torch.zeros(4, 1, 2, 3), torch.zeros(5, 2, 8)),
            ValueError,
            r"then: expected leading axes that go with first's \(4, 1\), got \(5, 2\)",
        ),
        (
            lambda: geometry.compose(torch.zeros(4, 2, 3), torch.zeros(4, 4, 8)),
            ValueError,
            r"first: expected as many .* then's \(4, 4\), got \(4,\); .* write first\[:, None\]$",
        ),
        (
            lambda: geometry.compose(torch.zeros(1, 4, 5, 2, 3), torch.zeros(5, 3, 3)),
            ValueError,
            r"then: expected as many .* first's \(1, 4, 5\), got \(5,\); .* write then\[:, None, None\]$",
        ),
        (lambda: geometry.from_pixel_matrix(torch.eye(2), (3, 3)), ValueError, "matrix: expected shape"),
        (
            lambda: geometry.from_pixel_matrix(torch.eye(3), (3, 3, 3)),
            ValueError,
            r"image_size: expected two numbers \(h, w\)",
        ),
        (
            lambda: geometry.to_pixel_matrix(torch.eye(3), (3, 3), (2.5, 3)),
            TypeError,
            "size: expected a sequence",
        ),
        (
            lambda: geometry.to_pixel_matrix(torch.eye(3), 5),
            TypeError,
            "image_size: expected a sequence",
        ),
        (
            lambda: geometry.to_pixel_matrix(torch.eye(3), (3, 3), align_corners="no"),
            TypeError,
            "align_corners: exp",
        ),
        (lambda: geometry.from_corners(np.zeros((4, 2))), TypeError, "corners: expected a tensor, got ndarray"),
        (lambda: geometry.from_corners(torch.tensor(1.0)), ValueError, r"corners: expected shape .*, got \(\)"),
        (lambda: geometry.corner_areas(torch.ones(4, 3)), ValueError, r"corners: expected shape .*, got \(4, 3\)"),
        (lambda: geometry.to_pose(torch.zeros(1, 8)), ValueError, r"theta: expected shape \(..., 2, 3\), got \(1, 8\)"),
        (
            lambda: geometry.from_pose(geometry.Pose(torch.ones(2, dtype=torch.int64), *[torch.zeros(2)] * 3)),
            TypeError,
            "scale: expected dtype",
        ),
        (
            lambda: geometry.from_pose(geometry.Pose(torch.ones(3), *[torch.zeros(2)] * 3)),
            ValueError,
            r"scale: expected shape \(..., 2\), got \(3,\)",
        ),
        (
            lambda: geometry.from_pose(geometry.Pose(torch.ones(2), *[torch.zeros([])] * 3)),
            ValueError,
            r"translation: expected shape \(..., 2\), got \(\)",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_parts_of_a_pose_broadcast():
    theta = geometry.from_pose(geometry.Pose(torch.ones(2), torch.rand(4), torch.tensor(0.0), torch.zeros(2)))
    assert theta.shape == (4, 2, 3)


def test_gradients_reach_the_pose_through_a_warp(path):
    """Gradient descent on a pose finds how an image was turned."""
    y, x = np.meshgrid(*(np.linspace(-2, 2, 24),) * 2, indexing="ij")
    image = torch.tensor(np.exp(-((x - 0.5) ** 2) - 4 * y**2), dtype=torch.float32, device=path.device)[None, None]
    truth = geometry.from_pose(geometry.Pose(*map(torch.tensor, ([1.0, 1.0], 0.4, 0.0, [0.0, 0.0])))).to(path.device)
    turned = affine_sample(image, truth[None])
    angle = torch.zeros([], requires_grad=True)
    optimiser = torch.optim.Adam([angle], 0.1)
    for _ in range(25):
        theta = geometry.from_pose(geometry.Pose(torch.ones(2), angle, torch.zeros([]), torch.zeros(2)))
        loss = (affine_sample(image, theta[None].to(path.device)) - turned).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert angle.item() == pytest.approx(0.4, abs=0.05)


def test_a_homography_from_pixels_warps_as_the_affine_map_it_is(path):
    image = torch.rand(2, 3, 9, 8, device=path.device)
    theta = some((2, 3), (2,), torch.float32).to(path.device)
    torch.testing.assert_close(
        projective_sample(image, geometry.as_matrix(theta), (5, 6)), affine_sample(image, theta, (5, 6))
    )
