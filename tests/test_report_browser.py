"""``report.html`` in a headless Chromium: it draws, answers to pointing and clicking, and stays usable when large."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from graphremat.passes.problem import Builder, Kind, Phase, Problem
from graphremat.passes.replay import replay
from graphremat.passes.schedule import schedule
from graphremat.report import FrontierPoint
from graphremat.report_data import HELD, ShownStep
from graphremat.report_page import page_of
from graphremat.units import format_bytes

pytest.importorskip("plotly")
pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra bench)")

from playwright.sync_api import sync_playwright

from bench.report_screenshot import find_chromium

CHROMIUM = find_chromium()
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path (on Debian: apt install chromium)"),
]

LARGE_OPS = 7_000
LARGE_PAGE_BYTES = 7 * 2**20
"""Of a graph of so many ops: 4.6 MiB of it are the library that draws."""
LABELLED = "document.getElementById('graph').data.at(-1).text.includes('{}')"
KINDS = (Kind.KERNEL, Kind.FUSIBLE, Kind.VIEW, Kind.FUSIBLE, Kind.KERNEL, Kind.VIEW, Kind.KERNEL)


def network(layers: int) -> Problem:
    """Layers of seven ops each with a residual connection and a gradient: 14 ops a layer, forward and backward."""
    builder = Builder()
    x = builder.input("x", 2**20)
    values: list[int] = []
    for layer in range(layers):
        entry = x
        for part, kind in enumerate(KINDS):
            reads = [x, entry] if part == len(KINDS) - 1 else [x]
            size = (layer % 5 + 1) * 2**18 + 4096 * part
            name = f"layer{layer}_{part}"
            x = builder.op(name, reads, kind, Phase.FORWARD, size_bytes=size, seconds=1e-4 * (layer % 3 + 1))
            values.append(x)
    gradient = builder.tangent("tangent", 2**20)
    gradients = []
    for place, value in enumerate(reversed(values)):
        reads, size = [gradient, value], 2**16 if place % 7 == 0 else 2**20
        kernel = Kind.KERNEL, Phase.BACKWARD
        made = builder.op(f"gradient{place}", reads, *kernel, size_bytes=size, seconds=1e-4)
        if place % 7 == 0:
            gradients.append(made)
        else:
            gradient = made
    problem = builder.build([x], [gradient, *gradients])
    named = [
        replace(v, module=f"blocks.{v.name[5:].replace('_', '.part')}" if v.name.startswith("layer") else "")
        for v in problem.values
    ]
    return replace(problem, values=tuple(named))


def step_of(layers: int) -> ShownStep:
    """Planned so that the last value of every layer is saved, and of every second layer the one before it, too."""
    problem = network(layers)
    by_name = {value.name: number for number, value in enumerate(problem.values)}
    saved = [by_name[f"layer{layer}_6"] for layer in range(layers)]
    saved += [by_name[f"layer{layer}_4"] for layer in range(0, layers, 2)]
    plan = schedule(problem, sorted(saved))
    run = replay(problem, plan)
    points = tuple(
        FrontierPoint(
            run.peak_bytes + k * 2**20,
            None,
            run.recompute_seconds / (k + 1),
            run.seconds / (k + 1),
            0,
            "made up",
        )
        for k in reversed(range(8))
    )
    return ShownStep(
        "A network", problem, plan, run, points, len(points), len(points) - 1, points[0], run.peak_bytes
    )


class Browsed:
    """A page that is open, and what its console said."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on(
            "console", lambda message: self.errors.append(message.text) if message.type == "error" else None
        )
        page.on(
            "request",
            lambda request: self.errors.append(request.url) if "file:" not in request.url[:5] else None,
        )

    def open(self, step: ShownStep, path: Path) -> None:
        path.write_text(page_of(step), encoding="utf-8")
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready]")

    def point_at(self, chart: str, share: float) -> None:
        """Move to a share of the width of a chart."""
        box = self.page.locator(f"#{chart} .nsewdrag").first.bounding_box()
        self.page.mouse.move(box["x"] + share * box["width"] - 3, box["y"] + box["height"] / 2)
        self.page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2)

    def column(self, number: int) -> list[str]:
        """The texts of a column of the table by module."""
        return list(self.page.locator(f"#by-module tbody td:nth-child({number})").all_inner_texts())

    def x_range(self, chart: str) -> list[float]:
        return list(self.page.evaluate(f"document.getElementById('{chart}').layout.xaxis.range"))


