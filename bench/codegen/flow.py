"""Control flow of disassembled code: basic blocks, loops, and the longest path through each.

Counting every instruction of a kernel once says little: a loop body runs often, a branch not taken never. Here
code is a graph of blocks, a loop is the blocks between a back edge and the block it returns to, and what is
counted is one trip along the longest path, with the loops inside it counted apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from .assembly import Instruction


def never(instruction: Instruction) -> bool:
    """Of no instruction."""
    return False


@dataclass(eq=False)
class Block:
    """Instructions that run one after the other, and the blocks that can follow."""

    instructions: list[Instruction]
    successors: list[Block] = field(default_factory=list)

    @property
    def ends(self) -> bool:
        """Whether the kernel may end here."""
        return not self.successors or self.instructions[-1].ends


@dataclass(eq=False)
class Region:
    """A loop, or the whole kernel: its blocks, those of the loops inside it included."""

    entry: Block
    blocks: set[Block]
    loops: list[Region] = field(default_factory=list)  #: directly inside, not the loops inside those

    def path(self, through: Region | None = None, avoid: Callable[[Instruction], bool] = never) -> list[Instruction]:
        """Instructions of one way from the entry to where the kernel ends or the loop repeats.

        Of all ways the longest, or the longest of those with the fewest instructions to ``avoid``. Loops inside add
        nothing to it; ``through`` one of them it can be made to go. Empty if there is no such way.

        Raises ValueError if blocks repeat that are no loop: one that can be entered at two places.
        """
        is_loop = any(self.entry in block.successors for block in self.blocks)
        owner = {block: loop for loop in self.loops for block in loop.blocks}
        best: dict[tuple[Block | Region, bool], tuple[tuple[int, int], list[Block]] | None] = {}
        entered: set[tuple[Block | Region, bool]] = set()

        def walk(node: Block | Region, passed: bool) -> tuple[tuple[int, int], list[Block]] | None:
            passed = passed or node is through
            key = (node, passed)
            if key in best:
                return best[key]
            if key in entered:
                raise ValueError("expected every loop to have one entry, got one that is entered at two places")
            entered.add(key)
            inside = node.blocks if isinstance(node, Region) else {node}
            ways: list[tuple[tuple[int, int], list[Block]]] = []
            for block in inside:
                if (self.entry in block.successors if is_loop else block.ends) and (passed or through is None):
                    ways.append(((0, 0), []))
                for successor in block.successors:
                    within = successor in self.blocks and successor is not self.entry and successor not in inside
                    if within and (way := walk(owner.get(successor, successor), passed)):
                        ways.append(way)
            best[key] = None
            if ways:
                (shunned, length), blocks = max(ways, key=lambda way: way[0])
                if isinstance(node, Block):
                    shunned -= sum(map(avoid, node.instructions))
                    length, blocks = length + len(node.instructions), [node, *blocks]
                best[key] = (shunned, length), blocks
            return best[key]

        found = walk(owner.get(self.entry, self.entry), False)
        return [instruction for block in found[1] for instruction in block.instructions] if found else []

    def nested(self) -> Iterator[Region]:
        """Every loop inside, outer ones first."""
        for loop in self.loops:
            yield loop
            yield from loop.nested()

    def reaches(self, other: Region) -> bool:
        """Whether the other region can run after this one."""
        seen, waiting = set(), list(self.blocks)
        while waiting:
            for successor in waiting.pop().successors:
                if successor not in seen:
                    seen.add(successor)
                    waiting.append(successor)
        return other.entry in seen


def control_flow(instructions: list[Instruction]) -> Region:
    """The kernel as a region with its loops nested."""
    blocks = _blocks(instructions)
    root = Region(blocks[0], _reachable(blocks[0]))
    dominators = _dominators(root)
    loops: dict[Block, Region] = {}
    for block in blocks:
        for header in block.successors:
            if block in dominators and header in dominators[block]:
                body = _body(header, block, root.blocks)
                loops.setdefault(header, Region(header, set())).blocks.update(body)
    for loop in sorted(loops.values(), key=lambda loop: -len(loop.blocks)):
        _innermost(root, loop.entry).loops.append(loop)
    return root


def _blocks(instructions: list[Instruction]) -> list[Block]:
    targets = {instruction.target for instruction in instructions if instruction.target}
    blocks, at = [], {}
    for before, instruction in zip([None, *instructions], instructions, strict=False):
        labels = instruction.label.split()
        if before is None or before.target or before.ends or not before.falls_through or targets.intersection(labels):
            blocks.append(Block([]))
        blocks[-1].instructions.append(instruction)
        at.update(dict.fromkeys(labels, blocks[-1]))
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        last = block.instructions[-1]
        if last.falls_through and following:
            block.successors.append(following)
        if last.target in at:
            block.successors.append(at[last.target])
    return blocks


def _reachable(entry: Block) -> set[Block]:
    seen, waiting = {entry}, [entry]
    while waiting:
        for successor in waiting.pop().successors:
            if successor not in seen:
                seen.add(successor)
                waiting.append(successor)
    return seen


def _dominators(root: Region) -> dict[Block, set[Block]]:
    """The blocks through which every way to a block leads."""
    before: dict[Block, list[Block]] = {block: [] for block in root.blocks}
    for block in root.blocks:
        for successor in block.successors:
            before[successor].append(block)
    dominators = {block: set(root.blocks) for block in root.blocks}
    dominators[root.entry] = {root.entry}
    changed = True
    while changed:
        changed = False
        for block in root.blocks - {root.entry}:
            new = {block} | set.intersection(*(dominators[b] for b in before[block]))
            changed |= new != dominators[block]
            dominators[block] = new
    return dominators


def _body(header: Block, last: Block, blocks: set[Block]) -> set[Block]:
    """The natural loop of the back edge from ``last`` to ``header``."""
    before = {block: [b for b in blocks if block in b.successors] for block in blocks}
    body, waiting = {header, last}, [last]
    while waiting:
        block = waiting.pop()
        if block is not header:
            new = set(before[block]) - body
            body |= new
            waiting += new
    return body


def _innermost(region: Region, block: Block) -> Region:
    for loop in region.loops:
        if block in loop.blocks:
            return _innermost(loop, block)
    return region
