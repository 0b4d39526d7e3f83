"""What no kernel may do, and what none may do more of than it did."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton

from stn_triton.transforms.projective import projective_source
from stn_triton.transforms.thin_plate_spline import free_adjoint, spline_adjoint

from .budget import budget, over_budget
from .capture import Launch
from .cases import BESIDE, OBJECTS, Case
from .count import Count, Share, count

# A perspective divides by the depth of a point, which no host could do for it; nobody divides by a size.
PERSPECTIVE_DIVISIONS = {projective_source: 1}

# Gradients with more sums than registers: lanes add up theirs at every tile, through shared memory.
ADDING_UP_LANES = (spline_adjoint, free_adjoint, *(transform.adjoint for transform in OBJECTS.values()))

# What the compiler does to single kernels, known and left: label of the case -> (faults, why it may stay).
KNOWN = {
    "sm_100 forward float64 2x8x32x40 channels_last affine nearest zeros align_corners": (
        {"spills 4 bytes"},
        "ptxas stops at 40 registers of 255, and writes and reads one of them once",
    ),
    "sm_100 forward float64 2x8x32x40 channels_last piecewise_affine bicubic reflection far": (
        {
            "has a barrier in a forward kernel",
            "has a barrier in the masked loop",
            "goes through shared memory in the masked loop over channels",
        },
        "64-bit offsets of float64 images in channels_last, whose sixteen reflected taps are indices: as rare",
    ),
    **dict.fromkeys(
        (
            "sm_90 both bfloat16 8x64x112x112 channels_last affine bilinear zeros",
            "sm_120 both float64 2x8x32x14 channels_last homography bilinear fill long 4 transforms deterministic",
        ),
        (
            {"has a barrier in the scattered loop", "goes through shared memory in the scattered loop over channels"},
            "lanes take as many channels as suit theta's gradient, more than an atomic does: of images not gathered",
        ),
    ),
    "sm_120 d_theta float32 2x8x32x14 channels_last affine bilinear reflection long": (
        {"has a barrier in the masked loop", "goes through shared memory in the masked loop over channels"},
        "float64 coordinates for an axis of 4 million pixels, reflected, in channels_last: too rare to be looked into",
    ),
}


@dataclass(frozen=True)
class Measured:
    """A case's kernel, counted and judged."""

    label: str
    programs: int
    share: Share
    count: Count
    budget: tuple[float, float] | None  #: of instructions a pixel, unmasked and masked
    faults: tuple[str, ...]

    def figures(self) -> dict[str, Any]:
        """What is pinned: more of any is worse."""
        paths = self.count.paths.items()
        return {
            **self.count.to_json(),
            "per_pixel": {name: path.per_pixel(self.share, with_prologue=True) for name, path in paths},
        }


def measure(case: Case) -> list[Measured]:
    """Compiles a case's kernels and counts them."""
    measured = []
    for launch in case.launches():
        counted, share = count(launch), Share.of(launch)
        beside = launch.name in BESIDE
        label = f"{case.label} {launch.name.removeprefix('warp_')}" if beside else case.label
        found = {*faults(launch, counted)}
        if pinned_file().exists() and not beside:  # another triton's figures are not held against budgets either
            found |= {*over_budget(case, counted.paths, share)}
        known, _ = KNOWN.get(label, (set(), ""))
        gone = (f"no longer {fault}: to be taken out of KNOWN" for fault in known - found)
        allowed = None if beside else budget(case)
        measured.append(Measured(label, launch.programs, share, counted, allowed, (*sorted(found - known), *gone)))
    return measured


# In Triton's own IR, since machine code divides integers by way of floats.
CONVERSION = r"arith\.fpto[su]i"
DIVISION = r"arith\.divf|precise_divf"


