"""``python -m bench.cold_compile``: how long a first step takes, over that of torch's own backend.

Each network is compiled with torch's backend and at every budget, in turn and ``--rounds`` times; the best of each
counts. Every first step is that of a process of its own which finds nothing cached, as on a machine where nobody has
compiled before; importing and building the network are not counted. With ``--one-process`` all are in this one, each
with an empty cache: what Inductor asks the C++ compiler once a process is not counted then. A line a network: seconds
of torch's backend, and ours over them.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import markdown
from bench.networks import NETWORKS, Case, names_of
from graphremat.demo import insert
from graphremat.measure import fresh_cache
from graphremat.passes.torch_private import many_recompilations

TORCH = "torch"
MARKS = ("<!-- first steps -->", "<!-- end of first steps -->")


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


def first_step_seconds_apart(network: str, size: str, budget: str, lowering: str) -> float:
    """The same in a process of its own, with an empty folder for what is temporary or cached.

    Raises:
        RuntimeError: the process failed; the message ends with what it wrote.
    """
    said = json.dumps([network, size, budget, lowering])
    with tempfile.TemporaryDirectory() as empty:
        environment = {
            **os.environ,
            "TMPDIR": empty,
            "TORCHINDUCTOR_CACHE_DIR": str(Path(empty) / "inductor"),
        }
        command = [sys.executable, "-W", "ignore", "-m", "bench.cold_compile", "--first-step", said]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the first step of {said} failed:\n{done.stderr[-2000:]}")
    return float(done.stdout.splitlines()[-1])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.cold_compile", description=__doc__)
    parser.add_argument("--networks", type=names_of, default="all", help="comma-separated (default: all)")
    parser.add_argument("--size", default="small")
    parser.add_argument("--budgets", default="none,0.5,0.0", help="comma-separated (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--lowering", default="inductor", choices=["inductor", "aot_eager"])
    parser.add_argument("--into", type=Path, help="a file whose table of first steps is written anew")
    parser.add_argument("--one-process", action="store_true", help="do not start a process for each")
    parser.add_argument(
        "--first-step", type=json.loads, help=argparse.SUPPRESS
    )  # what such a process is asked
    asked = parser.parse_args(arguments)
    if asked.first_step:
        network, size, budget, lowering = asked.first_step
        print(first_step_seconds(NETWORKS[network].build(size), budget, lowering))
        return
    budgets = [TORCH, *asked.budgets.split(",")]
    if asked.one_process:
        many_recompilations()
        loads_the_compiler = NETWORKS["linear_stack"].build("tiny")
        first_step_seconds(loads_the_compiler, budgets[-1], asked.lowering)
    console = Console()
    rows = []
    over_torchs: dict[str, list[float]] = {budget: [] for budget in budgets[1:]}
    for network in track(asked.networks, "compiling", console=console, transient=True):
        if asked.one_process:
            first_step = partial(first_step_seconds, NETWORKS[network].build(asked.size))
        else:
            first_step = partial(first_step_seconds_apart, network, asked.size)
        taken = dict.fromkeys(budgets, math.inf)
        for _ in range(asked.rounds):
            for budget in budgets:
                taken[budget] = min(taken[budget], first_step(budget, asked.lowering))
        for budget, ratios in over_torchs.items():
            ratios.append(taken[budget] / taken[TORCH])
        rows.append((network, f"{taken[TORCH]:.1f}", *(f"{r[-1]:.2f}" for r in over_torchs.values())))
    rows.append(("median", "", *(f"{statistics.median(r):.2f}" for r in over_torchs.values())))
    rows.append(("most", "", *(f"{max(r):.2f}" for r in over_torchs.values())))
    head = ("network", "torch.compile, s", *(f"budget {budget}" for budget in budgets[1:]))
    table = Table(*head)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if asked.into:
        insert(asked.into, "\n".join([*markdown.table_of(head, rows), ""]), MARKS)


if __name__ == "__main__":
    main()
