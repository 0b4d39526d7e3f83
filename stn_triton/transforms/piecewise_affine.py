"""Piecewise affine: (u, v) = (x, y) + d(x, y), d a sum of hats over the vertices of a regular triangulated mesh.

A hat is 1 at its vertex, 0 at all others, and affine on every triangle: a point sees the three vertices around it. In
a cell whose corners are (0, 0) to (1, 1), split from top left to bottom right, the hats at (a, b) are 1 - max(a, b) of
the top left vertex, min(a, b) of the bottom right one, max(a - b, 0) of the top right and max(b - a, 0) of the bottom
left. The kernels read displacements (gh, gw, 2), so that the identity is exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..caches import BoundedCache
from ..checks import check_size
from ..kernels.coordinates import centre_of, finite, floor
from ..kernels.language import constexpr, jit, tl
from ..torch_sampler import is_bounded
from ..tracing import is_plain
from .base import normalised, target_axis
from .kept_basis import PointTransform

# --- device -----------------------------------------------------------------------------------------------


@jit
def piecewise_load(theta, strides, sizes, axes, ACC: constexpr, INDEX: constexpr):
    """Where this sample's displacements lie, (gh, gw, 2) without gaps, read at every pixel; and the mesh's axes."""
    gh, gw = sizes
    axis_x, axis_y = axes
    _, _, _, pitch_x, _, _ = axis_x
    _, _, _, pitch_y, _, _ = axis_y
    half_x, half_y = (gw - 1).to(ACC) * 0.5, (gh - 1).to(ACC) * 0.5
    return theta, gh, gw, half_x, half_y, pitch_x * half_x, pitch_y * half_y


@jit
def cell_of(t, rate, middle):
    """(cell, place in it) along an axis, t target pixels from the centre. The outermost cells go on."""
    at = tl.fma(t, rate, middle)
    cell, index = floor(tl.minimum(tl.maximum(at, 0.0), 2 * middle - 1))
    return index.to(tl.int32), at - cell


@jit
def hats_in_cell(a, b):
    """Returns (whether the point is in the upper triangle, the hats of its three vertices).

    The first vertex is top left, the third bottom right, the second top right (upper) or bottom left (lower).
    """
    upper = a > b
    high, low = tl.where(upper, a, b), tl.where(upper, b, a)
    return upper, 1 - high, high - low, low


@jit
def piecewise_source(state, row, column, live, x, y, axes):
    """The displaced point, in pixels, from three vertices; where it is not finite it reads nothing."""
    theta, _, gw, middle_x, middle_y, rate_x, rate_y = state
    axis_x, axis_y = axes
    half_x, centre_x, ratio_x, _, _, _ = axis_x
    half_y, centre_y, ratio_y, _, _, _ = axis_y
    cell_x, a = cell_of(x, rate_x, middle_x)
    cell_y, b = cell_of(y, rate_y, middle_y)
    upper, hat_1, hat_2, hat_3 = hats_in_cell(a, b)
    to_next_row = 2 * gw
    first = cell_y * to_next_row + 2 * cell_x
    first, second, third = (
        theta + first, theta + (first + tl.where(upper, 2, to_next_row)), theta + (first + (to_next_row + 2)),
    )  # fmt: skip
    d_x, d_y = tl.load(first).to(a.dtype) * hat_1, tl.load(first + 1).to(a.dtype) * hat_1
    d_x = tl.fma(tl.load(second).to(a.dtype), hat_2, d_x)
    d_y = tl.fma(tl.load(second + 1).to(a.dtype), hat_2, d_y)
    d_x = tl.fma(tl.load(third).to(a.dtype), hat_3, d_x)
    d_y = tl.fma(tl.load(third + 1).to(a.dtype), hat_3, d_y)
    u, v = tl.fma(d_x, half_x, tl.fma(ratio_x, x, centre_x)), tl.fma(d_y, half_y, tl.fma(ratio_y, y, centre_y))
    return u, v, finite(live, u, v)


@jit
def most_that_meet(n, cells, SPAN: constexpr, block):
    """`most_blocks_that_meet`, on the device."""
    return tl.minimum((n - 1) // block + 1, SPAN * n // (cells * block) + 2)


@jit
def piecewise_start(state, d_theta, part, row, rows, column, sizes, ACC: constexpr):
    """A lane walks down one column: eight sums, of the vertices around it, and where they will be written.

    Above the pixel (left u, left v, right u, right v) and below. The buffer is that of `partials_shape`.
    """
    _, gh, gw, middle_x, middle_y, rate_x, rate_y = state
    h, w, _, _ = sizes
    y = row.to(ACC) - centre_of(h, ACC)
    cell_y, _ = cell_of(y, rate_y, middle_y)
    cell_x, a = cell_of(column.to(ACC) - centre_of(w, ACC), rate_x, middle_x)
    in_a_cell = most_that_meet(w, gw - 1, 1, 1)
    at_a_vertex = most_that_meet(h, gh - 1, 2, rows)
    to_next_block = (gw - 1) * in_a_cell * 4
    to_next_vertex = at_a_vertex * to_next_block.to(tl.int64)
    place = d_theta + part * gh * to_next_vertex + row // rows % at_a_vertex * to_next_block.to(tl.int64)
    lane = tl.where(column < w, (cell_x * in_a_cell + column % in_a_cell) * 4, -1)
    zero = tl.zeros(column.shape, ACC)
    sums = (zero, zero, zero, zero)
    return y, cell_y, (cell_y + 1).to(ACC), a, (place, to_next_vertex, lane), sums, sums


@jit
def write_sums(place, vertex, sums, axes):
    """Writes the sums of a row of vertices, which no other lane nor program writes there."""
    first, to_next_vertex, lane = place
    half_x, half_y = axes[0][0], axes[1][0]
    at = first + vertex * to_next_vertex + lane
    left_u, left_v, right_u, right_v = sums
    tl.store(at, left_u * half_x, mask=lane >= 0)
    tl.store(at + 1, left_v * half_y, mask=lane >= 0)
    tl.store(at + 2, right_u * half_x, mask=lane >= 0)
    tl.store(at + 3, right_v * half_y, mask=lane >= 0)


@jit
def add_to_sums(sums, left, right, d_left_u, d_left_v, d_right_u, d_right_v):
    """Adds the gradients of two horizontally adjacent vertices, weighted by their hats ``left`` and ``right``."""
    left_u, left_v, right_u, right_v = sums
    return (
        tl.fma(d_left_u, left, left_u),
        tl.fma(d_left_v, left, left_v),
        tl.fma(d_right_u, right, right_u),
        tl.fma(d_right_v, right, right_v),
    )


@jit
def piecewise_adjoint(partial, state, d_theta, part, row, column, live, x, y, sizes, d_u, d_v, axes):
    """Adds a row of pixels; first, where it is in another row of cells than the last, writes what that has left behind.

    All lanes are in one row, so that a branch may say so, by a scalar.
    """
    _, _, _, _, middle_y, _, rate_y = state
    scalar_y, vertex, edge, a, place, above, below = partial
    if (tl.fma(scalar_y, rate_y, middle_y) >= edge) & (edge < 2 * middle_y):
        cell, _ = cell_of(scalar_y, rate_y, middle_y)
        write_sums(place, vertex, above, axes)
        zero = tl.zeros(a.shape, a.dtype)
        if cell > vertex + 1:  # a cell that has no pixels
            write_sums(place, vertex + 1, below, axes)
            above = (zero, zero, zero, zero)
        else:
            above = below
        below = (zero, zero, zero, zero)
        vertex, edge = cell, (cell + 1).to(a.dtype)
    _, b = cell_of(y, rate_y, middle_y)
    upper, hat_1, hat_2, hat_3 = hats_in_cell(a, b)
    # A pixel reads three of its cell's four vertices; the fourth must not see a gradient that is not finite.
    upper_u, upper_v = tl.where(upper, d_u, 0.0), tl.where(upper, d_v, 0.0)
    lower_u, lower_v = tl.where(upper, 0.0, d_u), tl.where(upper, 0.0, d_v)
    above = add_to_sums(above, hat_1, hat_2, d_u, d_v, upper_u, upper_v)
    below = add_to_sums(below, hat_2, hat_3, lower_u, lower_v, d_u, d_v)
    return scalar_y + 1, vertex, edge, a, place, above, below


@jit
def piecewise_store(partial, state, d_theta, x, axes):
    """The sums of the vertices around the last row."""
    _, vertex, _, _, place, above, below = partial
    write_sums(place, vertex, above, axes)
    write_sums(place, vertex + 1, below, axes)


# --- host -------------------------------------------------------------------------------------------------


def most_blocks_that_meet(n: int, cells: int, span: int, block: int) -> int:
    """How many blocks of so many pixels of an axis of n can meet ``span`` neighbours of its cells.

    One pixel more than span / cells of the axis holds, since rounding decides where one on a line between cells lies.
    """
    return min((n - 1) // block + 1, span * n // (cells * block) + 2)


class PiecewiseAffine(PointTransform):
    """theta (N, gh * gw, 2): where the vertices of a mesh lie in the image, (u, v), row by row.

    The mesh is regular, its corners those of the square [-1, 1] x [-1, 1] of target points, whatever align_corners.
    Each of its cells is split from top left to bottom right, and each triangle goes by the affine map of its vertices.

    Backward every lane keeps sums of its column alone, and writes them where column and vertices meet: four numbers
    for every column and vertex row that a program passes, which the host adds up. For a 4 x 4 mesh and outputs of 256 x
    256 they are 0.22 of a sampling grid (of 1024 x 1024 a tenth), for 16 x 16 two fifths, and as many as one where
    cells are some six pixels across; for few pixels of many channels, so many for every block of channels.

    Args:
        mesh: (gh, gw), vertices in a column and in a row, at least 2.

    Raises:
        TypeError, ValueError: a mesh that is not two whole numbers of at least 2.
    """

    name = "piecewise_affine"
    layout = "(N, gh * gw, 2)"
    load, source = piecewise_load, piecewise_source
    start, adjoint, store = piecewise_start, piecewise_adjoint, piecewise_store
    partials_begin_as_zeros = True
    walks_columns = True
    #: A hat is 0 almost everywhere: of more vertices three are gathered sooner (two cores, 64 x 64 pixels).
    most_points = 512

    def __init__(self, mesh: Sequence[int] = (4, 4)) -> None:
        self.mesh = check_size(mesh, "mesh", 2)

    def settings(self):
        return (self.mesh,)

    def __repr__(self) -> str:
        return f"PiecewiseAffine({self.mesh})"

    def parameter_shape(self, size):
        gh, gw = self.mesh
        return (gh * gw, 2)

    def identity(self, size=(1, 1), *, align_corners=False, dtype=None, device=None):
        y, x = ([normalised(k, count, True) for k in range(count)] for count in self.mesh)
        vertices = [(u, v) for v in y for u in x]
        return torch.tensor(vertices, dtype=dtype or torch.get_default_dtype(), device=device)

    def displacement(self, theta, dtype):
        return theta.to(dtype) - self._vertices(theta)

    def coefficients(self, theta, dtype):
        """(N, gh, gw, 2), contiguous: displacements."""
        return self.displacement(theta, dtype).contiguous().unflatten(-2, self.mesh)

    def functions_at(self, xy):
        """The hats."""
        hats = torch.zeros(self.mesh[0] * self.mesh[1], len(xy), dtype=xy.dtype, device=xy.device)
        for vertex, weight in _corners(self.mesh, *xy.unbind(-1)):
            hats[vertex, torch.arange(len(xy), device=xy.device)] = weight
        return hats

    def grid_of(self, coefficients, size, align_corners=False):
        y, x = (target_axis(n, align_corners, coefficients) for n in size)
        return torch.stack([x.expand(size), y[:, None].expand(size)], -1) + _blended(coefficients, x, y[:, None])

    def displacement_gradient(self, d_grid, functions, size, align_corners):
        if is_bounded(d_grid):
            return super().displacement_gradient(d_grid, functions, size, align_corners)
        # The hats of vertices that a pixel does not read are 0, and 0 * inf would be NaN.
        with torch.enable_grad():
            vectors = functions.new_zeros(len(d_grid), *self.mesh, 2, requires_grad=True)
            y, x = (target_axis(n, align_corners, functions) for n in size)
            blended = _blended(vectors, x, y[:, None])
        gradient = torch.autograd.grad(blended, vectors, d_grid, create_graph=torch.is_grad_enabled())[0]
        return gradient.reshape(len(d_grid), -1, 2)

    def points_of(self, coefficients, xy, align_corners=False):
        """Beyond the mesh the maps of its outermost triangles go on."""
        x, y = (t if t.dim() == 1 else t[:, None] for t in xy.unbind(-1))
        return xy + _blended(coefficients, x, y)

    def partials_shape(self, batch, size, blocks):
        (gh, gw), (h, w) = self.mesh, size
        in_a_cell = most_blocks_that_meet(w, gw - 1, 1, 1)
        at_a_vertex = most_blocks_that_meet(h, gh - 1, 2, blocks.rows)
        return (batch, blocks.channel_blocks[0], gh, at_a_vertex, gw - 1, in_a_cell, 2, 2)

    def sum_partials(self, partials):
        by_side = partials.sum((1, 3, 5), dtype=torch.float64)
        left, right = by_side.unbind(3)  # (N, gh, gw - 1, 2), of the vertices beside each cell
        return F.pad(left, (0, 0, 0, 1)) + F.pad(right, (0, 0, 1, 0))

    def _vertices(self, theta: Tensor) -> Tensor:
        """(gh * gw, 2), of theta's dtype and device."""

        def make() -> Tensor:
            with torch.inference_mode(False):
                return self.identity(dtype=theta.dtype, device=theta.device)

        return _vertices.get((self.mesh, theta.dtype, theta.device), make) if is_plain(theta) else make()


