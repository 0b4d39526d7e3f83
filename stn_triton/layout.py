"""Memory layouts: how a tensor lies in memory, and which layout an output takes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class TensorLayout(NamedTuple):
    """A tensor but for its values: what a launch is planned from."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    aligned: bool  #: it begins at a multiple of 16 bytes

    @classmethod
    def of(cls, tensor: Tensor) -> TensorLayout:
        """The layout of a tensor."""
        return cls(tensor.shape, tensor.stride(), tensor.dtype, tensor.data_ptr() % 16 == 0)

    @property
    def span(self) -> int:
        """The largest offset, in elements, between two elements of the same sample."""
        return sum(max(0, n - 1) * stride for n, stride in zip(self.shape[1:], self.stride[1:], strict=True))


class ImageLike(NamedTuple):
    """All of an image but its pixels: what its gradient needs to know of it."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    memory_format: torch.memory_format

    @classmethod
    def of(cls, image: Tensor) -> ImageLike:
        """The description of an image (N, C, H, W)."""
        return cls(image.shape, image.dtype, image.device, memory_format(image.shape, image.stride()))

    def empty(self, dtype: torch.dtype) -> Tensor:
        """A fresh tensor of the image's shape and layout."""
        return torch.empty(self.shape, dtype=dtype, device=self.device, memory_format=self.memory_format)


def memory_format(shape: torch.Size, stride: tuple[int, ...]) -> torch.memory_format:
    """channels_last where the channels of a pixel are neighbours in memory, slices included; else contiguous."""
    _, channels, _, width = shape
    _, stride_c, stride_h, stride_w = stride
    neighbours = stride_c == 1 and channels > 1 and (stride_w if width > 1 else stride_h) >= channels
    return torch.channels_last if neighbours else torch.contiguous_format


def fresh_strides(shape: tuple[int, ...], memory_format: torch.memory_format) -> tuple[int, ...]:
    """The strides of a fresh tensor."""
    return torch.empty(shape, device="meta", memory_format=memory_format).stride()
