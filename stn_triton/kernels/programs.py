"""What one program owns: a sample of the output, some of its channels, and a column of tiles of target pixels.

Programs are numbered along launch grid axis x alone (y and z end at 65,535): tile columns fastest, then blocks of
rows, blocks of channels, samples.
"""

from __future__ import annotations

from .language import constexpr, jit, tl


@jit
def divide(value, divisor, multiplier, shift):
    """(value // divisor, value % divisor) for 0 <= value < 2^31, without a division's twenty instructions.

    ``multiplier`` and ``shift`` are `stn_triton.configs.divisor`'s.
    """
    high = tl.umulhi(value.to(tl.uint32), multiplier.to(tl.uint32))
    quotient = ((high + value.to(tl.uint32)) >> shift.to(tl.uint32)).to(tl.int32)
    return quotient, value - quotient * divisor


@jit
def own_block(column_blocks, row_blocks, channel_blocks, SPLIT: constexpr):
    """This program's sample, and its place among the blocks of channels, the blocks of rows and the tile columns."""
    rest, column_block = divide(tl.program_id(0), column_blocks[0], column_blocks[1], column_blocks[2])
    rest, row_block = divide(rest, row_blocks[0], row_blocks[1], row_blocks[2])
    if SPLIT:  # channels among programs
        n, channel_block = divide(rest, channel_blocks[0], channel_blocks[1], channel_blocks[2])
        return n, channel_block, row_block, column_block
    else:
        return rest, 0, row_block, column_block


@jit
def is_first(block):
    """Whether this is block 0, as an int1 mask: Triton 3.9's interpreter makes a scalar comparison an int32."""
    return tl.where(block == 0, True, False)


@jit
def read_by(sample, transforms, theta, stride_n, stride_m, MANY: constexpr):
    """Which image an output sample is made from, and where its theta begins.

    MANY: every image is read by ``transforms`` samples, each by a theta of its own.
    """
    if MANY:
        n, m = divide(sample, transforms[0], transforms[1], transforms[2])
        return n, theta + n.to(tl.int64) * stride_n + m.to(tl.int64) * stride_m
    else:
        return sample, theta + sample.to(tl.int64) * stride_n


@jit
def typed_strides(stride_c, stride_h, stride_w, INDEX: constexpr, UNIT: constexpr, VECTOR: constexpr):
    """A tensor's strides (c, h, w), with what the compiler is to know of them.

    UNIT: the pixels of a row are neighbours. VECTOR: the channels of a pixel are, and pixels begin at multiples of it.
    """
    stride_c, stride_h, stride_w = stride_c.to(INDEX), stride_h.to(INDEX), stride_w.to(INDEX)
    if VECTOR > 1:
        stride_h, stride_w = stride_h // VECTOR * VECTOR, stride_w // VECTOR * VECTOR
        return 1, tl.multiple_of(stride_h, VECTOR), tl.multiple_of(stride_w, VECTOR)
    else:
        return stride_c, stride_h, 1 if UNIT else stride_w


@jit
def offset_of(row, column, channel, strides):
    """Elements from where a sample's plane begins to a pixel's channel."""
    stride_c, stride_h, stride_w = strides
    return row * stride_h + column * stride_w + channel * stride_c


@jit
def plane_of(tensor, n, stride_n, channel, stride_c, VECTOR: constexpr):
    """Where a sample's channel begins, in 64 bits; with VECTOR at a multiple of as many elements."""
    plane = tensor + (n.to(tl.int64) * stride_n + channel.to(tl.int64) * stride_c)
    SIZE: constexpr = tensor.dtype.element_ty.primitive_bitwidth // 8
    return tl.multiple_of(plane, VECTOR * SIZE) if VECTOR > 1 else plane


@jit
def pixels(first_row, first_column, TILE_H: constexpr, TILE_W: constexpr):
    """Target rows and columns of a tile, (TILE_H * TILE_W, 1) each: a warp's lanes are neighbours in a row."""
    pixel = tl.arange(0, TILE_H * TILE_W)[:, None]
    return first_row + pixel // TILE_W, first_column + pixel % TILE_W
