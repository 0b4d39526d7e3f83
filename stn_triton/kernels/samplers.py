"""Sampling kernels k(.) of the paper, one axis at a time, and the taps that two axes make: which pixels a point reads.

A sampler maps coordinates t on an axis of n pixels to ``(first, taps, slope, known)``: the pixel that taps are counted
from; for each tap ``(step, weight, d_weight, inside)``, the pixel first + step, k(t - pixel), its derivative, and
whether there is such a pixel; then the slope of the padding rule, by which derivatives are multiplied, and whether t is
a number. Where a tile lies wholly inside the image (``not MASKED``) there is no padding, and nothing is tested.

The ``weight_at`` functions serve the adjoint: they map coordinates t and one pixel to ``(weight, reads)``, the weight
k(t - pixel) and whether it is nonzero. No tap lies farther than a sampler's radius from t.

Because 0 * inf is NaN, a zero weight never means "not read": taps outside the image are masked by ``inside``, and no
image gradient goes to a tap of weight 0. Only bicubic multiplies d_out by zeros outside, as PyTorch's CUDA kernel does
(see the table in `stn_triton.reference`).

`taps_of` forms the products: ``(down, right, weight, weight_dx, weight_dy, inside)``, the pixel (i + down, j + right).
They are computed once per pixel; `read`, `multiply` and `scatter` then visit them for every channel.
"""

from __future__ import annotations

from .coordinates import floor, round_half_even, zeros
from .language import constexpr, jit, tl

#: Taps up to which a lane keeps what each has loaded, and a sum for each: sixteen would fill the registers.
FEW: constexpr = constexpr(4)


@jit
def inside_axis(index, n):
    """0 <= index < n, as one unsigned comparison."""
    return index.to(tl.uint32) < n.to(tl.uint32) if index.dtype == tl.int32 else (index >= 0) & (index < n)


@jit
def nearest(t, n, axis, PAD: constexpr, ALIGN_CORNERS: constexpr, MASKED: constexpr):
    """Eq. 4 of the paper, ties to even; no derivative in the coordinate."""
    slope, known, inside = 1.0, True, True
    if MASKED:
        t, slope, known = PAD(t, axis[4], axis[5], ALIGN_CORNERS)
    t, j = round_half_even(t)
    if MASKED:
        inside = inside_axis(j, n)
    return j, ((0, tl.full(t.shape, 1.0, t.dtype), tl.zeros(t.shape, t.dtype), inside),), slope, known


@jit
def nearest_weight_at(t, pixel):
    """The weight is 1 at the pixel that `nearest` rounds to, which is the only tap."""
    rounded, _ = round_half_even(t)
    return tl.full(t.shape, 1.0, t.dtype), rounded == pixel


@jit
def bilinear(t, n, axis, PAD: constexpr, ALIGN_CORNERS: constexpr, MASKED: constexpr):
    """Eq. 5 of the paper. At an integer coordinate the derivative is U[j+1] - U[j], as in PyTorch."""
    slope, known, in_low, in_high = 1.0, True, True, True
    if MASKED:
        t, slope, known = PAD(t, axis[4], axis[5], ALIGN_CORNERS)
    below, j = floor(t)
    high = t - below
    if MASKED:
        in_low, in_high = inside_axis(j, n), inside_axis(j + 1, n)
    return j, ((0, 1 - high, -1.0, in_low), (1, high, 1.0, in_high)), slope, known


@jit
def bilinear_weight_at(t, pixel):
    """The weight is 1 - |t - pixel|, or 0 where that is negative."""
    weight = 1 - tl.abs(t - pixel)
    return weight, weight > 0


@jit
def cubic_near(s):
    """The cubic kernel at a distance s from 0 to 1."""
    return tl.fma(tl.fma(s, 1.25, -2.25), s * s, 1.0)


@jit
def cubic_far(s, r):
    """The cubic kernel at a distance from 1 to 2, which is 1 + s = 2 - r."""
    return -0.75 * s * r * r


