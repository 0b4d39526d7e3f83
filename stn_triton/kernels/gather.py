"""The gradient of the image by gathering: every pixel asks the target pixels that can have read it.

The adjoint of a warp adds to each pixel what many target pixels pass on. Seen from the target that is a scatter:
atomics in any order, onto zeros, in float32 at least. Where the map has an inverse, a pixel of the image knows a box of
target pixels that can have read it (`preimage`). It maps those forward again, by the function that the forward pass
maps them by, and adds up those of which it is a tap. No atomics, no zeros; each element is written once, in its own
dtype; and the sum is the same, in the same order, on every run and for every launch shape.

A box costs time: (2 half_x + 1) (2 half_y + 1) target pixels are asked, for the 4 / |det| that read a pixel under
bilinear: 9 near scale 1, 4 or 1 where an upright warp minifies, (2 s + 1)^2 where it zooms in by s. An image with boxes
of more than ``most`` is left to the scatter. Each program sees that by itself, from theta, and the first says so
in ``scattered`` for `warp.warp_backward`: nobody waits for the host. Of M transforms, all must do.
"""

from __future__ import annotations

from .coordinates import axis_frame, centre_of, floor
from .language import constexpr, float64, int64, jit, tl
from .preimage import first_pixel, meets, pixels_in
from .programs import offset_of, own_block, pixels, plane_of, typed_strides


@jit
def window_of(
    theta, theta_strides, theta_sizes, first_row, last_row, first_column, last_column, sizes, axes,
    LOAD: constexpr, INVERSE: constexpr, BOX: constexpr, EXTENT: constexpr, RADIUS: constexpr,
    ACC: constexpr, INDEX: constexpr,
):  # fmt: skip
    """What a program's pixels, of these rows and columns, ask by a theta; and how many any pixel of the image asks.

    That is (state, numbers, columns, rows), the last two of the largest box; no rows where no box meets the output.
    """
    h, w = sizes[0], sizes[1]
    state = LOAD(theta, theta_strides, theta_sizes, axes, ACC, INDEX)
    numbers, candidates = INVERSE(state, sizes, axes, RADIUS, ACC)
    block = (numbers, first_column.to(ACC), last_column.to(ACC), first_row.to(ACC), last_row.to(ACC))
    width, height = EXTENT(*block)
    columns, rows = pixels_in(width, w, ACC), pixels_in(height, h, ACC)
    rows = tl.where(meets(*block, centre_of(w, ACC), centre_of(h, ACC), BOX), rows, 0.0)
    return (state, numbers, floor(columns)[1], floor(rows)[1]), candidates


@jit
def gather(
    totals, d_out, d_out_strides, channel, window, i, j, sizes, axes,
    SOURCE: constexpr, BOX: constexpr, SHARE: constexpr, ACC: constexpr, BLOCK_C: constexpr, CHANNELS: constexpr,
    COLUMNS: constexpr,
):  # fmt: skip
    """Adds to the totals of some channels of pixels (j, i) what one sample of d_out passes on to them."""
    state, numbers, columns, rows = window
    d_out_c, d_out_h, d_out_w = d_out_strides
    last_x, last_y = centre_of(sizes[1], ACC), centre_of(sizes[0], ACC)
    left, _right, top, _bottom = BOX(numbers, j, i)
    x, l = first_pixel(left, last_x)  # noqa: E741
    y, k = first_pixel(top, last_y)
    place = d_out + offset_of(k, l, channel, d_out_strides)
    for _columns in range(0, columns, COLUMNS):
        y_row, line = y, place
        for row in range(rows):
            end = tl.where(y_row <= last_y, last_x, -float("inf"))
            for column in tl.static_range(COLUMNS):
                u, v, _seen = SOURCE(state, k + row, l + column, True, x + column, y_row, axes)
                weight_x, reached_x = SHARE(u, j)
                weight_y, reached_y = SHARE(v, i)
                reads = (reached_x >= 0) & (reached_y >= 0) & (x + column <= end)
                weight = tl.where(reads, weight_y * weight_x, 0.0)  # others may not be finite
                new = ()
                for c in tl.static_range(CHANNELS):
                    d_value = tl.load(line + (column * d_out_w + c * (BLOCK_C * d_out_c)), mask=reads, other=0.0)
                    new += (tl.fma(weight, d_value.to(ACC), totals[c]),)
                totals = new
            y_row += 1
            line += d_out_h
        x += COLUMNS
        l += COLUMNS  # noqa: E741 - the output's column
        place += COLUMNS * d_out_w
    return totals


