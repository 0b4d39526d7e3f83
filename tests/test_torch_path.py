"""What the CPU path chooses by itself: how an image is shared, which functions are kept; and what its results are."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stn_triton import (
    TRANSFORMS,
    FullyConnectedLocalisation,
    PiecewiseAffine,
    SpatialTransformer,
    ThinPlateSpline,
    affine_sample,
    torch_sampler,
    transform_sample,
)
from stn_triton.caches import BoundedCache
from stn_triton.transforms import kept_basis

NEAR = [(-1, -1), (1, -1), (-1, 1), (1, 1), (0, 0), (0, 1e-4)]  # cardinal functions of thousands


@pytest.mark.parametrize(
    ("image", "size", "threads", "needs_grad", "expected"),
    [
        ((1, 6, 90, 91), (128, 128), 4, False, (3, False)),  # channels, as many as divide evenly
        ((1, 5, 90, 91), (128, 128), 2, False, (2, True)),  # rows, where channels do not
        ((1, 2, 90, 91), (128, 128), 2, True, (2, False)),  # channels of equal shares: no second gradient of the image
        ((1, 1, 90, 91), (96, 128), 4, False, (1, False)),  # too few pixels for two threads
        ((1, 1, 90, 91), (128, 160), 4, False, (2, True)),
        ((1, 1, 90, 91), (127, 160), 4, False, (1, False)),  # a prime number of rows
        ((1, 1, 90, 91), (512, 512), 8, False, (8, True)),
        ((1, 1, 90, 91), (512, 512), 8, True, (4, True)),  # four gradients of the image at most
        ((1, 1, 600, 600), (512, 512), 8, True, (1, False)),  # of an image larger than the output: one
        ((1, 1, 600, 600), (512, 512), 8, False, (8, True)),
        ((2, 1, 90, 91), (512, 512), 8, False, (1, False)),
        ((1, 0, 90, 91), (512, 512), 2, False, (2, False)),
    ],
)
def test_how_an_image_is_shared(monkeypatch, image, size, threads, needs_grad, expected):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    image = torch.zeros(image, requires_grad=needs_grad)
    assert torch_sampler._shares(image, torch.zeros(len(image), *size, 2)) == expected
    with torch.no_grad():
        unneeded = torch_sampler._shares(image, torch.zeros(len(image), *size, 2))
    assert unneeded == torch_sampler._shares(image.detach(), torch.zeros(len(image), *size, 2))


def test_a_graph_does_not_depend_on_the_number_of_threads(torch_path, monkeypatch):
    """Nor on which size comes first."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(affine_sample, backend=backend, dynamic=True)
    for n in (20, 150, 100):
        image, theta = torch.rand(1, 4, n, n), 0.9 * torch.eye(2, 3)[None]
        torch.testing.assert_close(compiled(image, theta), affine_sample(image, theta))
    assert len(graphs) == 1
    assert torch.func.vmap(affine_sample)(image[None], theta[None]).shape == (1, 1, 4, 100, 100)


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_results_are_no_views(path, name, layout):
    """What is made without gradients can be written in place with them; and a grid is not its parameters."""
    transform, size = TRANSFORMS[name], (4, 5)
    with torch.no_grad():
        theta = transform.identity(size, device=path.device).expand(2, 3, *transform.parameter_shape(size)).clone()
        image = torch.rand(2, 2, *size, device=path.device).to(memory_format=layout)
        options = {"padding_mode": "fill", "fill": 0.5, "return_mask": True}
        results = [transform.grid(theta, size), transform.grid(theta[:, 0], size)]
        for of_each in (theta, theta[:, :1], theta[:, 0]):
            results += transform_sample(name, image, of_each, size, **options)
    before = theta.clone()
    for result in results:
        result.mul_(torch.full((), 2.0, device=path.device, requires_grad=True))
    assert all(grid.is_contiguous() for grid in results[:2])
    assert torch.equal(theta, before)


def test_a_grid_is_bounded_only_if_its_displacements_cannot_grow():
    spline = ThinPlateSpline(NEAR)
    theta = spline.identity()[None]
    assert spline.make_grid(theta, (8, 8), False, torch.float32)[1]
    theta[0, 4] += 4e8  # bounded itself
    grid, bounded = spline.make_grid(theta, (8, 8), False, torch.float32)
    assert grid.abs().max() > torch_sampler.bound(torch.float32)
    assert not bounded


def test_functions_made_under_inference_mode_serve_training(torch_path):
    image = torch.rand(1, 1, 6, 7)
    for transform in (ThinPlateSpline(NEAR), PiecewiseAffine((2, 3))):
        theta = transform.identity()[None].requires_grad_()
        with torch.inference_mode():
            transform_sample(transform, image, theta)
        transform_sample(transform, image, theta).sum().backward()
        assert theta.grad.abs().sum() > 0


def test_functions_used_last_are_kept(monkeypatch):
    """As many bytes as there may be, and as many entries."""
    made, evaluate = [], kept_basis._evaluate
    monkeypatch.setattr(kept_basis, "_evaluate", lambda *key: made.append(key[1]) or evaluate(*key))
    kept = BoundedCache(256, 2**27, kept_basis._kept._bytes_of)
    monkeypatch.setattr(kept_basis, "_kept", kept)
    mesh = PiecewiseAffine((2, 2))
    theta = mesh.identity()[None]

    def use(*sizes):
        made.clear()
        for size in sizes:
            mesh.grid(theta, size)
        return made

    assert use((2, 2), (2, 3), (2, 2), (2, 3)) == [(2, 2), (2, 3)]
    kept.max_entries = 2
    assert use((2, 2), (2, 4), (2, 2), (2, 3)) == [(2, 4), (2, 3)]  # in whose place (2, 4) came
    kept.max_bytes = 4 * 6 * 8
    assert use((2, 4), (2, 3), (2, 4)) == [(2, 4), (2, 3), (2, 4)]