@jit
def bicubic(t, n, axis, PAD: constexpr, ALIGN_CORNERS: constexpr, MASKED: constexpr):
    """Cubic convolution over four pixels (Keys, 1981) with A = -0.75, as in PyTorch.

    Weights are those of the coordinate itself: padding moves each tap by itself, and has no slope. A coordinate too
    large to have a fraction is padded once for all four taps, and has zero derivative.
    """
    slope, known = 1.0, True
    if MASKED:
        padded, _, known = PAD(t, axis[4], axis[5], ALIGN_CORNERS)
        near = tl.abs(t) < (2251799813685248.0 if t.dtype == tl.float64 else 4194304.0)
        t, slope = tl.where(near, t, padded), tl.where(near, 1.0, 0.0).to(t.dtype)
    below, j = floor(t)
    s = t - below
    r = 1 - s
    weights = (cubic_far(s, r), cubic_near(s), cubic_near(r), cubic_far(r, s))
    slopes = (
        -0.75 * r * tl.fma(s, -3.0, 1.0), tl.fma(s, 3.75, -4.5) * s,
        tl.fma(r, -3.75, 4.5) * r, -0.75 * s * tl.fma(s, -3.0, 2.0),
    )  # fmt: skip
    taps = ()
    if MASKED and PAD is not zeros:
        for k in tl.static_range(4):
            tap, _, _ = PAD(tl.where(near, below + (k - 1), below), axis[4], axis[5], ALIGN_CORNERS)
            _, step = round_half_even(tap)
            taps += ((step, weights[k], slopes[k], True),)
        return tl.zeros(j.shape, j.dtype), taps, slope, known
    else:  # at fixed distances from each other
        for k in tl.static_range(4):
            taps += ((k, weights[k], slopes[k], inside_axis(j + (k - 1), n) if MASKED else True),)
        return j - 1, taps, slope, known


@jit
def bicubic_weight_at(t, pixel):
    """The weight is the cubic kernel, 0 from a distance of 2 on."""
    rest = 2 - tl.abs(t - pixel)
    rest = tl.where(rest > 0, rest, 0.0)
    weight = tl.where(rest > 1, cubic_near(2 - rest), cubic_far(1 - rest, rest))
    return weight, weight != 0


@jit
def taps_of(taps_x, taps_y, seen, MASKED: constexpr):
    """The taps of a point from those of its two axes; ``seen`` are the lanes that may touch any."""
    taps = ()
    for r in tl.static_range(len(taps_y)):
        down, weight_y, slope_y, inside_y = taps_y[r]
        inside_y = seen & inside_y if MASKED else seen
        for c in tl.static_range(len(taps_x)):
            right, weight_x, slope_x, inside_x = taps_x[c]
            inside = inside_y & inside_x if MASKED else inside_y
            taps += ((down, right, weight_y * weight_x, weight_y * slope_x, slope_y * weight_x, inside),)
    return taps


@jit
def coverage_of(taps):
    """The weight inside the axis, exactly 1 if all taps are.

    Returns (coverage, its derivative, whether all taps are inside, whether any is).
    """
    coverage, slope = 0.0, 0.0
    all_inside, any_inside = tl.full(taps[0][1].shape, True, tl.int1), tl.full(taps[0][1].shape, False, tl.int1)
    for k in tl.static_range(len(taps)):
        _, weight, d_weight, inside = taps[k]
        coverage += tl.where(inside, weight, 0.0)
        slope += tl.where(inside, d_weight, 0.0)
        all_inside, any_inside = all_inside & inside, any_inside | inside
    return tl.where(all_inside, 1.0, coverage), tl.where(all_inside, 0.0, slope), all_inside, any_inside


@jit
def pointer(plane, origin, tap, stride_h, stride_w):
    """Where a tap's pixels lie."""
    down, right, _, _, _, _ = tap
    if origin.dtype == tl.int64:
        # One sum of offsets: Triton would add a scalar of 64 bits to the plane, and forget how that is aligned.
        return plane + (origin + down * stride_h + right * stride_w)
    else:
        # The scalar first: a row costs one 64-bit addition, and its neighbour to the right is at a fixed distance.
        return plane + down * stride_h + origin + right * stride_w


@jit
def zeros_of(count: constexpr, taps, BLOCK_C: constexpr, DTYPE: constexpr):
    """So many zeros for every lane: what sums and values start from."""
    zeros = ()
    for _k in tl.static_range(count):
        zeros += (tl.zeros([taps[0][2].shape[0], BLOCK_C], DTYPE),)
    return zeros


