"""The export of problems and the figure of the frontiers: that they run, and that what is drawn is what was found."""

import itertools
from pathlib import Path

import pytest

from bench.export_problems import capture_problem, main
from graphremat.passes import planner
from graphremat.passes.planner import plan_frontier
from graphremat.passes.problem import Phase, Problem, check_problem
from graphremat.passes.testing import chain

pytest.importorskip("matplotlib")

from bench.draw_frontiers import OURS, STYLES, best_points, figure_of, picture_of, table_of


@pytest.mark.parametrize("lowering", ["aot_eager", "inductor"])
def test_a_network_is_captured_without_running_it(lowering: str) -> None:
    problem = capture_problem("two_losses", "tiny", lowering)
    check_problem(problem)
    assert problem.fuses == (lowering == "inductor")
    assert {op.phase for op in problem.ops} >= {Phase.FORWARD, Phase.BACKWARD}


def test_prices_without_regard_to_arithmetic_reach_lower_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = capture_problem("called_twice", "small")
    lowest = plan_frontier(problem).candidates[-1].replay.peak_bytes
    monkeypatch.setattr(planner, "with_equal_kernels", lambda problem: problem)
    assert lowest < 0.95 * plan_frontier(problem).candidates[-1].replay.peak_bytes


def test_the_file_holds_what_the_planner_gets(tmp_path: Path) -> None:
    main(["--out", str(tmp_path), "--size", "tiny", "--networks", "unet", "--lowering", "aot_eager"])
    (path,) = tmp_path.iterdir()
    assert path.name == "unet.json"
    assert Problem.from_json(path.read_text()) == capture_problem("unet", "tiny", "aot_eager")


def test_every_method_has_a_style_and_is_drawn(tmp_path: Path) -> None:
    picture = picture_of("a_chain", chain(12))
    assert set(picture.methods) == set(STYLES)
    assert all(picture.methods.values())
    assert min(picture.added(p.seconds) for points in picture.methods.values() for p in points) == 0
    path = tmp_path / "figure.svg"
    figure_of([picture, picture, picture]).savefig(path)
    assert path.read_text().startswith("<?xml")
    assert table_of([picture], "a test").row_count == len(STYLES)


def test_points_are_in_order_and_unbeaten() -> None:
    problem = chain(12)
    candidates = plan_frontier(problem).candidates
    points = best_points(candidates, problem.input_bytes)
    for lower, faster in itertools.pairwise(points):
        assert lower.peak_bytes < faster.peak_bytes
        assert lower.seconds > faster.seconds
    assert points[0].peak_bytes + problem.input_bytes == candidates[-1].replay.peak_bytes
    assert OURS in STYLES
