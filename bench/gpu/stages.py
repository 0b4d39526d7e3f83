"""The stages, in their order: what each measures, piece by piece, and the table of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .. import report, svhn
from ..runner import Runner, ours_is_there
from ..traffic import Flush
from ..workloads import WORKLOADS, Workload
from . import image_gradient, suite, tiles

Row = dict[str, Any]


class Item(NamedTuple):
    """A piece that is measured at once, and not again when a stage is resumed."""

    name: str
    measure: Callable[[], Row]


class Stage(NamedTuple):
    """What a stage does."""

    items: Callable[[Runner, float], list[Item]]  #: of a runner and the time by which it should end
    table: Callable[[list[Row], float], str]  #: of its rows and a copy's bandwidth
    failed: Callable[[Row], bool]


def headline(runner: Runner, end: float) -> list[Item]:
    """The rows that say most, against all rivals, and the paper's network."""
    paper = Item(svhn.NAME, lambda: {"paper": svhn.measure(runner.clock, runner.device, runner.seconds)})
    return [*_workloads(runner, headlines()), paper]


def others(runner: Runner, end: float) -> list[Item]:
    """The other workloads; then the headline rows again with empty caches, against PyTorch's eager calls."""
    flushed = runner._replace(flush=Flush(runner.device), rivals=("ours", "pytorch", "other_corners"))
    again = [Item(f"{item.name}, cold", item.measure) for item in _workloads(flushed, headlines())]
    return [*_workloads(runner, [each for each in WORKLOADS if not each.headline]), *again]


def tests(runner: Runner, end: float) -> list[Item]:
    """The test-suite file by file, then some of it under compute-sanitizer."""
    files = [Item(file, lambda file=file: suite.run(file, end)) for file in suite.files()]
    return [*files, Item("compute-sanitizer memcheck", lambda: suite.memcheck(end))]


def search(runner: Runner, end: float) -> list[Item]:
    """Launch shapes: the pinned ones beside others."""
    return [
        Item(f"{workload.name} {name}", lambda workload=workload, name=name: tiles.search(runner, workload, name))
        for workload in tiles.searched()
        for name in tiles.passes(workload)
    ]


def gradient(runner: Runner, end: float) -> list[Item]:
    """The ways to the image's gradient, by scale."""
    return [
        Item(f"{each.name}, turned by {turn}", lambda each=each, turn=turn: image_gradient.measure(runner, each, turn))
        for each in image_gradient.IMAGES
        for turn in image_gradient.TURNS
    ]


def headlines() -> list[Workload]:
    """The workloads that say most."""
    return [workload for workload in WORKLOADS if workload.headline]


def _workloads(runner: Runner, workloads: list[Workload]) -> list[Item]:
    return [Item(each.name, lambda each=each: runner.run(each)) for each in workloads]


def _rows_table(rows: list[Row], bandwidth: float) -> str:
    tables = [report.paper_table(row["paper"]) if "paper" in row else report.row_table(row, bandwidth) for row in rows]
    measured = [row for row in rows if "paper" not in row]
    return "\n\n".join([*tables, report.summary(measured, bandwidth)])


def _row_failed(row: Row) -> bool:
    return "red" in row["paper"] if "paper" in row else not ours_is_there(row)


STAGES = {
    "headline": Stage(headline, _rows_table, _row_failed),
    "tests": Stage(tests, lambda rows, _: suite.table(rows), lambda row: "failed" in row or row["passed"] is False),
    "image_gradient": Stage(gradient, lambda rows, _: image_gradient.table(rows), image_gradient.failed),
    "tiles": Stage(search, lambda rows, _: tiles.table(rows), tiles.failed),
    "others": Stage(others, _rows_table, _row_failed),
}
