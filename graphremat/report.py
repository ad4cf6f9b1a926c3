"""What was done to a compiled graph, and why: as an object, and as text for a dump. Needs no torch."""

import itertools
import json
import threading
from collections import deque
from collections.abc import Set
from dataclasses import asdict, dataclass
from typing import Any

from graphremat.passes.attribute import CallTruth
from graphremat.passes.plan import Plan
from graphremat.passes.problem import Kind, Problem
from graphremat.passes.replay import Replay
from graphremat.passes.sizes import evaluate
from graphremat.units import format_bytes

TORCHS_PLAN = "torch's own partitioner"
"""The origin of the plan that torch makes by itself."""

KEPT_REPORTS = 64
"""Reports of the latest compiled graphs that :func:`reports` gives."""


@dataclass(frozen=True)
class FrontierPoint:
    """One plan of the frontier: ``generated_peak_bytes`` is None where its code was not generated."""

    planned_peak_bytes: int
    generated_peak_bytes: int | None
    recomputed_seconds: float
    step_seconds: float
    saved_bytes: int
    origin: str


@dataclass(frozen=True)
class TimedPlan:
    """A plan by its place in the frontier, whether that was made with corrected prices, and the seconds of its step
    (forward and backward of the graph): by the model, and the best of a few real ones."""

    place: int
    corrected: bool
    step_seconds: float
    measured_seconds: float
    kept: bool


@dataclass(frozen=True)
class Truth:
    """What real steps of the plan that was compiled first took, beside what was planned (``profile``).

    ``peak_bytes`` is by the allocator, inputs included; None where it could not be followed. ``step_seconds`` is all of
    forward and backward, ``call_seconds`` the part in the calls of kernels, of which ``attributed_seconds`` are of
    calls whose ops are known. ``recomputed_seconds`` is of what ran a second time. The planned numbers are
    those of the report that the plan had before prices were corrected.
    """

    peak_bytes: int | None
    planned_peak_bytes: int
    generated_peak_bytes: int
    step_seconds: float
    planned_step_seconds: float
    call_seconds: float
    attributed_seconds: float
    recomputed_seconds: float
    planned_recomputed_seconds: float
    calls: tuple[CallTruth, ...]

    def __str__(self) -> str:
        def off(planned: float, measured: float) -> str:
            return f"{planned / measured - 1:+.1%} off" if measured else "nothing measured"

        peak = "not followed"
        if self.peak_bytes is not None:
            peak = (
                f"{format_bytes(self.peak_bytes)}; generated code {off(self.generated_peak_bytes, self.peak_bytes)},"
                f" plan {off(self.planned_peak_bytes, self.peak_bytes)}"
            )
        lines = [
            f"  measured   peak {peak}",
            f"             step {self.step_seconds * 1e3:.2f} ms, {self.call_seconds * 1e3:.2f} ms of it in kernels;"
            f" plan {off(self.planned_step_seconds, self.call_seconds)}",
            f"             recomputation {self.recomputed_seconds * 1e3:.2f} ms;"
            f" plan {off(self.planned_recomputed_seconds, self.recomputed_seconds)}",
        ]
        return "\n".join(lines)

    def to_markdown(self) -> str:
        """``70-truth.md``: what was measured, and every call of the code with what its ops were priced at, the
        slowest first."""
        head = "| phase | measured ms | planned ms | of it run again ms | call | ops |"
        rows = [
            f"| {c.phase} | {c.measured_seconds * 1e3:.3f} | {c.priced_seconds * 1e3:.3f} "
            f"| {c.recomputed_seconds * 1e3:.3f} | `{c.text}` | {', '.join(c.ops)} |"
            for c in sorted(self.calls, key=lambda call: -call.measured_seconds)
        ]
        return "\n".join(
            ["# Measured in real steps", "", "```", str(self), "```", "", head, "| --- " * 6 + "|", *rows, ""]
        )


@dataclass(frozen=True)
class SymbolicSize:
    """A size that is not fixed: its name in the graph, what it was planned with, and what it is of, as Dynamo says it
    (``L['x'].size()[0]``;
    empty for one that depends on data)."""

    name: str
    planned: int
    source: str


