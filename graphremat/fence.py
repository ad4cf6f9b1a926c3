"""The fence: refuse those fusions of Inductor that would move work of a backward past a kernel of the plan.

Inductor's scheduler may join two kernels that share an input (horizontal fusion), or a kernel and its reader. Joined,
they run at one place, and what one of them makes or reads lives longer than planned: a recomputed value is made early,
a gradient late, two gradients are alive that should have come one after the other. So nothing is joined over a kernel
that fuses with nothing (a matmul, say) which the plan has between the two; nor, where kernels run one by one, as on a
GPU, what would have the operands of the first still alive in the second, if that is more than the plan's peak.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import fx

from graphremat.passes import torch_private as private
from graphremat.passes.plan import Plan
from graphremat.passes.problem import Problem
from graphremat.passes.replay import Replay


@dataclass(frozen=True)
class Moments:
    """The backward of a plan, op by op.

    Attributes:
        positions: of the nodes of the backward graph, by name.
        alive: bytes while the op at a position runs.
        dying: bytes of what is read for the last time there.
        peak_bytes: of the whole plan.
    """

    positions: dict[str, int]
    alive: list[int]
    dying: list[int]
    peak_bytes: int


class Fence(private.InductorChoices):  # type: ignore[misc]
    """Inductor's choices, less fusion over the kernels of a plan.

    Args:
        stretch: for each node of the backward graph by name: the number of kernels up to it.
        moments: the bytes of the plan; None where all of a stretch is one function, in which nothing dies.
    """

    def __init__(self, stretch: dict[str, int], moments: Moments | None = None) -> None:
        super().__init__()
        self._stretch = stretch
        self._moments = moments
        self.refused: list[tuple[str, str]] = []

    def can_fuse_horizontal(self, scheduler: Any, node1: Any, node2: Any, shared_data_score: int) -> bool:  # type: ignore[override]
        """Asked by the scheduler for every pair that shares data but does not feed one another."""
        return not (self._refuses(node1, node2) or self._outgrows(node1, node2)) and bool(
            private.InductorChoices.can_fuse_horizontal(scheduler, node1, node2, shared_data_score)
        )

    def can_fuse_vertical(self, scheduler: Any, node1: Any, node2: Any, shared_data_score: int) -> bool:  # type: ignore[override]
        """Asked by the scheduler for every pair of which ``node1`` feeds ``node2``. What a kernel of a template reads
        may become a part of it: the plan has nothing between those two."""
        return (node2.is_template() or not self._refuses(node1, node2)) and bool(
            private.InductorChoices.can_fuse_vertical(scheduler, node1, node2, shared_data_score)
        )

    def _refuses(self, node1: Any, node2: Any) -> bool:
        first, second = self._place(node1), self._place(node2)
        if first is None or second is None or first == second:
            return False
        self.refused.append((node1.get_name(), node2.get_name()))
        return True

    def _outgrows(self, node1: Any, node2: Any) -> bool:
        """Whether the later of the two, with the operands of the earlier beside it, is over the peak."""
        if self._moments is None:
            return False
        known = self._moments.positions
        early, late = sorted(
            ([known[n] for n in private.origin_names(node) if n in known] for node in (node1, node2)),
            key=lambda positions: max(positions, default=-1),
        )
        if not early:
            return False
        kept = sum(self._moments.dying[p] for p in early if p < max(late))
        if self._moments.alive[max(late)] + kept <= self._moments.peak_bytes:
            return False
        self.refused.append((node1.get_name(), node2.get_name()))
        return True

    def _place(self, node: Any) -> int | None:
        return max((self._stretch[n] for n in private.origin_names(node) if n in self._stretch), default=None)


def moments_of(backward: fx.GraphModule, problem: Problem, plan: Plan, replayed: Replay) -> Moments | None:
    """What a fence asks of the bytes of a plan whose backward is that graph; None where ops run in groups."""
    if problem.groups:
        return None
    names = [problem.ops[index].name for index in plan.backward]
    positions: dict[str, int] = {}
    for node in backward.graph.nodes:
        if len(positions) < len(names) and node.meta.get(private.SOURCE_OP) == names[len(positions)]:
            positions[node.name] = len(positions)
    dying = [0] * len(names)
    for storage, _, last in replayed.lifetimes:
        if last >= replayed.forward_length:
            dying[last - replayed.forward_length] += problem.storages[storage].size_bytes
    alive = replayed.curve[replayed.forward_length :].tolist()
    return Moments(positions, alive, dying, replayed.peak_bytes)


def make_fence(backward: fx.GraphModule, kernels: Collection[object], moments: Moments | None) -> Fence:
    """A fence for a backward graph in planned order.

    Args:
        backward: the graph, in the order of the plan.
        kernels: targets of the ops that are kernels of their own: between two of them lies one stretch.
        moments: what :func:`moments_of` finds.
    """
    stretch: dict[str, int] = {}
    count = 0
    for node in backward.graph.nodes:
        if node.op == "call_function":
            count += node.target in kernels
            stretch[node.name] = count
    return Fence(stretch, moments)


@contextmanager
def standing(fence: Fence | None) -> Iterator[None]:
    """Put the fence up for what Inductor compiles in this block."""
    if fence is None:
        yield
        return
    with private.inductor_choices(fence):
        yield
