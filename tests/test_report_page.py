"""``report.html`` and the command that makes it again: what is in it, and what is said where it cannot be made."""

import csv
import json
import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import graphremat
from graphremat import report_page
from graphremat.cli import app
from graphremat.dumps import Dumps
from graphremat.errors import DumpError
from graphremat.passes.replay import replay
from graphremat.passes.schedule import schedule
from graphremat.passes.testing import chain
from graphremat.report import TORCHS_PLAN, Report
from graphremat.report_data import FATES, ShownStep
from graphremat.report_page import HOW_TO_GET_PLOTLY, NEEDED, graph_folders, page_of, read_dump
from tests.pages import data_of

pytest.importorskip("plotly")

runner = CliRunner()


class Block(nn.Module):
    """A layer with a norm, whose op gives several results."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.up = nn.Linear(32, 64)
        self.down = nn.Linear(64, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


GLOBAL = Block()


def of_argument(block: Block, x: torch.Tensor) -> torch.Tensor:
    return block(x)  # type: ignore[no-any-return]


def of_global(_: Block, x: torch.Tensor) -> torch.Tensor:
    return GLOBAL(x)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a graph that was planned at half of its range."""
    root = tmp_path_factory.mktemp("dump")
    torch.compiler.reset()
    options = {"lowering": "aot_eager", "memory_budget": 0.3, "dump_dir": str(root), "on_failure": "error"}
    model = nn.Sequential(*(Block() for _ in range(4)))
    torch.compile(model, backend="graphremat", options=options)(torch.randn(256, 32)).sum().backward()
    (folder,) = root.iterdir()
    return folder


@pytest.fixture
def copied(dump: Path, tmp_path: Path) -> Path:
    """A copy of that folder, to be broken."""
    return Path(shutil.copytree(dump, tmp_path / "root" / dump.name))


def test_the_page_tells_what_the_dump_tells(dump: Path) -> None:
    data = data_of((dump / "report.html").read_text())
    report = Report.from_json((dump / "report.json").read_text())
    with (dump / "40-curve.csv").open(newline="") as file:
        curve = list(csv.DictReader(file))
    assert [data["ops"]["name"][op] for op in data["runs"]["op"]] == [row["op"] for row in curve]
    assert data["forward_length"] == sum(row["phase"] == "forward" for row in curve)
    assert data["planned_peak_bytes"] == max(int(row["bytes"]) for row in curve) == report.planned_peak_bytes
    assert (
        data["generated_peak_bytes"]
        == max(data["generated_curve"]["backward"])
        == report.generated_peak_bytes
    )
    assert data["budget_bytes"] == report.budget_bytes
    assert data["points"][data["chosen"]]["planned_peak_bytes"] == report.planned_peak_bytes
    assert data["torchs"]["origin"] == TORCHS_PLAN
    plan = json.loads((dump / "30-plan.json").read_text())
    fates = [FATES[fate][0] for fate in data["runs"]["fate"]]
    names = [data["ops"]["name"][op] for op in data["runs"]["op"]]
    saved = {name for name, fate in zip(names, fates, strict=True) if fate == "saved"}
    assert saved == {name.partition(".")[0] for name in plan["saved"] if not name.startswith("primals")}
    assert [name for name, fate in zip(names, fates, strict=True) if fate == "again"] == plan["recomputed"]


def test_modules_and_source_lines_are_known_also_of_ops_with_several_results(dump: Path) -> None:
    data = data_of((dump / "report.html").read_text())
    norm = data["ops"]["name"].index("native_layer_norm_2")
    assert data["strings"][data["ops"]["module"][norm]] == "2.norm"
    assert re.fullmatch(r".*/test_report_page\.py:\d+", data["strings"][data["ops"]["source"][norm]])
    assert data["strings"][data["ops"]["label"][norm]].startswith("f32[256, 32], f32[256, 1]")


@pytest.mark.parametrize(("function", "root"), [(of_argument, "block"), (of_global, "GLOBAL")])
def test_modules_of_a_compiled_function_have_the_names_of_its_variables(
    function: Callable[..., torch.Tensor], root: str, tmp_path: Path
) -> None:
    torch.compiler.reset()
    options = {"lowering": "aot_eager", "dump_dir": str(tmp_path)}
    torch.compile(function, backend="graphremat", options=options)(
        GLOBAL, torch.randn(8, 32)
    ).sum().backward()
    (page,) = tmp_path.glob("*/report.html")
    data = data_of(page.read_text())
    assert {data["strings"][module] for module in data["ops"]["module"]} - {""} == {
        root,
        *(f"{root}.{name}" for name in ("norm", "up", "down")),
    }


