"""The baselines: valid plans, the published optima on chains, and budgets that hold, against independent checks."""

import itertools
import math
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphremat.passes.baselines import (
    BASELINES,
    BUDGET_STEPS,
    every_n_stages,
    knapsack,
    revolve,
    save_everything,
    square_root,
    torch_knapsack_points,
)
from graphremat.passes.checkpoints import revolve_forward_steps, revolve_held, revolve_plan
from graphremat.passes.cut import NoCut
from graphremat.passes.frontier import judge
from graphremat.passes.problem import Builder, Kind, Phase, Problem
from graphremat.passes.stages import find_stages
from graphremat.passes.testing import chain
from tests.passes.problems import problems


@settings(deadline=None, max_examples=60)
@given(problems(longest=9))
def test_every_point_is_a_valid_plan(problem: Problem) -> None:
    for baseline in BASELINES.values():
        for candidate in baseline(problem):
            again = judge(problem, candidate.plan)
            assert again.replay.peak_bytes == candidate.replay.peak_bytes
            assert candidate.plan.origin


@settings(deadline=None, max_examples=60)
@given(problems(longest=9, plain=True))
def test_without_bans_every_point_schedules(problem: Problem) -> None:
    count = len(find_stages(problem))
    expected = {
        "save everything": 1,
        "every N stages": 2 * count,
        "square root": 2,
        "revolve": count,
        "layers by bytes per second": count + 1,
        "greedy by seconds per byte": BUDGET_STEPS + 1,
        "torch knapsack": BUDGET_STEPS + 1,
    }
    assert {name: len(baseline(problem)) for name, baseline in BASELINES.items()} == expected


@settings(deadline=None, max_examples=60)
@given(problems(longest=9))
def test_what_must_be_saved_keeps_every_baseline_alive(problem: Problem) -> None:
    """Where any plan exists, every baseline has one."""
    try:
        torch_knapsack_points(problem)
    except NoCut:
        return
    for name, baseline in BASELINES.items():
        assert baseline(problem), name


@settings(deadline=None, max_examples=60)
@given(problems(longest=9, plain=True))
def test_saving_everything_recomputes_nothing(problem: Problem) -> None:
    (candidate,) = save_everything(problem)
    assert candidate.replay.recompute_seconds == 0
    assert candidate.plan.recomputed(problem) == ()


# Checkpoints


def made_in_forward(problem: Problem, value: int) -> bool:
    producer = problem.values[value].producer
    return producer >= 0 and problem.ops[producer].phase is Phase.FORWARD


@pytest.mark.parametrize("internal", [0, 1, 3])
def test_checkpoints_on_a_chain_save_the_boundaries_and_run_the_inside_once_more(internal: int) -> None:
    problem = chain(12, internal=internal)
    stages = find_stages(problem)
    points = every_n_stages(problem)
    assert len(points) == 2 * len(stages)
    for distance, candidate in enumerate(points[::2], start=1):
        boundaries = {v for k in range(0, len(stages), distance) for v in stages.crossing[k]}
        assert set(candidate.plan.saved) == boundaries
        read = {r for i in stages.backward for r in problem.ops[i].reads}
        missing = {v for v in read - boundaries if made_in_forward(problem, v)}
        again = candidate.plan.recomputed(problem)
        assert len(again) == len(set(again))
        # All that lies between a boundary and a missing value is read by the backward too.
        assert {w for i in again for w in problem.ops[i].writes} == missing


def test_a_checkpoint_recomputes_its_whole_segment_at_once() -> None:
    problem = chain(12)
    points = every_n_stages(problem)
    plan = points[2 * 3].plan  # every 4 stages
    again = [problem.ops[i].phase is Phase.FORWARD for i in plan.backward]
    runs = [len(list(group)) for forward, group in itertools.groupby(again) if forward]
    assert len(runs) == 3
    assert sum(runs) == len(plan.recomputed(problem))


def test_the_square_root_is_one_of_the_sweep() -> None:
    problem = chain(30, internal=2)
    sweep = {c.plan.saved for c in every_n_stages(problem)}
    assert {c.plan.saved for c in square_root(problem)} <= sweep
    (whole, last_saved) = square_root(problem)
    assert whole.plan.origin == f"checkpoint every {round(math.sqrt(len(find_stages(problem))))} stages"
    assert last_saved.replay.recompute_seconds < whole.replay.recompute_seconds


# Revolve


@cache
def fewest_steps(length: int, slots: int) -> int:
    """The optimum over all places for the first stored state."""
    if length == 1:
        return 0
    if slots == 1:
        return length * (length - 1) // 2
    return min(k + fewest_steps(length - k, slots - 1) + fewest_steps(k, slots) for k in range(1, length))


def test_the_published_optimum_is_that_of_the_dynamic_programme() -> None:
    for length, slots in itertools.product(range(1, 41), range(1, 13)):
        assert revolve_forward_steps(length, slots) == fewest_steps(length, slots)


def test_a_chain_of_no_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="0 steps"):
        revolve_forward_steps(0, 1)


@given(st.integers(1, 40), st.integers(1, 12))
def test_the_stored_states_take_no_more_slots_and_the_published_steps(length: int, slots: int) -> None:
    held = revolve_held(length, slots)
    assert all(len(states) <= slots and 0 in states for states in held)
    steps = 0
    stored, place = {0}, 0
    for step in range(length - 1, -1, -1):
        if step < length - 1:
            stored = {k for k in stored if k <= step}
            place = max(stored)
        for state in range(place, step + 1):
            steps += state > place
            if state in held[step]:
                stored.add(state)
        assert stored == set(held[step])
    assert steps == revolve_forward_steps(length, slots)


