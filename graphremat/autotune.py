"""Choosing by the clock: the most promising plans under the budget take turns in the first steps, the fastest stays.

Every step that is timed is a real one: whichever plan runs it, its gradients are right, so no step is lost, and nothing
is held in memory beside what training holds. A plan is compiled when its first turn comes. All plans that take turns
have peaks no higher than the one that the model would choose, and save no more, or are planned for the same budget, so
that is kept all along.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from graphremat import report as reporting
from graphremat.region import Compiled
from graphremat.report import FrontierPoint, Report, TimedPlan
from graphremat.watch import run_watched

log = logging.getLogger("graphremat")

ROUNDS = 3
"""Timed steps of each plan, after one that is not timed, since it compiles the backward."""
MOST_SLOWER = 1.15
"""A plan whose step is so many times the chosen one's, by the model, is not tried."""
LEAST_DIFFERENCE = 0.01
"""Share by which the peaks of two plans that are tried differ: nearer ones are the same plan for the clock."""
LEAST_GAIN = 0.01
"""Share of a step by which another plan must be faster than the model's choice to take its place."""


Compile: TypeAlias = Callable[[Sequence[Any]], Compiled | None]
"""Compiles a plan for arguments like these; None where that is not worth a turn."""


@dataclass(eq=False)
class _Contender:
    compile: Compile
    compiled: Compiled | None = None
    turns: int = 0
    seconds: list[float] = field(default_factory=list)
    """Forward and backward of each timed step."""


class Autotuned:
    """Callable as the compiled graph is."""

    def __init__(
        self,
        first: Compiled,
        others: Sequence[Compile],
        *,
        most_bytes: int | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """``first`` is the one to beat; another may have a peak of ``most_bytes``, by default that of the first."""
        assert first.report is not None
        self._report = first.report
        self._most_bytes = first.report.generated_peak_bytes if most_bytes is None else most_bytes
        self._clock = clock
        self._contenders = [_Contender(lambda _: first, first), *map(_Contender, others)]
        self._kept: Compiled | None = first if not others else None

    def __call__(self, *arguments: Any) -> Any:
        if self._kept is None:
            waiting = [c for c in self._contenders if len(c.seconds) < ROUNDS]
            if not waiting or len(self._contenders) == 1:
                self._settle()
        if self._kept is not None:
            return self._kept.run(*arguments)
        contender = min(waiting, key=lambda c: c.turns)
        run = self._compiled(contender, arguments)
        if run is None:
            return self(*arguments)
        contender.turns += 1
        return self._timed(contender, run, arguments)

    def _compiled(self, contender: _Contender, arguments: Sequence[Any]) -> Callable[..., Any] | None:
        """None if it cannot be compiled, or is over what it was to keep: then it is out."""
        if contender.compiled is None:
            try:
                compiled = contender.compile(arguments)
            except Exception as error:
                log.warning("a plan cannot be tried: %s", error)
                log.debug("compiling it failed", exc_info=error)
                compiled = None
            report = compiled.report if compiled is not None else None
            if report is None or report.generated_peak_bytes > self._most_bytes:
                self._contenders.remove(contender)
                return None
            contender.compiled = compiled
        assert contender.compiled is not None
        return contender.compiled.run

    def _timed(self, contender: _Contender, run: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        counted = contender.turns > 1

        def ended(seconds: float) -> None:
            if counted and len(contender.seconds) < ROUNDS:
                contender.seconds.append(seconds)

        out, differentiates = run_watched(run, arguments, _Timing(self._clock, ended))
        if not differentiates:  # no backward will come: nothing to choose by
            contender.turns -= 1
        return out

    def _settle(self) -> None:
        """The fastest stays; the model's choice does unless another one is faster by more than nothing."""
        chosen, *others = self._contenders
        fastest = min(others, key=lambda c: min(c.seconds), default=chosen)
        if others and min(fastest.seconds) > (1 - LEAST_GAIN) * min(chosen.seconds):
            fastest = chosen
        timed = tuple(_timed_plan(c, kept=c is fastest) for c in self._contenders if others)
        kept = fastest.compiled
        assert kept is not None
        assert kept.report is not None
        made = replace(
            kept.report, budget_bytes=self._report.budget_bytes, timed_plans=timed, truth=self._report.truth
        )
        log.info("of %d plans, number %d is the fastest by the clock: %s", len(timed), made.chosen, made)
        reporting.record(made)
        self._kept = kept
        self._contenders.clear()


@dataclass(eq=False)
class _Timing:
    """Tells the seconds of forward and backward together, without what lies between them."""

    clock: Callable[[], float]
    ended: Callable[[float], None]
    _began: float = 0.0
    _forward: float = 0.0

    def forward_begins(self) -> None:
        self._began = self.clock()

    def forward_ends(self) -> None:
        self._forward = self.clock() - self._began

    def backward_begins(self) -> None:
        self._began = self.clock()

    def backward_ends(self) -> None:
        self.ended(self._forward + self.clock() - self._began)


def _timed_plan(contender: _Contender, *, kept: bool) -> TimedPlan:
    assert contender.compiled is not None
    report = contender.compiled.report
    assert report is not None
    return TimedPlan(report.chosen, report.corrected, report.step_seconds, min(contender.seconds), kept)


def promising(report: Report, most: int) -> list[int]:
    """Places of the plans behind the chosen one that might be faster in truth: no higher peak, no more saved, and not
    much slower by the model; the fastest by the model first."""
    if report.chosen >= len(report.frontier):
        return []
    chosen = report.frontier[report.chosen]

    def allowed(point: FrontierPoint) -> bool:
        return (
            point.planned_peak_bytes <= chosen.planned_peak_bytes
            and point.saved_bytes <= chosen.saved_bytes
            and point.step_seconds <= MOST_SLOWER * chosen.step_seconds
        )

    places = [k for k, point in enumerate(report.frontier) if k != report.chosen and allowed(point)]
    found: list[int] = []
    for place in sorted(places, key=lambda k: (report.frontier[k].step_seconds, k)):
        peaks = [report.frontier[k].planned_peak_bytes for k in (report.chosen, *found)]
        peak = report.frontier[place].planned_peak_bytes
        if len(found) < most and all(abs(peak - other) >= LEAST_DIFFERENCE * other for other in peaks):
            found.append(place)
    return found
