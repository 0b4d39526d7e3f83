"""The benchmark is right about what it says: workloads, gate, clocks, turns and tables."""

import itertools
import json
import math
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from bench import clock, command_line, measure, report, results, rivals, runner, steps, svhn, traffic
from bench.gate import LARGEST, Gate
from bench.inputs import VALUES, make_inputs, transform_of
from bench.memory import peak_bytes
from bench.rivals import RIVALS, Missing
from bench.steps import Step, replays, steps_of
from bench.workloads import WORKLOADS, Workload
from stn_triton import plan, reference
from stn_triton.kernels import samplers

CPU = torch.device("cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BY_NAME = {workload.name: workload for workload in WORKLOADS}
SMALL = {name: workload.shrunk() for name, workload in BY_NAME.items()}

each_workload = pytest.mark.parametrize("workload", SMALL.values(), ids=SMALL)


def verdict(workload, name="ours", device=CPU):
    inputs = make_inputs(workload, device)
    return Gate(workload, inputs, RIVALS["pytorch"](workload, inputs)).judge(
        RIVALS[name](workload, inputs), name == "ours"
    )


# --- workloads ---------------------------------------------------------------------------------------------------


def test_names_are_their_own():
    assert len(BY_NAME) == len(WORKLOADS)


@each_workload
def test_ours_passes_the_gate(path, workload):
    judged = verdict(workload, device=path.device)
    assert judged.complaint == ""
    expected = {
        "out": True,
        "mask": workload.mask,
        "d_image": workload.needs_image,
        "d_parameters": workload.needs_theta,
    }
    names = {name for name, there in expected.items() if there}
    assert set(judged.errors) == names | {name + LARGEST for name in names}


@each_workload
def test_the_truth_is_the_references(workload):
    """PyTorch's grid is the transform's own, its sampler at float64 the reference's."""
    inputs = make_inputs(workload, CPU)
    theta, image = inputs.theta.detach().double(), inputs.image.detach().double()
    grid = rivals.exact_grid(workload)(theta)
    own = transform_of(workload).grid(theta, workload.size, workload.align_corners)
    torch.testing.assert_close(grid, own.flatten(0, 1) if workload.transforms else own, rtol=0, atol=1e-12)
    fill = None if inputs.fill is None else inputs.fill.double()
    out = rivals.sample(replace(workload, mask=False), image, grid, fill)
    copies = image.repeat_interleave(workload.transforms or 1, 0)
    expected = reference.grid_sample(
        copies.numpy(), grid.numpy(), workload.mode, workload.padding_mode, workload.align_corners,
        0.0 if fill is None else fill.numpy(),
    )  # fmt: skip
    np.testing.assert_allclose(out.numpy().reshape(expected.shape), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in RIVALS if name != "ours" and not name.startswith("compile")])
@each_workload
def test_rivals_compute_the_same(torch_path, workload, name):
    try:
        judged = verdict(workload, name, DEVICE)
    except Missing as why:
        pytest.skip(f"{name}: {why}")
    assert judged.complaint == "" or name == "half_grid"


@pytest.mark.parametrize("name", ["stacked_grid", "ready_grid"])
def test_stacked_outputs_have_masks(torch_path, name):
    assert verdict(replace(SMALL["birds-4-crops"], mask=True), name).complaint == ""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own
def test_compiled_computes_the_same(torch_path):
    assert verdict(SMALL["stn-tutorial"], "compile").complaint == ""


def test_headline_rows_are_those_that_a_gpu_measures_first():
    assert {"stn-tutorial", "text-recognition", "basicvsr", "bevformer"} <= {w.name for w in WORKLOADS if w.headline}


