"""The README's picture and tables of the newest committed results.

python -m bench.picture            # draws docs/speed-*.png and writes the tables between the marks in README.md
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import color_sequences
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from . import report, results

README = results.ROOT / "README.md"
DOCS = results.ROOT / "docs"
BEGIN, END = "<!-- written by python -m bench.picture -->\n", "<!-- until here -->"
KINDS = {"cpu": "on a CPU", "cuda": "on a GPU"}
OTHER_STAGES = ("-tests", "-tiles")  #: of `bench.gpu`, whose rows are no times of rivals
COLOURS = dict(zip(report.COMPARED, color_sequences["tab10"][: len(report.COMPARED)], strict=True))


class Measured(NamedTuple):
    """The results of one device, of one state of the code and one choice of packages."""

    kind: str
    environment: dict[str, Any]
    bandwidth: float
    rows: list[dict[str, Any]]
    paper: dict[str, Any] | None
    files: list[str]


def newest(folder: Path = results.FOLDER) -> list[Measured]:
    """Of each kind of device the newest results there are, and those of other files that belong with them.

    Of a row that several have the newest; of empty caches none. What a copy moves is the newest file's.
    """
    found = []
    for kind in KINDS:
        of_kind = [
            (file, result)
            for file, result in results.read_all(folder)
            if result["environment"]["kind"] == kind and not file.stem.endswith(OTHER_STAGES) and not result.get("cold")
        ]
        of_kind.sort(key=lambda pair: (pair[1]["environment"]["date"], pair[0].name))
        if not of_kind:
            continue
        last = of_kind[-1][1]
        same = ("device", "threads", "source", "versions")
        chosen = [
            (file, result)
            for file, result in of_kind
            if all(result["environment"][key] == last["environment"][key] for key in same)
        ]
        rows = {
            row["name"]: row for _, result in chosen for row in result["rows"] if not row["name"].endswith(", cold")
        }
        papers = [result.get("paper") for _, result in chosen] + [row.get("paper") for row in rows.values()]
        paper = next((paper for paper in reversed(papers) if paper), None)
        warps = [row for row in rows.values() if "paper" not in row]
        files = [file.name for file, _ in chosen]
        found.append(Measured(kind, last["environment"], last["copy_bandwidth"], warps, paper, files))
    return found


def section(measured: list[Measured]) -> str:
    """The README's tables: every row, whatever came out."""
    parts = []
    for each in measured:
        parts.append(f"![Speed {KINDS[each.kind]}](docs/speed-{each.kind}.png)\n")
        tables = [
            report.heading(each.environment, each.bandwidth, cold=False),
            report.summary(each.rows, each.bandwidth),
        ]
        tables += [report.missing(each.rows)] + ([report.paper_table(each.paper)] if each.paper else [])
        where = ", ".join(f"`bench/results/{name}`" for name in each.files)
        parts.append(f"From {where}:\n\n```\n" + "\n\n".join(tables) + "\n```\n")
    if not any(each.kind == "cuda" for each in measured):
        parts.append("**No GPU has been measured yet**, so nothing is claimed about the speed of the kernels.\n")
    return "\n".join(parts)


def written(readme: str, section: str) -> str:
    """The README with the section between its marks. Raises ValueError where these are not there."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md: expected the marks {BEGIN!r} and {END!r}")
    return before + begin + section + end + after


def draw(measured: Measured, file: Path) -> None:
    """How many times as long as ours the others take, and ours as a share of a copy's bandwidth, by workload."""
    mode = report.mode_of(measured.rows)
    ratios = {row["name"]: report.speed_ups(row, mode) for row in measured.rows}
    names = [name for name, of_row in ratios.items() if "ours" in of_row][::-1]
    rows = {row["name"]: row for row in measured.rows}
    figure = Figure(figsize=(10, 1.2 + 0.22 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    for rival, colour in COLOURS.items():
        points = [(ratios[name][rival], y) for y, name in enumerate(names) if rival in ratios[name]]
        if points:
            x, y = zip(*points, strict=True)
            left.scatter(x, y, s=26, color=colour, label=rival, zorder=3)
    left.axvline(1, color="#94a3b8", linewidth=1)
    left.set_xscale("log", base=2)
    left.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    left.set_xlabel(f"time of others / time of ours, {report.MODES[mode]}: right of 1x ours is faster")
    left.set_yticks(range(len(names)), names, fontsize=8)
    left.set_ylim(-1, len(names))
    left.grid(axis="both", color="#e2e8f0", linewidth=0.6)
    left.legend(loc="lower right", fontsize=8)
    rates = [report.bytes_a_second(rows[name], rows[name]["rivals"]["ours"][mode]) for name in names]
    shares = [100 * rate / measured.bandwidth for rate in rates]
    colours = ["#bae6fd" if rows[name].get("cached") else "#38bdf8" for name in names]
    right.barh(range(len(names)), shares, color=colours)
    right.set_xlabel(
        "ours, % of a copy's bandwidth" + "\n(light: all of it lies in the cache)" * ("#bae6fd" in colours)
    )
    right.grid(axis="x", color="#e2e8f0", linewidth=0.6)
    environment = measured.environment
    figure.suptitle(
        f"{environment['device']}, torch {environment['versions']['torch']}, {environment['date']}", fontsize=10
    )
    figure.savefig(file, dpi=110, metadata={"Software": None})


def main(arguments: list[str] | None = None) -> int:
    argparse.ArgumentParser("python -m bench.picture", description=(__doc__ or "").splitlines()[0]).parse_args(
        arguments
    )
    measured = newest()
    for each in measured:
        draw(each, DOCS / f"speed-{each.kind}.png")
    README.write_text(written(README.read_text("utf-8"), section(measured)), "utf-8")
    print("\n".join(name for each in measured for name in each.files))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
