"""Draws a contest: peak against time, and examples a second against the batch. Needs the extra ``bench``."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.contest.batches import BatchRow
from bench.contest.rows import FAMILIES, OURS, REFERENCE
from bench.contest.verdict import MIB, Verdict, front
from bench.panels import panels_of

STYLES: Mapping[str, tuple[str, str]] = dict(
    zip(
        FAMILIES,
        [
            ("#999999", "X"),
            ("#e69f00", "s"),
            ("#0072b2", "*"),
            ("#009e73", "^"),
            ("#cc79a7", "D"),
            ("#000000", "o"),
        ],
        strict=True,
    )
)
"""Colour and marker of each family; the colours are those of Okabe and Ito, told apart by colour-blind readers too."""
HEADROOM = 1.6
"""The axis of times ends at this many times our slowest point, or the slowest of the others if that is less."""


def draw(axes: Axes, verdict: Verdict) -> None:
    """One workload: points of all families, and our front as steps."""
    for family, (colour, marker) in STYLES.items():
        points = [p for p in (*verdict.ours, *verdict.others) if p.row.family == family]
        size = 9 if marker == "*" else 5
        axes.plot(
            [p.peak_bytes / MIB for p in points],
            [p.ratio for p in points],
            color=colour,
            marker=marker,
            markersize=size,
            linestyle="",
            alpha=0.85,
        )
    ours = front(verdict.ours)
    axes.plot(
        [p.peak_bytes / MIB for p in ours],
        [p.ratio for p in ours],
        color=STYLES[OURS][0],
        linewidth=1.6,
        drawstyle="steps-post",
    )
    slowest = max(p.ratio for p in verdict.ours)
    top = min(max(p.ratio for p in (*verdict.ours, *verdict.others)), HEADROOM * slowest)
    axes.set_ylim(min(0.95, *(p.ratio for p in (*verdict.ours, *verdict.others))) - 0.02, top + 0.05)
    axes.set_xlim(left=0.0)
    axes.set_title(f"{verdict.workload.replace('_', ' ')}, {verdict.size}", fontsize=10, loc="left")
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def figure_of(verdicts: Sequence[Verdict]) -> Figure:
    """All workloads in one grid, with one legend."""
    figure, any_axes = panels_of(verdicts, draw, panel=(4.6, 2.9), margin=(0.4, 1.0))
    handles = [
        any_axes.plot([], [], color=colour, marker=marker, markersize=6, linestyle="", label=family)[0]
        for family, (colour, marker) in STYLES.items()
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    figure.supxlabel("measured peak over parameters and inputs, MiB", fontsize=9)
    figure.supylabel(f"step over that of {REFERENCE}", fontsize=9)
    return figure


def batch_figure_of(rows: Sequence[BatchRow]) -> Figure:
    """Examples a second against the batch: everybody at his largest, ours at several."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for family, (colour, marker) in STYLES.items():
        here = sorted((row for row in rows if row.family == family), key=lambda row: row.batch)
        axes.plot(
            [row.batch for row in here],
            [row.examples_per_second for row in here],
            color=colour,
            marker=marker,
            markersize=9 if marker == "*" else 6,
            linestyle="-" if family == OURS else "",
            label=family,
        )
    axes.set_xlabel("batch, at one limit of memory", fontsize=9)
    axes.set_ylabel("examples a second", fontsize=9)
    axes.set_xlim(left=0.0)
    axes.set_ylim(bottom=0.0)
    axes.legend(frameon=False, fontsize=8)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
