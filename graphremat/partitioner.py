"""Our partitioner: from a joint graph to a forward and a backward graph whose step stays under the budget.

:func:`partition` is the whole pipeline. It relies on Inductor's hook for custom partitioners, which is called with the
joint graph after Inductor's own joint-graph passes (random ops are seeds and lookups there), and on ``uuid()`` being
part of the keys of torch's caches.
"""

import copy
import hashlib
import logging
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.fx as fx

from graphremat import report as reporting
from graphremat.account import cut_table, frontier_table, make_report, over_budget, write_dumps
from graphremat.candidates import Lowered, Lowering, generate, graph_device
from graphremat.choose import Aim, Choice, choose
from graphremat.device_memory import free_bytes
from graphremat.dumps import Dumps
from graphremat.errors import BudgetInfeasible, DumpError, OptionError, PlanningError, VerificationError
from graphremat.fence import Fence
from graphremat.kernel_clock import Code
from graphremat.options import Options
from graphremat.passes import torch_private as private
from graphremat.passes.attribute import attribute, corrected
from graphremat.passes.build import Index, build_problem
from graphremat.passes.classify import JointGraph, read_joint_graph
from graphremat.passes.devices import Device, find_device
from graphremat.passes.hints import assuming_sizes, default_size_hint
from graphremat.passes.measure_device import device_of
from graphremat.passes.measure_ops import MeasuredOps, measure_ops
from graphremat.passes.plan import Plan, check_plan
from graphremat.passes.planner import Candidate, Frontier, judge, plan_frontier, with_exact
from graphremat.passes.problem import Problem
from graphremat.passes.replay import replay
from graphremat.passes.schedule import schedule
from graphremat.passes.verify import check_aliases, check_split
from graphremat.region import Compiled
from graphremat.share import Alternative
from graphremat.truth import StepTruth

log = logging.getLogger("graphremat")

WORTH_IT = 0.03
"""Another plan than torch's is taken where there is no budget if it gains more than this share of peak or step."""

EFFORT_WITHOUT_BUDGET = 0.1
"""Where there is no budget, other plans than the fastest are for the report alone."""


