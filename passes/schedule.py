"""From a choice of saved values to a plan: when each recomputation runs. Free of torch.

The backward keeps the order of the joint graph, which is the order of the autograd engine. A value that is missing when
an op needs it is recomputed just before that op, with whatever it needs in turn, and stays until its last reader. What
else a plan may want is said by instructions: to make a value early, or to forget it between two readers, so that it is
made once more.

    >>> from graphremat.passes.testing import chain
    >>> problem = chain(3)
    >>> names = lambda plan: [problem.ops[i].name for i in plan.backward]
    >>> names(schedule(problem, []))
    ['layer0', 'layer1', 'grad2_0', 'grad1_0', 'grad0_0']
    >>> names(schedule(problem, [], instructions=[Run((3,)), Forget((1,)), Run((4, 5))]))
    ['layer0', 'layer1', 'grad2_0', 'layer0', 'grad1_0', 'grad0_0']
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from graphremat.passes.plan import Plan
from graphremat.passes.problem import Phase, Problem


class ScheduleError(ValueError):
    """A value is needed in the backward that is neither saved nor may be recomputed."""


def forward_order(problem: Problem, saved: Iterable[int]) -> tuple[int, ...]:
    """All forward ops, and what else the saved values need, in the order of the joint graph."""
    table = problem.table
    needed = [phase is Phase.FORWARD for phase in table.phases]
    pending = [table.producers[v] for v in saved]
    while pending:
        index = pending.pop()
        if index < 0 or needed[index]:
            continue
        if table.phases[index] is Phase.BACKWARD:
            raise ScheduleError(
                f"{problem.ops[index].name} is of the backward and cannot be saved by the forward"
            )
        needed[index] = True
        pending.extend(table.producers[r] for r in table.reads[index])
    return tuple(itertools.compress(range(len(needed)), needed))


@dataclass(frozen=True)
class Make:
    """Recompute these values now, with whatever they need, unless they are there."""

    values: tuple[int, ...]


@dataclass(frozen=True)
class Forget:
    """Take these values for gone from now on; a later reader has them recomputed."""

    values: tuple[int, ...]


@dataclass(frozen=True)
class Run:
    """Run these ops of the backward, each with a :class:`Make` of its operands before it."""

    ops: tuple[int, ...]


Instruction: TypeAlias = Make | Forget | Run


class _Order:
    """The order of a backward as it grows, and the values that are there."""

    def __init__(self, problem: Problem, available: list[bool]) -> None:
        self.problem = problem
        self.available = available
        self.order: list[int] = []

    def make(self, values: Iterable[int], reader: str) -> None:
        """Run what is missing of ``values``, in the order of the joint graph."""
        missing = [v for v in values if not self.available[v]]
        if not missing:
            return
        ops, producers = self.problem.ops, self.problem.values
        needed: set[int] = set()
        while missing:
            value = missing.pop()
            index = producers[value].producer
            if self.available[value] or index in needed:
                continue
            op = ops[index]
            if op.phase is Phase.BACKWARD:
                raise ScheduleError(f"{reader} reads {producers[value].name} before {op.name} has run")
            if op.keep:
                raise ScheduleError(
                    f"{reader} needs {producers[value].name}, which is not saved; {op.name}: {op.keep}"
                )
            needed.add(index)
            missing.extend(op.reads)
        self._run(sorted(needed))

    def run(self, targets: Iterable[int]) -> None:
        """Run these ops of the backward in turn, each with what it misses before it."""
        reads, available = self.problem.table.reads, self.available
        for index in targets:
            if not all(map(available.__getitem__, reads[index])):
                self.make(reads[index], self.problem.ops[index].name)
            self._run((index,))

    def _run(self, indices: Sequence[int]) -> None:
        """Run ops whose operands are there."""
        self.order.extend(indices)
        writes, available = self.problem.table.writes, self.available
        for index in indices:
            for write in writes[index]:
                available[write] = True

    def forget(self, values: Iterable[int]) -> None:
        """Take ``values`` and their views for gone, graph inputs excepted."""
        for value in values:
            if self.problem.values[value].producer >= 0:
                for gone in (value, *self.problem.views[value]):
                    self.available[gone] = False


def lazy_order(
    problem: Problem, available: list[bool], targets: Sequence[int], outputs: Sequence[int] = ()
) -> list[int]:
    """The ops to run so that the backward ops ``targets`` can run in order and ``outputs`` exist at the end.

    ``available`` (one entry a value) is updated in place. Missing values are made just before they are needed.

    Raises:
        ScheduleError: a missing value must not be recomputed.
    """
    return _follow(problem, available, [Run(tuple(targets))], outputs)


def _follow(
    problem: Problem, available: list[bool], instructions: Iterable[Instruction], outputs: Sequence[int]
) -> list[int]:
    order = _Order(problem, available)
    for instruction in instructions:
        match instruction:
            case Run(ops):
                order.run(ops)
            case Make(values):
                order.make(values, "the plan")
            case Forget(values):
                order.forget(values)
    order.make(outputs, "the backward's output")
    return order.order


def _without_waste(problem: Problem, order: Sequence[int]) -> list[int]:
    """``order`` less the recomputations whose results nothing reads before they are made again."""
    table = problem.table
    needed = [False] * len(problem.values)
    for value in problem.backward_outputs:
        needed[value] = True
    kept: list[int] = []
    for index in reversed(order):
        writes = table.writes[index]
        if table.phases[index] is Phase.BACKWARD or any(map(needed.__getitem__, writes)):
            kept.append(index)
            for write in writes:
                needed[write] = False
            for read in table.reads[index]:
                needed[read] = True
    return kept[::-1]


def backward_ops(problem: Problem) -> list[int]:
    """The ops behind a tangent, in the order of the joint graph."""
    return [i for i, phase in enumerate(problem.table.phases) if phase is Phase.BACKWARD]


def schedule(
    problem: Problem,
    saved: Iterable[int],
    origin: str = "",
    instructions: Iterable[Instruction] | None = None,
) -> Plan:
    """The plan that saves ``saved`` and recomputes everything else that the backward needs, when it is needed.

    Without ``instructions`` nothing is recomputed twice. With them the backward follows them; together they must run
    every op of the backward once. Saved values that the backward does not read are dropped from the plan.

    Raises:
        ScheduleError: something that is needed can neither be had from ``saved`` nor be recomputed.
    """
    kept = {problem.base[v] for v in saved}
    producers = problem.table.producers
    available = [producer < 0 for producer in producers]
    for value in kept:
        available[value] = True
    if instructions is None:
        backward = _follow(problem, available, [Run(tuple(backward_ops(problem)))], problem.backward_outputs)
    else:
        order = _follow(problem, available, instructions, problem.backward_outputs)
        backward = _without_waste(problem, order)
    read = set(itertools.chain.from_iterable(map(problem.table.reads.__getitem__, backward)))
    read.update(problem.backward_outputs)
    used = tuple(sorted(v for v in kept if v in read and producers[v] >= 0))
    return Plan(used, forward_order(problem, used), tuple(backward), origin)
