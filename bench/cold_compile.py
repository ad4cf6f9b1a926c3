"""``python -m bench.cold_compile``: how long a first step takes, over that of torch's own backend.

Each network is compiled with torch's backend and at every budget, in turn and ``--rounds`` times, each time with an
empty cache; the best of each counts. A line a network: seconds of torch's backend, and ours over them.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.networks import NETWORKS, Case, names_of
from graphremat.measure import fresh_cache
from graphremat.passes.torch_private import many_recompilations

TORCH = "torch"


def cold_seconds(step: Callable[[], object]) -> float:
    """Of a first step with an empty cache. It is not switched off: Inductor would share no kernel between forward and
    backward then."""
    with fresh_cache():
        started = time.perf_counter()
        step()
        return time.perf_counter() - started


def first_step_seconds(case: Case, budget: str, lowering: str) -> float:
    """Of one forward and backward, compilation included; ``budget`` is ``torch``, ``none`` or a fraction."""
    compiled = partial(torch.compile, case.model, fullgraph=True)
    torch.compiler.reset()
    if budget == TORCH:
        model = compiled(backend=lowering)
    else:
        memory_budget = None if budget == "none" else float(budget)
        options = {"memory_budget": memory_budget, "lowering": lowering, "on_failure": "error"}
        model = compiled(backend="graphremat", options=options)
    return cold_seconds(case.step_of(model))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.cold_compile", description=__doc__)
    parser.add_argument("--networks", type=names_of, default="all", help="comma-separated (default: all)")
    parser.add_argument("--size", default="small")
    parser.add_argument("--budgets", default="none,0.5,0.0", help="comma-separated (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--lowering", default="inductor", choices=["inductor", "aot_eager"])
    asked = parser.parse_args(arguments)
    budgets = [TORCH, *asked.budgets.split(",")]
    many_recompilations()
    loads_the_compiler = NETWORKS["linear_stack"].build("tiny")
    first_step_seconds(loads_the_compiler, budgets[-1], asked.lowering)
    table = Table("network", "torch s", *budgets[1:])
    over_torchs: dict[str, list[float]] = {budget: [] for budget in budgets[1:]}
    console = Console()
    for network in track(asked.networks, "compiling", console=console, transient=True):
        case = NETWORKS[network].build(asked.size)
        taken = dict.fromkeys(budgets, math.inf)
        for _ in range(asked.rounds):
            for budget in budgets:
                taken[budget] = min(taken[budget], first_step_seconds(case, budget, asked.lowering))
        for budget, ratios in over_torchs.items():
            ratios.append(taken[budget] / taken[TORCH])
        table.add_row(network, f"{taken[TORCH]:.1f}", *(f"{r[-1]:.2f}" for r in over_torchs.values()))
    table.add_section()
    table.add_row("median", "", *(f"{statistics.median(r):.2f}" for r in over_torchs.values()))
    table.add_row("most", "", *(f"{max(r):.2f}" for r in over_torchs.values()))
    console.print(table)


if __name__ == "__main__":
    main()
