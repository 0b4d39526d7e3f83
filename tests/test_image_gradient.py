"""The gradient to the image: gathered where theta has an inverse, scattered elsewhere; bit-identical if asked for."""

import functools
import math
import random
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import TRANSFORM_CASES, dtype_id, theta_dtype
from test_gradients import shuffle_programs
from tolerance import assert_as_good_as_pytorch, to_numpy

from stn_triton import affine_sample, grid_sample, launch, plan, projective_sample, reference, transform_sample
from stn_triton.configs import LaunchConfig
from stn_triton.spec import MODES

SMALL = LaunchConfig(2, 8, max_steps=2)


@pytest.fixture
def left(monkeypatch):
    """For every gather that was launched, whether each image was left to the scatter."""
    launched, real = [], launch._launch

    def spy(kernel, programs, *args, options):
        real(kernel, programs, *args, options=options)
        if kernel is launch.warp_gather:
            launched.append(dict(zip(kernel.arg_names, args, strict=True))["scattered"].bool().tolist())

    monkeypatch.setattr(launch, "_launch", spy)
    return launched


def scatter_everything(monkeypatch):
    monkeypatch.setattr(launch, "gathers", lambda spec: False)


def gather_whatever_it_costs(monkeypatch):
    monkeypatch.setattr(plan, "MOST_CANDIDATES", 10**9)


def matrix(scale, turn=0.3, shift=(0.05, -0.11), perspective=(0.0, 0.0)):
    """(3, 3): a rotation, a scale, a translation; above 1 an image is made smaller."""
    cos, sin = scale * math.cos(turn), scale * math.sin(turn)
    return [[cos, -sin, shift[0]], [sin, cos, shift[1]], [*perspective, 1.0]]


WALK = [matrix(scale) for scale in (4, 1.5, 1, 0.5, 0.3, 0.1, 0.01, 1e-3)]
SINGULAR = [[[0.7, 0.7, 0.1], [0.7, 0.7, 0.2], [0, 0, 1]], matrix(0), matrix(1e-18)]


@pytest.mark.parametrize(
    ("transform", "dtype", "memory_format", "deterministic"),
    [
        ("affine", torch.float32, torch.contiguous_format, False),
        ("affine", torch.bfloat16, torch.channels_last, False),
        ("affine", torch.float16, torch.channels_last, True),
        ("homography", torch.float32, torch.channels_last, False),
        ("homography", torch.bfloat16, torch.contiguous_format, True),
    ],
)
def test_a_walk_to_singular_and_back(kernel_path, left, transform, dtype, memory_format, deterministic):
    """Every step is right, whichever way it is taken; and both ways are, within one batch."""
    steps = [*WALK, *SINGULAR, *reversed(WALK)]
    rows = steps if transform == "homography" else [step[:2] for step in steps]
    theta = torch.tensor(rows, dtype=torch.float32, device=kernel_path.device)
    size, case = (12, 13), TRANSFORM_CASES[transform]
    d_out = torch.randn(len(steps), 4, *size, device=kernel_path.device).to(dtype)
    image = torch.randn(len(steps), 4, 9, 10, device=kernel_path.device).to(dtype, memory_format=memory_format)
    out = transform_sample(transform, image.requires_grad_(), theta, size, deterministic=deterministic)
    (d_image,) = torch.autograd.grad(out, image, d_out)
    assert d_image.is_contiguous(memory_format=memory_format)
    expected_left = [False] * 4 + [True] * 4
    assert left[0] == [*expected_left, True, True, True, *reversed(expected_left)]

    theirs = image.detach().to(theta_dtype(dtype)).cpu().requires_grad_()
    case.pytorch(theirs, theta.cpu(), size, "bilinear", "zeros", False).backward(d_out.to(theirs))
    arguments = to_numpy(d_out), to_numpy(image), to_numpy(theta), "bilinear", "zeros", False
    truth, _ = case.reference_backward(*arguments)
    magnitude, _ = case.reference_backward(*arguments, magnitude=True)
    for n in range(len(steps)):
        step = f"step {n}"
        assert_as_good_as_pytorch(d_image[n], theirs.grad[n], truth[n], magnitude[n].max(), step)
    for n in range(len(WALK)):  # where images are gathered, the same on the way back
        alone = image[n : n + 1].detach().requires_grad_()
        again = transform_sample(transform, alone, theta[n : n + 1], size, deterministic=deterministic)
        again.backward(d_out[n : n + 1])
        assert expected_left[n] or torch.equal(alone.grad[0], d_image[n])


