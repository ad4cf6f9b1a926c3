"""The exact replay of a plan: which bytes are alive at every op, and what the step costs. Free of torch.

The replay walks the forward and then the backward of a plan. A result is alive from the op that makes it to its last
reader before it is made again; what is saved reaches into the backward; what the caller holds is alive all the time.
In a lowering that fuses, a pointwise result read by nothing but fusible ops has no buffer: its readers compute it from
the buffers it stands for, which live on until then.

    >>> from graphremat.passes.problem import Builder, Kind, Phase
    >>> from graphremat.passes.plan import Plan
    >>> b = Builder()
    >>> x = b.input("x", 100)
    >>> h = b.op("h", [x], Kind.KERNEL, Phase.FORWARD, size_bytes=10, seconds=1.0)
    >>> y = b.op("y", [h], Kind.KERNEL, Phase.FORWARD, size_bytes=1, seconds=1.0)
    >>> t = b.tangent("t", 1)
    >>> g = b.op("g", [t, h], Kind.KERNEL, Phase.BACKWARD, size_bytes=5, seconds=1.0)
    >>> problem = b.build([y], [g])
    >>> replay(problem, Plan((h,), (0, 1), (2,))).curve.tolist()
    [110, 111, 117]
    >>> recomputing = replay(problem, Plan((), (0, 1), (0, 2)))
    >>> recomputing.curve.tolist(), recomputing.recompute_seconds
    ([110, 111, 112, 117], 1.0)
"""

import itertools
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from graphremat.passes.garbage import garbage_left
from graphremat.passes.plan import Plan
from graphremat.passes.problem import Phase, Problem

MANY_READS = 4
"""A fused value with several readers gets a buffer once it stands for more buffers and inputs than this. It is the
default of Inductor's ``realize_reads_threshold``."""

FAR = 1 << 60
"""The level of a reader behind a kernel of the plan, over which a fenced backward joins nothing."""

UNOWNED = -1
"""In place of a buffer: the value is alive, in memory that the graph does not own."""


class ReplayError(ValueError):
    """A plan reads an operand that is not alive at that moment."""


@dataclass(frozen=True, eq=False)
class Replay:
    """The byte curve of a plan and what it costs.

    ``curve[i]`` is what is alive while the ``i``-th op of ``plan.forward + plan.backward`` runs, in bytes, everything
    counted, and ``op_seconds[i]`` what it takes. ``seconds`` is the whole step as modelled, ``recompute_seconds`` the
    part that runs a second time.
    ``moments[i]`` numbers when it runs, one number for all that run in one function.
    ``storages``, ``firsts`` and ``lasts`` have an entry for every buffer. ``overwritten`` are the indices of those in
    whose place the op at their last position writes its result: both are counted as one from that moment on.
    """

    curve: npt.NDArray[np.int64]
    forward_length: int
    peak_bytes: int
    peak_position: int
    saved_bytes: int
    seconds: float
    recompute_seconds: float
    recompute_flops: int
    op_seconds: npt.NDArray[np.float64]
    moments: npt.NDArray[np.int64]
    storages: npt.NDArray[np.int64]
    firsts: npt.NDArray[np.int64]
    lasts: npt.NDArray[np.int64]
    overwritten: npt.NDArray[np.int64]

    @cached_property
    def lifetimes(self) -> tuple[tuple[int, int, int], ...]:
        """``(storage, first position, last position)`` of every buffer; a saved one reaches into the backward."""
        columns = (self.storages.tolist(), self.firsts.tolist(), self.lasts.tolist())
        return tuple(zip(*columns, strict=True))

    @property
    def peak_phase(self) -> Phase:
        """Whether the worst moment lies in the forward or in the backward."""
        return Phase.FORWARD if self.peak_position < self.forward_length else Phase.BACKWARD

    def alive_at(self, problem: Problem, position: int) -> list[tuple[str, int]]:
        """``(name, bytes)`` of the graph's buffers alive while the op at ``position`` runs, largest first."""
        moments, now = self.moments.tolist(), self.moments[position]
        alive = [
            (problem.storages[s].name, problem.storages[s].size_bytes)
            for s, first, last in self.lifetimes
            if moments[first] <= now <= moments[last] and problem.storages[s].size_bytes
        ]
        return sorted(alive, key=lambda item: (-item[1], item[0]))


