"""One figure of many small ones."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Shown = TypeVar("Shown")

COLUMNS = 2
"""So many panels stand side by side, if there are as many."""


def panels_of(
    shown: Sequence[Shown],
    draw: Callable[[Axes, Shown], None],
    *,
    panel: tuple[float, float],
    margin: tuple[float, float],
) -> tuple[Figure, Axes]:
    """A grid of panels, each drawn by ``draw``; the figure, and axes to make the legend's handles with.

    Args:
        shown: one a panel, at least one.
        panel: width and height of each, in inches.
        margin: what the figure has besides, in inches.
    """
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    size = (panel[0] * columns + margin[0], panel[1] * rows + margin[1])
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for place, axes in enumerate(grid.flat):
        if place < len(shown):
            draw(axes, shown[place])
        else:
            axes.set_visible(False)
    return figure, grid.flat[0]
