"""What a launch needs beside its tensors, from their shapes and strides alone: planned once, then looked up."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache, update_wrapper
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch

from .caches import BoundedCache
from .configs import (
    COLUMNS_TOGETHER,
    INTERPRETER,
    LANE_ROWS,
    MAX_THREADS,
    MOST_CANDIDATES,
    Blocks,
    LaunchConfig,
    blocks_of,
    by_columns,
    choose_config,
    choose_gather_config,
    cut,
    divisor,
    widened,
)
from .kernels import coordinates, samplers
from .kernels.language import tl
from .kernels.warp import warp_forward
from .layout import ImageLike, TensorLayout, fresh_strides, memory_format
from .spec import WarpSpec

if TYPE_CHECKING:
    from .transforms import Transform


class Sampler(NamedTuple):
    """A sampler's device functions, and how far it reaches."""

    taps: Any
    weight_at: Any
    radius: float  #: pixels, that a tap can be away from the point

    @property
    def reach(self) -> int:
        """Pixels by which its taps reach beyond those of bilinear."""
        return max(0, int(self.radius) - 1)

    @property
    def tap_count(self) -> int:
        """Of both axes together."""
        return int(2 * self.radius) ** 2


SAMPLERS = {
    "nearest": Sampler(samplers.nearest, samplers.nearest_weight_at, 0.5),
    "bilinear": Sampler(samplers.bilinear, samplers.bilinear_weight_at, 1.0),
    "bicubic": Sampler(samplers.bicubic, samplers.bicubic_weight_at, 2.0),
}
PADDING_RULES = {
    "zeros": coordinates.zeros,
    "border": coordinates.border,
    "reflection": coordinates.reflection,
    "fill": coordinates.zeros,
}

INTERPRETED = type(warp_forward).__name__ == "InterpretedFunction"  # TRITON_INTERPRET=1 at import
FINISH = (1, 32768) if INTERPRETED else (8, 1024)  # steps of a program that rounds sums, and elements of each
MAX_PLANS = 4096  # kept per kernel, a few kilobytes each
MAX_FLOAT32_AXIS = 2**22  # pixels, up to which `kernels.coordinates.round_half_even` holds in float32


class Plan(NamedTuple):
    """A launch without its tensors."""

    programs: int
    numbers: tuple[Any, ...]  #: values at run time, after the kernel's tensors
    constants: tuple[Any, ...]  #: values at compile time, its last arguments
    options: dict[str, Any]  #: of Triton's compiler
    shape: tuple[int, ...]  #: of the output; backward, of the buffer of parameter gradients
    memory_format: torch.memory_format  #: of the output


class PlanCache:
    """Caches the plans that a function makes for a warp and its layouts.

    Plans of a transform without `settings` are dropped together with it, so that no plan keeps a transform, or its
    memory on a device, alive.
    """

    def __init__(self, plan: Callable[..., Plan]) -> None:
        self._plan = plan
        update_wrapper(self, plan)
        self.cache_clear()

    def __call__(self, spec: WarpSpec, *args: Any) -> Plan:
        transform, *options = spec
        settings = transform.settings()
        if settings is None:
            plans = self._by_transform.get(transform)
            if plans is None:
                plans = self._by_transform[transform] = BoundedCache(MAX_PLANS)
        else:
            plans = self._by_settings
        key = type(transform), settings, *options, *args
        return plans.get(key, lambda: self._plan(spec, *args))

    def cache_clear(self) -> None:
        """Forgets all plans."""
        self._by_settings: BoundedCache[Plan] = BoundedCache(MAX_PLANS)
        self._by_transform: WeakKeyDictionary[Transform, BoundedCache[Plan]] = WeakKeyDictionary()

    @property
    def misses(self) -> int:
        """The number of plans made so far."""
        return sum(plans.misses for plans in (self._by_settings, *self._by_transform.values()))


