"""Write the planning problem of every network as JSON, without generating any code.

    python -m bench.export_problems --out problems --size small --networks llama,unet

Each network is traced as :mod:`graphremat.backend` traces it, up to the problem that the planner gets; the step itself
never runs. ``NETWORK.json`` holds what ``10-problem.json`` of a dump holds.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bench.networks import NETWORKS, names_of
from graphremat.passes.problem import Problem
from graphremat.tracing import trace_step

LOWERINGS = ("inductor", "aot_eager")


def capture_problem(network: str, size: str, lowering: str = "inductor") -> Problem:
    """The problem of one network as the planner gets it.

    Args:
        network: a name in :data:`bench.networks.NETWORKS`.
        size: one of its sizes.
        lowering: ``"inductor"`` (ops are joined into kernels) or ``"aot_eager"`` (they are not).
    """
    case = NETWORKS[network].build(size)
    return trace_step(case.model, case.inputs, lowering=lowering, with_torchs=False).problem


def problem_of(network: str, size: str, lowering: str, folder: Path | None) -> Problem:
    """The problem of one network: what ``main`` has written into ``folder``, or traced now where that is None."""
    if folder:
        return Problem.from_json((folder / f"{network}.json").read_text())
    return capture_problem(network, size, lowering)


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes one file a network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--size", default="small")
    parser.add_argument("--networks", type=names_of, default="all", help="comma-separated (default: all)")
    parser.add_argument("--lowering", default="inductor", choices=LOWERINGS)
    chosen = parser.parse_args(arguments)
    chosen.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    for network in chosen.networks:
        started = time.perf_counter()
        problem = capture_problem(network, chosen.size, chosen.lowering)
        path = chosen.out / f"{network}.json"
        path.write_text(problem.to_json() + "\n")
        console.print(f"{path}: {len(problem.ops)} ops, {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
