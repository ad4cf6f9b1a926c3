"""Advice: each verdict where the plans say so, and every alternative planned once more by itself."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import graphremat
from graphremat import advice
from graphremat.advice import takes_batch
from graphremat.cli import app
from graphremat.forecast import usable_bytes
from graphremat.passes.devices import DEVICES

HUGE = """
import torch
from torch import nn

def huge():
    return nn.Sequential(*[nn.Linear(1 << 16, 1 << 16) for _ in range(2)]), (torch.randn(1, 1 << 16),)
"""

pytestmark = pytest.mark.usefixtures("fresh_compiler")


def network(batch: int = 4096) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    layers = [layer for _ in range(8) for layer in (nn.Linear(64, 64), nn.Tanh())]
    return nn.Sequential(*layers), (torch.randn(batch, 64),)


def with_room(room: float, monkeypatch: pytest.MonkeyPatch, **how: object) -> graphremat.Advice:
    torch.compiler.reset()
    monkeypatch.setattr(advice, "usable_bytes", lambda device: int(room))
    monkeypatch.setattr(
        advice, "max_batch", lambda model, device, **how: _max_batch(model, device, int(room), **how)
    )
    return graphremat.advise(network, device="L4", **how)


_max_batch_of = graphremat.max_batch


def _max_batch(model: object, device: str, room: int, **how: object) -> graphremat.Batches:
    return _max_batch_of(model, device, budget=room, **how)  # type: ignore[arg-type]


def test_the_verdict_follows_the_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    points = graphremat.plan(network, device="L4").points
    fastest, lowest = points[0], points[-1]
    slower = [p.step_seconds / fastest.step_seconds - 1 for p in points]
    slight = max(p for p, s in enumerate(slower) if s <= advice.SLIGHT)
    assert 0 < slight < len(points) - 1
    cases = {
        "comfortable": fastest.peak_bytes / advice.COMFORTABLE + 1,
        "fits": fastest.peak_bytes,
        "slight recomputation": points[slight].peak_bytes,
        "heavy recomputation": lowest.peak_bytes,
        "does not fit": lowest.peak_bytes - 1,
    }
    monkeypatch.setattr(advice, "_other_steps", lambda *_: [])  # the next test looks at them
    for verdict, room in cases.items():
        found = with_room(room, monkeypatch)
        assert found.verdict == verdict
        assert found.alternatives == () or verdict != "comfortable"
        assert str(found).startswith(
            {"c": "No recomp", "f": "No recomp", "d": "No plan"}.get(verdict[0], "Recomp")
        )
        if verdict in ("slight recomputation", "heavy recomputation"):
            assert found.forecast.peak_bytes <= room < points[found.forecast.chosen - 1].peak_bytes
            assert f"memory_budget={found.forecast.peak_bytes}" in str(found)


def test_the_budget_that_is_named_leaves_the_optimizer_out(monkeypatch: pytest.MonkeyPatch) -> None:
    how = {"optimizer": "adamw", "accumulate": True}
    lowest = graphremat.plan(network, device="L4", **how).points[-1].peak_bytes  # type: ignore[arg-type]
    monkeypatch.setattr(advice, "_other_steps", lambda *_: [])
    found = with_room(lowest, monkeypatch, **how)
    assert found.verdict == "heavy recomputation"
    assert found.memory_budget == found.forecast.replays[found.forecast.chosen].peak_bytes < lowest
    assert f"memory_budget={found.memory_budget} " in str(found)


def test_every_alternative_is_what_planning_says(monkeypatch: pytest.MonkeyPatch) -> None:
    lowest = graphremat.plan(network, device="L4").points[-1].peak_bytes
    room = lowest - 1
    found = with_room(room, monkeypatch)
    adapters, batch, *_ = found.alternatives
    planned = graphremat.plan(network, device="L4", lora=advice.LORA_RANK)
    within = planned.within(room)
    assert adapters.what == "adapters of rank 16"
    assert adapters.fits == (within is not None)
    assert adapters.peak_bytes == (within.peak_bytes if within else planned.points[-1].peak_bytes)
    size = int(batch.what.split()[3].rstrip(","))
    assert batch.fits
    assert size < 4096
    assert graphremat.plan(lambda: network(size), device="L4").points[0].peak_bytes == batch.peak_bytes
    assert graphremat.plan(lambda: network(size + 1), device="L4").points[0].peak_bytes > room


def test_a_larger_device_is_the_smallest_that_fits() -> None:
    found = graphremat.advise(lambda: network(8 << 20), device="L4", lora=4)
    assert found.verdict not in ("comfortable", "fits")
    named = [other for other in found.alternatives if other.device != "L4"]
    assert named
    for other in named:
        assert other.step_seconds is None
        assert other.peak_bytes in (found.forecast.points[0].peak_bytes, found.forecast.points[-1].peak_bytes)
        smaller = [d for d in DEVICES.values() if d.memory_bytes < DEVICES[other.device].memory_bytes]
        assert max(map(usable_bytes, smaller)) < other.peak_bytes <= usable_bytes(DEVICES[other.device])


def test_what_takes_a_batch() -> None:
    assert takes_batch(network)
    assert not takes_batch(lambda width=3: width)
    assert not takes_batch(lambda: 0)


def test_the_command(tmp_path: Path) -> None:
    runner = CliRunner()
    small = ["advise", "llama-tiny", "--batch", "2", "--sequence", "64", "--device", "L4"]
    shown = runner.invoke(app, small)
    assert shown.exit_code == 0, shown.output
    assert shown.output.startswith("No recomputation is needed")
    told = json.loads(runner.invoke(app, [*small, "--json"]).stdout)
    assert told["verdict"] == "comfortable"
    assert told["fastest"] == told["chosen"]
    (tmp_path / "net.py").write_text(HUGE)
    too_large = runner.invoke(app, ["advise", f"{tmp_path / 'net.py'}:huge", "--device", "L4", "--json"])
    assert too_large.exit_code == 1
    told = json.loads(too_large.stdout)
    assert told["verdict"] == "does not fit"
    assert told["alternatives"][0]["what"] == "adapters of rank 16"
