"""The min cut: what to save for the backward, at a price per byte. Free of torch.

torch's partitioner gives recomputation a capacity of zero or infinity. Here every op has its finite price in seconds::

    source --seconds to recompute op--> op_in --price * bytes to save value--> value_out --inf--> reader_in ...
                                                                               value_out --inf--> sink  (the backward
                                                                                                   reads the value)

What lies on the sink's side of ``op_in`` is recomputed, what is cut between ``op_in`` and ``value_out`` is saved. One
cut is the exact minimum of ``recompute seconds + price * saved bytes``, and the cuts over all prices are the lower
convex hull of the trade-off, found by the usual recursion over the price at which two neighbours are equal (Eisner and
Severance 1976). Infinite edges say in words why something must not be recomputed or saved.

    >>> from graphremat.passes.problem import Builder, Kind, Phase
    >>> b = Builder()
    >>> x = b.input("x", 8)
    >>> cheap = b.op("cheap", [x], Kind.KERNEL, Phase.FORWARD, size_bytes=8, seconds=1.0)
    >>> dear = b.op("dear", [cheap], Kind.KERNEL, Phase.FORWARD, size_bytes=8, seconds=9.0)
    >>> y = b.op("y", [dear], Kind.KERNEL, Phase.FORWARD, size_bytes=1)
    >>> t = b.tangent("t", 1)
    >>> g = b.op("g", [t, cheap, dear], Kind.KERNEL, Phase.BACKWARD, size_bytes=8)
    >>> graph = CutGraph(b.build([y], [g]))
    >>> [(cut.seconds, cut.saved_bytes) for cut in graph.hull()]
    [(0.0, 16), (1.0, 8), (10.0, 0)]
"""

import itertools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TypeAlias

import igraph
import networkx

from graphremat.passes.problem import Holder, Kind, Op, Phase, Problem

Edge: TypeAlias = tuple[int, int, float, float, str]
"""``(tail, head, seconds, bytes, reason)``: the capacity at a price is ``seconds + price * bytes``."""

INFINITE = float("inf")


class NoCut(ValueError):
    """Something that the backward needs can neither be saved nor recomputed; the message names the path."""


@dataclass(frozen=True)
class Cut:
    """An optimum at some price: what it saves (values that are not views), and both sides of the trade-off."""

    saved: tuple[int, ...]
    saved_bytes: int
    seconds: float


Solver: TypeAlias = Callable[[int, list[tuple[int, int]], list[float]], list[bool]]
"""Takes the vertex count (source 0, sink 1), edges and finite capacities; gives for each vertex whether it is on the
source's side of a minimum cut."""


def solve_igraph(vertices: int, edges: list[tuple[int, int]], capacities: list[float]) -> list[bool]:
    """The default engine: igraph's push-relabel."""
    graph = igraph.Graph(n=vertices, edges=edges, directed=True)
    cut = graph.mincut(0, 1, capacity=capacities)
    side = [False] * vertices
    for vertex in cut.partition[0]:
        side[vertex] = True
    return side


def solve_networkx(vertices: int, edges: list[tuple[int, int]], capacities: list[float]) -> list[bool]:
    """The reference engine."""
    graph = networkx.DiGraph()
    graph.add_nodes_from(range(vertices))
    for (tail, head), capacity in zip(edges, capacities, strict=True):
        old = graph.get_edge_data(tail, head, {"capacity": 0.0})["capacity"]
        graph.add_edge(tail, head, capacity=old + capacity)
    _, (reachable, _) = networkx.minimum_cut(graph, 0, 1)
    return [vertex in reachable for vertex in range(vertices)]


def recompute_seconds(problem: Problem) -> list[float]:
    """What it costs to run each op once more: only its arithmetic where it would live inside its readers."""
    result = []
    for op in problem.ops:
        fused = op.kind is Kind.FUSIBLE and problem.fuses and not _feeds_kernel(problem, op)
        result.append(0.0 if op.phase is Phase.EITHER else op.fused_seconds if fused else op.seconds)
    return result


def _feeds_kernel(problem: Problem, op: Op) -> bool:
    pending = list(op.writes)
    while pending:
        for reader in problem.readers[pending.pop()]:
            if problem.ops[reader].kind is Kind.KERNEL:
                return True
            if problem.ops[reader].kind is Kind.VIEW:
                pending.extend(problem.ops[reader].writes)
    return False


