"""Every test runs on both paths: the kernels (on a GPU, or interpreted on the CPU) and the torch operations."""

import functools
import os
from typing import NamedTuple

if "PYTEST_XDIST_WORKER" in os.environ:  # one for each core: more threads would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when stn_triton is imported

from stn_triton import launch, plan
from stn_triton.kernels.language import TRITON_MISSING

torch.manual_seed(0)


def prepare_once() -> None:
    """Triton's interpreter prepares its whole language at every call of a device function, not only at a kernel's, and
    makes a table of types for every number: much of its time.
    """
    import triton.language as tl
    from triton.language.core import is_builtin
    from triton.runtime import interpreter

    if not hasattr(interpreter, "_LangPatchScope"):  # another version's
        return
    prepare = interpreter._patch_lang

    @functools.cache
    def languages(fn):
        return [value for value in fn.__globals__.values() if value is tl or value is tl.core]

    def prepare_unless_it_is(fn):
        unprepared = any(is_builtin(language.load) for language in languages(fn))
        return prepare(fn) if unprepared else interpreter._LangPatchScope()

    interpreter._patch_lang = prepare_unless_it_is
    of_any = interpreter._get_np_dtype
    of_scalars = functools.cache(of_any)
    interpreter._get_np_dtype = lambda kind: (of_scalars if type(kind) is tl.dtype else of_any)(kind)


def round_to_bfloat16() -> None:
    """Triton's interpreter cuts float32 off where a GPU rounds to the nearest bfloat16."""
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def rounded(data, from_type, to_type, rounding_mode):
        if (from_type, to_type) == (tl.float32, tl.bfloat16):
            bits = np.asarray(data, np.float32).view(np.uint32)
            nearest = bits + 0x7FFF + ((bits >> 16) & 1)
            return (np.where(np.isnan(data), bits | 0x400000, nearest) >> 16).astype(np.uint16)
        return convert(data, from_type, to_type, rounding_mode)

    interpreter._convert_float = rounded


if plan.INTERPRETED:
    prepare_once()
    round_to_bfloat16()


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
def launches(monkeypatch):
    """Records the kernels that are launched."""
    kernels, real = [], launch._launch
    monkeypatch.setattr(
        launch, "_launch", lambda kernel, *args, **kw: kernels.append(kernel) or real(kernel, *args, **kw)
    )
    return kernels


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
    for planned in (plan.plan_forward, plan.plan_gather, plan.plan_backward, plan.plan_finish):
        planned.cache_clear()


@pytest.fixture(autouse=True)
def _poisoned_empty(monkeypatch):
    """Fresh memory is NaN, or a large number: an element that nobody wrote shows."""
    empty = torch.empty

    def poisoned(*args, **kwargs):
        tensor = empty(*args, **kwargs)
        if tensor.is_floating_point():
            tensor.detach().fill_(float("nan"))
        elif tensor.dtype in (torch.int32, torch.int64):
            tensor.fill_(torch.iinfo(tensor.dtype).max // 3)
        return tensor

    monkeypatch.setattr(torch, "empty", poisoned)
