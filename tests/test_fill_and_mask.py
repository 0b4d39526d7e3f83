"""What lies outside the image: a fill with its gradient, and the mask that says how much of a pixel lies inside."""

import numpy as np
import pytest
import torch
from cases import MODES, PADDING_MODES, TRANSFORM_CASES, dtype_id
from tolerance import assert_as_good_as_pytorch, to_numpy
from torch import nn

from stn_triton import SpatialTransformer, affine_sample, plan, reference, transform_sample, warmup
from stn_triton.configs import LaunchConfig

THETA = [[[1.3, 0.2, 0.1], [-0.3, 1.4, 0.2]], [[0.8, 0.1, -0.7], [0.4, 1.1, 0.3]]]
EDGES = {"padding_mode": "fill"}


def draw(path, dtype=torch.float64, channels=3):
    """An image (2, C, 6, 7) and thetas that look beyond every side of it."""
    rng = np.random.default_rng(0)
    image = torch.tensor(rng.standard_normal((2, channels, 6, 7)), dtype=dtype, device=path.device)
    theta = torch.tensor(THETA, dtype=torch.promote_types(dtype, torch.float32), device=path.device)
    return image.requires_grad_(), theta.requires_grad_()


@pytest.mark.parametrize("shape", [(), (3,), (1, 3), (2, 3)])
@pytest.mark.parametrize("mode", MODES)
def test_the_fill_has_a_gradient(path, mode, shape):
    """Of its own shape: sums over what it was broadcast to, of d_out times what the image leaves uncovered."""
    image, theta = draw(path)
    fill = torch.randn(shape, dtype=torch.float64, device=path.device, requires_grad=True)
    out = affine_sample(image, theta, (5, 9), mode=mode, padding_mode="fill", fill=fill)
    d_out = torch.randn_like(out)
    out.backward(d_out)
    arguments = to_numpy(image), to_numpy(theta)
    options = mode, "fill", False, to_numpy(fill)
    torch.testing.assert_close(out.cpu(), torch.tensor(reference.affine_sample(*arguments, (5, 9), *options)))
    d_image, d_theta = reference.affine_sample_backward(to_numpy(d_out), *arguments, *options)
    d_fill = torch.tensor(to_numpy(d_out).sum((2, 3)) - d_image.sum((2, 3))).sum_to_size(shape)
    torch.testing.assert_close(fill.grad.cpu(), d_fill)
    torch.testing.assert_close(image.grad.cpu(), torch.tensor(d_image))
    torch.testing.assert_close(theta.grad.cpu(), torch.tensor(d_theta))


@pytest.mark.parametrize("align_corners", [False, True])
def test_a_fill_that_trains_leaves_the_gradient_of_theta_alone(path, align_corners):
    """At the outermost pixels of an identity coverage is 1 and has a derivative all the same."""
    image, _ = draw(path)
    d_out, gradients = torch.randn(2, 3, 6, 7, dtype=torch.float64, device=path.device), []
    for trains in (False, True):
        theta = torch.eye(2, 3, dtype=torch.float64, device=path.device).repeat(2, 1, 1).requires_grad_()
        fill = torch.tensor([1.5, -0.5, 2.0], dtype=torch.float64, device=path.device, requires_grad=trains)
        out = affine_sample(image, theta, padding_mode="fill", fill=fill, align_corners=align_corners)
        gradients.append(torch.autograd.grad(out, theta, d_out)[0])
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=dtype_id)
def test_the_gradient_of_a_fill_is_summed_in_float32(path, dtype):
    image, theta = draw(path, dtype)
    fill = torch.zeros(3, dtype=torch.float32, device=path.device, requires_grad=True)
    out = affine_sample(image, theta, padding_mode="fill", fill=fill)
    d_out = torch.randn_like(out)
    out.backward(d_out)
    covered = reference.coverage(reference.affine_grid(to_numpy(theta), (6, 7)), (6, 7))
    d_fill = (to_numpy(d_out) * (1 - covered)).sum((0, 2, 3))
    magnitude = np.abs(to_numpy(d_out)).sum((0, 2, 3)).max()
    theirs = torch.tensor((to_numpy(d_out) * (1 - np.float32(covered))).sum((0, 2, 3)), dtype=torch.float32)
    assert_as_good_as_pytorch(fill.grad, theirs.to(path.device), d_fill, magnitude, "d_fill")


