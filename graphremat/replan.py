"""Plan a dumped problem again: no torch, no model, only the ``10-problem.json`` of a dump.

What is said here are replayed peaks, the planner's own. Those of generated code need the graph, so they need torch.

>>> from graphremat.passes.testing import chain
>>> again = replan(chain(length=30), 0.0)
>>> again.place == len(again.frontier.candidates) - 1
True
"""

import re
from dataclasses import dataclass
from pathlib import Path

from graphremat.choose import choose
from graphremat.errors import BudgetInfeasible, OptionError, PlanningError
from graphremat.options import Options
from graphremat.passes.frontier import Candidate, Frontier
from graphremat.passes.planner import plan_frontier, with_exact
from graphremat.passes.problem import Problem, check_problem
from graphremat.units import format_bytes


@dataclass(frozen=True)
class Replanned:
    """A frontier, and the place in it of the plan for the budget; ``budget_bytes`` is None for the fastest plan."""

    frontier: Frontier
    place: int
    budget_bytes: int | None

    @property
    def chosen(self) -> Candidate:
        """The fastest plan under the budget."""
        return self.frontier.candidates[self.place]


def parse_budget(text: str | None) -> int | float | None:
    """A budget as it is written on a command line: a number with a point and no unit is a fraction.

    Raises:
        OptionError: as :meth:`graphremat.options.Options.parse`, and for "auto", which needs a device.

    >>> parse_budget("0.5"), parse_budget("1.5GiB"), parse_budget(None)
    (0.5, 1610612736, None)
    """
    is_fraction = text is not None and re.fullmatch(r"\s*[0-9]+\.[0-9]*\s*", text)
    budget = Options.parse({"memory_budget": float(text) if text and is_fraction else text}).memory_budget
    if budget == "auto":
        raise OptionError(
            "memory_budget='auto' asks a device for what it has left: give bytes or a fraction here"
        )
    return budget


def load_problem(path: Path) -> Problem:
    """Read a dumped problem and check it.

    Raises:
        PlanningError: the file does not hold a problem that can be planned.
    """
    try:
        problem = Problem.from_json(path.read_text(encoding="utf-8"))
        check_problem(problem)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise PlanningError(f"{path} holds no problem: {error}") from error
    return problem


def replan(
    problem: Problem,
    budget: int | float | None,
    *,
    max_plans: int = Options.max_plans,
    exact_seconds: float | None = None,
) -> Replanned:
    """Plan ``problem`` and take the fastest plan whose replayed peak is under the budget.

    With ``exact_seconds`` the exact solver looks for a faster one for so long, and what it proved is in the frontier.

    Raises:
        BudgetInfeasible: no plan's replay is under the budget.
    """
    frontier = plan_frontier(problem, most=max_plans)
    if exact_seconds is not None and budget is not None:
        budget = frontier.at_fraction(budget) if isinstance(budget, float) else budget
        frontier = with_exact(problem, frontier, budget, time_limit_seconds=exact_seconds, most=max_plans)
    peaks_bytes = [candidate.replay.peak_bytes for candidate in frontier.candidates]
    choice = choose(peaks_bytes, peaks_bytes.__getitem__, budget, most=len(peaks_bytes))
    if choice.budget_bytes is not None and not choice.fits:
        lowest = frontier.candidates[-1].replay
        holders = lowest.alive_at(problem, lowest.peak_position)
        raise BudgetInfeasible(
            f"no plan is under {format_bytes(choice.budget_bytes)}: the lowest replayed peak is "
            f"{format_bytes(lowest.peak_bytes)}, of which {format_bytes(problem.input_bytes)} are inputs",
            budget_bytes=choice.budget_bytes,
            lowest_peak_bytes=lowest.peak_bytes,
            holders=holders[:10],
        )
    return Replanned(frontier, choice.place, choice.budget_bytes)
