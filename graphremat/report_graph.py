"""The runs of a plan's ops as a graph to draw: which run reads from which, and where each stands. Needs no torch.

The forward runs from left to right in the upper half, the backward from right to left in the lower one, so that the
gradient of a layer stands about under the layer. Within a half every run has a column of its own, in the order they
run, and lines are laid like the branches of a version history: a value that is read later keeps its lane until then.

    >>> from graphremat.passes.schedule import schedule
    >>> from graphremat.passes.testing import chain
    >>> problem = chain(length=3)
    >>> plan = schedule(problem, [problem.ops[0].writes[0]])
    >>> [problem.ops[i].name for i in (*plan.forward, *plan.backward)]
    ['layer0', 'layer1', 'layer2', 'layer1', 'grad2_0', 'grad1_0', 'grad0_0']
    >>> runs = run_reads(problem, plan)
    >>> runs
    [[], [0], [1], [0], [3], [4, 0], [5]]
    >>> places(runs, forward_length=3)
    [(0.0, 1), (1.0, 1), (2.0, 1), (2.0, -1), (1.33, -1), (0.67, -1), (0.0, -1)]
"""

from collections.abc import Sequence

from graphremat.passes.plan import Plan
from graphremat.passes.problem import Problem

MOST_LANES = 24
"""Where so many values of one half wait for their last reader, the next one shares the lane that was left alone the
longest: with more lanes than this the single op is too small to point at."""


def run_reads(problem: Problem, plan: Plan) -> list[list[int]]:
    """For each run of forward and backward, the positions of the runs whose results it reads; inputs are no run."""
    latest: dict[int, int] = {}
    """For each value that can be read, the position of the run that made it last."""
    found: list[list[int]] = []

    def walk(part: Sequence[int]) -> None:
        for index in part:
            op = problem.ops[index]
            found.append(list(dict.fromkeys(latest[read] for read in op.reads if read in latest)))
            latest.update(dict.fromkeys(op.writes, len(found) - 1))

    walk(plan.forward)
    latest = {value: latest[value] for value in plan.saved if value in latest}
    walk(plan.backward)
    return found


def places(reads: Sequence[Sequence[int]], forward_length: int) -> list[tuple[float, int]]:
    """``(x, y)`` of every run: x from 0 to the length of the forward, y the lane, negative in the backward."""
    backward_length = len(reads) - forward_length
    width = max(1, forward_length - 1)
    step = width / max(1, backward_length - 1)
    upper = _lanes(reads, range(forward_length))
    lower = _lanes(reads, range(forward_length, len(reads)))
    return [(float(x), 1 + lane) for x, lane in enumerate(upper)] + [
        (round(width - x * step, 2), -1 - lane) for x, lane in enumerate(lower)
    ]


def _lanes(reads: Sequence[Sequence[int]], half: range) -> list[int]:
    """The lane of every run of one half. A run goes on in the lane of an operand that it is the last to read; else it
    takes the first lane whose value nobody reads any more."""
    last = {position: position for position in half}
    for position in half:
        last.update(dict.fromkeys((read for read in reads[position] if read in last), position))
    heads: list[int] = []
    """The last run in each lane."""
    lane_of: dict[int, int] = {}
    for position in half:
        own = [lane_of[read] for read in reads[position] if read in lane_of and heads[lane_of[read]] == read]
        ended = [lane for lane in own if last[heads[lane]] == position]
        free = (lane for lane, head in enumerate(heads) if last[head] < position)
        if ended:
            lane = min(ended)
        elif len(heads) < MOST_LANES:
            lane = next(free, len(heads))
        else:
            lane = next(free, heads.index(min(heads)))
        if lane == len(heads):
            heads.append(position)
        heads[lane] = position
        lane_of[position] = lane
    return [lane_of[position] for position in half]
