"""The two kernels: warp an image forward, and its gradients backward.

Both are put together at compile time from three families of device functions, passed as constexpr:

- a transform (``stn_triton/transforms``): ``LOAD`` reads a sample's parameters, ``SOURCE`` maps target
  pixels to source pixels, ``START``, ``ADJOINT`` and ``STORE`` make the gradient of the parameters;
- a padding rule (`coordinates`): ``PAD``;
- a sampler (`samplers`): ``TAPS``, and by how many pixels its taps reach beyond bilinear's, ``REACH``.

Coordinates and sums are ``ACC``: float32, or float64 for float64 images and where float32 cannot number the
pixels of an axis. Offsets inside a sample are ``INDEX``: int32, or int64 for large ones.

A tile of pixels and BLOCK_C channels is mapped to lanes in one of two ways. BLOCK_C = 1: a lane holds one pixel, and
walks through the channels. VECTOR > 1, where the channels of a pixel are neighbours in memory: a lane holds VECTOR
channels of a pixel, 128 bits, its neighbour the next ones. Either way coordinates are computed once per
pixel for all channels, and in the loop over channels no lane needs another's values.

Most tiles lie wholly inside the image. `lies_inside` proves it for a whole program, which then takes the loop without
bounds checks (``not MASKED``).

The coverage of a point is the sampler's weight inside the image, what a warped image of ones would be there. FILL puts
a colour where it is missing; MASK stores it beside the output.
"""

from __future__ import annotations

from .coordinates import axis_frame, centre_of, largest, smallest, zeros
from .fixed_point import scales_of, scatter_exactly
from .language import constexpr, float64, int64, jit, tl
from .programs import is_first, offset_of, own_block, pixels, plane_of, read_by, typed_strides
from .samplers import coverage_of, multiply, read, scatter, slope, sums_of, taps_of, zeros_of


@jit
def locate(
    state, row, column, live, x, y, sizes, axes,
    SOURCE: constexpr, PAD: constexpr, TAPS: constexpr, ALIGN_CORNERS: constexpr, MASKED: constexpr,
):  # fmt: skip
    """Target pixels to what their source points read: the one coordinate function of forward and backward.

    Returns (first pixel, taps, slope of padding) of the x and of the y axis, the lanes that read anything, and those
    whose gradient exists. Inside the image (``not MASKED``) every padding rule leaves a point where it is.
    """
    _, _, H, W = sizes
    axis_x, axis_y = axes
    u, v, seen = SOURCE(state, row, column, live, x, y, axes)
    j, taps_x, slope_x, known_x = TAPS(u, W, axis_x, PAD, ALIGN_CORNERS, MASKED)
    i, taps_y, slope_y, known_y = TAPS(v, H, axis_y, PAD, ALIGN_CORNERS, MASKED)
    if MASKED:
        return (j, taps_x, slope_x), (i, taps_y, slope_y), seen, seen & known_x & known_y
    else:
        return (j, taps_x, slope_x), (i, taps_y, slope_y), live, live


@jit
def lies_inside(state, row, column, rows, columns, sizes, axes, SOURCE: constexpr, REACH: constexpr, ACC: constexpr):
    """Whether every tap of a block of target pixels lies inside the image, judged by the block's four corners.

    That is, REACH < u < W - 1 - REACH, and v likewise, at all four. If u and v are monotone in x and in y as they are
    computed, with every rounding, that holds for the pixels between them too; so the corners go through the function
    that the pixels go through. A corner that is not a number is not inside.
    """
    h, w, H, W = sizes
    half_w, half_h = centre_of(w, ACC), centre_of(h, ACC)
    last_row, last_column = tl.minimum(row + rows, h) - 1, tl.minimum(column + columns, w) - 1
    x0, x1 = column.to(ACC) - half_w, last_column.to(ACC) - half_w
    y0, y1 = row.to(ACC) - half_h, last_row.to(ACC) - half_h
    u00, v00, _ = SOURCE(state, row, column, True, x0, y0, axes)
    u01, v01, _ = SOURCE(state, row, last_column, True, x1, y0, axes)
    u10, v10, _ = SOURCE(state, last_row, column, True, x0, y1, axes)
    u11, v11, _ = SOURCE(state, last_row, last_column, True, x1, y1, axes)
    inside_x = (smallest(u00, u01, u10, u11) > REACH) & (largest(u00, u01, u10, u11) < (W - 1 - REACH).to(ACC))
    return inside_x & (smallest(v00, v01, v10, v11) > REACH) & (largest(v00, v01, v10, v11) < (H - 1 - REACH).to(ACC))


