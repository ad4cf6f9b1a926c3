"""``python -m bench.keep_budget``: is every budget kept, on every network? The main table.

Each network is compiled with torch's own backend, then with graphremat at ``None``, four fractions, and two budgets in
bytes that lie between the peaks measured at the fractions. Each compiled step is measured by the allocator's events
and its gradients are held against eager's; against torch's backend from the same seed where the network draws random
numbers. Every measurement is one JSON line in ``--out``; a second run skips what the same sources have measured.

The exit code is 1 if a budget was exceeded, a gradient differs, a prediction is off, or a fraction is not what it says.
"""

import argparse
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn

import graphremat
from bench.budget_rows import (
    LABELS,
    TORCH,
    Measurement,
    append_result,
    budget_of,
    problems_across,
    problems_of,
    read_results,
)
from bench.networks import NETWORKS, Case, names_of
from bench.sources import digest_of
from graphremat.errors import GraphrematError
from graphremat.measure import gradient_error, measure_peak, time_interleaved
from graphremat.passes.devices import block_bytes
from graphremat.passes.sizes import rounded_up
from graphremat.passes.torch_private import one_number_at_a_time

MIB = 2.0**20
STEP_SEED = 7
"""Random numbers of a step start here, the same for every contestant."""
RESULTS = Path(__file__).parent / "results" / "keep_budget.jsonl"


def sources_digest() -> str:
    """Over the sources that a result depends on: graphremat, its passes, and the networks."""
    return digest_of(("graphremat/*.py", "passes/**/*.py", "bench/networks/*.py"))


def storage_bytes(tensors: Sequence[Tensor], rounding: int = 1) -> int:
    """Bytes of the distinct storages behind the tensors, each rounded up as the allocator does."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
    return sum(rounded_up(storage.nbytes(), rounding) for storage in storages.values())


@dataclass(frozen=True)
class Setting:
    """What is measured: a network in one size, by which lowering, and on which device."""

    network: str
    size: str
    lowering: str = "inductor"
    device: str = "cpu"


class Bench:
    """One setting: its case, its starting state, and the gradients that the others are held against."""

    def __init__(self, setting: Setting) -> None:
        self.lowering = setting.lowering
        self.device = setting.device
        self.case: Case = NETWORKS[setting.network].build(setting.size).to(setting.device)
        self.start = {name: value.clone() for name, value in self.case.model.state_dict().items()}
        with one_number_at_a_time(self.case.random):  # as graphremat draws them
            self.reference = self.first_step(
                self.compiled_by_torch() if self.case.random else self.case.model
            )

    def compiled_by_torch(self) -> Callable[..., Any]:
        """The network under torch's own backend of the same lowering."""
        torch.compiler.reset()
        return torch.compile(self.case.model, backend=self.lowering, fullgraph=True)

    def compiled(self, memory_budget: float | int | None) -> Callable[..., Any]:
        """The network under graphremat."""
        torch.compiler.reset()
        options: dict[str, Any] = {"memory_budget": memory_budget, "lowering": self.lowering}
        return torch.compile(self.case.model, backend="graphremat", fullgraph=True, options=options)

    def step(self, call: Callable[..., Any]) -> None:
        """One forward and backward from the step's seed."""
        torch.manual_seed(STEP_SEED)
        self.case.loss(call(*self.case.inputs)).backward()

    def clear(self) -> None:
        """Drops the gradients."""
        self.case.model.zero_grad(set_to_none=True)

    def first_step(self, call: Callable[..., Any]) -> tuple[list[Tensor | None], list[Tensor]]:
        """Gradients and buffers after one step from the starting state."""
        self.clear()
        self.case.model.load_state_dict(self.start)
        self.step(call)
        gradients = [parameter.grad for parameter in self.case.model.parameters()]
        self.clear()
        return gradients, [buffer.clone() for buffer in self.case.model.buffers()]

    def measure(self, call: Callable[..., Any], row: Measurement, rounds: int) -> Measurement:
        """The row with everything that can be measured of ``call``."""
        start = time.perf_counter()
        gradients, buffers = self.first_step(call)
        compile_seconds = time.perf_counter() - start
        rounding = block_bytes(torch.device(self.device).type)
        inputs_bytes = storage_bytes([*_tensors_of(self.case.model), *self.case.inputs], rounding)
        error = gradient_error(self.reference[0], gradients)
        buffer_error = gradient_error(self.reference[1], buffers)
        del gradients, buffers
        peak = measure_peak(lambda: self.step(call), clear=self.clear, device=self.device)

        def timed() -> None:
            self.clear()
            self.step(call)

        timing = time_interleaved({"step": timed}, rounds=rounds)["step"]
        self.clear()
        return replace(
            row,
            inputs_bytes=inputs_bytes,
            measured_peak_bytes=inputs_bytes + peak.peak_bytes,
            gradient_error=error,
            buffer_error=buffer_error,
            step_seconds=timing.median_seconds,
            compile_seconds=compile_seconds,
        )


