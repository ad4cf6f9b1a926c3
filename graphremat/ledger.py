"""Several graphs under one budget: what earlier calls saved counts in later ones.

A model with graph breaks, or several compiled modules, is many graphs, compiled one by one and each when it is first
called. For budgets in bytes the ledger knows which calls wait for their backward and what they hold. A graph that is
compiled while others wait gets what they leave of the budget. Once a step is over, all its calls are known, and
:func:`graphremat.share.share` divides the budget: graphs whose plan changes are compiled again at their next call.

In the first step, before that is known, a graph that another will follow (a graph break ends it) takes a plan of at
most ``FIRST_SHARE`` of the budget where it has one. A graph that is called while others hold more than that share, or
so much that it does not fit, is compiled again to save least.

What it relies on of torch: the node behind an output of a compiled function holds the saved tensors until its backward
has run, and lets them go then; see :func:`graphremat.passes.torch_private.compiled_node`.
"""

import logging
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from graphremat.errors import BudgetInfeasible
from graphremat.passes import torch_private as private
from graphremat.region import FIRST_SHARE, Region, Sizes, Storages, address_of, static_of, tensors_of
from graphremat.share import Alternative, Call, peaks, rooms, share
from graphremat.units import format_bytes

log = logging.getLogger("graphremat")

MOST_CALLS = 10_000
"""A step of more calls is not divided."""
MOST_ROUNDS = 3
"""How often the budget of a step is divided anew while its calls stay the same."""
LEAST_GAIN = 0.02
"""Share of a step's seconds that dividing anew must gain, by the model, to be worth compiling again."""


@dataclass(eq=False)
class _Waiting:
    """A call that waits for its backward."""

    region: Region
    node: "weakref.ref[Any]"
    saved_bytes: int
    """By the plan that it ran with."""
    static: Storages
    """Its parameters and buffers."""
    held: Storages | None = None

    def storages(self) -> Storages:
        """What it holds, parameters and buffers left out."""
        if self.held is None:
            node = self.node()
            saved = private.saved_tensors(node) if node is not None else ()
            self.held = {address_of(t): t.untyped_storage().nbytes() for t in saved}
            for address in self.static:
                self.held.pop(address, None)
        return self.held


@dataclass(eq=False)
class _Made:
    """A call of the step at hand: what earlier ones held when it began, and what of it their plans account for.

    Modules that are compiled one by one share a graph where they are alike, but not their parameters.
    """

    region: Region
    static: Storages
    """Its parameters and buffers."""
    gradients: Storages
    """Bytes of the gradients of those, under their addresses."""
    held_bytes: int = 0
    saved_bytes: int = 0


@dataclass(eq=False)
class Ledger:
    """The calls of one process that wait for their backward, and those of the step that is not over."""

    waiting: list[_Waiting] = field(default_factory=list)
    step: list[_Made] = field(default_factory=list)
    rounds: dict[tuple[tuple[int, Sizes], ...], int] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def held_bytes(self, own: Iterable[int] = ()) -> int:
        """What the waiting calls and their parameters take, less what lies at the addresses in ``own``."""
        with self.lock:
            union: Storages = {}
            for call in self.waiting:
                union.update(call.storages())
                union.update(call.static)
            without = set(own)
            return sum(size for address, size in union.items() if address not in without)

    def begin(self, region: Region, arguments: Sequence[Any]) -> _Made:
        """A call begins. If it does not fit beside what others hold, its graph will be compiled to save least,
        unless the budget has been divided with all calls known. If its symbolic sizes are larger than all before and
        do not fit, it will be compiled for them."""
        with self.lock:
            made = _Made(region, *static_of(arguments))
            grown = region.note_sizes(arguments)
            if grown and region.peak_bytes > region.budget_bytes:
                region.ask_for_larger_sizes()
            if self.waiting:
                made.held_bytes = self.held_bytes(map(address_of, tensors_of(arguments)))
                made.saved_bytes = sum(call.saved_bytes for call in self.waiting)
                room = region.budget_bytes - made.held_bytes
                full = region.peak_bytes > room or made.held_bytes > FIRST_SHARE * region.budget_bytes
                if full and not (region.frugal or region.divided or region.aim):
                    region.ask(room, saved_bytes=0)
                    region.frugal = True
            if len(self.step) <= MOST_CALLS:
                self.step.append(made)
            return made

    def forget(self, made: _Made) -> None:
        """A call has no backward to wait for."""
        with self.lock:
            if made in self.step:
                self.step.remove(made)

    def wait(self, region: Region, made: _Made, arguments: Sequence[Any], out: Any) -> None:
        """A call is over and waits for its backward, until the tensors that it has saved are let go."""
        node = private.compiled_node(out)
        if node is None:
            self.forget(made)
            return
        call = _Waiting(region, weakref.ref(node), region.saved_bytes, made.static)
        with self.lock:
            self.waiting.append(call)
        weakref.finalize(node, self._close, call).atexit = False
        kept = {address_of(t) for t in (*tensors_of(arguments), *tensors_of(out))}
        own = next((t for t in private.saved_tensors(node) if address_of(t) not in kept), None)
        if own is not None:
            weakref.finalize(own, self._close, call).atexit = False

    def _close(self, call: _Waiting) -> None:
        with self.lock:
            if call not in self.waiting:
                return
            self.waiting.remove(call)
            if self.waiting:
                return
            step, self.step = self.step, []
        if 1 < len(step) <= MOST_CALLS:
            self._divide(step)

    def _divide(self, step: Sequence[_Made]) -> None:
        """All calls of a step are known: whoever should have another plan is compiled again at its next call."""
        regions = list(dict.fromkeys(made.region for made in step))
        key = tuple((made.region.number, made.region.sizes) for made in step)
        round_ = self.rounds.get(key, 0)
        if round_ >= MOST_ROUNDS:
            return
        cached = [region for region in regions if region.report is None and not region.planned]
        for region in cached:
            region.ask(region.budget_bytes, most_bytes=region.budget_bytes)
        if cached:
            return
        budget = min(region.budget_bytes for region in regions)
        calls = _calls(step)
        plans: dict[Any, list[Alternative]] = {region: region.alternatives() for region in regions}
        now: dict[Any, int] = {region: region.chosen for region in regions}
        best = share(calls, plans, budget)
        worst = max(peaks(calls, plans, now))
        if best is None:
            self.rounds[key] = MOST_ROUNDS
            _take_the_lowest(regions, calls, plans, budget)
            return
        if worst <= budget and _seconds(calls, plans, best) >= (1 - LEAST_GAIN) * _seconds(calls, plans, now):
            self.rounds[key] = (
                MOST_ROUNDS  # settled: the next step, of the same calls and plans, would be no other
            )
            return
        self.rounds[key] = round_ + 1
        changed = [region for region in regions if best[region] != now[region]]
        for region in regions:
            region.divided = True
        room = rooms(calls, plans, best, budget)
        for region in changed:
            region.ask(room[region], plans[region][best[region]].saved_bytes)
        log.info(
            "%d calls of %d graphs share %s: the worst moment was %s; %d graphs are compiled again",
            len(step),
            len(regions),
            format_bytes(budget),
            format_bytes(worst),
            len(changed),
        )


