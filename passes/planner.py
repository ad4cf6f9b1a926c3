"""From a problem to a frontier of plans, each replayed. Free of torch; this is the solver's one entry.

>>> from graphremat.passes.testing import chain
>>> frontier = plan_frontier(chain(length=30))
>>> fastest, lowest = frontier.candidates[0], frontier.candidates[-1]
>>> fastest.replay.recompute_seconds, lowest.replay.peak_bytes < 0.5 * fastest.replay.peak_bytes
(0.0, True)
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from graphremat.passes.chain import Programme, make_programme
from graphremat.passes.cut import CutGraph
from graphremat.passes.plan import Plan, check_plan
from graphremat.passes.problem import Holder, Problem
from graphremat.passes.refine import refine
from graphremat.passes.replay import Replay, replay
from graphremat.passes.schedule import ScheduleError, schedule
from graphremat.passes.segments import segment_options
from graphremat.passes.stages import find_stages

log = logging.getLogger("graphremat.planner")

SEARCH_STEPS = 12
"""Halvings in the search for the lowest budget of the programme: 1/4096 of the range."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A plan and its replay."""

    plan: Plan
    replay: Replay


@dataclass(frozen=True, eq=False)
class Frontier:
    """Plans from the fastest to the one of lowest peak: every next one has a lower peak and takes longer."""

    candidates: tuple[Candidate, ...]

    def under(self, budget_bytes: int) -> int | None:
        """Place of the fastest plan whose replayed peak is at most ``budget_bytes``."""
        for place, candidate in enumerate(self.candidates):
            if candidate.replay.peak_bytes <= budget_bytes:
                return place
        return None


def plan_frontier(problem: Problem, *, most: int = 24, seeds: Sequence[Plan] = ()) -> Frontier:
    """Plan ``problem`` for all budgets at once.

    Args:
        problem: what to plan.
        most: plans to keep, at least 2.
        seeds: plans from elsewhere that compete with ours (torch's own, say).

    Raises:
        graphremat.passes.cut.NoCut: the backward needs something that can neither be saved nor recomputed.
    """
    found = [judge(problem, plan) for plan in seeds]
    hull = CutGraph(problem).hull(most)
    found += [judge(problem, schedule(problem, cut.saved, "cut of the whole graph")) for cut in hull]
    stages = find_stages(problem)
    if len(stages) > 1:
        programme = make_programme(problem, stages, segment_options(problem, stages))
        highest = max(c.replay.peak_bytes for c in found)
        found += _sweep(problem, programme, highest, most)
    return Frontier(_pareto(found, most))


def judge(problem: Problem, plan: Plan) -> Candidate:
    """Check and replay a plan. Raises ValueError if it breaks a rule of the problem."""
    check_plan(problem, plan)
    return Candidate(plan, replay(problem, plan))


def _sweep(problem: Problem, programme: Programme, highest_bytes: int, most: int) -> list[Candidate]:
    """Solve the programme at ``most`` budgets between the lowest that works and ``highest_bytes``."""
    low, high = _floor(problem), highest_bytes
    if programme.solve(high) is None:
        high *= 2
    if programme.solve(high) is None:
        return []
    for _ in range(SEARCH_STEPS):
        middle = (low + high) // 2
        if programme.solve(middle) is None:
            low = middle
        else:
            high = middle
    lowest = high
    found: dict[tuple[int, ...], Candidate] = {}
    for step in range(most):
        budget = lowest + (max(highest_bytes, lowest) - lowest) * step // max(1, most - 1)
        choice = programme.solve(budget)
        if choice is None or choice.saved in found:
            continue
        try:
            plan = schedule(problem, choice.saved, f"{len(choice.segments)} segments")
        except ScheduleError as error:
            log.warning("a choice of the programme over segments is left out: %s", error)
            continue
        found[choice.saved] = judge(problem, refine(problem, plan, budget))
    return list(found.values())


def _floor(problem: Problem) -> int:
    """Bytes that no plan gets below: what the caller holds and the gradients."""
    engine = sum(s.size_bytes for s in problem.storages if s.holder is Holder.ENGINE)
    return problem.input_bytes + max(problem.gradient_bytes, engine)


def _pareto(found: list[Candidate], most: int) -> tuple[Candidate, ...]:
    """Plans that no other beats in peak and seconds, thinned to ``most``, ends kept."""
    order = sorted(found, key=lambda c: (c.replay.seconds, c.replay.peak_bytes, c.plan.saved))
    kept: list[Candidate] = []
    for candidate in order:
        if not kept or candidate.replay.peak_bytes < kept[-1].replay.peak_bytes:
            kept.append(candidate)
    if len(kept) <= most:
        return tuple(kept)
    return tuple(kept[round(i * (len(kept) - 1) / (most - 1))] for i in range(most))
