"""`SpatialTransformer` and the localisation networks."""

import copy
import pickle

import pytest
import torch
from torch import nn

from stn_triton import (
    Affine,
    BasisExpansion,
    ConvolutionalLocalisation,
    FreeThinPlateSpline,
    FullyConnectedLocalisation,
    SpatialTransformer,
    affine_sample,
    start_at_identity,
    warmup,
)

LOCALISATIONS = {
    "fully connected": lambda: FullyConnectedLocalisation((2, 12, 10)),
    "convolutional": lambda: ConvolutionalLocalisation((2, 12, 10)),
    "one's own": lambda: start_at_identity(nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(18, 6))),
    "all convolutional": lambda: start_at_identity(
        nn.Sequential(nn.Conv2d(2, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 6, 1))
    ),
}


@pytest.mark.parametrize("name", LOCALISATIONS)
def test_starts_at_the_identity_and_learns(path, name):
    torch.manual_seed(0)
    transformer = SpatialTransformer(LOCALISATIONS[name](), return_theta=True).to(path.device)
    image = torch.randn(3, 2, 12, 10, device=path.device)
    out, theta = transformer(image)
    assert torch.equal(theta, torch.eye(2, 3, device=path.device).expand(3, 2, 3))
    if path.name == "kernel":
        assert torch.equal(out, image)
    torch.testing.assert_close(out, image, rtol=0, atol=1e-4)
    target = affine_sample(image, torch.tensor([[[0.9, 0.1, 0.1], [-0.1, 0.9, 0.0]]], device=path.device))
    optimizer = torch.optim.Adam(transformer.parameters(), 3e-3)
    losses = []
    for _ in range(12):
        loss = (transformer(image)[0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_options_reach_the_warp():
    image, theta = torch.randn(2, 1, 5, 6), torch.randn(2, 2, 3)
    options = {"mode": "nearest", "padding_mode": "reflection", "align_corners": True}
    transformer = SpatialTransformer(lambda image: theta.view(2, 6), Affine(), (3, 4), **options)
    torch.testing.assert_close(transformer(image), affine_sample(image, theta, (3, 4), **options))
    assert "transform='affine', size=(3, 4), heads=None, mode='nearest'" in repr(transformer)


def test_one_theta_for_the_whole_batch():
    theta = nn.Parameter(torch.eye(1, 6).view(1, 6))
    out = SpatialTransformer(lambda image: theta)(torch.randn(4, 1, 3, 3))
    out.sum().backward()
    assert theta.grad.shape == (1, 6)


def test_state_and_copies():
    transformer = SpatialTransformer(FullyConnectedLocalisation((1, 4, 4)))
    clone = copy.deepcopy(transformer)
    clone.load_state_dict(transformer.state_dict())
    image = torch.randn(1, 1, 4, 4)
    torch.testing.assert_close(clone(image), transformer(image))


def test_gradient_flows_into_a_network_below():
    below = nn.Conv2d(1, 2, 3, padding=1)
    image = torch.randn(2, 1, 8, 8)
    SpatialTransformer(ConvolutionalLocalisation((2, 8, 8)))(below(image)).square().sum().backward()
    assert below.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("network", [FullyConnectedLocalisation, ConvolutionalLocalisation])
@pytest.mark.parametrize("shape", [(3, 2, 24, 20), (3, 2, 10, 12), (3, 1, 12, 10), (2, 12, 10), (12, 10)], ids=str)
def test_a_localisation_of_maps_of_another_shape(network, shape):
    """Shapes with a matching number of features, before or after pooling, are refused, too."""
    localisation = network((2, 12, 10))
    got = ", ".join(map(str, shape))
    with pytest.raises(ValueError, match=rf"image: expected shape \(N, 2, 12, 10\), as in_shape .*, got \({got}\)"):
        localisation(torch.zeros(shape))
    if len(shape) == 4:
        with pytest.raises(ValueError, match=r"image: expected shape \(N, 2, 12, 10\), as in_shape"):
            SpatialTransformer(localisation)(torch.zeros(shape))
    for n in (0, 1, 3):
        assert localisation(torch.zeros(n, 2, 12, 10)).shape == (n, 6)


@pytest.mark.parametrize("network", [FullyConnectedLocalisation, ConvolutionalLocalisation])
def test_a_localisation_is_a_sequence_of_its_layers(network):
    localisation, image = network((2, 12, 10)), torch.rand(3, 2, 12, 10)
    layers = list(localisation)
    parameters = [f"{k}.{name}" for k, layer in enumerate(layers) for name in layer.state_dict()]
    assert list(localisation.state_dict()) == parameters
    assert localisation[-1] is layers[-1]
    assert list(localisation[:2]) == layers[:2]
    torch.testing.assert_close(localisation[:-1](image), nn.Sequential(*layers[:-1])(image))
    nn.init.normal_(localisation[-1].weight)
    plain = nn.Sequential(*layers)(image)
    for same in (localisation, pickle.loads(pickle.dumps(localisation)), torch.fx.symbolic_trace(localisation)):
        torch.testing.assert_close(same(image), plain)
    compiled = torch.compile(localisation, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(image), plain)


@pytest.mark.parametrize("layer", [nn.LazyLinear(6), nn.LazyConv2d(6, 12)], ids=str)
def test_a_lazy_layer_has_to_see_a_map_before_it_can_start_at_the_identity(layer):
    network = nn.Sequential(nn.Flatten(), layer) if isinstance(layer, nn.Linear) else nn.Sequential(layer)
    with pytest.raises(ValueError, match=r"localisation: expected .* got .*Lazy.*: call localisation\(image\) once"):
        start_at_identity(network)
    network(torch.rand(1, 1, 12, 12))
    start_at_identity(network)
    assert network(torch.rand(1, 1, 12, 12)).flatten().tolist() == [1, 0, 0, 0, 1, 0]
    with pytest.raises(ValueError, match="with 6 outputs and a bias"):
        start_at_identity(nn.LazyLinear(6, bias=False))


@pytest.mark.parametrize(
    ("transform", "advice"),
    [
        (FreeThinPlateSpline(5), r"every theta .* is an identity, torch.cat\(\[points, points\], -1\)"),
        (BasisExpansion(None, 3, lambda x, y: torch.stack([x, y, x * y])), r"BasisExpansion\(..., identity=theta\)"),
    ],
    ids=str,
)
def test_no_warmup_by_a_transform_without_an_identity(transform, advice):
    with pytest.raises(ValueError, match=r"transform: expected .* identity.*, got .*: call transform_sample") as error:
        warmup((1, 1, 4, 4), transform=transform, device="cpu")
    assert error.match(advice)
    with pytest.raises(ValueError, match=advice):
        start_at_identity(nn.Linear(4, 20), transform)


def test_convolutional_localisation_needs_room_to_pool():
    with pytest.raises(ValueError, match=r"in_shape: expected H and W of at least 4 .* got \(1, 3, 8\)"):
        ConvolutionalLocalisation((1, 3, 8))


def test_no_network_predicts_a_whole_grid():
    with pytest.raises(ValueError, match=r"transform: expected one with a fixed number of parameters, got Dense\(\)"):
        FullyConnectedLocalisation((1, 4, 4), transform="dense")


@pytest.mark.parametrize("align_corners", [False, True])
def test_a_grid_can_start_at_the_identity(align_corners):
    network = start_at_identity(nn.Sequential(nn.Flatten(), nn.Linear(16, 32)), "dense", (4, 4), align_corners)
    image = torch.randn(1, 1, 4, 4)
    out = SpatialTransformer(network, "dense", align_corners=align_corners)(image)
    torch.testing.assert_close(out, image)