@pytest.mark.parametrize(
    ("many", "dtype", "memory_format"),
    [
        *(([one, two], torch.float64, torch.contiguous_format) for one in (1, 0) for two in (1, 0)),
        ([0, 1], torch.bfloat16, torch.channels_last),
    ],
    ids=str,
)
def test_all_transforms_of_an_image_are_gathered_or_none(kernel_path, monkeypatch, left, many, dtype, memory_format):
    device = kernel_path.device
    theta = torch.stack([torch.tensor(matrix(scale)[:2], device=device) for scale in many])[None].repeat(2, 1, 1, 1)
    theta[1] = torch.tensor(matrix(0.9)[:2], device=device)
    image = torch.randn(2, 8, 6, 7, device=device).to(dtype, memory_format=memory_format).requires_grad_()
    out = affine_sample(image, theta, (5, 6), deterministic=True)
    d_out = torch.randn_like(out)
    (d_image,) = torch.autograd.grad(out, image, d_out, retain_graph=True)
    assert left == [[min(many) == 0, False]]
    truth = sum(
        reference.affine_sample_backward(to_numpy(d_out[:, m]), to_numpy(image), to_numpy(theta[:, m]))[0]
        for m in range(2)
    )
    rounding, terms = (0, 1e-13) if dtype == torch.float64 else (torch.finfo(dtype).eps / 2, 1e-5)
    np.testing.assert_allclose(to_numpy(d_image), truth, rtol=rounding, atol=terms)
    scatter_everything(monkeypatch)
    (scattered,) = torch.autograd.grad(out, image, d_out)
    assert not left[0][0] or torch.equal(d_image[0], scattered[0])  # sums began as zeros, to the last bit


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_one_number_for_all_of_the_output(kernel_path, padding_mode, memory_format):
    """The gradient of a sum is expanded, of strides 0."""
    image = torch.randn(2, 4, 5, 6, device=kernel_path.device).to(memory_format=memory_format).requires_grad_()
    theta = torch.tensor([matrix(0.8)[:2], matrix(1.3)[:2]], device=kernel_path.device)
    affine_sample(image, theta, (7, 6), padding_mode=padding_mode).sum().backward()
    ones = np.ones((2, 4, 7, 6))
    truth, _ = reference.affine_sample_backward(ones, *map(to_numpy, (image, theta)), padding_mode=padding_mode)
    np.testing.assert_allclose(to_numpy(image.grad), truth, rtol=0, atol=1e-5)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_sums_are_rounded_by_several_programs(kernel_path, monkeypatch, memory_format, deterministic):
    """Of one image each, in steps, the last one ragged; peaks are those of an element's channel."""
    image = torch.randn(2, 3, 5, 7, device=kernel_path.device).bfloat16().to(memory_format=memory_format)
    theta = torch.tensor([matrix(0.8)[:2], matrix(0)[:2]], device=kernel_path.device)
    d_out = torch.randn(2, 3, 6, 6, device=kernel_path.device).bfloat16()
    d_out[:, 1] *= 1e6
    gradients = []
    for shape in (plan.FINISH, (2, 16)):
        monkeypatch.setattr(plan, "FINISH", shape)
        plan.plan_finish.cache_clear()
        for padding_mode in ("zeros", "border"):  # some images, and all of them
            leaf = image.clone().requires_grad_()
            affine_sample(leaf, theta, (6, 6), padding_mode=padding_mode, deterministic=deterministic).backward(d_out)
            truth, _ = reference.affine_sample_backward(
                *map(to_numpy, (d_out, image, theta)), padding_mode=padding_mode
            )
            largest = abs(truth).max((0, 2, 3), keepdims=True)
            rounding = torch.finfo(torch.bfloat16).eps / 2 * abs(truth)
            assert (abs(to_numpy(leaf.grad) - truth) <= rounding + 1e-5 * largest).all()
            gradients.append(leaf.grad)
    assert not deterministic or all(map(torch.equal, gradients[:2], gradients[2:]))


