"""Runs a contest: workloads one after the other, each in a process of its own, everything written down as it comes."""

import multiprocessing
import os
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from rich.progress import Progress

from bench.contest import race
from bench.contest.contestants import (
    REFERENCE_CONTESTANT,
    SOLVERS,
    TORCH_BUDGETS,
    Contestant,
    compiled_by_us,
    of_the_library,
    others,
)
from bench.contest.placements import PLACEMENTS
from bench.contest.rows import OURS, REFERENCE, Row, append, read
from bench.contest.verdict import front, points_of
from bench.contest.workloads import build

PATIENCE_SECONDS = 1800.0
"""A process that says nothing for so long is given up, as a failure of the contestant that it is at."""
LIBRARYS = "the library's checkpoints"


@dataclass(frozen=True)
class Field:
    """Who takes part, by names and numbers; contestants are made in the process that runs them."""

    placements: tuple[str, ...] = (*PLACEMENTS, LIBRARYS)
    torch_budgets: tuple[float, ...] = TORCH_BUDGETS
    solvers: tuple[str, ...] = SOLVERS
    our_budgets: int = 12

    def others(self) -> list[Contestant]:
        """Everybody but us."""
        known = {**PLACEMENTS, LIBRARYS: of_the_library}
        placements = {name: known[name] for name in self.placements}
        return others(placements, budgets=self.torch_budgets, solvers=self.solvers)

    @property
    def size(self) -> int:
        """How many contestants there are."""
        return 2 + 2 * len(self.placements) + len(self.torch_budgets) * len(self.solvers) + self.our_budgets


QUICK = Field(("checkpoint every 1", "selective, all matmuls"), (0.5, 0.1), ("dp",), 4)


def our_budgets(rows: Sequence[Row], count: int) -> list[float | int | None]:
    """Budgets that a user of the others would ask for: none, the lowest peak, and the measured peaks of the others,
    first those on their own front, spread over it where it has too many (plain torch.compile's is for no budget);
    fractions fill up what is left of ``count``."""
    others = points_of([row for row in rows if row.family != OURS])
    on_front = front(others)
    lower = [point for point in on_front if point.row.contestant != REFERENCE]
    wanted = min(max(0, count - 2), len(lower))
    spread = [lower[round(k * (len(lower) - 1) / max(1, wanted - 1))] for k in range(wanted)]
    peaks = dict.fromkeys(point.peak_bytes for point in (*spread, *on_front, *others))
    fractions = (0.5, 0.25, 0.75, 0.125, 0.375, 0.625, 0.875, 0.0625, 0.1875, 0.3125)
    return [None, 0.0, *list(peaks)[: max(0, count - 2)], *fractions][:count]


@dataclass(frozen=True)
class Task:
    """One workload, for one process."""

    workload: str
    size: str
    field: Field
    rounds: int
    known: tuple[Row, ...]


def _work(task: Task, told: Any) -> None:
    """What the process does; it tells of rows, and of its end."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    race.get_ready()
    track = race.Track(build(task.workload, task.size))
    workload = track.workload

    def run(contestants: Sequence[Contestant]) -> list[Row]:
        known = {row.key: row for row in task.known if row.done}
        rows = {c.name: known.get(race.new_row(c, workload.name, workload.size).key) for c in contestants}
        found = [row for row in rows.values() if row is not None]
        for row in found:
            told.put(("known", row))
        left = [c for c in contestants if rows[c.name] is None]
        return [*found, *track.race(left, task.rounds, lambda what, row: told.put((what, row)))]

    rows = run(task.field.others())
    run([compiled_by_us(budget) for budget in our_budgets(rows, task.field.our_budgets)])
    track.race_all(task.rounds, lambda what, row: told.put((what, row)))
    told.put(("end", None))


def _end_with_parent() -> None:
    """Whoever kills the run does not mean a contestant to go on."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def run(
    workloads: Sequence[str],
    size: str,
    field: Field,
    rounds: int,
    out: Path,
    progress: Progress,
    *,
    retry_failed: bool = False,
) -> list[Row]:
    """All contestants on all workloads; what ``out`` has of the same sources is not measured again, be it a failure
    (what takes its process down would do so each time), unless failures of earlier runs are to be tried again.

    Returns:
        The rows of this contest, failures included.
    """
    bar = progress.add_task("", total=len(workloads) * field.size)
    earlier = read(out)
    kept = [row for row in earlier if row.failure is None or not retry_failed]
    finished: list[Row] = []
    for place, workload in enumerate(workloads):
        while True:
            task = Task(workload, size, field, rounds, (*kept, *read(out)[len(earlier) :]))
            rows, ended = _watch(task, out, progress, bar, place * field.size)
            if ended:
                break
        finished += rows
        progress.update(bar, completed=(place + 1) * field.size)
    return finished


def _watch(task: Task, out: Path, progress: Progress, bar: Any, before: int) -> tuple[list[Row], bool]:
    """One process from start to end; whether there is nothing left to do for another one."""
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    process = context.Process(target=_work, args=(task, told), daemon=True)
    process.start()
    current: Row | None = None
    rows: dict[str, Row] = {}
    waited = 0.0
    while True:
        try:
            what, row = told.get(timeout=1.0)
            waited = 0.0
        except queue.Empty:
            waited += 1.0
            if process.is_alive() and waited < PATIENCE_SECONDS:
                continue
            process.kill()
            process.join()
            how = (
                f"said nothing for {waited:.0f} s"
                if process.exitcode == -9
                else f"exit code {process.exitcode}"
            )
            row = current or race.new_row(REFERENCE_CONTESTANT(), task.workload, task.size)
            failed = replace(row, failure=f"its process ended: {how}")
            append(out, failed)
            return [*rows.values(), failed], current is None
        if what == "end":
            process.join()
            return list(rows.values()), True
        if what == "start":
            current = row
            progress.update(bar, description=f"{row.workload}: {row.contestant}")
        elif what in ("done", "known"):
            rows[row.contestant] = row
            progress.update(bar, completed=before + len(rows))
            if what == "done":
                append(out, row)