def faults(launch: Launch, counted: Count) -> Iterator[str]:
    """What is wrong with a kernel whatever its figures were, in words."""
    arguments, code = launch.arguments, launch.kernel.asm["ttir"]
    meant = arguments.get("EXACT") and launch.name == "warp_backward"  # whole numbers, of what is finite
    if re.search(CONVERSION, code) and not meant:
        yield "converts a float to an integer on the device"
    if launch.kernel.metadata.enable_fp_fusion:
        yield "fuses products and sums as the compiler likes: coordinates differ from kernel to kernel"
    if counted.spilled:
        yield f"spills {counted.spilled} bytes"
    if counted.fences:
        yield "fences memory"
    if any("CAS" in kind or "cmpswap" in kind for kind in counted.atomics):
        yield "compares and swaps"
    if launch.name == "warp_finish":
        return
    if launch.name == "warp_gather":
        if counted.atomics:
            yield "has atomics in a gather"
        if counted.barriers:
            yield "has a barrier in a gather"
    else:
        yield from _faults_of_a_warp(launch, counted)
    if arguments["VECTOR"] > 1:
        vector = 8 * arguments["VECTOR"] * arguments["image" if "image" in arguments else "d_out"].element_size()
        if not any(int(bits) >= vector for bits in counted.loads):
            yield f"reads no {vector} bits at once"


def _faults_of_a_warp(launch: Launch, counted: Count) -> Iterator[str]:
    """Of the kernels whose programs own target pixels."""
    arguments = launch.arguments
    masked = 1 + bool(arguments.get("GATHERED") and arguments["NEEDS_THETA"])  # loops, if none is unmasked
    divisions = len(re.findall(DIVISION, launch.kernel.asm["ttir"])) / (arguments["UNROLL"] * masked)
    if divisions > PERSPECTIVE_DIVISIONS.get(arguments["SOURCE"], 0):
        yield f"divides {divisions:g} times a pixel on the device"
    if "out" in arguments and counted.barriers:
        yield "has a barrier in a forward kernel"
    adds_up_lanes = arguments.get("ADJOINT") in ADDING_UP_LANES and arguments["NEEDS_THETA"]
    for name, path in counted.paths.items():
        if adds_up_lanes:
            continue
        if path.barriers:
            yield f"has a barrier in the {name} loop"
        if path.shared:
            yield f"goes through shared memory in the {name} loop over channels"
    loops = 1 + arguments["MONOTONE"]
    if arguments.get("GATHERED"):
        loops = 1 + loops * arguments["NEEDS_THETA"]
    if len(counted.paths) != loops:
        yield f"has {len(counted.paths)} loops over tiles: {', '.join(counted.paths) or 'none'}"


def worse(now: Any, before: Any, name: str = "") -> Iterator[str]:
    """Every figure that grew, by its name; a new kind of instruction grew from 0, and no path may be lost."""
    if isinstance(now, dict):
        if name == "paths" and isinstance(before, dict):
            yield from (f"{name} {lost} is lost" for lost in before.keys() - now.keys())
        for key, value in now.items():
            yield from worse(value, before.get(key, 0) if isinstance(before, dict) else 0, f"{name} {key}".strip())
    elif now > before:
        yield f"{name} {before:g} -> {now:g}"


def pinned_file() -> Path:
    """The committed figures of the triton that is installed; their figures differ from version to version."""
    return Path(__file__).with_name("pinned") / f"triton-{triton.__version__}.json"


def read_pinned() -> dict[str, dict[str, Any]]:
    """Figures by a case's label; none for a triton that nobody pinned."""
    return json.loads(pinned_file().read_text()) if pinned_file().exists() else {}


def write_pinned(kernels: Iterable[Measured]) -> None:
    """Commits to these figures."""
    pinned_file().parent.mkdir(exist_ok=True)
    lines = ",\n".join(sorted(f"{json.dumps(m.label)}: {json.dumps(m.figures())}" for m in kernels))
    pinned_file().write_text(f"{{\n{lines}\n}}\n")


def complaints(measured: Measured, pinned: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Faults, and what got worse since the figures were pinned, if any were."""
    yield from measured.faults
    if not pinned:
        return
    if measured.label not in pinned:
        yield "has no pinned figures"
    else:
        yield from worse(measured.figures(), pinned[measured.label])


def lost(kernels: Iterable[Measured], pinned: dict[str, dict[str, Any]]) -> list[str]:
    """Cases with pinned figures that are not among all that are checked."""
    labels = {measured.label for measured in kernels}
    return [f"{label}: is pinned and no longer checked" for label in pinned if label not in labels]