class Partitioner(private.CustomPartitionerFn):  # type: ignore[misc]
    """Plans one compilation. ``fence`` is the one to put up while its backward is compiled; ``report`` is None where
    nothing was planned: torch took the code from a cache, or there is no backward."""

    def __init__(self, options: Options, num_user_outputs: int, aim: Aim | None = None) -> None:
        self.options = options
        self.num_user_outputs = num_user_outputs
        self.aim = aim
        self.fence: Fence | None = None
        self.reuses_buffers = True
        self.report: reporting.Report | None = None
        self.codes: list[Code | None] = []
        """Of the forward and, once it is compiled, of the backward."""
        self._result: Partition | None = None
        self._generated: list[private.LoweredGraph | None] = [None, None]

    def take_generated(self, *, is_backward: bool) -> private.LoweredGraph | None:
        """What the code of a graph was generated from while plans were looked at; once, since it is large."""
        found, self._generated[is_backward] = self._generated[is_backward], None
        return found

    def __getstate__(self) -> dict[str, object]:
        """For torch's caches, which copy and pickle what patches Inductor's configuration: what decides the code."""
        return {"options": self.options, "num_user_outputs": self.num_user_outputs, "aim": self.aim}

    def compiled(self, run: Callable[..., Any]) -> Compiled:
        """What was compiled to ``run``, and what is known of it; torch keeps the partitioner, which forgets it."""
        made, self._result = self._result, None
        if made is None or made.problem is None or made.plan is None:
            return Compiled(run, self.report)
        found = Compiled(run, self.report, plan=made.plan, codes=self.codes)
        if self.options.profile:
            found = replace(found, attribute=partial(attribute, made.problem, made.plan))
        if made.problem.symbols:
            found = replace(found, peak_at=made.peak_at, alternatives_at=made.alternatives_at)
        return found

    def __call__(
        self, gm: fx.GraphModule, joint_inputs: Sequence[object], **kwargs: Any
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        graph = reporting.next_graph()
        try:
            with assuming_sizes(dict(self.aim.sizes) if self.aim else {}):
                self._result = partition(
                    gm,
                    joint_inputs,
                    options=self.options,
                    aim=self.aim,
                    num_user_outputs=self.num_user_outputs,
                    num_forward_outputs=kwargs["num_fwd_outputs"],
                    static_lifetime_input_indices=kwargs.get("static_lifetime_input_indices"),
                    dumps=Dumps.of_graph(self.options.dump_dir, graph),
                    graph=graph,
                )
        except (BudgetInfeasible, OptionError, DumpError):
            raise
        except Exception as error:
            if self.options.on_failure == "error":
                raise
            return self._without_recomputation(gm, joint_inputs, error, **kwargs)
        self.report, lowered = self._result.report, self._result.lowered
        self.fence, self.reuses_buffers = lowered.fence, lowered.reuses_buffers
        self._generated = list(lowered.generated)
        self._result = replace(self._result, lowered=replace(lowered, generated=(None, None)))
        return lowered.forward, lowered.backward

    def _without_recomputation(
        self, gm: fx.GraphModule, joint_inputs: Sequence[object], failure: Exception, **kwargs: Any
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        """What torch makes of the graph if everything is saved, since our planning failed. Training goes on as with
        plain ``torch.compile``, unless that breaks a budget in bytes.

        Raises:
            Exception: the failure, where it is not known that the budget is kept.
        """
        forward, backward = private.default_partition(
            gm,
            joint_inputs,
            num_fwd_outputs=kwargs["num_fwd_outputs"],
            static_lifetime_input_indices=kwargs.get("static_lifetime_input_indices"),
        )
        budget = self.options.shared_bytes
        if budget is not None:
            try:
                follow, _ = generate(
                    self.options, forward, backward, None, kwargs["num_fwd_outputs"], self.num_user_outputs
                )
                kept = follow().peak_bytes <= budget
            except Exception as error:
                raise failure from error
            if not kept and self.options.on_infeasible == "error":
                raise failure
        warnings.warn(
            f"graphremat could not plan a graph, which runs without recomputation instead. Please report it: "
            f"{type(failure).__name__}: {failure} (on_failure='error' raises it)",
            stacklevel=2,
        )
        log.warning("planning failed", exc_info=failure)
        return forward, backward

    def uuid(self) -> str | None:
        """Covers our sources, the options and the prices; None (no caching) where the budget is what memory is left."""
        if self.options.memory_budget == "auto":
            return None
        return (
            "graphremat-"
            + hashlib.sha256(
                "\n".join(
                    (source_hash(), self.options.cache_key(), _prices_key(self.options), str(self.aim))
                ).encode()
            ).hexdigest()
        )


@dataclass(frozen=True, eq=False)
class Partition:
    """What came of a joint graph; ``report``, ``problem`` and ``plans`` are empty if it has no backward."""

    lowered: Lowered
    report: reporting.Report | None = None
    problem: Problem | None = None
    plans: tuple[Candidate, ...] = ()
    plan: Plan | None = None

    def peak_at(self, sizes: Mapping[str, int]) -> int:
        """The peak of the code for other symbolic sizes, in bytes: followed, or replayed where it cannot be."""
        assert self.report is not None
        if not self.report.unfollowed:
            try:
                with assuming_sizes(sizes):
                    return self.lowered.follow().peak_bytes
            except Exception as error:
                log.info("for the sizes %s the peak is the planner's: %s", dict(sizes), error)
                log.debug("following the code failed", exc_info=error)
        return self.alternatives_at(sizes)[self.report.chosen].peak_bytes

    def alternatives_at(self, sizes: Mapping[str, int]) -> list[Alternative]:
        """All plans, replayed with other symbolic sizes."""
        assert self.problem is not None
        problem = self.problem.at_sizes(sizes)
        runs = ((c.replay.seconds, replay(problem, c.plan)) for c in self.plans)
        return [Alternative(run.peak_bytes, run.saved_bytes, seconds) for seconds, run in runs]


@cache
def source_hash() -> str:
    """A hash of every source file of this package and of its passes, wherever an installation has put them."""
    digest = hashlib.sha256()
    for folder in dict.fromkeys(Path(str(module.__file__)).parent for module in (reporting, private)):
        for path in sorted(folder.glob("*.py")):
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
    aim: Aim | None,
    num_user_outputs: int,
    num_forward_outputs: int,
    static_lifetime_input_indices: list[int] | None,
    dumps: Dumps,
    graph: int,
) -> Partition:
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
    torchs = torchs_graphs(joint, joint_inputs, static_lifetime_input_indices)
    if not joint.differentiates:
        return Partition(_passed_through(*torchs))
    device = graph_device(gm)
    with _Stage("build the problem", dumps):
        rates = prices(options, device)
        timed = (
            measure_ops(joint.module.graph, rates, device) if options.costs == "measure" else MeasuredOps()
        )
        problem, index = build_problem(
            joint,
            rates,
            fuses=options.lowering == "inductor",
            size_hint=default_size_hint,
            measured=timed.seconds,
        )
        if aim is not None and aim.ratios:
            problem = corrected(problem, dict(aim.ratios))
        dumps.write("10-problem.json", problem.to_json)
    with _Stage("plan", dumps):
        torchs_plan = torchs_plan_of(problem, saved_by(torchs[1], joint, problem, index))
        budget = _budget_in_bytes(options, device, problem) if aim is None else aim.peak_bytes
        frontier = plan_behind_torchs(options, problem, budget, torchs_plan)
        dumps.write("15-cut.md", lambda: cut_table(problem))
        dumps.write("20-frontier.md", lambda: frontier_table(frontier))
    lowering = Lowering(options, joint, problem, index, num_user_outputs, torchs if torchs_plan else None)
    with _Stage("lower", dumps):
        choice = _chosen(frontier, lowering, budget, aim)
        chosen = lowering.done[choice.place]
    if not choice.fits:
        _not_fitting(options, problem, choice, chosen.truth, aim)
    plans = (*frontier.candidates, *frontier.frugal)
    candidate = plans[choice.place]
    if options.verify and (choice.place > 0 or torchs_plan is None):
        with _Stage("verify", dumps):
            check_aliases(problem, index)
            check_split(problem, index, candidate.plan, chosen.forward, chosen.backward, joint)
    made = make_report(
        options,
        problem,
        frontier,
        choice,
        chosen,
        graph,
        time.perf_counter() - started,
        dumps,
        aim,
        index.sizes,
        timed,
    )
    write_dumps(dumps, problem, candidate, chosen, made)
    reporting.record(made)
    log.info("%s", made)
    private.trace_artifact("graphremat_report", lambda: str(made))
    private.trace_artifact("graphremat_frontier", lambda: frontier_table(frontier))
    return Partition(chosen, made, problem, plans, candidate.plan)


def _chosen(frontier: Frontier, lowering: Lowering, budget: int | float | None, aim: Aim | None) -> Choice:
    """The fastest plan under the budget; where the aim bounds what is saved, of those that save no more.

    Places of the frugal plans follow on those of the frontier.
    """
    plans = (*frontier.candidates, *frontier.frugal)
    if aim is not None and aim.place is not None:
        place = min(aim.place, len(frontier.candidates) - 1)
        peak = lowering.truth(place, plans[place], reuse_under=aim.peak_bytes).peak_bytes
        return Choice(place, aim.peak_bytes, peak <= aim.peak_bytes, {place: peak})
    fastest = fastest_place(frontier)
    places = list(range(fastest, len(frontier.candidates)))
    if aim is not None and aim.saved_bytes is not None:
        places = _saving_at_most(aim.saved_bytes, plans)

    @cache
    def truth(k: int) -> int:
        under: float | None = None
        if places[k] == fastest:
            under = budget if isinstance(budget, int) else math.inf if len(places) > 1 else 0
        return lowering.truth(places[k], plans[places[k]], reuse_under=under).peak_bytes

    choose_under = partial(
        choose,
        [plans[k].replay.peak_bytes for k in places],
        truth,
        fixed_bytes=lowering.problem.input_bytes,
        most=lowering.options.max_lowerings,
    )
    choice = choose_under(budget)
    if budget is None and fastest > 0 and truth(choice.place) > plans[0].replay.peak_bytes * (1 - WORTH_IT):
        torchs_bytes = lowering.truth(0, plans[0], reuse_under=math.inf).peak_bytes
        if truth(choice.place) > torchs_bytes:  # faster than torch's, but not at a higher peak
            choice = replace(choose_under(torchs_bytes), budget_bytes=None)
            if not choice.fits:
                return Choice(0, None, True, {0: torchs_bytes})
    true_bytes = {places[k]: size for k, size in choice.true_bytes.items()}
    return replace(choice, place=places[choice.place], true_bytes=true_bytes)


def _saving_at_most(most_bytes: int, plans: Sequence[Candidate]) -> list[int]:
    """Places of the plans that save no more, each with a lower peak than all that are faster; if there is none, of the
    one that saves least."""
    saved = [c.replay.saved_bytes for c in plans]
    allowed = [k for k in range(len(plans)) if saved[k] <= max(most_bytes, min(saved))]
    found: list[int] = []
    for k in sorted(allowed, key=lambda k: (plans[k].replay.seconds, plans[k].replay.peak_bytes)):
        if not found or plans[k].replay.peak_bytes < plans[found[-1]].replay.peak_bytes:
            found.append(k)
    return found


def _not_fitting(
    options: Options, problem: Problem, choice: Choice, truth: StepTruth, aim: Aim | None
) -> None:
    """The lowest plan is over the budget. Where it is only over its share of one, that is for the ledger to mend."""
    if aim is None:
        over_budget(options, problem, choice, truth)
    elif aim.most_bytes is not None and truth.peak_bytes > aim.most_bytes:
        over_budget(options, problem, replace(choice, budget_bytes=aim.most_bytes), truth)


def torchs_graphs(
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
    return Lowered(forward, backward, None, nothing, None, lambda: nothing)


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


def torchs_plan_of(problem: Problem, saved: list[int]) -> Plan | None:
    """Torch's choice of saved values as a plan; None where it recomputes what must not be (an input that the forward
    overwrites is read again, say) or saves what must not be, so that its graphs cannot be handed on."""
    try:
        plan = schedule(problem, saved, reporting.TORCHS_PLAN)
        check_plan(problem, plan)
        return plan
    except ValueError as error:
        log.info("torch's own partition is not used, since its backward would be wrong: %s", error)
        return None


def plan_behind_torchs(
    options: Options, problem: Problem, budget: int | float | None, torchs_plan: Plan | None
) -> Frontier:
    """The frontier of our plans, behind torch's if that can be handed on.

    No plan lets a saved value go and makes it again: the extraction gives the backward a value by one name, saved or
    made.
    """
    found = plan_frontier(
        problem,
        most=options.max_plans,
        seeds=[torchs_plan] if torchs_plan else [],
        most_recomputations=options.most_recomputations,
        time_limit_seconds=options.planner_seconds or math.inf,
        remake_saved=False,
        effort=1.0 if budget is not None else EFFORT_WITHOUT_BUDGET,
    )
    if options.exact_seconds is not None and budget is not None:
        found = with_exact(
            problem,
            found,
            found.at_fraction(budget) if isinstance(budget, float) else budget,
            time_limit_seconds=options.exact_seconds,
            most=options.max_plans,
            most_recomputations=options.most_recomputations,
            remake_saved=False,
        )
    return _with_torchs_first(found, judge(problem, torchs_plan)) if torchs_plan else found


def _with_torchs_first(found: Frontier, torchs: Candidate) -> Frontier:
    """The frontier with torch's plan as the fastest, and nothing that is not below its peak behind it."""
    below = tuple(c for c in found.candidates if c.replay.peak_bytes < torchs.replay.peak_bytes)
    return replace(found, candidates=(torchs, *below))


def fastest_place(frontier: Frontier) -> int:
    """The place of the plan to take where nothing limits it: torch's own, or the first behind it whose gain in seconds
    is more than what a replay can be off, or whose gain in bytes is, at no more seconds and no more recomputation."""
    first, *others = (c.replay for c in frontier.candidates)
    for place, run in enumerate(others, start=1):
        if run.seconds > first.seconds:
            break
        if run.seconds < first.seconds * (1 - WORTH_IT):
            return place
        recomputes_no_more = run.recompute_seconds <= first.recompute_seconds
        if recomputes_no_more and run.peak_bytes < first.peak_bytes * (1 - WORTH_IT):
            return place
    return 0


def _budget_in_bytes(options: Options, device: torch.device, problem: Problem) -> int | float | None:
    budget = options.memory_budget
    if budget == "auto":
        return max(0, free_bytes(device) + problem.input_bytes - options.memory_reserve)
    assert not isinstance(budget, str)
    return options.shared_bytes if isinstance(budget, int) else budget


class _Stage:
    """Names the stage and the dumps in what a stage raises about a graph."""

    def __init__(self, name: str, dumps: Dumps) -> None:
        self._name = name
        self._dumps = dumps

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, ValueError):
            kind_of_ours = VerificationError if self._name == "verify" else PlanningError
            raise kind_of_ours(f"stage '{self._name}': {error}; dumps: {self._dumps}") from error
