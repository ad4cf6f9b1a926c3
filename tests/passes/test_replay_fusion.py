"""The replay of a lowering that fuses, against a second account that follows its description word by word."""

import itertools
from dataclasses import dataclass, replace

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from graphremat.passes.cut import CutGraph, NoCut
from graphremat.passes.plan import Plan
from graphremat.passes.problem import Builder, Holder, Kind, Phase, Problem
from graphremat.passes.replay import MANY_READS, Replay, ReplayError, replay
from graphremat.passes.schedule import schedule
from tests.passes.problems import problems


@dataclass(frozen=True)
class Buffer:
    """What the op at ``position`` of the step makes in ``storage``."""

    position: int
    storage: int


class Account:
    """Every question about the step is answered by looking through the whole of it. Quadratic at best."""

    def __init__(self, problem: Problem, plan: Plan) -> None:
        self.problem = problem
        self.plan = plan
        self.split = len(plan.forward)
        self.step = [problem.ops[index] for index in (*plan.forward, *plan.backward)]
        self.reads: list[list[Buffer]] = []
        """The buffers that each op reads, whatever it is."""
        self.made: list[list[Buffer]] = []
        self.levels: list[int] = []
        self.given_out: set[Buffer] = set()
        self.kept: set[Buffer] = set()
        self.written_out: set[Buffer] = set()
        self._follow()
        written = {problem.ops[index].name for index in plan.written}
        asked = [
            made[0]
            for op, made in zip(self.step, self.made, strict=True)
            if made
            and (op.written_out or op.name in written or (op.reads_many and len(self.readers(made[0])) > 1))
        ]
        self.written_out = set(asked)
        self.written_out = {b for b in asked if self.is_read_elsewhere(b)}

    def is_read_elsewhere(self, buffer: Buffer) -> bool:
        """Whether another kernel reads it, or reads what it stands for."""
        return any(
            self.levels[r] != self.levels[buffer.position]
            or self.fenced(buffer, r)
            or (self.runs_inside(r) and self.is_read_elsewhere(self.made[r][0]))
            for r in self.readers(buffer)
        )

    def _follow(self) -> None:
        """Walk the step with what each value is at the moment: its buffer (None if it is another's) and its level."""
        problem, values = self.problem, self.problem.values
        inputs: dict[int, tuple[Buffer | None, int]] = {
            number: (None, 0) for number, value in enumerate(values) if value.producer < 0
        }
        alive = dict(inputs)
        for position, op in enumerate([*self.step, None]):
            if position == self.split:
                ends = {alive[v][0] for v in problem.forward_outputs if v in alive or self._missing(v)}
                saved = {v: alive[v] for v in self.plan.saved if v in alive or self._missing(v)}
                self.given_out |= {b for b in ends if b is not None}
                self.kept |= {b for b, _ in saved.values() if b is not None}
                alive = {**inputs, **saved}
            if op is None:
                break
            operands = [alive[r] for r in op.reads if r in alive or self._missing(r)]
            level = max((depth for _, depth in operands), default=0)
            made: list[Buffer] = []
            for write in op.writes:
                storage = values[write].storage
                if op.kind is Kind.VIEW:
                    seen = [alive[r][0] for r in op.reads if values[r].storage == storage]
                    alive[write] = (seen[0] if seen else None, level)
                else:
                    owned = problem.storages[storage].holder is Holder.GRAPH
                    buffer = Buffer(position, storage) if owned else None
                    made += [buffer] if buffer is not None else []
                    alive[write] = (buffer, level + self._is_kernel(position))
            self.made.append(made)
            self.reads.append([b for b, _ in operands if b is not None])
            self.levels.append(level)
        ends = {alive[v][0] for v in problem.backward_outputs if v in alive or self._missing(v)}
        self.given_out |= {b for b in ends if b is not None}

    def _missing(self, value: int) -> bool:
        raise ReplayError(self.problem.values[value].name)

    def _is_kernel(self, position: int) -> bool:
        return self.step[position].kind is Kind.KERNEL or not self.problem.fuses

    def readers(self, buffer: Buffer) -> list[int]:
        return [
            position
            for position, op in enumerate(self.step)
            if op.kind is not Kind.VIEW and buffer in self.reads[position]
        ]

    def exists(self, buffer: Buffer) -> bool:
        """Whether anything is written to memory."""
        op, readers = self.step[buffer.position], self.readers(buffer)
        if op.kind is not Kind.FUSIBLE or not self.problem.fuses or buffer != self.made[buffer.position][0]:
            return True
        if buffer in self.kept | self.given_out | self.written_out or any(
            self._is_kernel(r) for r in readers
        ):
            return True
        heavy = len(self.stands_for(buffer)) + len(self.inputs_for(buffer)) > MANY_READS
        behind = any(
            self.levels[r] != self.levels[buffer.position] or self.fenced(buffer, r) for r in readers
        )
        return heavy and len(readers) > 1 and behind

    def stands_for(self, buffer: Buffer) -> set[Buffer]:
        """The buffers that a reader reads if this one does not exist."""
        return {
            source
            for operand in self.reads[buffer.position]
            for source in ({operand} if self.exists(operand) else self.stands_for(operand))
        }

    def fenced(self, buffer: Buffer, reader: int) -> bool:
        """Whether a kernel runs between a buffer's op and a reader: in the forward, or a backward that recomputes."""
        again = {self.problem.ops[i].kind for i in set(self.plan.forward) & set(self.plan.backward)}
        if buffer.position >= self.split and not again - {Kind.VIEW}:
            return False
        return any(
            self._is_kernel(between) and self.step[between].kind is not Kind.VIEW
            for between in range(buffer.position, reader)
        )

    def inputs_for(self, buffer: Buffer) -> set[int]:
        """The inputs that a reader reads if this one does not exist."""
        bases = {self.problem.base[read] for read in self.step[buffer.position].reads}
        found = {base for base in bases if self.problem.values[base].producer < 0}
        hidden = [operand for operand in self.reads[buffer.position] if not self.exists(operand)]
        return found.union(*(self.inputs_for(operand) for operand in hidden))

    def runs_inside(self, position: int) -> bool:
        """Whether an op is part of the kernels that read it."""
        made = self.made[position]
        return bool(made) and not self.exists(made[0])

    def last_use(self, buffer: Buffer) -> int:
        if buffer in self.given_out:
            return len(self.step) - 1
        uses = [
            position
            for position, op in enumerate(self.step)
            if op.kind is not Kind.VIEW and not self.runs_inside(position)
            for operand in self.reads[position]
            if buffer in ({operand} if self.exists(operand) else self.stands_for(operand))
        ]
        return max(uses, default=buffer.position)

    def one_function(self, now: int) -> range:
        """The positions of what runs in one function with the op at ``now``: in groups, all between two kernels."""
        first = last = now
        if self.problem.groups and not self._is_kernel(now):
            while first not in (0, self.split) and not self._is_kernel(first - 1):
                first -= 1
            while last + 1 not in (self.split, len(self.step)) and not self._is_kernel(last + 1):
                last += 1
        return range(first, last + 1)

    def overwritten_bytes(self, now: int, last: dict[Buffer, int]) -> int:
        """Of the operands that die at an op, those that its result is written over."""
        op, made = self.step[now], self.made[now]
        if (
            not made
            or op.kind is not Kind.FUSIBLE
            or op.relays
            or not self.problem.fuses
            or not self.exists(made[0])
        ):
            return 0
        size = self.problem.storages[made[0].storage].size_bytes
        dies = (b for b, end in last.items() if b.position < now == end and b not in self.given_out)
        return size if any(self.problem.storages[b.storage].size_bytes == size for b in dies) else 0

    def check(self, run: Replay) -> None:
        """Hold a replay to this account."""
        problem = self.problem
        size = {s: block.size_bytes for s, block in enumerate(problem.storages)}
        last = {b: self.last_use(b) for made in self.made for b in made if self.exists(b)}
        assert sorted(run.lifetimes) == sorted((b.storage, b.position, end) for b, end in last.items())
        held = {
            holder: sum(s.size_bytes for s in problem.storages if s.holder is holder) for holder in Holder
        }
        for now, op in enumerate(self.step):
            alive = held[Holder.CALLER] + (held[Holder.ENGINE] if now >= self.split else 0)
            function = self.one_function(now)
            alive += sum(
                size[b.storage]
                for b, end in last.items()
                if b.position <= function[-1] and end >= function[0]
            )
            alive += op.scratch_bytes - sum(self.overwritten_bytes(position, last) for position in function)
            assert run.curve[now] == alive, f"at {now}, {op.name}"
        seconds = [
            op.fused_seconds if self.runs_inside(position) else op.seconds
            for position, op in enumerate(self.step)
        ]
        again = [
            position
            for position in range(self.split, len(self.step))
            if self.step[position].name in {op.name for op in self.step[:position]}
        ]
        assert run.seconds == sum(seconds)
        assert run.recompute_seconds == sum(seconds[p] for p in again)
        assert run.recompute_flops == sum(self.step[p].flops for p in again)
        crossing = {
            b.storage for b, end in last.items() if b.position < self.split <= end and b not in self.given_out
        }
        assert run.saved_bytes == sum(size[s] for s in crossing)


