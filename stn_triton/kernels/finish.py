"""The end of an image gradient that was scattered into a buffer of its own: sums are rounded to its dtype."""

from __future__ import annotations

from .fixed_point import join
from .language import constexpr, int64, jit, tl
from .programs import divide


@jit(
    do_not_specialize=(
        "sums", "peaks", "rests", "bits", "scattered", "d_image", "C", "stride_c", "numel",
        "blocks", "blocks_multiplier", "blocks_shift",
    )
)  # fmt: skip
def warp_finish(
    sums, peaks, rests: int64, bits, scattered, d_image,
    C, stride_c: int64, numel: int64, blocks, blocks_multiplier: int64, blocks_shift,
    EXACT: constexpr, GATHERED: constexpr, INDEX: constexpr, STEPS: constexpr, BLOCK: constexpr,
):  # fmt: skip
    """d_image[n] = sums[n]: ``numel`` elements of an image, which lie alike and without gaps in both.

    EXACT: sums are those of `fixed_point`. GATHERED: of the images that ``scattered`` tells; the others are there.
    One program owns STEPS times BLOCK elements of one image. Launch grid: (N * blocks,).
    """
    n, block = divide(tl.program_id(0), blocks, blocks_multiplier, blocks_shift)
    wanted = True
    if GATHERED:
        wanted = tl.load(scattered + n) != 0
    if wanted:
        sums += n.to(tl.int64) * numel
        d_image += n.to(tl.int64) * numel
        at = block.to(INDEX) * (STEPS * BLOCK) + tl.arange(0, BLOCK)
        for _step in range(STEPS):
            live = at < numel
            value = tl.load(sums + at, mask=live)
            if EXACT:
                peak = tl.load(peaks + (n.to(tl.int64) * C + at // stride_c.to(INDEX) % C), mask=live)
                value = join(value, tl.load(sums + rests + at, mask=live), peak, bits)
            tl.store(d_image + at, value.to(d_image.dtype.element_ty), mask=live)
            at += BLOCK
