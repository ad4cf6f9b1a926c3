"""What others would do to a step, by the same replay: nothing, checkpoints around blocks, torch's own memory budget."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

from graphremat.errors import OptionError
from graphremat.forecast import Forecast, ForecastPoint, plan, point_of_run
from graphremat.passes.baselines import save_everything
from graphremat.passes.blocks import checkpoint_blocks, find_blocks
from graphremat.passes.frontier import judge
from graphremat.passes.plan import Plan
from graphremat.passes.schedule import ScheduleError
from graphremat.units import format_bytes

TORCH_BUDGETS = (0.75, 0.5, 0.25)
"""Values of torch's ``activation_memory_budget`` that are looked at where nothing is said."""
EVERY_BLOCKS = (1, 2, 4)
"""Numbers of blocks that are wrapped in one checkpoint where nothing is said."""


@dataclass(frozen=True)
class Rival:
    """What one way of doing it takes, and our plans beside it.

    Attributes:
        name: what is done.
        point: its peak and seconds.
        at_its_peak: our fastest plan whose peak is no higher; None where there is none.
        at_its_time: our plan of the lowest peak that takes no longer; None where there is none.
    """

    name: str
    point: ForecastPoint
    at_its_peak: ForecastPoint | None
    at_its_time: ForecastPoint | None


@dataclass(frozen=True, eq=False)
class Comparison:
    """Everybody's plans for one step; ``blocks`` is how many blocks were found to wrap, ``left_out`` names what the
    replay cannot follow: a plan that makes again what must not be."""

    forecast: Forecast
    blocks: int
    rivals: tuple[Rival, ...]
    left_out: tuple[str, ...]

    def to_json(self) -> str:
        """One JSON object."""
        told = {
            "device": self.forecast.device.name,
            "blocks": self.blocks,
            "rivals": list(map(asdict, self.rivals)),
            "left_out": self.left_out,
        }
        return json.dumps(told, indent=2)

    def table(self) -> Table:
        """One line for each way, with our plans at the same peak and at the same time."""
        table = Table(
            "", "peak", "step", "our step", "at a peak of", "our peak", "in a step of",
            box=None, header_style="bold",
        )  # fmt: skip
        for rival in self.rivals:
            faster, lower = rival.at_its_peak, rival.at_its_time
            table.add_row(
                rival.name,
                format_bytes(rival.point.peak_bytes),
                _milliseconds(rival.point.step_seconds),
                _milliseconds(faster.step_seconds) if faster else "none",
                format_bytes(faster.peak_bytes) if faster else "",
                format_bytes(lower.peak_bytes) if lower else "none",
                _milliseconds(lower.step_seconds) if lower else "",
            )
        return table

    def __str__(self) -> str:
        console = Console(width=120)
        with console.capture() as captured:
            console.print(self.table())
            if self.left_out:
                console.print(f"not to be followed here: {', '.join(self.left_out)}", highlight=False)
        return captured.get()


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms"


def compare(
    model: nn.Module | Callable[[], Any],
    inputs: Sequence[Any] | Mapping[str, Any] | Callable[[], Any] = (),
    *,
    torch_budgets: Sequence[float] = TORCH_BUDGETS,
    every_blocks: Sequence[int] = EVERY_BLOCKS,
    **how: Any,
) -> Comparison:
    """Predict what others would do to a step: with every value saved, as ``torch.compile`` does it by itself, with a
    checkpoint around every so many blocks, and under values of torch's ``activation_memory_budget``.

    Args:
        model, inputs: as for :func:`graphremat.plan`.
        torch_budgets: between 0 and 1.
        every_blocks: how many blocks (entries of lists of modules) are wrapped together.
        how: the other keywords of :func:`graphremat.plan`, but ``code``: every plan is judged by its replay.

    Raises:
        OptionError: a budget or a number of blocks that is none, or as :func:`graphremat.plan`.
        PlanningError: as :func:`graphremat.plan`.
    """
    if not all(0 <= budget < 1 for budget in torch_budgets):
        raise OptionError(f"torch_budgets={tuple(torch_budgets)}: each is at least 0 and below 1")
    if not all(every >= 1 for every in every_blocks):
        raise OptionError(f"every_blocks={tuple(every_blocks)}: each is at least 1")
    forecast = plan(model, inputs, torch_budgets=torch_budgets, code=False, **how)
    return compared(forecast, every_blocks)


def compared(forecast: Forecast, every_blocks: Sequence[int] = EVERY_BLOCKS) -> Comparison:
    """The comparison for a step that is planned already; torch's budgets are those that were planned with it."""
    problem = forecast.problem
    (everything,) = save_everything(problem)
    plans: dict[str, Plan | None] = {
        "every value saved": everything.plan,
        "torch.compile": forecast.torchs_plan,
    }
    blocks = find_blocks(problem)
    outside = (forecast.torchs_plan or everything.plan).saved
    for every in every_blocks if len(blocks) else ():
        name = "a checkpoint for each block" if every == 1 else f"a checkpoint for {every} blocks"
        try:
            plans[name] = checkpoint_blocks(problem, blocks, every, outside)
        except ScheduleError:
            plans[name] = None
    plans |= {f"activation_memory_budget={value}": found for value, found in forecast.torchs_under.items()}

    def rival(name: str, planned: Plan) -> Rival:
        point = point_of_run(judge(problem, planned).replay, forecast.outside_bytes)
        return Rival(name, point, fastest_within(forecast, point.peak_bytes), lowest_within(forecast, point))

    rivals = tuple(rival(name, planned) for name, planned in plans.items() if planned is not None)
    left_out = tuple(name for name, planned in plans.items() if planned is None)
    return Comparison(forecast, len(blocks), rivals, left_out)


def fastest_within(forecast: Forecast, peak_bytes: int) -> ForecastPoint | None:
    """Our fastest plan with a peak of at most so many bytes. It need not be the first: torch's own plan leads the
    points, and one of a lower peak may be a little faster."""
    under = [point for point in forecast.points if point.peak_bytes <= peak_bytes]
    return min(under, key=lambda point: point.step_seconds, default=None)


def lowest_within(forecast: Forecast, other: ForecastPoint) -> ForecastPoint | None:
    """Our plan of the lowest peak that takes no longer than another."""
    return next(
        (point for point in reversed(forecast.points) if point.step_seconds <= other.step_seconds), None
    )
