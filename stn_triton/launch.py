"""Allocates and launches the kernels: the forward warp and its gradients, for tensors that a kernel takes."""

from __future__ import annotations

import os
import sys
import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

from . import configs
from .kernels import coordinates, samplers
from .kernels.language import TRITON_MISSING, tl
from .kernels.warp import warp_backward, warp_forward
from .layout import ImageLike, reach
from .spec import WarpSpec

SAMPLERS = {"nearest": samplers.nearest, "bilinear": samplers.bilinear}
PADDING_RULES = {"zeros": coordinates.zeros, "border": coordinates.border, "reflection": coordinates.reflection}

INTERPRETED = type(warp_forward).__name__ == "InterpretedFunction"  # TRITON_INTERPRET=1 at import
CONFIG = configs.INTERPRETER if INTERPRETED else configs.GPU

# Contraction is written out by hand (tl.fma): left to the compiler, the two kernels could round coordinates apart.
COMPILE_OPTIONS = {"num_warps": CONFIG.num_warps, "enable_fp_fusion": False}

MAX_PROGRAMS = 2**31 - 1  # of launch grid axis x
MAX_FLOAT32_AXIS = 2**22  # pixels, up to which `kernels.coordinates.round_half_even` holds in float32


def takes(device: torch.device) -> bool:
    """Whether the kernels run on this device. Warns once where a user would expect them to, and they do not."""
    if INTERPRETED if device.type == "cpu" else device.type == "cuda" and not TRITON_MISSING:
        return True
    asked_for = TRITON_MISSING and os.environ.get("TRITON_INTERPRET")
    if asked_for or device.type not in ("cpu", "meta"):
        _warn_once(device.type)
    return False


@cache
def _warn_once(device_type: str) -> None:
    reason = f"triton cannot be imported ({TRITON_MISSING})" if TRITON_MISSING else "the kernels do not run there"
    warnings.warn(f"stn_triton uses torch operations on {device_type}: {reason}", stacklevel=_level_of_caller())


def _level_of_caller() -> int:
    """`stacklevel`, for the function that asks, of the first frame outside this package: the user's line."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").startswith(__package__):
        level, frame = level + 1, frame.f_back
    return level


def forward(spec: WarpSpec, image: Tensor, theta: Tensor) -> Tensor:
    """The warped image (N, C, h, w), in the image's dtype and memory format."""
    like = ImageLike.of(image)
    out = like.empty(spec.size, image.dtype)
    if out.numel() == 0:
        return out
    # The kernels read memory, which holds the negative of a tensor whose negation is still pending.
    image, theta = image.resolve_neg(), theta.resolve_neg()
    transform = spec.transform
    _launch(
        warp_forward,
        image.shape[0] * _tiles(spec, CONFIG.tile_h * CONFIG.row_groups),
        image, theta, out,
        *image.shape[1:], *spec.size,
        *image.stride(), *_theta_strides(theta), *out.stride(),
        *_axes(spec, like),
        transform.load, transform.source, PADDING_RULES[spec.padding_mode], SAMPLERS[spec.mode],
        spec.align_corners, _accumulator(spec, like), _index(theta, image, out),
        CONFIG.tile_h, CONFIG.tile_w, CONFIG.row_groups,
    )  # fmt: skip
    return out


def follows_theta(spec: WarpSpec) -> bool:
    """Whether the output changes with theta at all, but by jumps: nearest is constant between them."""
    return spec.mode != "nearest"


