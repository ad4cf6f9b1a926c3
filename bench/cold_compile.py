"""``python -m bench.cold_compile``: how long a first step takes, over that of torch's own backend.

Each network is compiled with torch's backend and at every budget, in turn and ``--rounds`` times; the best of each
counts. Every first step is that of a process of its own which finds nothing cached, as on a machine where nobody has
compiled before; importing and building the network are not counted. With ``--one-process`` all are in this one, each
with an empty cache: what Inductor asks the C++ compiler once a process is not counted then.

A line a network: seconds of torch's backend, and ours over them. One JSON line a first step is added to ``--out``;
``--read`` measures nothing and shows what was measured last of each network there, and ``--into`` writes the table into
a page.
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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import markdown
from bench.keep_budget import sources_digest
from bench.networks import NETWORKS, Case, names_of
from graphremat.demo import insert
from graphremat.measure import fresh_cache
from graphremat.passes.torch_private import many_recompilations

RESULTS = Path(__file__).parent / "results" / "cold_compile.jsonl"
TORCH = "torch"
MARKS = ("<!-- first steps -->", "<!-- end of first steps -->")


@dataclass(frozen=True)
class FirstStep:
    """One first step; ``budget`` is ``torch``, ``none`` or a fraction, ``apart`` whether in a process of its own."""

    network: str
    size: str
    budget: str
    seconds: float
    lowering: str
    apart: bool
    sources: str
    threads: int
    date: str


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


def latest(rows: Sequence[FirstStep]) -> list[FirstStep]:
    """The rows of each network and size whose sources were measured last, in the way that they were measured last."""
    last = {(row.network, row.size): (row.sources, row.lowering, row.apart) for row in rows}
    return [r for r in rows if (r.sources, r.lowering, r.apart) == last[r.network, r.size]]


def cells_of(rows: Sequence[FirstStep]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The head of the table and its lines: of each first step the best counts."""
    networks = dict.fromkeys((row.network, row.size) for row in rows)
    budgets = list(dict.fromkeys(row.budget for row in rows if row.budget != TORCH))
    over_torchs: dict[str, list[float]] = {budget: [] for budget in budgets}
    lines = []
    for network, size in networks:
        best: dict[str, float] = {}
        for row in rows:
            if (row.network, row.size) == (network, size):
                best[row.budget] = min(row.seconds, best.get(row.budget, math.inf))
        ratios = {budget: best[budget] / best[TORCH] for budget in budgets if budget in best}
        for budget, ratio in ratios.items():
            over_torchs[budget].append(ratio)
        shown = (f"{ratios[budget]:.2f}" if budget in ratios else "-" for budget in budgets)
        lines.append((network, f"{best[TORCH]:.1f}", *shown))
    lines.append(("median", "", *(f"{statistics.median(r):.2f}" for r in over_torchs.values())))
    lines.append(("most", "", *(f"{max(r):.2f}" for r in over_torchs.values())))
    return ("network", "torch.compile, s", *(f"budget {budget}" for budget in budgets)), lines


def measure(
    networks: Iterable[str],
    size: str,
    budgets: Sequence[str],
    rounds: int,
    lowering: str,
    *,
    apart: bool,
    out: Path,
) -> list[FirstStep]:
    """Take the first steps, torch's among them; each is added to ``out`` when its network is done."""
    sources = sources_digest()
    if not apart:
        many_recompilations()
        loads_the_compiler = NETWORKS["linear_stack"].build("tiny")
        first_step_seconds(loads_the_compiler, budgets[-1], lowering)
    found: list[FirstStep] = []
    for network in networks:
        if apart:
            first_step = partial(first_step_seconds_apart, network, size)
        else:
            first_step = partial(first_step_seconds, NETWORKS[network].build(size))
        rows = [
            FirstStep(
                network, size, budget, first_step(budget, lowering), lowering, apart, sources,
                torch.get_num_threads(), date.today().isoformat(),
            )
            for _ in range(rounds)
            for budget in (TORCH, *budgets)
        ]  # fmt: skip
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a") as lines:
            lines.writelines(json.dumps(asdict(row)) + "\n" for row in rows)
        found += rows
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, add the lines to the file, print."""
    parser = argparse.ArgumentParser(prog="python -m bench.cold_compile", description=__doc__)
    parser.add_argument("--networks", type=names_of, default="all", help="comma-separated (default: all)")
    parser.add_argument("--size", default="small")
    parser.add_argument("--budgets", default="none,0.5,0.0", help="comma-separated (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--lowering", default="inductor", choices=["inductor", "aot_eager"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--read", action="store_true", help="print what --out holds, measure nothing")
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
    console = Console()
    if asked.read:
        rows = latest([FirstStep(**json.loads(line)) for line in asked.out.read_text().splitlines()])
    else:
        rows = measure(
            track(asked.networks, "compiling", console=console, transient=True), asked.size,
            asked.budgets.split(","), asked.rounds, asked.lowering, apart=not asked.one_process, out=asked.out,
        )  # fmt: skip
    head, lines = cells_of(rows)
    table = Table(*head)
    for line in lines:
        table.add_row(*line)
    console.print(table)
    if asked.into:
        insert(asked.into, "\n".join([*markdown.table_of(head, lines), ""]), MARKS)


if __name__ == "__main__":
    main()
