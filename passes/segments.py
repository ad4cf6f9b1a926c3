"""What each segment can do: how many bytes it keeps, what that costs, and how high it rises meanwhile. Free of torch.

A segment's own parametric cut gives its options; each is scheduled and replayed on the segment's own problem. Segments
that are equal (same ops, sizes, costs and wiring) are solved once.
"""

from collections.abc import Hashable
from dataclasses import dataclass

from graphremat.passes.cut import INFINITE, CutGraph, NoCut
from graphremat.passes.plan import Plan
from graphremat.passes.problem import Phase, Problem
from graphremat.passes.replay import Replay, replay
from graphremat.passes.schedule import ScheduleError, schedule
from graphremat.passes.stages import Segment, Stages, cut_out

FULL_HULL_STAGES = 4
"""Segments of at most this many stages get the whole hull of their cut; longer ones only the cut of fewest bytes."""
MOST_CUTS = 10
"""Cuts solved for one segment's hull."""
MOST_WORK = 150_000
"""Ops cut out and replayed for segments of several stages; longer segments are left out beyond it."""


@dataclass(frozen=True)
class Option:
    """One way to treat a segment. All bytes are over what is kept before the segment starts.

    ``saved`` are values of the whole problem, what crosses into the next segment not among them. ``forward_bytes`` and
    ``backward_bytes`` are the highest points of the segment's own curve.
    """

    saved: tuple[int, ...]
    kept_bytes: int
    seconds: float
    forward_bytes: int
    backward_bytes: int


def segment_options(problem: Problem, stages: Stages) -> dict[tuple[int, int], list[Option]]:
    """Options of every segment ``(first, stop)`` that is worth a look; single stages are always there."""
    classes = _stage_classes(problem, stages)
    solved: dict[Hashable, tuple[Segment, list[tuple[tuple[int, ...], Option]]]] = {}
    result: dict[tuple[int, int], list[Option]] = {}
    work = 0
    for length in range(1, len(stages) + 1):
        for first in range(len(stages) - length + 1):
            stop = first + length
            key = (*classes[first:stop], stop == len(stages))
            if key not in solved:
                if length > 1 and work > MOST_WORK:
                    return result
                segment = cut_out(problem, stages, first, stop)
                work += len(segment.problem.ops)
                solved[key] = (segment, _solve(segment))
            twin, options = solved[key]
            if twin.first == first:
                result[first, stop] = [option for _, option in options]
            else:
                result[first, stop] = _translate(problem, stages, twin, first, stop, options)
    return result


def _solve(segment: Segment) -> list[tuple[tuple[int, ...], Option]]:
    """The segment's options, those that another one beats in everything left out; with their saved values as indices of
    the segment's problem."""
    graph = CutGraph(segment.problem, segment.next_crossing)
    try:
        if segment.stop - segment.first <= FULL_HULL_STAGES:
            cuts = graph.hull(MOST_CUTS)
        else:
            cuts = [graph.solve(INFINITE)]
    except NoCut:
        return []
    options: list[tuple[tuple[int, ...], Option]] = []
    crossing = set(segment.next_crossing)
    for cut in cuts:
        try:
            plan = schedule(segment.problem, {*cut.saved, *crossing})
        except ScheduleError:
            continue
        run = replay(segment.problem, plan)
        kept = tuple(v for v in plan.saved if v not in crossing)
        option = Option(
            saved=tuple(segment.value_of[v] for v in kept if v in segment.value_of),
            kept_bytes=_kept_bytes(segment.problem, kept),
            seconds=run.recompute_seconds + _saving_seconds(segment.problem, plan),
            forward_bytes=_highest(run, Phase.FORWARD),
            backward_bytes=_highest(run, Phase.BACKWARD),
        )
        options.append((kept, option))
    return [(k, o) for k, o in options if not any(_beats(other, o) for _, other in options)]


def _beats(a: Option, b: Option) -> bool:
    mine = (a.kept_bytes, a.seconds, a.forward_bytes, a.backward_bytes)
    theirs = (b.kept_bytes, b.seconds, b.forward_bytes, b.backward_bytes)
    return mine != theirs and all(x <= y for x, y in zip(mine, theirs, strict=True))


