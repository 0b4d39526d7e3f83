"""How many instructions an output pixel may cost, so that memory and not arithmetic is what a warp waits for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .cases import DTYPES, Case
from .count import Path, Share

#: An H200 issues about 33e12 lane-instructions a second (132 multiprocessors x 4 x 32 x 1.98 GHz), and copies 4.3 TB/s.
INSTRUCTIONS_PER_BYTE = 7.8

# Forward, contiguous: what a probe without strides and align_corners compiled to, and a little more; for many channels
# tighter than memory asks for. By C and bytes an element; unmasked and masked path, for all channels.
GOALS = {
    (1, 4): (45, 62), (3, 4): (75, 110), (16, 4): (16 * 17, 16 * 22),
    (1, 2): (50, 68), (3, 2): (95, 130), (16, 2): (16 * 23, 16 * 30),
}  # fmt: skip

# Where memory's budget is out of reach: a pixel takes 30 instructions for its coordinates, 20 for theta's
# sums and masked 25 more for bounds, for the 8 bytes of one float32 channel, the 4 or 12 of one or three half ones.
BOUND_BY_INSTRUCTIONS = {("d_theta", 1, 4), ("d_theta", 1, 2), ("d_theta", 3, 2)}


def bytes_per_element(work: str, itemsize: int) -> int:
    """What must move at least: each tensor of the pass once, and a gradient of the image that atomics add to.

    That one is filled with zeros, read and written in float32, and for half types read again and written rounded.
    """
    image_gradient = 3 * 4 + (4 + itemsize if itemsize < 4 else 0)
    return {"forward": 2 * itemsize, "d_theta": 2 * itemsize, "both": 2 * itemsize + image_gradient}[work]


def budget(case: Case, work: str = "") -> tuple[float, float] | None:
    """Instructions per output pixel, without the prologue, (unmasked, masked); None for cases that have none.

    ``work`` is that of one of its paths, if it is another.
    """
    work = work or case.work
    channels, itemsize = case.shape[1], DTYPES[case.dtype].itemsize
    plain = (case.target, case.transform, case.mode, case.padding_mode, case.size)
    if plain != ("sm_90", "affine", "bilinear", "zeros", "small") or work == "d_image" or itemsize > 4 or case.mask:
        return None
    if work == "forward" and case.layout == "contiguous" and (channels, itemsize) in GOALS:
        return GOALS[channels, itemsize]
    memory = INSTRUCTIONS_PER_BYTE * bytes_per_element(work, itemsize) * channels
    return memory, memory


def over_budget(case: Case, paths: Mapping[str, Path], share: Share) -> Iterator[str]:
    """What costs more than it may, in words; not where that is known to be out of reach."""
    for name, path in paths.items():
        # Where images are gathered by another kernel, one path is for those that are not.
        work = "d_theta" if "scattered" in paths and name != "scattered" else case.work
        allowed = budget(case, work)
        if not allowed or (work, case.shape[1], DTYPES[case.dtype].itemsize) in BOUND_BY_INSTRUCTIONS:
            continue
        limit = allowed[name != "unmasked"]
        if (cost := path.per_pixel(share, with_prologue=False)) > limit:
            yield f"costs {cost:g} instructions a pixel on the {name} path, over its budget of {limit:g}"
