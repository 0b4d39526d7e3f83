"""Strides, memory formats, aliasing, and sizes at the ends: empty, one pixel, more than 2^31 elements."""

import inspect

import numpy as np
import pytest
import torch
from cases import TRANSFORM_CASES
from tolerance import to_numpy

from stn_triton import TRANSFORMS, affine_sample, grid_sample, launch, plan
from stn_triton.layout import ImageLike, TensorLayout
from stn_triton.spec import WarpSpec

LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "channels_last_slice": lambda x: LAYOUTS["channels_last"](x.repeat(1, 1, 2, 1))[:, :, : x.shape[2]],
    "sliced": lambda x: torch.nn.functional.pad(x, (1, 2, 2, 1))[:, :, 2:-1, 1:-2],
    "every_second": lambda x: x.repeat_interleave(2, 3).repeat_interleave(2, 1)[:, ::2, :, ::2],
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "expanded_batch": lambda x: x[:1].expand(x.shape),
    "expanded_all": lambda x: x[:1, :1, :1, :1].expand(x.shape),
    "pending_negation": lambda x: torch._neg_view(-x),
    "permuted_batch": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("transform", TRANSFORM_CASES)
def test_any_strides(path, transform, layout):
    """Image, theta and d_out in the layout; results as of contiguous copies, in the image's memory format."""
    case, size = TRANSFORM_CASES[transform], (4, 5)
    image = LAYOUTS[layout](torch.randn(3, 4, 6, 5, dtype=torch.float64)).to(path.device)
    theta = torch.tensor(case.theta(np.random.default_rng(1), 3, size), device=path.device)
    theta = LAYOUTS[layout](theta) if theta.dim() == 4 else theta.mT.contiguous().mT
    d_out = LAYOUTS[layout](torch.randn(3, 4, *size, dtype=torch.float64)).to(path.device)
    image_before = image.clone()
    image.requires_grad_()
    theta.requires_grad_()
    options = "bilinear", "border", False
    out = case.sample(image, theta, size, *options)
    d_image, d_theta = torch.autograd.grad(out, [image, theta], d_out)
    tensors = to_numpy(image), to_numpy(theta)
    truth = case.reference_backward(to_numpy(d_out), *tensors, *options)
    np.testing.assert_allclose(to_numpy(out), case.reference(*tensors, size, *options), atol=1e-13)
    np.testing.assert_allclose(to_numpy(d_image), truth[0], atol=1e-13)
    np.testing.assert_allclose(to_numpy(d_theta), truth[1], atol=1e-12)
    assert torch.equal(image, image_before)
    expected = torch.channels_last if layout.startswith("channels_last") else torch.contiguous_format
    assert out.is_contiguous(memory_format=expected)
    if path.name == "kernel":
        assert d_image.is_contiguous(memory_format=expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sharing_a_single_image_among_threads_does_not_show(torch_path, set_threads, layout):
    """Same values, strides and freedom to write in place as from one thread."""
    image = LAYOUTS[layout](torch.randn(1, 4, 100, 90, dtype=torch.float64))
    theta = 0.9 * torch.eye(2, 3, dtype=torch.float64)[None]
    results = []
    for n in (1, 2):
        set_threads(n)
        leaves = image.detach().requires_grad_(), theta.clone().requires_grad_()
        out = affine_sample(*leaves)
        d_image, d_theta = torch.autograd.grad(out.square().sum(), leaves, retain_graph=True)
        with torch.no_grad():
            written = affine_sample(image, theta)
        written += torch.ones(1, requires_grad=True)
        results.append((out.stride(), out.detach_(), written, d_image, d_theta))
    one, two = results
    assert one[0] == two[0]
    assert all(map(torch.equal, one[1:4], two[1:4]))
    torch.testing.assert_close(one[4], two[4])


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 1, 1), (2, 3, 1, 5)], ids=str)
@pytest.mark.parametrize("size", [(0, 3), (3, 0), (1, 1), (4, 2)], ids=str)
@pytest.mark.parametrize("transform", TRANSFORM_CASES)
def test_empty_and_one_pixel(path, transform, shape, size):
    """Legal, forward and backward: gradients are zeros of the right shape, or the reference's."""
    case = TRANSFORM_CASES[transform]
    image = torch.randn(shape, device=path.device, dtype=torch.float64, requires_grad=True)
    theta = torch.tensor(case.theta(np.random.default_rng(2), shape[0], size), device=path.device, requires_grad=True)
    for mode in ("bilinear", "nearest"):
        out = case.sample(image, theta, size, mode, "zeros", False)
        assert out.shape == (*shape[:2], *size)
        d_image, d_theta = torch.autograd.grad(out.sum(), [image, theta])
        truth = case.reference_backward(np.ones(out.shape), to_numpy(image), to_numpy(theta), mode)
        np.testing.assert_allclose(to_numpy(d_image), truth[0], atol=1e-14)
        np.testing.assert_allclose(to_numpy(d_theta), truth[1], atol=1e-13)


