"""The optimum of small problems, proved: a yardstick for the planner and a solver of its own. Free of torch.

A mixed-integer programme after Checkmate (Jain et al. 2020, arXiv 1910.02653), on the lifetimes of
:mod:`graphremat.passes.replay` and solved by HiGHS. Stage 0 is the forward; every op of the backward that is not a view
ends a stage of its own, in index order, and a last stage follows if a gradient is a value of the forward. The optimum
is taken over this *space* of plans:

* the forward runs every forward op once, in index order, and with them any ``EITHER`` ops;
* in each stage of the backward every op that may run again runs at most once, in index order, before the op that ends
  the stage; nothing else bounds how often an op runs in all, unless ``most_recomputations`` does;
* what is saved is no view; views are made again for nothing where they are read, and one that must not run again is
  never read in the backward.

A plan outside of it (an op run twice between two ops of the backward, or recomputations in another order) can be faster
under the same budget. Whether an op runs in a stage is the programme's only integer variable: once these are set, how
long a value lives follows. A value's life in a stage is cut at its possible readers, one variable a piece, and a value
that a stage does not touch carries its variable on into the next.

    >>> from graphremat.passes.testing import chain
    >>> problem = chain(length=6)
    >>> ample, tight = solve_exact(problem, 900), solve_exact(problem, 600)
    >>> ample.seconds, tight.seconds, tight.proved
    (12.0, 18.0, True)
    >>> solve_exact(problem, 400).bound_seconds
    inf
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from graphremat.passes.plan import Plan, check_plan
from graphremat.passes.problem import Holder, Kind, Phase, Problem
from graphremat.passes.relax import Relaxation, relax_fusion
from graphremat.passes.replay import replay
from graphremat.passes.schedule import forward_order

PROOF_TOLERANCE = 1e-6
"""A plan counts as optimal when the bound is this close to its seconds, relatively; HiGHS's own tolerance."""
MOST_UNITS = 10**6
"""Bytes are counted in their greatest common divisor where that makes the budget at most this many units: whole numbers
this small are safe from HiGHS's tolerance of 1e-6 a row."""
MOST_TIGHTENINGS = 3
"""Solutions that are over the budget by rounding are sent back with the budget lowered this often."""

Piece = tuple[int, int, int]
"""A piece of a value's life in a stage: first and last position, and the variable that says whether it is alive."""


@dataclass(frozen=True)
class Exact:
    """What is known of the optimum under a budget.

    ``plan`` replays under the budget and takes ``seconds``; both are None if none was found. ``bound_seconds`` is what
    no plan of the space gets below, infinite if the space has no plan under the budget. ``proved`` says that the plan
    is optimal in the space, or that there is none.
    """

    plan: Plan | None
    seconds: float | None
    bound_seconds: float
    proved: bool


def solve_exact(
    problem: Problem,
    budget_bytes: int,
    *,
    time_limit_seconds: float = 60.0,
    most_recomputations: int | None = None,
    incumbent: Plan | None = None,
) -> Exact:
    """The fastest plan of the space whose replayed peak is at most ``budget_bytes``.

    For a problem that fuses the programme is that of :func:`graphremat.passes.relax.relax_fusion`: ``bound_seconds``
    holds for every plan of the space, but the plan found is one of the relaxation, and is None where its replay is over
    the budget.

    Args:
        problem: what to plan.
        budget_bytes: for everything, as the replay counts it.
        time_limit_seconds: for HiGHS; the bound it has by then is a bound all the same.
        most_recomputations: how often one op may run again, at most.
        incumbent: a plan to beat, from the space or not. It is given back if nothing better is found.

    Raises:
        ValueError: the incumbent breaks a rule, or a view of the backward lies in a value of the forward.
    """
    deadline = time.monotonic() + time_limit_seconds
    best, seconds = None, math.inf
    if incumbent is not None:
        check_plan(problem, incumbent)
        run = replay(problem, incumbent)
        if run.peak_bytes <= budget_bytes:
            best, seconds = incumbent, run.seconds
    relaxation = relax_fusion(problem) if problem.fuses else Relaxation(problem)
    bound, slack = -math.inf, 0
    for _ in range(MOST_TIGHTENINGS):
        programme = _Programme(relaxation, budget_bytes - slack, most_recomputations)
        found = programme.solve(deadline - time.monotonic(), seconds)
        if not slack:
            bound = found.bound_seconds
        if found.runs is None:
            break
        plan = _make_plan(problem, programme.space, found.runs)
        check_plan(problem, plan)
        run = replay(problem, plan)
        if run.peak_bytes <= budget_bytes:
            if run.seconds < seconds:
                best, seconds = plan, run.seconds
            break
        if problem.fuses:
            break
        slack += run.peak_bytes - budget_bytes
    if best is None:
        return Exact(None, None, bound, bound == math.inf)
    bound = min(bound, seconds)
    return Exact(best, seconds, bound, seconds - bound <= PROOF_TOLERANCE * seconds)


