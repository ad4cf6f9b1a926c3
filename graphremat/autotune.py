"""Choosing by the clock: the most promising plans under the budget take turns in the first steps, the fastest stays.

Every step that is timed is a real one: whichever plan runs it, its gradients are right, so no step is lost, and nothing
is held in memory beside what training holds. A plan is compiled when its first turn comes. All plans that take turns
have peaks no higher than the one that the model would choose, and save no more, so the budget is kept all along.

What it relies on of torch: hooks before and after the node of a compiled function run around its backward.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from graphremat import report as reporting
from graphremat.passes import torch_private as private
from graphremat.region import Compiled, tensors_of
from graphremat.report import FrontierPoint, Report, TimedPlan

log = logging.getLogger("graphremat")

ROUNDS = 3
"""Timed steps of each plan, after one that is not timed, since it compiles the backward."""
MOST_SLOWER = 1.15
"""A plan whose step is so many times the chosen one's, by the model, is not tried."""
LEAST_DIFFERENCE = 0.01
"""Share by which the peaks of two plans that are tried differ: nearer ones are the same plan for the clock."""
LEAST_GAIN = 0.01
"""Share of a step by which another plan must be faster than the model's choice to take its place."""


@dataclass(eq=False)
class _Contender:
    place: int
    compiled: Compiled | None
    turns: int = 0
    seconds: list[float] = field(default_factory=list)
    """Forward and backward of each timed step."""


class Autotuned:
    """Callable as the compiled graph is."""

    def __init__(
        self,
        first: Compiled,
        compile_at: Callable[[Sequence[Any], int], Compiled],
        most: int,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        assert first.report is not None
        self._first = first
        self._compile_at = compile_at
        self._clock = clock
        self._contenders = [_Contender(first.report.chosen, first)]
        self._contenders += [_Contender(place, None) for place in promising(first.report, most - 1)]
        self._kept: Compiled | None = None if len(self._contenders) > 1 else first

    def __call__(self, *arguments: Any) -> Any:
        if self._kept is None:
            waiting = [c for c in self._contenders if len(c.seconds) < ROUNDS]
            if not waiting:
                self._settle()
        if self._kept is not None:
            return self._kept.run(*arguments)
        contender = min(waiting, key=lambda c: (c.turns, c.place))
        run = self._compiled(contender, arguments)
        if run is None:
            return self(*arguments)
        contender.turns += 1
        return self._timed(contender, run, arguments)

    def _compiled(self, contender: _Contender, arguments: Sequence[Any]) -> Callable[..., Any] | None:
        """None if it cannot be compiled, or is over what it was to keep: then it is out."""
        if contender.compiled is None:
            assert self._first.report is not None
            most = self._first.report.generated_peak_bytes
            try:
                compiled = self._compile_at(arguments, contender.place)
            except Exception as error:
                log.warning("plan %d cannot be tried: %s", contender.place, error)
                log.debug("compiling it failed", exc_info=error)
                compiled = None
            if compiled is None or compiled.report is None or compiled.report.generated_peak_bytes > most:
                self._contenders.remove(contender)
                return None
            contender.compiled = compiled
        return contender.compiled.run

    def _timed(self, contender: _Contender, run: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        wait = waiting_for(arguments)
        clock, counted = self._clock, contender.turns > 1
        wait()
        started = clock()
        out = run(*arguments)
        wait()
        forward = clock() - started
        node = private.compiled_node(out)
        if node is None:  # no backward will come: nothing to choose by
            contender.turns -= 1
            return out
        begun: list[float] = []

        def before(_: Any) -> None:
            wait()
            begun.append(clock())

        def after(*_: Any) -> None:
            wait()
            if counted and begun and len(contender.seconds) < ROUNDS:
                contender.seconds.append(forward + clock() - begun.pop())

        node.register_prehook(before)
        node.register_hook(after)
        return out

    def _settle(self) -> None:
        """The fastest stays; the model's choice does unless another one is faster by more than nothing."""
        best = {c.place: min(c.seconds) for c in self._contenders}
        chosen = self._contenders[0]
        fastest = min(self._contenders, key=lambda c: best[c.place])
        if best[fastest.place] > (1 - LEAST_GAIN) * best[chosen.place]:
            fastest = chosen
        kept = fastest.compiled
        assert kept is not None
        assert kept.report is not None
        assert self._first.report is not None
        points = self._first.report.frontier
        timed = tuple(
            TimedPlan(place, points[place].step_seconds, seconds) for place, seconds in best.items()
        )
        made = replace(kept.report, budget_bytes=self._first.report.budget_bytes, timed_plans=timed)
        log.info("of %d plans, number %d is the fastest by the clock: %s", len(timed), fastest.place, made)
        reporting.record(made)
        self._kept = kept
        self._contenders.clear()


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


def waiting_for(arguments: Sequence[Any]) -> Callable[[], None]:
    """What waits until the device of the arguments has done its work; on a CPU there is nothing to wait for."""
    devices = {t.device for t in tensors_of(list(arguments)) if t.device.type != "cpu"}

    def wait() -> None:
        for device in devices:
            torch.accelerator.synchronize(device)

    return wait
