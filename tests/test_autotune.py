"""Plans that take turns in real steps: which, how often, and which one stays."""

import pytest
import torch

import graphremat
from graphremat import autotune
from graphremat.autotune import ROUNDS, Autotuned, promising
from graphremat.measure import gradient_error
from tests.steps import GatedLayers

pytestmark = pytest.mark.usefixtures("fresh_compiler")


class Clock:
    """A clock by which plans take what the test says: it goes on by that much between two looks."""

    def __init__(self, seconds: dict[int, float]) -> None:
        self.seconds, self.now, self.place = seconds, 0.0, 0

    def __call__(self) -> float:
        self.now += self.seconds.get(self.place, 1.0) / 2
        return self.now


def trained(
    monkeypatch: pytest.MonkeyPatch, fastest: int, *, budget: object = None, steps: int = 13
) -> tuple[GatedLayers, graphremat.Report, list[int]]:
    """A model after some steps in which the contender number ``fastest`` takes least, its report, and the turns."""
    clock = Clock({})
    turns: list[int] = []
    kept_timed = Autotuned._timed

    def timed(self: Autotuned, contender: autotune._Contender, *rest: object) -> object:
        number = self._contenders.index(contender)
        turns.append(number)
        clock.place, clock.seconds = number, {fastest: 0.1}
        self._clock = clock
        return kept_timed(self, contender, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Autotuned, "_timed", timed)
    model, x = GatedLayers(), torch.randn(256, 64)
    options = {"lowering": "aot_eager", "memory_budget": budget, "autotune": 3, "on_failure": "error"}
    call = torch.compile(model, backend="graphremat", options=options)
    for _ in range(steps):
        model.zero_grad(set_to_none=True)
        call(x).backward()
        found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        wanted = torch.autograd.grad(model(x), list(model.parameters()))
        assert gradient_error(wanted, found) < 1e-6
    return model, graphremat.last_report(), turns


@pytest.mark.parametrize("fastest", [0, 2])
def test_the_fastest_by_the_clock_stays(monkeypatch: pytest.MonkeyPatch, fastest: int) -> None:
    _, report, turns = trained(monkeypatch, fastest)
    assert turns == list(range(3)) * (1 + ROUNDS)  # one after another, the first round not counted
    assert len(report.timed_plans) == 3
    kept = report.timed_plans[fastest]
    assert report.chosen == kept.place
    assert kept.measured_seconds == pytest.approx(0.1)
    assert [t.measured_seconds > 0.5 for t in report.timed_plans] == [k != fastest for k in range(3)]
    assert f"plan {kept.place}: 100.00 ms a step" in str(report)
    assert ", kept" in str(report)


def test_the_models_choice_stays_unless_another_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    _, report, _ = trained(monkeypatch, fastest=-1)
    assert report.chosen == report.timed_plans[0].place


@pytest.mark.parametrize("budget", ["1MiB", 0.5])
def test_the_budget_holds_whoevers_turn_it_is(monkeypatch: pytest.MonkeyPatch, budget: object) -> None:
    before = max((report.graph for report in graphremat.reports()), default=-1)
    _, report, turns = trained(monkeypatch, fastest=2, budget=budget)
    assert len(set(turns)) == 3
    budget_bytes = report.budget_bytes
    assert budget_bytes is not None
    compiled = [r for r in graphremat.reports() if r.graph > before]
    assert len({r.chosen for r in compiled}) == 3
    assert all(r.generated_peak_bytes <= budget_bytes for r in compiled)


def test_steps_without_a_backward_choose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = GatedLayers(), torch.randn(256, 64)
    call = torch.compile(model, backend="graphremat", options={"lowering": "aot_eager", "autotune": 2})
    before = len(graphremat.reports())
    with torch.no_grad():
        for _ in range(5):
            call(x)
    assert len(graphremat.reports()) == before
    for _ in range(3 * (1 + ROUNDS)):
        call(x).backward()
    assert graphremat.last_report().timed_plans


def test_a_contender_that_cannot_be_compiled_is_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> object:
        raise RuntimeError("no compiler")

    kept = Autotuned.__init__

    def init(self: Autotuned, first: object, others: list[object]) -> None:
        kept(self, first, [fails] * len(others))  # type: ignore[arg-type]

    monkeypatch.setattr(Autotuned, "__init__", init)
    _, report, turns = trained(monkeypatch, fastest=0, steps=8)
    assert set(turns) == {0}
    assert not report.timed_plans
    assert "cannot be tried: no compiler" in caplog.text


def test_what_saves_more_or_peaks_higher_gets_no_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    _, report, _ = trained(monkeypatch, fastest=0, budget=0.5)
    chosen = report.frontier[report.chosen]
    for place in promising(report, 100):
        point = report.frontier[place]
        assert point.planned_peak_bytes <= chosen.planned_peak_bytes
        assert point.saved_bytes <= chosen.saved_bytes
        assert point.step_seconds <= autotune.MOST_SLOWER * chosen.step_seconds
    assert promising(report, 0) == []
