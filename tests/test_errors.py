"""`affine_sample` and the modules say which argument is wrong, what was expected and what was got."""

import pytest
import torch

from stn_triton import (
    Affine,
    ConvolutionalLocalisation,
    FullyConnectedLocalisation,
    SpatialTransformer,
    ThinPlateSpline,
    affine_sample,
    start_at_identity,
    transform_sample,
    warmup,
)

X, T = torch.rand(2, 3, 4, 5), torch.rand(2, 2, 3)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((X.int(), T), {}, TypeError, "image: expected dtype .* got torch.int32"),
        ((X.numpy(), T), {}, TypeError, "image: expected a tensor, got ndarray"),
        ((X, T.tolist()), {}, TypeError, "theta: expected a tensor, got list"),
        ((X, T.long()), {}, TypeError, "theta: expected dtype .* got torch.int64"),
        ((X[0], T), {}, ValueError, r"image: expected shape \(N, C, H, W\).* got \(3, 4, 5\)"),
        ((X[..., :0], T), {}, ValueError, r"image: .* at least 1, got \(2, 3, 4, 0\)"),
        (
            (X, T[0]),
            {},
            ValueError,
            r"theta: expected shape \(N, 2, 3\) = \(2, 2, 3\), got \(2, 3\); .*: theta\[None\]$",
        ),
        ((X, T.view(2, 6)), {}, ValueError, r"theta: .* got \(2, 6\)$"),
        ((X, T[0, 0, 0]), {}, ValueError, r"theta: .* got \(\)"),
        ((X, torch.rand(3, 2, 3)), {}, ValueError, "theta: expected the image's batch size 2 or 1, got 3"),
        ((X[:1], T), {}, ValueError, r"theta: .* batch size 1 or 1, got 2, or expand the image"),
        ((X.to("meta"), T), {}, ValueError, "theta: expected the image's device meta, got cpu"),
        ((X, T, (3, 3)), {"fill": "a", "padding_mode": "fill"}, TypeError, "fill: expected a number, C numbers"),
        ((X, T, 5), {}, TypeError, "size: expected a sequence of whole numbers, got 5"),
        ((X, T, (2.5, 3)), {}, TypeError, r"size: expected a sequence of whole numbers, got \(2.5, 3\)"),
        ((X, T, (True, 3)), {}, TypeError, r"size: expected a sequence of whole numbers, got \(True, 3\)"),
        ((X, T, (2, 3, 4)), {}, ValueError, r"size: expected two numbers \(h, w\) of at least 0, got \(2, 3, 4\)"),
        ((X, T, (-1, 3)), {}, ValueError, r"size: .* got \(-1, 3\)"),
        ((X, T), {"mode": "cubic"}, ValueError, "mode: expected one of 'bilinear', 'nearest', 'bicubic', got 'cubic'"),
        ((X, T), {"mode": None}, ValueError, "mode: .* got None"),
        ((X, T), {"align_corners": "False"}, TypeError, "align_corners: expected True or False, got 'False'"),
        ((X, T), {"align_corners": 2}, TypeError, "align_corners: expected True or False, got 2"),
        ((X.to_sparse(), T), {}, TypeError, "image: expected a dense tensor .*, got torch.sparse_coo"),
        ((X, T), {"padding_mode": "zero"}, ValueError, "padding_mode: expected one of .* got 'zero'"),
    ],
)
def test_affine_sample(arguments, options, error, message):
    with pytest.raises(error, match=message):
        affine_sample(*arguments, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transform": "afine"}, "transform: expected a Transform object or one of 'attention', .*, got 'afine'"),
        ({"mode": "cubic"}, "mode: expected one of"),
        ({"padding_mode": "wrap"}, "padding_mode: expected one of"),
        ({"size": (3,)}, r"size: expected two numbers \(h, w\)"),
        ({"fill": 1.0}, "fill: expected padding_mode 'fill' with it, got 'zeros'"),
        ({"padding_mode": "fill"}, "fill: expected a number, C numbers or a tensor with padding_mode 'fill', got None"),
    ],
)
def test_spatial_transformer(options, message):
    with pytest.raises(ValueError, match=message):
        SpatialTransformer(torch.nn.Flatten(), **options)


@pytest.mark.parametrize("localisation", [6, torch.nn.Identity], ids=str)
def test_a_localisation_that_cannot_be_called(localisation):
    with pytest.raises(TypeError, match="localisation: expected a module or function of the map, got"):
        SpatialTransformer(localisation)


@pytest.mark.parametrize("network", [FullyConnectedLocalisation, ConvolutionalLocalisation])
def test_a_map_of_another_shape(network):
    with pytest.raises(ValueError, match=r"in_shape: expected \(C, H, W\), got \(8, 9\)"):
        network((8, 9))


