"""Spatial transformer sampling in plain numpy: the definition every other path is checked against.

Jaderberg et al., "Spatial Transformer Networks" (2015), in PyTorch's conventions. Everything is float64
and written for reading, not for speed; nothing of the package is imported.

==================  =============================================================================
symbol              meaning
==================  =============================================================================
``image``           (N, C, H, W), the paper's U
``out``             (N, C, h, w), the paper's V
``theta``           (N, ...), maps a target point to the source point it is read from
(x, y)              target point in [-1, 1], x to the right, y downwards
(u, v)              source point, normalised like (x, y), then in pixels
``d_*``             gradient of the loss with respect to ``*``
==================  =============================================================================

Non-finite source coordinates read nothing out of bounds:

============  ==========================  =======================================  ==================
padding       ``transform_sample``        ``grid_sample`` (as PyTorch on CUDA)     gradients there
============  ==========================  =======================================  ==================
zeros, fill   0, the fill                 0, the fill                              0
border        0                           NaN: pixel 0; -inf: pixel 0;             NaN: 0; inf: as for a
                                          inf: last pixel                          point beyond the edge
reflection    0                           pixel 0                                  0
============  ==========================  =======================================  ==================

Since 0 * inf is NaN, a pixel, fill or gradient that is not finite propagates only where it is read, even with weight 0
(d_grid stands for d_theta, too). PyTorch's CUDA kernel makes the same choices where it has the case, but for one: it
adds to d_image also at taps whose weight is 0.

=================================  ===========================================================================
value that is not finite           what becomes not finite
=================================  ===========================================================================
a pixel of the image               out and d_grid where it is a tap, that of weight 0 included
d_out, a tap inside the image      d_image there, if its weight is not 0, and d_grid
d_out, no tap inside the image     nothing under bilinear; d_grid under bicubic, whose taps outside are zeros that
                                   count
d_out, where padding clips         d_image of the edge pixel, and d_grid: the slope there is 0, and 0 times d_out NaN
(border, reflection)
d_out, nearest                     d_image of the pixel alone
d_out, point not finite            nothing, under every sampler and padding, except that ``grid_sample`` under border
                                   takes an infinite point as one beyond the edge
fill                               out where coverage is not 1; its own gradient there is 0
d_out, fill                        d_fill where coverage is not 1
d_mask                             d_grid where some taps lie inside the image and others do not, under zeros and
                                   fill; elsewhere the mask is constant
=================================  ===========================================================================

The package departs from the table in four cases. A scatter in whole numbers (``deterministic``) makes d_image NaN for
the whole channel of an image if one d_out in it is not finite. The CPU path adds d_out to d_image also at taps of
weight 0, as PyTorch's CPU kernel does. It gives an infinite coordinate of ``grid_sample`` a gradient of 0. For such a
coordinate bicubic under reflection also reads pixels beside pixel 0 there, with weight 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


# --- coordinates ------------------------------------------------------------------------------------


def target_axis(n: int, align_corners: bool) -> Array:
    """Normalised positions of n output pixels: pixel centres, or with align_corners from -1 to 1."""
    k = np.arange(n, dtype=np.float64)
    if align_corners:
        return np.zeros(n) if n == 1 else 2 * k / (n - 1) - 1
    return (2 * k + 1) / n - 1


def pixels(u: Array, n: int, align_corners: bool) -> Array:
    """Normalised coordinate to pixels of an axis of n."""
    return (u + 1) / 2 * (n - 1) if align_corners else ((u + 1) * n - 1) / 2


def pixels_per_unit(n: int, align_corners: bool) -> float:
    """The derivative of `pixels`."""
    return (n - 1) / 2 if align_corners else n / 2


def pad(t: Array, n: int, padding_mode: str, align_corners: bool) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Padding rule on a pixel coordinate: (coordinate, derivative, whether the coordinate is known).

    zeros leaves the coordinate alone; border clips to [0, n-1], slope 0 from the edge on; reflection
    mirrors about the pixel centres (align_corners) or the pixel edges, then clips.
    """
    if padding_mode in ("zeros", "fill"):
        known = np.isfinite(t)
        return np.where(known, t, -100.0), np.ones_like(t), known
    slope = np.ones_like(t)
    if padding_mode not in ("border", "reflection"):
        raise ValueError(f"padding_mode: expected 'zeros', 'border', 'reflection' or 'fill', got {padding_mode!r}")
    if padding_mode == "reflection":
        low, span = (0.0, n - 1.0) if align_corners else (-0.5, float(n))
        slope = np.where(t < low, -1.0, 1.0)
        if span == 0:
            t = np.where(np.isfinite(t), 0.0, np.nan)
        else:
            distance = np.abs(t - low)
            flips = np.floor(distance / span)
            extra = distance - flips * span
            odd = flips % 2 == 1
            t = np.where(odd, span - extra, extra) + low
            slope = np.where(odd, -slope, slope)
    known = ~np.isnan(t)
    slope = np.where(known & (t > 0) & (t < n - 1), slope, 0.0)
    return np.clip(np.where(known, t, 0.0), 0, n - 1), slope, known


