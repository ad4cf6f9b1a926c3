"""What the kernels of a lowering that joins ops read from memory, op by op. Knows FX.

A price by which each op reads all of its operands counts far too much where ops are joined: an operand that lies in no
buffer is not read but computed, from what is in buffers, in fewer bits perhaps; and what several ops of one kernel read
is read once. Which ops share a kernel is not known before the code is generated. Here it is all between two kernels of
their own (products, convolutions), in the order of the joint graph, and the first reader pays.

On an H100, attention with dropout in bfloat16 (`dropout_gpt` in size `gpu`): steps took 53.7, 65.0, 66.6 and 83.1 ms,
and plans of the same peaks (the third, 31 MiB lower) are priced at 55.9, 63.8, 66.5 and 81.7 ms. They were at 71.8,
71.9, 74.6 and 93.4 ms, by which to recompute was nearly free, when each op read all of its operands (and random numbers
cost less than half as much). On the CPU each
op does: prices were measured so there, and what several loops read comes from the caches.
"""

from collections.abc import Iterable

from torch import fx

from graphremat.passes.costs import tensor_bytes
from graphremat.passes.hints import SizeHint
from graphremat.passes.kinds import tensors_in
from graphremat.passes.problem import Kind


class JoinedReads:
    """Told of every node of a joint graph in order, it says what of the operands comes from memory."""

    def __init__(self, size_hint: SizeHint) -> None:
        self._hint = size_hint
        self._sources: dict[fx.Node, frozenset[fx.Node]] = {}
        """What is read for a node: itself if that lies in a buffer."""
        self._read: set[fx.Node] = set()
        """Since the last kernel of its own."""

    def bytes_read(self, node: fx.Node, kind: Kind) -> int:
        """Bytes that the node's kernel reads for it and for no node before."""
        sources = self._of(node.all_input_nodes)
        if kind is Kind.VIEW:
            self._sources[node] = sources
            return 0
        if kind is Kind.KERNEL:
            self._read.clear()
            return self._bytes(node.all_input_nodes)
        # Of a value and what it is made of, that of fewer bytes gets a buffer; random numbers are made of a seed.
        if kind is Kind.FUSIBLE and self._bytes(sources) <= self._bytes([node]):
            self._sources[node] = sources
        new = sources - self._read
        self._read |= sources
        return self._bytes(new)

    def _of(self, nodes: Iterable[fx.Node]) -> frozenset[fx.Node]:
        return frozenset().union(*(self._sources.get(node, frozenset([node])) for node in nodes))

    def _bytes(self, nodes: Iterable[fx.Node]) -> int:
        return sum(tensor_bytes(t, self._hint) for node in nodes for t in tensors_in(node.meta.get("val")))
