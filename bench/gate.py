"""The correctness gate: no time is taken of what computes something else.

Truth is PyTorch in float64 at a rival's own parameters, which the package's tests hold against its reference. Errors
are ||x - truth|| / ||truth||, over a whole tensor and by its largest element: of the output, the mask, and each
gradient that is needed. Nobody's inputs may change, and ours have the dtype and memory format they promise. Where a
source point lies within rounding of the middle or the edge of a pixel, the last bit of a coordinate decides which
slope, or which neighbour, is taken: the gradient to the output is 0 there, and a nearest neighbour not compared.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from .inputs import Inputs
from .rivals import Job, sample
from .workloads import Workload

#: Ours may be off by twice what PyTorch's pair is, as in the tests; theta's gradient, a few sums whose rounding is a
#: matter of luck, by four times.
TIMES_PYTORCH_OURS, TIMES_PYTORCH_SUMS = 2, 4
#: Rivals take other ways to their coordinates (measured: 3 times); what computes something else is off by thousands.
TIMES_PYTORCH = 10
#: Beside that, whatever the dtype: PyTorch's half types have been rounded, too.
SLACK = 4 * torch.finfo(torch.float32).eps
#: What nobody may be off by, PyTorch included: five times its worst in float32 (splines' parameters); half types add
#: their own rounding.
MOST = 1e-3
#: The same by the largest element: ten times its worst of 1e-3.
MOST_OF_ONE = 1e-2
LARGEST = ", largest"  #: what the name of such an error ends in
#: Pixels: four times what PyTorch's coordinates in float32 are off in any workload, 5e-4 in text-recognition.
UNDECIDED = 1 / 512


class Verdict(NamedTuple):
    """What the gate says of a rival."""

    errors: dict[str, float]
    limits: dict[str, float]
    others: list[str]  #: what else is wrong, in words

    @property
    def complaint(self) -> str:
        """What is wrong, in words; empty if the rival may pass."""
        red = [name for name, error in self.errors.items() if not error <= self.limits[name]]  # NaN is red
        off = [f"{name} off by {self.errors[name]:.1e} (limit {self.limits[name]:.1e})" for name in red]
        return ", ".join(off + self.others)


class Truth(NamedTuple):
    """What is right for one choice of parameters."""

    results: dict[str, Tensor]
    decided: Tensor  #: (N, 1, h, w) or (N, M, 1, h, w): whether a pixel can be told
    parameters: Tensor  #: the choice, kept: its id is the key


class Gate:
    """Of one workload and its inputs; ``pytorch`` is the job whose errors are the measure."""

    def __init__(self, workload: Workload, inputs: Inputs, pytorch: Job) -> None:
        self.workload, self.inputs = workload, inputs
        self._given = [tensor.detach().clone() for tensor in self._all_inputs()]
        self._truths: dict[tuple[int, bool], Truth] = {}
        self._pytorchs, _ = self._errors(pytorch)

    def judge(self, job: Job, ours: bool = False) -> Verdict:
        """The verdict on a job, which finds the inputs as they were. Raises what the job raises."""
        try:
            errors, others = self._errors(job)
        finally:
            changed = self.restored()
        limits = {what: self._limit(what, ours) for what in errors}
        return Verdict(errors, limits, ["changed its inputs"] * changed + others * ours)

    def restored(self) -> bool:
        """Whether inputs were no longer what they were given as; they are again."""
        changed = False
        for tensor, given in zip(self._all_inputs(), self._given, strict=True):
            if not torch.equal(tensor.detach(), given):
                tensor.data.copy_(given)
                changed = True
        return changed

    def forget_all_but(self, job: Job) -> None:
        """Lets go of the truths of other parameters, gigabytes of a large workload."""
        kept = id(job.parameters), job.align_corners
        self._truths = {key: truth for key, truth in self._truths.items() if key == kept}

    def _limit(self, what: str, ours: bool) -> float:
        times = TIMES_PYTORCH_OURS if ours else TIMES_PYTORCH
        if ours and what.startswith("d_parameters"):
            times = TIMES_PYTORCH_SUMS
        rounding = 0.0 if self.inputs.image.element_size() > 2 else torch.finfo(self.inputs.image.dtype).eps
        limit = times * self._pytorchs[what] + SLACK
        if what.endswith(LARGEST):  # one element may be rounded the other way
            return min(limit + rounding, MOST_OF_ONE + rounding)
        return min(limit, MOST + rounding)

    def _all_inputs(self) -> list[Tensor]:
        fill = [] if self.inputs.fill is None else [self.inputs.fill]
        return [self.inputs.image, self.inputs.theta, *fill, *self.inputs.d_out]

    def _errors(self, job: Job) -> tuple[dict[str, float], list[str]]:
        """By name, and what the output is not, in words."""
        key = id(job.parameters), job.align_corners
        if key not in self._truths:
            self._truths[key] = self._truth(job)
        truth = self._truths[key]
        poison(truth.results, self.inputs.image.dtype)
        outputs = as_tuple(job.call(self.inputs.image, job.parameters))
        results = _results(outputs, self.inputs, self.inputs.image, job, job.parameters, truth.decided)
        errors = {}
        for what, tensor in results.items():
            exact = truth.results[what]
            if self.workload.mode == "nearest" and what in ("out", "mask"):
                tensor, exact = tensor * truth.decided, exact * truth.decided
            errors[what] = relative_error(tensor, exact)
            errors[what + LARGEST] = relative_error(tensor, exact, torch.inf)
        return errors, self._unlike_the_image(outputs[0])

    def _unlike_the_image(self, out: Tensor) -> list[str]:
        """What of an image's dtype and memory format its output does not have."""
        image, found = self.inputs.image, []
        if out.dtype != image.dtype:
            found.append(f"out: expected {image.dtype}, got {out.dtype}")
        layout = torch.contiguous_format if image.is_contiguous() else torch.channels_last
        planes = out.movedim(-3, -1) if layout is torch.channels_last else out
        if not planes.is_contiguous():
            found.append(f"out: expected {layout}, got strides {out.stride()}")
        return found

    def _truth(self, job: Job) -> Truth:
        image, parameters = (
            leaf.detach().double().requires_grad_(leaf.requires_grad) for leaf in (self.inputs.image, job.parameters)
        )
        exact = dataclasses.replace(self.workload, align_corners=job.align_corners)
        fill = None if self.inputs.fill is None else self.inputs.fill.double()
        grid = job.grid(parameters)
        known = decided(grid.detach(), exact)
        outputs = as_tuple(sample(exact, image, grid, fill))
        return Truth(_results(outputs, self.inputs, image, job, parameters, known), known, job.parameters)