class _Space:
    """What can run and live where: reads through views, stages, and what each stage can still need.

    A value here is one that is not a view. It is *given* when the backward has it for nothing: a savable value of no
    bytes, or an output of the forward that no recomputation makes again.
    """

    def __init__(self, relaxation: Relaxation) -> None:
        problem = relaxation.problem
        self.problem = problem
        self.in_place, self.optional = relaxation.in_place, relaxation.optional
        ops, values = problem.ops, problem.values
        graph = [s.holder is Holder.GRAPH for s in problem.storages]
        self.size = [
            problem.storages[v.storage].size_bytes
            if graph[v.storage] and (v.producer < 0 or ops[v.producer].kind is not Kind.VIEW)
            else 0
            for v in values
        ]
        self.movable = [
            v.producer >= 0
            and ops[v.producer].phase is not Phase.BACKWARD
            and ops[v.producer].kind is not Kind.VIEW
            for v in values
        ]
        self._resolve = cache(self._resolve_uncached)
        self.reads: list[tuple[int, ...]] = []
        self.flags: list[tuple[int, ...]] = []
        """Values that an op needs to have been made, alive or not: operands of views besides the viewed one."""
        self.blocked: list[bool] = []
        for op in ops:
            found = [self._resolve(r) for r in op.reads]
            self.reads.append(tuple(dict.fromkeys(b for b, _, _ in found if self.movable[b])))
            self.flags.append(tuple(dict.fromkeys(f for _, flags, _ in found for f in flags)))
            self.blocked.append(any(blocked for _, _, blocked in found))
        self.outputs = {problem.base[v] for v in problem.forward_outputs}
        self.savable = [
            m and not ops[v.producer].unsavable for m, v in zip(self.movable, values, strict=True)
        ]
        sure = [
            s and ops[v.producer].phase is Phase.FORWARD and v.producer not in self.optional
            for s, v in zip(self.savable, values, strict=True)
        ]
        """Whether saving needs nothing but bytes."""
        self.sure = sure
        self.given = [
            s and (not self.size[i] or (i in self.outputs and len(ops[values[i].producer].writes) == 1))
            for i, s in enumerate(sure)
        ]
        self.kept_output = [s and i in self.outputs and not self.given[i] for i, s in enumerate(sure)]
        """Outputs that are there until their op runs again for the sake of another of its results."""
        self.movable_ops = [
            i for i, op in enumerate(ops) if op.phase is not Phase.BACKWARD and op.kind is not Kind.VIEW
        ]
        self._make_stages()
        self._find_needs()

    def _resolve_uncached(self, value: int) -> tuple[int, tuple[int, ...], bool]:
        """Base, values that must have been made, and whether a view that must not run again stands between."""
        problem = self.problem
        producer = problem.values[value].producer
        if producer < 0 or problem.ops[producer].kind is not Kind.VIEW:
            return value, (), False
        op, base = problem.ops[producer], problem.base[value]
        if op.phase is Phase.BACKWARD:
            if self.movable[base]:
                raise ValueError(f"{op.name} of the backward is a view of a value of the forward")
            return base, (), False
        flags: list[int] = []
        blocked = bool(op.keep)
        for read in op.reads:
            other, more, other_blocked = self._resolve(read)
            flags += more
            blocked = blocked or other_blocked
            if other != base and self.movable[other]:
                flags.append(other)
        return base, tuple(flags), blocked

    def _make_stages(self) -> None:
        """``ends[t - 1]``: the op that ends stage ``t``. ``asks[t]``: (values read, values flagged) at its end."""
        problem = self.problem
        self.ends: list[int] = []
        self.asks: list[tuple[set[int], set[int]]] = [(set(), set())]
        self.impossible = False
        reads: set[int] = set()
        flags: set[int] = set()
        for index, op in enumerate(problem.ops):
            if op.phase is not Phase.BACKWARD:
                continue
            flags |= set(self.flags[index])
            self.impossible |= self.blocked[index]
            if op.kind is Kind.VIEW:
                flags |= set(self.reads[index])
                continue
            self.ends.append(index)
            self.asks.append((set(self.reads[index]), flags))
            flags = set()
        for value in problem.backward_outputs:
            base, more, blocked = self._resolve(value)
            self.impossible |= blocked
            flags |= set(more)
            reads |= {base} if self.movable[base] else set()
        if reads | flags:
            self.asks.append((reads, flags))
        self.last_stage = len(self.asks) - 1
        self.flagged = {f for flags in (*self.flags, *(flags for _, flags in self.asks)) for f in flags}

    def _find_needs(self) -> None:
        """``needs[t]``: the values that stage ``t`` or a later one can need, given ones left out."""
        problem = self.problem
        self.needs: list[set[int]] = [set() for _ in range(self.last_stage + 2)]
        for stage in range(self.last_stage, 0, -1):
            found = self.needs[stage] = set(self.needs[stage + 1])
            pending = [*self.asks[stage][0], *self.asks[stage][1]]
            while pending:
                value = pending.pop()
                if value in found or self.given[value]:
                    continue
                found.add(value)
                producer = problem.values[value].producer
                if not (problem.ops[producer].keep and problem.ops[producer].phase is Phase.FORWARD):
                    pending += [*self.reads[producer], *self.flags[producer]]

    def runs_again(self, index: int) -> bool:
        """Whether the op may run in the backward."""
        op = self.problem.ops[index]
        return not (op.keep and op.phase is Phase.FORWARD) and not self.blocked[index]

    def fixed_bytes(self) -> tuple[list[int], list[int]]:
        """For each stage of the backward, what is alive whatever is recomputed: before its last op, and during it."""
        problem = self.problem
        last: dict[int, int] = {}
        for stage, index in enumerate(self.ends, 1):
            for read in problem.ops[index].reads:
                last[problem.base[read]] = stage
            for write in problem.ops[index].writes:
                last.setdefault(write, stage)
        for value in problem.backward_outputs:
            last[problem.base[value]] = len(self.asks)
        engine = sum(s.size_bytes for s in problem.storages if s.holder is Holder.ENGINE)
        always = problem.input_bytes + engine
        always += sum(self.size[v] for v in sorted(self.outputs) if problem.values[v].producer >= 0)
        before = [always] * (self.last_stage + 1)
        during = list(before)
        for stage, index in enumerate(self.ends, 1):
            op = problem.ops[index]
            for place, write in enumerate(op.writes):
                for later in range(stage + 1, min(last[write], self.last_stage) + 1):
                    before[later] += self.size[write]
                    during[later] += self.size[write]
                if place or index not in self.in_place:
                    during[stage] += self.size[write]
            during[stage] += op.scratch_bytes
        return before, during


