"""Tables of results, as text: of one workload, and one line for each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median, quantiles
from typing import Any

from .rivals import RIVALS
from .svhn import MODELS, PAPER

#: Mode of timing, and what its columns are called.
MODES = {"eager": "eager", "graph": "replayed", "host": "host alone"}
#: Times are believed whose quartiles are no further apart, and of which a part takes no longer than the whole (measured
#: on an idle machine: 2.3 and 1.0).
WIDEST, PART_OF_BOTH = 3, 1.2
BUSY = 0.5  #: of the processors, from which that is said
#: Whom ours is compared with, in this order; "ready_grid" is a bound and no rival.
COMPARED = tuple(name for name in RIVALS if name not in ("ours", "ready_grid"))


def row_table(row: dict[str, Any], bandwidth: float) -> str:
    """All that was measured of a workload: medians in milliseconds, with quartiles, and ratios of medians to ours."""
    if "failed" in row:
        return f"{row['name']}\n  FAILED: {row['failed']}"
    title = f"{row['name']}: {row['description']} ({row['source']})"
    if row["batch"] != row["batch_of_model"]:
        title += f", N = {row['batch_of_model']} in the model"
    lines = [title]
    measured = {name: result for name, result in row["rivals"].items() if "eager" in result}
    for mode, words in MODES.items():
        modes = {name: result[mode] for name, result in measured.items() if mode in result}
        if modes:
            lines += [f"  {words}, ms", *_indented(_times(modes))]
    lines += _indented(_memory(row, measured, bandwidth, mode_of([row])))
    lines += [f"  UNSTEADY, not to be believed: {what}" for what in unsteady(row)]
    for name, result in row["rivals"].items():
        if "red" in result:
            lines.append(f"  {name}: RED, not timed: {result['red']}")
        elif "missing" in result:
            lines.append(f"  {name}: missing: {result['missing']}")
        for of_pass, why in result.get("no_graph", {}).items():
            lines.append(f"  {name}, {of_pass}: not replayed: {why}")
    return "\n".join(lines)


def _times(modes: dict[str, dict[str, list[float]]]) -> list[list[str]]:
    passes = list(dict.fromkeys(name for times in modes.values() for name in times))
    ours = modes.get("ours", {})
    cells = [["", *(cell for name in passes for cell in (name, "quartiles", "x ours"))]]
    for rival, times in modes.items():
        cells.append([rival])
        for name in passes:
            if name not in times:
                cells[-1] += ["-", "", ""]
                continue
            low, middle, high = (1e-3 * value for value in quantiles(times[name], n=4, method="inclusive"))
            ratio = middle / (1e-3 * median(ours[name])) if name in ours else float("nan")
            cells[-1] += [f"{middle:.3f}", f"{low:.3f}-{high:.3f}", f"{ratio:.2f}"]
    return cells


def _memory(row: dict[str, Any], measured: dict[str, Any], bandwidth: float, mode: str) -> list[list[str]]:
    """Peak memory; and what of the copy's bandwidth the bytes that must move are, for the last pass in this mode."""
    name, must_move = list(row["bytes"].items())[-1]
    cells = [[f"{name}, {must_move / 2**20:.1f} MiB must move, {MODES[mode]}", "peak MiB", "GB/s", "of a copy's"]]
    for rival, result in measured.items():
        peak = "-" if result["bytes"] is None else f"{result['bytes'] / 2**20:.1f}"
        cells.append([rival, peak, "-", "-"])
        if name in (times := result.get(mode, {})):
            cells[-1][2:] = f"{bytes_a_second(row, times) / 1e9:.1f}", share_of_copy(row, times, bandwidth)
    return cells


def share_of_copy(row: dict[str, Any], times: dict[str, list[float]], bandwidth: float) -> str:
    """What of a copy's bandwidth is reached, with a star where the cache, faster than a copy, holds all of it."""
    return f"{bytes_a_second(row, times) / bandwidth:.0%}" + "*" * row.get("cached", False)


def bytes_a_second(row: dict[str, Any], times: dict[str, list[float]]) -> float:
    """Of what must move in the workload's last pass, by a rival's times of its passes."""
    name, must_move = list(row["bytes"].items())[-1]
    return must_move / (1e-6 * median(times[name]))


def mode_of(rows: Iterable[dict[str, Any]]) -> str:
    """Replayed graphs, where there are any: the time of the device alone."""
    measured = (result for row in rows for result in row.get("rivals", {}).values())
    return "graph" if any("graph" in result for result in measured) else "eager"


def unsteady(row: dict[str, Any]) -> list[str]:
    """How the times of ours and PyTorch's contradict each other, if they do: often for other work beside."""
    found = []
    for name in ("ours", "pytorch"):
        for mode in ("eager", "graph"):
            times = row.get("rivals", {}).get(name, {}).get(mode, {})
            for of_pass, taken in times.items():
                low, middle, high = quantiles(taken, n=4, method="inclusive")
                if high > WIDEST * low:
                    found.append(f"{name}, {of_pass}: half of its times are outside of {low:.0f} to {high:.0f} us")
                if "both" in times and middle > PART_OF_BOTH * median(times["both"]):
                    found.append(
                        f"{name}, {of_pass}: {middle:.0f} us, and {median(times['both']):.0f} with the other pass"
                    )
    return found


