"""Sums of floats that no order changes: of whole numbers, which add up exactly.

Let n be the taps that can fall on one pixel, those of all target pixels that read its plane, and BITS = 62 - log2 n,
rounded down; let all |d_out| of the plane be below 2^e. A contribution v becomes two numbers of 64 bits:

    whole = round(v 2^(BITS - e)),    rest = round((v 2^(BITS - e) - whole) 2^BITS)

Only the last step loses anything, at most 2^(e - 2 BITS - 1) of each contribution: for a million bilinear target
pixels 2^-80 of the largest |d_out|. Scaling by powers of two is exact, but for numbers so small that they become 0 here
anyway, and so is the difference, which is at most 1/2.

Nothing overflows. No weight is above 1 but for its rounding, so that |whole| <= 2^BITS (1 + 2^-22) + 1, and n of them
are below 2^62 (1 + 2^-22) + n < 2^63; |rest| <= 2^(BITS - 1), and n of them are at most 2^61.
"""

from __future__ import annotations

from .coordinates import round_half_even
from .language import constexpr, jit, tl
from .samplers import pointer


@jit
def power_of_two(exponent, ACC: constexpr):
    """2^exponent, put together from bits: -126 to 127, or -1022 to 1023."""
    if tl.float64 == ACC:
        return ((exponent + 1023).to(tl.int64) << 52).to(tl.float64, bitcast=True)
    else:
        return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@jit
def exponent_above(peak):
    """The e of peak < 2^e, from the bits of a float that is not negative."""
    if peak.dtype == tl.float64:
        return ((peak.to(tl.int64, bitcast=True) >> 52) & 2047).to(tl.int32) - 1022
    else:
        return ((peak.to(tl.int32, bitcast=True) >> 23) & 255) - 126


@jit
def scales_of(peak, bits, ACC: constexpr):
    """(two factors of 2^(BITS - e), 2^BITS): in one factor the first could be beyond the float's range."""
    exponent = bits - exponent_above(peak)
    half = exponent >> 1
    return power_of_two(half, ACC), power_of_two(exponent - half, ACC), power_of_two(bits, ACC)


@jit
def nearest_whole(value):
    """A whole number at most 1/2 away, as a float; what has no bit for less than a half goes down."""
    small = tl.abs(value) < (2251799813685248.0 if value.dtype == tl.float64 else 4194304.0)
    rounded, _ = round_half_even(tl.where(small, value, 0.0))
    return tl.where(small, rounded, tl.floor(value))


@jit
def split(value, scales):
    """(whole, rest) of a value; (0, 0) of one that is not finite: `join` knows."""
    value = tl.where(tl.abs(value) < float("inf"), value, 0.0) * scales[0] * scales[1]
    whole = nearest_whole(value)
    return whole.to(tl.int64), nearest_whole((value - whole) * scales[2]).to(tl.int64)


@jit
def join(whole, rest, peak, bits):
    """The float that sums of both stand for, of the peak's dtype; NaN if a |d_out| of the plane was not finite."""
    exponent = exponent_above(peak) - bits
    half = exponent >> 1
    high = ((whole + 2147483648) >> 32) << 32  # the nearest: a small sum of either sign has none
    rest = tl.fma(rest.to(tl.float64), power_of_two(-bits, tl.float64), (whole - high).to(tl.float64))
    value = high.to(tl.float64) + rest
    value = value * power_of_two(half, tl.float64) * power_of_two(exponent - half, tl.float64)
    return tl.where(peak < float("inf"), value, float("nan")).to(peak.dtype)


@jit
def scatter_exactly(wholes, rests, origin, taps, stride_h, stride_w, d_value, scales):
    """`samplers.scatter` to whole numbers; rests lie ``rests`` elements after their wholes, and mostly are 0."""
    for k in tl.static_range(len(taps)):
        _, _, weight, _, _, inside = taps[k]
        whole, rest = split(weight * d_value, scales)
        place, inside = pointer(wholes, origin, taps[k], stride_h, stride_w), inside & (weight != 0)
        tl.atomic_add(place, whole, mask=inside, sem="relaxed")
        tl.atomic_add(place + rests, rest, mask=inside & (rest != 0), sem="relaxed")
