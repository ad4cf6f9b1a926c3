"""Profile-guided planning: what is measured of real steps, what follows from it, and that no step is lost."""

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, fx, nn

import graphremat
from graphremat import autotune, partitioner, profile
from graphremat.autotune import ROUNDS
from graphremat.candidates import graph_device
from graphremat.kernel_clock import with_ticks
from graphremat.measure import gradient_error
from graphremat.passes.attribute import Attribution, attribute
from graphremat.passes.torch_private import FakeTensorMode, wrapper_function
from graphremat.report import Report
from tests.steps import GatedLayers

pytestmark = pytest.mark.usefixtures("fresh_compiler")

MEASURING = 2 + profile.TIMED_STEPS
"""Steps until all is measured: one compiles the backward, one is followed by the allocator."""
BUDGET = "900KiB"
"""Of :class:`GatedLayers`, between its lowest and its fastest peak."""


def compiled(model: nn.Module, **options: object) -> Callable[..., Tensor]:
    given = {"lowering": "aot_eager", "memory_budget": 0.5, "profile": True, "on_failure": "error", **options}
    return torch.compile(model, backend="graphremat", options=given)  # type: ignore[return-value]


def train(model: nn.Module, call: Callable[..., Tensor], x: Tensor, steps: int) -> None:
    for _ in range(steps):
        model.zero_grad(set_to_none=True)
        call(x).backward()
        found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        wanted = torch.autograd.grad(model(x), list(model.parameters()))
        assert gradient_error(wanted, found) < 1e-6


def test_the_first_steps_are_measured() -> None:
    model, x = GatedLayers(), torch.randn(256, 64)
    train(model, compiled(model), x, MEASURING + 1)
    truth = next(r.truth for r in reversed(graphremat.reports()) if r.truth is not None)
    assert truth.peak_bytes == truth.generated_peak_bytes  # the allocator's events against the dry run
    assert 0 < truth.recomputed_seconds < truth.call_seconds <= truth.step_seconds
    assert 0 < truth.attributed_seconds <= truth.call_seconds
    ops = {name for call in truth.calls for name in call.ops}
    assert {"tanh", "sigmoid"} <= ops
    assert any(call.recomputed_seconds > 0 for call in truth.calls if call.phase == "backward")
    assert not any(call.recomputed_seconds for call in truth.calls if call.phase == "forward")
    assert "measured   peak" in str(graphremat.last_report())


