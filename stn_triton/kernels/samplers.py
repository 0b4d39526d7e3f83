"""Sampling kernels k(.) of the paper as taps: which pixels a coordinate reads, and with what weight.

A sampler maps a tile of coordinates to an origin pixel (i, j) and a tuple of taps
``(down, right, weight, weight_dx, weight_dy, inside)``: the pixel (i + down, j + right), the product weight of
both axes, its derivatives, and which lanes may touch it. Taps are computed once per pixel; `read`, `multiply`
and `scatter` then visit them for every channel. Where a tile lies wholly inside the image (``not MASKED``) no tap
can miss it, and nothing is tested.
"""

from __future__ import annotations

from .coordinates import floor, round_half_even
from .language import constexpr, jit, tl


@jit
def inside_axis(index, n):
    """0 <= index < n, as one unsigned comparison."""
    return index.to(tl.uint32) < n.to(tl.uint32) if index.dtype == tl.int32 else (index >= 0) & (index < n)


@jit
def nearest(x, y, H, W, live, MASKED: constexpr):
    """Eq. 4 of the paper, ties to even; no derivative in the coordinate."""
    x, j = round_half_even(x)
    y, i = round_half_even(y)
    inside = live & inside_axis(i, H) & inside_axis(j, W) if MASKED else live
    one, zero = tl.full(x.shape, 1.0, x.dtype), tl.zeros(x.shape, x.dtype)
    return i, j, ((0, 0, one, zero, zero, inside),)


@jit
def bilinear(x, y, H, W, live, MASKED: constexpr):
    """Eq. 5 of the paper. At an integer coordinate the derivative is U[j+1] - U[j], as in PyTorch."""
    x0, j = floor(x)
    y0, i = floor(y)
    right, low = x - x0, y - y0
    left, high = 1 - right, 1 - low
    in_left, in_right, in_high, in_low = live, live, live, live
    if MASKED:
        in_left, in_right = inside_axis(j, W), inside_axis(j + 1, W)
        in_high, in_low = live & inside_axis(i, H), live & inside_axis(i + 1, H)
    return i, j, (
        (0, 0, high * left, -high, -left, in_high & in_left),
        (0, 1, high * right, high, -right, in_high & in_right),
        (1, 0, low * left, -low, left, in_low & in_left),
        (1, 1, low * right, low, right, in_low & in_right),
    )  # fmt: skip


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
def zero_per_tap(taps, BLOCK_C: constexpr, DTYPE: constexpr):
    """A zero for every tap of every lane: what sums and values start from."""
    zeros = ()
    for _tap in tl.static_range(len(taps)):
        zeros += (tl.zeros([taps[0][2].shape[0], BLOCK_C], DTYPE),)
    return zeros


@jit
def load(before, plane, origin, tap, stride_h, stride_w, MASKED: constexpr):
    """A tap's pixels; 0 where it misses the image.

    ``before`` is what it loaded from the channel before, or zeros: a tap that misses one channel misses all, so its
    lane keeps what it has, and no register is cleared channel by channel.
    """
    source = pointer(plane, origin, tap, stride_h, stride_w)
    if not MASKED:
        return tl.load(source)
    elif origin.shape[1] == 1:
        return tl.load(source, mask=tap[5], other=before)
    else:  # 128 bits of every tap would fill the registers
        return tl.load(source, mask=tap[5], other=0.0)


@jit
def read(before, plane, origin, taps, stride_h, stride_w, ACC: constexpr, MASKED: constexpr):
    """(sum of weight * U over the taps of one channel plane, what each tap loaded)."""
    total = tl.zeros(origin.shape, ACC)
    loaded = ()
    for k in tl.static_range(len(taps)):
        value = load(before[k], plane, origin, taps[k], stride_h, stride_w, MASKED)
        total = tl.fma(taps[k][2], value.to(ACC), total)
        loaded += (value,)
    return total, loaded


@jit
def multiply(products, d_value, before, plane, origin, taps, stride_h, stride_w, ACC: constexpr, MASKED: constexpr):
    """Adds d_value * U to every tap's product: what the derivatives of `read` are made of, channel by channel."""
    sums, loaded = (), ()
    for k in tl.static_range(len(taps)):
        value = load(before[k], plane, origin, taps[k], stride_h, stride_w, MASKED)
        sums += (tl.fma(d_value, value.to(ACC), products[k]),)
        loaded += (value,)
    return sums, loaded


@jit
def slope(products, taps):
    """(d/dx, d/dy) of the loss from the products of `multiply`, summed over the channels of each pixel."""
    dx, dy = tl.zeros(taps[0][2].shape, taps[0][2].dtype), tl.zeros(taps[0][2].shape, taps[0][2].dtype)
    for k in tl.static_range(len(taps)):
        product = tl.sum(products[k], 1, keep_dims=True)
        dx = tl.fma(taps[k][3], product, dx)
        dy = tl.fma(taps[k][4], product, dy)
    return dx, dy


@jit
def scatter(d_plane, origin, taps, stride_h, stride_w, d_value):
    """The adjoint of `read`: adds weight * d_value to every tap of one channel plane of the gradient."""
    for k in tl.static_range(len(taps)):
        _, _, weight, _, _, inside = taps[k]
        tl.atomic_add(
            pointer(d_plane, origin, taps[k], stride_h, stride_w),
            (weight * d_value).to(d_plane.dtype.element_ty),
            mask=inside,
            sem="relaxed",  # the default orders memory: a fence per atomic
        )
