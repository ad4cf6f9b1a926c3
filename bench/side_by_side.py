"""One network under plain Inductor, torch's own memory budget, checkpoints and ours: peaks and interleaved steps.

    python -m bench.side_by_side --network llama --size reference --torch 0.1 --ours 142MiB
    python -m bench.side_by_side --size gpu --device cuda --dtype bfloat16 --checkpoint 1 2 --ours none 0.5 0.0

``--ours`` takes budgets over parameters and inputs, as the printed peaks are, fractions, or ``none``; ``--checkpoint``
takes how many blocks are one segment of ``torch.utils.checkpoint``, compiled. Every contestant is compiled in this
process, its peak is measured by the allocator, and then all steps are timed in turn. What fails is a row that says so.
``--out`` gets one JSON line a contestant. With ``--lock`` several of these processes compile beside each other and time
their steps alone, one process after the other, once all have compiled. The last line says how our first plan compares
with torch's first budget.
"""

import argparse
import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import graphremat
from bench.contest.contestants import Backend, ours, torchs
from bench.contest.placements import every
from bench.contest.workloads import of_network
from bench.keep_budget import sources_digest, storage_bytes
from bench.networks import NETWORKS, Case
from graphremat.errors import GraphrematError
from graphremat.measure import gradient_error, measure_peak, time_interleaved
from graphremat.passes.torch_private import many_recompilations, max_autotune
from graphremat.units import parse_bytes

MIB = 2**20


def our_budget(text: str) -> float | int | None:
    """What ``--ours`` was given: bytes over what the caller holds, a fraction, or ``none``."""
    if text == "none":
        return None
    return parse_bytes(text) if text[-1].isalpha() else float(text)


def contestants_of(arguments: argparse.Namespace, case: Case) -> dict[str, Callable[..., Any]]:
    """What can be called like the model, by name; plain Inductor first. Nothing is compiled yet.

    Raises:
        NoPlacement: checkpoints around blocks of a network that has none.
    """

    def under(backend: Backend) -> Callable[..., Any]:
        return torch.compile(case.model, backend=backend)

    found = {"torch.compile": under(torchs())}
    for count in arguments.checkpoint:
        twin = every(of_network(case), count)
        found[f"checkpoint every {count}"] = torch.compile(twin, backend=torchs())
    found |= {f"activation_memory_budget={f}": under(torchs(float(f))) for f in arguments.torch}
    found |= {f"graphremat {b}": under(ours(our_budget(b))) for b in arguments.ours}
    return found


@dataclass
class Row:
    """One contestant; bytes are over parameters and inputs, and what was not measured is None."""

    contestant: str
    peak_bytes: int | None = None
    generated_bytes: int | None = None
    planned_bytes: int | None = None
    planned_step_seconds: float | None = None
    gradient_error: float | None = None
    first_step_seconds: float | None = None
    median_seconds: float | None = None
    min_seconds: float | None = None
    failure: str | None = None


def measured(
    name: str, step: Callable[[], object], case: Case, reference: list[Tensor | None], device: str
) -> Row:
    """Compile by a first step, and measure peak, gradients and, alone, time; the first contestant fills
    ``reference``."""
    row = Row(name)
    start = time.perf_counter()
    step()
    if device != "cpu":
        torch.accelerator.synchronize()
    row.first_step_seconds = time.perf_counter() - start
    if name.startswith("graphremat"):
        report = graphremat.last_report()
        row.generated_bytes = report.generated_peak_bytes - report.input_bytes
        row.planned_bytes = report.planned_peak_bytes - report.input_bytes
        row.planned_step_seconds = report.step_seconds
    gradients = [None if p.grad is None else p.grad.to("cpu", copy=True) for p in case.model.parameters()]
    if not reference:
        reference.extend(gradients)
    row.gradient_error = gradient_error(reference, gradients)
    clear = partial(case.model.zero_grad, set_to_none=True)
    row.peak_bytes = measure_peak(step, clear=clear, device=device).peak_bytes
    alone = time_interleaved({name: step}, rounds=3)[name]
    row.median_seconds, row.min_seconds = alone.median_seconds, alone.min_seconds
    clear()
    return row