@jit
def load(before, plane, origin, taps, k: constexpr, stride_h, stride_w, MASKED: constexpr):
    """The pixels of tap k; 0 where it misses the image.

    ``before`` is what the taps loaded from the channel before, or zeros: a tap that misses one channel misses all, so
    its lane keeps what it has, and no register is cleared channel by channel.
    """
    source = pointer(plane, origin, taps[k], stride_h, stride_w)
    if not MASKED:
        return tl.load(source)
    elif origin.shape[1] == 1 and len(taps) <= FEW:
        return tl.load(source, mask=taps[k][5], other=before[k])
    else:  # 128 bits of every tap, or sixteen taps, would fill the registers
        return tl.load(source, mask=taps[k][5], other=0.0)


@jit
def read(before, plane, origin, taps, stride_h, stride_w, ACC: constexpr, MASKED: constexpr):
    """(sum of weight * U over the taps of one channel plane, what each tap loaded)."""
    total = tl.zeros(origin.shape, ACC)
    loaded = ()
    for k in tl.static_range(len(taps)):
        value = load(before, plane, origin, taps, k, stride_h, stride_w, MASKED)
        total = tl.fma(taps[k][2], value.to(ACC), total)
        loaded += (value,)
    return total, loaded


@jit
def sums_of(taps, BLOCK_C: constexpr, ACC: constexpr):
    """What `multiply` starts from: a product for each of few taps; of many, which would fill the registers, two."""
    count: constexpr = len(taps) if len(taps) <= FEW else 2
    return zeros_of(count, taps, BLOCK_C, ACC)


@jit
def multiply(
    sums, d_value, before, plane, origin, taps, taps_x, taps_y, stride_h, stride_w, ACC: constexpr, MASKED: constexpr
):
    """Adds a channel to what the derivatives of `read` are made of: (the sums, what each tap loaded).

    That is d_value * U of every tap, or d_value times both derivatives, row by row of taps.
    """
    loaded = ()
    for k in tl.static_range(len(taps)):
        loaded += (load(before, plane, origin, taps, k, stride_h, stride_w, MASKED),)
    new = ()
    if len(taps) <= FEW:
        for k in tl.static_range(len(taps)):
            new += (tl.fma(d_value, loaded[k].to(ACC), sums[k]),)
    else:
        dx, dy = sums
        for r in tl.static_range(len(taps_y)):
            value, derivative = tl.zeros(dx.shape, ACC), tl.zeros(dx.shape, ACC)
            for c in tl.static_range(len(taps_x)):
                value = tl.fma(taps_x[c][1], loaded[r * len(taps_x) + c].to(ACC), value)
                derivative = tl.fma(taps_x[c][2], loaded[r * len(taps_x) + c].to(ACC), derivative)
            dx = tl.fma(d_value * taps_y[r][1], derivative, dx)
            dy = tl.fma(d_value * taps_y[r][2], value, dy)
        new = (dx, dy)
    return new, loaded


@jit
def slope(sums, taps, MASKED: constexpr):
    """(d/dx, d/dy) of the loss from the sums of `multiply`, added up over the channels of each pixel.

    A tap outside the image adds nothing, whatever d_out is; with bicubic it adds d_out times 0.
    """
    if len(taps) <= FEW:
        dx, dy = tl.zeros(taps[0][2].shape, taps[0][2].dtype), tl.zeros(taps[0][2].shape, taps[0][2].dtype)
        for k in tl.static_range(len(taps)):
            product = sums[k]
            if MASKED:
                product = tl.where(taps[k][5], product, 0.0)
            product = tl.sum(product, 1, keep_dims=True)
            dx = tl.fma(taps[k][3], product, dx)
            dy = tl.fma(taps[k][4], product, dy)
        return dx, dy
    else:
        return tl.sum(sums[0], 1, keep_dims=True), tl.sum(sums[1], 1, keep_dims=True)


@jit
def scatter(d_plane, origin, taps, stride_h, stride_w, d_value):
    """The adjoint of `read`: adds weight * d_value to every tap of one channel plane of the gradient.

    A tap of weight 0 is skipped, which also saves its atomic: at the identity, three of bilinear's four.
    """
    for k in tl.static_range(len(taps)):
        _, _, weight, _, _, inside = taps[k]
        tl.atomic_add(
            pointer(d_plane, origin, taps[k], stride_h, stride_w),
            (weight * d_value).to(d_plane.dtype.element_ty),
            mask=inside & (weight != 0),
            sem="relaxed",  # the default orders memory: a fence per atomic
        )
