"""Thin plate spline: (u, v) = (x, y) + d(x, y), the smoothest displacement that takes control points to theta.

d = a + A (x, y) + sum over k of c_k phi(|(x, y) - p_k|) with phi(r) = r^2 log r^2 (Bookstein, 1989), a displacement, so
that the identity is exact. The coefficients are linear in theta: a small system of control points, solved on the host
in float64. The kernels read (K + 3, 4) of each sample: (c_k, p_k) row by row, then the two columns of A and a.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_tensor
from ..kernels.coordinates import finite
from ..kernels.language import constexpr, jit, tl
from ..tracing import is_faking, is_plain
from .affine import affine_adjoint, affine_start, store_affine
from .expansion import Expansion, add_lanes
from .kept_basis import PointTransform
from .products import exact_dtype, exact_product

# --- device -----------------------------------------------------------------------------------------------


@jit
def squared_distance(x, y, p_x, p_y):
    """r^2, and log2 of it or of the least number of its kind: r^2 log2 r^2 is 0 at a control point."""
    to_x, to_y = x - p_x, y - p_y
    r2 = tl.fma(to_x, to_x, to_y * to_y)
    least: constexpr = 2.2250738585072014e-308 if r2.dtype == tl.float64 else 1.1754943508222875e-38
    return r2, tl.log2(tl.where(r2 > least, r2, least))


@jit
def spline_load(theta, strides, sizes, axes, ACC: constexpr, INDEX: constexpr):
    """The affine part, and where the others lie, which are read in turn at every pixel: (K + 3, 4) without gaps."""
    count = sizes[0] - 3
    last = theta + 4 * count
    return (
        theta, count,
        tl.load(last).to(ACC), tl.load(last + 4).to(ACC), tl.load(last + 8).to(ACC),
        tl.load(last + 1).to(ACC), tl.load(last + 5).to(ACC), tl.load(last + 9).to(ACC),
    )  # fmt: skip


@jit
def spline_source(state, row, column, live, x, y, axes):
    """The displaced point, in pixels; where it is not finite it reads nothing."""
    theta, count, a_x, a_y, a_1, b_x, b_y, b_1 = state
    axis_x, axis_y = axes
    half_x, centre_x, ratio_x, pitch_x, _, _ = axis_x
    half_y, centre_y, ratio_y, pitch_y, _, _ = axis_y
    target_x, target_y = x * pitch_x, y * pitch_y
    sum_x, sum_y = target_x * 0, target_y * 0
    for k in range(count):
        c = theta + 4 * k
        p_x, p_y = tl.load(c + 2).to(half_x.dtype), tl.load(c + 3).to(half_x.dtype)
        r2, log = squared_distance(target_x, target_y, p_x, p_y)
        phi = r2 * log
        sum_x = tl.fma(tl.load(c).to(half_x.dtype), phi, sum_x)
        sum_y = tl.fma(tl.load(c + 1).to(half_x.dtype), phi, sum_y)
    ln2: constexpr = 0.6931471805599453
    ln2 = tl.full([], ln2, half_x.dtype)
    d_x = tl.fma(sum_x, ln2, tl.fma(a_x, target_x, tl.fma(a_y, target_y, a_1)))
    d_y = tl.fma(sum_y, ln2, tl.fma(b_x, target_x, tl.fma(b_y, target_y, b_1)))
    u, v = tl.fma(d_x, half_x, tl.fma(ratio_x, x, centre_x)), tl.fma(d_y, half_y, tl.fma(ratio_y, y, centre_y))
    return u, v, finite(live, u, v)


@jit
def add_to_weights(state, d_theta, x, y, d_u, d_v, axes, WIDTH: constexpr):
    """Adds d_u phi_k, d_v phi_k, summed over a tile, to the program's own (K + 3, WIDTH); WIDTH 4: d_p_k too."""
    theta, count = state[0], state[1]
    axis_x, axis_y = axes
    half_x, _, _, pitch_x, _, _ = axis_x
    half_y, _, _, pitch_y, _, _ = axis_y
    BLOCK: constexpr = 4  # sixteen would spill
    block = d_theta + tl.program_id(0).to(tl.int64) * (count + 3) * WIDTH
    ln2: constexpr = 0.6931471805599453
    ln2 = tl.full([], ln2, half_x.dtype)
    target_x, target_y = x * pitch_x, y * pitch_y
    d_x, d_y = d_u * (half_x * ln2), d_v * (half_y * ln2)
    for first in range(0, count, BLOCK):
        k = first + tl.arange(0, BLOCK)[None, :]
        known = k < count
        c = theta + 4 * k
        p_x = tl.load(c + 2, mask=known, other=0.0).to(half_x.dtype)
        p_y = tl.load(c + 3, mask=known, other=0.0).to(half_x.dtype)
        r2, log = squared_distance(target_x, target_y, p_x, p_y)
        phi = r2 * log
        place = block + k * WIDTH
        add_lanes(place, phi * d_x, known)
        add_lanes(place + 1, phi * d_y, known)
        if WIDTH == 4:  # d phi / d p = -2 (log r^2 + 1) (x - p)
            c_x = tl.load(c, mask=known, other=0.0).to(half_x.dtype)
            c_y = tl.load(c + 1, mask=known, other=0.0).to(half_x.dtype)
            slope = tl.fma(d_x, c_x, d_y * c_y) * (-2 * (log + 1 / ln2))
            add_lanes(place + 2, slope * (target_x - p_x), known)
            add_lanes(place + 3, slope * (target_y - p_y), known)
    tl.debug_barrier()  # the next tile's sums are read by lanes that did not write them


