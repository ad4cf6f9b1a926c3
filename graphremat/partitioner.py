"""Our partitioner: from a joint graph to a forward and a backward graph whose step stays under the budget.

:func:`partition` is the whole pipeline. It relies on Inductor's hook for custom partitioners, which is called with the
joint graph after Inductor's own joint-graph passes (random ops are seeds and lookups there), and on ``uuid()`` being
part of the keys of torch's caches.
"""

import copy
import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.fx as fx

from graphremat import report as reporting
from graphremat.choose import Choice, choose
from graphremat.device_memory import free_bytes
from graphremat.dumps import Dumps
from graphremat.errors import BudgetInfeasible, PlanningError
from graphremat.fence import Fence, make_fence, standing
from graphremat.lowering import generate_step_code, output_names
from graphremat.options import Options
from graphremat.passes import torch_private as private
from graphremat.passes.build import Index, build_problem
from graphremat.passes.classify import JointGraph, read_joint_graph
from graphremat.passes.devices import Device, find_device
from graphremat.passes.measure_device import device_of
from graphremat.passes.plan import Plan
from graphremat.passes.planner import Candidate, Frontier, judge, plan_frontier
from graphremat.passes.problem import Problem
from graphremat.passes.schedule import ScheduleError, schedule
from graphremat.passes.split import recomputed_names, split_joint_graph
from graphremat.passes.verify import check_split
from graphremat.truth import StepTruth, dry_run_graphs, step_truth
from graphremat.units import format_bytes

log = logging.getLogger("graphremat")

ROUNDING_BYTES = {"cuda": 512}
"""Granularity of the allocator by device: CUDA's caching allocator hands out blocks of 512 bytes."""


@dataclass(frozen=True, eq=False)
class Lowered:
    """A candidate acted on: its graphs, its fence, and the dry run of what they become."""

    forward: fx.GraphModule
    backward: fx.GraphModule
    fence: Fence | None
    truth: StepTruth
    wrappers: tuple[str, str] | None