class Turns:
    """A file that processes share: all may compile at once, and one at a time may time, when none compiles."""

    def __init__(self, path: Path | None) -> None:
        self._lock = None if path is None else path.open("a")
        if self._lock is not None:
            fcntl.flock(self._lock, fcntl.LOCK_SH)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other process of the file compiles or times."""
        if self._lock is not None:
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            if self._lock is not None:
                fcntl.flock(self._lock, fcntl.LOCK_UN)


def main() -> None:
    """Compile, measure, time and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="llama", choices=sorted(NETWORKS))
    parser.add_argument("--size", default="reference")
    parser.add_argument("--torch", nargs="*", default=["0.1"], help="values of activation_memory_budget")
    parser.add_argument("--checkpoint", nargs="*", type=int, default=[], help="blocks a segment")
    parser.add_argument("--ours", nargs="*", default=["142MiB"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--dtype", help="of everything that has a fraction, like bfloat16")
    parser.add_argument("--max-autotune", action="store_true", help="Inductor's, for all contestants")
    parser.add_argument(
        "--lock", type=Path, help="a file by which processes beside this one take turns at timing"
    )
    parser.add_argument("--out", type=Path, help="a file that gets JSON lines")
    arguments = parser.parse_args()
    turns = Turns(arguments.lock)
    torch.compiler.config.force_disable_caches = True
    many_recompilations()
    dtype = None if arguments.dtype is None else getattr(torch, arguments.dtype)
    case = NETWORKS[arguments.network].build(arguments.size).to(arguments.device, dtype)
    held = storage_bytes([*case.model.parameters(), *case.model.buffers(), *case.inputs])
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(
        f"{case.describe()}\npeaks over {held / MIB:.1f} MiB of parameters and inputs", highlight=False
    )
    steps: dict[str, Callable[[], object]] = {}
    rows: dict[str, Row] = {}
    reference: list[Tensor | None] = []
    for name, call in contestants_of(arguments, case).items():
        step = case.step_of(call)
        tuned = max_autotune() if arguments.max_autotune else nullcontext()
        with console.status(f"compiling {name}"), tuned:
            try:
                rows[name] = measured(name, step, case, reference, arguments.device)
                steps[name] = step
            except (RuntimeError, GraphrematError) as error:  # what Dynamo wraps is a RuntimeError
                rows[name] = Row(
                    name, failure=f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
                )
        write(arguments.out, rows[name], case, arguments)
    with console.status("timing"), turns.alone():
        times = time_interleaved(steps, rounds=arguments.rounds)
    for name, timing in times.items():
        rows[name].median_seconds, rows[name].min_seconds = timing.median_seconds, timing.min_seconds
        write(arguments.out, rows[name], case, arguments)
    console.print(table_of(rows))
    theirs = [n for n in times if n.startswith("activation")]
    mine = [n for n in times if n.startswith("graphremat")]
    if theirs and mine:
        a, b = rows[mine[0]], rows[theirs[0]]
        console.print(
            f"{a.contestant} against {b.contestant}: {_ratio(a.peak_bytes, b.peak_bytes)} of the peak, "
            f"{_ratio(a.median_seconds, b.median_seconds)} of the step (median), "
            f"{_ratio(a.min_seconds, b.min_seconds)} (best)",
            highlight=False,
        )


def write(out: Path | None, row: Row, case: Case, arguments: argparse.Namespace) -> None:
    """One more JSON line; a later line of a contestant replaces an earlier one."""
    if out is None:
        return
    on_cpu = arguments.device == "cpu"
    where = {
        "network": case.name,
        "size": case.size,
        "dtype": arguments.dtype or "float32",
        "max_autotune": arguments.max_autotune,
        "device": f"{os.cpu_count()} cores" if on_cpu else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "sources": sources_digest(),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a") as lines:
        lines.write(json.dumps({**where, **asdict(row)}) + "\n")


def table_of(rows: Mapping[str, Row]) -> Table:
    """All contestants, steps as ratios to the first that was timed."""
    table = Table()
    table.add_column("contestant", no_wrap=True)
    for column in (
        "peak MiB",
        "of code",
        "planned",
        "median ms",
        "best ms",
        "ratio",
        "model ms",
        "1st step s",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("gradient error", justify="right")
    base = next((row.median_seconds for row in rows.values() if row.median_seconds is not None), None)

    def shown(value: float | None, scale: float, digits: int) -> str:
        return "-" if value is None else f"{value * scale:.{digits}f}"

    for row in rows.values():
        table.add_row(
            row.contestant,
            *(shown(size, 1 / MIB, 2) for size in (row.peak_bytes, row.generated_bytes, row.planned_bytes)),
            *(shown(seconds, 1e3, 1) for seconds in (row.median_seconds, row.min_seconds)),
            _ratio(row.median_seconds, base),
            shown(row.planned_step_seconds, 1e3, 1),
            shown(row.first_step_seconds, 1, 1),
            row.failure or f"{row.gradient_error or 0.0:.1e}",
        )
    return table


def _ratio(value: float | None, base: float | None) -> str:
    return "-" if value is None or not base else f"{value / base:.3f}"


if __name__ == "__main__":
    main()