@pytest.fixture(scope="module")
def context() -> Iterator[Any]:
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser.new_context(viewport={"width": 1400, "height": 900}, offline=True)
        browser.close()


@pytest.fixture
def browsed(context: Any) -> Iterator[Browsed]:
    found = Browsed(context.new_page())
    found.page.set_default_timeout(60_000)
    yield found
    assert found.errors == []
    found.page.close()


def test_every_part_is_drawn(browsed: Browsed, tmp_path: Path) -> None:
    step = step_of(6)
    browsed.open(step, tmp_path / "report.html")
    page = browsed.page
    assert page.inner_text("h1") == "A network"
    assert format_bytes(step.run.peak_bytes) in page.inner_text("#tiles")
    assert page.locator("#curve .scatterlayer .trace").count() >= 5
    assert page.locator("#frontier .scatterlayer .trace").count() == 3
    drawn = page.evaluate("document.getElementById('graph').data.map((t) => [t.name, t.x.length])")
    shown = dict(name_and_length for name_and_length in drawn if name_and_length[0])
    assert shown["saved"] == len(step.plan.saved)
    assert shown["run again"] == len(step.plan.recomputed(step.problem))
    assert format_bytes(step.run.peak_bytes) in page.inner_text("#truth")


@pytest.mark.parametrize("share", [0.1, 0.36, 0.7, 0.97])
def test_pointing_at_the_curve_tells_what_is_alive(browsed: Browsed, tmp_path: Path, share: float) -> None:
    step = step_of(6)
    browsed.open(step, tmp_path / "report.html")
    before = browsed.page.inner_text("#alive")
    browsed.point_at("curve", share)
    browsed.page.wait_for_function(
        "(before) => document.getElementById('alive').innerText !== before", arg=before
    )
    position = int(browsed.page.get_attribute("#alive", "data-position"))
    length = len(step.run.curve)
    assert abs(position - share * (length - 1)) <= 1
    assert int(browsed.page.get_attribute("#alive", "data-bytes")) == step.run.curve[position]
    told = browsed.page.inner_text("#alive")
    sequence = (*step.plan.forward, *step.plan.backward)
    assert told.startswith(step.problem.ops[sequence[position]].name)
    assert f"op {position + 1} of {length}" in told
    name, size = step.run.alive_at(step.problem, position)[0]
    assert f"{name}\n{format_bytes(size)}" in told
    assert f"{dict(HELD)['inputs']}\n{format_bytes(step.problem.input_bytes)}" in told


def test_a_click_keeps_the_moment(browsed: Browsed, tmp_path: Path) -> None:
    browsed.open(step_of(6), tmp_path / "report.html")
    page = browsed.page
    browsed.point_at("curve", 0.3)
    page.mouse.down()
    page.mouse.up()
    page.wait_for_function("keptPosition !== null")
    kept = page.inner_text("#alive")
    browsed.point_at("curve", 0.8)
    page.wait_for_timeout(200)
    assert page.inner_text("#alive") == kept


def test_a_click_on_a_header_sorts_the_table(browsed: Browsed, tmp_path: Path) -> None:
    step = step_of(6)
    browsed.open(step, tmp_path / "report.html")
    page = browsed.page
    rows = page.evaluate("moduleRows()")
    for number, key in enumerate(("module", "saved_bytes"), start=1):
        head = page.locator(f"#by-module th[data-column={key}]")
        values = [row[key] for row in rows]
        for _ in range(2):
            head.locator("button").click()
            descending = head.get_attribute("aria-sort") == "descending"
            wanted = sorted(values, reverse=descending)
            assert browsed.column(number) == (wanted if key == "module" else list(map(format_bytes, wanted)))
    assert {
        page.locator(f"#by-module th[data-column={key}]").get_attribute("aria-sort") for key in rows[0]
    } == {
        None,
        "ascending" if not descending else "descending",
    }
    assert sum(row["saved_bytes"] for row in rows) == step.run.saved_bytes


