"""The main job on real input: a small byte-level language model, trained under four memory budgets.

The model is trained with the fastest plan and under three tighter budgets, each from the same seed on the same
batches, and one table says what was promised and what was measured. Run it with ``python -m graphremat demo``.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn

import graphremat
from graphremat.byte_model import ByteModel, Size, batches, corpus, new_model
from graphremat.errors import GraphrematError
from graphremat.measure import Timing, fresh_cache, gradient_error, measure_peak, time_interleaved
from graphremat.report import Report
from graphremat.units import format_bytes

LEARNING_RATE = 2e-3
TIMED_ROUNDS = 12
MAX_GRADIENT_ERROR = 1e-4
"""Relative; float32 sums in another order differ by about 1e-6."""

BUDGETS: Mapping[str, float | None] = {"fastest plan": None, "0.6": 0.6, "0.3": 0.3, "0.0": 0.0}
MARKS = ("<!-- demo table -->", "<!-- end of demo table -->")
"""Where a file wants the table."""


@dataclass(frozen=True)
class Run:
    """One budget's training. Bytes count everything alive in the compiled call, its inputs too."""

    name: str
    report: Report
    measured_peak_bytes: int
    gradient_error: float
    losses: tuple[float, ...]

    def problems(self) -> tuple[str, ...]:
        """What was promised and not kept."""
        found = []
        budget_bytes = self.report.budget_bytes
        if budget_bytes is not None and self.measured_peak_bytes > budget_bytes:
            found.append(f"measured {self.measured_peak_bytes} bytes under a budget of {budget_bytes}")
        if not self.gradient_error <= MAX_GRADIENT_ERROR:  # refuses NaN too
            found.append(f"gradients differ from eager's by {self.gradient_error:.1e}, relative")
        tenth = max(1, len(self.losses) // 10)
        if not statistics.mean(self.losses[-tenth:]) < statistics.mean(self.losses[:tenth]):
            found.append(f"the loss does not fall: {self.losses[0]:.3f} to {self.losses[-1]:.3f}")
        return tuple(f"{self.name}: {problem}" for problem in found)


def backward_step(loss_of: Callable[[Tensor], Tensor], tokens: Tensor) -> float:
    """One forward and backward; gradients are added to the parameters. Returns the loss."""
    loss = loss_of(tokens)
    loss.backward()
    return loss.item()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every gradient by the parameter's name."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def train(
    name: str,
    compiled: Callable[[Tensor], Tensor],
    model: ByteModel,
    data: Sequence[Tensor],
    on_step: Callable[[float], None],
) -> Run:
    """Train ``model`` on every batch of ``data`` through ``compiled``, which is compiled by the first step.

    The optimizer is not part of the compiled call, nor is its state part of the budget.
    """
    reference = eager_gradients(model, data[0])
    known = set(graphremat.reports())
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    losses = [backward_step(compiled, data[0])]
    found = gradients(model)
    if len(set(graphremat.reports()) - known) != 1 or found.keys() != reference.keys():
        raise GraphrematError(
            f"{name}: the model was not compiled as one graph, with a gradient for each parameter"
        )
    report = graphremat.last_report()
    error = max(gradient_error([reference[each]], [found[each]]) for each in reference)
    optimizer.step()
    on_step(losses[0])
    for tokens in data[1:]:
        optimizer.zero_grad(set_to_none=True)
        losses.append(backward_step(compiled, tokens))
        optimizer.step()
        on_step(losses[-1])
    peak = measure_peak(
        lambda: backward_step(compiled, data[0]), clear=lambda: model.zero_grad(set_to_none=True)
    )
    model.zero_grad(set_to_none=True)
    alive = [*model.parameters(), *model.buffers(), data[0]]
    inputs_bytes = sum(each.numel() * each.element_size() for each in alive)
    return Run(name, report, inputs_bytes + peak.peak_bytes, error, tuple(losses))


def eager_gradients(model: ByteModel, tokens: Tensor) -> dict[str, Tensor]:
    """The gradients of eager torch for one batch; the model is left without gradients."""
    backward_step(model, tokens)
    found = gradients(model)
    model.zero_grad(set_to_none=True)
    return found


