"""One network under plain Inductor, torch's own memory budget and ours, in one process: peaks and interleaved steps.

    python -m bench.side_by_side --network llama --size reference --torch 0.1 --ours 142MiB

``--ours`` takes budgets over parameters and inputs, as the printed peaks are, fractions, or ``none``. Every contestant
is compiled, its peak is measured by the allocator's events, and then all steps are timed in turn. The last line says
how our first plan compares with torch's first budget.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import graphremat
from bench.networks import NETWORKS, Case
from graphremat.backend import graphremat as graphremat_backend
from graphremat.measure import gradient_error, measure_peak, time_interleaved
from graphremat.passes.torch_private import activation_memory_budget, compile_fx, many_recompilations
from graphremat.units import parse_bytes

MIB = 2**20
Backend = Callable[[Any, Sequence[Any]], Callable[..., Any]]


def held_bytes(case: Case) -> int:
    """Bytes of parameters, buffers and inputs."""
    tensors = [*case.model.parameters(), *case.model.buffers(), *case.inputs]
    return sum(
        s.nbytes() for s in {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors}.values()
    )


def torchs(fraction: float) -> Backend:
    """Inductor with torch's own budget. A function of its own, so that Dynamo keeps the contestants apart."""

    def backend(gm: Any, inputs: Sequence[Any]) -> Callable[..., Any]:
        with activation_memory_budget(fraction):
            return compile_fx(gm, inputs)  # type: ignore[no-any-return]

    return backend


def ours(budget: str, held: int, options: dict[str, object]) -> Backend:
    """Our backend at bytes over what the caller holds, at a fraction, or without a budget."""
    value: object = (
        None if budget == "none" else float(budget) if "." in budget else held + parse_bytes(budget)
    )

    def backend(gm: Any, inputs: Sequence[Any]) -> Callable[..., Any]:
        return graphremat_backend(gm, inputs, options={"memory_budget": value, **options})

    return backend


def main() -> None:
    """Compile, measure, time and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="llama", choices=sorted(NETWORKS))
    parser.add_argument("--size", default="reference")
    parser.add_argument("--torch", nargs="*", default=["0.1"], help="values of activation_memory_budget")
    parser.add_argument("--ours", nargs="*", default=["142MiB"])
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.compiler.config.force_disable_caches = True
    many_recompilations()
    case = NETWORKS[arguments.network].build(arguments.size)
    held = held_bytes(case)
    backends = {"torch.compile": torchs(1.0)}
    backends |= {f"activation_memory_budget={f}": torchs(float(f)) for f in arguments.torch}
    backends |= {f"graphremat {b}": ours(b, held, {}) for b in arguments.ours}

    def clear() -> None:
        case.model.zero_grad(set_to_none=True)

    console = Console()
    steps: dict[str, Callable[[], object]] = {}
    rows: dict[str, tuple[float, str, float]] = {}
    reference: list[torch.Tensor | None] = []
    for name, backend in backends.items():
        model = torch.compile(case.model, backend=backend)

        def step(model: Callable[..., object] = model) -> None:
            clear()
            torch.manual_seed(0)
            case.loss(model(*case.inputs)).backward()

        with console.status(f"compiling {name}"):
            step()
        predicted = "-"
        if name.startswith("graphremat"):
            report = graphremat.last_report()
            predicted = f"{(report.generated_peak_bytes - report.input_bytes) / MIB:.2f}"
            console.print(str(report), highlight=False)
        gradients = [None if p.grad is None else p.grad.clone() for p in case.model.parameters()]
        reference = reference or gradients
        peak = measure_peak(step, clear=clear).peak_bytes / MIB
        rows[name] = (peak, predicted, gradient_error(reference, gradients))
        steps[name] = step
    with console.status("timing"):
        times = time_interleaved(steps, rounds=arguments.rounds)
    base = times["torch.compile"].median_seconds
    table = Table(
        "contestant", "peak MiB", "predicted MiB", "median ms", "best ms", "step ratio", "gradient error"
    )
    for name, (peak, predicted, error) in rows.items():
        t = times[name]
        table.add_row(
            name, f"{peak:.2f}", predicted, f"{t.median_seconds * 1e3:.1f}", f"{t.min_seconds * 1e3:.1f}",
            f"{t.median_seconds / base:.3f}", f"{error:.1e}",
        )  # fmt: skip
    console.print(
        f"{case.describe()}\npeaks over {held / MIB:.1f} MiB of parameters and inputs", highlight=False
    )
    console.print(table)
    names = list(rows)
    theirs = [n for n in names if n.startswith("activation")]
    mine = [n for n in names if n.startswith("graphremat")]
    if theirs and mine:
        a, b = mine[0], theirs[0]
        console.print(
            f"{a} against {b}: {rows[a][0] / rows[b][0]:.3f} of the peak, "
            f"{times[a].median_seconds / times[b].median_seconds:.3f} of the step (median), "
            f"{times[a].min_seconds / times[b].min_seconds:.3f} (best)",
            highlight=False,
        )


if __name__ == "__main__":
    main()
