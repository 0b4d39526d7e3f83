"""Tests of compiled code, in a process of their own: the interpreter must be off. Prints what is wrong, a line each.

    python -m tests.compiled

The instrument is tried on kernels whose counts are known by construction and on regressions planted in the package;
the launchers on how many kernels they have compiled.
"""

from __future__ import annotations

import copy
import pickle
import random
import sys
from collections import Counter
from collections.abc import Iterator
from unittest import mock

import torch
import triton
import triton.language as tl

from bench.codegen.capture import TARGETS, compiled_for
from bench.codegen.cases import Case
from bench.codegen.check import complaints, measure, read_pinned
from bench.codegen.count import Count, Work, count_kernel
from bench.polynomial import POLYNOMIAL
from stn_triton import TRANSFORMS, BasisExpansion, Flow, ThinPlateSpline, launch, plan
from stn_triton.kernels.coordinates import zeros
from stn_triton.layout import ImageLike
from stn_triton.spec import WarpSpec

# --- kernels whose counts are known ---------------------------------------------------------------------------


@triton.jit
def arithmetic(x, out, steps, channels, FMAS: tl.constexpr, WIDTH: tl.constexpr):
    """FMAS fused products per element and trip, WIDTH elements a lane: too long a body to be unrolled."""
    k = tl.arange(0, 128 * WIDTH)
    for _ in range(steps):
        for c in range(channels):
            value = tl.load(x + c * 4096 + k)
            factor = value
            for _fma in tl.static_range(FMAS):
                value = tl.fma(value, factor, factor)
            tl.store(out + c * 4096 + k, value)


@triton.jit
def assorted(x, out, n, KIND: tl.constexpr):
    k = tl.arange(0, 128)
    value = tl.load(x + k)
    if KIND == "reciprocal root":
        tl.store(out + k, tl.rsqrt(value))
    elif KIND == "conversion":
        tl.store(out + value.to(tl.int32), value)
    elif KIND == "atomics":
        tl.atomic_add(out + k, value, sem="relaxed")
        tl.atomic_add(out + k + n, value, sem="relaxed")
    elif KIND == "fence":
        tl.atomic_add(out + k, value)
    elif KIND == "compare and swap":
        tl.atomic_cas(out.to(tl.pointer_type(tl.int32)) + k, k, k + n)
    elif KIND == "barrier":
        tl.store(out + k, tl.sum(value, 0) + value)