class CutGraph:
    """The cut graph of a problem, built once and solved at many prices.

    Args:
        problem: the whole problem, or that of one stage.
        free: values that are kept anyway, so that saving them costs nothing.
        solver: the engine.
    """

    def __init__(self, problem: Problem, free: Collection[int] = (), solver: Solver = solve_igraph) -> None:
        self.problem = problem
        self._solver = solver
        self._free = {problem.base[v] for v in (*free, *problem.forward_outputs)}
        self._edges: list[Edge] = []
        self._op_vertex: dict[int, int] = {}
        self._value_vertex: dict[int, int] = {}
        self._again = recompute_seconds(problem)
        self._build()
        self._pairs = [(tail, head) for tail, head, *_ in self._edges]

    def _vertex(self, table: dict[int, int], index: int) -> int:
        if index not in table:
            table[index] = 2 + len(self._op_vertex) + len(self._value_vertex)
        return table[index]

    def _build(self) -> None:
        problem, again = self.problem, self._again
        for index, op in enumerate(problem.ops):
            if op.phase is Phase.BACKWARD:
                self._need(op.reads, f"{op.name} reads it")
                continue
            vertex = self._vertex(self._op_vertex, index)
            if op.keep:
                self._edges.append((0, vertex, INFINITE, 0.0, f"{op.name} must not run again: {op.keep}"))
            elif again[index] > 0:
                self._edges.append((0, vertex, again[index], 0.0, ""))
            for write in op.writes:
                self._edges.append(self._saving(op, vertex, write))
                for reader in problem.readers[write]:
                    if problem.ops[reader].phase is not Phase.BACKWARD:
                        head = self._vertex(self._op_vertex, reader)
                        tail = self._vertex(self._value_vertex, write)
                        self._edges.append(
                            (tail, head, INFINITE, 0.0, f"{problem.ops[reader].name} reads it")
                        )
        self._need(problem.backward_outputs, "it is a gradient")

    def _saving(self, op: Op, vertex: int, write: int) -> Edge:
        problem = self.problem
        head = self._vertex(self._value_vertex, write)
        storage = problem.storages[problem.values[write].storage]
        if op.kind is Kind.VIEW:
            return (vertex, head, INFINITE, 0.0, f"{op.name} is a view, its base is saved instead")
        if op.unsavable:
            return (vertex, head, INFINITE, 0.0, f"{op.name} cannot be saved: {op.unsavable}")
        if write in self._free or storage.holder is not Holder.GRAPH:
            return (vertex, head, 0.0, 0.0, "")
        fused = op.kind is Kind.FUSIBLE and problem.fuses and not _feeds_kernel(problem, op)
        traffic = max(op.seconds - op.fused_seconds, 0.0) if fused else 0.0
        return (vertex, head, traffic, float(storage.size_bytes), "")

    def _need(self, values: Collection[int], reason: str) -> None:
        for value in dict.fromkeys(values):
            producer = self.problem.values[value].producer
            if producer >= 0 and self.problem.ops[producer].phase is not Phase.BACKWARD:
                self._edges.append((self._vertex(self._value_vertex, value), 1, INFINITE, 0.0, reason))

    def solve(self, price: float) -> Cut:
        """The optimum at ``price`` seconds a byte (infinity: the fewest bytes, then the fewest seconds).

        Raises:
            NoCut: the backward needs something that can neither be saved nor recomputed.
        """
        least_bytes = price == INFINITE
        if least_bytes:
            total = sum(s for _, _, s, _, _ in self._edges if s < INFINITE)
            price = max(total, 1e-12) * 4.0
        capacities = [s if s == INFINITE else s + price * b for _, _, s, b, _ in self._edges]
        finite = sum(c for c in capacities if c < INFINITE)
        ceiling = 2.0 * finite + 1.0
        vertices = 2 + len(self._op_vertex) + len(self._value_vertex)
        side = self._solver(vertices, self._pairs, [min(c, ceiling) for c in capacities])
        saved: set[int] = set()
        for (tail, head, seconds, _, _), vertex_pair in zip(self._edges, self._pairs, strict=True):
            if side[tail] and not side[head] and seconds == INFINITE:
                raise NoCut(self._explain(vertex_pair))
        seconds_total = 0.0
        for index, vertex in self._op_vertex.items():
            if not side[vertex]:
                seconds_total += self._again[index]
                continue
            for write in self.problem.ops[index].writes:
                if write in self._value_vertex and not side[self._value_vertex[write]]:
                    saved.add(write)
        saved_bytes = sum(
            self.problem.storages[s].size_bytes
            for s in sorted({self.problem.values[v].storage for v in saved - self._free})
            if self.problem.storages[s].holder is Holder.GRAPH
        )
        return Cut(tuple(sorted(saved)), saved_bytes, seconds_total)

    def hull(self, most: int = 64) -> list[Cut]:
        """The lower convex hull of (seconds, saved bytes), from the fewest seconds to the fewest bytes.

        At most about ``most`` cuts are solved; where that is not enough, hull points in flat places are left out.
        """
        low = self.solve(self._smallest_price())
        high = self.solve(INFINITE)
        found = {(low.seconds, low.saved_bytes): low, (high.seconds, high.saved_bytes): high}
        pending = [(low, high)]
        solved = 2
        while pending and solved < most:
            left, right = pending.pop(0)
            if left.saved_bytes <= right.saved_bytes or right.seconds <= left.seconds:
                continue
            price = (right.seconds - left.seconds) / (left.saved_bytes - right.saved_bytes)
            middle = self.solve(price)
            solved += 1
            line = left.seconds + price * left.saved_bytes
            if middle.seconds + price * middle.saved_bytes < line * (1 - 1e-9):
                found[(middle.seconds, middle.saved_bytes)] = middle
                pending += [(left, middle), (middle, right)]
        kept: list[Cut] = []
        for cut in sorted(found.values(), key=lambda c: (c.seconds, c.saved_bytes)):
            if not kept or cut.saved_bytes < kept[-1].saved_bytes:
                kept.append(cut)
        return kept

    def _smallest_price(self) -> float:
        """A price so low that bytes only break ties between equal seconds."""
        seconds = [s for _, _, s, _, _ in self._edges if 0 < s < INFINITE]
        total = sum(b for _, _, _, b, _ in self._edges)
        return min(seconds) * 1e-3 / total if seconds and total else 1e-15

    def _explain(self, crossing: tuple[int, int]) -> str:
        """A path from source to sink over infinite edges, in words."""
        graph = networkx.DiGraph()
        graph.add_nodes_from((0, 1, *crossing))
        for tail, head, seconds, _, reason in self._edges:
            if seconds == INFINITE:
                graph.add_edge(tail, head, reason=reason)
        if not networkx.has_path(graph, 0, 1):
            return "the backward needs a value that can neither be saved nor recomputed"
        path = networkx.shortest_path(graph, 0, 1)
        words = [graph.edges[a, b]["reason"] for a, b in itertools.pairwise(path)]
        return "the backward needs a value that can neither be saved nor recomputed: " + "; ".join(words)
