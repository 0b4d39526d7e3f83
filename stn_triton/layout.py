"""Memory layouts: which one an output takes, and how far it reaches."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def memory_format(image: Tensor) -> torch.memory_format:
    """channels_last where the channels of a pixel are neighbours in memory, slices included; else contiguous."""
    _, channels, _, width = image.shape
    _, stride_c, stride_h, stride_w = image.stride()
    neighbours = stride_c == 1 and channels > 1 and (stride_w if width > 1 else stride_h) >= channels
    return torch.channels_last if neighbours else torch.contiguous_format


def reach(tensor: Tensor, first_axis: int) -> int:
    """The largest offset, in elements, between two elements that differ only in the axes from the first on."""
    axes = zip(tensor.shape[first_axis:], tensor.stride()[first_axis:], strict=True)
    return sum((n - 1) * stride for n, stride in axes)


class ImageLike(NamedTuple):
    """All of an image but its pixels: what its gradient needs to know of it."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    memory_format: torch.memory_format

    @classmethod
    def of(cls, image: Tensor) -> ImageLike:
        """The description of an image (N, C, H, W)."""
        return cls(image.shape, image.dtype, image.device, memory_format(image))

    def empty(self, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """A fresh image of that (h, w) and dtype, in the same layout."""
        shape = (*self.shape[:2], *size)
        return torch.empty(shape, dtype=dtype, device=self.device, memory_format=self.memory_format)
