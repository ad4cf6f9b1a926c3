"""``python -m bench.step_times``: do the costs order the plans as the clock does?

    python -m bench.step_times --networks llama,unet --size small --costs model measure

Each network is compiled at ``--plans`` fractions of its range, with every kind of costs asked for, and all its steps
are timed in turn. A line a plan: what the costs say of the step, and what it takes; a line a network: the rank
correlation (Spearman's) of the two, and how the fastest step compares with torch's own backend. One JSON line a plan is
added to ``--out``.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from torch import nn

import graphremat
from bench.networks import NETWORKS, Case
from bench.sources import digest_of
from graphremat.measure import time_interleaved
from graphremat.passes.torch_private import many_recompilations

RESULTS = Path(__file__).parent / "results" / "step_times.jsonl"
TORCH = "torch.compile"


@dataclass(frozen=True)
class StepTime:
    """One plan of one network; of torch's own backend there is no planned time. ``measured_seconds`` is the best of all
    rounds, which a busy machine disturbs least."""

    network: str
    size: str
    costs: str
    fraction: float | None
    planned_seconds: float | None
    measured_seconds: float
    median_seconds: float
    spread_seconds: float
    sources: str
    threads: int


def correlation(rows: Sequence[StepTime]) -> float:
    """Spearman's rank correlation of planned and measured seconds; 1.0 if all plans are planned to take the same."""
    planned = [row.planned_seconds for row in rows if row.planned_seconds is not None]
    measured = [row.measured_seconds for row in rows if row.planned_seconds is not None]
    if len(set(planned)) < 2:
        return 1.0
    return float(spearmanr(planned, measured).statistic)


def measure(
    network: str, size: str, costs: Sequence[str], plans: int, rounds: int, lowering: str
) -> list[StepTime]:
    """Compile a network in every way and time all steps in turn."""
    case = NETWORKS[network].build(size)
    sources = digest_of(("graphremat/*.py", "passes/*.py", "bench/networks/*.py"))
    steps: dict[str, Callable[[], object]] = {}
    planned: dict[str, tuple[str, float | None, float | None]] = {}
    if lowering == "inductor":
        steps[TORCH] = _step(case, torch.compile(case.model))
        planned[TORCH] = TORCH, None, None
        steps[TORCH]()
    for kind in costs:
        seen: set[tuple[int, float]] = set()
        for fraction in (place / (plans - 1) for place in range(plans - 1, -1, -1)):
            name = f"{kind} {fraction:.2f}"
            options = {"memory_budget": fraction, "costs": kind, "lowering": lowering, "on_failure": "error"}
            step = _step(case, torch.compile(case.model, backend="graphremat", options=options))
            step()
            report = graphremat.last_report()
            plan = report.generated_peak_bytes, report.step_seconds
            if plan not in seen:  # two fractions may have one plan
                seen.add(plan)
                steps[name], planned[name] = step, (kind, fraction, report.step_seconds)
    times = time_interleaved(steps, rounds=rounds)
    return [
        StepTime(
            network, size, kind, fraction, seconds, times[name].min_seconds, times[name].median_seconds,
            times[name].spread_seconds, sources, torch.get_num_threads(),
        )
        for name, (kind, fraction, seconds) in planned.items()
    ]  # fmt: skip


def _step(case: Case, model: Callable[..., object] | nn.Module) -> Callable[[], object]:
    def step() -> None:
        case.model.zero_grad(set_to_none=True)
        torch.manual_seed(0)
        case.loss(model(*case.inputs)).backward()

    return step


def tables_of(rows: Sequence[StepTime]) -> tuple[Table, Table]:
    """A line a plan, and a line a network and kind of costs."""
    plans = Table("network", "costs", "budget", "planned ms", "best ms", "median ms", "spread ms")
    for row in rows:
        budget = "" if row.fraction is None else f"{row.fraction:.2f}"
        said = "" if row.planned_seconds is None else f"{row.planned_seconds * 1e3:.2f}"
        plans.add_row(
            row.network, row.costs, budget, said, f"{row.measured_seconds * 1e3:.2f}",
            f"{row.median_seconds * 1e3:.2f}", f"{row.spread_seconds * 1e3:.2f}",
        )  # fmt: skip
    networks = Table("network", "costs", "plans", "rank correlation", "fastest against torch.compile")
    for network in dict.fromkeys(row.network for row in rows):
        own = [row for row in rows if row.network == network]
        torchs = [row.measured_seconds for row in own if row.costs == TORCH]
        for kind in dict.fromkeys(row.costs for row in own if row.costs != TORCH):
            of_kind = [row for row in own if row.costs == kind]
            fastest = min(row.measured_seconds for row in of_kind)
            ratio = f"{fastest / torchs[0]:.3f}" if torchs else "not measured"
            networks.add_row(network, kind, str(len(of_kind)), f"{correlation(of_kind):.3f}", ratio)
    return plans, networks


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, add the lines to the file, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--size", default="small")
    parser.add_argument("--costs", nargs="+", default=["model"], choices=["model", "measure"])
    parser.add_argument("--plans", type=int, default=6, help="fractions from 1 to 0, at least 2")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--lowering", default="inductor", choices=["inductor", "aot_eager"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args(arguments)
    console = Console()
    found: list[StepTime] = []
    for network in asked.networks.split(","):
        torch.compiler.reset()
        many_recompilations()
        caches_off = torch.compiler.config.patch(force_disable_caches=True)
        with caches_off, console.status(f"{network}: compiling and timing"):
            rows = measure(network, asked.size, asked.costs, asked.plans, asked.rounds, asked.lowering)
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        with asked.out.open("a") as lines:
            lines.writelines(json.dumps(asdict(row)) + "\n" for row in rows)
        found += rows
    for table in tables_of(found):
        console.print(table)


if __name__ == "__main__":
    main()
