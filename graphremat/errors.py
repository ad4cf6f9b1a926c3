"""The errors that a user of graphremat can meet, all under :class:`GraphrematError`. This module needs no torch."""

from collections.abc import Sequence


class GraphrematError(Exception):
    """Base class of every error that graphremat raises on purpose."""


class OptionError(GraphrematError, ValueError):
    """An option of the backend is unknown or has a value that is not allowed."""


class PlanningError(GraphrematError, RuntimeError):
    """The planner could not make a plan; the message names the stage, the node and the dump path."""


class DumpError(PlanningError):
    """A dump cannot be written, or not be read again; the message names the file."""


class VerificationError(PlanningError):
    """A check between two stages failed: a bug in graphremat, never a mistake of the user."""


class BudgetInfeasible(GraphrematError, RuntimeError):
    """No plan that was found keeps the step under the budget.

    Attributes:
        budget_bytes: the peak that was allowed.
        lowest_peak_bytes: the lowest peak that was found, of the same kind as the budget.
        holders: ``(name, bytes)`` of the largest values alive at that peak, largest first.
    """

    def __init__(
        self,
        message: str,
        *,
        budget_bytes: int = 0,
        lowest_peak_bytes: int = 0,
        holders: Sequence[tuple[str, int]] = (),
    ) -> None:
        super().__init__(message)
        self.budget_bytes = budget_bytes
        self.lowest_peak_bytes = lowest_peak_bytes
        self.holders = tuple(holders)
