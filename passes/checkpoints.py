"""Checkpoints at the boundaries of stages: of every segment once, and Revolve's, again and again. Free of torch.

A checkpoint is all that crosses into a stage. What a user does with ``torch.utils.checkpoint`` is
:func:`checkpoint_segments`; :func:`revolve_plan` is the published optimum for uniform chains, on the same stages.

    >>> from graphremat.passes.replay import replay
    >>> from graphremat.passes.testing import chain
    >>> problem = chain(30)
    >>> [replay(problem, revolve_plan(problem, slots)).peak_bytes for slots in (2, 5, 10)]
    [700, 1000, 1500]
"""

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cache

from graphremat.passes.plan import Plan
from graphremat.passes.problem import Kind, Phase, Problem
from graphremat.passes.schedule import backward_ops, forward_order, lazy_order
from graphremat.passes.stages import Stages, find_stages

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


# One recomputation of each segment


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


def stage_of(problem: Problem, stages: Stages, value: int) -> int:
    """The stage in which the forward makes a value; -1 for what only the backward needs and no stage makes."""
    return stages.stage_of[problem.values[value].producer]


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
    last = {v for v in read_by_backward(problem) if stage_of(problem, stages, v) >= final}
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