# --- sampling kernels: U is read at integer taps j, weighted by k(t - j) ------------------------------


def cubic(s: Array) -> tuple[Array, Array]:
    """k(s) and k'(s) of cubic convolution (Keys, 1981), with PyTorch's A = -0.75."""
    r, a = np.abs(s), -0.75
    near = ((a + 2) * r - (a + 3)) * r**2 + 1, (3 * (a + 2) * r - 2 * (a + 3)) * r
    far = a * (r**3 - 5 * r**2 + 8 * r - 4), a * (3 * r**2 - 10 * r + 8)
    return np.where(r <= 1, near[0], far[0]), np.sign(s) * np.where(r <= 1, near[1], far[1])


def taps(t: Array, n: int, mode: str, padding_mode: str, align_corners: bool) -> list[tuple[Array, Array, Array]]:
    """The taps (j, weight, d weight / dt) of an axis of n pixels: the paper's k(.) at the integers around t.

    nearest: eq. 4, ties to even. bilinear: max(0, 1 - |t - j|) at floor(t) and floor(t) + 1, eq. 5, so the derivative
    at an integer is U[j+1] - U[j] as in PyTorch (the paper's eq. 7 leaves 0 there). Both of the padded coordinate.
    bicubic, as PyTorch: four taps around the coordinate itself, each padded by itself, without padding's slope. A
    coordinate that is not finite uses the single pixel to which padding sends it.
    """
    padded, slope, _ = pad(t, n, padding_mode, align_corners)
    if mode == "nearest":
        return [(np.rint(padded), np.ones_like(t), np.zeros_like(t))]
    if mode == "bilinear":
        j = np.floor(padded)
        return [(j, 1 - (padded - j), -slope), (j + 1, padded - j, slope)]
    if mode != "bicubic":
        raise ValueError(f"mode: expected 'nearest', 'bilinear' or 'bicubic', got {mode!r}")
    finite = np.isfinite(t)
    t = np.where(finite, t, padded)
    around = [(np.floor(t) + finite * k, *cubic(t - np.floor(t) - k)) for k in (-1, 0, 1, 2)]
    return [(pad(j, n, padding_mode, align_corners)[0], weight, finite * d_weight) for j, weight, d_weight in around]


def _corners(
    grid: Array, shape: tuple[int, ...], mode: str, padding_mode: str, align_corners: bool
) -> Iterator[tuple[Any, ...]]:
    """Products of the taps of both axes: (i, j, whether inside the image, weight and its derivatives in the grid).

    Outside the image (i, j) is set to (0, 0) and must not be read.
    """
    H, W = shape[-2:]
    taps_u, taps_v = (
        taps(pixels(grid[..., axis], n, align_corners), n, mode, padding_mode, align_corners)
        for axis, n in enumerate((W, H))
    )
    for i, weight_v, slope_v in taps_v:
        for j, weight_u, slope_u in taps_u:
            inside = (i >= 0) & (i < H) & (j >= 0) & (j < W)
            row = np.where(inside, i, 0).astype(np.int64)
            column = np.where(inside, j, 0).astype(np.int64)
            yield (
                row,
                column,
                inside,
                weight_v * weight_u,
                weight_v * slope_u * pixels_per_unit(W, align_corners),
                slope_v * weight_u * pixels_per_unit(H, align_corners),
            )


