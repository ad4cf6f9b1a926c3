"""Write the planning problem of every network as JSON, without generating any code.

    python -m bench.export_problems --out problems --size small --networks llama,unet

Each network is traced as :mod:`graphremat.backend` traces it, up to the problem that the planner gets; the step itself
never runs. ``NETWORK.json`` holds what ``10-problem.json`` of a dump holds.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.fx as fx
from rich.console import Console

from bench.networks import NETWORKS
from graphremat.candidates import graph_device
from graphremat.options import Options
from graphremat.partitioner import prices
from graphremat.passes import torch_private as private
from graphremat.passes.build import build_problem
from graphremat.passes.classify import read_joint_graph
from graphremat.passes.hints import default_size_hint
from graphremat.passes.problem import Problem

LOWERINGS = ("inductor", "aot_eager")


class _Captured(private.ShortenTraceback):  # type: ignore[misc]
    """Carries the problem out of the compilation; Dynamo lets this class through as it is."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(first_useful_frame=None)
        self.problem = problem


class _Capture(private.CustomPartitionerFn):  # type: ignore[misc]
    """Takes the place of the partitioner and ends the compilation with the problem."""

    def __init__(self, lowering: str) -> None:
        self._lowering = lowering

    def __call__(self, gm: fx.GraphModule, joint_inputs: Sequence[object], **kwargs: Any) -> Any:
        joint = read_joint_graph(
            gm,
            num_forward_outputs=kwargs["num_fwd_outputs"],
            static_lifetime_input_indices=kwargs.get("static_lifetime_input_indices"),
        )
        device = prices(Options(), graph_device(gm))
        fuses = self._lowering == "inductor"
        problem, _ = build_problem(joint, device, fuses=fuses, size_hint=default_size_hint)
        raise _Captured(problem)

    def uuid(self) -> None:
        """No caching."""


def capture_problem(network: str, size: str, lowering: str = "inductor") -> Problem:
    """The problem of one network as the planner gets it.

    Args:
        network: a name in :data:`bench.networks.NETWORKS`.
        size: one of its sizes.
        lowering: ``"inductor"`` (ops are joined into kernels) or ``"aot_eager"`` (they are not).
    """
    case = NETWORKS[network].build(size)
    partitioner = _Capture(lowering)

    def compile_graph(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        if lowering == "aot_eager":
            compiled: Any = private.aot_autograd(
                fw_compiler=_never, bw_compiler=_never, partition_fn=partitioner
            )(gm, example_inputs)
        else:
            with private.autograd_cache(False):
                compiled = private.compile_fx(
                    gm, example_inputs, config_patches={"custom_partitioner_fn": partitioner}
                )
        return compiled  # type: ignore[no-any-return]

    torch.compiler.reset()
    try:
        torch.compile(case.model, backend=compile_graph, fullgraph=True)(*case.inputs)
    except _Captured as captured:
        return captured.problem
    finally:
        torch.compiler.reset()
    raise RuntimeError(f"{network} was compiled without a joint graph")


def problem_of(network: str, size: str, lowering: str, folder: Path | None) -> Problem:
    """The problem of one network: what ``main`` has written into ``folder``, or traced now where that is None."""
    if folder:
        return Problem.from_json((folder / f"{network}.json").read_text())
    return capture_problem(network, size, lowering)


def _never(graph: fx.GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
    raise AssertionError("the capture ends the compilation before any graph is compiled")


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes one file a network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    parser.add_argument("--size", default="small")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="comma-separated (default: all)")
    parser.add_argument("--lowering", default="inductor", choices=LOWERINGS)
    chosen = parser.parse_args(arguments)
    chosen.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    for network in chosen.networks.split(","):
        started = time.perf_counter()
        problem = capture_problem(network, chosen.size, chosen.lowering)
        path = chosen.out / f"{network}.json"
        path.write_text(problem.to_json() + "\n")
        console.print(f"{path}: {len(problem.ops)} ops, {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