@jit
def outside_of(fill, n, stride_n, channel, stride_c, mask, sample, h, w, channel_block):
    """A program's fill and coverage: (fill, its stride, mask, whether the program is the first of its pixels').

    The fill is (N, C), of any strides; the mask (samples, h, w), without gaps.
    """
    fill = plane_of(fill, n, stride_n, channel, stride_c, 1)
    return fill, stride_c, mask + sample.to(tl.int64) * h * w, is_first(channel_block)


@jit
def blend(value, cover, colour):
    """A pixel and the colour around the image. One that is not finite marks what does not lie wholly inside."""
    colour = tl.load(colour).to(value.dtype)
    outside = tl.where(tl.abs(colour) < float("inf"), tl.fma(1 - cover, colour, value), value + colour)
    return tl.where(cover == 1, value, outside)


@jit
def pull(d_cover, d_value, colour):
    """Adds to the gradient of the coverage what `blend` gives it: nothing where a colour is only a mark."""
    colour = tl.load(colour).to(d_value.dtype)
    return tl.fma(-d_value, tl.where(tl.abs(colour) < float("inf"), colour, 0.0), d_cover)


@jit
def add_to_image(d_plane, origin, taps, stride_h, stride_w, d_value, channel, fixed, EXACT: constexpr, ACC: constexpr):
    """Adds what a tile passes on to the image gradient, of one channel; in floats, or EXACT in whole numbers.

    ``fixed`` is (largest |d_out| by channel, how far rests lie from wholes, bits), as in `fixed_point`.
    """
    if EXACT:
        peaks, rests, bits = fixed
        scales = scales_of(tl.load(peaks + channel), bits, ACC)
        scatter_exactly(d_plane, rests, origin, taps, stride_h, stride_w, d_value, scales)
    else:
        scatter(d_plane, origin, taps, stride_h, stride_w, d_value)


# The arguments of both kernels that are values at run time: one compiled kernel serves all sizes and alignments.
RUN_TIME = (
    "image", "theta", "out", "fill", "mask", "d_out", "d_mask", "d_theta",
    "d_image", "peaks", "rests", "bits", "scattered",
    "C", "H", "W", "h", "w", "channels", "steps",
    "column_blocks", "columns_multiplier", "columns_shift",
    "row_blocks", "rows_multiplier", "rows_shift",
    "channel_blocks", "channels_multiplier", "channels_shift",
    "image_stride_n", "image_stride_c", "image_stride_h", "image_stride_w",
    "theta_stride_n", "theta_stride_0", "theta_stride_1", "theta_stride_2",
    "out_stride_n", "out_stride_c", "out_stride_h", "out_stride_w",
    "d_image_stride_n", "d_image_stride_c", "d_image_stride_h", "d_image_stride_w",
    "ratio_x", "pitch_x", "inverse_x", "ratio_y", "pitch_y", "inverse_y",
    "transforms", "transforms_multiplier", "transforms_shift", "theta_stride_m",
    "theta_size_0", "theta_size_1", "fill_stride_n", "fill_stride_c",
)  # fmt: skip


