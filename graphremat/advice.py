"""Whether a step needs recomputation at all, and what else would make it fit: each answer with a plan behind it."""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from graphremat.batches import max_batch
from graphremat.errors import BudgetInfeasible
from graphremat.forecast import Forecast, plan, usable_bytes
from graphremat.passes.devices import DEVICES, Device
from graphremat.units import format_bytes

COMFORTABLE = 0.9
"""A step is called comfortable when it takes no more than this share of what a device has for it; the rest is for what
a plan does not see (fragmentation, longer batches)."""
LORA_RANK = 16
"""Rank of the adapters that are planned as an alternative."""
SLIGHT = 0.1
"""Recomputation of up to this share of the fastest step is called slight."""


def _per_cent(share: float) -> str:
    """A plan below torch's own may be a little faster, less than prices tell apart: that is no more time."""
    return f"{share:.1%}" if share > 0 else "no"


@dataclass(frozen=True)
class Alternative:
    """Another way, and what it comes to on a device; seconds are None where they were not planned for it."""

    what: str
    device: str
    peak_bytes: int
    step_seconds: float | None
    fits: bool


@dataclass(frozen=True, eq=False)
class Advice:
    """The answer.

    Attributes:
        forecast: the step, under the fastest plan that fits, or that of the lowest peak where none does.
        verdict: ``"comfortable"``, ``"fits"``, ``"slight recomputation"``, ``"heavy recomputation"`` or
            ``"does not fit"``.
        slowdown: seconds of that plan over those of the fastest, less one.
        alternatives: what else there is; empty where the step is comfortable.
    """

    forecast: Forecast
    verdict: str
    slowdown: float
    alternatives: tuple[Alternative, ...]

    @property
    def memory_budget(self) -> int:
        """The option for the backend: bytes without the state of the optimizer and earlier gradients, which it cannot
        see."""
        return self.forecast.peak_bytes - self.forecast.optimizer_bytes - self.forecast.accumulated_bytes

    def to_json(self) -> str:
        """One JSON object."""
        chosen = self.forecast.points[self.forecast.chosen]
        told = {
            "device": self.forecast.device.name,
            "usable_bytes": usable_bytes(self.forecast.device),
            "verdict": self.verdict,
            "slowdown": self.slowdown,
            "memory_budget": self.memory_budget,
            "fastest": asdict(self.forecast.points[0]),
            "chosen": asdict(chosen),
            "lowest": asdict(self.forecast.points[-1]),
            "alternatives": list(map(asdict, self.alternatives)),
        }
        return json.dumps(told, indent=2)

    def __str__(self) -> str:
        found, room = self.forecast, usable_bytes(self.forecast.device)
        fastest, lowest = found.points[0], found.points[-1]
        where = f"{found.device.name}, which has {format_bytes(room)} for a step"
        taken = f"{format_bytes(fastest.peak_bytes)} ({fastest.peak_bytes / room:.0%})"
        words = {
            "comfortable": f"No recomputation is needed: the fastest plan takes {taken} of {where}.",
            "fits": f"No recomputation is needed, but it is tight: the fastest plan takes {taken} of {where}.",
            "does not fit": f"No plan fits {where}: the fastest takes {format_bytes(fastest.peak_bytes)}, the lowest "
            f"{format_bytes(lowest.peak_bytes)}.",
        }
        told = words.get(self.verdict) or (
            f"Recomputation is needed: the fastest plan takes {format_bytes(fastest.peak_bytes)} on {where}. With "
            f"memory_budget={self.memory_budget} the step takes {format_bytes(found.peak_bytes)} and "
            f"{_per_cent(self.slowdown)} more time."
        )
        lines = [told]
        for other in self.alternatives:
            verb = "fits" if other.fits else "does not fit"
            time = "" if other.step_seconds is None else f" in {other.step_seconds * 1e3:,.1f} ms a step"
            lines.append(f"- {other.what}: {format_bytes(other.peak_bytes)}{time}; {verb} {other.device}")
        return "\n".join(lines)


