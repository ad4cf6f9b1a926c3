"""The contest: everybody computes eager's gradient, nothing is measured twice, and the verdict is right."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.progress import Progress
from torch import fx

from bench import report
from bench.contest import batches, race, seeds
from bench.contest.contestants import Contestant, Flops, as_it_is, others
from bench.contest.placements import PLACEMENTS, NoPlacement, Placement, block_costs, block_names
from bench.contest.rows import OURS, REFERENCE, Row, append, latest, read
from bench.contest.runner import Field, our_budgets, run
from bench.contest.verdict import TOLERANCE, Verdict, fastest_within, front, points_of, verdicts_of, volume
from bench.contest.workload import Workload
from bench.contest.workloads import BLOCKS, CHAINS, build
from bench.networks import NETWORKS
from graphremat.measure import gradient_error, measure_peak


def gradients(workload: Workload, call: torch.nn.Module) -> list[torch.Tensor | None]:
    workload.model.zero_grad(set_to_none=True)
    torch.manual_seed(3)
    workload.loss(call(*workload.inputs)).backward()
    found = [p.grad for p in workload.model.parameters()]
    workload.model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_a_placement_keeps_the_gradient(name: str) -> None:
    workload = build(name, "tiny")
    assert bool(CHAINS.get(name)) != bool(BLOCKS.get(name))
    reference = gradients(workload, workload.model)
    placed = 0
    for place in PLACEMENTS.values():
        try:
            twin = place(workload)
        except NoPlacement:
            continue
        placed += 1
        assert {id(p) for p in twin.parameters()} == {id(p) for p in workload.model.parameters()}
        assert gradient_error(reference, gradients(workload, twin)) <= 1e-5
    assert placed >= len(PLACEMENTS) - 1


def test_checkpoints_lower_the_peak_and_more_of_them_lower_it_more() -> None:
    workload = build("post_norm", "small")

    def peak(call: torch.nn.Module) -> int:
        def step() -> None:
            workload.loss(call(*workload.inputs)).backward()

        return measure_peak(step, clear=lambda: workload.model.zero_grad(set_to_none=True)).peak_bytes

    plain = peak(workload.model)
    names = (
        "checkpoint every 1",
        "checkpoint every 2",
        "selective, every second matmul",
        "selective, all matmuls",
    )
    peaks = [*(peak(PLACEMENTS[name](workload)) for name in names), plain]
    assert peaks == sorted(set(peaks))
    assert peak(PLACEMENTS["checkpoint_sequential"](workload)) < plain
    assert peak(PLACEMENTS["bytes per second, 0.25"](workload)) < plain


def test_what_a_block_saves_is_what_its_checkpoint_frees() -> None:
    workload = build("two_losses", "tiny")
    costs = block_costs(workload, rounds=1)
    assert list(costs) == block_names(workload)
    batch, width = workload.inputs[0].shape
    up = (
        2 * width
    )  # the tanh between two layers is twice as wide as they are; LayerNorm saves two numbers a row
    expected = 4 * batch * (width + up + 2)
    assert {saved for saved, _ in costs.values()} == {expected}


def row(contestant: str, peak: int, seconds: float, family: str = "eager", **more: object) -> Row:
    return Row(
        "net", "tiny", contestant, family, "s", peak_bytes=peak, min_seconds=seconds, reference_seconds=1.0,
        **more,  # type: ignore[arg-type]
    )  # fmt: skip


def verdict(ours: list[tuple[int, float]], theirs: list[tuple[int, float]]) -> Verdict:
    rows = [row(f"a{i}", *point) for i, point in enumerate(theirs)]
    rows += [row(f"{OURS} {i}", *point, family=OURS) for i, point in enumerate(ours)]
    (found,) = verdicts_of(rows)
    return found


def test_a_verdict_by_hand() -> None:
    found = verdict([(10, 2.0), (20, 1.0)], [(20, 1.0), (12, 1.99), (30, 0.9), (9, 3.0), (25, 4.0)])
    assert [(loss.theirs.peak_bytes, loss.ours and loss.ours.ratio) for loss in found.losses] == [
        (9, None),
        (30, 1.0),
    ]
    assert found.dominated_share == pytest.approx(0.6)
    ours_over_theirs = [2.0 / 1.99, 1.0 / 1.0, 1.0 / 0.9]  # at 12, 20 and 30; nothing of ours is at 9
    product = ours_over_theirs[0] * ours_over_theirs[1] * ours_over_theirs[2]
    assert found.time_at_equal_peak == pytest.approx(product ** (1 / 3))
    assert found.lowest_ratio() == pytest.approx(10 / 9)
    assert found.volume_ratio == pytest.approx((20 * 2.0 + 10 * 1.0) / (21 * 1.0 + 18 * 1.01 + 10 * 0.99))


def test_a_verdict_goes_by_medians_where_all_rows_have_them() -> None:
    ours, theirs = (
        row(name, 8, best, family, median_seconds=median, reference_median_seconds=2.0)
        for name, best, family, median in ((OURS, 1.5, OURS, 3.0), ("amb", 1.0, "eager", 3.0))
    )
    (found,) = verdicts_of([ours, theirs])
    assert found.by_median
    assert not found.losses
    assert found.time_at_equal_peak == pytest.approx(1.0)
    (found,) = verdicts_of([ours, replace(theirs, reference_median_seconds=None)])
    assert not found.by_median
    assert [(loss.ours and loss.ours.ratio) for loss in found.losses] == [1.5]
    (found,) = verdicts_of([ours, theirs, row("eager", 1, 1.0, failure="no")])
    assert found.by_median


def test_plans_of_an_earlier_planner_do_not_count() -> None:
    old = [replace(row(f"{OURS} {k}", 8 + k, 1.0, OURS), sources="old") for k in range(2)]
    new = replace(row(f"{OURS} 0", 9, 2.0, OURS), sources="new")
    other = replace(row(f"{OURS} 1", 9, 2.0, OURS), sources="old", workload="elsewhere")
    theirs = [replace(row(name, 9, 2.0), sources=name) for name in ("eager", "amb")]
    assert latest([*old, *theirs, new, other]) == [*theirs, new, other]


def test_gradients_are_taken_off_both() -> None:
    rows = [row("amb", 8, 1.0, gradient_bytes=4), row(OURS, 6, 1.0, OURS, gradient_bytes=4)]
    (found,) = verdicts_of(rows)
    assert found.lowest_ratio("eager", less_gradients=True) == 0.5
    assert found.lowest_ratio("activation_memory_budget") is None


POINTS = st.lists(
    st.tuples(st.integers(1, 40), st.integers(1, 40).map(lambda n: n / 10)), min_size=1, max_size=8
)


@given(POINTS, POINTS)
def test_dominated_is_dominated_by_one(
    ours: list[tuple[int, float]], theirs: list[tuple[int, float]]
) -> None:
    found = verdict(ours, theirs)
    lost = {(loss.theirs.peak_bytes, loss.theirs.ratio) for loss in found.losses}
    for point in theirs:
        beaten = any(o[0] <= point[0] and o[1] <= TOLERANCE * point[1] for o in ours)
        assert beaten == (point not in lost)


@given(POINTS)
def test_an_area_is_the_cells_that_are_counted(points: list[tuple[int, float]]) -> None:
    cells = sum(
        any(peak <= x and round(10 * seconds) <= y for peak, seconds in points)
        for x in range(1, 50)
        for y in range(1, 50)
    )
    found = points_of([row(str(i), *point) for i, point in enumerate(points)])
    assert volume(found, 50, 5.0) * 10 == pytest.approx(cells)
    kept = front(found)
    assert [p.peak_bytes for p in kept] == sorted({p.peak_bytes for p in kept})
    for point in found:
        fastest = fastest_within(kept, point.peak_bytes)
        assert fastest is not None
        assert fastest.ratio <= point.ratio


def test_our_budgets_are_the_peaks_of_the_others() -> None:
    rows = [row("a", 50, 1.0), row("b", 30, 1.5), row("c", 40, 2.0), row(OURS, 7, 1.0, OURS)]
    assert our_budgets(rows, 4) == [None, 0.0, 30, 50]
    assert our_budgets(rows, 6) == [None, 0.0, 30, 50, 40, 0.5]
    assert our_budgets([], 3) == [None, 0.0, 0.5]
    falling = [row(f"c{k}", 10 * k, 9.0 - k) for k in range(1, 6)]
    assert our_budgets([*falling, row(REFERENCE, 60, 1.0)], 4) == [None, 0.0, 10, 50]
    assert our_budgets(falling, 5) == [None, 0.0, 10, 30, 50]
    assert our_budgets(falling[:1], 3) == [None, 0.0, 10]
    assert len(set(our_budgets([], 12))) == 12


def test_rows_outlive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "results" / "rows.jsonl"
    assert read(path) == []
    first, second = row("a", 5, 1.0), row("a", 6, 1.0)
    append(path, first)
    append(path, second)
    append(path, replace(first, contestant="b", reference_seconds=None))  # not timed yet
    assert read(path)[:2] == [first, second]
    assert latest(read(path)) == [second]


def test_everybody_has_a_name_of_his_own() -> None:
    names = [contestant.name for contestant in Field().others()]
    assert len(set(names)) == len(names) == Field().size - Field().our_budgets
    assert names[0] == REFERENCE == others({}, budgets=(), solvers=())[0].name


FIELD = Field(("checkpoint every 1",), (0.5,), ("dp",), 2)


@pytest.mark.inductor
@pytest.mark.slow
def test_a_contest_is_measured_once(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    with Progress(disable=True) as progress:
        rows = run(["linear_stack"], "one_block", FIELD, 2, out, progress)
        assert len(rows) == FIELD.size
        assert [row.failure for row in rows] == [None] * FIELD.size
        assert len({row.reference_seconds for row in rows}) == 1  # all took turns with all
        written = out.read_text()
        again = run(["linear_stack"], "one_block", FIELD, 2, out, progress)
    assert again == rows
    assert out.read_text() == written
    append(out, replace(rows[1], failure="a library was missing"))
    with Progress(disable=True) as progress:
        failed = run(["linear_stack"], "one_block", FIELD, 2, out, progress)
        tried = run(["linear_stack"], "one_block", FIELD, 2, out, progress, retry_failed=True)
    assert [row.contestant for row in failed if row.failure] == [rows[1].contestant]
    assert not any(row.failure for row in tried)
    by_name = {row.contestant: row for row in rows}
    layers, width, batch = (
        NETWORKS["linear_stack"].sizes["one_block"][k] for k in ("layers", "width", "batch")
    )
    product = 2 * batch * width * width
    assert by_name["eager, checkpoint every 1"].recomputed_flops == layers * product
    assert by_name["eager"].recomputed_flops == by_name[REFERENCE].recomputed_flops == 0
    lowest = by_name[f"{OURS} 0"]
    assert lowest.recomputed_flops is not None
    assert lowest.recomputed_flops % product == 0
    assert (lowest.peak_bytes or 0) <= (by_name[REFERENCE].peak_bytes or 0)
    assert lowest.generated_bytes == lowest.peak_bytes
    (found,) = verdicts_of(rows)
    assert len(found.others) == FIELD.size - FIELD.our_budgets


def test_what_takes_the_process_down_is_a_failure_of_one(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    with Progress(disable=True) as progress:
        (failed,) = run(["linear_stack"], "no such size", FIELD, 1, out, progress)
    assert failed.contestant == REFERENCE
    assert failed.failure is not None
    assert read(out)[-1].failure


def test_a_contestant_that_fails_is_recorded_and_the_others_go_on() -> None:
    workload = build("mixture_of_experts", "tiny")
    track = race.Track(workload)
    told: list[tuple[str, str]] = []
    (sequential,) = (c for c in others() if c.name == "eager, checkpoint_sequential")
    track.reference = track.prepare(others({}, budgets=(), solvers=())[1])
    rows = track.race([sequential], 1, lambda what, row: told.append((what, row.contestant)))
    assert told == [("start", sequential.name), ("done", sequential.name)]
    assert "NoPlacement: mixture_of_experts has no blocks that run one behind the other" in str(
        rows[0].failure
    )


def test_who_breaks_a_graph_breaks_none_of_those_who_come_later() -> None:
    workload = build("llama", "tiny")
    track = race.Track(workload)

    def compiled(place: Placement) -> tuple[int, int | None]:
        """How many graphs a step is made of, and the FLOPs that its row says run again."""
        graphs: list[fx.GraphModule] = []

        def backend(gm: fx.GraphModule, _: Any) -> Any:
            graphs.append(gm)
            return gm.forward

        def prepare(given: Workload) -> Any:
            return torch.compile(place(given), backend=backend, dynamic=False)

        row = track.prepare(Contestant("somebody", "compiled", prepare, Flops())).row
        return len(graphs), row.recomputed_flops

    assert compiled(as_it_is) == (1, 0)
    graphs, flops = compiled(PLACEMENTS["checkpoint_sequential"])
    assert graphs > 1
    assert flops is None  # each block's graph is called once for each block, and again in the backward
    assert compiled(as_it_is) == (1, 0)


def test_of_several_graphs_neither_peaks_nor_flops_are_added_up() -> None:
    reports: Any = [SimpleNamespace(plan_seconds=1.0, recomputed_flops=8), SimpleNamespace(plan_seconds=2.0)]
    assert race._told_by_reports(reports) == {"plan_seconds": 3.0}


PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmark.md"


def test_the_page_is_what_was_measured() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra bench)")
    rows = read(report.RESULTS)
    page = report.page_of(rows, batches.read(batches.RESULTS), seeds.read(seeds.RESULTS))
    assert PAGE.read_text() == page


def test_the_readme_says_what_was_measured() -> None:
    readme = (PAGE.parents[1] / "README.md").read_text()
    told = readme.split(report.MARKS[0])[1].split(report.MARKS[1])[0]
    assert told == "\n" + report.summary_of(verdicts_of(read(report.RESULTS)))


def test_a_page_names_who_is_not_dominated(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra bench)")
    results, page = tmp_path / "rows.jsonl", tmp_path / "docs" / "page.md"
    assert report.main(["--results", str(results), "--page", str(page)]) == 1
    for one in (
        row("slow", 20 << 20, 3.0),
        row("low", 5 << 20, 2.0),
        row("broken", 1, 1.0, failure="RuntimeError: no"),
        row(f"{OURS} 0", 10 << 20, 1.5, OURS, gradient_bytes=2 << 20),
    ):
        append(results, one)
    nothing = str(tmp_path / "none.jsonl")
    assert (
        report.main(
            ["--results", str(results), "--page", str(page), "--batches", nothing, "--seeds", nothing]
        )
        == 0
    )
    text = page.read_text()
    assert "**1 of 2 points of the others are dominated by ours.**" in text
    assert "| net | low | 5.00 | 2.000 | not reached | 10.00 |" in text
    assert "- broken: RuntimeError: no" in text
    assert "| slow |" in text
    assert "| **low** |" in text
    assert (page.parent / report.FIGURE).read_text().startswith("<?xml")
