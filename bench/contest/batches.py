"""``python -m bench.contest.batches``: at one fixed peak, who trains the largest batch, who the most examples a second?

For each contestant the largest batch is looked for whose measured peak, over the parameters, is within the limit; ours
is compiled under that budget at its own largest batch and at those of the others. Then everybody's steps are timed in
turns. ``--out`` gets a JSON line for each; ``python -m bench.report`` shows them.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from bench.contest.contestants import (
    REFERENCE_CONTESTANT,
    Contestant,
    as_it_is,
    compiled_by_torch,
    compiled_by_us,
)
from bench.contest.placements import PLACEMENTS
from bench.contest.race import Ready, Track, get_ready, new_row, sources_of
from bench.contest.rows import OURS
from bench.contest.workloads import of_network
from bench.keep_budget import storage_bytes
from bench.networks import NETWORKS, Network
from graphremat.batches import largest_within
from graphremat.measure import time_interleaved
from graphremat.units import format_bytes, parse_bytes

RESULTS = Path(__file__).parents[1] / "results" / "batches.jsonl"
EVERY_BLOCK = "checkpoint every 1"


@dataclass(frozen=True)
class BatchRow:
    """One contestant at one batch; ``largest`` is the largest of that contestant within the limit.

    ``peak_bytes`` are over the parameters and buffers: inputs and gradients count.
    """

    network: str
    size: str
    contestant: str
    family: str
    sources: str
    limit_bytes: int
    batch: int
    largest: int
    peak_bytes: int
    median_seconds: float
    min_seconds: float
    rounds: int
    machine: str
    threads: int
    torch_version: str
    date: str

    @property
    def examples_per_second(self) -> float:
        """By the best step."""
        return self.batch / self.min_seconds


def read(path: Path) -> list[BatchRow]:
    """The rows of the run that was written last."""
    rows = [BatchRow(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
    return [
        r
        for r in rows
        if (r.network, r.limit_bytes, r.date) == (rows[-1].network, rows[-1].limit_bytes, rows[-1].date)
    ]


class Search:
    """One network at any batch: peaks of contestants, each measured once."""

    def __init__(self, network: Network, size: str, progress: Progress, bar: TaskID) -> None:
        self.network, self.size = network, size
        self.progress, self.bar = progress, bar
        self.tracks: dict[int, Track] = {}
        self.ready: dict[tuple[str, int], Ready] = {}

    def track(self, batch: int) -> Track:
        """The network at a batch."""
        if batch not in self.tracks:
            sizes = {**self.network.sizes[self.size], "batch": batch}
            at_batch = replace(self.network, sizes={self.size: sizes})
            self.tracks[batch] = Track(of_network(at_batch.build(self.size)))
        return self.tracks[batch]

    def peak(self, contestant: Contestant, batch: int) -> int:
        """Measured, over the parameters and buffers."""
        key = contestant.name, batch
        if key not in self.ready:
            self.progress.update(self.bar, description=f"{contestant.name}, batch {batch}")
            self.ready[key] = self.track(batch).prepare(contestant)
        row = self.ready[key].row
        if row.failure is not None or row.peak_bytes is None:
            raise RuntimeError(f"{contestant.name} at a batch of {batch}: {row.failure}")
        return row.peak_bytes + self.input_bytes(batch)

    def input_bytes(self, batch: int) -> int:
        """Of tokens and targets."""
        return storage_bytes(self.track(batch).workload.inputs)


def rivals() -> list[Contestant]:
    """What is tried beside ours: nothing, a checkpoint around every block, torch's own budget."""
    place = PLACEMENTS[EVERY_BLOCK]
    return [
        Contestant("eager", "eager", as_it_is),
        Contestant(f"eager, {EVERY_BLOCK}", "eager, checkpoints", place),
        REFERENCE_CONTESTANT(),
        compiled_by_torch(f"torch.compile, {EVERY_BLOCK}", "torch.compile, checkpoints", place),
        *(
            compiled_by_torch(f"activation_memory_budget={b}", "activation_memory_budget", as_it_is, fraction=b)
            for b in (0.5, 0.1)
        ),
    ]  # fmt: skip


def run(network: str, size: str, limit_bytes: int, rounds: int, progress: Progress) -> list[BatchRow]:
    """Look for everybody's largest batch, and time all that fits."""
    get_ready()
    others = rivals()
    bar = progress.add_task("", total=len(others) + 1)
    search = Search(NETWORKS[network], size, progress, bar)
    largest: dict[str, int] = {}
    entries: list[tuple[Contestant, int]] = []
    for contestant in others:
        largest[contestant.name] = largest_within(partial(search.peak, contestant), limit_bytes)
        entries.append((contestant, largest[contestant.name]))
        progress.advance(bar)
    lowest = compiled_by_us(0.0)
    ours = largest_within(partial(search.peak, lowest), limit_bytes)
    for batch in sorted({ours, *largest.values()}):
        under = compiled_by_us(limit_bytes - search.input_bytes(batch))
        search.peak(under, batch)
        entries.append((under, batch))
        largest[under.name] = ours
    progress.advance(bar)
    progress.update(bar, description="timing")
    steps = {
        f"{contestant.name} {batch}": search.ready[contestant.name, batch].step
        for contestant, batch in entries
    }
    times = time_interleaved(steps, rounds=rounds)
    rows = []
    for contestant, batch in entries:
        told = new_row(contestant, network, size)
        timing = times[f"{contestant.name} {batch}"]
        rows.append(
            BatchRow(
                network,
                size,
                OURS if contestant.family == OURS else contestant.name,
                contestant.family,
                sources_of(contestant),
                limit_bytes,
                batch,
                largest[contestant.name],
                search.peak(contestant, batch),
                timing.median_seconds,
                timing.min_seconds,
                rounds,
                told.machine,
                told.threads,
                told.torch_version,
                told.date,
            )
        )
    return rows


def table_of(rows: Sequence[BatchRow]) -> Table:
    """One line for each contestant and batch."""
    table = Table()
    table.add_column("contestant")
    for column in ("batch", "largest", "peak", "step ms", "examples/s"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row.contestant,
            str(row.batch),
            str(row.largest),
            format_bytes(row.peak_bytes),
            f"{row.min_seconds * 1e3:.1f}",
            f"{row.examples_per_second:.1f}",
        )
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m bench.contest.batches", description=__doc__)
    parser.add_argument("--network", default="llama", choices=sorted(NETWORKS))
    parser.add_argument("--size", default="small")
    parser.add_argument("--limit", type=parse_bytes, default=parse_bytes("64MiB"), help="default: 64MiB")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON lines (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160)
    with Progress(console=console, transient=True) as progress:
        rows = run(chosen.network, chosen.size, chosen.limit, chosen.rounds, progress)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    with chosen.out.open("a") as lines:
        lines.writelines(json.dumps(asdict(row)) + "\n" for row in rows)
    console.print(table_of(rows))


if __name__ == "__main__":
    main()