def missing(rows: Iterable[dict[str, Any]]) -> str:
    """Who is missing or red, why, and in how many workloads: what "-" stands for in `summary`."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for name, result in row.get("rivals", {}).items():
            if why := _why_missing(row, result):
                reasons.setdefault((name, why), []).append(row["name"])
    few = {key: ", ".join(names) if len(names) <= 3 else f"{len(names)} workloads" for key, names in reasons.items()}
    return "\n".join(f"{name}: {why} ({where})" for (name, why), where in few.items())


def _why_missing(row: dict[str, Any], result: dict[str, Any]) -> str:
    """Why a rival has no time of the workload's last pass; empty if it has one."""
    last = list(row["bytes"])[-1]
    if "missing" in result:
        return result["missing"]
    if "red" in result:
        return f"RED: {result['red']}"
    if last in result.get("no_graph", {}):
        return f"not replayed: {result['no_graph'][last]}"
    return "" if "eager" not in result or last in result["eager"] else "forward only"


def speed_ups(row: dict[str, Any], mode: str = "eager") -> dict[str, float]:
    """How many times as long as ours each rival takes for the workload's last pass, of those that have it."""
    last = list(row.get("bytes", {"": 0}))[-1]
    times = {name: result.get(mode, {}).get(last) for name, result in row.get("rivals", {}).items()}
    if not times.get("ours"):
        return {}
    return {name: median(taken) / median(times["ours"]) for name, taken in times.items() if taken}


def summary(rows: Iterable[dict[str, Any]], bandwidth: float) -> str:
    """One line a workload: ours in milliseconds, how many times as long the others take, and the bound.

    Of replayed graphs where there are any, with PyTorch's eager calls over our eager calls beside them.
    ``bound`` is PyTorch's time over that of torch's sampler with the grid for free, ``of bound`` what of it is reached.
    """
    rows = list(rows)
    mode = mode_of(rows)
    with_any = [name for name in COMPARED if any(name in speed_ups(row, mode) for row in rows)]
    beside = ["pytorch, eager"] if mode == "graph" else []
    ours_ms = f"ours, {MODES[mode]}, ms" if beside else "ours, ms"
    cells = [["", "N", "pass", ours_ms, *with_any, *beside, "of bound", "of a copy's"]]
    for row in rows:
        ratios = speed_ups(row, mode)
        if "ours" not in ratios:
            cells.append([row["name"], "-", row.get("failed", f"ours: red, missing, or not {mode}")])
            continue
        times = row["rivals"]["ours"][mode]
        name = list(row["bytes"])[-1]
        bound = f"{ratios['ready_grid']:.0%}" if "ready_grid" in ratios else "-"
        others = [f"{ratios[other]:.2f}" if other in ratios else "-" for other in with_any]
        if beside:
            eager = speed_ups(row).get("pytorch")
            others.append(f"{eager:.2f}" if eager else "-")
        batch = (
            str(row["batch"]) if row["batch"] == row["batch_of_model"] else f"{row['batch']} of {row['batch_of_model']}"
        )
        cells.append([row["name"], batch, name, f"{1e-3 * median(times[name]):.3f}", *others, bound])
        cells[-1].append(share_of_copy(row, times, bandwidth))
    stars = any(row.get("cached") for row in rows)
    lines = [*columns(cells), *["*: all of it lies in the device's cache, warm"] * stars]
    if shaky := [row["name"] for row in rows if unsteady(row)]:
        lines.append(f"unsteady, and not to be believed: {', '.join(shaky)}")
    return "\n".join(lines)


def paper_table(result: dict[str, Any]) -> str:
    """The CNN with and without transformers."""
    title = "SVHN-like CNN of the paper, a step forward and backward, without and with four transformers"
    if "red" in result:
        return f"{title}\n  RED, not timed: {result['red']}"
    if "failed" in result:
        return f"{title}\n  FAILED: {result['failed']}"
    times = {name: median(result["seconds"][name]) for name in MODELS}
    words = {"cnn": "CNN", "ours": "with ours", "pytorch": "with PyTorch's two calls"}
    cells = [[f"N = {result['batch']}", "ms", "overhead"]]
    for name in MODELS:
        cells.append([words[name], f"{1e3 * times[name]:.1f}", f"{times[name] / times['cnn'] - 1:+.1%}"])
    return "\n".join([title, *_indented(cells), f"  the paper reports {PAPER:+.0%}"])


def columns(cells: Sequence[Sequence[str]]) -> list[str]:
    """Lines of cells in columns, the first to the left and the others to the right."""
    widths = [max((len(line[k]) for line in cells if k < len(line)), default=0) for k in range(len(cells[0]))]
    return [
        "  ".join(c.rjust(w) if k else c.ljust(w) for k, (c, w) in enumerate(zip(line, widths, strict=False))).rstrip()
        for line in cells
    ]


def _indented(cells: Sequence[Sequence[str]]) -> list[str]:
    return [f"    {line}" for line in columns(cells)]


def heading(environment: dict[str, Any], bandwidth: float, cold: bool) -> str:
    """On what, and with what."""
    versions = ", ".join(f"{name} {version or 'missing'}" for name, version in environment["versions"].items())
    where = environment["device"] + (f", {environment['threads']} threads" if environment["kind"] == "cpu" else "")
    lines = [f"{where}; a copy moves {bandwidth / 1e9:.1f} GB/s", versions]
    if (environment.get("load") or 0) > BUSY:
        lines.append(
            f"busy: the processors had {environment['load']:.1f} times as much to do as they can, the minute before"
        )
    return "\n".join([*lines, *["caches emptied before every call"] * cold])
