"""Every transform, sampler, padding, align_corners and dtype against the reference, forward and backward."""

import numpy as np
import pytest
import torch
from cases import TRANSFORM_CASES, dtype_id, fill_of, parametrize_samplers, theta_dtype
from tolerance import assert_as_good_as_pytorch, to_numpy

from stn_triton import plan, torch_sampler
from stn_triton.configs import LaunchConfig
from stn_triton.spec import MODES, PADDING_MODES

SHAPE, SIZE = (2, 3, 11, 9), (5, 13)
HALF = torch.bfloat16, torch.float16


@parametrize_samplers
def test_forward_and_backward(path, transform, mode, padding_mode, align_corners):
    check(path, transform, mode, padding_mode, align_corners, torch.float64, SHAPE, SIZE)


@pytest.mark.parametrize("transform", TRANSFORM_CASES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
def test_single_precision(path, transform, mode, padding_mode):
    """Other roundings of the same operations, so that each meets one align_corners, the two in turns."""
    align_corners = (MODES.index(mode) + PADDING_MODES.index(padding_mode)) % 2 == 1
    check(path, transform, mode, padding_mode, align_corners, torch.float32, SHAPE, SIZE)


@pytest.mark.parametrize("transform", TRANSFORM_CASES)
@pytest.mark.parametrize(
    ("mode", "padding_mode", "align_corners"),
    [("bilinear", "zeros", False), ("bicubic", "fill", True), ("nearest", "border", False)],
)
@pytest.mark.parametrize("dtype", HALF, ids=dtype_id)
def test_half_types(path, transform, mode, padding_mode, align_corners, dtype):
    """They differ from float32 where they are read and written, not in what is done to coordinates."""
    check(path, transform, mode, padding_mode, align_corners, dtype, SHAPE, SIZE)


@pytest.mark.parametrize("transform", TRANSFORM_CASES)
@pytest.mark.parametrize(
    ("mode", "padding_mode", "align_corners"), [("bilinear", "zeros", False), ("nearest", "reflection", True)]
)
def test_many_tiles_per_sample(kernel_path, monkeypatch, transform, mode, padding_mode, align_corners):
    """More than one tile in both axes and several on a program's way down, the last ones ragged."""
    for config in ("_config", "_gather_config"):
        monkeypatch.setattr(plan, config, lambda *args: LaunchConfig(2, 8, loop=False, unroll=2, max_steps=2))
    check(kernel_path, transform, mode, padding_mode, align_corners, torch.float32, (2, 1, 6, 7), (9, 10))


@pytest.mark.parametrize("transform", TRANSFORM_CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=dtype_id)
@pytest.mark.parametrize("long_axis", [False, True])
def test_large_variants(kernel_path, monkeypatch, transform, dtype, long_axis):
    """The kernels that planes of 2^31 elements and axes of 2^22 pixels get, on planes that can be looked at.

    Not in bfloat16: Triton's interpreter, not its compiler, gives NaN for bfloat16 to float64.
    """
    monkeypatch.setattr(plan, "_index", lambda **tensors: plan.tl.int64)
    if long_axis:
        monkeypatch.setattr(plan, "_accumulator", lambda *args: plan.tl.float64)
    for mode, padding_mode in (("bilinear", "zeros"), ("bilinear", "reflection"), ("nearest", "border")):
        check(kernel_path, transform, mode, padding_mode, False, dtype, SHAPE, SIZE)


@parametrize_samplers
@pytest.mark.parametrize(
    ("image", "shares"),
    [((1, 6, 11, 9), (3, 2)), ((1, 2, 8, 9), (3, 2)), ((1, 2, 11, 9), (2, 1))],
    ids=["channels", "rows", "channels where an image is large"],
)
def test_a_single_image_is_shared_among_threads(
    torch_path, monkeypatch, transform, mode, padding_mode, align_corners, image, shares
):
    """torch's sampler gets as many samples as divide evenly among four threads: of six channels three times two; of
    two channels, three bands of two of the six rows.
    """
    size, batches, sampler = (6, 13), [], torch.grid_sampler
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch_sampler, "ONE_SAMPLE_PER_THREAD", size[0] * size[1] // 3)
    monkeypatch.setattr(
        torch, "grid_sampler", lambda image, *args: batches.append(tuple(image.shape[:2])) or sampler(image, *args)
    )
    check(torch_path, transform, mode, padding_mode, align_corners, torch.float32, image, size)
    assert batches.count(image[:2]) == 1  # in PyTorch's own call
    assert shares in batches


def check(path, transform, mode, padding_mode, align_corners, dtype, shape, size, layout=torch.contiguous_format):
    case = TRANSFORM_CASES[transform] if isinstance(transform, str) else transform
    options = mode, padding_mode, align_corners
    rng = np.random.default_rng(0)
    fill = fill_of(padding_mode, shape[1])
    image = torch.tensor(rng.standard_normal(shape), dtype=dtype, device=path.device).to(memory_format=layout)
    theta = torch.tensor(case.theta(rng, shape[0], size), dtype=theta_dtype(dtype), device=path.device)
    d_out = torch.tensor(rng.standard_normal((*shape[:2], *size)), dtype=dtype, device=path.device)

    truth = case.reference(to_numpy(image), to_numpy(theta), size, *options, *fill)
    backward = case.reference_backward, to_numpy(d_out), to_numpy(image), to_numpy(theta), *options, *fill
    d_image, d_theta = backward[0](*backward[1:])
    image_magnitude, theta_magnitude = backward[0](*backward[1:], magnitude=True)

    def run(sample, *tensors):
        inputs = [t.detach().clone().requires_grad_() for t in tensors]
        out = sample(*inputs, size, *options, *(torch.tensor(a, device=inputs[0].device) for a in fill))
        return out.detach(), *torch.autograd.grad(out, inputs, d_out.to(out))

    theirs = run(case.pytorch, image.cpu().to(theta_dtype(dtype)), theta.cpu())
    ours = run(case.sample, image, theta)
    assert [t.dtype for t in ours] == [dtype, dtype, theta.dtype]
    assert_as_good_as_pytorch(ours[0], theirs[0], truth, np.abs(to_numpy(image)).max())
    assert_as_good_as_pytorch(ours[1], theirs[1], d_image, image_magnitude.max(), "d_image")
    assert_as_good_as_pytorch(ours[2], theirs[2], d_theta, theta_magnitude.max(), "d_theta")
