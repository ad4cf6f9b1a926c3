"""Split a network where little is alive, from the graph alone. Free of torch.

Between two blocks of a network few bytes cross from what has run to what is to come. Such narrow places divide the
forward into stages; the backward falls into windows, one a stage, the last stage first. A *segment* is a run of
consecutive stages; its own little problem can be cut out of the large one, planned and replayed alone.

    >>> from graphremat.passes.testing import chain
    >>> stages = find_stages(chain(length=6))
    >>> len(stages.starts), stages.windows[0]
    (6, (5, 6))
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace

from graphremat.passes.problem import Builder, Holder, Kind, Op, Phase, Problem, Storage, Value

MOST_STAGES = 128
"""A chain of more narrow places is thinned to at most this many stages; the programme is quadratic in it."""
NARROW = 1.5
"""A place counts as narrow when at most this many times the bytes of the median local minimum cross it."""


@dataclass(frozen=True)
class Stages:
    """Stages of a forward and their windows of the backward.

    ``starts[k]`` is the first forward position (index into ``forward``) of stage ``k``; ``windows[k]`` the half-open
    range of positions in ``backward`` that belongs to it; ``crossing[k]`` the values of earlier stages that stage ``k``
    or a later one needs, forward or backward; ``stage_of`` the stage of each op that is not of the backward.
    """

    forward: tuple[int, ...]
    backward: tuple[int, ...]
    starts: tuple[int, ...]
    windows: tuple[tuple[int, int], ...]
    crossing: tuple[tuple[int, ...], ...]
    stage_of: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.starts)


def find_stages(problem: Problem, most: int = MOST_STAGES) -> Stages:
    """Find the stages of ``problem``: at least one, at most ``most``."""
    forward = tuple(i for i, op in enumerate(problem.ops) if op.phase is Phase.FORWARD)
    backward = tuple(i for i, op in enumerate(problem.ops) if op.phase is Phase.BACKWARD)
    found = _divide(problem, forward, backward, _narrow_places(_widths(problem, forward)))
    if len(found) <= most:
        return found
    return _divide(problem, forward, backward, _thin(problem, forward, list(found.starts), most))


def _divide(
    problem: Problem, forward: tuple[int, ...], backward: tuple[int, ...], starts: list[int]
) -> Stages:
    """The stages between these places, without those places that cross what cannot be saved, and with no window empty:
    a stage whose window is empty is joined to the neighbour with the wider place between them."""
    read_later = {problem.base[r] for op in problem.ops if op.phase is not Phase.FORWARD for r in op.reads}

    def width(crossing: tuple[int, ...]) -> tuple[int, int]:
        """Bytes that cross, and how many of them would be saved for the crossing alone."""
        sizes = {v: problem.graph_bytes(problem.values[v].storage) for v in crossing}
        return sum(sizes.values()), sum(size for v, size in sizes.items() if v not in read_later)

    while True:
        stage_of = _stage_of(problem, forward, starts)
        windows = _windows(problem, backward, stage_of, len(starts))
        crossing = _crossing(problem, forward, backward, starts, stage_of, windows)
        left_out: set[int] = set()
        for k in range(1, len(starts)):
            if any(_unsavable(problem, v) for v in crossing[k]):
                left_out.add(k)
            elif (
                windows[k][0] == windows[k][1] and not {k - 1, k} & left_out
            ):  # else it has been joined already
                wider = k + 1 < len(starts) and width(crossing[k + 1]) > width(crossing[k])
                left_out.add(k + 1 if wider else k)
        if not left_out:
            return Stages(forward, backward, tuple(starts), tuple(windows), tuple(crossing), tuple(stage_of))
        starts = [s for k, s in enumerate(starts) if k not in left_out]


def _widths(problem: Problem, forward: tuple[int, ...]) -> list[int]:
    """Bytes that cross into each forward position."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for position, index in enumerate(forward):
        for read in problem.ops[index].reads:
            last[problem.values[read].storage] = position
        for write in problem.ops[index].writes:
            first.setdefault(problem.values[write].storage, position)
    change = [0] * (len(forward) + 1)
    for storage, made in first.items():
        if storage in last and problem.storages[storage].holder is Holder.GRAPH and last[storage] > made:
            change[made + 1] += problem.storages[storage].size_bytes
            change[last[storage] + 1] -= problem.storages[storage].size_bytes
    width, running = [], 0
    for position in range(len(forward)):
        running += change[position]
        width.append(running)
    return width