def test_numbers_and_sequences_are_fills(path):
    image, theta = draw(path, torch.float32)
    one = affine_sample(image, theta, **EDGES, fill=2)
    torch.testing.assert_close(one, affine_sample(image, theta, **EDGES, fill=[2.0, 2.0, 2.0]), rtol=0, atol=0)
    torch.testing.assert_close(one, affine_sample(image, theta, **EDGES, fill=np.full(3, 2.0)), rtol=0, atol=0)
    away = torch.tensor([[[1.0, 0, 9], [0, 1, 0]]], device=path.device)
    grey = affine_sample(image.detach(), away, **EDGES, fill=(1, 2, 3))
    assert torch.equal(grey, torch.tensor([1.0, 2.0, 3.0], device=path.device)[:, None, None].expand_as(grey))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fill", [float("nan"), float("inf")])
def test_a_fill_that_is_no_number_stays_outside(path, mode, fill):
    """As a mark of what is unknown: pixels wholly inside are what they are without it, and so is what they teach."""
    image, theta = draw(path, torch.float32)
    out, mask = affine_sample(image, theta, mode=mode, **EDGES, fill=fill, return_mask=True)
    inside = (mask == 1).expand_as(out)
    assert 0.1 < inside.double().mean() < 0.9
    plain = affine_sample(image, theta, mode=mode)
    assert torch.equal(out[inside], plain[inside])
    assert not out[(mask == 0).expand_as(out)].isfinite().any()
    ours, theirs = (torch.autograd.grad(o[inside].square().sum(), [image, theta]) for o in (out, plain))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("mode", MODES)
def test_pixels_wholly_inside_meet_no_fill(torch_path, mode):
    """At places anywhere but for two pixels at the edge: the weights of all taps add up to exactly 1."""
    image = torch.rand(1, 1, 32, 32)
    grid = (torch.rand(1, 300, 300, 2) * 2 - 1) * (1 - 4 / 32)
    out, mask = transform_sample("dense", image, grid, (300, 300), mode=mode, **EDGES, fill=1e9, return_mask=True)
    assert (mask == 1).all()
    assert torch.equal(out, transform_sample("dense", image, grid, (300, 300), mode=mode))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("n", [104, 198, 224, 412])
def test_no_pixel_of_the_identity_is_marked(torch_path, n, align_corners):
    """Of sizes at which torch's coordinate of the last pixel, or the first, is rounded outwards most."""
    theta = torch.eye(2, 3)[None]
    options = {"align_corners": align_corners, **EDGES}
    assert affine_sample(torch.rand(1, 1, n, n), theta, **options, fill=float("nan")).isfinite().all()


@pytest.mark.parametrize("mark", [float("nan"), float("inf")])
def test_a_mark_has_no_gradient(path, mark):
    image, theta = draw(path)
    fill = torch.tensor([mark, 2.0, 3.0], dtype=torch.float64, device=path.device, requires_grad=True)
    out, mask = affine_sample(image, theta, **EDGES, fill=fill, return_mask=True)
    d_fill = torch.autograd.grad(out, fill, torch.ones_like(out))[0]
    torch.testing.assert_close(d_fill, (1 - mask).sum() * torch.tensor([0.0, 1, 1]).to(d_fill))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_the_outermost_pixels_pull_at_theta(path, mode, align_corners):
    """At the identity the coverage is 1 everywhere, and its derivative is not 0: where training starts."""
    if mode == "bilinear" and not align_corners:
        pytest.skip("every pixel lies on a kink that a rounding decides")
    image, theta = draw(path)
    theta = torch.eye(2, 3, dtype=torch.float64, device=path.device).repeat(2, 1, 1).requires_grad_()
    options = {"mode": mode, "align_corners": align_corners}
    size = (6, 5) if align_corners else (6, 7)  # the corners are pixels, the others lie between some
    out, mask = affine_sample(image, theta, size, **options, **EDGES, fill=5.0, return_mask=True)
    d_out, d_mask = torch.randn_like(out), torch.randn_like(mask)
    d_out[..., 1:-1, :] = 0  # where rows are kinks
    d_mask[..., 1:-1, :] = 0
    d_theta = torch.autograd.grad([out, mask], theta, [d_out, d_mask])[0]
    grid = reference.affine_grid(to_numpy(theta), size, align_corners)
    arguments = grid, mode, "zeros", align_corners
    _, d_grid = reference.grid_sample_backward(to_numpy(d_out), to_numpy(image) - 5, *arguments)
    _, d_grid_of_mask = reference.grid_sample_backward(to_numpy(d_mask), np.ones((2, 1, 6, 7)), *arguments)
    assert np.abs(d_grid_of_mask).max() > 0.1
    expected = reference.affine_grid_backward(d_grid + d_grid_of_mask, to_numpy(theta), size, align_corners)
    torch.testing.assert_close(d_theta.cpu(), torch.tensor(expected))


