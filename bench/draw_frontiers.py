"""Draw what the planner and the baselines reach on each network: added time over replayed peak.

    python -m bench.draw_frontiers --size small --networks llama,unet --out docs/frontiers.svg

Every point is a plan judged by the same replay; nothing is compiled. A line joins the best plans of one method, and
leads along what it costs to stay under a budget: of two neighbours the one of the lower peak holds in between. With
``--exact SECONDS`` small problems also get proved optima, at that many seconds each. ``--problems`` takes the files of
:mod:`bench.export_problems` in place of tracing. Needs the extra ``bench``.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.export_problems import LOWERINGS, problem_of
from bench.networks import NETWORKS
from bench.panels import COLUMNS, panels_of
from graphremat.passes.baselines import BASELINES
from graphremat.passes.frontier import Candidate
from graphremat.passes.planner import plan_frontier
from graphremat.passes.problem import Problem

MIB = 2.0**20
OURS = "graphremat"
STYLES: Mapping[str, tuple[str, str]] = {
    OURS: ("#000000", ""),
    "torch knapsack": ("#0072b2", "o"),
    "every N stages": ("#d55e00", "s"),
    "square root": ("#d55e00", "*"),
    "revolve": ("#009e73", "^"),
    "layers by bytes per second": ("#cc79a7", "D"),
    "greedy by seconds per byte": ("#56b4e9", "v"),
    "save everything": ("#999999", "X"),
}
"""Colour and marker of each method; the colours are those of Okabe and Ito, told apart by colour-blind readers too."""
EXACT_COLOUR = "#e69f00"
MOST_EXACT_OPS = 250
"""A larger problem gets no exact points: the programme does not close its gap in minutes."""
EXACT_BUDGETS = 6
MOST_TIMES_OURS = 2.5
"""The axes end at this many times the added time of our slowest plan."""


@dataclass(frozen=True)
class Point:
    """A plan in the plane: bytes over the inputs, and seconds of the whole step."""

    peak_bytes: int
    seconds: float
    origin: str


@dataclass(frozen=True)
class ExactPoint:
    """The exact solver's answer at a budget: the plan, if one was found, and a bound that holds for every plan."""

    budget_bytes: int
    found: Point | None
    bound_seconds: float
    proved: bool


@dataclass(frozen=True)
class Picture:
    """All that is drawn of one network. ``methods`` holds each one's plans that no other of its own beats."""

    network: str
    methods: Mapping[str, tuple[Point, ...]]
    exact: tuple[ExactPoint, ...]
    base_seconds: float
    """Of the fastest plan of all: no seconds are added to it."""

    def added(self, seconds: float) -> float:
        """Added seconds in per cent of the fastest step."""
        return 100.0 * (seconds / self.base_seconds - 1.0)


def best_points(candidates: Sequence[Candidate], input_bytes: int) -> tuple[Point, ...]:
    """Those that no other beats in both, from the lowest peak to the fastest."""
    kept: list[Point] = []
    order = sorted(candidates, key=lambda c: (c.replay.peak_bytes, c.replay.seconds, c.plan.origin))
    for candidate in order:
        if not kept or candidate.replay.seconds < kept[-1].seconds:
            peak = candidate.replay.peak_bytes - input_bytes
            kept.append(Point(peak, candidate.replay.seconds, candidate.plan.origin))
    return tuple(kept)


def picture_of(network: str, problem: Problem, exact_seconds: float = 0.0) -> Picture:
    """Plan ``problem`` by every method; exactly too, if asked and if it is small."""
    ours = plan_frontier(problem).candidates
    found = {OURS: best_points(ours, problem.input_bytes)}
    for name, baseline in BASELINES.items():
        found[name] = best_points(baseline(problem), problem.input_bytes)
    exact: tuple[ExactPoint, ...] = ()
    if exact_seconds > 0 and len(problem.ops) <= MOST_EXACT_OPS:
        exact = _exact_points(problem, ours, exact_seconds)
    base = min(point.seconds for points in found.values() for point in points)
    return Picture(network, found, exact, base)


def _exact_points(problem: Problem, ours: Sequence[Candidate], seconds_each: float) -> tuple[ExactPoint, ...]:
    """Budgets spread from our lowest peak to our fastest plan's; our plan under each is the one to beat."""
    from graphremat.passes.exact import solve_exact

    lowest, highest = ours[-1].replay.peak_bytes, ours[0].replay.peak_bytes
    points = []
    for step in range(EXACT_BUDGETS):
        budget = lowest + (highest - lowest) * step // (EXACT_BUDGETS - 1)
        incumbent = next(c.plan for c in ours if c.replay.peak_bytes <= budget)
        answer = solve_exact(problem, budget, time_limit_seconds=seconds_each, incumbent=incumbent)
        room = budget - problem.input_bytes
        found = None
        if answer.plan is not None and answer.seconds is not None:
            found = Point(room, answer.seconds, "exact")
        points.append(ExactPoint(room, found, answer.bound_seconds, answer.proved))
    return tuple(points)


