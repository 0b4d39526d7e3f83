"""Memory layouts: which one an output takes."""

from __future__ import annotations

import torch
from torch import Tensor


def memory_format(image: Tensor) -> torch.memory_format:
    """channels_last where the channels of a pixel are neighbours in memory, slices included; else contiguous."""
    _, channels, _, width = image.shape
    _, stride_c, stride_h, stride_w = image.stride()
    neighbours = stride_c == 1 and channels > 1 and (stride_w if width > 1 else stride_h) >= channels
    return torch.channels_last if neighbours else torch.contiguous_format
