"""graphremat: a ``torch.compile`` backend that keeps the peak memory of a training step under a budget in bytes.

>>> import graphremat
>>> graphremat.__version__
'0.1.0'

Importing this package does not import torch: the planner in :mod:`graphremat.passes` runs without it. The names that
need torch are loaded when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from graphremat.errors import (
    BudgetInfeasible,
    DumpError,
    GraphrematError,
    OptionError,
    PlanningError,
    VerificationError,
)

if TYPE_CHECKING:
    from graphremat.advice import Advice, advise
    from graphremat.batches import Batches, max_batch
    from graphremat.comparison import Comparison, compare
    from graphremat.explanation import Explanation, explain
    from graphremat.forecast import Forecast, plan
    from graphremat.report import Report, last_report, reports
    from graphremat.step_frontier import StepFrontier, frontier

__version__ = "0.1.0"

_LAZY = {
    "Advice": ("graphremat.advice", "Advice"),
    "advise": ("graphremat.advice", "advise"),
    "Comparison": ("graphremat.comparison", "Comparison"),
    "compare": ("graphremat.comparison", "compare"),
    "Explanation": ("graphremat.explanation", "Explanation"),
    "explain": ("graphremat.explanation", "explain"),
    "StepFrontier": ("graphremat.step_frontier", "StepFrontier"),
    "frontier": ("graphremat.step_frontier", "frontier"),
    "Batches": ("graphremat.batches", "Batches"),
    "max_batch": ("graphremat.batches", "max_batch"),
    "Forecast": ("graphremat.forecast", "Forecast"),
    "plan": ("graphremat.forecast", "plan"),
    "Report": ("graphremat.report", "Report"),
    "last_report": ("graphremat.report", "last_report"),
    "reports": ("graphremat.report", "reports"),
}

__all__ = [
    "Advice",
    "Batches",
    "BudgetInfeasible",
    "Comparison",
    "DumpError",
    "Explanation",
    "Forecast",
    "GraphrematError",
    "OptionError",
    "PlanningError",
    "Report",
    "StepFrontier",
    "VerificationError",
    "__version__",
    "advise",
    "compare",
    "explain",
    "frontier",
    "last_report",
    "max_batch",
    "plan",
    "reports",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        module, attribute = _LAZY[name]
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module 'graphremat' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