@jit
def gather_channels(
    d_out, d_out_strides, d_image, d_image_strides, at, live, channel, window, i, j, others, block, sizes, axes,
    LOAD: constexpr, SOURCE: constexpr, INVERSE: constexpr, BOX: constexpr, EXTENT: constexpr, SHARE: constexpr,
    RADIUS: constexpr, COLUMNS: constexpr, MANY: constexpr, ACC: constexpr, INDEX: constexpr, VECTOR: constexpr,
    BLOCK_C: constexpr, CHANNELS: constexpr,
):  # fmt: skip
    """Sums of some channels of a tile of pixels, from all transforms, and stores them; d_out is the program's sample.

    MANY: d_out is all of it, and ``others`` says where samples and their thetas are.
    """
    totals = ()
    for _c in tl.static_range(CHANNELS):
        totals += (tl.zeros([at.shape[0], BLOCK_C], ACC),)
    if MANY:
        transforms, sample, stride_n, first_channel, stride_c, theta, stride_m, theta_strides, theta_sizes = others
        for m in range(transforms):
            window_m, _candidates = window_of(
                theta + m * stride_m, theta_strides, theta_sizes, *block, sizes, axes,
                LOAD, INVERSE, BOX, EXTENT, RADIUS, ACC, INDEX,
            )  # fmt: skip
            totals = gather(
                totals, plane_of(d_out, sample + m, stride_n, first_channel, stride_c, VECTOR), d_out_strides, channel,
                window_m, i, j, sizes, axes, SOURCE, BOX, SHARE, ACC, BLOCK_C, CHANNELS, COLUMNS,
            )  # fmt: skip
    else:
        totals = gather(
            totals, d_out, d_out_strides, channel, window, i, j, sizes, axes,
            SOURCE, BOX, SHARE, ACC, BLOCK_C, CHANNELS, COLUMNS,
        )  # fmt: skip
    at += channel * d_image_strides[0]
    for c in tl.static_range(CHANNELS):
        tl.store(d_image + (at + c * (BLOCK_C * d_image_strides[0])), totals[c].to(d_image.dtype.element_ty), mask=live)


# The arguments that are values at run time.
RUN_TIME = (
    "d_out", "theta", "d_image", "sums", "rests", "scattered",
    "C", "H", "W", "h", "w", "channels", "steps",
    "column_blocks", "columns_multiplier", "columns_shift",
    "row_blocks", "rows_multiplier", "rows_shift",
    "channel_blocks", "channels_multiplier", "channels_shift",
    "theta_stride_n", "theta_stride_0", "theta_stride_1", "theta_stride_2",
    "out_stride_n", "out_stride_c", "out_stride_h", "out_stride_w",
    "d_image_stride_n", "d_image_stride_c", "d_image_stride_h", "d_image_stride_w",
    "ratio_x", "pitch_x", "inverse_x", "ratio_y", "pitch_y", "inverse_y",
    "transforms", "theta_stride_m", "theta_size_0", "theta_size_1", "most",
)  # fmt: skip