Place: TypeAlias = tuple[int, int]
"""Where a value lies now: its buffer, or ``UNOWNED``, and its level, which is how many kernels lie before it on the
longest way to it."""


ReadRow: TypeAlias = tuple[int, list[int], int]
"""For an op that is no view and reads buffers: its position, those buffers, and the first buffer that it makes, or
``UNOWNED``."""

PointwiseRow: TypeAlias = tuple[int, int, int, list[int], int]
"""For a buffer that may turn out not to exist, since a pointwise op of a lowering that fuses makes it: position, op,
buffer, buffers read, level."""


class _Tape:
    """Occurrences of ops in the order they run, and the buffers (instances of storages) that they make and read."""

    def __init__(self, problem: Problem, plan: Plan) -> None:
        self.problem = problem
        self.written_out = problem.table.written_out
        if plan.written:
            self.written_out = self.written_out.copy()
            for index in plan.written:
                self.written_out[index] = True
        self.forward_length = len(plan.forward)
        self.length = self.forward_length + len(plan.backward)
        self.storage: list[int] = []
        self.first: list[int] = []
        self.pinned: list[bool] = []
        """Read by a kernel, saved or given out: it needs a buffer of its own."""
        self.stretch: list[int] = []
        """How many kernels of its half of the step ran before a buffer was made."""
        self.reader_levels: list[list[int]] = []
        """The level of each reader, :data:`FAR` where the fence is between; for the results of pointwise ops alone."""
        self.reads: list[ReadRow] = []
        self.pointwise: list[PointwiseRow] = []
        self.to_end: list[int] = []
        """Buffers that the caller gets."""
        self._places: list[Place | None] = [(UNOWNED, 0) if v.producer < 0 else None for v in problem.values]
        """None for what is not alive."""
        fresh = self._places.copy()
        self._run(plan.forward, 0, "forward", fenced=True)
        for value in problem.forward_outputs:
            self._keep_to_end(value, "the output {} is not alive at the end of the forward")
        for value in plan.saved:
            fresh[value] = place = self._alive(
                value, "{} is saved, but is not alive at the end of the forward"
            )
            if place[0] >= 0:
                self.pinned[place[0]] = True
        self._places = fresh
        again = set(plan.forward).intersection(plan.backward)
        recomputes = any(problem.table.views[index] is None for index in again)
        self._run(plan.backward, self.forward_length, "backward", fenced=recomputes)
        for value in problem.backward_outputs:
            self._keep_to_end(value, "the gradient {} is not alive at the end")

    def _alive(self, value: int, complaint: str) -> Place:
        place = self._places[value]
        if place is None:
            raise ReplayError(complaint.format(self.problem.values[value].name))
        return place

    def _keep_to_end(self, value: int, complaint: str) -> None:
        buffer, _ = self._alive(value, complaint)
        if buffer >= 0:
            self.pinned[buffer] = True
            self.to_end.append(buffer)

    def _run(self, part: tuple[int, ...], start: int, side: str, *, fenced: bool) -> None:
        """Walk one side of the plan. Where it is ``fenced``, nothing is joined over a kernel: the backward that
        recomputes is (:mod:`graphremat.fence`), and in the forward, which is in the order of the model, Inductor hardly
        does.

        Planning spends much of its time in this loop, hence the many local names.
        """
        table = self.problem.table
        plain_views, views_of, reads_of, makes_of = table.plain_views, table.views, table.reads, table.makes
        is_kernel, is_pointwise = table.is_kernel, table.is_pointwise
        places, storage, first, pinned = self._places, self.storage, self.first, self.pinned
        reader_levels, reads, pointwise = self.reader_levels, self.reads, self.pointwise
        made_in, stretch = self.stretch, 0
        unasked: list[int] = []
        for position, index in enumerate(part, start):
            plain = plain_views[index]
            if plain is not None:
                place = places[plain[1]]
                if place is None:
                    raise self._dead(index, plain[1], side)
                places[plain[0]] = place
                continue
            buffers: list[int] = []
            level = 0
            for read in reads_of[index]:
                place = places[read]
                if place is None:
                    raise self._dead(index, read, side)
                buffer, depth = place
                if depth > level:
                    level = depth
                if buffer >= 0 and buffer not in buffers:
                    buffers.append(buffer)
            views = views_of[index]
            if views is not None:
                for write, source in views:
                    seen = places[source] if source >= 0 else None
                    places[write] = (seen[0] if seen is not None else UNOWNED, level)
                continue
            kernel, fusible = is_kernel[index], is_pointwise[index]
            for buffer in buffers:
                reader_levels[buffer].append(FAR if fenced and made_in[buffer] != stretch else level)
                if kernel:
                    pinned[buffer] = True
            stretch += kernel
            made = UNOWNED
            for write, block in makes_of[index]:
                if block < 0:
                    places[write] = (UNOWNED, level + 1 if kernel else level)
                    continue
                buffer = len(storage)
                places[write] = (buffer, level + 1 if kernel else level)
                if made < 0:
                    made = buffer
                storage.append(block)
                first.append(position)
                made_in.append(stretch)
                pinned.append(not fusible)
                reader_levels.append([] if fusible else unasked)
            if buffers:
                reads.append((position, buffers, made))
            if fusible and made >= 0:
                pointwise.append((position, index, made, buffers, level))

    def _dead(self, op: int, value: int, side: str) -> ReplayError:
        name, read = self.problem.ops[op].name, self.problem.values[value].name
        return ReplayError(f"{name} in the {side} reads {read}, which is not alive there")


