"""Command line of the measurements on a GPU.

python -m bench.gpu                   # all stages, each of at most eight minutes, the most valuable first
python -m bench.gpu headline tiles    # some of them
python -m bench.gpu --out FOLDER      # where results go; what is there already is not measured again
"""

from __future__ import annotations

import argparse
import itertools
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .. import results
from ..report import heading
from ..runner import Runner, reason
from ..traffic import copy_bandwidth
from .stages import STAGES, Item, Stage


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m bench.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)}; all by default")
    parser.add_argument("--out", type=Path, metavar="FOLDER", default=results.FOLDER, help="%(default)s")
    parser.add_argument("--seconds", type=float, default=480, help="of each stage at most; default %(default)g")
    options = parser.parse_args(arguments)
    for name in options.stages:
        if name not in STAGES:
            parser.error(f"expected a stage of {', '.join(STAGES)}, got {name!r}")
    if not torch.cuda.is_available():
        parser.error("expected a CUDA GPU, found none: nothing is measured")
    options.out.mkdir(parents=True, exist_ok=True)
    runner = Runner.on(torch.device("cuda"))
    environment, bandwidth = results.environment(runner.device), copy_bandwidth(runner.clock, runner.device)
    print(heading(environment, bandwidth, cold=False), flush=True)
    device = re.sub(r"[^a-z0-9]+", "-", environment["device"].lower()).strip("-")
    failed = False
    for name in options.stages or STAGES:
        versions = f"torch-{torch.__version__.partition('+')[0]}"  # several on one day
        file = options.out / f"{device}-{environment['date']}-{versions}-{name}.json"
        failed |= run(STAGES[name], runner, file, environment, bandwidth, time.monotonic() + options.seconds)
    return int(failed)


def _earlier(file: Path, environment: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a file that this code and these versions measured; another file is put aside, as .old."""
    if not file.exists():
        return []
    try:
        earlier = results.read(file)
        if all(earlier["environment"][key] == environment[key] for key in ("source", "versions")):
            return [row for row in earlier["rows"] if "name" in row]
    except (ValueError, KeyError, TypeError) as error:
        print(f"{file.name} cannot be read: {reason(error)}")
    aside = next(each for k in itertools.count(1) if not (each := file.with_suffix(f".{k}.old")).exists())
    print(f"{file.name} is put aside as {aside.name}")
    file.rename(aside)
    return []


def run(
    stage: Stage,
    runner: Runner,
    file: Path,
    environment: dict[str, Any],
    bandwidth: float,
    end: float,
    now: Callable[[], float] = time.monotonic,
) -> bool:
    """Measures what the file does not have yet, until the time is over; prints all of it. Whether something failed.

    The file is written after each item. What failed, and what other code or versions measured, is measured again.
    """
    rows = [row for row in _earlier(file, environment) if not stage.failed(row)]
    known = {row["name"] for row in rows}
    items: list[Item] = [item for item in stage.items(runner, end) if item.name not in known]
    left = []
    for item in tqdm(items, unit="item", desc=file.stem, disable=None):
        if now() > end:
            left.append(item.name)
            continue
        try:
            row = {**item.measure(), "name": item.name}
        except TimeoutError:
            left.append(item.name)
            continue
        except Exception as error:
            row = {"name": item.name, "failed": reason(error)}
        rows.append(row)
        results.write(file, environment, rows, copy_bandwidth=bandwidth)
    print(f"\n{file.stem}\n{stage.table(rows, bandwidth)}")
    if left:
        print(f"time is over: {len(left)} left for the next call, from {left[0]} on")
    print(flush=True)
    return any(stage.failed(row) for row in rows)