@pytest.mark.parametrize("length", [3, 4, 6, 11, 20, 30])
def test_on_a_chain_the_advances_are_those_of_the_formula(length: int) -> None:
    """A layer is a stage. With s slots the stages are advanced over t(n, s) times, n - 1 of them in the forward.

    A stage has no inside here, so the rest is all that is recomputed.
    """
    problem = chain(length)
    stages = find_stages(problem)
    assert len(stages) == length
    for slots in range(1, length):
        again = revolve_plan(problem, slots).recomputed(problem)
        assert len(again) == fewest_steps(length, slots) - (length - 1)


def chain_with_inside(length: int) -> Problem:
    """Layers of two ops with a large value between them, which the backward of the layer reads."""
    builder = Builder()
    x = builder.input("x", 100)
    read: list[int] = []
    for layer in range(length):
        inside = builder.op(f"in{layer}", [x], Kind.KERNEL, Phase.FORWARD, size_bytes=1000, seconds=1.0)
        read += [x, inside]
        x = builder.op(f"out{layer}", [inside], Kind.KERNEL, Phase.FORWARD, size_bytes=100, seconds=1.0)
    gradient = builder.tangent("tangent", 100)
    for place, value in enumerate(reversed(read)):
        gradient = builder.op(
            f"b{place}", [gradient, value], Kind.KERNEL, Phase.BACKWARD, size_bytes=100, seconds=1.0
        )
    return builder.build([x], [gradient])


@pytest.mark.parametrize("length", [2, 4, 9, 16])
def test_the_inside_of_a_stage_runs_once_more_in_its_reversal(length: int) -> None:
    """A stage is a layer. An advance runs both of its ops; its reversal the first one alone, since the state behind it
    is still there. The last stage's inside is saved by the forward."""
    problem = chain_with_inside(length)
    assert len(find_stages(problem)) == length
    for slots in range(1, length + 1):
        again = revolve_plan(problem, slots).recomputed(problem)
        assert len(again) == 2 * (fewest_steps(length, slots) - (length - 1)) + length - 1


def test_revolve_holds_one_inside_at_a_time() -> None:
    """Beside the slots and the inside: input, output, the state behind the stage, two gradients and a spare."""
    for candidate, slots in zip(revolve(chain_with_inside(16)), itertools.count(1), strict=False):
        assert candidate.replay.peak_bytes <= 1000 + 100 * (slots + 6)


@pytest.mark.parametrize("length", [12, 30])
def test_the_peak_of_revolve_on_a_chain_is_its_slots(length: int) -> None:
    """Beside the slots: the state behind the stage, the two gradients of an op, the chain's output and the one running.

    The first slot is the input, which the replay counts too.
    """
    for candidate, slots in zip(revolve(chain(length)), itertools.count(1), strict=False):
        assert candidate.replay.peak_bytes <= 100 * (slots + 6)
        assert len(candidate.plan.saved) <= slots + 1


# Budgets


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.sampled_from((0.0, 0.5, 1.0, 3.0))), max_size=8),
    st.lists(st.integers(0, 40), min_size=1, max_size=4),
)
def test_the_knapsack_is_exact_on_small_items(items: list[tuple[int, float]], capacities: list[int]) -> None:
    sizes, gains = [size for size, _ in items], [gain for _, gain in items]
    for capacity, chosen in zip(capacities, knapsack(sizes, gains, capacities), strict=True):
        assert sum(sizes[i] for i in chosen) <= capacity
        subsets = itertools.chain.from_iterable(
            itertools.combinations(range(len(items)), count) for count in range(len(items) + 1)
        )
        best = max(sum(gains[i] for i in s) for s in subsets if sum(sizes[i] for i in s) <= capacity)
        assert sum(gains[i] for i in chosen) == pytest.approx(best)


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=12), st.integers(0, 3 * 10**9))
def test_rounded_items_stay_under_the_capacity(sizes: list[int], capacity: int) -> None:
    (chosen,) = knapsack(sizes, [float(s) for s in sizes], [capacity], levels=50)
    assert sum(sizes[i] for i in chosen) <= capacity


@settings(deadline=None, max_examples=60)
@given(problems(longest=9, plain=True))
def test_the_knapsack_rule_saves_no_more_than_its_fraction(problem: Problem) -> None:
    points = torch_knapsack_points(problem)
    outputs = {problem.values[v].storage for v in problem.forward_outputs}
    for point in points:
        storages = {problem.values[v].storage for v in point.saved} - outputs
        assert sum(problem.storages[s].size_bytes for s in storages) <= point.budget_bytes
        assert point.budget_bytes <= point.fraction * points[-1].budget_bytes + 1e-6
    assert [point.fraction for point in points] == [step / BUDGET_STEPS for step in range(BUDGET_STEPS + 1)]
    full = BASELINES["torch knapsack"](problem)[-1]
    heavy = {i for i, op in enumerate(problem.ops) if op.kind in (Kind.KERNEL, Kind.REDUCTION)}
    assert not any(problem.ops[i].seconds for i in heavy.intersection(full.plan.recomputed(problem)))


def test_on_a_chain_the_knapsack_saves_as_many_layers_as_fit() -> None:
    problem = chain(21)
    for point in torch_knapsack_points(problem):
        assert len(point.saved) == round(point.fraction * BUDGET_STEPS)


@settings(deadline=None, max_examples=40)
@given(problems(longest=9, plain=True))
def test_the_greedy_rule_stays_under_its_budget(problem: Problem) -> None:
    points = BASELINES["greedy by seconds per byte"](problem)
    (everything,) = save_everything(problem)
    for step, candidate in enumerate(points):
        assert candidate.replay.saved_bytes <= everything.replay.saved_bytes * step / BUDGET_STEPS + 1e-6