@pytest.mark.parametrize(
    ("workload", "expected"),
    [
        (
            Workload("both", "", (2, 3, 4, 5), (6, 7)),
            {"forward": 480 + 48 + 1008, "backward": 1008 + 48 + 480 + 480 + 48},
        ),
        (
            # of 12,800 pixels 2 x 16 are read; the image's gradient is written whole
            Workload("windows", "", (2, 1, 80, 80), (3, 3), "dense", "image", align_corners=True, values="windows"),
            {"forward": 2 * 16 * 4 + 144 + 72, "backward": 72 + 144 + 51200},
        ),
        (
            replace(
                BY_NAME["birds-4-crops"], image=(1, 8, 4, 4), size=(4, 4), needs="none", dtype="float16", mask=True
            ),
            {"forward": 256 + 4 * 12 + 4 * 16 * 9 * 2},
        ),
        (
            # pixel 1 of 3 in each axis is the nearest to all of the middle: 1 of 9 is read
            Workload("nearest", "", (1, 1, 3, 3), (2, 2), "dense", "none", mode="nearest", values="middle"),
            {"forward": 4 + 32 + 16},
        ),
        (
            # beyond the border the edge is read: the corner, all by itself
            Workload("border", "", (1, 1, 9, 9), (2, 2), "dense", "none", "border", values="outside"),
            {"forward": 4 + 32 + 16},
        ),
    ],
    ids=lambda value: value.name if isinstance(value, Workload) else "",
)  # fmt: skip
def test_compulsory_bytes(monkeypatch, workload, expected):
    for name, point in [("middle", 0.1), ("outside", 3.0)]:
        monkeypatch.setitem(VALUES, name, lambda rng, w, point=point: np.full((w.image[0], *w.size, 2), point))
    if "backward" in expected:
        expected["both"] = sum(expected.values())
    touched = traffic.touched_pixels(workload, make_inputs(workload, CPU))
    assert traffic.compulsory_bytes(workload, touched) == expected


# --- planted faults: the gate ------------------------------------------------------------------------------------


def wrong(monkeypatch, name, change):
    """Replaces a rival by one whose call is what ``change`` makes of the right one."""
    right = RIVALS[name]

    def planted(workload, inputs):
        job = right(workload, inputs)
        return job._replace(call=change(job.call))

    monkeypatch.setitem(RIVALS, name, planted)


class Doubled(torch.autograd.Function):
    """Passes values on, and twice the gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, d):
        return 2 * d


def shifted(pixels):
    """By a translation; kornia's parameters are pixels themselves."""
    return lambda call: lambda image, theta: call(image, theta + torch.tensor([[0, 0, 2 * pixels / 29], [0, 0, 0]]))


def at_one_pixel(value):
    def change(call):
        def changed(image, theta):
            out = call(image, theta)
            added = torch.zeros_like(out)
            added[0, 0, 11, 14] = value
            return out + added

        return changed

    return change


def last_row_detached(call):
    def changed(image, theta):
        out = call(image, theta)
        return torch.cat([out[..., :-1, :], out[..., -1:, :].detach()], 2)

    return changed


FAULTS = {
    "half a pixel": shifted(0.5),
    "a hundredth of a pixel": shifted(0.01),
    "a channel lost": lambda call: lambda image, theta: call(image * (torch.arange(3) > 0)[:, None, None], theta),
    "one pixel wrong": at_one_pixel(1.0),
    "one element not written": at_one_pixel(torch.nan),
    "twice the image's gradient": lambda call: lambda image, theta: call(Doubled.apply(image), theta),
    "twice theta's gradient": lambda call: lambda image, theta: call(image, Doubled.apply(theta)),
    "no gradient from the last row": last_row_detached,
    "another shape": lambda call: lambda image, theta: call(image, theta)[..., :-1],
    "two thousandths too much": lambda call: lambda image, theta: 1.002 * call(image, theta),
    "rounded to half": lambda call: lambda image, theta: call(image.half().float(), theta),
}


@pytest.mark.parametrize("fault", ["half a pixel", "a hundredth of a pixel", "one element not written"])
@pytest.mark.parametrize("needs", ["none", "both"])
def test_half_types_are_no_excuse(torch_path, monkeypatch, fault, needs):
    workload = replace(SMALL["kornia-affine-n8"], dtype="bfloat16", needs=needs)
    assert verdict(workload).complaint == ""
    wrong(monkeypatch, "ours", FAULTS[fault])
    assert "out off by" in verdict(workload).complaint


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["ours", "kornia"])
def test_what_is_wrong_is_not_timed(torch_path, monkeypatch, name, fault):
    """Neither is anybody, if it is ours."""
    workload = SMALL["kornia-affine-n8"]
    wrong(monkeypatch, name, FAULTS[fault])
    row = runner.Runner.on(CPU, ["kornia"], seconds=0.0).run(workload)
    if fault == "another shape":
        assert "raised" in row["rivals"][name]["missing"]
    else:
        assert "off by" in row["rivals"][name]["red"]
    assert "eager" not in row["rivals"][name]
    assert ("eager" in row["rivals"]["pytorch"]) == (name != "ours")
    assert runner.ours_is_there(row) == (name != "ours")