@st.composite
def steps(draw: st.DrawFn) -> tuple[Problem, Plan]:
    """A problem with ops that are heavy, change the order of elements or need scratch, and a plan that may run some ops
    of the forward once more, anywhere, and write some results of the backward out."""
    problem = draw(problems(longest=10))
    some = st.sets(st.integers(0, len(problem.ops) - 1))
    heavy, relaying, needing, written = draw(some), draw(some), draw(some), draw(some)
    ops = tuple(
        replace(
            op,
            reads_many=index in heavy,
            relays=index in relaying,
            written_out=index in written,
            scratch_bytes=3 * (index in needing),
            flops=index + 1,
        )
        for index, op in enumerate(problem.ops)
    )
    problem = replace(problem, ops=ops, groups=problem.fuses and draw(st.booleans()))
    try:
        plan = schedule(problem, CutGraph(problem).solve(draw(st.sampled_from([0.0, 0.1, 1.0, 10.0]))).saved)
    except NoCut:
        assume(False)
    backward = list(plan.backward)
    for index in draw(st.lists(st.sampled_from(plan.forward), max_size=4)):
        backward.insert(draw(st.integers(0, len(backward))), index)
    of_backward = [i for i, op in enumerate(problem.ops) if op.phase is Phase.BACKWARD]
    by_plan = draw(st.sets(st.sampled_from(of_backward))) if of_backward else ()
    return problem, replace(plan, backward=tuple(backward), written=tuple(sorted(by_plan)))