@pytest.mark.parametrize("name", ["affine", "projective", "tps"])
def test_export(torch_path, name):
    """A network with a transformer, for any batch."""
    model = SpatialTransformer(FullyConnectedLocalisation((1, 8, 8), transform=name), name)
    torch.nn.init.normal_(model.localisation[-1].weight, std=0.1)
    any_batch = ({0: torch.export.Dim.AUTO},)
    exported = torch.export.export(model, (torch.rand(2, 1, 8, 8),), dynamic_shapes=any_batch).module()
    images = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(exported(images), model(images))


def a_homography(batch=2):
    torch.manual_seed(3)
    matrix = torch.eye(3, dtype=torch.float64) + 0.1 * torch.randn(batch, 3, 3, dtype=torch.float64)
    matrix[1:] *= -2  # of either sign
    return matrix.requires_grad_()


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of forward mode itself
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("name", ["projective", "homography"])
def test_quotients_have_autograds_gradients(torch_path, name, align_corners):
    """First and second ones; and in forward mode, where autograd's own form stands in."""
    transform, size = TRANSFORMS[name], (3, 5)
    theta = a_homography()
    if name == "projective":
        theta = theta.detach().abs().flatten(1)[:, :8].requires_grad_()

    def grid(theta):
        return transform.grid(theta, size, align_corners)

    assert "_Quotients" in str(transform.bounded_grid(theta, size, align_corners).grad_fn)
    assert torch.autograd.gradcheck(grid, theta)
    assert torch.autograd.gradgradcheck(grid, theta)
    tangent = torch.randn_like(theta)
    with torch.autograd.forward_ad.dual_level():
        dual = grid(torch.autograd.forward_ad.make_dual(theta, tangent))
        slope = torch.autograd.forward_ad.unpack_dual(dual).tangent
    d_grid = torch.randn_like(slope)
    (d_theta,) = torch.autograd.grad(grid(theta), theta, d_grid)
    torch.testing.assert_close((slope * d_grid).sum(), (tangent * d_theta).sum())


def test_a_grid_is_its_owners(torch_path):
    """Changed in place, it changes no gradient: not even one of one pixel, whose axes lie as they please."""
    theta = a_homography(1)
    expected = torch.autograd.grad(TRANSFORMS["homography"].grid(theta, (1, 1)).sum(), theta)[0]
    grid = TRANSFORMS["homography"].grid(theta, (1, 1))
    total = grid.sum()
    with torch.no_grad():
        grid.fill_(torch.nan)
    torch.testing.assert_close(torch.autograd.grad(total, theta)[0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["contiguous", "strided"])
def test_values_are_bounded_together(dtype, layout):
    """By the sum of their squares, where they lie side by side."""

    def bounded(*values):
        tensor = torch.zeros(7, 4, dtype=dtype)
        tensor[0, : len(values)] = torch.tensor(values, dtype=dtype)
        return torch_sampler.is_bounded(tensor if layout == "contiguous" else tensor.mT)

    far = torch_sampler.bound(dtype)
    assert bounded(0.4 * far, -0.4 * far)
    assert not bounded(far)
    assert not bounded(0, -far)
    for value in (torch.nan, torch.inf, -torch.inf, 1e38):
        assert not bounded(0, value)
    assert torch_sampler.is_bounded(torch.empty(0, 4, dtype=dtype))


class Gradients(TorchDispatchMode):
    """Whether the gradients that torch's sampler is given lie in planes."""

    def __init__(self):
        super().__init__()
        self.contiguous = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.grid_sampler_2d_backward.default:
            self.contiguous.append(args[0].is_contiguous())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torchs_sampler_goes_through_gradients_in_planes(torch_path, dtype):
    """Also of channels_last outputs, whose gradients are channels_last: there it takes twice as long."""
    image = torch.randn(2, 8, 12, 12, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    out = affine_sample(image, torch.eye(2, 3).expand(2, -1, -1))
    assert out.is_contiguous(memory_format=torch.channels_last)
    with Gradients() as seen:
        (d_image,) = torch.autograd.grad(out, image, torch.ones_like(out))
    assert seen.contiguous == [True]
    assert d_image.shape == image.shape


class NoGradient(torch.autograd.Function):
    """Gives none back."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, d):
        return None


def test_an_output_without_a_gradient(torch_path):
    image = torch.randn(2, 8, 12, 12).contiguous(memory_format=torch.channels_last).requires_grad_()
    NoGradient.apply(affine_sample(image, torch.eye(2, 3).expand(2, -1, -1))).sum().backward()
    assert image.grad is None or not image.grad.any()


def test_many_gradients_at_once(torch_path):
    """As a Jacobian asks for them, in one pass."""
    theta = a_homography()

    def grid(theta):
        return TRANSFORMS["homography"].grid(theta, (2, 3))

    one_by_one, at_once = (torch.autograd.functional.jacobian(grid, theta, vectorize=v) for v in (False, True))
    torch.testing.assert_close(at_once, one_by_one)
