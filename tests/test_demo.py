"""The demo on a tiny model: its text, its batches, its verdicts, and one whole run."""

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from graphremat import GraphrematError, byte_model
from graphremat import demo as demo_module
from graphremat.byte_model import ByteModel, Size, batches, corpus
from graphremat.demo import BUDGETS, MARKS, Run, insert, main, run_all, table
from graphremat.measure import Timing, fresh_cache

TINY = Size(blocks=2, width=32, heads=2, batch=4, length=32, steps=10)


@pytest.fixture(scope="module")
def trained() -> tuple[Sequence[Run], Mapping[str, Timing]]:
    with fresh_cache():
        return run_all(TINY, {"lowering": "aot_eager", "max_plans": 4}, Console(quiet=True))


@pytest.fixture
def runs(trained: tuple[Sequence[Run], Mapping[str, Timing]]) -> Sequence[Run]:
    return trained[0]


def test_the_text_is_python_and_the_same_every_time() -> None:
    text = corpus(100_000)
    assert (text.dtype, len(text)) == (torch.uint8, 100_000)
    assert b"import" in bytes(text.tolist())
    assert torch.equal(text, corpus(100_000))


def test_a_python_without_sources_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(byte_model.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(GraphrematError, match="without the sources"):
        corpus()


def test_batches_are_windows_of_the_text() -> None:
    text = torch.arange(200, dtype=torch.uint8)
    data = batches(text, TINY)
    assert len(data) == TINY.steps
    for tokens, again in zip(data, batches(text, TINY), strict=True):
        assert tokens.shape == (TINY.batch, TINY.length + 1)
        assert tokens.untyped_storage().nbytes() == tokens.numel() * tokens.element_size()
        assert torch.equal(tokens[:, 1:] - tokens[:, :-1], torch.ones_like(tokens[:, 1:]))
        assert torch.equal(tokens, again)


def test_the_model_looks_at_the_past_only() -> None:
    model = ByteModel(TINY)
    inputs: list[torch.Tensor] = []
    model.head.register_forward_hook(lambda module, arguments, output: inputs.append(output.detach()))
    tokens = torch.randint(256, (1, TINY.length + 1))
    model(tokens)
    tokens[:, TINY.length // 2] += 1
    model(tokens % 256)
    same = (inputs[0] == inputs[1]).all(-1)[0]
    assert same[: TINY.length // 2].all()
    assert not same[TINY.length // 2 :].all()


def test_a_run_under_every_budget(runs: Sequence[Run]) -> None:
    assert [run.name for run in runs] == list(BUDGETS)
    assert [run.problems() for run in runs] == [()] * len(BUDGETS)
    asked = [run.report.budget_bytes for run in runs]
    assert asked[0] is None
    tight = [each for each in asked[1:] if each is not None]
    assert tight == sorted(tight, reverse=True)
    assert runs[-1].measured_peak_bytes < runs[0].measured_peak_bytes
    assert runs[-1].report.recomputed_ops > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"measured_peak_bytes": 2**40}, "0.0: measured 1099511627776 bytes under a budget of"),
        ({"gradient_error": 1e-3}, "gradients differ"),
        ({"gradient_error": float("nan")}, "gradients differ"),
        ({"losses": (1.0, 1.0)}, "does not fall"),
    ],
)
def test_a_broken_promise_is_named(runs: Sequence[Run], change: dict[str, object], words: str) -> None:
    (problem,) = replace(runs[-1], **change).problems()
    assert words in problem


def test_main_prints_the_table_and_the_verdict(
    trained: tuple[Sequence[Run], Mapping[str, Timing]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(demo_module, "run_all", lambda size, options, console: trained)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    assert main(into=page) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in BUDGETS)
    assert "Every budget was kept" in shown
    before, *rows, after = page.read_text().splitlines()
    assert (before, rows[0], rows[-1], after) == ("before", MARKS[0], MARKS[1], "after")
    assert "\n".join(rows[1:-1]) in shown
    assert {row.count("|") for row in rows[1:-1]} == {len(BUDGETS) + 2}
    monkeypatch.setattr(demo_module, "MAX_GRADIENT_ERROR", -1.0)
    assert main() == 1
    assert "FAILED 0.3: gradients differ" in capsys.readouterr().out


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("no marks")
    with pytest.raises(GraphrematError, match="has no <!-- demo table -->"):
        insert(page, "table")


def test_the_table_fits_a_small_terminal(trained: tuple[Sequence[Run], Mapping[str, Timing]]) -> None:
    console = Console(width=80, file=io.StringIO())
    with console.capture() as captured:
        console.print(table(*trained))
    assert "…" not in captured.get()


def test_the_cache_is_fresh_and_the_old_one_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "old")
    with fresh_cache():
        assert list(Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]).iterdir()) == []
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "old"
