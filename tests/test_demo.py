"""The demo on a tiny model: its text, its batches, its verdicts, and one whole run."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from graphremat import GraphrematError, Report
from graphremat import demo as demo_module
from graphremat.demo import BUDGETS, ByteModel, Run, Size, batches, corpus, main, run_all, table

TINY = Size(blocks=2, width=32, heads=2, batch=4, length=32, steps=12)


@pytest.fixture(scope="module")
def runs() -> tuple[Run, ...]:
    return tuple(run_all(TINY, {"lowering": "aot_eager"}, Console(quiet=True))[0])


def test_the_text_is_python_and_the_same_every_time() -> None:
    text = corpus(100_000)
    assert (text.dtype, len(text)) == (torch.uint8, 100_000)
    assert b"import" in bytes(text.tolist())
    assert torch.equal(text, corpus(100_000))


def test_a_python_without_sources_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo_module.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(GraphrematError, match="without the sources"):
        corpus()


def test_batches_are_windows_of_the_text() -> None:
    text = torch.arange(200, dtype=torch.uint8)
    data = batches(text, TINY)
    assert data.shape == (TINY.steps, TINY.batch, TINY.length + 1)
    assert torch.equal(data[..., 1:] - data[..., :-1], torch.ones_like(data[..., 1:]))
    assert torch.equal(data, batches(text, TINY))


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


def test_a_run_under_every_budget(runs: tuple[Run, ...]) -> None:
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
def test_a_broken_promise_is_named(runs: tuple[Run, ...], change: dict[str, object], words: str) -> None:
    (problem,) = replace(runs[-1], **change).problems()
    assert words in problem


def test_main_prints_the_table_and_the_verdict(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(TINY, {"lowering": "aot_eager"}) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in BUDGETS)
    assert "Every budget was kept" in shown
    monkeypatch.setattr(demo_module, "MAX_GRADIENT_ERROR", -1.0)
    assert main(TINY, {"lowering": "aot_eager"}) == 1
    assert "FAILED 0.3: gradients differ" in capsys.readouterr().out


def test_the_table_has_a_row_for_each_run(runs: tuple[Run, ...]) -> None:
    timings = demo_module.time_interleaved({run.name: lambda: None for run in runs}, rounds=1)
    assert table(runs, timings).row_count == len(runs)
    assert isinstance(runs[0].report, Report)
