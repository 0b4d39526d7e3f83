"""Compiles what the launcher would launch, for GPUs that are not here, and looks at the code.

Run as a program in a process of its own (the interpreter must be off); prints one line per complaint.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
import triton
import triton.language as tl
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver

from stn_triton import TRANSFORMS, launch
from stn_triton.spec import WarpSpec

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
FACTORS = {
    "target": list(TARGETS),
    "transform": list(TRANSFORMS),
    "mode": list(launch.SAMPLERS),
    "padding_mode": list(launch.PADDING_RULES),
    "align_corners": [False, True],
    "dtype": [torch.float32, torch.bfloat16, torch.float16, torch.float64],
    "size": ["small", "far", "long"],
    "needs": [(True, True), (True, False), (False, True)],
}


class Stub(DriverBase):
    """A driver of a GPU that is not there: enough to specialise and compile for it."""

    def __init__(self, target):
        self.target = target

    @classmethod
    def is_active(cls):
        return True

    def map_python_to_cpp_type(self, ty):
        return ty

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return 1000 + hash(str(self.target.arch)) % 1000  # a cache of compiled kernels for each

    def get_current_stream(self, device=0):
        return 0

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_benchmarker(self):
        raise NotImplementedError


@contextmanager
def compiled_for(target: str):
    """Within, launches compile for the target and are collected instead of run."""
    kernels = []

    def compile_only(kernel, programs, *args):
        kernels.append(kernel.warmup(*args, grid=(programs,), **launch.COMPILE_OPTIONS))

    driver.set_active(Stub(TARGETS[target]))
    with mock.patch.object(launch, "_launch", compile_only):
        yield kernels


def kernels_of(case: dict):
    """(name, compiled kernel) of the forward and backward launches of a case."""
    size = (4, 5)
    spec = WarpSpec(TRANSFORMS[case["transform"]], case["mode"], case["padding_mode"], case["align_corners"], size)
    shape = (2, 3, 8, 9)
    image = torch.zeros(1, dtype=case["dtype"]).expand(shape)
    theta = torch.zeros(1).expand(shape[0], *spec.transform.parameter_shape(size))
    d_out = torch.zeros(1, dtype=case["dtype"]).expand(*shape[:2], *size)
    with ExitStack() as stack:
        kernels = stack.enter_context(compiled_for(case["target"]))
        if case["size"] != "small":  # far: 64-bit offsets; long: an axis that float32 cannot number, too
            stack.enter_context(mock.patch.object(launch, "_index", return_value=tl.int64))
        if case["size"] == "long":
            stack.enter_context(mock.patch.object(launch, "_accumulator", return_value=tl.float64))
        launch.forward(spec, image, theta)
        launch.backward(spec, d_out, image, launch.ImageLike.of(image), theta, *case["needs"])
    label = "-".join(str(value).removeprefix("torch.") for value in case.values())
    return [(f"{kernel.name} {label}", kernel) for kernel in kernels]


def complaints(kernel, forward: bool) -> list[str]:
    """What is wrong with a compiled kernel, in words."""
    if "cubin" in kernel.asm:
        code, patterns = sass(kernel), {
            "spills to local memory": r"\b(LDL|STL)\b",
            "compare-and-swap atomic": r"\bATOM\S*\.CAS",
            "memory fence": r"\bMEMBAR\b",
        }  # fmt: skip
        barrier = r"\bBAR\.SYNC"
    else:
        code, patterns = kernel.asm["amdgcn"], {
            "spills": r"\.vgpr_spill_count:\s*[1-9]",
            "scratch memory": r"^\s+scratch_",
            "compare-and-swap atomic": r"atomic_cmpswap",
        }  # fmt: skip
        barrier = r"\bs_barrier\b"
    if forward:
        patterns["barrier in a forward kernel"] = barrier
    found = [what for what, pattern in patterns.items() if re.search(pattern, code, re.MULTILINE)]
    # In Triton's own IR, since machine code divides integers (a program's tile) by way of floats.
    sources = {"float to int conversion": r"arith\.fpto[su]i", "division": r"arith\.divf|precise_divf"}
    return found + [what for what, pattern in sources.items() if re.search(pattern, kernel.asm["ttir"])]


def sass(kernel) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-sass", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def every_kernel_on_sm_90():
    """All transforms, samplers and paddings, in float32."""
    varied = ("transform", "mode", "padding_mode")
    rest = {"align_corners": False, "dtype": torch.float32, "size": "small", "needs": (True, True)}
    for values in itertools.product(*(FACTORS[name] for name in varied)):
        yield {"target": "sm_90", **dict(zip(varied, values, strict=True)), **rest}


def pairwise():
    """Cases in which every pair of values of two factors occurs, greedily few."""
    names = list(FACTORS)
    pairs = {
        ((a, i), (b, j))
        for a, b in itertools.combinations(names, 2)
        for i in range(len(FACTORS[a]))
        for j in range(len(FACTORS[b]))
    }
    while pairs:
        chosen: dict[str, int] = {}
        (a, i), (b, j) = min(pairs)
        chosen[a], chosen[b] = i, j
        for name in names:
            if name not in chosen:
                chosen[name] = max(
                    range(len(FACTORS[name])),
                    key=lambda k: sum(covered_by({**chosen, name: k}, pair) for pair in pairs),
                )
        pairs = {pair for pair in pairs if not covered_by(chosen, pair)}
        yield {name: FACTORS[name][chosen[name]] for name in names}


def recompilations() -> list[str]:
    """Complaints if sizes, strides or alignments make another kernel of the same case."""
    with compiled_for("sm_90") as kernels:
        for transform in TRANSFORMS.values():
            for n, c, height, width in ((1, 1, 1, 1), (2, 3, 5, 7), (16, 16, 16, 16), (3, 32, 64, 1)):
                spec = WarpSpec(transform, "bilinear", "zeros", False, (height, width))
                image = torch.zeros(n * c * height * width + 1)[1:].view(n, c, height, width)
                theta = torch.zeros(n, *transform.parameter_shape(spec.size))
                launch.forward(spec, image, theta)
                launch.backward(spec, image, image, launch.ImageLike.of(image), theta, True, True)
    count = len({id(kernel) for kernel in kernels})
    expected = 2 * len(TRANSFORMS)
    return [] if count == expected else [f"{count} kernels for what {expected} should serve"]


def covered_by(chosen: dict[str, int], pair) -> bool:
    return all(chosen.get(name) == index for name, index in pair)


@triton.jit
def planted_division(out, n, BLOCK: tl.constexpr):
    k = tl.arange(0, BLOCK)
    tl.store(out + k, k.to(tl.float32) / n.to(tl.float32))


@triton.jit
def planted_conversion(out, n, BLOCK: tl.constexpr):
    k = tl.arange(0, BLOCK)
    tl.store(out + tl.load(out + k).to(tl.int32), 1.0)


@triton.jit
def planted_barrier(out, n, BLOCK: tl.constexpr):
    k = tl.arange(0, BLOCK)
    tl.store(out + k, tl.load(out + k) + tl.sum(tl.load(out + k), 0))


@triton.jit
def planted_fence(out, n, BLOCK: tl.constexpr):
    tl.atomic_add(out + tl.arange(0, BLOCK), 1.0)


PLANTED = {
    planted_division: "division",
    planted_conversion: "float to int conversion",
    planted_barrier: "barrier in a forward kernel",
    planted_fence: "memory fence",
}


def main() -> int:
    found = []
    for kernel, expected in PLANTED.items():
        with compiled_for("sm_90") as kernels:
            launch._launch(kernel, 1, torch.zeros(1), 7, 256)
        if expected not in complaints(kernels[0], forward=True):
            found.append(f"{kernel.__name__}: {expected} not noticed")
    found += recompilations()
    count = 0
    for case in [*every_kernel_on_sm_90(), *pairwise()]:
        for name, kernel in kernels_of(case):
            count += 1
            found += [f"{name}: {what}" for what in complaints(kernel, forward="forward" in name)]
    print(*found, sep="\n")
    print(f"{count} kernels compiled, {len(found)} complaints")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
