"""The measurements for a GPU, as far as they are not measurements: what is done, resumed, refused and said."""

import time

import pytest
import torch

pytest.importorskip("triton")

from bench import results
from bench.gpu import command_line, image_gradient, stages, suite, tiles
from bench.gpu.stages import Item, Stage
from bench.runner import Runner
from bench.workloads import WORKLOADS, Workload

CPU = torch.device("cpu")
ENVIRONMENT = {"source": "this", "versions": {"torch": "1"}, "kind": "cpu", "device": "none", "date": "2026-01-01"}
SMALL = {workload.name: workload.shrunk() for workload in WORKLOADS}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_measured(capsys):
    with pytest.raises(SystemExit):
        command_line.main([])
    assert "expected a CUDA GPU" in capsys.readouterr().err


def test_an_unknown_stage(capsys):
    with pytest.raises(SystemExit):
        command_line.main(["nonsense"])
    assert (
        "expected a stage of headline, tests, image_gradient, tiles, others, got 'nonsense'" in capsys.readouterr().err
    )


class Measured:
    """Items that say when they are measured."""

    def __init__(self, names, broken=()):
        self.log, self.broken, self.names = [], set(broken), names
        self.clock, self.error = 0.0, RuntimeError
        self.stage = Stage(self.items, lambda rows, _: str([row["name"] for row in rows]), lambda row: "failed" in row)

    def items(self, runner, end):
        return [Item(name, lambda name=name: self.measure(name)) for name in self.names]

    def measure(self, name):
        self.clock += 1
        self.log.append(name)
        if name in self.broken:
            raise self.error("out of luck")
        return {"value": len(self.log)}

    def run(self, file, end=100.0, environment=ENVIRONMENT):
        return command_line.run(self.stage, Runner.on(CPU), file, environment, 1.0, end, lambda: self.clock)


def test_a_stage_is_resumed_where_time_was_over(tmp_path, capsys):
    file, measured = tmp_path / "stage.json", Measured("abcd")
    assert not measured.run(file, end=1.5)
    assert measured.log == ["a", "b"]
    assert "2 left for the next call, from c on" in capsys.readouterr().out
    assert not measured.run(file)
    assert measured.log == ["a", "b", "c", "d"]
    assert [row["name"] for row in results.read(file)["rows"]] == ["a", "b", "c", "d"]
    assert [row["value"] for row in results.read(file)["rows"]] == [1, 2, 3, 4]
    measured.run(file)
    assert len(measured.log) == 4


def test_what_failed_is_said_and_tried_again(tmp_path):
    file, measured = tmp_path / "stage.json", Measured("abc", broken="b")
    assert measured.run(file)
    assert measured.log == ["a", "b", "c"]
    assert results.read(file)["rows"][1] == {"name": "b", "failed": "RuntimeError: out of luck"}
    measured.broken.clear()
    assert not measured.run(file)
    assert measured.log == ["a", "b", "c", "b"]


def test_what_there_is_no_time_for_is_left(tmp_path, capsys):
    file, measured = tmp_path / "stage.json", Measured("ab", broken="b")
    measured.error = TimeoutError
    assert not measured.run(file)
    assert "1 left for the next call, from b on" in capsys.readouterr().out
    assert [row["name"] for row in results.read(file)["rows"]] == ["a"]


def test_what_another_package_measured_is_measured_again(tmp_path):
    file, measured = tmp_path / "stage.json", Measured("ab")
    measured.run(file)
    measured.run(file, environment={**ENVIRONMENT, "source": "that"})
    assert measured.log == ["a", "b", "a", "b"]
    measured.run(file, environment={**ENVIRONMENT, "source": "that", "versions": {"torch": "2"}})
    assert measured.log == ["a", "b"] * 3
    assert len(results.read(file)["rows"]) == 2
    assert {each.name for each in tmp_path.iterdir()} == {"stage.json", "stage.1.old", "stage.2.old"}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": [', '{"environment": {}, "rows": [], "copy_bandwidth": 1}'])
def test_a_file_that_cannot_be_read_is_put_aside(tmp_path, capsys, text):
    file, measured = tmp_path / "stage.json", Measured("ab")
    file.write_text(text)
    assert not measured.run(file)
    assert measured.log == ["a", "b"]
    assert "stage.json is put aside as stage.1.old" in capsys.readouterr().out
    assert (tmp_path / "stage.1.old").read_text() == text


def test_stages_have_items_of_their_own():
    runner = Runner.on(CPU)
    names = {name: [item.name for item in stage.items(runner, 0.0)] for name, stage in stages.STAGES.items()}
    for of_stage in names.values():
        assert len(set(of_stage)) == len(of_stage)
    assert {*names["headline"], *names["others"]} >= {"svhn-cnn", *SMALL, "large-c3, cold"}
    assert "test_warp.py" in names["tests"]
    assert {"large-c1 backward", "large-c1 gather", "stn-tutorial backward"} <= {*names["tiles"]}
    assert not {"stn-tutorial gather", "mnist-tps gather"} & {*names["tiles"]}
    assert "c1, turned by 30" in names["image_gradient"]


