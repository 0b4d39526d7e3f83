"""Thin plate splines: control points of any number, fixed or with gradients, and those that determine no spline."""

import functools

import numpy as np
import pytest
import torch
from tolerance import to_numpy

from stn_triton import (
    FreeThinPlateSpline,
    ThinPlateSpline,
    configs,
    functional,
    launch,
    piecewise_affine_sample,
    plan,
    reference,
    tps_sample,
    transform_sample,
)

SIZE = (5, 6)


def draw_points(count, seed=0):
    """Distinct and well apart: a jittered grid, shuffled."""
    rng = np.random.default_rng(seed)
    side = int(np.ceil(np.sqrt(count)))
    axis = np.linspace(-0.9, 0.9, side)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    return rng.permutation(grid + rng.uniform(-0.3, 0.3, grid.shape) / side)[:count]


@pytest.mark.parametrize(("count", "lam"), [(3, 0.0), (5, 0.3), (17, 0.0), (1024, 0.0)])
def test_any_number_of_control_points(path, count, lam):
    """Forward and backward, by the reference; at most 64 programs of a sample write a part of the gradient."""
    points = draw_points(count)
    rng = np.random.default_rng(1)
    theta = torch.tensor(points[None] + 0.1 * rng.standard_normal((2, count, 2)), device=path.device).requires_grad_()
    image = torch.randn(2, 2, 7, 8, dtype=torch.float64, device=path.device, requires_grad=True)
    out = tps_sample(image, theta, SIZE, control_points=points, lam=lam)
    d_out = torch.randn_like(out)
    out.backward(d_out)
    grid = reference.tps_grid(to_numpy(theta), SIZE, False, points, lam)
    truth = reference.grid_sample(to_numpy(image), grid)
    d_image, d_grid = reference.grid_sample_backward(to_numpy(d_out), to_numpy(image), grid)
    d_theta = reference.tps_grid_backward(d_grid, to_numpy(theta), SIZE, False, points, lam)
    for ours, expected in ((out, truth), (image.grad, d_image), (theta.grad, d_theta)):
        torch.testing.assert_close(ours.detach().cpu(), torch.tensor(expected), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("size", [(512, 512), (300, 2048), (3, 16384), (7, 7), (1000, 3)])
@pytest.mark.parametrize("channels", [1, 3, 64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_workspace_is_bounded(kernel_path, monkeypatch, size, channels, layout):
    """64 parts of a sample's gradient at most, whatever the size and the number of channels."""
    from stn_triton.layout import ImageLike, TensorLayout
    from stn_triton.spec import WarpSpec

    monkeypatch.setattr(plan, "_config", lambda *args: configs.choose_config(*args[:2], args[2].size[1], *args[3:]))
    spline = ThinPlateSpline(draw_points(1024))
    spec = WarpSpec(spline, "bilinear", "zeros", False, size)
    image, theta = torch.empty(1, channels, 8, 8, memory_format=layout), torch.empty(1, 1027, 4)
    d_out = torch.empty(1, channels, *size, memory_format=layout)
    layouts = [TensorLayout.of(t) for t in (d_out, image, theta)]
    _, parts, rows, columns = plan.plan_backward(spec, ImageLike.of(image), *layouts, None).shape
    assert (rows, columns) == (1027, 2)
    assert 1 <= parts <= 64


def test_a_first_call_under_another_regime_leaves_nothing_behind(torch_path):
    """Constants are kept from call to call, but for fake ones and those of `torch.func`."""
    image, theta = torch.randn(1, 1, 5, 6), torch.tensor(draw_points(9))[None].float()
    for seed, regime in enumerate((func_grad, fake)):
        points = draw_points(9, seed)
        regime(functools.partial(total, tps_sample, image, control_points=points), theta)
        regime(functools.partial(total, piecewise_affine_sample, image, mesh=(3, 3)), theta)
        assert tps_sample(image, theta, control_points=points).isfinite().all()
        assert piecewise_affine_sample(image, theta, mesh=(3, 3)).isfinite().all()


def total(sample, image, theta, **options):
    return sample(image, theta, **options).sum()


def func_grad(function, theta):
    torch.func.grad(function)(theta)


def fake(function, theta):
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        function(mode.from_tensor(theta))


def test_lam_is_a_number_at_every_call(torch_path):
    image, theta, lam = torch.randn(1, 1, 5, 6), torch.randn(1, 16, 2), torch.tensor(0.5)
    before = tps_sample(image, theta, lam=lam)
    lam.fill_(50.0)
    assert not torch.equal(tps_sample(image, theta, lam=lam), before)
    with pytest.raises(TypeError, match="lam: expected a number, without a gradient"):
        tps_sample(image, theta, lam=lam.requires_grad_())


def test_fixed_control_points_have_no_gradient_to_lose():
    with pytest.raises(ValueError, match="control_points: expected constants, got a tensor that needs a gradient"):
        ThinPlateSpline(torch.rand(5, 2, requires_grad=True))


@pytest.mark.parametrize("enough", [1, 10**6], ids=["tiles of a program", "programs of a sample"])
def test_several_tiles_and_blocks(kernel_path, monkeypatch, enough):
    """Parts of the gradient add up over the tiles of a program, over programs and over blocks of channels."""
    points = draw_points(7)
    image = torch.randn(2, 10, 7, 8, dtype=torch.float64, device=kernel_path.device)
    theta = torch.tensor(points, device=kernel_path.device).repeat(2, 1, 1) * 0.9
    theta, free = theta.requires_grad_(), torch.tensor(points, device=kernel_path.device)[None].requires_grad_()
    d_out = torch.randn(2, 10, 9, 13, dtype=torch.float64, device=kernel_path.device)

    def gradients():
        out = tps_sample(image, theta, (9, 13), control_points=free)
        return torch.autograd.grad(out, [theta, free], d_out)

    expected = gradients()
    monkeypatch.setattr(plan, "_config", lambda *args: configs.LaunchConfig(2, 8, max_steps=3))
    monkeypatch.setattr(configs, "ENOUGH_PROGRAMS", enough)
    plan.plan_forward.cache_clear()
    plan.plan_backward.cache_clear()
    for ours, truth in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(ours, truth)


def test_gradients_to_control_points(path):
    points = torch.tensor(draw_points(4), device=path.device).repeat(2, 1, 1) + torch.tensor([[[0.0]], [[0.03]]])
    points = points.double().to(path.device).requires_grad_()
    theta = (points.detach() * 0.8 + 0.05 * torch.randn_like(points)).requires_grad_()
    image = torch.randn(2, 1, 2, 3, dtype=torch.float64, device=path.device, requires_grad=True)

    def warp(image, theta, points):
        return tps_sample(image, theta, (1, 3), control_points=points, padding_mode="border")

    assert torch.autograd.gradcheck(warp, (image, theta, points), nondet_tol=1e-12)
    fixed = tps_sample(image[:1], theta[:1], (1, 3), control_points=points[0].detach(), padding_mode="border")
    torch.testing.assert_close(warp(image, theta, points)[:1], fixed)


def test_control_points_for_the_whole_batch_and_for_several_transforms(path):
    image = torch.randn(2, 1, 4, 5, dtype=torch.float64, device=path.device)
    points = torch.tensor(draw_points(6), device=path.device)
    theta = points + 0.1 * torch.randn(2, 3, 6, 2, dtype=torch.float64, device=path.device)
    expected = torch.stack([tps_sample(image, theta[:, m], control_points=points) for m in range(3)], 1)
    torch.testing.assert_close(tps_sample(image, theta, control_points=points), expected)
    leaf = points.clone().requires_grad_()
    out = tps_sample(image, theta, control_points=leaf)
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    assert leaf.grad.shape == (6, 2)


def test_a_control_point_on_a_pixel(path):
    """r = 0: gradients are finite, and the pixel reads where theta says."""
    points = torch.tensor([[0.0, 0.0], [-1, -1], [1, -1], [-1, 1], [1, 1]], dtype=torch.float64, device=path.device)
    leaf = points[None].clone().requires_grad_()
    theta = (leaf.detach() + torch.tensor([0.4, -0.2], dtype=torch.float64, device=path.device)).requires_grad_()
    image = torch.zeros(1, 1, 5, 5, dtype=torch.float64, device=path.device)
    image[0, 0, 1, 3] = 1  # (0.4, -0.2) lies at pixel (3, 1.5) of 5
    out = tps_sample(image, theta, (3, 3), control_points=leaf)
    assert out[0, 0, 1, 1].item() == pytest.approx(0.5)
    out.square().sum().backward()
    assert theta.grad.isfinite().all()
    assert leaf.grad.isfinite().all()


def test_control_points_that_determine_nothing(path):
    """Zeros and no gradient for such a sample, the others untouched; with check an error."""
    good = torch.tensor(draw_points(4), dtype=torch.float32, device=path.device)
    line, twice, unknown = good.clone(), good.clone(), good.clone()
    line[:, 1] = 0.3 * line[:, 0] + 0.1
    twice[1] = twice[0]
    unknown[2, 0] = torch.nan
    points = torch.stack([good, line, twice, unknown]).requires_grad_()
    theta = (good + 0.1).repeat(4, 1, 1).requires_grad_()
    image = torch.rand(4, 1, 5, 5, device=path.device, requires_grad=True)
    out = tps_sample(image, theta, control_points=points)
    torch.testing.assert_close(out[:1], tps_sample(image[:1], theta[:1], control_points=good))
    assert (out[1:] == 0).all()
    out.square().sum().backward()
    for tensor in (points, theta, image):
        assert tensor.grad[0].abs().sum() > 0
        assert (tensor.grad[1:] == 0).all()
    with pytest.raises(ValueError, match="control_points: expected points of a sample not on one line"):
        tps_sample(image, theta, control_points=points, check=True)
    tps_sample(image[:1], theta[:1], control_points=points[:1], check=True)


@pytest.mark.parametrize("unknown", [float("nan"), float("inf")])
def test_points_that_go_nowhere(path, unknown):
    """(u, v) of a sample that is not finite: it reads nothing, and nothing of it has a gradient."""
    points = torch.tensor(draw_points(4), dtype=torch.float32, device=path.device).repeat(2, 1, 1).requires_grad_()
    theta = points.detach() + 0.1
    theta[0, 0, 0] = unknown
    theta.requires_grad_()
    out = tps_sample(torch.rand(2, 1, 5, 5, device=path.device), theta, control_points=points)
    assert (out[0] == 0).all()
    out.square().sum().backward()
    for tensor in (points, theta):
        assert (tensor.grad[0] == 0).all()
        assert tensor.grad[1].isfinite().all()
        assert tensor.grad[1].abs().sum() > 0


def test_points_close_to_each_other(path):
    """Their coefficients are large and cancel: in float64 for float64 images, and for points asked for in float64."""
    control_points = np.concatenate([draw_points(15), [[0.1, 0.1], [0.1, 0.10001]]])
    spline = ThinPlateSpline(control_points)
    theta = (torch.tensor(control_points) + 1e-4 * torch.randn(1, 17, 2, dtype=torch.float64)).float()
    grid = reference.tps_grid(theta.double().numpy(), (6, 7), False, control_points)
    image = torch.rand(1, 1, 9, 8, dtype=torch.float64, device=path.device)
    truth = reference.grid_sample(to_numpy(image), grid, "bilinear", "border", False)
    out = transform_sample(spline, image, theta.to(path.device), (6, 7), padding_mode="border")
    np.testing.assert_allclose(to_numpy(out), truth, rtol=0, atol=1e-5)
    xy = torch.tensor(control_points)
    torch.testing.assert_close(spline.points(theta, xy)[0], theta[0].double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("theta_dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_identity_of_any_points_is_exact(kernel_path, theta_dtype):
    """Also those that theta's dtype rounds."""
    spline = ThinPlateSpline(draw_points(30))
    image = torch.randn(2, 1, 6, 7, device=kernel_path.device)
    theta = spline.identity(dtype=theta_dtype, device=kernel_path.device)[None]
    assert torch.equal(transform_sample(spline, image, theta), image)


def test_autocast_leaves_coefficients_alone(torch_path):
    image, points = torch.randn(1, 1, 5, 5), torch.tensor(reference.four_by_four(), dtype=torch.float32)[None]
    theta = 0.7 * points + 0.1 * torch.rand_like(points)
    expected = tps_sample(image, theta)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(tps_sample(image, theta), expected)


@pytest.mark.parametrize("free", [False, True], ids=["fixed", "free"])
def test_compiles_to_one_graph(torch_path, free):
    image, theta = torch.randn(2, 1, 5, 6, dtype=torch.float64), torch.tensor(draw_points(16)).repeat(2, 1, 1)
    theta.requires_grad_()

    def loss(image, theta):
        points = theta.detach() * 0.9 if free else None
        return tps_sample(image, theta, control_points=points).square().sum()

    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    ours, truth = (torch.autograd.grad(run(image, theta), theta)[0] for run in (compiled, loss))
    torch.testing.assert_close(ours, truth)


def test_lam_draws_towards_the_affine_map(path):
    points = draw_points(12)
    theta = torch.tensor(points @ [[0.8, 0.2], [-0.1, 0.9]], device=path.device)[None]
    noisy = theta + 0.1 * torch.randn(theta.shape, dtype=theta.dtype, device=path.device)
    image = torch.randn(1, 1, 6, 6, dtype=torch.float64, device=path.device)
    for lam in (0.0, 1.0):  # an affine map has no bending to be penalised
        torch.testing.assert_close(
            tps_sample(image, theta, control_points=points, lam=lam), tps_sample(image, theta, control_points=points)
        )
    grids = [ThinPlateSpline(points, lam).points(noisy.cpu(), torch.tensor(points)) for lam in (0.0, 1e9)]
    design = np.c_[np.ones(12), points]
    fitted = design @ np.linalg.lstsq(design, to_numpy(noisy[0]), rcond=None)[0]
    torch.testing.assert_close(grids[0], noisy.cpu())
    np.testing.assert_allclose(to_numpy(grids[1][0]), fitted, atol=1e-6)


@pytest.mark.parametrize(("points", "message"), [
    ([[0, 0], [1, 1]], r"expected shape \(K, 2\) with K at least 3, got \(2, 2\)"),
    ([[0, 0, 0]] * 4, r"expected shape \(K, 2\)"),
    ([[0, 0], [1, 1], [2, 2]], "not all on one line"),
    ([[0, 0], [1, 0], [0, 1], [1, 0]], "two in one place"),
    ([[0, 0], [1, 0], [0, float("nan")]], "finite"),
])  # fmt: skip
def test_wrong_control_points(points, message):
    with pytest.raises(ValueError, match=f"control_points: .*{message}"):
        ThinPlateSpline(points)


def test_wrong_arguments():
    image, theta = torch.zeros(1, 1, 3, 3), torch.zeros(1, 16, 2)
    with pytest.raises(ValueError, match="lam: expected a finite number of at least 0, got -1"):
        tps_sample(image, theta, lam=-1)
    with pytest.raises(ValueError, match=r"theta: expected shape \(N, K, 2\) = \(1, 16, 2\), got \(1, 9, 2\)"):
        tps_sample(image, theta[:, :9])
    with pytest.raises(ValueError, match=r"control_points: expected shape \(..., K, 2\) like theta's \(1, 16, 2\)"):
        tps_sample(image, theta, control_points=torch.zeros(1, 9, 2))
    with pytest.raises(ValueError, match="count: expected at least 3 control points, got 2"):
        FreeThinPlateSpline(2)


def test_the_basis_of_a_large_output_is_never_in_memory(torch_path, monkeypatch):
    """Some points at a time, forward and again backward."""
    from stn_triton.transforms import expansion, kept_basis, thin_plate_spline

    largest, phi = [], thin_plate_spline._phi
    spline, image = ThinPlateSpline(draw_points(25)), torch.randn(2, 1, 128, 128, dtype=torch.float64)
    theta = spline.identity(dtype=torch.float64).repeat(2, 1, 1).mul(0.9).requires_grad_()

    def run():
        out = transform_sample(spline, image, theta)
        return out, *torch.autograd.grad(out.square().sum(), theta)

    run()  # solves the spline's system
    monkeypatch.setattr(kept_basis, "LARGEST_BASIS", 2**16)
    monkeypatch.setattr(expansion, "BASIS_AT_ONCE", 2**16)
    monkeypatch.setattr(thin_plate_spline, "_phi", lambda *args: largest.append(phi(*args)) or largest[-1])
    by_parts = run()
    assert max(t.numel() for t in largest) <= 2**16
    monkeypatch.setattr(kept_basis, "LARGEST_BASIS", 10**9)
    for ours, truth in zip(by_parts, run(), strict=True):
        torch.testing.assert_close(ours, truth)


def test_a_system_is_solved_and_a_launch_planned_once(path, monkeypatch):
    """For equal control points, whatever they are given as."""
    functional._splines.clear()
    solved, solve = [], torch.linalg.inv
    monkeypatch.setattr(torch.linalg, "inv", lambda matrix: solved.append(matrix) or solve(matrix))
    points = draw_points(9, seed=5)
    image, theta = torch.rand(1, 1, 4, 4, device=path.device), torch.zeros(1, 9, 2, device=path.device)
    for given in (points, points.copy(), points.tolist(), torch.tensor(points, device=path.device)):
        tps_sample(image, theta, control_points=given)
    assert len(solved) == 1
    assert plan.plan_forward.misses == (path.name == "kernel")


def test_one_launch_each_way(kernel_path, monkeypatch):
    launches, real = [], launch._launch
    monkeypatch.setattr(
        launch, "_launch", lambda kernel, *args, **kw: launches.append(kernel) or real(kernel, *args, **kw)
    )
    theta = torch.tensor(draw_points(16), device=kernel_path.device)[None].requires_grad_()
    tps_sample(torch.randn(1, 1, 4, 4, dtype=torch.float64, device=kernel_path.device), theta).sum().backward()
    assert launches == [launch.warp_forward, launch.warp_backward]
