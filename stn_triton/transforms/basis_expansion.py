"""An expansion T = M_theta B in a basis B of the user's own: (u, v) = theta (b_1(x, y), ..., b_K(x, y))."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from importlib import import_module
from pickle import PicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checks import check_count
from ..kernels.coordinates import finite
from ..kernels.language import closure, constexpr, interprets, jit, tl
from ..torch_sampler import is_bounded
from .base import target_points
from .dense import dense_start, dense_store
from .expansion import Expansion, add_lanes
from .products import exact_product

#: K up to which the kernels' loop over the basis is written out, so that choices by k cost nothing: about two thirds of
#: the instructions for six polynomials (sm_90). Not above, for the registers: 16 functions took 164 instead of 44.
WRITTEN_OUT = 8

# --- device -----------------------------------------------------------------------------------------------


@jit
def basis_load(theta, strides, sizes, axes, ACC: constexpr, INDEX: constexpr):
    """Where the coefficients lie, which are read in turn at every pixel, and how many."""
    return theta, strides[0].to(INDEX), strides[1].to(INDEX), sizes[1]


@jit
def value(k, x, y, BASIS: constexpr):
    """b_k(x, y), of x's dtype."""
    return tl.cast(BASIS(k, x, y), x.dtype)


@jit
def add_term(u, v, k, state, x, y, BASIS: constexpr):
    """(u, v) + theta_k b_k(x, y)."""
    theta, stride_row, stride_k, _ = state
    c = theta + k * stride_k
    b = value(tl.full([], k, tl.int32), x, y, BASIS)
    return tl.fma(tl.load(c).to(x.dtype), b, u), tl.fma(tl.load(c + stride_row).to(x.dtype), b, v)


@jit
def expansion_at(state, live, x, y, axes, BASIS: constexpr, COUNT: constexpr):
    """The expansion in pixels; where it is not finite it reads nothing. COUNT: K if it is to be written out, or 0."""
    axis_x, axis_y = axes
    half_x, centre_x, _, pitch_x, _, _ = axis_x
    half_y, centre_y, _, pitch_y, _, _ = axis_y
    target_x, target_y = x * pitch_x, y * pitch_y
    u, v = target_x * 0, target_y * 0
    if COUNT > 0:
        for k in tl.static_range(COUNT):
            u, v = add_term(u, v, k, state, target_x, target_y, BASIS)
    else:
        for k in range(state[3]):
            u, v = add_term(u, v, k, state, target_x, target_y, BASIS)
    u, v = tl.fma(u, half_x, centre_x), tl.fma(v, half_y, centre_y)
    return u, v, finite(live, u, v)


@jit
def add_to_block(place, first, count, moves, x, y, d_u, d_v, BASIS: constexpr, BLOCK: constexpr):
    """Adds d_u b_k, d_v b_k, summed over a tile, to ``place`` (2, K), for BLOCK of k."""
    k = first + tl.arange(0, BLOCK)[None, :]
    known = k < count
    b = tl.where(moves, value(k, x, y, BASIS), 0.0)
    add_lanes(place + k, b * d_u, known)
    add_lanes(place + count + k, b * d_v, known)


@jit
def add_to_coefficients(state, d_theta, x, y, d_u, d_v, axes, BASIS: constexpr, COUNT: constexpr):
    """Adds a tile to the program's own (2, K)."""
    count = state[3]
    axis_x, axis_y = axes
    half_x, _, _, pitch_x, _, _ = axis_x
    half_y, _, _, pitch_y, _, _ = axis_y
    BLOCK: constexpr = 4
    place = d_theta + tl.program_id(0).to(tl.int64) * count * 2
    target_x, target_y = x * pitch_x, y * pitch_y
    moves = (d_u != 0) | (d_v != 0)  # elsewhere, and outside the output, the basis may be anything
    d_u, d_v = d_u * half_x, d_v * half_y
    if COUNT > 0:
        for first in tl.static_range(0, COUNT, BLOCK):
            add_to_block(place, first, count, moves, target_x, target_y, d_u, d_v, BASIS, BLOCK)
    else:
        for first in range(0, count, BLOCK):
            add_to_block(place, first, count, moves, target_x, target_y, d_u, d_v, BASIS, BLOCK)
    tl.debug_barrier()  # the next tile's sums are read by lanes that did not write them


