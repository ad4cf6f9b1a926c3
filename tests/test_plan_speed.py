"""The benchmark of planning: its graphs have the shape they should, and its table says what was measured."""

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from bench.plan_speed import Row, joint_graph, main, table_of
from graphremat.passes.problem import Problem


def test_the_network_is_llama_3_8b_with_one_block() -> None:
    module, inputs = joint_graph(1)
    weights = {tuple(t.shape) for t in inputs if t.dtype == torch.bfloat16}
    assert {(128256, 4096), (4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336)} <= weights
    assert sum(t.requires_grad for t in inputs) == 12
    one, two = len(module.graph.nodes), len(joint_graph(2)[0].graph.nodes)
    three = len(joint_graph(3)[0].graph.nodes)
    assert three - two == two - one > 200


def test_rows_add_up_and_are_set_beside_torch() -> None:
    rows = [
        Row(8, 100, 90, {"classify": 1.0, "build": 1.0, "plan": 2.0, "split": 9.0, "torch": 8.0}),
        Row(32, 400, 360, {"classify": 4.0, "build": 4.0, "plan": 10.0, "split": 36.0}),
        Row(128, 1600, 1440, {"classify": 4.0, "build": 4.0}),
    ]
    text = io.StringIO()
    Console(file=text, width=120).print(table_of(rows))
    first, second, third = (line.split() for line in text.getvalue().splitlines()[1:])
    assert first == ["8", "100", "90", "1.00", "1.00", "2.00", "4.00", "9.00", "8.00", "0.50", "-"]
    assert second == ["32", "400", "360", "4.00", "4.00", "10.00", "18.00", "36.00", "-", "-", "4.50"]
    assert third == ["128", "1,600", "1,440", "4.00", "4.00", "-", "-", "-", "-", "-", "-"]


def test_problems_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--blocks", "2", "--no-plan", "--torch-up-to", "0", "--problems", str(tmp_path)])
    problem = Problem.from_json((tmp_path / "problem-2.json").read_text())
    assert f"{len(problem.ops)}" in capsys.readouterr().out
