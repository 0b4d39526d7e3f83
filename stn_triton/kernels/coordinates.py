"""Pixel coordinates on the device: an axis, rounding, conversion to indices, and the padding rules.

A padding rule maps a pixel coordinate t of an axis of n pixels to ``(t, slope, known)``: the coordinate to
sample at, always finite, its derivative, and whether it is a number at all. Comparisons, not min and max,
decide, since only they treat NaN alike on every target.
"""

from __future__ import annotations

from .language import constexpr, jit, tl


@jit
def axis_frame(n, ratio, pitch, inverse, ALIGN_CORNERS: constexpr, ACC: constexpr):
    """One axis of the image in pixel space, as ACC scalars: (half, centre, ratio, pitch, n, inverse).

    A source pixel is centre + half * u. The identity maps the target pixel at distance x from the centre to
    centre + ratio * x. pitch is the distance of target pixels in normalised units; inverse the reciprocal of
    the extent, n or n - 1. Divisions by a size are the host's: on the device they are not exactly rounded.
    """
    n = n.to(ACC)
    half = (n - 1) * 0.5 if ALIGN_CORNERS else n * 0.5
    centre = (n - 1) * 0.5
    return half, centre, tl.full([], ratio, ACC), tl.full([], pitch, ACC), n, tl.full([], inverse, ACC)


@jit
def centre_of(n, ACC: constexpr):
    """The middle of n target pixels, and the distance of the last one from it."""
    return (n - 1).to(ACC) * 0.5


@jit
def finite(live, u, v):
    """The live lanes whose points are numbers: at any other a transform by theta reads nothing."""
    return live & (tl.abs(u) < float("inf")) & (tl.abs(v) < float("inf"))


@jit
def smallest(a, b, c, d):
    """The least of four, NaN if one of them is."""
    NAN: constexpr = tl.PropagateNan.ALL
    return tl.minimum(tl.minimum(a, b, propagate_nan=NAN), tl.minimum(c, d, propagate_nan=NAN), propagate_nan=NAN)


@jit
def largest(a, b, c, d):
    """The greatest of four, NaN if one of them is."""
    NAN: constexpr = tl.PropagateNan.ALL
    return tl.maximum(tl.maximum(a, b, propagate_nan=NAN), tl.maximum(c, d, propagate_nan=NAN), propagate_nan=NAN)


@jit
def round_half_even(t):
    """The nearest integer, ties to even, and the same as an index; |t| < 2^22 (float32) or 2^51 (float64).

    Adding 1.5 * 2^23 (1.5 * 2^52) leaves no bit for a fraction, and the low bits of the sum are the integer:
    no conversion instruction, which GPUs issue at a quarter of the rate.
    """
    if t.dtype == tl.float64:
        shifted = t + 6755399441055744.0
        return shifted - 6755399441055744.0, shifted.to(tl.int64, bitcast=True) - 0x4338000000000000
    else:
        shifted = t + 12582912.0
        return shifted - 12582912.0, shifted.to(tl.int32, bitcast=True) - 0x4B400000


@jit
def floor(t):
    """The largest integer <= t, and the same as an index; bounds as in `round_half_even`."""
    rounded, index = round_half_even(t)
    above = rounded > t
    return tl.where(above, rounded - 1, rounded), tl.where(above, index - 1, index)


@jit
def zeros(t, n, inverse_span, ALIGN_CORNERS: constexpr):
    """Padding by zeros: taps outside are masked; what cannot become an index goes far outside, as in PyTorch."""
    known = tl.abs(t) < 4194304.0 if t.dtype == tl.float32 else tl.abs(t) < 2251799813685248.0
    return tl.where(known, t, -100.0), 1.0, known


@jit
def border(t, n, inverse_span, ALIGN_CORNERS: constexpr):
    """Padding by the edge pixel: clip to [0, n-1]; slope 0 at and beyond the edges."""
    known = t == t
    inside = (t > 0) & (t < n - 1)
    t = tl.where(t > 0, tl.where(t < n - 1, t, n - 1), 0.0)
    return tl.where(known, t, 0.0), tl.where(inside, 1.0, 0.0).to(t.dtype), known


@jit
def reflection(t, n, inverse_span, ALIGN_CORNERS: constexpr):
    """Padding by mirror images about the outer pixel centres (align_corners) or pixel edges, then clipped.

    ``inverse_span`` is the reciprocal of the distance between the mirrors, 0 where they coincide; an inexact
    quotient moves a point only between two mirror images that agree to rounding.
    """
    low: constexpr = 0.0 if ALIGN_CORNERS else -0.5
    span = n - 1 if ALIGN_CORNERS else n
    from_low = t - low
    distance = tl.abs(from_low)
    flips = tl.floor(distance * inverse_span)
    extra = tl.fma(-flips, span, distance)
    odd = flips - 2 * tl.floor(flips * 0.5) == 1
    # Inside the image exactly t: there and back again would round, and a tile without bounds checks does not go.
    inside = (t > 0) & (t < n - 1)
    mirrored = tl.where(inside, t, tl.where(odd, span - extra, extra) + low)
    turned = (from_low < 0) != odd
    mirrored, slope, known = border(mirrored, n, inverse_span, ALIGN_CORNERS)
    return mirrored, tl.where(turned & ~inside, -slope, slope), known
