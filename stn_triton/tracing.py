"""Tells tensors that a kernel can read from those that stand in for others: in traces and transforms.

A trace (`torch.compile`, `torch.jit.trace`, `torch.fx`) records operations and replays them with other values; a
transform of `torch.func`, or forward mode, sees them through tensors of its own. A kernel is none of their operations.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

ORDINARY = (Tensor, nn.Parameter)
#: A tensor that a kernel can read has one of MEMORY_KEYS and none of WRAPPER_KEYS, which mark subclasses that dispatch
#: themselves and tensors that a transform wraps. The key of ``is_grads_batched`` has no name, but it implies the last.
MEMORY_KEYS = (torch._C.DispatchKey.CPU, torch._C.DispatchKey.CUDA)
WRAPPER_KEYS = tuple(
    getattr(torch._C.DispatchKey, name)
    for name in ("Python", "Functionalize", "FuncTorchBatched", "FuncTorchGradWrapper", "AutogradOther")
)
#: The dispatch modes that record operations or run without values; others, such as a FLOP counter, only observe.
FAKE = torch._C._TorchDispatchModeKey.FAKE
TRACING_MODES = (torch._C._TorchDispatchModeKey.PROXY, FAKE, torch._C._TorchDispatchModeKey.FUNCTIONAL)


def is_tracing() -> bool:
    """Whether operations are being recorded, for replay with other values."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or (torch._C._len_torch_dispatch_stack() > 0 and any(map(torch._C._get_dispatch_mode, TRACING_MODES)))
    )


def is_faking() -> bool:
    """Whether a FakeTensorMode, which refuses ordinary tensors, is active outside of torch.compile."""
    return not torch.compiler.is_compiling() and torch._C._get_dispatch_mode(FAKE) is not None


def is_transforming() -> bool:
    """Whether a transform of `torch.func`, or forward mode, is active."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def are_in_memory(*tensors: Tensor | None) -> bool:
    """Whether a kernel can take these tensors (or None) without losing a trace, a transform or a tangent."""
    if not is_tracing() and not is_transforming() and all(t is None or type(t) in ORDINARY for t in tensors):
        return True  # the quick answer to nearly every call
    return are_gradients_in_memory(*tensors)


def are_gradients_in_memory(*gradients: Tensor | None) -> bool:
    """`are_in_memory` for gradients, which ``is_grads_batched`` wraps outside of any transform."""
    return not is_tracing() and all(gradient is None or is_memory(gradient) for gradient in gradients)


def is_memory(tensor: Tensor) -> bool:
    """Whether a tensor has memory of its own, on a CPU or a GPU, and no tangent."""
    if is_wrapped(tensor) or not any(map(torch._C._dispatch_keys(tensor).has, MEMORY_KEYS)):
        return False
    return forward_ad._current_level < 0 or forward_ad.unpack_dual(tensor).tangent is None


def is_wrapped(tensor: Tensor) -> bool:
    """Whether a tensor is a subclass that dispatches itself, or one that a transform has wrapped, active or not."""
    has = torch._C._dispatch_keys(tensor).has
    return any(map(has, WRAPPER_KEYS))


def is_plain(*tensors: Tensor) -> bool:
    """Whether tensors may be kept and their values inspected: not if one is fake, traced or transformed."""
    return not is_tracing() and not is_transforming() and not any(map(is_wrapped, tensors))


def outside_transforms() -> Any:
    """Suspends active transforms of `torch.func`, which would wrap tensors made from ones they do not own."""
    if not torch._C._are_functorch_transforms_active():
        return nullcontext()
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    return temporarily_clear_interpreter_stack()
