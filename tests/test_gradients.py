"""Gradients as autograd sees them: finite differences, only what is asked for, the same on every run."""

import random

import numpy as np
import pytest
import torch
from cases import PYTORCH_PADDINGS, TRANSFORM_CASES

from stn_triton import affine_sample, grid_sample, launch, plan
from stn_triton.configs import LaunchConfig


@pytest.mark.parametrize("padding_mode", PYTORCH_PADDINGS)
@pytest.mark.parametrize(
    ("transform", "align_corners"), [("affine", False), *((name, name != "dense") for name in TRANSFORM_CASES)]
)
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_gradcheck(path, transform, mode, padding_mode, align_corners):
    case, size = TRANSFORM_CASES[transform], (2, 3)
    theta = torch.tensor(case.theta(np.random.default_rng(3), 1, size), device=path.device, requires_grad=True)
    image = torch.randn(1, 1, 3, 2, dtype=torch.float64, device=path.device, requires_grad=True)

    def warp(image, theta):
        return case.sample(image, theta, size, mode, padding_mode, align_corners)

    # Number by number where that is quick; in the interpreter, but for one transform, along random directions.
    all_of_them = (transform, mode, align_corners) == ("affine", "bilinear", False)
    fast = not all_of_them if path.name == "kernel" else theta.numel() > 24
    assert torch.autograd.gradcheck(warp, (image, theta), nondet_tol=1e-12, fast_mode=fast)


@pytest.mark.parametrize("needs", [(False, False), (True, False), (False, True), (True, True)], ids=str)
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_only_the_gradients_asked_for(path, monkeypatch, needs, mode):
    """Each gradient is the same alone as with the other, and no work is done for what is not asked for."""
    image = torch.randn(2, 2, 4, 5, device=path.device)
    theta = torch.eye(2, 3, device=path.device) + 0.1 * torch.randn(2, 2, 3, device=path.device)
    launched = []
    real = launch._launch

    def spy(kernel, programs, *args, options):
        if kernel is launch.warp_backward:
            launched.append(dict(zip(kernel.arg_names, args, strict=True)))
        real(kernel, programs, *args, options=options)

    monkeypatch.setattr(launch, "_launch", spy)

    def gradients(needs_image, needs_theta):
        inputs = [image.clone().requires_grad_(needs_image), theta.clone().requires_grad_(needs_theta)]
        out = affine_sample(*inputs, (3, 4), mode=mode)
        assert out.requires_grad == (needs_image or needs_theta)
        if out.requires_grad:
            out.square().sum().backward()
        return [t.grad for t in inputs]

    both = gradients(True, True)
    launched.clear()
    for wanted, gradient, expected in zip(needs, gradients(*needs), both, strict=True):
        assert (gradient is not None) == wanted
        if wanted:
            torch.testing.assert_close(gradient, expected)
    if path.name == "kernel":
        follows_theta = needs[1] and mode == "bilinear"
        assert len(launched) == (needs[0] or follows_theta)
        for arguments in launched:
            assert (arguments["NEEDS_IMAGE"], arguments["NEEDS_THETA"]) == (needs[0], follows_theta)
            unused = arguments["d_out"]
            assert (arguments["d_image"] is unused) == (not needs[0])
            assert (arguments["image"] is unused) == (not follows_theta)  # not even kept


def test_an_image_that_backward_does_not_read_may_change(kernel_path):
    image = torch.randn(1, 1, 4, 4, device=kernel_path.device, requires_grad=True)
    hidden = image * 1
    out = affine_sample(hidden, torch.eye(2, 3, device=kernel_path.device)[None])
    (d_hidden,) = torch.autograd.grad(out.sum(), hidden, retain_graph=True)
    with torch.no_grad():
        hidden.zero_()
    assert torch.equal(torch.autograd.grad(out.sum(), hidden)[0], d_hidden)


def test_nearest_gives_zero_not_none(path):
    image = torch.randn(1, 1, 4, 4, device=path.device)
    theta = torch.eye(2, 3, device=path.device)[None].requires_grad_()
    affine_sample(image, theta, mode="nearest").sum().backward()
    assert torch.equal(theta.grad, torch.zeros_like(theta))


