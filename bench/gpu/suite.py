"""The project's own tests on the GPU, and NVIDIA's checker of memory accesses on some of them."""

from __future__ import annotations

import gc
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ..report import columns
from ..results import ROOT

#: Every workload once, small: the checker makes kernels a hundred times slower.
CHECKED = ["tests/test_bench.py", "-k", "test_ours_passes_the_gate and kernel"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def files() -> list[str]:
    """Of the tests, those of kernels first."""
    first = ("test_warp.py", "test_special_points.py", "test_identity.py", "test_gradients.py")
    names = sorted(file.name for file in (ROOT / "tests").glob("test_*.py"))
    return [*first, *(name for name in names if name not in first)]


def run(file: str, end: float) -> dict[str, Any]:
    """One file, on all cores where pytest-xdist is installed."""
    workers = ["-n", "8"] if importlib.util.find_spec("xdist") else []
    return _pytest([sys.executable], [f"tests/{file}", *workers], end)


def memcheck(end: float) -> dict[str, Any]:
    """`CHECKED` under compute-sanitizer, each tensor in memory of its own; without it, that is said."""
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(sanitizer).exists():
        return {"passed": None, "words": "missing: compute-sanitizer is not installed"}
    checker = [sanitizer, "--tool", "memcheck", "--target-processes", "all", "--error-exitcode", "99", sys.executable]
    row = _pytest(checker, ["-x", *CHECKED], end, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    return {**row, "passed": row["passed"] and "passed" in row["words"]}  # none selected: none checked


def table(rows: list[dict[str, Any]]) -> str:
    """One line a file, and what failed."""
    lines = columns([[row["name"], row.get("words") or row.get("failed", "")] for row in rows])
    failures = [f"  {line}" for row in rows for line in row.get("failures", [])]
    return "\n".join([*lines, *failures])


def _pytest(python: list[str], arguments: list[str], end: float, **environment: str) -> dict[str, Any]:
    command = [*python, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", "-rf", *arguments]
    gc.collect()
    torch.cuda.empty_cache()  # the tests are other processes
    start = time.monotonic()
    process = subprocess.Popen(
        command, cwd=ROOT, env={**ENVIRONMENT, **environment}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        out, errors_out = process.communicate(timeout=max(1.0, end - start))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its workers too, which hold the GPU
        process.communicate()
        raise TimeoutError(f"no end within {end - start:.0f} s") from None
    output = out.splitlines()
    counted = [line for line in output if re.search(r"\d+ (passed|failed|skipped|error)", line)]
    errors = [line for line in output + errors_out.splitlines() if "ERROR SUMMARY" in line]
    words = "; ".join([*counted[-1:], *errors[-1:]]).strip("= ") or " ".join(errors_out.split())[-300:]
    return {
        "passed": process.returncode in (0, 5),  # 5: a file without a test for this machine
        "words": words,
        "seconds": round(time.monotonic() - start, 1),
        "failures": [line[:300] for line in output if line.startswith(("FAILED", "ERROR"))][:50],
    }
