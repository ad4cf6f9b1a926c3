"""Who won, from the rows alone. Needs no torch.

A point is dominated if one of ours has a peak that is no higher and a step of at most :data:`TOLERANCE` times its own.
Times are ratios to the reference's of the same rounds: of median steps, or of the best ones for a workload of which an
older row has no median of the reference.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from bench.contest.rows import OURS, REFERENCE, Row, latest

MIB = 2.0**20
TOLERANCE = 1.02
"""What two steps may differ by and be called equal: less than this machine tells apart."""


@dataclass(frozen=True)
class Point:
    """A contestant that was measured: bytes over parameters and inputs, and its step over the reference's."""

    row: Row
    peak_bytes: int
    ratio: float


@dataclass(frozen=True)
class Loss:
    """A point of somebody else that none of ours dominates; ``ours`` is our fastest at no more peak, None where we do
    not get so low."""

    theirs: Point
    ours: Point | None


@dataclass(frozen=True)
class Verdict:
    """One workload: the points of both sides, and what became of those that failed."""

    workload: str
    size: str
    ours: tuple[Point, ...]
    others: tuple[Point, ...]
    failed: tuple[Row, ...]

    @property
    def by_median(self) -> bool:
        """Whether steps are held against each other by their medians; else by the best."""
        return have_medians([point.row for point in (*self.ours, *self.others)])

    @property
    def losses(self) -> list[Loss]:
        """Their points that are not dominated, the lowest peak first."""
        lost = [
            theirs
            for theirs in self.others
            if not any(
                o.peak_bytes <= theirs.peak_bytes and o.ratio <= TOLERANCE * theirs.ratio for o in self.ours
            )
        ]
        return [Loss(p, fastest_within(self.ours, p.peak_bytes)) for p in sorted(lost, key=_peak)]

    @property
    def dominated_share(self) -> float:
        """Of their points."""
        return 1.0 - len(self.losses) / len(self.others)

    @property
    def time_at_equal_peak(self) -> float | None:
        """Geometric mean over the peaks of their front: our fastest step at no more peak over their fastest one there.

        Peaks that we do not reach are left out, and are losses.
        """
        pairs = [(fastest_within(self.ours, p.peak_bytes), p) for p in front(self.others)]
        logs = [math.log(mine.ratio / theirs.ratio) for mine, theirs in pairs if mine is not None]
        return math.exp(sum(logs) / len(logs)) if logs else None

    def lowest(self, family: str | None = None) -> Point | None:
        """The point of the lowest peak: ours, of a family of theirs, or of all of them (``""``)."""
        if family is None:
            return min(self.ours, key=_peak, default=None)
        return min((p for p in self.others if family in ("", p.row.family)), key=_peak, default=None)

    def lowest_ratio(self, family: str = "", *, less_gradients: bool = False) -> float | None:
        """Our lowest peak over theirs; of both the gradients, which nobody can avoid, may be taken off first."""
        mine, theirs = self.lowest(), self.lowest(family)
        if mine is None or theirs is None:
            return None
        gradients = mine.row.gradient_bytes or 0 if less_gradients else 0
        return (mine.peak_bytes - gradients) / max(1, theirs.peak_bytes - gradients)

    @property
    def volume_ratio(self) -> float | None:
        """The area that our front dominates over that of theirs, up to the largest peak and time of all points."""
        everybody = [*self.ours, *self.others]
        corner = max(p.peak_bytes for p in everybody), max(p.ratio for p in everybody)
        theirs = volume(self.others, *corner)
        return volume(self.ours, *corner) / theirs if theirs else None


def _peak(point: Point) -> tuple[int, float]:
    return point.peak_bytes, point.ratio


def have_medians(rows: Sequence[Row]) -> bool:
    """Whether all rows that did not fail can be held against the reference by medians."""
    return all(row.median_ratio is not None for row in rows if row.failure is None)


def points_of(rows: Sequence[Row]) -> list[Point]:
    """The rows that have a peak and a time, all by medians if they can be."""
    by_median = have_medians(rows)
    ratios = [row.median_ratio if by_median else row.best_ratio for row in rows]
    return [
        Point(row, row.peak_bytes, ratio)
        for row, ratio in zip(rows, ratios, strict=True)
        if row.failure is None and row.peak_bytes is not None and ratio is not None
    ]


def front(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats in both, from the lowest peak to the fastest."""
    kept: list[Point] = []
    for point in sorted(points, key=_peak):
        if not kept or point.ratio < kept[-1].ratio:
            kept.append(point)
    return kept


def fastest_within(points: Sequence[Point], peak_bytes: int) -> Point | None:
    """The fastest with a peak of at most so many bytes."""
    return min((p for p in points if p.peak_bytes <= peak_bytes), key=lambda p: p.ratio, default=None)


def volume(points: Sequence[Point], peak_bytes: float, ratio: float) -> float:
    """The area between a front and a corner that it does not reach beyond.

    >>> row = Row("w", "tiny", "c", "eager", "")
    >>> volume([Point(row, 1, 3.0), Point(row, 2, 1.0)], 4.0, 4.0)
    7.0
    """
    total, upper = 0.0, ratio
    for point in front(points):
        if point.ratio < upper:
            total += max(0.0, peak_bytes - point.peak_bytes) * (upper - point.ratio)
            upper = point.ratio
    return total


def verdicts_of(rows: Sequence[Row]) -> list[Verdict]:
    """One for each workload and size that both sides were measured on; the row written last counts."""
    found = []
    last = latest(rows)
    for workload, size in dict.fromkeys((row.workload, row.size) for row in last):
        here = [row for row in last if (row.workload, row.size) == (workload, size)]
        points = points_of(here)
        ours = tuple(p for p in points if p.row.family == OURS)
        others = tuple(p for p in points if p.row.family != OURS)
        if ours and others:
            failed = tuple(row for row in here if row.failure is not None)
            found.append(Verdict(workload, size, ours, others, failed))
    return found


def mean_time_at_equal_peak(verdicts: Sequence[Verdict]) -> float | None:
    """Geometric mean over workloads."""
    times = [v.time_at_equal_peak for v in verdicts]
    logs = [math.log(time) for time in times if time is not None]
    return math.exp(sum(logs) / len(logs)) if logs else None


def table_of(rows: Sequence[Row]) -> list[Table]:
    """For the terminal: each workload's contestants from the lowest peak to the highest, and who is dominated."""
    tables = []
    for verdict in verdicts_of(rows):
        title = f"{verdict.workload}, {verdict.size}; peaks over parameters and inputs"
        table = Table(title=title, title_justify="left")
        table.add_column("contestant")
        for column in ("peak MiB", f"step / {REFERENCE}", "gradient error", "FLOPs again", "first step s"):
            table.add_column(column, justify="right")
        table.add_column("")
        lost = {loss.theirs.row.contestant for loss in verdict.losses}
        for point in sorted([*verdict.ours, *verdict.others], key=_peak):
            row = point.row
            mark = "" if row.family == OURS else "not dominated" if row.contestant in lost else "dominated"
            table.add_row(
                row.contestant,
                f"{point.peak_bytes / MIB:.2f}",
                f"{point.ratio:.3f}",
                f"{row.gradient_error or 0.0:.1e}",
                "" if row.recomputed_flops is None else f"{row.recomputed_flops / 1e9:.2f} G",
                f"{row.first_step_seconds or 0.0:.0f}",
                mark,
            )
        for row in verdict.failed:
            table.add_row(row.contestant, "", "", "", "", "", row.failure)
        tables.append(table)
    return tables
