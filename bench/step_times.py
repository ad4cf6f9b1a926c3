"""``python -m bench.step_times``: do the costs order the plans as the clock does?

    python -m bench.step_times --networks llama,unet --size small --costs model measure

Each network is compiled at ``--plans`` fractions of its range, with every kind of costs asked for, and all its steps
are timed in turn. A line a plan: what the costs say of the step, and what it takes; a line a network: the rank
correlation (Spearman's) of the two, and how the fastest step and that of the loosest budget compare with torch's own
backend. One JSON line a plan is added to ``--out``; ``--read`` measures nothing and shows what was measured last of
each network there, and ``--into`` writes the lines of networks into a page. Where all plans take nearly the same time,
noise decides their order: the table says as well how well the clock agrees with itself (the same correlation, of one
half of the rounds with the other), and how many of the pairs that are planned to be ``APART`` or more apart it orders
as planned.

The C library is told to keep what is freed (:mod:`bench.malloc`).
"""

import argparse
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

import graphremat
from bench import markdown
from bench.cold_compile import cold_seconds
from bench.keep_budget import sources_digest
from bench.malloc import keep_freed_memory
from bench.networks import NETWORKS, names_of
from graphremat.demo import insert
from graphremat.measure import time_interleaved
from graphremat.passes.torch_private import many_recompilations

RESULTS = Path(__file__).parent / "results" / "step_times.jsonl"
MARKS = ("<!-- step times -->", "<!-- end of step times -->")
TORCH = "torch.compile"
TIMED_SECONDS, FEWEST_ROUNDS = 45.0, 9
APART = 0.03
"""Share by which two planned times differ at least to be a pair that the clock is asked about."""


@dataclass(frozen=True)
class StepTime:
    """One plan of one network; of torch's own backend there is no planned time.

    ``measured_seconds`` is the best of all rounds; of two compilations to the same code the best of 21 rounds were 4%
    and 3% apart, the medians 1.4% and 0.0%. What counts is ``over_round``, the median of its seconds over the mean of
    all steps of the same round, which a machine that is slower for a while does not change.
    """

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
    compile_seconds: float | None = None
    """What the first step took beyond a later one's median, with an empty cache; None in rows of before 2026-11-27."""
    over_round: float | None = None
    """None in rows of before 2026-12-01, as of the next: there the median seconds count."""
    halves_over_round: tuple[float, float] | None = None
    """The same of every second round, and of the others."""

    @property
    def measured(self) -> float:
        """What plans of one run are ordered by."""
        return self.median_seconds if self.over_round is None else self.over_round


def correlation(rows: Sequence[StepTime]) -> float:
    """Spearman's rank correlation of planned and measured seconds; 1.0 if all plans are planned to take the same."""
    plans = [row for row in rows if row.planned_seconds is not None]
    return _correlation([row.planned_seconds for row in plans], [row.measured for row in plans])


def correlation_of_halves(rows: Sequence[StepTime]) -> float | None:
    """The same of one half of the rounds with the other; None where the halves were not kept."""
    halves = [row.halves_over_round for row in rows if row.planned_seconds is not None]
    if not halves or None in halves:
        return None
    return _correlation(*zip(*halves, strict=True))  # type: ignore[arg-type]


def _correlation(ones: Sequence[float | None], others: Sequence[float]) -> float:
    return 1.0 if len(set(ones)) < 2 else float(spearmanr(ones, others).statistic)


