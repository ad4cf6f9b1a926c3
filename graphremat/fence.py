"""The fence: refuse those fusions of Inductor that would move work of a backward past a kernel of the plan.

Inductor's scheduler may join two kernels that share an input (horizontal fusion), or a kernel and its reader. Joined,
they run at one place, and what one of them makes or reads lives longer than planned: a recomputed value is made early,
a gradient late, two gradients are alive that should have come one after the other. So nothing is joined over a kernel
that fuses with nothing (a matmul, say) which the plan has between the two.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx

from graphremat.passes import torch_private as private


class Fence(private.InductorChoices):  # type: ignore[misc]
    """Inductor's choices, less fusion over the kernels of a plan.

    Args:
        stretch: for each node of the backward graph by name: the number of kernels up to it.
    """

    def __init__(self, stretch: dict[str, int]) -> None:
        super().__init__()
        self._stretch = stretch
        self.refused: list[tuple[str, str]] = []

    def can_fuse_horizontal(self, scheduler: Any, node1: Any, node2: Any, shared_data_score: int) -> bool:  # type: ignore[override]
        """Asked by the scheduler for every pair that shares data but does not feed one another."""
        return not self._refuses(node1, node2) and bool(
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

    def _place(self, node: Any) -> int | None:
        return max((self._stretch[n] for n in private.origin_names(node) if n in self._stretch), default=None)


def make_fence(backward: fx.GraphModule, kernels: Collection[object]) -> Fence:
    """A fence for a backward graph in planned order.

    Args:
        backward: the graph, in the order of the plan.
        kernels: targets of the ops that are kernels of their own: between two of them lies one stretch.
    """
    stretch: dict[str, int] = {}
    count = 0
    for node in backward.graph.nodes:
        if node.op == "call_function":
            count += node.target in kernels
            stretch[node.name] = count
    return Fence(stretch)


@contextmanager
def standing(fence: Fence | None) -> Iterator[None]:
    """Put the fence up for what Inductor compiles in this block."""
    if fence is None:
        yield
        return
    with private.inductor_choices(fence):
        yield