def random_maps(draw, count):
    """Affine maps and homographies of any scale, turn, shear, shift and perspective, (count, 3, 3)."""
    maps = []
    for _ in range(count):
        turn = draw.choice([0, math.pi / 6, math.pi / 4, math.pi / 2, draw.uniform(0, 6.3)])
        scale = draw.choice([1, -1, 0.5, 2, 10 ** draw.uniform(-1, 1)])
        shift = draw.choice([(0, 0), (draw.uniform(-1.5, 1.5), draw.uniform(-1.5, 1.5))])
        perspective = draw.choice([(0, 0), (draw.uniform(-0.9, 0.9), draw.uniform(-0.9, 0.9))])
        map_ = np.array(matrix(scale, turn, shift, perspective))
        map_[0] *= draw.choice([1, 1, 10 ** draw.uniform(-1, 1)])
        maps.append(map_ * draw.choice([1, -1, 1e-3, 50]))
    return np.array(maps)


@pytest.mark.parametrize(
    ("mode", "dtype"),
    [
        ("nearest", torch.float32),
        ("nearest", torch.float64),
        ("bilinear", torch.float32),
        ("bicubic", torch.float64),
    ],
)
@pytest.mark.parametrize(("image_size", "size", "align_corners"), [((7, 9), (8, 5), False), ((2, 6), (9, 4), True)])
def test_no_tap_lies_outside_its_box(kernel_path, monkeypatch, left, mode, dtype, image_size, size, align_corners):
    """Gathered however large boxes are, against the scatter by the same coordinates: nearest adds up ones, exactly."""
    gather_whatever_it_costs(monkeypatch)
    theta = torch.tensor(random_maps(random.Random(0), 12), dtype=dtype, device=kernel_path.device)
    image = torch.zeros(12, 1, *image_size, dtype=dtype, device=kernel_path.device, requires_grad=True)
    out = projective_sample(image, theta, size, mode=mode, align_corners=align_corners)
    d_out = torch.ones_like(out)
    (gathered,) = torch.autograd.grad(out, image, d_out, retain_graph=True)
    scatter_everything(monkeypatch)
    (scattered,) = torch.autograd.grad(out, image, d_out)
    assert sum(left[0]) <= 6  # the others have a horizon in the image
    rounding = 0 if mode == "nearest" else 64 * torch.finfo(dtype).eps
    torch.testing.assert_close(gathered, scattered, rtol=rounding, atol=rounding)


# Upright maps (k / q, shift_x / 9; q / k, shift_y / 9) with a target pixel that a box without slack misses, by search.
ON_AN_EDGE = [
    (12, 5, 9, 1), (6, 10, -3, 1), (7, 2, 7, 1), (9, 10, 8, 1), (11, 2, -5, 1), (7, 12, 4, -4), (1, 3, -1, -2),
    (3, 5, -3, 5), (11, 4, -1, 1), (2, 9, -1, 0), (5, 6, 8, 3), (7, 2, 0, 6), (10, 12, 8, 1), (11, 12, 4, -4),
    (5, 2, 2, 1), (2, 6, 1, 6), (5, 12, 4, 3), (12, 8, -4, 3), (2, 12, 1, 0), (1, 6, -1, 6), (9, 6, 4, 6),
]  # fmt: skip


