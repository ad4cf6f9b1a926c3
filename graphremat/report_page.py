"""``report.html``: one file that shows a planned step, with its data, its style and the library that draws.

Needs no torch. The page is made of the files of a dump alone, so it can be made again at any time.
"""

import csv
import html
import json
import logging
from functools import cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from string import Template

from graphremat.dumps import Dumps
from graphremat.errors import DumpError, PlanningError
from graphremat.passes.plan import Plan
from graphremat.passes.replay import replay
from graphremat.replan import load_problem
from graphremat.report import TORCHS_PLAN, Report
from graphremat.report_data import ShownStep, page_data

log = logging.getLogger("graphremat")

PAGE = "report.html"
NEEDED = ("10-problem.json", "30-plan.json", "report.json")
"""What a dump has to hold for a page."""
SCRIPTS = ("base.js", "curve.js", "plans.js", "graph.js", "start.js")
HOW_TO_GET_PLOTLY = "report.html needs plotly, which is not installed: pip install plotly"


def has_plotly() -> bool:
    """Whether the library that draws is installed."""
    return find_spec("plotly") is not None


@cache
def _warn_once() -> None:
    log.warning("%s", HOW_TO_GET_PLOTLY)


def page_of(step: ShownStep) -> str:
    """The page as text; it loads nothing from elsewhere.

    Raises:
        DumpError: plotly is not installed.
    """
    if not has_plotly():
        raise DumpError(HOW_TO_GET_PLOTLY)
    from plotly.offline import get_plotlyjs

    files = resources.files("graphremat") / "page"
    data = json.dumps(page_data(step), separators=(",", ":"), allow_nan=False)
    return Template((files / "page.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(step.title),
        style=(files / "page.css").read_text(encoding="utf-8"),
        data=data.replace("<", "\\u003c"),  # no text of a graph can end the element that it stands in
        plotly=get_plotlyjs(),
        script="\n".join((files / name).read_text(encoding="utf-8") for name in SCRIPTS),
    )


def read_dump(folder: Path) -> ShownStep:
    """The step of one graph's folder of dumps.

    Raises:
        DumpError: a file is missing, or does not hold what it should.
    """
    problem_path, plan_path, report_path = (folder / name for name in NEEDED)
    try:
        problem = load_problem(problem_path)
        plan = Plan.from_json(plan_path.read_text(encoding="utf-8"))
        run = replay(problem, plan)
        report = Report.from_json(report_path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DumpError(
            f"{folder} is no dump of a planned graph: it has no {Path(error.filename).name}"
        ) from error
    except (OSError, PlanningError, ValueError, TypeError, KeyError, IndexError) as error:
        raise DumpError(f"the dump {folder} cannot be read: {type(error).__name__}: {error}") from error
    return ShownStep(
        title=f"Graph {report.graph}, lowered by {report.lowering}",
        problem=problem,
        plan=plan,
        run=run,
        points=(*report.frontier, *report.frugal),
        on_frontier=len(report.frontier),
        chosen=report.chosen,
        torchs=next((point for point in report.frontier if point.origin == TORCHS_PLAN), None),
        budget_bytes=report.budget_bytes if report.share_bytes is None else report.share_bytes,
        generated_peak_bytes=report.generated_peak_bytes,
        generated_curve=_read_curve(folder / "41-generated-curve.csv"),
        unfollowed=report.unfollowed,
        truth=report.truth,
    )


def _read_curve(path: Path) -> tuple[tuple[str, int], ...]:
    """``(event, bytes)`` of the generated code; nothing where that was not followed."""
    if not path.exists():
        return ()
    with path.open(newline="", encoding="utf-8") as file:
        return tuple((row["event"], int(row["bytes"])) for row in csv.DictReader(file))


def graph_folders(folder: Path) -> list[Path]:
    """The folders of graphs in a folder of dumps; the folder itself, if it is a graph's.

    Raises:
        DumpError: there is none.
    """
    if (folder / NEEDED[0]).exists():
        return [folder]
    found = sorted(path.parent for path in folder.glob(f"graph-*/{NEEDED[0]}"))
    if not found:
        raise DumpError(f"{folder} holds no dump: neither {NEEDED[0]} nor graph-*/{NEEDED[0]}")
    return found


def write_page(folder: Path) -> Path:
    """Make the page of one graph's folder of dumps anew.

    Raises:
        DumpError: plotly is not installed, a file of the dump is missing or wrong, or the page cannot be written.
    """
    dumps = Dumps(folder)
    dumps.write(PAGE, lambda: page_of(read_dump(folder)))
    return folder / PAGE


def add_page(dumps: Dumps) -> None:
    """Write the page into a dump, made of what is written there; a warning, once, where plotly is not installed.

    Raises:
        DumpError: the dump cannot be read, or the page not be written.
    """
    if dumps.folder is None:
        return
    if has_plotly():
        write_page(dumps.folder)
    else:
        _warn_once()
