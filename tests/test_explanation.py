"""A step explained by module: the shares are the plan's, in the terminal, in a notebook and in torch's own trace."""

import logging

import pytest
import torch

import graphremat
from bench.networks import NETWORKS
from bench.uncompiled import planned

pytestmark = pytest.mark.usefixtures("fresh_compiler")


def test_the_shares_of_the_modules_are_the_plan() -> None:
    case = NETWORKS["llama"].build("tiny")
    told = graphremat.explain(case.model, case.inputs, 0.0)
    run = told.forecast.replays[told.forecast.chosen]
    assert sum(share.saved_bytes for share in told.modules) == run.saved_bytes
    assert sum(share.recompute_seconds for share in told.modules) == pytest.approx(run.recompute_seconds)
    named = {share.module for share in told.modules}
    assert named <= {name for name, _ in case.model.named_modules()} | {""}
    assert "blocks.0.attention" in named
    sizes = [share.saved_bytes for share in told.modules]
    assert sizes == sorted(sizes, reverse=True)

    short = graphremat.explain(case.model, case.inputs, 0.0, depth=2)
    by_block = {share.module: share.saved_bytes for share in short.modules}
    assert by_block["blocks.0"] == sum(
        share.saved_bytes for share in told.modules if share.module.split(".")[:2] == ["blocks", "0"]
    )
    assert sum(by_block.values()) == run.saved_bytes


def test_it_prints_in_a_terminal_and_in_a_notebook() -> None:
    model = torch.nn.Sequential(*[torch.nn.Linear(8, 8) for _ in range(40)])
    told = graphremat.explain(model, (torch.ones(64, 8),), 0.0)
    text = str(told)
    assert text.startswith(told.forecast.summary().split(",")[0])
    assert len(told.modules) > 24
    assert f"{len(told.modules) - 24} others" in text
    assert told._repr_html_().startswith("<pre>")
    assert "<module" not in told._repr_html_()


def test_a_depth_of_nothing() -> None:
    with pytest.raises(ValueError, match="depth=0: it is at least 1"):
        graphremat.explain(torch.nn.Linear(2, 2), (torch.ones(2, 2),), depth=0)


def test_the_report_is_in_torchs_structured_trace() -> None:
    seen: dict[str, str] = {}

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            artifact = getattr(record, "metadata", {}).get("artifact", {})
            if artifact.get("name", "").startswith("graphremat"):
                seen[artifact["name"]] = record.payload

    trace, handler = logging.getLogger("torch.__trace"), Handler()
    trace.addHandler(handler)
    try:
        case = NETWORKS["linear_stack"].build("one_block")
        report = planned(case.model, case.inputs, memory_budget=0.5)
    finally:
        trace.removeHandler(handler)
    assert seen["graphremat_report"] == str(report)
    assert "| peak" in seen["graphremat_frontier"]