class Partitioner(private.CustomPartitionerFn):  # type: ignore[misc]
    """Plans one compilation. ``fence`` is the one to put up while its backward is compiled."""

    def __init__(self, options: Options, num_user_outputs: int) -> None:
        self.options = options
        self.num_user_outputs = num_user_outputs
        self.fence: Fence | None = None

    def __call__(
        self, gm: fx.GraphModule, joint_inputs: Sequence[object], **kwargs: Any
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        graph = reporting.next_graph()
        lowered = partition(
            gm,
            joint_inputs,
            options=self.options,
            num_user_outputs=self.num_user_outputs,
            num_forward_outputs=kwargs["num_fwd_outputs"],
            static_lifetime_input_indices=kwargs.get("static_lifetime_input_indices"),
            dumps=Dumps(self.options.dump_dir, graph),
            graph=graph,
        )
        self.fence = lowered.fence
        return lowered.forward, lowered.backward

    def uuid(self) -> str | None:
        """Covers our sources, the options and the prices; None (no caching) where the budget is what memory is left."""
        if self.options.memory_budget == "auto":
            return None
        return (
            "graphremat-"
            + hashlib.sha256(
                "\n".join((source_hash(), self.options.cache_key(), _prices_key(self.options))).encode()
            ).hexdigest()
        )


@cache
def source_hash() -> str:
    """A hash of every source file of this package."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _prices_key(options: Options) -> str:
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    return prices(options, torch.device(kind)).to_json()


def prices(options: Options, device: torch.device) -> Device:
    """The device whose prices hold: the one named in the options, or the one the graph is on."""
    return find_device(options.device_costs) if options.device_costs else device_of(device)


def partition(
    gm: fx.GraphModule,
    joint_inputs: Sequence[object],
    *,
    options: Options,
    num_user_outputs: int,
    num_forward_outputs: int,
    static_lifetime_input_indices: list[int] | None,
    dumps: Dumps,
    graph: int,
) -> Lowered:
    """The pipeline: classify, describe, plan, lower and look, choose, hand over.

    Raises:
        BudgetInfeasible: no plan that was found fits the budget.
        PlanningError: a stage failed; the message names it, and where the dumps are.
    """
    started = time.perf_counter()
    dumps.write("00-joint.py", lambda: gm.print_readable(print_output=False))
    with _Stage("classify", dumps):
        joint = read_joint_graph(
            gm,
            num_forward_outputs=num_forward_outputs,
            static_lifetime_input_indices=static_lifetime_input_indices,
            honour_annotations=options.annotations == "honour",
        )
    torchs = _torchs_graphs(joint, joint_inputs, static_lifetime_input_indices)
    if not joint.differentiates:
        return _passed_through(*torchs)
    device = graph_device(gm)
    with _Stage("build the problem", dumps):
        problem, index = build_problem(
            joint, prices(options, device), fuses=options.lowering == "inductor", size_hint=private.size_hint
        )
        dumps.write("10-problem.json", problem.to_json)
    with _Stage("plan", dumps):
        torchs_plan = _torchs_plan(problem, saved_by(torchs[1], joint, problem, index))
        found = plan_frontier(problem, most=options.max_plans, seeds=[torchs_plan] if torchs_plan else [])
        frontier = _with_torchs_first(found, judge(problem, torchs_plan)) if torchs_plan else found
        dumps.write("20-frontier.md", lambda: frontier_table(frontier))
    lowering = _Lowering(options, joint, problem, index, num_user_outputs, torchs if torchs_plan else None)
    with _Stage("lower", dumps):
        budget = _budget_in_bytes(options, device, problem)
        choice = choose(
            [c.replay.peak_bytes for c in frontier.candidates],
            lambda place: lowering.truth(place, frontier.candidates[place]).peak_bytes,
            budget,
            fixed_bytes=problem.input_bytes,
            most=options.max_lowerings,
        )
        chosen = lowering.done[choice.place]
    if not choice.fits:
        _infeasible(options, problem, choice, chosen.truth)
    candidate = frontier.candidates[choice.place]
    if options.verify and choice.place > 0:
        with _Stage("verify", dumps):
            check_split(problem, index, candidate.plan, chosen.forward, chosen.backward, joint)
    made = _report(options, problem, frontier, choice, chosen, graph, time.perf_counter() - started, dumps)
    _dump(dumps, problem, candidate, chosen, made)
    reporting.record(made)
    log.info("%s", made)
    return chosen


def _torchs_graphs(
    joint: JointGraph, joint_inputs: Sequence[object], static_indices: list[int] | None
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """What torch's own partitioner makes of the graph: the reference for speed and for the peak with no budget.

    It works on a copy, since it rewrites its argument.
    """
    module = fx.GraphModule(joint.module, copy.deepcopy(joint.module.graph))
    module.meta.update(joint.module.meta)
    forward, backward = private.torch_partition(
        module,
        joint_inputs,
        num_fwd_outputs=joint.num_forward_outputs,
        static_lifetime_input_indices=static_indices,
    )
    return forward, backward


def _passed_through(forward: fx.GraphModule, backward: fx.GraphModule) -> Lowered:
    nothing = StepTruth(0, 0, 0, 0, 0, 0, "nothing to plan", (), (), (), ())
    return Lowered(forward, backward, None, nothing, None)


def graph_device(gm: fx.GraphModule) -> torch.device:
    """The device whose memory counts: the accelerator if any tensor of the graph is on one, else the CPU."""
    devices = {
        node.meta["val"].device for node in gm.graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)
    }
    accelerators = sorted((d for d in devices if d.type not in ("cpu", "meta")), key=str)
    return accelerators[0] if accelerators else torch.device("cpu")


def saved_by(backward: fx.GraphModule, joint: JointGraph, problem: Problem, index: Index) -> list[int]:
    """The values (not views) behind a backward graph's placeholders that are made by the forward."""
    by_name = {node.name: node for node in joint.module.graph.nodes}
    found = []
    for node in backward.graph.find_nodes(op="placeholder"):
        origin = by_name.get(node.name)
        value = index.value_of.get(origin) if origin is not None else None
        if value is not None and problem.values[problem.base[value]].producer >= 0:
            found.append(problem.base[value])
    return found


def _torchs_plan(problem: Problem, saved: list[int]) -> Plan | None:
    """Torch's choice of saved values as a plan; None where it recomputes what must not be (an input that the forward
    overwrites is read again, say), so that its graphs cannot be handed on."""
    try:
        return schedule(problem, saved, "torch's own partitioner")
    except ScheduleError as error:
        log.info("torch's own partition is not used, since its backward would be wrong: %s", error)
        return None


def _with_torchs_first(found: Frontier, torchs: Candidate) -> Frontier:
    """The frontier with torch's plan as the fastest, and nothing that is not below its peak behind it."""
    below = tuple(c for c in found.candidates if c.replay.peak_bytes < torchs.replay.peak_bytes)
    return Frontier((torchs, *below))


def _budget_in_bytes(options: Options, device: torch.device, problem: Problem) -> int | float | None:
    budget = options.memory_budget
    if budget == "auto":
        return max(0, free_bytes(device) + problem.input_bytes - options.memory_reserve)
    if isinstance(budget, int):
        return max(0, budget - options.memory_reserve)
    assert not isinstance(budget, str)
    return budget


@dataclass(eq=False)
class _Lowering:
    """Acts on candidates and keeps what came of them."""

    options: Options
    joint: JointGraph
    problem: Problem
    index: Index
    num_user_outputs: int
    torchs: tuple[fx.GraphModule, fx.GraphModule] | None
    done: dict[int, Lowered] = field(default_factory=dict)

    def truth(self, place: int, candidate: Candidate) -> StepTruth:
        """The dry run of the candidate; the first one is torch's own partition, handed on as torch made it."""
        fence = None
        if place == 0 and self.torchs is not None:
            forward, backward = self.torchs
        else:
            forward, backward = split_joint_graph(self.joint, self.problem, self.index, candidate.plan)
            again = recomputed_names(self.problem, self.index, candidate.plan)
            fence = make_fence(backward, again, self.index.kernels) if self.options.fence else None
        self.done[place] = lower(
            forward,
            backward,
            fence,
            options=self.options,
            num_user_outputs=self.num_user_outputs,
            num_forward_outputs=self.joint.num_forward_outputs,
        )
        return self.done[place].truth


def lower(
    forward: fx.GraphModule,
    backward: fx.GraphModule,
    fence: Fence | None,
    *,
    options: Options,
    num_user_outputs: int,
    num_forward_outputs: int,
) -> Lowered:
    """Generate the code of both graphs (Inductor) or take them as they are (``aot_eager``), and follow its bytes."""
    mutated = private.first_user_output(forward.graph)
    outputs = num_forward_outputs - mutated
    rounding = ROUNDING_BYTES.get(graph_device(forward).type, 1)
    if options.lowering == "aot_eager":
        truth = dry_run_graphs(
            forward, backward, num_user_outputs=outputs, num_mutated_inputs=mutated, round_to_bytes=rounding
        )
        return Lowered(forward, backward, None, truth, None)
    with standing(fence):
        codes = generate_step_code(
            forward, backward, user_visible_outputs=num_user_outputs, num_forward_outputs=num_forward_outputs
        )
    truth = step_truth(
        *codes,
        forward_outputs=output_names(forward),
        num_user_outputs=outputs,
        num_mutated_inputs=mutated,
        round_to_bytes=rounding,
    )
    return Lowered(forward, backward, fence, truth, (codes[0].source, codes[1].source))


def _infeasible(options: Options, problem: Problem, choice: Choice, truth: StepTruth) -> None:
    assert choice.budget_bytes is not None
    holders = "\n".join(f"  {format_bytes(size):>12}  {name}" for name, size in truth.alive_at_peak[:8])
    fixed = problem.input_bytes + problem.gradient_bytes
    if fixed >= choice.budget_bytes:
        help_words = (
            f"inputs and gradients alone take {format_bytes(fixed)}, which no plan changes: a smaller or sharded "
            "model, frozen parameters or a lower precision would help, a smaller batch hardly"
        )
    else:
        help_words = "a smaller batch or sequence, or a lower precision, would help"
    message = (
        f"no plan keeps the step under {format_bytes(choice.budget_bytes)}: the lowest peak found is "
        f"{format_bytes(truth.peak_bytes)}, at {truth.peak_at}\n"
        f"({format_bytes(problem.input_bytes)} of it are parameters, buffers and inputs, up to "
        f"{format_bytes(problem.gradient_bytes)} gradients). The largest values alive at that moment:\n{holders}\n"
        f"What would help: {help_words}. on_infeasible='min_peak' takes the lowest peak."
    )
    if options.on_infeasible == "error":
        raise BudgetInfeasible(
            message,
            budget_bytes=choice.budget_bytes,
            lowest_peak_bytes=truth.peak_bytes,
            holders=truth.alive_at_peak[:8],
        )
    log.warning("on_infeasible='min_peak': %s", message)


def _report(
    options: Options,
    problem: Problem,
    frontier: Frontier,
    choice: Choice,
    chosen: Lowered,
    graph: int,
    plan_seconds: float,
    dumps: Dumps,
) -> reporting.Report:
    candidate = frontier.candidates[choice.place]
    return reporting.Report(
        graph=graph,
        lowering=options.lowering,
        budget_bytes=choice.budget_bytes,
        input_bytes=chosen.truth.input_bytes,
        gradient_bytes=chosen.truth.gradient_bytes,
        planned_peak_bytes=candidate.replay.peak_bytes,
        generated_peak_bytes=chosen.truth.peak_bytes,
        lowest_peak_bytes=choice.lowest_bytes,
        fastest_peak_bytes=choice.fastest_bytes,
        saved_bytes=chosen.truth.saved_bytes,
        saved_count=len(candidate.plan.saved),
        recomputed_ops=len(candidate.plan.recomputed(problem)),
        recomputed_seconds=candidate.replay.recompute_seconds,
        recomputed_flops=candidate.replay.recompute_flops,
        added_seconds=max(0.0, candidate.replay.seconds - frontier.candidates[0].replay.seconds),
        step_seconds=candidate.replay.seconds,
        plan_seconds=plan_seconds,
        peak_at=chosen.truth.peak_at,
        holders=chosen.truth.alive_at_peak[:16],
        frontier=tuple(
            reporting.FrontierPoint(
                c.replay.peak_bytes,
                choice.true_bytes.get(place),
                c.replay.recompute_seconds,
                c.replay.seconds,
                c.replay.saved_bytes,
                c.plan.origin,
            )
            for place, c in enumerate(frontier.candidates)
        ),
        chosen=choice.place,
        dump_dir=None if dumps.folder is None else str(dumps.folder),
    )


def frontier_table(frontier: Frontier) -> str:
    """``20-frontier.md``: every plan of the frontier, as replayed."""
    lines = ["| place | peak bytes | saved bytes | recomputed ms | step ms | origin |", "| --- " * 6 + "|"]
    for place, c in enumerate(frontier.candidates):
        r = c.replay
        lines.append(
            f"| {place} | {r.peak_bytes:,} | {r.saved_bytes:,} | {r.recompute_seconds * 1e3:.3f} "
            f"| {r.seconds * 1e3:.3f} | {c.plan.origin} |"
        )
    return "\n".join(lines) + "\n"


def _dump(
    dumps: Dumps, problem: Problem, candidate: Candidate, chosen: Lowered, made: reporting.Report
) -> None:
    plan, run = candidate.plan, candidate.replay
    names = [problem.ops[i].name for i in plan.forward + plan.backward]

    def curve() -> str:
        rows = (
            f"{p},{'forward' if p < run.forward_length else 'backward'},{n},{b}"
            for p, (n, b) in enumerate(zip(names, run.curve.tolist(), strict=True))
        )
        return "\n".join(("position,phase,op,bytes", *rows)) + "\n"

    def true_curve() -> str:
        return "\n".join(("event,bytes", *(f"{label},{size}" for label, size in chosen.truth.curve))) + "\n"

    dumps.write("30-plan.json", lambda: plan.to_json(problem))
    dumps.write("40-curve.csv", curve)
    dumps.write("41-generated-curve.csv", true_curve)
    dumps.write("50-forward.py", lambda: chosen.forward.print_readable(print_output=False))
    dumps.write("51-backward.py", lambda: chosen.backward.print_readable(print_output=False))
    if chosen.wrappers is not None:
        forward, backward = chosen.wrappers
        dumps.write("60-forward-code.py", lambda: forward)
        dumps.write("61-backward-code.py", lambda: backward)
    dumps.write("saved.md", lambda: reporting.saved_table(problem, plan, run))
    dumps.write("report.json", made.to_json)
    dumps.write("report.txt", lambda: str(made) + "\n")


class _Stage:
    """Names the stage and the dumps in what a stage raises about a graph."""

    def __init__(self, name: str, dumps: Dumps) -> None:
        self._name = name
        self._dumps = dumps

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, ValueError):
            raise PlanningError(f"stage '{self._name}': {error}; dumps: {self._dumps}") from error