@pytest.mark.parametrize("fault", ["half a pixel", "twice the image's gradient", "two thousandths too much"])
def test_without_a_right_measure_nobody_is_timed(torch_path, monkeypatch, fault):
    """PyTorch's errors are the measure of the others' up to a bound."""
    for name in ("pytorch", "ours"):
        wrong(monkeypatch, name, FAULTS[fault])
    row = runner.Runner.on(CPU, ["kornia"], seconds=0.0).run(SMALL["kornia-affine-n8"])
    for name in ("pytorch", "ours"):
        assert "off by" in row["rivals"][name]["red"]
    assert not any("eager" in result for result in row["rivals"].values())


def test_one_pixel_of_many_shows(torch_path, monkeypatch):
    """By the largest error, where a norm over all of them hides it."""
    workload = replace(SMALL["kornia-affine-n8"], image=(2, 3, 200, 200), size=(200, 200))
    wrong(monkeypatch, "kornia", at_one_pixel(0.03))
    assert verdict(workload, "kornia").complaint.startswith("out, largest off by")


def test_a_rival_that_changes_its_inputs_is_red_alone(torch_path, monkeypatch):
    def change(call):
        def changed(image, theta):
            out = call(image, theta)
            theta.data.fill_(50)
            image.data.zero_()
            return out

        return changed

    wrong(monkeypatch, "other_corners", change)
    row = runner.Runner.on(CPU, ["other_corners", "kornia"], seconds=0.0).run(SMALL["kornia-affine-n8"])
    reds = {name: result.get("red") for name, result in row["rivals"].items()}
    assert "changed its inputs" in reds.pop("other_corners")
    assert not any(reds.values())


def test_inputs_are_restored_where_their_changer_raises(torch_path, monkeypatch):
    def change(call):
        def changed(image, theta):
            theta.data.fill_(50)
            raise ValueError("too late")

        return changed

    wrong(monkeypatch, "other_corners", change)
    row = runner.Runner.on(CPU, ["other_corners", "kornia"], seconds=0.0).run(SMALL["kornia-affine-n8"])
    assert row["rivals"]["other_corners"] == {"missing": "raised ValueError: too late"}
    for name in ("ours", "pytorch", "kornia"):
        assert "eager" in row["rivals"][name]


def test_nobody_is_believed_whose_inputs_changed_while_timed(torch_path, monkeypatch):
    def change(call):
        count = itertools.count()

        def changed(image, theta):
            if next(count) == 5:
                image.data[0] = 0
            return call(image, theta)

        return changed

    wrong(monkeypatch, "kornia", change)
    row = runner.Runner.on(CPU, ["kornia"], seconds=0.0).run(SMALL["kornia-affine-n8"])
    said = {"red": "somebody changed the inputs while all were timed"}
    assert {name: row["rivals"][name] for name in row["rivals"]} == dict.fromkeys(("ours", "pytorch", "kornia"), said)


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("half", lambda out: out.float(), "out: expected torch.float16, got torch.float32"),
        ("features-56", lambda out: out.contiguous(), "out: expected torch.channels_last, got strides"),
        (
            "birds-4-crops",
            lambda out: out.transpose(0, 1).contiguous().transpose(0, 1),
            "out: expected torch.contiguous",
        ),
        ("kornia-affine-n8", lambda out: out.mT.contiguous().mT, "out: expected torch.contiguous_format, got strides"),
    ],
)
def test_ours_have_their_dtype_and_layout(torch_path, monkeypatch, name, change, expected):
    wrong(monkeypatch, "ours", lambda call: lambda *args: change(call(*args)))
    assert expected in verdict(SMALL[name]).complaint


def raises_after(calls):
    """A change of a call that works so many times."""

    def change(call):
        count = itertools.count()

        def changed(image, theta):
            if next(count) >= calls:
                raise torch.OutOfMemoryError("no more")
            return call(image, theta)

        return changed

    return change


@pytest.mark.parametrize("calls", [1, 2, 6, 20])
def test_a_rival_that_fails_later_is_missing_alone(torch_path, monkeypatch, calls):
    wrong(monkeypatch, "kornia", raises_after(calls))
    row = runner.Runner.on(CPU, ["kornia"], seconds=0.0).run(SMALL["stn-tutorial"])
    assert row["rivals"]["kornia"] == {"missing": "raised OutOfMemoryError: no more"}
    for name in ("ours", "pytorch"):
        assert set(row["rivals"][name]["eager"]) == {"forward", "backward", "both"}


