"""``python -m bench.against_exact``: our plans beside the proved optimum of random problems or of real networks.

    python -m bench.against_exact
    python -m bench.against_exact --networks llama,resnet

Each problem is planned once, for all budgets. Its budgets lie evenly between a peak that no plan gets below and the
peak of the fastest plan; for each the exact solver runs, and our plan under the budget is held against what it proves.
Where the solver does not end in time nothing is compared; the table says how often, and how far above the solver's
bound our plan is there. Networks are taken without fusion (as ``aot_eager`` lowers them), of which the solver's
programme is exact, and the solver gets our plan as the one to beat. One JSON line a problem in ``--out``; a second run
skips what the same sources have measured.

The exit code is 1 if a figure of the table is beyond its bound (``LIMITS``).
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.export_problems import capture_problem
from bench.networks import names_of
from bench.random_problems import SHAPES, random_problem
from bench.sources import digest_of
from graphremat.passes.cut import NoCut
from graphremat.passes.exact import solve_exact
from graphremat.passes.planner import plan_frontier
from graphremat.passes.problem import Problem

RESULTS = Path(__file__).parent / "results" / "against_exact.jsonl"
LIMITS = {"median": 0.005, "p95": 0.02, "missed": 0.01}
"""Added seconds over the optimum as a share of the step, and how often we find no plan where there is one."""


@dataclass(frozen=True)
class Point:
    """One budget of one problem. Seconds are of the whole step, None where there is no plan."""

    budget_bytes: int
    ours_seconds: float | None
    exact_seconds: float | None
    proved: bool
    bound_seconds: float | None = None
    """What no plan of the solver's space gets below; None where there is no plan, or where nothing is known."""

    @property
    def share(self) -> float | None:
        """What our plan adds to the optimum, as a share of the optimum's step; None if there is no comparison."""
        if not self.proved or self.exact_seconds is None or self.ours_seconds is None:
            return None
        return self.ours_seconds / self.exact_seconds - 1.0


@dataclass(frozen=True)
class Row:
    """One problem: how long planning and proving took, its fastest step, and its points.

    ``group`` is its line in the table; ``setting`` is what else decides the row, beside the sources.
    """

    name: str
    group: str
    setting: str
    sources: str
    ops: int
    fastest_seconds: float
    plan_seconds: float
    prove_seconds: float
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Subject:
    """What one row is measured on."""

    name: str
    group: str
    setting: str
    make: Callable[[], Problem]
    beat_ours: bool = False
    """Whether the solver is given our plan to beat; without it, what it finds is independent of ours."""


def random_subjects(seeds: int, least: int, most: int, setting: str) -> list[Subject]:
    """One a seed, of ``least`` to ``most`` forward ops."""
    shapes = [SHAPES[seed % len(SHAPES)] for seed in range(seeds)]
    return [
        Subject(
            f"{shape} {seed}",
            shape,
            f"{least} to {most} forward ops, {setting}",
            partial(random_problem, seed, least=least, most=most),
        )
        for seed, shape in enumerate(shapes)
    ]


def network_subjects(networks: Sequence[str], size: str, setting: str) -> list[Subject]:
    """One a network, without fusion."""
    return [
        Subject(name, name, f"{size}, {setting}", partial(capture_problem, name, size, "aot_eager"), True)
        for name in networks
    ]


def measure(subject: Subject, budgets: int, limit_seconds: float, sources: str = "") -> Row | None:
    """Plan and prove one problem; None if its backward needs what can neither be saved nor recomputed."""
    problem = subject.make()
    started = time.perf_counter()
    try:
        frontier = plan_frontier(problem, most_recomputations=None)
    except NoCut:
        return None
    plan_seconds = time.perf_counter() - started
    assert frontier.bound is not None
    low, high = frontier.bound.lowest_bytes, frontier.candidates[0].replay.peak_bytes
    points = []
    started = time.perf_counter()
    for step in range(budgets):
        budget = low + (high - low) * step // (budgets - 1)
        place = frontier.under(budget)
        ours = None if place is None else frontier.candidates[place]
        incumbent = ours.plan if ours and subject.beat_ours else None
        answer = solve_exact(problem, budget, time_limit_seconds=limit_seconds, incumbent=incumbent)
        bound = answer.bound_seconds if math.isfinite(answer.bound_seconds) else None
        seconds = ours.replay.seconds if ours else None
        points.append(Point(budget, seconds, answer.seconds, answer.proved, bound))
    return Row(
        subject.name,
        subject.group,
        subject.setting,
        sources,
        len(problem.ops),
        frontier.candidates[0].replay.seconds,
        plan_seconds,
        time.perf_counter() - started,
        tuple(points),
    )


