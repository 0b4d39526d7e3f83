"""Results as JSON: what was measured, on what, and every sample."""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import stn_triton

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path(__file__).resolve().parent / "results"
PACKAGES = ("triton", "numpy", "kornia", "triton-augment")


def environment(device: torch.device) -> dict[str, Any]:
    """Device, driver, versions, commit, and how busy the processors are already, of 1."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else _cpu(),
        "kind": device.type,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if cuda else None,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0] / (os.cpu_count() or 1), 2) if hasattr(os, "getloadavg") else None,
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),  # with its build, which the metadata may lack
            **{name: _version(name) for name in PACKAGES},
        },
        "commit": _commit(),
        "source": source(),
        "date": datetime.date.today().isoformat(),
    }


def source() -> str:
    """A digest of all code: what was measured, and how, where there is no repository or it was changed."""
    digest = hashlib.sha256()
    for folder in (Path(stn_triton.__file__).parent, ROOT / "bench", ROOT / "tests"):
        for file in sorted(folder.rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _commit() -> str | None:
    """Of this repository, not of one that it lies in; "-dirty" where files differ from it."""
    top = _output("git", "-C", str(ROOT), "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != ROOT:
        return None
    return _output("git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty")


def write(file: Path, environment: dict[str, Any], rows: list[dict[str, Any]], **others: Any) -> None:
    """One line a row, so that a file can be read and compared. A run that is cut off leaves a whole file."""
    head = json.dumps({"environment": environment, **others}, indent=1)[:-2]
    lines = ",\n".join(json.dumps(row) for row in rows)
    file = file.resolve()  # a link stays one
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        temporary.write_text(f'{head},\n "rows": [\n{lines}\n]\n}}\n')
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def file_to_write(name: str) -> Path:
    """Of a command line: a new file of a folder that exists, or a file to be written over."""
    file = Path(name)
    if not file.parent.is_dir() or (file.exists() and not file.is_file()):
        raise argparse.ArgumentTypeError(f"expected a file in a folder that exists, got {file}")
    return file


def read(file: Path) -> dict[str, Any]:
    """What `write` wrote. Raises ValueError for what it did not."""
    try:
        result = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    if not isinstance(result, dict) or not {"environment", "rows", "copy_bandwidth"} <= result.keys():
        raise ValueError(f"{file}: expected results of the benchmark, got other JSON")
    return result


def read_all(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """All results of a folder, by name."""
    return [(file, read(file)) for file in sorted(folder.glob("*.json"))]


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
