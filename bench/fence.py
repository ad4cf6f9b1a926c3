"""``python -m bench.fence``: what the fence refuses, and what that does to the peak and to the time of a step.

    python -m bench.fence --size small --budget 0 --rounds 101

Each network is lowered by Inductor in three ways at one budget: with the fence, without it, and with no horizontal
fusion at all in the backward. A row a network: the planned peak, that of the code of all three, and how many pairs of
kernels the fence kept apart in the chosen plan. Nothing is compiled for that: bytes are exact. With ``--rounds`` the
steps are compiled and timed in turn as well, and the row ends with the times (median of all rounds) of the other two
over that with the fence. ``--into`` writes the table into a page.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from rich.console import Console
from rich.progress import track

import graphremat
from bench import markdown
from bench.networks import NETWORKS, names_of
from bench.uncompiled import planned
from graphremat import candidates
from graphremat.backend import graphremat as backend
from graphremat.demo import insert
from graphremat.fence import Fence, make_fence
from graphremat.measure import time_interleaved
from graphremat.passes.torch_private import many_recompilations
from graphremat.report import Report
from graphremat.units import format_bytes

MARKS = ("<!-- fence -->", "<!-- end of fence -->")
FENCED, UNFENCED, APART = "with the fence", "without", "nothing joined"


class Apart(Fence):
    """No horizontal fusion at all, whatever the plan."""

    def can_fuse_horizontal(self, *_: object) -> bool:
        return False


def made_apart(*_: object) -> Fence:
    """In the place of :func:`graphremat.fence.make_fence`; with no stretches, it refuses nothing that is vertical."""
    return Apart({})


def lowered(
    name: str, size: str, budget: float, way: str, *, run: bool
) -> tuple[Report, int, Callable[[], object]]:
    """The report of a network's step, the pairs that its fence refused, and the step itself."""
    case = NETWORKS[name].build(size)
    fences: list[Fence] = []

    def making(*given: object) -> Fence:
        fences.append((made_apart if way == APART else make_fence)(*given))  # type: ignore[arg-type]
        return fences[-1]

    options = {"memory_budget": budget, "fence": way != UNFENCED, "on_failure": "error"}
    # Of one backend and equal options, Dynamo would give the code of one way to the next.
    own = partial(backend)
    step = case.step_of(torch.compile(case.model, backend=own, options=options))
    with mock.patch.object(candidates, "make_fence", making):
        if run:
            step()
            report = graphremat.last_report()
        else:
            report = planned(case.model, case.inputs, **options)
    return report, len(set(fences[-1].refused)) if fences else 0, step


def row_of(name: str, size: str, budget: float, rounds: int) -> list[str]:
    """Lower a network in all three ways; time the steps if ``rounds`` is not 0."""
    torch.compiler.reset()
    many_recompilations()
    made = {way: lowered(name, size, budget, way, run=rounds > 0) for way in (FENCED, UNFENCED, APART)}
    reports = {way: report for way, (report, _, _) in made.items()}
    row = [name, format_bytes(reports[FENCED].planned_peak_bytes)]
    row += [format_bytes(report.generated_peak_bytes) for report in reports.values()]
    row.append(str(made[FENCED][1]))
    if rounds:
        times = time_interleaved({way: step for way, (_, _, step) in made.items()}, rounds=rounds)
        row += [
            f"{times[way].median_seconds / times[FENCED].median_seconds:.3f}" for way in (UNFENCED, APART)
        ]
    return row


def main(arguments: Sequence[str] | None = None) -> int:
    """Lower each network three times and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.fence",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--networks", type=names_of, default="all", help="comma-separated (default: all)")
    parser.add_argument("--size", default="tiny", help="default: %(default)s")
    parser.add_argument("--budget", type=float, default=0.0, help="from 0 to 1 (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=0, help="of timed steps (default: none are timed)")
    parser.add_argument("--into", type=Path, help="a file whose table of the fence is written anew")
    chosen = parser.parse_args(arguments)
    head = ["network", "planned", FENCED, UNFENCED, APART, "refused"]
    if chosen.rounds:
        head += [f"time {UNFENCED}", f"time {APART}"]
    console = Console()
    rows = []
    for name in track(chosen.networks, console=console, transient=True):
        with torch.compiler.config.patch(force_disable_caches=True):
            rows.append(row_of(name, chosen.size, chosen.budget, chosen.rounds))
    table = markdown.table_of(head, rows)
    console.out("\n".join(table), highlight=False)
    if chosen.into:
        insert(chosen.into, "\n".join([*table, ""]), MARKS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
