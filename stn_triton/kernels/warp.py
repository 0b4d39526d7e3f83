"""The two kernels: warp an image forward, and its gradients backward.

Both are put together at compile time from three families of device functions, passed as constexpr:

- a transform (``stn_triton/transforms``): ``LOAD`` reads a sample's parameters, ``SOURCE`` maps target
  pixels to source pixels, ``ADJOINT`` stores the gradient of the parameters;
- a padding rule (`coordinates`): ``PAD``;
- a sampler (`samplers`): ``TAPS``.

Coordinates and sums are ``ACC``: float32, or float64 for float64 images and where float32 cannot number the
pixels of an axis. Offsets inside a plane are ``INDEX``: int32, or int64 for large planes. One lane holds one
pixel of a TILE_H x TILE_W tile: neighbouring lanes read neighbouring pixels, and nothing is exchanged between
lanes in a channel loop.
"""

from __future__ import annotations

from .language import constexpr, float64, int64, jit, tl
from .samplers import read, scatter, slope


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
def first_pixel(h, w, ROWS: constexpr, TILE_W: constexpr):
    """This program's sample and the first target row and column of its ROWS x TILE_W pixels."""
    tiles_w = tl.cdiv(w, TILE_W)
    tiles = tl.cdiv(h, ROWS) * tiles_w
    n = tl.program_id(0) // tiles
    tile = tl.program_id(0) - n * tiles
    return n.to(tl.int64), (tile // tiles_w) * ROWS, (tile % tiles_w) * TILE_W


@jit
def locate(
    state, row, column, live, axis_x, axis_y, h, w,
    SOURCE: constexpr, PAD: constexpr, ALIGN_CORNERS: constexpr, ACC: constexpr,
):  # fmt: skip
    """Target pixels to padded source pixels: the one coordinate function of forward and backward.

    Returns the centred targets (x, y), the source pixels (u, v), the slopes of the padding rule, the lanes
    that read anything, and the lanes whose gradient exists.
    """
    x = column.to(ACC) - (w - 1).to(ACC) * 0.5
    y = row.to(ACC) - (h - 1).to(ACC) * 0.5
    u, v, seen = SOURCE(state, row, column, live, x, y, axis_x, axis_y)
    _, _, _, _, width, inverse_x = axis_x
    _, _, _, _, height, inverse_y = axis_y
    u, slope_u, known_u = PAD(u, width, inverse_x, ALIGN_CORNERS)
    v, slope_v, known_v = PAD(v, height, inverse_y, ALIGN_CORNERS)
    return x, y, u, v, slope_u, slope_v, seen, seen & known_u & known_v


# The arguments of both kernels that are values at run time: one compiled kernel serves all sizes and alignments.
RUN_TIME = (
    "image", "theta", "out", "d_out", "d_image", "d_theta",
    "C", "H", "W", "h", "w",
    "image_stride_n", "image_stride_c", "image_stride_h", "image_stride_w",
    "theta_stride_n", "theta_stride_0", "theta_stride_1", "theta_stride_2",
    "out_stride_n", "out_stride_c", "out_stride_h", "out_stride_w",
    "d_image_stride_n", "d_image_stride_c", "d_image_stride_h", "d_image_stride_w",
    "ratio_x", "pitch_x", "inverse_x", "ratio_y", "pitch_y", "inverse_y",
)  # fmt: skip


@jit(do_not_specialize=RUN_TIME)
def warp_forward(
    image, theta, out,
    C, H, W, h, w,
    image_stride_n: int64, image_stride_c: int64, image_stride_h: int64, image_stride_w: int64,
    theta_stride_n: int64, theta_stride_0: int64, theta_stride_1: int64, theta_stride_2: int64,
    out_stride_n: int64, out_stride_c: int64, out_stride_h: int64, out_stride_w: int64,
    ratio_x: float64, pitch_x: float64, inverse_x: float64,
    ratio_y: float64, pitch_y: float64, inverse_y: float64,
    LOAD: constexpr, SOURCE: constexpr, PAD: constexpr, TAPS: constexpr,
    ALIGN_CORNERS: constexpr, ACC: constexpr, INDEX: constexpr,
    TILE_H: constexpr, TILE_W: constexpr, ROW_GROUPS: constexpr,
):  # fmt: skip
    """out[n, c, k, l] = sum over taps of image[n, c, i, j] k(u - j) k(v - i), (u, v) = T_theta(l, k), eq. 3.

    One program owns ROW_GROUPS tiles of TILE_H x TILE_W pixels below each other, of all channels of one
    sample. Launch grid: (N * ceil(h / (TILE_H * ROW_GROUPS)) * ceil(w / TILE_W),).
    """
    axis_x = axis_frame(W, ratio_x, pitch_x, inverse_x, ALIGN_CORNERS, ACC)
    axis_y = axis_frame(H, ratio_y, pitch_y, inverse_y, ALIGN_CORNERS, ACC)
    n, row, column = first_pixel(h, w, TILE_H * ROW_GROUPS, TILE_W)
    row = row + tl.arange(0, TILE_H)[:, None]
    column = column + tl.arange(0, TILE_W)[None, :]
    state = LOAD(theta + n * theta_stride_n, theta_stride_0, theta_stride_1, theta_stride_2, axis_x, axis_y, ACC, INDEX)
    for _ in range(ROW_GROUPS):
        live = (row < h) & (column < w)
        _, _, u, v, _, _, seen, _ = locate(
            state, row, column, live, axis_x, axis_y, h, w,
            SOURCE, PAD, ALIGN_CORNERS, ACC,
        )  # fmt: skip
        taps = TAPS(u, v, H, W, image_stride_h.to(INDEX), image_stride_w.to(INDEX), seen, INDEX)
        target = row.to(INDEX) * out_stride_h.to(INDEX) + column.to(INDEX) * out_stride_w.to(INDEX)
        for c in range(C):
            value = read(image + n * image_stride_n + c * image_stride_c.to(tl.int64), taps, ACC)
            plane = out + n * out_stride_n + c * out_stride_c.to(tl.int64)
            tl.store(plane + target, value.to(out.dtype.element_ty), mask=live)
        row += TILE_H


@jit(do_not_specialize=RUN_TIME)
def warp_backward(
    d_out, image, theta, d_image, d_theta,
    C, H, W, h, w,
    image_stride_n: int64, image_stride_c: int64, image_stride_h: int64, image_stride_w: int64,
    theta_stride_n: int64, theta_stride_0: int64, theta_stride_1: int64, theta_stride_2: int64,
    out_stride_n: int64, out_stride_c: int64, out_stride_h: int64, out_stride_w: int64,
    d_image_stride_n: int64, d_image_stride_c: int64, d_image_stride_h: int64, d_image_stride_w: int64,
    ratio_x: float64, pitch_x: float64, inverse_x: float64,
    ratio_y: float64, pitch_y: float64, inverse_y: float64,
    LOAD: constexpr, SOURCE: constexpr, ADJOINT: constexpr, PAD: constexpr, TAPS: constexpr,
    ALIGN_CORNERS: constexpr, ACC: constexpr, INDEX: constexpr,
    NEEDS_IMAGE: constexpr, NEEDS_THETA: constexpr,
    TILE_H: constexpr, TILE_W: constexpr,
):  # fmt: skip
    """Eqs. 6 and 7: adds d_out to the pixels it was read from, and stores this program's part of d_theta.

    One program owns one tile of TILE_H x TILE_W target pixels, of all channels of one sample. The image
    gradient is added to by atomics; the parameter gradient goes to a place of the program's own, which the
    host sums, so that it is the same on every run. A gradient that is not needed costs nothing: its tensors
    are neither read nor written. ``out_stride_*`` are d_out's.
    Launch grid: (N * ceil(h / TILE_H) * ceil(w / TILE_W),).
    """
    axis_x = axis_frame(W, ratio_x, pitch_x, inverse_x, ALIGN_CORNERS, ACC)
    axis_y = axis_frame(H, ratio_y, pitch_y, inverse_y, ALIGN_CORNERS, ACC)
    n, row, column = first_pixel(h, w, TILE_H, TILE_W)
    row = row + tl.arange(0, TILE_H)[:, None]
    column = column + tl.arange(0, TILE_W)[None, :]
    live = (row < h) & (column < w)
    state = LOAD(theta + n * theta_stride_n, theta_stride_0, theta_stride_1, theta_stride_2, axis_x, axis_y, ACC, INDEX)
    x, y, u, v, slope_u, slope_v, _, differentiable = locate(
        state, row, column, live, axis_x, axis_y, h, w,
        SOURCE, PAD, ALIGN_CORNERS, ACC,
    )  # fmt: skip
    taps = TAPS(u, v, H, W, image_stride_h.to(INDEX), image_stride_w.to(INDEX), differentiable, INDEX)
    d_taps = TAPS(u, v, H, W, d_image_stride_h.to(INDEX), d_image_stride_w.to(INDEX), differentiable, INDEX)
    target = row.to(INDEX) * out_stride_h.to(INDEX) + column.to(INDEX) * out_stride_w.to(INDEX)
    d_u = tl.zeros([TILE_H, TILE_W], ACC)
    d_v = tl.zeros([TILE_H, TILE_W], ACC)
    for c in range(C):
        plane = d_out + n * out_stride_n + c * out_stride_c.to(tl.int64)
        d_value = tl.load(plane + target, mask=differentiable, other=0.0).to(ACC)
        if NEEDS_IMAGE:
            scatter(d_image + n * d_image_stride_n + c * d_image_stride_c.to(tl.int64), d_taps, d_value)
        if NEEDS_THETA:
            dx, dy = slope(image + n * image_stride_n + c * image_stride_c.to(tl.int64), taps, ACC)
            d_u = tl.fma(d_value, dx, d_u)
            d_v = tl.fma(d_value, dy, d_v)
    if NEEDS_THETA:
        ADJOINT(d_theta, n, row, column, live, x, y, h, w, d_u * slope_u, d_v * slope_v, axis_x, axis_y)
