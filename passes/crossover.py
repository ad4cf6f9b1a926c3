"""Crossover: of two plans, what the one saves of the early forward and what the other saves of the late. Free of torch.

A cut of the whole graph saves all values of a price at once, and the programme over stages knows the options of each
segment's own hull alone. So there are wide gaps between neighbours on a frontier, in which more budget buys nothing.
One-point crossover (Holland 1975) of what two neighbours save takes the one's way up to some place of the forward and
the other's from there on. That is a plan like any other: what it lacks it makes again.

    >>> from graphremat.passes.frontier import judge
    >>> from graphremat.passes.schedule import schedule
    >>> from graphremat.passes.testing import chain
    >>> problem = chain(length=8)
    >>> ends = [judge(problem, schedule(problem, saved)) for saved in (range(1, 8), [4])]
    >>> [c.replay.peak_bytes for c in ends], [c.replay.recompute_seconds for c in ends]
    ([1100, 800], [0.0, 6.0])
    >>> [(c.replay.peak_bytes, c.replay.recompute_seconds) for c in crossed(problem, ends, most_looks=2)]
    [(900, 5.0), (1000, 1.0)]
"""

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from graphremat.passes.frontier import Candidate, judge, pareto
from graphremat.passes.problem import Problem
from graphremat.passes.schedule import ScheduleError, schedule

PLACES = 3
"""Places of the forward at which two plans are crossed, both ways each: they divide what one of them alone saves into
equal numbers of values."""


def crossed(
    problem: Problem, found: Sequence[Candidate], *, most_looks: int, deadline: float = math.inf
) -> list[Candidate]:
    """Crossings of neighbours on the frontier of ``found`` and of what comes of that, those first between which there
    is most to gain: bytes times seconds.

    Args:
        problem: the problem.
        found: plans, each replayed.
        most_looks: crossings that are replayed, at most.
        deadline: of ``time.monotonic()``, after which nothing is tried any more.
    """
    known = {frozenset(c.plan.saved) for c in found}
    done: set[tuple[Candidate, Candidate]] = set()
    made: list[Candidate] = []
    while len(made) < most_looks:
        front = pareto([*found, *made], len(found) + len(made))
        pairs = [pair for pair in itertools.pairwise(front) if pair not in done]
        if not pairs:
            break
        pair = max(pairs, key=_area)
        done.add(pair)
        for saved in _crossings(problem, *pair):
            if len(made) >= most_looks or time.monotonic() >= deadline:
                return made
            if saved in known:
                continue
            known.add(saved)
            try:
                plan = schedule(problem, saved, "crossover")
            except ScheduleError:
                continue
            used = frozenset(plan.saved)  # less what nothing reads
            if used == saved or used not in known:
                known.add(used)
                written = {*pair[0].plan.written, *pair[1].plan.written}
                made.append(judge(problem, replace(plan, written=tuple(sorted(written)))))
    return made


def _area(pair: tuple[Candidate, Candidate]) -> float:
    """What could be gained between two neighbours, in bytes times seconds."""
    high, low = (c.replay for c in pair)
    return (high.peak_bytes - low.peak_bytes) * (low.seconds - high.seconds)


def _crossings(problem: Problem, one: Candidate, other: Candidate) -> Iterator[frozenset[int]]:
    """What is saved up to a place as the one plan has it and from there on as the other, and the other way round."""
    producers = problem.table.producers
    ways = frozenset(one.plan.saved), frozenset(other.plan.saved)
    places = sorted(producers[v] for v in ways[0] ^ ways[1])
    for part in range(1, PLACES + 1):
        at = places[len(places) * part // (PLACES + 1)] if places else 0
        for early, late in (ways, ways[::-1]):
            yield frozenset(v for v in early if producers[v] < at) | {v for v in late if producers[v] >= at}