def _known(grid: Array, shape: tuple[int, ...], padding_mode: str, align_corners: bool) -> NDArray[np.bool_]:
    """Where both coordinates are known to the padding rule."""
    known_u, known_v = (
        pad(pixels(grid[..., axis], n, align_corners), n, padding_mode, align_corners)[2]
        for axis, n in enumerate(shape[:-3:-1])
    )
    return known_u & known_v


# --- an explicit grid ---------------------------------------------------------------------------------
# Padding by a fill, of shape (), (C,) or (N, C), is padding by zeros plus fill * (1 - coverage):
# V = sum over taps of U k(u - j) k(v - i) + fill (1 - coverage). A fill that is not finite is a marker: no gradient.


def _filled(fill: ArrayLike, shape: tuple[int, ...]) -> Array:
    """(N, C, 1, 1)."""
    return np.broadcast_to(np.asarray(fill, np.float64), shape[:2])[:, :, None, None]


def _read(image: Array, i: Array, j: Array, inside: Array) -> Array:
    """The pixels at (i, j), (N, C, h, w); 0 outside the image."""
    n = np.arange(image.shape[0])[:, None, None]
    return np.where(inside[:, None], np.moveaxis(image[n, :, i, j], -1, 1), 0.0)


def grid_sample(
    image: ArrayLike,
    grid: ArrayLike,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
    fill: ArrayLike = 0.0,
) -> Array:
    """V = sum over taps of U k(u - j) k(v - i), eq. 3: image (N, C, H, W), grid (N, h, w, 2) of (u, v)."""
    image, grid = np.asarray(image, np.float64), np.asarray(grid, np.float64)
    out = np.zeros((*image.shape[:2], *grid.shape[1:3]))
    for i, j, inside, weight, _, _ in _corners(grid, image.shape, mode, padding_mode, align_corners):
        out += weight[:, None] * _read(image, i, j, inside)
    if padding_mode == "fill":
        cover, colour = coverage(grid, image.shape[2:], mode, padding_mode, align_corners), _filled(fill, image.shape)
        out += np.where(cover == 1, 0.0, np.where(np.isfinite(colour), colour * (1 - cover), colour))
    known = _known(grid, image.shape, padding_mode, align_corners)[:, None]
    return out if padding_mode != "zeros" else np.where(known, out, 0.0)


def grid_sample_backward(
    d_out: ArrayLike,
    image: ArrayLike,
    grid: ArrayLike,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
    fill: ArrayLike = 0.0,
    *,
    magnitude: bool = False,
) -> tuple[Array, Array]:
    """Eqs. 6 and 7: (d_image, d_grid).

    With ``magnitude`` every term enters by its absolute value: the sum a rounding error is measured against.
    """
    d_out, image, grid = (np.asarray(a, np.float64) for a in (d_out, image, grid))
    known = _known(grid, image.shape, padding_mode, align_corners)
    d_out = np.where(known[:, None], d_out, 0.0)
    if magnitude:
        d_out, image = np.abs(d_out), np.abs(image)
    d_image, d_grid = np.zeros(image.shape), np.zeros(grid.shape)
    for i, j, inside, *weights in _corners(grid, image.shape, mode, padding_mode, align_corners):
        weight, weight_du, weight_dv = map(np.abs, weights) if magnitude else weights
        reads = inside & (weight != 0)
        n, k, l = np.nonzero(reads)  # noqa: E741
        place: Any = np.index_exp[n, :, i[reads], j[reads]]
        np.add.at(d_image, place, weight[reads][:, None] * d_out[n, :, k, l])
        dot = (d_out * _read(image, i, j, inside)).sum(1)
        counts = known & (inside | (mode == "bicubic"))  # bicubic counts zeros outside
        dot = np.where(counts, dot, 0.0)
        if mode != "nearest":
            d_grid[..., 0] += dot * weight_du
            d_grid[..., 1] += dot * weight_dv
    if padding_mode == "fill":
        colour = _filled(fill, image.shape)
        colour = np.where(np.isfinite(colour), -colour, 0.0)
        d_cover = (d_out * (np.abs(colour) if magnitude else colour)).sum(1, keepdims=True)
        options = mode, padding_mode, align_corners
        d_grid += coverage_backward(d_cover, grid, image.shape[2:], *options, magnitude=magnitude)
    return d_image, d_grid


