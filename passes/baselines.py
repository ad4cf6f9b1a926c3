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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from graphremat.passes.cut import INFINITE, CutGraph, NoCut, recompute_seconds
from graphremat.passes.plan import Plan
from graphremat.passes.planner import Candidate, judge
from graphremat.passes.problem import Holder, Kind, Phase, Problem
from graphremat.passes.schedule import ScheduleError, backward_ops, forward_order, lazy_order, schedule
from graphremat.passes.stages import Stages, find_stages

log = logging.getLogger("graphremat.baselines")

BUDGET_STEPS = 20
"""Byte budgets of a sweep: 0, 5, ..., 100 per cent of what saving everything takes."""

KNAPSACK_LEVELS = 10_000
"""Levels to which the knapsack rounds bytes, as torch's does; ours rounds up, so that a budget is never exceeded."""


# What a problem forces on every rule


def must_save(problem: Problem) -> tuple[int, ...]:
    """Values that no rule may leave to recomputation: results of ops that must not run again.

    Where such a result cannot be saved, the results of its readers stand in for it.
    """
    lost: set[int] = set()
    found: list[int] = []
    for op in problem.ops:
        if op.phase is Phase.BACKWARD or not (op.keep or lost.intersection(op.reads)):
            continue
        if op.unsavable or (op.kind is Kind.VIEW and lost.intersection(op.reads)):
            lost.update(op.writes)
        elif op.kind is not Kind.VIEW:
            found.extend(op.writes)
    return tuple(found)


def read_by_backward(problem: Problem) -> tuple[int, ...]:
    """Values (not views) of the forward that the backward reads when nothing of the forward runs again.

    Ops that only the backward needs run in the backward, as they do in eager. In place of a value that cannot be saved
    stand those from which it is recomputed.
    """
    found: set[int] = set()
    seen: set[int] = set()
    pending = [r for index in backward_ops(problem) for r in problem.ops[index].reads]
    pending += problem.backward_outputs
    while pending:
        value = problem.base[pending.pop()]
        producer = problem.values[value].producer
        if value in seen or producer < 0 or problem.ops[producer].phase is Phase.BACKWARD:
            continue
        seen.add(value)
        op = problem.ops[producer]
        if op.unsavable or (op.phase is Phase.EITHER and not op.keep):
            pending.extend(op.reads)
        else:
            found.add(value)
    return tuple(sorted(found))


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


# Save everything


def save_everything(problem: Problem) -> list[Candidate]:
    """What eager training does: every value that the backward reads is saved."""
    saved = (*read_by_backward(problem), *must_save(problem))
    return _judged(problem, [lambda: schedule(problem, saved, "save everything")])


# Checkpoints at the boundaries of stages


def checkpoint_segments(
    problem: Problem, stages: Stages, segments: Sequence[tuple[int, int]], saved: Iterable[int], origin: str
) -> Plan:
    """The plan of ``torch.utils.checkpoint``: what a segment lacks is recomputed in one go.

    :func:`graphremat.passes.schedule.schedule` recomputes a value when it is needed. A checkpoint runs its whole
    segment before the first backward op that needs any of it. What only the backward needs stays where it is needed.

    Args:
        problem: the problem.
        stages: its stages.
        segments: half-open ranges of stages that cover all of them, in the order of the forward.
        saved: values to save.
        origin: the plan's name.

    Raises:
        ScheduleError: something that is needed can neither be had from ``saved`` nor be recomputed.
    """
    kept = {problem.base[v] for v in saved}
    available = [value.producer < 0 or index in kept for index, value in enumerate(problem.values)]
    backward: list[int] = []
    for first, stop in reversed(segments):
        window = stages.backward[stages.windows[stop - 1][0] : stages.windows[first][1]]
        outputs = problem.backward_outputs if first == 0 else ()
        backward += _at_once(problem, lazy_order(problem, available, window, outputs))
    return _finish(problem, kept, backward, origin)


def _at_once(problem: Problem, order: list[int]) -> list[int]:
    """``order`` with all its ops of the forward in front of the first of them that is not a view."""
    ops = problem.ops
    start = next(
        (p for p, i in enumerate(order) if ops[i].phase is Phase.FORWARD and ops[i].kind is not Kind.VIEW),
        len(order),
    )
    again = sorted(i for i in order[start:] if ops[i].phase is Phase.FORWARD)
    return [*order[:start], *again, *(i for i in order[start:] if ops[i].phase is not Phase.FORWARD)]


