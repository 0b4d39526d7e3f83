"""The oracle itself: against PyTorch in float64, against the paper's sums, and against finite differences."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import TRANSFORM_CASES, fill_of, parametrize_samplers

from stn_triton import reference


@parametrize_samplers
def test_against_pytorch(transform, mode, padding_mode, align_corners):
    case, size, options = TRANSFORM_CASES[transform], (5, 6), (mode, padding_mode, align_corners)
    rng = np.random.default_rng(0)
    image, theta = rng.standard_normal((2, 3, 4, 7)), case.theta(rng, 2, size)
    d_out = rng.standard_normal((2, 3, *size))
    tensors = [torch.tensor(a, requires_grad=True) for a in (image, theta)]
    fill = fill_of(padding_mode, 3)
    out = case.pytorch(*tensors, size, *options, *map(torch.tensor, fill))
    options += fill
    gradients = torch.autograd.grad(out, tensors, torch.tensor(d_out))
    np.testing.assert_allclose(case.reference(image, theta, size, *options), out.detach(), atol=1e-13)
    for ours, theirs in zip(case.reference_backward(d_out, image, theta, *options), gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_bilinear_is_equation_5():
    """V = sum over all n, m of U_nm max(0, 1 - |x - m|) max(0, 1 - |y - n|), written out."""
    rng = np.random.default_rng(0)
    image, grid = rng.standard_normal((1, 1, 4, 5)), rng.uniform(-1.5, 1.5, (1, 6, 1, 2))
    out = reference.grid_sample(image, grid)
    for k, (u, v) in enumerate(grid[0, :, 0]):
        x, y = ((u + 1) * 5 - 1) / 2, ((v + 1) * 4 - 1) / 2
        total = sum(
            image[0, 0, n, m] * max(0, 1 - abs(x - m)) * max(0, 1 - abs(y - n))
            for n, m in itertools.product(range(4), range(5))
        )
        assert out[0, 0, k, 0] == pytest.approx(total, abs=1e-14)


def test_magnitude_is_no_smaller_than_the_gradient():
    rng = np.random.default_rng(0)
    arrays = rng.standard_normal((2, 3, 6, 6)), rng.standard_normal((2, 3, 5, 4)), rng.standard_normal((2, 2, 3))
    for options in itertools.product(("bilinear", "nearest"), ("zeros", "border", "reflection")):
        signed = reference.affine_sample_backward(*arrays, *options)
        absolute = reference.affine_sample_backward(*arrays, *options, magnitude=True)
        for s, a in zip(signed, absolute, strict=True):
            assert (a >= np.abs(s) - 1e-12).all()


def test_nonfinite_table():
    """The table in the module's docstring, entry by entry."""
    image = np.arange(1.0, 5).reshape(1, 1, 1, 4)
    grid = np.zeros((1, 1, 3, 2))
    grid[0, 0, :, 0] = np.nan, -np.inf, np.inf
    expected = {"zeros": [0, 0, 0], "border": [1, 1, 4], "reflection": [1, 1, 1]}
    to_image = {"zeros": [0, 0, 0, 0], "border": [1, 0, 0, 1], "reflection": [0, 0, 0, 0]}
    for padding_mode, values in expected.items():
        with np.errstate(invalid="ignore"):
            out = reference.grid_sample(image, grid, padding_mode=padding_mode)
            d_out = np.ones((1, 1, 1, 3))
            d_image, d_grid = reference.grid_sample_backward(d_out, image, grid, "bilinear", padding_mode)
        assert out.ravel().tolist() == values
        assert d_image.ravel().tolist() == to_image[padding_mode]
        assert (d_grid == 0).all()


def test_a_page_that_imports_nothing_of_ours():
    import ast
    import inspect

    tree = ast.parse(inspect.getsource(reference))
    imported = {
        name
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert {name.split(".")[0] for name in imported} == {"__future__", "collections", "numpy", "typing"}


def test_torch_agrees_where_it_is_safe():
    """PyTorch's CPU sampler under border and inf, forward only: the edge pixels."""
    image, grid = torch.arange(1.0, 5).view(1, 1, 1, 4), torch.zeros(1, 1, 2, 2)
    grid[0, 0, :, 0] = torch.tensor([-float("inf"), float("inf")])
    out = F.grid_sample(image, grid, padding_mode="border", align_corners=False)
    truth = reference.grid_sample(image.numpy(), grid.numpy(), "bilinear", "border")
    assert out.flatten().tolist() == truth.ravel().tolist()
