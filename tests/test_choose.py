from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphremat.choose import Choice, choose
from graphremat.plans import chosen_plan, fastest_place

REPLAYED = [1000, 900, 800, 700, 600, 500, 400, 300]


def pick(true: list[int], budget: int | float | None, **options: object) -> tuple[Choice, list[int]]:
    asked: list[int] = []

    def truth(place: int) -> int:
        asked.append(place)
        return true[place]

    return choose(REPLAYED, truth, budget, **options), asked  # type: ignore[arg-type]


def test_no_budget_takes_the_fastest_and_looks_once() -> None:
    choice, asked = pick(REPLAYED, None)
    assert (choice.place, choice.budget_bytes, asked) == (0, None, [0])


def test_exact_replays_need_one_look() -> None:
    choice, asked = pick(REPLAYED, 650)
    assert (choice.place, asked) == (4, [4])


def test_a_plan_over_the_budget_is_never_taken() -> None:
    true = [b + 120 for b in REPLAYED]
    choice, _ = pick(true, 650)
    assert true[choice.place] <= 650
    assert choice.place == 5


def test_a_pessimistic_replay_is_corrected() -> None:
    true = [b * 8 // 10 for b in REPLAYED]
    choice, asked = pick(true, 650)
    assert choice.place == 2
    assert len(asked) <= 3


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.25, 0.5, 0.75, 0.999, 1.0])
@pytest.mark.parametrize("off", [-50, 0, 50])
def test_a_fraction_is_of_the_range_as_one_look_shows_it(fraction: float, off: int) -> None:
    true = [b + off for b in REPLAYED]
    choice, asked = pick(true, fraction)
    limit = 300 + fraction * 700
    assert asked == [choice.place] == [next(p for p, b in enumerate(REPLAYED) if b <= round(limit))]
    ratio = true[choice.place] / REPLAYED[choice.place]
    assert choice.lowest_bytes == pytest.approx(300 * ratio, abs=1)
    assert choice.fastest_bytes == pytest.approx(1000 * ratio, abs=1)
    assert choice.budget_bytes == pytest.approx(limit * ratio, abs=2)


def test_the_ends_of_the_range_are_true_peaks() -> None:
    true = [b + 50 for b in REPLAYED]
    assert pick(true, 0.0)[0].budget_bytes == 350
    assert pick(true, 1.0)[0].budget_bytes == 1050


def test_a_plan_that_leaves_little_is_taken_without_another_look() -> None:
    true = [b - 2 for b in REPLAYED]
    assert pick(true, 600)[1] == [4], "2 of 300 bytes are left, and the plan before it may fit"
    assert len(pick([b - 90 for b in REPLAYED], 600)[1]) == 2


def test_an_infeasible_budget_names_the_lowest_peak() -> None:
    choice, asked = pick(REPLAYED, 299)
    assert not choice.fits
    assert (choice.place, choice.lowest_bytes) == (7, 300)
    assert 7 in asked


@pytest.mark.parametrize("most", [1, 2, 3, 8])
def test_looks_are_bounded(most: int) -> None:
    true = [b + 90 for b in REPLAYED]
    _, asked = pick(true, 500, most=most)
    assert len(asked) <= most
    assert len(set(asked)) == len(asked)


def test_where_replays_mislead_the_plan_is_found_by_halving() -> None:
    replayed = [1000 - 8 * p for p in range(64)]
    true = [959] * 40 + [940 - p for p in range(40, 64)]  # each look makes one of the next plans promising
    asked: list[int] = []

    def truth(place: int) -> int:
        asked.append(place)
        return true[place]

    choice = choose(replayed, truth, 950)
    assert choice.fits
    assert 40 <= choice.place <= 52, "not the lowest plan of all, which is far slower"
    assert len(asked) <= 8


def test_the_lowest_code_may_be_that_of_another_plan() -> None:
    true = [*REPLAYED[:6], 460, 520]
    choice, asked = pick(true, 0.0)
    assert (choice.place, choice.budget_bytes, choice.lowest_bytes) == (6, 460, 460)
    assert asked == [7, 6]


def test_plans_that_are_nearly_the_lowest_are_not_looked_at() -> None:
    replayed, true = [1000, 600, 303, 300], [1000, 610, 650, 640]
    choice = choose(replayed, true.__getitem__, 0.0)
    assert (choice.place, choice.true_bytes) == (1, {3: 640, 1: 610})


