"""Whether tensors are memory that a kernel can read and write, or stand for others: in a trace, or a transform.

A trace (`torch.compile`, `torch.jit.trace`, `torch.fx`) records operations and replays them with other values; a
transform of `torch.func`, or forward mode, sees them through tensors of its own. A kernel is none of their operations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.autograd import forward_ad

ORDINARY = (Tensor, nn.Parameter)
#: A tensor has one of the first if it has memory that kernels can read, and one of the others, too, if it is a subclass
#: that dispatches itself, or wrapped by a transform.
MEMORY_KEYS = (torch._C.DispatchKey.CPU, torch._C.DispatchKey.CUDA)
WRAPPER_KEYS = tuple(
    getattr(torch._C.DispatchKey, name)
    for name in ("Python", "Functionalize", "FuncTorchBatched", "FuncTorchGradWrapper")
)
#: The dispatch modes that record, or run without values; others, such as a counter of operations, only look on.
TRACING_MODES = tuple(getattr(torch._C._TorchDispatchModeKey, name) for name in ("PROXY", "FAKE", "FUNCTIONAL"))


def is_tracing() -> bool:
    """Whether what is done now is recorded, to be done again with other values."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or (torch._C._len_torch_dispatch_stack() > 0 and any(map(torch._C._get_dispatch_mode, TRACING_MODES)))
    )


def is_transforming() -> bool:
    """Whether a transform of `torch.func`, or forward mode, is active."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def are_in_memory(*tensors: Tensor | None) -> bool:
    """Whether kernels can take these tensors (or None), and nothing is lost if they do."""
    if is_tracing():
        return False
    if not is_transforming() and all(tensor is None or type(tensor) in ORDINARY for tensor in tensors):
        return True
    return all(tensor is None or is_memory(tensor) for tensor in tensors)


def are_gradients_in_memory(*gradients: Tensor | None) -> bool:
    """`are_in_memory` of what autograd passes back: with ``is_grads_batched`` many at a time, in an ordinary tensor."""
    return not is_tracing() and all(gradient is None or is_memory(gradient) for gradient in gradients)


def is_memory(tensor: Tensor) -> bool:
    """Whether a tensor has memory of its own, on a CPU or a GPU, and no tangent."""
    keys = torch._C._dispatch_keys(tensor)
    if any(map(keys.has, WRAPPER_KEYS)) or not any(map(keys.has, MEMORY_KEYS)):
        return False
    return forward_ad._current_level < 0 or forward_ad.unpack_dual(tensor).tangent is None


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor made here may be kept, and its values asked for: neither a fake one nor one of a trace or a
    transform.
    """
    return not isinstance(tensor, FakeTensor) and not is_tracing() and not is_transforming()


def outside_transforms() -> Any:
    """A context without the active transforms of `torch.func`: they would wrap what is made of tensors not theirs."""
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    return temporarily_clear_interpreter_stack()
