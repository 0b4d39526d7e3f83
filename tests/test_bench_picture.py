"""The README's picture and tables come from the committed results, and say all of them."""

import subprocess

import pytest

pytest.importorskip("matplotlib")

from bench import picture, report, results
from bench.workloads import WORKLOADS

pytestmark = pytest.mark.skipif(not any(results.FOLDER.glob("*.json")), reason="no results")


def test_the_readme_has_the_newest_results():
    git = ["git", "-C", str(results.ROOT), "status", "--porcelain", "bench/results"]
    status = subprocess.run(git, capture_output=True, text=True)
    if status.returncode or status.stdout:
        pytest.skip("results that are not committed yet")
    readme = picture.README.read_text()
    assert picture.written(readme, picture.section(picture.newest())) == readme


def test_every_workload_is_in_the_table():
    for measured in picture.newest():
        table = picture.section([measured])
        for row in measured.rows:
            assert f"\n{row['name']} " in table
        if measured.kind == "cpu":
            assert {row["name"] for row in measured.rows} == {workload.name for workload in WORKLOADS}


def test_no_figure_of_a_gpu_without_a_run():
    measured = picture.newest()
    words = "No GPU has been measured yet"
    assert (words in picture.section(measured)) == all(each.kind != "cuda" for each in measured)


def test_marks_that_are_not_there():
    with pytest.raises(ValueError, match="expected the marks"):
        picture.written("# A README without them\n", "text")


def results_of(folder, name, kind, date, *rows, torch="2.13", source="this", threads=2, **others):
    environment = {"kind": kind, "device": "some", "date": date, "threads": threads, "versions": {"torch": torch}}
    environment["source"] = source
    results.write(folder / name, environment, list(rows), copy_bandwidth=1e9, **others)


def row(name, ours=1.0, pytorch=2.0):
    times = {
        "ours": {"eager": {"forward": [ours] * 3}, "bytes": 1},
        "pytorch": {"eager": {"forward": [pytorch] * 3}, "bytes": 1},
    }
    return {
        "name": name,
        "source": "",
        "description": "",
        "bytes": {"forward": 1},
        "batch": 2,
        "batch_of_model": 8,
        "rivals": times,
    }


def test_a_gpus_row_says_what_of_it_is_replayed(tmp_path):
    graph = row("fast", ours=10.0, pytorch=20.0)
    for name, replayed in [("ours", 1.0), ("pytorch", 3.0)]:
        graph["rivals"][name]["graph"] = {"forward": [replayed] * 3}
    graph["cached"] = True
    graph["rivals"]["kornia"] = {"eager": {"forward": [5.0] * 3}, "bytes": 1, "no_graph": {"forward": "cannot"}}
    graph["rivals"]["compile"] = {"red": "out off by 1"}
    graph["rivals"]["triton_augment"] = {"eager": {"backward": [1.0] * 3}, "bytes": 1}
    results_of(tmp_path, "gpu-2026-01-01-torch-2.13-headline.json", "cuda", "2026-01-01", graph)
    results_of(tmp_path, "gpu-2026-01-01-torch-2.11-headline.json", "cuda", "2026-01-01", row("older"), torch="2.11")
    (measured,) = picture.newest(tmp_path)
    assert [each["name"] for each in measured.rows] == ["fast"]  # nothing of the other version
    section = picture.section([measured])
    heading, fast = (line.split("  ") for line in section.splitlines() if line.startswith((" " * 4, "fast")))
    words, cells = ([cell.strip() for cell in line if cell.strip()] for line in (heading, fast))
    found = dict(zip(words, cells[1:], strict=True))
    assert found["ours, replayed, ms"] == "0.001"
    assert (found["pytorch"], found["pytorch, eager"]) == ("3.00", "2.00")
    assert found["of a copy's"].endswith("*")
    for line in (
        "kornia: not replayed: cannot (fast)",
        "compile: RED: out off by 1 (fast)",
        "triton_augment: forward only (fast)",
        "*: all of it lies in the device's cache",
    ):
        assert line in section
    table = report.row_table(graph, 1e9)
    assert "kornia, forward: not replayed: cannot" in table
    assert "replayed, ms" in table
    picture.draw(measured, tmp_path / "picture.png")


def test_the_newest_of_each_kind(tmp_path):
    results_of(tmp_path, "cpu-2026-01-01.json", "cpu", "2026-01-01", row("old"), source="that")
    results_of(tmp_path, "cpu-2026-01-02.json", "cpu", "2026-01-02", row("new"), paper={"red": "planted"})
    results_of(tmp_path, "gpu-2026-01-01-headline.json", "cuda", "2026-01-01", row("old"), source="that")
    results_of(
        tmp_path,
        "gpu-2026-01-03-headline.json",
        "cuda",
        "2026-01-03",
        row("a"),
        {"name": "svhn-cnn", "paper": {"red": "x"}},
    )
    results_of(tmp_path, "gpu-2026-01-03-others.json", "cuda", "2026-01-03", row("b"), row("a, cold"))
    results_of(tmp_path, "gpu-2026-01-04-tiles.json", "cuda", "2026-01-04", {"name": "a forward", "seconds": {}})
    results_of(tmp_path, "gpu-2026-01-05.json", "cuda", "2026-01-05", row("a"), cold=True)
    cpu, cuda = picture.newest(tmp_path)
    assert [each["name"] for each in cpu.rows] == ["new"]
    assert cpu.paper == {"red": "planted"}
    assert [each["name"] for each in cuda.rows] == ["a", "b"]
    assert cuda.paper == {"red": "x"}
    assert "2.00" in picture.section([cpu])
    assert "2 of 8" in picture.section([cpu])
    assert "RED, not timed: planted" in picture.section([cpu])
    picture.draw(cpu, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_rows_of_several_files_are_those_of_one_state_of_the_code(tmp_path):
    """Before midnight and after it; of one that was measured again the later."""
    results_of(tmp_path, "cpu-2026-01-01.json", "cpu", "2026-01-01", row("other"), source="that")
    results_of(tmp_path, "cpu-2026-01-02.json", "cpu", "2026-01-02", row("a"), row("b", ours=9.0))
    results_of(tmp_path, "cpu-2026-01-03.json", "cpu", "2026-01-03", row("b", ours=1.0))
    (measured,) = picture.newest(tmp_path)
    assert [each["name"] for each in measured.rows] == ["a", "b"]
    assert measured.rows[1]["rivals"]["ours"]["eager"]["forward"][0] == 1.0
    assert measured.files == ["cpu-2026-01-02.json", "cpu-2026-01-03.json"]
    results_of(tmp_path, "cpu-2026-01-04.json", "cpu", "2026-01-04", row("b"), threads=1)
    assert picture.newest(tmp_path)[0].files == ["cpu-2026-01-04.json"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": ['])
def test_what_is_no_result_is_named(tmp_path, text):
    (tmp_path / "some.json").write_text(text)
    with pytest.raises(ValueError, match=r"some\.json: "):
        picture.newest(tmp_path)
