"""The largest batch that a device holds, and the batch that is trained fastest, found by planning.

The lowest peak of a step is nearly a straight line in the batch, so few batches have to be planned: two to draw the
line, and those on both sides of where it meets the device's memory.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from graphremat.errors import BudgetInfeasible, OptionError
from graphremat.forecast import Forecast, find_rates, parse_allowed, plan
from graphremat.passes.devices import Device
from graphremat.units import format_bytes

MOST = 1 << 20
"""No larger batch is looked at."""
STRETCH = 16
"""The next batch is at most this many times the largest one that is known to fit."""


@dataclass(frozen=True)
class Batches:
    """What was found.

    Attributes:
        device: the device that is meant.
        budget_bytes: the memory that a step may take there.
        largest: the largest batch that fits under some plan.
        without_recomputation: the largest that fits under the fastest plan; 0 where none does.
        best: of the batches that were planned, the one with the most examples a second.
        forecasts: every batch that was planned and fits, under the fastest plan that fits.
    """

    device: Device
    budget_bytes: int
    largest: int
    without_recomputation: int
    best: int
    forecasts: Mapping[int, Forecast]

    def examples_per_second(self, batch: int) -> float:
        """By the device's prices, of forward and backward alone."""
        return batch / self.forecasts[batch].step_seconds

    def to_json(self) -> str:
        """One JSON object."""
        planned = [
            {
                "batch": batch,
                "peak_bytes": found.peak_bytes,
                "step_seconds": found.step_seconds,
                "recompute_seconds": found.points[found.chosen].recompute_seconds,
                "examples_per_second": self.examples_per_second(batch),
            }
            for batch, found in sorted(self.forecasts.items())
        ]
        told = {name: getattr(self, name) for name in ("largest", "without_recomputation", "best")}
        return json.dumps(
            {"device": self.device.name, "budget_bytes": self.budget_bytes, **told, "planned": planned},
            indent=2,
        )

    def __str__(self) -> str:
        lines = [
            f"{self.device.name} ({format_bytes(self.budget_bytes)} for a step) holds a batch of {self.largest}; "
            f"{self.without_recomputation or 'none'} under the fastest plan. Most examples a second: a batch of "
            f"{self.best}.",
            f"{'batch':>8} {'peak':>12} {'step':>14} {'of it again':>14} {'examples/s':>12}",
        ]
        for batch, found in sorted(self.forecasts.items()):
            again = found.points[found.chosen].recompute_seconds
            lines.append(
                f"{batch:>8} {format_bytes(found.peak_bytes):>12} {found.step_seconds * 1e3:>11,.2f} ms "
                f"{again * 1e3:>11,.2f} ms {self.examples_per_second(batch):>12,.2f}"
            )
        return "\n".join(lines)


def max_batch(
    factory: Callable[[int], Any],
    device: str | None = None,
    *,
    budget: int | str = "auto",
    **how: Any,
) -> Batches:
    """The largest batch whose step fits, by planning a few.

    Args:
        factory: called with a batch where tensors have no data; returns the model and its inputs. With a sequence
            length or any other size instead of the batch, that is what is maximised.
        device: as for :func:`graphremat.plan`.
        budget: bytes, or ``"auto"`` for the device's memory, less a reserve on a GPU.
        how: the other keywords of :func:`graphremat.plan`, but ``code``: every plan is judged by its replay.

    Raises:
        BudgetInfeasible: not even a batch of 1 fits.
        OptionError, PlanningError: as :func:`graphremat.plan`.
    """
    rates = find_rates(device)
    allowed = parse_allowed(budget, rates)
    if not isinstance(allowed, int):
        raise OptionError(f"budget={budget!r} is no number of bytes: write it like 20GiB, or 'auto'")
    known: dict[int, Forecast] = {}

    def lowest(batch: int) -> int:
        if batch not in known:
            known[batch] = plan(lambda: factory(batch), device=device, code=False, **how)
        return known[batch].points[-1].peak_bytes

    def fastest(batch: int) -> int:
        lowest(batch)
        return known[batch].points[0].peak_bytes

    if lowest(1) > allowed:
        raise BudgetInfeasible(
            f"a batch of 1 takes at least {format_bytes(lowest(1))}, more than the {format_bytes(allowed)} that "
            f"{rates.name} has for a step",
            budget_bytes=allowed,
            lowest_peak_bytes=lowest(1),
            holders=known[1].holders,
        )
    largest = largest_within(lowest, allowed)
    without = largest_within(fastest, allowed, most=largest) if fastest(1) <= allowed else 0
    forecasts = {batch: found.within(allowed) for batch, found in known.items() if batch <= largest}
    fitting = {batch: found for batch, found in forecasts.items() if found is not None}
    best = max(fitting, key=lambda batch: (batch / fitting[batch].step_seconds, -batch))
    return Batches(rates, allowed, largest, without, best, fitting)


def largest_within(peak: Callable[[int], int], allowed: int, most: int = MOST) -> int:
    """The largest batch up to ``most`` whose peak is allowed, if peaks rise with the batch; that of 1 is."""
    below, fits, over = 0, 1, most + 1
    while over - fits > 1:
        if over > most and not below:
            batch = 2
        else:
            other = below if over > most else over
            slope = (peak(other) - peak(fits)) / (other - fits)
            batch = fits + int((allowed - peak(fits)) / slope) if slope > 0 else most
        batch = max(fits + 1, min(batch, over - 1, fits * STRETCH))
        if peak(batch) <= allowed:
            below, fits = fits, batch
        else:
            over = batch
    return fits
