"""What the backward had better write to memory: pointwise results that stand for more bytes than their own.

A fusing compiler repeats pointwise work in every reader, and what it repeats the work from lives on until the last of
them. The gradient that comes back around a residual block is such a result: of the block's own gradient, of what went
around it, and of the activation whose sign says where it passes, three buffers for one. Written out once it is one.
Another is what an operand of a concatenation gets of the whole gradient: a copy of its part lets the whole go. Free of
torch.
"""

from dataclasses import replace

from graphremat.passes.frontier import Candidate, judge
from graphremat.passes.problem import Phase, Problem


def worth_writing(problem: Problem) -> tuple[int, ...]:
    """Pointwise ops of the backward whose results are smaller than what they are computed from."""
    return tuple(
        index
        for index, op in enumerate(problem.ops)
        if op.phase is Phase.BACKWARD
        and problem.table.is_pointwise[index]
        and not op.written_out
        and any(problem.readers[w] for w in op.writes)
        and _operand_bytes(problem, index)
        > sum(problem.graph_bytes(problem.values[w].storage) for w in op.writes)
    )


def _operand_bytes(problem: Problem, index: int) -> int:
    """Bytes of the buffers that an op's result is computed from, through pointwise results that nobody else reads."""
    table = problem.table
    pending, storages = [index], set[int]()
    while pending:
        for read in table.reads[pending.pop()]:
            base = problem.base[read]
            producer = table.producers[base]
            alone = producer >= 0 and table.is_pointwise[producer] and len(problem.readers[base]) == 1
            if alone and table.phases[producer] is Phase.BACKWARD:
                pending.append(producer)
            else:
                storages.add(problem.values[base].storage)
    return sum(problem.graph_bytes(storage) for storage in storages)


def with_written(problem: Problem, ops: tuple[int, ...]) -> Problem:
    """The problem in which a fusing compiler writes the results of ``ops`` out."""
    chosen = set(ops)
    return replace(
        problem,
        ops=tuple(replace(op, written_out=True) if i in chosen else op for i, op in enumerate(problem.ops)),
    )


def without_idle_writing(problem: Problem, candidate: Candidate) -> Candidate:
    """The candidate less what it writes out for nothing: what the kernel that makes it alone reads."""
    plan = candidate.plan
    there = set(candidate.replay.storages.tolist())
    used = tuple(i for i in plan.written if problem.values[problem.ops[i].writes[0]].storage in there)
    return candidate if used == plan.written else judge(problem, replace(plan, written=used))
