"""Every launch shape the package chooses gives the same result, and the path without bounds checks is safe."""

import itertools

import numpy as np
import pytest
import torch
from device_code import astray
from test_warp import check

from stn_triton import TRANSFORMS, affine_sample, configs, launch, plan, warmup
from stn_triton.configs import LaunchConfig, choose_config, cut, divisor

# The forms of the kernels, by their configs shrunk to tiles that small outputs need several of.
FORMS = {
    "one channel": (1, LaunchConfig(2, 4, loop=False, unroll=2, max_steps=2)),
    "three channels": (3, LaunchConfig(2, 4, channels=3, loop=False, unroll=2, max_steps=2)),
    "eight channels a trip": (16, LaunchConfig(4, 8, channels=8)),
    "any channels": (5, LaunchConfig(4, 8)),
    "channels last, 1 lane a pixel": (4, LaunchConfig(4, 8, lanes_c=1)),
    "channels last, 4 lanes": (32, LaunchConfig(4, 4, lanes_c=4)),
    "channels last, 4 lanes, two blocks of channels": (32, LaunchConfig(4, 4, lanes_c=4, channels=2)),
    "channels last, 16 lanes": (64, LaunchConfig(1, 8, lanes_c=16, max_steps=4)),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize(
    ("form", "padding_mode"),
    [*((form, "fill") for form in FORMS), ("three channels", "reflection"), ("channels last, 4 lanes", "reflection")],
)
def test_every_form(kernel_path, monkeypatch, transform, form, padding_mode):
    """Against the reference: several tiles each way, the last ones ragged, and channels split where they can be."""
    channels, config = FORMS[form]
    monkeypatch.setattr(plan, "_config", lambda *args: config)
    monkeypatch.setattr(plan, "_gather_config", lambda *args: config)
    monkeypatch.setattr(configs, "CHANNELS_AT_LEAST", 1)
    layout = torch.channels_last if "last" in form else torch.contiguous_format
    shape, size = (1, channels, 12, 11), (6, 7)
    check(kernel_path, transform, "bilinear", padding_mode, False, torch.float32, shape, size, layout)


def test_channels_are_split_among_programs():
    """Few pixels with many channels: more programs than an H200 has multiprocessors; and never beyond the channels."""
    for shape, vector in itertools.product([(32, 256, 14, 14), (4, 512, 7, 7)], (1, 4)):
        n, c, h, w = shape
        blocks = cut(choose_config(True, c, w, True, vector), n, c, (h, w), vector)
        assert n * blocks.per_sample >= 132, blocks
        assert (blocks.channel_blocks[0] - 1) * blocks.channels < c <= blocks.channel_blocks[0] * blocks.channels
    assert cut(choose_config(True, 512, 512, True, 1), 64, 512, (512, 512), 1).channel_blocks[0] == 1


@pytest.mark.parametrize("config", [LaunchConfig(1, 2048), LaunchConfig(32, 64), LaunchConfig(16, 8, lanes_c=16)])
def test_no_gpu_is_asked_for_more_threads_than_it_has(monkeypatch, config):
    """Before anything is compiled; the interpreter has no threads."""
    monkeypatch.setattr(plan, "INTERPRETED", False)
    most = config._replace(tile_w=config.tile_w // 2)
    assert plan._options(most)["num_warps"] * plan.lanes_per_warp() == configs.MAX_THREADS
    with pytest.raises(ValueError, match="config: expected at most 1,024 threads a program, got 2,048 from Launch"):
        plan._options(config)
    monkeypatch.setattr(plan, "INTERPRETED", True)
    plan._options(config)


def test_divisors():
    """A multiplication and a shift divide exactly, for every divisor and dividend below 2^31."""
    rng = np.random.default_rng(0)
    divisors = [*range(1, 70), *(2**k + d for k in range(7, 31) for d in (-1, 0, 1)), *rng.integers(1, 2**31, 200)]
    for d in map(int, divisors):
        multiples = (rng.integers(0, 2**31, 50) // d) * d
        for n in map(int, {0, d - 1, 2**31 - 1, *multiples, *np.maximum(multiples - 1, 0)}):
            _, multiplier, shift = divisor(d)
            assert multiplier < 2**32
            assert (n + (n * multiplier >> 32)) >> shift == n // d


def test_an_unchecked_tile_never_leaves_the_image(kernel_path, monkeypatch):
    """Thetas that put the corners of the output at the image's edge, give or take some units in the last place.

    The image lies in memory full of NaN, so that one read beyond any edge shows, and every output must be what it is
    with bounds checks everywhere, bit for bit.
    """
    size = (6, 7)
    rng = np.random.default_rng(0)
    n = 120
    memory = torch.full((n, 1, 9, 10), float("nan"))
    image = memory[:, :, 2:-2, 2:-2]
    image.copy_(torch.randn(image.shape))
    H, W = image.shape[2:]
    # Scale and rotation first; then the translation that moves the lowest or highest corner to 0 or to n - 1, exactly
    # but for rounding; then a few units in the last place.
    linear = rng.uniform(-0.4, 0.4, (n, 2, 2)) * rng.choice([1, 1, 0], (n, 2, 2))
    corners = np.array(
        [(x, y) for y in (-1 + 1 / size[0], 1 - 1 / size[0]) for x in (-1 + 1 / size[1], 1 - 1 / size[1])]
    )
    points = np.einsum("nrk,ck->ncr", linear, corners)
    extent = 1 - 1 / np.array([W, H])
    shift = np.where(rng.random((n, 2)) < 0.5, -extent - points.min(1), extent - points.max(1))
    theta = np.concatenate([linear, shift[..., None]], -1).astype(np.float32)
    theta += rng.integers(-3, 4, theta.shape) * np.spacing(np.abs(theta))
    image, theta = image.to(kernel_path.device), torch.tensor(theta, device=kernel_path.device)
    monkeypatch.setattr(plan, "_config", lambda *args: LaunchConfig(8, 8, loop=False))
    results = checked_and_unchecked(monkeypatch, image, theta, size, "zeros")
    assert not results[0].isnan().any()
    assert torch.equal(*results)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
def test_bounds_checks_change_nothing(kernel_path, monkeypatch, padding_mode, mode, align_corners):
    """Inside the image every padding rule leaves a point where it is: outputs and gradients are the same bits."""
    monkeypatch.setattr(plan, "_config", lambda *args: LaunchConfig(4, 4, loop=False, max_steps=2))
    rng = np.random.default_rng(0)
    image = torch.randn(2, 1, 37, 41, device=kernel_path.device)
    theta = torch.tensor(rng.uniform(-0.35, 0.35, (2, 2, 3)), dtype=torch.float32, device=kernel_path.device)
    options = {"mode": mode, "align_corners": align_corners}
    results = checked_and_unchecked(monkeypatch, image, theta, (8, 7), padding_mode, gradients=True, **options)
    for unchecked, checked in zip(*results, strict=True):
        assert torch.equal(unchecked, checked)


def test_interior_tiles_are_not_checked(kernel_path, monkeypatch):
    """A padding rule that leads astray does not show where no pixel needs one, and shows where one does."""
    image = torch.randn(1, 1, 20, 20, device=kernel_path.device)

    def results(scale):
        theta = (scale * torch.eye(2, 3, device=kernel_path.device))[None].requires_grad_()
        out = affine_sample(image, theta)
        return out, *torch.autograd.grad(out.square().sum(), theta)

    before = [results(scale) for scale in (0.5, 1.5)]
    monkeypatch.setitem(plan.PADDING_RULES, "zeros", astray)
    plan.plan_forward.cache_clear()
    plan.plan_backward.cache_clear()
    after = [results(scale) for scale in (0.5, 1.5)]
    same = [[torch.equal(*pair) for pair in zip(*runs, strict=True)] for runs in zip(before, after, strict=True)]
    assert same == [[True, True], [False, False]]


def checked_and_unchecked(monkeypatch, image, theta, size, padding_mode, gradients=False, **options):
    """The output, or output and gradients, as the package computes them and with bounds checks everywhere."""
    results = []
    for monotone in (True, False):
        monkeypatch.setattr(type(TRANSFORMS["affine"]), "monotone", monotone)
        plan.plan_forward.cache_clear()
        plan.plan_backward.cache_clear()
        inputs = [t.clone().requires_grad_() if gradients else t for t in (image, theta)]
        out = affine_sample(*inputs, size, padding_mode=padding_mode, **options)
        results.append((out.detach(), *torch.autograd.grad(out.square().sum(), inputs)) if gradients else out)
    return results


@pytest.mark.parametrize("gradients", [(True, True), (True, False), (False, True), (False, False)], ids=str)
def test_warmup(path, monkeypatch, gradients):
    """It launches what a call of that shape would, and says how long that took."""
    launched = []
    launcher = launch._launch

    def spy(kernel, programs, *args, options):
        launched.append((kernel, dict(zip(kernel.arg_names, args, strict=True))))
        launcher(kernel, programs, *args, options=options)

    monkeypatch.setattr(launch, "_launch", spy)
    seconds = warmup(
        (2, 4, 5, 6), (3, 4), padding_mode="border", dtype=torch.float16, memory_format=torch.channels_last,
        device=path.device, image_gradient=gradients[0], theta_gradient=gradients[1],
    )  # fmt: skip
    assert seconds > 0
    if path.name == "torch":
        assert launched == []
        return
    backward = [launch.warp_backward] * any(gradients) + [launch.warp_finish] * gradients[0]
    kernels, arguments = zip(*launched, strict=True)
    assert [*kernels] == [launch.warp_forward, *backward]
    assert arguments[0]["image"].dtype is torch.float16
    assert arguments[0]["PAD"] is plan.PADDING_RULES["border"]
    if any(gradients):
        assert (arguments[1]["NEEDS_IMAGE"], arguments[1]["NEEDS_THETA"]) == gradients


def test_warmup_names_a_wrong_argument():
    with pytest.raises(ValueError, match=r"shape: expected shape \(N, C, H, W\)"):
        warmup((2, 4, 5), device="cpu")
    for name in ("dtype", "theta_dtype"):
        with pytest.raises(TypeError, match=f"^{name}: expected dtype float16.*got torch.int32"):
            warmup((2, 4, 5, 6), device="cpu", **{name: torch.int32})


def test_nothing_is_written_beyond_the_output(kernel_path, monkeypatch):
    """Tiles reach beyond the output's last row and column; memory after it stays as it was."""
    buffers = []

    def guarded(shape, **options):
        buffers.append(torch.full((np.prod(shape) + 100,), float("nan"), dtype=options["dtype"]).to(options["device"]))
        return buffers[-1][:-100].view(shape)

    monkeypatch.setattr(torch, "empty", guarded)
    monkeypatch.setattr(plan, "_config", lambda *args: LaunchConfig(2, 4, loop=False, unroll=2, max_steps=2))
    monkeypatch.setattr(plan, "fresh_strides", lambda shape, layout: (35, 35, 7, 1))
    image = torch.randn(1, 1, 5, 7, device=kernel_path.device)
    for scale in (1.0, 0.5):  # with bounds checks, and without
        out = affine_sample(image, scale * torch.eye(2, 3, device=kernel_path.device)[None])
        assert out.isfinite().all()
        assert buffers[-1][-100:].isnan().all()
