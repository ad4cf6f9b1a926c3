"""What people do by hand today, as planners on the same problem, each judged by the same replay. Free of torch.

Every entry of :data:`BASELINES` gives all plans that a user would reach by sweeping its one knob. None of them looks at
the byte curve while it decides; the curve only judges what they did.

    >>> from graphremat.passes.testing import chain
    >>> problem = chain(30)
    >>> points = {name: baseline(problem) for name, baseline in BASELINES.items()}
    >>> points["save everything"][0].replay.recompute_seconds
    0.0
    >>> min(c.replay.peak_bytes for c in points["revolve"]) <= min(
    ...     c.replay.peak_bytes for c in points["square root"]
    ... )
    True
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from graphremat.passes.checkpoints import (
    checkpoint_segments,
    must_save,
    read_by_backward,
    revolve_plan,
    stage_of,
)
from graphremat.passes.cut import INFINITE, CutGraph, NoCut, recompute_seconds
from graphremat.passes.frontier import Candidate, judge
from graphremat.passes.plan import Plan
from graphremat.passes.problem import Holder, Kind, Phase, Problem
from graphremat.passes.schedule import ScheduleError, backward_ops, schedule
from graphremat.passes.stages import Stages, find_stages

log = logging.getLogger("graphremat.baselines")

BUDGET_STEPS = 20
"""Byte budgets of a sweep: 0, 5, ..., 100 per cent of what saving everything takes."""

KNAPSACK_LEVELS = 10_000
"""Levels to which the knapsack rounds bytes, as torch's does; ours rounds up, so that a budget is never exceeded."""

RANDOM = "random"
"""Part of the names of the ops that draw random numbers once Inductor's passes have run (``inductor_random``)."""


def _bytes(problem: Problem, values: Iterable[int]) -> int:
    """Bytes of the storages of ``values`` that the graph owns; outputs of the forward are kept anyway."""
    outputs = {problem.values[v].storage for v in problem.forward_outputs}
    held = {problem.values[v].storage for v in values} - outputs
    return sum(problem.storages[s].size_bytes for s in held if problem.storages[s].holder is Holder.GRAPH)


def _judged(problem: Problem, makers: Iterable[Callable[[], Plan]]) -> list[Candidate]:
    """Each plan judged; what can neither be scheduled nor be cut is left out."""
    found = []
    for make in makers:
        try:
            found.append(judge(problem, make()))
        except (ScheduleError, NoCut) as error:
            log.debug("a point of a baseline is left out: %s", error)
    return found


def save_everything(problem: Problem) -> list[Candidate]:
    """What eager training does: every value that the backward reads is saved."""
    saved = (*read_by_backward(problem), *must_save(problem))
    return _judged(problem, [lambda: schedule(problem, saved, "save everything")])


# Checkpoints


def _every(problem: Problem, stages: Stages, distance: int) -> Iterator[Callable[[], Plan]]:
    """Checkpoints at every ``distance``-th stage: the last segment recomputed too, and the last segment left alone."""
    count = len(stages)
    segments = [(a, min(a + distance, count)) for a in range(0, count, distance)]
    boundaries = [v for first, _ in segments for v in stages.crossing[first]]
    last = [v for v in read_by_backward(problem) if stage_of(problem, stages, v) >= segments[-1][0]]
    for more, name in (([], ""), (last, ", last segment saved")):
        saved = (*must_save(problem), *boundaries, *more)
        origin = f"checkpoint every {distance} stages{name}"
        yield partial(checkpoint_segments, problem, stages, segments, saved, origin)


def every_n_stages(problem: Problem) -> list[Candidate]:
    """``torch.utils.checkpoint`` around every N stages, N from 1 to all of them.

    Each N twice: with every segment recomputed (each block wrapped), and with the last segment left as it is (what
    ``checkpoint_sequential`` does).
    """
    stages = find_stages(problem)
    return _judged(problem, (m for n in range(1, len(stages) + 1) for m in _every(problem, stages, n)))


def square_root(problem: Problem) -> list[Candidate]:
    """Segments of about the square root of the number of stages (Chen et al. 2016, arXiv 1604.06174)."""
    stages = find_stages(problem)
    return _judged(problem, _every(problem, stages, max(1, round(math.sqrt(len(stages))))))


