"""``python -m bench.report``: the page and the figure of what ``python -m bench.contest`` measured. Measures nothing.

``docs/benchmark.md`` says who won, where we lost, and what was measured of everybody; ``docs/benchmark.svg`` draws it.
Needs the extra ``bench``.
"""

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from rich.console import Console

from bench.contest import batches, seeds
from bench.contest.__main__ import RESULTS
from bench.contest.batches import BatchRow
from bench.contest.figures import batch_figure_of, figure_of
from bench.contest.rows import OURS, REFERENCE, Row, latest, read
from bench.contest.seeds import SeedRow
from bench.contest.verdict import (
    MIB,
    TOLERANCE,
    Loss,
    Point,
    Verdict,
    mean_time_at_equal_peak,
    verdicts_of,
)
from bench.markdown import table_of
from bench.networks import NETWORKS
from graphremat.demo import insert

PAGE = Path("docs/benchmark.md")
MARKS = ("<!-- benchmark -->", "<!-- end of benchmark -->")
FIGURE = "benchmark.svg"
BATCH_FIGURE = "benchmark-batches.svg"
EACH = (
    "contestant",
    "peak MiB",
    "step",
    "best ms",
    "median ms",
    "FLOPs again",
    "kernels",
    "first step s",
    "planning s",
)
TORCHS_BUDGET = "activation_memory_budget"
HEAD = (
    "workload",
    "their points",
    "dominated",
    "step at equal peak",
    "lowest peak",
    "of all others",
    "of torch's budget",
    "the same less gradients",
    "area",
)


def page_of(rows: Sequence[Row], batch_rows: Sequence[BatchRow], seed_rows: Sequence[SeedRow]) -> str:
    """The page, as Markdown."""
    verdicts = verdicts_of(rows)
    settings = sorted({(r.machine, r.torch_version, r.threads) for r in latest(rows)})
    where = "; ".join(
        f"{machine}, {threads} threads, torch {version}" for machine, version, threads in settings
    )
    lines = [
        "# Benchmark",
        "",
        _paragraph(
            f"""At the same measured peak, who is fastest, and who can go lowest? Everybody trains the same networks:
            eager, with checkpoints by hand, `{REFERENCE}`, both, torch's own `{TORCHS_BUDGET}`, and graphremat at no
            budget, at its lowest peak and at the peaks that the others came to. `python -m bench.contest` measures,
            `python -m bench.report` makes this page from `bench/results/contest.jsonl`."""
        ),
        "",
        _paragraph(
            f"""Measured on {where}. Peaks are by the allocator's events, over parameters, buffers and inputs. Steps
            are medians of several forwards and backwards, in turns, as ratios to `{REFERENCE}` in the same
            rounds{_by_the_best(verdicts)}. A point is dominated if one of ours has no higher a peak and takes at most
            {TOLERANCE:.2f} times its step."""
        ),
        "",
        _told(verdicts),
        "",
        f"![Peak against time of everybody on every workload]({FIGURE})",
        "",
        _paragraph(
            f"""`step at equal peak`: geometric mean over the peaks on the others' front, our fastest at no more peak
            over theirs; peaks that we do not reach are left out there, and are losses. `lowest peak` is in MiB, then
            over the lowest of the others, over the lowest of `{TORCHS_BUDGET}`, and that once more with the gradients
            taken off both. `area`: what our front dominates over what theirs does."""
        ),
        "",
        *table_of(HEAD, [_summary(verdict) for verdict in verdicts]),
        "",
        "## Where we lose",
        "",
        *_losses(verdicts),
        "",
        *_batches(batch_rows),
        *_seeds(seed_rows),
        "## Everybody",
        "",
        _paragraph(
            """Bold: ours, and theirs that ours do not dominate. `FLOPs again` are of matrix products, convolutions and
            attention, exact; kernels are those that Inductor generated."""
        ),
        "",
    ]
    for verdict in verdicts:
        lines += [*_details(verdict), ""]
    return "\n".join(lines)


def summary_of(verdicts: Sequence[Verdict]) -> str:
    """What README says: the table of workloads and one line."""
    return "\n".join([*table_of(HEAD, [_summary(verdict) for verdict in verdicts]), "", _told(verdicts), ""])