def test_a_mask_may_be_written_to(path):
    image, theta = draw(path)
    for parameters in (theta, theta[:, None]):
        mask = affine_sample(image, parameters, return_mask=True)[1]
        mask.mul_(2).sum().backward()


def test_a_half_fill_sums_in_float32(path):
    """Over pixels and over the batch, and is rounded once: terms that cancel beyond the half type's range."""
    image = torch.zeros(64, 1, 2, 2, device=path.device)
    theta = torch.tensor([[[1.0, 0, 9], [0, 1, 0]]], device=path.device)
    fill = torch.zeros((), dtype=torch.float16, device=path.device, requires_grad=True)
    d_out = torch.full_like(image, 4e4)
    d_out[::2] = -4e4
    affine_sample(image, theta, **EDGES, fill=fill).backward(d_out)
    assert fill.grad == 0


@pytest.mark.parametrize("transform", ["affine", "homography", "flow"])
def test_where_there_is_no_point_there_is_the_fill(path, transform):
    case = TRANSFORM_CASES[transform]
    theta = torch.tensor(case.theta(np.random.default_rng(0), 2, (6, 7)), device=path.device)
    theta[0] = float("nan")
    image = torch.randn(2, 3, 6, 7, dtype=torch.float64, device=path.device)
    out, mask = transform_sample(transform, image, theta, **EDGES, fill=5.0, return_mask=True)
    assert (out[0] == 5).all()
    assert (mask[0] == 0).all()
    assert mask[1].max() == 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding_mode", ["border", "reflection"])
def test_where_there_is_no_point_the_mask_is_0(path, padding_mode, mode):
    """Points behind the camera, or from a NaN theta, have mask 0 under every padding."""
    theta = torch.eye(3, dtype=torch.float64, device=path.device).repeat(2, 1, 1)
    theta[0, 2, 0] = -2  # the last two columns lie behind
    theta[1, 1, 1] = float("nan")
    image = torch.rand(2, 3, 6, 7, dtype=torch.float64, device=path.device) + 1
    out, mask = transform_sample("homography", image, theta, mode=mode, padding_mode=padding_mode, return_mask=True)
    expected = torch.zeros_like(mask)
    expected[0, ..., :5] = 1
    torch.testing.assert_close(mask, expected)
    assert torch.equal(out != 0, (mask != 0).expand_as(out))


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("align_corners", [False, True])
def test_the_mask_is_the_warped_image_of_ones(path, mode, padding_mode, align_corners):
    """With its gradient to theta, beside the output's."""
    image, theta = draw(path)
    fill = {"fill": 0.5} if padding_mode == "fill" else {}
    options = dict(mode=mode, padding_mode=padding_mode, align_corners=align_corners, **fill)
    out, mask = affine_sample(image, theta, (5, 9), **options, return_mask=True)
    torch.testing.assert_close(out, affine_sample(image, theta, (5, 9), **options))
    grid = reference.affine_grid(to_numpy(theta), (5, 9), align_corners)
    truth = reference.coverage(grid, (6, 7), mode, padding_mode, align_corners)
    torch.testing.assert_close(mask.cpu(), torch.tensor(truth))
    d_mask = torch.randn_like(mask)
    d_theta = torch.autograd.grad(mask, theta, d_mask, retain_graph=True, allow_unused=True)[0]
    zeros = "zeros" if padding_mode == "fill" else padding_mode
    ones = np.ones((2, 1, 6, 7))
    _, d_grid = reference.grid_sample_backward(to_numpy(d_mask), ones, grid, mode, zeros, align_corners)
    expected = torch.tensor(reference.affine_grid_backward(d_grid, to_numpy(theta), (5, 9), align_corners))
    torch.testing.assert_close(d_theta.cpu(), expected)
    d_out = torch.randn_like(out)
    both = torch.autograd.grad([out, mask], theta, [d_out, d_mask], retain_graph=True)[0]
    torch.testing.assert_close(both, torch.autograd.grad(out, theta, d_out)[0] + d_theta)


