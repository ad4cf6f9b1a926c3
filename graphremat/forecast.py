"""Know before you run: what a training step will take, planned on tensors without data.

:func:`plan` traces a model as ``torch.compile`` would and plans its graph, but runs and compiles nothing: no weights
are in memory where the model is made by a factory, and the device need not be there. Peaks are the planner's own
replay of the step, or those of the code that a plan becomes where that is generated (but not compiled), plus what lives
outside of the graph (state of the optimizer, gradients of earlier micro-batches); seconds are the device's prices
(:mod:`graphremat.passes.costs`).

The graph is the one that a CPU would get, so a kernel that only another device has (flash attention on CUDA, say) is
planned as the CPU's counterpart of the same interface; and an allocator's fragmentation is in no number here.
"""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from graphremat.candidates import Lowering
from graphremat.choose import Choice, choose
from graphremat.errors import BudgetInfeasible, DumpError, OptionError
from graphremat.optimizers import bytes_of, state_of
from graphremat.options import Options
from graphremat.partitioner import prices
from graphremat.passes import torch_private as private
from graphremat.passes.devices import Device, UnknownDevice, find_device
from graphremat.passes.frontier import Candidate, Frontier
from graphremat.passes.plan import Plan
from graphremat.passes.problem import Problem
from graphremat.passes.replay import Replay
from graphremat.plans import chosen_plan, fastest_place, plan_behind_torchs
from graphremat.report import TORCHS_PLAN, FrontierPoint
from graphremat.report_data import ShownStep
from graphremat.report_page import page_of
from graphremat.subject import make_subject
from graphremat.tracing import TracedStep, trace_step
from graphremat.units import format_bytes

DEVICE_RESERVE_BYTES = 1 << 30
"""What ``budget="auto"`` leaves of a GPU's memory: the CUDA context with its loaded kernels, libraries' workspaces and
the allocator's fragmentation. An assumption, not measured by us."""

CODE_OPS = 2000
"""Up to so many operators the code is generated where nobody says whether to; it takes a second for about 100."""


@dataclass(frozen=True)
class ForecastPoint:
    """One plan: the step's peak with everything counted, as replayed and, where the code was generated, as that takes;
    its seconds, and how many of them are recomputation."""

    peak_bytes: int
    step_seconds: float
    recompute_seconds: float
    saved_bytes: int
    generated_peak_bytes: int | None = None


