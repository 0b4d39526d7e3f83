"""Piecewise affine maps: meshes of any size, how they are triangulated, and sums that are kept column by column."""

import math

import numpy as np
import pytest
import torch
from test_gradients import shuffle_programs
from tolerance import to_numpy

from stn_triton import PiecewiseAffine, affine_sample, configs, piecewise_affine_sample, plan, reference
from stn_triton.layout import ImageLike, TensorLayout
from stn_triton.spec import WarpSpec
from stn_triton.transforms import kept_basis, piecewise_affine

SIZE = (5, 6)


def draw(mesh, *batch, seed=0):
    """Vertices moved by about half a cell, float64."""
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, (*batch, mesh[0] * mesh[1], 2))
    return 0.9 * PiecewiseAffine(mesh).identity(dtype=torch.float64) + torch.tensor(noise / mesh[0])


def check(device, mesh, size, align_corners, shape=(2, 2, 7, 8)):
    """Forward and backward against the reference, in float64."""
    theta = draw(mesh, shape[0]).to(device).requires_grad_()
    image = torch.randn(*shape, dtype=torch.float64, device=device, requires_grad=True)
    out = piecewise_affine_sample(image, theta, size, mesh=mesh, align_corners=align_corners)
    d_out = torch.randn_like(out)
    gradients = torch.autograd.grad(out, [image, theta], d_out)
    grid = reference.piecewise_affine_grid(to_numpy(theta), size, align_corners, mesh)
    truth = reference.grid_sample(to_numpy(image), grid, align_corners=align_corners)
    arrays = to_numpy(d_out), to_numpy(image), grid
    d_image, d_grid = reference.grid_sample_backward(*arrays, align_corners=align_corners)
    d_theta = reference.piecewise_affine_grid_backward(d_grid, to_numpy(theta), size, align_corners, mesh)
    for ours, expected in zip((out, *gradients), (truth, d_image, d_theta), strict=True):
        np.testing.assert_allclose(to_numpy(ours), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("mesh", "size"), [
    ((2, 2), (5, 9)), ((3, 5), (5, 40)), ((2, 7), (4, 1)), ((9, 3), (1, 4)), ((8, 12), (3, 2)), ((40, 2), (3, 5)),
], ids=str)  # fmt: skip
def test_any_mesh_and_size(path, mesh, size):
    """Cells of many pixels, of one, and of less: some have none, and rows pass over several of them."""
    for align_corners in (False, True):
        check(path.device, mesh, size, align_corners, (1, 1, 7, 8))


