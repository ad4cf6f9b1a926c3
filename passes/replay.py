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

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphremat.passes.plan import Plan
from graphremat.passes.problem import Holder, Kind, Phase, Problem

MANY_READS = 4
"""A fused value with several readers gets a buffer once it stands for more buffers than this. It is the default of
Inductor's ``realize_reads_threshold``."""


class ReplayError(ValueError):
    """A plan reads an operand that is not alive at that moment."""


@dataclass(frozen=True, eq=False)
class Replay:
    """The byte curve of a plan and what it costs.

    ``curve[i]`` is what is alive while the ``i``-th op of ``plan.forward + plan.backward`` runs, in bytes, everything
    counted. ``seconds`` is the whole step as modelled, ``recompute_seconds`` the part that runs a second time.
    """

    curve: npt.NDArray[np.int64]
    forward_length: int
    peak_bytes: int
    peak_position: int
    saved_bytes: int
    seconds: float
    recompute_seconds: float
    recompute_flops: int
    lifetimes: tuple[tuple[int, int, int], ...]
    """``(storage, first position, last position)`` of every buffer; a saved one reaches into the backward."""

    @property
    def peak_phase(self) -> Phase:
        """Whether the worst moment lies in the forward or in the backward."""
        return Phase.FORWARD if self.peak_position < self.forward_length else Phase.BACKWARD

    def alive_at(self, problem: Problem, position: int) -> list[tuple[str, int]]:
        """``(name, bytes)`` of the graph's buffers alive while the op at ``position`` runs, largest first."""
        alive = [
            (problem.storages[s].name, problem.storages[s].size_bytes)
            for s, first, last in self.lifetimes
            if first <= position <= last and problem.storages[s].size_bytes
        ]
        return sorted(alive, key=lambda item: (-item[1], item[0]))


class _Tape:
    """Occurrences of ops in the order they run, and the buffers (instances of storages) that they make and read."""

    def __init__(self, problem: Problem, plan: Plan) -> None:
        self.problem = problem
        self.sequence = plan.forward + plan.backward
        self.forward_length = len(plan.forward)
        self.storage: list[int] = []
        self.first: list[int] = []
        self.readers: list[list[int]] = []
        self.pinned: list[bool] = []
        """Read by a kernel, saved or given out: it needs a buffer of its own."""
        self.made: list[tuple[int, ...]] = []
        self.read: list[tuple[int, ...]] = []
        self.to_end: list[bool] = []
        self.level: list[int] = []
        self._walk(plan)

    def _new(self, storage: int, position: int) -> int:
        self.storage.append(storage)
        self.first.append(position)
        self.readers.append([])
        self.pinned.append(False)
        self.to_end.append(False)
        return len(self.storage) - 1

    def _walk(self, plan: Plan) -> None:
        problem = self.problem
        ops, values = problem.ops, problem.values
        graph_held = [s.holder is Holder.GRAPH for s in problem.storages]
        saved = set(plan.saved)
        current = [-1] * len(values)
        """The buffer in which a value lies; -1 for what the graph does not own."""
        alive = [value.producer < 0 for value in values]
        level = [0] * len(values)
        for position, index in enumerate(self.sequence):
            if position == self.forward_length:
                alive = self._enter_backward(current, alive, saved)
            op = ops[index]
            buffers: dict[int, None] = {}
            depth = 0
            for read in op.reads:
                if not alive[read]:
                    side = "forward" if position < self.forward_length else "backward"
                    raise ReplayError(
                        f"{op.name} in the {side} reads {values[read].name}, which is not alive there"
                    )
                if current[read] >= 0:
                    buffers[current[read]] = None
                depth = max(depth, level[read])
            made: tuple[int, ...] = ()
            if op.kind is Kind.VIEW:
                for write in op.writes:
                    sources = [r for r in op.reads if values[r].storage == values[write].storage]
                    current[write] = current[sources[0]] if sources else -1
                    level[write] = depth
                    alive[write] = True
            else:
                kernel = op.kind is Kind.KERNEL or not problem.fuses
                for buffer in buffers:
                    self.readers[buffer].append(position)
                    if kernel:
                        self.pinned[buffer] = True
                for write in op.writes:
                    storage = values[write].storage
                    current[write] = self._new(storage, position) if graph_held[storage] else -1
                    level[write] = depth + 1 if kernel else depth
                    alive[write] = True
                made = tuple(current[w] for w in op.writes if current[w] >= 0)
                if op.kind is not Kind.FUSIBLE or not problem.fuses:
                    for buffer in made:
                        self.pinned[buffer] = True
            self.made.append(made)
            self.read.append(tuple(buffers))
            self.level.append(depth)
        if self.forward_length == len(self.sequence):
            alive = self._enter_backward(current, alive, saved)
        for value in problem.backward_outputs:
            if not alive[value]:
                raise ReplayError(f"the gradient {values[value].name} is not alive at the end")
            self._keep_to_end(current[value])

    def _enter_backward(self, current: list[int], alive: list[bool], saved: set[int]) -> list[bool]:
        values = self.problem.values
        for value in self.problem.forward_outputs:
            if not alive[value]:
                raise ReplayError(f"the output {values[value].name} is not alive at the end of the forward")
            self._keep_to_end(current[value])
        for value in saved:
            if not alive[value]:
                raise ReplayError(
                    f"{values[value].name} is saved, but is not alive at the end of the forward"
                )
            if current[value] >= 0:
                self.pinned[current[value]] = True
        return [value.producer < 0 or index in saved for index, value in enumerate(values)]

    def _keep_to_end(self, buffer: int) -> None:
        if buffer >= 0:
            self.pinned[buffer] = True
            self.to_end[buffer] = True


