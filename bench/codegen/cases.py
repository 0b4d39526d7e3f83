"""The warps whose kernels are looked at, and how a case becomes launches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from unittest import mock

import torch
import triton.language as tl

from stn_triton import TRANSFORMS, Transform, launch, plan
from stn_triton.layout import ImageLike
from stn_triton.spec import MODES, PADDING_MODES, WarpSpec

from ..inputs import transform_of
from ..polynomial import POLYNOMIAL
from ..workloads import WORKLOADS, Workload
from .capture import TARGETS, Launch, compiled_for

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
LAYOUTS = ("contiguous", "channels_last", "strided")
PASSES = ("forward", "d_theta", "d_image", "both")  #: both: gradients
BESIDE = ("warp_gather", "warp_finish")  #: kernels that are the same whether or not theta has a gradient, too
SIZES = ("small", "far", "long")  #: far: 64-bit offsets; long: those, and an axis that float32 cannot number


# A basis of a user's own beside those that have names.
OBJECTS: dict[str, Transform] = {"polynomial": POLYNOMIAL}


@dataclass(frozen=True)
class Case:
    """One warp, one pass of it, one GPU."""

    target: str = "sm_90"
    transform: str = "affine"
    mode: str = "bilinear"
    padding_mode: str = "zeros"
    align_corners: bool = False
    dtype: str = "float32"
    layout: str = "contiguous"
    work: str = "forward"  #: one of `PASSES`
    shape: tuple[int, int, int, int] = (8, 3, 256, 256)  #: of the image, and of the output unless `workload` has one
    size: str = "small"  #: one of `SIZES`
    transforms: int | None = None  #: of every image
    mask: bool = False
    deterministic: bool = False
    workload: Workload | None = None  #: whose warp this is

    @classmethod
    def of(cls, workload: Workload, work: str) -> Case:
        """A pass of a workload."""
        shared = {name: getattr(workload, name) for name in CASES_AND_WORKLOADS}
        return cls(work=work, shape=workload.image, workload=workload, **shared)

    @property
    def label(self) -> str:
        """Every field that differs from the headline, and those it is read by."""
        parts = [self.target, self.work, self.dtype, "x".join(map(str, self.shape)), self.layout]
        parts += [self.transform, self.mode, self.padding_mode]
        parts += ["align_corners"] * self.align_corners + [self.size] * (self.size != "small")
        parts += [f"{self.transforms} transforms"] * (self.transforms is not None)
        parts += ["mask"] * self.mask + ["deterministic"] * self.deterministic
        parts += [self.workload.name] if self.workload else []
        return " ".join(parts)

    @property
    def launches_something(self) -> bool:
        """Nearest's gradient to theta is zero without a kernel."""
        return (self.mode, self.work) != ("nearest", "d_theta")

    def launches(self) -> list[Launch]:
        """What the launcher asks for: one kernel; for d_image alone all, a gather and a rounding of sums among them."""
        n = self.shape[0]
        h, w = self.workload.size if self.workload else self.shape[2:]
        transform = transform_of(self.workload) if self.workload else (TRANSFORMS | OBJECTS)[self.transform]
        many = () if self.transforms is None else (self.transforms,)
        spec = WarpSpec(
            transform, self.mode, self.padding_mode, self.align_corners, (h, w), self.transforms, self.mask,
            self.deterministic,
        )  # fmt: skip
        image = self._images(self.shape[2:])
        fill = torch.zeros(self.shape[:2]) if self.padding_mode == "fill" else None
        theta = torch.zeros(1).expand(n, *many, *transform.parameter_shape((h, w)))
        with ExitStack() as stack:
            launches = stack.enter_context(compiled_for(self.target, BESIDE if self.work != "d_image" else ()))
            if self.size != "small":
                stack.enter_context(mock.patch.object(plan, "_index", return_value=tl.int64))
            if self.size == "long":
                stack.enter_context(mock.patch.object(plan, "_accumulator", return_value=tl.float64))
            if self.work == "forward":
                launch.forward(spec, image, theta, fill, image.dtype)
            else:
                needs = self.work in ("d_image", "both"), self.work in ("d_theta", "both")
                d_out = self._images((h, w))
                d_out = d_out if self.transforms is None else d_out[:, None].expand(-1, self.transforms, -1, -1, -1)
                d_mask = torch.zeros(1).expand(n, *many, 1, h, w) if self.mask else None
                launch.backward(spec, d_out, d_mask, image, ImageLike.of(image), theta, fill, *needs)
        return launches

    def _images(self, size: tuple[int, ...]) -> torch.Tensor:
        (n, c), (h, w) = self.shape[:2], size
        dtype = DTYPES[self.dtype]
        if self.layout == "channels_last":
            return torch.empty(n, h, w, c, dtype=dtype).permute(0, 3, 1, 2)
        if self.layout == "strided":  # every second column of a contiguous one
            return torch.empty(n, c, h, 2 * w, dtype=dtype)[..., ::2]
        return torch.empty(n, c, h, w, dtype=dtype)


CASES_AND_WORKLOADS = (
    "transform", "mode", "padding_mode", "align_corners", "dtype", "layout", "transforms", "mask"
)  # fmt: skip


def measured() -> Iterator[Case]:
    """The passes of the workloads that ``python -m bench`` times, on sm_90."""
    gradients = {"image": "d_image", "theta": "d_theta", "both": "both"}
    for workload in WORKLOADS:
        yield Case.of(workload, "forward")
        if workload.needs in gradients:
            yield Case.of(workload, gradients[workload.needs])