@dataclass(frozen=True)
class _Found:
    """``runs[t]``: the ops that run in stage ``t``, None if no solution was found."""

    runs: list[list[int]] | None
    bound_seconds: float


class _Programme:
    """The mixed-integer programme of one budget."""

    def __init__(self, relaxation: Relaxation, budget_bytes: int, most_recomputations: int | None) -> None:
        self.space = _Space(relaxation)
        self._budget = budget_bytes
        self._costs: list[float] = []
        self._lower: list[float] = []
        self._upper: list[float] = []
        self._rows: list[tuple[list[tuple[int, float]], float]] = []
        """Sum of the terms is at most the number."""
        self._loads: list[tuple[dict[int, int], int]] = []
        """Bytes of each variable and what they have to stay under."""
        self._integer: set[int] = set()
        self._impossible = self.space.impossible
        problem = self.space.problem
        self._constant = sum(op.seconds for op in problem.ops if op.phase is not Phase.EITHER)
        self._build()
        self._limit(most_recomputations)

    def _column(self, cost: float = 0.0, lower: float = 0.0, *, integer: bool = False) -> int:
        self._costs.append(cost)
        self._lower.append(lower)
        self._upper.append(1.0)
        if integer:
            self._integer.add(len(self._costs) - 1)
        return len(self._costs) - 1

    def _at_most(self, left: int, *right: int) -> None:
        """``left`` <= sum of ``right``."""
        self._rows.append(([(left, 1.0), *((r, -1.0) for r in right)], 0.0))

    def _at_least(self, number: float, terms: Sequence[int]) -> None:
        if len(terms) < number:
            self._impossible = True
        elif len(terms) == 1:
            self._lower[terms[0]] = max(self._lower[terms[0]], number)
        else:
            self._rows.append(([(t, -1.0) for t in terms], -number))

    def _build(self) -> None:
        space = self.space
        problem = space.problem
        self.run = [self._run_columns(stage) for stage in range(space.last_stage + 1)]
        kept = {v: self._column(lower=1.0) for v, k in enumerate(space.kept_output) if k}
        """Whether the output of the forward is the latest result still."""
        incoming: dict[int, int] = {}
        before, during = space.fixed_bytes()
        values = [v for v, m in enumerate(space.movable) if m]
        for stage, run in enumerate(self.run):
            pieces: dict[int, list[Piece]] = {}
            outgoing: dict[int, int] = {}
            for value in values:
                if stage and value not in space.needs[stage]:
                    producer = problem.values[value].producer
                    if producer in run:
                        pieces[value] = [(producer, producer, run[producer])]
                    continue
                if stage and value in kept:
                    kept[value] = self._still_kept(kept[value], run.get(problem.values[value].producer))
                pieces[value], carried = self._live(
                    value, stage, incoming.get(value), kept.get(value) if stage else None
                )
                if carried is not None:
                    outgoing[value] = carried
            self._ask_flags(stage)
            fixed = before[stage] if stage else problem.input_bytes
            for index, column in run.items():
                self._load(pieces, index, fixed, incoming, {column: problem.ops[index].scratch_bytes})
            if 0 < stage <= len(space.ends):
                self._load(pieces, len(problem.ops), during[stage], incoming, {})
            incoming = outgoing

    def _run_columns(self, stage: int) -> dict[int, int]:
        """For each op that may run in this stage, the variable that says whether it does."""
        space = self.space
        columns: dict[int, int] = {}
        for index in space.movable_ops:
            op = space.problem.ops[index]
            needed = any(w in space.needs[max(stage, 1)] for w in op.writes)
            if stage == 0 and op.phase is Phase.FORWARD:
                optional = index in space.optional
                columns[index] = self._column(lower=0.0 if optional else 1.0, integer=optional)
            elif needed and (space.runs_again(index) if stage else op.phase is Phase.EITHER):
                columns[index] = self._column(op.seconds, integer=True)
        return columns

    def _still_kept(self, kept: int, run: int | None) -> int:
        if run is None:
            return kept
        column = self._column()
        self._at_most(column, kept)
        self._rows.append(([(column, 1.0), (run, 1.0)], 1.0))
        return column

    def _live(
        self, value: int, stage: int, held: int | None, kept: int | None
    ) -> tuple[list[Piece], int | None]:
        """The pieces of a value's life in a stage, and the variable that it carries into the next stage.

        ``held`` says whether it comes in alive from the stage before; ``kept`` whether it is there anyway.
        """
        space, run = self.space, self.run[stage]
        producer = space.problem.values[value].producer
        made = run.get(producer)
        several = len(space.problem.ops[producer].writes) > 1
        end = len(space.problem.ops)
        asked = value in space.asks[stage][0] or (stage == 0 and value in space.outputs)
        carried = value in space.needs[stage + 1] and not space.given[value]
        if stage == 0:
            carried = carried and space.savable[value] and value not in space.outputs
        points = [r for r in run if value in space.reads[r]]
        if made is not None and (several or stage == 0 or value in space.flagged):  # it may die at its own op
            points = [producer, *points]
        if asked or carried:
            points.append(end)
        free = [] if kept is None else [kept]
        if made is None and held is None:
            for point in points:
                if point < end:
                    self._at_most(run[point], *free)
                elif asked:
                    self._at_least(1.0, free)
            return [], None
        pieces: list[Piece] = []
        first, sources = -1, [c for c in (held, made) if c is not None]
        if made is not None:
            first = producer
            if held is not None:
                pieces.append((-1, producer - 1, held))
                if not several:
                    self._rows.append(([(held, 1.0), (made, 1.0)], 1.0))
            if not points:
                return [*pieces, (producer, producer, made)], None
        column = -1
        for place, point in enumerate(points):
            if len(sources) == 1 and place == 0:
                column = sources[0]
            else:
                column = self._column()
                self._at_most(column, *sources)
            if place == 0 and made is not None and column != made:
                self._at_most(made, column)
            if point == end:
                if asked:
                    self._at_least(1.0, [column, *free])
            elif point != producer:
                self._at_most(run[point], column, *free)
            pieces.append((first, point, column))
            first, sources = point + 1, [column]
        if not carried:
            return pieces, None
        if asked:
            column = self._column()
            self._at_most(column, *sources)
        return pieces, column

    def _ask_flags(self, stage: int) -> None:
        """What views need besides the viewed operand has been made in the backward before, or is saved."""
        space = self.space

        def made(value: int) -> list[int]:
            producer = space.problem.values[value].producer
            runs = [run[producer] for run in self.run[1 : stage + 1] if producer in run]
            if (space.savable[value] or not stage) and producer in self.run[0]:
                runs.append(self.run[0][producer])
            return runs

        for index, column in self.run[stage].items():
            for value in space.flags[index]:
                if stage == 0 or not space.sure[value]:
                    self._at_most(column, *made(value))
        for value in sorted(space.asks[stage][1]):
            if not space.sure[value]:
                self._at_least(1.0, made(value))

    def _load(
        self,
        pieces: dict[int, list[Piece]],
        position: int,
        fixed: int,
        incoming: dict[int, int],
        scratch: dict[int, int],
    ) -> None:
        """Everything alive at a position is under the budget, with the ``scratch`` of the run at it."""
        space = self.space
        own = space.problem.ops[position].writes[:1] if position in space.in_place else ()
        terms = {column: size for column, size in scratch.items() if size}
        for value, parts in pieces.items():
            for first, last, column in parts:
                if first <= position <= last and space.size[value]:
                    if value in own:
                        if value not in incoming:
                            continue
                        column = incoming[value]
                    terms[column] = terms.get(column, 0) + space.size[value]
        room = self._budget - fixed
        if room < 0:
            self._impossible = True
        elif sum(terms.values()) > room:
            self._loads.append((terms, room))

    def _limit(self, most_recomputations: int | None) -> None:
        """How often an op may run in all; the first run of an ``EITHER`` op is none again."""
        for index in self.space.movable_ops:
            op = self.space.problem.ops[index]
            first = op.phase is Phase.EITHER
            most = 0 if op.keep else most_recomputations
            runs = [run[index] for run in self.run[0 if first else 1 :] if index in run]
            if most is not None and len(runs) > most + first:
                self._rows.append(([(r, 1.0) for r in runs], float(most + first)))

    def solve(self, time_limit_seconds: float, cutoff_seconds: float) -> _Found:
        """Run HiGHS. Only solutions of at most ``cutoff_seconds`` are looked for."""
        if self._impossible:
            return _Found(None, math.inf)
        if not self._costs:
            return _Found([[] for _ in self.run], self._constant)
        if time_limit_seconds <= 0:
            return _Found(None, self._constant)
        unit = _second_unit([c for c in self._costs if c > 0])
        costs = np.array(self._costs) / unit
        rows = list(self._rows)
        byte_unit = self._byte_unit()
        for terms, room in self._loads:
            scaled = [(c, s / byte_unit) for c, s in terms.items()]
            rows.append((scaled, room / byte_unit))
        if cutoff_seconds < math.inf:
            room_seconds = (cutoff_seconds - self._constant) / unit
            rows.append(([(i, c) for i, c in enumerate(costs) if c], room_seconds * (1 + 1e-9) + 1e-6))
        integrality = np.zeros(len(costs))
        integrality[sorted(self._integer)] = 1
        data = [x for terms, _ in rows for _, x in terms]
        columns = [c for terms, _ in rows for c, _ in terms]
        starts = np.cumsum([0, *(len(terms) for terms, _ in rows)])
        matrix = csr_array((data, columns, starts), shape=(len(rows), len(costs)))
        result = milp(
            costs,
            integrality=integrality,
            bounds=Bounds(np.array(self._lower), np.array(self._upper)),
            constraints=LinearConstraint(matrix, -np.inf, np.array([r for _, r in rows])) if rows else None,
            options={"time_limit": time_limit_seconds, "mip_rel_gap": 0.0},
        )
        if result.status == 2:
            return _Found(None, cutoff_seconds)
        dual = result.mip_dual_bound
        bound = self._constant
        if dual is not None and math.isfinite(dual):
            bound = max(bound, self._constant + unit * dual)
        if result.x is None:
            return _Found(None, bound)
        runs = [[i for i, column in run.items() if result.x[column] > 0.5] for run in self.run]
        return _Found(runs, bound)

    def _byte_unit(self) -> float:
        sizes = [s for terms, _ in self._loads for s in terms.values()]
        if not sizes:
            return 1.0
        divisor = math.gcd(*sizes)
        most = max(room for _, room in self._loads)
        return float(divisor) if most <= MOST_UNITS * divisor else most / MOST_UNITS


