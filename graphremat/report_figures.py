"""The curve and the frontier of a planned step as figures for print. Needs matplotlib (extra ``report``), no torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from graphremat.errors import DumpError
from graphremat.report_data import ShownStep

MIB = 2.0**20
PLAN_COLOUR, TORCHS_COLOUR, CHOSEN_COLOUR, BUDGET_COLOUR = "#000000", "#0072b2", "#d55e00", "#999999"


class Curve(NamedTuple):
    """A line of :func:`draw_curves`: bytes alive, the first ``forward_length`` of them in the forward."""

    label: str
    sizes: Sequence[int]
    forward_length: int


def draw_curves(axes: Axes, curves: Sequence[Curve]) -> None:
    """The forward is drawn from -1 to 0 and the backward from 0 to 1, so that plans of unequal length line up."""
    for label, sizes, forward in curves:
        backward = max(1, len(sizes) - forward)
        places = [(i - forward) / (forward if i < forward else backward) for i in range(len(sizes))]
        axes.plot(places, [size / MIB for size in sizes], label=label, linewidth=1.2)
    axes.axvline(0, color="grey", linewidth=0.6)
    axes.set_xticks([-0.5, 0.5], ["forward", "backward"])
    axes.set_ylabel("alive, MiB")
    axes.set_ylim(bottom=0)


def curve_figure(step: ShownStep) -> Figure:
    """Bytes alive during the step, as planned and of the code that runs."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    curves = [Curve("plan", (step.run.curve + step.outside_bytes).tolist(), step.run.forward_length)]
    halves = [
        [n for event, n in step.generated_curve if event.startswith(f"{half}:")]
        for half in ("forward", "backward")
    ]
    if all(halves):
        curves.append(Curve("code that runs", halves[0] + halves[1], len(halves[0])))
    draw_curves(axes, curves)
    if step.budget_bytes is not None:
        axes.axhline(
            step.budget_bytes / MIB, color=BUDGET_COLOUR, linewidth=1.0, linestyle="--", label="budget"
        )
    axes.legend(frameon=False)
    return figure


def frontier_figure(step: ShownStep) -> Figure:
    """Added seconds over planned peak. Of two neighbours the one of the lower peak holds in between."""
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    fastest = min(point.step_seconds for point in step.points)
    places = [(p.planned_peak_bytes / MIB, 1e3 * (p.step_seconds - fastest)) for p in step.points]
    frontier = sorted(places[: step.on_frontier])
    axes.plot(
        *zip(*frontier, strict=True), color=PLAN_COLOUR, linewidth=1.4, drawstyle="steps-post", marker="."
    )
    if step.torchs is not None:
        torchs = step.torchs.planned_peak_bytes / MIB, 1e3 * (step.torchs.step_seconds - fastest)
        axes.plot(
            *torchs, color=TORCHS_COLOUR, marker="s", markersize=9, markerfacecolor="none", linestyle="",
            label="torch's own plan",
        )  # fmt: skip
    axes.plot(
        *places[step.chosen],
        color=CHOSEN_COLOUR,
        marker="D",
        markersize=7,
        linestyle="",
        label="the chosen plan",
    )
    if step.budget_bytes is not None and step.budget_bytes / MIB <= 1.2 * max(x for x, _ in places):
        axes.axvline(
            step.budget_bytes / MIB, color=BUDGET_COLOUR, linewidth=1.0, linestyle="--", label="budget"
        )
    axes.set_xlabel("planned peak, MiB")
    axes.set_ylabel("added to the fastest step, ms")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def write_figures(step: ShownStep, folder: Path, kind: str) -> list[Path]:
    """Write ``curve`` and ``frontier`` as files of a kind (``svg``, ``png``); the same step gives the same files.

    Raises:
        DumpError: the folder cannot be written.
    """
    written = []
    with mpl.rc_context({"svg.hashsalt": "graphremat"}):
        for name, figure in (("curve", curve_figure(step)), ("frontier", frontier_figure(step))):
            path = folder / f"{name}.{kind}"
            try:
                figure.savefig(path, metadata={"Date": None} if kind == "svg" else None, dpi=200)
            except OSError as error:
                raise DumpError(f"cannot write {path}: {error}") from error
            written.append(path)
    return written
