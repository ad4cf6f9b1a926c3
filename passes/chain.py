"""The programme over stages: what is kept where, and what is recomputed how often. Free of torch.

Backward works through the stages from the last to the first, and what a stage keeps is alive until then. Near the end
of a network much can be kept, since it dies before gradients pile up; the programme sees that, because every stage is
held against the budget at its own place. ``room`` is the budget less what is kept by earlier stages::

    fewest[first](room)      = min over stop, treatment of  treatment's seconds + fewest[stop](room - kept)
    again[first, stop](room) = min over at, treatment of    sweep(first, at) + again[at, stop](room - kept)
                                                            + treatment's seconds

A *treatment* of a segment (a run of stages) is one of its options, or ``again``: keep nothing of it but what enters it,
and recompute it when its backward comes. ``again`` sweeps through some stages, keeping only what crosses at the end or
what an option keeps, deals with the rest first, and then with the part it swept through, which may be recomputed once
more. So ops run as often as the budget asks for.

With equal stages that keep all or nothing this is the optimal checkpointing of chains (Griewank and Walther 2000,
Algorithm 799: Revolve; Beaumont et al. 2019, Rotor, for unequal stages); the options of a parametric cut in place of
all or nothing are Rockmate's idea (Zhao et al. 2023). All budgets are solved at once: ``room`` is divided into units.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from graphremat.passes.problem import Holder, Phase, Problem
from graphremat.passes.schedule import Forget, Instruction, Make, Run
from graphremat.passes.segments import Choices, Option
from graphremat.passes.stages import Stages

MOST_UNITS = 1024
"""Units into which the range of budgets is divided at most, where no larger unit divides all sizes."""
LEAST_UNITS = 128
UNITS_TRIED = 64
MOST_WORK = 5e8
"""Bound on stages cubed times units: about six times the additions of the programme."""

Seconds: TypeAlias = npt.NDArray[np.float64]
"""Fewest seconds for every room, in units; infinite where there is no way."""


@dataclass(frozen=True)
class Again:
    """Recompute the stages ``first`` to ``stop - 1``, of which only what enters them is there.

    Sweep to ``at``, keeping what crosses there and what ``left`` keeps; deal with the rest as ``right`` says, then with
    the part that was swept through as ``left`` says.
    """

    first: int
    stop: int
    at: int
    left: "Option | Again"
    right: "Option | Again"


Treatment: TypeAlias = Option | Again


@dataclass(frozen=True)
class Choice:
    """Segments ``(first, stop, treatment)`` in order; ``saved`` is all that the forward keeps, boundaries included."""

    segments: tuple[tuple[int, int, Treatment], ...]
    saved: tuple[int, ...]
    seconds: float


@dataclass(frozen=True)
class _Way:
    """One way to treat a segment: its option (None: again), seconds (for every room, if again), the units that it keeps
    and the room that it takes."""

    stop: int
    option: Option | None
    seconds: float | Seconds
    kept: int
    need: int


class Programme:
    """The programme of a problem, solved for all budgets up to ``highest_bytes``.

    Args:
        problem: the problem.
        stages: its stages.
        choices: what can be done with each segment; single stages are always there.
        highest_bytes: the highest budget that will be asked for.
        most_recomputations: how often an op may run again; None for as often as it pays.
    """

    def __init__(
        self,
        problem: Problem,
        stages: Stages,
        choices: dict[tuple[int, int], Choices],
        highest_bytes: int,
        most_recomputations: int | None = None,
    ) -> None:
        self.stages, self.choices = stages, choices
        self._bytes = _StageBytes(problem, stages, choices)
        self._base = problem.input_bytes
        sizes = [self._bytes.entering[k][k + 1] for k in range(len(stages))]
        sizes += [o.kept_bytes for k in range(len(stages)) for o in choices[k, k + 1].options]
        self._unit = _unit_bytes(problem, highest_bytes - self._base, sizes, len(stages))
        self._units = max(0, highest_bytes - self._base) // self._unit + 1
        self._sweeps = np.array([choices[k, k + 1].sweep_seconds for k in range(len(stages))])
        self._most = most_recomputations
        self._tables: list[npt.NDArray[np.float64]] = []
        self._recompute()
        self._ways = [self._ways_from(first) for first in range(len(stages))]
        self._fewest = self._solve()

    def budgets(self, most: int) -> list[int]:
        """At most ``most`` budgets in bytes where the seconds fall, ascending, evenly chosen among all of these."""
        fewest = self._fewest[0]
        falls = np.flatnonzero(np.isfinite(fewest) & (fewest < np.concatenate(([np.inf], fewest[:-1]))))
        if len(falls) > most:
            wanted = np.linspace(0, len(falls) - 1, most).round().astype(int)
            falls = falls[wanted]
        return [self._base + int(room) * self._unit for room in falls]

    def solve(self, budget_bytes: int) -> Choice | None:
        """The choice of fewest seconds whose every place lies under ``budget_bytes``; None if there is none."""
        room = min((budget_bytes - self._base) // self._unit, self._units - 1)
        if room < 0 or not math.isfinite(self._fewest[0][room]):
            return None
        seconds, stage = float(self._fewest[0][room]), 0
        segments: list[tuple[int, int, Treatment]] = []
        while stage < len(self.stages):
            way = self._best_way(stage, room)
            chosen = way.option or self._trace(len(self._tables) - 1, stage, way.stop, room)
            segments.append((stage, way.stop, chosen))
            stage, room = way.stop, room - way.kept
        saved: set[int] = set()
        for first, _, chosen in segments:
            saved.update(self.stages.crossing[first])
            if isinstance(chosen, Option):
                saved.update(chosen.saved)
        return Choice(tuple(segments), tuple(sorted(saved)), seconds)

    def _solve(self) -> list[Seconds]:
        """``fewest[first]``, from the last stage to the first."""
        count = len(self.stages)
        fewest = [np.full(self._units, np.inf) for _ in range(count)] + [np.zeros(self._units)]
        for first in reversed(range(count)):
            for way in self._ways[first]:
                offer = way.seconds + _shifted(fewest[way.stop], way.kept)
                np.minimum(fewest[first], self._above(offer, way.need), out=fewest[first])
        return fewest

    def _ways_from(self, first: int) -> list[_Way]:
        """Ways to treat the segments that start at ``first``, seen from the first forward."""
        at_hand = self._bytes
        found: list[_Way] = []
        for stop in range(first + 1, len(self.stages) + 1):
            entering = self._units_of(at_hand.entering[first][stop])
            here = self.choices.get((first, stop))
            for option in here.options if here else ():
                kept = entering + self._units_of(option.kept_bytes)
                need = max(
                    at_hand.forward[first] + option.forward_bytes,
                    at_hand.backward[first][stop] + option.backward_bytes,
                )
                found.append(_Way(stop, option, option.seconds, kept, self._room_for(need)))
            need = at_hand.forward[first] + at_hand.sweep[first][stop]
            found.append(_Way(stop, None, self._tables[-1][first, stop], entering, self._room_for(need)))
        return found

    def _best_way(self, first: int, room: int) -> _Way:
        """How ``fewest[first]`` reaches its seconds at ``room``."""
        best, chosen = math.inf, None
        for way in self._ways[first]:
            if room < max(way.need, way.kept):
                continue
            own = way.seconds if isinstance(way.seconds, float) else way.seconds[room]
            seconds = own + self._fewest[way.stop][room - way.kept]
            if seconds < best:
                best, chosen = seconds, way
        assert chosen is not None
        return chosen

    def _recompute(self) -> None:
        """Fills the tables ``again[first, stop]``. Without a bound on recomputation one table refers to itself; with a
        bound there is one for each number of runs, and what is swept through has one run less."""
        count = len(self.stages)
        for _ in range(1 if self._most is None else self._most):
            table = np.full((count, count + 1, self._units), np.inf)
            self._tables.append(table)
            depth = len(self._tables) - 1
            for length in range(1, count + 1):
                for first in range(count - length + 1):
                    best = self._at_once(first, first + length)
                    if length > 1:
                        swept = self._swept(depth, first, first + length)
                        if swept is not None:
                            np.minimum(best, swept.min(axis=0), out=best)
                        for _, offer in self._parted(depth, first, first + length):
                            np.minimum(best, offer, out=best)
                    table[first, first + length] = best

    def _at_once(self, first: int, stop: int) -> Seconds:
        """Recompute a segment as its own option that keeps nothing says."""
        option = self._nothing_kept(first, stop)
        if option is None:
            return np.full(self._units, np.inf)
        need = self._bytes.backward[first][stop] + option.backward_bytes
        return self._above(np.full(self._units, option.seconds), self._room_for(need))

    def _nothing_kept(self, first: int, stop: int) -> Option | None:
        here = self.choices.get((first, stop))
        return next((o for o in here.options if not o.saved), None) if here else None

    def _swept(self, depth: int, first: int, stop: int) -> Seconds | None:
        """Seconds to recompute a segment by a sweep to each place within it, a row a place; None if no op may run so
        often."""
        table = self._tables[depth]
        swept = table if self._most is None else self._tables[depth - 1] if depth else None
        if swept is None:
            return None
        rows = np.full((stop - first - 1, self._units), np.inf)
        start, entering = self._bytes.window_start[stop - 1], self._bytes.entering[first]
        for at, row in enumerate(rows, first + 1):
            kept = self._units_of(entering[at])
            room = max(kept, self._room_for(start + self._bytes.sweep[first][at]))
            row[room:] = table[at, stop, room - kept : max(0, self._units - kept)]
        rows += swept[first, first + 1 : stop]
        rows += np.cumsum(self._sweeps[first : stop - 1])[:, None]
        return rows

    def _parted(self, depth: int, first: int, stop: int) -> Iterator[tuple[Option, Seconds]]:
        """Ways to recompute a segment whose first stage is treated by an option: option, seconds."""
        at_hand, at = self._bytes, first + 1
        once = self._most is not None and depth == 0
        for option in self.choices[first, at].options:
            if option.seconds == 0 if once else option.saved:
                kept = self._units_of(at_hand.entering[first][at]) + self._units_of(option.kept_bytes)
                start = at_hand.window_start[stop - 1] + option.forward_bytes
                need = max(start, at_hand.backward[first][at] + option.backward_bytes)
                offer = option.sweep_seconds + option.seconds + _shifted(self._tables[depth][at, stop], kept)
                yield option, self._above(offer, self._room_for(need))

    def _trace(self, depth: int, first: int, stop: int, room: int) -> Treatment:
        """How ``again[first, stop]`` reaches its seconds at ``room``."""
        best = self._at_once(first, stop)[room]
        chosen: tuple[int, Option | None] | None = None
        if stop - first > 1:
            swept = self._swept(depth, first, stop)
            if swept is not None and swept[:, room].min() < best:
                row = int(swept[:, room].argmin())
                best, chosen = swept[row, room], (first + 1 + row, None)
            for part, offer in self._parted(depth, first, stop):
                if offer[room] < best:
                    best, chosen = offer[room], (first + 1, part)
        if chosen is None:
            treatment = self._nothing_kept(first, stop)
            assert treatment is not None
            return treatment
        at, option = chosen
        kept = self._units_of(self._bytes.entering[first][at])
        if option is None:
            left = self._trace(depth if self._most is None else depth - 1, first, at, room)
        else:
            left, kept = option, kept + self._units_of(option.kept_bytes)
        return Again(first, stop, at, left, self._trace(depth, at, stop, room - kept))

    def _units_of(self, size_bytes: int) -> int:
        """To the nearest unit, so that the errors of many steps cancel; the replay judges."""
        return (2 * size_bytes + self._unit) // (2 * self._unit)

    def _room_for(self, need_bytes: int) -> int:
        """The least room, in units, in which ``need_bytes`` find place."""
        return max(0, -((self._base - need_bytes) // self._unit))

    @staticmethod
    def _above(seconds: Seconds, room: int) -> Seconds:
        """``seconds``, made infinite where there is less than ``room``."""
        seconds[:room] = np.inf
        return seconds


def instructions(choice: Choice, problem: Problem, stages: Stages) -> list[Instruction]:
    """How the backward runs under a choice: segment by segment from the last, sweeps and what they drop included."""
    made: list[list[int]] = [[] for _ in range(len(stages))]
    for index, stage in enumerate(stages.stage_of):
        if stage >= 0:
            made[stage].extend(w for w in problem.ops[index].writes if problem.base[w] == w)
    found: list[Instruction] = []

    def treat(first: int, stop: int, treatment: Treatment, kept: frozenset[int]) -> None:
        if isinstance(treatment, Option):
            ranges = (stages.windows[k] for k in reversed(range(first, stop)))
            found.append(Run(tuple(stages.backward[p] for start, end in ranges for p in range(start, end))))
            return
        at, left = treatment.at, treatment.left
        held = set(stages.crossing[at]) | set(left.saved if isinstance(left, Option) else ())
        found.append(Make(tuple(sorted(held))))
        swept = {v for stage in range(first, at) for v in made[stage]}
        found.append(Forget(tuple(sorted(swept - held - kept))))
        treat(at, stop, treatment.right, kept | held)
        treat(first, at, left, kept)

    for first, stop, treatment in reversed(choice.segments):
        treat(first, stop, treatment, frozenset(choice.saved))
    return found


class _StageBytes:
    """Bytes that do not depend on the treatment of a segment.

    ``forward[k]``: alive in the forward of stage ``k`` whatever the plan (inputs, outputs made so far).
    ``backward[first][stop]``: the most of what is alive all through a window of the segment and no plan changes
    (inputs, outputs, gradients so far). ``window_start[k]``: alive when window ``k`` starts.
    ``entering[first][stop]``: crossing into ``stop`` and not into ``first``. ``sweep[first][stop]``: highest point of
    the segment's forward, nothing kept.
    """

    def __init__(self, problem: Problem, stages: Stages, choices: dict[tuple[int, int], Choices]) -> None:
        self.problem, count = problem, len(stages)
        outputs = {problem.values[v].storage for v in problem.forward_outputs}
        engine = sum(s.size_bytes for s in problem.storages if s.holder is Holder.ENGINE)
        fixed = problem.input_bytes + engine + sum(self.problem.graph_bytes(s) for s in sorted(outputs))
        self.forward = self._outputs_before(stages, outputs)
        through, starting = self._gradients(stages)
        self.window_start = [fixed + b for b in starting]
        sizes = {
            v: 0
            if problem.values[v].storage in outputs
            else self.problem.graph_bytes(problem.values[v].storage)
            for crossing in stages.crossing
            for v in crossing
        }
        crossing = [*map(frozenset, stages.crossing), frozenset[int]()]
        self.entering = [
            [sum(sizes[v] for v in crossing[stop] - crossing[first]) for stop in range(count + 1)]
            for first in range(count)
        ]
        lowest = [min((o.forward_bytes for o in choices[k, k + 1].options), default=0) for k in range(count)]
        self.backward = [[0] * (count + 1) for _ in range(count)]
        self.sweep = [[0] * (count + 1) for _ in range(count)]
        for first in range(count):
            for last in range(first, count):
                self.backward[first][last + 1] = max(self.backward[first][last], fixed + through[last])
                here = lowest[last] + self.entering[first][last]
                self.sweep[first][last + 1] = max(self.sweep[first][last], here)

    def _outputs_before(self, stages: Stages, outputs: set[int]) -> list[int]:
        made = [0] * len(stages)
        seen: set[int] = set()
        for value in self.problem.values:
            if value.storage in outputs - seen and value.producer >= 0:
                seen.add(value.storage)
                stage = max(0, stages.stage_of[value.producer])
                for later in range(stage + 1, len(stages)):
                    made[later] += self.problem.graph_bytes(value.storage)
        return [self.problem.input_bytes + b for b in made]

    def _gradients(self, stages: Stages) -> tuple[list[int], list[int]]:
        """For each stage, bytes made in an earlier window and needed after this one: those not read in it, and all that
        are alive when it starts."""
        problem = self.problem
        gradients = {problem.values[v].storage for v in problem.backward_outputs}
        first: dict[int, int] = {}
        reads: dict[int, list[int]] = {}
        for position, index in enumerate(stages.backward):
            for write in problem.ops[index].writes:
                first.setdefault(problem.values[write].storage, position)
            for read in problem.ops[index].reads:
                producer = problem.values[read].producer
                if producer >= 0 and problem.ops[producer].phase is Phase.BACKWARD:
                    reads.setdefault(problem.values[read].storage, []).append(position)
        through, starting = [0] * len(stages), [0] * len(stages)
        for storage, made in first.items():
            places = reads.get(storage, [])
            last = len(stages.backward) if storage in gradients else max(places, default=-1)
            for stage, (start, stop) in enumerate(stages.windows):
                if made < start <= last:
                    starting[stage] += self.problem.graph_bytes(storage)
                    inside = any(start <= p < stop for p in places)
                    if not inside and last >= stop:
                        through[stage] += self.problem.graph_bytes(storage)
        return through, starting


def _unit_bytes(problem: Problem, range_bytes: int, sizes: list[int], stages: int) -> int:
    """A divisor of all sizes; else, of the units for which there is time, the one that rounds ``sizes`` the least."""
    common = math.gcd(*(s.size_bytes for s in problem.storages if s.holder is not Holder.CALLER), 0)
    units = min(MOST_UNITS, max(LEAST_UNITS, int(MOST_WORK / stages**3)))
    least = max(1, -(-range_bytes // units))
    if common >= least or least < UNITS_TRIED:
        return max(common, least)
    offered = np.linspace(least, 2 * least, UNITS_TRIED, endpoint=False).astype(np.int64)
    known = np.array([s for s in sizes if s >= least], dtype=np.int64)
    rounded = (2 * known[None] + offered[:, None]) // (2 * offered[:, None]) * offered[:, None]
    return int(offered[np.abs(rounded - known).sum(axis=1).argmin()])


def _shifted(seconds: Seconds, units: int) -> Seconds:
    """``seconds`` with ``units`` less room."""
    result = np.full_like(seconds, np.inf)
    if units < len(seconds):
        result[units:] = seconds[: len(seconds) - units]
    return result