def test_a_rival_whose_host_fails_is_missing_alone(torch_path, monkeypatch):
    """On a GPU, where hosts have times of their own."""

    def host_times(clock, step, count):
        if step.run.__closure__[0].cell_contents == "kornia":
            raise ValueError("no more")
        return [1.0] * count

    on_gpu = runner.Runner(torch.device("cuda"), clock.HostClock(), ("ours", "kornia"), 0.0, None)

    def a_step_of(name):
        return {"forward": Step(lambda: None, lambda _: name)}

    monkeypatch.setattr(runner, "host_times", host_times)
    monkeypatch.setattr(runner, "captured", lambda step, calls: step)
    steps_, found = {name: a_step_of(name) for name in ("ours", "kornia")}, {"ours": {}, "kornia": {}}
    on_gpu.without_those_that_fail(steps_, found, lambda: on_gpu._time("forward", steps_, found))
    assert found["kornia"] == {"missing": "raised ValueError: no more"}
    assert set(found["ours"]) == {"eager", "host", "graph"}


def test_a_graph_that_fails_later_is_missing_alone(monkeypatch):
    def captured(step, calls):
        if calls > 1 and step.run is None:
            raise torch.OutOfMemoryError("no more")
        return Step(lambda: None, lambda _: gpu.launch(1e-5, cost=2e-6))

    gpu, found = FakeGPU(), {"ours": {}, "kornia": {}}
    monkeypatch.setattr(runner, "captured", captured)
    steps_ = {"ours": Step(None, 1), "kornia": Step(None, None)}
    times = runner.Runner(CPU, gpu, tuple(found), 0.0, None).replayed("both", steps_, found)
    assert set(times) == {"ours"}
    assert found == {"ours": {}, "kornia": {"no_graph": {"both": "OutOfMemoryError: no more"}}}


def test_what_was_timed_last_was_right_too(torch_path, monkeypatch):
    def change(call):
        count = itertools.count()
        return lambda *args: call(*args) * (1 if next(count) < 1 else 2)

    wrong(monkeypatch, "ours", change)
    row = runner.Runner.on(CPU, [], seconds=0.0).run(SMALL["stn-tutorial"])
    assert row["rivals"]["ours"]["red"].startswith("after it was timed: out off by")
    assert not runner.ours_is_there(row)


def test_a_kernel_that_is_wrong_is_caught(kernel_path, monkeypatch):
    """In the device code, not in what calls it."""
    workload = SMALL["kornia-affine-n8"]
    assert verdict(workload, device=kernel_path.device).complaint == ""
    plan.plan_forward.cache_clear()
    monkeypatch.setitem(plan.SAMPLERS, "bilinear", plan.SAMPLERS["bilinear"]._replace(taps=samplers.nearest))
    assert "out off by" in verdict(workload, device=kernel_path.device).complaint


def test_memory_that_nobody_wrote_is_not_an_earlier_result(torch_path, monkeypatch):
    """The gate fills freed memory before each job."""
    order = []
    monkeypatch.setattr("bench.gate.poison", lambda *_: order.append("poison"))
    wrong(monkeypatch, "ours", lambda call: lambda *args: (order.append("ours"), call(*args))[1])
    verdict(SMALL["stn-tutorial"])
    assert order[-2:] == ["poison", "ours"]


# --- planted faults: time ----------------------------------------------------------------------------------------


class FakeGPU:
    """A clock, and work for it: the host launches, and the device works through its queue behind."""

    QUEUE = 1.0  # seconds of work that may wait, before a launch waits too

    def __init__(self):
        self.host = self.device = 0.0

    def launch(self, work, cost=0.001):
        self.host = max(self.host + cost, self.device - self.QUEUE)
        self.device = max(self.host, self.device) + work

    def now(self):
        return self.host

    def mark(self):
        return max(self.host, self.device)

    def synchronize(self):
        self.host = max(self.host, self.device)

    def seconds(self, start, end):
        assert self.host >= end, "a mark that the device has not passed yet"
        return end - start


class Careless(FakeGPU):
    """Of which nobody waits for the device."""

    def synchronize(self):
        pass


def a_step(gpu, work, before=0.0, log=None, name=None):
    def run(_):
        gpu.launch(work)
        if log is not None:
            log.append(name)

    return Step(lambda: gpu.launch(before) if before else None, run)