def functions_of(basis: Any, count: int) -> tuple[Any, Any]:
    """``source`` and ``adjoint`` of an expansion: for Triton a jit function's closure is part of what it is."""
    written_out = constexpr(count if count <= WRITTEN_OUT else 0)

    @closure
    def expansion_source(state, row, column, live, x, y, axes):
        return expansion_at(state, live, x, y, axes, basis, written_out)

    @closure
    def expansion_adjoint(partial, state, d_theta, part, row, column, live, x, y, sizes, d_u, d_v, axes):
        add_to_coefficients(state, d_theta, x, y, d_u, d_v, axes, basis, written_out)
        return partial

    return expansion_source, expansion_adjoint


@jit
def evaluate(points, values, count, POINTS: constexpr, BASIS: constexpr):
    """values (2, K, POINTS): the basis at points (2, POINTS), function by function, and by blocks of functions."""
    BLOCK: constexpr = 4
    point = tl.arange(0, POINTS)[:, None]
    x, y = tl.load(points + point), tl.load(points + POINTS + point)
    for k in range(count):
        tl.store(values + k * POINTS + point, value(tl.full([], k, tl.int32), x, y, BASIS))
    for first in range(0, count, BLOCK):
        k = first + tl.arange(0, BLOCK)[None, :]
        tl.store(values + (count + k) * POINTS + point, value(k, x, y, BASIS), mask=k < count)


# --- host -------------------------------------------------------------------------------------------------