@jit(do_not_specialize=RUN_TIME)
def warp_gather(
    d_out, theta, d_image, sums, rests: int64, scattered,
    C, H, W, h, w, channels, steps,
    column_blocks, columns_multiplier: int64, columns_shift,
    row_blocks, rows_multiplier: int64, rows_shift,
    channel_blocks, channels_multiplier: int64, channels_shift,
    theta_stride_n: int64, theta_stride_0: int64, theta_stride_1: int64, theta_stride_2: int64,
    out_stride_n: int64, out_stride_c: int64, out_stride_h: int64, out_stride_w: int64,
    d_image_stride_n: int64, d_image_stride_c: int64, d_image_stride_h: int64, d_image_stride_w: int64,
    ratio_x: float64, pitch_x: float64, inverse_x: float64,
    ratio_y: float64, pitch_y: float64, inverse_y: float64,
    transforms, theta_stride_m: int64, theta_size_0, theta_size_1, most,
    LOAD: constexpr, SOURCE: constexpr, INVERSE: constexpr, BOX: constexpr, EXTENT: constexpr,
    SHARE: constexpr, RADIUS: constexpr, COLUMNS: constexpr, ALIGN_CORNERS: constexpr, MANY: constexpr,
    EXACT: constexpr, ACC: constexpr, INDEX: constexpr, UNIT: constexpr, VECTOR: constexpr,
    TILE_H: constexpr, TILE_W: constexpr, BLOCK_C: constexpr, CHANNELS: constexpr, LOOP: constexpr, UNROLL: constexpr,
):  # fmt: skip
    """d_image[n, c, i, j] = sum over (m and) k, l of d_out[n, (m,) c, k, l] k(u - j) k(v - i), (u, v) = T_theta(l, k).

    One program owns ``channels`` channels of one image and ``steps * UNROLL`` tiles of TILE_H x TILE_W of its pixels
    below each other, with all M transforms. Of an image that is left to the scatter it clears ``sums`` instead, which
    is d_image itself or has its strides; EXACT: and the rests, so many elements behind.

    Launch grid: (N * channel_blocks * row_blocks * column_blocks,).
    """
    n, channel_block, row_block, column_block = own_block(
        (column_blocks, columns_multiplier, columns_shift), (row_blocks, rows_multiplier, rows_shift),
        (channel_blocks, channels_multiplier, channels_shift), LOOP,
    )  # fmt: skip
    sizes = (h, w, H, W)
    axes = (
        axis_frame(W, ratio_x, pitch_x, inverse_x, ALIGN_CORNERS, ACC),
        axis_frame(H, ratio_y, pitch_y, inverse_y, ALIGN_CORNERS, ACC),
    )
    theta += n.to(tl.int64) * theta_stride_n
    theta_strides, theta_sizes = (theta_stride_0, theta_stride_1, theta_stride_2), (theta_size_0, theta_size_1)
    d_out_strides = typed_strides(out_stride_c, out_stride_h, out_stride_w, INDEX, UNIT, VECTOR)
    strides = typed_strides(d_image_stride_c, d_image_stride_h, d_image_stride_w, INDEX, UNIT, VECTOR)
    first_channel = channel_block * channels
    others = (
        transforms, n * transforms, out_stride_n, first_channel, out_stride_c,
        theta, theta_stride_m, theta_strides, theta_sizes,
    )  # fmt: skip
    if not MANY:
        d_out = plane_of(d_out, n, out_stride_n, first_channel, out_stride_c, VECTOR)
    d_image = plane_of(d_image, n, d_image_stride_n, first_channel, d_image_stride_c, VECTOR)
    sums = plane_of(sums, n, d_image_stride_n, first_channel, d_image_stride_c, VECTOR)
    channels = tl.minimum(channels, C - first_channel)
    rows = TILE_H * UNROLL * steps
    first_row, first_column = row_block * rows, column_block * TILE_W
    block = (
        first_row, tl.minimum(first_row + rows, H) - 1, first_column, tl.minimum(first_column + TILE_W, W) - 1
    )  # fmt: skip
    window, candidates = window_of(
        theta, theta_strides, theta_sizes, *block, sizes, axes, LOAD, INVERSE, BOX, EXTENT, RADIUS, ACC, INDEX
    )
    if MANY:
        for m in range(1, transforms):
            _, candidates_m = window_of(
                theta + m * theta_stride_m, theta_strides, theta_sizes, *block, sizes, axes,
                LOAD, INVERSE, BOX, EXTENT, RADIUS, ACC, INDEX,
            )  # fmt: skip
            candidates = tl.maximum(candidates, candidates_m)
    gathers = candidates <= most
    row, column = pixels(first_row, first_column, TILE_H, TILE_W)
    channel = tl.arange(0, BLOCK_C)[None, :]
    at = offset_of(row, column, 0, strides)
    i, j = row.to(ACC), column.to(ACC)
    last_i, in_row = (H - 1).to(ACC), column < W
    for _tile in range(steps * UNROLL):
        live = in_row & (i <= last_i)
        if gathers:
            if LOOP:
                for c in range(0, channels, BLOCK_C * CHANNELS):
                    gather_channels(
                        d_out, d_out_strides, d_image, strides, at, live, channel + c, window, i, j, others, block,
                        sizes, axes, LOAD, SOURCE, INVERSE, BOX, EXTENT, SHARE, RADIUS, COLUMNS, MANY, ACC, INDEX,
                        VECTOR, BLOCK_C, CHANNELS,
                    )  # fmt: skip
            else:
                gather_channels(
                    d_out, d_out_strides, d_image, strides, at, live, channel, window, i, j, others, block,
                    sizes, axes, LOAD, SOURCE, INVERSE, BOX, EXTENT, SHARE, RADIUS, COLUMNS, MANY, ACC, INDEX,
                    VECTOR, BLOCK_C, CHANNELS,
                )  # fmt: skip
        else:
            for c in range(0, channels, BLOCK_C):
                place = sums + (at + (channel + c) * strides[0])
                tl.store(place, tl.zeros(place.shape, sums.dtype.element_ty), mask=live)
                if EXACT:
                    tl.store(place + rests, tl.zeros(place.shape, sums.dtype.element_ty), mask=live)
        i += TILE_H
        at += TILE_H * strides[1]
    if row_block + column_block + channel_block == 0:
        tl.store(scattered + n, tl.where(gathers, 0, 1))
