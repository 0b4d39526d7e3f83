"""Which way calls go: by the kernels where they run, or by torch operations. `use_backend` chooses.

So does the environment variable STN_TRITON_BACKEND, read when the package is imported.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache

import torch

from .checks import check_choice
from .kernels.language import TRITON_MISSING, interprets
from .kernels.probe import probe

BACKENDS = ("auto", "torch", "triton")
LEAST_CAPABILITY = (7, 0)  #: of NVIDIA's GPUs that Triton compiles for

_from_environment = os.environ.get("STN_TRITON_BACKEND", "auto")
check_choice("STN_TRITON_BACKEND", _from_environment, BACKENDS)
_backend: ContextVar[str] = ContextVar("stn_triton_backend", default=_from_environment)


@contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Chooses the backend of the calls within, and of their backward passes, in this thread.

    Args:
        backend: "auto", the default: the kernels where they run, torch operations elsewhere, with one warning where
            kernels could be expected. "torch": torch operations everywhere, to compare with, or where a kernel makes
            trouble. "triton": the kernels, and a RuntimeError where they do not run. A trace (`torch.compile`) is of
            torch operations whatever is chosen.

    Raises:
        ValueError: another backend.

    Example::

        with stn_triton.use_backend("torch"):
            expected = stn_triton.affine_sample(image, theta)
    """
    check_choice("backend", backend, BACKENDS)
    token = _backend.set(backend)
    try:
        yield
    finally:
        _backend.reset(token)


def kernels_are_required() -> bool:
    """Whether calls are to raise rather than go by torch operations."""
    return _backend.get() == "triton"


def kernels_run_on(device: torch.device) -> bool:
    """Whether calls on this device go by the kernels. Warns once where a user would expect that, and they do not."""
    backend = _backend.get()
    if backend == "torch":
        return False
    reason = reason_against(device)
    if not reason:
        return True
    if backend == "triton":
        raise RuntimeError(f"backend: expected a device where the kernels run, for 'triton', got {device}: {reason}")
    asked_for = TRITON_MISSING and os.environ.get("TRITON_INTERPRET")
    if asked_for or device.type not in ("cpu", "meta") or interprets(probe):
        _warn_once(device.type, reason)
    return False


@cache
def reason_against(device: torch.device) -> str:
    """Why the kernels do not run on this device, in words; empty if they do, which a small kernel has tried."""
    if TRITON_MISSING:
        return f"triton cannot be imported ({TRITON_MISSING})"
    if device.type == "cpu" and not interprets(probe):
        return "the kernels run there only in Triton's interpreter, with TRITON_INTERPRET=1"
    if device.type not in ("cpu", "cuda"):
        return "the kernels do not run there"
    if device.type == "cuda" and not torch.version.hip:
        capability = torch.cuda.get_device_capability(device)
        if capability < LEAST_CAPABILITY:
            least, got = ("{}.{}".format(*version) for version in (LEAST_CAPABILITY, capability))
            return f"Triton compiles for compute capability {least} and above, and this GPU has {got}"
    out = torch.zeros(1, dtype=torch.int32, device=device)
    try:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            probe[(1,)](out, num_warps=1)
    except Exception as error:  # of the compiler, its driver, the linker, the file system
        first_line = str(error).strip().partition("\n")[0]
        return f"Triton cannot compile ({type(error).__name__}: {first_line})"
    return ""


@cache
def _warn_once(device_type: str, reason: str) -> None:
    warnings.warn(f"stn_triton uses torch operations on {device_type}: {reason}", stacklevel=_level_of_caller())


def _level_of_caller() -> int:
    """`stacklevel`, for the function that asks, of the user's line: the first outside this package and torch.nn."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").startswith((__package__, "torch.nn.modules")):
        level, frame = level + 1, frame.f_back
    return level