@pytest.mark.parametrize(("true_of_lowest", "looks"), [(404, [7]), (412, [7, 6])])
def test_another_plan_than_the_lowest_must_be_able_to_gain_something(
    true_of_lowest: int, looks: list[int]
) -> None:
    true = [*REPLAYED[:6], 430, true_of_lowest]  # by its replay, the plan before the lowest gains 1% or 3%
    choice, asked = pick(true, 0.0)
    assert (choice.place, asked) == (7, looks)


@given(
    st.lists(st.floats(0.7, 1.3), min_size=8, max_size=8),
    st.one_of(st.integers(200, 1300), st.floats(0, 1)),
)
def test_always_under_the_budget_or_infeasible(errors: list[float], budget: int | float) -> None:
    true = [round(b * e) for b, e in zip(REPLAYED, errors, strict=True)]
    choice, asked = pick(true, budget)
    assert len(asked) <= 8
    assert choice.budget_bytes is not None
    if choice.fits:
        assert true[choice.place] <= choice.budget_bytes
    else:
        assert all(true[p] > choice.budget_bytes for p in asked)
        assert 7 in asked


def test_a_miss_of_one_plan_does_not_rule_out_the_next_where_much_would_be_left() -> None:
    replayed, true = [974, 521, 499, 495, 445], [974, 541, 541, 495, 445]  # as of a ResNet
    asked: list[int] = []

    def truth(place: int) -> int:
        asked.append(place)
        return true[place]

    assert choose(replayed, truth, 508).place == 3
    assert asked == [2, 4, 3]
    assert choose(replayed, truth, 508, most=2).place == 4


@pytest.mark.parametrize(
    ("others", "place"),
    [
        ([], 0),
        ([(990, 1.0, 0.0)], 0),  # 1% of the bytes is what a replay can be off
        ([(900, 1.0, 0.0)], 1),
        ([(990, 0.9, 0.0)], 1),
        ([(990, 1.0, 0.0), (900, 1.0, 0.0)], 2),
        ([(990, 0.9, 0.0), (960, 0.91, 0.1), (900, 0.92, 0.1)], 2),  # surely below torch's peak
        ([(990, 0.9, 0.0), (960, 0.98, 0.1)], 1),
        ([(900, 1.1, 0.0)], 0),
        ([(900, 0.9, 0.1)], 1),
        ([(900, 0.98, 0.1)], 0),  # recomputes more, for a gain that may be none
        ([(990, 1.0, 0.0), (900, 1.1, 0.0), (800, 1.0, 0.0)], 0),
    ],
)
def test_another_plan_than_torchs_has_to_be_worth_it(
    others: list[tuple[int, float, float]], place: int
) -> None:
    runs = [
        SimpleNamespace(peak_bytes=peak, seconds=seconds, recompute_seconds=again)
        for peak, seconds, again in [(1000, 1.0, 0.0), *others]
    ]
    frontier: Any = SimpleNamespace(candidates=[SimpleNamespace(replay=run) for run in runs])
    assert fastest_place(frontier) == place


@pytest.mark.parametrize(
    ("true", "place"),
    [
        ([1000, 900, 700], 1),  # surely below torch's peak: that is not looked at
        ([1000, 960, 700], 1),
        ([1000, 980, 700], 1),  # too near to tell by replays
        ([975, 980, 700], 2),  # as in a GPT with dropout: torch's code takes less than its replay says
        ([1000, 1010, 700], 2),  # the code of the faster plan takes more than torch's after all
        ([600, 1000, 700], 0),  # torch's takes less than all that is behind it
    ],
)
def test_without_a_budget_the_peak_is_no_higher_than_torchs(true: list[int], place: int) -> None:
    runs = [(1000, 1.0, 0.0), (960, 0.9, 0.0), (700, 0.98, 0.1)]
    plans = [
        SimpleNamespace(replay=SimpleNamespace(peak_bytes=peak, seconds=seconds, recompute_seconds=again))
        for peak, seconds, again in runs
    ]
    frontier: Any = SimpleNamespace(candidates=plans, frugal=[])
    looked: list[int] = []

    def truth(place: int, *_: Any, **__: Any) -> Any:
        looked.append(place)
        return SimpleNamespace(peak_bytes=true[place])

    lowering: Any = SimpleNamespace(
        truth=truth, problem=SimpleNamespace(input_bytes=0), options=SimpleNamespace(max_lowerings=8)
    )
    choice = chosen_plan(frontier, lowering, None, None)
    assert (choice.place, choice.fits, choice.budget_bytes) == (place, True, None)
    assert choice.true_bytes[place] == true[place] <= max(true[0], 900)
    assert len(looked) == len(set(looked))
    assert (0 in looked) == (true[1] >= 970)
