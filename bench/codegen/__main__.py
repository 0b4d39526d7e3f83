"""Command line of the compile report.

python -m bench.codegen                 # the tables of bench/README.md: affine on sm_90, and the host's cost
python -m bench.codegen --only gfx942   # of the cases that are checked, those of one GPU
python -m bench.codegen --workloads     # the workloads that python -m bench times
python -m bench.codegen --check         # against the pinned figures: what got worse
python -m bench.codegen --pin           # after an intended change, or for another triton
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor

os.environ.pop("TRITON_INTERPRET", None)  # read when stn_triton is imported

try:
    import triton
except ImportError as error:
    sys.exit(f"python -m bench.codegen: expected triton, the compiler, to be installed: {error}")
from tqdm import tqdm

from ..results import file_to_write
from . import host
from .cases import Case, checked, everything, headline, measured
from .check import Measured, complaints, lost, measure, pinned_file, read_pinned, write_pinned


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m bench.codegen", description="What the compiler makes of the kernels.")
    parser.add_argument("--only", metavar="WORDS", help="cases whose label has all of these words")
    parser.add_argument("--workloads", action="store_true", help="the workloads that python -m bench times, on sm_90")
    parser.add_argument("--all", action="store_true", help="every choice of a user with every other: hours")
    parser.add_argument("--json", type=file_to_write, metavar="FILE", help="write everything that was counted")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="compare with the pinned figures; exit 1 if one got worse")
    action.add_argument("--pin", action="store_true", help="pin these figures for the installed triton")
    options = parser.parse_args(arguments)
    if (options.pin and options.only) or ((options.pin or options.check) and (options.all or options.workloads)):
        parser.error(
            "--pin, --check: expected neither --all nor --workloads, nor --pin --only: they have their own cases"
        )

    whole = not (options.only or options.all or options.workloads or options.check or options.pin)
    words = (options.only or "").split()
    others = everything if options.all else measured if options.workloads else checked
    chosen = headline() if whole else others()
    cases = [case for case in chosen if set(words) <= set(case.label.split())]
    if not cases:
        parser.error(f"--only: no case has all of the words {words}")
    kernels = measure_all(cases)
    if options.json:
        figures = {m.label: {"programs": m.programs, **m.figures()} for m in kernels}
        options.json.write_text(json.dumps(figures, indent=1))
    if options.pin:
        write_pinned(kernels)
        print(f"{len(kernels)} kernels pinned in {pinned_file().name}")
    elif options.check:
        return check(kernels, whole=not words)
    else:
        print(table(kernels))
        if whole:
            print(host.report())
    return 0


def measure_all(cases: list[Case]) -> list[Measured]:
    """Every case, on all cores: compiling is most of the time."""
    if len(cases) < 8:
        return [kernel for case in tqdm(cases, unit="case", disable=None) for kernel in measure(case)]
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        measured = tqdm(pool.map(measure, cases, chunksize=4), total=len(cases), unit="case", disable=None)
        return [kernel for kernels in measured for kernel in kernels]


def check(kernels: list[Measured], whole: bool) -> int:
    """Prints complaints; whether there are any is the exit status. If this is the whole check, nothing may be lost."""
    pinned = read_pinned()
    found = [f"{measured.label}: {what}" for measured in kernels for what in complaints(measured, pinned)]
    found += lost(kernels, pinned) if whole else []
    print(*found, sep="\n")
    against = "" if pinned else f"; no figures are pinned for triton {triton.__version__}, so none were compared"
    print(f"{len(kernels)} kernels compiled, {len(found)} complaints{against}")
    return bool(found)


COLUMNS = (
    "kernel", "programs", "regs", "spill", "shared", "barriers", "loads", "stores", "atomics", "conv", "mufu",
    "prologue", "pixel", "inner", "per pixel", "budget", "with prologue",
)  # fmt: skip


def table(kernels: list[Measured]) -> str:
    """One line a kernel; of two figures the first is the unmasked path's, the second the masked one's."""
    rows = [COLUMNS, *map(row, kernels)]
    widths = [max(len(line[k]) for line in rows) for k in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in rows]
    return "\n".join([f"triton {triton.__version__}; instructions of a lane, unmasked / masked path", *lines])


def row(measured: Measured) -> tuple[str, ...]:
    """A kernel's line: ``per pixel`` is of all its channels, and of all lanes and programs that share it.

    ``inner`` is what a channel costs in the loop over channels, or a target pixel that a gather asks; ``budget`` is for
    ``per pixel``, and what is over it has a star.
    """
    counted = measured.count
    paths = counted.paths.values()

    def kinds(counts: dict[str, int]) -> str:
        return " ".join(f"{n}x{kind}" for kind, n in counts.items()) or "-"

    def pair(figures: Iterable[float]) -> str:
        return " / ".join(f"{figure:.1f}".removesuffix(".0") for figure in figures)

    per_pixel = [path.per_pixel(measured.share, with_prologue=False) for path in paths]
    over = any(cost > limit for cost, limit in zip(per_pixel, measured.budget or (), strict=False))
    return (
        measured.label, str(measured.programs), str(counted.registers), str(counted.spilled), str(counted.shared),
        str(counted.barriers), kinds(counted.loads), kinds(counted.stores), kinds(counted.atomics),
        str(counted.conversions), str(counted.special),
        pair([path.prologue for path in paths]), pair([path.pixel for path in paths]),
        pair([path.inner for path in paths]),
        pair(per_pixel), pair(dict.fromkeys(measured.budget)) + " *" * over if measured.budget else "-",
        pair([path.per_pixel(measured.share, with_prologue=True) for path in paths]),
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