@jit
def spline_adjoint(partial, state, d_theta, part, row, column, live, x, y, sizes, d_u, d_v, axes):
    """Adds a tile: the affine part to the lanes' sums, the others to the buffer."""
    add_to_weights(state, d_theta, x, y, d_u, d_v, axes, 2)
    return affine_adjoint(partial, state, d_theta, part, row, column, live, x, y, sizes, d_u, d_v, axes)


@jit
def free_adjoint(partial, state, d_theta, part, row, column, live, x, y, sizes, d_u, d_v, axes):
    """The same with gradients of the control points."""
    add_to_weights(state, d_theta, x, y, d_u, d_v, axes, 4)
    return affine_adjoint(partial, state, d_theta, part, row, column, live, x, y, sizes, d_u, d_v, axes)


@jit
def spline_store_of(partial, state, d_theta, x, axes, WIDTH: constexpr):
    """Of (K + 3, WIDTH)."""
    count = state[1]
    block = d_theta + (tl.program_id(0).to(tl.int64) * (count + 3) + count) * WIDTH
    store_affine(partial, block, 1, WIDTH, x, axes)


@jit
def spline_store(partial, state, d_theta, x, axes):
    """The affine part of the gradient, in the last three rows."""
    spline_store_of(partial, state, d_theta, x, axes, 2)


@jit
def free_store(partial, state, d_theta, x, axes):
    """The same beside gradients of the control points."""
    spline_store_of(partial, state, d_theta, x, axes, 4)


# --- host -------------------------------------------------------------------------------------------------


class _Spline(Expansion):
    """What both splines share: everything from the coefficients on."""

    load, source = spline_load, spline_source
    start = affine_start
    width: int  #: columns of a program's gradient

    def numbers_per_point(self, coefficients, xy):
        return (self.count + 3) * (1 if self.width == 2 and xy.dim() == 2 else coefficients.shape[0])

    def expand(self, coefficients, xy):
        weights, points = _of_points(coefficients), coefficients[:, :-3, 2:]
        if self.width == 2 and xy.dim() == 2:
            points = points[:1].detach().sum(0)  # those of all samples, which may be none
        return exact_product(weights, _basis(xy, points))

    def partials_shape(self, batch, size, blocks):
        return (batch, blocks.per_sample, self.count + 3, self.width)

    def sum_partials(self, partials):
        return F.pad(partials.sum(1, dtype=torch.float64), (0, 4 - self.width))


