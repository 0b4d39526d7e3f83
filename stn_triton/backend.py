"""Chooses between the kernels and torch operations: automatically, by `use_backend`, or by the environment.

The variable STN_TRITON_BACKEND is read when the package is imported.
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
LEAST_CAPABILITY = (7, 0)  #: the lowest compute capability that Triton compiles for

_from_environment = os.environ.get("STN_TRITON_BACKEND") or "auto"
check_choice("STN_TRITON_BACKEND", _from_environment, BACKENDS)
_backend: ContextVar[str] = ContextVar("stn_triton_backend", default=_from_environment)


@contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Sets the backend for the calls in this block and for their backward passes, in the current thread.

    Args:
        backend: "auto" (default): the kernels where they run, else torch operations, with one warning where kernels
            were expected. "torch": always torch operations, for comparison or to avoid a faulty kernel. "triton": the
            kernels, or a RuntimeError. Whatever is chosen, tracing (`torch.compile`) and gradients many at a time
            (``is_grads_batched``) use torch operations. Put the block around a compiled call, not into it.

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
    """Whether a call must raise an error rather than use torch operations."""
    return _backend.get() == "triton"


def kernels_run_on(device: torch.device) -> bool:
    """Whether calls on this device use the kernels. Warns once if they do not although a user would expect them to."""
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
    """Explains why the kernels do not run on this device; empty if a probe kernel ran."""
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
    try:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            probe[(1,)](torch.zeros(1, dtype=torch.int32, device=device), num_warps=1)
    except Exception as error:  # raised by the compiler, the driver, the linker or the file system
        if isinstance(error, torch.OutOfMemoryError) or _is_capturing(device):
            raise  # the reason may pass: the next call tries again
        first_line = str(error).strip().partition("\n")[0]
        return f"Triton cannot compile or launch ({type(error).__name__}: {first_line})"
    return ""


def _is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured, during which no kernel can be loaded."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


@cache
def _warn_once(device_type: str, reason: str) -> None:
    warnings.warn(f"stn_triton uses torch operations on {device_type}: {reason}", stacklevel=_level_of_caller())


def _level_of_caller() -> int:
    """Returns the `stacklevel`, for the calling function, of the first frame outside this package and torch.nn."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").startswith((__package__, "torch.nn.modules")):
        level, frame = level + 1, frame.f_back
    return level
