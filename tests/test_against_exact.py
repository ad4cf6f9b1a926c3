"""The comparison with the proved optimum: its figures on rows made by hand, and one run from seed to table."""

from pathlib import Path

import pytest

from bench import against_exact
from bench.against_exact import Point, Row, figures, quantile, read_rows, table_of


def row(*points: Point, fastest: float = 10.0) -> Row:
    return Row("chain 0", "chain", "", "", 9, fastest, 0.5, 1.0, points)


def test_figures_count_what_was_missed_and_leave_out_what_was_not_proved() -> None:
    found = figures(
        [
            row(
                Point(1, None, None, True),  # no plan at all
                Point(2, None, 14.0, True),  # missed
                Point(3, 12.1, 11.0, True),  # 10% over the optimum, which adds 1
                Point(4, 10.0, 10.0, True),
                Point(5, 13.0, 12.0, False, 10.4),
            )
        ]
    )
    assert (found["compared"], found["unproved"]) == (2, 1)
    assert found["missed"] == pytest.approx(1 / 3)
    assert found["worst"] == pytest.approx(0.1)
    assert found["over bound"] == pytest.approx(0.25)
    assert found["added median"] == pytest.approx(1.1)
    assert not table_of([row(Point(2, None, 14.0, True))])[1]
    assert table_of([row(Point(4, 10.0, 10.0, True))])[1]


@pytest.mark.parametrize(("share", "value"), [(0.5, 2.0), (0.75, 3.0), (0.95, 4.0), (1.0, 4.0)])
def test_quantile(share: float, value: float) -> None:
    assert quantile([4.0, 1.0, 3.0, 2.0], share) == value


def test_a_second_run_measures_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--seeds", "3", "--most", "4", "--budgets", "3", "--out", str(tmp_path / "rows.jsonl")]
    code = against_exact.main(arguments)
    rows = read_rows(tmp_path / "rows.jsonl")
    assert rows
    assert all(p.share is None or p.share >= -1e-9 for r in rows for p in r.points)
    monkeypatch.setattr(against_exact, "measure", lambda *_: pytest.fail("measured again"))
    assert against_exact.main(arguments) == code
    assert read_rows(tmp_path / "rows.jsonl") == rows


def test_a_network_of_one_block_is_compared_without_fusion(tmp_path: Path) -> None:
    arguments = ["--networks", "resnet", "--budgets", "3", "--out", str(tmp_path / "rows.jsonl")]
    assert against_exact.main(arguments) == 0
    (found,) = read_rows(tmp_path / "rows.jsonl")
    assert (found.name, found.setting) == ("resnet", "one_block, 3 budgets, 60 s")
    assert all(point.proved for point in found.points)
    assert found.points[-1].share == pytest.approx(0.0)
