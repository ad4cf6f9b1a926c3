"""The table of training scripts: its states on rows made by hand, and one script from start to table."""

from pathlib import Path

import pytest

from bench import correctness
from bench.correctness import BUDGET, OURS, PLAIN, Row, is_good, lines_of, main, page_of, read_rows, run


def rows(script: str, **states: object) -> list[Row]:
    names = {"plain": PLAIN, "budget": BUDGET, "ours": OURS}
    return [
        Row(script, "eager's", names[who], "", None if isinstance(state, str) else state, str(state))
        for who, state in states.items()
    ]


@pytest.mark.parametrize(
    ("states", "good"),
    [
        ({"plain": 0.0, "budget": 0.5, "ours": 1e-6}, True),
        ({"plain": 0.0, "budget": 0.0, "ours": 1e-3}, False),
        ({"plain": 0.5, "budget": 0.5, "ours": 0.0}, True),
        ({"plain": "RuntimeError", "budget": "RuntimeError", "ours": "RuntimeError"}, True),
        ({"plain": 0.0, "budget": 0.0, "ours": "RuntimeError"}, False),
        ({"plain": "RuntimeError", "budget": 0.0, "ours": "ValueError"}, False),
    ],
)
def test_we_must_be_right_wherever_plain_inductor_is(states: dict[str, object], good: bool) -> None:
    assert is_good(lines_of(rows("tied_weights", **states))) is good


def test_the_page_counts_who_is_off() -> None:
    page = page_of(lines_of(rows("tied_weights", plain=0.5, budget=0.5, ours=0.0)))
    assert "is off in 1, `activation_memory_budget=0.3` in 1, graphremat in 0." in page
    assert "| forms | tied_weights |  | off by 5e-01 | off by 5e-01 | same |" in page


def test_half_precision_may_round_otherwise() -> None:
    assert [row.state for row in rows("half_precision_parameters", ours=1e-2)] == ["same"]
    assert [row.state for row in rows("tied_weights", ours=1e-2)] == ["off by 1e-02"]


def test_a_script_that_raises_gives_the_class() -> None:
    assert run("second_order_gradients", PLAIN, eagers_numbers=True) == "RuntimeError"


@pytest.mark.inductor
def test_one_script_from_start_to_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    arguments = ["--scripts", "noise_dropout", "--out", str(tmp_path / "rows.jsonl"), "--page", str(page)]
    assert main(arguments) == 0
    assert "2 runs" in page.read_text()
    found = read_rows(tmp_path / "rows.jsonl")
    assert [row.state for row in found if row.compiler in (PLAIN, OURS)] == ["same"] * 4
    monkeypatch.setattr(correctness, "measure", lambda *_: pytest.fail("measured again"))
    assert main(arguments) == 0
