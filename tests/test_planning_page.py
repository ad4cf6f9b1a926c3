"""The commands of docs/planning.md run, and say what the page says."""

import re
from dataclasses import replace
from pathlib import Path

import torch
from typer.testing import CliRunner

import graphremat
from bench import plan_peaks
from bench.budget_rows import Measurement, read_results
from bench.budget_summary import RESULTS, latest
from bench.networks import NETWORKS
from graphremat.cli import app

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "planning.md").read_text()


def test_the_commands_say_what_the_page_says(tmp_path: Path) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "net.py").write_text(code)
    said = PAGE.split("<!-- advice -->")[1].split("<!-- end of advice -->")[0].replace("```", "").strip()
    install, advise, plan = re.findall(r"^(pip .*|graphremat .*)$", PAGE, flags=re.MULTILINE)
    assert install == "pip install ."
    for command in (advise, plan):
        words = command.replace("net.py", str(tmp_path / "net.py")).split()[1:]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
        if command == advise:
            assert result.stdout.strip() == said


def test_the_table_of_planned_peaks_is_of_what_was_measured_last() -> None:
    table = PAGE.split(plan_peaks.MARKS[0])[1].split(plan_peaks.MARKS[1])[0].strip().splitlines()
    rows = [line.strip("| ").split(" | ") for line in table[2:] if line.startswith("|")]
    assert [row[0] for row in rows] == list(latest(read_results(RESULTS)))
    off = sorted(abs(float(cell.rstrip("%"))) for row in rows for cell in row[1:])
    assert len(off) == len(rows) * len(plan_peaks.BUDGETS)
    assert off[-1] / 100 <= plan_peaks.MOST_OFF
    assert table[-1].startswith(
        f"Off by {off[-1]:.2f}% at most, {off[len(off) // 2]:.2f}% in the median of {len(off)}"
    )


def test_a_prediction_is_held_against_the_measured_peak_for_as_many_threads_as_were_measured() -> None:
    """The peak depends on the processor too, so one that is found here stands for the measured one."""
    before = torch.get_num_threads()
    row = Measurement("dropout_gpt", "tiny", "inductor", "none", "", threads=before + 1)
    case = NETWORKS[row.network].build(row.size)

    def peak_bytes(threads: int) -> int:
        with plan_peaks.threads(threads):
            assert torch.get_num_threads() == threads
            return graphremat.plan(case.model, case.inputs, None, code=True).peak_bytes

    found = plan_peaks.off_by(replace(row, measured_peak_bytes=peak_bytes(before + 1)))
    assert torch.get_num_threads() == before
    assert found is not None
    assert abs(found.code) < 1e-5
    assert abs(found.replay) <= plan_peaks.MOST_OFF
    assert peak_bytes(before) != peak_bytes(before + 1)
