"""Flows in all their notations: pixels or normalised, (N, h, w, 2) or (N, 2, h, w)."""

import copy

import pytest
import torch

from stn_triton import Dense, Flow, flow_sample, plan, reference, transform_sample

H, W, SIZE = 6, 9, (5, 8)
NOTATIONS = [(units, first) for units in ("pixels", "normalised") for first in (False, True)]
notations = pytest.mark.parametrize(("units", "channels_first"), NOTATIONS)


def written(flow, units, channels_first, align_corners):
    """A flow (..., h, w, 2) of pixels in another notation, and the factor that its gradient has to be."""
    factor = torch.ones(2, dtype=flow.dtype)
    if units == "normalised":
        factor = 2 / (torch.tensor([W, H], dtype=flow.dtype) - int(align_corners))
    flow = flow * factor.to(flow.device)
    return (flow.movedim(-1, -3).contiguous() if channels_first else flow).detach().requires_grad_()


@notations
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("batch", [(2,), (1,), (2, 3)], ids=str)
def test_one_flow_in_four_notations(path, units, channels_first, align_corners, batch):
    """Output and gradients of each are those of the flow in pixels, (N, h, w, 2)."""
    image = torch.randn(2, 3, H, W, dtype=torch.float64, device=path.device, requires_grad=True)
    pixels = 3 * torch.randn(*batch, *SIZE, 2, dtype=torch.float64, device=path.device)
    flows = [written(pixels, "pixels", False, align_corners), written(pixels, units, channels_first, align_corners)]
    outs = [
        flow_sample(image, flow, units=u, channels_first=c, align_corners=align_corners, padding_mode="border")
        for flow, u, c in zip(flows, ("pixels", units), (False, channels_first), strict=True)
    ]
    torch.testing.assert_close(outs[1], outs[0])
    d_out = torch.randn_like(outs[0])
    truth, ours = (torch.autograd.grad(out, [image, flow], d_out) for out, flow in zip(outs, flows, strict=True))
    torch.testing.assert_close(ours[0], truth[0])
    d_flow = ours[1].movedim(-3, -1) if channels_first else ours[1]
    if units == "normalised":  # back to a gradient per pixel
        d_flow = d_flow * 2 / (torch.tensor([W, H], device=path.device) - int(align_corners))
    torch.testing.assert_close(d_flow, truth[1])


def test_pixels_are_the_image_s(path):
    """A displacement of whole pixels at equal sizes moves the image and rounds nothing."""
    image = torch.randn(1, 2, H, W, device=path.device)
    flow = torch.tensor([2.0, -1.0], device=path.device).expand(1, H, W, 2)
    for align_corners in (False, True):
        out = flow_sample(image, flow, units="pixels", channels_first=False, align_corners=align_corners)
        torch.testing.assert_close(out[:, :, 1:, :-2], image[:, :, :-1, 2:], rtol=0, atol=1e-5)
        assert (out[..., -2:].abs() < 1e-5).all()


@notations
def test_no_flow_is_the_identity_bit_for_bit(kernel_path, units, channels_first):
    image = torch.randn(1, 2, 7, 11, device=kernel_path.device)
    flow = torch.zeros(1, *((2, 7, 11) if channels_first else (7, 11, 2)), device=kernel_path.device)
    for align_corners in (False, True):
        options = {"units": units, "channels_first": channels_first, "align_corners": align_corners}
        assert torch.equal(flow_sample(image, flow, **options), image)


@notations
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
def test_a_displacement_that_is_no_number_reads_nothing(path, units, channels_first, padding_mode):
    flow = torch.zeros(1, 3, 4, 2, device=path.device)
    flow[0, 1, 2, 0], flow[0, 2, 3, 1], flow[0, 0, 0] = float("nan"), float("inf"), -float("inf")
    flow = (flow.movedim(-1, 1) if channels_first else flow).requires_grad_()
    image = torch.ones(1, 1, 3, 4, device=path.device, requires_grad=True)
    out = flow_sample(image, flow, units=units, channels_first=channels_first, padding_mode=padding_mode)
    lost = torch.zeros(3, 4, dtype=torch.bool)
    lost[1, 2] = lost[2, 3] = lost[0, 0] = True
    assert ((out[0, 0].cpu() == 0) == lost).all()
    d_image, d_flow = torch.autograd.grad(out.sum(), [image, flow])
    assert d_image.isfinite().all()
    assert d_flow.isfinite().all()


