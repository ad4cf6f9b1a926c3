"""The main job on real input: a small byte-level language model, trained under four memory budgets.

The text is what every machine with Python has: the source files of the standard library. The model is trained with
the fastest plan and under three tighter budgets, each from the same seed on the same batches, and one table says what
was promised and what was measured. Run it with ``python -m graphremat demo``.
"""

import os
import statistics
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import graphremat
from graphremat.errors import GraphrematError
from graphremat.measure import Timing, gradient_error, measure_peak, time_interleaved
from graphremat.report import Report
from graphremat.units import format_bytes

SEED = 20
CORPUS_BYTES = 4_000_000
LEARNING_RATE = 2e-3
TIMED_ROUNDS = 12
MAX_GRADIENT_ERROR = 1e-4
"""Relative; float32 sums in another order differ by about 1e-6."""

BUDGETS: Mapping[str, float | None] = {"fastest plan": None, "0.6": 0.6, "0.3": 0.3, "0.0": 0.0}
TABLE_WIDTH = 140


@dataclass(frozen=True)
class Size:
    """How large the model and its batches are, and for how many steps it is trained."""

    blocks: int = 4
    width: int = 128
    heads: int = 4
    batch: int = 16
    length: int = 128
    steps: int = 120


class Block(nn.Module):
    """Causal attention and a feed-forward of four times the width, each normalised first and added: [b, t, d]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.feed_norm = nn.LayerNorm(width)
        self.feed_in = nn.Linear(width, 4 * width, bias=False)
        self.feed_out = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.query_key_value(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        attention = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.attention_out(attention.transpose(1, 2).flatten(2))
        feed: Tensor = self.feed_out(F.gelu(self.feed_in(self.feed_norm(x)), approximate="tanh"))
        return x + feed


class ByteModel(nn.Module):
    """A decoder over bytes. It takes tokens [batch, length + 1] and gives the mean loss of the next byte."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, size.width)
        self.places = nn.Parameter(0.02 * torch.randn(size.length, size.width))
        self.blocks = nn.Sequential(*(Block(size.width, size.heads) for _ in range(size.blocks)))
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, 256, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.blocks(self.bytes(tokens[:, :-1]) + self.places)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), tokens[:, 1:].flatten())


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


def corpus(limit_bytes: int = CORPUS_BYTES) -> Tensor:
    """The first bytes of the standard library's modules, in order of their names: uint8 [at most limit_bytes].

    Raises:
        GraphrematError: this Python comes without its sources.
    """
    text = bytearray()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text += path.read_bytes()
        if len(text) >= limit_bytes:
            break
    if not text:
        raise GraphrematError(
            "this Python comes without the sources of its standard library: nothing to train on"
        )
    return torch.frombuffer(text[:limit_bytes], dtype=torch.uint8)


def batches(text: Tensor, size: Size) -> Tensor:
    """Windows of the text at seeded random places: int64 [steps, batch, length + 1]."""
    generator = torch.Generator().manual_seed(SEED)
    window = size.length + 1
    starts = torch.randint(len(text) - window, (size.steps, size.batch, 1), generator=generator)
    return text[starts + torch.arange(window)].long()


def new_model(size: Size) -> ByteModel:
    """The model as it is before the first step, the same every time."""
    torch.manual_seed(SEED)
    return ByteModel(size)


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
    data: Tensor,
    on_step: Callable[[float], None],
) -> Run:
    """Train ``model`` on every batch of ``data`` through ``compiled``, which is compiled by the first step.

    The optimizer is not part of the compiled call, nor is its state part of the budget.
    """
    reference = eager_gradients(model, data[0])
    planned_before = len(graphremat.reports())
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    losses = [backward_step(compiled, data[0])]
    found = gradients(model)
    if len(graphremat.reports()) != planned_before + 1 or found.keys() != reference.keys():
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


@contextmanager
def fresh_cache() -> Iterator[None]:
    """Give Inductor an empty cache: a graph from an old one is not planned again, and has no report."""
    variable = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(variable)
    with tempfile.TemporaryDirectory(prefix="graphremat-demo-") as folder:
        os.environ[variable] = folder
        try:
            yield
        finally:
            os.environ.pop(variable)
            if before is not None:
                os.environ[variable] = before


def _loss_shower(progress: Progress, task: TaskID) -> Callable[[float], None]:
    return lambda loss: progress.update(task, advance=1, state=f"loss {loss:.3f}")


def _timed_step(compiled: Callable[[Tensor], Tensor], model: nn.Module, tokens: Tensor) -> Callable[[], None]:
    def step() -> None:
        backward_step(compiled, tokens)
        model.zero_grad(set_to_none=True)

    return step


def table(runs: Sequence[Run], timings: Mapping[str, Timing]) -> Table:
    """One row a budget: what was asked, promised and measured."""
    shown = Table(title="one forward and backward of the byte model", title_justify="left")
    for column in ("budget", "in bytes", "predicted peak", "measured peak", "step", "saved", "recomputed"):
        shown.add_column(column, justify="right", no_wrap=True)
    for column in ("gradient error", "loss"):
        shown.add_column(column, justify="right")
    for run in runs:
        report = run.report
        shown.add_row(
            run.name,
            "" if report.budget_bytes is None else format_bytes(report.budget_bytes),
            format_bytes(report.generated_peak_bytes),
            format_bytes(run.measured_peak_bytes),
            f"{timings[run.name].median_seconds * 1e3:.0f} ms",
            f"{report.saved_count} values, {format_bytes(report.saved_bytes)}",
            f"{report.recomputed_ops} ops, {report.recomputed_seconds * 1e3:.1f} ms",
            f"{run.gradient_error:.1e}",
            f"{run.losses[0]:.2f} to {run.losses[-1]:.2f}",
        )
    return shown


def main(size: Size | None = None, options: Mapping[str, Any] | None = None) -> int:
    """Run the demo and print its table.

    Args:
        size: another size than the one that takes a few minutes on two cores.
        options: options of the backend besides ``memory_budget``.

    Returns:
        The exit code: 0, or 1 if a budget was exceeded, the loss did not fall, or gradients differ from eager's.
    """
    console = Console()
    with fresh_cache():
        runs, timings = run_all(size or Size(), options or {}, console)
    wide = console if console.is_terminal else Console(width=TABLE_WIDTH)
    wide.print(table(runs, timings))
    problems = [problem for run in runs for problem in run.problems()]
    for problem in problems:
        console.print(f"FAILED {problem}", markup=False)
    if not problems:
        console.print("Every budget was kept, the loss fell, and the gradients are eager's.")
    return 1 if problems else 0
