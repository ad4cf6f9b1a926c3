"""One measured point of the contest, and its file of JSON lines. Needs no torch."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

OURS = "graphremat"
REFERENCE = "torch.compile"
"""Takes turns with everybody, so that times of different minutes and sessions can be held against each other."""
FAMILIES = (
    "eager",
    "eager, checkpoints",
    REFERENCE,
    f"{REFERENCE}, checkpoints",
    "activation_memory_budget",
    OURS,
)


@dataclass(frozen=True)
class Row:
    """One contestant on one workload. What was not measured is None, and ``failure`` says why.

    ``peak_bytes`` are over ``held_bytes``: parameters, buffers and inputs; gradients are part of the peak.
    ``reference_seconds`` is the best step of :data:`REFERENCE` in the same rounds, ``reference_median_seconds`` the
    median one; rows of before 2026-11-29 may lack the latter. FLOPs are of matrix products, convolutions and attention.
    ``kernels`` are those that Inductor generated, ``plan_seconds`` a part of ``first_step_seconds``.
    """

    workload: str
    size: str
    contestant: str
    family: str
    sources: str
    failure: str | None = None
    held_bytes: int | None = None
    gradient_bytes: int | None = None
    peak_bytes: int | None = None
    budget_bytes: int | None = None
    planned_bytes: int | None = None
    generated_bytes: int | None = None
    gradient_error: float | None = None
    recomputed_flops: int | None = None
    kernels: int | None = None
    first_step_seconds: float | None = None
    plan_seconds: float | None = None
    rounds: int = 0
    median_seconds: float | None = None
    min_seconds: float | None = None
    spread_seconds: float | None = None
    reference_seconds: float | None = None
    reference_median_seconds: float | None = None
    machine: str = ""
    threads: int = 0
    torch_version: str = ""
    date: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        """What was measured; equal keys need no second run."""
        return self.workload, self.size, self.contestant, self.sources, self.torch_version, self.machine

    @property
    def place(self) -> tuple[str, str, str]:
        """Workload, size and contestant: what a later measurement replaces, by whatever sources it was."""
        return self.workload, self.size, self.contestant

    @property
    def best_ratio(self) -> float | None:
        """Best step over that of :data:`REFERENCE`."""
        if self.min_seconds is None or not self.reference_seconds:
            return None
        return self.min_seconds / self.reference_seconds

    @property
    def median_ratio(self) -> float | None:
        """Median step over that of :data:`REFERENCE`: one lucky round decides nothing."""
        if self.median_seconds is None or not self.reference_median_seconds:
            return None
        return self.median_seconds / self.reference_median_seconds

    @property
    def done(self) -> bool:
        """Whether there is nothing left to measure."""
        return self.failure is not None or self.best_ratio is not None


def read(path: Path) -> list[Row]:
    """All lines, the oldest first; no file is none."""
    return [Row(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def append(path: Path, row: Row) -> None:
    """One more line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lines:
        lines.write(json.dumps(asdict(row)) + "\n")


def latest(rows: Iterable[Row]) -> list[Row]:
    """Of each contestant on each workload the row that was written last; of ours, those of the sources that were
    measured last there, since nobody can have a plan of last week's planner beside one of today's."""
    done = [row for row in rows if row.done]
    current = {(row.workload, row.size): row.sources for row in done if row.family == OURS}
    return list(
        {
            row.place: row
            for row in done
            if row.family != OURS or row.sources == current[row.workload, row.size]
        }.values()
    )