# Thetas, row by row, found by search: each has a target pixel that a slack of up to 1.6 ulp misses; no theta was found
# that needs more. Two are of unfused arithmetic, as in Triton's interpreter before 3.9, two of fused.
NEED_SLACK = [
    (16.570875, 0.032475673, 10.054469, -0.00020627458, -3.37513e-07, -1.0001377),
    (-1.9053575, 0.014172834, 0.2766316, 0.0003343033, -2.3692583e-06, -1.000224),
    (-4.3492827, 0.0019972536, 1.9012973, 0.0018089897, -7.719432e-07, -1.0012068),
    (0.047334585, 0.0050365613, -0.9673242, -6.7414176e-06, -2.8042743e-07, -1.0000046),
]
# (slack in ulp, maps), found by search with unfused arithmetic: each map needs the slack's term in x, y, u, v, in turn.
SLACK_BY_PARTS = {
    "affine": (0.5, [
        (-2678.982, -2.28159, -2544.0496, 2.2566047, -2678.982, 1743.5068),
        (-3407.3853, 1.2500381, -2214.988, -0.5095818, 283.58795, -270.7398),
        (-0.005483438, 0, 0.4947908, 0, 8.842713, -2.5142486),
        (-66.18768, 0, -63.378296, 0, 0.009089221, -0.004999072),
    ]),
    "projective": (0.75, [
        (-0.92650044, 12.922438, 11.893763, 2948.3438, 0.08101396, 2800.0083, 0, 0.005005609, 1),
        (-0.41475943, 0, 0.391254, 0, 65.075836, 60.832157, -0.00041137807, 0.0007457491, 0.99049324),
        (0.03377897, 0, -1.2864518, 0, 31.173176, -28.312866, 0.00077232753, 0.00034163383, 1.3016752),
        (3113.3325, 0, 2957.2407, 0, 0.019534053, -0.8636571, 0, -0.0007887395, 0.85147256),
    ]),
}  # fmt: skip


def gathered_and_scattered(path, monkeypatch, left, maps, image_size, size):
    """The gradient of ones under nearest, by each of the two ways."""
    gather_whatever_it_costs(monkeypatch)
    theta = torch.tensor(maps, dtype=torch.float32, device=path.device).unflatten(-1, (-1, 3))
    image = torch.zeros(len(maps), 1, *image_size, device=path.device, requires_grad=True)
    out = (projective_sample if theta.shape[1] == 3 else affine_sample)(image, theta, size, mode="nearest")
    d_out = torch.ones_like(out)
    (gathered,) = torch.autograd.grad(out, image, d_out, retain_graph=True)
    assert not any(left[0])
    scatter_everything(monkeypatch)
    return gathered, torch.autograd.grad(out, image, d_out)[0]


@pytest.mark.parametrize(
    ("maps", "image_size", "size"),
    [
        ([(k / q, 0, shift_x / 9, 0, q / k, shift_y / 9) for k, q, shift_x, shift_y in ON_AN_EDGE], (24, 30), (36, 15)),
        (NEED_SLACK, (1, 1), (9, 3)),
    ],
    ids=["ratios of whole numbers", "by search"],
)
def test_boxes_are_wide_enough_for_roundings(kernel_path, monkeypatch, left, maps, image_size, size):
    """Points on the very edge between two pixels, as maps by ratios of whole numbers have many."""
    assert torch.equal(*gathered_and_scattered(kernel_path, monkeypatch, left, maps, image_size, size))


@pytest.mark.parametrize("transform", SLACK_BY_PARTS)
def test_every_part_of_a_slack_counts(kernel_path, monkeypatch, left, transform):
    """The slack is reduced to what these maps need, so that no other term covers for a missing one."""
    if not plan.INTERPRETED:
        pytest.skip("a compiled kernel keeps its slack")
    ulps, maps = SLACK_BY_PARTS[transform]
    slack = ulps * torch.finfo(torch.float32).eps
    monkeypatch.setattr(f"stn_triton.transforms.{transform}.slack_of", lambda ACC: slack)
    assert torch.equal(*gathered_and_scattered(kernel_path, monkeypatch, left, maps, (4, 4), (20, 20)))


