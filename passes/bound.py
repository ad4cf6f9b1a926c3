"""What no plan can beat: a floor for the peak, and a lower bound on the seconds under a budget. Free of torch.

At any moment of the backward, what later ops need is there or is recomputed later. So the bytes that the budget leaves
at that moment bound the recomputation from below, by the min cut of what the ops from there on need: the lower hull of
the cuts is the Lagrangian dual of "recompute as little as possible with so many bytes kept". A plan that recomputes
some op twice is bounded too, since it recomputes it at least once. What fusion can make vanish is taken as free
(:func:`graphremat.passes.relax.relax_fusion`).

    >>> from graphremat.passes.testing import chain
    >>> bound = Bound(chain(6))  # 6 layers of 100 bytes; the optima are 12, 13, 14 and 18 seconds at 900 to 600 bytes
    >>> [bound.seconds(budget_bytes) for budget_bytes in (900, 800, 700, 600, 400)]
    [12.0, 12.0, 13.0, 14.0, inf]
"""

import itertools
import math
from dataclasses import replace

from graphremat.passes.cut import CutGraph
from graphremat.passes.problem import Holder, Kind, Phase, Problem
from graphremat.passes.relax import relax_fusion

MOST_WORK = 20_000
"""Ops in the cut graphs of the later moments: a large graph is bounded at the start of its backward alone."""
MOST_MOMENTS = 16


class Bound:
    """Lower bounds of one problem, for every budget."""

    def __init__(self, problem: Problem) -> None:
        self._relaxed = _without_extra_reads(relax_fusion(problem).problem)
        relaxed = self._relaxed
        self._once_seconds = sum(relaxed.ops[index].seconds for index in sorted(_run_by_all(relaxed)))
        self._engine_bytes = sum(s.size_bytes for s in relaxed.storages if s.holder is Holder.ENGINE)
        outputs = {relaxed.values[v].storage for v in relaxed.forward_outputs}
        self._fixed_bytes = (
            relaxed.input_bytes + self._engine_bytes + sum(relaxed.graph_bytes(s) for s in sorted(outputs))
        )
        self._moments = [self._moment(step) for step in self._steps()]

    @property
    def lowest_bytes(self) -> int:
        """A peak that no plan gets below: what is held from outside, gradients, and what any one op needs alone."""
        relaxed = self._relaxed
        highest = max(relaxed.gradient_bytes, self._engine_bytes)
        for op in relaxed.ops:
            if op.kind is Kind.KERNEL:
                own = {relaxed.values[v].storage for v in (*op.reads, *op.writes)}
                engine = self._engine_bytes if op.phase is Phase.BACKWARD else 0
                alive = engine + op.scratch_bytes + sum(relaxed.graph_bytes(s) for s in own)
                highest = max(highest, alive)
        return relaxed.input_bytes + highest

    def seconds(self, budget_bytes: int) -> float:
        """Seconds of a step that no plan under the budget gets below; infinite if there is no such plan."""
        if budget_bytes < self.lowest_bytes:
            return math.inf
        return self._once_seconds + max(_at(hull, budget_bytes - fixed) for fixed, hull in self._moments)

    def _steps(self) -> list[int]:
        """Moments to look at: before these ops of the backward, the first always."""
        backward = [i for i, op in enumerate(self._relaxed.ops) if op.phase is Phase.BACKWARD]
        moments = max(1, min(MOST_MOMENTS, MOST_WORK // max(1, len(self._relaxed.ops)), len(backward)))
        return [len(backward) * k // moments for k in range(moments)]

    def _moment(self, step: int) -> tuple[int, list[tuple[int, float]]]:
        """Bytes that are alive before a step whatever the plan, and the hull (bytes kept, seconds) of what is needed
        from there on."""
        relaxed = self._relaxed
        backward = [i for i, op in enumerate(relaxed.ops) if op.phase is Phase.BACKWARD]
        done = set(backward[:step])
        later = {v for i in backward[step:] for v in relaxed.ops[i].reads} | set(relaxed.backward_outputs)
        made = {relaxed.values[w].storage for i in done for w in relaxed.ops[i].writes}
        held = made & {relaxed.values[v].storage for v in later}
        ops = tuple(
            replace(op, reads=()) if i in done else replace(op, unsavable="") if step else op
            for i, op in enumerate(relaxed.ops)
        )
        cuts = CutGraph(replace(relaxed, ops=ops)).hull()
        return (
            self._fixed_bytes + sum(relaxed.graph_bytes(s) for s in sorted(held)),
            [(cut.saved_bytes, cut.seconds) for cut in reversed(cuts)],
        )


def _without_extra_reads(problem: Problem) -> Problem:
    """A view reads what it views and nothing else: other operands have to have been made, but need not be alive."""
    views = [i for i, op in enumerate(problem.ops) if op.kind is Kind.VIEW]
    ops = list(problem.ops)
    for index in views:
        bases = {problem.base[w] for w in ops[index].writes}
        ops[index] = replace(ops[index], reads=tuple(r for r in ops[index].reads if problem.base[r] in bases))
    return replace(problem, ops=tuple(ops))


def _run_by_all(problem: Problem) -> set[int]:
    """The ops that every plan runs, in the forward or in the backward: all that something wants."""
    wanted = {problem.values[v].producer for v in (*problem.forward_outputs, *problem.backward_outputs)}
    wanted |= {i for i, op in enumerate(problem.ops) if op.phase is not Phase.EITHER}
    found: set[int] = set()
    while wanted:
        index = wanted.pop()
        if index >= 0 and index not in found:
            found.add(index)
            wanted |= {problem.values[r].producer for r in problem.ops[index].reads}
    return found


def _at(hull: list[tuple[int, float]], room_bytes: int) -> float:
    """The hull's seconds at so many bytes; ``hull`` is sorted by bytes, its seconds fall."""
    if room_bytes < hull[0][0]:
        return math.inf
    for (low, slow), (high, fast) in itertools.pairwise(hull):
        if room_bytes < high:
            return slow + (fast - slow) * (room_bytes - low) / (high - low)
    return hull[-1][1]