def _tensors_of(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def measure(bench: Bench, row: Measurement, done: Mapping[str, Measurement], rounds: int) -> Measurement:
    """Compile and measure one row; what goes wrong is recorded in it."""
    try:
        if row.label == TORCH:
            with one_number_at_a_time(bench.case.random):
                return bench.measure(bench.compiled_by_torch(), row, rounds)
        budget = budget_of(row.label, done)
        row = replace(row, memory_budget=budget)
        before = graphremat.reports()
        measured = bench.measure(bench.compiled(budget), row, rounds)
        new = [report for report in graphremat.reports() if all(report is not old for old in before)]
    except (GraphrematError, RuntimeError, LookupError) as error:  # what Dynamo wraps is a RuntimeError
        return replace(row, failure=f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
    if len(new) != 1:
        return replace(row, failure=f"{len(new)} graphs were planned where one was expected")
    report = new[0]
    return replace(
        measured,
        budget_bytes=report.budget_bytes,
        reported_inputs_bytes=report.input_bytes,
        planned_peak_bytes=report.planned_peak_bytes,
        predicted_peak_bytes=report.generated_peak_bytes,
        lowest_peak_bytes=report.lowest_peak_bytes,
        fastest_peak_bytes=report.fastest_peak_bytes,
        saved_bytes=report.saved_bytes,
        saved_count=report.saved_count,
        recomputed_ops=report.recomputed_ops,
        recomputed_seconds=report.recomputed_seconds,
        recomputed_flops=report.recomputed_flops,
        planned_step_seconds=report.step_seconds,
    )


def table_of(networks: Mapping[str, Sequence[Measurement]], *, title: str) -> tuple[Table, int]:
    """The table, and how many rows have a problem."""
    table = Table(title=title, title_justify="left")
    table.add_column("network", no_wrap=True)
    for column in (
        "budget",
        "MiB",
        "predicted",
        "measured",
        "used",
        "off by",
        "gradient",
        "saved",
        "again",
        "step",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("verdict")
    bad = 0
    for network, rows in networks.items():
        across = problems_across(rows)
        for row in rows:
            problems = [*problems_of(row), *across[row.label]]
            bad += bool(problems)
            good = "reference" if row.label == TORCH else "kept"
            table.add_row(network, row.label, *_cells(row), "; ".join(problems) or good)
        table.add_section()
    return table, bad


def _cells(row: Measurement) -> list[str]:
    def shown(value: float | None, scale: float, form: str) -> str:
        return "" if value is None else format(value / scale, form)

    return [
        shown(row.budget_bytes, MIB, ".2f"),
        shown(row.predicted_peak_bytes, MIB, ".2f"),
        shown(row.measured_peak_bytes, MIB, ".2f"),
        shown(row.used_share, 1.0, ".1%"),
        shown(row.prediction_error, 1.0, "+.2%"),
        shown(row.gradient_error, 1.0, ".1e"),
        "" if row.saved_bytes is None else f"{row.saved_count}: {row.saved_bytes / MIB:.2f}",
        ""
        if row.recomputed_seconds is None
        else f"{row.recomputed_ops}: {row.recomputed_seconds * 1e3:.2f} ms",
        "" if row.step_seconds is None else f"{row.step_seconds * 1e3:.1f} ms",
    ]


def new_row(setting: Setting, label: str, sources: str) -> Measurement:
    """A row that says what, where and when, with nothing measured yet."""
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    if setting.device != "cpu":
        machine = f"{torch.cuda.get_device_name(setting.device)}, {machine}"
    return Measurement(
        **asdict(setting),
        label=label,
        sources=sources,
        machine=machine,
        torch_version=torch.__version__,
        threads=torch.get_num_threads(),
        date=time.strftime("%Y-%m-%d"),
    )


def run(
    settings: Sequence[Setting], labels: Sequence[str], rounds: int, out: Path, progress: Progress
) -> dict[str, list[Measurement]]:
    """The rows of all networks, from ``out`` where the same sources have measured them, else measured now."""
    known = read_results(out)
    sources = sources_digest()
    rows: dict[str, list[Measurement]] = {}
    task = progress.add_task("", total=len(settings) * len(labels))
    for setting in settings:
        bench: Bench | None = None
        done: dict[str, Measurement] = {}
        for label in labels:
            progress.update(task, description=f"{setting.network} {label}")
            row = new_row(setting, label, sources)
            if row.key in known and known[row.key].failure is None:
                done[label] = known[row.key]
            else:
                bench = bench or Bench(setting)
                done[label] = measure(bench, row, done, rounds)
                append_result(out, done[label])
            progress.advance(task)
        rows[setting.network] = list(done.values())
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints the table; 1 if any row has a problem."""
    parser = argparse.ArgumentParser(prog="python -m bench.keep_budget", description=__doc__)
    parser.add_argument("--size", default="small", help="size of the networks (default: %(default)s)")
    parser.add_argument("--networks", type=names_of, default="all", help="comma-separated (default: all)")
    parser.add_argument(
        "--budgets", default=",".join(LABELS), help="comma-separated, in this order (default: %(default)s)"
    )
    parser.add_argument("--lowering", default="inductor", choices=("inductor", "aot_eager"))
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON lines (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    names = chosen.networks
    labels = chosen.budgets.split(",")
    if wrong := [label for label in labels if label not in LABELS]:
        parser.error(f"unknown budgets {', '.join(wrong)}; known: {', '.join(LABELS)}")
    torch.compiler.config.force_disable_caches = (
        True  # a graph from torch's cache is not planned, and has no report
    )
    warnings.filterwarnings("ignore", message="dynamo_pgo force disabled")
    torch.backends.cudnn.allow_tf32 = False  # whose gradients differ by more than ours may
    console = Console(width=None if sys.stdout.isatty() else 200)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        settings = [Setting(name, chosen.size, chosen.lowering, chosen.device) for name in names]
        rows = run(settings, labels, chosen.rounds, chosen.out, progress)
    table, bad = table_of(rows, title=f"{chosen.size} networks lowered by {chosen.lowering}; bytes in MiB")
    console.print(table)
    total = sum(map(len, rows.values()))
    console.print(
        f"{total - bad} of {total} rows are as they should be" + (f", {bad} are not" if bad else "")
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
