"""What the page of a report shows, as one object for JSON. Needs no torch.

Nothing is listed moment by moment: a buffer is its bytes and the moments from which and to which it is alive, and the
page finds out what is alive at a moment. Texts that many ops share stand once, in ``strings``.
"""

from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from graphremat.passes.plan import Plan
from graphremat.passes.problem import Kind, Problem
from graphremat.passes.replay import Replay
from graphremat.report import FrontierPoint, Truth, why_saved
from graphremat.report_graph import places, run_reads

HELD = (
    ("inputs", "parameters and inputs"),
    ("outside", "outside of the graph"),
    ("outputs", "outputs and their gradients"),
    ("saved", "saved for the backward"),
    ("gradients", "gradients"),
    ("again", "made again"),
    ("temporaries", "temporaries"),
)
"""What bytes are held for, from the bottom of the curve to its top: the key of its colour, and its name."""

FATES = (
    ("plain", "other op"),
    ("view", "view"),
    ("saved", "saved"),
    ("dropped", "not saved, made again"),
    ("again", "run again"),
    ("outputs", "output"),
    ("gradients", "gradient"),
)
"""What becomes of what a run makes: the key of its colour, and its name in the graph of ops."""

Columns: TypeAlias = dict[str, list[Any]]


@dataclass(frozen=True, eq=False)
class ShownStep:
    """One planned step and what is known of it beyond the plan.

    Attributes:
        title: one line.
        problem, plan, run: what was planned, how, and the replay of that.
        points: plans from the fastest to the one of lowest peak, and then those off the frontier.
        on_frontier: how many of ``points`` are on the frontier.
        chosen: which of ``points`` is ``plan``.
        torchs: what torch's own partitioner would do; None where that is not known.
        budget_bytes: None for no budget.
        generated_peak_bytes: of the code that runs; None where there is none.
        generated_curve: ``(event, bytes)`` of that code, as ``41-generated-curve.csv`` has it.
        unfollowed: why that code could not be followed.
        truth: what real steps took.
        outside_bytes: what lives outside of the graph the whole step; in every planned peak of ``points``.
    """

    title: str
    problem: Problem
    plan: Plan
    run: Replay
    points: tuple[FrontierPoint, ...]
    on_frontier: int
    chosen: int
    torchs: FrontierPoint | None
    budget_bytes: int | None
    generated_peak_bytes: int | None = None
    generated_curve: tuple[tuple[str, int], ...] = ()
    unfollowed: str = ""
    truth: Truth | None = None
    outside_bytes: int = 0