def test_the_device_of_a_graph_is_known_before_it_is_traced() -> None:
    """Dynamo's graph, which has no ``val`` yet, is what the first steps are measured of."""
    graphs: list[fx.GraphModule] = []

    def keep(graph: fx.GraphModule, _: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    with FakeTensorMode():
        x = torch.empty(4, device="cuda")
        torch.compile(lambda x: x + 1, backend=keep)(x)
    assert graph_device(graphs[0]) == torch.device("cuda", 0)


def test_code_for_a_gpu_is_found_behind_what_aligns_its_inputs() -> None:
    class Runner:
        def call(self, _: object) -> None: ...

    Runner.call.__qualname__ = "Runner.call"
    model = Runner().call

    def aligned(inputs: list[Tensor]) -> object:
        return model([x.clone() for x in inputs])

    assert wrapper_function(SimpleNamespace(current_callable=aligned)) is Runner.call
    assert wrapper_function(SimpleNamespace(current_callable=model)) is Runner.call
    assert wrapper_function(SimpleNamespace(current_callable=print)) is None

    def not_yet() -> object:
        return later

    assert wrapper_function(SimpleNamespace(current_callable=not_yet)) is None
    later = None


class Card:
    """Stands in for a GPU's allocator: bytes that are freed when the object that holds them dies."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = self.most = 0
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: self.now)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: self.most)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: setattr(self, "most", self.now))

    def block(self, size: int) -> "Block":
        self.now += size
        self.most = max(self.most, self.now)
        return Block(self, size)


class Block:
    """Some bytes of a card."""

    def __init__(self, card: Card, size: int) -> None:
        self.card, self.size = card, size
        self.itself: Block | None = None

    def __del__(self) -> None:
        self.card.now -= self.size


def test_garbage_of_the_step_before_does_not_hide_a_gpus_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch)
    inputs = card.block(10)
    leftover = card.block(1000)
    leftover.itself = leftover  # only the collector of cycles frees it
    del leftover
    assert card.now == 1010
    peak = profile._Peak(torch.device("cuda"))
    peak.forward_begins()
    saved = [card.block(5) for _ in range(4)]
    peak.forward_ends()
    peak.backward_begins()
    assert not gc.isenabled()
    del saved
    peak.backward_ends()
    assert (peak.bytes_over_inputs, peak.done, gc.isenabled()) == (20, True, True)
    assert card.now == inputs.size


def wrong_prices(monkeypatch: pytest.MonkeyPatch, what: str, factor: float) -> None:
    """As if the kernels of an op had taken so many times their price, and those of all others their price."""

    def attributed(*args: object) -> Attribution:
        found = attribute(*args)  # type: ignore[arg-type]
        return replace(found, ratios={n: factor if n.startswith(what) else 1.0 for n in found.ratios})

    monkeypatch.setattr(partitioner, "attribute", attributed)


def by_the_clock(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
    """The contenders take that long, in their order."""
    kept = autotune.Autotuned._timed

    def timed(self: autotune.Autotuned, contender: autotune._Contender, *rest: object) -> object:
        taken, looks = seconds[self._contenders.index(contender)], iter(range(1000))
        self._clock = lambda: next(looks) * taken / 2
        return kept(self, contender, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(autotune.Autotuned, "_timed", timed)


@pytest.mark.parametrize(("seconds", "corrected"), [((1.0, 0.5), True), ((0.5, 1.0), False)])
def test_the_corrected_plan_is_kept_if_it_is_faster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seconds: tuple[float, float], corrected: bool
) -> None:
    wrong_prices(monkeypatch, "sigmoid", 100.0)
    by_the_clock(monkeypatch, *seconds)
    model, x = GatedLayers(), torch.randn(256, 64)
    train(
        model,
        compiled(model, memory_budget=BUDGET, dump_dir=str(tmp_path)),
        x,
        MEASURING + 2 * (1 + ROUNDS) + 2,
    )
    report = graphremat.last_report()
    assert [t.corrected for t in report.timed_plans] == [False, True]
    assert report.corrected == corrected
    assert [t.kept for t in report.timed_plans] == [not corrected, corrected]
    assert report.truth is not None
    assert report.budget_bytes == 900 * 1024
    assert report.generated_peak_bytes <= report.budget_bytes
    first = next(r for r in reversed(graphremat.reports()) if r.truth and not r.timed_plans)
    assert first.truth is not None
    assert "| backward |" in Path(str(first.dump_dir), "70-truth.md").read_text()
    assert Report.from_json(Path(str(first.dump_dir), "report.json").read_text()) == first
    assert f'"peak_bytes":{first.truth.peak_bytes}' in Path(str(first.dump_dir), "report.html").read_text()
    saved = [Path(str(r.dump_dir), "saved.md").read_text().count("sigmoid") for r in (first, report)]
    assert (saved[1] > saved[0]) == corrected


def test_a_plan_that_stays_the_same_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_prices(monkeypatch, "nothing", 1.0)
    model, x = GatedLayers(), torch.randn(256, 64)
    train(model, compiled(model), x, MEASURING + 3)
    report = graphremat.last_report()
    assert not report.timed_plans
    assert not report.corrected
    assert report.truth is not None


def test_steps_that_are_not_one_forward_and_one_backward_are_not_measured() -> None:
    model, x = GatedLayers(), torch.randn(256, 64)
    call = compiled(model)
    before = len([r for r in graphremat.reports() if r.truth])
    for _ in range(2 * profile.MOST_DISTURBED + 2):
        model.zero_grad(set_to_none=True)
        first, second = call(x), call(2 * x)
        (first + second).backward()
        found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        wanted = torch.autograd.grad(model(x) + model(2 * x), list(model.parameters()))
        assert gradient_error(wanted, found) < 1e-6
    assert len([r for r in graphremat.reports() if r.truth]) == before


def test_steps_without_a_backward_measure_nothing() -> None:
    model, x = GatedLayers(), torch.randn(256, 64)
    call = compiled(model)
    with torch.no_grad():
        for _ in range(MEASURING + 2):
            call(x)
    train(model, call, x, MEASURING + 1)
    assert any(r.truth for r in graphremat.reports()[-2:])


WRAPPER = """
def call(args):
    x, = args
    args.clear()
    buf0 = empty_strided_cpu(x)
    # graphremat: add, mul
    kernel_0(x, buf0)
    del x
    with guard():
        buf1 = empty_strided_cpu(buf0)
        # graphremat: mm
        kernel_1(buf0, buf1)
        # graphremat: \n        kernel_2(buf1)
    return (buf1, )
"""


def test_ticks_lie_between_the_calls() -> None:
    code, calls = with_ticks(WRAPPER, "call")
    assert [call.nodes for call in calls] == [("add", "mul"), ("mm",), ()]
    assert [call.text for call in calls] == ["kernel_0(x, buf0)", "kernel_1(buf0, buf1)", "kernel_2(buf1)"]
    said: list[object] = []

    class Guard:
        def __enter__(self) -> None:
            said.append("enter")

        def __exit__(self, *_: object) -> None:
            said.append("exit")

    names = {
        "_graphremat_tick": said.append,
        "empty_strided_cpu": lambda _: said.append("allocate") or [0],
        **{f"kernel_{k}": lambda *_, k=k: said.append(f"kernel {k}") for k in range(3)},
        "guard": Guard,
    }
    plain: dict[str, Callable[..., object]] = {}
    exec(WRAPPER, names, plain)
    call = type(plain["call"])(code, names)  # type: ignore[call-arg]
    assert call([[1]]) == ([0],)
    ticks = [-1, "allocate", 0, "kernel 0", -1, "enter", "allocate", 1, "kernel 1", 2, "kernel 2", -1, "exit"]
    assert [word for word in said if word != "exit"] == [word for word in ticks if word != "exit"]


@pytest.mark.inductor
@pytest.mark.parametrize("caches", [True, False])
def test_inductors_kernels_are_timed_and_known(caches: bool) -> None:
    model, x = GatedLayers(), torch.randn(256, 64)
    call = compiled(model, lowering="inductor", memory_budget=0.0)
    with torch.compiler.config.patch(force_disable_caches=not caches):
        train(model, call, x, MEASURING + 1)
    truth = next(r.truth for r in reversed(graphremat.reports()) if r.truth is not None)
    assert truth.peak_bytes == truth.generated_peak_bytes
    assert truth.attributed_seconds > 0.9 * truth.call_seconds
    assert any("cpp_fused" in c.text and "tanh" in c.ops and c.measured_seconds > 0 for c in truth.calls)
    assert any(c.recomputed_seconds > 0 for c in truth.calls)