def headline() -> Iterator[Case]:
    """The rows of the tables in ``bench/README.md``: bilinear, zeros, on sm_90; affine first."""
    for work, dtype in itertools.product(("forward", "d_theta", "both"), ("float32", "bfloat16")):
        for channels in (1, 3, 16):
            yield Case(work=work, dtype=dtype, shape=(8, channels, 256, 256))
        yield Case(work=work, dtype=dtype, shape=(8, 64, 112, 112), layout="channels_last")
    for dtype, channels in (("float32", 1), ("float32", 3), ("float32", 16), ("bfloat16", 3)):
        yield Case(work="d_image", dtype=dtype, shape=(8, channels, 256, 256))
    yield Case(work="d_image", dtype="bfloat16", shape=(8, 64, 112, 112), layout="channels_last")
    for channels in (1, 3, 16):
        yield Case(dtype="float16", shape=(8, channels, 256, 256))
    for layout in ("contiguous", "channels_last"):
        yield Case(shape=(32, 256, 14, 14), layout=layout)
        yield Case(shape=(4, 512, 7, 7), layout=layout)
    for transform, work, channels in itertools.product(TRANSFORMS | OBJECTS, ("forward", "both"), (1, 3)):
        if transform != "affine" and (work, channels) != ("both", 1):
            yield Case(transform=transform, work=work, shape=(8, channels, 256, 256))


def everywhere() -> Iterator[Case]:
    """The float32 and bfloat16 forward and backward passes that matter most, on the GPUs that are not sm_90."""
    for target in TARGETS:
        if target == "sm_90":
            continue
        yield Case(target, shape=(8, 1, 256, 256))
        yield Case(target, shape=(8, 3, 256, 256))
        yield Case(target, shape=(8, 16, 256, 256), dtype="bfloat16")
        yield Case(target, shape=(8, 64, 112, 112), dtype="bfloat16", layout="channels_last")
        yield Case(target, shape=(8, 3, 256, 256), work="both")
        yield Case(target, shape=(8, 3, 256, 256), work="d_image")
        if target != "sm_120":
            yield Case(target, shape=(8, 3, 256, 256), work="d_image", padding_mode="border", deterministic=True)


def every_combination() -> Iterator[Case]:
    """On sm_90 in float32, affine with every sampler and padding, both passes, and a mask; of the others what differs.

    That is, of transforms with the same coordinates the first, with a rule of padding that changes the coordinate:
    samplers do not see the transform.
    """
    distinct = {transform.source: name for name, transform in reversed(TRANSFORMS.items())}.values()
    for mode, padding_mode, work in itertools.product(MODES, PADDING_MODES, ("forward", "both")):
        if mode != "nearest" or padding_mode in ("zeros", "reflection"):  # it pads as bilinear does
            yield Case(mode=mode, padding_mode=padding_mode, work=work)
    for transform in distinct:
        yield Case(transform=transform, padding_mode="reflection")
    for transform, mode in (("attention", "bilinear"), ("homography", "bilinear"), ("affine", "nearest")):
        yield Case(transform=transform, mode=mode, work="d_image")
    yield Case(mode="bicubic", work="d_image", transforms=4)
    yield Case(mode="bicubic", work="d_image", shape=(8, 64, 112, 112), layout="channels_last")
    yield Case(work="d_image", padding_mode="border", deterministic=True)
    yield Case(work="both", transform="tps", deterministic=True)
    for work in ("forward", "both"):
        yield Case(work=work, mask=True)
        yield Case(work=work, mode="bicubic", shape=(8, 64, 112, 112), layout="channels_last")


FACTORS = {
    "target": tuple(TARGETS),
    "transform": tuple(TRANSFORMS),
    "mode": MODES,
    "padding_mode": PADDING_MODES,
    "align_corners": (False, True),
    "dtype": tuple(DTYPES),
    "layout": LAYOUTS,
    "work": PASSES,
    "shape": ((2, 1, 32, 40), (2, 3, 32, 40), (2, 8, 32, 40), (2, 8, 32, 14)),
    "size": SIZES,
    "transforms": (None, 4),
    "mask": (False, True),
    "deterministic": (False, True),
}


def pairwise() -> Iterator[Case]:
    """Cases in which every pair of values of two factors occurs, greedily few."""
    names = list(FACTORS)
    pairs = {
        ((a, i), (b, j))
        for a, b in itertools.combinations(names, 2)
        for i in range(len(FACTORS[a]))
        for j in range(len(FACTORS[b]))
    }
    while pairs:
        chosen: dict[str, int] = dict(min(pairs))
        for name in names:
            if name not in chosen:
                chosen[name] = max(
                    range(len(FACTORS[name])),
                    key=lambda k: sum(_covered_by({**chosen, name: k}, pair) for pair in pairs),
                )
        pairs = {pair for pair in pairs if not _covered_by(chosen, pair)}
        yield Case(**{name: FACTORS[name][chosen[name]] for name in names})


def _covered_by(chosen: dict[str, int], pair: tuple[tuple[str, int], ...]) -> bool:
    return all(chosen.get(name) == index for name, index in pair)


def checked() -> list[Case]:
    """What ``--check`` compiles, each once."""
    cases = [*headline(), *everywhere(), *every_combination(), *pairwise()]
    return [case for case in dict.fromkeys(cases) if case.launches_something]


def everything() -> list[Case]:
    """Every choice of a user with every other, for every GPU, on images of 8 channels: some two hours of compiling."""
    chosen = {name: values for name, values in FACTORS.items() if name not in ("shape", "size", "transforms")}
    products = itertools.product(*chosen.values())
    cases = [Case(**dict(zip(chosen, values, strict=True)), shape=(2, 8, 32, 40)) for values in products]
    return [case for case in cases if case.launches_something]
