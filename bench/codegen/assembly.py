"""Machine code as text to a list of instructions: NVIDIA's SASS and AMD's GCN."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Instruction:
    """One instruction of a kernel."""

    opcode: str
    text: str
    guarded: bool = False  #: by a predicate: some lanes may skip it
    target: str | None = None  #: the label it may jump to
    falls_through: bool = True  #: whether the next instruction may follow
    ends: bool = False  #: whether the kernel may end here
    label: str = ""  #: its names, as jumps call it


# An instruction may end in notes on scheduling, such as &req={1} ?trans6 (sm_120, CUDA 12.8).
_SASS_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?)(?:\s+[&?]\S+)*\s*;", re.MULTILINE)
_SASS_PARTS = re.compile(r"(@!?U?P[T\d]+\s+)?([A-Z][\w.]*)\s*(.*)")


def parse_sass(text: str) -> list[Instruction]:
    """Instructions from ``cuobjdump -sass``, without the padding after the last one."""
    instructions = []
    for address, body in _SASS_LINE.findall(text):
        guard, opcode, operands = _SASS_PARTS.match(body).groups()
        name = opcode.split(".")[0]
        target, falls_through, ends = None, True, name in ("EXIT", "RET")
        if name in ("BRA", "JMP", "CALL"):  # CALL.REL.NOINC keeps no way back: it leaves loops
            target = re.search(r"0x([0-9a-f]+)\s*$", operands).group(1).zfill(4)
            # BRA.DIV leaves the path where a warp has diverged; a plain target with no condition is a jump.
            falls_through = bool(guard) or not re.fullmatch(r"0x[0-9a-f]+", operands.strip())
        elif ends:
            falls_through = bool(guard)
        instructions.append(Instruction(opcode, body, bool(guard), target, falls_through, ends, address))
    while instructions and (instructions[-1].opcode == "NOP" or instructions[-1].target == instructions[-1].label):
        instructions.pop()
    return instructions


_GCN_OPCODE = re.compile(r"^\s+([a-z]\w+)\b([^;]*)")


def parse_gcn(text: str) -> list[Instruction]:
    """Instructions from LLVM's assembly of a kernel (``asm["amdgcn"]``)."""
    instructions, labels = [], []
    for line in text.split(".section", 1)[0].splitlines():
        if match := re.match(r"^([\w.$]+):", line):
            labels.append(match.group(1))
        elif match := _GCN_OPCODE.match(line):
            opcode, operands = match.groups()
            jump = re.match(r"s_c?branch", opcode)
            target = operands.strip() if jump else None
            ends = opcode == "s_endpgm"
            falls_through = not (ends or opcode == "s_branch")
            instructions.append(Instruction(opcode, line.strip(), False, target, falls_through, ends, " ".join(labels)))
            labels = []
    return instructions