def _narrow_places(width: list[int]) -> list[int]:
    """Positions where the width is a local minimum and small among the local minima; 0 is always one."""
    minima = [
        p
        for p in range(1, len(width))
        if width[p] > 0
        and (p == 1 or width[p] <= width[p - 1])
        and (p + 1 == len(width) or width[p] <= width[p + 1])
    ]
    if not minima:
        return [0]
    median = sorted(width[p] for p in minima)[len(minima) // 2]
    return [0] + [p for p in minima if width[p] <= NARROW * median]


def _thin(problem: Problem, forward: tuple[int, ...], places: list[int], most: int) -> list[int]:
    """Keep every so many-th place, at most ``most``; of the possible strides the one whose stages are most alike."""
    if len(places) <= most:
        return places
    least = -(-len(places) // most)

    def kinds(stride: int) -> tuple[int, int]:
        kept = places[::stride]
        spans = itertools.pairwise(kept)
        return len({tuple(problem.ops[forward[p]].target for p in range(a, b)) for a, b in spans}), stride

    return places[:: min(range(least, 2 * least + 1), key=kinds)]


def _stage_of(problem: Problem, forward: tuple[int, ...], starts: list[int]) -> list[int]:
    """The stage of each op. A view, and an op that only the backward needs, belong where the latest of what they read
    is made.

    -1 for these if they read graph inputs alone, and for constants: they can be made anywhere.
    """
    stage_of = [-1] * len(problem.ops)
    bounds = [*starts[1:], len(forward)]
    stage = 0
    for position, index in enumerate(forward):
        while position >= bounds[stage]:
            stage += 1
        stage_of[index] = stage
    base, made_by = problem.base, problem.table.producers
    for index, op in enumerate(problem.ops):
        if op.phase is Phase.BACKWARD:
            continue
        producers = [made_by[base[r]] for r in op.reads]
        latest = max([stage_of[p] for p in producers if p >= 0], default=-1)
        constant = latest < 0 and all(p >= 0 for p in producers) and not op.keep
        if op.phase is Phase.EITHER or (op.phase is Phase.FORWARD and (constant or op.kind is Kind.VIEW)):
            stage_of[index] = latest
    return stage_of


def _windows(
    problem: Problem, backward: tuple[int, ...], stage_of: list[int], count: int
) -> list[tuple[int, int]]:
    """The window of stage ``k`` ends with the last op that reads something of stage ``k`` or a later one.

    A value that enters the next stage belongs to that one: it is kept for it, and there when its window runs.
    """
    homes, reads = _homes(problem, stage_of), problem.table.reads
    last = [-1] * count
    for position, index in enumerate(backward):
        deepest = max([homes[r] for r in reads[index]], default=-1)
        if deepest >= 0:
            last[deepest] = position
    windows: list[tuple[int, int]] = []
    before = 0
    for stage in range(count - 1, -1, -1):
        stop = len(backward) if stage == 0 else max(before, last[stage] + 1)
        windows.append((before, stop))
        before = stop
    return windows[::-1]


def _homes(problem: Problem, stage_of: list[int]) -> list[int]:
    """For each value the stage whose window is to read it; -1 for inputs and gradients."""
    table, base_of = problem.table, problem.base
    homes = [stage_of[producer] if producer >= 0 else -1 for producer in table.producers]
    entering = list(homes)
    for phase, stage, reads in zip(table.phases, stage_of, table.reads, strict=True):
        if phase is Phase.FORWARD:
            for read in reads:
                base = base_of[read]
                if 0 <= homes[base] < stage:
                    entering[base] = homes[base] + 1
    return [max(entering[base], own) for base, own in zip(base_of, entering, strict=True)]


def _unsavable(problem: Problem, value: int) -> bool:
    return bool(problem.ops[problem.values[value].producer].unsavable)


def _crossing(
    problem: Problem,
    forward: tuple[int, ...],
    backward: tuple[int, ...],
    starts: list[int],
    stage_of: list[int],
    windows: list[tuple[int, int]],
) -> list[tuple[int, ...]]:
    """For each stage, the values (not views) of earlier stages that it, a later one or their windows read."""
    table, base_of = problem.table, problem.base
    last_stage = [-1] * len(problem.values)

    def read_in(stage: int, ops: Iterable[int]) -> None:
        for index in ops:
            for read in table.reads[index]:
                base = base_of[read]
                if last_stage[base] < stage:
                    last_stage[base] = stage

    for index, stage in enumerate(stage_of):
        if stage > 0:
            read_in(stage, (index,))
    for stage, (first, stop) in enumerate(windows):
        read_in(stage, backward[first:stop])
    crossing: list[list[int]] = [[] for _ in starts]
    for value, last in enumerate(last_stage):
        producer = table.producers[value]
        if producer < 0 or not 0 <= stage_of[producer] < last:
            continue
        if problem.storages[problem.values[value].storage].holder is Holder.GRAPH:
            for stage in range(stage_of[producer] + 1, last + 1):
                crossing[stage].append(value)
    return [tuple(c) for c in crossing]


@dataclass(frozen=True, eq=False)
class Segment:
    """The problem of stages ``first`` to ``stop - 1`` alone, and the way back to the whole.

    What comes from outside is a graph input of no bytes, since it is counted where it is kept; gradients that come in
    are made by an op at the start of the backward, so that they can die.
    """

    first: int
    stop: int
    problem: Problem
    value_of: dict[int, int]
    """Value of the segment's problem -> value of the whole."""
    next_crossing: tuple[int, ...]
    """Values of the segment's problem that cross into the next stage; they are kept with the next segment."""


def cut_out(problem: Problem, stages: Stages, first: int, stop: int) -> Segment:
    """The problem of the stages ``first <= k < stop`` alone."""
    window = stages.backward[stages.windows[stop - 1][0] : stages.windows[first][1]]
    in_window = set(window)
    ops = _ops_of(problem, stages, window, first, stop)
    builder = Builder(fuses=problem.fuses)
    writer = _Transcript(problem, builder)
    for index in ops:
        writer.transcribe(problem.ops[index])
    incoming = dict.fromkeys(
        r
        for index in window
        for r in problem.ops[index].reads
        if problem.values[r].producer >= 0
        and problem.ops[problem.values[r].producer].phase is Phase.BACKWARD
        and problem.values[r].producer not in in_window
    )
    writer.bring_in(list(incoming))
    for index in window:
        writer.transcribe(problem.ops[index])
    gradients = set(problem.backward_outputs)
    outside_readers = {
        v
        for index in window
        for v in problem.ops[index].writes
        if v in gradients or any(r not in in_window for r in problem.readers[v])
    }
    end = stages.windows[first][1]
    later = set(stages.backward[end:])
    outliving = {v for v in incoming if v in gradients or any(r in later for r in problem.readers[v])}
    inside = set(ops)
    outputs = {b for v in problem.forward_outputs if problem.values[b := problem.base[v]].producer in inside}
    crossing = stages.crossing[stop] if stop < len(stages) else ()
    mine = {problem.base[v] for v in problem.forward_outputs}
    small = builder.build(
        [writer.new[v] for v in sorted(outputs)],
        [writer.new[v] for v in sorted(outside_readers | outliving | _gradients(problem, inside))],
    )
    return Segment(
        first,
        stop,
        small,
        {n: o for o, n in writer.new.items()},
        tuple(writer.new[v] for v in crossing if v in writer.new and v not in mine),
    )


def _gradients(problem: Problem, ops: set[int]) -> set[int]:
    """Gradients that are not made behind a tangent (a constant, say): they belong to the segment of their op."""
    return {
        v
        for v in problem.backward_outputs
        if problem.values[v].producer in ops
        and problem.ops[problem.values[v].producer].phase is not Phase.BACKWARD
    }


def _ops_of(problem: Problem, stages: Stages, window: tuple[int, ...], first: int, stop: int) -> list[int]:
    """Ops that are not of the backward: the forward of these stages, and what else it and the window need of these
    stages or of none."""
    found = {i for i in stages.forward if first <= stages.stage_of[i] < stop}
    pending = [problem.values[r].producer for i in (*sorted(found), *window) for r in problem.ops[i].reads]
    while pending:
        index = pending.pop()
        if index < 0 or index in found or problem.ops[index].phase is Phase.BACKWARD:
            continue
        stage = stages.stage_of[index]
        if stage == -1 or first <= stage < stop:
            found.add(index)
            pending.extend(problem.values[r].producer for r in problem.ops[index].reads)
    return sorted(found)


class _Transcript:
    """Copies ops of a problem into a builder; operands that are not there come from outside."""

    def __init__(self, problem: Problem, builder: Builder) -> None:
        self.problem = problem
        self.builder = builder
        self.new: dict[int, int] = {}
        self._storage: dict[int, int] = {}

    def _outside(self, value: int) -> int:
        if value not in self.new:
            old = self.problem.values[value]
            if old.storage not in self._storage:
                name = self.problem.storages[old.storage].name
                self._storage[old.storage] = self.builder.storage(name, 0, Holder.CALLER)
            self.new[value] = self.builder.value(old.name, self._storage[old.storage])
        return self.new[value]

    def _inside(self, value: int) -> int:
        old: Value = self.problem.values[value]
        if old.storage not in self._storage:
            whole: Storage = self.problem.storages[old.storage]
            holder = Holder.CALLER if whole.holder is not Holder.GRAPH else Holder.GRAPH
            size = 0 if holder is Holder.CALLER else whole.size_bytes
            self._storage[old.storage] = self.builder.storage(whole.name, size, holder)
        self.new[value] = self.builder.value(old.name, self._storage[old.storage])
        return self.new[value]

    def transcribe(self, op: Op) -> None:
        reads = tuple(self._outside(r) for r in op.reads)
        writes = tuple(self._inside(w) for w in op.writes)
        self.builder.add(replace(op, reads=reads, writes=writes))

    def bring_in(self, values: list[int]) -> None:
        """An op at the start of the backward that makes all incoming gradients."""
        bases = [v for v in values if v not in self.new]
        if bases:
            writes = tuple(self._inside(v) for v in bases)
            self.builder.add(Op("incoming", "incoming", (), writes, Kind.KERNEL, Phase.BACKWARD))
