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
from dataclasses import dataclass, replace
from typing import TypeAlias

import igraph
import networkx
import numpy as np
import numpy.typing as npt

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


Solve: TypeAlias = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.bool_]]
"""From the finite capacities of all edges to a minimum cut: for each vertex, whether it is on the source's side."""

Solver: TypeAlias = Callable[[int, list[tuple[int, int]]], Solve]
"""Takes the vertex count (source 0, sink 1) and the edges once, to be solved for many capacities."""


def solve_igraph(vertices: int, edges: list[tuple[int, int]]) -> Solve:
    """The default engine: igraph's push-relabel."""
    graph = igraph.Graph(n=vertices, edges=edges, directed=True)

    def solve(capacities: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        _, _, sources, _ = igraph.GraphBase.mincut(graph, 0, 1, capacities.tolist())
        side = np.zeros(vertices, dtype=np.bool_)
        side[sources] = True
        return side

    return solve


def solve_networkx(vertices: int, edges: list[tuple[int, int]]) -> Solve:
    """The reference engine."""

    def solve(capacities: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        graph = networkx.DiGraph()
        graph.add_nodes_from(range(vertices))
        for (tail, head), capacity in zip(edges, capacities.tolist(), strict=True):
            old = graph.get_edge_data(tail, head, {"capacity": 0.0})["capacity"]
            graph.add_edge(tail, head, capacity=old + capacity)
        _, (reachable, _) = networkx.minimum_cut(graph, 0, 1)
        return np.array([vertex in reachable for vertex in range(vertices)])

    return solve


def recompute_seconds(problem: Problem) -> list[float]:
    """What it costs to run each op once more: only its arithmetic where it would live inside its readers."""
    return [
        0.0 if op.phase is Phase.EITHER else op.fused_seconds if inside else op.seconds
        for op, inside in zip(problem.ops, problem.inside_readers, strict=True)
    ]


def saving_seconds(problem: Problem) -> list[float]:
    """What it costs to save the results of each op: the traffic of those that would otherwise have no buffer."""
    return [
        max(op.seconds - op.fused_seconds, 0.0) if inside else 0.0
        for op, inside in zip(problem.ops, problem.inside_readers, strict=True)
    ]


LIGHT: tuple[frozenset[Kind], ...] = (
    frozenset({Kind.VIEW, Kind.FUSIBLE, Kind.REDUCTION}),
    frozenset({Kind.VIEW, Kind.FUSIBLE}),
)
"""Kinds of ops that alone may run again in the further cuts of :func:`varied_cuts`."""


def varied_cuts(problem: Problem, most: int) -> list[Cut]:
    """The hull, and the hulls where no kernel, and neither kernel nor reduction, runs again.

    A cut saves all values of a price at once, so what lies between two points of the hull is found by no price; some
    of it is on the hull of fewer ops, where that has a cut. ``most`` bounds the first hull, an eighth of it each other.

    Raises:
        NoCut: the backward needs something that can neither be saved nor recomputed.
    """
    cuts = CutGraph(problem).hull(most)
    for kinds in LIGHT:
        ops = tuple(
            op if op.kind in kinds or op.keep else replace(op, keep="too heavy for this cut")
            for op in problem.ops
        )
        if ops == problem.ops:
            continue
        try:
            cuts += CutGraph(replace(problem, ops=ops)).hull(most // 8)
        except NoCut:
            continue
    found: dict[tuple[int, ...], Cut] = {}
    for cut in cuts:
        found.setdefault(cut.saved, cut)
    return list(found.values())


class CutGraph:
    """The cut graph of a problem, built once and solved at many prices.

    Args:
        problem: the whole problem, or that of one stage.
        free: values that are kept anyway, so that saving them costs nothing.
        solver: the engine.
    """

    def __init__(self, problem: Problem, free: Collection[int] = (), solver: Solver = solve_igraph) -> None:
        self.problem = problem
        self._free = {problem.base[v] for v in (*free, *problem.forward_outputs)}
        self._edges: list[Edge] = []
        self._op_vertex: dict[int, int] = {}
        self._value_vertex: dict[int, int] = {}
        self._save_seconds = saving_seconds(problem)
        self._again = recompute_seconds(problem)
        self._build()
        pairs = [(tail, head) for tail, head, *_ in self._edges]
        self._solve = solver(2 + len(self._op_vertex) + len(self._value_vertex), pairs)
        self._tails, self._heads = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        self._seconds = np.array([seconds for _, _, seconds, _, _ in self._edges])
        self._bytes = np.array([size for _, _, _, size, _ in self._edges])
        self._vertices = np.array(list(self._op_vertex.values()), dtype=np.int64)
        self._prices = np.array([self._again[index] for index in self._op_vertex])
        """What each op costs once more, in the order of ``_vertices``."""
        self._savings = np.array(
            [
                (write, vertex, self._value_vertex[write])
                for index, vertex in self._op_vertex.items()
                for write in problem.ops[index].writes
                if write in self._value_vertex
            ],
            dtype=np.int64,
        ).reshape(-1, 3)
        """``(value, vertex of its op, vertex of the value)``."""

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
        index = problem.values[write].producer
        return (vertex, head, self._save_seconds[index], float(storage.size_bytes), "")

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
        finite = self._seconds < INFINITE
        if price == INFINITE:
            price = max(float(self._seconds[finite].sum()), 1e-12) * 4.0
        capacities = self._seconds + price * self._bytes
        ceiling = 2.0 * float(capacities[finite].sum()) + 1.0
        side = self._solve(np.minimum(capacities, ceiling))
        cut = side[self._tails] & ~side[self._heads] & ~finite
        if cut.any():
            edge = int(cut.argmax())
            raise NoCut(self._explain((int(self._tails[edge]), int(self._heads[edge]))))
        again = self._prices[~side[self._vertices]]
        values, ops_at, values_at = self._savings.T
        saved = set(values[side[ops_at] & ~side[values_at]].tolist())
        saved_bytes = sum(
            self.problem.storages[s].size_bytes
            for s in sorted({self.problem.values[v].storage for v in saved - self._free})
            if self.problem.storages[s].holder is Holder.GRAPH
        )
        return Cut(tuple(sorted(saved)), saved_bytes, sum(again.tolist(), 0.0))

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
        seconds = self._seconds[(self._seconds > 0) & (self._seconds < INFINITE)]
        total = float(self._bytes.sum())
        return float(seconds.min()) * 1e-3 / total if len(seconds) and total else 1e-15

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
