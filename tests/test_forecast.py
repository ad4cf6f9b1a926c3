"""Planning without running: against the backend's own plan, against arithmetic, and from the command line."""

import json
import resource
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import graphremat
from bench.networks import NETWORKS
from bench.uncompiled import planned
from graphremat import forecast
from graphremat.cli import app
from graphremat.errors import BudgetInfeasible, DumpError, OptionError, PlanningError
from graphremat.factories import load_factory
from graphremat.forecast import DEVICE_RESERVE_BYTES, usable_bytes
from graphremat.optimizers import OPTIMIZERS
from graphremat.passes import scratch
from graphremat.passes.devices import DEVICES
from graphremat.passes.problem import Kind
from tests.pages import alive_bytes, data_of

pytestmark = pytest.mark.usefixtures("fresh_compiler")

MODEL_FILE = """
import torch
from torch import nn

def small():
    layers = [layer for _ in range(4) for layer in (nn.Linear(64, 64), nn.Tanh())]
    return nn.Sequential(*layers), (torch.randn(512, 64),)

def huge():
    return nn.Sequential(*[nn.Linear(1 << 17, 1 << 17) for _ in range(2)]), (torch.randn(1, 1 << 17),)

number = 3
"""


def layers(width: int = 64, count: int = 6) -> nn.Module:
    return nn.Sequential(*[m for _ in range(count) for m in (nn.Linear(width, width), nn.Tanh())])


@pytest.mark.parametrize(
    ("name", "budget"),
    [
        ("post_norm", None),
        ("llama", 0.0),
        ("dropout_gpt", 0.0),
        ("called_twice", 0.5),
        ("resnet", 0.25),
        ("linear_stack", 0.0),
    ],
)
def test_for_this_machine_the_peak_is_that_of_the_code_that_the_backend_compiles(
    name: str, budget: float | None
) -> None:
    def make() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
        case = NETWORKS[name].build("tiny")
        return case.model, case.inputs

    found = graphremat.plan(make, budget=budget)
    case = NETWORKS[name].build("tiny")
    report = planned(case.model, case.inputs, memory_budget=budget)
    assert found.peak_bytes == found.points[found.chosen].generated_peak_bytes == report.generated_peak_bytes
    assert found.points[found.chosen].peak_bytes == report.planned_peak_bytes
    assert found.step_seconds == pytest.approx(report.step_seconds)
    assert "by the code of the plan" in found.summary()


def test_budgets_in_bytes_are_kept_by_the_code_with_what_lives_outside_of_the_graph() -> None:
    model, x = layers(), torch.randn(512, 64)
    low, high = (graphremat.plan(model, (x,), b, optimizer="adam").peak_bytes for b in (0.0, None))
    budget = (low + high) // 2
    found = graphremat.plan(model, (x,), budget, optimizer="adam")
    report = planned(model, (x,), memory_budget=budget - found.optimizer_bytes)
    assert found.optimizer_bytes > 0
    assert found.peak_bytes == report.generated_peak_bytes + found.optimizer_bytes <= budget


def test_no_code_where_it_is_not_asked_for_and_none_of_another_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x = layers(), torch.randn(48, 64)
    assert graphremat.plan(model, (x,), code=False).points[0].generated_peak_bytes is None
    assert graphremat.plan(model, (x,), device="L4").points[0].generated_peak_bytes is None
    with pytest.raises(OptionError, match="code for L4 cannot be generated here"):
        graphremat.plan(model, (x,), device="L4", code=True)
    monkeypatch.setattr(forecast, "CODE_OPS", 1)
    assert graphremat.plan(model, (x,)).points[0].generated_peak_bytes is None
    assert graphremat.plan(model, (x,), code=True).points[0].generated_peak_bytes is not None


