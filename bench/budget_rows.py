"""One row of the main table, what it promises, and its file of JSON lines. Needs no torch.

A promise that is broken is a line of text: :func:`problems_of` for a row by itself, :func:`problems_across` for the
rows of one network together.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

MAX_GRADIENT_ERROR = 1e-5
"""Relative, of the whole gradient in float32."""
MAX_PREDICTION_ERROR = 0.01
"""Of the bytes over the inputs: stricter than of the whole peak, which large parameters would flatter."""

FRACTIONS: Mapping[str, float | None] = {"none": None, "0.75": 0.75, "0.5": 0.5, "0.25": 0.25, "0.0": 0.0}
BETWEEN: Mapping[str, tuple[str, str]] = {"bytes low": ("0.0", "0.25"), "bytes high": ("0.5", "0.75")}
"""Budgets in bytes: halfway between the measured peaks at two fractions."""
TORCH = "torch"
LABELS = (TORCH, *FRACTIONS, *BETWEEN)


@dataclass(frozen=True)
class Measurement:
    """One network compiled in one way. Peaks are whole: parameters, buffers and batch (``inputs_bytes``) count.

    ``label`` is ``torch`` for torch's own backend, else names the budget. Fields that do not apply are None; of a
    failed measurement all but the key are, and ``failure`` says why.
    """

    network: str
    size: str
    lowering: str
    label: str
    sources: str
    failure: str | None = None
    memory_budget: float | int | None = None
    budget_bytes: int | None = None
    inputs_bytes: int | None = None
    reported_inputs_bytes: int | None = None
    planned_peak_bytes: int | None = None
    predicted_peak_bytes: int | None = None
    measured_peak_bytes: int | None = None
    lowest_peak_bytes: int | None = None
    fastest_peak_bytes: int | None = None
    gradient_error: float | None = None
    buffer_error: float | None = None
    saved_bytes: int | None = None
    saved_count: int | None = None
    recomputed_ops: int | None = None
    recomputed_seconds: float | None = None
    recomputed_flops: int | None = None
    planned_step_seconds: float | None = None
    step_seconds: float | None = None
    compile_seconds: float | None = None
    device: str = "cpu"
    machine: str = ""
    torch_version: str = ""
    threads: int = 0
    date: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        """What a measurement is of; equal keys need no second run."""
        return self.network, self.size, self.lowering, self.device, self.label, self.sources

    @property
    def used_share(self) -> float | None:
        """Measured peak over budget."""
        if self.measured_peak_bytes is None or not self.budget_bytes:
            return None
        return self.measured_peak_bytes / self.budget_bytes

    @property
    def prediction_error(self) -> float | None:
        """Predicted against measured, signed, of the bytes over the inputs."""
        if self.measured_peak_bytes is None or self.predicted_peak_bytes is None or self.inputs_bytes is None:
            return None
        difference_bytes = self.predicted_peak_bytes - self.measured_peak_bytes
        return difference_bytes / (self.measured_peak_bytes - self.inputs_bytes)


def problems_of(row: Measurement) -> list[str]:
    """What one measurement breaks; nothing is expected of torch's own backend."""
    if row.failure is not None:
        return [f"failed: {row.failure}"]
    if row.label == TORCH:
        return []
    found = []
    if row.used_share is not None and row.used_share > 1.0:
        found.append(f"over budget by {row.measured_peak_bytes - row.budget_bytes:,} bytes")  # type: ignore[operator]
    for what, error in (("gradient", row.gradient_error), ("buffer", row.buffer_error)):
        if error is None or not error <= MAX_GRADIENT_ERROR:
            found.append(f"{what} error {error}")
    if row.prediction_error is None or abs(row.prediction_error) > MAX_PREDICTION_ERROR:
        found.append(f"prediction off by {row.prediction_error or 0.0:+.2%}")
    return found


def problems_across(rows: Sequence[Measurement]) -> dict[str, list[str]]:
    """What the measurements of one network break together, by label.

    Without a budget the peak is no higher than with torch's own backend; a lower fraction never measures a higher peak,
    and a higher one never plans more seconds of recomputation; a fraction's budget lies linearly between the ends.
    """
    by_label = {row.label: row for row in rows if row.failure is None}
    found: dict[str, list[str]] = {label: [] for label in LABELS}
    torch_row, free = by_label.get(TORCH), by_label.get("none")
    if torch_row is not None and free is not None and _peak(free) > _peak(torch_row):
        found["none"].append(f"{_peak(free) - _peak(torch_row):,} bytes over torch")
    falling = [by_label[label] for label in FRACTIONS if label in by_label]
    for higher, lower in pairwise(falling):
        if _peak(lower) > _peak(higher):
            found[lower.label].append(f"peak above that of {higher.label}")
        if (lower.recomputed_seconds or 0.0) < (higher.recomputed_seconds or 0.0):
            found[higher.label].append(f"recomputes more than {lower.label}")
    for row in falling:
        low, high = row.lowest_peak_bytes, row.fastest_peak_bytes
        if isinstance(row.memory_budget, float) and low is not None and high is not None:
            linear_bytes = low + row.memory_budget * (high - low)
            if row.budget_bytes is None or abs(row.budget_bytes - linear_bytes) > 1.0:
                found[row.label].append(f"budget is not the linear {linear_bytes:,.0f} bytes")
    return found


def _peak(row: Measurement) -> int:
    return row.measured_peak_bytes or 0


def budget_of(label: str, done: Mapping[str, Measurement]) -> float | int | None:
    """The ``memory_budget`` of a label; budgets in bytes need the fractions to be measured.

    Raises:
        LookupError: a peak that the budget lies between was not measured.
    """
    if label in FRACTIONS:
        return FRACTIONS[label]
    ends = [done.get(end) for end in BETWEEN[label]]
    peaks = [
        end.measured_peak_bytes for end in ends if end is not None and end.measured_peak_bytes is not None
    ]
    if len(peaks) < 2:
        raise LookupError(f"no measured peak at {' and '.join(BETWEEN[label])} to lie between")
    return sum(peaks) // 2


def read_results(path: Path) -> dict[tuple[str, ...], Measurement]:
    """Measurements of earlier runs by key; a later line replaces an earlier one. No file is no measurements."""
    if not path.exists():
        return {}
    rows = [Measurement(**json.loads(line)) for line in path.read_text().splitlines()]
    return {row.key: row for row in rows}


def append_result(path: Path, row: Measurement) -> None:
    """One more line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lines:
        lines.write(json.dumps(asdict(row)) + "\n")
