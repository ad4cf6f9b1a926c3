"""``python -m bench.against_revolve``: our plans of equal chains beside the published optimum.

Griewank and Walther 2000: ``t(l, s)`` steps forward reverse a chain of ``l`` with ``s`` states kept, a binomial
formula. Each chain is planned once, for all budgets; for every ``s`` the plan under the budget that stands for so many
slots must recompute exactly as many steps as the formula says.

The exit code is 1 if a plan recomputes more, or fewer, for some length and slots.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from graphremat.passes.checkpoints import revolve_forward_steps
from graphremat.passes.planner import plan_frontier
from graphremat.passes.problem import Builder, Kind, Phase, Problem

AT_WORK_BYTES = 3
"""What is alive beside the states that are kept: two gradients and the state at work in the backward; a gradient, the
state that is read and the one that is written where states are advanced."""


@dataclass(frozen=True)
class Row:
    """One length: how many numbers of slots were compared, and those where we recompute more or fewer steps."""

    length: int
    slots: int
    unequal: tuple[int, ...]
    plan_seconds: float


def revolve_chain(length: int) -> Problem:
    """What Revolve models: states of one byte, of which the input is given (it costs no bytes), and a backward that
    needs one state at a time, the last first. Every step forward takes one second."""
    builder = Builder(fuses=False)
    states = [builder.input("x0", 0)]
    for k in range(length):
        size_bytes = 1 if k < length - 1 else 0
        made = builder.op(
            f"step{k}", [states[-1]], Kind.KERNEL, Phase.FORWARD, size_bytes=size_bytes, seconds=1.0
        )
        states.append(made)
    tangent = builder.tangent("tangent", 0)
    gradient = builder.op("seed", [tangent], Kind.KERNEL, Phase.BACKWARD, size_bytes=1, seconds=1.0)
    for k in reversed(range(length)):
        reads = [gradient, states[k]]
        gradient = builder.op(f"grad{k}", reads, Kind.KERNEL, Phase.BACKWARD, size_bytes=1, seconds=1.0)
    return builder.build([states[-1]], [gradient])


def compare(length: int) -> Row:
    """Plan the chain and compare every number of slots. The forward itself takes ``length - 1`` of the formula's
    steps, since the last state is never needed; one of the slots holds the input."""
    problem = revolve_chain(length)
    start = time.perf_counter()
    frontier = plan_frontier(problem, most=2 * length + 4, most_recomputations=None)
    took = time.perf_counter() - start
    unequal = []
    for slots in range(1, length + 1):
        place = frontier.under(slots - 1 + AT_WORK_BYTES)
        optimum = revolve_forward_steps(length, slots) - (length - 1)
        if place is None or len(frontier.candidates[place].plan.recomputed(problem)) != optimum:
            unequal.append(slots)
    return Row(length, length, tuple(unequal), took)


def main(arguments: Sequence[str] | None = None) -> int:
    """Plan, compare, print."""
    parser = argparse.ArgumentParser(prog="python -m bench.against_revolve", description=__doc__)
    parser.add_argument("--up-to", type=int, default=100, help="length (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    console = Console()
    columns = (TextColumn("length"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        rows = [compare(length) for length in bar.track(range(1, chosen.up_to + 1))]
    for row in rows:
        if row.unequal:
            slots = ", ".join(map(str, row.unequal))
            console.print(f"length {row.length}: not the optimum at {slots} slots", highlight=False)
    compared, unequal = sum(r.slots for r in rows), sum(len(r.unequal) for r in rows)
    console.print(
        f"{len(rows)} lengths, {compared} pairs of length and slots: {compared - unequal} at the optimum, "
        f"{unequal} not; {sum(r.plan_seconds for r in rows):.0f} s of planning",
        highlight=False,
    )
    return 1 if unequal else 0


if __name__ == "__main__":
    raise SystemExit(main())