def draw(axes: Axes, picture: Picture) -> None:
    """One network. What adds more than :data:`MOST_TIMES_OURS` times the time of our slowest plan is off the axes."""
    ours = picture.methods[OURS]
    top = MOST_TIMES_OURS * max(picture.added(point.seconds) for point in ours) + 5.0
    peaks = [point.peak_bytes / MIB for points in picture.methods.values() for point in points]
    left, right = 0.9 * min(peaks), 1.03 * max(peaks)
    for method, (colour, marker) in STYLES.items():
        points = picture.methods.get(method, ())
        if not points:
            continue
        x = [point.peak_bytes / MIB for point in points]
        y = [picture.added(point.seconds) for point in points]
        if method == OURS:
            axes.plot([*x, right], [*y, y[-1]], color=colour, linewidth=1.8, drawstyle="steps-post", zorder=4)
            axes.plot(x, y, color=colour, marker=".", markersize=5, linestyle="", zorder=4)
            continue
        axes.plot(x, y, color=colour, linewidth=0.6, alpha=0.6, drawstyle="steps-post")
        axes.plot(
            x, y, color=colour, marker=marker, markersize=4.5, linestyle="", markeredgecolor="white",
            markeredgewidth=0.4, zorder=3,
        )  # fmt: skip
    _draw_exact(axes, picture)
    axes.set_xlim(left, right)
    axes.set_ylim(-0.02 * top, top)
    axes.set_title(picture.network.replace("_", " "), fontsize=10, loc="left")
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _draw_exact(axes: Axes, picture: Picture) -> None:
    """The plans found, filled where they are proved to be the fastest; a proved lower bound where they are not."""
    for point in picture.exact:
        x = point.budget_bytes / MIB
        if point.found is not None:
            y = picture.added(point.found.seconds)
            fill = EXACT_COLOUR if point.proved else "white"
            axes.plot(
                x, y, color=EXACT_COLOUR, marker="P", markersize=6, markerfacecolor=fill, linestyle="", zorder=5
            )  # fmt: skip
        if not point.proved and math.isfinite(point.bound_seconds):
            y = max(0.0, picture.added(point.bound_seconds))
            axes.plot(x, y, color=EXACT_COLOUR, marker="_", markersize=9, linestyle="", zorder=5)


def figure_of(pictures: Sequence[Picture]) -> Figure:
    """All networks in one grid, with one legend."""
    figure, any_axes = panels_of(pictures, draw, panel=(4.4, 2.5), margin=(0.4, 1.3))
    handles = []
    for method, (colour, marker) in STYLES.items():
        line = 1.8 if method == OURS else 0.6
        handles += any_axes.plot(
            [], [], color=colour, marker=marker or ".", linewidth=line, markersize=5, label=method
        )
    if any(picture.exact for picture in pictures):
        for marker, fill, label in (
            ("P", EXACT_COLOUR, "exact: proved optimum"),
            ("P", "white", "exact: best found"),
            ("_", EXACT_COLOUR, "exact: lower bound"),
        ):
            handles += any_axes.plot(
                [], [], color=EXACT_COLOUR, marker=marker, markerfacecolor=fill, linestyle="", label=label
            )
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=2 * min(COLUMNS, len(pictures)),
        frameon=False,
        fontsize=8,
    )
    figure.supxlabel("replayed peak over the inputs of the step, MiB", fontsize=9)
    figure.supylabel("added time, % of the fastest step", fontsize=9)
    return figure


def table_of(pictures: Sequence[Picture], title: str) -> Table:
    """The lowest peak of each method, what it adds there, and what it adds half-way down our own range."""
    table = Table("network", "method", title=f"{title}: added time in % of the fastest step")
    for column in ("lowest peak MiB", "added there", "half-way down"):
        table.add_column(column, justify="right")
    for picture in pictures:
        ours = picture.methods[OURS]
        half = (ours[0].peak_bytes + ours[-1].peak_bytes) // 2
        for method in STYLES:
            points = picture.methods.get(method, ())
            if not points:
                table.add_row(picture.network, method, "no plan", "", "")
                continue
            under = [point.seconds for point in points if point.peak_bytes <= half]
            table.add_row(
                picture.network,
                method,
                f"{points[0].peak_bytes / MIB:.2f}",
                f"{picture.added(points[0].seconds):.1f}",
                f"{picture.added(min(under)):.1f}" if under else "-",
            )
        table.add_section()
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Plan, draw, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default=",".join(NETWORKS), help="comma-separated (default: all)")
    parser.add_argument("--size", default="small")
    parser.add_argument("--lowering", default="inductor", choices=LOWERINGS)
    parser.add_argument("--problems", type=Path, help="folder of NETWORK.json files (default: trace)")
    parser.add_argument(
        "--exact", type=float, default=0.0, metavar="SECONDS", help="a point, on small problems"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/frontiers.svg"))
    chosen = parser.parse_args(arguments)
    pictures = []
    with Progress(transient=True) as progress:
        for network in progress.track(chosen.networks.split(","), description="planning"):
            problem = problem_of(network, chosen.size, chosen.lowering, chosen.problems)
            pictures.append(picture_of(network, problem, chosen.exact))
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "frontiers"}):
        figure = figure_of(pictures)
        figure.savefig(chosen.out, metadata={"Date": None} if chosen.out.suffix == ".svg" else None, dpi=130)
    Console().print(table_of(pictures, f"{chosen.size}, {chosen.lowering}"))


if __name__ == "__main__":
    main()
