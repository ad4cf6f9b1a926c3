"""Graphs of symbolic sizes: peaks for any shape, and budgets that hold for shapes which come later."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import graphremat
from graphremat.measure import gradient_error, measure_peak
from graphremat.passes.peak_formula import peak_formula
from graphremat.passes.plan import Plan
from graphremat.passes.problem import Problem
from graphremat.passes.replay import replay
from graphremat.passes.sizes import evaluate, symbols_of

pytestmark = pytest.mark.usefixtures("fresh_ledger")


class Layer(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.gelu(self.up(x)))


class Layers(nn.Module):
    """Four layers with a residual; every second feature counts, so that strides are symbolic too."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x.transpose(0, 1).contiguous()).transpose(0, 1)
        return x[..., ::2].square().mean()


def compiled(model: nn.Module, budget: object, **more: object) -> Callable[[Tensor], Tensor]:
    options = {"memory_budget": budget, "lowering": "aot_eager", "on_failure": "error", **more}
    return torch.compile(model, backend="graphremat", options=options, dynamic=True)


def measured(model: nn.Module, call: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """By the allocator, with parameters and batch."""
    peak = measure_peak(
        lambda: call(x).backward(), clear=lambda: model.zero_grad(set_to_none=True)
    ).peak_bytes
    return peak + sum(t.nbytes for t in (x, *model.parameters()))


def eager_gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    model.zero_grad(set_to_none=True)
    model(x).backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_the_peak_of_a_plan_for_other_shapes_is_what_the_allocator_sees() -> None:
    model = Layers()
    call = compiled(model, 0.3)
    call(torch.randn(4, 10, 16)).backward()
    report = graphremat.last_report()
    rows, length = (next(s.name for s in report.sizes if s.source.endswith(f"size()[{k}]")) for k in (0, 1))
    assert {s.planned for s in report.sizes} == {4, 10}
    assert report.planned_peak_at() == report.planned_peak_bytes
    for m, n in ((4, 10), (8, 10), (40, 30), (2, 3)):
        assert report.planned_peak_at(**{rows: m, length: n}) == measured(model, call, torch.randn(m, n, 16))
    assert graphremat.last_report() is report
    with pytest.raises(ValueError, match="no size of this graph is called rows; its sizes are: s"):
        report.planned_peak_at(rows=3)


def test_the_formula_is_the_replay_of_the_dumped_problem(tmp_path: Path) -> None:
    compiled(Layers(), 0.0, dump_dir=str(tmp_path))(torch.randn(4, 10, 16)).backward()
    report = graphremat.last_report()
    folder = Path(str(report.dump_dir))
    problem = Problem.from_json((folder / "10-problem.json").read_text())
    plan = Plan.from_json((folder / "30-plan.json").read_text())
    assert peak_formula(problem, plan) == report.peak_formula
    assert symbols_of(report.peak_formula) == set(problem.symbols)
    first, second = problem.symbols
    for m, n in ((1, 1), (7, 3), (3, 7), (100, 200)):
        sizes = {first: m, second: n}
        assert evaluate(report.peak_formula, sizes) == replay(problem.at_sizes(sizes), plan).peak_bytes


def test_a_budget_in_bytes_holds_for_larger_shapes_that_come_later() -> None:
    model = Layers()
    small, large, between = (torch.randn(n, 10, 16) for n in (4, 64, 32))
    probe = compiled(model, None)
    probe(large).backward()
    fastest = graphremat.last_report().generated_peak_bytes
    torch.compiler.reset()

    budget = round(0.75 * fastest)
    call = compiled(model, budget)
    for x in (small, large, between, small, large):
        expected = eager_gradients(model, x)
        model.zero_grad(set_to_none=True)
        call(x).backward()
        assert gradient_error(expected, [p.grad for p in model.parameters()]) < 1e-5
        assert measured(model, call, x) <= budget
    report = graphremat.last_report()
    assert report.generated_peak_bytes <= budget
    assert {s.planned for s in report.sizes} == {64, 10}
    assert report.recomputed_ops > 0


def test_what_does_not_fit_in_a_larger_shape_is_said_and_small_ones_still_run() -> None:
    model = Layers()
    small, large = torch.randn(4, 10, 16), torch.randn(64, 10, 16)
    call = compiled(model, "200KiB")
    call(small).backward()
    with pytest.raises(graphremat.BudgetInfeasible, match="no plan keeps the step under 200.00 KiB"):
        call(large)
    model.zero_grad(set_to_none=True)
    call(small).backward()
    assert gradient_error([p.grad for p in model.parameters()], eager_gradients(model, small)) < 1e-5


def by_layers(budget: int | None) -> Layers:
    model = Layers()
    options = {"lowering": "aot_eager", "memory_budget": budget, "on_failure": "error"}
    for layer in model.layers:
        layer.compile(backend="graphremat", dynamic=True, options=options)
    return model


def test_graphs_of_symbolic_sizes_share_a_budget() -> None:
    x = torch.randn(48, 10, 16)
    model = by_layers(None)
    loose = measured(model, model, x)
    torch.compiler.reset()

    budget = round(0.85 * loose)
    model = by_layers(budget)
    for rows in (4, 8, 48, 48, 48):
        model.zero_grad(set_to_none=True)
        model(torch.randn(rows, 10, 16)).backward()
    assert measured(model, model, x) <= budget
    found = [p.grad for p in model.parameters()]
    torch.compiler.reset()
    plain = Layers()
    plain.load_state_dict(model.state_dict())
    assert gradient_error(eager_gradients(plain, x), found) < 1e-5