@jit
def forward_tiles(
    image, image_strides, out, out_strides, outside, state, row, column, channels, steps, sizes, axes,
    SOURCE: constexpr, PAD: constexpr, TAPS: constexpr, ALIGN_CORNERS: constexpr, FILL: constexpr, MASK: constexpr,
    ACC: constexpr, TILE_H: constexpr, BLOCK_C: constexpr, CHANNELS: constexpr, LOOP: constexpr, UNROLL: constexpr,
    MASKED: constexpr,
):  # fmt: skip
    """`warp_forward` from the first tile, whose pixels are (row, column), to the last.

    ``outside`` is (fill, its stride, mask, whether this program is the one of its pixels' that stores it).
    """
    image_c, image_h, image_w = image_strides
    out_c, out_h = out_strides[0], out_strides[1]
    fill, fill_c, mask, covers = outside
    h, w = sizes[0], sizes[1]
    channel = tl.arange(0, BLOCK_C)[None, :]
    fill += channel * fill_c
    target = out + offset_of(row, column, channel, out_strides)
    last_x, last_y = centre_of(w, ACC), centre_of(h, ACC)
    x, y = column.to(ACC) - last_x, row.to(ACC) - last_y
    live_x = x <= last_x
    if not MASKED:
        x = tl.minimum(x, last_x)  # a lane beyond the output reads what the last one in it reads
    for _step in range(steps):
        for _tile in tl.static_range(UNROLL):
            live = live_x & (y <= last_y)
            of_x, of_y, seen, _ = locate(
                state, row, column, live, x, y if MASKED else tl.minimum(y, last_y), sizes, axes,
                SOURCE, PAD, TAPS, ALIGN_CORNERS, MASKED,
            )  # fmt: skip
            j, taps_x, _ = of_x
            i, taps_y, _ = of_y
            taps = taps_of(taps_x, taps_y, seen, MASKED)
            cover = 1.0
            if MASKED and (FILL or MASK):
                cover_x, _, _, _ = coverage_of(taps_x)
                cover_y, _, _, _ = coverage_of(taps_y)
                cover = tl.where(seen, cover_x * cover_y, 0.0)
            if MASK:
                place = mask + row.to(image_h.dtype) * w + column
                tl.store(place, tl.full(row.shape, 1.0, ACC) * cover, mask=live & covers)
            origin = offset_of(i, j, channel, image_strides)
            loaded = zeros_of(len(taps), taps, BLOCK_C, image.dtype.element_ty)
            if not LOOP:
                for c in tl.static_range(CHANNELS):
                    value, loaded = read(loaded, image + c * image_c, origin, taps, image_h, image_w, ACC, MASKED)
                    if MASKED and FILL:
                        value = blend(value, cover, fill + c * fill_c)
                    tl.store(target + c * out_c, value.to(out.dtype.element_ty), mask=live)
            else:
                plane = target
                for block in range(0, channels, BLOCK_C * CHANNELS):
                    for c in tl.static_range(CHANNELS):
                        at = origin + c * (BLOCK_C * image_c)
                        value, loaded = read(loaded, image, at, taps, image_h, image_w, ACC, MASKED)
                        if MASKED and FILL:
                            value = blend(value, cover, fill + (block + c * BLOCK_C) * fill_c)
                        tl.store(plane, value.to(out.dtype.element_ty), mask=live)
                        plane += BLOCK_C * out_c
                    origin += CHANNELS * BLOCK_C * image_c
            row += TILE_H
            y += TILE_H
            target += TILE_H * out_h