@notations
@pytest.mark.parametrize("align_corners", [False, True])
def test_grid_and_points(units, channels_first, align_corners):
    flow = torch.randn(2, *SIZE, 2, dtype=torch.float64)
    transform = Flow(channels_first=channels_first, image_size=(H, W) if units == "pixels" else None)
    theta = written(flow, units, channels_first, align_corners)
    as_normalised = written(flow, "normalised", False, align_corners).detach().numpy()
    truth = torch.from_numpy(reference.flow_grid(as_normalised, SIZE, align_corners))
    torch.testing.assert_close(transform.grid(theta, SIZE, align_corners), truth)
    xy = torch.from_numpy(reference.flow_grid(0 * as_normalised[:1], SIZE, align_corners)).view(-1, 2)
    torch.testing.assert_close(transform.points(theta, xy, align_corners), truth.view(2, -1, 2))


@notations
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_are_computed_in_float32_and_rounded_once(units, channels_first, dtype):
    transform = Flow(channels_first=channels_first, image_size=(H, W) if units == "pixels" else None)
    theta = written(torch.randn(2, *SIZE, 2), units, channels_first, False).to(dtype)
    xy = torch.rand(7, 2) * 2 - 1
    assert torch.equal(transform.grid(theta, SIZE), transform.grid(theta.float(), SIZE).to(dtype))
    assert torch.equal(transform.points(theta, xy), transform.points(theta.float(), xy))


@notations
@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_huge_displacements(path, padding_mode, units, channels_first):
    """Up to the largest float32: far outside, as to the reference, on either side of either axis."""
    largest = torch.finfo(torch.float32).max
    flow = torch.zeros(4, *SIZE, 2)
    for k, magnitude in enumerate((1e9, 1e20, largest / 4, largest)):
        flow[k, :, ::3, 0], flow[k, :, 1::3, 0] = magnitude, -magnitude
        flow[k, ::3, :, 1], flow[k, 1::3, :, 1] = magnitude, -magnitude
    image = torch.rand(4, 2, H, W, device=path.device, requires_grad=True)
    in_pixels = torch.tensor([2 / W, 2 / H]).double() if units == "pixels" else 1
    grid = reference.flow_grid((flow.double() * in_pixels).numpy(), SIZE)
    theta = (flow.movedim(-1, 1) if channels_first else flow).to(path.device).requires_grad_()
    out = flow_sample(image, theta, units=units, channels_first=channels_first, padding_mode=padding_mode)
    truth = reference.grid_sample(image.detach().double().cpu().numpy(), grid, padding_mode=padding_mode)
    torch.testing.assert_close(out.detach().cpu(), torch.from_numpy(truth).float())
    d_image, d_theta = torch.autograd.grad(out.sum(), [image, theta])
    ones = torch.ones(out.shape).numpy()
    truth, _ = reference.grid_sample_backward(ones, image.detach().cpu().numpy(), grid, padding_mode=padding_mode)
    torch.testing.assert_close(d_image.cpu(), torch.from_numpy(truth).float())
    d_flow = (d_theta.movedim(1, -1) if channels_first else d_theta).cpu()
    assert d_flow.isfinite().all()
    assert (d_flow[flow != 0] == 0).all()


@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize(("units", "displacement", "align_corners"), [
    ("pixels", 2.0, False), ("pixels", 2.0, True), ("pixels", 3e38, True), ("pixels", 1.5e38, False),
    ("normalised", 4.0, False), ("normalised", 4.0, True), ("normalised", 3e38, True), ("normalised", 3e38, False),
])  # fmt: skip
def test_an_axis_of_one_pixel(path, padding_mode, align_corners, units, displacement):
    """Has an extent of 1 by edges and none by centres, where no displacement leads out of it."""
    image = torch.tensor([1.0, 2, 4], device=path.device).view(1, 1, 3, 1)
    flow = torch.tensor([displacement, 0.0], device=path.device).repeat(1, 3, 1, 1).requires_grad_()
    options = {"padding_mode": padding_mode, "align_corners": align_corners}
    out = flow_sample(image, flow, units=units, channels_first=False, **options)
    assert torch.equal(out, torch.zeros_like(image) if padding_mode == "zeros" and not align_corners else image)
    if align_corners:
        assert (torch.autograd.grad(out.square().sum(), flow)[0][..., 0] == 0).all()


def test_pixels_of_another_image():
    with pytest.raises(ValueError, match=r"image: expected size \(4, 4\) as Flow\(.*\) has it, got \(1, 1, 6, 9\)"):
        transform_sample(Flow(image_size=(4, 4)), torch.zeros(1, 1, H, W), torch.zeros(1, H, W, 2))


def test_a_large_flow_is_one_pass_too(torch_path, monkeypatch):
    """What makes points for displacements of any size is for those that are not known to be bounded."""
    monkeypatch.setattr("stn_triton.transforms.flow.MOST_KEPT", 1)
    image, flow = torch.rand(1, 1, H, W), torch.rand(1, 2, H, W)
    kept = flow_sample(image, flow, units="pixels", channels_first=True)
    monkeypatch.setattr(Flow, "grid_of", None)
    torch.testing.assert_close(flow_sample(image, flow, units="pixels", channels_first=True), kept)