class _Strings:
    """Texts by number, each once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        return self._numbers.setdefault(text, len(self._numbers))

    def all(self) -> list[str]:
        return list(self._numbers)


def page_data(step: ShownStep) -> dict[str, Any]:
    """All that the page needs, in lists, numbers and texts.

    ``ops`` has a column entry for every op, ``runs`` for every op of forward and backward in the order they run,
    ``buffers`` for every buffer, ``modules`` for every module that something is saved or run again of.
    """
    strings = _Strings()
    run, buffers = step.run, _buffers(step)
    truth = None
    if step.truth is not None:
        truth = asdict(step.truth)
        del truth["calls"]
    return {
        "title": step.title,
        "held": HELD,
        "fates": FATES,
        "forward_length": run.forward_length,
        "input_bytes": step.problem.input_bytes,
        "engine_bytes": step.problem.table.engine_bytes,
        "outside_bytes": step.outside_bytes,
        "budget_bytes": step.budget_bytes,
        "planned_peak_bytes": run.peak_bytes + step.outside_bytes,
        "peak_position": run.peak_position,
        "generated_peak_bytes": step.generated_peak_bytes,
        "generated_curve": _generated(step.generated_curve),
        "unfollowed": step.unfollowed,
        "saved_bytes": run.saved_bytes,
        "saved_count": len(step.plan.saved),
        "recomputed_count": len(step.plan.recomputed(step.problem)),
        "recompute_seconds": run.recompute_seconds,
        "step_seconds": run.seconds,
        "truth": truth,
        "points": [asdict(point) for point in step.points],
        "on_frontier": step.on_frontier,
        "chosen": step.chosen,
        "torchs": None if step.torchs is None else asdict(step.torchs),
        "ops": _ops(step.problem, strings),
        "runs": _runs(step, strings),
        "buffers": buffers,
        "modules": _modules(step, buffers),
        "strings": strings.all(),
    }


def _generated(curve: tuple[tuple[str, int], ...]) -> dict[str, list[int]]:
    """The bytes at every event of each half."""
    return {
        half: [size for event, size in curve if event.startswith(f"{half}:")]
        for half in ("forward", "backward")
    }


def module_of(problem: Problem, op: int) -> str:
    """The path of the module that an op comes from; empty where torch kept none."""
    return next((problem.values[w].module for w in problem.ops[op].writes), "")


def _ops(problem: Problem, strings: _Strings) -> Columns:
    values, storages = problem.values, problem.storages
    found: Columns = defaultdict(list)
    for index, op in enumerate(problem.ops):
        own = dict.fromkeys(values[w].storage for w in op.writes if op.kind is not Kind.VIEW)
        found["name"].append(op.name)
        found["target"].append(strings(op.target))
        found["kind"].append(strings(op.kind.value))
        found["module"].append(strings(module_of(problem, index)))
        found["source"].append(strings(next((values[w].source for w in op.writes), "")))
        found["label"].append(strings(", ".join(values[w].label for w in op.writes)))
        found["bytes"].append(sum(storages[s].size_bytes for s in own))
        found["scratch_bytes"].append(op.scratch_bytes)
    return dict(found)


def _runs(step: ShownStep, strings: _Strings) -> Columns:
    run, sequence = step.run, (*step.plan.forward, *step.plan.backward)
    reads = run_reads(step.problem, step.plan)
    drawn = places(reads, run.forward_length)
    fates = _fates(step)
    return {
        "op": list(sequence),
        "moment": run.moments.tolist(),
        "seconds": [float(f"{seconds:.4g}") for seconds in run.op_seconds.tolist()],
        "reads": reads,
        "x": [x for x, _ in drawn],
        "y": [y for _, y in drawn],
        "fate": [fate for fate, _ in fates],
        "why": [strings(why) for _, why in fates],
    }


def _fates(step: ShownStep) -> list[tuple[int, str]]:
    """For every run the place in :data:`FATES` of what becomes of its result, and why."""
    problem, plan, split = step.problem, step.plan, step.run.forward_length
    number = {key: place for place, (key, _) in enumerate(FATES)}
    recomputed = Counter(plan.recomputed(problem))
    saved = {problem.values[v].producer: v for v in plan.saved if problem.values[v].producer >= 0}
    outputs = {problem.values[problem.base[v]].producer for v in problem.forward_outputs}
    gradients = {problem.values[problem.base[v]].producer for v in problem.backward_outputs}
    exists = set(step.run.firsts.tolist())
    ran: set[int] = set()

    def fate(position: int, index: int) -> tuple[str, str]:
        op = problem.ops[index]
        if op.kind is Kind.VIEW:
            return "view", "a view: no bytes of its own"
        if position >= split and index in ran:
            times = f"{recomputed[index]} times" if recomputed[index] > 1 else "once"
            return "again", f"not saved, so it runs again {times} in the backward"
        if index in saved:
            return "saved", why_saved(problem, saved[index], recomputed.keys())
        if index in recomputed:
            banned = f"; it cannot be saved: {op.unsavable}" if op.unsavable else ""
            return "dropped", f"making it again takes {op.seconds * 1e3:.3f} ms{banned}"
        if index in (outputs if position < split else gradients):
            return ("outputs", "given out") if position < split else ("gradients", "given out")
        if op.writes and position not in exists:
            return "plain", "no bytes of its own: it lives inside the kernels that read it"
        return "plain", "" if position >= split else "not read by the backward"

    found = []
    for position, index in enumerate((*plan.forward, *plan.backward)):
        key, why = fate(position, index)
        found.append((number[key], why))
        ran.add(index)
    return found


def _buffers(step: ShownStep) -> Columns:
    """What is alive from which moment to which, and what for; what lies in another buffer's place ends before it."""
    problem, run, sequence = step.problem, step.run, (*step.plan.forward, *step.plan.backward)
    split, end = run.forward_length, len(run.curve) - 1
    number = {key: place for place, (key, _) in enumerate(HELD)}
    outputs = {problem.values[v].storage for v in problem.forward_outputs}
    gradients = {problem.values[v].storage for v in problem.backward_outputs}
    first_run: dict[int, int] = {}
    for position, index in enumerate(sequence):
        first_run.setdefault(index, position)

    def held(storage: int, first: int, last: int) -> str:
        if storage in outputs and first < split and last == end:
            return "outputs"
        if storage in gradients and last == end:
            return "gradients"
        if first < split <= last:
            return "saved"
        return "again" if first_run[sequence[first]] < first else "temporaries"

    starts, ends = run.moments[run.firsts], run.moments[run.lasts]
    ends[run.overwritten] -= 1
    return {
        "position": run.firsts.tolist(),
        "name": [problem.storages[s].name for s in run.storages.tolist()],
        "bytes": [problem.storages[s].size_bytes for s in run.storages.tolist()],
        "held": [number[held(*lifetime)] for lifetime in run.lifetimes],
        "from": starts.tolist(),
        "to": ends.tolist(),
    }


def _modules(step: ShownStep, buffers: Columns) -> Columns:
    """Bytes saved of each module, and the seconds of its ops that run again."""
    sequence = (*step.plan.forward, *step.plan.backward)
    saved = [key for key, _ in HELD].index("saved")
    rows: defaultdict[str, list[float]] = defaultdict(lambda: [0, 0, 0.0, 0])
    for position, size, held in zip(buffers["position"], buffers["bytes"], buffers["held"], strict=True):
        if held == saved:
            row = rows[module_of(step.problem, sequence[position])]
            row[0] += size
            row[1] += 1
    ran = set(step.plan.forward)
    for position, index in enumerate(step.plan.backward, step.run.forward_length):
        if index in ran and step.problem.ops[index].kind is not Kind.VIEW:
            row = rows[module_of(step.problem, index)]
            row[2] += float(step.run.op_seconds[position])
            row[3] += 1
        ran.add(index)
    columns: Columns = {"module": list(rows)}
    for place, name in enumerate(("saved_bytes", "saved_count", "recompute_seconds", "recomputed_count")):
        columns[name] = [row[place] for row in rows.values()]
    return columns