class BasisExpansion(Expansion):
    """theta (N, 2, K): (u, v) = theta (b_1(x, y), ..., b_K(x, y)) in a basis of your own, in normalised coordinates.

    Unlike the other transforms' maps this one is computed in normalised coordinates throughout: an identity theta gives
    an image back to the rounding of a coordinate, not bit for bit. Points where a function of the basis is not finite
    read nothing, and have no gradient. Keep the object: launches are planned once for each.

    Args:
        basis: ``basis(k, x, y)``, a `triton.jit` function: b_k(x, y) with k from 0, for the kernels. k is an integer
            scalar or a tensor (1, B), where it may go beyond K - 1; x and y are (P, 1), float32 or float64; the result
            broadcasts to (P, 1) or (P, B). So it works on elements, chooses by ``tl.where``, not by ``if``, and makes
            fractions of ``k.to(x.dtype)``, which Triton would make in float32. It may call other jit functions.
            None where no kernels will run, above all where triton cannot be imported.
        count: K.
        torch_basis: ``torch_basis(x, y)``, the same in torch operations, for the CPU path, `grid` and `points`: all of
            it, (K, ...), from x and y of any one shape. `points` has the derivatives in x and y that this has.
        identity: theta of the identity, (2, K), for `start_at_identity` and `warmup`; None if there is none.

    Raises:
        TypeError: basis is not a jit function of three arguments, count not a whole number, torch_basis not callable.
        ValueError: identity of another shape or not finite.
    """

    name = "basis_expansion"
    layout = "(N, 2, K)"
    load = basis_load
    start, store = dense_start, dense_store

    def __init__(
        self, basis: Any, count: int, torch_basis: Callable[[Tensor, Tensor], Tensor], *, identity: Any = None
    ) -> None:
        self.basis = _checked_basis(basis)
        self.count = check_count("count", count)
        if not callable(torch_basis):
            raise TypeError(f"torch_basis: expected a function of x and y, got {type(torch_basis).__name__}")
        self.torch_basis = torch_basis
        self._identity = None if identity is None else _checked_identity(identity, self.count)

    def __repr__(self) -> str:
        return f"BasisExpansion({getattr(self.torch_basis, '__name__', '...')}, K={self.count})"

    def __copy__(self) -> BasisExpansion:
        return self  # copies of a network share it; Triton's functions cannot be copied

    def __deepcopy__(self, memo: dict[int, Any]) -> BasisExpansion:
        return self

    def __getstate__(self) -> dict[str, Any]:
        """For pickle, the basis by its name, as any function: Triton's cannot be pickled. What was made of it stays."""
        state = {name: value for name, value in vars(self).items() if name != "_functions"}
        return state if self.basis is None else {**state, "basis": _name_of(self.basis)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        name = state["basis"]
        vars(self).update(state, basis=None if name is None else _function_of(*name))

    @property
    def source(self):
        return self._functions[0]

    @property
    def adjoint(self):
        return self._functions[1]

    @cached_property
    def _functions(self) -> tuple[Any, Any]:
        if self.basis is None:
            raise ValueError("basis: expected a triton.jit function where kernels run, got None")
        return functions_of(self.basis, self.count)

    def parameter_shape(self, size):
        return (2, self.count)

    def identity(self, size=(1, 1), *, align_corners=False, dtype=None, device=None):
        if self._identity is None:
            raise ValueError("identity: expected BasisExpansion(..., identity=theta) of shape (2, K), got none")
        return torch.tensor(self._identity, dtype=dtype or torch.get_default_dtype(), device=device)

    def check(self) -> None:
        """Compares basis with torch_basis at 16 x 16 points of the output, by a kernel: on the current GPU in float32.

        Raises:
            ValueError: they differ by more than 3e-4 of a function's largest value; says in which function and where.
            RuntimeError: there is no GPU (and no TRITON_INTERPRET=1, with which the CPU does).
        """
        interpreted = interprets(self.basis)
        if self.basis is None or not (interpreted or torch.cuda.is_available()):
            raise RuntimeError("basis: expected a triton.jit function and a GPU, or TRITON_INTERPRET=1, to check it")
        like = torch.empty(0, device="cpu" if interpreted else "cuda")
        points = target_points((16, 16), False, like).view(-1, 2).T.contiguous()
        values = torch.empty(2, self.count, points.shape[1], device=points.device)
        evaluate[(1,)](points, values, self.count, points.shape[1], self.basis)
        expected = self._evaluate_in_torch(*points.double())
        bound = torch.finfo(values.dtype).eps ** 0.5 * expected.abs().nan_to_num(0, 0, 0).amax(1, keepdim=True)
        equal = (values == expected) | (values.isnan() & expected.isnan())
        excess = torch.where(equal, 0, (values - expected).abs() - bound).nan_to_num(torch.inf)
        if bool((excess > 0).any()):
            way, k, p = np.unravel_index(int(excess.argmax()), excess.shape)
            x, y = points[:, p].tolist()
            raise ValueError(
                f"torch_basis: expected b_{k}({x:g}, {y:g}) = {float(values[way, k, p]):g}, as basis gives it for k a "
                f"{('scalar', 'tensor')[way]}, got {float(expected[k, p]):g}"
            )

    def numbers_per_point(self, coefficients, xy):
        return self.count * (1 if xy.dim() == 2 else xy.shape[0])

    def expand(self, coefficients, xy):
        basis = self._evaluate_in_torch(*xy.unbind(-1))
        if basis.dim() == 3:
            basis = basis.transpose(0, 1)
        if is_bounded(basis):
            return exact_product(coefficients, basis)
        # Zeros meet no gradient; infinities would, as NaN.
        known = basis.isfinite()
        planes = exact_product(coefficients, torch.where(known, basis, 0))
        return torch.where(known.all(-2, keepdim=True), planes, torch.nan)

    def _evaluate_in_torch(self, x: Tensor, y: Tensor) -> Tensor:
        """(K, ...) of torch_basis, checked."""
        basis = self.torch_basis(x, y)
        if not isinstance(basis, Tensor) or basis.shape != (self.count, *x.shape):
            got = tuple(basis.shape) if isinstance(basis, Tensor) else type(basis).__name__
            raise ValueError(
                f"torch_basis: expected a tensor (K, ...) = {(self.count, *x.shape)} from x and y of shape "
                f"{tuple(x.shape)}, got {got}"
            )
        return basis.to(x.dtype)

    def partials_shape(self, batch, size, blocks):
        return (batch, blocks.per_sample, 2, self.count)

    def sum_partials(self, partials):
        return partials.sum(1, dtype=torch.float64)


def _checked_basis(basis: Any) -> Any:
    if basis is None:
        return basis
    if type(basis) is not type(value):
        expected = f"a triton.jit function of (k, x, y), of the kind {type(value).__name__}"
        raise TypeError(f"basis: expected {expected}, got {basis!r}")
    names = getattr(basis, "arg_names", "kxy")
    if len(names) != 3:
        raise TypeError(f"basis: expected a function of (k, x, y), got one of ({', '.join(names)})")
    return basis


def _name_of(basis: Any) -> tuple[str, str]:
    """Module and name of a jit function. Raises PicklingError unless it is found by them."""
    name = basis.fn.__module__, basis.fn.__qualname__
    try:
        found = _function_of(*name)
    except (ImportError, AttributeError):
        found = None
    if found is not basis:
        raise PicklingError(f"basis: expected a jit function at the top of a module, got {'.'.join(name)}")
    return name


def _function_of(module: str, name: str) -> Any:
    return getattr(import_module(module), name)


def _checked_identity(identity: Any, count: int) -> np.ndarray:
    if isinstance(identity, Tensor):
        identity = identity.detach().cpu().double().numpy()
    array = np.array(identity, np.float64)
    if array.shape != (2, count) or not np.isfinite(array).all():
        raise ValueError(f"identity: expected finite numbers of shape (2, K) = (2, {count}), got {identity!r}")
    return array