@pytest.mark.parametrize("align_corners", [False, True])
def test_a_pixel_gets_what_rounds_to_it(kernel_path, left, align_corners):
    """Nearest at ties: the gather agrees with the forward pass on every one."""
    size = 5 if align_corners else 8
    image = torch.arange(float(size * size), device=kernel_path.device).view(1, 1, size, size) + 1
    scale = 0.5
    theta = torch.tensor([[[scale, 0, 0], [0, -scale, 0.25]]], device=kernel_path.device)
    out = affine_sample(image.requires_grad_(), theta, (size, size), mode="nearest", align_corners=align_corners)
    d_out = torch.rand_like(out)
    (d_image,) = torch.autograd.grad(out, image, d_out)
    read = to_numpy(out).astype(int).ravel()
    expected = np.bincount(read, to_numpy(d_out).ravel(), minlength=size * size + 1)[1:]
    assert left == [[False]]
    np.testing.assert_allclose(to_numpy(d_image).ravel(), expected, rtol=1e-6)
    assert ((d_image == 0).flatten().cpu().numpy() == (expected == 0)).all()


def test_the_horizon_within_the_output(kernel_path, left):
    """Target pixels behind the camera lie in boxes, but read nothing: no NaN, no echo."""
    theta = torch.tensor([[2.4, 0.08, -0.01, 0.08, 1.64, -0.01, -1.3, -0.16]], device=kernel_path.device)
    image = torch.randn(1, 2, 6, 6, device=kernel_path.device, requires_grad=True)
    out = projective_sample(image, theta, (7, 7))
    d_out = torch.randn_like(out)
    (d_image,) = torch.autograd.grad(out, image, d_out)
    assert left == [[False]]
    truth, _ = reference.transform_sample_backward("projective", *map(to_numpy, (d_out, image, theta)))
    np.testing.assert_allclose(to_numpy(d_image), truth, rtol=0, atol=1e-4)


# --- the same on every run ------------------------------------------------------------------------------------

EVERY_RUN = {
    "gathered": ("affine", "bilinear", "zeros", torch.float32, False),
    "gathered, perspective": ("homography", "bilinear", "zeros", torch.float32, False),
    "gathered, half": ("homography", "nearest", "fill", torch.float16, False),
    "affine": ("affine", "bilinear", "reflection", torch.float32, True),
    "spline": ("tps", "bicubic", "border", torch.float16, True),
    "grid": ("dense", "bilinear", "zeros", torch.float64, True),
}


@pytest.mark.parametrize("how", EVERY_RUN)
def test_the_same_whatever_the_order_and_the_launch_shape(kernel_path, monkeypatch, how):
    """20 shuffles of some programs, and other numbers of them; on a GPU 20 runs."""
    transform, mode, padding_mode, dtype, deterministic = EVERY_RUN[how]
    case, size, image_size, small = TRANSFORM_CASES[transform], (9, 8), (7, 8), LaunchConfig(4, 8, max_steps=1)
    gathered_small = LaunchConfig(2, 4, max_steps=1)
    theta = torch.tensor(case.theta(np.random.default_rng(0), 1, size), device=kernel_path.device)
    if how == "gathered, perspective":  # boxes of two columns here, three there: of a small tile two are the most
        size, image_size, gathered_small = (24, 24), (24, 24), LaunchConfig(8, 16, max_steps=1)
        theta = torch.tensor([[[1.6, 0.05, 0.02], [-0.04, 1.6, 0.01], [0.2, 0.1, 1]]], device=kernel_path.device)
    theta = theta.to(theta_dtype(dtype))
    image = torch.randn(1, 2, *image_size, device=kernel_path.device).to(dtype).requires_grad_()
    d_out = torch.randn(1, 2, *size, device=kernel_path.device) * 10.0 ** torch.randint(-3, 1, size).to(image.device)
    if plan.INTERPRETED:
        shuffle_programs(monkeypatch)
    programs, real = [], launch._launch
    monkeypatch.setattr(
        launch, "_launch", lambda kernel, n, *args, **k: programs.append(n) or real(kernel, n, *args, **k)
    )
    several, large = LaunchConfig(1, 16, channels=2, max_steps=3), LaunchConfig(32, 32)
    shapes = [(small, gathered_small)] * 20 + [(SMALL, SMALL), (several, several), (large, large)]
    fill = 0.5 if padding_mode == "fill" else None
    gradients = []
    for shape, gathered_shape in shapes:
        monkeypatch.setattr(plan, "_config", lambda *args, shape=shape: shape)
        monkeypatch.setattr(plan, "_gather_config", lambda *args, shape=gathered_shape: shape)
        for planned in (plan.plan_forward, plan.plan_backward, plan.plan_gather):
            planned.cache_clear()
        if not gradients:
            out = transform_sample(
                transform, image, theta, size,
                mode=mode, padding_mode=padding_mode, fill=fill, deterministic=deterministic,
            )  # fmt: skip
            programs.clear()
        gradients.append(torch.autograd.grad(out, image, d_out.to(dtype), retain_graph=True)[0])
    assert programs[0] >= 3  # of the gather, if there is one
    assert gradients[0].abs().sum() > 0
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_where_memory_begins_changes_nothing(kernel_path, memory_format):
    """Not even the order of sums: d_out at an address that 128 bits cannot be read from."""
    theta = torch.tensor([[[1.1, 0.3, 0.05], [-0.3, 1.2, -0.1]]], device=kernel_path.device)
    image = torch.zeros(1, 4, 9, 10, device=kernel_path.device).to(memory_format=memory_format).requires_grad_()
    out = affine_sample(image, theta, (11, 12))
    aligned = torch.randn_like(out)
    odd = torch.empty(out.numel() + 1, device=out.device)[1:].as_strided(out.shape, out.stride()).copy_(aligned)
    one, other = (torch.autograd.grad(out, image, d_out, retain_graph=True)[0] for d_out in (aligned, odd))
    assert torch.equal(one, other)


