"""Memory that a step takes at its peak, beside what was there before it."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .steps import Step


def peak_bytes(step: Step, device: torch.device) -> int:
    """Its results, and everything that it makes in between; on a CPU not of compiled code, which hides it."""
    prepared = step.prepare()
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step.run(prepared)
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with LiveBytes() as live:
        step.run(prepared)
    return live.peak


class LiveBytes(TorchDispatchMode):
    """Bytes of the memory that operations under it made and nobody has freed yet: ``now``, and at most ``peak``.

    A storage counts once, whatever views there are of it; one that an operation is given and was not made by another is
    its owner's, such as a constant kept from an earlier call. What an operation takes and frees inside is not seen, but
    for the one that torch's profiler, which sees every allocation on a CPU, finds in warps: its sampler lays the
    output's gradient in planes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.known.update(storages((args, kwargs)))
        copies = func is torch.ops.aten.grid_sampler_2d_backward.default and not args[0].is_contiguous()
        result = func(*args, **(kwargs or {}))
        for storage in storages(result):
            if storage not in self.known:
                self.known.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._free, storage.nbytes())
        self.peak = max(self.peak, self.now + (args[0].nbytes if copies else 0))
        return result

    def _free(self, count: int) -> None:
        self.now -= count


def storages(tree: Any) -> list[torch.UntypedStorage]:
    """Of all tensors in it."""
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
