"""`grid_sample` and `affine_grid` are PyTorch's: signatures, its own samples of them, its errors."""

import functools
import inspect
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES, dtype_id
from tolerance import assert_as_good_as_pytorch, to_numpy

import stn_triton
from stn_triton import reference


@pytest.mark.parametrize("name", ["grid_sample", "affine_grid"])
def test_signature(name):
    def plain(function):
        return [(p.name, p.default, p.kind) for p in inspect.signature(function).parameters.values()]

    assert plain(getattr(stn_triton, name)) == plain(getattr(F, name))


def opinfo_samples(dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db
    info = next(op for op in op_db if op.name == "nn.functional.grid_sample")
    torch.manual_seed(0)
    for sample in info.sample_inputs("cpu", dtype, requires_grad=False):
        if sample.input.dim() == 4:
            yield sample.input, sample.args[0], sample.kwargs


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_opinfo_samples(path, dtype):
    """torch's own test inputs, forward and backward."""
    count = 0
    for image, grid, options in opinfo_samples(dtype):
        count += 1
        d_out = torch.randn(*image.shape[:2], *grid.shape[1:3]).to(dtype)
        settings = tuple(options[name] for name in ("mode", "padding_mode", "align_corners"))
        tensors = to_numpy(image), to_numpy(grid)
        truth = reference.grid_sample(*tensors, *settings)
        gradients = reference.grid_sample_backward(to_numpy(d_out), *tensors, *settings)
        magnitudes = reference.grid_sample_backward(to_numpy(d_out), *tensors, *settings, magnitude=True)

        def run(sample, options, *inputs, d_out=d_out):
            inputs = [t.detach().clone().requires_grad_() for t in inputs]
            out = sample(*inputs, **options)
            return out.detach(), *torch.autograd.grad(out, inputs, d_out.to(out))

        wide = torch.promote_types(dtype, torch.float32)
        theirs = run(F.grid_sample, options, image.to(wide), grid.to(wide))
        ours = run(stn_triton.grid_sample, options, image.to(path.device), grid.to(path.device))
        scales = np.abs(tensors[0]).max(), magnitudes[0].max(), magnitudes[1].max()
        for what, our, their, expected, scale in zip(
            ("out", "d_input", "d_grid"), ours, theirs, (truth, *gradients), scales, strict=True
        ):
            assert our.dtype == dtype
            assert_as_good_as_pytorch(our, their, expected, scale, f"{what} {options}")
    assert count == 18  # 3 modes, 3 paddings, 2 align_corners


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(2, 3, 5, 7), (2, 1, 1, 1), (2, 1, 6, 1)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.filterwarnings("ignore:Since version 1.3.0, affine_grid behavior:UserWarning")
def test_affine_grid(align_corners, size, dtype):
    theta = torch.randn(2, 2, 3).to(dtype).requires_grad_()
    d_grid = torch.randn(2, *size[2:], 2).to(dtype)
    wide = theta.detach().to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    theirs = F.affine_grid(wide, list(size), align_corners=align_corners)
    ours = stn_triton.affine_grid(theta, list(size), align_corners=align_corners)
    assert ours.dtype == dtype
    truth = reference.affine_grid(to_numpy(theta), size[2:], align_corners)
    assert_as_good_as_pytorch(ours, theirs, truth, np.abs(to_numpy(theta)).sum(-1).max(), "grid")
    backward = to_numpy(d_grid), to_numpy(theta), size[2:], align_corners
    assert_as_good_as_pytorch(
        torch.autograd.grad(ours, theta, d_grid)[0],
        torch.autograd.grad(theirs, wide, d_grid.to(wide))[0],
        reference.affine_grid_backward(*backward),
        reference.affine_grid_backward(np.abs(backward[0]), *backward[1:], magnitude=True).max(),
        "d_theta",
    )


REDUCED_PRECISION = (
    'torch.set_float32_matmul_precision("medium")',
    'torch.set_float32_matmul_precision("high")',
    'torch.backends.fp32_precision = "tf32"',
    'torch.backends.cuda.matmul.fp32_precision = "tf32"',
    'torch.backends.mkldnn.matmul.fp32_precision = "bf16"',
    'torch.autocast("cpu", torch.bfloat16).__enter__()',
    'torch.set_default_device("meta")',
)


@pytest.mark.parametrize("setting", REDUCED_PRECISION)
def test_global_settings_do_not_touch_coordinates(setting):
    """Reduced precision of matrix products, wherever the user allows it, is not for coordinates.

    In a process of its own: some settings cannot be taken back.
    """
    dtype, sums = sums_under(setting)
    plain_dtype, plain_sums = sums_under("")
    assert dtype == plain_dtype == "torch.float32"
    assert sums == pytest.approx(plain_sums, rel=1e-5)


@functools.cache
def sums_under(setting: str) -> tuple[str, list[float]]:
    """The grid's dtype, and sums of a grid, its gradient and a warped image, computed after the setting."""
    code = f"""
import torch, stn_triton
theta = torch.arange(18.0).sin().view(3, 2, 3).requires_grad_()
image = torch.arange(75.0).cos().view(3, 1, 5, 5)
{setting}
grid = stn_triton.affine_grid(theta, (3, 1, 33, 65), align_corners=False)
grid.square().sum().backward()
print(grid.dtype, repr(grid.detach().double().sum().item()), repr(theta.grad.double().sum().item()))
print(stn_triton.affine_sample(image, theta).double().sum().item())
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    dtype, *sums = result.stdout.split()
    return dtype, [float(number) for number in sums]


def test_affine_grid_of_infinities(path):
    """inf and NaN stay in the coordinate they were put into, as in PyTorch."""
    theta = torch.eye(2, 3).repeat(2, 1, 1)
    theta[0, 0, 0], theta[1, 1, 2] = float("inf"), float("nan")
    ours = stn_triton.affine_grid(theta, (2, 1, 2, 4), align_corners=False)
    theirs = F.affine_grid(theta, [2, 1, 2, 4], align_corners=False)
    torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("image_dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("grid_dtype", DTYPES, ids=dtype_id)
def test_different_dtypes(path, image_dtype, grid_dtype):
    """An image and a grid of any two floating dtypes: each gradient comes in its own."""
    image = torch.randn(1, 2, 4, 4).to(image_dtype).to(path.device).requires_grad_()
    grid = (torch.rand(1, 3, 3, 2) * 2 - 1).to(grid_dtype).to(path.device).requires_grad_()
    out = stn_triton.grid_sample(image, grid, align_corners=False)
    out.sum().backward()
    assert (out.dtype, image.grad.dtype, grid.grad.dtype) == (image_dtype, image_dtype, grid_dtype)
    wide = torch.promote_types(image_dtype, torch.float32)
    grid_seen = grid.detach().cpu().to(wide)  # float64 only for float64 images
    truth = reference.grid_sample(to_numpy(image), to_numpy(grid_seen))
    theirs = F.grid_sample(image.detach().cpu().to(wide), grid_seen, align_corners=False)
    assert_as_good_as_pytorch(out, theirs, truth, np.abs(to_numpy(image)).max())


@pytest.mark.parametrize("name", ["grid_sample", "affine_grid"])
def test_align_corners_none_warns_and_means_false(name):
    arguments = {
        "grid_sample": (torch.randn(1, 1, 3, 3), torch.rand(1, 2, 2, 2)),
        "affine_grid": (torch.randn(1, 2, 3), (1, 1, 2, 2)),
    }[name]
    with pytest.warns(UserWarning, match="align_corners") as warned:
        default = getattr(stn_triton, name)(*arguments)
    assert [warning.filename for warning in warned] == [__file__]
    assert torch.equal(default, getattr(stn_triton, name)(*arguments, align_corners=False))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("h", [0, 1, 3])
@pytest.mark.parametrize("w", [0, 1, 3])
@pytest.mark.parametrize("batch", [(2, 1), (2, 0), (0, 1)], ids=str)
def test_affine_grid_warns_where_pytorch_does(align_corners, h, w, batch):
    """An axis of one pixel has no corners to align. A filter for PyTorch's warning knows ours by its first words."""
    theta = torch.rand(batch[0], 2, 3)
    outcomes = []
    for affine_grid in (F.affine_grid, stn_triton.affine_grid):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                result = affine_grid(theta, (*batch, h, w), align_corners=align_corners).shape
            except (ValueError, RuntimeError) as error:
                result = type(error)
        expected = "Since version 1.3.0, affine_grid behavior has changed for unit-size grids when align_corners=True"
        known = [str(warning.message).startswith(expected) for warning in caught]
        outcomes.append((result, known, [(warning.category, warning.filename) for warning in caught]))
    theirs, ours = outcomes
    assert ours == theirs


@pytest.mark.parametrize("align_corners", [None, True])
def test_a_warning_breaks_no_graph(align_corners):
    """torch.compile cannot trace a warning: there is none while it traces."""

    def grid(theta):
        return stn_triton.affine_grid(theta, (2, 1, 1, 3), align_corners=align_corners)

    theta = torch.rand(2, 2, 3)
    compiled = torch.compile(grid, backend="eager", fullgraph=True)(theta)
    with pytest.warns(UserWarning, match="align_corners"):
        torch.testing.assert_close(compiled, grid(theta))


X, G, T = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 3, 2), torch.rand(2, 2, 3)
MISTAKES = {
    "integer input": ("grid_sample", (X.int(), G), "input: expected dtype .* got torch.int32"),
    "integer both": ("grid_sample", (X.int(), G.int()), "input: expected dtype .* got torch.int32"),
    "complex": ("grid_sample", (X.cfloat(), G.cfloat()), "input: expected dtype .* got torch.complex64"),
    "float8": ("grid_sample", (X.to(torch.float8_e4m3fn), G), "input: expected dtype .* got torch.float8"),
    "not a tensor": ("grid_sample", ([1.0], G), "input: expected a tensor, got list"),
    "grid not a tensor": ("grid_sample", (X, 1), "grid: expected a tensor, got int"),
    "batch": ("grid_sample", (X, G[:1]), r"grid: .* N = 2, got \(1, 3, 3, 2\)"),
    "grid rank": ("grid_sample", (X, G[0]), r"grid: expected shape \(N, h, w, 2\).* got \(3, 3, 2\)"),
    "grid last": ("grid_sample", (X, G[..., :1]), r"grid: .* got \(2, 3, 3, 1\)"),
    "input rank": ("grid_sample", (X[0], G), r"input: expected shape \(N, C, H, W\).* got \(3, 4, 5\)"),
    "no pixels": ("grid_sample", (X[:, :, :0], G), r"input: .* at least 1, got \(2, 3, 0, 5\)"),
    "mode": ("grid_sample", (X, G, "linear"), "mode: expected one of 'bilinear', 'nearest', 'bicubic', got 'linear'"),
    "mode type": ("grid_sample", (X, G, 3), "mode: .* got 3"),
    "padding": ("grid_sample", (X, G, "bilinear", "wrap"), "padding_mode: expected one of .* got 'wrap'"),
    "device": ("grid_sample", (X.to("meta"), G), "grid: expected the input's device meta, got cpu"),
    "integer theta": ("affine_grid", (T.int(), (2, 1, 2, 2)), "theta: expected dtype .* got torch.int32"),
    "theta rank": ("affine_grid", (T[0], (2, 1, 2, 2)), r"theta: expected shape \(N, 2, 3\), got \(2, 3\)"),
    "theta shape": ("affine_grid", (T[..., :2], (2, 1, 2, 2)), r"theta: .* got \(2, 2, 2\)"),
    "size batch": ("affine_grid", (T, (3, 1, 2, 2)), "theta: expected a batch of 3 as in size, got 2"),
    "size zero": ("affine_grid", (T, (2, 1, 0, 2)), r"size: expected positive numbers, got \(2, 1, 0, 2\)"),
    "size rank": ("affine_grid", (T, (2, 1, 2)), r"size: expected 4 numbers \(N, C, h, w\).* got \(2, 1, 2\)"),
    "size type": ("affine_grid", (T, (2, 1, 1.5, 2)), "size: expected a sequence of whole numbers, got"),
    "size none": ("affine_grid", (T, None), "size: expected a sequence of whole numbers, got None"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_errors_are_pytorchs_and_say_what_was_got(mistake):
    name, arguments, message = MISTAKES[mistake]
    with pytest.raises(Exception) as theirs:  # noqa: PT011 - whatever it is
        getattr(F, name)(*arguments, align_corners=False)
    with pytest.raises(theirs.type, match=message):
        getattr(stn_triton, name)(*arguments, align_corners=False)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("grid_sample", (torch.rand(1, 1, 2, 2, 2), torch.rand(1, 1, 1, 1, 3))),
        ("affine_grid", (torch.rand(1, 3, 4), (1, 1, 2, 2, 2))),
    ],
)
def test_what_is_not_there_yet_says_so(name, arguments):
    with pytest.raises(NotImplementedError, match="not there yet"):
        getattr(stn_triton, name)(*arguments, align_corners=False)