def test_what_was_compiled_before_changes_nothing_and_stays_compiled() -> None:
    model, x = layers(), torch.randn(48, 64)
    alone = graphremat.plan(model, (x,)).problem.to_json()
    torch.compiler.reset()
    compiled_graphs = 0

    def count(gm: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        nonlocal compiled_graphs
        compiled_graphs += 1
        return gm

    step = torch.compile(model, backend=count)
    for batch in (8, 16, 24):  # the second size makes the batch a symbol
        step(torch.randn(batch, 64))
    before = compiled_graphs
    assert before == 2
    for _ in range(12):  # more than Dynamo keeps versions of one function
        assert graphremat.plan(model, (x,)).problem.to_json() == alone
    step(torch.randn(32, 64))
    assert compiled_graphs == before


def test_no_weights_are_made() -> None:
    def make() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
        return layers(1 << 15, 4), (torch.randn(8, 1 << 15),)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = graphremat.plan(make, device="H100")
    grown_bytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert found.parameter_bytes == 4 * 4 * ((1 << 30) + (1 << 15))
    assert found.peak_bytes > 2 * found.parameter_bytes
    assert grown_bytes < found.parameter_bytes / 8


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_lives_outside_of_the_graph_is_counted(optimizer: str, accumulate: bool) -> None:
    model, x = layers(), torch.randn(32, 64)
    for parameter in model[0].parameters():  # type: ignore[index]
        parameter.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    plain = graphremat.plan(model, (x,))
    found = graphremat.plan(model, (x,), optimizer=optimizer, accumulate=accumulate)
    numbers = sum(p.numel() for p in trained)
    states = {
        "none": 0,
        "sgd": 0,
        "sgd-momentum": 4 * numbers,
        "adam": 8 * numbers,
        "adamw": 8 * numbers,
        # the weights have 4,096 numbers in 16 blocks; the 64 of a bias stay in 32 bits
        "adamw-8bit": 5 * (2 * (4096 + 16 * 4) + 8 * 64),
        "adamw-fp32": 8 * numbers,
        "adamw-master": 8 * numbers,  # the weights are in float32 already
    }
    assert found.trained_bytes == 4 * numbers
    assert found.optimizer_bytes == states[optimizer]
    assert found.accumulated_bytes == (4 * numbers if accumulate else 0)
    assert found.peak_bytes - plain.peak_bytes == found.optimizer_bytes + found.accumulated_bytes


def test_state_of_an_optimizer_is_what_torchs_own_keeps() -> None:
    model = layers()
    for name, optimizer in (
        ("adamw", torch.optim.AdamW(model.parameters())),
        ("sgd-momentum", torch.optim.SGD(model.parameters(), momentum=0.9)),
        ("sgd", torch.optim.SGD(model.parameters())),
    ):
        model(torch.randn(2, 64)).sum().backward()
        optimizer.step()
        kept = [
            t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)
        ]
        states = sum(t.numel() * t.element_size() for t in kept if t.dim())  # without the numbers of steps
        assert sum(map(OPTIMIZERS[name], model.parameters())) == states


def test_budgets_and_the_devices_memory() -> None:
    model, x = layers(count=8), torch.randn(4096, 64)
    free = graphremat.plan(model, (x,), device="RTX-4090")
    assert free.fits
    assert usable_bytes(free.device) == DEVICES["RTX-4090"].memory_bytes - DEVICE_RESERVE_BYTES
    lowest = free.points[-1].peak_bytes
    between = (free.peak_bytes + lowest) // 2
    tight = graphremat.plan(model, (x,), between, device="RTX-4090")
    assert lowest <= tight.peak_bytes <= between < free.peak_bytes
    assert tight.step_seconds >= free.step_seconds
    assert [p.peak_bytes for p in tight.points] == sorted((p.peak_bytes for p in tight.points), reverse=True)
    assert graphremat.plan(model, (x,), "auto", device="RTX-4090").peak_bytes == free.peak_bytes
    with pytest.raises(BudgetInfeasible, match="the lowest peak is") as caught:
        graphremat.plan(model, (x,), 1000)
    assert caught.value.lowest_peak_bytes == graphremat.plan(model, (x,), 0.0).peak_bytes
    assert caught.value.holders


def test_mistakes_are_named() -> None:
    model, x = layers(), torch.randn(2, 64)
    with pytest.raises(OptionError, match="nearest: RTX-4090"):
        graphremat.plan(model, (x,), device="RTX-4091")
    with pytest.raises(OptionError, match="did you mean 'adamw'"):
        graphremat.plan(model, (x,), optimizer="adamww")
    with pytest.raises(OptionError, match=r"give a torch\.nn\.Module"):
        graphremat.plan(lambda: 3)
    with pytest.raises(PlanningError, match="nothing in the model gets a gradient"):
        graphremat.plan(model.requires_grad_(False), (x,))
    with pytest.raises(PlanningError, match="cannot be traced as one graph"):
        graphremat.plan(layers(), (torch.randn(2, 63),))


