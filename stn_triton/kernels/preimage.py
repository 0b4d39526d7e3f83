"""Which target pixels can read a pixel of the image: boxes, for transforms that have an inverse.

Three device functions of a transform make them:

- ``inverse(state, sizes, axes, RADIUS_X, RADIUS_Y, ACC) -> (numbers, candidates)``, once per sample: what the others
  take, and how many target pixels a box has at most, as a float: infinity where there are no boxes, because the map is
  singular, too large, not finite, or has a horizon in the image;
- ``box(numbers, column, row) -> (left, right, top, bottom)`` of places in the image, or RADIUS_Y - RADIUS_X below it:
  bounds of the target pixels, in pixels from the middle of the output, whose points lie within RADIUS_X of the column
  and RADIUS_Y of the row. A sampler's radius makes the box of a pixel; half a row more, between two, that of both;
- ``extent(numbers, first_column, last_column, first_row, last_row) -> (width, height)``: no box of these places is
  larger.

Every point *as it is computed* lies in the boxes: they are wide enough for all roundings, the forward pass's and their
own. That a box is too wide costs time alone, since each target pixel in it is mapped again and asked.
"""

from __future__ import annotations

from .coordinates import floor
from .language import constexpr, jit, tl

#: Coefficients of a map beyond this, determinants below its inverse squared: its sums and products could overflow.
LARGEST: constexpr = constexpr(1e15)


@jit
def slack_of(ACC: constexpr):
    """What a few roundings of a sum amount to, relative to the sum of its terms' magnitudes: 16 ulp."""
    return 3.6e-15 if tl.float64 == ACC else 1.9e-6


@jit
def determinant(a, b, c, d):
    """a d - b c to two ulp (Kahan's; Jeannerod, Louvet and Muller, 2013), but for underflow.

    Where a product and a sum are fused: Triton's interpreter rounds both, and has the plain difference.
    """
    product = b * c
    return tl.fma(a, d, -product) + tl.fma(-b, c, product)


@jit
def pixels_in(width, n, ACC: constexpr):
    """How many of an axis of n target pixels an interval of that width has at most, as a float."""
    most = tl.floor(width) + 1
    return tl.where(most < n.to(ACC), most, n.to(ACC))


@jit
def first_pixel(low, last):
    """The first target pixel from ``low`` on, from the middle of its axis, and as an index; clipped before it is one.

    ``last`` is the last pixel's distance from the middle.
    """
    low += last
    low = tl.where(low > 0, tl.where(low <= 2 * last, low, 2 * last + 1), 0.0)
    minus, index = floor(-low)
    return -minus - last, -index


@jit
def meets(numbers, first_column, last_column, first_row, last_row, last_x, last_y, BOX: constexpr):
    """Whether a box of these places in the image has target pixels: if not, none of their boxes' hull has.

    Lines stay lines, so that the hull is that of the boxes at the four corners.
    """
    left, right, top, bottom = BOX(numbers, first_column, first_row)
    for k in tl.static_range(1, 4):
        l, r, t, b = BOX(numbers, last_column if k % 2 else first_column, last_row if k // 2 else first_row)  # noqa: E741
        left, right = tl.minimum(left, l), tl.maximum(right, r)
        top, bottom = tl.minimum(top, t), tl.maximum(bottom, b)
    return (left <= last_x) & (right >= -last_x) & (top <= last_y) & (bottom >= -last_y)
