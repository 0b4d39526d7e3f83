"""The gradient of the image by gathering: every pixel asks the target pixels that can have read it.

The adjoint of a warp adds to each pixel what many target pixels pass on. Seen from the target that is a scatter:
atomics in any order, onto zeros, in float32 at least. Where the map has an inverse, a pixel of the image knows a box of
target pixels that can have read it (`preimage`). It maps those forward again, by the function that the forward pass
maps them by, and adds up those of which it is a tap. No atomics, no zeros; each element is written once, in its own
dtype; and the sum is the same, in the same order, on every run and for every launch shape.

A box costs time: under bilinear and near scale 1 it has 9 target pixels, for the 4 that read a pixel. That of two
pixels below each other has 12, so a lane has LANE_ROWS pixels, and asks once for all; (2 s + 1) (3 s + 1) of them,
where an upright warp zooms in by s. An image with boxes of more than ``most`` is left to the scatter. Each program
sees that by itself, from theta, and the first says so in ``scattered`` for `warp.warp_backward`: nobody waits for the
host. Of M transforms, all must do.
"""

from __future__ import annotations

from .coordinates import axis_frame, centre_of, floor
from .language import constexpr, float64, int64, jit, tl
from .preimage import first_pixel, meets, pixels_in
from .programs import offset_of, own_block, pixels, plane_of, typed_strides


@jit
def window_of(
    theta, theta_strides, theta_sizes, block, sizes, axes,
    LOAD: constexpr, INVERSE: constexpr, BOX: constexpr, EXTENT: constexpr, RADIUS: constexpr, LANE_ROWS: constexpr,
    ACC: constexpr, INDEX: constexpr,
):  # fmt: skip
    """What the lanes of a block ask by a theta; and how many target pixels any lane of the image asks.

    That is (state, numbers, columns, rows), the last two of the largest box; no rows where no box meets the output.
    """
    h, w = sizes[0], sizes[1]
    state = LOAD(theta, theta_strides, theta_sizes, axes, ACC, INDEX)
    numbers, candidates = INVERSE(state, sizes, axes, RADIUS, RADIUS + (LANE_ROWS - 1) / 2, ACC)
    width, height = EXTENT(numbers, *block)
    columns, rows = pixels_in(width, w, ACC), pixels_in(height, h, ACC)
    rows = tl.where(meets(numbers, *block, centre_of(w, ACC), centre_of(h, ACC), BOX), rows, 0.0)
    return (state, numbers, floor(columns)[1], floor(rows)[1]), candidates


@jit
def ask(
    totals, d_out, d_out_strides, corner, rows, state, j, i, sizes, axes,
    SOURCE: constexpr, WEIGHT_AT: constexpr, ACC: constexpr, BLOCK_C: constexpr, CHANNELS: constexpr,
    LANE_ROWS: constexpr, TOGETHER: constexpr,
):  # fmt: skip
    """Adds to the totals what ``rows`` x TOGETHER target pixels pass on, from a corner (k, l, x, y, offset) on."""
    k, l, x, y, at = corner  # noqa: E741 - the output's column
    d_out_c, d_out_h, d_out_w = d_out_strides
    last_x, last_y = centre_of(sizes[1], ACC), centre_of(sizes[0], ACC)
    for row in range(rows):
        in_output = y <= last_y
        for column in tl.static_range(TOGETHER):
            u, v, _seen = SOURCE(state, k + row, l + column, True, x + column, y, axes)
            weight_x, reads_x = WEIGHT_AT(u, j)
            reads_x = reads_x & (x + column <= last_x) & in_output
            weights, wanted = (), False
            for r in tl.static_range(LANE_ROWS):
                weight_y, reads_y = WEIGHT_AT(v, i + r)
                reads = reads_x & reads_y
                weights += ((weight_y * weight_x, reads),)
                wanted = wanted | reads
            new = ()
            for c in tl.static_range(CHANNELS):
                # The scalar first, as in `samplers.pointer`: a row of a channel costs one 64-bit addition.
                d_value = tl.load(d_out + c * (BLOCK_C * d_out_c) + at + column * d_out_w, mask=wanted, other=0.0)
                for r in tl.static_range(LANE_ROWS):
                    total = tl.fma(weights[r][0], d_value.to(ACC), totals[c * LANE_ROWS + r])
                    # A pixel takes nothing from a candidate that does not read it: 0 * inf would be NaN.
                    new += (tl.where(weights[r][1], total, totals[c * LANE_ROWS + r]),)
            totals = new
        y += 1
        at += d_out_h
    return totals


