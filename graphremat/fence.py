"""The fence: refuse those fusions of Inductor that would run a recomputation before its turn.

Inductor's scheduler may join two kernels that only share an input (horizontal fusion). Joined, they run at one place,
and what one of them makes lives longer than planned: a recomputed value is made early, or a gradient late. So a pair
of which at least one is a recomputation is refused when the plan has a kernel that nothing fuses with (a matmul, say)
between the two. A reduction is not put off to its reader behind such a kernel either: the two parts of a shared bias's
gradient, say, would both wait for their sum, and keep what they reduce alive until then. Other fusions of producer and
consumer are left alone.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import fx

from graphremat.passes import torch_private as private


class Fence(private.InductorChoices):  # type: ignore[misc]
    """Inductor's choices, less fusion across kernels of what would then live too long.

    Args:
        stretch: for each node of the backward graph by name: the number of kernels up to it.
        recomputed: names of the nodes that are recomputations.
    """

    def __init__(self, stretch: dict[str, int], recomputed: frozenset[str]) -> None:
        super().__init__()
        self._stretch = stretch
        self._recomputed = recomputed
        self.refused: list[tuple[str, str]] = []

    def can_fuse_horizontal(self, scheduler: Any, node1: Any, node2: Any, shared_data_score: int) -> bool:  # type: ignore[override]
        """Asked by the scheduler for every pair that shares data but does not feed one another."""
        first, second = self._place(node1), self._place(node2)
        if first is not None and second is not None and first[1] | second[1] and first[0] != second[0]:
            self.refused.append((node1.get_name(), node2.get_name()))
            return False
        return bool(private.InductorChoices.can_fuse_horizontal(scheduler, node1, node2, shared_data_score))

    def can_fuse_vertical(self, scheduler: Any, node1: Any, node2: Any, shared_data_score: int) -> bool:  # type: ignore[override]
        """Asked by the scheduler for every pair of which ``node1`` feeds ``node2``."""
        first, second = self._place(node1), self._place(node2)
        if first is not None and second is not None and node1.is_reduction() and first[0] != second[0]:
            self.refused.append((node1.get_name(), node2.get_name()))
            return False
        return bool(private.InductorChoices.can_fuse_vertical(scheduler, node1, node2, shared_data_score))

    def _place(self, node: Any) -> tuple[int, bool] | None:
        names = [name for name in private.origin_names(node) if name in self._stretch]
        if not names:
            return None
        return max(self._stretch[n] for n in names), any(n in self._recomputed for n in names)


def make_fence(
    backward: fx.GraphModule, recomputed: Sequence[str], kernels: Collection[object]
) -> Fence | None:
    """A fence for a backward graph in planned order; None if nothing is recomputed in it.

    Args:
        backward: the graph, in the order of the plan.
        recomputed: names of its nodes that run a second time.
        kernels: targets of the ops that are kernels of their own: between two of them lies one stretch.
    """
    again = frozenset(recomputed)
    stretch: dict[str, int] = {}
    count = 0
    for node in backward.graph.nodes:
        if node.op == "call_function":
            count += node.target in kernels
            stretch[node.name] = count
    return Fence(stretch, again) if again else None


@contextmanager
def standing(fence: Fence | None) -> Iterator[None]:
    """Put the fence up for what Inductor compiles in this block."""
    if fence is None:
        yield
        return
    with private.inductor_choices(fence):
        yield
