"""The backend lowered by Inductor: budgets to the byte, caches, and the order of what is run. Needs a C++ compiler."""

import contextlib
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import graphremat
from bench.networks import NETWORKS, Case
from bench.uncompiled import planned
from graphremat import partitioner, plans
from graphremat.choose import Choice
from graphremat.measure import fresh_cache, gradient_error, measure_peak
from graphremat.partitioner import Partitioner
from graphremat.passes import torch_private as private
from graphremat.passes.frontier import Frontier, judge
from graphremat.passes.plan import Plan
from graphremat.passes.problem import Kind, Phase, Problem
from graphremat.passes.schedule import schedule

pytestmark = pytest.mark.inductor


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    with torch.compiler.config.patch(force_disable_caches=True):  # so every graph is planned and reported
        yield
    torch.compiler.reset()


def held_bytes(case: Case) -> int:
    tensors = [*case.model.parameters(), *case.model.buffers(), *case.inputs]
    return sum(
        s.nbytes() for s in {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors}.values()
    )


def step_and_gradients(case: Case, model: object) -> list[torch.Tensor | None]:
    case.model.zero_grad(set_to_none=True)
    torch.manual_seed(7)
    case.loss(model(*case.inputs)).backward()  # type: ignore[operator]
    return [None if p.grad is None else p.grad.clone() for p in case.model.parameters()]


@pytest.mark.parametrize(
    ("name", "budgets"),
    [("linear_stack", (None, 0.4, 0.0)), ("dropout_gpt", (None, 0.0)), ("resnet", (None, 0.0))],
)
def test_budgets_are_kept_and_predicted_to_the_byte(name: str, budgets: tuple[float | None, ...]) -> None:
    case = NETWORKS[name].build("tiny")
    state = {k: v.clone() for k, v in case.model.state_dict().items()}
    # Random numbers differ between eager and Inductor, so a network that draws some is held against Inductor's.
    reference = step_and_gradients(case, torch.compile(case.model) if case.random else case.model)
    peaks = []
    for budget in budgets:
        torch.compiler.reset()
        case.model.load_state_dict(state)
        model = torch.compile(case.model, backend="graphremat", options={"memory_budget": budget})
        assert gradient_error(reference, step_and_gradients(case, model)) <= 1e-5
        report = graphremat.last_report()
        measured = measure_peak(
            lambda model=model: case.loss(model(*case.inputs)).backward(),
            clear=lambda: case.model.zero_grad(set_to_none=True),
        )
        peak = measured.peak_bytes + held_bytes(case)
        assert report.budget_bytes is None or peak <= report.budget_bytes
        assert report.generated_peak_bytes == pytest.approx(peak, rel=0.002)
        peaks.append(peak)
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[-1] < peaks[0]


class GroupNorms(nn.Module):
    """Images through convolutions with group norms, which are computed in other shapes than the images'."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.norms = nn.ModuleList(nn.GroupNorm(4, 16) for _ in range(2))
        self.convolutions = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            x = x + convolution(functional.silu(norm(x)))
        return x


@pytest.mark.parametrize("place", range(3))
def test_gradients_are_eagers_whichever_values_are_saved(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each single value of the forward is saved by one of three plans and recomputed by the other two.

    The scale of a group norm came with the channels last and was read by traced strides: gradients were off by a
    quarter, in plans that no test had.
    """

    def every_third(options: object, problem: Problem, *_: object) -> Frontier:
        makes = [op for op in problem.ops if op.phase is not Phase.BACKWARD and op.kind is not Kind.VIEW]
        savable = [v for op in makes if not op.unsavable for v in op.writes]
        return Frontier((judge(problem, schedule(problem, savable[place::3], "every third")),))

    monkeypatch.setattr(partitioner, "torchs_plan_of", lambda *_: None)
    monkeypatch.setattr(partitioner, "plan_behind_torchs", every_third)
    torch.manual_seed(0)
    model, images = GroupNorms(), torch.randn(2, 3, 16, 16)

    def gradients(call: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor | None]:
        model.zero_grad()
        call(images).square().mean().backward()
        return [p.grad for p in model.parameters()]

    compiled = torch.compile(model, backend="graphremat", options={"on_failure": "error"})
    assert gradient_error(gradients(model), gradients(compiled)) <= 1e-5
    assert graphremat.last_report().recomputed_ops > 0


