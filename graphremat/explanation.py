"""What would be done to a step and for which of its modules, without running it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

from graphremat.forecast import Forecast, plan
from graphremat.report_data import page_data
from graphremat.units import format_bytes

MOST_ROWS = 24
"""Modules that are shown by themselves; the others are one row."""


@dataclass(frozen=True)
class ModuleShare:
    """What a module saves for the backward, and what of it runs again there."""

    module: str
    saved_bytes: int
    saved_count: int
    recompute_seconds: float
    recomputed_count: int


@dataclass(frozen=True, eq=False)
class Explanation:
    """A planned step by module. It prints as text, and shows itself in a notebook.

    Attributes:
        forecast: the plan and its frontier.
        modules: the one that saves most first; ``""`` for ops outside of any module.
    """

    forecast: Forecast
    modules: tuple[ModuleShare, ...]

    def table(self) -> Table:
        """One line a module, with per cents of the whole."""
        table = Table("module", box=None, header_style="bold")
        for column in ("saved", "values", "%", "runs again", "ops", "%"):
            table.add_column(column, justify="right")
        saved = sum(share.saved_bytes for share in self.modules)
        again = sum(share.recompute_seconds for share in self.modules)
        shown, rest = list(self.modules[:MOST_ROWS]), self.modules[MOST_ROWS:]
        if rest:
            shown.append(_sum_of(f"{len(rest)} others", rest))
        for share in shown:
            table.add_row(
                share.module or "(no module)",
                format_bytes(share.saved_bytes),
                str(share.saved_count),
                _per_cent(share.saved_bytes, saved),
                f"{share.recompute_seconds * 1e3:.2f} ms",
                str(share.recomputed_count),
                _per_cent(share.recompute_seconds, again),
            )
        return table

    def __str__(self) -> str:
        console = Console(width=110)
        with console.capture() as captured:
            console.print(self.forecast.summary(), markup=False, highlight=False)
            console.print(self.table())
        return captured.get()

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


def explain(
    model: nn.Module | Callable[[], Any],
    inputs: Sequence[Any] | Mapping[str, Any] | Callable[[], Any] = (),
    budget: int | float | str | None = None,
    *,
    depth: int | None = None,
    **how: Any,
) -> Explanation:
    """Say what would be saved and what would run again, by module, without running anything.

    Args:
        model, inputs, budget: as for :func:`graphremat.plan`.
        depth: how many names of a module's path count (``blocks.0.attention`` has three); None for all.
        how: the other keywords of :func:`graphremat.plan`.

    Raises:
        ValueError: a depth below 1.
        OptionError, PlanningError, BudgetInfeasible: as :func:`graphremat.plan`.
    """
    if depth is not None and depth < 1:
        raise ValueError(f"depth={depth}: it is at least 1, or None for whole paths")
    forecast = plan(model, inputs, budget, **how)
    columns = page_data(forecast.shown_step())["modules"]
    groups: dict[str, list[ModuleShare]] = {}
    for row in zip(*columns.values(), strict=True):
        share = ModuleShare(**dict(zip(columns, row, strict=True)))
        groups.setdefault(".".join(share.module.split(".")[:depth]), []).append(share)
    shares = [_sum_of(name, group) for name, group in groups.items()]
    return Explanation(
        forecast, tuple(sorted(shares, key=lambda s: (-s.saved_bytes, -s.recompute_seconds, s.module)))
    )


def _sum_of(name: str, shares: Sequence[ModuleShare]) -> ModuleShare:
    return ModuleShare(
        name,
        sum(share.saved_bytes for share in shares),
        sum(share.saved_count for share in shares),
        sum(share.recompute_seconds for share in shares),
        sum(share.recomputed_count for share in shares),
    )


def _per_cent(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else "-"
