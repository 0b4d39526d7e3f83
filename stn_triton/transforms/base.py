"""What a transform is: its parameters, its torch form, and the device functions the kernels are built from."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..checks import check_bool, check_dense, check_size, check_tensor
from ..torch_sampler import is_bounded

if TYPE_CHECKING:
    from ..configs import Blocks


class Transform(ABC):
    """A family of maps T_theta from target points (x, y) to source points (u, v).

    Convention: normalised coordinates, x to the right, y downwards, [-1, 1] over the image as
    ``align_corners`` says in `torch.nn.functional.grid_sample`. Objects hold no parameters and can be shared;
    keep yours, or have `settings` say which are equal, because launches are planned once for each.

    A transform's file defines two sides. In torch: `parameter_shape`, `identity`, `grid_of` and `points_of`, and where
    they are needed `coefficients`, `bounded_grid` or `make_grid`, and `size_of`. They take parameters of one batch axis
    and float32 at least: users call `grid` and `points`, which check, see to M transforms and half types, and are the
    same for all. For the kernels: `partials_shape`, `sum_partials`, and device functions.

    The device functions, called per program and per tile of pixels (see `stn_triton.kernels.warp`):

    - ``load(theta, strides, sizes, axes, ACC, INDEX) -> state``: a sample's parameters, read once per program; three
      strides and the first two sizes of what `coefficients` gives; ``axes`` are the x and the y axis, as
      `kernels.coordinates.axis_frame` gives them;
    - ``source(state, row, column, live, x, y, axes) -> (u, v, seen)``: source pixels of the target pixels at
      (x, y) from the centre, and which of the live ones read anything. For tiles, and for single points;
    - ``inverse``, ``box`` and ``extent`` of a transform that has an inverse: see `kernels.preimage`;
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
    #: With these the image's gradient is gathered, where a theta has an inverse. Then ``source`` uses x and y alone,
    #: and of a point that reads nothing u or v is not finite.
    inverse: ClassVar[Any] = None
    box: ClassVar[Any] = None
    extent: ClassVar[Any] = None
    start: ClassVar[Any]
    #: ``adjoint`` writes to the buffer that ``store`` completes, which then begins as zeros.
    partials_begin_as_zeros: ClassVar[bool] = False
    #: Programs that may share a sample where each has a large part of the buffer (of up to 16,384 columns).
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

    def grid(self, theta: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
        """The sampling grid: (u, v) for every target pixel of an output of size (h, w).

        Args:
            theta: parameters as in ``layout``, (N, ...) or, M transforms of each image, (N, M, ...).
            size: (h, w).
            align_corners: as in `torch.nn.functional.grid_sample`.

        Returns:
            (N, h, w, 2) or (N, M, h, w, 2), differentiable in theta, of theta's dtype: half types are computed in
            float32 and rounded once.
        """
        size, align_corners = check_size(size), check_bool("align_corners", align_corners)
        transforms = self.check_theta(theta, size)
        dtype = torch.promote_types(theta.dtype, torch.float32)
        grid, _ = self.make_grid(theta if transforms is None else theta.flatten(0, 1), size, align_corners, dtype)
        grid = grid.to(theta.dtype).clone(memory_format=torch.contiguous_format)  # nobody else's, theta's least of all
        # Not a view to autograd, which would forbid some in-place operations on it.
        return torch.ops.aten._unsafe_view(grid, (*theta.shape[: 1 if transforms is None else 2], *size, 2))

    def points(self, theta: Tensor, xy: Tensor, align_corners: bool = False) -> Tensor:
        """Where points of the output lie in the image: boxes, key points, outlines.

        Args:
            theta: parameters as in ``layout``, (N, ...) or, M transforms of each image, (N, M, ...).
            xy: target points (x, y), normalised: (P, 2) for every sample alike, (N, P, 2), or (N, M, P, 2).
            align_corners: what the normalised coordinates mean; matters to the dense transform only.

        Returns:
            source points (u, v), normalised, (N, P, 2) or (N, M, P, 2), of xy's dtype if that is a floating one,
            differentiable in both. Computed in the wider of the two dtypes, float32 at least.
        """
        align_corners = check_bool("align_corners", align_corners)
        transforms = self.check_theta(theta, self.size_of(theta))
        batch = theta.shape[: 1 if transforms is None else 2]
        check_points(xy, batch)
        if xy.device != theta.device:
            raise ValueError(f"xy: expected theta's device {theta.device}, got {xy.device}")
        compute = torch.promote_types(torch.promote_types(theta.dtype, xy.dtype), torch.float32)
        coefficients, at = self.coefficients(theta, compute).to(compute), xy.to(compute)
        axes = len(batch)
        if at.dim() > 2:
            at = at if at.dim() == axes + 2 else at[:, None]  # (N, P, 2) for all M
            batch = torch.broadcast_shapes(batch, at.shape[:-2])
            coefficients = coefficients.expand(*batch, *[-1] * (coefficients.dim() - axes))
            at = at.expand(*batch, -1, -1).flatten(0, axes - 1)
        points = self.points_of(coefficients.flatten(0, axes - 1), at, align_corners)
        points = points.to(xy.dtype) if xy.is_floating_point() else points
        return points if transforms is None else points.unflatten(0, batch)

    def coefficients(self, theta: Tensor, dtype: torch.dtype) -> Tensor:
        """What the kernels and the forms below take in theta's place: theta itself, or numbers computed from it.

        theta is (N, ...) or (N, M, ...), of any floating dtype; so is the result, which may have another shape behind.
        Numbers that are computed are of ``dtype``, float32 at least.
        """
        return theta

    def make_grid(
        self, theta: Tensor, size: tuple[int, int], align_corners: bool, dtype: torch.dtype
    ) -> tuple[Tensor, bool]:
        """`grid` (N, h, w, 2) of ``dtype``, float32 at least, from theta (N, ...); and whether it is known to be
        `torch_sampler.is_bounded`.
        """
        coefficients = self.coefficients(theta, dtype).to(dtype)
        grid = self.bounded_grid(coefficients, size, align_corners) if 0 not in size else None
        if grid is not None:
            return grid, True
        return self.grid_of(coefficients, size, align_corners), False

    @abstractmethod
    def grid_of(self, coefficients: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
        """`grid` (N, h, w, 2) from what `coefficients` gives, (N, ...), float32 at least, of whatever values."""

    def bounded_grid(self, coefficients: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor | None:
        """`grid_of`, in a transform's fastest form, if it is known to be `torch_sampler.is_bounded`; None if it is not.

        Where bounded coefficients do not make a bounded grid, this is overridden.
        """
        return self.grid_of(coefficients, size, align_corners) if is_bounded(coefficients) else None

    @abstractmethod
    def points_of(self, coefficients: Tensor, xy: Tensor, align_corners: bool = False) -> Tensor:
        """`points` (N, P, 2) from what `coefficients` gives, (N, ...), and xy, (P, 2) or (N, P, 2), of one dtype."""

    def size_of(self, theta: Tensor) -> tuple[int, int]:
        """(h, w) of the output that theta is for, by its shape; any where parameters have the same shape for all."""
        return 1, 1

    def check_theta(self, theta: Tensor, size: tuple[int, int], batch: int | None = None) -> int | None:
        """M of a theta (N, M, ...), several transforms of each image; None of a theta (N, ...).

        Raises ValueError unless theta has one of these shapes for an output of size (h, w), TypeError unless it is a
        floating-point tensor. ``batch``, if given, is N in the message.
        """
        check_tensor("theta", theta)
        expected = self.parameter_shape(size)
        if theta.shape[1:] == expected:
            return None
        if theta.shape[2:] == expected:
            return theta.shape[1]
        shape = ("N" if batch is None else batch, *expected)
        written = f"({', '.join(map(str, shape))})"
        hint = "; for one theta of all samples: theta[None]" if theta.shape == expected else ""
        own = self.size_of(theta)
        if self.parameter_shape(own) in (theta.shape[1:], theta.shape[2:]):
            hint = f"; it is one for size={own}"
        raise ValueError(f"theta: expected shape {self.layout} = {written}, got {tuple(theta.shape)}{hint}")

    @abstractmethod
    def partials_shape(self, batch: int, size: tuple[int, int], blocks: Blocks) -> tuple[int, ...]:
        """Shape of the buffer that ``store`` and ``adjoint`` write: every element, or it begins as zeros.

        Args:
            batch: N.
            size: (h, w) of the output.
            blocks: how the launch is cut into programs.
        """

    @abstractmethod
    def sum_partials(self, partials: Tensor) -> Tensor:
        """The parameter gradient (batch, ...) from that buffer, the same on every run: sums are float64."""

    def settings(self) -> tuple[Any, ...] | None:
        """What tells objects of a class apart: equal ones share the plans of their launches. None: no two are equal.

        By default that is so of objects that hold anything; all others of a class are equal.
        """
        return None if vars(self) else ()

    def cache_key(self) -> Hashable:
        """The key for this object in a cache: its class and settings, or a weak reference if it has no settings."""
        settings = self.settings()
        return weakref.ref(self) if settings is None else (type(self), settings)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Transform) or self.settings() is None:
            return self is other
        return type(other) is type(self) and other.settings() == self.settings()

    def __hash__(self) -> int:
        settings = self.settings()
        return object.__hash__(self) if settings is None else hash((type(self), settings))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def check_points(xy: Any, batch: torch.Size) -> None:
    """Raises TypeError unless a dense tensor, ValueError unless points for parameters of batch axes (N,) or (N, M)."""
    check_dense("xy", xy)
    if xy.shape[-1:] != (2,) or not 2 <= xy.dim() <= len(batch) + 2:
        shapes = "(P, 2) or (N, P, 2)" if len(batch) == 1 else "(P, 2), (N, P, 2) or (N, M, P, 2)"
        raise ValueError(f"xy: expected shape {shapes}, got {tuple(xy.shape)}")
    for what, of_points, of_theta in zip(("batch size", "M ="), xy.shape[:-2], batch):  # noqa: B905 - as many as xy has
        if of_points != of_theta and 1 not in (of_points, of_theta):
            raise ValueError(f"xy: expected theta's {what} {of_theta} or 1, got {of_points}")


def normalised(k: Any, n: int, align_corners: bool) -> Any:
    """Normalised positions of pixels k, a torch or numpy array, of an axis of n."""
    return (2 * k - (n - 1)) / max(n - 1 if align_corners else n, 1)


def target_axis(n: int, align_corners: bool, like: Tensor) -> Tensor:
    """Normalised positions of n target pixels, (n,), of the dtype and device of ``like``."""
    return normalised(torch.arange(n, dtype=like.dtype, device=like.device), n, align_corners)


def target_points(size: tuple[int, int], align_corners: bool, like: Tensor) -> Tensor:
    """Normalised target points (x, y), (h, w, 2), of the dtype and device of ``like``."""
    y, x = (target_axis(n, align_corners, like) for n in size)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