@dataclass(frozen=True)
class Report:
    """The plan of one compiled graph.

    Peaks count every byte alive at the worst moment of forward and backward: inputs, saved values, temporaries and
    gradients. ``planned_peak_bytes`` is the planner's replay, ``generated_peak_bytes`` the dry run of the code that
    really runs. ``budget_bytes`` is None where no budget was asked for; ``share_bytes`` is what this graph was given of
    it, less where other graphs hold something meanwhile; ``lowest_peak_bytes`` and
    ``fastest_peak_bytes`` are the ends of the range, None where they were not needed.
    """

    graph: int
    lowering: str
    budget_bytes: int | None
    share_bytes: int | None
    input_bytes: int
    gradient_bytes: int
    planned_peak_bytes: int
    generated_peak_bytes: int
    lowest_peak_bytes: int | None
    fastest_peak_bytes: int | None
    saved_bytes: int
    saved_count: int
    recomputed_ops: int
    recomputed_seconds: float
    recomputed_flops: int
    added_seconds: float
    """What the plan adds to the step of the fastest plan, by the model: recomputation, and traffic of saving."""
    step_seconds: float
    gap: float
    """How much faster a step under the same planned peak can be at most, by the model and its lower bound: 0 to 1."""
    exact_gap: float | None
    """The same among the plans that the exact solver knows, by what it proved; None if it was not asked."""
    plan_seconds: float
    peak_at: str
    holders: tuple[tuple[str, int], ...]
    frontier: tuple[FrontierPoint, ...]
    frugal: tuple[FrontierPoint, ...]
    """Plans off the frontier that save less, for graphs that share a budget."""
    chosen: int
    """The place of the plan in the frontier, or behind it among the frugal ones."""
    refused_fusions: int = 0
    """Pairs of kernels of the backward that Inductor would have joined, had the fence not stood between them."""
    corrected: bool = False
    """Whether the prices of the ops were corrected by what real steps took (``profile``)."""
    truth: "Truth | None" = None
    """What real steps took (``profile``)."""
    timed_plans: tuple["TimedPlan", ...] = ()
    """Plans that took turns in real steps (``autotune``, ``profile``); the fastest of them was kept."""
    timed_ops: int = 0
    """Distinct ops whose seconds were timed on the device, not priced by a formula (``costs="measure"``)."""
    timing_seconds: float = 0.0
    """What timing took in this compilation; 0.0 if all was known."""
    sizes: tuple["SymbolicSize", ...] = ()
    """What the sizes of a graph that was compiled for any shape depend on."""
    peak_formula: str = ""
    """The planned peak as arithmetic over them; empty where all sizes are fixed. See :meth:`planned_peak_at`."""
    unfollowed: str = ""
    """Why the generated code could not be followed; its peak is then the planned one. Empty where it is the code's."""
    dump_dir: str | None = None

    def planned_peak_at(self, **sizes: int) -> int:
        """The planned peak in bytes for other sizes, by the names in :attr:`sizes`; what is not named stays.

        Raises:
            ValueError: a name is none of the graph's.
        """
        planned = {size.name: size.planned for size in self.sizes}
        unknown = sorted(sizes.keys() - planned.keys())
        if unknown:
            known = ", ".join(f"{s.name} ({s.source or 'from the data'})" for s in self.sizes) or "none"
            raise ValueError(f"no size of this graph is called {', '.join(unknown)}; its sizes are: {known}")
        if not self.peak_formula:
            return self.planned_peak_bytes
        return int(evaluate(self.peak_formula, planned | sizes))

    def to_json(self) -> str:
        """The report as JSON text."""
        return json.dumps(asdict(self), indent=1)

    @staticmethod
    def from_json(text: str) -> "Report":
        """Read what :meth:`to_json` wrote. Raises ValueError, TypeError or KeyError for anything else."""

        def truth(told: dict[str, Any]) -> Truth:
            calls = (CallTruth(**{**call, "ops": tuple(call["ops"])}) for call in told["calls"])
            return Truth(**{**told, "calls": tuple(calls)})

        told = json.loads(text)
        return Report(
            **{
                **told,
                "holders": tuple((name, size) for name, size in told["holders"]),
                "frontier": tuple(FrontierPoint(**point) for point in told["frontier"]),
                "frugal": tuple(FrontierPoint(**point) for point in told["frugal"]),
                "truth": None if told["truth"] is None else truth(told["truth"]),
                "timed_plans": tuple(TimedPlan(**timed) for timed in told["timed_plans"]),
                "sizes": tuple(SymbolicSize(**size) for size in told["sizes"]),
            }
        )

    def __str__(self) -> str:
        budget = "none" if self.budget_bytes is None else format_bytes(self.budget_bytes)
        if self.share_bytes is not None and self.share_bytes != self.budget_bytes:
            budget += f", {format_bytes(self.share_bytes)} of it for this graph"
        lines = [
            f"graph {self.graph}, lowered by {self.lowering}",
            f"  budget     {budget}",
            f"  peak       {format_bytes(self.generated_peak_bytes)} of generated code,"
            f" {format_bytes(self.planned_peak_bytes)} planned, at {self.peak_at}",
            f"  of it      {format_bytes(self.input_bytes)} inputs, {format_bytes(self.gradient_bytes)} gradients",
            f"  saved      {self.saved_count} values, {format_bytes(self.saved_bytes)}",
            f"  recomputed {self.recomputed_ops} ops, {self.recomputed_seconds * 1e3:.2f} ms of a step of"
            f" {self.step_seconds * 1e3:.2f} ms (model)",
            f"  optimum    at most {self.gap:.2%} of the step below it, by the lower bound (model)",
        ]
        if self.truth is not None:
            lines.append(str(self.truth))
        for timed in self.timed_plans:
            kept, prices = ", kept" if timed.kept else "", ", prices corrected" if timed.corrected else ""
            lines.append(
                f"  timed      plan {timed.place}: {timed.measured_seconds * 1e3:.2f} ms a step,"
                f" {timed.step_seconds * 1e3:.2f} ms by the model{prices}{kept}"
            )
        if self.timed_ops:
            lines.append(f"  timed      {self.timed_ops} distinct ops, in {self.timing_seconds:.2f} s")
        if self.peak_formula:
            planned = ", ".join(f"{s.name} = {s.planned} of {s.source or 'data'}" for s in self.sizes)
            lines += [f"  sizes      {planned}", f"  formula    {self.peak_formula} bytes planned"]
        if self.unfollowed:
            lines.append(f"  not followed: the peak of the code is the planned one, since {self.unfollowed}")
        if self.exact_gap is not None:
            lines.append(
                f"  exact      at most {self.exact_gap:.2%} below it, among the plans of the exact solver (model)"
            )
        lines += [f"    {format_bytes(size):>12}  {name}" for name, size in self.holders[:5]]
        return "\n".join(lines)