@jit(do_not_specialize=RUN_TIME)
def warp_forward(
    image, theta, out,
    C, H, W, h, w, channels, steps,
    column_blocks, columns_multiplier: int64, columns_shift,
    row_blocks, rows_multiplier: int64, rows_shift,
    channel_blocks, channels_multiplier: int64, channels_shift,
    image_stride_n: int64, image_stride_c: int64, image_stride_h: int64, image_stride_w: int64,
    theta_stride_n: int64, theta_stride_0: int64, theta_stride_1: int64, theta_stride_2: int64,
    out_stride_n: int64, out_stride_c: int64, out_stride_h: int64, out_stride_w: int64,
    ratio_x: float64, pitch_x: float64, inverse_x: float64,
    ratio_y: float64, pitch_y: float64, inverse_y: float64,
    transforms, transforms_multiplier: int64, transforms_shift, theta_stride_m: int64, theta_size_0, theta_size_1,
    fill_stride_n: int64, fill_stride_c: int64, fill, mask,
    LOAD: constexpr, SOURCE: constexpr, MONOTONE: constexpr, PAD: constexpr, TAPS: constexpr,
    REACH: constexpr, ALIGN_CORNERS: constexpr, FILL: constexpr, MASK: constexpr, MANY: constexpr, ACC: constexpr,
    INDEX: constexpr, UNIT: constexpr, VECTOR: constexpr,
    TILE_H: constexpr, TILE_W: constexpr, BLOCK_C: constexpr, CHANNELS: constexpr, LOOP: constexpr, UNROLL: constexpr,
):  # fmt: skip
    """out[n, c, k, l] = sum over taps of image[n, c, i, j] k(u - j) k(v - i), (u, v) = T_theta(l, k), eq. 3.

    MANY: ``transforms`` thetas of every image, and as many samples of the output. FILL: plus fill[n, c] times what
    coverage lacks to 1. MASK: the coverage goes to mask[n, 0, k, l], from the programs of the first channels.
    One program owns ``channels`` channels of one sample (not LOOP: CHANNELS, which are all of them) and
    ``steps * UNROLL`` tiles of TILE_H x TILE_W target pixels below each other.
    Launch grid: (samples * channel_blocks * row_blocks * column_blocks,).
    """
    sample, channel_block, row_block, column_block = own_block(
        (column_blocks, columns_multiplier, columns_shift), (row_blocks, rows_multiplier, rows_shift),
        (channel_blocks, channels_multiplier, channels_shift), LOOP,
    )  # fmt: skip
    n, theta = read_by(
        sample, (transforms, transforms_multiplier, transforms_shift), theta, theta_stride_n, theta_stride_m, MANY
    )
    sizes = (h, w, H, W)
    axes = (
        axis_frame(W, ratio_x, pitch_x, inverse_x, ALIGN_CORNERS, ACC),
        axis_frame(H, ratio_y, pitch_y, inverse_y, ALIGN_CORNERS, ACC),
    )
    theta_strides, theta_sizes = (theta_stride_0, theta_stride_1, theta_stride_2), (theta_size_0, theta_size_1)
    state = LOAD(theta, theta_strides, theta_sizes, axes, ACC, INDEX)
    image_strides = typed_strides(image_stride_c, image_stride_h, image_stride_w, INDEX, UNIT, VECTOR)
    out_strides = typed_strides(out_stride_c, out_stride_h, out_stride_w, INDEX, UNIT, VECTOR)
    first_channel = channel_block * channels
    image = plane_of(image, n, image_stride_n, first_channel, image_stride_c, VECTOR)
    out = plane_of(out, sample, out_stride_n, first_channel, out_stride_c, VECTOR)
    outside = outside_of(fill, n, fill_stride_n, first_channel, fill_stride_c, mask, sample, h, w, channel_block)
    channels = tl.minimum(channels, C - first_channel)
    rows = TILE_H * UNROLL * steps
    first_row, first_column = row_block * rows, column_block * TILE_W
    row, column = pixels(first_row, first_column, TILE_H, TILE_W)
    inside = False
    if MONOTONE:
        inside = lies_inside(state, first_row, first_column, rows, TILE_W, sizes, axes, SOURCE, REACH, ACC)
    given = image, image_strides, out, out_strides, outside, state, row, column, channels, steps, sizes, axes
    if inside:
        forward_tiles(
            *given, SOURCE, PAD, TAPS, ALIGN_CORNERS, FILL, MASK, ACC, TILE_H, BLOCK_C, CHANNELS, LOOP, UNROLL,
            MASKED=False,
        )  # fmt: skip
    else:
        forward_tiles(
            *given, SOURCE, PAD, TAPS, ALIGN_CORNERS, FILL, MASK, ACC, TILE_H, BLOCK_C, CHANNELS, LOOP, UNROLL,
            MASKED=True,
        )  # fmt: skip