class ThinPlateSpline(PointTransform, _Spline):
    """theta (N, K, 2): where K fixed control points of the output lie in the image, (u, v).

    Args:
        control_points: (K, 2), (x, y) normalised, K at least 3: numbers, an array or a tensor. None: the 4 x 4 grid
            over [-1, 1] x [-1, 1], row by row.
        lam: regularisation, added to the diagonal of the spline's matrix of phi(r) = r^2 log r^2 (twice what is added
            to one of r^2 log r): 0 goes through theta exactly; the larger, the closer to the best affine map.

    Points close to each other make large coefficients that cancel, which in float32 costs digits: ten times closer is
    about ten times the error where both move alike, a hundred times where they move apart. Of two in thirteen, 1e-3
    apart, it was 3e-5 and 1e-2, normalised.

    Raises:
        ValueError: control points of another shape, not finite, all on one line, or two in one place; lam negative.
    """

    name = "tps"
    layout = "(N, K, 2)"
    adjoint, store = spline_adjoint, spline_store
    width = 2

    def __init__(self, control_points: Any = None, lam: float = 0.0) -> None:
        self.control_points = _checked_points(control_points)
        self.lam = checked_lam(lam)
        self.count = len(self.control_points)
        self._solved: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}

    def __repr__(self) -> str:
        return f"ThinPlateSpline(K={self.count}, lam={self.lam:g})"

    def parameter_shape(self, size):
        return (self.count, 2)

    def identity(self, size=(1, 1), *, align_corners=False, dtype=None, device=None):
        return torch.tensor(self.control_points, dtype=dtype or torch.get_default_dtype(), device=device)

    def displacement(self, theta, dtype):
        _, points = self._constants(exact_dtype(theta.device), theta.device)
        return theta.to(dtype) - points.to(theta.dtype)

    def coefficients(self, theta, dtype):
        exact = exact_dtype(theta.device)
        inverse, points = self._constants(exact, theta.device)
        weights = exact_product(inverse, self.displacement(theta, dtype).to(exact)).to(dtype)
        return torch.cat([weights, F.pad(points.to(dtype), (0, 0, 0, 3)).expand(weights.shape)], -1)

    def functions_at(self, xy):
        """The cardinal functions: each the spline of a displacement of 1 at its point and 0 at the others."""
        inverse, points = self._constants(torch.float64, xy.device)
        return inverse.T @ _basis(xy, points)

    def bytes_of_systems(self) -> int:
        """Bytes held by the solved systems, or needed by the first if none is solved."""
        solved = sum(tensor.nbytes for constants in tuple(self._solved.values()) for tensor in constants)
        return max(solved, 8 * (self.count + 3) * self.count)

    def _constants(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """(K + 3, K): from displacements of the control points to coefficients; and those points."""
        if (dtype, device) not in self._solved or is_faking():
            with torch.inference_mode(False):
                points = torch.tensor(self.control_points, dtype=torch.float64, device="cpu")
                inverse = torch.linalg.inv(spline_matrix(points, self.lam))[:, : self.count]
                constants = inverse.to(device, dtype), points.to(device, dtype)
            if not is_plain(points):
                return constants
            self._solved[dtype, device] = constants
        return self._solved[dtype, device]


class FreeThinPlateSpline(_Spline):
    """theta (N, K, 4): K control points with gradients of their own: (u, v) in the image, then (x, y) in the output.

    Points of a sample that are all on one line, or of which two lie in one place, determine no spline: it gives NaN,
    which reads nothing and gets no gradient.

    Args:
        count: K, at least 3.
        lam: as in `ThinPlateSpline`.
    """

    name = "free_tps"
    layout = "(N, K, 4)"
    adjoint, store = free_adjoint, free_store
    width = 4

    def __init__(self, count: int, lam: float = 0.0) -> None:
        if count < 3:
            raise ValueError(f"count: expected at least 3 control points, got {count}")
        self.count, self.lam = count, checked_lam(lam)

    def settings(self):
        return self.count, self.lam

    def __repr__(self) -> str:
        return f"FreeThinPlateSpline({self.count}, lam={self.lam:g})"

    def parameter_shape(self, size):
        return (self.count, 4)

    def identity(self, size=(1, 1), *, align_corners=False, dtype=None, device=None):
        raise ValueError(
            f"identity: expected a transform with one of its own, got {self}, whose control points are parameters too: "
            "every theta with (u, v) = (x, y) is an identity, torch.cat([points, points], -1)"
        )

    def coefficients(self, theta, dtype):
        wide, exact = theta.to(dtype), exact_dtype(theta.device)
        ok = (~self.is_singular(theta) & theta.isfinite().flatten(-2).all(-1))[..., None, None]
        points = torch.where(ok, wide[..., 2:], 0)
        displacement = torch.where(ok, wide[..., :2] - wide[..., 2:], 0)
        one = torch.eye(self.count + 3, dtype=exact, device=theta.device)
        matrix = torch.where(ok, spline_matrix(points.to(exact), self.lam), one)
        weights, _ = torch.linalg.solve_ex(matrix, F.pad(displacement.to(exact), (0, 0, 0, 3)))
        missing = torch.zeros_like(one[:, :2])
        missing[-1] = torch.nan  # of the constant term alone: no gradient meets it
        weights = torch.where(ok, weights, missing).to(dtype)
        return torch.cat([weights, F.pad(points, (0, 0, 0, 3))], -1)

    def is_singular(self, theta: Tensor) -> Tensor:
        """(N,): whether a sample's control points determine no spline, to the rounding of theta. On theta's device."""
        points = theta.detach()[..., 2:].to(exact_dtype(theta.device))
        matrix = spline_matrix(points, self.lam)
        factors, _, _ = torch.linalg.lu_factor_ex(matrix.nan_to_num(0.0, 0.0, 0.0))
        pivots = factors.diagonal(dim1=-2, dim2=-1).abs()
        nothing = torch.finfo(torch.promote_types(theta.dtype, torch.float32)).eps * pivots.amax(-1)
        return (pivots.amin(-1) <= nothing) | ~matrix.isfinite().flatten(-2).all(-1)


def _basis(xy: Tensor, points: Tensor) -> Tensor:
    """(..., K + 3, P): phi_k, x, y and 1 at points xy (..., P, 2)."""
    phi = _phi(xy, points)
    linear = torch.cat([xy, torch.ones_like(xy[..., :1])], -1).transpose(-1, -2)
    return torch.cat([phi, linear.expand(*phi.shape[:-2], -1, -1)], -2)


def _of_points(coefficients: Tensor) -> Tensor:
    """(N, 2, K + 3): coefficients of the source points, from those of the displacements."""
    identity = torch.eye(2, 3, dtype=coefficients.dtype, device=coefficients.device)
    return coefficients[..., :2].transpose(1, 2) + F.pad(identity, (coefficients.shape[1] - 3, 0))


def spline_matrix(points: Tensor, lam: float) -> Tensor:
    """[[phi + lam I, P], [P^T, 0]] with rows (x, y, 1) of P: (..., K + 3, K + 3) of points (..., K, 2)."""
    one = torch.ones_like(points[..., :1])
    diagonal = lam * torch.eye(points.shape[-2], dtype=points.dtype, device=points.device)
    linear = torch.cat([points, one], -1)
    above = torch.cat([_phi(points, points) + diagonal, linear], -1)
    return torch.cat([above, F.pad(linear.transpose(-1, -2), (0, 3))], -2)


def _phi(xy: Tensor, points: Tensor) -> Tensor:
    """phi(|xy - p|), (..., K, P); 0, like its derivative, at r = 0."""
    to_x = xy[..., None, :, 0] - points[..., :, None, 0]
    to_y = xy[..., None, :, 1] - points[..., :, None, 1]
    r2 = (to_x * to_x + to_y * to_y).clamp(min=torch.finfo(xy.dtype).tiny)
    return r2 * r2.log()


def checked_lam(lam: Any) -> float:
    """As a number; raises TypeError unless one without a gradient, ValueError unless finite and at least 0."""
    try:
        number = float("none" if getattr(lam, "requires_grad", False) else lam)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"lam: expected a number, without a gradient, got {lam!r}") from None
    if not 0 <= number < float("inf"):
        raise ValueError(f"lam: expected a finite number of at least 0, got {lam!r}")
    return number


