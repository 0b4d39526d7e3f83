"""What a compiled kernel costs, read from its machine code."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from .assembly import Instruction, parse_gcn, parse_sass
from .capture import Launch, disassemble, resources
from .flow import Region, control_flow


@dataclass(frozen=True)
class Path:
    """Instructions that one lane issues, from one of a kernel's two loops over tiles."""

    prologue: int  #: once per program: before and after the loops
    pixel: float  #: per output pixel, without the loop over channels
    channel: float  #: per channel of an output pixel, in the loop over channels; 0 where there is none
    barriers: int  #: in the loops
    shared: int  #: loads from and stores to shared memory in the loop over channels

    @property
    def inner(self) -> float:
        """Per trip of the innermost loop."""
        return self.channel

    def per_pixel(self, share: Share, with_prologue: bool) -> float:
        """Of all lanes and all programs that share an output pixel."""
        once = self.pixel + (self.prologue / share.tiles if with_prologue else 0)
        return once * share.lanes * share.channel_blocks + self.channel * share.channels


@dataclass(frozen=True)
class GatherPath:
    """The same of a gather's loop over tiles of the image, as though the columns of a box were all asked together."""

    prologue: int  #: once per program
    pixel: float  #: per pixel of the image and trip of the loop over channels, without the loop over target pixels
    candidate: float  #: per target pixel that a lane asks, of all channels that are written out
    candidates: float  #: target pixels that a lane asks at scale 1, per pixel of the image
    barriers: int
    shared: int

    @property
    def inner(self) -> float:
        """Per trip of the innermost loop."""
        return self.candidate

    def per_pixel(self, share: Share, with_prologue: bool) -> float:
        """At scale 1, of all lanes and all programs that share a pixel of the image."""
        once = (self.pixel + self.candidate * self.candidates) * share.trips
        return (once + (self.prologue / share.tiles if with_prologue else 0)) * share.lanes * share.channel_blocks


@dataclass(frozen=True)
class Share:
    """How a launch shares its output among lanes and programs."""

    channels: int  #: C
    channel_blocks: int = 1  #: programs that take channels of the same pixels
    lanes: int = 1  #: of a program, that take channels of the same pixel
    tiles: int = 1  #: pixels of a lane, of all its tiles
    trips: int = 1  #: of a program's loop over channels

    @classmethod
    def of(cls, launch: Launch) -> Share:
        """The share of one of the package's own launches."""
        arguments = launch.arguments
        if launch.name == "warp_finish":
            return cls(arguments["C"])
        lanes = arguments["BLOCK_C"] // arguments["VECTOR"]
        trips = arguments["channels"] // (arguments["BLOCK_C"] * arguments["CHANNELS"])
        tiles = arguments["steps"] * arguments["LANE_ROWS" if launch.name == "warp_gather" else "UNROLL"]
        return cls(arguments["C"], arguments["channel_blocks"], lanes, tiles, trips)


@dataclass(frozen=True)
class Count:
    """A kernel in numbers. Static counts are over all of its code, once."""

    registers: int
    spilled: int  #: bytes of a lane that registers do not hold
    shared: int  #: bytes of a program
    barriers: int
    instructions: int
    loads: dict[str, int] = field(default_factory=dict)  #: from global memory, by bits
    stores: dict[str, int] = field(default_factory=dict)  #: to global memory, by bits
    atomics: dict[str, int] = field(default_factory=dict)  #: by kind
    fences: int = 0
    conversions: int = 0  #: between types by the slow unit; packing to half types is not among them
    special: int = 0  #: reciprocals, roots, logarithms
    #: "unmasked" and "masked", or "masked" alone, and "scattered" beside them; "gathered"
    paths: dict[str, Path | GatherPath] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Dialect:
    """How one instruction set names what is counted."""

    parse: Callable[[str], list[Instruction]]
    load: str
    store: str
    atomic: str
    width: Callable[[str], int]
    shared: str
    barrier: str
    fence: str
    conversion: str
    special: str


def _sass_width(opcode: str) -> int:
    found = re.search(r"\.(256|128|64)(\.|$)", opcode)
    return (
        int(found.group(1))
        if found
        else 8
        if re.search(r"\.[US]8", opcode)
        else 16
        if re.search(r"\.[US]16", opcode)
        else 32
    )


def _gcn_width(opcode: str) -> int:
    names = {"dwordx4": 128, "b128": 128, "dwordx3": 96, "dwordx2": 64, "b64": 64, "short": 16, "u16": 16, "byte": 8}
    return next((bits for name, bits in names.items() if name in opcode), 32)


