"""What a warp is, apart from its tensors: one value that the CPU path, the kernels and autograd pass around."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .transforms import Transform

MODES = ("bilinear", "nearest", "bicubic")
PADDING_MODES = ("zeros", "border", "reflection", "fill")


class WarpSpec(NamedTuple):
    """A transform, how to sample, and the output size."""

    transform: Transform
    mode: str  #: one of `MODES`
    padding_mode: str  #: one of `PADDING_MODES`
    align_corners: bool
    size: tuple[int, int]  #: (h, w)
    transforms: int | None = None  #: M of each image, from theta (N, M, ...) to an output (N, M, C, h, w); None: no M
    mask: bool = False  #: whether the coverage of the output is wanted too
    deterministic: bool = False  #: whether the image gradient is the same on every run, whatever torch's setting is
