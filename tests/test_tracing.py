"""Traces, transforms of `torch.func`, gradients many at a time and inference mode work with the kernels, too."""

import pytest
import torch
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.flop_counter import FlopCounterMode

from stn_triton import (
    TRANSFORMS,
    FreeThinPlateSpline,
    affine_sample,
    geometry,
    ops,
    plan,
    transform_sample,
    use_backend,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit:DeprecationWarning",
    "ignore::torch.jit.TracerWarning",
    "ignore:There is a performance drop:UserWarning",  # gradients one by one, in torch's own operations
)


DEVICE = torch.device("cuda" if torch.cuda.is_available() and not plan.INTERPRETED else "cpu")


@pytest.fixture
def image():
    return torch.rand(2, 3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(DEVICE)


@pytest.fixture
def theta():
    noise = torch.rand(2, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return (torch.eye(2, 3) + 0.2 * noise).to(DEVICE)


@pytest.mark.parametrize("fill", [None, 0.3])
@pytest.mark.parametrize("trace", [
    lambda warp, *tensors: make_fx(warp)(*tensors),
    lambda warp, *tensors: make_fx(warp, tracing_mode="fake")(*tensors),
    lambda warp, *tensors: torch.jit.trace(warp, tensors),
    lambda warp, *tensors: torch.compile(warp, fullgraph=True, backend="eager"),
], ids=["make_fx", "make_fx of fake tensors", "torch.jit.trace", "torch.compile"])  # fmt: skip
def test_a_trace_computes(path, image, theta, trace, fill):
    """A trace computes from what it is given later; it keeps no value, and gives no memory that nobody wrote."""
    options = {} if fill is None else {"padding_mode": "fill", "fill": fill}

    def warp(image, theta):
        return affine_sample(image, theta, (4, 4), **options)

    traced = trace(warp, image, theta)
    for factor in (0.5, float("nan")):
        torch.testing.assert_close(traced(image * 2, theta * factor), warp(image * 2, theta * factor))


def warp_by_name(name, image):
    """A warp of the image by the transform of a name, and a theta, (1, ...), that is none of its kinks."""
    identity = TRANSFORMS[name].identity((4, 4), dtype=image.dtype, device=image.device)
    noise = torch.rand(identity.shape, dtype=image.dtype, generator=torch.Generator().manual_seed(3))
    return lambda theta: transform_sample(name, image, theta, (4, 4)), (0.8 * identity + 0.1 * noise.to(DEVICE))[None]


@pytest.mark.parametrize("name", TRANSFORMS)
def test_fake_tensors(path, image, name):
    """They have shapes and no values, also after the transform has been used with others."""
    warp, theta = warp_by_name(name, image[:1])
    expected = warp(theta)
    with FakeTensorMode(allow_non_fake_inputs=False):
        fake = transform_sample(name, torch.rand(1, 3, 5, 6, dtype=image.dtype), torch.rand(theta.shape), (4, 4))
    assert isinstance(fake, FakeTensor)
    assert (fake.shape, fake.dtype) == (expected.shape, expected.dtype)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_subclass_that_dispatches_itself(path, image, name):
    """The operations of the warp reach both tensors of a pair."""
    warp, theta = warp_by_name(name, image[:1])
    pair = warp(TwoTensor(theta, 1.1 * theta))
    assert isinstance(pair, TwoTensor)
    torch.testing.assert_close((pair.a, pair.b), (warp(theta), warp(1.1 * theta)))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_functionalized(path, image, name):
    warp, theta = warp_by_name(name, image[:1])
    torch.testing.assert_close(torch.func.functionalize(warp)(theta), warp(theta))


def test_transforms_of_torch_func(path, image, theta):
    def loss(theta, image):
        return affine_sample(image, theta, (4, 4)).square().sum()

    leaf = theta.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf, image), leaf)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(torch.func.grad(loss)(theta, image), expected)
    each = torch.func.vmap(torch.func.grad(loss))(theta[:, None], image[:, None])
    torch.testing.assert_close(each[:, 0], expected)


@pytest.mark.parametrize("no_grad", [False, True])
def test_a_transform_of_other_tensors_changes_nothing(path, image, theta, launches, no_grad):
    """Gradients per sample of a network whose augmentation warps plain data: the kernels do it."""
    weight, scales = torch.rand(4, 4, dtype=torch.float64, device=DEVICE), torch.rand(3, dtype=torch.float64)

    def loss(weight, scale):
        with torch.set_grad_enabled(not no_grad):
            augmented = affine_sample(image, theta, (4, 4))
        return (augmented * weight).sum() * scale

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weight, scales.to(DEVICE))
    assert bool(launches) == (path.name == "kernel")
    expected = affine_sample(image, theta, (4, 4)).sum((0, 1))
    torch.testing.assert_close(each, scales.to(DEVICE)[:, None, None] * expected)