def test_a_localisation_for_another_transform():
    """Also where its numbers are as many: two attentions are no affine map."""
    two = ConvolutionalLocalisation((3, 8, 8), transform="attention", heads=2)
    with pytest.raises(ValueError, match="localisation: expected one that predicts 1 x 'affine', got 2 x 'attention'"):
        SpatialTransformer(two, "affine")
    SpatialTransformer(two, "attention", heads=2)
    SpatialTransformer(FullyConnectedLocalisation((3, 8, 8)), heads=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FullyConnectedLocalisation((3, 8, 8), 32), "hidden: expected a sequence of whole numbers, got 32"),
        (lambda: ConvolutionalLocalisation((3, 8, 8), 20), "channels: expected a sequence of whole numbers, got 20"),
        (lambda: ConvolutionalLocalisation((3, 8, 8), hidden=(20,)), r"hidden: expected a whole number, got \(20,\)"),
    ],
)
def test_widths_of_a_localisation(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_localisation_of_the_wrong_width():
    with pytest.raises(ValueError, match=r"localisation: expected \(N, 6\) or \(N, 2, 3\) of the transform 'affine'"):
        SpatialTransformer(torch.nn.Flatten())(X)


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        (lambda x: torch.rand(2, 3, 2), ValueError, r"localisation: expected \(N, 6\) .* got \(2, 3, 2\)"),
        (lambda x: (1, 2), TypeError, "localisation's output: expected a tensor, got tuple"),
    ],
)
def test_localisation_of_the_wrong_shape(output, error, message):
    with pytest.raises(error, match=message):
        SpatialTransformer(output)(X)


def test_a_flow_with_channels_first_is_not_reshaped():
    with pytest.raises(ValueError, match=r"localisation: .* got \(2, 2, 4, 5\)"):
        SpatialTransformer(lambda x: torch.rand(2, 2, 4, 5), "dense")(X)


@pytest.mark.parametrize(
    "wrap", [torch.nn.utils.parametrizations.weight_norm, torch.nn.utils.parametrizations.spectral_norm]
)
def test_a_layer_that_computes_its_weight_cannot_start_at_the_identity(wrap):
    with pytest.raises(ValueError, match="whose weight is a plain parameter"):
        start_at_identity(wrap(torch.nn.Linear(3, 6)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Affine().grid(torch.rand(4, 6), (3, 3)), r"theta: expected shape \(N, 2, 3\) .* got \(4, 6\)"),
        (lambda: Affine().points(torch.rand(1, 2, 3), torch.rand(4, 3)), r"xy: expected .* got \(4, 3\)"),
        (
            lambda: Affine().points(torch.rand(2, 2, 3), torch.rand(2, 3, 4, 2)),
            r"xy: expected shape \(P, 2\) or \(N, P, 2\), got \(2, 3, 4, 2\)",
        ),
        (
            lambda: Affine().points(torch.rand(2, 5, 2, 3), torch.rand(1, 2, 3, 4, 2)),
            r"xy: expected .* \(P, 2\), \(N, P, 2\) or \(N, M, P, 2\), got \(1, 2, 3, 4, 2\)",
        ),
        (
            lambda: Affine().points(torch.rand(2, 2, 3), torch.rand(3, 4, 2)),
            "xy: expected theta's batch size 2 or 1, got 3",
        ),
        (
            lambda: Affine().points(torch.rand(2, 5, 2, 3), torch.rand(2, 3, 4, 2)),
            "xy: expected theta's M = 5 or 1, got 3",
        ),
        (
            lambda: transform_sample("flow", X, torch.zeros(2, 8, 9, 2)),
            r"theta: expected .* \(2, 4, 5, 2\), got \(2, 8, 9, 2\); it is one for size=\(8, 9\)",
        ),
        (lambda: transform_sample("dence", X, T), "transform: expected a Transform object or one of .* got 'dence'"),
        (lambda: transform_sample(Affine, X, T), "transform: expected a Transform object"),
    ],
)
def test_transform_objects(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Affine().points(T, [[1, 1]]), TypeError, "xy: expected a tensor, got list"),
        (lambda: Affine().points(T, torch.rand(4, 2).to_sparse()), TypeError, "xy: expected a dense tensor"),
        (lambda: Affine().points(T, torch.rand(4, 2, device="meta")), ValueError, "xy: expected theta's device cpu"),
        (lambda: ThinPlateSpline(torch.rand(4, 2, device="meta")), ValueError, "control_points: .* on meta"),
        (lambda: warmup((1, 1, 8, 8), device="gpu"), ValueError, "device: expected a torch.device .* got 'gpu'"),
    ],
)
def test_tensors_and_devices_that_cannot_be_used(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    "module", [torch.nn.Flatten(), torch.nn.Linear(3, 5), torch.nn.Linear(3, 6, bias=False)], ids=str
)
def test_start_at_identity(module):
    with pytest.raises(ValueError, match="localisation: expected a last linear or convolutional layer with 6 outputs"):
        start_at_identity(module)