class Loads(HTMLParser):
    """What a page would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = [value or "" for name, value in attrs if name in ("src", "href")]
        self.found += [f"{tag} {value}" for value in values if not value.startswith(("#", "data:"))]


def test_the_page_loads_nothing(dump: Path) -> None:
    page = (dump / "report.html").read_text()
    loads = Loads()
    loads.feed(page)
    assert loads.found == []
    assert "@import" not in page.partition("</style>")[0]
    loads.feed('<script src="https://example.org/x.js"></script>')
    assert loads.found == ["script https://example.org/x.js"]


def test_no_name_can_end_the_data_of_the_page() -> None:
    problem = chain(2)
    plan = schedule(problem, [])
    step = ShownStep("</script><b>", problem, plan, replay(problem, plan), (), 0, 0, None, None)
    page = page_of(step)
    assert data_of(page)["title"] == "</script><b>"
    assert "<title>&lt;/script&gt;&lt;b&gt;</title>" in page


def test_the_command_makes_the_same_page_again(copied: Path) -> None:
    page = (copied / "report.html").read_text()
    (copied / "report.html").unlink()
    for folder in (copied, copied.parent):
        result = runner.invoke(app, ["report", str(folder)])
        assert (result.exit_code, result.output) == (0, f"{copied / 'report.html'}\n")
        assert (copied / "report.html").read_text() == page
        (copied / "report.html").unlink()


def test_figures_hold_the_curve_and_the_frontier(copied: Path) -> None:
    pytest.importorskip("matplotlib")
    from graphremat.report_figures import curve_figure, frontier_figure

    step = read_dump(copied)
    for kind in ("svg", "png"):
        result = runner.invoke(app, ["report", str(copied), "--figures", kind])
        names = ("report.html", f"curve.{kind}", f"frontier.{kind}")
        assert result.output.splitlines() == [str(copied / name) for name in names]
    first = (copied / "curve.svg").read_text()
    runner.invoke(app, ["report", str(copied), "--figures", "svg"])
    assert (copied / "curve.svg").read_text() == first
    assert (copied / "frontier.png").read_bytes().startswith(b"\x89PNG")
    plan, code = curve_figure(step).axes[0].lines[:2]
    assert [round(y * 2**20) for y in plan.get_ydata()] == step.run.curve.tolist()
    assert round(max(code.get_ydata()) * 2**20) == step.generated_peak_bytes
    frontier = frontier_figure(step).axes[0].lines[0]
    peaks = sorted(point.planned_peak_bytes for point in step.points[: step.on_frontier])
    assert [round(x * 2**20) for x in frontier.get_xdata()] == peaks


@pytest.mark.parametrize("name", NEEDED)
def test_a_dump_without_what_is_needed_is_refused(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(DumpError, match=f"it has no {name}"):
        read_dump(copied)


@pytest.mark.parametrize("name", NEEDED)
@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"indices": {}}'])
def test_a_dump_with_something_else_in_it_is_refused(copied: Path, name: str, text: str) -> None:
    (copied / name).write_text(text)
    with pytest.raises(DumpError, match=r"the dump .*graph-\d+ cannot be read"):
        read_dump(copied)


def test_a_plan_of_another_problem_is_refused(copied: Path) -> None:
    (copied / "10-problem.json").write_text(chain(2).to_json())
    with pytest.raises(DumpError, match="cannot be read"):
        read_dump(copied)


def test_the_pages_that_can_be_made_are_made(copied: Path) -> None:
    broken = Path(shutil.copytree(copied, copied.parent / "graph-998"))
    whole = Path(shutil.copytree(copied, copied.parent / "graph-999"))
    (broken / "30-plan.json").unlink()
    result = runner.invoke(app, ["report", str(copied.parent)])
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [str(folder / "report.html") for folder in (copied, whole)]
    assert f"error: {broken} is no dump of a planned graph: it has no 30-plan.json" in result.stderr


def test_a_folder_without_dumps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DumpError, match="holds no dump"):
        graph_folders(tmp_path)
    assert runner.invoke(app, ["report", str(tmp_path / "nowhere")]).exit_code == 2
    assert runner.invoke(app, ["report", str(tmp_path), "--figures", "gif"]).exit_code == 2


def test_without_plotly_the_dump_is_written_and_says_how_to_get_the_page(
    copied: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (copied / "report.html").unlink()
    monkeypatch.setattr(report_page, "has_plotly", lambda: False)
    report_page._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger="graphremat"):
        report_page.add_page(Dumps(copied))
        report_page.add_page(Dumps(copied))
    assert [record.message for record in caplog.records] == [HOW_TO_GET_PLOTLY]
    assert not (copied / "report.html").exists()
    with pytest.raises(DumpError, match="pip install plotly"):
        report_page.write_page(copied)
    result = runner.invoke(app, ["report", str(copied)])
    assert (result.exit_code, str(result.exception)) == (1, HOW_TO_GET_PLOTLY)


def test_a_report_is_read_as_it_was_written(dump: Path) -> None:
    report = Report.from_json((dump / "report.json").read_text())
    written = [r for r in graphremat.reports() if r.dump_dir == str(dump)]
    assert written == [report]
    assert asdict(Report.from_json(report.to_json())) == asdict(report)
