"""Checkpoints around the blocks of a network, as users wrap them by hand, on the planner's problem. Free of torch.

A block is an entry of a list of modules (``blocks.3``, ``model.layers.3``), found in the paths of modules that values
carry; of lists within lists the outermost counts. A wrapped block keeps what crosses into it and makes the rest again.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from graphremat.passes.checkpoints import must_save
from graphremat.passes.plan import Plan
from graphremat.passes.problem import Phase, Problem
from graphremat.passes.schedule import schedule

_ENTRY = re.compile(r"^(.*?)(?:^|[.\[])(\d+)(?=$|[.\]])")


def block_path(module: str) -> tuple[str, int] | None:
    """The list and the place in it of the block that a module lies in; None where it lies in none.

    >>> block_path("model.layers.12.mlp.up"), block_path("blocks[3].norm"), block_path("0.linear1"), block_path("head")
    (('model.layers', 12), ('blocks', 3), ('', 0), None)
    """
    found = _ENTRY.match(module)
    return (found.group(1), int(found.group(2))) if found else None


@dataclass(frozen=True)
class Blocks:
    """``names`` in the order of the forward, as ``(list, place)``, and the block of each op; -1 for those in none."""

    names: tuple[tuple[str, int], ...]
    block_of: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)

    def groups(self, every: int) -> tuple[int, ...]:
        """For each block the segment that it belongs to where ``every`` neighbours of a list are wrapped together."""
        found: list[int] = []
        for place, (of_list, _) in enumerate(self.names):
            same = place > 0 and self.names[place - 1][0] == of_list
            length = found.count(found[-1]) if same else every
            found.append((found[-1] + 1 if found else 0) if length >= every else found[-1])
        return tuple(found)


def find_blocks(problem: Problem) -> Blocks:
    """The blocks of the forward; none where no module lies in a list."""
    names: dict[tuple[str, int], int] = {}
    found = []
    for op in problem.ops:
        path = None
        if op.phase is not Phase.BACKWARD and op.writes:
            path = block_path(problem.values[op.writes[0]].module)
        found.append(-1 if path is None else names.setdefault(path, len(names)))
    return Blocks(tuple(names), tuple(found))


def checkpoint_blocks(
    problem: Problem,
    blocks: Blocks,
    every: int,
    outside: Iterable[int],
    *,
    kept: Iterable[int] = (),
    wrapped: int | None = None,
) -> Plan:
    """The plan of ``torch.utils.checkpoint`` around every so many blocks.

    What crosses into a segment is saved. A segment is made again piece by piece as the backward needs it, which is what
    torch makes of a checkpoint that it compiles.

    Args:
        problem: the problem.
        blocks: its blocks.
        every: how many of them are wrapped together, at least 1.
        outside: values that another plan saves; those that are made in no block are saved here, too.
        kept: values that are saved wherever they are made, as under a selective checkpoint.
        wrapped: how many blocks, the first of the forward, are wrapped at all; None for all of them.

    Raises:
        ScheduleError: something that is needed can neither be saved nor be made again.
    """
    groups = blocks.groups(every)
    first = len(blocks) if wrapped is None else wrapped
    segment_of = [groups[b] if 0 <= b < first else -1 for b in blocks.block_of]
    saved = set(must_save(problem))
    saved.update(v for v in outside if segment_of[problem.values[v].producer] < 0)
    saved.update(v for v in kept if not problem.ops[problem.values[v].producer].unsavable)
    for index, op in enumerate(problem.ops):
        if op.phase is not Phase.FORWARD:
            continue
        for value in (problem.base[read] for read in op.reads):
            producer = problem.values[value].producer
            if producer < 0 or problem.ops[producer].unsavable or segment_of[index] == segment_of[producer]:
                continue
            if segment_of[index] >= 0 or segment_of[producer] >= 0:
                saved.add(value)
    return schedule(problem, sorted(saved), f"checkpoint every {every} blocks")