def _second_unit(costs: list[float]) -> float:
    """The smallest cost where all are multiples of it, so that HiGHS knows them whole; else 1/100 of the largest."""
    if not costs:
        return 1.0
    least, most = min(costs), max(costs)
    if most < 1000 * least and all(abs(c / least - round(c / least)) < 1e-9 for c in costs):
        return least
    return most / 100


def _make_plan(problem: Problem, space: _Space, runs: list[list[int]]) -> Plan:
    """The plan in which these ops run in these stages, views put in where they are read.

    Runs whose results nothing reads are left out; what is read before it is made in the backward is saved.
    """
    stages, needed = _without_waste(space, runs)
    writer = _BackwardWriter(problem)
    backward_ops = [i for i, op in enumerate(problem.ops) if op.phase is Phase.BACKWARD]
    place = 0
    for stage, again in enumerate(stages, 1):
        for index in again:
            writer.run(index)
        stop = (
            backward_ops.index(space.ends[stage - 1]) + 1 if stage <= len(space.ends) else len(backward_ops)
        )
        for index in backward_ops[place:stop]:
            writer.run(index)
        place = stop
    for index in backward_ops[place:]:
        writer.run(index)
    for value in problem.backward_outputs:
        writer.provide(value)
    saved = tuple(sorted(needed))
    return Plan(saved, forward_order(problem, saved), tuple(writer.order), "exact")


