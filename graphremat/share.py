"""One budget for several graphs: which plan each of them takes. Needs no torch.

The graphs of a step are called one after another; what a call saves stays alive until its backward, so it counts in
every later call. With the calls and the plans of every graph known, the choice is a small integer programme, solved
exactly: the least seconds in all such that at no call more is alive than the budget.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array


@dataclass(frozen=True)
class Alternative:
    """A plan as the others feel it: its own peak with the inputs of its graph, what it saves, and its seconds."""

    peak_bytes: int
    saved_bytes: int
    seconds: float


@dataclass(frozen=True)
class Call:
    """A call of a graph: ``outside_bytes`` are alive during it whatever is planned, beside what earlier calls save."""

    graph: Hashable
    outside_bytes: int


def peaks(
    calls: Sequence[Call], plans: Mapping[Hashable, Sequence[Alternative]], chosen: Mapping[Hashable, int]
) -> list[int]:
    """The most bytes alive in each call (its backward included) if every graph takes the plan at ``chosen``."""
    found, saved = [], 0
    for call in calls:
        plan = plans[call.graph][chosen[call.graph]]
        found.append(call.outside_bytes + saved + plan.peak_bytes)
        saved += plan.saved_bytes
    return found


def rooms(
    calls: Sequence[Call],
    plans: Mapping[Hashable, Sequence[Alternative]],
    chosen: Mapping[Hashable, int],
    budget_bytes: int,
) -> dict[Hashable, int]:
    """The peak that each graph may have in all of its calls, if every graph saves what the plan at ``chosen`` does."""
    found: dict[Hashable, int] = {}
    for call, peak_bytes in zip(calls, peaks(calls, plans, chosen), strict=True):
        room = budget_bytes - peak_bytes + plans[call.graph][chosen[call.graph]].peak_bytes
        found[call.graph] = min(room, found.get(call.graph, room))
    return found


def share(
    calls: Sequence[Call], plans: Mapping[Hashable, Sequence[Alternative]], budget_bytes: int
) -> dict[Hashable, int] | None:
    """The place of each graph's plan; None if no choice keeps every call under the budget.

    >>> plans = {"block": [Alternative(60, 40, 1.0), Alternative(50, 10, 1.5)]}
    >>> share([Call("block", 0), Call("block", 0)], plans, 100), share([Call("block", 0)] * 5, plans, 100)
    ({'block': 0}, {'block': 1})
    """
    graphs = list(dict.fromkeys(call.graph for call in calls))
    starts = dict(zip(graphs, np.cumsum([0, *(len(plans[g]) for g in graphs)]).tolist(), strict=False))
    columns = sum(len(plans[g]) for g in graphs)
    times = {g: sum(call.graph == g for call in calls) for g in graphs}
    seconds = np.concatenate([[times[g] * plan.seconds for plan in plans[g]] for g in graphs])
    rows, room = np.zeros((len(calls), columns)), np.zeros(len(calls))
    earlier = np.zeros(columns)
    for place, call in enumerate(calls):
        own = slice(starts[call.graph], starts[call.graph] + len(plans[call.graph]))
        rows[place] = earlier
        rows[place, own] += [plan.peak_bytes for plan in plans[call.graph]]
        room[place] = budget_bytes - call.outside_bytes
        earlier[own] += [plan.saved_bytes for plan in plans[call.graph]]
    one = np.zeros((len(graphs), columns))
    for place, graph in enumerate(graphs):
        one[place, starts[graph] : starts[graph] + len(plans[graph])] = 1.0
    unit = max(1.0, float(budget_bytes)) / 1000.0
    answer = milp(
        seconds / max(seconds.max(), 1e-30),
        integrality=np.ones(columns),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(csr_array(rows / unit), -np.inf, room / unit),
            LinearConstraint(csr_array(one), 1.0, 1.0),
        ],
    )
    if answer.x is None:
        return None
    return {g: int(np.argmax(answer.x[starts[g] : starts[g] + len(plans[g])])) for g in graphs}