def read_rows(path: Path) -> list[Row]:
    """The rows of a file of JSON lines; none if there is no such file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [
        Row(**{**body, "points": tuple(Point(**p) for p in body["points"])})
        for body in map(json.loads, lines)
    ]


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]


def figures(rows: Sequence[Row]) -> dict[str, float]:
    """The numbers of the table; shares are of the optimum's step, ``added`` of the optimum's own added seconds.

    ``over bound`` is the worst share by which a plan of ours is above the solver's bound where it proved no optimum.
    """
    points = [(row, point) for row in rows for point in row.points]
    shares = [p.share for _, p in points if p.share is not None]
    feasible = [p for _, p in points if p.proved and p.exact_seconds is not None]
    added = [
        (p.ours_seconds - p.exact_seconds) / (p.exact_seconds - row.fastest_seconds)
        for row, p in points
        if p.share is not None
        and p.ours_seconds is not None
        and p.exact_seconds is not None
        and p.exact_seconds > row.fastest_seconds * (1 + 1e-9)
    ]
    over = [
        p.ours_seconds / p.bound_seconds - 1.0
        for _, p in points
        if p.ours_seconds is not None and p.bound_seconds and not p.proved
    ]
    return {
        "problems": len(rows),
        "compared": len(shares),
        "unproved": sum(not p.proved for _, p in points),
        "missed": sum(p.ours_seconds is None for p in feasible) / max(1, len(feasible)),
        "median": statistics.median(shares) if shares else 0.0,
        "p95": quantile(shares, 0.95) if shares else 0.0,
        "worst": max(shares, default=0.0),
        "over bound": max(over, default=0.0),
        "added median": statistics.median(added) if added else 0.0,
        "added p95": quantile(added, 0.95) if added else 0.0,
        "plan seconds": statistics.median(row.plan_seconds for row in rows) if rows else 0.0,
        "prove seconds": statistics.median(row.prove_seconds for row in rows) if rows else 0.0,
    }


def table_of(rows: Sequence[Row]) -> tuple[Table, bool]:
    """The table by group, and whether all of them together are within the limits."""
    table = Table(
        "problems",
        title="added seconds over the proved optimum, as a share of its step",
        title_justify="left",
    )
    whole = figures(rows)
    for name in whole:
        table.add_column(name, justify="right")
    groups = {row.group: [r for r in rows if r.group == row.group] for row in rows}
    for name, group in {**groups, "all": rows}.items():
        found = figures(group)
        counts = {"problems", "compared", "unproved"}
        cells = [
            f"{v:.0f}" if k in counts else f"{v:.2f}" if k.endswith("seconds") else f"{v:.2%}"
            for k, v in found.items()
        ]
        table.add_row(name, *cells)
    return table, all(whole[name] <= limit for name, limit in LIMITS.items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures what is missing and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.against_exact", description=__doc__)
    parser.add_argument("--seeds", type=int, default=500, help="problems (default: %(default)s)")
    parser.add_argument("--least", type=int, default=4, help="forward ops (default: %(default)s)")
    parser.add_argument("--most", type=int, default=14, help="forward ops (default: %(default)s)")
    parser.add_argument(
        "--networks", type=names_of, help="comma-separated, or all, in place of random problems"
    )
    parser.add_argument("--size", default="one_block", help="of the networks (default: %(default)s)")
    parser.add_argument("--budgets", type=int, default=10, help="a problem (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="limit of a proof (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON lines (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    if chosen.budgets < 2:
        parser.error("--budgets must be at least 2: the lowest and the highest")
    how = f"{chosen.budgets} budgets, {chosen.seconds:g} s"
    if chosen.networks:
        subjects = network_subjects(chosen.networks, chosen.size, how)
        sources = digest_of(("passes/**/*.py", "bench/export_problems.py", "bench/networks/*.py"))
    else:
        subjects = random_subjects(chosen.seeds, chosen.least, chosen.most, how)
        sources = digest_of(("passes/**/*.py", "bench/random_problems.py"))
    done = {(r.name, r.setting): r for r in read_rows(chosen.out) if r.sources == sources}
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    with Progress(transient=True) as progress, chosen.out.open("a") as out:
        for subject in progress.track(subjects, description="planning and proving"):
            if (subject.name, subject.setting) in done:
                continue
            row = measure(subject, chosen.budgets, chosen.seconds, sources)
            if row is not None:
                done[row.name, row.setting] = row
                out.write(json.dumps(asdict(row)) + "\n")
                out.flush()
    wanted = [done[s.name, s.setting] for s in subjects if (s.name, s.setting) in done]
    table, good = table_of(wanted)
    Console(width=None if sys.stdout.isatty() else 220).print(table)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