@jit
def backward_tiles(
    d_out, d_out_strides, image, image_strides, d_image, d_image_strides, fixed, outside, partial, d_theta,
    state, part, row, column, channels, steps, sizes, axes,
    SOURCE: constexpr, ADJOINT: constexpr, PAD: constexpr, TAPS: constexpr, ALIGN_CORNERS: constexpr, FILL: constexpr,
    MASK: constexpr, ACC: constexpr, EXACT: constexpr, NEEDS_THETA: constexpr,
    TILE_H: constexpr, BLOCK_C: constexpr, CHANNELS: constexpr, LOOP: constexpr, UNROLL: constexpr,
    NEEDS_IMAGE: constexpr, MASKED: constexpr,
):  # fmt: skip
    """`warp_backward` from the first tile, whose pixels are (row, column), to the last; returns what STORE takes.

    ``outside`` is as in `forward_tiles`, with the mask's gradient in place of the mask.
    """
    d_out_c, d_out_h = d_out_strides[0], d_out_strides[1]
    image_c, image_h, image_w = image_strides
    d_image_c, d_image_h, d_image_w = d_image_strides
    fill, fill_c, d_mask, covers = outside
    h, w = sizes[0], sizes[1]
    channel = tl.arange(0, BLOCK_C)[None, :]
    fill += channel * fill_c
    target = d_out + offset_of(row, column, channel, d_out_strides)
    last_x, last_y = centre_of(w, ACC), centre_of(h, ACC)
    x, y = column.to(ACC) - last_x, row.to(ACC) - last_y
    live_x = x <= last_x
    if not MASKED:
        x = tl.minimum(x, last_x)  # a lane beyond the output reads what the last one in it reads
    for _step in range(steps):
        for _tile in tl.static_range(UNROLL):
            live = live_x & (y <= last_y)
            of_x, of_y, _, differentiable = locate(
                state, row, column, live, x, y if MASKED else tl.minimum(y, last_y), sizes, axes,
                SOURCE, PAD, TAPS, ALIGN_CORNERS, MASKED,
            )  # fmt: skip
            j, taps_x, slope_u = of_x
            i, taps_y, slope_v = of_y
            taps = taps_of(taps_x, taps_y, differentiable, MASKED)
            origin = offset_of(i, j, channel, image_strides)
            d_origin = offset_of(i, j, channel, d_image_strides)
            sums = sums_of(taps, BLOCK_C, ACC)
            d_cover = tl.zeros([row.shape[0], BLOCK_C], ACC)
            loaded = zeros_of(len(taps), taps, BLOCK_C, image.dtype.element_ty)
            if not LOOP:
                for c in tl.static_range(CHANNELS):
                    d_value = tl.load(target + c * d_out_c, mask=differentiable, other=0.0).to(ACC)
                    if NEEDS_IMAGE:
                        plane = d_image + c * d_image_c
                        add_to_image(
                            plane, d_origin, taps, d_image_h, d_image_w, d_value, channel + c, fixed, EXACT, ACC
                        )
                    if NEEDS_THETA:
                        plane = image + c * image_c
                        sums, loaded = multiply(
                            sums, d_value, loaded, plane, origin, taps, taps_x, taps_y, image_h, image_w, ACC, MASKED
                        )
                        if MASKED and FILL:
                            d_cover = pull(d_cover, d_value, fill + c * fill_c)
            else:
                plane = target
                for block in range(0, channels, BLOCK_C * CHANNELS):
                    for c in tl.static_range(CHANNELS):
                        d_value = tl.load(plane, mask=differentiable, other=0.0).to(ACC)
                        if NEEDS_IMAGE:
                            at = d_origin + c * (BLOCK_C * d_image_c)
                            of_channel = channel + (block + c * BLOCK_C)
                            add_to_image(
                                d_image, at, taps, d_image_h, d_image_w, d_value, of_channel, fixed, EXACT, ACC
                            )
                        if NEEDS_THETA:
                            at = origin + c * (BLOCK_C * image_c)
                            sums, loaded = multiply(
                                sums, d_value, loaded, image, at, taps, taps_x, taps_y, image_h, image_w, ACC, MASKED
                            )
                            if MASKED and FILL:
                                d_cover = pull(d_cover, d_value, fill + (block + c * BLOCK_C) * fill_c)
                        plane += BLOCK_C * d_out_c
                    origin += CHANNELS * BLOCK_C * image_c
                    d_origin += CHANNELS * BLOCK_C * d_image_c
            if NEEDS_THETA:
                d_u, d_v = slope(sums, taps, MASKED)
                if MASKED and (FILL or MASK) and PAD is zeros:  # under border and reflection coverage is constant
                    cover_x, slope_x, all_x, any_x = coverage_of(taps_x)
                    cover_y, slope_y, all_y, any_y = coverage_of(taps_y)
                    # Where it is constant, 0 or 1, its gradient is not read: it may not be finite.
                    partly = any_x & any_y & ~(all_x & all_y)
                    d_cover = tl.where(partly, tl.sum(d_cover, 1, keep_dims=True), 0.0)
                    if MASK:
                        place = d_mask + row.to(image_h.dtype) * w + column
                        d_cover += tl.load(place, mask=differentiable & partly & covers, other=0.0).to(ACC)
                    d_u, d_v = tl.fma(d_cover, slope_x * cover_y, d_u), tl.fma(d_cover, cover_x * slope_y, d_v)
                d_u, d_v = tl.where(live, d_u * slope_u, 0.0), tl.where(live, d_v * slope_v, 0.0)
                partial = ADJOINT(partial, state, d_theta, part, row, column, live, x, y, sizes, d_u, d_v, axes)
            row += TILE_H
            y += TILE_H
            target += TILE_H * d_out_h
    return partial