def decided(grid: Tensor, workload: Workload) -> Tensor:
    """Whether both coordinates of a grid's points are more than `UNDECIDED` from every multiple of half a pixel."""
    _, _, h, w = workload.image
    lengths = torch.tensor([w, h], dtype=grid.dtype, device=grid.device)
    halves = (grid + 1) * (lengths - 1) if workload.align_corners else (grid + 1) * lengths - 1
    known = ((halves - halves.round()).abs() > 2 * UNDECIDED).all(-1)[:, None]
    return known.unflatten(0, (-1, workload.transforms)) if workload.transforms else known


def relative_error(tensor: Tensor, truth: Tensor, order: float = 2) -> float:
    """||tensor - truth|| / ||truth||, in a norm of this order; infinite if the shapes differ."""
    if tensor.shape != truth.shape:
        return float("inf")
    if truth.numel() == 0:
        return 0.0
    size = torch.linalg.vector_norm(truth, order)
    return float(torch.linalg.vector_norm(tensor.double() - truth, order) / torch.where(size > 0, size, 1))


def poison(results: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Fills freed memory of a result's size with NaN, lest an element nobody writes be an earlier result's."""
    made = [torch.full(t.shape, torch.nan, dtype=dtype, device=t.device) for t in results.values() for _ in range(2)]
    del made


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """One tensor or several as several."""
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _results(
    outputs: tuple[Tensor, ...], inputs: Inputs, image: Tensor, job: Job, parameters: Tensor, known: Tensor
) -> dict[str, Tensor]:
    """Output, mask and gradients by name."""
    named = dict(zip(("out", "mask")[: len(inputs.d_out)], outputs, strict=True))
    leaves = {} if job.forward_only else {"d_image": image, "d_parameters": parameters}
    wanted = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    if wanted:
        d_out = [(d * known).to(out.dtype) for d, out in zip(inputs.d_out, outputs, strict=True)]
        named |= zip(wanted, torch.autograd.grad(outputs, [*wanted.values()], d_out), strict=True)
    return {name: tensor.detach() for name, tensor in named.items()}