def lazy(numel: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Memory that costs nothing until it is touched."""
    return torch.empty_strided((numel,), (1,), dtype=dtype, device=device)


@pytest.mark.parametrize("spread", ["plane", "channels", "batch"])
def test_more_than_2_to_31_elements(path, spread):
    """Offsets beyond int32 inside a plane, between channels, between samples; only the corners are touched."""
    shape = {"plane": (1, 1, 46351, 46351), "channels": (1, 3, 32768, 32769), "batch": (3, 1, 32768, 32769)}[spread]
    image = lazy(int(np.prod(shape)), torch.float32, path.device).view(shape)
    assert image.numel() > 2**31
    # The corners of the image under align_corners; a small theta's output reads nothing else but neighbours.
    theta = torch.eye(2, 3, device=path.device)[None]
    corners = image[..., [0, 0, -1, -1], [0, -1, 0, -1]]
    values = torch.arange(1.0, corners.numel() + 1, device=path.device).view_as(corners)
    for i in (slice(0, 2), slice(-2, None)):  # what bilinear reads with weight 0 beside a corner
        image[..., i, :2] = image[..., i, -2:] = 0
    for k, (i, j) in enumerate(((0, 0), (0, -1), (-1, 0), (-1, -1))):
        image[..., i, j] = values[..., k]
    for mode in ("nearest", "bilinear"):
        out = affine_sample(image, theta, (2, 2), mode=mode, padding_mode="border", align_corners=True)
        torch.testing.assert_close(out.flatten(2), values)
    grid = torch.tensor([[[[-1.0, -1], [1, -1]], [[-1, 1], [1, 1]]]], device=path.device).repeat(shape[0], 1, 1, 1)
    out = grid_sample(image, grid, "bilinear", "border", True)
    torch.testing.assert_close(out.flatten(2), values)


def test_large_planes_take_64_bit_offsets():
    """The rule that chooses the variant, at its edges."""

    def index(shape, strides):
        theta, far = ((1, 2, 3), (6, 3, 1)), (shape, strides)
        first, second = (
            plan._index(image=TensorLayout(*a, torch.int8, True), theta=TensorLayout(*b, torch.int8, True))
            for a, b in ((theta, far), (far, theta))
        )
        assert first == second
        return first

    assert index((1, 1, 2, 2), (0, 0, 2**30, 2**30 - 1)) == plan.tl.int32
    assert index((1, 1, 2, 2), (0, 0, 2**30, 2**30)) == plan.tl.int64
    assert index((1, 2, 2, 2), (0, 2**31 - 4, 2, 1)) == plan.tl.int32
    assert index((1, 2, 2, 2), (0, 2**31 - 3, 2, 1)) == plan.tl.int64  # a program walks from plane to plane
    assert index((2, 1, 2, 2), (2**31, 1, 2, 1)) == plan.tl.int32  # between samples it is always 64 bits


@pytest.mark.parametrize(("shape", "size", "exact"), [
    ((1, 1, 2**22 - 1, 4), (2, 2), False), ((1, 1, 2**22, 4), (2, 2), True), ((1, 1, 4, 4), (2, 2**22), True),
])  # fmt: skip
def test_long_axes_take_float64_coordinates(shape, size, exact):
    spec = WarpSpec(None, "bilinear", "zeros", False, size)
    assert plan._accumulator(spec, torch.Size(shape), torch.float32) == (plan.tl.float64 if exact else plan.tl.float32)


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])  # gathered, and scattered
def test_a_large_gradient_of_a_small_image_takes_64_bit_offsets(kernel_path, monkeypatch, padding_mode):
    """The image is expanded from a row, its gradient is a plane of 2^32 elements."""
    launched = []
    monkeypatch.setattr(launch, "_launch", lambda kernel, programs, *args, options: launched.append(args))
    monkeypatch.setattr(ImageLike, "empty", lambda like, dtype: lazy(2**32, dtype, like.device).view(like.shape))
    monkeypatch.setattr(torch.Tensor, "zero_", lambda tensor: tensor)  # would touch it all
    image = torch.zeros(1, 1, 1, 65536).expand(1, 1, 65536, 65536)
    spec = WarpSpec(TRANSFORMS["affine"], "bilinear", padding_mode, False, (2, 2))
    launch.backward(
        spec, torch.zeros(1, 1, 2, 2), None, image, ImageLike.of(image), torch.zeros(1, 2, 3), None, True, False
    )
    assert len(launched) == 1 + (padding_mode == "zeros")
    assert all(plan.tl.int64 in arguments for arguments in launched)


@pytest.mark.parametrize("shape", [(1_000_000, 1, 1, 1), (1000, 1000, 1, 1), (1, 1_000_000, 1, 1)], ids=str)
def test_a_million_planes(path, shape):
    """N and N * C of 10^6, beyond the 65,535 of launch grid axes y and z."""
    if plan.INTERPRETED and path.name == "kernel":
        pytest.skip("minutes in the interpreter; test_programs_lie_on_axis_x stands in")
    image = torch.randn(shape, device=path.device, requires_grad=True)
    theta = torch.eye(2, 3, device=path.device).repeat(shape[0], 1, 1).requires_grad_()
    out = affine_sample(image, theta, (2, 1), padding_mode="border")
    assert torch.equal(out, image.expand_as(out))
    d_image, _ = torch.autograd.grad(out.sum(), [image, theta])
    assert torch.equal(d_image, torch.full_like(image, 2))


@pytest.mark.parametrize("last", [65_535, 65_536, 999_999])
def test_programs_lie_on_axis_x(kernel_path, monkeypatch, last):
    """A launch of a million programs, of which the interpreter runs one: it finds its own sample."""
    if not plan.INTERPRETED:
        pytest.skip("test_a_million_planes runs them all")
    from triton.runtime import interpreter

    launched = []

    def launch_one(kernel, programs, *args, options):
        launched.append(programs)
        set_grid_idx = interpreter.interpreter_builder.set_grid_idx
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(interpreter.interpreter_builder, "set_grid_idx", lambda x, y, z: set_grid_idx(last, 0, 0))
            kernel[(1,)](*args)

    monkeypatch.setattr(interpreter.interpreter_builder, "set_grid_dim", lambda nx, ny, nz: None)
    interpreter.interpreter_builder.grid_dim = (1_000_000, 1, 1)
    monkeypatch.setattr(launch, "_launch", launch_one)
    image = torch.arange(1_000_000.0).view(-1, 1, 1, 1)
    out = affine_sample(image, torch.eye(2, 3)[None], padding_mode="border")
    assert launched == [1_000_000]
    assert out[last].item() == last
    assert out[last - 1].isnan()  # poisoned: nobody wrote it


def test_too_many_programs_is_an_error(kernel_path):
    with pytest.raises(ValueError, match=r"size: expected at most 2147483647 tiles"):
        launch._launch(None, 2**31, torch.zeros(1), options={})


#: Pointers whose offsets always have 64 bits: an int64 stride or program number is a factor of each.
ALWAYS_64_BITS = {"fill", "peaks", "scattered", "d_theta"}


def test_every_pointer_takes_part_in_the_choice_of_offsets(kernel_path, monkeypatch):
    """Every tensor that a kernel is given is passed to `plan._index`, unless its offsets always have 64 bits."""
    chosen, launched, choose, run = [], {}, plan._index, launch._launch

    def index(**tensors):
        chosen.append(set(tensors))
        return choose(**tensors)

    def record(kernel, programs, *args, options):
        names = list(inspect.signature(kernel.fn).parameters)
        pointers = {name for name, value in zip(names, args, strict=True) if isinstance(value, torch.Tensor)}
        launched[names[0], names[1]] = pointers, set() if kernel is launch.warp_finish else chosen[-1]
        run(kernel, programs, *args, options=options)

    monkeypatch.setattr(plan, "_index", index)
    monkeypatch.setattr(launch, "_launch", record)
    image = torch.rand(1, 2, 4, 4, device=kernel_path.device, dtype=torch.float16, requires_grad=True)
    theta = torch.eye(2, 3, device=kernel_path.device)[None].requires_grad_()
    for padding_mode in ("fill", "border"):
        options = {"fill": torch.ones(2, device=kernel_path.device)} if padding_mode == "fill" else {}
        out, mask = affine_sample(
            image, theta, padding_mode=padding_mode, **options, return_mask=True, deterministic=True
        )
        (out.sum() + mask.sum()).backward()
    assert len(launched) == 4  # forward, gather, backward, finish
    for kernel, (pointers, indexed) in launched.items():
        if kernel == ("sums", "peaks"):  # one plane, of one tensor's size, for all
            assert pointers == {"sums", "peaks", "scattered", "d_image"}
        else:
            assert pointers - ALWAYS_64_BITS == indexed, kernel


@pytest.mark.parametrize("side", [46_340, 46_341])
def test_a_large_mask_takes_64_bit_offsets(kernel_path, side):
    """An expanded d_out and an output without channels need no offsets; the mask does."""
    spec = WarpSpec(TRANSFORMS["affine"], "bilinear", "zeros", False, (side, side), mask=True)
    image, theta = torch.rand(1, 1, 4, 4), torch.eye(2, 3)[None]
    d_out = TensorLayout(torch.Size((1, 1, side, side)), (0, 0, 0, 0), torch.float32, True)
    given = TensorLayout.of(image), TensorLayout.of(theta)
    backward = plan.plan_backward(spec, ImageLike.of(image), d_out, *given, None)
    forward = plan.plan_forward(spec, TensorLayout.of(image[:, :0]), given[1])
    wide = plan.tl.int64 if side**2 > 2**31 else plan.tl.int32
    assert [wide in planned.constants for planned in (backward, forward)] == [True, True]