def _without_waste(space: _Space, runs: list[list[int]]) -> tuple[list[list[int]], set[int]]:
    """The runs of each stage of the backward that something reads, and the values read before they are made."""
    needed: set[int] = set()
    stages: list[list[int]] = []
    for stage in range(space.last_stage, 0, -1):
        needed |= space.asks[stage][0] | space.asks[stage][1]
        used: list[int] = []
        for index in reversed(runs[stage]):
            writes = set(space.problem.ops[index].writes)
            if writes & needed:
                needed -= writes
                needed |= {*space.reads[index], *space.flags[index]}
                used.append(index)
        stages.append(used[::-1])
    return stages[::-1], needed


class _BackwardWriter:
    """Writes the order of the backward; a view is made again when its base has been since."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self.order: list[int] = []
        self._made = [0] * len(problem.values)
        """How often a value that is not a view has been made in the backward."""
        self._view_of: dict[int, int] = {}
        """For each view, the making of its base that it shows."""

    def run(self, index: int) -> None:
        op = self._problem.ops[index]
        for read in op.reads:
            self.provide(read)
        self.order.append(index)
        for write in op.writes:
            if op.kind is Kind.VIEW:
                self._view_of[write] = self._made[self._problem.base[write]]
            else:
                self._made[write] += 1

    def provide(self, value: int) -> None:
        """Make the views that stand between a value and its base."""
        producer = self._problem.values[value].producer
        if producer < 0 or self._problem.ops[producer].phase is Phase.BACKWARD:
            return
        if self._problem.ops[producer].kind is not Kind.VIEW:
            return
        if self._view_of.get(value) != self._made[self._problem.base[value]]:
            self.run(producer)