@pytest.mark.parametrize("config", [
    configs.LaunchConfig(2, 4, channels=2, loop=False, unroll=2), configs.LaunchConfig(1, 8),
], ids=["two rows a step", "blocks of channels"])  # fmt: skip
def test_several_blocks_of_rows_columns_and_channels(kernel_path, monkeypatch, config):
    monkeypatch.setattr(plan, "_config", lambda *args: config)
    monkeypatch.setattr(configs, "ROWS_OF_COLUMNS", (2, 4))
    monkeypatch.setattr(configs, "CHANNELS_AT_LEAST", 1)
    blocks = []
    monkeypatch.setattr(plan, "cut", lambda *args: blocks.append(configs.cut(*args)) or blocks[-1])
    check(kernel_path.device, (6, 5), (7, 9), not config.loop, (1, 2, 7, 8))
    assert blocks[1].column_blocks[0] > 1
    assert blocks[1].row_blocks[0] > 1
    assert blocks[1].channel_blocks[0] == (2 if config.loop else 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_two_pixels_write_to_one_place(dtype):
    """The columns of a cell, and the blocks of rows around a vertex, are at most as many as there are places.

    With cells as the kernels round them, for every number of pixels and cells.
    """
    for n in (*range(1, 30), 60, 63, 64, 65, 255, 4097):
        for cells in (*range(1, 15), 31, 32, 127, 1024):
            for span in (n, n - 1):
                t = np.arange(n) - (n - 1) / 2
                rate = dtype(dtype(2 / span if span else 0) * dtype(cells / 2))
                cell = np.clip(np.floor((t * float(rate) + cells / 2).astype(dtype)), 0, cells - 1).astype(int)
                places = piecewise_affine.most_blocks_that_meet(n, cells, 1, 1)
                assert len(np.unique(cell * places + np.arange(n) % places)) == n
                for rows in (1, 3, 32):
                    block, places = np.arange(n) // rows, piecewise_affine.most_blocks_that_meet(n, cells, 2, rows)
                    pairs = np.unique(np.r_[cell * n + block, (cell + 1) * n + block])
                    assert len(np.unique(pairs // n * places + pairs % n % places)) == len(pairs)


def test_one_affine_map_of_all_vertices_is_affine(path):
    """Output and gradients, whatever the mesh."""
    theta = torch.tensor(
        [[[0.8, 0.3, 0.1], [-0.2, 0.9, -0.1]]], dtype=torch.float64, device=path.device
    ).requires_grad_()
    image = torch.randn(1, 2, 7, 8, dtype=torch.float64, device=path.device)
    expected = affine_sample(image, theta, SIZE)
    d_out = torch.randn_like(expected)
    (d_expected,) = torch.autograd.grad(expected, theta, d_out)
    for mesh in ((2, 2), (3, 4)):
        vertices = PiecewiseAffine(mesh).identity(dtype=torch.float64, device=path.device)
        moved = vertices @ theta[..., :2].transpose(1, 2) + theta[:, None, :, 2]
        out = piecewise_affine_sample(image, moved, SIZE, mesh=mesh)
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(torch.autograd.grad(out, theta, d_out)[0], d_expected)


def test_cells_are_split_from_top_left_to_bottom_right(path):
    """One cell, its top right corner moved to the right by 1: half of it follows, as far as it is from the diagonal."""
    theta = PiecewiseAffine((2, 2)).identity(device=path.device)[None].clone()
    theta[0, 1, 0] += 1
    column = torch.arange(5.0, device=path.device)
    out = piecewise_affine_sample(
        column.expand(1, 1, 5, 5), theta, mesh=(2, 2), padding_mode="border", align_corners=True
    )
    moved = (2 * (column[None, :] - column[:, None]) / 4).clamp(min=0)  # 1 is half the image's width of 4
    torch.testing.assert_close(out[0, 0], (column + moved).clamp(max=4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_vertices_go_to_theta(dtype):
    """Exactly where they are numbers of the dtype, as points and as pixels."""
    transform = PiecewiseAffine((3, 5))
    theta = (transform.identity(dtype=torch.float64) + torch.randint(-8, 8, (2, 15, 2)) / 16).to(dtype)
    assert torch.equal(transform.points(theta, transform.identity(dtype=dtype)), theta)
    assert torch.equal(transform.grid(theta, (3, 5), align_corners=True).flatten(1, 2), theta)


def test_beyond_the_mesh_the_outermost_maps_go_on():
    transform = PiecewiseAffine((2, 3))
    theta = transform.identity(dtype=torch.float64)[None].clone()
    theta[0, 2] += torch.tensor([0.5, 0.25])  # the top right vertex, of one triangle
    xy = torch.tensor([[3.0, -1], [1, -3], [-3, -1], [3, 1], [0, 3], [1, 1]], dtype=torch.float64)
    weight = torch.tensor([3.0, 2, 0, 2, 0, 0], dtype=torch.float64)[:, None]
    expected = xy + weight * torch.tensor([0.5, 0.25])
    torch.testing.assert_close(transform.points(theta, xy)[0], expected)
    torch.testing.assert_close(transform.points(theta, xy.expand(4, -1, -1)), expected.expand(4, -1, -1))
    assert transform.points(theta, xy * torch.nan).isnan().all()


@pytest.mark.parametrize("mesh", [(2, 2), (4, 7), (3, 40)], ids=str)
def test_identity_is_exact(kernel_path, mesh):
    """Also of vertices that theta's dtype rounds."""
    for size, dtype in (((6, 7), torch.float32), ((1, 31), torch.float16), ((37, 1), torch.float64)):
        image = torch.randn(1, 1, *size, device=kernel_path.device).to(dtype)
        for theta_dtype in (torch.float32, torch.bfloat16):
            theta = PiecewiseAffine(mesh).identity(dtype=theta_dtype, device=kernel_path.device)[None]
            for align_corners in (False, True):
                out = piecewise_affine_sample(image, theta, mesh=mesh, align_corners=align_corners)
                assert torch.equal(out, image)


@pytest.mark.parametrize("padding_mode", ["zeros", "reflection"])
def test_a_vertex_that_is_no_number_empties_its_triangles(path, padding_mode):
    """And nothing else; no gradient meets it."""
    theta = PiecewiseAffine((3, 3)).identity(device=path.device).mul(0.8).repeat(3, 1, 1)
    theta[torch.arange(3), 4] = torch.tensor([[torch.nan, 0], [0, torch.inf], [-torch.inf, torch.nan]]).to(path.device)
    theta.requires_grad_()
    image = torch.rand(3, 1, 8, 8, device=path.device, requires_grad=True)
    out = piecewise_affine_sample(image, theta, mesh=(3, 3), padding_mode=padding_mode)
    whole = theta.detach().nan_to_num(0.0, 0.0, 0.0)
    expected = piecewise_affine_sample(image, whole, mesh=(3, 3), padding_mode=padding_mode)
    row, column = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    # The cells that its diagonal crosses, and of the others the triangle with it, one of them with its longest side.
    sees = ((row < 4) == (column < 4)) | ((row < 4) & (row >= column - 4)) | ((row >= 4) & (row - 4 < column))
    sees = sees.to(path.device)
    assert (out[:, :, sees] == 0).all()
    torch.testing.assert_close(out[:, :, ~sees], expected[:, :, ~sees])
    assert (expected[:, :, ~sees] > 0).any()
    for gradient in torch.autograd.grad(out.square().sum(), [image, theta]):
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0


def test_gradient_is_bit_reproducible(kernel_path, monkeypatch):
    """Under any order of programs."""
    monkeypatch.setattr(plan, "_config", lambda *args: configs.LaunchConfig(1, 8))
    monkeypatch.setattr(configs, "ROWS_OF_COLUMNS", (2, 2))
    if plan.INTERPRETED:
        shuffle_programs(monkeypatch)
    theta = draw((3, 4), 1).float().to(kernel_path.device).requires_grad_()
    image, d_out = (torch.randn(1, 1, *size, device=kernel_path.device) for size in ((6, 7), (4, 12)))
    first, *others = (
        torch.autograd.grad(piecewise_affine_sample(image, theta, (4, 12), mesh=(3, 4)), theta, d_out)[0]
        for _ in range(4)
    )
    assert first.abs().sum() > 0
    assert all(torch.equal(other, first) for other in others)


@pytest.mark.parametrize(("mesh", "size", "share"), [
    ((4, 4), (256, 256), 0.23), ((16, 16), (256, 256), 0.42), ((4, 4), (1024, 1024), 0.1), ((4, 4), (28, 28), 0.34),
    ((16, 16), (1024, 1024), 0.13),
], ids=str)  # fmt: skip
def test_the_workspace_is_less_than_a_sampling_grid(kernel_path, monkeypatch, mesh, size, share):
    """By as much as its docstring says, for 8 images."""
    monkeypatch.setattr(plan, "_config", lambda *args: configs.choose_config(*args[:2], args[2].size[1], *args[3:]))
    image, theta = torch.empty(8, 3, 2, 2), torch.empty(8, *mesh, 2)
    d_out = torch.empty(8, 3, 1, 1).expand(-1, -1, *size)
    layouts = [TensorLayout.of(t) for t in (d_out, image, theta)]
    spec = WarpSpec(PiecewiseAffine(mesh), "bilinear", "zeros", False, size)
    numbers = math.prod(plan.plan_backward(spec, ImageLike.of(image), *layouts, None).shape)
    assert 0 < numbers <= share * 8 * 2 * math.prod(size)


def test_gradcheck_of_several_transforms(path):
    theta = draw((2, 3), 1, 2).to(path.device).requires_grad_()
    image = torch.randn(1, 1, 3, 2, dtype=torch.float64, device=path.device, requires_grad=True)

    def warp(image, theta):
        return piecewise_affine_sample(image, theta, (2, 3), mesh=(2, 3), padding_mode="border")

    assert torch.autograd.gradcheck(warp, (image, theta), nondet_tol=1e-12, fast_mode=True)


@pytest.mark.parametrize("align_corners", [False, True])
def test_a_product_and_a_gather_give_the_same_grid(torch_path, monkeypatch, align_corners):
    transform, theta = PiecewiseAffine((3, 5)), draw((3, 5), 2).requires_grad_()

    def run():
        grid = transform.make_grid(theta, (9, 8), align_corners, torch.float64)[0]
        return grid, torch.autograd.grad(grid.square().sum(), theta)[0]

    by_product = run()
    monkeypatch.setattr(kept_basis, "LARGEST_BASIS", 0)
    monkeypatch.setattr(torch, "matmul", None)
    for ours, truth in zip(by_product, run(), strict=True):
        torch.testing.assert_close(ours, truth)


def test_compiles_to_one_graph_and_takes_torch_func(torch_path):
    image, theta = torch.randn(2, 1, 5, 6, dtype=torch.float64), draw((3, 4), 2)
    piecewise_affine._vertices.clear()

    def loss(theta, image):
        return piecewise_affine_sample(image, theta, mesh=(3, 4)).square().sum()

    leaf = theta.clone().requires_grad_()
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    ours, expected = (torch.autograd.grad(run(leaf, image), leaf)[0] for run in (compiled, loss))
    torch.testing.assert_close(ours, expected)
    piecewise_affine._vertices.clear()
    torch.testing.assert_close(torch.func.grad(loss)(theta, image), expected)
    of_each = torch.func.vmap(lambda theta, image: loss(theta[None], image[None]))(theta, image)
    torch.testing.assert_close(of_each.sum(), loss(theta, image))


def test_equal_meshes_are_one_transform():
    assert PiecewiseAffine([3, 4]) == PiecewiseAffine((3, 4)) != PiecewiseAffine((4, 3))
    assert repr(PiecewiseAffine((3, 4))) == "PiecewiseAffine((3, 4))"


@pytest.mark.parametrize(("mesh", "error", "message"), [
    ((1, 4), ValueError, r"mesh: expected two numbers \(h, w\) of at least 2, got \(1, 4\)"),
    ((4,), ValueError, "mesh: expected"), (4, TypeError, "mesh: expected a sequence"), ((2.5, 2), TypeError, "mesh:"),
])  # fmt: skip
def test_wrong_meshes(mesh, error, message):
    with pytest.raises(error, match=message):
        piecewise_affine_sample(torch.zeros(1, 1, 3, 3), torch.zeros(1, 16, 2), mesh=mesh)


@pytest.mark.parametrize("shape", [(1, 12, 2), (1, 16, 3), (16, 2), (1, 4, 4, 2)], ids=str)
def test_theta_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"theta: expected shape \(N, gh \* gw, 2\) = \(1, 16, 2\), got"):
        piecewise_affine_sample(torch.zeros(1, 1, 3, 3), torch.zeros(shape))