Fused: TypeAlias = dict[int, Sequence[int]]
"""For each buffer that does not exist, the buffers from which its readers compute it."""


def _fuse(tape: _Tape) -> Fused:
    """Find out which buffers do not exist.

    Inductor decides on a buffer when it comes to a value, before it knows what shares a kernel with what, and counts it
    as one where it is read; one that no other kernel reads is dropped in the end.
    """
    asked = _asked_for(tape)
    if asked:
        for buffer in _read_elsewhere(tape, asked, _join(tape, asked)):
            tape.pinned[buffer] = True
    return _join(tape)


def _asked_for(tape: _Tape) -> dict[int, int]:
    """The level of each pointwise op whose result gets a buffer if another kernel reads it: those that are written out,
    and those of several readers that are not to be repeated in each."""
    reads_many = tape.problem.table.reads_many
    return {
        buffer: level
        for _, op, buffer, _, level in tape.pointwise
        if tape.written_out[op] or (reads_many[op] and len(tape.reader_levels[buffer]) > 1)
    }


def _read_elsewhere(tape: _Tape, asked: Mapping[int, int], fused: Fused) -> list[int]:
    """The buffers asked for that have readers in other kernels, be it through values that do not exist."""
    farthest: dict[int, int] = {}
    """For each buffer, the highest level of what reads it through values that do not exist."""
    for _, buffers, made in reversed(tape.reads):
        if made in fused:
            level = max((farthest.get(made, 0), *tape.reader_levels[made]))
            for buffer in buffers:
                farthest[buffer] = max(farthest.get(buffer, 0), level)
    return [b for b, level in asked.items() if max((farthest.get(b, 0), *tape.reader_levels[b])) > level]


def _join(tape: _Tape, written: Container[int] = ()) -> Fused:
    """The buffers that do not exist if those ``written`` do."""
    pinned, reader_levels = tape.pinned, tape.reader_levels
    inputs_of = tape.problem.table.inputs
    fused: Fused = {}
    inputs: dict[int, int] = {}
    """For each buffer that does not exist, the inputs that its readers read in its place: a bit each."""
    stands_for: Sequence[int]
    for _, op, buffer, read, level in tape.pointwise:
        if pinned[buffer] or buffer in written:
            continue
        stands_for, outside = read, inputs_of[op]
        for source in read:
            if source in fused:
                stands_for = _union([fused.get(b, (b,)) for b in read]) if len(read) > 1 else fused[source]
                for inner in read:
                    outside |= inputs.get(inner, 0)
                break
        levels = reader_levels[buffer]
        if len(levels) > 1 and len(stands_for) + outside.bit_count() > MANY_READS and max(levels) > level:
            continue
        fused[buffer] = stands_for
        inputs[buffer] = outside
    return fused


def _union(parts: Sequence[Sequence[int]]) -> Sequence[int]:
    return list(dict.fromkeys(itertools.chain.from_iterable(parts)))


def _last_uses(tape: _Tape, fused: Fused) -> list[int]:
    """For each buffer, the position at which it is read for the last time, through whatever is fused."""
    last = tape.first.copy()
    for position, buffers, made in tape.reads:
        if made in fused:
            continue
        for buffer in buffers:
            if buffer in fused:
                for source in fused[buffer]:
                    last[source] = position
            else:
                last[buffer] = position
    for buffer in tape.to_end:
        last[buffer] = tape.length - 1
    return last


