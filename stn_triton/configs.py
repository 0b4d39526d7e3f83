"""Launch shapes of the kernels: pinned data, chosen by what a warp is and never tuned at run time.

Where they come from: the instruction counts of ``python -m bench.codegen`` (triton 3.7.1, sm_90) and the arithmetic
in the comments. None of them has been timed on a GPU yet.
"""

from __future__ import annotations

from typing import NamedTuple


class LaunchConfig(NamedTuple):
    """How a kernel's work is cut: tile_h * tile_w * lanes_c lanes, 32 a warp on CUDA and 64 on AMD.

    The channels must be a multiple of what one trip of the loop takes (without the loop, exactly that): the kernels
    do not test for a last, smaller one. `cut` refuses anything else.
    """

    tile_h: int
    tile_w: int
    lanes_c: int = 1  #: lanes next to each other that share a pixel, each with 128 bits of its channels
    channels: int = 1  #: written out one after the other
    loop: bool = True  #: over any number of times as many channels; False: there are no more
    unroll: int = 1  #: tiles in a row without a loop's counting
    max_steps: int = 8  #: times `unroll` tiles, that one program walks down at most
    min_steps: int = 1  #: and at least, where there are as many


# All have 128 lanes: few enough for a 28 x 28 output, and 16 such programs fill a multiprocessor at up to 32 registers.
#
# Where the pixels of a row are neighbours, a warp spans 32 of them: a store is one 128-byte line, a gather near the
# identity one or two; four rows share most lines they gather. Two tiles a step keep 8 gathers of a lane in flight.
ONE_CHANNEL = LaunchConfig(4, 32, channels=1, loop=False, unroll=2)  # 44 instructions a pixel, masked 62
THREE_CHANNELS = LaunchConfig(4, 32, channels=3, loop=False, unroll=2)  # bases of planes stay in registers: 40 of them
# Forward, channels written out: 14.3 instructions each and 41 a pixel; a plain loop, which the compiler writes out
# four times itself, 15.2 and 55. Backward a plain loop: written out, theta's gradient is 8 % less unmasked and 9 % more
# masked, and both gradients take 168 registers instead of 48.
SIXTEEN_CHANNELS = LaunchConfig(4, 32, channels=16)
ANY_CHANNELS = LaunchConfig(4, 32)
# At most 16 columns would leave half of a 4 x 32 tile idle; eight pixels still are a 32-byte sector. Eight channels at
# a time, 14.6 instructions each: few pixels need many programs, and sixteen would make half as many.
NARROW_EIGHT_CHANNELS = LaunchConfig(16, 8, channels=8)
NARROW_ANY_CHANNELS = LaunchConfig(16, 8)
# Where the channels of a pixel are neighbours, 16, 4 or 1 lanes share a pixel: 256, 64 or 16 bytes of it at a time.
# Fewer pixels to a tile, so more steps; eight wide, so that rows share what they gather.
CHANNELS_LAST = {
    16: LaunchConfig(1, 8, lanes_c=16, max_steps=32),
    4: LaunchConfig(4, 8, lanes_c=4, max_steps=16),
    1: LaunchConfig(4, 32, lanes_c=1),
}
# The interpreter pays per program, not per pixel.
INTERPRETER = (32, 64)

# Rows that a program has at least, where there are as many, and at most, if each of its lanes writes sums of a column:
# the more, the fewer of them are written; with the least, latency leaves a GPU idle that has few pixels to do.
ROWS_OF_COLUMNS = (32, 64)

# Six programs, 24 warps, for each of an H200's 132 multiprocessors. Rather than launch fewer, programs walk down fewer
# tiles, then take fewer channels (not below CHANNELS_AT_LEAST): prologue and coordinates computed again cost less than
# a GPU half idle. More would not pay: the prologue, 200 instructions, is as much as five pixels of one channel.
ENOUGH_PROGRAMS = 132 * 6
CHANNELS_AT_LEAST = 8
# Where an image's gradient is gathered, pixels below each other for which a lane asks at once: 17 to 23 % fewer
# instructions a pixel than alone (bilinear, scale 1, C = 1, 3 and 16), where four save less, and spill for C = 16. The
# order of sums depends on it, so that it is no part of a launch shape.
LANE_ROWS = 2
# It is gathered where no lane asks more target pixels: under bilinear up to a zoom in by 5, upright. Beyond, few pixels
# get all of the work, and each lane does its own alone. Of arithmetic, not yet of a measurement.
MOST_CANDIDATES = 150
# Columns of a box that are asked together: under bilinear those at scale 1; under bicubic two, since five would save
# 5 % at most, and cost more where a box has three.
COLUMNS_TOGETHER = {"nearest": 2, "bilinear": 3, "bicubic": 2}
MOST_LANES = 256  # of a program: 8 warps of 32, which suit every GPU
MAX_THREADS = 1024  # per program that every GPU can launch


