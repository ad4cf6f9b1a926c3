"""Where the local search begins and for which budgets: from plans that are known to every plan that it looks at.

``searched`` goes down through evenly spaced budgets, ``descended`` on from the lowest plans, and ``filled`` into the
widest gaps that are left between neighbours. Free of torch.

    >>> from graphremat.passes.frontier import judge
    >>> from graphremat.passes.schedule import schedule
    >>> from graphremat.passes.testing import chain
    >>> problem = chain(16)
    >>> ends = [judge(problem, schedule(problem, saved)) for saved in (tuple(range(1, 17)), (8,))]
    >>> between = filled(Search(problem, most_looks=20), ends, tries=1, most=64)
    >>> [(c.replay.peak_bytes, c.replay.seconds) for c in pareto([*ends, *between], 64)]
    [(1900, 32.0), (1800, 33.0), (1600, 42.0), (1500, 43.0), (1400, 44.0), (1300, 45.0), (1200, 46.0)]
"""

import itertools
from collections.abc import Sequence

from graphremat.passes.frontier import Candidate, pareto
from graphremat.passes.search import RULES, Search, State

NEAREST = 3
"""Plans from which the search for a budget starts."""
BUDGETS = 32
"""Budgets between the known plans that are searched; each gets its share of the looks."""
TARGETS = 12
"""Peaks below the lowest known one that are tried; a step of the descent is at first this part of the way down to the
peak that no plan gets below."""
FINEST_STEP = 200
"""The descent ends where a step is less than this part of the peak."""


def searched(search: Search, found: list[Candidate], floor_bytes: int, most: int) -> list[Candidate]:
    """Every plan that the local search looks at on its way down from the highest budget, and below the lowest."""
    if search.ended:
        return []
    starts = [search.start(), *(search.resume(c.plan) for c in pareto(found, most))]
    known = [s for s in starts if s is not None]
    if not known:
        return []
    low, high = (pick(s.replay.peak_bytes for s in known) for pick in (min, max))
    for place, budget in enumerate(reversed(_evenly(low, high, BUDGETS))):
        search.reserve_all_but_one(BUDGETS + TARGETS - place)
        known += _improved(search, known, budget)
    lower = _evenly(floor_bytes, min(s.replay.peak_bytes for s in known), TARGETS + 1)[:-1]
    for place, budget in enumerate(reversed(lower)):
        search.reserve_all_but_one(TARGETS - place)
        known += _improved(search, known, budget)
    return _candidates(search)


def descended(search: Search, found: list[Candidate], floor_bytes: int) -> list[Candidate]:
    """Every plan that the local search looks at on its way down from the lowest plans, in steps that become finer."""
    if search.ended:
        return []
    lowest = sorted(found, key=_by_peak)[:NEAREST]
    known = [s for c in lowest if (s := search.resume(c.plan)) is not None]
    if not known:
        return []
    low = known[0].replay.peak_bytes
    step = (low - floor_bytes) // TARGETS
    while not search.ended and step > low // FINEST_STEP:
        tried = (search.tighten(s, low - step, rule) for s in known for rule in RULES)
        if all(s is None for s in tried):
            step //= 2
        known = sorted(search.states, key=_by_peak)[:NEAREST]
        low = known[0].replay.peak_bytes
    return _candidates(search)


def filled(search: Search, found: Sequence[Candidate], *, tries: int, most: int) -> list[Candidate]:
    """Every plan that the local search looks at just below the faster of two neighbours on the frontier of ``found``.

    Of the gaps that were not tried the one comes first in which a plan is missed most: its seconds, times the share of
    a budget's bytes above the lowest peak that go unused at its upper end.

    Args:
        search: what looks; each gap gets an equal share of its looks.
        found: plans, replayed.
        tries: gaps to look into at most.
        most: plans on a frontier.
    """
    kept, tried = pareto(list(found), most), set[tuple[int, int]]()
    for place in range(tries):
        gaps = {(a.replay.peak_bytes, b.replay.peak_bytes): (a, b) for a, b in itertools.pairwise(kept)}
        untried = [gap for gap in gaps if gap not in tried]
        search.reserve_all_but_one(tries - place)
        if search.ended or not untried:
            break
        widest = max(untried, key=lambda gap: _missed(*gaps[gap], kept[-1].replay.peak_bytes))
        tried.add(widest)
        known = [s for c in gaps[widest] if (s := search.resume(c.plan)) is not None]
        _improved(search, known, widest[0] - 1)
        kept = pareto([*kept, *_candidates(search)], most)
    return _candidates(search)


def _missed(above: Candidate, below: Candidate, lowest_bytes: int) -> float:
    unused = (above.replay.peak_bytes - below.replay.peak_bytes) / (above.replay.peak_bytes - lowest_bytes)
    return unused * (below.replay.seconds - above.replay.seconds)


def _candidates(search: Search) -> list[Candidate]:
    return [Candidate(s.plan, s.replay) for s in search.states]


def _by_peak(judged: Candidate | State) -> tuple[int, float]:
    return judged.replay.peak_bytes, judged.replay.seconds


def _improved(search: Search, known: list[State], budget_bytes: int) -> list[State]:
    """The best plan under a budget that the search finds from the known plans nearest to it; none if it finds none."""
    over = sorted((s for s in known if s.replay.peak_bytes > budget_bytes), key=lambda s: s.replay.peak_bytes)
    origins = dict.fromkeys([*over[:NEAREST], *known[:1]])
    tried = [search.tighten(s, budget_bytes, rule) for s in origins for rule in RULES]
    under = [s for s in (*tried, *known) if s is not None and s.replay.peak_bytes <= budget_bytes]
    if not under:
        return []
    best = sorted(dict.fromkeys(under), key=lambda s: s.rank)[:NEAREST]
    loose = min((search.loosen(s, budget_bytes) for s in best), key=lambda s: s.rank)
    return [search.exchange(loose, budget_bytes)]


def _evenly(low: int, high: int, most: int) -> list[int]:
    return [low + (high - low) * k // (most - 1) for k in range(most)]
