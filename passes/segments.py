"""What each segment can do: how many bytes it keeps, what that costs, and how high it rises meanwhile. Free of torch.

A segment's own parametric cut gives its options; each is scheduled and replayed on the segment's own problem. Segments
that are equal (same ops, sizes, costs and wiring) are solved once.
"""

import itertools
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace

from graphremat.passes.cut import INFINITE, CutGraph, NoCut, recompute_seconds, saving_seconds
from graphremat.passes.problem import Phase, Problem
from graphremat.passes.replay import Replay, replay
from graphremat.passes.schedule import ScheduleError, schedule
from graphremat.passes.stages import Segment, Stages, cut_out

LONGEST = 4
"""Stages of the longest segment with choices of its own; the programme makes longer ones of several."""
MOST_CUTS = 10
"""Cuts solved for one segment's hull."""


@dataclass(frozen=True)
class Option:
    """One way to treat a segment. All bytes are over what is kept before the segment starts.

    ``saved`` are values of the whole problem, what crosses into the next segment not among them. ``forward_bytes`` and
    ``backward_bytes`` are the highest points of the segment's own curve. ``sweep_seconds`` is what it takes to make
    ``saved`` and what crosses once more from what enters the segment; infinite where that cannot be.
    """

    saved: tuple[int, ...]
    kept_bytes: int
    seconds: float
    forward_bytes: int
    backward_bytes: int
    sweep_seconds: float


@dataclass(frozen=True)
class Choices:
    """The options of a segment, and the seconds to make once more what crosses into the next from what enters it."""

    options: tuple[Option, ...]
    sweep_seconds: float


def segment_choices(problem: Problem, stages: Stages) -> dict[tuple[int, int], Choices]:
    """Choices of every segment ``(first, stop)`` that is worth a look; single stages are always there."""
    classes = _stage_classes(problem, stages)
    solved: dict[Hashable, tuple[Segment, Choices]] = {}
    result: dict[tuple[int, int], Choices] = {}
    written: list[list[int]] = [[] for _ in range(len(stages))]
    for op, stage in zip(problem.ops, stages.stage_of, strict=True):
        if stage >= 0:
            written[stage].extend(op.writes)
    for length in range(1, min(LONGEST, len(stages)) + 1):
        for first in range(len(stages) - length + 1):
            stop = first + length
            key = (*classes[first:stop], stop == len(stages))
            if key not in solved:
                segment = cut_out(problem, stages, first, stop)
                solved[key] = (segment, _solve(segment))
            twin, choices = solved[key]
            alike = twin.first == first
            result[first, stop] = choices if alike else _translate(written, twin, first, stop, choices)
    return result


def _solve(segment: Segment) -> Choices:
    """The segment's options, those that another one beats in everything left out."""
    problem = segment.problem
    crossing = set(segment.next_crossing)
    try:
        cuts = CutGraph(problem, crossing).hull(MOST_CUTS)
    except NoCut:
        cuts = []
    saving = saving_seconds(problem)
    options: list[Option] = []
    for cut in cuts:
        try:
            plan = schedule(problem, {*cut.saved, *crossing})
        except ScheduleError:
            continue
        run = replay(problem, plan)
        kept = tuple(v for v in plan.saved if v not in crossing)
        options.append(
            Option(
                saved=tuple(segment.value_of[v] for v in kept if v in segment.value_of),
                kept_bytes=_kept_bytes(problem, kept),
                seconds=run.recompute_seconds + sum(saving[problem.values[v].producer] for v in kept),
                forward_bytes=_highest(run, Phase.FORWARD),
                backward_bytes=_highest(run, Phase.BACKWARD),
                sweep_seconds=_sweep_seconds(problem, (*kept, *segment.next_crossing)),
            )
        )
    best = tuple(o for o in options if not any(_beats(other, o) for other in options))
    return Choices(best, _sweep_seconds(problem, segment.next_crossing))


def _sweep_seconds(problem: Problem, values: Iterable[int]) -> float:
    """Seconds to make ``values`` from the segment's inputs a second time."""
    again = recompute_seconds(problem)
    pending, needed = list(values), set[int]()
    while pending:
        index = problem.values[pending.pop()].producer
        if index >= 0 and index not in needed:
            if problem.ops[index].keep:
                return INFINITE
            needed.add(index)
            pending.extend(problem.ops[index].reads)
    return sum(again[index] for index in sorted(needed))


def _beats(a: Option, b: Option) -> bool:
    mine = (a.kept_bytes, a.seconds, a.forward_bytes, a.backward_bytes, a.sweep_seconds)
    theirs = (b.kept_bytes, b.seconds, b.forward_bytes, b.backward_bytes, b.sweep_seconds)
    return mine != theirs and all(x <= y for x, y in zip(mine, theirs, strict=True))


def _kept_bytes(problem: Problem, values: tuple[int, ...]) -> int:
    storages = {problem.values[v].storage for v in values}
    outputs = {problem.values[v].storage for v in problem.forward_outputs}
    return sum(problem.storages[s].size_bytes for s in storages - outputs)


def _highest(run: Replay, phase: Phase) -> int:
    part = run.curve[: run.forward_length] if phase is Phase.FORWARD else run.curve[run.forward_length :]
    return int(part.max()) if len(part) else 0


def _stage_classes(problem: Problem, stages: Stages) -> list[int]:
    """A number for each stage; equal numbers mean equal ops, sizes, costs and wiring relative to the stage."""
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
            op.written_out, tuple(wires), sizes, marks,
        )  # fmt: skip

    stage_of_reader = dict(enumerate(stages.stage_of))
    for stage, ops in enumerate(windows):
        for index in ops:
            stage_of_reader[index] = stage

    def _reach(stage: int, value: int) -> tuple[int, ...]:
        """How many stages away the value's readers are: what decides whether it crosses or outlives the stage."""
        return tuple(sorted({stage_of_reader[r] - stage for r in problem.readers[value]}))

    numbers: dict[Hashable, int] = {}
    return [
        numbers.setdefault(
            tuple(key(stage, index) for index in (*listings[stage], *windows[stage])), len(numbers)
        )
        for stage in range(len(stages))
    ]


def _translate(written: list[list[int]], twin: Segment, first: int, stop: int, choices: Choices) -> Choices:
    """The choices of an equal segment, in terms of this one's values: ops stand at the same places in both.

    ``written`` are the values that each stage writes, in the order of its ops.
    """
    mine = itertools.chain.from_iterable(written[first:stop])
    theirs = itertools.chain.from_iterable(written[twin.first : twin.stop])
    to_mine = dict(zip(theirs, mine, strict=True))
    options = (
        replace(o, saved=tuple(to_mine[v] for v in o.saved))
        for o in choices.options
        if all(v in to_mine for v in o.saved)
    )
    return replace(choices, options=tuple(options))