def test_the_devices_time_is_that_of_its_work():
    gpu = FakeGPU()
    assert measure.device_times(gpu, a_step(gpu, 0.3), 4) == pytest.approx([0.301] * 4)
    assert measure.device_times(gpu, a_step(gpu, 0.3, before=7), 4) == pytest.approx([0.301] * 4)  # prepared: not timed
    flush = measure.device_times(gpu, a_step(gpu, 0.3), 4, before=lambda: gpu.launch(2))
    assert flush == pytest.approx([0.301] * 4)


def test_the_hosts_time_is_that_of_the_launch():
    gpu = FakeGPU()
    assert measure.host_times(gpu, a_step(gpu, 2.0, before=7), 5) == pytest.approx([0.001] * 5)


def test_a_missing_synchronisation_is_noticed():
    """By what a clock says of marks, and by a host that waits in its launches."""
    gpu = Careless()
    with pytest.raises(AssertionError, match="not passed"):
        measure.device_times(gpu, a_step(gpu, 0.3), 4)
    gpu = Careless()
    assert max(measure.host_times(gpu, a_step(gpu, 2.0), 5)) > 0.5


def test_steps_take_turns():
    gpu, log = FakeGPU(), []
    steps = {name: a_step(gpu, work, 0, log, name) for name, work in [("a", 0.001), ("b", 0.02), ("c", 0.2)]}
    times = measure.interleaved(gpu, steps, seconds=5.0)
    assert times["c"] == pytest.approx([0.2] * len(times["c"]), rel=0.01)
    rounds = len(times["c"])
    assert rounds >= measure.FEWEST_ROUNDS
    assert len(times["a"]) == measure.IN_A_ROW * rounds
    assert len(times["b"]) == 2 * rounds
    length = measure.IN_A_ROW + 3
    orders = [tuple(dict.fromkeys(log[start : start + length])) for start in range(6, len(log), length)]  # 6: a look
    assert set(orders) == set(itertools.permutations("abc"))  # everybody once in each, after everybody else


def test_steps_are_what_their_names_say(torch_path):
    workload = SMALL["kornia-affine-n8"]
    inputs = make_inputs(workload, CPU)
    calls = []
    job = RIVALS["ours"](workload, inputs)
    steps = steps_of(job._replace(call=lambda *args: (calls.append(1), job.call(*args))[1]), inputs)
    assert list(steps) == ["forward", "backward", "both"]
    out = steps["forward"].run(steps["forward"].prepare())
    assert out.shape == (2, 3, *workload.size)
    prepared = steps["backward"].prepare()
    assert len(calls) == 2
    gradients = steps["backward"].run(prepared)
    assert len(calls) == 2  # forward is not part of it
    for ours, both in zip(gradients, steps["both"].run(steps["both"].prepare()), strict=True):
        torch.testing.assert_close(ours, both)
    assert [g.shape for g in gradients] == [inputs.image.shape, inputs.theta.shape]
    assert len(calls) == 3
    nothing = SMALL["drqv2"]
    inputs = make_inputs(nothing, CPU)
    assert list(steps_of(RIVALS["ours"](nothing, inputs), inputs)) == ["forward"]


@pytest.mark.parametrize(
    ("written", "expected"),
    [((1.0, 2.0), True), ((1.0001, 2.0), True), ((1.0, None), False), ((1.0, 3.0), False), ((1.0, 0.0), False)],
)
def test_a_graph_that_writes_something_else_is_noticed(written, expected):
    results = torch.ones(3), torch.full((2,), 2.0)
    expected_results = [result.clone() for result in results]

    def replay():
        for result, value in zip(results, written, strict=True):
            if value is not None:
                result.fill_(value)

    assert replays(replay, results, expected_results) is expected


class FakeGraphs:
    """CUDA graphs where there is no GPU: what is done while one is captured waits until it is replayed."""

    class Graph:
        def __init__(self):
            self.work = []

        def replay(self):
            for piece in self.work:
                piece()

    class Stream:
        def wait_stream(self, other):
            pass

    def __init__(self, monkeypatch):
        self.capturing, self.current, self.set = None, self.Stream(), []
        monkeypatch.setattr(steps, "capture_stream", self.Stream)
        for name, fake in {
            "current_stream": lambda: self.current,
            "stream": lambda stream: nullcontext(),
            "set_stream": self.set.append,
            "CUDAGraph": self.Graph,
            "graph": self.capture,
        }.items():
            monkeypatch.setattr(torch.cuda, name, fake)

    @contextmanager
    def capture(self, graph, stream):
        self.capturing = graph
        try:
            yield
        finally:
            self.capturing = None

    def do(self, piece):
        if self.capturing:
            self.capturing.work.append(piece)
        else:
            piece()