def test_headline_rows(torch_path, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(stages, "WORKLOADS", [SMALL["stn-tutorial"], SMALL["mesh"]])
    monkeypatch.setattr(stages.svhn, "measure", lambda *_: {"red": "planted"})
    emptied = []
    monkeypatch.setattr(stages, "Flush", lambda device: lambda: emptied.append(device))
    runner = Runner.on(CPU, ["kornia"], seconds=0.0)

    def run(name):
        end = time.monotonic() + 60
        return command_line.run(stages.STAGES[name], runner, tmp_path / name, ENVIRONMENT, 1e9, end)

    assert run("headline")
    printed = capsys.readouterr().out
    assert "RED, not timed: planted" in printed
    assert "stn-tutorial: 2x1x23x28" in printed
    assert not run("others")
    assert [row["name"] for row in results.read(tmp_path / "others")["rows"]] == ["mesh", "stn-tutorial, cold"]
    assert emptied


def test_a_row_that_fails_is_said(torch_path, monkeypatch, tmp_path, capsys):
    def broken(self, workload):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(Runner, "run", broken)
    monkeypatch.setattr(stages.svhn, "measure", lambda *_: broken(None, None))
    runner, end = Runner.on(CPU, seconds=0.0), time.monotonic() + 60
    assert command_line.run(stages.STAGES["headline"], runner, tmp_path / "rows", ENVIRONMENT, 1e9, end)
    printed = capsys.readouterr().out
    for name in ("svhn-cnn", "stn-tutorial"):
        assert f"{name}\n  FAILED: RuntimeError: out of luck" in printed


# --- the test-suite ----------------------------------------------------------------------------------------------


@pytest.fixture
def a_project(tmp_path, monkeypatch):
    (tmp_path / "tests").mkdir()
    monkeypatch.setattr(suite, "ROOT", tmp_path)
    monkeypatch.setattr(suite.importlib.util, "find_spec", lambda name: None)

    def write(name, text):
        (tmp_path / "tests" / name).write_text(text)

    return write


def test_a_test_file_is_run_and_its_failures_named(a_project):
    a_project("test_good.py", "def test_a(): pass\ndef test_b(): pass\n")
    a_project("test_bad.py", "def test_a(): pass\ndef test_b(): assert 1 == 2\n")
    end = time.monotonic() + 60
    good, bad = suite.run("test_good.py", end), suite.run("test_bad.py", end)
    assert (good["passed"], bad["passed"]) == (True, False)
    assert good["words"].startswith("2 passed")
    assert bad["failures"][0].startswith("FAILED tests/test_bad.py::test_b")
    table = suite.table([{"name": "test_good.py", **good}, {"name": "test_bad.py", **bad}])
    assert "2 passed" in table
    assert "FAILED tests/test_bad.py::test_b" in table


def test_a_test_file_that_does_not_end(a_project):
    a_project("test_slow.py", "import time\ndef test_a(): time.sleep(60)\n")
    with pytest.raises(TimeoutError, match="no end within"):
        suite.run("test_slow.py", time.monotonic() + 1)


def test_a_missing_sanitizer_is_said(monkeypatch):
    monkeypatch.setattr(suite.shutil, "which", lambda name: None)
    monkeypatch.setattr(suite.Path, "exists", lambda self: False)
    assert "not installed" in suite.memcheck(0.0)["words"]


def test_a_sanitizer_that_checked_nothing_has_not_passed(a_project, monkeypatch, tmp_path):
    a_project("test_bench.py", "def test_other(): pass\n")
    sanitizer = tmp_path / "sanitizer"
    sanitizer.write_text('#!/bin/sh\nshift 6; exec "$@"\n')
    sanitizer.chmod(0o755)
    monkeypatch.setattr(suite.shutil, "which", lambda name: str(sanitizer))
    assert suite.memcheck(time.monotonic() + 60)["passed"] is False
    a_project("test_bench.py", "def test_ours_passes_the_gate_kernel(): pass\n")
    assert suite.memcheck(time.monotonic() + 60)["passed"] is True


# --- the ways to the image's gradient ---------------------------------------------------------------------------


SMALL_IMAGES = [
    Workload("f32", "", (2, 1, 16, 17), (16, 17), needs="image"),
    Workload("bf16", "", (1, 8, 9, 8), (9, 8), needs="image", dtype="bfloat16", layout="channels_last"),
]


@pytest.fixture
def once(monkeypatch):
    """Each step is timed once."""
    monkeypatch.setattr(
        image_gradient, "interleaved",
        lambda clock, steps, *_: {name: image_gradient.device_times(clock, step, 1) for name, step in steps.items()},
    )  # fmt: skip


@pytest.mark.parametrize("images", SMALL_IMAGES, ids=lambda images: images.name)
def test_every_way_is_taken(kernel_path, monkeypatch, once, images):
    """However many target pixels are asked; the kernels that ran, and the table."""
    monkeypatch.setattr(image_gradient, "ZOOMS", (1.0, 9.0))
    ran, real = [], image_gradient.launch._launch

    def spy(kernel, programs, *args, options):
        given = dict(zip(kernel.arg_names, args, strict=True))
        real(kernel, programs, *args, options=options)
        left = kernel is image_gradient.launch.warp_gather and given["scattered"].any().item()
        ran.append((kernel.fn.__name__, left, given.get("GATHERED"), given.get("EXACT")))

    monkeypatch.setattr(image_gradient.launch, "_launch", spy)
    row = image_gradient.measure(Runner.on(kernel_path.device, seconds=0.0), images, 30)
    assert [*row["zooms"]] == ["1.0", "9.0"]
    for zoom in row["zooms"].values():
        assert not zoom["wrong"]
        assert {*zoom["seconds"]} == {*image_gradient.WAYS, "pytorch"}
    assert ("warp_gather", False, None, False) in ran
    assert {one[2:] for one in ran if one[0] == "warp_backward"} == {(True, False), (False, False), (False, True)}
    assert not any(left for _, left, _, _ in ran)
    table = image_gradient.table([{"name": images.name, **row}, {"name": "other", "failed": "out of luck"}])
    assert "scattered / gathered" in table
    assert "FAILED: out of luck" in table
    assert not image_gradient.failed(row)


def test_a_wrong_gradient_is_not_timed(kernel_path, monkeypatch, once):
    monkeypatch.setattr(image_gradient, "ZOOMS", (1.0,))
    weight_at = image_gradient.plan.samplers.nearest_weight_at
    broken = image_gradient.plan.SAMPLERS["bilinear"]._replace(weight_at=weight_at)
    monkeypatch.setitem(image_gradient.plan.SAMPLERS, "bilinear", broken)
    row = image_gradient.measure(Runner.on(kernel_path.device, seconds=0.0), SMALL_IMAGES[0], 0)
    assert [*row["zooms"]["1.0"]["wrong"]] == ["gathered"]
    assert "gathered" not in row["zooms"]["1.0"]["seconds"]
    assert image_gradient.failed(row)
    assert "1.0: gathered d_image off by" in image_gradient.table([{"name": "broken", **row}])


# --- launch shapes -----------------------------------------------------------------------------------------------


def test_the_pinned_shape_comes_first_and_others_are_its_neighbours():
    pinned = tiles.configs.THREE_CHANNELS
    found = tiles.shapes(pinned, "forward")
    assert found[0] == (pinned, tiles.configs.ENOUGH_PROGRAMS)
    assert len(set(found)) == len(found)
    for config, programs in found:
        changed = {f for f in pinned._fields if getattr(config, f) != getattr(pinned, f)}
        assert changed <= {"tile_h", "tile_w"} or len(changed) <= 1
        assert not changed or programs == tiles.configs.ENOUGH_PROGRAMS
        assert config.tile_h * config.tile_w * config.lanes_c in tiles.LANES


@pytest.mark.parametrize("name", ["forward", "backward", "gather"])
def test_shapes_are_launched_and_what_is_wrong_is_refused(kernel_path, monkeypatch, name):
    config = tiles.configs.THREE_CHANNELS._replace(unroll=1)
    impossible, smaller = config._replace(channels=2), config._replace(tile_h=16, tile_w=8)
    monkeypatch.setattr(tiles, "shapes", lambda pinned, _: [tiles.Shape(c, 792) for c in (pinned, smaller, impossible)])
    row = tiles.search(Runner.on(kernel_path.device, seconds=0.0), SMALL["kornia-affine-n8"], name)
    labels = list(row["seconds"])
    assert len(labels) == 2
    assert labels[0] == row["pinned"]
    assert "tile_h=16 tile_w=8" in labels[1]
    assert "expected one for 3 channels" in row["refused"][tiles.Shape(impossible, 792).label]
    assert not tiles.failed(row)
    assert tiles.failed({**row, "seconds": {}})
    table = tiles.table([{"name": f"kornia {name}", **row}])
    assert "1.00" in table
    assert "refused: kornia" in table


def test_a_shape_of_a_pass_is_not_the_others(kernel_path, monkeypatch):
    seen = []
    choose = tiles.plan._config
    monkeypatch.setattr(tiles.plan, "_config", lambda *arguments: seen.append(arguments[0]) or choose(*arguments))
    workload = SMALL["kornia-affine-n1"]
    inputs = tiles.make_inputs(workload, kernel_path.device)
    step = tiles.steps_of(tiles.RIVALS["ours"](workload, inputs), inputs)["both"]
    with tiles.launched_as("backward", None) as own:
        step.run(step.prepare())
    assert seen == [True, False]
    assert len(own) == 1