def run_all(
    size: Size, options: Mapping[str, Any], console: Console
) -> tuple[Sequence[Run], Mapping[str, Timing]]:
    """Train under every budget, with a progress bar; then time a step of each in turns."""
    torch.compiler.reset()  # what this process compiled before would be run again, and not planned
    data = batches(corpus(), size)
    runs: list[Run] = []
    steps: dict[str, Callable[[], object]] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[state]}"), console=console) as progress:
        waiting = {name: progress.add_task(name, total=size.steps, state="", start=False) for name in BUDGETS}
        for name, budget in BUDGETS.items():
            task = waiting[name]
            progress.start_task(task)
            progress.update(task, state="planning and compiling")
            model = new_model(size)
            asked: dict[str, Any] = {**options, "memory_budget": budget}
            compiled = torch.compile(model, backend="graphremat", options=asked)
            runs.append(train(name, compiled, model, data, _loss_shower(progress, task)))
            steps[name] = _timed_step(compiled, model, data[0])
    console.print("timing a step of each, in turns")
    return runs, time_interleaved(steps, rounds=TIMED_ROUNDS)


def _loss_shower(progress: Progress, task: TaskID) -> Callable[[float], None]:
    return lambda loss: progress.update(task, advance=1, state=f"loss {loss:.3f}")


def _timed_step(compiled: Callable[[Tensor], Tensor], model: nn.Module, tokens: Tensor) -> Callable[[], None]:
    def step() -> None:
        backward_step(compiled, tokens)
        model.zero_grad(set_to_none=True)

    return step


def table(runs: Sequence[Run], timings: Mapping[str, Timing]) -> Table:
    """One column a budget: what was asked, promised and measured. It is Markdown, and fits 80 columns."""
    shown = Table(box=box.MARKDOWN)
    shown.add_column("memory_budget")
    for run in runs:
        shown.add_column(run.name, justify="right", no_wrap=True)
    rows: Mapping[str, Callable[[Run], str]] = {
        "in bytes": lambda run: (
            "" if run.report.budget_bytes is None else format_bytes(run.report.budget_bytes)
        ),
        "predicted peak": lambda run: format_bytes(run.report.generated_peak_bytes),
        "measured peak": lambda run: format_bytes(run.measured_peak_bytes),
        "step": lambda run: f"{timings[run.name].median_seconds * 1e3:.0f} ms",
        "saved values": lambda run: f"{run.report.saved_count}",
        "saved bytes": lambda run: format_bytes(run.report.saved_bytes),
        "ops run again": lambda run: f"{run.report.recomputed_ops}",
        "planned for them": lambda run: f"{run.report.recomputed_seconds * 1e3:.1f} ms",
        "gradient error": lambda run: f"{run.gradient_error:.1e}",
        "first loss": lambda run: f"{run.losses[0]:.3f}",
        "last loss": lambda run: f"{run.losses[-1]:.3f}",
    }
    for name, cell in rows.items():
        shown.add_row(name, *(cell(run) for run in runs))
    return shown


def insert(path: Path, text: str, marks: tuple[str, str] = MARKS) -> None:
    """Put ``text`` between the marks in the file at ``path``; those of the demo's table, if no others are given.

    Raises:
        GraphrematError: the file has no such marks.
    """
    before, mark, rest = path.read_text().partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not (mark and end):
        raise GraphrematError(f"{path} has no {marks[0]} and {marks[1]}")
    path.write_text(f"{before}{mark}\n{text}{end}{after}")


def main(size: Size | None = None, options: Mapping[str, Any] | None = None, into: Path | None = None) -> int:
    """Run the demo and print its table.

    Args:
        size: another size than the one that takes a few minutes on two cores.
        options: options of the backend besides ``memory_budget``.
        into: a file that the table is written to as well, between its marks.

    Returns:
        The exit code: 0, or 1 if a budget was exceeded, the loss did not fall, or gradients differ from eager's.
    """
    console = Console()
    with fresh_cache():
        runs, timings = run_all(size or Size(), options or {}, console)
    with console.capture() as captured:
        console.print(table(runs, timings), markup=False)
    lines = [line.strip() for line in captured.get().splitlines() if line.strip()]
    console.out("\n".join(["", *lines, ""]), highlight=False)
    if into is not None:
        insert(into, "\n".join([*lines, ""]))
    problems = [problem for run in runs for problem in run.problems()]
    for problem in problems:
        console.print(f"FAILED {problem}", markup=False)
    if not problems:
        console.print("Every budget was kept, the loss fell, and the gradients are eager's.")
    return 1 if problems else 0