def _resolve(tape: _Tape) -> tuple[list[bool], list[tuple[int, ...]]]:
    """Which buffers exist, and for each one that does not, the buffers it is computed from by its readers."""
    ops, sequence = tape.problem.ops, tape.sequence
    virtual = [False] * len(tape.storage)
    sources: list[tuple[int, ...]] = [(b,) for b in range(len(tape.storage))]
    for position, made in enumerate(tape.made):
        if not made or tape.pinned[made[0]]:
            continue
        op = ops[sequence[position]]
        stands_for = tuple(dict.fromkeys(s for b in tape.read[position] for s in sources[b]))
        readers = tape.readers[made[0]]
        if len(readers) > 1 and (op.reads_many or len(stands_for) > MANY_READS):
            level = tape.level[position]
            if any(tape.level[r] != level for r in readers):
                continue
        virtual[made[0]] = True
        sources[made[0]] = stands_for
    return virtual, sources


def replay(problem: Problem, plan: Plan) -> Replay:
    """Walk ``plan`` with exact lifetimes.

    Raises:
        ReplayError: an operand is not alive when it is read.
    """
    tape = _Tape(problem, plan)
    virtual, sources = _resolve(tape)
    length = len(tape.sequence)
    last = list(tape.first)
    for position, buffers in enumerate(tape.read):
        made = tape.made[position]
        if (made and virtual[made[0]]) or problem.ops[tape.sequence[position]].kind is Kind.VIEW:
            continue
        for buffer in buffers:
            for source in sources[buffer]:
                last[source] = position
    for buffer, stays in enumerate(tape.to_end):
        if stays:
            last[buffer] = max(length - 1, last[buffer])

    sizes = [problem.storages[s].size_bytes for s in tape.storage]
    starts = np.zeros(length + 1, dtype=np.int64)
    ends = np.zeros(length + 1, dtype=np.int64)
    reused = np.zeros(length + 1, dtype=np.int64)
    dying: list[list[int]] = [[] for _ in range(length)]
    for buffer, size in enumerate(sizes):
        if not virtual[buffer]:
            starts[tape.first[buffer]] += size
            ends[min(last[buffer] + 1, length)] += size
            dying[last[buffer]].append(buffer)
    for position, made in enumerate(tape.made):
        if (
            made
            and not virtual[made[0]]
            and problem.fuses
            and problem.ops[tape.sequence[position]].kind is Kind.FUSIBLE
        ):
            reused[position] = _written_in_place(sizes[made[0]], position, dying[position], tape, sizes)
    engine = sum(s.size_bytes for s in problem.storages if s.holder is Holder.ENGINE)
    curve = problem.input_bytes + np.cumsum(starts - ends)[:length] - reused[:length]
    curve[tape.forward_length :] += engine
    peak_position = int(curve.argmax()) if length else 0
    peak = int(curve[peak_position]) if length else problem.input_bytes

    seconds, again_seconds, again_flops = _cost(problem, plan, tape, virtual)
    crossing = {
        tape.storage[b]
        for b in range(len(sizes))
        if tape.first[b] < tape.forward_length <= last[b] and not virtual[b] and not tape.to_end[b]
    }
    return Replay(
        curve=curve,
        forward_length=tape.forward_length,
        peak_bytes=peak,
        peak_position=peak_position,
        saved_bytes=sum(problem.storages[s].size_bytes for s in crossing),
        seconds=seconds,
        recompute_seconds=again_seconds,
        recompute_flops=again_flops,
        lifetimes=tuple(
            (tape.storage[b], tape.first[b], last[b]) for b in range(len(sizes)) if not virtual[b]
        ),
    )


def _written_in_place(size: int, position: int, dying: list[int], tape: _Tape, sizes: list[int]) -> int:
    """Bytes that a pointwise kernel saves by writing over an operand that dies with it."""
    return size if any(sizes[b] == size and tape.first[b] < position for b in dying) else 0


def _cost(problem: Problem, plan: Plan, tape: _Tape, virtual: list[bool]) -> tuple[float, float, int]:
    total = again = 0.0
    flops = 0
    ran: set[int] = set()
    for position, index in enumerate(tape.sequence):
        op = problem.ops[index]
        made = tape.made[position]
        seconds = op.fused_seconds if made and virtual[made[0]] else op.seconds
        total += seconds
        if position >= tape.forward_length and index in ran:
            again += seconds
            flops += op.flops
        ran.add(index)
    return total, again, flops