def compiled(kernel, target: str, *args) -> Count:
    with compiled_for(target) as launches:
        launch._launch(kernel, 1, *args, options={"num_warps": 128 // TARGETS[target].warp_size})
    return count_kernel(launches[0].kernel, Work())


def known_counts() -> Iterator[str]:
    """Counts that follow from the source."""
    x = torch.zeros(4096)
    for target in ("sm_90", "gfx942"):
        few, many = (compiled(arithmetic, target, x, x, 16, 16, fmas, 1) for fmas in (100, 140))
        if many.paths["masked"].channel - few.paths["masked"].channel != 40:
            yield f"{target}: 40 more instructions an element were counted as {few.paths} to {many.paths}"
        if (few.loads, few.stores) != ({"32": 1}, {"32": 1}):
            yield f"{target}: one load and one store of 32 bits were counted as {few.loads}, {few.stores}"
        wide = compiled(arithmetic, target, x, x, 16, 16, 100, 4)
        if (wide.loads, wide.stores) != ({"128": 1}, {"128": 1}):
            yield f"{target}: one load and one store of 128 bits were counted as {wide.loads}, {wide.stores}"
        packed = 2 if target == "gfx942" else 1  # two float32 products in one instruction
        if not 100 / packed <= wide.paths["masked"].channel < few.paths["masked"].channel:
            yield f"{target}: four elements a lane count {wide.paths} each, one counts {few.paths}"
    expected = {
        "reciprocal root": lambda c: c.special == 1 and not c.conversions,
        "conversion": lambda c: c.conversions == 1,
        "atomics": lambda c: c.atomics == {"REDG.ADD.F32": 2} and not c.fences,
        "fence": lambda c: c.fences >= 1,
        "compare and swap": lambda c: any("CAS" in kind for kind in c.atomics),
        "barrier": lambda c: c.barriers >= 1,
    }
    for kind, holds in expected.items():
        counted = compiled(assorted, "sm_90", x, x, 5, kind)
        if not holds(counted):
            yield f"{kind} was counted as {counted}"


# --- planted regressions --------------------------------------------------------------------------------------


@triton.jit
def converting(t, n, inverse_span, ALIGN_CORNERS: tl.constexpr):
    t, slope, known = zeros(t, n, inverse_span, ALIGN_CORNERS)
    return t + t.to(tl.int32).to(t.dtype) * 0.25, slope, known


@triton.jit
def dividing(t, n, inverse_span, ALIGN_CORNERS: tl.constexpr):
    return zeros(t / n * n, n, inverse_span, ALIGN_CORNERS)


def with_options(**changed):
    options = plan._options
    return mock.patch.object(plan, "_options", lambda config: {**options(config), **changed})


PLANTED = {
    "several pixels per lane": (lambda: with_options(num_warps=1), "stores 32 4 -> 16"),
    "a spill": (lambda: with_options(maxnreg=24), "spills"),
    "coordinates as the compiler likes": (lambda: with_options(enable_fp_fusion=True), "fuses products and sums"),
    "an unguarded conversion": (
        lambda: mock.patch.dict(plan.PADDING_RULES, zeros=converting), "converts a float to an integer",
    ),
    "the unchecked path lost": (lambda: mock.patch.object(type(TRANSFORMS["affine"]), "monotone", False), "is lost"),
    "a division by a size": (lambda: mock.patch.dict(plan.PADDING_RULES, zeros=dividing), "divides"),
}  # fmt: skip


def planted_regressions() -> Iterator[str]:
    """The check must pass as things are, and fail for each of these."""
    case, pinned = Case(shape=(8, 1, 256, 256)), read_pinned()
    if not pinned:
        return
    if found := list(complaints(measure(case)[0], pinned)):
        yield f"nothing planted: {found}"
    for what, (plant, expected) in PLANTED.items():
        with plant():
            found = list(complaints(measure(case)[0], pinned))
        if not any(expected in complaint for complaint in found):
            yield f"{what} not noticed: {found}"


# --- how many kernels are compiled ----------------------------------------------------------------------------


# For 100 shapes of one layout.
MOST_KERNELS = {"warp_forward": 6, "warp_gather": 10, "warp_backward": 6}


def kernels_over_random_shapes() -> Iterator[str]:
    """Few: sizes, strides and alignment are values at run time."""
    draw = random.Random(0)
    shapes = [
        (
            draw.randint(1, 40),
            draw.choice((1, 2, 3, 4, 7, 8, 16, 64, 96, 256)),
            draw.randint(1, 99),
            draw.randint(1, 99),
        )
        for _ in range(100)
    ]
    for layout in (torch.contiguous_format, torch.channels_last):
        counts: Counter[str] = Counter()
        for work in ("forward", "backward"):
            with compiled_for("sm_90") as launches:
                for n, c, h, w in shapes:
                    spec = WarpSpec(TRANSFORMS["affine"], "bilinear", "zeros", False, (h, w))
                    image = torch.empty(n, c, h, w, memory_format=layout)
                    if c % 2:  # every other one starts at an odd address
                        image = torch.empty(image.numel() + 1)[1:].as_strided(image.shape, image.stride())
                    theta = torch.empty(n, 2, 3)
                    if work == "forward":
                        launch.forward(spec, image, theta, None, image.dtype)
                    else:
                        launch.backward(spec, image, None, image, ImageLike.of(image), theta, None, True, True)
            counts.update(name for name, _ in {(one.name, id(one.kernel)) for one in launches})
            if len(launches) != 100 * (1 + (work == "backward")):
                yield f"{layout}: {len(launches)} launches {work} for 100 shapes"
        if any(counts[name] > most for name, most in MOST_KERNELS.items()) or counts.keys() != MOST_KERNELS.keys():
            yield f"{layout}: {dict(counts)} kernels for 100 shapes, expected at most {MOST_KERNELS}"


def basis_of(number):
    """A basis and its torch form; Triton knows the basis of every number by one name."""
    constant = tl.constexpr(number)

    @triton.jit
    def basis(k, x, y):
        return x + constant

    return BasisExpansion(basis, 1, lambda x, y: (x + number)[None])


def kernels_of_two_bases() -> Iterator[str]:
    """Equal ones are compiled once, others apart, even if they have one name."""
    image, theta = torch.empty(1, 1, 8, 8), torch.empty(1, 2, 1)
    with compiled_for("sm_90") as launches:
        for number in (1, 2, 1):
            launch.forward(
                WarpSpec(basis_of(number), "bilinear", "zeros", False, (8, 8)), image, theta, None, image.dtype
            )
    one, two, again = (each.kernel for each in launches)
    if one is not again or one.asm["ttir"] == two.asm["ttir"]:
        yield "expected two kernels of two bases, the third of them the first"


# --- objects that hold functions of Triton's ------------------------------------------------------------------


def copies() -> Iterator[str]:
    """Transforms are copied and pickled with the networks they are in; the copies are equal where they can be."""
    others = Flow(channels_first=True, image_size=(8, 9)), ThinPlateSpline([(-1, -1), (1, -1), (0, 1)]), POLYNOMIAL
    for transform in (*TRANSFORMS.values(), *others):
        again = pickle.loads(pickle.dumps(transform)), copy.deepcopy(transform)
        if not all(repr(each) == repr(transform) for each in again):
            yield f"{transform}: copied as {again}"
        if transform.settings() is not None and not again[0] == again[1] == transform:
            yield f"{transform}: copies differ from it"
        if any(each.load is not transform.load for each in again):
            yield f"{transform}: copies have other device functions"
    if pickle.loads(pickle.dumps(POLYNOMIAL)).basis is not POLYNOMIAL.basis:
        yield "a basis is not found by its name"
    without_a_name = basis_of(1)
    if not copy.copy(without_a_name) is copy.deepcopy(without_a_name) is without_a_name:
        yield "a basis without a name is not shared by copies"
    try:
        pickle.dumps(without_a_name)
    except pickle.PicklingError as error:
        if "basis: expected a jit function at the top of a module" not in str(error):
            yield f"a basis without a name: {error}"
    else:
        yield "a basis without a name was pickled"


def main() -> int:
    parts = known_counts, planted_regressions, kernels_over_random_shapes, kernels_of_two_bases, copies
    found = [what for part in parts for what in part()]
    print(*found, sep="\n")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
