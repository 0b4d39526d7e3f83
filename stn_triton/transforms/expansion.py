"""Expansions: T = M_theta B of section 3.2 of the paper, (u, v) = theta (b_1(x, y), ..., b_K(x, y)) in any basis B.

What thin plate splines and bases of a user's own share: the sums of many gradients on the device, and on the host the
torch form, some points at a time.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..kernels.language import jit, tl
from ..torch_sampler import is_bounded
from .base import Transform, target_points

#: Numbers of a basis that torch evaluates at once, 8 MiB of float32.
BASIS_AT_ONCE = 2**21

# --- device -----------------------------------------------------------------------------------------------


@jit
def add_lanes(place, values, known):
    """Adds values (pixels, B), summed over the pixels of a tile, to B numbers of the program's own."""
    tl.store(place, tl.load(place, mask=known) + tl.sum(values, 0, keep_dims=True), mask=known)


# --- host -------------------------------------------------------------------------------------------------


class Expansion(Transform):
    """What is linear in many coefficients: too many sums of a gradient for registers, too large a basis for memory."""

    partials_begin_as_zeros = True
    most_programs = 64
    count: int  #: K

    @abstractmethod
    def numbers_per_point(self, coefficients: Tensor, xy: Tensor) -> int:
        """How many numbers of a basis `expand` makes for one point of xy (P, 2) or (N, P, 2)."""

    @abstractmethod
    def expand(self, coefficients: Tensor, xy: Tensor) -> Tensor:
        """Source points (N, 2, P) of points xy (P, 2) or (N, P, 2)."""

    def bounded_grid(self, coefficients, size, align_corners=False):
        if not is_bounded(coefficients):
            return None
        grid = self.grid_of(coefficients, size, align_corners)
        return grid if is_bounded(grid.movedim(-1, 1)) else None  # as its planes lie in memory

    def grid_of(self, coefficients, size, align_corners=False):
        xy = target_points(size, align_corners, coefficients).view(-1, 2)
        return self._planes(coefficients, xy).unflatten(-1, size).movedim(1, -1)

    def points_of(self, coefficients, xy, align_corners=False):
        return self._planes(coefficients, xy).transpose(1, 2)

    def _planes(self, coefficients: Tensor, xy: Tensor) -> Tensor:
        """`expand`, some points at a time: their bases never lie in memory together, and backward are made again."""
        step = max(1, BASIS_AT_ONCE // max(1, self.numbers_per_point(coefficients, xy)))
        parts = xy.split(step, -2)
        if len(parts) == 1:
            return self.expand(coefficients, xy)
        if torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active():
            again = partial(checkpoint, self.expand, use_reentrant=False, preserve_rng_state=False)
            return torch.cat([again(coefficients, some) for some in parts], -1)
        return torch.cat([self.expand(coefficients, some) for some in parts], -1)
