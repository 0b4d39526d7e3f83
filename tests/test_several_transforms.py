"""M transforms of one image: the same as M warps, but the image is there once and its gradient is their sum."""

import numpy as np
import pytest
import torch
from cases import TRANSFORM_CASES
from torch import nn

from stn_triton import (
    TRANSFORMS,
    ConvolutionalLocalisation,
    Flow,
    FullyConnectedLocalisation,
    SpatialTransformer,
    affine_sample,
    launch,
    plan,
    transform_sample,
    warmup,
)
from stn_triton.configs import LaunchConfig

M, SIZE = 3, (4, 5)


def parameters(transform, batch, device, dtype=torch.float64):
    """(batch, M, ...)."""
    theta = TRANSFORM_CASES[transform].theta(np.random.default_rng(0), batch * M, SIZE)
    return torch.tensor(theta, dtype=dtype, device=device).unflatten(0, (batch, M))


def one_by_one(transform, image, theta, **options):
    return torch.stack([transform_sample(transform, image, each, SIZE, **options) for each in theta.unbind(1)], 1)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize(("batch", "padding_mode"), [(2, "zeros"), (1, "reflection")])
def test_the_same_as_one_by_one(path, transform, batch, padding_mode):
    """Bit for bit, but where BLAS multiplies, which may round by a batch's size; a batch of 1 is of every image."""
    image = torch.randn(2, 3, 6, 7, dtype=torch.float64, device=path.device, requires_grad=True)
    theta = parameters(transform, batch, path.device).requires_grad_()
    out = transform_sample(transform, image, theta, SIZE, padding_mode=padding_mode)
    expected = one_by_one(transform, image, theta, padding_mode=padding_mode)
    assert out.shape == (2, M, 3, *SIZE)
    assert out.is_contiguous()
    multiplied = path.name == "torch" and transform in ("tps", "piecewise_affine")
    # 19 terms, each off by 2^-53, times half of 7 pixels, times at most some 8 between neighbours.
    torch.testing.assert_close(out, expected, rtol=0, atol=6e-14 if multiplied else 0)
    d_out = torch.randn_like(out)
    for ours, truth in zip(*(torch.autograd.grad(o, [image, theta], d_out) for o in (out, expected)), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("needs", [(True, False), (False, True)], ids=str)
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_one_gradient_alone(path, needs, mode):
    image = torch.randn(2, 2, 6, 7, device=path.device).requires_grad_(needs[0])
    theta = parameters("affine", 2, path.device, torch.float32).requires_grad_(needs[1])
    inputs = [tensor for tensor, wanted in zip((image, theta), needs, strict=True) if wanted]
    out, expected = (run(image, theta, mode) for run in (sample, expected_sample))
    d_out = torch.randn_like(out)
    gradients = [torch.autograd.grad(o, inputs, d_out, materialize_grads=True) for o in (out, expected)]
    torch.testing.assert_close(*gradients)


def sample(image, theta, mode):
    return affine_sample(image, theta, SIZE, mode=mode)


def expected_sample(image, theta, mode):
    return one_by_one("affine", image, theta, mode=mode)


LAYOUTS = {
    "expanded": lambda t: t[:, :1].expand(t.shape),
    "transposed": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "strided": lambda t: t.repeat_interleave(2, 1)[:, ::2],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides(path, layout):
    """Of theta, of the gradient, and of a channels_last image, whose output is channels_last for each transform."""
    image = torch.randn(2, 4, 6, 7, dtype=torch.float64, device=path.device)
    image = image.contiguous(memory_format=torch.channels_last).requires_grad_()
    theta = LAYOUTS[layout](parameters("affine", 2, path.device)).requires_grad_()
    out, expected = affine_sample(image, theta, SIZE), one_by_one("affine", image, theta)
    torch.testing.assert_close(out, expected)
    assert out.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    d_out = LAYOUTS[layout](torch.randn_like(out))
    for ours, truth in zip(*(torch.autograd.grad(o, [image, theta], d_out) for o in (out, expected)), strict=True):
        torch.testing.assert_close(ours, truth)


@pytest.mark.parametrize(("padding_mode", "deterministic"), [("zeros", False), ("border", True)])
def test_several_blocks_of_everything(kernel_path, monkeypatch, padding_mode, deterministic):
    """Samples, channels, rows and columns all share the one axis of the launch grid."""
    monkeypatch.setattr(plan, "_config", lambda *args: LaunchConfig(2, 8, max_steps=2))
    monkeypatch.setattr(plan, "_gather_config", lambda *args: LaunchConfig(4, 8, channels=5))
    image = torch.randn(3, 10, 6, 7, dtype=torch.float64, device=kernel_path.device, requires_grad=True)
    theta = parameters("affine", 3, kernel_path.device).requires_grad_()
    out = affine_sample(image, theta, SIZE, padding_mode=padding_mode, deterministic=deterministic)
    expected = one_by_one("affine", image, theta, padding_mode=padding_mode)
    assert torch.equal(out, expected)
    d_out = torch.randn_like(out) * 10.0 ** torch.arange(10, device=out.device)[:, None, None]
    for ours, truth in zip(*(torch.autograd.grad(o, [image, theta], d_out) for o in (out, expected)), strict=True):
        torch.testing.assert_close(ours, truth)


def test_one_launch_and_no_copy_of_the_image(kernel_path, monkeypatch):
    image = torch.randn(2, 3, 6, 7, device=kernel_path.device, requires_grad=True)
    theta = parameters("attention", 2, kernel_path.device, torch.float32).requires_grad_()
    launches, real = [], launch._launch

    def spy(kernel, programs, *args, options):
        launches.append((kernel, dict(zip(kernel.arg_names, args, strict=True))))
        real(kernel, programs, *args, options=options)

    monkeypatch.setattr(launch, "_launch", spy)
    transform_sample("attention", image, theta, SIZE).sum().backward()
    (forward, reads), (gather, writes), (backward, reads_again) = launches
    assert [forward, gather, backward] == [launch.warp_forward, launch.warp_gather, launch.warp_backward]
    assert reads["image"].data_ptr() == reads_again["image"].data_ptr() == image.data_ptr()
    assert writes["d_image"].shape == image.shape
    assert writes["sums"] is writes["d_image"] is reads_again["d_image"]


@pytest.mark.parametrize("shape", [(0, M), (2, 0)], ids=str)
def test_empty(path, shape):
    image = torch.randn(shape[0], 3, 6, 7, device=path.device, requires_grad=True)
    theta = torch.randn(*shape, 2, 3, device=path.device, requires_grad=True)
    out = affine_sample(image, theta, SIZE)
    assert out.shape == (*shape, 3, *SIZE)
    out.sum().backward()
    assert (image.grad == 0).all()
    assert theta.grad.shape == theta.shape


def test_the_output_may_be_written_in_place(path):
    image = torch.rand(2, 1, 4, 4, device=path.device, requires_grad=True)
    theta = parameters("affine", 2, path.device, torch.float32)
    out, expected = affine_sample(image, theta, SIZE), affine_sample(image, theta, SIZE)
    out *= 2
    d_image, truth = (torch.autograd.grad(o.sum(), image)[0] for o in (out, expected))
    torch.testing.assert_close(d_image, 2 * truth)


def test_one_is_an_axis_too(path):
    image, theta = torch.randn(2, 3, 6, 7, device=path.device), torch.eye(2, 3, device=path.device).repeat(2, 1, 1, 1)
    out = affine_sample(image, theta)
    assert out.shape == (2, 1, 3, 6, 7)
    torch.testing.assert_close(out[:, 0], image)


def test_gradcheck(path):
    image = torch.randn(1, 1, 3, 2, dtype=torch.float64, device=path.device, requires_grad=True)
    theta = parameters("attention", 1, path.device)[:, :2].clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda i, t: transform_sample("attention", i, t, (2, 3)), (image, theta), nondet_tol=1e-12
    )


def test_wrong_batch():
    with pytest.raises(ValueError, match="theta: expected the image's batch size 2 or 1, got 3"):
        affine_sample(torch.zeros(2, 1, 3, 3), torch.zeros(3, M, 2, 3))
    with pytest.raises(ValueError, match=r"theta: expected shape \(N, 2, 3\) = \(2, 2, 3\), got \(2, 1, 1, 2, 3\)"):
        affine_sample(torch.zeros(2, 1, 3, 3), torch.zeros(2, 1, 1, 2, 3))


def test_warmup_of_several():
    assert warmup((1, 1, 4, 4), transforms=2, device="cpu") > 0


def test_heads_of_a_spatial_transformer(path):
    """The paper's 2x and 4x ST-CNN: parallel transformers, one localisation network."""
    image = torch.randn(2, 3, 8, 8, device=path.device)
    for localisation in (
        FullyConnectedLocalisation((3, 8, 8), transform="attention", heads=M),
        ConvolutionalLocalisation((3, 8, 8), transform="attention", heads=M),
    ):
        st = SpatialTransformer(localisation.to(path.device), "attention", heads=M, return_theta=True)
        out, theta = st(image)
        assert out.shape == (2, M, 3, 8, 8)
        assert theta.shape == (2, M, 3)
        torch.testing.assert_close(out, image[:, None].expand(out.shape))
    assert "heads=3" in repr(st)
    with pytest.raises(ValueError, match=r"localisation: expected \(N, 12\) or \(N, M, 3\) with M = 4 of"):
        SpatialTransformer(lambda image: localisation(image), "attention", heads=4)(image)
    for build in (
        lambda heads: SpatialTransformer(localisation, "attention", heads=heads),
        lambda heads: FullyConnectedLocalisation((3, 8, 8), heads=heads),
        lambda heads: ConvolutionalLocalisation((3, 8, 8), heads=heads),
        lambda heads: warmup((1, 1, 4, 4), transforms=heads, device="cpu"),
    ):
        with pytest.raises(ValueError, match=r"(heads|transforms): expected at least 1, got 0"):
            build(0)
        with pytest.raises(TypeError, match=r"(heads|transforms): expected a whole number, got 2.5"):
            build(2.5)


@pytest.mark.parametrize(
    ("transform", "shape"),
    [
        (Flow(channels_first=True), (M * 2, *SIZE)),  # a convolution's
        (Flow(channels_first=True), (M, 2 * SIZE[0] * SIZE[1])),
        ("dense", (M, 2 * SIZE[0] * SIZE[1])),
        ("affine", (M, 6)),
        ("affine", (M * 6,)),
        ("affine", (M * 6, 1, 1)),
        ("homography", (M * 3, 3)),
        ("tps", (M, 32)),
        ("tps", (M * 16, 2)),
    ],
    ids=str,
)
def test_heads_take_what_networks_give(torch_path, transform, shape):
    """theta of all heads, axes next to each other merged."""
    image, name = torch.randn(2, 3, 6, 7, dtype=torch.float64), getattr(transform, "name", transform)
    theta = parameters(name, 2, image.device)
    if name == "flow":
        theta = theta.movedim(-1, 2)
    transformer = SpatialTransformer(lambda image: theta.reshape(2, *shape), transform, SIZE, heads=M)
    assert torch.equal(transformer(image), transform_sample(transform, image, theta, SIZE))


@pytest.mark.parametrize(
    ("transform", "shape", "expected"),
    [
        (
            "affine",
            (2, M * 3),
            r"\(N, 18\), \(N, 3, 6\), \(N, 6, 3\) or \(N, M, 2, 3\) with M = 3",
        ),
        (
            "dense",
            (M * 2, *SIZE),
            r"\(N, 120\), \(N, 3, 40\), \(N, 12, 5, 2\) or \(N, M, h, w, 2\) with M = 3",
        ),
        ("attention", (3, M + 1), r"\(N, 9\) or \(N, M, 3\) with M = 3"),
    ],
)
def test_heads_do_not_guess(transform, shape, expected):
    """Channels of a flow that come first are not for `dense`, nor heads that come last."""
    transformer = SpatialTransformer(lambda image: torch.zeros(2, *shape), transform, SIZE, heads=M)
    with pytest.raises(ValueError, match=rf"localisation: expected {expected} of .* out of it, got \(2, "):
        transformer(torch.zeros(2, 1, 6, 7))


def test_transformers_at_increasing_depth_learn_together(path):
    """Parallel heads on the image, another transformer on a feature map: one step of training moves all of them."""
    torch.manual_seed(0)
    model = nn.Sequential(
        SpatialTransformer(FullyConnectedLocalisation((1, 8, 8), transform="attention", heads=2), "attention", heads=2),
        nn.Flatten(1, 2),
        nn.Conv2d(2, 4, 3, padding=1),
        nn.Tanh(),
        SpatialTransformer(FullyConnectedLocalisation((4, 8, 8)), "affine", size=(6, 6)),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.Tanh(),
        SpatialTransformer(FullyConnectedLocalisation((4, 6, 6), transform="projective"), "projective", size=(4, 4)),
        nn.Flatten(),
        nn.Linear(64, 2),
    ).to(path.device)
    # Two classes that differ by place: a bright corner, here or there.
    image = 0.1 * torch.rand(2, 1, 8, 8, device=path.device)
    label = torch.tensor([0, 1], device=path.device)
    image[0, 0, :4, :4] += 1
    image[1, 0, 4:, 4:] += 1
    optimiser = torch.optim.Adam(model.parameters(), 0.03)
    before = [p.detach().clone() for p in model.parameters()]
    losses = []
    for _ in range(8):
        loss = nn.functional.cross_entropy(model(image), label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    for index in (0, 4, 7):  # the last layer of every localisation network has left the identity
        assert all(p.grad.abs().sum() > 0 for p in list(model[index].parameters())[-2:])
    assert not any(torch.equal(p, b) for p, b in zip(list(model[0].parameters())[-2:], before[6:8], strict=True))
