"""A problem that fuses, relaxed to one that does not: what holds for the one holds for the other. Free of torch."""

from dataclasses import dataclass, replace

from graphremat.passes.problem import Holder, Kind, Phase, Problem


@dataclass(frozen=True)
class Relaxation:
    """A problem that does not fuse and asks no more than the one that does, op for op; see :func:`relax_fusion`."""

    problem: Problem
    in_place: frozenset[int] = frozenset()
    """Ops whose first result may be written over an operand: it is not counted at its own op."""
    optional: frozenset[int] = frozenset()
    """Forward ops that nothing in the forward need compute; their seconds are paid there whether they run or not."""


def relax_fusion(problem: Problem) -> Relaxation:
    """A problem that does not fuse, op for op that of ``problem``, whose optimum is no slower under any budget.

    Every plan of ``problem`` becomes, once runs that nothing reads and runs of savable outputs of the forward are left
    out, a plan of the relaxation that takes no more seconds and has no higher peak:

    * a value that a fusing kernel may keep in registers in some plan has no bytes and costs ``fused_seconds`` where
      that is less. Left with their bytes are results of ops that do not fuse and of pointwise ops that are an output
      (a savable one of the forward, or one made behind a tangent) or are read by kernels alone;
    * the result of a pointwise op that may be written over an operand of its size is not counted at that op;
    * a forward op of which nothing in the forward needs a buffer need not run there; it is paid there all the same, at
      ``fused_seconds`` where that is less;
    * an op of the backward of which nothing needs a buffer reads nothing.

    The seconds of a plan of the relaxation say nothing of ``problem``: replay it there.
    """
    if not problem.fuses:
        return Relaxation(problem)
    graph = [problem.storages[v.storage].holder is Holder.GRAPH for v in problem.values]
    readers: list[list[int]] = [[] for _ in problem.values]
    for index, op in enumerate(problem.ops):
        for read in op.reads:
            # What a view reads besides what it is a view of, it reads as a fusing kernel does.
            if op.kind is not Kind.VIEW or problem.base[read] != problem.base[op.writes[0]]:
                readers[problem.base[read]].append(index)
    virtual: dict[int, int] = {}
    """Op -> its result that may have no buffer: the first that is the graph's."""
    first: dict[int, int] = {}
    forward_outputs = {problem.base[v] for v in problem.forward_outputs}
    backward_outputs = {problem.base[v] for v in problem.backward_outputs}
    for index, op in enumerate(problem.ops):
        own = [w for w in op.writes if graph[w]]
        if op.kind is not Kind.FUSIBLE or not own:
            continue
        value = first[index] = own[0]
        kernels = readers[value] and all(problem.ops[r].kind is Kind.KERNEL for r in readers[value])
        given_out = value in backward_outputs and op.phase is Phase.BACKWARD
        stays = (
            value in forward_outputs
            and op.phase is Phase.FORWARD
            and not op.unsavable
            and len(op.writes) == 1
        )
        if not (kernels or given_out or stays):
            virtual[index] = value
    needed = _needs_a_buffer(problem)
    zero = {problem.values[v].storage for v in virtual.values()}
    optional = frozenset(
        i
        for i, op in enumerate(problem.ops)
        if op.phase is Phase.FORWARD and op.kind is not Kind.VIEW and not needed[i]
    )
    ops = tuple(
        replace(
            op,
            seconds=min(op.seconds, op.fused_seconds) if i in virtual or i in optional else op.seconds,
            reads=()
            if op.phase is Phase.BACKWARD and not needed[i] and op.kind is not Kind.VIEW
            else op.reads,
        )
        for i, op in enumerate(problem.ops)
    )
    storages = tuple(replace(s, size_bytes=0) if i in zero else s for i, s in enumerate(problem.storages))
    relaxed = replace(problem, ops=ops, storages=storages, fuses=False, groups=False)
    return Relaxation(
        relaxed,
        in_place=frozenset(i for i, v in first.items() if i not in virtual and _may_overwrite(problem, i, v)),
        optional=optional,
    )


def _needs_a_buffer(problem: Problem) -> list[bool]:
    """For each op, whether in every plan something in its own phase needs what it makes.

    Ops that are not pointwise do, and what they and the outputs of their phase read.
    """
    outputs = {*problem.forward_outputs, *problem.backward_outputs}
    needed = [
        op.kind not in (Kind.FUSIBLE, Kind.VIEW) or any(w in outputs for w in op.writes) for op in problem.ops
    ]
    for index in range(len(problem.ops) - 1, -1, -1):
        op = problem.ops[index]
        for read in op.reads if needed[index] else ():
            if op.kind is Kind.VIEW and problem.base[read] != problem.base[op.writes[0]]:
                continue
            producer = problem.values[read].producer
            if producer >= 0 and problem.ops[producer].phase is op.phase:
                needed[producer] = True
    return needed


def _may_overwrite(problem: Problem, index: int, value: int) -> bool:
    """Whether something that this op may read, itself or through fused producers, is as large as its result, in
    its order."""
    if problem.ops[index].relays:
        return False
    size = problem.storages[problem.values[value].storage].size_bytes
    pending, seen = [problem.base[r] for r in problem.ops[index].reads], set[int]()
    while size and pending:
        read = pending.pop()
        producer = problem.values[read].producer
        if read in seen or producer < 0:
            continue
        seen.add(read)
        storage = problem.storages[problem.values[read].storage]
        if storage.holder is Holder.GRAPH and storage.size_bytes == size:
            return True
        if problem.ops[producer].kind is Kind.FUSIBLE:
            pending += [problem.base[r] for r in problem.ops[producer].reads]
    return False
