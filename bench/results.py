"""Results as JSON: what was measured, on what, and every sample."""

from __future__ import annotations

import datetime
import hashlib
import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path(__file__).resolve().parent / "results"
PACKAGES = ("triton", "numpy", "kornia", "triton-augment")


def environment(device: torch.device) -> dict[str, Any]:
    """Device, driver, versions and commit."""
    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else _cpu(),
        "kind": device.type,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if cuda else None,
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),  # with its build, which the metadata may lack
            **{name: _version(name) for name in PACKAGES},
        },
        "commit": _output("git", "-C", str(ROOT), "rev-parse", "HEAD"),
        "source": source(),
        "date": datetime.date.today().isoformat(),
    }


def source() -> str:
    """A digest of all code: what was measured, and how, where there is no repository or it was changed."""
    digest = hashlib.sha256()
    for folder in ("stn_triton", "bench", "tests"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def write(file: Path, environment: dict[str, Any], rows: list[dict[str, Any]], **others: Any) -> None:
    """One line a row, so that a file can be read and compared."""
    head = json.dumps({"environment": environment, **others}, indent=1)[:-2]
    lines = ",\n".join(json.dumps(row) for row in rows)
    temporary = file.with_suffix(".part")  # so that a run that is cut off leaves a whole file
    temporary.write_text(f'{head},\n "rows": [\n{lines}\n]\n}}\n')
    temporary.replace(file)


def read(file: Path) -> dict[str, Any]:
    """What `write` wrote."""
    return json.loads(file.read_text())


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