@garbage_left()
def replay(problem: Problem, plan: Plan) -> Replay:
    """Walk ``plan`` with exact lifetimes.

    Raises:
        ReplayError: an operand is not alive when it is read.
    """
    tape = _Tape(problem, plan)
    fused = _fuse(tape)
    exists = np.ones(len(tape.storage), dtype=np.bool_)
    exists[list(fused)] = False
    given_out = ~exists
    given_out[tape.to_end] = True
    storage, first, last = (_column(c) for c in (tape.storage, tape.first, _last_uses(tape, fused)))
    size = problem.table.storage_bytes[storage]

    sequence = _column([*plan.forward, *plan.backward])
    moments = _moments(problem, sequence, tape.forward_length)
    change = np.zeros(tape.length + 1, dtype=np.int64)
    np.add.at(change, moments[first[exists]], size[exists])
    np.add.at(change, moments[last[exists]] + 1, -size[exists])

    # a pointwise kernel writes over an operand that dies with it, if size and order are equal
    relays = problem.table.relays
    written = _column([buffer for _, op, buffer, _, _ in tape.pointwise if not relays[op]])
    written = written[exists[written]]
    wanted = np.full(tape.length, -1, dtype=np.int64)
    wanted[first[written]] = size[written]
    dying = np.flatnonzero(~given_out & (first < last))
    dying = dying[size[dying] == wanted[last[dying]]]
    overwriting, which = np.unique(last[dying], return_index=True)
    np.subtract.at(change, moments[overwriting], wanted[overwriting])
    np.add.at(change, moments[overwriting] + 1, wanted[overwriting])
    curve = problem.input_bytes + np.cumsum(change)[moments]
    curve[tape.forward_length :] += problem.table.engine_bytes
    curve += problem.table.scratch[sequence]

    peak_position = int(curve.argmax()) if tape.length else 0
    crossing = (first < tape.forward_length) & (tape.forward_length <= last) & ~given_out
    op_seconds, again = _cost(problem, plan, sequence, first[~exists])
    return Replay(
        curve=curve,
        forward_length=tape.forward_length,
        peak_bytes=int(curve[peak_position]) if tape.length else problem.input_bytes,
        peak_position=peak_position,
        saved_bytes=int(problem.table.storage_bytes[np.unique(storage[crossing])].sum()),
        seconds=_in_order(op_seconds),
        recompute_seconds=_in_order(op_seconds[again]),
        recompute_flops=int(problem.table.flops[sequence[again]].sum()),
        op_seconds=op_seconds,
        moments=moments,
        storages=storage[exists],
        firsts=first[exists],
        lasts=last[exists],
        overwritten=(np.cumsum(exists) - 1)[dying[which]],
    )


def _moments(problem: Problem, sequence: npt.NDArray[np.int64], split: int) -> npt.NDArray[np.int64]:
    """The number of the moment at which each op runs: its position, or one for all that run in one function."""
    if not problem.groups:
        return np.arange(len(sequence))
    alone = np.array(problem.table.is_kernel, dtype=np.bool_)[sequence]
    begins = alone.copy()
    begins[1:] |= alone[:-1]
    begins[:1] = False
    if 0 < split < len(sequence):
        begins[split] = True
    return np.cumsum(begins, dtype=np.int64)


def _column(numbers: list[int]) -> npt.NDArray[np.int64]:
    return np.array(numbers, dtype=np.int64)


def _cost(
    problem: Problem, plan: Plan, sequence: npt.NDArray[np.int64], inside: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Seconds of every run of an op, and which runs are recomputations.

    ``inside`` are the positions of what runs inside the kernels that read it.
    """
    table = problem.table
    positions = np.arange(len(sequence))
    seconds = table.seconds[sequence]
    seconds[inside] = table.fused_seconds[sequence[inside]]
    first_run = np.full(len(problem.ops), len(sequence))
    np.minimum.at(first_run, sequence, positions)
    return seconds, (positions >= len(plan.forward)) & (first_run[sequence] < positions)


def _in_order(seconds: npt.NDArray[np.float64]) -> float:
    """The sum, one after the other: the same on every machine, which numpy's own does not promise."""
    return float(np.cumsum(seconds)[-1]) if len(seconds) else 0.0