def fill_backward(
    d_out: ArrayLike, fill: ArrayLike, grid: ArrayLike, image_size: tuple[int, int], *options: Any
) -> Array:
    """d_fill (N, C) = sum of d_out (1 - coverage), whatever fill's shape; 0 for a fill that is not finite."""
    d_out = np.asarray(d_out, np.float64)
    cover = coverage(grid, image_size, *options)
    d_fill = np.where(cover == 1, 0.0, d_out * (1 - cover)).sum((2, 3))
    return np.where(np.isfinite(_filled(fill, d_out.shape)[..., 0, 0]), d_fill, 0.0)


def coverage(
    grid: ArrayLike,
    image_size: tuple[int, int],
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
) -> Array:
    """How much of each output pixel an image (H, W) covers, (N, 1, h, w): the image of ones, sampled at the grid.

    Exactly 1 where all taps lie inside the image.
    """
    grid = np.asarray(grid, np.float64)
    padding_mode = "zeros" if padding_mode == "fill" else padding_mode
    cover = grid_sample(np.ones((len(grid), 1, *image_size)), grid, mode, padding_mode, align_corners)
    _, all_inside = _any_and_all_inside(grid, image_size, mode, padding_mode, align_corners)
    return np.where(all_inside & _known(grid, image_size, padding_mode, align_corners), 1.0, cover[:, 0])[:, None]


def coverage_backward(
    d_mask: ArrayLike,
    grid: ArrayLike,
    image_size: tuple[int, int],
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
    *,
    magnitude: bool = False,
) -> Array:
    """d_grid of `coverage`: 0 where all taps are inside, where none is, and everywhere under border and reflection."""
    d_mask, grid = np.asarray(d_mask, np.float64), np.asarray(grid, np.float64)
    if padding_mode not in ("zeros", "fill"):
        return np.zeros(grid.shape)
    options = mode, "zeros", align_corners
    any_inside, all_inside = _any_and_all_inside(grid, image_size, *options)
    d_mask = np.where((any_inside & ~all_inside)[:, None], d_mask, 0.0)
    return grid_sample_backward(d_mask, np.ones((len(grid), 1, *image_size)), grid, *options, magnitude=magnitude)[1]


def _any_and_all_inside(grid: Array, shape: tuple[int, ...], *options: Any) -> tuple[Any, Any]:
    """Returns where any tap of a point is inside the image, and where all are."""
    inside = [inside for _, _, inside, _, _, _ in _corners(grid, shape, *options)]
    return np.logical_or.reduce(inside), np.logical_and.reduce(inside)


# --- transforms ---------------------------------------------------------------------------------------
# Each is a pair: its grid, and d_theta from d_grid. Every map is T = M_theta B over the basis B = (x, y, 1), eq. 1 and
# section 3.2; projective divides its two first rows by the third.


def target_points(size: tuple[int, int], align_corners: bool) -> Array:
    """(h, w, 2): x and y of every target pixel."""
    y, x = np.meshgrid(*(target_axis(n, align_corners) for n in size), indexing="ij")
    return np.stack([x, y], -1)


def _homogeneous(size: tuple[int, int], align_corners: bool) -> Array:
    """(h, w, 3): x, y and 1."""
    xy = target_points(size, align_corners)
    return np.concatenate([xy, np.ones_like(xy[..., :1])], -1)


def affine_grid(theta: ArrayLike, size: tuple[int, int], align_corners: bool = False) -> Array:
    """(u, v) = theta (x, y, 1), eq. 1, at every pixel of an output of size (h, w): (N, h, w, 2)."""
    return np.einsum("nrk,hwk->nhwr", np.asarray(theta, np.float64), _homogeneous(size, align_corners))


def affine_grid_backward(
    d_grid: Array, theta: ArrayLike, size: tuple[int, int], align_corners: bool = False, *, magnitude: bool = False
) -> Array:
    """d_theta of `affine_grid`; ``magnitude`` as in `grid_sample_backward`."""
    basis = _homogeneous(size, align_corners)
    return np.einsum("nhwr,hwk->nrk", d_grid, np.abs(basis) if magnitude else basis)


def attention_grid(theta: ArrayLike, size: tuple[int, int], align_corners: bool = False) -> Array:
    """(u, v) = s (x, y) + (tx, ty), eq. 2: theta (N, 3) holds s, tx, ty."""
    s, tx, ty = np.asarray(theta, np.float64).T
    zero = np.zeros_like(s)
    return affine_grid(np.moveaxis(np.array([[s, zero, tx], [zero, s, ty]]), -1, 0), size, align_corners)