def test_launches_are_planned_once(kernel_path):
    """For equal flows, as every call makes one."""
    image, flow = torch.zeros(1, 1, H, W, device=kernel_path.device), torch.zeros(1, H, W, 2, device=kernel_path.device)
    for _ in range(3):
        flow_sample(image, flow, units="pixels", channels_first=False)
        transform_sample(Flow(image_size=[H, W]), image, flow)
    assert plan.plan_forward.misses == 1


def test_flows_of_equal_settings_are_equal():
    different = [Flow(), Flow(channels_first=True), Flow(image_size=(H, W)), Flow(image_size=(W, H)), Dense()]
    assert [a == b for a in different for b in different] == [a is b for a in different for b in different]
    assert len({*different, *copy.deepcopy(different[:-1])}) == len(different)


def test_compiles_to_one_graph_without_a_warning(torch_path):
    def loss(image, flow):
        return flow_sample(image, flow, units="pixels", channels_first=True).square().sum()

    image, flow = torch.randn(1, 2, H, W), torch.randn(1, 2, *SIZE, requires_grad=True)
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    ours, truth = (torch.autograd.grad(run(image, flow), flow)[0] for run in (compiled, loss))
    torch.testing.assert_close(ours, truth)


def test_one_graph_for_changing_sizes(torch_path):
    """A second graph is of any batch and height."""
    graphs = []

    def warp(image, flow):
        return flow_sample(image, flow, units="pixels", channels_first=True)

    compiled = torch.compile(warp, backend=lambda graph, _: graphs.append(graph) or graph, fullgraph=True)
    for n, h in ((4, 8), (5, 9), (2, 7), (3, 12)):
        image, flow = torch.rand(n, 1, h, W), torch.rand(n, 2, h, W)
        torch.testing.assert_close(compiled(image, flow), warp(image, flow))
    assert len(graphs) == 2


@pytest.mark.parametrize(("length", "align_corners"), [(1, False), (2, True)])
def test_a_pixel_that_is_half_the_image(path, length, align_corners):
    """A displacement of the largest float32, in pixels, is none in normalised coordinates."""
    image = torch.arange(1.0, length + 1, device=path.device).view(1, 1, 1, length)
    flow = torch.tensor([torch.finfo(torch.float32).max, 0.0], device=path.device).expand(1, 1, length, 2)
    options = {"units": "pixels", "channels_first": False, "align_corners": align_corners, "padding_mode": "border"}
    assert (flow_sample(image, flow, **options) == length).all()
    assert (flow_sample(image, -flow, **options) == 1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"units": "pixel"}, "units: expected one of 'pixels', 'normalised', got 'pixel'"),
        ({"channels_first": True}, r"flow: expected shape \(N, 2, h, w\) on cpu, got \(1, 6, 9, 2\) on cpu"),
        ({"flow": torch.zeros(H, W, 2)}, r"flow: expected shape \(N, h, w, 2\) on cpu, got \(6, 9, 2\)"),
        ({"flow": torch.zeros(2)}, r"flow: expected shape \(N, h, w, 2\) on cpu, got \(2,\)"),
        ({"flow": torch.zeros(3, H, W, 2)}, "flow: expected the image's batch size 1 or 1, got 3"),
    ],
)
def test_errors(change, message):
    arguments = {"flow": torch.zeros(1, H, W, 2), "units": "pixels", "channels_first": False, **change}
    with pytest.raises(ValueError, match=message):
        flow_sample(torch.zeros(1, 1, H, W), **arguments)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"channels_first": "x"}, TypeError, "channels_first: expected True or False, got 'x'"),
        ({"image_size": (6,)}, ValueError, r"image_size: expected two numbers \(h, w\) of at least 1, got \(6,\)"),
        ({"image_size": (0, 4)}, ValueError, r"image_size: expected two numbers \(h, w\) of at least 1, got \(0, 4\)"),
        ({"image_size": 6}, TypeError, "image_size: expected a sequence of whole numbers, got 6"),
    ],
)
def test_errors_of_the_object(options, error, message):
    with pytest.raises(error, match=message):
        Flow(**options)


def test_what_flow_means_must_be_said():
    with pytest.raises(TypeError, match="units"):
        flow_sample(torch.zeros(1, 1, H, W), torch.zeros(1, H, W, 2), channels_first=False)
    with pytest.raises(TypeError, match="channels_first"):
        flow_sample(torch.zeros(1, 1, H, W), torch.zeros(1, H, W, 2), units="pixels")


def test_a_name_of_its_own(path):
    image, flow = torch.rand(2, 1, H, W, device=path.device), torch.rand(2, *SIZE, 2, device=path.device)
    ours = transform_sample("flow", image, flow, SIZE)
    assert torch.equal(ours, flow_sample(image, flow, units="normalised", channels_first=False))