@jit
def gather(
    totals, d_out, d_out_strides, channel, window, j, i, sizes, axes,
    SOURCE: constexpr, BOX: constexpr, WEIGHT_AT: constexpr, ACC: constexpr, BLOCK_C: constexpr, CHANNELS: constexpr,
    LANE_ROWS: constexpr, TOGETHER: constexpr,
):  # fmt: skip
    """Adds to the totals of pixels (j, i) to (j, i + LANE_ROWS - 1) what one sample of d_out passes on to them.

    They are totals[c * LANE_ROWS + r], of BLOCK_C channels each. Of a box's columns TOGETHER are asked at a time.
    """
    state, numbers, columns, rows = window
    left, _right, top, _bottom = BOX(numbers, j, i + (LANE_ROWS - 1) / 2)
    x, l = first_pixel(left, centre_of(sizes[1], ACC))  # noqa: E741 - the output's column
    y, k = first_pixel(top, centre_of(sizes[0], ACC))
    at = offset_of(k, l, channel, d_out_strides)
    # At most one is left: two, one by one, would be added in another order than where a larger block asks for three.
    together = (columns + TOGETHER - 2) // TOGETHER * TOGETHER if TOGETHER > 1 else 0
    for _columns in range(0, together, TOGETHER):
        totals = ask(
            totals, d_out, d_out_strides, (k, l, x, y, at), rows, state, j, i, sizes, axes,
            SOURCE, WEIGHT_AT, ACC, BLOCK_C, CHANNELS, LANE_ROWS, TOGETHER,
        )  # fmt: skip
        l, x, at = l + TOGETHER, x + TOGETHER, at + TOGETHER * d_out_strides[2]  # noqa: E741
    for _column in range(together, columns):
        totals = ask(
            totals, d_out, d_out_strides, (k, l, x, y, at), rows, state, j, i, sizes, axes,
            SOURCE, WEIGHT_AT, ACC, BLOCK_C, CHANNELS, LANE_ROWS, 1,
        )  # fmt: skip
        l, x, at = l + 1, x + 1, at + d_out_strides[2]  # noqa: E741
    return totals


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
    WEIGHT_AT: constexpr, RADIUS: constexpr, ALIGN_CORNERS: constexpr, MANY: constexpr, EXACT: constexpr,
    ACC: constexpr, INDEX: constexpr, UNIT: constexpr, VECTOR: constexpr,
    TILE_H: constexpr, TILE_W: constexpr, BLOCK_C: constexpr, CHANNELS: constexpr, LOOP: constexpr,
    LANE_ROWS: constexpr, TOGETHER: constexpr,
):  # fmt: skip
    """d_image[n, c, i, j] = sum over (m and) k, l of d_out[n, (m,) c, k, l] k(u - j) k(v - i), (u, v) = T_theta(l, k).

    One program owns ``channels`` channels of one image and ``steps`` tiles of TILE_H * LANE_ROWS x TILE_W of its pixels
    below each other, with all M transforms; a lane LANE_ROWS pixels of a column. Of an image that is left to the
    scatter it clears ``sums`` instead, d_image itself or of its strides; EXACT: and the rests, so many elements behind.

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
    d_image = plane_of(d_image, n, d_image_stride_n, first_channel, d_image_stride_c, VECTOR)
    sums = plane_of(sums, n, d_image_stride_n, first_channel, d_image_stride_c, VECTOR)
    channels = tl.minimum(channels, C - first_channel)
    rows = TILE_H * LANE_ROWS * steps
    first_row, first_column = row_block * rows, column_block * TILE_W
    last_row = (tl.minimum(first_row + rows, H) - 1) // LANE_ROWS * LANE_ROWS
    middle = (LANE_ROWS - 1) / 2
    block = (
        first_column.to(ACC), (tl.minimum(first_column + TILE_W, W) - 1).to(ACC),
        first_row.to(ACC) + middle, last_row.to(ACC) + middle,
    )  # fmt: skip
    window, candidates = window_of(
        theta, theta_strides, theta_sizes, block, sizes, axes, LOAD, INVERSE, BOX, EXTENT, RADIUS, LANE_ROWS, ACC, INDEX
    )
    if MANY:
        for m in range(1, transforms):
            _, candidates_m = window_of(
                theta + m * theta_stride_m, theta_strides, theta_sizes, block, sizes, axes,
                LOAD, INVERSE, BOX, EXTENT, RADIUS, LANE_ROWS, ACC, INDEX,
            )  # fmt: skip
            candidates = tl.maximum(candidates, candidates_m)
    gathers = candidates <= most
    row, column = pixels(0, first_column, TILE_H, TILE_W)
    row = first_row + row * LANE_ROWS
    channel = tl.arange(0, BLOCK_C)[None, :]
    j, in_row = column.to(ACC), column < W
    written = BLOCK_C * CHANNELS
    for _tile in range(steps):
        i = row.to(ACC)
        at = offset_of(row, column, channel, strides)
        if gathers:
            for first in range(0, channels if LOOP else written, written):
                totals = ()
                for _total in tl.static_range(CHANNELS * LANE_ROWS):
                    totals += (tl.zeros(at.shape, ACC),)
                for m in range(transforms if MANY else 1):
                    if MANY:
                        window, _ = window_of(
                            theta + m * theta_stride_m, theta_strides, theta_sizes, block, sizes, axes,
                            LOAD, INVERSE, BOX, EXTENT, RADIUS, LANE_ROWS, ACC, INDEX,
                        )  # fmt: skip
                    sample = plane_of(d_out, n * transforms + m, out_stride_n, first_channel, out_stride_c, VECTOR)
                    totals = gather(
                        totals, sample, d_out_strides, channel + first, window, j, i, sizes, axes,
                        SOURCE, BOX, WEIGHT_AT, ACC, BLOCK_C, CHANNELS, LANE_ROWS, TOGETHER,
                    )  # fmt: skip
                for c in tl.static_range(CHANNELS):
                    for r in tl.static_range(LANE_ROWS):
                        place, live = d_image + (at + (first + c * BLOCK_C) * strides[0] + r * strides[1]), row + r < H
                        tl.store(place, totals[c * LANE_ROWS + r].to(d_image.dtype.element_ty), mask=in_row & live)
        else:
            zero = tl.zeros(at.shape, sums.dtype.element_ty)
            for first in range(0, channels, BLOCK_C):
                for r in tl.static_range(LANE_ROWS):
                    place, live = sums + (at + first * strides[0] + r * strides[1]), row + r < H
                    tl.store(place, zero, mask=in_row & live)
                    if EXACT:
                        tl.store(place + rests, zero, mask=in_row & live)
        row += TILE_H * LANE_ROWS
    if row_block + column_block + channel_block == 0:
        tl.store(scattered + n, tl.where(gathers, 0, 1))
