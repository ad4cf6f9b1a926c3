"""The main table's verdicts on rows that are made up: what is kept, and every way to break a promise."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.budget_rows import (
    FRACTIONS,
    LABELS,
    TORCH,
    Measurement,
    append_result,
    budget_of,
    problems_across,
    problems_of,
    read_results,
)
from bench.budget_summary import above_lowest_shares, latest
from bench.keep_budget import Setting, new_row, storage_bytes, table_of

INPUTS, LOW, HIGH = 1000, 1200, 2000


def row(label: str, peak: int, budget: float | int | None = None, seconds: float = 0.0) -> Measurement:
    budget_bytes = round(LOW + budget * (HIGH - LOW)) if isinstance(budget, float) else budget
    return replace(
        new_row(Setting("llama", "tiny"), label, "abc"),
        memory_budget=budget,
        budget_bytes=budget_bytes,
        inputs_bytes=INPUTS,
        predicted_peak_bytes=peak,
        measured_peak_bytes=peak,
        lowest_peak_bytes=LOW,
        fastest_peak_bytes=HIGH,
        gradient_error=1e-7,
        buffer_error=0.0,
        recomputed_seconds=seconds,
    )


def good_rows() -> dict[str, Measurement]:
    rows = {TORCH: replace(row(TORCH, HIGH), predicted_peak_bytes=None, gradient_error=None)}
    for label, budget in FRACTIONS.items():
        share = 1.0 if budget is None else budget
        rows[label] = row(label, round(LOW + share * (HIGH - LOW)), budget, seconds=1.0 - share)
    rows["bytes low"] = row("bytes low", 1250, 1300)
    rows["bytes high"] = row("bytes high", 1650, 1700)
    return rows


def test_good_rows_have_no_problem() -> None:
    rows = good_rows()
    assert list(rows) == list(LABELS)
    assert all(problems_of(each) == [] for each in rows.values())
    assert not any(problems_across(list(rows.values())).values())
    _, bad = table_of({"llama": list(rows.values())}, title="good")
    assert bad == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"measured_peak_bytes": 1601, "predicted_peak_bytes": 1601}, "over budget by 1 bytes"),
        ({"gradient_error": 2e-5}, "gradient error 2e-05"),
        ({"gradient_error": float("nan")}, "gradient error nan"),
        ({"buffer_error": 1.0}, "buffer error 1.0"),
        ({"gradient_error": None}, "gradient error None"),
        ({"predicted_peak_bytes": 1607}, "prediction off by +1.17%"),
        ({"predicted_peak_bytes": 1593}, "prediction off by -1.17%"),
        ({"failure": "BudgetInfeasible: no"}, "failed: BudgetInfeasible: no"),
    ],
)
def test_a_row_that_breaks_its_promise(change: dict[str, object], words: str) -> None:
    rows = good_rows()
    rows["0.5"] = replace(rows["0.5"], **change)  # type: ignore[arg-type]
    assert problems_of(rows["0.5"]) == [words]
    _, bad = table_of({"llama": list(rows.values())}, title="bad")
    assert bad == 1


def test_rows_that_break_a_promise_together() -> None:
    rows = good_rows()
    rows["none"] = replace(rows["none"], measured_peak_bytes=HIGH + 5)
    rows["0.25"] = replace(rows["0.25"], measured_peak_bytes=1700, recomputed_seconds=2.0, budget_bytes=1402)
    found = {label: words for label, words in problems_across(list(rows.values())).items() if words}
    assert found == {
        "none": ["5 bytes over torch"],
        "0.25": [
            "peak above that of 0.5",
            "recomputes more than 0.0",
            "budget is not the linear 1,400 bytes",
        ],
    }


def test_used_share_and_prediction_error() -> None:
    half = replace(good_rows()["0.5"], predicted_peak_bytes=1594)
    assert half.used_share == 1.0
    assert half.prediction_error == pytest.approx(-0.01)
    assert good_rows()["none"].used_share is None
    assert good_rows()[TORCH].prediction_error is None


def test_what_is_used_of_a_budget_is_counted_from_the_lowest_peak() -> None:
    rows = [row("none", HIGH), row("0.0", LOW, 0.0), row("bytes low", LOW + 30, LOW + 40)]
    assert above_lowest_shares(rows) == [0.75]


def test_the_table_has_of_each_network_the_run_of_the_last_sources() -> None:
    old, other = row("none", HIGH), replace(row("none", HIGH), network="unet")
    new = [replace(row(label, HIGH), sources="new") for label in ("none", "0.5")]
    rows = {(r.network, r.label, r.sources): r for r in (old, replace(old, label="0.25"), other, *new)}
    assert latest(rows) == {"llama": [new[0], new[1]], "unet": [other]}


def test_budgets_in_bytes_lie_between_measured_peaks() -> None:
    rows = good_rows()
    assert budget_of("none", {}) is None
    assert budget_of("0.25", {}) == 0.25
    assert budget_of("bytes low", rows) == 1300
    assert budget_of("bytes high", rows) == 1700
    del rows["0.25"]
    with pytest.raises(LookupError, match=r"0\.0 and 0\.25"):
        budget_of("bytes low", rows)


def test_results_are_read_back_and_the_last_line_wins(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "rows.jsonl"
    assert read_results(path) == {}
    failed, fine = replace(row("0.5", 0), failure="no"), row("0.5", 1600, 0.5)
    for each in (failed, row("none", 2000), fine):
        append_result(path, each)
    found = read_results(path)
    assert found == {fine.key: fine, row("none", 2000).key: row("none", 2000)}


def test_views_of_one_storage_count_once() -> None:
    whole = torch.zeros(100)
    assert storage_bytes([whole, whole[:10], torch.zeros(3, dtype=torch.int64)]) == 400 + 24
