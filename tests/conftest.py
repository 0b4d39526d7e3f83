"""Every test runs on both paths: the kernels (on a GPU, or interpreted on the CPU) and the torch operations."""

import inspect
import os
from typing import NamedTuple

if "PYTEST_XDIST_WORKER" in os.environ:  # one for each core: more threads would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when stn_triton is imported

from stn_triton import launch, plan
from stn_triton.kernels.language import TRITON_MISSING

torch.manual_seed(0)


def look_for_builtins_once() -> None:
    """Triton's interpreter looks through its whole language at every call of a device function: half of all time."""
    from triton.language.core import is_builtin
    from triton.runtime import interpreter

    names: dict[object, list[str]] = {}

    def patch_builtin(pkg, builder, scope):
        if pkg not in names:
            names[pkg] = [name for name, member in inspect.getmembers(pkg) if is_builtin(member)]
        for name in names[pkg]:
            member = getattr(pkg, name)
            if is_builtin(member):  # not yet the interpreter's own
                interpreter._patch_attr(pkg, name, member, builder, scope)

    if [*inspect.signature(interpreter._patch_builtin).parameters] == ["pkg", "builder", "scope"]:
        interpreter._patch_builtin = patch_builtin


if plan.INTERPRETED:
    look_for_builtins_once()


class Path(NamedTuple):
    name: str
    device: torch.device


def use_path(name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    if name == "torch":
        monkeypatch.setattr(launch, "takes", lambda device: False)
        return Path(name, torch.device("cpu"))
    if TRITON_MISSING:
        pytest.skip(f"no triton: {TRITON_MISSING}")
    return Path(name, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


@pytest.fixture(params=["kernel", "torch"])
def path(request, monkeypatch) -> Path:
    """The implementation under test, and the device its tensors live on."""
    return use_path(request.param, monkeypatch)


@pytest.fixture
def kernel_path(monkeypatch) -> Path:
    """The kernels only."""
    return use_path("kernel", monkeypatch)


@pytest.fixture
def torch_path(monkeypatch) -> Path:
    """The torch operations only."""
    return use_path("torch", monkeypatch)


@pytest.fixture
def set_threads():
    """`torch.set_num_threads`, undone after the test."""
    threads = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _planned_afresh():
    """A test that changes how launches are planned leaves no plan to the next."""
    yield
    plan.plan_forward.cache_clear()
    plan.plan_backward.cache_clear()


@pytest.fixture(autouse=True)
def _poisoned_empty(monkeypatch):
    """Fresh memory is NaN: an element that nobody wrote shows."""
    empty = torch.empty

    def poisoned(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        if tensor.is_floating_point():
            tensor.detach().fill_(float("nan"))
        return tensor

    monkeypatch.setattr(torch, "empty", poisoned)