def _kept_bytes(problem: Problem, values: tuple[int, ...]) -> int:
    storages = {problem.values[v].storage for v in values}
    outputs = {problem.values[v].storage for v in problem.forward_outputs}
    return sum(problem.storages[s].size_bytes for s in storages - outputs)


def _saving_seconds(problem: Problem, plan: Plan) -> float:
    """Writing saved values that a fusing compiler would otherwise never write."""
    if not problem.fuses:
        return 0.0
    seconds = 0.0
    for value in plan.saved:
        op = problem.ops[problem.values[value].producer]
        if op.kind.value == "fusible":
            seconds += max(op.seconds - op.fused_seconds, 0.0)
    return seconds


def _highest(run: Replay, phase: Phase) -> int:
    part = run.curve[: run.forward_length] if phase is Phase.FORWARD else run.curve[run.forward_length :]
    return int(part.max()) if len(part) else 0


def _stage_classes(problem: Problem, stages: Stages) -> list[Hashable]:
    """A key for each stage; equal keys mean equal ops, sizes, costs and wiring relative to the stage."""
    place: dict[int, tuple[int, str, int]] = {}
    listings: list[list[int]] = [[] for _ in range(len(stages))]
    for index, stage in enumerate(stages.stage_of):
        if stage >= 0:
            listings[stage].append(index)
    windows = [[stages.backward[p] for p in range(*stages.windows[k])] for k in range(len(stages))]
    for stage in range(len(stages)):
        for side, ops in (("f", listings[stage]), ("b", windows[stage])):
            ordinal = 0
            for index in ops:
                for write in problem.ops[index].writes:
                    place[write] = (stage, side, ordinal)
                    ordinal += 1
    last_read: dict[int, int] = {}
    outputs, gradients = set(problem.forward_outputs), set(problem.backward_outputs)
    for index, op in enumerate(problem.ops):
        for read in op.reads:
            last_read[read] = index

    def key(stage: int, index: int) -> Hashable:
        op = problem.ops[index]
        wires = []
        for read in op.reads:
            where = place.get(read)
            if where is None:
                wires.append(("input", problem.storages[problem.values[read].storage].holder.value, 0))
            else:
                wires.append((str(stage - where[0]), where[1], where[2]))
        sizes = tuple(problem.storages[problem.values[w].storage].size_bytes for w in op.writes)
        marks = tuple((w in outputs, w in gradients, _reach(stage, w)) for w in op.writes)
        return (
            op.target, op.kind, op.phase, op.seconds, op.fused_seconds, bool(op.keep), bool(op.unsavable),
            tuple(wires), sizes, marks,
        )  # fmt: skip

    stage_of_reader = dict(enumerate(stages.stage_of))
    for stage, ops in enumerate(windows):
        for index in ops:
            stage_of_reader[index] = stage

    def _reach(stage: int, value: int) -> tuple[int, ...]:
        """How many stages away the value's readers are: what decides whether it crosses or outlives the stage."""
        return tuple(sorted({stage_of_reader[r] - stage for r in problem.readers[value]}))

    return [
        tuple(key(stage, index) for index in (*listings[stage], *windows[stage]))
        for stage in range(len(stages))
    ]


def _translate(
    problem: Problem,
    stages: Stages,
    twin: Segment,
    first: int,
    stop: int,
    options: list[tuple[tuple[int, ...], Option]],
) -> list[Option]:
    """The options of an equal segment, in terms of this one's values: ops stand at the same places in both."""
    mine = _values_in_order(problem, stages, first, stop)
    theirs = _values_in_order(problem, stages, twin.first, twin.stop)
    if len(mine) != len(theirs):
        raise ValueError(
            f"segments {twin.first}..{twin.stop} and {first}..{stop} have equal keys but unequal values"
        )
    to_mine = dict(zip(theirs, mine, strict=True))
    return [
        Option(tuple(to_mine[v] for v in o.saved), o.kept_bytes, o.seconds, o.forward_bytes, o.backward_bytes)
        for _, o in options
        if all(v in to_mine for v in o.saved)
    ]


def _values_in_order(problem: Problem, stages: Stages, first: int, stop: int) -> list[int]:
    return [
        write
        for index, stage in enumerate(stages.stage_of)
        if first <= stage < stop
        for write in problem.ops[index].writes
    ]