@settings(deadline=None, max_examples=200)
@given(steps())
def test_equals_the_account(step: tuple[Problem, Plan]) -> None:
    problem, plan = step
    try:
        run = replay(problem, plan)
    except ReplayError:
        refused = False
        try:
            Account(problem, plan)
        except ReplayError:
            refused = True
        assert refused
        return
    Account(problem, plan).check(run)


def test_what_stands_for_many_buffers_gets_one_if_a_reader_lies_behind_a_kernel() -> None:
    for count, behind, params in itertools.product((MANY_READS, MANY_READS + 1), (False, True), range(3)):
        b = Builder()
        x = b.input("x", 1)
        inputs = [b.input(f"w{n}", 1) for n in range(params)]
        parts = [
            b.op(f"part{n}", [x], Kind.KERNEL, Phase.FORWARD, size_bytes=10) for n in range(count - params)
        ]
        total = b.op("total", [*parts, *inputs], Kind.FUSIBLE, Phase.FORWARD, size_bytes=100)
        first = b.op("first", [total], Kind.REDUCTION, Phase.FORWARD, size_bytes=1)
        other = b.op("other", [first], Kind.KERNEL, Phase.FORWARD, size_bytes=1) if behind else first
        second = b.op("second", [total, other], Kind.REDUCTION, Phase.FORWARD, size_bytes=1)
        t = b.tangent("t", 0)
        g = b.op("g", [t], Kind.KERNEL, Phase.BACKWARD, size_bytes=1)
        problem = b.build([second], [g])
        plan = schedule(problem, [])
        run = replay(problem, plan)
        Account(problem, plan).check(run)
        names = {problem.storages[s].name for s, _, _ in run.lifetimes}
        assert ("total" in names) == (count > MANY_READS and behind)


def test_what_is_asked_for_counts_as_one_where_it_is_read() -> None:
    for reads_many in (False, True):
        b = Builder()
        x = b.input("x", 1)
        parts = [b.op(f"part{n}", [x], Kind.KERNEL, Phase.FORWARD, size_bytes=10) for n in range(MANY_READS)]
        heavy = b.op("heavy", parts, Kind.FUSIBLE, Phase.FORWARD, size_bytes=100)
        total = b.op("total", [heavy, x], Kind.FUSIBLE, Phase.FORWARD, size_bytes=100)
        first = b.op("first", [total, heavy], Kind.REDUCTION, Phase.FORWARD, size_bytes=1)
        other = b.op("other", [first], Kind.KERNEL, Phase.FORWARD, size_bytes=1)
        second = b.op("second", [total, other], Kind.REDUCTION, Phase.FORWARD, size_bytes=1)
        t = b.tangent("t", 0)
        g = b.op("g", [t], Kind.KERNEL, Phase.BACKWARD, size_bytes=1)
        problem = b.build([second], [g])
        asking = tuple(replace(op, reads_many=reads_many and op.name == "heavy") for op in problem.ops)
        problem = replace(problem, ops=asking)
        plan = schedule(problem, [])
        run = replay(problem, plan)
        Account(problem, plan).check(run)
        names = {problem.storages[s].name for s, _, _ in run.lifetimes}
        assert names & {"heavy", "total"} == ({"heavy"} if reads_many else {"total"})


def test_views_keep_to_the_buffer_that_they_were_made_of() -> None:
    b = Builder(fuses=False)
    x = b.input("x", 1)
    h = b.op("h", [x], Kind.KERNEL, Phase.FORWARD, size_bytes=10)
    view = b.op("view", [h], Kind.VIEW, Phase.FORWARD)
    y = b.op("y", [view], Kind.KERNEL, Phase.FORWARD, size_bytes=1)
    t = b.tangent("t", 0)
    g = b.op("g", [t, view], Kind.KERNEL, Phase.BACKWARD, size_bytes=1)
    problem = b.build([y], [g])
    stale = Plan((), (0, 1, 2), (0, 1, 0, 3))
    run = replay(problem, stale)
    Account(problem, stale).check(run)
    assert [(first, last) for storage, first, last in run.lifetimes if storage == problem.values[h].storage] == [
        (0, 2), (3, 6), (5, 5)
    ]  # fmt: skip
