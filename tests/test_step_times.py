"""The comparison of planned and measured steps: its figure on rows made by hand, and one run from networks to table."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench import cold_compile, step_times
from bench.step_times import (
    TORCH,
    StepTime,
    correlation,
    correlation_of_halves,
    latest,
    networks_table,
    ordered_alike,
    over_rounds,
)


def row(planned: float | None, measured: float) -> StepTime:
    return StepTime(
        "n", "tiny", TORCH if planned is None else "model", 0.5, planned, measured, measured, 0.0, "", 1
    )


@pytest.mark.parametrize(
    ("measured", "expected"), [((1.0, 2.0, 3.0), 1.0), ((3.0, 2.0, 1.0), -1.0), ((1.0, 3.0, 2.0), 0.5)]
)
def test_the_ranks_are_compared(measured: tuple[float, ...], expected: float) -> None:
    rows = [row(None, 9.0), *(row(1.0 + k, taken) for k, taken in enumerate(measured))]
    assert correlation(rows) == pytest.approx(expected)


def test_a_machine_that_is_slow_for_a_round_changes_no_order() -> None:
    slow_at_last = {"a": [1.0, 1.0, 3.0], "b": [1.1, 1.1, 3.3]}
    assert over_rounds(slow_at_last) == {
        name: pytest.approx([taken / 2.1] * 3) for name, taken in (("a", 2.0), ("b", 2.2))
    }
    rows = [replace(row(1.0, 5.0), over_round=0.9), replace(row(2.0, 4.0), over_round=1.1)]
    assert correlation(rows) == pytest.approx(1.0)


def test_the_clock_is_held_against_itself() -> None:
    rows = [replace(row(1.0, 1.0), halves_over_round=(k, -k)) for k in (1.0, 2.0, 3.0)]
    assert correlation_of_halves([row(None, 1.0), *rows]) == pytest.approx(-1.0)
    assert correlation_of_halves([*rows, row(1.0, 1.0)]) is None
    assert [line.split("|")[5].strip() for line in networks_table(rows)[2:]] == ["-1.00"]


def test_plans_that_are_planned_alike_are_in_no_wrong_order() -> None:
    assert correlation([row(1.0, 1.0), row(1.0, 2.0)]) == 1.0


def test_pairs_that_are_planned_nearly_alike_are_not_asked_about() -> None:
    rows = [row(None, 0.5), row(1.0, 1.5), row(1.01, 1.0), row(1.1, 1.2)]
    assert ordered_alike(rows) == (1, 2)  # the last is planned slower than both others, and slower than one


def test_a_network_is_shown_as_its_sources_were_measured_last() -> None:
    old, new, again = (
        replace(row(1.0, taken), sources=sources) for taken, sources in ((1.0, "a"), (2.0, "b"), (3.0, "b"))
    )
    gone = replace(old, fraction=0.25)
    other = replace(old, network="other")
    assert latest([gone, old, other, new, again]) == [other, again]


def test_the_fastest_and_the_loosest_are_held_against_torchs() -> None:
    plans = [replace(row(1.0 + k, taken), fraction=1.0 - k) for k, taken in enumerate((2.2, 1.9))]
    line = networks_table([row(None, 2.0), *plans])[-1]
    assert [cell.strip() for cell in line.split("|")[-3:-1]] == ["0.950", "1.100"]


def test_a_run_from_network_to_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.jsonl"
    arguments = ["--networks", "linear_stack", "--size", "one_block", "--plans", "3", "--rounds", "1"]
    step_times.main([*arguments, "--lowering", "aot_eager", "--out", str(out)])
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [r["fraction"] for r in rows] == [1.0, 0.5, 0.0]
    assert all(r["measured_seconds"] > 0 and r["planned_seconds"] > 0 for r in rows)
    assert rows[0]["planned_seconds"] <= rows[-1]["planned_seconds"]
    assert sum(r["over_round"] for r in rows) == pytest.approx(len(rows))
    printed = capsys.readouterr().out
    assert "rank correlation" in printed
    page = tmp_path / "page.md"
    page.write_text("above\n{}\n{}\nbelow\n".format(*step_times.MARKS))
    step_times.main(["--read", "--out", str(out), "--into", str(page)])
    assert capsys.readouterr().out == printed
    assert page.read_text().splitlines()[2:-2] == networks_table(latest([StepTime(**r) for r in rows]))


@pytest.mark.parametrize("where", [[], ["--one-process"]])
def test_first_steps_are_held_against_torchs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, where: list[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("above\n{}\n{}\nbelow\n".format(*cold_compile.MARKS))
    kept = ["--out", str(tmp_path / "first.jsonl"), "--into", str(page)]
    asked = ["--networks", "linear_stack", "--size", "tiny", "--budgets", "none,0.0", *kept]
    cold_compile.main([*asked, "--lowering", "aot_eager", *where])
    lines = {line.split("│")[1].strip(): line for line in capsys.readouterr().out.splitlines() if "│" in line}
    ours = [float(cell) for cell in lines["linear_stack"].split("│")[3:5]]
    assert all(ratio > 0 for ratio in ours)
    assert [float(cell) for cell in lines["most"].split("│")[3:5]] == ours
    (written,) = (line for line in page.read_text().splitlines() if line.startswith("| linear_stack |"))
    assert [float(cell) for cell in written.split("|")[3:5]] == ours
    page_before = page.read_text()
    cold_compile.main(["--read", *kept])
    assert page.read_text() == page_before


def test_the_table_of_first_steps_is_of_what_was_measured_last() -> None:
    row = cold_compile.FirstStep("unet", "small", "torch", 10.0, "inductor", True, "b", 2, "2026-12-01")
    rows = [
        replace(row, seconds=1.0, sources="a"),
        row,
        replace(row, seconds=8.0),
        replace(row, budget="0.0", seconds=12.0),
        replace(row, network="llama", seconds=20.0, sources="a"),
        replace(row, network="llama", budget="none", seconds=10.0, sources="a"),
    ]
    head, lines = cold_compile.cells_of(cold_compile.latest(rows))
    assert head[2:] == ("budget 0.0", "budget none")
    assert lines[:2] == [("unet", "8.0", "1.50", "-"), ("llama", "20.0", "-", "0.50")]
    assert lines[3] == ("most", "", "1.50", "0.50")