def _told(verdicts: Sequence[Verdict]) -> str:
    points = sum(len(v.others) for v in verdicts)
    dominated = points - sum(len(v.losses) for v in verdicts)
    mean = mean_time_at_equal_peak(verdicts)
    return _paragraph(
        f"""**{dominated} of {points} points of the others are dominated by ours.** At equal peak our step takes
        {_ratio(mean)} of the fastest of the others', in the geometric mean over workloads."""
    )


def _by_the_best(verdicts: Sequence[Verdict]) -> str:
    """Which workloads go by best steps."""
    names = [verdict.workload for verdict in verdicts if not verdict.by_median]
    return f"; the best, not medians, for {', '.join(names)}, whose rows are older" if names else ""


def _paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _summary(verdict: Verdict) -> tuple[str, ...]:
    lowest = verdict.lowest()
    return (
        f"{verdict.workload}, {verdict.size}",
        str(len(verdict.others)),
        f"{verdict.dominated_share:.0%}",
        _ratio(verdict.time_at_equal_peak),
        "-" if lowest is None else f"{lowest.peak_bytes / MIB:.2f}",
        _ratio(verdict.lowest_ratio()),
        _ratio(verdict.lowest_ratio(TORCHS_BUDGET)),
        _ratio(verdict.lowest_ratio(TORCHS_BUDGET, less_gradients=True)),
        _ratio(verdict.volume_ratio),
    )


def _losses(verdicts: Sequence[Verdict]) -> list[str]:
    losses = [(verdict, loss) for verdict in verdicts for loss in verdict.losses]
    if not losses:
        return ["Nowhere."]
    head = ("workload", "theirs", "peak MiB", "step", "our step at no more peak", "our lowest peak MiB")
    return table_of(head, [_loss(verdict, loss) for verdict, loss in losses])


def _loss(verdict: Verdict, loss: Loss) -> tuple[str, ...]:
    lowest = verdict.lowest()
    return (
        verdict.workload,
        loss.theirs.row.contestant,
        f"{loss.theirs.peak_bytes / MIB:.2f}",
        f"{loss.theirs.ratio:.3f}",
        "not reached" if loss.ours is None else f"{loss.ours.ratio:.3f}",
        "-" if lowest is None else f"{lowest.peak_bytes / MIB:.2f}",
    )


def _batches(rows: Sequence[BatchRow]) -> list[str]:
    if not rows:
        return []
    (limit,) = {row.limit_bytes for row in rows}
    network, size = rows[0].network, rows[0].size
    head = ("contestant", "largest batch", "batch", "peak MiB", "step ms", "examples a second")
    cells = [
        (
            f"**{row.contestant}**" if row.contestant == OURS else row.contestant,
            str(row.largest),
            str(row.batch),
            f"{row.peak_bytes / MIB:.2f}",
            f"{row.min_seconds * 1e3:.0f}",
            f"{row.examples_per_second:.1f}",
        )
        for row in sorted(rows, key=lambda row: (row.contestant == OURS, row.largest, row.batch))
    ]
    best, theirs = (
        max(
            (row for row in rows if (row.contestant == OURS) is ours), key=lambda row: row.examples_per_second
        )
        for ours in (True, False)
    )
    return [
        "## The largest batch, and the most examples a second",
        "",
        _paragraph(
            f"""{network}, {size}, under one limit of {limit / MIB:.0f} MiB over the parameters: everybody at the
            largest batch whose measured peak is within it, ours also at the largest batches of the others, each under
            the whole limit. Our best is {best.examples_per_second / theirs.examples_per_second:.2f} times the examples
            a second of the others' best (`{theirs.contestant}`). `python -m bench.contest.batches` measures it."""
        ),
        "",
        f"![Examples a second against the batch at one peak]({BATCH_FIGURE})",
        "",
        *table_of(head, cells),
        "",
    ]