def attention_grid_backward(
    d_grid: Array, theta: ArrayLike, size: tuple[int, int], align_corners: bool = False, *, magnitude: bool = False
) -> Array:
    """d_theta of `attention_grid`."""
    d = affine_grid_backward(d_grid, theta, size, align_corners, magnitude=magnitude)
    return np.stack([d[:, 0, 0] + d[:, 1, 1], d[:, 0, 2], d[:, 1, 2]], -1)


def _homography(theta: ArrayLike) -> tuple[Array, Array]:
    """(N, 3, 3) from (N, 8) or (N, 3, 3), with the sign that makes the last entry positive; that sign, (N, 1, 1)."""
    theta = np.asarray(theta, np.float64)
    if theta.ndim == 2:
        theta = np.concatenate([theta, np.ones((len(theta), 1))], 1).reshape(-1, 3, 3)
    sign = np.where(theta[:, 2:, 2:] < 0, -1.0, 1.0)
    return theta * sign, sign


def _projected(theta: ArrayLike, size: tuple[int, int], align_corners: bool) -> tuple[Array, Array]:
    """The homogeneous source points (p, q, r), and 1 / r; NaN on the horizon and behind the camera."""
    matrix, _ = _homography(theta)
    forms = np.einsum("nrk,hwk->nhwr", matrix, _homogeneous(size, align_corners))
    front = forms[..., 2] > np.maximum(1e-6 * np.abs(matrix[:, None, None, 2]).sum(-1), 1e-18)
    return forms, 1 / np.where(front, forms[..., 2], np.nan)


def projective_grid(theta: ArrayLike, size: tuple[int, int], align_corners: bool = False) -> Array:
    """(u, v) = (p, q) / r with (p, q, r) = theta (x, y, 1); NaN behind the camera. theta (N, 3, 3) or (N, 8)."""
    forms, inverse = _projected(theta, size, align_corners)
    return forms[..., :2] * inverse[..., None]


def projective_grid_backward(
    d_grid: Array, theta: ArrayLike, size: tuple[int, int], align_corners: bool = False, *, magnitude: bool = False
) -> Array:
    """d_theta of `projective_grid`: d_p = d_u / r, d_q = d_v / r, d_r = -(d_u p + d_v q) / r^2."""
    forms, inverse = _projected(theta, size, align_corners)
    _, sign = _homography(theta)
    known = np.isfinite(inverse)[..., None]
    inverse = np.where(known, inverse[..., None], 0)
    points = np.where(known, forms[..., :2], 0) * inverse
    d_pq = d_grid * inverse
    if magnitude:
        points, sign = -np.abs(points), np.ones_like(sign)
    d_forms = np.concatenate([d_pq, -(d_pq * points).sum(-1, keepdims=True)], -1)
    d_matrix = sign * affine_grid_backward(d_forms, theta, size, align_corners, magnitude=magnitude)
    return d_matrix if np.ndim(theta) == 3 else d_matrix.reshape(-1, 9)[:, :8]


def spline_basis(xy: Array, points: Array) -> Array:
    """(..., K + 3): phi(|xy - p_k|) with phi(r) = r^2 log r^2, then 1, x, y."""
    r2 = ((xy[..., None, :] - points) ** 2).sum(-1)
    phi = r2 * np.log(np.where(r2 > 0, r2, 1))
    return np.concatenate([phi, np.ones_like(xy[..., :1]), xy], -1)


def spline_matrix(points: Array, lam: float) -> Array:
    """(K + 3, K + 3): from the coefficients of `spline_basis` to values at the control points, and three zeros."""
    above = spline_basis(points, points)
    above[:, : len(points)] += lam * np.eye(len(points))
    linear = np.concatenate([above[:, len(points) :].T, np.zeros((3, 3))], 1)
    return np.concatenate([above, linear])


def spline_system(points: Array, lam: float) -> Array:
    """(K + 3, K): from values at the control points to the coefficients of `spline_basis` that interpolate them."""
    return np.asarray(np.linalg.inv(spline_matrix(points, lam))[:, : len(points)], np.float64)


