"""``python -m bench.describe_networks [--sizes tiny,small]``: what the networks come to, measured on eager steps.

Activations are the bytes that the forward leaves alive for backward; gradients what is alive after backward.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.networks import NETWORKS, Case, names_of
from graphremat.measure import measure_peak, time_interleaved

MIB = 2.0**20


@dataclass(frozen=True)
class EagerSizes:
    """Bytes of one eager step, over parameters, buffers and inputs."""

    activations_bytes: int
    gradients_bytes: int
    peak_bytes: int


def eager_sizes(case: Case) -> EagerSizes:
    """Measured on eager; the model's gradients are gone afterwards."""
    kept: list[torch.Tensor] = []

    def clear() -> None:
        kept.clear()
        case.model.zero_grad(set_to_none=True)

    forward = measure_peak(lambda: kept.append(case.loss(case.model(*case.inputs))), clear=clear)
    both = measure_peak(case.step_of(case.model), clear=clear)
    clear()
    return EagerSizes(forward.end_bytes, both.end_bytes, both.peak_bytes)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.describe_networks", description=__doc__)
    parser.add_argument("--sizes", default="tiny,small", help="comma-separated (default: %(default)s)")
    parser.add_argument("--networks", type=names_of, default="all", help="comma-separated (default: all)")
    chosen = parser.parse_args(arguments)
    table = Table("network", "size")
    for title in ("parameters", "activations MiB", "gradients MiB", "eager peak MiB", "eager step ms"):
        table.add_column(title, justify="right")
    pairs = [
        (name, size)
        for size in chosen.sizes.split(",")
        for name in chosen.networks
        if size in NETWORKS[name].sizes
    ]
    with Progress(transient=True) as progress:
        for name, size in progress.track(pairs, description="measuring"):
            case = NETWORKS[name].build(size)
            sizes = eager_sizes(case)
            timing = time_interleaved({"eager": case.step_of(case.model)}, rounds=3)["eager"]
            table.add_row(
                name,
                size,
                f"{sum(parameter.numel() for parameter in case.model.parameters()):,}",
                f"{sizes.activations_bytes / MIB:.2f}",
                f"{sizes.gradients_bytes / MIB:.2f}",
                f"{sizes.peak_bytes / MIB:.2f}",
                f"{timing.median_seconds * 1e3:.1f}",
            )
    Console().print(table)


if __name__ == "__main__":
    main()