def test_the_shuffles_would_show_an_order(kernel_path, monkeypatch):
    """Without the argument the same programs, in other orders, give other sums."""
    if not plan.INTERPRETED:
        pytest.skip("a GPU orders programs itself")
    monkeypatch.setattr(plan, "_config", lambda *args: LaunchConfig(4, 8, max_steps=1))
    shuffle_programs(monkeypatch)
    image = torch.randn(1, 1, 2, 2, requires_grad=True)
    out = affine_sample(image, torch.zeros(1, 2, 3), (16, 16))  # all onto four pixels
    d_out = torch.randn_like(out)
    gradients = [torch.autograd.grad(out, image, d_out, retain_graph=True)[0] for _ in range(10)]
    assert not all(torch.equal(gradient, gradients[0]) for gradient in gradients)


@pytest.mark.parametrize("warn_only", [False, True])
@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_deterministic_algorithms_are_there(path, padding_mode, warn_only):
    """PyTorch's setting does what the argument does, and nothing is raised."""
    image = torch.randn(2, 2, 5, 6, device=path.device, requires_grad=True)
    theta = torch.eye(2, 3, device=path.device).repeat(2, 1, 1) + 0.1 * torch.randn(2, 2, 3, device=path.device)
    theta[1] = 0
    theta.requires_grad_()

    def gradients(**options):
        out = affine_sample(image, theta, (6, 7), padding_mode=padding_mode, **options)
        return torch.autograd.grad(out.square().sum(), [image, theta])

    asked_for = gradients(deterministic=True)
    try:
        torch.use_deterministic_algorithms(True, warn_only=warn_only)
        by_setting = gradients()
    finally:
        torch.use_deterministic_algorithms(False)
    for one, other, plain in zip(asked_for, by_setting, gradients(), strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, plain)


@pytest.mark.parametrize("shape", [(1, 1, 96, 96), (1, 6, 96, 96), (3, 4, 48, 48)], ids=str)
@pytest.mark.parametrize("transform", ["affine", "tps", "dense"])
def test_the_cpu_path_is_the_same_on_every_run(torch_path, set_threads, transform, shape):
    """With as many threads: rows or channels of a single image, or samples, are shared among them."""
    set_threads(4)
    image = torch.randn(shape, requires_grad=True)
    theta = torch.tensor(TRANSFORM_CASES[transform].theta(np.random.default_rng(0), shape[0], shape[2:]))
    theta = theta.float().requires_grad_()
    out = transform_sample(transform, image, theta)
    d_out = torch.randn_like(out)
    runs = [torch.autograd.grad(out, [image, theta], d_out, retain_graph=True) for _ in range(10)]
    assert all(torch.equal(*pair) for run in runs for pair in zip(run, runs[0], strict=True))