def tps_grid(
    theta: ArrayLike,
    size: tuple[int, int],
    align_corners: bool = False,
    control_points: ArrayLike | None = None,
    lam: float = 0.0,
) -> Array:
    """The thin plate spline that takes control points (K, 2), by default the 4 x 4 grid, to theta (N, K, 2)."""
    points = four_by_four() if control_points is None else np.asarray(control_points, np.float64)
    basis = spline_basis(target_points(size, align_corners), points)
    return np.einsum("hwb,bk,nkr->nhwr", basis, spline_system(points, lam), np.asarray(theta, np.float64))


def tps_grid_backward(
    d_grid: Array,
    theta: ArrayLike,
    size: tuple[int, int],
    align_corners: bool = False,
    control_points: ArrayLike | None = None,
    lam: float = 0.0,
    *,
    magnitude: bool = False,
) -> Array:
    """d_theta of `tps_grid`."""
    points = four_by_four() if control_points is None else np.asarray(control_points, np.float64)
    basis = spline_basis(target_points(size, align_corners), points)
    system = spline_system(points, lam)
    if magnitude:
        basis, system = np.abs(basis), np.abs(system)
    return np.einsum("nhwr,hwb,bk->nkr", d_grid, basis, system, optimize=True)


def four_by_four() -> Array:
    """(16, 2): the default control points, row by row over [-1, 1] x [-1, 1]."""
    y, x = np.meshgrid(*[np.linspace(-1, 1, 4)] * 2, indexing="ij")
    return np.stack([x, y], -1).reshape(-1, 2)


def mesh_corners(size: tuple[int, int], align_corners: bool, mesh: tuple[int, int]) -> list[tuple[Any, Array]]:
    """(vertex, weight), each (h, w), of the three vertices around every target pixel: the hats that are not 0 there.

    The mesh has (gh, gw) vertices, row by row over [-1, 1] x [-1, 1]; cells are split from top left to bottom right.
    """
    gh, gw = mesh
    xy = target_points(size, align_corners)
    a, b = (xy[..., 0] + 1) / 2 * (gw - 1), (xy[..., 1] + 1) / 2 * (gh - 1)
    column, row = np.clip(np.floor(a), 0, gw - 2), np.clip(np.floor(b), 0, gh - 2)
    a, b = a - column, b - row
    top_left = (row * gw + column).astype(np.int64)
    return [
        (top_left, 1 - np.maximum(a, b)),
        (np.where(a > b, top_left + 1, top_left + gw), np.abs(a - b)),  # top right, or bottom left
        (top_left + gw + 1, np.minimum(a, b)),
    ]


def piecewise_affine_grid(
    theta: ArrayLike, size: tuple[int, int], align_corners: bool = False, mesh: tuple[int, int] = (4, 4)
) -> Array:
    """Affine on every triangle of a mesh whose vertices lie at theta (N, gh * gw, 2) in the image."""
    theta = np.asarray(theta, np.float64)
    corners = mesh_corners(size, align_corners, mesh)
    return np.sum([weight[..., None] * theta[:, vertex] for vertex, weight in corners], 0)


def piecewise_affine_grid_backward(
    d_grid: Array,
    theta: ArrayLike,
    size: tuple[int, int],
    align_corners: bool = False,
    mesh: tuple[int, int] = (4, 4),
    *,
    magnitude: bool = False,
) -> Array:
    """d_theta of `piecewise_affine_grid`, whose weights are not negative."""
    d_theta = np.zeros(np.shape(theta))
    for vertex, weight in mesh_corners(size, align_corners, mesh):
        place: Any = np.index_exp[:, vertex]
        np.add.at(d_theta, place, weight[..., None] * d_grid)
    return d_theta


def flow_grid(theta: ArrayLike, size: tuple[int, int], align_corners: bool = False) -> Array:
    """(u, v) = (x, y) + theta: displacements (N, h, w, 2) in normalised coordinates."""
    return target_points(size, align_corners) + np.asarray(theta, np.float64)


def flow_grid_backward(d_grid: Array, *args: Any, **options: Any) -> Array:
    """d_theta of `flow_grid`."""
    return d_grid


GridPair = tuple[Callable[..., Array], Callable[..., Array]]