SASS = Dialect(
    parse=parse_sass, load=r"LDG?\b", store=r"STG?\b", atomic=r"(RED|ATOM)G?\b", width=_sass_width,
    shared=r"(LDS|STS|LDSM|STSM)\b", barrier=r"BAR\b", fence=r"MEMBAR\b",
    conversion=r"U?(F2I|I2F|F2F|FRND)\b", special=r"MUFU\b",
)  # fmt: skip
GCN = Dialect(
    parse=parse_gcn, load=r"(global|buffer|flat)_load", store=r"(global|buffer|flat)_store",
    atomic=r"(global|buffer|flat)_atomic", width=_gcn_width,
    shared=r"ds_(read|write|load|store)", barrier=r"s_barrier\b",
    fence=r"buffer_(wbl2|inv)", conversion=r"v_(cvt_(i32|u32)_f|cvt_f\d+_(i|u)|floor|rndne)",
    special=r"v_(rcp|rsq|sqrt|log|exp|sin|cos)_",
)  # fmt: skip


def count(launch: Launch) -> Count:
    """Everything about the kernel of one of the package's own launches."""
    arguments = launch.arguments
    if launch.name == "warp_finish":
        return count_kernel(launch.kernel, None)
    if launch.name == "warp_gather":
        rows, wide = arguments["LANE_ROWS"], int(2 * arguments["RADIUS"]) + 1
        written, bits = arguments["CHANNELS"] * arguments["VECTOR"], arguments["d_out"].element_size() * 8
        return count_kernel(launch.kernel, Gather(rows, (wide + rows - 1) * wide, written, bits))
    loads = 0
    if "d_out" in arguments:  # itself, and the image at its taps
        loads = 1 + arguments["NEEDS_THETA"] * {"nearest": 1, "bilinear": 4, "bicubic": 16}[arguments["TAPS"].__name__]
    written = arguments["CHANNELS"] + arguments["MASK"]
    bits = arguments["image"].element_size() * 8
    work = Work(arguments["UNROLL"], written, loads, bits, arguments.get("GATHERED", False))
    return count_kernel(launch.kernel, work)


@dataclass(frozen=True)
class Work:
    """What a kernel's source says of its loops, so that their instructions can be shared among pixels and channels."""

    unroll: int = 1  #: tiles that one trip of the loop over tiles handles
    channels: int = 1  #: written out, of each of them, the mask included
    loads: int = 0  #: per element of a backward kernel; 0: elements are counted by the forward kernel's stores
    bits: int = 32  #: of an element
    gathered: bool = False  #: a loop of its own is for the images that are scattered


@dataclass(frozen=True)
class Gather:
    """What a gather's source says of its innermost loop."""

    rows: int  #: pixels of a lane, which ask at once
    box: int  #: target pixels that are asked at scale 1
    channels: int  #: of a lane, written out
    bits: int  #: of an element


def count_kernel(kernel: Any, work: Work | Gather | None) -> Count:
    """Everything about a compiled kernel of triton's."""
    dialect = SASS if "cubin" in kernel.asm else GCN
    code = dialect.parse(disassemble(kernel))

    def matching(pattern: str, instructions: Iterable[Instruction] = code) -> list[Instruction]:
        return [i for i in instructions if re.match(pattern, i.opcode)]

    def by_width(pattern: str) -> dict[str, int]:
        return {str(bits): n for bits, n in sorted(Counter(dialect.width(i.opcode) for i in matching(pattern)).items())}

    return Count(
        registers=_registers(kernel),
        spilled=_spilled(kernel, code),
        shared=kernel.metadata.shared,
        barriers=len(matching(dialect.barrier)),
        instructions=len(code),
        loads=by_width(dialect.load),
        stores=by_width(dialect.store),
        atomics=dict(Counter(_atomic_kind(i.opcode) for i in matching(dialect.atomic))),
        fences=len(matching(dialect.fence)),
        conversions=len(matching(dialect.conversion)),
        special=len(matching(dialect.special)),
        paths=_paths(control_flow(code), dialect, work),
    )


def _paths(root: Region, dialect: Dialect, work: Work | Gather | None) -> dict[str, Path | GatherPath]:
    if isinstance(work, Gather):
        return {"gathered": gather_path(root, dialect, work)}
    return {**paths(root, dialect, work)} if work else {}