def test_broadcast_theta_sums_its_gradient(path):
    image = torch.randn(3, 2, 5, 4, device=path.device, dtype=torch.float64)
    theta = (torch.eye(2, 3) * 0.8 + 0.1).double().to(path.device)[None].requires_grad_()
    repeated = theta.detach().repeat(3, 1, 1).requires_grad_()
    d_out = torch.randn(3, 2, 5, 4, device=path.device, dtype=torch.float64)
    out, expected = affine_sample(image, theta), affine_sample(image, repeated)
    torch.testing.assert_close(out, expected)
    out.backward(d_out)
    expected.backward(d_out)
    torch.testing.assert_close(theta.grad, repeated.grad.sum(0, keepdim=True))


def test_theta_gradient_is_bit_reproducible(kernel_path, monkeypatch):
    """Under any order of programs (20 shuffles; on a GPU 20 runs)."""
    monkeypatch.setattr(plan, "_config", lambda *args: LaunchConfig(4, 8, max_steps=1))  # four programs
    if plan.INTERPRETED:
        shuffle_programs(monkeypatch)
    device, size = kernel_path.device, (8, 13)
    image = torch.randn(1, 2, 9, 11, device=device)
    theta = (torch.eye(2, 3, device=device) + 0.2 * torch.randn(1, 2, 3, device=device)).requires_grad_()
    grid = torch.linspace(-1, 1, 208, device=device).view(1, *size, 2).requires_grad_()
    d_out = torch.randn(1, 2, *size, device=device)
    grids, d_thetas, outs = [], [], []
    for run in range(21):
        if run < 3:
            out = affine_sample(image, theta, size)
            outs.append(out.detach())
        d_thetas.append(torch.autograd.grad(out, theta, d_out, retain_graph=True)[0])
        if run < 3:  # every pixel has its own: nothing is summed
            grids.append(torch.autograd.grad(grid_sample(image, grid, align_corners=False), grid, d_out)[0])
    for runs in (outs, d_thetas, grids):
        assert all(torch.equal(run, runs[0]) for run in runs)


def test_theta_gradient_of_four_million_pixels(kernel_path, monkeypatch):
    """Within 2 ulp of the sum of the terms, or 2^-24 of the sum of their magnitudes.

    On a ramp every term is known: d_u = d_out, d_v = 2 d_out, times x, y and 1, in pixels per unit. Of some sums all
    terms are positive, of some half.
    """
    if plan.INTERPRETED:  # a lane adds up 16 rows, as on a GPU
        monkeypatch.setattr(plan, "_config", lambda *args: LaunchConfig(32, 2048, max_steps=16))
    n, device = 2048, kernel_path.device
    ramp = torch.arange(256.0, device=device)
    image = (ramp + 2 * ramp[:, None])[None, None]
    theta = torch.tensor([[[0.5, 0, 0], [0, 0.5, 0]]], device=device, requires_grad=True)
    d_out = torch.rand(1, 1, n, n, device=device)
    (d_theta,) = torch.autograd.grad(affine_sample(image, theta, (n, n)), theta, d_out)
    x = (2 * torch.arange(n, dtype=torch.float64, device=device) + 1) / n - 1
    basis = torch.stack([x.expand(n, n), x[:, None].expand(n, n), torch.ones(n, n).to(x)])
    terms = 128 * d_out[0].double() * basis
    truth, magnitude = (torch.stack([s, 2 * s]) for s in (terms.sum((1, 2)), terms.abs().sum((1, 2))))
    ulp = torch.tensor(np.spacing(truth.abs().float().cpu().numpy())).to(truth)
    assert ((d_theta[0] - truth).abs() <= torch.maximum(2 * ulp, magnitude / 2**24)).all()


