"""Allocates and launches the kernels: the forward warp and its gradients, for tensors that a kernel takes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import backend
from .kernels.finish import warp_finish
from .kernels.gather import warp_gather
from .kernels.warp import warp_backward, warp_forward
from .layout import ImageLike, TensorLayout, fresh_strides
from .plan import bits_of, gathers, plan_backward, plan_finish, plan_forward, plan_gather
from .spec import WarpSpec

MAX_PROGRAMS = 2**31 - 1  # of launch grid axis x


takes = backend.kernels_run_on  #: a name of this module, which tests replace


def forward(
    spec: WarpSpec, image: Tensor, theta: Tensor, fill: Tensor | None, mask_dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """The warped image (N, C, h, w) or (N, M, C, h, w), in its dtype and memory format; and the mask if asked for."""
    # The kernels read memory, which holds the negative of a tensor whose negation is still pending.
    image, theta = image.resolve_neg(), theta.resolve_neg()
    fill = None if fill is None else fill.resolve_neg()
    plan = plan_forward(spec, TensorLayout.of(image), TensorLayout.of(theta), _strides(fill))
    out = torch.empty(plan.shape, dtype=image.dtype, device=image.device, memory_format=plan.memory_format)
    mask = torch.empty((plan.shape[0], 1, *spec.size), dtype=mask_dtype, device=image.device) if spec.mask else None
    if out.numel() or (mask is not None and mask.numel()):
        # The kernel neither reads nor writes what there is not: the image stands in for it.
        outside = image if fill is None else fill, image if mask is None else mask
        args = image, theta, out, *plan.numbers, *outside, *plan.constants
        _launch(warp_forward, plan.programs, *args, options=plan.options)
    if spec.transforms is not None:
        by_image = image.shape[0], spec.transforms
        # Not a view to autograd, which would forbid some in-place operations on it.
        out = torch.ops.aten._unsafe_view(out, (*by_image, *out.shape[1:]))
        mask = None if mask is None else torch.ops.aten._unsafe_view(mask, (*by_image, *mask.shape[1:]))
    return out, mask


def _strides(fill: Tensor | None) -> tuple[int, ...]:
    return (0, 0) if fill is None else fill.stride()


def follows_theta(spec: WarpSpec) -> bool:
    """Whether the output changes with theta at all, but by jumps: nearest is constant between them."""
    return spec.mode != "nearest"


def backward(
    spec: WarpSpec,
    d_out: Tensor,
    d_mask: Tensor | None,
    image: Tensor | None,
    like: ImageLike,
    theta: Tensor,
    fill: Tensor | None,
    needs_image: bool,
    needs_theta: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """(d_image, d_theta) in the dtypes of image and theta; None where not needed.

    The image is read for the gradient of theta only; without that it may be None. So may d_mask, without a mask.
    """
    reads_image = needs_theta and follows_theta(spec)
    compute = torch.promote_types(like.dtype, torch.float32)
    if spec.transforms is not None:
        d_out, d_mask = d_out.flatten(0, 1), None if d_mask is None else d_mask.flatten(0, 1)
    d_out, theta = d_out.resolve_neg(), theta.resolve_neg()
    fill = None if fill is None else fill.resolve_neg()
    d_mask = None if d_mask is None else d_mask.resolve_neg().contiguous()
    spec = spec._replace(mask=d_mask is not None)
    if like.memory_format is torch.channels_last:
        d_out = d_out.contiguous(memory_format=torch.channels_last)  # copies an expanded one, such as a sum's
    image = image.resolve_neg() if reads_image and image is not None else None
    d_image, scatter = None, NO_SCATTER
    if needs_image:
        d_image, scatter = _begin_image_gradient(spec, like, d_out, theta)
    # Lanes take as many channels as d_image's dtype allows, if the pass is for theta, and the scatter the rare case.
    added = d_image if scatter.gathered and reads_image else scatter.sums
    layouts = [None if t is None else TensorLayout.of(t) for t in (d_out, image, theta, added)]
    plan = plan_backward(spec, like, *layouts, _strides(fill), scatter.exact, scatter.gathered)
    runs = d_out.numel() or (d_mask is not None and d_mask.numel())
    partials = None
    if reads_image and runs:
        make = torch.zeros if spec.transform.partials_begin_as_zeros else torch.empty
        partials = make(plan.shape, dtype=compute, device=like.device)
    if runs and (scatter.sums is not None or reads_image):
        # The kernel neither reads nor writes what is not needed: d_out stands in for it.
        wanted = (d_out, image, theta, *scatter, partials, fill, d_mask)
        *first, fill_, d_mask_ = (d_out if each is None else each for each in wanted)
        args = *first, *plan.numbers, fill_, d_mask_, *plan.constants
        _launch(warp_backward, plan.programs, *args, options=plan.options)
    if d_image is not None and scatter.sums is not None and scatter.sums is not d_image:
        plan = plan_finish(like, scatter.exact, scatter.gathered)
        given = (d_image if each is None else each for each in (*scatter, d_image))
        _launch(warp_finish, plan.programs, *given, *plan.numbers, *plan.constants, options=plan.options)
    d_theta = None
    if needs_theta:
        d_theta = torch.zeros_like(theta) if partials is None else _sum_partials(spec, partials, theta, like.shape[0])
    return d_image, d_theta


class Scatter(NamedTuple):
    """Where `warp_backward` adds up the gradient of images, and what it is told of that."""

    #: d_image itself, if atomics can add to its dtype and may do so in any order; else a buffer with its strides.
    sums: Tensor | None = None
    #: (N, C), the largest |d_out|, if sums are exact ones of whole numbers, as in `kernels.fixed_point`.
    peaks: Tensor | None = None
    #: The elements between a sum of wholes and that of its rests.
    rests: int = 0
    #: BITS.
    bits: int = 0
    #: (N,), whether an image is to be scattered; None: all are.
    scattered: Tensor | None = None

    @property
    def exact(self) -> bool:
        """Whether the order of the sums changes nothing."""
        return self.peaks is not None

    @property
    def gathered(self) -> bool:
        """Whether images can have been gathered."""
        return self.scattered is not None


NO_SCATTER = Scatter()


def _begin_image_gradient(spec: WarpSpec, like: ImageLike, d_out: Tensor, theta: Tensor) -> tuple[Tensor, Scatter]:
    """d_image, gathered where that is possible, and the sums, zero, where the rest can be scattered."""
    d_image = like.empty(like.dtype)
    if not d_out.numel():
        return d_image.zero_(), NO_SCATTER
    compute = torch.promote_types(like.dtype, torch.float32)
    if spec.deterministic or torch.are_deterministic_algorithms_enabled():
        numel = like.shape.numel()
        memory = torch.empty(2 * numel, dtype=torch.int64, device=like.device)
        wholes = memory.as_strided(like.shape, fresh_strides(like.shape, like.memory_format))
        peaks = torch.linalg.vector_norm(d_out, torch.inf, (2, 3), dtype=compute)
        peaks = peaks if spec.transforms is None else peaks.unflatten(0, (-1, spec.transforms)).amax(1)
        scatter = Scatter(wholes, peaks, numel, bits_of(spec))
    else:
        memory = d_image if like.dtype == compute else like.empty(compute)
        scatter = Scatter(memory)
    if not gathers(spec):
        memory.zero_()
        return d_image, scatter
    scatter = scatter._replace(scattered=torch.empty(like.shape[0], dtype=torch.int32, device=like.device))
    plan = plan_gather(spec, like, *map(TensorLayout.of, (d_out, theta, d_image)), scatter.exact)
    tensors = d_out, theta, d_image, scatter.sums, scatter.rests, scatter.scattered
    _launch(warp_gather, plan.programs, *tensors, *plan.numbers, *plan.constants, options=plan.options)
    return d_image, scatter


def _sum_partials(spec: WarpSpec, partials: Tensor, theta: Tensor, batch: int) -> Tensor:
    """d_theta, the second stage of its reduction: over programs, and over the batch for a theta that was broadcast."""
    d_theta = spec.transform.sum_partials(partials)
    if spec.transforms is not None:
        d_theta = d_theta.unflatten(0, (batch, spec.transforms))
    if theta.shape[0] != batch:
        d_theta = d_theta.sum(0, keepdim=True)
    return d_theta.to(theta.dtype)


def _launch(kernel: Any, programs: int, *args: Any, options: dict[str, Any]) -> None:
    """On the tensors' own device and its current stream."""
    if programs > MAX_PROGRAMS:
        raise ValueError(f"size: expected at most {MAX_PROGRAMS} tiles of pixels in a batch, got {programs}")
    device = args[0].device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[(programs,)](*args, **options)
    else:
        kernel[(programs,)](*args, **options)
