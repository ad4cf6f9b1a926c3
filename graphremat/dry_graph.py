"""FX graphs, run op by op on tensors without data.

What of torch it relies on: ``fx.Interpreter.boxed_run`` frees a value after the node that reads it last, and what no
node reads at the end.
"""

import itertools
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_flatten, tree_unflatten

from graphremat.dry_storages import Calls, StorageLog, described_placeholders, materialize
from graphremat.errors import PlanningError
from graphremat.lowering import SymbolSpec, TensorSpec, describe_inputs, output_nodes
from graphremat.passes.torch_private import disable_current_modes


class GraphProgram:
    """An FX graph, walked node by node; a value is freed after its last use, as :class:`torch.fx.Interpreter` does."""

    def __init__(
        self, gm: fx.GraphModule, inputs: tuple[TensorSpec | SymbolSpec, ...], log: StorageLog
    ) -> None:
        self.inputs = inputs
        self.log = log
        self.gm = gm
        self.constants: dict[str, Any] = {}
        self.dropped_after = _last_uses(gm.graph)

    def hold_constants(self) -> list[torch.Tensor]:
        """The tensors that the graph reads as attributes; they count as inputs."""
        for node in self.gm.graph.find_nodes(op="get_attr"):
            value = operator.attrgetter(str(node.target))(self.gm)
            if isinstance(value, torch.Tensor):
                (spec,) = describe_inputs([str(node.target)], [value])
                (value,) = materialize([spec], self.log)
            self.constants[str(node.target)] = value
        return [value for value in self.constants.values() if isinstance(value, torch.Tensor)]

    def run(self, arguments: list[Any]) -> list[Any]:
        """Walk the graph; `arguments` is emptied."""
        with Calls(self.log):
            return self.walk(arguments)

    def walk(self, arguments: list[Any]) -> list[Any]:
        """The same where calls are seen already."""
        values: dict[fx.Node, Any] = dict(
            zip(self.gm.graph.find_nodes(op="placeholder"), arguments, strict=True)
        )
        arguments.clear()
        for node in self.gm.graph.nodes:
            if node.op in {"placeholder", "output"}:
                continue
            self.log.node = node.name
            values[node] = self._evaluate(node, values)
            for dead in self.dropped_after.get(node, ()):
                del values[dead]
        self.log.node = None
        return [values[out] if isinstance(out, fx.Node) else out for out in output_nodes(self.gm)]

    def _evaluate(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        if node.op == "get_attr":
            return self.constants[str(node.target)]
        if node.op != "call_function":
            raise PlanningError(f"node {node.name} is a {node.op}, which no graph from AOTAutograd has")
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda read: values[read])
        assert callable(node.target)
        try:
            return node.target(*args, **kwargs)
        except PlanningError:
            if node.target is torch.ops.higher_order.invoke_subgraph:
                return self._called_region(args)
            if node.meta.get("val") is None:
                raise
            return self._as_traced(node)

    def _called_region(self, args: Sequence[Any]) -> tuple[Any, ...]:
        body, _, *operands = args
        program = GraphProgram(body, described_placeholders(body), self.log)
        program.hold_constants()
        return tuple(program.walk(list(operands)))

    def _as_traced(self, node: fx.Node) -> Any:
        """New tensors like those that the node had when it was traced: for sizes that depend on data, and for operators
        that hold graphs of their own, of which the one that takes the most is counted."""
        leaves, structure = tree_flatten(node.meta["val"])
        bodies = [
            self.constants.get(str(read.target)) for read in node.all_input_nodes if read.op == "get_attr"
        ]
        with disable_current_modes():
            inside = [self._inside(body) for body in bodies if isinstance(body, fx.GraphModule)]
            found = materialize(describe_inputs([node.name] * len(leaves), leaves), self.log)
        self.log.called(node.name, max(inside, default=0))
        return tree_unflatten(found, structure)

    def _inside(self, body: fx.GraphModule) -> int:
        """What a graph takes while it runs, beyond its inputs and outputs."""
        log = StorageLog(self.log.round_to_bytes, self.log.device_type)
        program = GraphProgram(body, described_placeholders(body), log)
        held = materialize(program.inputs, log)
        held += program.hold_constants()
        before = log.serials_of(held)
        input_bytes = log.alive_bytes
        outputs = program.run(held[: len(program.inputs)])
        output_bytes = log.bytes_of(outputs, without=before)
        log.recording = False
        peak = max(itertools.accumulate(change for _, _, change, _ in log.events))
        return max(0, peak - input_bytes - output_bytes)


def _last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """What is dropped after each node: values that no later node reads. What no node reads at all stays to the end."""
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        for read in node.all_input_nodes:
            last[read] = node
    dropped: dict[fx.Node, list[fx.Node]] = {}
    for node, reader in last.items():
        dropped.setdefault(reader, []).append(node)
    return dropped