def shuffle_programs(monkeypatch):
    """The interpreter runs programs in order; make it a random one, new for every launch."""
    from triton.runtime import interpreter

    set_grid_idx = interpreter.interpreter_builder.set_grid_idx
    order: list[int] = []

    def shuffled(x, y, z):
        programs = interpreter.interpreter_builder.grid_dim[0]
        if x == 0:
            order[:] = random.sample(range(programs), programs)
        set_grid_idx(order[x], y, z)

    monkeypatch.setattr(interpreter.interpreter_builder, "set_grid_idx", shuffled)


def test_shuffling_shuffles(kernel_path, monkeypatch):
    """The instrument itself: a kernel that depends on the order of programs shows it."""
    if not plan.INTERPRETED:
        pytest.skip("a GPU orders programs itself")
    from device_code import last_program

    shuffle_programs(monkeypatch)
    seen = set()
    for _ in range(20):
        out = torch.zeros(1)
        last_program[(8,)](out)
        seen.add(out.item())
    assert len(seen) > 1


def test_half_precision_theta_gradient_keeps_its_dtype(path):
    image = torch.randn(2, 1, 4, 4, device=path.device)
    theta = torch.eye(2, 3, device=path.device).repeat(2, 1, 1).bfloat16().requires_grad_()
    affine_sample(image, theta).sum().backward()
    assert theta.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("which", [0, 1], ids=["image", "theta"])
def test_second_derivative_is_an_error_not_a_zero(kernel_path, which):
    """Asked for everything, or for one input of a loss that has a first derivative as well."""
    image = torch.randn(1, 1, 4, 4, device=kernel_path.device, requires_grad=True)
    theta = torch.eye(2, 3, device=kernel_path.device)[None].requires_grad_()
    wanted = (image, theta)[which]
    loss = affine_sample(image, theta, (3, 3)).square().sum()
    (gradient,) = torch.autograd.grad(loss, wanted, create_graph=True)
    penalty = gradient.square().sum()
    for derive in (lambda: torch.autograd.grad(loss + penalty, wanted, retain_graph=True), penalty.backward):
        with pytest.raises(RuntimeError, match="no second derivatives"):
            derive()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, on import
def test_forward_mode_is_an_error_not_a_zero(kernel_path):
    import torch.autograd.forward_ad as forward_ad

    image = torch.randn(1, 1, 4, 4, device=kernel_path.device)
    theta = torch.eye(2, 3, device=kernel_path.device)[None]
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(theta, torch.ones_like(theta))
        with pytest.raises((RuntimeError, NotImplementedError)):
            affine_sample(image, dual)


def test_training_twice_through_one_graph_and_accumulation(path):
    """retain_graph, repeated backward, accumulation into .grad: nothing saved is changed by a backward."""
    image = torch.randn(1, 1, 5, 5, device=path.device, requires_grad=True)
    theta = (torch.eye(2, 3, device=path.device) * 0.9)[None].requires_grad_()
    out = affine_sample(image, theta, (3, 3)).square().sum()
    out.backward(retain_graph=True)
    first = image.grad.clone(), theta.grad.clone()
    out.backward()
    torch.testing.assert_close(image.grad, 2 * first[0])
    torch.testing.assert_close(theta.grad, 2 * first[1])


def test_torch_func_on_the_cpu_path(torch_path):
    """grad, jacrev and vmap, first thing, with nothing cached from a plain call."""
    from stn_triton.transforms import homogeneous

    homogeneous._bases.cache_clear()
    images, theta = torch.randn(3, 1, 2, 4, 4), torch.eye(2, 3)[None] * 0.9

    def loss(theta, image):
        return affine_sample(image, theta, (3, 3)).square().sum()

    leaf = theta.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf, images[0]), leaf)
    homogeneous._bases.cache_clear()
    torch.testing.assert_close(torch.func.grad(loss)(theta, images[0]), expected)
    if torch.__version__ >= (2, 12):  # torch's own sampler has none before
        torch.testing.assert_close(torch.func.jacrev(loss)(theta, images[0]), expected)
    batched = torch.func.vmap(loss, in_dims=(None, 0))(theta, images)
    torch.testing.assert_close(batched, torch.stack([loss(theta, image) for image in images]))
