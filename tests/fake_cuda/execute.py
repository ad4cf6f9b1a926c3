"""``python -m tests.fake_cuda.execute``: run the code for a card that is not there; are its gradients right?

    python -m tests.fake_cuda.execute --networks llama,resnet,dropout_gpt --budgets none,0.0 --dtype float32

A network is planned and lowered for the card, its whole forward and backward then run on the CPU with the kernels under
Triton's interpreter. One JSON line for each network and budget: how far the loss and the worst gradient, and those of
eager in the same precision, are off eager's in float64 (of the largest entry of that gradient). A network that draws
random numbers draws others than eager's; its derivative in a random direction is held against a difference quotient of
its own forward with the same seeds instead, which is exact enough in float64 alone.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"

from tests.fake_cuda import shim

shim.load()

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_flatten, tree_unflatten

from bench.networks import NETWORKS, Case
from graphremat.lowering import output_names
from graphremat.passes.torch_private import first_user_output
from tests.fake_cuda.device import fake_cuda
from tests.fake_cuda.interpreter import interpreting, wrapper_on_the_cpu
from tests.fake_cuda.lower import Lowered, Setting, lowered

STEP = 1e-5
"""Of the difference quotient, in every direction of the parameters together."""
CAPABILITY = (9, 0)


def leaves_of(case: Case) -> list[Tensor]:
    """Everything that a step takes, in one order."""
    return [*case.model.parameters(), *case.model.buffers(), *case.inputs]


@dataclass(frozen=True)
class Ran:
    """One step: its loss, and the gradient of each of :func:`leaves_of` that has one, by its place there."""

    loss: float
    gradients: dict[int, Tensor]


def in_eager(case: Case) -> Ran:
    """What autograd makes of it."""
    case.model.zero_grad()
    loss = case.loss(case.model(*case.inputs))
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = {k: x.grad for k, x in enumerate(leaves_of(case)) if x.grad is not None}
    return Ran(loss.item(), gradients)


class Code:
    """The generated code of a step on the CPU."""

    def __init__(self, made: Lowered, case: Case) -> None:
        forward, backward = made.graphs
        leaves = {id(leaf): place for place, leaf in enumerate(leaves_of(made.case))}
        self.case = case
        self.places = [leaves[id(x)] for x in made.arguments]
        self.outputs = output_names(forward)
        self.first = first_user_output(forward.graph)
        self.backward_inputs = names_of(backward)
        with interpreting():
            self.forward, self.backward = (wrapper_on_the_cpu(source).call for source in made.wrappers)
        with torch.no_grad():
            flat, self.form = tree_flatten(case.model(*case.inputs))
        self.number = len(flat)

    def run(self, seed: int, *, backward: bool = True) -> Ran:
        """One step with all random numbers from this seed."""
        leaves = leaves_of(self.case)
        torch.manual_seed(seed)
        with interpreting(), torch.no_grad():
            made = list(self.forward([leaves[place].detach().clone() for place in self.places]))
        end = self.first + self.number
        given = [x.detach().requires_grad_(x.is_floating_point()) for x in made[self.first : end]]
        loss = self.case.loss(tree_unflatten(given, self.form))
        if not backward:
            return Ran(loss.item(), {})
        wanted = [x for x in given if x.requires_grad]
        tangents = iter(torch.autograd.grad(loss, wanted, materialize_grads=True))
        saved = dict(zip(self.outputs, made, strict=True))
        arguments = [saved[name] if name in saved else next(tangents) for name in self.backward_inputs]
        assert next(tangents, None) is None
        with interpreting(), torch.no_grad():
            found = self.backward(arguments)
        gradients = {k: x for k, x in zip(self.places, found, strict=True) if x is not None}
        return Ran(loss.item(), gradients)


def names_of(graph: fx.GraphModule) -> list[str]:
    """Of the placeholders, in order."""
    return [node.name for node in graph.graph.find_nodes(op="placeholder")]


def furthest_off(found: Mapping[int, Tensor], right: Mapping[int, Tensor]) -> float:
    """The worst gradient's largest difference, as a share of that gradient's largest entry."""
    assert found.keys() == right.keys()
    return max(((found[k] - x).abs().max() / x.abs().max().clamp(min=1e-30)).item() for k, x in right.items())


def against_eager(code: Code) -> dict[str, float]:
    """How far the loss and the worst gradient are off, and those of eager itself, from eager in float64."""
    ours, eager = code.run(0), in_eager(code.case)
    exact = in_eager(deepcopy(code.case).to("cpu", torch.float64))
    return {
        "loss_error": abs(ours.loss / exact.loss - 1),
        "gradient_error": furthest_off(ours.gradients, exact.gradients),
        "gradient_error_of_eager": furthest_off(eager.gradients, exact.gradients),
    }


def against_quotient(code: Code) -> dict[str, float]:
    """How far the derivative in a random direction of all parameters is off the quotient of two forwards."""
    found = code.run(0)
    leaves = leaves_of(code.case)
    torch.manual_seed(1)
    directions = {k: torch.randn_like(leaves[k]) for k in found.gradients}
    derivative = sum((found.gradients[k] * d).sum().item() for k, d in directions.items())
    losses = []
    for step in (STEP, -STEP):
        with torch.no_grad():
            for k, d in directions.items():
                leaves[k].add_(d, alpha=step)
            losses.append(code.run(0, backward=False).loss)
            for k, d in directions.items():
                leaves[k].sub_(d, alpha=step)
    quotient = (losses[0] - losses[1]) / (2 * STEP)
    return {"derivative": derivative, "derivative_error": abs(derivative / quotient - 1)}


def row_of(network: str, size: str, dtype: str, budget: float | None) -> dict[str, object]:
    """What is said of one network at one budget."""
    with fake_cuda(CAPABILITY):
        made = lowered(Setting(network, size, dtype, CAPABILITY), budget)
    case = NETWORKS[network].build(size).to("cpu", getattr(torch, dtype))
    code = Code(made, case)
    return {
        "network": network,
        "size": size,
        "dtype": dtype,
        "budget": budget,
        "recomputed_ops": made.report.recomputed_ops,
        **(against_quotient(code) if case.random else against_eager(code)),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fake_cuda.execute",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--networks", default="llama,resnet,dropout_gpt", help="default: %(default)s")
    parser.add_argument("--budgets", default="none,0.0", help="none or fractions (default: %(default)s)")
    parser.add_argument("--size", default="one_block", help="of the networks (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", help="or bfloat16, float64 (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    for network in chosen.networks.split(","):
        for text in chosen.budgets.split(","):
            budget = None if text == "none" else float(text)
            print(json.dumps(row_of(network, chosen.size, chosen.dtype, budget)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