def checked_points(points: Any) -> np.ndarray:
    """Constant control points in float64, of any shape yet; the 4 x 4 grid for None."""
    if points is None:
        axis = np.linspace(-1, 1, 4)
        points = [(x, y) for y in axis for x in axis]
    if isinstance(points, Tensor):
        if points.requires_grad:
            raise ValueError(
                "control_points: expected constants, got a tensor that needs a gradient: tps_sample and "
                "FreeThinPlateSpline give it one"
            )
        check_tensor("control_points", points)
        if points.is_meta:
            raise ValueError("control_points: expected numbers, got a tensor without any, on meta")
        points = points.double().numpy(force=True)
    try:
        if np.iscomplexobj(points):
            raise TypeError
        return np.asarray(points, np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"control_points: expected numbers (K, 2), an array or a tensor, got {points!r}") from None


def _checked_points(points: Any) -> tuple[tuple[float, float], ...]:
    """As numbers."""
    array = checked_points(points)
    if array.ndim != 2 or array.shape[1] != 2 or len(array) < 3:
        raise ValueError(f"control_points: expected shape (K, 2) with K at least 3, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("control_points: expected finite numbers, got others")
    if len(np.unique(array, axis=0)) < len(array):
        raise ValueError("control_points: expected all of them to differ, got two in one place")
    spread = np.linalg.svd(array - array.mean(0), compute_uv=False)
    if spread[1] <= 1e-7 * spread[0]:
        raise ValueError("control_points: expected points that are not all on one line, got such")
    return tuple((float(x), float(y)) for x, y in array)
