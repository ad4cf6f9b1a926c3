"""From a choice of saved values to a plan: when each recomputation runs. Free of torch.

The backward keeps the order of the joint graph, which is the order of the autograd engine. A value that is missing when
an op needs it is recomputed just before that op, with whatever it needs in turn, once, and stays until its last reader.
"""

from collections.abc import Iterable, Sequence

from graphremat.passes.plan import Plan
from graphremat.passes.problem import Phase, Problem


class ScheduleError(ValueError):
    """A value is needed in the backward that is neither saved nor may be recomputed."""


def forward_order(problem: Problem, saved: Iterable[int]) -> tuple[int, ...]:
    """All forward ops, and what else the saved values need, in the order of the joint graph."""
    needed = [op.phase is Phase.FORWARD for op in problem.ops]
    pending = [problem.values[v].producer for v in saved]
    while pending:
        index = pending.pop()
        if index < 0 or needed[index]:
            continue
        if problem.ops[index].phase is Phase.BACKWARD:
            raise ScheduleError(
                f"{problem.ops[index].name} is of the backward and cannot be saved by the forward"
            )
        needed[index] = True
        pending.extend(problem.values[r].producer for r in problem.ops[index].reads)
    return tuple(i for i, n in enumerate(needed) if n)


def lazy_order(
    problem: Problem,
    available: list[bool],
    targets: Sequence[int],
    outputs: Sequence[int] = (),
) -> list[int]:
    """The ops to run so that the backward ops ``targets`` can run in order and ``outputs`` exist at the end.

    ``available`` (one entry a value) is updated in place. Missing values are made just before they are needed.

    Raises:
        ScheduleError: a missing value must not be recomputed.
    """
    ops, values = problem.ops, problem.values
    order: list[int] = []

    def make(missing: list[int], reader: str) -> None:
        needed: set[int] = set()
        pending = list(missing)
        while pending:
            value = pending.pop()
            if available[value]:
                continue
            index = values[value].producer
            if index in needed:
                continue
            op = ops[index]
            if op.phase is Phase.BACKWARD:
                raise ScheduleError(f"{reader} reads {values[value].name} before {op.name} has run")
            if op.keep:
                raise ScheduleError(
                    f"{reader} needs {values[value].name}, which is not saved; {op.name}: {op.keep}"
                )
            needed.add(index)
            pending.extend(op.reads)
        for index in sorted(needed):
            run(index)

    def run(index: int) -> None:
        order.append(index)
        for write in ops[index].writes:
            available[write] = True

    for index in targets:
        missing = [r for r in ops[index].reads if not available[r]]
        if missing:
            make(missing, ops[index].name)
        run(index)
    missing = [v for v in outputs if not available[v]]
    if missing:
        make(missing, "the backward's output")
    return order


def backward_ops(problem: Problem) -> list[int]:
    """The ops behind a tangent, in the order of the joint graph."""
    return [i for i, op in enumerate(problem.ops) if op.phase is Phase.BACKWARD]


def schedule(problem: Problem, saved: Iterable[int], origin: str = "") -> Plan:
    """The plan that saves ``saved`` and recomputes everything else that the backward needs, once, when it is needed.

    Saved values that the backward does not read are dropped from the plan.

    Raises:
        ScheduleError: something that is needed can neither be had from ``saved`` nor be recomputed.
    """
    kept = {problem.base[v] for v in saved}
    available = [value.producer < 0 for value in problem.values]
    for value in kept:
        available[value] = True
    backward = lazy_order(problem, available, backward_ops(problem), problem.backward_outputs)
    read = {r for i in backward for r in problem.ops[i].reads} | set(problem.backward_outputs)
    used = tuple(sorted(v for v in kept if v in read and problem.values[v].producer >= 0))
    return Plan(used, forward_order(problem, used), tuple(backward), origin)