def test_modules_are_shown_down_to_a_depth(browsed: Browsed, tmp_path: Path) -> None:
    browsed.open(step_of(6), tmp_path / "report.html")
    assert {name.count(".") for name in browsed.column(1)} == {2}
    browsed.page.select_option("#depth", "2")
    assert sorted(browsed.column(1)) == [f"blocks.{layer}" for layer in range(6)]


def test_an_op_is_found_and_told(browsed: Browsed, tmp_path: Path) -> None:
    browsed.open(step_of(6), tmp_path / "report.html")
    page = browsed.page
    page.fill("#wanted", "layer3_3")
    page.click("#find button[type=submit]")
    assert page.inner_text("#found").startswith("1 of ")
    told = page.inner_text("#op")
    for text in (
        "layer3_3",
        "blocks.3.part3",
        "not saved, made again",
        format_bytes(2**20 + 3 * 4096),
        "layer3_2",
    ):
        assert text in told
    page.wait_for_function(LABELLED.format("layer3_3"))
    page.click("#whole")
    page.wait_for_function(f"!({LABELLED.format('layer3_3')})")
    page.fill("#wanted", "nothing like it")
    page.click("#find button[type=submit]")
    assert page.inner_text("#found") == "no such op"


def test_modules_are_named_as_deep_as_there_is_room(browsed: Browsed, tmp_path: Path) -> None:
    browsed.open(step_of(6), tmp_path / "report.html")
    named = "document.getElementById('graph').data.at(-3).text.map((text) => text.trim())"
    assert browsed.page.evaluate(named) == [f"blocks.{layer}" for layer in range(6)]
    browsed.page.evaluate("Plotly.relayout('graph', { 'xaxis.range': [13.6, 20.4] })")
    browsed.page.wait_for_function(f"{named}[0].includes('part')")
    assert browsed.page.evaluate(named) == [f"blocks.2.part{part}" for part in range(7)]


def test_colours_follow_the_system(browsed: Browsed, tmp_path: Path) -> None:
    browsed.open(step_of(6), tmp_path / "report.html")
    colours = []
    for scheme in ("light", "dark"):
        browsed.page.emulate_media(color_scheme=scheme)
        browsed.page.wait_for_function(
            "document.getElementById('curve').layout.paper_bgcolor === colour('page')"
        )
        colours.append(browsed.page.evaluate("document.getElementById('graph').layout.font.color"))
    assert colours[0] != colours[1]


@pytest.mark.slow
def test_a_large_graph_stays_usable(browsed: Browsed, tmp_path: Path) -> None:
    step = step_of(LARGE_OPS // 14)
    assert len(step.problem.ops) == LARGE_OPS
    path = tmp_path / "report.html"
    browsed.open(step, path)
    assert path.stat().st_size < LARGE_PAGE_BYTES
    page = browsed.page
    browsed.point_at("curve", 0.5)
    page.wait_for_function(
        f"Number(document.getElementById('alive').dataset.position) !== {step.run.peak_position}"
    )
    position = int(page.get_attribute("#alive", "data-position"))
    assert int(page.get_attribute("#alive", "data-bytes")) == step.run.curve[position]
    page.locator("#graph").scroll_into_view_if_needed()
    whole = browsed.x_range("graph")
    browsed.point_at("graph", 0.5)
    page.mouse.wheel(0, -600)
    page.wait_for_function(
        "(old) => document.getElementById('graph').layout.xaxis.range[0] > old", arg=whole[0]
    )
    zoomed = browsed.x_range("graph")
    assert zoomed[1] - zoomed[0] < whole[1] - whole[0]
    browsed.point_at("graph", 0.5)
    page.mouse.down()
    browsed.point_at("graph", 0.3)
    page.mouse.up()
    page.wait_for_function(
        "(old) => document.getElementById('graph').layout.xaxis.range[0] > old", arg=zoomed[0]
    )
    page.fill("#wanted", "layer321_4")
    page.click("#find button[type=submit]")
    page.wait_for_function(LABELLED.format("layer321_4"))
    assert "layer321_4" in page.inner_text("#op")