def over_rounds(seconds: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """Of every step and round, its seconds over the mean of all steps of that round."""
    means = [statistics.fmean(taken) for taken in zip(*seconds.values(), strict=True)]
    return {name: [s / mean for s, mean in zip(taken, means, strict=True)] for name, taken in seconds.items()}


def ordered_alike(rows: Sequence[StepTime]) -> tuple[int, int]:
    """Of the pairs of plans whose planned times are ``APART`` or more apart: those that the clock orders alike, and
    all."""
    planned = [(row.planned_seconds, row.measured) for row in rows if row.planned_seconds is not None]
    pairs = [(a, b) for a, b in permutations(planned, 2) if b[0] >= (1 + APART) * a[0]]
    return sum(b[1] > a[1] for a, b in pairs), len(pairs)


def measure(
    network: str, size: str, costs: Sequence[str], plans: int, rounds: int | None, lowering: str
) -> list[StepTime]:
    """Compile a network in every way and time all steps in turn, for a while if no number of rounds is given."""
    case = NETWORKS[network].build(size)
    sources = sources_digest()
    steps: dict[str, Callable[[], object]] = {}
    planned: dict[str, tuple[str, float | None, float | None]] = {}
    first: dict[str, float] = {}
    if lowering == "inductor":
        steps[TORCH] = case.step_of(torch.compile(case.model))
        planned[TORCH] = TORCH, None, None
        first[TORCH] = cold_seconds(steps[TORCH])
    for kind in costs:
        seen: set[tuple[int, float]] = set()
        for fraction in (place / (plans - 1) for place in range(plans - 1, -1, -1)):
            name = f"{kind} {fraction:.2f}"
            options = {"memory_budget": fraction, "costs": kind, "lowering": lowering, "on_failure": "error"}
            step = case.step_of(torch.compile(case.model, backend="graphremat", options=options))
            taken = cold_seconds(step)
            report = graphremat.last_report()
            plan = report.generated_peak_bytes, report.step_seconds
            if plan not in seen:  # two fractions may have one plan
                seen.add(plan)
                steps[name], planned[name] = step, (kind, fraction, report.step_seconds)
                first[name] = taken
    if rounds is None:
        once = sum(timing.min_seconds for timing in time_interleaved(steps, rounds=1).values())
        rounds = max(FEWEST_ROUNDS, int(TIMED_SECONDS / once))
    times = time_interleaved(steps, rounds=rounds)
    relative = over_rounds({name: timing.seconds for name, timing in times.items()})
    found = []
    for name, (kind, fraction, seconds) in planned.items():
        timing, ratios = times[name], relative[name]
        halves = (
            (statistics.median(ratios[::2]), statistics.median(ratios[1::2])) if len(ratios) > 1 else None
        )
        found.append(
            StepTime(
                network, size, kind, fraction, seconds, timing.min_seconds, timing.median_seconds,
                timing.spread_seconds, sources, torch.get_num_threads(), first[name] - timing.median_seconds,
                statistics.median(ratios), halves,
            )
        )  # fmt: skip
    return found


def latest(rows: Sequence[StepTime]) -> list[StepTime]:
    """The rows of each network and size whose sources were measured last, and of two alike the last one."""
    last = {(row.network, row.size): row.sources for row in rows}
    current = [row for row in rows if row.sources == last[row.network, row.size]]
    return list({(row.network, row.size, row.costs, row.fraction): row for row in current}.values())


def plans_table(rows: Sequence[StepTime]) -> Table:
    """A line a plan."""
    table = Table(
        "network", "costs", "budget", "planned ms", "best ms", "median ms", "spread ms", "compile s"
    )
    for row in rows:
        budget = "" if row.fraction is None else f"{row.fraction:.2f}"
        compiled = "" if row.compile_seconds is None else f"{row.compile_seconds:.1f}"
        said = "" if row.planned_seconds is None else f"{row.planned_seconds * 1e3:.2f}"
        table.add_row(
            row.network, row.costs, budget, said, f"{row.measured_seconds * 1e3:.2f}",
            f"{row.median_seconds * 1e3:.2f}", f"{row.spread_seconds * 1e3:.2f}", compiled,
        )  # fmt: skip
    return table


def networks_table(rows: Sequence[StepTime]) -> list[str]:
    """A line a network and kind of costs, as lines of Markdown."""
    head = (
        "network", "costs", "plans", "rank correlation", "clock with itself", "pairs in order",
        "fastest over `torch.compile`", "loosest budget over it",
    )  # fmt: skip
    lines = []
    for network in dict.fromkeys(row.network for row in rows):
        own = [row for row in rows if row.network == network]
        torchs = [row.measured for row in own if row.costs == TORCH]
        for kind in dict.fromkeys(row.costs for row in own if row.costs != TORCH):
            of_kind = [row for row in own if row.costs == kind]
            fastest = min(row.measured for row in of_kind)
            loosest = max(of_kind, key=lambda row: row.fraction or 0.0).measured
            ratios = [f"{ours / torchs[0]:.3f}" if torchs else "-" for ours in (fastest, loosest)]
            right, pairs = ordered_alike(of_kind)
            itself = correlation_of_halves(of_kind)
            agreement = "-" if itself is None else f"{itself:.2f}"
            counts = str(len(of_kind)), f"{correlation(of_kind):.2f}", agreement, f"{right} of {pairs}"
            lines.append((network, kind, *counts, *ratios))
    return markdown.table_of(head, lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, add the lines to the file, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", type=names_of, default="all", help="comma-separated (default: all)")
    parser.add_argument("--size", default="small")
    parser.add_argument("--costs", nargs="+", default=["model"], choices=["model", "measure"])
    parser.add_argument("--plans", type=int, default=6, help="fractions from 1 to 0, at least 2")
    parser.add_argument("--rounds", type=int, help=f"of timed steps (default: {TIMED_SECONDS:.0f} s of them)")
    parser.add_argument("--lowering", default="inductor", choices=["inductor", "aot_eager"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--read", action="store_true", help="print what --out holds, measure nothing")
    parser.add_argument("--into", type=Path, help="a file whose table of step times is written anew")
    asked = parser.parse_args(arguments)
    console = Console()
    found: list[StepTime] = []
    if asked.read:
        found = latest([StepTime(**json.loads(line)) for line in asked.out.read_text().splitlines()])
    else:
        keep_freed_memory()
    for network in [] if asked.read else asked.networks:
        torch.compiler.reset()
        many_recompilations()
        with console.status(f"{network}: compiling and timing"):
            rows = measure(network, asked.size, asked.costs, asked.plans, asked.rounds, asked.lowering)
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        with asked.out.open("a") as lines:
            lines.writelines(json.dumps(asdict(row)) + "\n" for row in rows)
        found += rows
    console.print(plans_table(found))
    summary = networks_table(found)
    console.out("\n".join(summary), highlight=False)
    if asked.into:
        insert(asked.into, "\n".join([*summary, ""]), MARKS)


if __name__ == "__main__":
    main()