def expansion(basis: Callable[[Array, Array], Array]) -> GridPair:
    """The grid theta B, and its backward, of theta (N, 2, K) and a basis that makes (K, h, w) from x and y (h, w)."""

    def grid(theta: ArrayLike, size: tuple[int, int], align_corners: bool = False) -> Array:
        x, y = np.moveaxis(target_points(size, align_corners), -1, 0)
        return np.einsum("nrk,khw->nhwr", np.asarray(theta, np.float64), basis(x, y))

    def backward(
        d_grid: Array,
        theta: ArrayLike,
        size: tuple[int, int],
        align_corners: bool = False,
        *,
        magnitude: bool = False,
    ) -> Array:
        x, y = np.moveaxis(target_points(size, align_corners), -1, 0)
        values = np.nan_to_num(basis(x, y), nan=0, posinf=0, neginf=0)  # there d_grid is 0
        return np.einsum("nhwr,khw->nrk", d_grid, np.abs(values) if magnitude else values)

    return grid, backward


GRIDS: dict[str, GridPair] = {
    "attention": (attention_grid, attention_grid_backward),
    "affine": (affine_grid, affine_grid_backward),
    "projective": (projective_grid, projective_grid_backward),
    "homography": (projective_grid, projective_grid_backward),
    "tps": (tps_grid, tps_grid_backward),
    "piecewise_affine": (piecewise_affine_grid, piecewise_affine_grid_backward),
    "flow": (flow_grid, flow_grid_backward),
}


def _pair(transform: str | GridPair) -> GridPair:
    return GRIDS[transform] if isinstance(transform, str) else transform


def _points(
    transform: str | GridPair, theta: Array, batch: int, size: tuple[int, int], align_corners: bool
) -> tuple[Any, Any]:
    """The grid of a whole batch, points that are not finite replaced, and where they are finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        grid = _pair(transform)[0](np.broadcast_to(theta, (batch, *theta.shape[1:])), size, align_corners)
    finite = np.asarray(np.isfinite(grid).all(-1))
    return np.where(finite[..., None], grid, 0.0), finite


def transform_sample(
    transform: str | GridPair,
    image: ArrayLike,
    theta: ArrayLike,
    size: tuple[int, int] | None = None,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
    fill: ArrayLike = 0.0,
) -> Array:
    """The spatial transformer: theta, of batch N or 1, applied to the image; 0 (or the fill) at points not finite.

    ``transform`` is a name in `GRIDS`, or what `expansion` gives.
    """
    image, theta = np.asarray(image, np.float64), np.asarray(theta, np.float64)
    grid, finite = _points(transform, theta, image.shape[0], size or image.shape[-2:], align_corners)
    outside = _filled(fill, image.shape) if padding_mode == "fill" else 0.0
    return np.where(finite[:, None], grid_sample(image, grid, mode, padding_mode, align_corners, fill), outside)


def transform_sample_backward(
    transform: str | GridPair,
    d_out: ArrayLike,
    image: ArrayLike,
    theta: ArrayLike,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
    fill: ArrayLike = 0.0,
    *,
    magnitude: bool = False,
) -> tuple[Array, Array]:
    """(d_image, d_theta) of `transform_sample`; a broadcast theta sums over the batch."""
    d_out, image, theta = (np.asarray(a, np.float64) for a in (d_out, image, theta))
    batch, size = image.shape[0], d_out.shape[-2:]
    grid, finite = _points(transform, theta, batch, size, align_corners)
    d_out = np.where(finite[:, None], d_out, 0.0)
    options = mode, padding_mode, align_corners, fill
    d_image, d_grid = grid_sample_backward(d_out, image, grid, *options, magnitude=magnitude)
    each = np.broadcast_to(theta, (batch, *theta.shape[1:]))
    d_theta = _pair(transform)[1](d_grid, each, size, align_corners, magnitude=magnitude)
    return d_image, d_theta if theta.shape[0] == batch else d_theta.sum(0, keepdims=True)


def affine_sample(image: ArrayLike, theta: ArrayLike, *args: Any, **options: Any) -> Array:
    """`transform_sample` by theta (N or 1, 2, 3)."""
    return transform_sample("affine", image, theta, *args, **options)


def affine_sample_backward(
    d_out: ArrayLike, image: ArrayLike, theta: ArrayLike, *args: Any, **options: Any
) -> tuple[Array, Array]:
    """(d_image, d_theta) of `affine_sample`."""
    return transform_sample_backward("affine", d_out, image, theta, *args, **options)