def test_a_promise_that_cannot_be_kept(torch_path, monkeypatch):
    """On a GPU without kernels torch's own sampler would add up by atomics."""
    from stn_triton import ops

    monkeypatch.setattr(ops, "REPRODUCIBLE", ())
    image, theta = torch.randn(1, 1, 4, 4), torch.eye(2, 3)[None]
    affine_sample(image, theta, deterministic=True)
    with pytest.raises(ValueError, match=r"deterministic: torch's own sampler.* is not reproducible on cpu"):
        affine_sample(image.requires_grad_(), theta, deterministic=True)


# --- sums of whole numbers ------------------------------------------------------------------------------------


def onto_one_pixel(values, dtype, mode):
    """The gradient of an image of one pixel that reads d_out = values."""
    image = torch.zeros(1, values.shape[0], 1, 1, dtype=dtype, device=values.device, requires_grad=True)
    theta = torch.eye(2, 3, dtype=dtype, device=values.device)[None]
    out = affine_sample(image, theta, values.shape[1:], mode=mode, padding_mode="border", deterministic=True)
    out.backward(values[None].to(dtype))
    return image.grad.flatten()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=dtype_id)
def test_sums_are_those_of_the_terms(kernel_path, dtype):
    """Nearest, with weights of 1: the exact sum, rounded to the dtype, for planes of any range; and for many."""
    info, draw = torch.finfo(dtype), np.random.default_rng(0)
    plain = draw.standard_normal((6, 16, 16))
    spans = 10.0 ** draw.uniform(0, {torch.float64: 12, torch.float32: 12, torch.float16: 4}[dtype], plain.shape)
    values = np.stack([
        plain[0],
        plain[1] / spans[1],  # a wide range
        np.zeros((16, 16)),
        draw.integers(-9, 10, (16, 16)) * info.smallest_normal * info.eps,  # subnormal
        np.where(draw.permutation(256).reshape(16, 16) % 2, 1, -1) * info.max + 0 * plain[4],  # huge, and cancelling
        plain[5] * np.where(np.arange(256).reshape(16, 16) == 7, info.max / 1024, 1),
        *draw.standard_normal((58, 16, 16)),
    ])  # fmt: skip
    values = torch.tensor(values, dtype=dtype, device=kernel_path.device)
    exact = [float(sum(map(Fraction, plane))) for plane in to_numpy(values).reshape(64, -1).tolist()]
    assert (
        onto_one_pixel(values, dtype, "nearest").tolist() == torch.tensor(exact, dtype=torch.float64).to(dtype).tolist()
    )


@pytest.mark.parametrize("span", [1e-3, 1e-8, 1e-12, 1e-15])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=dtype_id)
def test_small_sums_beside_large_ones(kernel_path, dtype, span):
    """Of either sign: to an ulp, though another pixel of the plane has a d_out far above."""
    values = span * torch.rand(1, 1, 12, 12, dtype=dtype, device=kernel_path.device)
    values[0, 0, 0, 0] = 1
    theta = torch.eye(2, 3, dtype=dtype, device=kernel_path.device)[None]
    image = torch.zeros(1, 1, 3, 3, dtype=dtype, device=kernel_path.device, requires_grad=True)
    out = affine_sample(image, theta, (12, 12), mode="nearest", padding_mode="border", deterministic=True)
    (positive,), (negative,) = (torch.autograd.grad(out, image, d, retain_graph=True) for d in (values, -values))
    assert torch.equal(positive, -negative)
    terms = to_numpy(values).reshape(3, 4, 3, 4).transpose(0, 2, 1, 3).reshape(9, 16).tolist()
    exact = torch.tensor([float(sum(map(Fraction, each))) for each in terms], dtype=torch.float64)
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(positive.flatten().cpu().double(), exact, rtol=rounding, atol=0)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_overflows(kernel_path, mode):
    """Every tap of every target pixel falls on one pixel, with the largest value there is."""
    largest = torch.finfo(torch.float64).max / 2**12
    values = torch.full((1, 32, 32), largest, dtype=torch.float64, device=kernel_path.device)
    total = onto_one_pixel(values, torch.float64, mode)
    torch.testing.assert_close(total, values.sum().view(1), rtol=1e-15, atol=0)