def _calls(step: Sequence[_Made]) -> list[Call]:
    """The calls of a step, each with what is alive beside its graph's own plan and what the plans of earlier ones save:
    parameters and buffers of other graphs, the gradients that are there when its backward runs, and what is kept for
    other reasons (an input that was saved)."""
    static: Storages = {}
    for made in step:
        static.update(made.static)
    found = []
    earlier: Storages = {}
    for place, made in enumerate(step):
        gradients: Storages = {}
        for after in step[place + 1 :]:
            gradients.update(after.gradients)
        kept = made.held_bytes - _bytes_without(earlier, made.static) - made.saved_bytes
        outside = _bytes_without(static, made.static) + _bytes_without(gradients, made.gradients)
        found.append(Call(made.region, outside + max(0, kept)))
        earlier.update(made.static)
    return found


def _bytes_without(storages: Storages, others: Storages) -> int:
    return sum(size for address, size in storages.items() if address not in others)


def _seconds(
    calls: Sequence[Call], plans: Mapping[Any, Sequence[Alternative]], chosen: Mapping[Any, int]
) -> float:
    return sum(plans[call.graph][chosen[call.graph]].seconds for call in calls)


def _take_the_lowest(
    regions: Sequence[Region], calls: Sequence[Call], plans: Mapping[Any, list[Alternative]], budget: int
) -> None:
    """No division keeps the budget: the first graph raises at its next call, or all take their lowest plan."""

    def least(of: Callable[[Alternative], tuple[int, int]]) -> dict[Any, int]:
        return {r: min(range(len(plans[r])), key=lambda k: of(plans[r][k])) for r in regions}

    ways = least(lambda a: (a.peak_bytes, a.saved_bytes)), least(lambda a: (a.saved_bytes, a.peak_bytes))
    peak, lowest = min(((max(peaks(calls, plans, way)), way) for way in ways), key=lambda found: found[0])
    message = (
        f"no plans keep the {len(calls)} calls of {len(regions)} compiled graphs that make up a step under "
        f"{format_bytes(budget)} together: the lowest peak found is {format_bytes(peak)}. What would help: a smaller "
        "batch or sequence, or fewer graph breaks, since what one graph hands to the next cannot be recomputed. "
        "on_infeasible='min_peak' takes the lowest peak."
    )
    if not all(region.lowest_if_infeasible for region in regions):
        regions[0].over = BudgetInfeasible(message, budget_bytes=budget, lowest_peak_bytes=peak)
        return
    log.warning("on_infeasible='min_peak': %s", message)
    for region in regions:
        region.divided = True
        if region.chosen != lowest[region]:
            plan = plans[region][lowest[region]]
            region.ask(plan.peak_bytes, plan.saved_bytes)


LEDGER = Ledger()
"""That of this process."""
