"""All plans of a step as a table: what each peak costs in time."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

from graphremat.forecast import Forecast, plan, usable_bytes
from graphremat.units import format_bytes


@dataclass(frozen=True, eq=False)
class StepFrontier:
    """The plans of a step, from the fastest to the one of lowest peak."""

    forecast: Forecast

    @property
    def fits(self) -> bool:
        """Whether any of the plans fits the device."""
        return self.forecast.points[-1].peak_bytes <= usable_bytes(self.forecast.device)

    def rows(self) -> list[dict[str, Any]]:
        """One mapping a plan: its point, the share of the fastest plan's peak that it takes, the share of that plan's
        seconds that it takes longer, and whether it fits the device."""
        points, room = self.forecast.points, usable_bytes(self.forecast.device)
        first = points[0]
        return [
            {
                **asdict(point),
                "peak_share": point.peak_bytes / first.peak_bytes,
                "slower": point.step_seconds / first.step_seconds - 1 if first.step_seconds else 0.0,
                "fits": point.peak_bytes <= room,
            }
            for point in points
        ]

    def to_json(self) -> str:
        """One JSON object."""
        device = self.forecast.device
        return json.dumps(
            {"device": device.name, "usable_bytes": usable_bytes(device), "plans": self.rows()}, indent=2
        )

    def __str__(self) -> str:
        table = Table("peak", "of it", "step", "slower", "saved", "fits", box=None, header_style="bold")
        for row in self.rows():
            table.add_row(
                format_bytes(int(row["peak_bytes"])),
                f"{row['peak_share']:.0%}",
                f"{row['step_seconds'] * 1e3:,.2f} ms",
                f"{row['slower']:.1%}",
                format_bytes(int(row["saved_bytes"])),
                "yes" if row["fits"] else "no",
            )
        console = Console(width=110)
        with console.capture() as captured:
            console.print(table)
        return captured.get()


def frontier(
    model: nn.Module | Callable[[], Any],
    inputs: Sequence[Any] | Mapping[str, Any] | Callable[[], Any] = (),
    **how: Any,
) -> StepFrontier:
    """Every plan of a step, planned without running it and judged by its replay; arguments and errors are those of
    :func:`graphremat.plan`, but for ``code``."""
    return StepFrontier(plan(model, inputs, code=False, **how))
