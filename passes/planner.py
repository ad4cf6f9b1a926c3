"""From a problem to a frontier of plans, each replayed. Free of torch; this is the solver's one entry.

>>> from graphremat.passes.testing import chain
>>> frontier = plan_frontier(chain(length=30))
>>> fastest, lowest = frontier.candidates[0], frontier.candidates[-1]
>>> fastest.replay.recompute_seconds, lowest.replay.peak_bytes < 0.5 * fastest.replay.peak_bytes
(0.0, True)
"""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from graphremat.passes.blocks import checkpoint_blocks, find_blocks
from graphremat.passes.bound import Bound
from graphremat.passes.chain import Programme, instructions
from graphremat.passes.crossover import crossed
from graphremat.passes.cut import varied_cuts
from graphremat.passes.exact import solve_exact
from graphremat.passes.frontier import Candidate, Frontier, Proof, frugal, judge, pareto
from graphremat.passes.garbage import garbage_left
from graphremat.passes.plan import Plan
from graphremat.passes.problem import Phase, Problem
from graphremat.passes.refine import descended, filled, searched
from graphremat.passes.schedule import ScheduleError, schedule
from graphremat.passes.search import Search, remakes_saved
from graphremat.passes.segments import segment_choices
from graphremat.passes.stages import Stages, find_stages
from graphremat.passes.written import with_written, without_idle_writing, worth_writing

log = logging.getLogger("graphremat.planner")

PLAN_WORK = 100_000
"""Ops replayed for plans of the programme over stages: a large graph gets fewer plans, at least ``LEAST_PLANS``, and
one of the sets of prices less."""
LEAST_PLANS = 48
"""For a graph of 9,858 ops (Llama-3-8B with adapters, weights of 16.1 GB) 12 plans took 6.8 s and 64 took 10.5 s on one
x86-64 core; the widest step between neighbouring peaks was 2.39 GB with 12 of them and 0.58 GB with 64."""
FEW_PLANS = 16
"""Of the programme, with less than the usual effort."""
SEARCH_WORK = 200_000
"""Ops replayed by the local search in all: it looks at many plans of a small graph and at few of a large one."""
MOST_LOOKS = 3_000
LEAST_LOOKS = 100
"""Below this neither the local search nor the descent is begun."""
WIDE_LOOKS = 1_000
"""From this on the search looks at every move, below at the most promising ``NARROW_WIDTH``."""
NARROW_WIDTH = 6
BLOCKS_A_SEGMENT = (1, 2, 4, 8)
"""Blocks of the network in one checkpoint, of the plans that stand for what users do by hand."""
WRAPPED_SHARES = (0.25, 0.5, 0.75)
"""Of the blocks, the first ones: those whose values live longest; the others are left as they are."""
ASKED = 8
"""Plans of the lowest peaks that are asked whether they go lower where more is written out."""
DESCENT_WIDTH = 3
"""Moves that the descent looks at from one plan. Where saved values may be made again it comes lower with 3 than with 6
in as many looks, in a large U-Net to 79 instead of 86 MiB; where they may not, 6 would be a little better there."""
LARGE_DESCENT_WORK = 400_000
"""Ops replayed by the descent of a graph that is too large for the search to be begun. In a ResNet-50 (3,044 ops) the
lowest peak came from 335 to 319 MiB in 1.5 s, to 323 with half as much and no lower with four times."""
CROSSOVER_WORK = 200_000
"""Ops replayed to cross plans with each other: one to two seconds. Of a Llama with adapters (1,938 ops) the widest step
between neighbouring peaks was 29% of their range without, 7% with this, and no less with twice as many."""
MOST_CROSSINGS = 600
GAP_WORK = 1_000_000
"""Ops replayed by the local search between neighbours on the frontier: at most three seconds. What a step takes longer
than without recomputation, averaged over all budgets, fell by 3 to 13% in five networks of 594 to 1,165 ops, by 40 to
100% of that with half as much, and in four of them by little further with three times as much."""
GAP_LOOKS = 16
"""Plans looked at in one gap. What is found divides it; with 100 in each, so in fewer gaps, as much was gained in three
of these networks, and a quarter as much in two."""