def _seeds(rows: Sequence[SeedRow]) -> list[str]:
    lines = [] if not rows else ["## What is often quoted, at full size", ""]
    for size in dict.fromkeys(row.size for row in rows):
        here = [row for row in rows if row.size == size]
        fields = NETWORKS["post_norm"].sizes[size]
        (device,) = {row.device for row in here}
        base = min(row.step_seconds for row in here)

        def percent(seconds: float | None, base: float = base) -> str:
            return "none" if seconds is None else f"{seconds / base - 1:+.1%}"

        lines += [
            _paragraph(
                f"""A post-norm transformer of {fields["layers"]} layers of width {fields["width"]} at a batch of
                {fields["batch"]} x {fields["length"]}, planned with the prices of {device} by its data sheet, in
                float32; nothing was run. `python -m bench.contest.seeds` plans it. Times are over the fastest."""
            ),
            "",
            *table_of(
                ("what", "peak GB", "time", "our time at no more peak", "our peak GB in no more time"),
                [
                    (
                        row.name,
                        f"{row.peak_bytes / 1e9:.2f}",
                        percent(row.step_seconds),
                        percent(row.our_step_seconds),
                        "" if row.our_peak_bytes is None else f"{row.our_peak_bytes / 1e9:.2f}",
                    )
                    for row in here
                ],
            ),
            "",
        ]
    return lines


def _details(verdict: Verdict) -> list[str]:
    lost = {loss.theirs.row.contestant for loss in verdict.losses}

    def cells(point: Point) -> tuple[str, ...]:
        row = point.row
        name = f"**{row.contestant}**" if row.family == OURS or row.contestant in lost else row.contestant
        return (
            name,
            f"{point.peak_bytes / MIB:.2f}",
            f"{point.ratio:.3f}",
            f"{(row.min_seconds or 0.0) * 1e3:.0f}",
            f"{(row.median_seconds or 0.0) * 1e3:.0f}",
            "" if row.recomputed_flops is None else f"{row.recomputed_flops / 1e9:.2f} G",
            "" if row.kernels is None else str(row.kernels),
            f"{row.first_step_seconds or 0.0:.0f}",
            "" if row.plan_seconds is None else f"{row.plan_seconds:.1f}",
        )

    ordered = sorted([*verdict.ours, *verdict.others], key=lambda p: (p.peak_bytes, p.ratio))
    failed = [f"- {row.contestant}: {row.failure}" for row in verdict.failed]
    return [
        f"### {verdict.workload}, {verdict.size}",
        "",
        f"Gradients are {_gradients(verdict):.2f} MiB.",
        "",
        *table_of(EACH, [cells(point) for point in ordered]),
        *(["", "Failed:", "", *failed] if failed else []),
    ]


def _gradients(verdict: Verdict) -> float:
    return max((p.row.gradient_bytes or 0 for p in verdict.ours), default=0) / MIB


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page and its figure; 1 where there is nothing to write of."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON lines (default: %(default)s)")
    parser.add_argument("--batches", type=Path, default=batches.RESULTS, help="default: %(default)s")
    parser.add_argument("--seeds", type=Path, default=seeds.RESULTS, help="default: %(default)s")
    parser.add_argument("--page", type=Path, default=PAGE, help="default: %(default)s")
    parser.add_argument("--into", type=Path, help="a file with the marks of the summary")
    chosen = parser.parse_args(arguments)
    rows = read(chosen.results)
    verdicts = verdicts_of(rows)
    console = Console()
    if not verdicts:
        console.print(f"{chosen.results} has no workload that ours and others were measured on")
        return 1
    chosen.page.parent.mkdir(parents=True, exist_ok=True)
    batch_rows = batches.read(chosen.batches)
    page = page_of(rows, batch_rows, seeds.read(chosen.seeds))
    chosen.page.write_text(page)
    with matplotlib.rc_context({"svg.hashsalt": "benchmark"}):
        figure_of(verdicts).savefig(chosen.page.with_name(FIGURE), metadata={"Date": None})
        if batch_rows:
            batch_figure_of(batch_rows).savefig(chosen.page.with_name(BATCH_FIGURE), metadata={"Date": None})
    if chosen.into is not None:
        insert(chosen.into, summary_of(verdicts), MARKS)
    console.print(f"{chosen.page} and {FIGURE} are of {len(verdicts)} workloads", highlight=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
