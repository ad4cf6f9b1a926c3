"""The programme over segments: which bytes are kept where, so that no place is too high. Free of torch.

Backward works through the segments from the last to the first, and what a segment keeps is alive until then. Near the
end of a network much can be kept, since it dies before gradients pile up; the programme sees that, because every
segment is held against the budget at its own place::

    seconds[stop][kept] = min over first, option of  seconds[first][kept before] + option.seconds
        where  fixed[first] + kept before + option's own highest point <= budget     (forward and backward)
        and    kept = kept before + option.kept_bytes + bytes crossing into stop

Kept bytes are exact; only the number of ways to reach a stage is bounded.
It is the chain programme of checkpointing (Gruslys et al. 2016; Beaumont et al. 2019) without nested recomputation,
with the options of a parametric cut in place of all or nothing.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from graphremat.passes.problem import Holder, Phase, Problem
from graphremat.passes.segments import Option
from graphremat.passes.stages import Stages

LABELS = 400
"""Ways to reach a stage that are kept; beyond it, the fastest of each four-hundredth of the budget. Bytes are exact."""


@dataclass(frozen=True)
class Choice:
    """Segments in order with the option chosen for each; ``saved`` is all that is kept, boundaries included."""

    segments: tuple[tuple[int, int, Option], ...]
    saved: tuple[int, ...]
    seconds: float


@dataclass(frozen=True, eq=False)
class Programme:
    """Everything about a chain of segments that does not depend on the budget."""

    problem: Problem
    stages: Stages
    options: dict[tuple[int, int], list[Option]]
    fixed_forward: tuple[int, ...]
    """For each stage: bytes alive in its forward, whatever the plan (inputs, outputs made so far)."""
    fixed_backward: tuple[int, ...]
    """For each stage: bytes alive all through its window that no plan changes (inputs, outputs, gradients so far)."""

    def solve(self, budget_bytes: int) -> Choice | None:
        """The choice of fewest seconds whose every place lies under ``budget_bytes``; None if there is none."""
        return _solve(self, budget_bytes)


def make_programme(
    problem: Problem, stages: Stages, options: dict[tuple[int, int], list[Option]]
) -> Programme:
    """Prepare the programme of a problem."""
    inputs = problem.input_bytes
    engine = sum(s.size_bytes for s in problem.storages if s.holder is Holder.ENGINE)
    outputs = {problem.values[v].storage for v in problem.forward_outputs}
    output_bytes = sum(
        problem.storages[s].size_bytes for s in outputs if problem.storages[s].holder is Holder.GRAPH
    )
    outputs_before = [0] * len(stages)
    for storage in outputs:
        producers = [v.producer for v in problem.values if v.storage == storage and v.producer >= 0]
        if producers and problem.storages[storage].holder is Holder.GRAPH:
            made = stages.stage_of[producers[0]]
            for stage in range(made + 1, len(stages)):
                outputs_before[stage] += problem.storages[storage].size_bytes
    passing = _passing(problem, stages)
    return Programme(
        problem,
        stages,
        options,
        tuple(inputs + b for b in outputs_before),
        tuple(inputs + engine + output_bytes + p for p in passing),
    )


def _passing(problem: Problem, stages: Stages) -> list[int]:
    """For each stage, bytes made in an earlier window, needed after this one or at the end, and not read in it."""
    gradients = {problem.values[v].storage for v in problem.backward_outputs}
    first: dict[int, int] = {}
    reads: dict[int, list[int]] = {}
    for p, index in enumerate(stages.backward):
        for write in problem.ops[index].writes:
            first.setdefault(problem.values[write].storage, p)
        for read in problem.ops[index].reads:
            producer = problem.values[read].producer
            if producer >= 0 and problem.ops[producer].phase is Phase.BACKWARD:
                reads.setdefault(problem.values[read].storage, []).append(p)
    result = []
    for start, stop in stages.windows:
        total = 0
        for storage, made in first.items():
            if made >= start or problem.storages[storage].holder is not Holder.GRAPH:
                continue
            places = reads.get(storage, [])
            after = storage in gradients or any(p >= stop for p in places)
            inside = any(start <= p < stop for p in places)
            if after and not inside:
                total += problem.storages[storage].size_bytes
        result.append(total)
    return result


@dataclass(frozen=True, eq=False)
class _Labels:
    """Ways to reach the start of a stage: ``kept[i]`` bytes for ``seconds[i]``, more bytes always for fewer seconds.

    Label ``i`` comes from label ``before[i]`` of stage ``first[i]`` over its ``option[i]``-th option.
    """

    kept: npt.NDArray[np.int64]
    seconds: npt.NDArray[np.float64]
    first: npt.NDArray[np.int64]
    option: npt.NDArray[np.int64]
    before: npt.NDArray[np.int64]


def _solve(programme: Programme, budget_bytes: int) -> Choice | None:
    stages, options = programme.stages, programme.options
    count = len(stages)
    zero = np.zeros(1, dtype=np.int64)
    reached = [_Labels(zero, np.zeros(1), zero, zero, zero)]
    crossing = [_crossing_bytes(programme, stages.crossing[k]) for k in range(count)]
    for stop in range(1, count + 1):
        offers: list[_Labels] = []
        for first in range(stop):
            labels = reached[first]
            if not len(labels.kept):
                continue
            entering = 0
            if stop < count:
                new = set(stages.crossing[stop]) - set(stages.crossing[first])
                entering = sum(crossing[stop][v] for v in sorted(new))
            for number, option in enumerate(options.get((first, stop), ())):
                fits = int(
                    np.searchsorted(labels.kept, _room(programme, first, stop, option, budget_bytes), "right")
                )
                if fits:
                    offers.append(
                        _Labels(
                            labels.kept[:fits] + (option.kept_bytes + entering),
                            labels.seconds[:fits] + option.seconds,
                            np.full(fits, first),
                            np.full(fits, number),
                            np.arange(fits),
                        )
                    )
        reached.append(_prune(offers, budget_bytes))
    if not len(reached[count].kept):
        return None
    return _trace(programme, reached)


def _room(programme: Programme, first: int, stop: int, option: Option, budget_bytes: int) -> int:
    """The bytes that may be kept before the segment so that it stays under the budget; may be negative."""
    fixed = max(programme.fixed_backward[k] for k in range(first, stop))
    return budget_bytes - max(
        programme.fixed_forward[first] + option.forward_bytes, fixed + option.backward_bytes
    )


def _prune(offers: list[_Labels], budget_bytes: int) -> _Labels:
    """Drop labels that another one beats; of those in one bucket of bytes keep the fastest."""
    empty = np.zeros(0, dtype=np.int64)
    if not offers:
        return _Labels(empty, np.zeros(0), empty, empty, empty)
    kept = np.concatenate([o.kept for o in offers])
    seconds = np.concatenate([o.seconds for o in offers])
    order = np.lexsort((kept, seconds))
    lowest = np.minimum.accumulate(kept[order])
    first_of_kind = np.ones(len(order), dtype=bool)
    first_of_kind[1:] = lowest[1:] < lowest[:-1]
    order = order[first_of_kind]
    if len(order) > LABELS:
        bucket = (kept[order].astype(np.float64) / budget_bytes * LABELS).astype(np.int64)
        change = np.ones(len(order), dtype=bool)
        change[1:] = bucket[1:] != bucket[:-1]
        order = order[change]
    order = order[::-1]

    def pick(field: str) -> npt.NDArray[np.int64]:
        return np.concatenate([getattr(o, field) for o in offers])[order]

    return _Labels(kept[order], seconds[order], pick("first"), pick("option"), pick("before"))


def _crossing_bytes(programme: Programme, values: tuple[int, ...]) -> dict[int, int]:
    problem = programme.problem
    outputs = {problem.values[v].storage for v in problem.forward_outputs}
    return {
        v: 0
        if problem.values[v].storage in outputs
        else problem.storages[problem.values[v].storage].size_bytes
        for v in values
    }


def _trace(programme: Programme, reached: list[_Labels]) -> Choice:
    stage = len(programme.stages)
    label = int(reached[stage].seconds.argmin())
    seconds = float(reached[stage].seconds[label])
    chosen: list[tuple[int, int, Option]] = []
    while stage > 0:
        labels = reached[stage]
        first = int(labels.first[label])
        chosen.append((first, stage, programme.options[first, stage][int(labels.option[label])]))
        stage, label = first, int(labels.before[label])
    saved: set[int] = set()
    for first, _, option in chosen:
        saved.update(option.saved)
        saved.update(programme.stages.crossing[first])
    return Choice(tuple(reversed(chosen)), tuple(sorted(saved)), seconds)