class Opaque(torch.nn.Module):
    """Layers behind operators of which graphremat knows nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(64, 64) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = opaque_sine(layer(x))
        return x.sum()


@torch.library.custom_op("graphremat_test::opaque_sine", mutates_args=())
def opaque_sine(x: torch.Tensor) -> torch.Tensor:
    return x.sin()


opaque_sine.register_fake(torch.empty_like)
opaque_sine.register_autograd(
    lambda ctx, grad: grad * ctx.saved_tensors[0].cos(),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


def test_operators_that_are_said_to_be_repeatable_need_not_be_saved() -> None:
    model, x = Opaque(), torch.randn(512, 64)
    saved, again = (
        graphremat.plan(model, [x], 0.0, code=False, repeatable=names).points[-1].peak_bytes
        for names in ([], ["graphremat_test::opaque_sine"])
    )
    assert again <= saved - x.nbytes
    with pytest.raises(graphremat.OptionError, match="no operator 'graphremat_test::opaque_cosine'"):
        graphremat.plan(model, [x], repeatable=["graphremat_test::opaque_cosine"])
    result = CliRunner().invoke(app, ["plan", "llama-tiny", "--repeatable", "no_such::operator"])
    assert "no operator 'no_such::operator'" in str(result.exception)


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(MODEL_FILE)
    runner, small = CliRunner(), f"{tmp_path / 'net.py'}:small"
    told = runner.invoke(app, ["plan", small, "--device", "L4", "--optimizer", "adamw", "--json"])
    assert told.exit_code == 0, told.output
    answer = json.loads(told.stdout)
    assert answer["fits"]
    assert answer["device"] == "L4"
    assert answer["optimizer_bytes"] == 2 * answer["parameter_bytes"] == 2 * 4 * 4 * (64 * 64 + 64)
    assert answer["plans"][answer["chosen"]]["peak_bytes"] == answer["peak_bytes"]
    shown = runner.invoke(app, ["plan", small, "--device", "L4", "--budget", "0.5"])
    assert shown.exit_code == 0
    assert "fits L4" in shown.output
    assert "->" in shown.output
    too_large = runner.invoke(app, ["plan", f"{tmp_path / 'net.py'}:huge", "--device", "L4"])
    assert too_large.exit_code == 1
    assert "does not fit L4" in too_large.output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "names no function"),
        ("no_such_module:f", "no module 'no_such_module'"),
        ("no_such_file.py:f", r"no file no_such_file\.py"),
        ("graphremat.units:parse_byte", "it has .*parse_bytes"),
    ],
)
def test_a_model_that_is_not_there(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        load_factory(text)


def test_the_plan_is_shown_as_a_page(tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    (tmp_path / "net.py").write_text(MODEL_FILE)
    path, small = tmp_path / "page.html", f"{tmp_path / 'net.py'}:small"
    options = ["--device", "L4", "--optimizer", "adamw", "--budget", "0.5"]
    done = CliRunner().invoke(app, ["plan", small, *options, "--report", str(path), "--json"])
    assert done.exit_code == 0, done.output
    told, data = json.loads(done.stdout), data_of(path.read_text())
    assert data["planned_peak_bytes"] == told["peak_bytes"]
    assert alive_bytes(data, data["peak_position"]) == told["peak_bytes"]
    assert [point["planned_peak_bytes"] for point in data["points"]] == [
        p["peak_bytes"] for p in told["plans"]
    ]
    assert (data["chosen"], data["outside_bytes"]) == (told["chosen"], told["optimizer_bytes"])
    assert data["generated_peak_bytes"] is None
    with pytest.raises(DumpError, match="cannot write the report"):
        graphremat.plan(layers(), (torch.randn(48, 64),)).write_report(tmp_path / "nowhere" / "page.html")


def test_convolutions_are_not_run_here_to_plan_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    probed: list[str] = []
    monkeypatch.setattr(scratch, "_probed", lambda name, *_: probed.append(name) or 1 << 20)

    def make() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)), (torch.randn(2, 3, 16, 16),)

    here = graphremat.plan(make).problem
    assert set(probed) == {"aten.convolution.default", "aten.convolution_backward.default"}
    probed.clear()
    there = graphremat.plan(make, device="A100-80GB").problem
    assert probed == []
    assert sum(op.scratch_bytes for op in there.ops) == 0 < sum(op.scratch_bytes for op in here.ops)


def test_a_buffer_for_a_mask_costs_a_processor_more_than_one_for_what_it_is_made_of() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    for device, is_dearer in ((None, True), ("A100-40GB", False)):
        problem = graphremat.plan(model, (torch.randn(4096, 64),), device=device).problem
        mask, made_of = (
            next(op for op in problem.ops if op.target.startswith(name))
            for name in ("aten.le.", "aten.relu.")
        )
        assert (mask.seconds > 2 * made_of.seconds) == is_dearer
        assert mask.fused_seconds < made_of.seconds


def test_for_a_gpu_ops_become_the_kernels_of_a_gpu() -> None:
    """On a CPU several loops are one function, and concatenation is one that fills a buffer."""

    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.left(x), self.right(x)], 1).tanh().sum()

    here, there = (graphremat.plan(Halves(), (torch.randn(4, 8),), device=d).problem for d in (None, "L4"))
    kinds = [next(op.kind for op in p.ops if op.target == "aten.cat.default") for p in (here, there)]
    assert kinds == [Kind.REDUCTION, Kind.FUSIBLE]
    assert (here.groups, there.groups) == (True, False)
