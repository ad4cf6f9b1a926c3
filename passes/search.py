"""Local search over plans, judged by the exact replay. Free of torch.

The programme over stages sees a network as a chain; this sees single values. Its moves change when one value is there:

- *evict* it between two of its readers, where it is alive but idle at a moment that is too high, so that the later
  reader has it recomputed (from the forward on: do not save it);
- make a recomputed value *early*, while what it is made from is still there;
- *undo* a recomputation by keeping the value.

``tighten`` brings a plan under a budget by the moves that cost the fewest seconds a byte of overshoot, several together
where no single one helps; ``loosen`` spends what is left; ``exchange`` undoes one recomputation at the price of others.
Every plan that was looked at competes for the frontier. The space is that of Checkmate (Jain et al. 2020): the backward
in its order, before each op any recomputations.
"""

import itertools
import math
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from graphremat.passes.cut import recompute_seconds
from graphremat.passes.plan import Plan
from graphremat.passes.problem import Kind, Phase, Problem
from graphremat.passes.replay import Replay, replay
from graphremat.passes.schedule import Forget, Instruction, Make, Run, ScheduleError, backward_ops, schedule

BEAM = 8
"""Plans kept from one move to the next where no single move helps."""
DEPTH = 4
"""Moves made together at most."""

Rule: TypeAlias = Literal["ratio", "overshoot", "seconds"]
RULES: tuple[Rule, ...] = ("ratio", "overshoot", "seconds")

Moment: TypeAlias = tuple[int, int]
"""``(step, value)``; step ``t`` is the ``t``-th op of the backward with the recomputations before it."""


@dataclass(frozen=True)
class Retention:
    """When values are there: what is saved, what is gone after a step, what is made before it is needed; and which
    ops' results the backward writes out."""

    saved: frozenset[int]
    gone: frozenset[Moment] = frozenset()
    early: frozenset[Moment] = frozenset()
    written: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class State:
    """A retention, the plan it stands for, its replay, and the step of each position of the plan's backward."""

    retention: Retention
    plan: Plan
    replay: Replay
    steps: tuple[int, ...]

    @property
    def rank(self) -> tuple[float, int]:
        """Orders states: fewer seconds, then a lower peak."""
        return self.replay.seconds, self.replay.peak_bytes