def gather_path(root: Region, dialect: Dialect, work: Gather) -> GatherPath:
    """The loop over tiles around the innermost loop that takes least to ask a target pixel; others do one at a time."""

    def elements(loop: Region) -> float:
        loads = [i for i in loop.path() if re.match(dialect.load, i.opcode)]
        return sum(max(dialect.width(i.opcode), work.bits) for i in loads) / work.bits

    asking = [loop for tiles in root.loops for loop in tiles.nested() if not loop.loops and elements(loop)]
    innermost = min(asking, key=lambda loop: len(loop.path()) / elements(loop))
    outer, ways = root, []
    while outer is not innermost:
        outer, before = next(loop for loop in outer.loops if innermost.entry in loop.blocks), outer
        ways.append(before.path(outer))
    prologue, *own = ways
    trip = [*itertools.chain(*own), *innermost.path()]
    return GatherPath(
        prologue=len(prologue),
        pixel=sum(map(len, own)) / work.rows,
        candidate=len(innermost.path()) * work.channels / elements(innermost),
        candidates=work.box / work.rows,
        barriers=sum(bool(re.match(dialect.barrier, i.opcode)) for i in trip),
        shared=sum(bool(re.match(dialect.shared, i.opcode)) for i in trip),
    )


def paths(root: Region, dialect: Dialect, work: Work) -> dict[str, Path]:
    """The loops over tiles: of two, "unmasked" is the one with more loads that no lane can skip.

    Where nothing but the output's gradient is read, which lanes beyond the output skip in both, it is the shorter one.
    """
    pattern = dialect.load if work.loads else dialect.store

    def counted(instruction: Instruction) -> bool:
        return bool(re.match(pattern, instruction.opcode))

    def elements(instructions: list[Instruction]) -> float:
        bits = sum(max(dialect.width(i.opcode), work.bits) for i in instructions if counted(i))
        return bits / work.bits / (work.loads or 1)

    found: list[tuple[int, Path]] = []
    scattered: dict[str, Path] = {}
    for tiles in (loop for loop in root.loops if _moves_memory(loop, dialect)):
        inner = [loop for loop in tiles.loops if elements(loop.path())]
        # Of the copies of a loop that the compiler made, the one that does most at a time; the rest are its ends.
        channels = max(inner, key=lambda loop: elements(loop.path()), default=None)
        own = tiles.path(channels, counted) if channels else tiles.path()
        body = channels.path() if channels else []
        trip = [*own, *body]
        # The compiler may write out more tiles than the source; not where there is a loop in the loop.
        tiles_a_trip = work.unroll if channels or work.loads else elements(own) / work.channels
        path = Path(
            prologue=len(root.path(tiles)),
            pixel=len(own) / tiles_a_trip,
            channel=len(body) / elements(body) if channels else 0,
            barriers=sum(bool(re.match(dialect.barrier, i.opcode)) for i in trip),
            shared=sum(bool(re.match(dialect.shared, i.opcode)) for i in (body or own)),
        )
        if work.gathered and any(
            re.match(dialect.atomic, i.opcode) for block in tiles.blocks for i in block.instructions
        ):
            scattered["scattered"] = path
        else:
            found.append((_certain_loads(tiles, dialect), path))
    found.sort(key=lambda each: (-each[0], each[1].pixel + each[1].channel))
    names = ("unmasked", "masked")[2 - len(found) :] if len(found) <= 2 else map("loop {}".format, range(len(found)))
    return {**dict(zip(names, (path for _, path in found), strict=True)), **scattered}


def _certain_loads(tiles: Region, dialect: Dialect) -> int:
    """Loads from global memory in a loop, and in the loops inside it, that no lane can skip."""

    def certain(instruction: Instruction) -> bool:
        return bool(re.match(dialect.load, instruction.opcode)) and not instruction.guarded

    return sum(certain(i) for loop in (tiles, *tiles.nested()) for i in loop.path(avoid=certain))


def _moves_memory(loop: Region, dialect: Dialect) -> bool:
    return any(re.match(dialect.load, i.opcode) for block in loop.blocks for i in block.instructions)


def _atomic_kind(opcode: str) -> str:
    """RED.ADD.F32 and the like, without what says how memory is ordered."""
    parts = opcode.split(".")
    return ".".join(part for part in parts if part not in ("E", "FTZ", "RN", "STRONG", "GPU", "SYS"))


def _registers(kernel: Any) -> int:
    if "cubin" in kernel.asm:
        return int(re.search(r"REG:(\d+)", resources(kernel)).group(1))
    return int(re.search(r"\.vgpr_count:\s*(\d+)", kernel.asm["amdgcn"]).group(1))


def _spilled(kernel: Any, code: list[Instruction]) -> int:
    if "cubin" in kernel.asm:
        return sum(_sass_width(i.opcode) // 8 for i in code if re.match(r"STL\b", i.opcode))
    # To memory, or to registers that only hold: AMD's compiler says how many.
    return 4 * int(re.search(r"\.vgpr_spill_count:\s*(\d+)", kernel.asm["amdgcn"]).group(1))