@pytest.mark.parametrize("replayed", [1.0, 2.0])
def test_a_captured_step_is_so_many_calls(monkeypatch, replayed):
    gpu, done = FakeGraphs(monkeypatch), []

    def run(prepared):
        out = torch.zeros(3)
        gpu.do(lambda value=replayed if gpu.capturing else 1.0: done.append(out.detach().fill_(value)))
        return out.requires_grad_()  # as what a warp gives

    if replayed != 1:
        with pytest.raises(RuntimeError, match="computes something else"):
            steps.captured(Step(lambda: None, run), 7)
        return
    graph = steps.captured(Step(lambda: None, run), 7)
    done.clear()
    graph.run(graph.prepare())
    assert len(done) == 7
    assert gpu.set[-1] is gpu.current


def test_a_capture_that_fails_leaves_no_stream(monkeypatch):
    gpu = FakeGraphs(monkeypatch)

    def run(prepared):
        if gpu.capturing:
            raise RuntimeError("not while capturing")
        return torch.ones(1)

    with pytest.raises(RuntimeError, match="not while"):
        steps.captured(Step(lambda: None, run), 1)
    assert gpu.set == [gpu.current]


def test_graphs_are_as_long_for_everybody(monkeypatch):
    """And so long that their launch does not show."""
    gpu, counts = FakeGPU(), set()

    def captured(step, calls):
        if step.run is None:
            raise RuntimeError("cannot\nbe captured")
        counts.add(calls)
        return Step(lambda: None, lambda _: gpu.launch(calls * step.run, cost=2e-6))

    monkeypatch.setattr(runner, "captured", captured)
    works = {"ours": 5e-6, "pytorch": 1e-4, "kornia": None}
    rivals_ = {name: {} for name in works}
    times = runner.Runner(CPU, gpu, tuple(works), 0.01, None).replayed(
        "both", {name: Step(None, work) for name, work in works.items()}, rivals_
    )
    assert len(counts - {1}) == 1
    for name in ("ours", "pytorch"):
        assert times[name] == pytest.approx([works[name]] * len(times[name]), rel=0.02)
    assert rivals_["kornia"] == {"no_graph": {"both": "RuntimeError: cannot be captured"}}


def test_a_cpu_gets_fewer_images_until_pytorch_is_fast_enough(monkeypatch):
    on_cpu = runner.Runner.on(CPU)
    batches = []

    def device_times(clock, step, count):
        batches.append(step.run(step.prepare())[0].shape[0])
        return [0.01 * batches[-1]] * count

    monkeypatch.setattr(runner, "device_times", device_times)
    fitted = on_cpu.fitted(SMALL["stn-tutorial"].with_batch(40))
    assert fitted.image[0] == 5
    assert batches == [40, 20, 10, 5]
    monkeypatch.setattr(runner, "LONGEST_ON_CPU", 0.001)
    assert on_cpu.fitted(SMALL["stn-tutorial"].with_batch(40)).image[0] == 1


def test_peak_bytes():
    made = Step(lambda: None, lambda _: torch.zeros(1000) + torch.ones(1000))
    assert peak_bytes(made, CPU) == 12000


def test_what_torchs_sampler_takes_inside_is_in_its_peak():
    """A copy of the output's gradient, in planes."""
    d_out = torch.zeros(1, 16, 64, 64)
    image, grid = torch.zeros(1, 16, 64, 64, requires_grad=True), torch.zeros(1, 64, 64, 2)

    def peak(d_out):
        step = Step(
            lambda: torch.grid_sampler(image, grid, 0, 0, False), lambda o: torch.autograd.grad(o, image, d_out)
        )
        return peak_bytes(step, CPU)

    assert peak(d_out.to(memory_format=torch.channels_last)) == peak(d_out) + d_out.nbytes


def test_a_copys_bandwidth(monkeypatch):
    taken = iter([[1.0, 1.0], [0.5] * 11])
    monkeypatch.setattr(traffic, "device_times", lambda *args: next(taken))
    monkeypatch.setattr(traffic, "COPIED", 2**20)
    assert traffic.copy_bandwidth(clock.HostClock(), CPU) == 2 * 2**20 / 0.5


# --- the command line --------------------------------------------------------------------------------------------