def test_the_generated_code_keeps_the_order_of_the_plan(tmp_path: Path) -> None:
    case = NETWORKS["llama"].build("tiny")
    model = torch.compile(
        case.model, backend="graphremat", options={"memory_budget": 0.0, "dump_dir": str(tmp_path)}
    )
    case.loss(model(*case.inputs))
    (folder,) = tmp_path.iterdir()
    problem = Problem.from_json((folder / "10-problem.json").read_text())
    plan = Plan.from_json((folder / "30-plan.json").read_text())
    assert plan.recomputed(problem)

    def operator(target: str) -> str:
        return target.split(".")[1]

    kernels = [problem.ops[i] for i in plan.backward if problem.ops[i].kind is Kind.KERNEL]
    names = [operator(op.target) for op in kernels]
    planned = [name for name in names if name in ("mm", "bmm") or "attention" in name]
    code = (folder / "61-backward-code.py").read_text().split("def call(", 1)[1]
    ran = re.findall(r"extern_kernels\.(mm|bmm)\(|= torch\.ops\.aten\.(\w*attention\w*)\.", code)
    assert [a or b for a, b in ran] == planned


TWO_BUDGETS = """
import sys, torch, graphremat
torch.manual_seed(0)
block = lambda: (torch.nn.Linear(32, 128), torch.nn.GELU(), torch.nn.Linear(128, 32))
model = torch.nn.Sequential(*(part for _ in range(4) for part in block()))
x = torch.randn(64, 32)
sums = {}
for budget in (None, 0.0):
    model.zero_grad()
    run = torch.compile(model, backend="graphremat", options={"memory_budget": budget})
    run(x).square().mean().backward()
    sums[budget] = [p.grad.double().sum().item() for p in model.parameters()]
hits = {k: v for where in torch._dynamo.utils.counters.values() for k, v in where.items() if k.endswith("cache_hit")}
print(([r.saved_bytes for r in graphremat.reports()], sums, hits))
"""


