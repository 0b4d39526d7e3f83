"""What a transform is: its parameters, its torch form, and the device functions the kernels are built from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..torch_sampler import is_bounded

if TYPE_CHECKING:
    from ..configs import Blocks


class Transform(ABC):
    """A family of maps T_theta from target points (x, y) to source points (u, v).

    Convention: normalised coordinates, x to the right, y downwards, [-1, 1] over the image as
    ``align_corners`` says in `torch.nn.functional.grid_sample`. Objects hold no parameters and can be shared;
    keep yours, or have `settings` say which are equal, because launches are planned once for each.

    The device functions, called per program and per tile of pixels (see `stn_triton.kernels.warp`):

    - ``load(theta, strides, sizes, axes, ACC, INDEX) -> state``: a sample's parameters, read once per program; three
      strides and the first two sizes of what `coefficients` gives; ``axes`` are the x and the y axis, as
      `kernels.coordinates.axis_frame` gives them;
    - ``source(state, row, column, live, x, y, axes) -> (u, v, seen)``: source pixels of the target pixels at
      (x, y) from the centre, and which of the live ones read anything. For tiles, and for single points;
    - ``start(state, d_theta, part, row, rows, column, sizes, ACC) -> partial``: where the sums of a program's gradient
      begin, whose lanes have these columns, and whose pixels these ``rows`` from ``row`` on;
    - ``adjoint(partial, state, d_theta, part, row, column, live, x, y, sizes, d_u, d_v, axes) -> partial``: adds a
      tile, or stores it, if every pixel has parameters of its own. From tile to tile a lane's y changes, its x does
      not;
    - ``store(partial, state, d_theta, x, axes)``: stores the sums at the program's own place in a buffer of shape
      `partials_shape`.
    """

    name: ClassVar[str]
    #: theta's dimensions as a user writes them, for error messages.
    layout: str
    #: A non-finite point reads what the padding rule says, as in `grid_sample`; else it reads nothing.
    padding_answers_nonfinite: ClassVar[bool] = False
    #: (H, W) of the images that theta is meant for, None for any.
    image_size: tuple[int, int] | None = None
    load: Any
    source: ClassVar[Any]
    #: A promise that switches bounds checks off. ``source`` uses x and y alone, not row, column or live, and its u and
    #: v are monotone in x and in y, every rounding included: between points inside the image lie none outside.
    monotone: ClassVar[bool] = False
    start: ClassVar[Any]
    #: ``adjoint`` writes to the buffer that ``store`` completes, which then begins as zeros.
    partials_add_up: ClassVar[bool] = False
    #: Programs that may share a sample where each has a large part of the buffer.
    most_programs: ClassVar[int | None] = None
    #: The pixels of a tile are all in one row, so that a lane walks down one column; and a program has many rows.
    walks_columns: ClassVar[bool] = False
    adjoint: Any
    store: ClassVar[Any]

    @abstractmethod
    def parameter_shape(self, size: tuple[int, int]) -> tuple[int, ...]:
        """theta's shape after the batch axis, for an output of size (h, w)."""

    @abstractmethod
    def identity(
        self,
        size: tuple[int, int],
        *,
        align_corners: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """theta of the identity, without the batch axis."""

    @abstractmethod
    def grid(self, theta: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
        """The sampling grid: (u, v) for every target pixel of an output of size (h, w).

        Args:
            theta: parameters, (N, ...) as in ``layout``.
            size: (h, w).
            align_corners: as in `torch.nn.functional.grid_sample`.

        Returns:
            (N, h, w, 2), differentiable in theta, of theta's dtype.
        """

    def bounded_grid(self, theta: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor | None:
        """`grid`, in a transform's fastest form, if it is known to be `torch_sampler.is_bounded`; None if it is not.

        theta is what `coefficients` gives, float32 at least. Where bounded ones do not make a bounded
        grid, this is overridden.
        """
        return self.grid(theta, size, align_corners) if is_bounded(theta) else None

    def grid_of(self, coefficients: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
        """`grid` from what `coefficients` gives."""
        return self.grid(coefficients, size, align_corners)

    @abstractmethod
    def points(self, theta: Tensor, xy: Tensor, align_corners: bool = False) -> Tensor:
        """Where points of the output lie in the image: boxes, key points, outlines.

        Args:
            theta: parameters, (N, ...) as in ``layout``.
            xy: target points (x, y), normalised, (P, 2) for every sample alike or (N, P, 2).
            align_corners: what the normalised coordinates mean; matters to the dense transform only.

        Returns:
            source points (u, v), normalised, (N, P, 2), of xy's dtype if that is a floating one, differentiable in
            both arguments.
        """

    def coefficients(self, theta: Tensor) -> Tensor:
        """What the kernels and `bounded_grid` take in theta's place: theta itself, or (N, ...) computed from it."""
        return theta

    def check_theta(self, theta: Tensor, size: tuple[int, int], batch: int | None = None) -> None:
        """Raises ValueError unless theta has the shape for an output of size (h, w), for a batch if one is given."""
        expected = self.parameter_shape(size)
        if theta.dim() == 0 or theta.shape[1:] != expected:
            shape = ("N" if batch is None else batch, *expected)
            written = f"({', '.join(map(str, shape))})"
            raise ValueError(f"theta: expected shape {self.layout} = {written}, got {tuple(theta.shape)}")

    def transforms_of(self, theta: Tensor, size: tuple[int, int]) -> int | None:
        """M of a theta (N, M, ...), several transforms of each image; None of a theta (N, ...)."""
        expected = self.parameter_shape(size)
        return theta.shape[1] if theta.dim() == len(expected) + 2 and theta.shape[2:] == expected else None

    @abstractmethod
    def partials_shape(self, batch: int, size: tuple[int, int], blocks: Blocks) -> tuple[int, ...]:
        """Shape of the buffer that ``store`` or ``adjoint`` writes, every element exactly once.

        Args:
            batch: N.
            size: (h, w) of the output.
            blocks: how the launch is cut into programs.
        """

    @abstractmethod
    def sum_partials(self, partials: Tensor) -> Tensor:
        """The parameter gradient (batch, ...) from that buffer, the same on every run."""

    def settings(self) -> tuple[Any, ...] | None:
        """What tells objects of a class apart: equal ones share the plans of their launches. None: no two are equal."""
        return None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Transform) or self.settings() is None:
            return self is other
        return type(other) is type(self) and other.settings() == self.settings()

    def __hash__(self) -> int:
        settings = self.settings()
        return object.__hash__(self) if settings is None else hash((type(self), settings))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def narrowed(points: Tensor, xy: Tensor) -> Tensor:
    """Computed points in the dtype of the ones given, unless that holds no fractions."""
    return points.to(xy.dtype) if xy.is_floating_point() else points


def widened(theta: Tensor, xy: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the wider of their dtypes, float32 at least: coordinates are never computed in less."""
    if not isinstance(xy, Tensor) or xy.dim() not in (2, 3) or xy.shape[-1] != 2:
        got = tuple(xy.shape) if isinstance(xy, Tensor) else type(xy).__name__
        raise ValueError(f"xy: expected a tensor of shape (P, 2) or (N, P, 2), got {got}")
    if xy.dim() == 3 and xy.shape[0] != theta.shape[0] and 1 not in (xy.shape[0], theta.shape[0]):
        raise ValueError(f"xy: expected theta's batch size {theta.shape[0]} or 1, got {xy.shape[0]}")
    compute = torch.promote_types(torch.promote_types(theta.dtype, xy.dtype), torch.float32)
    return theta.to(compute), xy.to(compute)


def normalised(k: Any, n: int, align_corners: bool) -> Any:
    """Normalised positions of pixels k, a torch or numpy array, of an axis of n."""
    return (2 * k - (n - 1)) / max(n - 1 if align_corners else n, 1)


def target_axis(n: int, align_corners: bool, like: Tensor) -> Tensor:
    """Normalised positions of n target pixels, (n,), of the dtype and device of ``like``."""
    return normalised(torch.arange(n, dtype=like.dtype, device=like.device), n, align_corners)