@pytest.fixture
def two_workloads(torch_path, monkeypatch):
    monkeypatch.setattr(command_line, "WORKLOADS", [SMALL["stn-tutorial"], SMALL["mnist-tps"]])
    monkeypatch.setattr(traffic, "COPIED", 2**20)
    monkeypatch.setattr(report, "unsteady", lambda row: [])  # as the machine may be


def run(*arguments):
    return command_line.main(["--device", "cpu", "--seconds", "0", *map(str, arguments)])


def test_a_run_says_and_writes_everything(two_workloads, tmp_path, capsys):
    file = tmp_path / "results.json"
    assert run("--only", "zeros", "--json", file) == 0
    printed = capsys.readouterr().out
    written = results.read(file)
    assert [row["name"] for row in written["rows"]] == ["stn-tutorial", "mnist-tps"]
    assert written["environment"]["versions"]["torch"] == torch.__version__
    assert {"device", "driver", "commit", "date", "threads"} <= set(written["environment"])
    for row in written["rows"]:
        assert list(row["rivals"]) == list(RIVALS)
        for name, result in row["rivals"].items():
            assert ("eager" in result) != ("missing" in result)
            assert (
                f"{name}: missing: {result['missing']}" in printed if "missing" in result else f"    {name}" in printed
            )
            for samples in result.get("eager", {}).values():
                assert len(samples) >= measure.FEWEST_ROUNDS
                assert all(sample > 0 for sample in samples)
    assert [line.split()[0] for line in printed.splitlines()[-2:]] == ["stn-tutorial", "mnist-tps"]
    json.loads(file.read_text())


def test_results_are_written_where_nothing_else_is_lost(two_workloads, tmp_path):
    """Through a link, beside other files."""
    target, link, other = tmp_path / "target.json", tmp_path / "link.json", tmp_path / "link.part"
    target.write_text("{}")
    link.symlink_to(target)
    other.write_text("mine")
    assert run("--only", "stn-tutorial", "--against", "pytorch", "--json", link) == 0
    assert link.is_symlink()
    assert len(results.read(target)["rows"]) == 1
    assert other.read_text() == "mine"
    assert sorted(tmp_path.iterdir()) == sorted([target, link, other])


def test_a_run_goes_on_where_nothing_can_be_written(two_workloads, monkeypatch, tmp_path, capsys):
    def full(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr(results.Path, "replace", full)
    assert run("--only", "zeros", "--against", "pytorch", "--json", tmp_path / "results.json") == 1
    printed = capsys.readouterr().out
    assert printed.count("--json: nothing is written: OSError: No space left on device") == 2
    assert "mnist-tps" in printed.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_an_interrupted_run_says_what_it_has(two_workloads, monkeypatch, capsys):
    def interrupted(self, workload):
        if workload.name == "mnist-tps":
            raise KeyboardInterrupt
        return whole(self, workload)

    whole = runner.Runner.run
    monkeypatch.setattr(runner.Runner, "run", interrupted)
    assert run("--only", "zeros", "--against", "pytorch") == 1
    printed = capsys.readouterr().out
    assert "interrupted: 1 are not measured, from mnist-tps on" in printed
    assert printed.splitlines()[-1].startswith("stn-tutorial")


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ({"forward": [40.0] * 9, "both": [60.0] * 9}, None),
        (
            {"forward": [10.0] * 4 + [40.0] * 5, "both": [60.0] * 9},
            "ours, forward: half of its times are outside of 10",
        ),
        ({"forward": [90.0] * 9, "both": [60.0] * 9}, "ours, forward: 90 us, and 60 with the other pass"),
    ],
)
def test_times_that_contradict_each_other_are_said(times, expected):
    row = {"name": "this", "source": "", "description": "", "bytes": {"both": 1}, "batch": 2, "batch_of_model": 2}
    row["rivals"] = {"ours": {"eager": times, "bytes": 1}}
    said = f"UNSTEADY, not to be believed: {expected}" in report.row_table(row, 1e9)
    assert said == (expected is not None)
    assert ("unsteady, and not to be believed: this" in report.summary([row], 1e9)) == said


def test_a_busy_machine_is_said():
    environment = results.environment(CPU)
    for load, said in ((0.1, False), (0.9, True)):
        heading = report.heading({**environment, "load": load}, 1e9, cold=False)
        assert ("busy: the processors had 0.9 times" in heading) == said


def test_what_raises_without_a_word_is_missing(two_workloads, monkeypatch, capsys):
    def broken(*arguments):
        raise AssertionError

    monkeypatch.setitem(RIVALS, "kornia", broken)
    assert run("--only", "stn-tutorial", "--against", "kornia") == 0
    assert "kornia: missing: raised AssertionError" in capsys.readouterr().out