def layers_by_bytes_per_second(problem: Problem) -> list[Candidate]:
    """The profiled placement rule: wrap layers in a checkpoint, most bytes for a second of recomputation first.

    A layer is a stage. The knob is how many are wrapped; that is the byte budget in steps of one layer.
    """
    stages = find_stages(problem)
    again = recompute_seconds(problem)
    everything = read_by_backward(problem)
    boundary = {v for crossing in stages.crossing for v in crossing}
    inner: list[list[int]] = [[] for _ in stages.starts]
    seconds = [0.0] * len(stages)
    for value in everything:
        if value not in boundary:
            inner[max(0, stage_of(problem, stages, value))].append(value)
    for index in stages.forward:
        seconds[stages.stage_of[index]] += again[index]
    freed = [_bytes(problem, values) for values in inner]
    order = sorted(range(len(stages)), key=lambda k: (-freed[k] / max(seconds[k], 1e-12), k))

    def wrap(count: int) -> Plan:
        wrapped = set(order[:count])
        saved = [v for k, values in enumerate(inner) if k not in wrapped for v in values]
        crossing = [v for k in sorted(wrapped) for v in stages.crossing[k]]
        rest = [v for v in everything if v in boundary]
        kept = (*must_save(problem), *saved, *crossing, *rest)
        singles = [(k, k + 1) for k in range(len(stages))]
        return checkpoint_segments(problem, stages, singles, kept, f"checkpoint of {count} layers")

    return _judged(problem, (partial(wrap, count) for count in range(len(stages) + 1)))


def revolve(problem: Problem) -> list[Candidate]:
    """:func:`revolve_plan` for every number of slots."""
    stages = find_stages(problem)
    slots = range(1, len(stages) + 1)
    return _judged(problem, (partial(revolve_plan, problem, s, stages) for s in slots))


# Byte budgets


def greedy_by_seconds_per_byte(problem: Problem) -> list[Candidate]:
    """Save values, most seconds of recomputation a byte first, until a byte budget is filled.

    The seconds are those of the value's own op. The budgets are :data:`BUDGET_STEPS` steps up to what all values take.
    """
    again = recompute_seconds(problem)
    required = must_save(problem)
    values = [v for v in read_by_backward(problem) if v not in set(required)]
    sizes = {v: _bytes(problem, [v]) for v in values}

    def rate(value: int) -> float:
        return again[problem.values[value].producer] / max(1, sizes[value])

    # Of equals the later one: it is gone again when the earlier one is recomputed.
    ranked = sorted(values, key=lambda v: (-rate(v), -v))
    total = sum(sizes.values())

    def fill(step: int) -> Plan:
        room = total * step // BUDGET_STEPS
        saved = list(required)
        for value in ranked:
            if sizes[value] <= room:
                saved.append(value)
                room -= sizes[value]
        return schedule(problem, saved, f"greedy, {step / BUDGET_STEPS:.0%} of the bytes")

    return _judged(problem, (partial(fill, step) for step in range(BUDGET_STEPS + 1)))