def advise(
    model: nn.Module | Callable[..., Any],
    inputs: Sequence[Any] | Mapping[str, Any] | Callable[[], Any] = (),
    *,
    device: str | None = None,
    **how: Any,
) -> Advice:
    """Say whether a step needs recomputation on a device, how much, and what else would help.

    Where the step is not comfortable, the smallest device of the table that is, and where it does not fit the
    smallest that it fits, are named; for a model made by a function adapters are planned as well, and a smaller batch
    if the function takes one (as :func:`graphremat.max_batch` calls it).

    Args:
        model, inputs: as for :func:`graphremat.plan`.
        device: a name in :data:`graphremat.passes.devices.DEVICES`; None for this machine's CPU.
        how: the keywords of :func:`graphremat.plan`, but for the budget and ``code``: what is asked for are replays.

    Raises:
        OptionError, PlanningError: as :func:`graphremat.plan`.
    """
    found = plan(model, inputs, device=device, code=False, **how)
    room = usable_bytes(found.device)
    chosen = _best(found, room)
    slowdown = chosen.step_seconds / found.points[0].step_seconds - 1 if found.points[0].step_seconds else 0.0
    verdict = _verdict(found.points[0].peak_bytes, chosen, room, slowdown)
    if verdict == "comfortable":
        return Advice(chosen, verdict, slowdown, ())
    others = [] if verdict == "fits" else _other_steps(model, inputs, found.device, device, how)
    return Advice(chosen, verdict, slowdown, (*others, *_other_devices(found)))


def _verdict(fastest_bytes: int, chosen: Forecast, room: int, slowdown: float) -> str:
    if fastest_bytes <= COMFORTABLE * room:
        return "comfortable"
    if fastest_bytes <= room:
        return "fits"
    if chosen.peak_bytes > room:
        return "does not fit"
    return "slight recomputation" if slowdown <= SLIGHT else "heavy recomputation"


def _other_steps(
    model: Any, inputs: Any, rates: Device, device: str | None, how: Mapping[str, Any]
) -> list[Alternative]:
    """Adapters, and the largest batch that fits, where the model is made by a function."""
    if isinstance(model, nn.Module):
        return []
    room = usable_bytes(rates)
    found = []

    def add(what: str, planned: Forecast) -> None:
        peak_bytes = planned.peak_bytes
        found.append(Alternative(what, rates.name, peak_bytes, planned.step_seconds, peak_bytes <= room))

    if how.get("lora") is None:
        adapted = plan(model, inputs, device=device, code=False, **{**how, "lora": LORA_RANK})
        add(f"adapters of rank {LORA_RANK}", _best(adapted, room))
    if takes_batch(model) and not inputs:
        try:
            batches = max_batch(model, device, **how)
        except BudgetInfeasible:
            return found
        batch = batches.without_recomputation or batches.largest
        words = "without recomputation" if batches.without_recomputation else "recomputing"
        add(f"a batch of {batch}, {words}", batches.forecasts[batch])
    return found


def _best(found: Forecast, room: int) -> Forecast:
    """Under the fastest plan that fits, or that of the lowest peak."""
    best = found.within(room) or found.within(found.points[-1].peak_bytes)
    assert best is not None
    return best


def _other_devices(found: Forecast) -> list[Alternative]:
    """The smallest devices that the lowest and the fastest plan fit, where they are larger than this one."""
    alternatives = []
    for place, words in ((-1, "recomputing"), (0, "without recomputation")):
        point = found.points[place]
        larger = (d for d in DEVICES.values() if usable_bytes(d) >= point.peak_bytes)
        smallest = min(larger, key=lambda d: d.memory_bytes, default=None)
        if smallest is not None and smallest.memory_bytes > found.device.memory_bytes:
            what = f"on a larger device, {words}"
            alternatives.append(Alternative(what, smallest.name, point.peak_bytes, None, True))
    return alternatives


def takes_batch(factory: Callable[..., Any]) -> bool:
    """Whether the first parameter of a factory is called ``batch``."""
    try:
        return next(iter(inspect.signature(factory).parameters), "") == "batch"
    except ValueError:  # of C, which tells nothing
        return False
