"""Budget arithmetic: which plan of a frontier to take, judged by the peak of the code it becomes. Needs no torch.

A plan's replay says about where its peak will lie; the dry run of its generated code says exactly, and takes seconds.
So few plans are lowered: the replays, corrected by the peaks that are already known, say which one to try next.

    >>> replayed, true = [100, 80, 60, 40], [105, 84, 62, 41]
    >>> choose(replayed, true.__getitem__, 70).place
    2
    >>> choose(replayed, true.__getitem__, 0.5).budget_bytes    # half way between 40 and 100, times 62 / 60
    72
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Budget = int | float | None

CLOSE_ENOUGH = 0.05
"""A plan is taken without a look at faster ones if it leaves less than this share of what a budget allows above the
lowest peak."""

WASTED = 0.1
"""If more than this share is left, plans are looked at whose replay is under the budget though they are predicted to be
over it: predictions are by the misses of others, and one of those may have had nothing to do with this plan."""

ANOTHER = 0.01
"""Plans whose replayed peaks are less than this share apart are taken to become code that is wrong in the same way."""

WORTH_A_LOOK = 0.02
"""Other plans than the lowest are not looked at for less than this share of its peak. In a U-Net the look at one whose
replay was 1.3% below the code of the lowest took 15 of the 64 s of a first step; in three networks none was lower."""

MISSES = 3
"""After so many plans that were predicted to fit and did not, predictions are no guide: the rest is halved instead."""


@dataclass(frozen=True)
class Aim:
    """What one graph is asked for where several share a budget.

    Attributes:
        peak_bytes: the peak that its plan should have at most.
        saved_bytes: what its plan may save at most; None for any.
        most_bytes: where no plan has such a peak the lowest one is taken, unless even that is over this many bytes.
        sizes: names and numbers of the symbolic sizes to plan for; empty for those with which the graph was traced.
        place: the very plan of the frontier to take, whatever its peak.
        ratios: what to multiply the prices of ops with, by their names (:mod:`graphremat.passes.attribute`).
    """

    peak_bytes: int
    saved_bytes: int | None = None
    most_bytes: int | None = None
    sizes: tuple[tuple[str, int], ...] = ()
    place: int | None = None
    ratios: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Choice:
    """The plan that was taken and every true peak that was looked at.

    ``fits`` is False only for the lowest plan, taken although it is over the budget. ``lowest_bytes`` and
    ``fastest_bytes`` are the ends of the range, true peaks where these were looked at and predicted ones elsewhere;
    None where they were not needed.
    """

    place: int
    budget_bytes: int | None
    fits: bool
    true_bytes: dict[int, int]
    lowest_bytes: int | None = None
    fastest_bytes: int | None = None


class _Truths:
    """True peaks by place, each found once, and predictions from them."""

    def __init__(self, replayed: Sequence[int], truth: Callable[[int], int], fixed_bytes: int) -> None:
        self.replayed = replayed
        self.known: dict[int, int] = {}
        self._truth = truth
        self._fixed = fixed_bytes

    def __call__(self, place: int) -> int:
        if place not in self.known:
            self.known[place] = self._truth(place)
        return self.known[place]

    def predicted(self, place: int) -> float:
        """The replay, scaled by how far replay and truth lie apart at the nearest known places on both sides."""
        if place in self.known:
            return self.known[place]
        below = [p for p in self.known if p < place]
        above = [p for p in self.known if p > place]
        if below and above:
            left, right = max(below), min(above)
            share = (place - left) / (right - left)
            ratio = self._ratio(left) * (1 - share) + self._ratio(right) * share
        elif below or above:
            ratio = self._ratio(max(below) if below else min(above))
        else:
            ratio = 1.0
        return self._fixed + (self.replayed[place] - self._fixed) * ratio

    def _ratio(self, place: int) -> float:
        planned = self.replayed[place] - self._fixed
        return (self.known[place] - self._fixed) / planned if planned > 0 else 1.0


def choose(
    replayed: Sequence[int],
    truth: Callable[[int], int],
    budget: Budget,
    *,
    fixed_bytes: int = 0,
    most: int = 8,
) -> Choice:
    """Take the fastest plan whose true peak is under the budget.

    Args:
        replayed: replayed peaks in bytes, from the fastest plan to the lowest.
        truth: the true peak of the plan at a place; asked at most about ``most`` times, and once where the replays are
            right.
        budget: bytes as int; None for the fastest plan; a float in [0, 1] between the peaks of the lowest plan and of
            the fastest, which are not looked at for that: only the plan at that fraction of the replays is, and the
            range is corrected by what it takes. At 0.0 a few more are looked at if the lowest takes more than replayed.
        fixed_bytes: bytes of inputs, which are the same in replay and truth.
        most: how often ``truth`` may be asked.
    """
    truths = _Truths(replayed, truth, fixed_bytes)
    if budget is None:
        return Choice(0, None, True, truths.known, fastest_bytes=truths(0))
    if isinstance(budget, float):
        return _at_fraction(truths, budget, most)
    place = _search(truths, budget, most)
    if place is not None:
        return Choice(place, budget, True, truths.known)
    place = min(truths.known, key=lambda p: (truths.known[p], p))
    return Choice(place, budget, False, truths.known, lowest_bytes=truths.known[place])


def _at_fraction(truths: _Truths, fraction: float, most: int) -> Choice:
    """The plan at a fraction of the range of replays, and that fraction of the range of true peaks as it then looks."""
    replayed, last = truths.replayed, len(truths.replayed) - 1
    limit = replayed[last] + round(fraction * (replayed[0] - replayed[last]))
    place = next(p for p, size in enumerate(replayed) if size <= limit)
    lowest = last
    if fraction == 0.0:
        place = lowest = _lowest(truths, min(most, MISSES))
    true = truths(place)
    low, high = (round(truths.predicted(p)) for p in (lowest, 0))
    return Choice(
        place, max(true, low + round(fraction * (high - low))), True, truths.known, min(low, high), high
    )


def _lowest(truths: _Truths, most: int) -> int:
    """The place of the lowest true peak among a few: the last, and where its code takes more than the replay says,
    those before it whose replays are well below that, if they are not nearly the same plan."""
    best = len(truths.replayed) - 1
    truths(best)
    for place in reversed(range(best)):
        if len(truths.known) >= most or truths.replayed[place] > (1 - WORTH_A_LOOK) * truths.known[best]:
            break
        tried = max(truths.replayed[p] for p in truths.known)
        if truths.replayed[place] > (1 + ANOTHER) * tried and truths(place) < truths.known[best]:
            best = place
    return best


def _search(truths: _Truths, limit: int, most: int) -> int | None:
    """The first place whose true peak is at most ``limit``, as far as ``most`` questions tell."""
    fits: int | None = None
    over, last = -1, len(truths.replayed) - 1
    allowed = limit - truths.replayed[last]
    while True:
        left = 0 if fits is None else limit - truths.known[fits]
        if fits is not None and left <= CLOSE_ENOUGH * allowed:
            return fits
        places = range(over + 1, last + 1 if fits is None else fits)
        promising = next((p for p in places if truths.predicted(p) <= limit), None)
        if promising is None and fits is not None:
            hopeful = [p for p in places if truths.replayed[p] <= limit]
            if not hopeful or left <= WASTED * allowed:
                return fits
            promising = hopeful[len(hopeful) // 2]
        elif promising is None:
            if not places:
                return None
            promising = last
        if fits is None and len(truths.known) >= MISSES:
            promising = max(promising, (over + 1 + last) // 2)
        if len(truths.known) >= most - (fits is None):
            if fits is not None:
                return fits
            promising = last
        if truths(promising) <= limit:
            fits = promising
        elif promising == last:
            return None
        else:
            over = promising
