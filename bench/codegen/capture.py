"""What the package's own launchers would launch, compiled for a GPU that need not be there.

Within `compiled_for(target)` the functions of `stn_triton.launch` compile, by their own plans and Triton's own
specialisation, and nothing runs. Triton's interpreter must be off.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver

from stn_triton import launch, plan

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}


class StubDriver(DriverBase):
    """A driver of a GPU that is not there: enough to specialise and compile for it."""

    def __init__(self, target: GPUTarget):
        self.target = target

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 1000 + list(TARGETS.values()).index(self.target)  # a cache of compiled kernels for each

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class Launch:
    """A kernel as a launcher asked for it."""

    name: str  #: of the kernel's function
    kernel: Any  #: triton's compiled kernel
    programs: int
    arguments: dict[str, Any]  #: by the kernel's own names


@contextmanager
def compiled_for(target: str, without: tuple[str, ...] = ()) -> Iterator[list[Launch]]:
    """Within, launches compile for the target and are collected instead of run; not those ``without``, by name."""
    launches: list[Launch] = []

    def compile_only(kernel: Any, programs: int, *args: Any, options: dict[str, Any]) -> None:
        if kernel.__name__ in without:
            return
        compiled = kernel.warmup(*args, grid=(programs,), **options)
        launches.append(Launch(kernel.__name__, compiled, programs, dict(zip(kernel.arg_names, args, strict=True))))

    before = driver._active  # `reset_active` would look for a GPU
    forget_plans()  # they hold the number of warps
    try:
        driver.set_active(StubDriver(TARGETS[target]))
        with (
            mock.patch.object(launch, "_launch", compile_only),
            mock.patch.object(plan, "lanes_per_warp", return_value=TARGETS[target].warp_size),
        ):
            yield launches
    finally:
        driver._active = before
        forget_plans()


def forget_plans() -> None:
    """Has every launch planned anew."""
    for planned in (plan.plan_forward, plan.plan_gather, plan.plan_backward, plan.plan_finish):
        planned.cache_clear()


def disassemble(kernel: Any) -> str:
    """The machine code of a compiled kernel, as text."""
    return _cuobjdump(kernel, "-sass") if "cubin" in kernel.asm else kernel.asm["amdgcn"]


def resources(kernel: Any) -> str:
    """``cuobjdump``'s line of registers, stack and shared memory."""
    return _cuobjdump(kernel, "--dump-resource-usage")


def _cuobjdump(kernel: Any, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
