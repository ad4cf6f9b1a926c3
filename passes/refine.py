"""Spend what a plan leaves of its budget, judged by the exact replay. Free of torch.

The programme over segments counts a little too high, and a budget never ends just where a choice does. What is left
buys recomputation back: values that the plan recomputes are saved one after the other, those that save the most seconds
a byte first, as long as the replay stays under the budget.
"""

from graphremat.passes.plan import Plan
from graphremat.passes.problem import Holder, Kind, Problem
from graphremat.passes.replay import replay
from graphremat.passes.schedule import schedule

MOST_TRIES = 8
"""Replays spent on one plan."""


def refine(problem: Problem, plan: Plan, budget_bytes: int, tries: int = MOST_TRIES) -> Plan:
    """A plan that is no slower than ``plan`` and replays under ``budget_bytes``, if ``plan`` does."""
    best, run = plan, replay(problem, plan)
    if run.peak_bytes > budget_bytes:
        return plan
    refused: set[int] = set()
    for _ in range(tries):
        candidates = _worth_saving(problem, best, refused, budget_bytes - int(run.curve.min()))
        if not candidates:
            break
        value = candidates[0]
        offered = schedule(problem, (*best.saved, value), plan.origin)
        offered_run = replay(problem, offered)
        if offered_run.peak_bytes <= budget_bytes and offered_run.seconds < run.seconds:
            best, run = offered, offered_run
        else:
            refused.add(value)
    return best


def _worth_saving(problem: Problem, plan: Plan, refused: set[int], most_bytes: int) -> list[int]:
    """Values made by recomputation, most seconds a byte first."""
    rated: list[tuple[float, int]] = []
    for index in plan.recomputed(problem):
        op = problem.ops[index]
        if op.unsavable or op.kind is Kind.VIEW:
            continue
        for write in op.writes:
            storage = problem.storages[problem.values[write].storage]
            if write in refused or storage.holder is not Holder.GRAPH or storage.size_bytes > most_bytes:
                continue
            rated.append((op.seconds / max(1, storage.size_bytes), write))
    return [value for _, value in sorted(rated, key=lambda item: (-item[0], item[1]))]
