"""Command line of the benchmark.

python -m bench                              # every workload against every rival, on the GPU if there is one
python -m bench --list                       # the workloads and the rivals
python -m bench --only mnist --against pytorch compile
python -m bench --json FILE                  # every sample, for the picture and for others
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from . import report, results, svhn
from .rivals import RIVALS
from .runner import Runner, ours_is_there, reason
from .traffic import copy_bandwidth
from .workloads import WORKLOADS, Workload


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m bench", description="Times warps, ours beside others, in one run.")
    parser.add_argument("--list", action="store_true", help="the workloads and the rivals, and nothing else")
    parser.add_argument("--only", metavar="WORDS", default="", help="what has all of these words in --list")
    parser.add_argument(
        "--against", nargs="+", metavar="RIVAL", choices=RIVALS, default=list(RIVALS),
        help="beside PyTorch; all by default; 'of bound' needs ready_grid",
    )  # fmt: skip
    parser.add_argument("--json", type=results.file_to_write, metavar="FILE", help="write everything that was measured")
    parser.add_argument(
        "--cold", action="store_true", help="empty the caches before every call; a minute a row on a CPU"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=0.1, help="for each pass of each rival, about %(default)s")
    options = parser.parse_args(arguments)
    lines = {workload.name: line_of(workload) for workload in WORKLOADS} | {svhn.NAME: svhn.LINE}
    words = options.only.split()
    chosen = [name for name, line in lines.items() if all(word in f"{name} {line}" for word in words)]
    if options.list:
        print(*report.columns([[name, line] for name, line in lines.items()]), sep="\n")
        print(*(f"{name}: {(rival.__doc__ or '').splitlines()[0]}" for name, rival in RIVALS.items()), sep="\n")
        return 0
    if not chosen:
        parser.error(f"--only: no workload has all of the words {words}; --list shows them")
    try:
        device = torch.device(options.device)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("there is no clock of such a one")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as wrong:
        parser.error(f"--device: expected cpu or a cuda that is there, got {options.device}: {reason(wrong)}")

    runner = Runner.on(device, options.against, options.seconds, options.cold)
    workloads = [workload for workload in WORKLOADS if workload.name in chosen]
    return run(runner, workloads, svhn.NAME in chosen, options.json)


def run(runner: Runner, workloads: list[Workload], with_paper: bool, file: Path | None) -> int:
    """Measures, writes and prints; 1 if ours is red or missing anywhere, or something failed.

    Interrupted, it says what it has.
    """
    environment, bandwidth = results.environment(runner.device), copy_bandwidth(runner.clock, runner.device)
    print(report.heading(environment, bandwidth, runner.flush is not None))
    rows: list[dict[str, Any]] = []
    others: dict[str, Any] = {"copy_bandwidth": bandwidth, "cold": runner.flush is not None, "paper": None}
    incomplete = False
    with tqdm(total=len(workloads) + with_paper, unit="workload", disable=None) as progress:

        def done(table: str) -> None:
            nonlocal incomplete
            if file:  # after each, so that a run that is cut off leaves what it has
                try:
                    results.write(file, environment, rows, **others)
                except OSError as error:
                    incomplete = True
                    progress.write(f"\n--json: nothing is written: {reason(error)}")
            progress.write(f"\n{table}")
            progress.update()

        try:
            for workload in workloads:
                progress.set_description(workload.name)
                try:
                    rows.append(runner.run(workload))
                except Exception as error:
                    rows.append({"name": workload.name, "failed": reason(error)})
                done(report.row_table(rows[-1], bandwidth))
            if with_paper:
                progress.set_description(svhn.NAME)
                try:
                    others["paper"] = svhn.measure(runner.clock, runner.device, runner.seconds)
                except Exception as error:
                    others["paper"] = {"failed": reason(error)}
                done(report.paper_table(others["paper"]))
        except KeyboardInterrupt:
            incomplete = True
            left = [*(each.name for each in workloads[len(rows) :]), *[svhn.NAME] * with_paper]
            progress.write(f"\ninterrupted: {len(left)} are not measured, from {left[0]} on")
    if rows:
        print(f"\nHow many times as long as ours the others take\n{report.summary(rows, bandwidth)}")
    paper = others["paper"] or {}
    return int(incomplete or not all(ours_is_there(row) for row in rows) or "red" in paper or "failed" in paper)


def line_of(workload: Workload) -> str:
    """A workload's line in the list."""
    return f"{workload.description} ({workload.source})"
