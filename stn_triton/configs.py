"""Launch shapes of the kernels: pinned data, no tuning at run time."""

from __future__ import annotations

from typing import NamedTuple


class LaunchConfig(NamedTuple):
    """One lane per pixel of a tile: on a GPU tile_h * tile_w = 32 * num_warps."""

    tile_h: int
    tile_w: int
    row_groups: int  #: tiles below each other that one program of the forward kernel walks through
    num_warps: int


# A warp spans 32 pixels of a row, so that its loads and stores are neighbours; four warps hide latency and
# waste little of a 28 x 28 output. Not yet measured on a GPU.
GPU = LaunchConfig(tile_h=4, tile_w=32, row_groups=4, num_warps=4)

# The interpreter pays per program, not per pixel.
INTERPRETER = LaunchConfig(tile_h=32, tile_w=64, row_groups=1, num_warps=1)