def test_a_red_run_exits_with_1(two_workloads, monkeypatch, capsys):
    wrong(monkeypatch, "ours", FAULTS["twice theta's gradient"])
    assert run("--only", "stn-tutorial", "--against", "pytorch") == 1
    printed = capsys.readouterr().out
    assert "ours: RED, not timed: d_parameters off by" in printed
    assert "ours: red, missing" in printed


def test_a_workload_that_fails_is_said_and_the_others_run(two_workloads, monkeypatch, capsys):
    def broken(workload, inputs):
        if workload.transform == "affine":
            raise ValueError("no such thing")
        return right(workload, inputs)

    right = RIVALS["pytorch"]
    monkeypatch.setitem(RIVALS, "pytorch", broken)
    assert run("--only", "zeros", "--against", "one_gemm") == 1
    printed = capsys.readouterr().out
    assert "FAILED: ValueError: no such thing" in printed
    assert "one_gemm" in printed.splitlines()[-3]


def test_a_network_that_fails_is_said(two_workloads, monkeypatch, capsys):
    def broken(*arguments):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(svhn, "measure", broken)
    assert run("--only", "svhn-cnn") == 1
    assert "FAILED: RuntimeError: out of luck" in capsys.readouterr().out


def test_the_list(capsys):
    assert command_line.main(["--list"]) == 0
    printed = capsys.readouterr().out
    for name in [*BY_NAME, *RIVALS, "svhn-cnn"]:
        assert name in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "no such words"], "--only: no workload"),
        (["--against", "nobody"], "--against: invalid choice"),
        (["--json", "/no/such/folder/file.json"], "--json: expected a file in a folder that exists"),
        (["--json", "/dev/null"], "--json: expected a file in a folder that exists"),
        (["--json", "."], "--json: expected a file in a folder that exists"),
        (["--device", "nonsense"], "--device: expected cpu or a cuda that is there, got nonsense"),
        (["--device", "meta"], "there is no clock of such a one"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit):
        command_line.main(arguments)
    assert message in capsys.readouterr().err


# --- the paper's network -----------------------------------------------------------------------------------------


def test_the_papers_network(torch_path, monkeypatch):
    monkeypatch.setattr(svhn, "BATCH", 2)
    monkeypatch.setattr(svhn, "HIDDEN", (16,))
    monkeypatch.setattr(svhn, "CONVOLUTIONS", [(4, pooled) for _, pooled in svhn.CONVOLUTIONS])
    result = svhn.measure(clock.HostClock(), CPU, seconds=0.0)
    assert set(result["seconds"]) == set(svhn.MODELS)
    result["seconds"] = {"cnn": [1.0], "ours": [1.05], "pytorch": [1.5]}
    table = report.paper_table(result)
    assert "+5.0%" in table
    assert "+50.0%" in table
    assert "+6%" in table


def test_the_papers_network_has_its_sizes():
    model = svhn.build(svhn.WARPS["ours"])
    kinds = [type(layer).__name__ for layer in model]
    assert [k for k, kind in enumerate(kinds) if kind == "SpatialTransformer"] == [0, 4, 7, 11]
    assert all(kinds[k + 1] == "Conv2d" for k in (0, 4, 7, 11))
    assert sum(p.numel() for p in svhn.build(None).parameters()) == sum(
        math.prod(shape) + shape[0]
        for shape in [
            (48, 3, 25), (64, 48, 25), (128, 64, 25), (160, 128, 25), (192, 160, 25), *[(192, 192, 25)] * 3,
            (3072, 192 * 16), (3072, 3072), (3072, 3072), (55, 3072),
        ]
    )  # fmt: skip


def test_a_transformer_that_is_wrong_is_not_timed(torch_path, monkeypatch):
    monkeypatch.setattr(svhn, "HIDDEN", (16,))
    monkeypatch.setattr(svhn, "CONVOLUTIONS", [(4, pooled) for _, pooled in svhn.CONVOLUTIONS])
    transformer = svhn.WARPS["ours"]
    monkeypatch.setitem(svhn.WARPS, "ours", lambda localisation: transformer(localisation, align_corners=True))
    result = svhn.measure(clock.HostClock(), CPU, seconds=0.0)
    assert "logits off by" in result["red"]
    assert "RED" in report.paper_table(result)