def test_a_warp_that_trains_within_another_transform(path, image, theta):
    """A warp of ordinary tensors inside a transform stays differentiable."""
    theta.requires_grad_()

    def loss(scale):
        kept.append(affine_sample(image, theta))
        return scale * 2

    kept = []
    torch.func.grad(loss)(torch.tensor(1.0, device=DEVICE))
    kept[0].sum().backward()
    (expected,) = torch.autograd.grad(affine_sample(image, theta).sum(), theta)
    torch.testing.assert_close(theta.grad, expected)


def test_a_counter_of_operations_only_looks_on(kernel_path, image, theta, launches):
    with FlopCounterMode(display=False):
        affine_sample(image, theta)
    assert launches


@pytest.mark.parametrize("padding_mode", ["zeros", "fill"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_gradients_many_at_a_time(path, name, padding_mode):
    """`is_grads_batched`, and with it jacobian(vectorize=True), of everything that has a gradient."""
    torch.manual_seed(2)
    transform, options = TRANSFORMS[name], {"dtype": torch.float64, "device": DEVICE}
    identity = transform.identity((3, 4), **options)
    inputs = [torch.rand(1, 2, 5, 6, **options), (0.9 * identity + 0.1 * torch.rand_like(identity))[None]]
    if padding_mode == "fill":
        inputs.append(torch.rand(2, **options))

    def warp(image, theta, fill=None):
        return transform_sample(
            name, image, theta, (3, 4), padding_mode=padding_mode, fill=fill, return_mask=padding_mode == "fill"
        )

    def both(*inputs):
        warped = warp(*inputs)
        return warped[0] + warped[1] if isinstance(warped, tuple) else warped

    at_once = torch.autograd.functional.jacobian(both, tuple(inputs), vectorize=True)
    one_by_one = torch.autograd.functional.jacobian(both, tuple(inputs))
    for ours, expected in zip(at_once, one_by_one, strict=True):
        torch.testing.assert_close(ours, expected)


def penalty_gradient(warp, theta, at_once):
    """The gradient of a penalty on the warp's jacobian, whose rows come one by one or all at once."""
    leaf = theta.clone().requires_grad_()
    rows = torch.autograd.functional.jacobian(warp, leaf, vectorize=at_once, create_graph=True)
    return torch.autograd.grad(rows.square().sum() + leaf.sum(), leaf)[0]


@pytest.mark.parametrize("name", [*TRANSFORMS, "free_tps"])
def test_second_derivatives_many_at_a_time(torch_path, image, name):
    if name == "free_tps":  # both factors of its product have a gradient
        points = TRANSFORMS["tps"].identity(dtype=image.dtype)[::3]
        theta = torch.cat([0.9 * points, points], -1)[None]

        def warp(theta):
            return transform_sample(FreeThinPlateSpline(6), image[:1], theta, (4, 4))

    else:
        warp, theta = warp_by_name(name, image[:1])
    torch.testing.assert_close(penalty_gradient(warp, theta, True), penalty_gradient(warp, theta, False))


@pytest.mark.parametrize("at_once", [False, True])
def test_the_kernels_have_no_second_derivatives(kernel_path, image, at_once):
    with pytest.raises(RuntimeError, match="no second derivatives"):
        penalty_gradient(*warp_by_name("affine", image[:1]), at_once)


def test_gradients_many_at_a_time_that_are_not_reproducible(kernel_path, image, theta, monkeypatch):
    """Torch's sampler makes them: where it is not deterministic, and that is asked for, it is an error."""
    monkeypatch.setattr(ops, "REPRODUCIBLE", ())
    jacobian = torch.autograd.functional.jacobian
    with pytest.raises(ValueError, match=r"deterministic: torch's own sampler.* is not reproducible on"):
        jacobian(lambda image: affine_sample(image, theta, deterministic=True), image, vectorize=True)


@pytest.mark.parametrize("name", ["affine", "tps", "dense"])
def test_parameters_made_under_inference_mode(path, image, name):
    """An image and a fill train beside them."""
    transform = TRANSFORMS[name]
    with torch.inference_mode():
        frozen = 0.9 * transform.identity((5, 6), dtype=image.dtype, device=DEVICE)[None]
    fill = torch.rand(3, dtype=image.dtype, device=DEVICE)
    gradients = []
    for theta in (frozen, frozen.clone()):
        leaves = image.clone().requires_grad_(), fill.clone().requires_grad_()
        out = transform_sample(transform, leaves[0], theta, padding_mode="fill", fill=leaves[1])
        gradients.append(torch.autograd.grad(out.square().sum(), leaves))
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected)


def test_a_fill_made_under_inference_mode(path, image, theta):
    with torch.inference_mode():
        fill = torch.rand(3, dtype=image.dtype, device=DEVICE)
    theta.requires_grad_()
    out = affine_sample(image, theta, padding_mode="fill", fill=fill)
    (gradient,) = torch.autograd.grad(out.sum(), theta)
    (expected,) = torch.autograd.grad(affine_sample(image, theta, padding_mode="fill", fill=fill.clone()).sum(), theta)
    torch.testing.assert_close(gradient, expected)


def test_only_what_a_gradient_reads_is_saved(kernel_path, image, theta):
    """An image whose values nobody will read again may be changed, or come from inference mode."""
    with torch.inference_mode():
        frozen = image * 2
    fill = torch.rand(3, dtype=image.dtype, device=image.device, requires_grad=True)
    affine_sample(frozen, theta, padding_mode="fill", fill=fill).sum().backward()
    assert fill.grad.isfinite().all()
    image.requires_grad_()
    out = affine_sample(image * 1, theta)
    assert not any(saved is not None and saved.shape == image.shape for saved in out.grad_fn.saved_tensors)


def test_the_kernels_refuse_by_name(kernel_path, image, theta):
    """Where the kernels are required, tensors that they cannot read are an error."""
    with use_backend("triton"), pytest.raises(RuntimeError, match="backend: expected tensors in memory for 'triton'"):
        torch.func.grad(lambda theta: affine_sample(image, theta).sum())(theta)


@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [*TRANSFORMS, "free_tps"])
def test_autocast_in_the_backward_pass_alone(path, name, autocast):
    """Parameters are never computed in less than float32."""
    transform = FreeThinPlateSpline(16) if name == "free_tps" else TRANSFORMS[name]
    if name == "free_tps":
        identity = TRANSFORMS["tps"].identity(device=DEVICE).repeat(1, 2)
    else:
        identity = transform.identity((7, 8), device=DEVICE)
    torch.manual_seed(0)
    image = torch.rand(2, 3, 9, 9, device=DEVICE)
    theta = (0.9 * identity + 0.1 * torch.rand(2, *identity.shape, device=DEVICE)).requires_grad_()
    gradients = []
    for dtype, enabled in ((torch.float64, False), (torch.float32, False), (torch.float32, True)):
        parameters = theta.to(dtype)
        loss = transform_sample(transform, image.to(dtype), parameters, (7, 8)).square().sum()
        with torch.autocast(DEVICE.type, autocast, enabled=enabled):
            gradients.append(torch.autograd.grad(loss, parameters)[0])
    truth, without, within = (gradient.double() for gradient in gradients)
    rounding = 4 * torch.finfo(torch.float32).eps * truth.abs().max()
    assert (within - truth).abs().max() <= 2 * (without - truth).abs().max() + rounding


def test_products_without_float64_are_exact_too(monkeypatch):
    """On a device that has none, autocast is switched off for them, both ways."""
    from stn_triton.transforms import products

    monkeypatch.setattr(products, "exact_dtype", lambda device: torch.float32)
    a, b = torch.rand(5, 6, requires_grad=True), torch.rand(6, 7)
    expected = torch.autograd.grad((a @ b).square().sum(), a)[0]
    with torch.autocast("cpu", torch.bfloat16):
        product = products.exact_product(a, b)
        assert product.dtype == torch.float32
        torch.testing.assert_close(product, (a.double() @ b.double()).float())
        torch.testing.assert_close(torch.autograd.grad(product.square().sum(), a)[0], expected)


def test_geometry_under_autocast(path):
    theta = torch.eye(2, 3, device=DEVICE) + 0.1 * torch.rand(2, 3, device=DEVICE)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        product = geometry.compose(theta, geometry.invert(theta))
    torch.testing.assert_close(product, torch.eye(2, 3, device=DEVICE))
