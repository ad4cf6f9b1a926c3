"""What the fence refuses, what that is for, and the command that shows it."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from torch import fx

from bench import fence
from bench.networks import NETWORKS
from bench.uncompiled import planned, uncompiled
from graphremat import candidates
from graphremat.fence import Fence, Moments, moments_of
from graphremat.passes import torch_private as private
from graphremat.passes.plan import Plan
from graphremat.passes.problem import Problem
from graphremat.passes.replay import Replay, replay
from graphremat.units import parse_bytes


def test_the_fence_keeps_shared_weights_from_holding_gradients() -> None:
    """Without it, each bias's first reduction waits for the second use's, and what both reduce stays alive."""
    case = NETWORKS["called_twice"].build("tiny")
    options = {"memory_budget": 0.0, "device_costs": "H100"}
    fenced, free = (planned(case.model, case.inputs, fence=fence, **options) for fence in (True, False))
    assert fenced.refused_fusions > 0
    assert free.refused_fusions == 0
    assert fenced.generated_peak_bytes < 0.9 * free.generated_peak_bytes


def test_a_fence_knows_every_moment_where_kernels_run_one_by_one() -> None:
    case = NETWORKS["llama"].build("tiny")
    seen: list[Moments | None] = []

    def one_by_one(backward: fx.GraphModule, problem: Problem, plan: Plan, replayed: Replay) -> None:
        assert moments_of(backward, problem, plan, replayed) is None  # on a CPU a stretch is one function
        problem = replace(problem, groups=False)
        seen.append(moments_of(backward, problem, plan, replay(problem, plan)))

    with mock.patch.object(candidates, "moments_of", one_by_one):
        planned(case.model, case.inputs, memory_budget=0.0)
    assert seen
    for moments in seen:
        assert moments is not None
        assert sorted(moments.positions.values()) == list(range(len(moments.alive)))
        assert moments.peak_bytes >= max(moments.alive) > max(moments.dying) > 0


@pytest.mark.parametrize(("peak_bytes", "kept_apart"), [(109, True), (110, False)])
def test_the_fence_does_not_keep_operands_beside_what_comes_after_them(
    peak_bytes: int, kept_apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sum is the last to read 20 bytes, and the next kernel runs at 90: joined, at 110."""
    moments = Moments({"sum": 0, "put": 1}, alive=[60, 90], dying=[20, 0], peak_bytes=peak_bytes)
    found = Fence({"sum": 3, "put": 3}, moments)
    monkeypatch.setattr(private, "origin_names", lambda node: [node.get_name()])
    monkeypatch.setattr(private.InductorChoices, "can_fuse_horizontal", lambda *_: True)
    first, second = (SimpleNamespace(get_name=lambda name=name: name) for name in ("sum", "put"))
    for pair in ((first, second), (second, first)):
        assert found.can_fuse_horizontal(None, *pair, 0) is not kept_apart
    assert len(found.refused) == 2 * kept_apart


def test_the_bench_shows_what_the_fence_is_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network, *cells = fence.row_of("two_losses", "tiny", 0.0, rounds=0)
    planned_peak, fenced, unfenced, apart = (parse_bytes(cell) for cell in cells[:4])
    assert network == "two_losses"
    assert planned_peak == pytest.approx(fenced, rel=0.05)  # with this machine's prices, whatever the plan
    assert fenced <= unfenced
    assert apart > 0
    assert int(cells[4]) > 0
    monkeypatch.setattr(fence, "row_of", lambda *_: [network, *cells])
    assert fence.main(["--networks", "two_losses"]) == 0
    assert network in capsys.readouterr().out


@pytest.mark.usefixtures("fresh_compiler")
def test_each_way_that_is_timed_is_lowered_for_itself() -> None:
    ways = fence.FENCED, fence.UNFENCED, fence.APART
    with uncompiled():
        reports = [fence.lowered("called_twice", "tiny", 0.0, way, run=True)[0] for way in ways]
    assert len(set(map(id, reports))) == len(ways)


def test_with_rounds_the_bench_times_all_three_ways_against_the_fenced_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    seconds = {fence.FENCED: 0.02, fence.UNFENCED: 0.04, fence.APART: 0.01}
    report = SimpleNamespace(planned_peak_bytes=1 << 20, generated_peak_bytes=1 << 20)

    def lowered(*given: object, run: bool) -> tuple[object, int, object]:
        assert run
        return report, 3, given[-1]

    def timed(steps: Mapping[str, object], *, rounds: int) -> dict[str, object]:
        assert steps == {way: way for way in seconds}
        return {way: SimpleNamespace(median_seconds=seconds[way] * rounds) for way in steps}

    monkeypatch.setattr(fence, "lowered", lowered)
    monkeypatch.setattr(fence, "time_interleaved", timed)
    page = tmp_path / "page.md"
    page.write_text("above\n{}\n{}\nbelow\n".format(*fence.MARKS))
    assert fence.main(["--networks", "two_losses", "--rounds", "2", "--into", str(page)]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "two_losses" in line)
    assert [cell.strip() for cell in line.split("|")[-3:-1]] == ["2.000", "0.500"]
    assert page.read_text().splitlines()[-3:] == [line, fence.MARKS[1], "below"]