@jit(do_not_specialize=RUN_TIME)
def warp_backward(
    d_out, image, theta, d_image, peaks, rests: int64, bits, scattered, d_theta,
    C, H, W, h, w, channels, steps,
    column_blocks, columns_multiplier: int64, columns_shift,
    row_blocks, rows_multiplier: int64, rows_shift,
    channel_blocks, channels_multiplier: int64, channels_shift,
    image_stride_n: int64, image_stride_c: int64, image_stride_h: int64, image_stride_w: int64,
    theta_stride_n: int64, theta_stride_0: int64, theta_stride_1: int64, theta_stride_2: int64,
    out_stride_n: int64, out_stride_c: int64, out_stride_h: int64, out_stride_w: int64,
    d_image_stride_n: int64, d_image_stride_c: int64, d_image_stride_h: int64, d_image_stride_w: int64,
    ratio_x: float64, pitch_x: float64, inverse_x: float64,
    ratio_y: float64, pitch_y: float64, inverse_y: float64,
    transforms, transforms_multiplier: int64, transforms_shift, theta_stride_m: int64, theta_size_0, theta_size_1,
    fill_stride_n: int64, fill_stride_c: int64, fill, d_mask,
    LOAD: constexpr, SOURCE: constexpr, MONOTONE: constexpr, START: constexpr, ADJOINT: constexpr, STORE: constexpr,
    PAD: constexpr, TAPS: constexpr, REACH: constexpr, ALIGN_CORNERS: constexpr, FILL: constexpr, MASK: constexpr,
    MANY: constexpr, ACC: constexpr, INDEX: constexpr, UNIT: constexpr, VECTOR: constexpr,
    NEEDS_IMAGE: constexpr, EXACT: constexpr, GATHERED: constexpr, NEEDS_THETA: constexpr,
    TILE_H: constexpr, TILE_W: constexpr, BLOCK_C: constexpr, CHANNELS: constexpr, LOOP: constexpr, UNROLL: constexpr,
):  # fmt: skip
    """Eqs. 6 and 7: adds d_out to the pixels it was read from, and stores this program's part of d_theta.

    One program owns ``channels`` channels of one sample (not LOOP: CHANNELS, which are all of them) and
    ``steps * UNROLL`` tiles of TILE_H x TILE_W target pixels below each other. The image gradient is added to by
    atomics, EXACT by those of whole numbers, as in `fixed_point`; the parameter gradient goes to a place of the
    program's own, which the host sums, so that it is the same on every run. A gradient that is not needed costs
    nothing: its tensors are neither read nor written. ``out_stride_*`` are d_out's. FILL and MASK are as in
    `warp_forward`: theta moves the coverage, too. ``d_image`` can be sums that become it later, with its strides.
    GATHERED: `gather.warp_gather` has made the gradient of all images but those that ``scattered`` tells.

    Launch grid: (samples * channel_blocks * row_blocks * column_blocks,).
    """
    sample, channel_block, row_block, column_block = own_block(
        (column_blocks, columns_multiplier, columns_shift), (row_blocks, rows_multiplier, rows_shift),
        (channel_blocks, channels_multiplier, channels_shift), LOOP,
    )  # fmt: skip
    n, theta = read_by(
        sample, (transforms, transforms_multiplier, transforms_shift), theta, theta_stride_n, theta_stride_m, MANY
    )
    sizes = (h, w, H, W)
    axes = (
        axis_frame(W, ratio_x, pitch_x, inverse_x, ALIGN_CORNERS, ACC),
        axis_frame(H, ratio_y, pitch_y, inverse_y, ALIGN_CORNERS, ACC),
    )
    theta_strides, theta_sizes = (theta_stride_0, theta_stride_1, theta_stride_2), (theta_size_0, theta_size_1)
    state = LOAD(theta, theta_strides, theta_sizes, axes, ACC, INDEX)
    image_strides = typed_strides(image_stride_c, image_stride_h, image_stride_w, INDEX, UNIT, VECTOR)
    d_image_strides = typed_strides(d_image_stride_c, d_image_stride_h, d_image_stride_w, INDEX, UNIT, VECTOR)
    d_out_strides = typed_strides(out_stride_c, out_stride_h, out_stride_w, INDEX, False, VECTOR)
    first_channel = channel_block * channels
    image = plane_of(image, n, image_stride_n, first_channel, image_stride_c, VECTOR)
    d_image = plane_of(d_image, n, d_image_stride_n, first_channel, d_image_stride_c, VECTOR)
    d_out = plane_of(d_out, sample, out_stride_n, first_channel, out_stride_c, VECTOR)
    fixed = (peaks + (n.to(tl.int64) * C + first_channel), rests, bits)
    outside = outside_of(fill, n, fill_stride_n, first_channel, fill_stride_c, d_mask, sample, h, w, channel_block)
    channels = tl.minimum(channels, C - first_channel)
    part = sample.to(tl.int64) * channel_blocks + channel_block
    rows = TILE_H * UNROLL * steps
    first_row, first_column = row_block * rows, column_block * TILE_W
    row, column = pixels(first_row, first_column, TILE_H, TILE_W)
    partial = START(state, d_theta, part, first_row, rows, column, sizes, ACC)
    scatters = False
    if GATHERED:
        scatters = tl.load(scattered + n) != 0
    inside = False
    if MONOTONE:
        inside = lies_inside(state, first_row, first_column, rows, TILE_W, sizes, axes, SOURCE, REACH, ACC)
    given = (
        d_out, d_out_strides, image, image_strides, d_image, d_image_strides, fixed, outside, partial, d_theta,
        state, part, row, column, channels, steps, sizes, axes,
    )  # fmt: skip
    if scatters:
        partial = backward_tiles(
            *given, SOURCE, ADJOINT, PAD, TAPS, ALIGN_CORNERS, FILL, MASK, ACC, EXACT, NEEDS_THETA,
            TILE_H, BLOCK_C, CHANNELS, LOOP, UNROLL, NEEDS_IMAGE=True, MASKED=True,
        )  # fmt: skip
    elif NEEDS_THETA or not GATHERED:
        if inside:
            partial = backward_tiles(
                *given, SOURCE, ADJOINT, PAD, TAPS, ALIGN_CORNERS, FILL, MASK, ACC, EXACT, NEEDS_THETA,
                TILE_H, BLOCK_C, CHANNELS, LOOP, UNROLL, NEEDS_IMAGE=NEEDS_IMAGE and not GATHERED, MASKED=False,
            )  # fmt: skip
        else:
            partial = backward_tiles(
                *given, SOURCE, ADJOINT, PAD, TAPS, ALIGN_CORNERS, FILL, MASK, ACC, EXACT, NEEDS_THETA,
                TILE_H, BLOCK_C, CHANNELS, LOOP, UNROLL, NEEDS_IMAGE=NEEDS_IMAGE and not GATHERED, MASKED=True,
            )  # fmt: skip
    if NEEDS_THETA:
        STORE(partial, state, d_theta, column.to(ACC) - centre_of(w, ACC), axes)
