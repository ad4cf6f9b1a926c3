"""Ops timed on the device: which ones, how often, and what is left on the disk."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import graphremat
from graphremat.passes import measure_ops
from graphremat.passes.devices import Device
from graphremat.passes.measure_ops import MeasuredOps, op_key, ops_path
from graphremat.passes.torch_private import trace_joint_graph

CPU = torch.device("cpu")
SLOW = Device(
    name="test CPU", kind="cpu", memory_bytes=2**34, bandwidth_bytes_per_second=1e10, kernel_seconds=1e-6,
    flops_per_second={"float32": 1e10}, simple_ops_per_second=1e10, source="made up",
)  # fmt: skip


def joint(rows: int = 64) -> torch.fx.GraphModule:
    """Three linear layers, two of them alike, with a sort between."""
    wide, last = torch.randn(128, 128, requires_grad=True), torch.randn(128, 8, requires_grad=True)

    def function(x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor]:
        h = torch.relu(torch.relu(x @ a).sort(-1).values @ a)
        return ((h @ b).sum(),)

    return trace_joint_graph(function, [torch.randn(rows, 128), wide, last], {})


def measured(tmp_path: Path, graph: torch.fx.GraphModule, **more: float) -> MeasuredOps:
    return measure_ops.measure_ops(graph.graph, SLOW, CPU, cache_dir=tmp_path, **more)


def test_each_distinct_product_is_timed_once_and_remembered(tmp_path: Path) -> None:
    graph = joint()
    products = graph.graph.find_nodes(op="call_function", target=torch.ops.aten.mm.default)
    first = measured(tmp_path, graph)
    assert set(first.seconds) == set(products)
    assert first.distinct == first.measured_now == len({op_key(node) for node in products}) < len(products)
    assert first.took_seconds > 0
    assert all(0 < seconds < 1 for seconds in first.seconds.values())
    again = measured(tmp_path, graph)
    assert (again.seconds, again.measured_now, again.took_seconds) == (first.seconds, 0, 0.0)
    other = measured(tmp_path, joint(rows=32))
    assert other.measured_now == other.distinct  # other shapes are other ops
    assert measured(tmp_path, graph).seconds == first.seconds


def test_ops_are_left_to_their_formulas_when_time_is_up(tmp_path: Path) -> None:
    graph = joint()
    none = measured(tmp_path, graph, most_seconds=0.0)
    assert (none.seconds, none.measured_now) == ({}, 0)
    assert none.left == measured(tmp_path, graph).distinct


def test_an_op_that_cannot_be_run_alone_keeps_its_price(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> Tensor:
        raise RuntimeError("no memory")

    monkeypatch.setattr(measure_ops, "_real", fails)
    assert measured(tmp_path, joint()).seconds == {}


@pytest.mark.parametrize("text", ["", "[]", '{"format": 0, "seconds": {}}', '{"format": 1, "seconds": 3}'])
def test_a_spoilt_file_is_measured_anew(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    path = ops_path(SLOW.name, CPU, tmp_path)
    path.write_text(text)
    found = measured(tmp_path, joint())
    assert found.measured_now == found.distinct > 0
    assert "cannot be used" in caplog.text
    assert len(json.loads(path.read_text())["seconds"]) == found.distinct


MEASURE = """
import sys, pathlib
from tests.passes.test_measure_ops import joint, measured
found = measured(pathlib.Path(sys.argv[1]), joint(int(sys.argv[2])))
print({node.name: seconds for node, seconds in found.seconds.items()})
"""


def test_processes_that_measure_at_once_lose_nothing_and_agree(tmp_path: Path) -> None:
    runs = [
        subprocess.Popen([sys.executable, "-c", MEASURE, str(tmp_path), str(rows)], stdout=subprocess.PIPE, text=True)
        for rows in (64, 64, 48)
    ]  # fmt: skip
    first, second, _ = (run.communicate()[0].splitlines()[-1] for run in runs)
    assert first == second
    body = json.loads(ops_path(SLOW.name, CPU, tmp_path).read_text())
    expected = {op_key(node) for rows in (64, 48) for node in measured(tmp_path, joint(rows)).seconds}
    assert set(body["seconds"]) == expected
    assert not list(tmp_path.glob("*.tmp"))


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 256))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).square().mean()


def test_a_plan_is_priced_by_what_was_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHREMAT_CACHE", str(tmp_path))
    model, x = Perceptron(), torch.randn(512, 256)
    steps: list[float] = []
    for slower in (1, 1000):
        path = next(iter(tmp_path.glob("ops-*.json")), None)
        if path is not None:  # as if the machine were slower
            body = json.loads(path.read_text())
            body["seconds"] = {key: slower * seconds for key, seconds in body["seconds"].items()}
            path.write_text(json.dumps(body))
        torch.compiler.reset()
        options = {"lowering": "aot_eager", "costs": "measure", "on_failure": "error"}
        torch.compile(model, backend="graphremat", options=options)(x).backward()
        report = graphremat.last_report()
        assert report.timed_ops >= 3
        assert (report.timing_seconds > 0) == (slower == 1)
        assert f"{report.timed_ops} distinct ops" in str(report)
        steps.append(report.step_seconds)
    assert steps[1] > 100 * steps[0]


def test_timing_takes_no_longer_than_it_says(tmp_path: Path) -> None:
    started = time.perf_counter()
    found = measured(tmp_path, joint())
    assert 0 < found.took_seconds <= time.perf_counter() - started