@PlanCache
def plan_forward(
    spec: WarpSpec, image: TensorLayout, theta: TensorLayout, fill_strides: tuple[int, ...] = (0, 0)
) -> Plan:
    """For `kernels.warp.warp_forward`."""
    samples, channels = samples_of(spec, image.shape[0]), image.shape[1]
    shape = (samples, channels, *spec.size)
    out_format = memory_format(image.shape, image.stride)
    out = TensorLayout(torch.Size(shape), fresh_strides(shape, out_format), image.dtype, True)
    unit, vector = neighbours(image, out)
    config = _config(True, channels, spec, unit, vector)
    blocks = cut(config, samples, channels, spec.size, vector)
    transform, sampler = spec.transform, SAMPLERS[spec.mode]
    numbers = (
        *image.shape[1:], *spec.size, *_flat(blocks),
        *image.stride, *_theta_strides(spec, theta), *out.stride,
        *_axes(spec, image.shape), *_transforms(spec, theta), *fill_strides,
    )  # fmt: skip
    constants = (
        transform.load, transform.source, transform.monotone,
        PADDING_RULES[spec.padding_mode], sampler.taps, sampler.reach,
        spec.align_corners, spec.padding_mode == "fill", spec.mask, spec.transforms is not None,
        _accumulator(spec, image.shape, image.dtype),
        _index(image=image, theta=theta, out=out, mask=_mask_span(spec)), unit, vector,
        config.tile_h, config.tile_w, config.lanes_c * vector, config.channels, config.loop, config.unroll,
    )  # fmt: skip
    return Plan(samples * blocks.per_sample, numbers, constants, _options(config), shape, out_format)


@PlanCache
def plan_backward(
    spec: WarpSpec,
    like: ImageLike,
    d_out: TensorLayout,
    image: TensorLayout | None,
    theta: TensorLayout,
    d_image: TensorLayout | None,
    fill_strides: tuple[int, ...] = (0, 0),
    exact: bool = False,
    gathered: bool = False,
) -> Plan:
    """For `kernels.warp.warp_backward`; ``image`` and ``d_image`` are None where they are not read and not written.

    ``d_image`` is that of the sums, which the scatter adds to, ``exact`` in whole numbers; ``gathered``: for the images
    that were not.
    """
    samples, channels = samples_of(spec, like.shape[0]), like.shape[1]
    unit, vector = neighbours(*(tensor for tensor in (d_out, image, d_image) if tensor))
    config = _config(False, channels, spec, unit, vector)
    most = spec.transform.most_programs if image else None
    if most is not None:
        config = widened(config, spec.size[1], most)._replace(unroll=1)  # a long adjoint is written out once
    if image and spec.transform.walks_columns:
        config = by_columns(config, spec.size[1])
    blocks = cut(config, samples, channels, spec.size, vector, most)
    transform, sampler = spec.transform, SAMPLERS[spec.mode]
    read, added = image or d_out, d_image or d_out
    numbers = (
        *like.shape[1:], *spec.size, *_flat(blocks),
        *read.stride, *_theta_strides(spec, theta), *d_out.stride, *added.stride,
        *_axes(spec, like.shape), *_transforms(spec, theta), *fill_strides,
    )  # fmt: skip
    constants = (
        transform.load, transform.source, transform.monotone,
        transform.start, transform.adjoint, transform.store,
        PADDING_RULES[spec.padding_mode], sampler.taps, sampler.reach,
        spec.align_corners, spec.padding_mode == "fill", spec.mask, spec.transforms is not None,
        _accumulator(spec, like.shape, like.dtype),
        _index(d_out=d_out, image=read, theta=theta, d_image=added, d_mask=_mask_span(spec)), unit, vector,
        d_image is not None, exact, gathered, image is not None,
        config.tile_h, config.tile_w, config.lanes_c * vector, config.channels, config.loop, config.unroll,
    )  # fmt: skip
    shape = transform.partials_shape(samples, spec.size, blocks)
    return Plan(samples * blocks.per_sample, numbers, constants, _options(config), shape, torch.contiguous_format)


def gathers(spec: WarpSpec) -> bool:
    """Whether the gradient of the image is gathered by `kernels.gather.warp_gather`, where a theta has an inverse."""
    return spec.transform.inverse is not None and spec.padding_mode in ("zeros", "fill")