class Search:
    """The search on one problem.

    Args:
        problem: the problem.
        most_looks: plans that may be replayed in all.
        most_recomputations: how often an op may run again; None for any number.
        width: evictions looked at from one plan, the most promising first; None for all.
        deadline: of ``time.monotonic()``, after which nothing is looked at any more.
        remake_saved: whether a saved value may be let go in the backward and made again there.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        most_looks: int,
        most_recomputations: int | None = None,
        width: int | None = None,
        deadline: float = math.inf,
        remake_saved: bool = True,
    ) -> None:
        self.problem = problem
        self._looks_left = most_looks
        self._reserved = 0
        self._deadline = deadline
        self._most = most_recomputations
        self._remake_saved = remake_saved
        self._width = width
        self._again_seconds = recompute_seconds(problem)
        self._size = [problem.graph_bytes(value.storage) for value in problem.values]
        self._backward = backward_ops(problem)
        self._known: dict[Retention, State | None] = {}
        self._near: dict[tuple[Retention, int, frozenset[Moment]], list[tuple[int, State]]] = {}
        self._savable = frozenset(
            v
            for v, value in enumerate(problem.values)
            if problem.base[v] == v
            and value.producer >= 0
            and problem.ops[value.producer].phase is not Phase.BACKWARD
            and not problem.ops[value.producer].unsavable
        )
        self._evictable: dict[int, list[int]] = {}
        for v, value in enumerate(problem.values):
            op = problem.ops[value.producer] if value.producer >= 0 else None
            if op is not None and problem.base[v] == v and op.phase is not Phase.BACKWARD and not op.keep:
                self._evictable.setdefault(value.storage, []).append(v)
        self._kept_anyway = {problem.base[v] for v in problem.forward_outputs} & self._savable

    @property
    def ended(self) -> bool:
        """Whether nothing is left to look with, what is reserved left out."""
        return self._looks_left <= self._reserved or time.monotonic() >= self._deadline

    def reserve_all_but_one(self, parts: int) -> None:
        """Divide the looks that are left into parts, of which the next calls may use one."""
        self._reserved = self._looks_left - self._looks_left // parts

    @property
    def states(self) -> Iterator[State]:
        """Every plan that was looked at."""
        return (state for state in self._known.values() if state is not None)

    def start(self) -> State | None:
        """The plan that saves all that can be saved; None if it cannot be scheduled."""
        return self.look(Retention(self._savable))

    def resume(self, plan: Plan) -> State | None:
        """The state of a plan from elsewhere, as far as it can be said by a retention."""
        step, made = 0, {self.problem.values[v].producer for v in plan.saved}
        gone: set[Moment] = set()
        early: set[Moment] = set()
        here: list[int] = []
        problem = self.problem
        for index in plan.backward:
            op = problem.ops[index]
            if op.phase is not Phase.BACKWARD:
                here.append(index)
                continue
            read = {problem.base[r] for i in (*here, index) for r in problem.ops[i].reads}
            for again in here:
                for write in problem.ops[again].writes:
                    if problem.base[write] == write:
                        if again in made:
                            gone.add((step - 1, write))
                        if write not in read:
                            early.add((step, write))
                made.add(again)
            step, here = step + 1, []
        return self.look(
            Retention(
                frozenset(plan.saved) | self._kept_anyway, frozenset(gone), frozenset(early), plan.written
            )
        )

    def look(self, retention: Retention) -> State | None:
        """Schedule and replay; None if that breaks a rule, or nothing is left to look with."""
        if retention not in self._known:
            if self.ended:
                return None
            self._looks_left -= 1
            self._known[retention] = self._judge(retention)
        return self._known[retention]

    def _judge(self, retention: Retention) -> State | None:
        try:
            plan = schedule(self.problem, retention.saved, "search", self._instructions(retention))
        except ScheduleError:
            return None
        plan = replace(plan, written=retention.written)
        if self._most is not None and _runs_again(self.problem, plan) > self._most:
            return None
        if not self._remake_saved and remakes_saved(self.problem, plan):
            return None
        steps, step = [], 0
        for index in plan.backward:
            steps.append(step)
            step += self.problem.ops[index].phase is Phase.BACKWARD
        used = frozenset(plan.saved) | (retention.saved & self._kept_anyway)
        return State(replace(retention, saved=used), plan, replay(self.problem, plan), tuple(steps))

    def _instructions(self, retention: Retention) -> list[Instruction]:
        gone: dict[int, list[int]] = {}
        early: dict[int, list[int]] = {}
        for moments, by_step in ((retention.gone, gone), (retention.early, early)):
            for step, value in sorted(moments):
                by_step.setdefault(step, []).append(value)
        found: list[Instruction] = []
        pending: list[int] = []
        for step, index in enumerate(self._backward):
            if step in early:
                found += [Run(tuple(pending)), Make(tuple(early[step]))]
                pending = []
            pending.append(index)
            if step in gone:
                found += [Run(tuple(pending)), Forget(tuple(gone[step]))]
                pending = []
        return [*found, Run(tuple(pending))]

    def overshoot(self, state: State, budget_bytes: int) -> int:
        """Bytes over the budget, summed over the steps (the forward is one), each at its highest point."""
        over = state.replay.curve - budget_bytes
        if over.max(initial=0) <= 0:
            return 0
        split = state.replay.forward_length
        highest: dict[int, int] = {-1: int(over[:split].max(initial=0))}
        for position in np.flatnonzero(over[split:] > 0):
            step = state.steps[position]
            highest[step] = max(highest.get(step, 0), int(over[split + position]))
        return sum(highest.values())

    def tighten(
        self, state: State, budget_bytes: int, rule: Rule = "ratio", tabu: frozenset[Moment] = frozenset()
    ) -> State | None:
        """A plan under the budget, found from ``state`` by evictions and early recomputations; None if none was found.

        Of the moves that lower the overshoot, ``rule`` takes the one with the fewest seconds a byte, with the least
        overshoot left, or with the fewest seconds. ``tabu`` are evictions that must not be made.
        """
        while state.replay.peak_bytes > budget_bytes:
            if self.ended:
                return None
            better = self._lower(state, budget_bytes, rule, tabu)
            if better is None:
                return None
            state = better
        return state

    def _lower(self, state: State, budget_bytes: int, rule: Rule, tabu: frozenset[Moment]) -> State | None:
        """The state with less overshoot that is the best by the rule, over as few moves as needed."""
        overshoot = self.overshoot(state, budget_bytes)
        beam, seen = [state], {id(state)}
        for _ in range(DEPTH):
            reached: list[tuple[int, State]] = []
            for origin in beam:
                for left, offered in self._neighbours(origin, budget_bytes, tabu):
                    if id(offered) not in seen:
                        seen.add(id(offered))
                        reached.append((left, offered))
            better = [(left, s) for left, s in reached if left < overshoot]
            if better:
                return min(better, key=lambda r: _order(rule, state, overshoot, *r))[1]
            reached.sort(key=lambda r: (r[0], r[1].rank))
            beam = [s for _, s in reached[:BEAM]]
        return None

    def _neighbours(
        self, state: State, budget_bytes: int, tabu: frozenset[Moment]
    ) -> list[tuple[int, State]]:
        """The states one move away, each with its overshoot. The rules ask for the same ones, so they are kept, if all
        of them could be looked at."""
        key = state.retention, budget_bytes, tabu
        known = self._near.get(key)
        if known is not None:
            return known
        states = [self.look(retention) for retention in self._moves(state, budget_bytes, tabu)]
        found = [(self.overshoot(s, budget_bytes), s) for s in states if s is not None]
        if not self.ended:
            self._near[key] = found
        return found

    def _moves(self, state: State, budget_bytes: int, tabu: frozenset[Moment]) -> list[Retention]:
        """Retentions one move away that may lower a moment over the budget."""
        kept, split = state.retention, state.replay.forward_length
        over: list[int] = np.flatnonzero(state.replay.curve > budget_bytes).tolist()
        found: dict[Retention, None] = {}
        idle = self._idle(state, over)
        ranked = sorted(
            (m for m in idle if m not in tabu),
            key=lambda m: (self._again_seconds[self.problem.values[m[1]].producer] / idle[m], m),
        )
        for moment in ranked[: self._width]:
            step, value = moment
            if step >= 0:
                found[replace(kept, gone=kept.gone | {moment})] = None
            elif value in kept.saved:
                found[replace(kept, saved=kept.saved - {value})] = None
        steps = {state.steps[position - split] for position in over if position >= split}
        again = self._again(state) if steps else []
        used = self._steps_of_use(state) if again else {}
        sooner, handed_on = (
            self._sooner(state, steps, again, used),
            self._handed_on(state, steps, again, used),
        )
        for moment in (*sooner, *handed_on[: self._width]):
            found[replace(kept, early=kept.early | {moment})] = None
        return list(found)

    def _idle(self, state: State, over: list[int]) -> dict[Moment, int]:
        """Values alive but idle at positions of ``over``, with the step of their last use before them (-1: forward),
        and their bytes times the number of these positions."""
        problem, split = self.problem, state.replay.forward_length
        moments = state.replay.moments.tolist()
        over = sorted({moments[position] for position in over})
        touched: dict[int, list[int]] = {}
        for position, index in enumerate((*state.plan.forward, *state.plan.backward)):
            op = problem.ops[index]
            for value in op.reads if op.kind is Kind.VIEW else (*op.reads, *op.writes):
                touched.setdefault(problem.values[value].storage, []).append(position)

        def step_of(position: int) -> int:
            return -1 if position < split else state.steps[position - split]

        found: dict[Moment, int] = {}
        outputs = {problem.values[v].storage for v in problem.forward_outputs}
        for storage, first, last in state.replay.lifetimes:
            if not problem.storages[storage].size_bytes or (storage in outputs and first < split):
                continue
            values = self._evictable.get(storage)
            if not values or bisect_right(over, moments[first]) == bisect_left(over, moments[last]):
                continue
            uses = touched[storage]
            uses = uses[bisect_left(uses, first) : bisect_right(uses, last)]
            for use, following in itertools.pairwise(uses):
                count = bisect_left(over, moments[following]) - bisect_right(over, moments[use])
                before, after = step_of(use), step_of(following)
                if count > 0 and before < after:
                    for value in values:
                        freed = count * problem.storages[storage].size_bytes
                        found[before, value] = found.get((before, value), 0) + freed
        return found

    def _sooner(
        self, state: State, steps: set[int], again: list[tuple[int, int, int]], used: dict[int, list[int]]
    ) -> list[Moment]:
        """Recomputations in ``steps`` whose operands are recomputed for them, though they were there earlier."""
        problem = self.problem
        found: dict[Moment, None] = {}
        made = set(zip(state.steps, state.plan.backward, strict=True)) if again else set()
        for step, previous, index in again:
            if step not in steps:
                continue
            for base in {problem.base[r]: None for r in problem.ops[index].reads}:
                if (step, problem.values[base].producer) not in made:
                    continue
                earlier = [s for s in used.get(base, ()) if previous <= s < step]
                if earlier:
                    found.update(((max(earlier), w), None) for w in problem.ops[index].writes)
        return list(found)

    def _handed_on(
        self, state: State, steps: set[int], again: list[tuple[int, int, int]], used: dict[int, list[int]]
    ) -> list[Moment]:
        """Recomputations for which a larger operand waits through ``steps``: they can be made where it is used before,
        or at once if it is saved, and it can go then."""
        problem, size = self.problem, self._size
        saved = set(state.plan.saved)
        found: dict[Moment, int] = {}
        for step, previous, index in again:
            writes = problem.ops[index].writes
            made = sum(size[w] for w in writes)
            for base in {problem.base[r]: None for r in problem.ops[index].reads}:
                if size[base] <= made:
                    continue
                uses = (0, *used.get(base, ())) if base in saved else used.get(base, ())
                earlier = max((s for s in uses if previous <= s < step), default=None)
                if earlier is not None and any(earlier <= s < step for s in steps):
                    for write in writes:
                        found[earlier, write] = max(size[base] - made, found.get((earlier, write), 0))
        return sorted(found, key=lambda m: (-found[m], m))

    def _steps_of_use(self, state: State) -> dict[int, list[int]]:
        """For each value that is no view, the steps in which it or a view of it is read or written."""
        problem = self.problem
        used: dict[int, list[int]] = {}
        for step, index in zip(state.steps, state.plan.backward, strict=True):
            for value in (*problem.ops[index].reads, *problem.ops[index].writes):
                used.setdefault(problem.base[value], []).append(step)
        return used

    def _again(self, state: State) -> list[tuple[int, int, int]]:
        """Recomputations: ``(step, step at which it was made before or -1 for the forward, op)``."""
        last: dict[int, int] = {}
        found: list[tuple[int, int, int]] = []
        for step, index in zip(state.steps, state.plan.backward, strict=True):
            op = self.problem.ops[index]
            if op.phase is not Phase.BACKWARD and op.kind is not Kind.VIEW:
                found.append((step, last.get(index, -1), index))
            last[index] = step
        return found

    def _undone(self, state: State) -> list[tuple[int, int, Retention]]:
        """What undoes each recomputation, those of most seconds first: step, op, retention."""
        kept = state.retention
        found: list[tuple[int, int, Retention]] = []
        again = sorted(self._again(state), key=lambda a: (-self.problem.ops[a[2]].seconds, a[2], a[0]))
        for step, previous, index in again:
            op = self.problem.ops[index]
            if op.seconds <= 0 or (previous < 0 and op.unsavable):
                continue
            mine = {w for w in op.writes if self.problem.base[w] == w}
            gone = frozenset(m for m in kept.gone if m[1] not in mine or not previous <= m[0] < step)
            saved = kept.saved | mine if previous < 0 else kept.saved
            found.append((step, index, replace(kept, saved=saved, gone=gone)))
        return found

    def loosen(self, state: State, budget_bytes: int) -> State:
        """Undo recomputations, those of most seconds first, as long as the plan stays under the budget."""
        while not self.ended:
            for _, _, retention in self._undone(state):
                offered = self.look(retention)
                if (
                    offered is not None
                    and offered.replay.peak_bytes <= budget_bytes
                    and offered.replay.seconds < state.replay.seconds
                ):
                    state = offered
                    break
            else:
                break
        return state

    def exchange(self, state: State, budget_bytes: int) -> State:
        """Undo a recomputation that does not fit and make room for it elsewhere, as long as that saves seconds."""
        while not self.ended:
            for step, index, retention in self._undone(state):
                offered = self.look(retention)
                if offered is None:
                    continue
                tabu = frozenset((s, w) for w in self.problem.ops[index].writes for s in range(-1, step))
                offered = self.tighten(offered, budget_bytes, "ratio", tabu)
                if offered is None:
                    continue
                offered = self.loosen(offered, budget_bytes)
                if offered.replay.seconds < state.replay.seconds:
                    state = offered
                    break
            else:
                break
        return state


def _order(
    rule: Rule, origin: State, overshoot: int, left: int, offered: State
) -> tuple[float, float, float]:
    seconds = offered.replay.seconds
    if rule == "overshoot":
        return left, seconds, 0.0
    if rule == "seconds":
        return seconds, left, 0.0
    return max(0.0, seconds - origin.replay.seconds) / (overshoot - left), seconds, left


def remakes_saved(problem: Problem, plan: Plan) -> bool:
    """Whether the backward makes a value again that it was given."""
    again = {
        w for i in plan.backward if problem.ops[i].phase is not Phase.BACKWARD for w in problem.ops[i].writes
    }
    return not again.isdisjoint(plan.saved)


def _runs_again(problem: Problem, plan: Plan) -> int:
    """The most often that an op, views excepted, runs in the backward after it has run before."""
    runs: dict[int, int] = {}
    for index in plan.recomputed(problem):
        runs[index] = runs.get(index, 0) + 1
    return max(runs.values(), default=0)
