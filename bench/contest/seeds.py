"""``python -m bench.contest.seeds``: what this field often quotes of plain transformers, planned at full size.

40 layers of width 2048 at a batch of 8 x 1024, where a checkpoint around every 4 layers is said to save memory, and 20
layers of width 1024 at 4 x 512, around every 2, where it is the speed that is told. Nothing is run: everybody's plan is
judged by one replay, with the prices of a device. ``--out`` gets a JSON line for each way of doing it.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

import graphremat
from bench.contest.race import OUR_SOURCES
from bench.networks import NETWORKS
from bench.sources import digest_of

RESULTS = Path(__file__).parents[1] / "results" / "seeds.jsonl"
DEVICE = "A100-40GB"
SEEDS = {"large40": 4, "large20": 2}
"""Size of ``post_norm``, and how many of its layers are in a checkpoint."""


@dataclass(frozen=True)
class SeedRow:
    """One way of training one size: peak over parameters and inputs, step of forward and backward, and ours at that
    peak and in that time; None where there is none."""

    size: str
    device: str
    sources: str
    torch_version: str
    date: str
    name: str
    peak_bytes: int
    step_seconds: float
    our_step_seconds: float | None
    our_peak_bytes: int | None


def read(path: Path) -> list[SeedRow]:
    """Of each size and name the row that was written last."""
    rows = [SeedRow(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []
    return list({(row.size, row.name): row for row in rows}.values())


def planned(size: str) -> list[SeedRow]:
    """What every value saved, torch.compile, checkpoints and torch's budgets come to, each with ours beside it."""

    def make() -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
        case = NETWORKS["post_norm"].build(size)
        return case.model, case.inputs

    found = graphremat.compare(make, device=DEVICE, every_blocks=(1, SEEDS[size]), torch_budgets=(0.5, 0.25))
    outside = found.forecast.problem.input_bytes + found.forecast.outside_bytes
    row = partial(
        SeedRow, size, DEVICE, digest_of(OUR_SOURCES), torch.__version__, time.strftime("%Y-%m-%d")
    )  # fmt: skip
    rows = [
        row(
            rival.name,
            rival.point.peak_bytes - outside,
            rival.point.step_seconds,
            None if rival.at_its_peak is None else rival.at_its_peak.step_seconds,
            None if rival.at_its_time is None else rival.at_its_time.peak_bytes - outside,
        )
        for rival in found.rivals
    ]
    lowest = found.forecast.points[-1]
    return [*rows, row("our lowest peak", lowest.peak_bytes - outside, lowest.step_seconds, None, None)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Plan, print, write."""
    parser = argparse.ArgumentParser(prog="python -m bench.contest.seeds", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON lines (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    console = Console()
    for size in SEEDS:
        with console.status(f"planning post_norm, {size}"):
            rows = planned(size)
        with chosen.out.open("a") as lines:
            lines.writelines(json.dumps(asdict(row)) + "\n" for row in rows)
        for row in rows:
            console.print(row)


if __name__ == "__main__":
    main()