@PlanCache
def plan_gather(
    spec: WarpSpec,
    like: ImageLike,
    d_out: TensorLayout,
    theta: TensorLayout,
    d_image: TensorLayout,
    exact: bool = False,
) -> Plan:
    """For `kernels.gather.warp_gather`."""
    batch, channels, height, width = like.shape
    unit, vector = neighbours(d_out, d_image)
    config = _gather_config(channels, width, unit, vector)
    tall = config._replace(tile_h=config.tile_h * LANE_ROWS, unroll=1)  # in pixels
    # Lanes of 128 bits ask one column at a time, for registers; unaligned, too, since it is an order of sums.
    wide = like.memory_format is torch.channels_last and channels % (16 // like.dtype.itemsize) == 0
    together = 1 if wide else COLUMNS_TOGETHER[spec.mode]
    blocks = cut(tall, batch, channels, (height, width), vector)
    _, _, _, *of_m = _transforms(spec, theta)
    transform, sampler = spec.transform, SAMPLERS[spec.mode]
    numbers = (
        *like.shape[1:], *spec.size, *_flat(blocks),
        *_theta_strides(spec, theta), *d_out.stride, *d_image.stride, *_axes(spec, like.shape),
        1 if spec.transforms is None else spec.transforms, *of_m, MOST_CANDIDATES,
    )  # fmt: skip
    constants = (
        transform.load, transform.source, transform.inverse, transform.box, transform.extent,
        sampler.weight_at, sampler.radius, spec.align_corners, spec.transforms is not None, exact,
        _accumulator(spec, like.shape, like.dtype),
        _index(d_out=d_out, theta=theta, d_image=d_image, sums=d_image), unit, vector,
        config.tile_h, config.tile_w, config.lanes_c * vector, config.channels, config.loop,
        LANE_ROWS, together,
    )  # fmt: skip
    return Plan(batch * blocks.per_sample, numbers, constants, _options(config), like.shape, like.memory_format)


@lru_cache(maxsize=MAX_PLANS)
def plan_finish(like: ImageLike, exact: bool, gathered: bool) -> Plan:
    """For `kernels.finish.warp_finish`."""
    steps, block = FINISH
    numel = like.shape[1:].numel()
    blocks = divisor(blocks_of(numel, steps * block))
    _, stride_c, *_ = fresh_strides(like.shape, like.memory_format)
    numbers = (like.shape[1], stride_c, numel, *blocks)
    constants = (exact, gathered, tl.int64 if numel >= 2**31 else tl.int32, steps, block)
    options = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": False}
    return Plan(like.shape[0] * blocks[0], numbers, constants, options, like.shape, like.memory_format)


def bits_of(spec: WarpSpec) -> int:
    """BITS of `kernels.fixed_point`: what as many taps as can fall on one pixel leave of 62."""
    taps = SAMPLERS[spec.mode].tap_count * spec.size[0] * spec.size[1] * (spec.transforms or 1)
    return 62 - (taps - 1).bit_length()


def samples_of(spec: WarpSpec, batch: int) -> int:
    """How many samples the output has."""
    return batch * (1 if spec.transforms is None else spec.transforms)


def neighbours(*images: TensorLayout) -> tuple[bool, int]:
    """What these tensors (N, C, ., .) allow: whether the pixels of a row lie next to each other in all of them, and how
    many channels of a pixel are 128 bits of the widest type, 1 if they do not lie so that they can be read at once.
    """
    unit = all(image.stride[3] == 1 for image in images)
    vector = 16 // max(image.dtype.itemsize for image in images)
    for image in images:
        stride_n, stride_c, stride_h, stride_w = image.stride
        multiples = image.shape[1] | stride_n | stride_h | stride_w
        if stride_c != 1 or multiples % vector or image.shape[1] == 1 or not image.aligned:
            return unit, 1
    return unit, vector


def _config(forward: bool, channels: int, spec: WarpSpec, unit: bool, vector: int) -> LaunchConfig:
    config = choose_config(forward, channels, spec.size[1], unit, vector)
    if spec.mode == "bicubic":  # its sixteen taps fill the registers
        written = min(config.channels, 4 if forward else 1)
        config = config._replace(unroll=1, channels=written, loop=config.loop or written < config.channels)
    return _few_programs(config)


def _gather_config(channels: int, width: int, unit: bool, vector: int) -> LaunchConfig:
    return _few_programs(choose_gather_config(channels, width, unit, vector))


def _few_programs(config: LaunchConfig) -> LaunchConfig:
    """The same, but in the interpreter, which pays per program, of large tiles."""
    return config._replace(tile_h=INTERPRETER[0], tile_w=INTERPRETER[1], unroll=1) if INTERPRETED else config


def _options(config: LaunchConfig) -> dict[str, Any]:
    """Triton's compile options."""
    threads = config.tile_h * config.tile_w * config.lanes_c
    if threads > MAX_THREADS and not INTERPRETED:  # the interpreter has no threads and takes blocks of any size
        raise ValueError(f"config: expected at most {MAX_THREADS:,} threads a program, got {threads:,} from {config}")
    # Contraction is written out by hand (tl.fma): left to the compiler, the kernels could round coordinates apart.
    return {"num_warps": max(1, threads // lanes_per_warp()), "num_stages": 1, "enable_fp_fusion": False}


@cache
def lanes_per_warp() -> int:
    """32 on NVIDIA and on AMD's RDNA, 64 on its CDNA."""
    return torch.cuda.get_device_properties(torch.cuda.current_device()).warp_size if torch.version.hip else 32


def _flat(blocks: Blocks) -> tuple[int, ...]:
    return (blocks.channels, blocks.steps, *blocks.column_blocks, *blocks.row_blocks, *blocks.channel_blocks)


def _theta_strides(spec: WarpSpec, theta: TensorLayout) -> tuple[int, ...]:
    """(batch, and up to three of parameters) strides in elements; a batch of 1 is read by every image."""
    of_parameters = theta.stride[1:] if spec.transforms is None else theta.stride[2:]
    return (0 if theta.shape[0] == 1 else theta.stride[0], *of_parameters, 0, 0)[:4]


def _transforms(spec: WarpSpec, theta: TensorLayout) -> tuple[int, ...]:
    """M as a divisor, and the stride in elements from one theta of an image to the next; two sizes of a theta."""
    if spec.transforms is None:
        return (*divisor(1), 0, *theta.shape[1:], 0)[:6]
    return (*divisor(max(1, spec.transforms)), theta.stride[1], *theta.shape[2:], 0)[:6]


def _axes(spec: WarpSpec, shape: torch.Size) -> tuple[float, ...]:
    """(ratio, pitch, inverse) of the x axis, then of the y axis, as in `axis_frame`: divided here once, exactly."""
    numbers: list[float] = []
    for n, target in ((shape[3], spec.size[1]), (shape[2], spec.size[0])):
        span, target_span = (n - 1, target - 1) if spec.align_corners else (n, target)
        numbers.append(span / target_span if target_span else 0.0)
        numbers.append(2 / target_span if target_span else 0.0)
        numbers.append(1 / span if span else 0.0)
    return tuple(numbers)


def _accumulator(spec: WarpSpec, shape: torch.Size, dtype: torch.dtype) -> Any:
    """Dtype of coordinates and sums, the same forward and backward, or the two would disagree on a pixel."""
    longest = max(*shape[2:], *spec.size)
    exact = dtype == torch.float64 or longest >= MAX_FLOAT32_AXIS
    return tl.float64 if exact else tl.float32


def _mask_span(spec: WarpSpec) -> int:
    """The largest offset in a sample's mask, which has no gaps."""
    return spec.size[0] * spec.size[1] - 1 if spec.mask else 0


def _index(**tensors: TensorLayout | int) -> Any:
    """Chooses the dtype of offsets within a sample.

    Give it every tensor that the kernel indexes with it, or that one's largest offset, by the kernel's name for it; all
    other pointers use 64 bits.
    """
    spans = (tensor if isinstance(tensor, int) else tensor.span for tensor in tensors.values())
    return tl.int64 if max(spans) >= 2**31 else tl.int32
