"""``python -m bench.budget_summary``: one line a network of what ``python -m bench.keep_budget`` measured last.

Nothing is measured here. ``--into README.md`` writes the table between its marks.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from bench import markdown
from bench.budget_rows import LABELS, TORCH, Measurement, problems_across, problems_of, read_results
from graphremat.demo import insert

MIB = 2.0**20
MARKS = ("<!-- budget table -->", "<!-- end of budget table -->")
RESULTS = Path(__file__).parent / "results" / "keep_budget.jsonl"
HEAD = (
    "network",
    "`torch.compile`",
    "no budget",
    "0.5",
    "0.0",
    "most of a budget used",
    "least used above the lowest peak",
    "prediction off by",
    "gradient error",
    "rows as promised",
)


def latest(rows: Mapping[tuple[str, ...], Measurement]) -> dict[str, list[Measurement]]:
    """The rows of each network whose sources were measured last there, all of the last row's size and device."""
    last = list(rows.values())[-1]
    alike = [
        row
        for row in rows.values()
        if (row.size, row.lowering, row.device) == (last.size, last.lowering, last.device)
    ]
    sources = {row.network: row.sources for row in alike}
    found: dict[str, list[Measurement]] = {}
    for row in alike:
        if row.sources == sources[row.network]:
            found.setdefault(row.network, []).append(row)
    return {
        network: sorted(found[network], key=lambda row: LABELS.index(row.label)) for network in sorted(found)
    }


def above_lowest_shares(rows: Sequence[Measurement]) -> list[float]:
    """What part each step takes of what its budget allows above the lowest peak that was measured."""
    measured = [row for row in rows if row.measured_peak_bytes is not None and row.budget_bytes is not None]
    lowest = min((row.measured_peak_bytes or 0 for row in measured), default=0)
    return [
        ((row.measured_peak_bytes or 0) - lowest) / (row.budget_bytes - lowest)
        for row in measured
        if row.budget_bytes is not None and row.budget_bytes > lowest and row.memory_budget != 0.0
    ]


def line(network: str, rows: Sequence[Measurement]) -> tuple[str, ...]:
    """One network's cells; peaks in MiB over parameters, buffers and batch."""
    by_label = {row.label: row for row in rows}
    ours = [row for row in rows if row.label != TORCH]
    across = problems_across(rows)
    good = sum(not problems_of(row) and not across[row.label] for row in rows)

    def peak(label: str) -> str:
        row = by_label.get(label)
        if row is None or row.measured_peak_bytes is None or row.inputs_bytes is None:
            return "-"
        return f"{(row.measured_peak_bytes - row.inputs_bytes) / MIB:.2f}"

    return (
        network,
        *map(peak, (TORCH, "none", "0.5", "0.0")),
        f"{max((row.used_share or 0.0 for row in ours), default=0.0):.1%}",
        f"{min(above_lowest_shares(ours), default=1.0):.0%}",
        f"{max((abs(row.prediction_error or 0.0) for row in ours), default=0.0):.2%}",
        f"{max((row.gradient_error or 0.0 for row in ours), default=0.0):.1e}",
        f"{good} of {len(rows)}",
    )


def table_of(networks: Mapping[str, Sequence[Measurement]]) -> list[str]:
    """The table, as lines of Markdown."""
    return markdown.table_of(HEAD, [line(network, rows) for network, rows in networks.items()])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and write it where that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench.budget_summary", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON lines (default: %(default)s)")
    parser.add_argument("--into", type=Path, help="a file with the marks of the table")
    chosen = parser.parse_args(arguments)
    table = "\n".join(table_of(latest(read_results(chosen.results))))
    Console().out(table, highlight=False)
    if chosen.into is not None:
        insert(chosen.into, table + "\n", MARKS)


if __name__ == "__main__":
    main()
