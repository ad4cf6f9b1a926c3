"""Draw what is alive during one step at several budgets: the figure of the README.

    python -m bench.draw_curves --network llama --size small --out docs/curves.svg

The curves are the dry run's, of the graphs run op by op, so that no compiler is needed. Needs the extra ``bench``.
"""

import argparse
import csv
import tempfile
from pathlib import Path

import torch
from matplotlib.figure import Figure

from bench.networks import NETWORKS
from graphremat.report_figures import Curve, draw_curves


def curve(network: str, size: str, budget: float | None) -> list[tuple[str, int]]:
    """``(event, bytes)`` of one step planned at ``budget``."""
    case = NETWORKS[network].build(size)
    torch.compiler.reset()
    with tempfile.TemporaryDirectory() as folder:
        options = {"memory_budget": budget, "lowering": "aot_eager", "dump_dir": folder}
        case.loss(torch.compile(case.model, backend="graphremat", options=options)(*case.inputs))
        (written,) = Path(folder).glob("graph-*/41-generated-curve.csv")
        with written.open(newline="") as file:
            return [(row["event"], int(row["bytes"])) for row in csv.DictReader(file)]


def main() -> None:
    """Plan, read the dumps, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="llama", choices=sorted(NETWORKS))
    parser.add_argument("--size", default="small")
    parser.add_argument("--budgets", nargs="*", type=float, default=[0.5, 0.0])
    parser.add_argument("--out", type=Path, default=Path("docs/curves.svg"))
    arguments = parser.parse_args()
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    curves = []
    for budget in (None, *arguments.budgets):
        events = curve(arguments.network, arguments.size, budget)
        forward = sum(label.startswith("forward") for label, _ in events)
        curves.append(Curve(f"memory_budget={budget}", [size for _, size in events], forward))
    draw_curves(axes, curves)
    axes.set_title(f"Bytes alive during one step: {arguments.network}, {arguments.size}")
    axes.legend(frameon=False)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, metadata={"Date": None})


if __name__ == "__main__":
    main()