def test_transforms_share_a_plane(kernel_path):
    """Whose largest |d_out| is that of any of them: the others are far below."""
    theta = torch.eye(2, 3, dtype=torch.float64, device=kernel_path.device).repeat(1, 3, 1, 1)
    image = torch.zeros(1, 1, 1, 1, dtype=torch.float64, device=kernel_path.device, requires_grad=True)
    out = affine_sample(image, theta, (4, 4), padding_mode="border", deterministic=True)
    sizes = torch.tensor([1e-9, 1e30, 1.0], dtype=torch.float64, device=kernel_path.device).view(1, 3, 1, 1, 1)
    d_out = sizes.expand_as(out)
    out.backward(d_out)
    torch.testing.assert_close(image.grad.flatten(), d_out.sum().view(1), rtol=1e-14, atol=0)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_closer_than_floats(kernel_path, mode):
    """Elementwise, for planes of a wide range, where every term is exact and only sums are rounded: here once."""
    device = kernel_path.device
    grid = torch.randint(-18, 19, (1, 24, 24, 2), device=device) / 16  # quarters of pixels
    image = torch.zeros(1, 2, 8, 8, device=device, requires_grad=True)
    d_out = torch.randn(1, 2, 24, 24, device=device) * 10.0 ** (-6 * torch.rand(1, 2, 24, 24, device=device))
    d_out = d_out.bfloat16().float()
    sample = functools.partial(transform_sample, "dense", image, grid, (24, 24), mode=mode)
    exact, plain = (torch.autograd.grad(sample(deterministic=d), image, d_out)[0] for d in (True, False))
    truth, _ = reference.grid_sample_backward(*map(to_numpy, (d_out, image, grid)), mode)
    assert torch.equal(exact.cpu(), torch.tensor(truth).float())
    assert not torch.equal(exact, plain)


@pytest.mark.parametrize("how", ["gathered", "scattered", "in whole numbers"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_lost(kernel_path, how, value):
    """Not finite at least where PyTorch's is; other planes are as they are without it."""
    device, deterministic = kernel_path.device, how == "in whole numbers"
    padding_mode = "zeros" if how == "gathered" else "border"
    theta = torch.tensor([matrix(0.8)[:2]], device=device)
    image = torch.randn(1, 2, 6, 7, device=device, requires_grad=True)
    out = affine_sample(image, theta, (6, 7), padding_mode=padding_mode, deterministic=deterministic)
    d_out = torch.randn_like(out)
    d_out[0, 0, 2, 3] = value
    (d_image,) = torch.autograd.grad(out, image, d_out)
    theirs = image.detach().cpu().requires_grad_()
    grid = F.affine_grid(theta.cpu(), (1, 2, 6, 7), align_corners=False)
    F.grid_sample(theirs, grid, padding_mode=padding_mode, align_corners=False).backward(d_out.cpu())
    finite, finite_there = d_image.isfinite().cpu(), theirs.grad.isfinite()
    assert not finite_there.all()
    assert not finite[~finite_there].any()
    torch.testing.assert_close(d_image[0, 1].cpu(), theirs.grad[0, 1])
    if not deterministic:
        assert torch.equal(finite, finite_there)


def test_the_drop_in_follows_the_setting(kernel_path):
    image = torch.randn(1, 1, 4, 4, device=kernel_path.device, requires_grad=True)
    grid = torch.rand(1, 5, 5, 2, device=kernel_path.device) * 2 - 1
    try:
        torch.use_deterministic_algorithms(True)
        grid_sample(image, grid, align_corners=False).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    truth, _ = reference.grid_sample_backward(np.ones((1, 1, 5, 5)), to_numpy(image), to_numpy(grid))
    np.testing.assert_allclose(to_numpy(image.grad), truth, rtol=1e-5, atol=1e-6)
