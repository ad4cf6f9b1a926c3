"""The largest batch by planning: the search against counting up, and the answer against plans of its neighbours."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from typer.testing import CliRunner

import graphremat
from graphremat.batches import largest_within
from graphremat.cli import app
from graphremat.errors import BudgetInfeasible, OptionError

pytestmark = pytest.mark.usefixtures("fresh_compiler")

MODEL = """
import torch
from torch import nn

def network(batch):
    layers = [layer for _ in range(4) for layer in (nn.Linear(64, 64), nn.Tanh())]
    return nn.Sequential(*layers), (torch.randn(batch, 64),)
"""


def network(batch: int) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    layers = [layer for _ in range(6) for layer in (nn.Linear(64, 64), nn.Tanh())]
    return nn.Sequential(*layers), (torch.randn(batch, 64),)


@settings(suppress_health_check=[HealthCheck.too_slow])  # beside other tests a list of 300 may take a second
@given(
    st.integers(0, 10_000), st.lists(st.integers(0, 400), min_size=300, max_size=300), st.integers(0, 30_000)
)
def test_the_largest_is_what_counting_up_finds(base: int, steps: list[int], room: int) -> None:
    peaks = [base]
    for step in steps:
        peaks.append(peaks[-1] + step)
    allowed = peaks[1] + room
    counted = max(batch for batch in range(1, 300) if peaks[batch] <= allowed)
    assert largest_within(peaks.__getitem__, allowed, most=299) == counted


def test_a_straight_line_needs_few_plans() -> None:
    asked: list[int] = []

    def peak(batch: int) -> int:
        asked.append(batch)
        return 5_000_000 + 12_345 * batch

    assert largest_within(peak, 5_000_000 + 12_345 * 1000 + 99) == 1000
    assert len(set(asked)) <= 7


def test_the_next_batch_does_not_fit() -> None:
    budget = 3 << 20
    found = graphremat.max_batch(network, "L4", budget=budget, optimizer="adamw")
    assert found.budget_bytes == budget
    assert 1 <= found.without_recomputation < found.largest
    for batch in (found.largest, found.largest + 1):
        planned = graphremat.plan(lambda batch=batch: network(batch), device="L4", optimizer="adamw")
        assert (planned.points[-1].peak_bytes <= budget) == (batch == found.largest)
    assert all(f.peak_bytes <= budget for f in found.forecasts.values())
    free = found.forecasts[found.without_recomputation]
    assert free.chosen == 0
    assert found.examples_per_second(found.best) == max(map(found.examples_per_second, found.forecasts))


def test_what_cannot_be_answered() -> None:
    with pytest.raises(BudgetInfeasible, match="a batch of 1 takes at least"):
        graphremat.max_batch(network, "L4", budget="100kB")
    with pytest.raises(OptionError, match="is no number of bytes"):
        graphremat.max_batch(network, "L4", budget=0.5)  # type: ignore[arg-type]


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(MODEL)
    command = ["max-batch", f"{tmp_path / 'net.py'}:network", "--device", "L4", "--budget", "2MiB"]
    told = CliRunner().invoke(app, [*command, "--json"])
    assert told.exit_code == 0, told.output
    answer = json.loads(told.stdout)
    assert {each["batch"] for each in answer["planned"]} >= {
        1,
        answer["largest"],
        answer["without_recomputation"],
        answer["best"],
    }
    shown = CliRunner().invoke(app, command)
    assert f"holds a batch of {answer['largest']};" in shown.output
