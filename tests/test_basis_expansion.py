"""T = M_theta B in a basis of the user's own."""

import copy
import importlib.util
import re
from pathlib import Path

import device_code
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import TransformCase
from test_warp import check
from tolerance import to_numpy
from torch import nn

from stn_triton import (
    BasisExpansion,
    SpatialTransformer,
    configs,
    plan,
    reference,
    start_at_identity,
    transform_sample,
    warmup,
)
from stn_triton.kernels.language import TRITON_MISSING
from stn_triton.layout import ImageLike, TensorLayout
from stn_triton.spec import WarpSpec

IDENTITY = [[0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0]]


def quadratic(x, y, lib=torch):
    return lib.stack([x * 0 + 1, x, y, x * x, x * y, y * y])


def bumps(count):
    def values(x, y, lib=torch):
        centres = [((k % 7) * 0.33 - 1, k // 7 * 0.33 - 1) for k in range(count)]
        return lib.stack([lib.exp(-2 * ((x - p) ** 2 + (y - q) ** 2)) for p, q in centres])

    return values


def one(x, y, lib=torch):
    return lib.stack([x * 0 + 1])


def holes(x, y, lib=torch):
    return lib.stack([x * 0 + 1, lib.sqrt(x), lib.where(y > 0.7, np.inf, y)])


QUADRATIC = BasisExpansion(device_code.quadratic, 6, quadratic, identity=IDENTITY)
BUMPS = BasisExpansion(device_code.bumps, 33, bumps(33))  # more than are written out
ONE = BasisExpansion(device_code.one, 1, one)
HOLES = BasisExpansion(device_code.holes, 3, holes)


def case(transform: BasisExpansion, scale: float) -> TransformCase:
    def numpy_basis(x, y):
        with np.errstate(all="ignore"):
            return transform.torch_basis(x, y, np)

    def draw_theta(rng, n, size):
        return scale * rng.standard_normal((n, 2, transform.count))

    def sample(image, theta, size, mode, padding_mode, align_corners):
        return transform_sample(
            transform, image, theta, size, mode=mode, padding_mode=padding_mode, align_corners=align_corners
        )

    def pytorch(image, theta, size, mode, padding_mode, align_corners):
        xy = torch.tensor(reference.target_points(size, align_corners), dtype=theta.dtype)
        grid = torch.einsum("nrk,khw->nhwr", theta, transform.torch_basis(*xy.unbind(-1)))
        return F.grid_sample(image, grid, mode=mode, padding_mode=padding_mode, align_corners=align_corners)

    pair = reference.expansion(numpy_basis)

    def forward(*args):
        return reference.transform_sample(pair, *args)

    def backward(*args, **options):
        return reference.transform_sample_backward(pair, *args, **options)

    return TransformCase(transform.name, draw_theta, sample, forward, backward, pytorch)


CASES = {"quadratic": case(QUADRATIC, 0.6), "bumps": case(BUMPS, 0.2), "one": case(ONE, 0.5)}


@pytest.mark.parametrize(("name", "dtype", "mode", "padding_mode", "align_corners"), [
    ("quadratic", torch.float64, "bilinear", "zeros", False), ("bumps", torch.float64, "bilinear", "border", True),
    ("quadratic", torch.float32, "bilinear", "reflection", True), ("bumps", torch.float32, "bilinear", "zeros", False),
    ("quadratic", torch.bfloat16, "nearest", "border", False), ("one", torch.float32, "bilinear", "border", False),
])  # fmt: skip
def test_forward_and_backward(path, name, dtype, mode, padding_mode, align_corners):
    check(path, CASES[name], mode, padding_mode, align_corners, dtype, (2, 2, 11, 9), (7, 13))


@pytest.mark.parametrize(("count", "enough"), [(5, 1), (9, 1), (9, 10**6)])
def test_several_tiles_and_blocks(kernel_path, monkeypatch, count, enough):
    """Parts of the gradient add up over the tiles of a program; over programs and over blocks of channels."""
    monkeypatch.setattr(plan, "_config", lambda *args: configs.LaunchConfig(2, 8, max_steps=3))
    monkeypatch.setattr(configs, "ENOUGH_PROGRAMS", enough)
    bump = case(BasisExpansion(device_code.bumps, count, bumps(count)), 0.2)
    check(kernel_path, bump, "bilinear", "zeros", False, torch.float32, (1, 9, 6, 7), (3, 13))


@pytest.mark.parametrize("size", [(512, 512), (7, 7)])
def test_the_workspace_is_bounded(size):
    """64 parts of a sample's gradient at most."""
    image, theta, d_out = torch.empty(1, 3, 8, 8), torch.empty(1, 2, 33), torch.empty(1, 3, *size)
    layouts = [TensorLayout.of(t) for t in (d_out, image, theta)]
    spec = WarpSpec(BUMPS, "bilinear", "zeros", False, size)
    _, parts, *shape = plan.plan_backward(spec, ImageLike.of(image), *layouts, None).shape
    assert shape == [2, 33]
    assert 1 <= parts <= 64


def test_gradcheck(path):
    theta = (0.5 * torch.randn(1, 2, 6, dtype=torch.float64, device=path.device)).requires_grad_()
    image = torch.randn(1, 1, 2, 3, dtype=torch.float64, device=path.device, requires_grad=True)

    def warp(image, theta):
        return transform_sample(QUADRATIC, image, theta, (2, 3), padding_mode="border")

    assert torch.autograd.gradcheck(warp, (image, theta), nondet_tol=1e-12, fast_mode=True)


def test_several_transforms_broadcast_and_half(path):
    image = torch.randn(2, 1, 4, 5, device=path.device)
    theta = 0.5 * torch.randn(1, 2, 2, 6, device=path.device)
    expected = torch.stack([transform_sample(QUADRATIC, image, theta[:, m]) for m in range(2)], 1)
    torch.testing.assert_close(transform_sample(QUADRATIC, image, theta.transpose(2, 3).clone().mT), expected)
    half = theta.bfloat16().requires_grad_()
    out = transform_sample(QUADRATIC, image, half)
    torch.testing.assert_close(out, transform_sample(QUADRATIC, image, half.float()))
    d_theta = torch.autograd.grad(out.sum(), half)[0]
    assert (d_theta.shape, d_theta.dtype) == (theta.shape, torch.bfloat16)


def test_objects_used_in_turn(path):
    """With other bases of the same size, and with the same."""
    image = torch.randn(1, 1, 5, 5, dtype=torch.float64, device=path.device)
    theta = 0.3 * torch.randn(1, 2, 6, dtype=torch.float64, device=path.device)
    other, same = BasisExpansion(device_code.bumps, 6, bumps(6)), BasisExpansion(device_code.quadratic, 6, quadratic)
    outs = [transform_sample(transform, image, theta) for transform in (QUADRATIC, other, same, QUADRATIC, other)]
    for out, transform in zip(outs, (QUADRATIC, other, QUADRATIC, QUADRATIC, other), strict=True):
        truth = case(transform, 1).reference(to_numpy(image), to_numpy(theta), (5, 5), "bilinear", "zeros", False)
        np.testing.assert_allclose(to_numpy(out), truth, atol=1e-12)


def test_grid_and_points():
    theta = torch.randn(2, 2, 33, dtype=torch.float64, requires_grad=True)
    xy = torch.rand(2, 4, 2, dtype=torch.float64, requires_grad=True)
    expected = reference.expansion(lambda x, y: BUMPS.torch_basis(x, y, np))[0](to_numpy(theta), (4, 6), True)
    np.testing.assert_allclose(to_numpy(BUMPS.grid(theta, (4, 6), True)), expected, atol=1e-12)
    at = torch.tensor(reference.target_points((4, 6), True)).view(-1, 2)
    for points in (BUMPS.points(theta, at), BUMPS.points(theta, at.expand(2, -1, -1))):
        np.testing.assert_allclose(to_numpy(points), expected.reshape(2, -1, 2), atol=1e-12)
    assert torch.autograd.gradcheck(BUMPS.points, (theta, xy), fast_mode=True)
    assert BUMPS.grid(theta.half(), (4, 6)).dtype == torch.float16


def test_where_the_basis_is_not_finite(path):
    """Zeros without a gradient; the points beside them as ever."""
    image = torch.rand(1, 2, 6, 6, dtype=torch.float64, device=path.device, requires_grad=True)
    theta = torch.tensor([[[0.3, 0.1, 0.0], [0.0, 0.0, 0.1]]], dtype=torch.float64, device=path.device)
    theta = theta.requires_grad_()
    out = transform_sample(HOLES, image, theta, (5, 6), padding_mode="border")
    assert (out[..., :3] == 0).all()
    assert (out[..., 4, :] == 0).all()
    assert (out[..., :4, 3:] != 0).all()
    d_out = torch.rand_like(out)
    gradients = torch.autograd.grad(out, [image, theta], d_out)
    truth = case(HOLES, 1).reference_backward(
        to_numpy(d_out), to_numpy(image), to_numpy(theta), "bilinear", "border", False
    )
    for ours, expected in zip(gradients, truth, strict=True):
        np.testing.assert_allclose(to_numpy(ours), expected, atol=1e-12)


def test_in_a_network(path):
    """It starts as the identity; a copy of it shares the transform."""
    network = start_at_identity(nn.Sequential(nn.Flatten(), nn.Linear(20, 12)), QUADRATIC).to(path.device)
    transformer = copy.deepcopy(SpatialTransformer(network, QUADRATIC))
    assert transformer.transform is QUADRATIC
    image = torch.rand(2, 1, 4, 5, device=path.device)
    torch.testing.assert_close(transformer(image), image, rtol=0, atol=1e-5)
    assert warmup((1, 1, 4, 5), transform=QUADRATIC, device=path.device) > 0


def test_compiles_to_one_graph(torch_path):
    image, theta = torch.randn(2, 1, 5, 6, dtype=torch.float64), torch.randn(2, 2, 6, dtype=torch.float64)
    theta.requires_grad_()

    def loss(image, theta):
        return transform_sample(QUADRATIC, image, theta).square().sum()

    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    ours, truth = (torch.autograd.grad(run(image, theta), theta)[0] for run in (compiled, loss))
    torch.testing.assert_close(ours, truth)


def test_both_forms_are_compared(kernel_path):
    for transform in (QUADRATIC, BUMPS, ONE, HOLES):
        transform.check()
    other = BasisExpansion(device_code.quadratic, 6, lambda x, y: quadratic(x, y) + (x > 0.9) * 1e-3)
    with pytest.raises(ValueError, match=r"expected b_3\(0.9375, \S+\) = 0.878906, as basis .* got 0.879906"):
        other.check()
    swapped = BasisExpansion(device_code.quadratic, 6, lambda x, y: quadratic(x, y)[[0, 1, 2, 3, 5, 4]])
    with pytest.raises(ValueError, match=r"torch_basis: expected b_[45]\("):
        swapped.check()
    finite = BasisExpansion(device_code.holes, 3, lambda x, y: holes(x, y).nan_to_num(0))
    with pytest.raises(ValueError, match=r"torch_basis: expected b_1\(-\S+, \S+\) = nan, as basis .* got 0"):
        finite.check()
    with pytest.raises(RuntimeError, match=r"basis: expected a triton.jit function and a GPU"):
        BasisExpansion(None, 1, one).check()


def test_without_a_basis(torch_path):
    """Where no kernels run it is not needed."""
    image, theta = torch.rand(1, 1, 4, 4), torch.randn(1, 2, 6)
    ours = transform_sample(BasisExpansion(None, 6, quadratic), image, theta)
    assert torch.equal(ours, transform_sample(QUADRATIC, image, theta))


def test_wrong_arguments(path):
    image, theta = torch.zeros(1, 1, 3, 3, device=path.device), torch.zeros(1, 2, 6, device=path.device)
    if path.name == "kernel":
        with pytest.raises(ValueError, match=r"basis: expected a triton.jit function where kernels run, got None"):
            transform_sample(BasisExpansion(None, 6, quadratic), image, theta)
    if not TRITON_MISSING:
        with pytest.raises(TypeError, match=r"basis: expected a triton.jit function of \(k, x, y\), .*, got <"):
            BasisExpansion(quadratic, 6, quadratic)
        with pytest.raises(TypeError, match=r"basis: expected a function of \(k, x, y\), got one of \(\w, \w\)"):
            BasisExpansion(device_code.two_arguments, 6, quadratic)
    with pytest.raises(ValueError, match="count: expected at least 1, got 0"):
        BasisExpansion(None, 0, quadratic)
    with pytest.raises(TypeError, match="torch_basis: expected a function of x and y, got int"):
        BasisExpansion(None, 1, 1)
    with pytest.raises(ValueError, match=r"identity: expected finite numbers of shape \(2, K\) = \(2, 5\)"):
        BasisExpansion(None, 5, quadratic, identity=IDENTITY)
    with pytest.raises(ValueError, match=r"identity: expected BasisExpansion\(..., identity=theta\)"):
        warmup((1, 1, 4, 4), transform=BUMPS, device=path.device)
    with pytest.raises(ValueError, match=r"theta: expected shape \(N, 2, K\) = \(1, 2, 33\), got \(1, 2, 6\)"):
        transform_sample(BUMPS, image, theta)
    with pytest.raises(ValueError, match=r"torch_basis: expected a tensor \(K, ...\) = \(5, 9\) .* got \(6, 9\)"):
        BasisExpansion(None, 5, quadratic).grid(theta[..., :5], (3, 3))
    with pytest.raises(ValueError, match=r"torch_basis: expected a tensor \(K, ...\) = \(1, 9\) .* got tuple"):
        BasisExpansion(None, 1, lambda x, y: (x,)).grid(theta[..., :1], (3, 3))


def test_the_example_of_the_readme(path, tmp_path):
    """As it is written there, in a file of its own: Triton reads the source."""
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    (example,) = (code for code in re.findall(r"```python\n(.*?)```", readme, re.S) if "BasisExpansion(" in code)
    file = tmp_path / "example.py"
    file.write_text(example)
    specification = importlib.util.spec_from_file_location("example", file)
    module = importlib.util.module_from_spec(specification)
    with torch.device(path.device):
        specification.loader.exec_module(module)
    assert module.out.shape == module.images.shape
    if path.name == "kernel":
        module.quadratic.check()