@pytest.mark.slow
def test_a_changed_budget_gives_another_plan_with_caches_on(tmp_path: Path) -> None:
    """Caches are on and warm: a second process takes the first one's code for the same budget, and only for that."""
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    first = subprocess.run(
        [sys.executable, "-c", TWO_BUDGETS], env=environment, check=True, capture_output=True, text=True
    )
    (without, lowest), sums, hits = eval(first.stdout)
    assert without > lowest
    assert not hits
    second = subprocess.run(
        [sys.executable, "-c", TWO_BUDGETS.replace("(None, 0.0)", "(None, 0.5)")],
        env=environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    # the graph without a budget comes out of the cache and is not planned again
    (half,), sums_again, hits_again = eval(second.stdout)
    assert lowest < half < without
    assert hits_again == {"autograd_cache_hit": 1, "fxgraph_cache_hit": 2}
    assert sums_again[None] == sums[None]


def test_a_graph_of_torchs_that_would_be_wrong_is_not_handed_on() -> None:
    """Torch's own partition reads an overwritten buffer again: the gradient of plain Inductor is wrong."""

    class Overwrites(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linears = torch.nn.ModuleList(torch.nn.Linear(16, 16) for _ in range(2))
            self.register_buffer("state", torch.ones(16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for linear in self.linears:
                x = torch.tanh(linear(x) * self.state.sin())
            self.state.copy_(self.state * 3)
            return x.square().mean()

    model, x = Overwrites(), torch.randn(32, 16)

    def gradients(run: object) -> list[torch.Tensor | None]:
        model.state.fill_(1.0)
        model.zero_grad(set_to_none=True)
        run(x).backward()  # type: ignore[operator]
        return [None if p.grad is None else p.grad.clone() for p in model.parameters()]

    wanted = gradients(model)
    assert gradient_error(wanted, gradients(torch.compile(model, backend="graphremat"))) <= 1e-5


@pytest.mark.slow
def test_a_kept_graph_is_not_overwritten_by_code_from_the_cache() -> None:
    """Plain Inductor takes a backward that overwrites what is saved out of its cache of graphs, and is off by 10%."""

    def gradients(backend: str | None, *, keeps: bool) -> list[torch.Tensor | None]:
        torch.compiler.reset()
        torch.manual_seed(0)
        layers = (part for _ in range(4) for part in (torch.nn.Linear(32, 32), torch.nn.GELU()))
        model = torch.nn.Sequential(*layers)
        run = torch.compile(model, backend=backend, options={"memory_budget": 0.0}) if backend else model
        loss = run(torch.randn(8, 32)).pow(2).mean()
        if keeps:
            loss.backward(retain_graph=True)
        loss.backward()
        return [p.grad for p in model.parameters()]

    with torch.compiler.config.patch(force_disable_caches=False), private.autograd_cache(False):
        gradients("graphremat", keeps=False)
        assert gradient_error(gradients(None, keeps=True), gradients("graphremat", keeps=True)) <= 1e-5


def compiled_step(
    case: Case, budget: float | None
) -> tuple[list[torch.Tensor | None], list[str], dict[str, int]]:
    """Gradients of a first step, the wrappers made for it, and by how much Inductor's counts rose."""
    torch.compiler.reset()
    before = private.kernel_metrics()
    model = torch.compile(case.model, backend="graphremat", options={"memory_budget": budget})
    gradients, sources = private.run_and_get_code(lambda: step_and_gradients(case, model))
    return (
        gradients,
        sources,
        {name: value - before[name] for name, value in private.kernel_metrics().items()},
    )


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each graph that was compiled: whether its code was there from looking at the plan."""
    found: list[bool] = []
    compiled_as = private.LoweredGraph.compiled_as

    def noted(lowered: private.LoweredGraph, *arguments: Any, **keywords: Any) -> object:
        graph = compiled_as(lowered, *arguments, **keywords)
        found.append(graph is lowered.graph)
        return graph

    monkeypatch.setattr(private.LoweredGraph, "compiled_as", noted)
    return found


def test_the_code_that_was_looked_at_is_the_code_that_runs(
    taken: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = NETWORKS["resnet"].build("one_block")
    state = {k: v.clone() for k, v in case.model.state_dict().items()}
    compile_fx = importlib.import_module("torch._inductor.compile_fx")
    counters = importlib.import_module("torch._dynamo.utils").counters
    counters.clear()
    passes_run: list[None] = []
    run_passes = compile_fx._recursive_post_grad_passes

    def counted(*arguments: Any, **keywords: Any) -> None:
        passes_run.append(None)
        run_passes(*arguments, **keywords)

    monkeypatch.setattr(compile_fx, "_recursive_post_grad_passes", counted)
    gradients, sources, counts = compiled_step(case, 0.3)
    matched = counters["inductor"].copy()
    assert taken == [True, True]
    assert counts["generated_kernel_count"] > 0
    runs = len(passes_run)
    monkeypatch.setattr(private, "compiling_as_generated", lambda _: contextlib.nullcontext())
    case.model.load_state_dict(state)
    counters.clear()
    expected, same_sources, same_counts = compiled_step(case, 0.3)
    assert len(passes_run) == runs + runs + 2
    assert counts == same_counts
    assert matched == counters["inductor"]
    assert [re.sub(r"'\d+_", "'", source) for source in sources] == [
        re.sub(r"'\d+_", "'", source) for source in same_sources
    ]
    assert gradient_error(expected, gradients) == 0


def test_code_of_another_graph_is_not_taken(taken: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    case = NETWORKS["linear_stack"].build("one_block")
    swapped = property(
        lambda self: list(reversed(self.kept)), lambda self, kept: vars(self).update(kept=kept)
    )
    monkeypatch.setattr(Partitioner, "_generated", swapped, raising=False)
    gradients, _, _ = compiled_step(case, 0.0)
    assert taken == [False, False]
    assert gradient_error(step_and_gradients(case, case.model), gradients) <= 1e-5


def test_torchs_own_plan_becomes_torchs_own_code() -> None:
    case = NETWORKS["linear_stack"].build("one_block")
    _, sources, _ = compiled_step(case, None)
    assert graphremat.last_report().chosen == 0
    torch.compiler.reset()
    with private.origins_in_comments():
        _, plain = private.run_and_get_code(lambda: step_and_gradients(case, torch.compile(case.model)))
    assert [source.splitlines()[1:] for source in sources] == [source.splitlines()[1:] for source in plain]


@pytest.mark.parametrize("budget", [0.0, 40_000_000])
def test_kernels_are_started_when_their_plan_is_taken_and_built_once(
    budget: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = NETWORKS["linear_stack"].build("tiny")
    started: list[str] = []
    built: list[str] = []
    begun: list[int] = []
    kernels_of = importlib.import_module("torch._inductor.codecache").CppPythonBindingsCodeCache
    builder_class = importlib.import_module("torch._inductor.cpp_builder").CppBuilder
    start, build = private.start_compiling, builder_class.build

    def noted_start(wrapper: str) -> None:
        started.append(wrapper)
        start(wrapper)
        begun.append(len(kernels_of.cache))

    def noted_build(builder: Any) -> None:
        built.append(builder.get_target_file_path())
        build(builder)

    monkeypatch.setattr(private, "start_compiling", noted_start)
    monkeypatch.setattr(builder_class, "build", noted_build)
    with torch.compiler.config.patch(force_disable_caches=False), fresh_cache():
        _, sources, _ = compiled_step(case, budget)
        assert 0 < begun[0] <= begun[1] == len(kernels_of.cache)  # Inductor had none to begin
    kernels = [set(re.findall(r"cpp_pybinding\(.*?\'\'\'\)", s, re.DOTALL)) for s in (*started, *sources)]
    assert len(started) == len(sources) == 2
    assert set.union(*kernels[:2]) == set.union(*kernels[2:]) != set()
    assert len(built) == len(set(built)) >= len(set.union(*kernels))


@pytest.mark.parametrize(("taken", "started_codes"), [(-1, 1), (0, 2)])
def test_plans_that_are_looked_at_to_compare_are_not_compiled_ahead(
    taken: int, started_codes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first that is looked at is, since it is nearly always taken, and else the one that is."""
    started: list[str] = []

    def look_at_both(
        replayed: Sequence[int], truth: Callable[[int], int], *_: object, **__: object
    ) -> Choice:
        places = range(len(replayed))
        known = {place: truth(place) for place in (places[-1], places[0])}
        return Choice(places[taken], None, True, known)

    monkeypatch.setattr(private, "start_compiling", started.append)
    monkeypatch.setattr(plans, "choose", look_at_both)
    case = NETWORKS["linear_stack"].build("tiny")
    planned(case.model, case.inputs, memory_budget=0.0)
    assert len(started) == len(set(started)) == 2 * started_codes


def test_a_kernel_that_cannot_be_compiled_ahead_is_left_to_inductor() -> None:
    with torch.compiler.config.patch(force_disable_caches=False), fresh_cache():
        private.start_compiling("k = async_compile.cpp_pybinding(['float*'], r'''no C++''')")
        private.start_compiling("k = async_compile.cpp_pybinding(name, source)")
        private.start_compiling("no Python")