_reports: deque[Report] = deque(maxlen=KEPT_REPORTS)
_lock = threading.Lock()


_graphs = itertools.count()


def next_graph() -> int:
    """The number of the next graph of this process."""
    return next(_graphs)


def record(report: Report) -> None:
    """Make ``report`` the last one."""
    with _lock:
        _reports.append(report)


def reports() -> tuple[Report, ...]:
    """Reports of the latest graphs compiled in this process, oldest first."""
    with _lock:
        return tuple(_reports)


def last_report() -> Report:
    """The report of the graph compiled last in this process.

    A graph that torch takes from its cache is not planned again and gives no report.

    Raises:
        LookupError: no graph was planned yet.
    """
    with _lock:
        if not _reports:
            raise LookupError("no graph has been planned by graphremat in this process yet")
        return _reports[-1]


def saved_table(problem: Problem, plan: Plan, replayed: Replay) -> str:
    """``saved.md``: a line a saved value: bytes, shape, where it comes from, why it is saved."""
    recomputed = set(plan.recomputed(problem))
    rows = []
    for value in plan.saved:
        v = problem.values[value]
        op = problem.ops[v.producer]
        size = problem.storages[v.storage].size_bytes
        why = why_saved(problem, value, recomputed)
        rows.append(
            (size, f"| {size:,} | {v.label} | {v.name} | {op.target} | {v.module} | {v.source} | {why} |")
        )
    rows.sort(key=lambda row: (-row[0], row[1]))
    head = [
        "# Saved for the backward",
        "",
        f"{len(rows)} values, {format_bytes(replayed.saved_bytes)} beyond inputs and outputs; planned peak "
        f"{format_bytes(replayed.peak_bytes)}.",
        "",
        "| bytes | value | name | op | module | source line | why |",
        "| ---: | --- | --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*head, *(row for _, row in rows)]) + "\n"


def why_saved(problem: Problem, value: int, recomputed: Set[int]) -> str:
    """Why the plan that runs the ops ``recomputed`` again saves a value: what forbids to make it again or, saved by
    choice, what its absence would cost, and who reads it."""
    op = problem.ops[problem.values[value].producer]
    if op.keep:
        return f"must not run again: {op.keep}"
    pending, readers = [value], []
    while pending:
        for reader in problem.readers[pending.pop()]:
            if problem.ops[reader].kind is Kind.VIEW:
                pending.extend(problem.ops[reader].writes)
            elif problem.ops[reader].phase.value == "backward" or reader in recomputed:
                readers.append(problem.ops[reader].name)
    shown = ", ".join(dict.fromkeys(readers[:3])) + (", ..." if len(readers) > 3 else "")
    return f"making it again takes {op.seconds * 1e3:.3f} ms; read by {shown or 'nothing'}"