@dataclass(frozen=True, eq=False)
class Forecast:
    """What a step will take. Peaks count parameters, inputs, state of the optimizer, gradients and activations.

    Attributes:
        device: whose speed and memory are meant.
        budget_bytes: the peak that was allowed; None for the fastest plan.
        parameter_bytes, trained_bytes: of all parameters, and of those that get gradients.
        optimizer_bytes, accumulated_bytes: what lives outside of the graph.
        points: plans from the fastest to the one of lowest peak.
        chosen: which of them is meant.
        torchs: what torch's own partitioner does; None where its plan cannot be kept.
        ops: operators of the traced graph.
        problem: the graph as the planner sees it.
        plans, replays: of the same plans as ``points``.
        torchs_plan: the plan behind ``torchs``.
        torchs_under: torch's plans under the values of its ``activation_memory_budget`` that were asked for.
        outside_bytes: what a peak has beyond a replay's: the two above, less what a quantised base saves.
    """

    device: Device
    budget_bytes: int | None
    parameter_bytes: int
    trained_bytes: int
    optimizer_bytes: int
    accumulated_bytes: int
    points: tuple[ForecastPoint, ...]
    chosen: int
    torchs: ForecastPoint | None
    ops: int
    problem: Problem
    plans: tuple[Plan, ...]
    replays: tuple[Replay, ...]
    torchs_plan: Plan | None
    torchs_under: Mapping[float, Plan | None]
    outside_bytes: int

    @property
    def peak_bytes(self) -> int:
        """The chosen plan's peak: its code's, where that was generated."""
        point = self.points[self.chosen]
        return point.peak_bytes if point.generated_peak_bytes is None else point.generated_peak_bytes

    @property
    def holders(self) -> tuple[tuple[str, int], ...]:
        """``(name, bytes)`` of the graph's largest values alive at the chosen plan's peak."""
        run = self.replays[self.chosen]
        return tuple(run.alive_at(self.problem, run.peak_position)[:10])

    @property
    def step_seconds(self) -> float:
        """Seconds of forward and backward under the chosen plan, by the device's prices."""
        return self.points[self.chosen].step_seconds

    @property
    def fits(self) -> bool:
        """Whether the chosen plan's peak, and :data:`DEVICE_RESERVE_BYTES` on a GPU, fit the device's memory."""
        return self.peak_bytes <= usable_bytes(self.device)

    def within(self, budget_bytes: int) -> "Forecast | None":
        """The same under the plan that is taken for a peak of at most so many bytes: torch's own if it is under, else
        the fastest that is. None if there is none."""
        place = next((k for k, point in enumerate(self.points) if point.peak_bytes <= budget_bytes), None)
        return None if place is None else replace(self, chosen=place, budget_bytes=budget_bytes)

    def shown_step(self) -> ShownStep:
        """The chosen plan as the page and :func:`graphremat.explain` show it."""

        def shown(point: ForecastPoint, origin: str) -> FrontierPoint:
            return FrontierPoint(
                planned_peak_bytes=point.peak_bytes,
                generated_peak_bytes=point.generated_peak_bytes,
                recomputed_seconds=point.recompute_seconds,
                step_seconds=point.step_seconds,
                saved_bytes=point.saved_bytes,
                origin=origin,
            )

        points = tuple(shown(p, plan.origin) for p, plan in zip(self.points, self.plans, strict=True))
        return ShownStep(
            title=f"A step on {self.device.name}",
            problem=self.problem,
            plan=self.plans[self.chosen],
            run=self.replays[self.chosen],
            points=points,
            on_frontier=len(points),
            chosen=self.chosen,
            torchs=None if self.torchs is None else shown(self.torchs, TORCHS_PLAN),
            budget_bytes=self.budget_bytes,
            outside_bytes=self.outside_bytes,
        )

    def write_report(self, path: str | Path) -> None:
        """Write the page that shows the chosen plan, as ``report.html`` of a dump does, into a file.

        Raises:
            DumpError: plotly is not installed, the file cannot be written, or the step has a quantised base, which
                takes less than the graph's inputs do.
        """
        if self.outside_bytes < 0:
            raise DumpError(
                "a page cannot show a quantised base, whose bytes are not those of the graph's inputs"
            )
        text = page_of(self.shown_step())
        try:
            Path(path).write_text(text, encoding="utf-8")
        except OSError as error:
            raise DumpError(f"cannot write the report {path}: {error}") from error

    def to_json(self) -> str:
        """One JSON object; the traced graph is left out."""
        told = {
            name: getattr(self, name)
            for name in (
                "budget_bytes",
                "peak_bytes",
                "step_seconds",
                "fits",
                "parameter_bytes",
                "trained_bytes",
                "optimizer_bytes",
                "accumulated_bytes",
                "chosen",
                "holders",
                "ops",
            )
        }
        memory = self.device.memory_bytes
        return json.dumps(
            {
                "device": self.device.name,
                "device_bytes": memory,
                **told,
                "plans": list(map(asdict, self.points)),
            },
            indent=2,
        )

    def table(self, most: int = 12) -> Table:
        """The plans by their replays, thinned to about ``most`` of them, with an arrow at the chosen one."""
        table = Table("", "planned peak", "step", "of it again", "saved", box=None, header_style="bold")
        every = max(1, -(-len(self.points) // most))
        for place, point in enumerate(self.points):
            if place % every and place not in (self.chosen, len(self.points) - 1):
                continue
            table.add_row(
                "->" if place == self.chosen else "",
                format_bytes(point.peak_bytes),
                f"{point.step_seconds * 1e3:,.2f} ms",
                f"{point.recompute_seconds * 1e3:,.2f} ms",
                format_bytes(point.saved_bytes),
            )
        return table

    def summary(self) -> str:
        """What a person asks first, in sentences."""
        point = self.points[self.chosen]
        by_code = "" if point.generated_peak_bytes is None else ", by the code of the plan"
        words = "fits" if self.fits else "does not fit"
        outside = self.optimizer_bytes + self.accumulated_bytes
        held = (
            f"{format_bytes(self.parameter_bytes)} of parameters ({format_bytes(self.trained_bytes)} trained)"
        )
        if outside:
            held += f", {format_bytes(outside)} of optimizer state and accumulated gradients"
        fastest = min(self.points, key=lambda p: p.step_seconds)
        slower = point.step_seconds / fastest.step_seconds - 1 if fastest.step_seconds else 0.0
        return (
            f"{format_bytes(self.peak_bytes)} at the worst moment{by_code}, with {held}: {words} {self.device.name} "
            f"({format_bytes(self.device.memory_bytes)}). Forward and backward take {point.step_seconds * 1e3:,.2f} ms "
            f"by the device's prices, {slower:.1%} more than the fastest plan, whose peak is "
            f"{format_bytes(fastest.peak_bytes)}. The lowest peak is {format_bytes(self.points[-1].peak_bytes)}."
        )

    def __str__(self) -> str:
        console = Console(width=110)
        with console.capture() as captured:
            console.print(self.summary(), markup=False, highlight=False)
            console.print(self.table())
        return captured.get()


def point_of_run(run: Replay, outside_bytes: int) -> ForecastPoint:
    """A replay as a point, with what lives outside of the graph on top."""
    return ForecastPoint(run.peak_bytes + outside_bytes, run.seconds, run.recompute_seconds, run.saved_bytes)


def usable_bytes(device: Device) -> int:
    """The device's memory, less :data:`DEVICE_RESERVE_BYTES` on a GPU."""
    return device.memory_bytes - (DEVICE_RESERVE_BYTES if device.kind != "cpu" else 0)


def plan(
    model: nn.Module | Callable[[], Any],
    inputs: Sequence[Any] | Mapping[str, Any] | Callable[[], Any] = (),
    budget: int | float | str | None = None,
    *,
    device: str | None = None,
    optimizer: str = "none",
    accumulate: bool = False,
    dtype: str | None = None,
    lora: int | None = None,
    base: str | None = None,
    torch_budgets: Sequence[float] = (),
    repeatable: Sequence[str] = (),
    code: bool | None = None,
) -> Forecast:
    """Plan a training step without running it.

    Args:
        model: a module, or a factory, which is called where tensors have no data: it returns the module, or the module
            and its inputs.
        inputs: arguments of the module: a sequence, a mapping of keywords, or a factory of either.
        budget: the most bytes at the worst moment, everything counted: an int, text like ``"20GiB"``, ``"auto"`` for
            the device's memory less :data:`DEVICE_RESERVE_BYTES`; a float for a fraction between the lowest peak (0.0)
            and the fastest plan's (1.0); None for the fastest plan.
        device: a name in :data:`graphremat.passes.devices.DEVICES`; None for this machine's CPU.
        optimizer: a name in :data:`graphremat.optimizers.OPTIMIZERS`, whose state is counted.
        accumulate: gradients of earlier micro-batches are there already while the step runs.
        dtype: ``"bf16"``, ``"fp16"`` or ``"fp32"`` for weights, buffers and inputs; None for what the model has.
        lora: the rank of adapters on all linear layers but the one of the logits; the rest is frozen.
        base: ``"nf4"`` or ``"int8"`` for frozen linear layers that are held quantised. Their bytes are counted, and
            that the largest is made again; the time of making them is not.
        torch_budgets: values of torch's own ``activation_memory_budget`` to plan for :func:`graphremat.compare`.
        repeatable: the backend's option of that name: operators that are not torch's own and may run again.
        code: generate the code of the plan as well, as the backend does, and go by its peak, which is that of a run.
            That takes longer than planning and is for this machine alone. None: where that is meant and the graph has
            no more operators than :data:`CODE_OPS`.

    Raises:
        BudgetInfeasible: no plan is under the budget.
        OptionError: an unknown device, optimizer, dtype or base, an adapter that goes nowhere, an option that would
            change a module that is there, or a budget that is none.
        PlanningError: the model is not one graph, trains nothing, or cannot be traced.
    """
    state = state_of(optimizer)
    rates = find_rates(device)
    allowed = parse_allowed(budget, rates)
    with contextlib.nullcontext() if isinstance(model, nn.Module) else private.FakeTensorMode():
        subject = make_subject(model, inputs, dtype=dtype, lora=lora, base=base)
        traced = trace_step(
            subject.model,
            subject.arguments,
            subject.keywords,
            device=rates,
            torch_budgets=torch_budgets,
            repeatable=repeatable,
        )
    trained = subject.trained
    outside = sum(map(state, trained)), sum(map(bytes_of, trained)) if accumulate else 0
    frontier = plan_behind_torchs(Options(), traced.problem, allowed, traced.torchs)
    torchs = frontier.candidates[0].replay if traced.torchs is not None else None
    outside_bytes = sum(outside) - subject.quantised_bytes
    inside = allowed - outside_bytes if isinstance(allowed, int) else allowed
    lowering = _code_of(traced, rates, code)
    choice = _choice(frontier, lowering, inside)
    first, candidates = _shown(frontier, choice, traced, allowed)

    def point_of(place: int, run: Replay) -> ForecastPoint:
        true_bytes = choice.true_bytes.get(place) if lowering is not None else None
        generated = None if true_bytes is None else true_bytes + outside_bytes
        return replace(point_of_run(run, outside_bytes), generated_peak_bytes=generated)

    forecast = Forecast(
        device=rates,
        budget_bytes=None if choice.budget_bytes is None else choice.budget_bytes + outside_bytes,
        parameter_bytes=subject.parameter_bytes,
        trained_bytes=sum(map(bytes_of, trained)),
        optimizer_bytes=outside[0],
        accumulated_bytes=outside[1],
        points=tuple(point_of(place, c.replay) for place, c in enumerate(candidates, first)),
        chosen=choice.place - first,
        torchs=None if torchs is None else point_of_run(torchs, outside_bytes),
        ops=len(traced.problem.ops),
        problem=traced.problem,
        plans=tuple(candidate.plan for candidate in candidates),
        replays=tuple(candidate.replay for candidate in candidates),
        torchs_plan=traced.torchs,
        torchs_under=traced.torchs_under,
        outside_bytes=outside_bytes,
    )
    if not choice.fits:
        raise _infeasible(forecast)
    return forecast


def _code_of(traced: TracedStep, rates: Device, asked: bool | None) -> Lowering | None:
    """What generates code, if that was asked for or is worth its time; None if not."""
    if asked and traced.lowering is None:
        raise OptionError(
            f"the code for {rates.name} cannot be generated here: leave out code, or the device"
        )
    if asked is None and (len(traced.problem.ops) > CODE_OPS or private.inductor_unsupported_config()):
        return None
    return traced.lowering if asked is not False else None


def _choice(frontier: Frontier, lowering: Lowering | None, allowed: int | float | None) -> Choice:
    """The plan that the backend takes: by the code's peaks, or by the replays' where no code is to be generated."""
    if lowering is not None:
        return chosen_plan(frontier, lowering, allowed, aim=None)
    first = fastest_place(frontier)
    peaks = [candidate.replay.peak_bytes for candidate in frontier.candidates]
    choice = choose(peaks[first:], peaks[first:].__getitem__, allowed)
    return replace(choice, place=first + choice.place)


def _shown(
    frontier: Frontier, choice: Choice, traced: TracedStep, allowed: int | float | None
) -> tuple[int, tuple[Candidate, ...]]:
    """The candidates from the fastest or the chosen one on, and the place of the first in the frontier.

    With no budget the backend looks little for plans below the one that it takes, but they are asked for here.
    """
    first = min(fastest_place(frontier), choice.place)
    candidates = tuple(frontier.candidates[first:])
    if allowed is not None:
        return first, candidates
    thorough = plan_behind_torchs(Options(), traced.problem, 0.0, traced.torchs)
    candidates = candidates[: choice.place - first + 1]
    below = candidates[-1].replay.peak_bytes
    return first, candidates + tuple(c for c in thorough.candidates if c.replay.peak_bytes < below)


def _infeasible(lowest: Forecast) -> BudgetInfeasible:
    """The error for a budget that even this plan does not keep."""
    assert lowest.budget_bytes is not None
    outside_bytes = lowest.optimizer_bytes + lowest.accumulated_bytes
    return BudgetInfeasible(
        f"no plan is under {format_bytes(lowest.budget_bytes)}: the lowest peak is {format_bytes(lowest.peak_bytes)}, "
        f"of which {format_bytes(lowest.problem.input_bytes)} are parameters and inputs and "
        f"{format_bytes(outside_bytes)} state of the optimizer and accumulated gradients",
        budget_bytes=lowest.budget_bytes,
        lowest_peak_bytes=lowest.peak_bytes,
        holders=lowest.holders,
    )


def find_rates(device: str | None) -> Device:
    """The device of a name, or this CPU. Raises OptionError for a name that is in no table."""
    if device is None or device == "cpu":
        return prices(Options(), torch.device("cpu"))
    try:
        return find_device(device)
    except UnknownDevice as error:
        raise OptionError(str(error)) from error


def parse_allowed(budget: int | float | str | None, device: Device) -> int | float | None:
    """A budget as :func:`plan` takes it: bytes, a fraction, or None. Raises OptionError."""
    parsed = Options.parse({"memory_budget": budget}).memory_budget
    if parsed == "auto":
        return usable_bytes(device)
    assert not isinstance(parsed, str)
    return parsed