@garbage_left()
def plan_frontier(
    problem: Problem,
    *,
    most: int = 64,
    seeds: Sequence[Plan] = (),
    most_recomputations: int | None = 2,
    time_limit_seconds: float = math.inf,
    remake_saved: bool = True,
    effort: float = 1.0,
) -> Frontier:
    """Plan ``problem`` for all budgets at once.

    Args:
        problem: what to plan.
        most: plans to keep, at least 2.
        seeds: plans from elsewhere that compete with ours (torch's own, say).
        most_recomputations: how often an op may run again, at least 1; None for as often as it pays.
        remake_saved: whether a saved value may be let go in the backward and made again there.
        time_limit_seconds: after it no further plan is tried. Without it the same problem gives the same plans.
        effort: how much of the usual work to spend on the local search and on crossover, 0.0 to 1.0; below 1.0 the
            programme gives :data:`FEW_PLANS`, and gaps stay as they are.

    Raises:
        graphremat.passes.cut.NoCut: the backward needs something that can neither be saved nor recomputed.
    """
    deadline = time.monotonic() + time_limit_seconds
    plans = min(most, max(LEAST_PLANS, PLAN_WORK // max(1, len(problem.ops))) if effort >= 1 else FEW_PLANS)
    found = _first_plans(problem, seeds, plans)
    stages = find_stages(problem)
    chain_plans = partial(
        _chain_plans,
        problem,
        stages=stages,
        highest_bytes=max(c.replay.peak_bytes for c in found),
        most=plans,
        most_recomputations=most_recomputations,
        deadline=deadline,
    )
    for priced in _price_sets(problem, effort):
        found += chain_plans(priced)
    bound = Bound(problem)
    looks, looks_down = _looks(problem, effort)
    search = partial(
        Search,
        problem,
        most_recomputations=most_recomputations,
        deadline=deadline,
        remake_saved=remake_saved,
    )
    width = None if looks >= WIDE_LOOKS else NARROW_WIDTH
    found += searched(search(most_looks=looks, width=width), found, bound.lowest_bytes, plans)
    written = worth_writing(problem) if effort >= 1 else ()
    if written and time.monotonic() < deadline and _go_lower(problem, found, written):
        chained = chain_plans(with_written(problem, written), written=written)
        found += chained
        found += searched(search(most_looks=looks, width=width), chained, bound.lowest_bytes, plans)
    found += descended(search(most_looks=looks_down, width=DESCENT_WIDTH), found, bound.lowest_bytes)
    crossings = round(effort * min(MOST_CROSSINGS, CROSSOVER_WORK // max(1, len(problem.ops))))
    found = _allowed(problem, found, remake_saved)
    found += _allowed(problem, crossed(problem, found, most_looks=crossings, deadline=deadline), remake_saved)
    if effort >= 1:
        looks_between = min(MOST_LOOKS, GAP_WORK // max(1, len(problem.ops)))
        between = search(most_looks=looks_between, width=NARROW_WIDTH)
        found += filled(between, found, tries=looks_between // GAP_LOOKS, most=most)
    kept = pareto([without_idle_writing(problem, c) for c in pareto(found, most)], most)
    spare = [without_idle_writing(problem, c) for c in frugal(found, kept, most)]
    return Frontier(kept, bound, frugal=frugal(spare, kept, most))


def with_exact(
    problem: Problem,
    frontier: Frontier,
    budget_bytes: int,
    *,
    time_limit_seconds: float,
    most: int = 64,
    most_recomputations: int | None = 2,
    remake_saved: bool = True,
) -> Frontier:
    """The frontier with the exact solver's plan for one budget, if that is faster, and with what the solver proved.

    The solver starts from the frontier's own plan and is meant for graphs of some dozens of ops; on a larger one it
    comes back at its time limit, with what it has. The other arguments are those of :func:`plan_frontier`.
    """
    place = frontier.under(budget_bytes)
    found = solve_exact(
        problem,
        budget_bytes,
        time_limit_seconds=time_limit_seconds,
        most_recomputations=most_recomputations,
        incumbent=None if place is None else frontier.candidates[place].plan,
    )
    candidates = frontier.candidates
    if found.plan is not None and (remake_saved or not remakes_saved(problem, found.plan)):
        candidates = pareto([*candidates, judge(problem, found.plan)], most)
    return replace(frontier, candidates=candidates, proof=Proof(budget_bytes, found.bound_seconds))


def _first_plans(problem: Problem, seeds: Sequence[Plan], most: int) -> list[Candidate]:
    """The seeds, cuts of the whole graph, at most ``most``, and checkpoints around blocks."""
    found = [judge(problem, plan) for plan in seeds]
    found += [
        judge(problem, schedule(problem, cut.saved, "cut of the whole graph"))
        for cut in varied_cuts(problem, most)
    ]
    return found + _block_plans(problem, found[0].plan.saved)


def _looks(problem: Problem, effort: float) -> tuple[int, int]:
    """How many plans the local search looks at, and how many the descent: none where they would be too few."""

    def within(work: int) -> int:
        looks = round(effort * min(MOST_LOOKS, work // max(1, len(problem.ops))))
        return looks if looks >= LEAST_LOOKS else 0

    looks = within(SEARCH_WORK)
    is_too_large = not looks and effort >= 1
    return looks, within(LARGE_DESCENT_WORK) if is_too_large else looks


def _price_sets(problem: Problem, effort: float) -> list[Problem]:
    """The problem by the prices of the programmes over stages."""
    if effort < 1:
        return [problem]
    large = len(problem.ops) * LEAST_PLANS >= PLAN_WORK
    return [problem, with_free_traffic(problem), *([] if large else [with_equal_kernels(problem)])]


def _block_plans(problem: Problem, outside: Sequence[int]) -> list[Candidate]:
    """What a user does by hand: a checkpoint around each block or several, or each of the first so many blocks, which
    may be selective and save what attention gives, or every product. The frontier is never worse than that. Values in
    no wrapped block are saved where they are ``outside``."""
    blocks = find_blocks(problem)
    if len(blocks) < 2:
        return []
    wanted = {problem.base[r] for op in problem.ops if op.phase is Phase.BACKWARD for r in op.reads}
    made = [op for op in problem.ops if op.phase is not Phase.BACKWARD and op.flops]
    products = tuple(w for op in made for w in op.writes if w in wanted)
    attention = tuple(w for op in made if "attention" in op.target for w in op.writes if w in wanted)
    placed = [(every, len(blocks)) for every in BLOCKS_A_SEGMENT if every < len(blocks)]
    placed += [(1, round(share * len(blocks))) for share in WRAPPED_SHARES]
    found = []
    for every, wrapped in dict.fromkeys(placed):
        for kept in dict.fromkeys(((), attention, products)):
            try:
                plan = checkpoint_blocks(problem, blocks, every, outside, kept=kept, wrapped=wrapped)
                found.append(judge(problem, plan))
            except ValueError as error:
                log.info("checkpoints around every %d blocks are left out: %s", every, error)
    return found


def _chain_plans(
    problem: Problem,
    priced: Problem,
    stages: Stages,
    highest_bytes: int,
    most: int,
    most_recomputations: int | None,
    deadline: float,
    written: tuple[int, ...] = (),
) -> list[Candidate]:
    """Plans of the programme over stages by the prices of ``priced``, which is ``problem`` otherwise, at ``most`` of
    its budgets; none where there is one stage only. They write out ``written``."""
    if len(stages) < 2 or time.monotonic() >= deadline:
        return []
    choices = segment_choices(priced, stages)
    programme = Programme(priced, stages, choices, highest_bytes, most_recomputations)
    found: dict[Plan, Candidate] = {}
    for budget in programme.budgets(most):
        if time.monotonic() >= deadline:
            break
        choice = programme.solve(budget)
        assert choice is not None
        steps = instructions(choice, problem, stages)
        origin = f"{len(choice.segments)} segments"
        try:
            plan = schedule(problem, choice.saved, origin, steps)
            if beside := made_beside_saved(problem, plan):
                plan = schedule(problem, (*choice.saved, *beside), origin, steps)
        except ScheduleError as error:
            log.warning("a choice of the programme over stages is left out: %s", error)
            continue
        plan = replace(plan, written=written)
        if plan not in found:
            found[plan] = judge(problem, plan)
    return list(found.values())


def _go_lower(problem: Problem, found: list[Candidate], written: tuple[int, ...]) -> bool:
    """Whether one of the lowest plans is lower than all are where the backward writes out ``written``."""
    lowest = sorted(found, key=lambda c: c.replay.peak_bytes)[:ASKED]
    least = lowest[0].replay.peak_bytes
    return any(judge(problem, replace(c.plan, written=written)).replay.peak_bytes < least for c in lowest)


def with_free_traffic(problem: Problem) -> Problem:
    """The problem in which only arithmetic costs something: plans for the lowest peaks.

    The programme weighs seconds against bytes segment by segment, and a value that is dear to make again (a mask, say)
    it keeps although that stands at the very peak. By these prices it makes again whatever only moves memory.
    """
    ops = tuple(op if op.flops else replace(op, seconds=0.0, fused_seconds=0.0) for op in problem.ops)
    return replace(problem, ops=ops)


def with_equal_kernels(problem: Problem) -> Problem:
    """The problem in which every kernel takes as long as the slowest: again plans for low peaks.

    What a product's backward reads is kept by these prices, and what the product gave is made again after it, though
    the product is the dearer of the two: so the two are not there together.
    """
    slowest = max((op.seconds for op in problem.ops), default=0.0)
    ops = tuple(replace(op, seconds=slowest) if op.seconds else op for op in problem.ops)
    return replace(problem, ops=ops)


def made_beside_saved(problem: Problem, plan: Plan) -> list[int]:
    """What the backward makes again by ops of which it has another result already: saved too, the op need not run."""
    saved = set(plan.saved)
    again = [problem.ops[i].writes for i in plan.backward if not saved.isdisjoint(problem.ops[i].writes)]
    return [w for writes in again for w in writes if w not in saved and problem.readers[w]]


def _allowed(problem: Problem, found: list[Candidate], remake_saved: bool) -> list[Candidate]:
    """The plans that make no saved value again, or all where they may."""
    return [c for c in found if remake_saved or not remakes_saved(problem, c.plan)]