def _finish(problem: Problem, kept: Collection[int], backward: Sequence[int], origin: str) -> Plan:
    """The plan of this backward; saved values that it does not read are dropped."""
    read = {r for i in backward for r in problem.ops[i].reads} | set(problem.backward_outputs)
    used = tuple(sorted(v for v in kept if v in read and problem.values[v].producer >= 0))
    return Plan(used, forward_order(problem, used), tuple(backward), origin)


def _every(problem: Problem, stages: Stages, distance: int) -> Iterator[Callable[[], Plan]]:
    """Checkpoints at every ``distance``-th stage: the last segment recomputed too, and the last segment left alone."""
    count = len(stages)
    segments = [(a, min(a + distance, count)) for a in range(0, count, distance)]
    boundaries = [v for first, _ in segments for v in stages.crossing[first]]
    last = [v for v in read_by_backward(problem) if _stage(problem, stages, v) >= segments[-1][0]]
    for more, name in (([], ""), (last, ", last segment saved")):
        saved = (*must_save(problem), *boundaries, *more)
        origin = f"checkpoint every {distance} stages{name}"
        yield partial(checkpoint_segments, problem, stages, segments, saved, origin)


def _stage(problem: Problem, stages: Stages, value: int) -> int:
    return stages.stage_of[problem.values[value].producer]


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
            inner[max(0, _stage(problem, stages, value))].append(value)
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


# Revolve


@cache
def revolve_forward_steps(length: int, slots: int) -> int:
    """The fewest forward steps that reverse a chain of ``length`` steps with ``slots`` stored states.

    ``t(l, s) = r l - C(s + r, s + 1)`` with the one ``r`` for which ``C(s + r - 1, s) < l <= C(s + r, s)`` (Griewank
    and Walther 2000, Algorithm 799). The initial state takes one of the slots. Counted are all forward steps from one
    state to the next, those of the first pass too; not counted is the step that each reversal runs with its tape.

    Raises:
        ValueError: ``length`` or ``slots`` is below 1.

    >>> [revolve_forward_steps(10, slots) for slots in (1, 2, 3, 10)]
    [45, 20, 15, 9]
    """
    if length < 1 or slots < 1:
        raise ValueError(f"a chain of {length} steps and {slots} slots: both must be at least 1")
    repeats = 0
    while math.comb(slots + repeats, slots) < length:
        repeats += 1
    return repeats * length - math.comb(slots + repeats, slots + 1)


def revolve_held(length: int, slots: int) -> tuple[tuple[int, ...], ...]:
    """For each step, the stored states while it is reversed, of an optimal schedule; state ``k`` is the one before it.

    The steps are reversed from the last to the first. To reverse step ``k``, its state is computed from the nearest one
    that was stored while ``k + 1`` was reversed; on the way the states that are new in ``held[k]`` are stored.

    >>> revolve_held(4, 2)
    ((0,), (0, 1), (0, 2), (0, 2))
    """
    held: list[tuple[int, ...]] = [()] * length

    def reverse(first: int, stop: int, stack: tuple[int, ...]) -> None:
        free = slots - len(stack) + 1
        """Slots for this range, the one of its first state counted."""
        size = stop - first
        if size == 1 or free == 1:
            for step in range(first, stop):
                held[step] = stack
            return

        def steps(k: int) -> tuple[int, int]:
            return k + revolve_forward_steps(size - k, free - 1) + revolve_forward_steps(k, free), -k

        split = min(range(1, size), key=steps)
        reverse(first + split, stop, (*stack, first + split))
        reverse(first, first + split, stack)

    reverse(0, length, (0,))
    return tuple(held)


