"""The command line: ``graphremat`` and ``python -m graphremat``.

Exit codes: 0 when all is well, 1 when what was asked for failed, 2 for a mistake in the command itself. Every command
is a few lines over a module that does the work, and that module is imported only when its command runs.
"""

import json
import os
from dataclasses import asdict
from enum import Enum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import graphremat
from graphremat import planning_commands
from graphremat.errors import DumpError, GraphrematError
from graphremat.units import format_bytes

app = typer.Typer(
    name="graphremat",
    help="Keep the peak memory of a training step under a budget in bytes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

planning_commands.register(app)


class FigureKind(str, Enum):
    """Kinds of files that figures are written as."""

    SVG = "svg"
    PNG = "png"


def main() -> None:
    """Run the command line; an error of graphremat is told in its own words, without a traceback."""
    try:
        app()
    except GraphrematError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False)
        raise SystemExit(1) from error


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"graphremat {graphremat.__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that every command shares; nothing is left to do with them here."""


@app.command()
def doctor(
    as_json: JsonOption = False,
) -> None:
    """Say whether this machine can run graphremat: versions, devices, compiler and caches.

    Exits with 1 if something is in the way.
    """
    from graphremat.doctor import examine

    health = examine()
    problems = health.problems()
    if as_json:
        typer.echo(json.dumps(asdict(health) | {"problems": problems}, indent=2))
    else:
        supported = "supported" if health.torch_supported else "not supported"
        table = Table(show_header=False, box=None)
        for name, value in (
            ("graphremat", health.graphremat),
            ("python", f"{health.python} on {health.platform}"),
            ("torch", f"{health.torch} ({supported})" if health.torch else "not installed"),
            ("triton", health.triton or "not installed"),
            (
                "backend",
                "registered with torch" if health.backend_registered else "not registered with torch",
            ),
            ("compiler", health.compiler or "not found"),
            *(
                (each.name, f"{each.description}, {format_bytes(each.memory_bytes)}")
                for each in health.devices
            ),
            ("cache", f"{health.inductor_cache_dir} ({format_bytes(health.inductor_cache_bytes)})"),
        ):
            table.add_row(name, value)
        console = Console()
        console.print(table)
        for problem in problems:
            console.print(f"problem: {problem}", markup=False)
    if problems:
        raise typer.Exit(1)


@app.command()
def replan(
    problem: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="10-problem.json of a dump.")],
    budget: Annotated[
        str | None,
        typer.Option(help="20GiB, 800MB, bytes, or a fraction like 0.5. Left out: the fastest plan."),
    ] = None,
    exact_seconds: Annotated[
        float | None,
        typer.Option(
            "--exact", min=0.001, help="Seconds for the exact solver, on a graph of some dozens of ops."
        ),
    ] = None,
    plan_to: Annotated[Path | None, typer.Option("--plan", help="Write the plan into this file.")] = None,
) -> None:
    """Plan a dumped problem again, without torch, and show every plan that was found.

    Peaks are the planner's own replay. Exits with 1 if no plan is under the budget.
    """
    from graphremat.replan import load_problem, parse_budget
    from graphremat.replan import replan as plan_again

    loaded = load_problem(problem)
    found = plan_again(loaded, parse_budget(budget), exact_seconds=exact_seconds)
    table = Table("", "peak", "step", "run again", "saved", "made by", box=None)
    for place, candidate in enumerate(found.frontier.candidates):
        replayed = candidate.replay
        table.add_row(
            "->" if place == found.place else "",
            format_bytes(replayed.peak_bytes),
            f"{replayed.seconds * 1e3:.3f} ms",
            f"{replayed.recompute_seconds * 1e3:.3f} ms",
            format_bytes(replayed.saved_bytes),
            candidate.plan.origin,
        )
    Console().print(table, markup=False)
    gap = found.frontier.exact_gap(found.chosen)
    if gap is not None:
        typer.echo(f"the exact solver knows of no plan more than {gap:.2%} faster under this budget")
    if plan_to is not None:
        plan_to.write_text(found.chosen.plan.to_json(loaded) + "\n", encoding="utf-8")


@app.command()
def report(
    dump_dir: Annotated[
        Path,
        typer.Argument(
            exists=True, file_okay=False, help="What dump_dir was, or the folder of one graph in it."
        ),
    ],
    figures: Annotated[
        FigureKind | None, typer.Option(help="Also write the curve and the frontier as figures for print.")
    ] = None,
) -> None:
    """Make report.html of every graph in a folder of dumps, without torch, and print the paths of the pages.

    Exits with 1 if there is no dump, or if what a page needs is missing; the other pages are made.
    """
    from graphremat.report_page import HOW_TO_GET_PLOTLY, graph_folders, has_plotly, read_dump, write_page

    if not has_plotly():
        raise DumpError(HOW_TO_GET_PLOTLY)
    if figures is not None and find_spec("matplotlib") is None:
        raise DumpError("figures need matplotlib, which is not installed: pip install matplotlib")
    failed = False
    for folder in graph_folders(dump_dir):
        try:
            typer.echo(write_page(folder))
            if figures is not None:
                from graphremat.report_figures import write_figures

                for path in write_figures(read_dump(folder), folder, figures.value):
                    typer.echo(path)
        except DumpError as error:
            typer.echo(f"error: {error}", err=True)
            failed = True
    if failed:
        raise typer.Exit(1)


@app.command()
def demo(
    into: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="Also write the table into this file, between its marks."
        ),
    ] = None,
) -> None:
    """Train a small language model at the fastest plan and under three tighter memory budgets.

    Exits with 1 if a budget was exceeded, the loss did not fall, or gradients differ from eager's.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # quiet; read when torch is loaded
    from graphremat.demo import main as run_demo

    raise typer.Exit(run_demo(into=into))