def choose_config(forward: bool, channels: int, width: int, unit: bool, vector: int) -> LaunchConfig:
    """The launch shape of a kernel.

    Args:
        forward: or backward.
        channels: C.
        width: of the output, w.
        unit: whether the pixels of a row lie next to each other.
        vector: channels of a pixel that 128 bits hold; 1 where they do not lie next to each other.
    """
    if vector > 1:
        return CHANNELS_LAST[next(lanes for lanes in CHANNELS_LAST if channels % (lanes * vector) == 0)]
    if channels in (1, 3):
        config = ONE_CHANNEL if channels == 1 else THREE_CHANNELS
        return config if unit else config._replace(unroll=1)  # another stride's addresses: two tiles spill on sm_120
    if width <= 16 and unit:
        return NARROW_EIGHT_CHANNELS if forward and channels % 8 == 0 else NARROW_ANY_CHANNELS
    return SIXTEEN_CHANNELS if forward and unit and channels % 16 == 0 else ANY_CHANNELS


def choose_gather_config(channels: int, width: int, unit: bool, vector: int) -> LaunchConfig:
    """The launch shape of the gather, whose tiles are of the image, ``width`` wide; else as `choose_config`.

    A box of target pixels costs much more than the values in it, so several channels share its coordinates: up to
    eight, or 256 bits of neighbours. More sums of LANE_ROWS pixels, and values in flight, would leave few warps.
    """
    config = choose_config(False, channels, width, unit, vector)._replace(max_steps=16)
    if config.lanes_c > 1:  # half as many lanes share a pixel: each takes 128 bits twice, 40 % fewer instructions
        return config._replace(tile_h=2 * config.tile_h, lanes_c=config.lanes_c // 2, channels=2)
    if config.tile_h > config.tile_w:  # as many rows as without, in 64 lanes, or small images leave half of them idle
        config = config._replace(tile_h=config.tile_h // LANE_ROWS)
    if vector > 1 or not config.loop:
        return config
    return config._replace(channels=next(written for written in (8, 4, 3, 2, 1) if channels % written == 0))


def by_columns(config: LaunchConfig, width: int) -> LaunchConfig:
    """The same with its lanes side by side in one row, as many as an output of that width needs, and far down."""
    tile_w = min(config.tile_h * config.tile_w, max(32, 2 ** (width - 1).bit_length()))
    least, most = (blocks_of(rows, config.unroll) for rows in ROWS_OF_COLUMNS)
    return config._replace(tile_h=1, tile_w=tile_w, min_steps=least, max_steps=most)


def widened(config: LaunchConfig, width: int, most: int) -> LaunchConfig:
    """The same with tiles so wide that at most ``most`` of them, while MOST_LANES allow it, cover an output."""
    while blocks_of(width, config.tile_w) > most:
        if config.tile_h > 1:
            config = config._replace(tile_h=config.tile_h // 2)
        elif config.lanes_c > 1:
            config = config._replace(lanes_c=config.lanes_c // 2)
        elif config.tile_w == MOST_LANES:
            break
        config = config._replace(tile_w=config.tile_w * 2)
    return config


class Blocks(NamedTuple):
    """How a launch is cut into programs; a divisor is what `divisor` gives."""

    channels: int  #: of a program
    steps: int  #: of a program
    rows: int  #: of pixels, of a program
    column_blocks: tuple[int, int, int]
    row_blocks: tuple[int, int, int]
    channel_blocks: tuple[int, int, int]

    @property
    def per_sample(self) -> int:
        """Programs that share a sample."""
        return self.column_blocks[0] * self.row_blocks[0] * self.channel_blocks[0]


def cut(
    config: LaunchConfig, batch: int, channels: int, size: tuple[int, int], vector: int, most: int | None = None
) -> Blocks:
    """As few programs as fill the GPU, each as large as that leaves them; for a sample at most ``most``."""
    tile = config.tile_h * config.unroll
    columns = blocks_of(size[1], config.tile_w)
    steps = min(config.max_steps, blocks_of(size[0], tile))
    while steps > config.min_steps and batch * columns * blocks_of(size[0], tile * steps) < ENOUGH_PROGRAMS:
        steps = max(config.min_steps, blocks_of(steps, 2))
    if most is not None:
        steps = max(steps, blocks_of(blocks_of(size[0], tile), max(1, most // columns)))
    rows = blocks_of(size[0], tile * steps)
    share = channels
    trip = config.channels * config.lanes_c * vector
    if channels % trip or not (config.loop or channels == trip):
        raise ValueError(f"config: expected one for {channels} channels, {vector} to 128 bits, got {config}")
    if config.loop:
        wanted = blocks_of(ENOUGH_PROGRAMS, max(1, batch) * columns * rows)
        if most is not None:
            wanted = min(wanted, max(1, most // (columns * rows)))
        share = trip * max(blocks_of(min(channels, CHANNELS_AT_LEAST), trip), blocks_of(channels, trip * wanted))
    return Blocks(share, steps, tile * steps, divisor(columns), divisor(rows), divisor(blocks_of(channels, share)))


def blocks_of(total: int, block: int) -> int:
    """How many blocks cover the total, at least one."""
    return max(1, -(-total // block))


def divisor(d: int) -> tuple[int, int, int]:
    """(d, multiplier, shift) such that n // d = (n + (n * multiplier >> 32)) >> shift for 0 <= n < 2^31.

    Granlund and Montgomery, Division by invariant integers using multiplication (1994).
    """
    shift = (d - 1).bit_length()
    return d, (2**32 * (2**shift - d)) // d + 1, shift
