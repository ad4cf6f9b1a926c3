"""Plans beside their replays, and what is kept of them: the frontier. Free of torch."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from graphremat.passes.bound import Bound
from graphremat.passes.plan import Plan, check_plan
from graphremat.passes.problem import Problem
from graphremat.passes.replay import Replay, replay


@dataclass(frozen=True, eq=False)
class Candidate:
    """A plan and its replay."""

    plan: Plan
    replay: Replay


def judge(problem: Problem, plan: Plan) -> Candidate:
    """Check and replay a plan. Raises ValueError if it breaks a rule of the problem."""
    check_plan(problem, plan)
    return Candidate(plan, replay(problem, plan))


@dataclass(frozen=True)
class Proof:
    """What the exact solver proved: no plan of its space with a peak of at most ``budget_bytes`` takes fewer than
    ``bound_seconds``. :mod:`graphremat.passes.exact` says what the space is."""

    budget_bytes: int
    bound_seconds: float


@dataclass(frozen=True, eq=False)
class Frontier:
    """Plans from the fastest to the one of lowest peak: every next one has a lower peak, takes longer, and recomputes
    no less.

    ``frugal`` holds further plans, for whom saved bytes matter beyond the peak (they stay alive while other graphs
    run): each saves less than all others that are as fast and as low, from the fastest to the one that saves least.
    """

    candidates: tuple[Candidate, ...]
    bound: Bound | None = None
    proof: Proof | None = None
    frugal: tuple[Candidate, ...] = ()

    def gap(self, candidate: Candidate) -> float:
        """How far a plan may be from the best under its own peak, as a share of its seconds; 0 is optimal.

        It is the lower bound's word: the best plan may well be slower than the bound.
        """
        run = candidate.replay
        if self.bound is None or run.seconds <= 0:
            return 1.0
        return max(0.0, 1.0 - self.bound.seconds(run.peak_bytes) / run.seconds)

    def exact_gap(self, candidate: Candidate) -> float | None:
        """The same among the plans of the exact solver's space, by what it proved; None if it proved nothing there."""
        run = candidate.replay
        if self.proof is None or run.peak_bytes > self.proof.budget_bytes or run.seconds <= 0:
            return None
        return max(0.0, 1.0 - self.proof.bound_seconds / run.seconds)

    def at_fraction(self, fraction: float) -> int:
        """The budget in bytes at a fraction between the lowest (0.0) and the highest (1.0) replayed peak."""
        low, high = self.candidates[-1].replay.peak_bytes, self.candidates[0].replay.peak_bytes
        return low + round(fraction * (high - low))

    def under(self, budget_bytes: int) -> int | None:
        """Place of the fastest plan whose replayed peak is at most ``budget_bytes``."""
        for place, candidate in enumerate(self.candidates):
            if candidate.replay.peak_bytes <= budget_bytes:
                return place
        return None


def pareto(found: list[Candidate], most: int) -> tuple[Candidate, ...]:
    """Plans that no other beats in peak and seconds, a looser budget with no more recomputation. At most ``most`` are
    kept, both ends among them: the one that is missed least, by seconds over all budgets, goes first."""
    order = sorted(found, key=lambda c: (c.replay.seconds, c.replay.peak_bytes, c.plan.saved))
    kept: list[Candidate] = []
    for candidate in order:
        if not kept or candidate.replay.peak_bytes < kept[-1].replay.peak_bytes:
            kept.append(candidate)
    kept = with_recomputation_in_order(kept)
    while len(kept) > most:
        inner = range(1, len(kept) - 1)
        del kept[min(inner, key=lambda k: _lost_without(kept, k))]
    return tuple(kept)


def _lost_without(plans: Sequence[Candidate], place: int) -> float:
    """Seconds times bytes of budget that are lost if the next plan takes the place of this one."""
    looser, run, tighter = (plans[k].replay for k in (place - 1, place, place + 1))
    return (looser.peak_bytes - run.peak_bytes) * (tighter.seconds - run.seconds)


def _thinned(plans: Sequence[Candidate], most: int) -> tuple[Candidate, ...]:
    """At most ``most`` of the plans, spread evenly, both ends among them."""
    if len(plans) <= most:
        return tuple(plans)
    return tuple(plans[round(i * (len(plans) - 1) / (most - 1))] for i in range(most))


def frugal(found: list[Candidate], kept: Sequence[Candidate], most: int) -> tuple[Candidate, ...]:
    """Plans beside the kept ones that no other beats in saved bytes, peak and seconds; thinned to ``most``."""
    order = sorted(found, key=lambda c: (c.replay.seconds, c.replay.saved_bytes, c.replay.peak_bytes))
    front: list[Candidate] = []
    for candidate in (*kept, *order):
        run = candidate.replay
        if not any(
            c.replay.seconds <= run.seconds
            and c.replay.saved_bytes <= run.saved_bytes
            and c.replay.peak_bytes <= run.peak_bytes
            for c in front
        ):
            front.append(candidate)
    others = sorted(set(front) - set(kept), key=lambda c: (c.replay.seconds, -c.replay.saved_bytes))
    return _thinned(others, most)


def with_recomputation_in_order(plans: list[Candidate]) -> list[Candidate]:
    """The plans less those that break "a looser budget never recomputes longer"; fewest seconds lost over all budgets.

    Where fusion is at work a plan can be the faster one although it recomputes longer, since it saves less and so
    writes and reads less. ``plans`` fall in peak and rise in seconds; both ends stay unless the last recomputes less
    than the first.
    """
    if not plans:
        return []
    peaks = [c.replay.peak_bytes for c in plans]
    seconds = [c.replay.seconds for c in plans]
    again = [c.replay.recompute_seconds for c in plans]

    steps = [(high - low) * s for (high, low), s in zip(itertools.pairwise(peaks), seconds[1:], strict=True)]
    areas = list(itertools.accumulate(steps, initial=0.0))

    def lost(first: int, stop: int) -> float:
        """Seconds times bytes of budget that are lost if nothing between the two is kept."""
        return seconds[stop] * (peaks[first] - peaks[stop]) - (areas[stop] - areas[first])

    best, before = [0.0] + [math.inf] * (len(plans) - 1), [-1] * len(plans)
    for stop in range(1, len(plans)):
        for first in range(stop):
            if again[first] <= again[stop] and best[first] + lost(first, stop) < best[stop]:
                best[stop], before[stop] = best[first] + lost(first, stop), first
    place = max((k for k in range(len(plans)) if best[k] < math.inf), default=0)
    kept = []
    while place >= 0:
        kept.append(plans[place])
        place = before[place]
    return kept[::-1]