def knapsack(
    sizes: Sequence[int], gains: Sequence[float], capacities: Sequence[int], levels: int = KNAPSACK_LEVELS
) -> list[tuple[int, ...]]:
    """For each capacity the items that fit and gain most, by dynamic programming over sizes rounded up to ``levels``.

    Exact where no capacity exceeds ``levels``. Items that gain nothing are left out.

    >>> knapsack([3, 4, 5], [3.0, 4.5, 5.0], [4, 8, 12])
    [(1,), (0, 2), (0, 1, 2)]
    """
    unit = max(1, -(-max(capacities, default=0) // levels))
    weights = [-(-size // unit) for size in sizes]
    most = max(capacities, default=0) // unit
    best: npt.NDArray[np.float64] = np.zeros(most + 1)
    taken = np.zeros((len(sizes), most + 1), dtype=bool)
    for item, (weight, gain) in enumerate(zip(weights, gains, strict=True)):
        if weight <= most:
            offered = best[: most + 1 - weight] + gain
            taken[item, weight:] = offered > best[weight:]
            best[weight:] = np.maximum(best[weight:], offered)
    chosen = []
    for capacity in capacities:
        room, items = capacity // unit, []
        for item in range(len(sizes) - 1, -1, -1):
            if taken[item, room]:
                items.append(item)
                room -= weights[item]
        chosen.append(tuple(reversed(items)))
    return chosen


@dataclass(frozen=True)
class KnapsackPoint:
    """One setting of the knapsack rule: the bytes it may save and the values it saves."""

    fraction: float
    budget_bytes: int
    saved: tuple[int, ...]


def torch_knapsack_points(problem: Problem) -> list[KnapsackPoint]:
    """What torch's ``activation_memory_budget`` chooses, for fractions from 0 to 1 in :data:`BUDGET_STEPS` steps.

    The idea of torch's ``choose_saved_values_set``. Fraction 1 is the cut of the fewest seconds, and a budget is a
    fraction of what it saves; fraction 0 saves nothing. Between them the min cut in bytes is taken where it fits the
    budget: first with heavy and random ops banned from recomputation, then with heavy ones alone. Where neither fits, a
    knapsack of seconds under the budget says which heavy ops stay banned, and a min cut in bytes with those bans is
    what is saved.

    Where this is simpler than torch: heavy are all kernels and reductions (torch has lists of ops, and a ratio of sizes
    for reductions); fraction 1 is exact by our seconds (torch bans fusible ops by rules of thumb: used far apart, long
    chains, materialized in the backward); the knapsack gains our seconds (torch's gain FLOP, unless told otherwise);
    torch's weights by distance are left out; and where torch draws random numbers again from a stored state, ops that
    must not run again stay saved on top of the budget.

    Raises:
        NoCut: the backward needs something that can neither be saved nor recomputed.
    """
    needed = sorted(_ancestors_of_backward(problem))
    may_be_banned = [
        i
        for i in needed
        if problem.ops[i].phase is Phase.FORWARD
        and problem.ops[i].kind is not Kind.VIEW
        and not (problem.ops[i].keep or problem.ops[i].unsavable)
    ]
    heavy = [i for i in may_be_banned if problem.ops[i].kind in (Kind.KERNEL, Kind.REDUCTION)]
    random = [i for i in may_be_banned if RANDOM in problem.ops[i].target]
    fastest = CutGraph(problem).hull(2)[0].saved
    wholes = [_cut_with_bans(problem, banned) for banned in ({*heavy, *random}, heavy)]
    # Largest first, as torch orders them: of equal choices the knapsack keeps the first ones.
    items = sorted(heavy, key=lambda i: (-_bytes(problem, problem.ops[i].writes), i))
    sizes = [_bytes(problem, problem.ops[i].writes) for i in items]
    most = _bytes(problem, fastest)
    budgets = [most * step // BUDGET_STEPS for step in range(BUDGET_STEPS + 1)]
    chosen = knapsack(sizes, [problem.ops[i].seconds for i in items], budgets)
    points = [KnapsackPoint(0.0, 0, must_save(problem))]
    for step in range(1, BUDGET_STEPS):
        fitting = [saved for saved in wholes if _bytes(problem, saved) < budgets[step]]
        saved = fitting[0] if fitting else _cut_with_bans(problem, [items[item] for item in chosen[step]])
        points.append(KnapsackPoint(step / BUDGET_STEPS, budgets[step], saved))
    return [*points, KnapsackPoint(1.0, most, fastest)]


def _cut_with_bans(problem: Problem, banned: Iterable[int]) -> tuple[int, ...]:
    ops = list(problem.ops)
    for index in banned:
        ops[index] = replace(ops[index], keep="banned from recomputation")
    return CutGraph(replace(problem, ops=tuple(ops))).solve(INFINITE).saved


def _ancestors_of_backward(problem: Problem) -> set[int]:
    """Ops of the forward from which the backward can be reached."""
    found: set[int] = set()
    pending = [r for i in backward_ops(problem) for r in problem.ops[i].reads] + [*problem.backward_outputs]
    while pending:
        index = problem.values[pending.pop()].producer
        if index >= 0 and index not in found and problem.ops[index].phase is not Phase.BACKWARD:
            found.add(index)
            pending.extend(problem.ops[index].reads)
    return found


def torch_knapsack(problem: Problem) -> list[Candidate]:
    """:func:`torch_knapsack_points`, each scheduled where it is needed, as torch orders its backward."""
    try:
        points = torch_knapsack_points(problem)
    except NoCut as error:
        log.debug("the knapsack rule is left out: %s", error)
        return []

    def lay_out(point: KnapsackPoint) -> Plan:
        return schedule(problem, point.saved, f"torch's knapsack, fraction {point.fraction:.2f}")

    return _judged(problem, (partial(lay_out, point) for point in points))


BASELINES: Mapping[str, Callable[[Problem], list[Candidate]]] = MappingProxyType(
    {
        "save everything": save_everything,
        "every N stages": every_n_stages,
        "square root": square_root,
        "revolve": revolve,
        "layers by bytes per second": layers_by_bytes_per_second,
        "greedy by seconds per byte": greedy_by_seconds_per_byte,
        "torch knapsack": torch_knapsack,
    }
)
"""Every baseline by name: a problem to all its points, in the order of its knob."""