@pytest.mark.parametrize(("layout", "channels", "lanes"), [
    (torch.contiguous_format, 5, 1), (torch.channels_last, 5, 1), (torch.channels_last, 8, 2),
], ids=["contiguous", "channels_last", "lanes that share a pixel"])  # fmt: skip
def test_a_mask_of_several_programs(kernel_path, monkeypatch, layout, channels, lanes):
    """Blocks of channels and of rows: one program of a pixel's stores its coverage, one adds its gradient."""
    monkeypatch.setattr(plan, "_config", lambda *args: LaunchConfig(2, 8, lanes_c=lanes, max_steps=2))
    monkeypatch.setattr("stn_triton.configs.CHANNELS_AT_LEAST", 1)
    image, theta = draw(kernel_path, channels=channels)
    image = image.detach().contiguous(memory_format=layout).requires_grad_()
    fill = torch.randn(2, channels, dtype=torch.float64, device=kernel_path.device, requires_grad=True)
    out, mask = affine_sample(image, theta, (9, 13), **EDGES, fill=fill, return_mask=True)
    grid = reference.affine_grid(to_numpy(theta), (9, 13))
    torch.testing.assert_close(mask.cpu(), torch.tensor(reference.coverage(grid, (6, 7))))
    d_out, d_mask = torch.randn_like(out), torch.randn_like(mask)
    d_theta = torch.autograd.grad([out, mask], theta, [d_out, d_mask])[0]
    _, d_grid = reference.grid_sample_backward(
        to_numpy(d_out), to_numpy(image), grid, padding_mode="fill", fill=to_numpy(fill)
    )
    _, d_grid_of_mask = reference.grid_sample_backward(to_numpy(d_mask), np.ones((2, 1, 6, 7)), grid)
    expected = reference.affine_grid_backward(d_grid + d_grid_of_mask, to_numpy(theta), (9, 13))
    torch.testing.assert_close(d_theta.cpu(), torch.tensor(expected))


@pytest.mark.parametrize("channels", [0, 1, 3])
def test_fill_and_mask_of_several_transforms(path, channels):
    """As one by one; the fill is the image's, whichever transform looks beyond it. A mask needs no channels."""
    image, theta = draw(path, channels=channels)
    fill = torch.randn(2, channels, dtype=torch.float64, device=path.device, requires_grad=True)
    many = torch.stack([theta, theta * 0.7, theta * 1.6], 1)
    out, mask = affine_sample(image, many, (5, 4), **EDGES, fill=fill, return_mask=True)
    assert (out.shape, mask.shape) == ((2, 3, channels, 5, 4), (2, 3, 1, 5, 4))
    each = [affine_sample(image, t, (5, 4), **EDGES, fill=fill, return_mask=True) for t in many.unbind(1)]
    expected, expected_mask = (torch.stack(tensors, 1) for tensors in zip(*each, strict=True))
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(mask, expected_mask)
    assert mask.max() == 1
    d_out, d_mask = torch.randn_like(out), torch.randn_like(mask)
    ours, theirs = (
        torch.autograd.grad(outputs, [image, theta, fill], [d_out, d_mask], retain_graph=True)
        for outputs in ([out, mask], [expected, expected_mask])
    )
    for gradient, truth in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, truth)