def revolve_plan(problem: Problem, slots: int, stages: Stages | None = None) -> Plan:
    """Binomial checkpointing over the stages, as if they were a uniform chain.

    A state is all that crosses into a stage. The inputs of the step are the first state and take a slot without costing
    bytes; the last stage's own values are kept from the forward, and the state of a stage outlives its reversal until
    the window of the stage before it has read it. So the backward advances ``revolve_forward_steps(l, s) - (l - 1)``
    times over a stage, of ``l`` stages, and runs the inside of all but the last once more.

    Raises:
        ScheduleError: something that is needed can neither be had from the states nor be recomputed.
    """
    stages = stages or find_stages(problem)
    held = revolve_held(len(stages), slots)
    final = len(stages) - 1
    always = {problem.base[v] for v in must_save(problem)}
    states = [frozenset(problem.base[v] for v in crossing) for crossing in stages.crossing]
    last = {v for v in read_by_backward(problem) if _stage(problem, stages, v) >= final}
    saved = always.union(last, states[final], *(states[h] for h in held[final]))
    droppable = [v for v in range(len(problem.values)) if _recomputable(problem, stages, v, always)]
    uses = _last_uses(problem, stages, frozenset().union(*states))
    available = [value.producer < 0 or index in saved for index, value in enumerate(problem.values)]
    backward: list[int] = []
    for stage in range(final, -1, -1):
        start, stop = stages.windows[stage]
        stored = states[stage].union(*(states[h] for h in held[stage]))
        wanted = sorted(v for v in stored if uses[v][0] < stage or uses[v][1] >= stop)
        backward += _at_once(problem, lazy_order(problem, available, stages.backward[start:stop], wanted))
        for value in droppable:
            available[value] = available[value] and value in stored
    backward += lazy_order(problem, available, (), problem.backward_outputs)
    return _finish(problem, saved, backward, f"revolve, {slots} slots")


def _recomputable(problem: Problem, stages: Stages, value: int, always: Collection[int]) -> bool:
    """Whether a value is dropped when its state is: it belongs to a stage and may be made again."""
    producer = problem.values[value].producer
    if producer < 0 or problem.ops[producer].phase is Phase.BACKWARD:
        return False
    return stages.stage_of[producer] >= 0 and problem.base[value] not in always


def _last_uses(problem: Problem, stages: Stages, values: Iterable[int]) -> dict[int, tuple[int, int]]:
    """For each value the first stage that reads it when it runs again, and the last place in the backward that does.

    For want of a reader it is the number of stages, and -1.
    """
    place = {index: position for position, index in enumerate(stages.backward)}
    uses = {}
    for value in values:
        readers = list(_readers_through_views(problem, value))
        again = [stages.stage_of[i] for i in readers if i not in place]
        uses[value] = (
            min(again, default=len(stages)),
            max((place[i] for i in readers if i in place), default=-1),
        )
    return uses


def _readers_through_views(problem: Problem, value: int) -> Iterator[int]:
    for index in problem.readers[value]:
        if problem.ops[index].kind is Kind.VIEW:
            for write in problem.ops[index].writes:
                yield from _readers_through_views(problem, write)
        else:
            yield index


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

    The idea of torch's ``choose_saved_values_set``: fraction 1 is the min cut in bytes with all heavy ops banned from
    recomputation; the budget is a fraction of what that cut saves; a knapsack of seconds under the budget says which
    heavy ops stay banned; and a min cut in bytes with those bans is what is saved.

    Where this is simpler than torch: heavy are all kernels and reductions (torch has lists of ops, and a ratio of sizes
    for reductions); torch's bans for fusible ops (used far apart, long chains, materialized in the backward), its
    weights by distance and its two cuts of intermediate aggressiveness are left out; and where torch draws random ops
    again from a stored state, ops that must not run again stay saved on top of the budget.

    Raises:
        NoCut: the backward needs something that can neither be saved nor recomputed.
    """
    needed = _ancestors_of_backward(problem)
    heavy = [
        i
        for i in sorted(needed)
        if problem.ops[i].phase is Phase.FORWARD
        and problem.ops[i].kind in (Kind.KERNEL, Kind.REDUCTION)
        and not (problem.ops[i].keep or problem.ops[i].unsavable)
    ]
    # Largest first, as torch orders them: of equal choices the knapsack keeps the first ones.
    heavy.sort(key=lambda i: (-_bytes(problem, problem.ops[i].writes), i))
    full = _cut_with_bans(problem, heavy)
    full_bytes = _bytes(problem, full)
    fractions = [step / BUDGET_STEPS for step in range(BUDGET_STEPS + 1)]
    budgets = [full_bytes * step // BUDGET_STEPS for step in range(BUDGET_STEPS + 1)]
    sizes = [_bytes(problem, problem.ops[i].writes) for i in heavy]
    chosen = knapsack(sizes, [problem.ops[i].seconds for i in heavy], budgets[:-1])
    saved = [_cut_with_bans(problem, [heavy[item] for item in items]) for items in chosen]
    return [KnapsackPoint(*point) for point in zip(fractions, budgets, [*saved, full], strict=True)]


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