def backward(
    spec: WarpSpec,
    d_out: Tensor,
    image: Tensor | None,
    like: ImageLike,
    theta: Tensor,
    needs_image: bool,
    needs_theta: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """(d_image, d_theta) in the dtypes of image and theta; None where not needed.

    The image is read for the gradient of theta only; without that it may be None.
    """
    if needs_image:
        _alert_not_deterministic()
    transform, batch = spec.transform, like.shape[0]
    tiles = _tiles(spec, CONFIG.tile_h)
    compute = torch.promote_types(like.dtype, torch.float32)  # half types could not be added to atomically
    d_out, theta = d_out.resolve_neg(), theta.resolve_neg()
    d_image = partials = d_out  # the kernel neither reads nor writes what is not needed
    image = d_out if image is None else image.resolve_neg()
    if needs_image:
        d_image = like.empty((like.shape[2], like.shape[3]), compute).zero_()
    reads_image = needs_theta and follows_theta(spec)
    if needs_theta:
        shape = transform.partials_shape(batch, spec.size, tiles)
        partials = torch.empty(shape, dtype=compute, device=like.device)
        if not (reads_image and d_out.numel()):
            partials.zero_()
    if d_out.numel() and (needs_image or reads_image):
        _launch(
            warp_backward,
            batch * tiles,
            d_out, image, theta, d_image, partials,
            *like.shape[1:], *spec.size,
            *image.stride(), *_theta_strides(theta), *d_out.stride(), *d_image.stride(),
            *_axes(spec, like),
            transform.load, transform.source, transform.adjoint,
            PADDING_RULES[spec.padding_mode], SAMPLERS[spec.mode],
            spec.align_corners, _accumulator(spec, like), _index(theta, image, d_out, d_image),
            needs_image, reads_image,
            CONFIG.tile_h, CONFIG.tile_w,
        )  # fmt: skip
    return (
        d_image.to(like.dtype) if needs_image else None,
        _sum_partials(spec, partials, theta, batch) if needs_theta else None,
    )


def _alert_not_deterministic() -> None:
    """As PyTorch's own sampler does: atomics add up the image gradient in any order."""
    if torch.are_deterministic_algorithms_enabled():
        message = (
            "the image gradient of stn_triton's kernels is summed by atomics and not deterministic, but "
            "torch.use_deterministic_algorithms(True) is set"
        )
        if not torch.is_deterministic_algorithms_warn_only_enabled():
            raise RuntimeError(message)
        warnings.warn(message, stacklevel=2)


def _sum_partials(spec: WarpSpec, partials: Tensor, theta: Tensor, batch: int) -> Tensor:
    """d_theta, the second stage of its reduction: over programs, and over the batch for a theta that was broadcast."""
    d_theta = spec.transform.sum_partials(partials)
    if theta.shape[0] != batch:
        d_theta = d_theta.sum(0, keepdim=True)
    return d_theta.to(theta.dtype)


def _tiles(spec: WarpSpec, rows: int) -> int:
    """Programs per sample, each with ``rows`` x tile_w target pixels."""
    h, w = spec.size
    return -(-h // rows) * -(-w // CONFIG.tile_w)


def _theta_strides(theta: Tensor) -> tuple[int, ...]:
    """(batch, and up to three more) strides in elements; a batch of 1 is read by every sample."""
    strides = theta.stride()
    return (0 if theta.shape[0] == 1 else strides[0], *strides[1:], 0)[:4]


def _axes(spec: WarpSpec, like: ImageLike) -> tuple[float, ...]:
    """(ratio, pitch, inverse) of the x axis, then of the y axis, as in `kernels.warp`: divided here once, exactly."""
    numbers: list[float] = []
    for n, target in ((like.shape[3], spec.size[1]), (like.shape[2], spec.size[0])):
        span, target_span = (n - 1, target - 1) if spec.align_corners else (n, target)
        numbers.append(span / target_span if target_span else 0.0)
        numbers.append(2 / target_span if target_span else 0.0)
        numbers.append(1 / span if span else 0.0)
    return tuple(numbers)


def _accumulator(spec: WarpSpec, like: ImageLike) -> Any:
    """Dtype of coordinates and sums, the same forward and backward, or the two would disagree on a pixel."""
    longest = max(*like.shape[2:], *spec.size)
    exact = like.dtype == torch.float64 or longest >= MAX_FLOAT32_AXIS
    return tl.float64 if exact else tl.float32


def _index(theta: Tensor, *images: Tensor) -> Any:
    """Dtype of offsets inside a channel plane or a sample of theta."""
    far = max(reach(theta, 1), *(reach(image, 2) for image in images))
    return tl.int64 if far >= 2**31 else tl.int32


def _launch(kernel: Any, programs: int, *args: Any) -> None:
    """On the tensors' own device and its current stream."""
    if programs > MAX_PROGRAMS:
        raise ValueError(f"size: expected at most {MAX_PROGRAMS} tiles of pixels in a batch, got {programs}")
    device = args[0].device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[(programs,)](*args, **COMPILE_OPTIONS)
    else:
        kernel[(programs,)](*args, **COMPILE_OPTIONS)