def test_gradcheck(path):
    image, theta = draw(path, channels=2)
    fill = torch.randn(2, dtype=torch.float64, device=path.device, requires_grad=True)

    def warp(*tensors):
        return affine_sample(tensors[0], tensors[1], (3, 4), mode="bicubic", **EDGES, fill=tensors[2], return_mask=True)

    fast = path.name == "kernel"  # in the interpreter along random directions
    assert torch.autograd.gradcheck(warp, (image, theta, fill), nondet_tol=1e-12, fast_mode=fast)


def test_the_identity_is_exact_whatever_the_fill(kernel_path):
    image = torch.randn(2, 3, 6, 7, device=kernel_path.device)
    theta = torch.eye(2, 3, device=kernel_path.device)[None]
    for mode in MODES:
        out, mask = affine_sample(image, theta, mode=mode, **EDGES, fill=1e30, return_mask=True)
        assert torch.equal(out, image)
        assert (mask == 1).all()


def test_a_second_derivative_through_a_fill_is_an_error(kernel_path):
    image, theta = draw(kernel_path)
    fill = torch.zeros(3, dtype=torch.float64, device=kernel_path.device, requires_grad=True)
    out = affine_sample(image, theta, **EDGES, fill=fill).square().sum()
    d_fill = torch.autograd.grad(out, fill, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="no second derivatives"):
        d_fill.sum().backward()


def test_a_transformer_learns_its_fill(path):
    layer = SpatialTransformer(
        lambda image: image.new_tensor([3.0, 0, 0, 0, 3, 0]).expand(len(image), -1),
        padding_mode="fill", fill=nn.Parameter(torch.zeros(3)), return_mask=True, return_theta=True,
    ).to(path.device)  # fmt: skip
    out, mask, theta = layer(torch.rand(2, 3, 8, 8, device=path.device))
    assert (out.shape, mask.shape, theta.shape) == ((2, 3, 8, 8), (2, 1, 8, 8), (2, 2, 3))
    out.sum().backward()
    torch.testing.assert_close(layer.fill.grad, (1 - mask).sum().expand(3))
    assert set(SpatialTransformer(nn.Flatten(), padding_mode="fill", fill=torch.ones(3)).state_dict()) == {"fill"}


def test_warmup_knows_fill_and_mask(path):
    assert warmup((1, 3, 4, 4), padding_mode="fill", return_mask=True, device=path.device) > 0


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"fill": 1.0}, ValueError, "fill: expected padding_mode 'fill' with it, got 'zeros'"),
    ({"padding_mode": "fill"}, ValueError, "fill: expected a number, C numbers or a tensor with padding_mode 'fill'"),
    ({"padding_mode": "fill", "fill": "red"}, TypeError, "fill: expected a number, C numbers or one tensor, got 'red'"),
    ({"padding_mode": "fill", "fill": "123"}, TypeError, "fill: expected a number, C numbers or one tensor, got '123'"),
    ({"padding_mode": "fill", "fill": {1, 2, 3}}, TypeError, "fill: expected a number, C numbers or one tensor"),
    ({"padding_mode": "fill", "fill": 10**400}, ValueError, "fill: expected numbers up to 3.4e"),
    ({"padding_mode": "fill", "fill": [1, 2, -1e300]}, ValueError, r"fill: expected numbers up to 3.4e.* got -1e\+300"),
    ({"padding_mode": "fill", "fill": b"123"}, TypeError, "fill: expected a number, C numbers or one tensor"),
    ({"padding_mode": "fill", "fill": [1, 2]}, ValueError, r"fill: expected shape \(\), \(C,\) or \(N, C\) with N = 2"),
    ({"padding_mode": "fill", "fill": torch.ones(3, 1)}, ValueError, r"C = 3, got \(3, 1\)"),
    ({"padding_mode": "fill", "fill": torch.ones(3, dtype=torch.long)}, TypeError, "fill: expected dtype float16"),
    ({"return_mask": "no"}, TypeError, "return_mask: expected True or False, got 'no'"),
])  # fmt: skip
def test_errors(options, error, message):
    with pytest.raises(error, match=message):
        affine_sample(torch.zeros(2, 3, 4, 4), torch.zeros(2, 2, 3), **options)