#: Vertices of the most recently used meshes, per dtype and device.
_vertices: BoundedCache[Tensor] = BoundedCache(
    max_entries=64, max_bytes=2**24, bytes_of=lambda vertices: vertices.nbytes
)


def _cell(t: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """(cell, place in it) of normalised coordinates along an axis of the mesh; of NaN any cell."""
    at = (t + 1) * (cells / 2)
    cell = at.detach().nan_to_num(0.0).floor().clamp(0, cells - 1)
    return cell.long(), at - cell


def _corners(mesh: tuple[int, int], x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(vertex, weight) of the three vertices around points x, y, by broadcasting."""
    gh, gw = mesh
    (column, a), (row, b) = _cell(x, gw - 1), _cell(y, gh - 1)
    upper = a > b
    high, low = torch.where(upper, a, b), torch.where(upper, b, a)
    first = row * gw + column
    return [(first, 1 - high), (first + torch.where(upper, 1, gw), high - low), (first + gw + 1, low)]


def _blended(vectors: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(N, ..., 2): vectors of a mesh (N, gh, gw, 2) at points x, y that broadcast to (h, w) or (P,), or (N, 1, P)."""
    planes = vectors.flatten(1, 2).transpose(1, 2).contiguous()  # (N, 2, gh * gw): a gather of rows is the fastest

    def at(vertex: Tensor) -> Tensor:
        if vertex.dim() == 3:
            return torch.take_along_dim(planes, vertex, -1)
        return planes.index_select(-1, vertex.flatten()).unflatten(-1, vertex.shape)

    mesh = vectors.shape[1], vectors.shape[2]
    first, second, third = (at(vertex) * weight for vertex, weight in _corners(mesh, x, y))
    return (first + second + third).movedim(1, -1)
