"""Our partitioner: from a joint graph to a forward and a backward graph whose step stays under the budget.

:func:`partition` is the whole pipeline. It relies on Inductor's hook for custom partitioners, which is called with the
joint graph after Inductor's own joint-graph passes (random ops are seeds and lookups there), and on ``uuid()`` being
part of the keys of torch's caches.
"""

import hashlib
import logging
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.fx as fx

from graphremat import passes
from graphremat import report as reporting
from graphremat.account import cut_table, frontier_table, make_report, over_budget, write_dumps
from graphremat.candidates import Lowered, Lowering, generate, graph_device
from graphremat.choose import Aim, Choice
from graphremat.device_memory import free_bytes
from graphremat.dumps import Dumps
from graphremat.errors import BudgetInfeasible, DumpError, OptionError, PlanningError, VerificationError
from graphremat.fence import Fence
from graphremat.kernel_clock import Code
from graphremat.options import Options
from graphremat.passes import torch_private as private
from graphremat.passes.attribute import attribute, corrected
from graphremat.passes.build import build_problem
from graphremat.passes.classify import read_joint_graph
from graphremat.passes.devices import Device, find_device
from graphremat.passes.frontier import Candidate
from graphremat.passes.hints import assuming_sizes, default_size_hint
from graphremat.passes.measure_device import device_of
from graphremat.passes.measure_ops import MeasuredOps, measure_ops
from graphremat.passes.plan import Plan
from graphremat.passes.problem import Problem
from graphremat.passes.replay import replay
from graphremat.passes.verify import check_aliases, check_split
from graphremat.plans import chosen_plan, plan_behind_torchs, saved_by, torchs_graphs, torchs_plan_of
from graphremat.region import Compiled
from graphremat.share import Alternative
from graphremat.truth import StepTruth

log = logging.getLogger("graphremat")


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
    for folder in (Path(str(reporting.__file__)).parent, Path(str(passes.__file__)).parent):
        for path in sorted({*folder.glob("*.py"), *folder.glob("torch_private/*.py")}):
            digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def _prices_key(options: Options) -> str:
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    return prices(options, torch.device(kind)).to_json()


def check_operators(names: Sequence[str]) -> None:
    """Raises OptionError for an operator that nobody has registered: a misspelt one would be saved all the same."""
    for name in names:
        namespace, operator = name.split("::")
        if not hasattr(getattr(torch.ops, namespace), operator):
            raise OptionError(
                f"repeatable: torch knows no operator {name!r}; it must be registered before a step is traced"
            )


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
            repeatable=options.repeatable,
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
    looks_once = not isinstance(budget, int)  # the first code is nearly always the one to compile
    if looks_once:
        lowering.on_final_code = private.start_compiling
    with _Stage("lower", dumps):
        choice = chosen_plan(frontier, lowering, budget, aim)
        chosen = lowering.done[choice.place]
    if not choice.fits:
        _not_fitting(options, problem, choice, chosen.truth, aim)
    is_compiling = looks_once and choice.place == next(iter(lowering.done))
    if not is_compiling and chosen.wrappers and all(chosen.generated):
        for wrapper in chosen.wrappers:
            private.start_compiling(wrapper)
    plans = (*frontier.candidates, *frontier.frugal)
    candidate = plans[choice.place]
    if options.verify and (choice.place > 0 or torchs_plan is None):
        with _Stage("verify", dumps):
            check_aliases(problem, index)
            check_split(index, candidate.plan, chosen.forward, chosen.backward, joint)
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


def _not_fitting(
    options: Options, problem: Problem, choice: Choice, truth: StepTruth, aim: Aim | None
) -> None:
    """The lowest plan is over the budget. Where it is only over its share of one, that is for the ledger to mend."""
    if aim is None:
        over_budget(options, problem, choice, truth)
    elif aim.most_bytes is not None and truth.peak_bytes > aim.most_bytes:
        over_budget(options, problem, replace(choice, budget_bytes=aim.most_bytes), truth)


def _passed_through(forward: fx.GraphModule, backward: fx.GraphModule) -> Lowered:
    nothing = StepTruth(0, 0, 0, 0, 0, 0, "nothing to plan", (), (), (), ())
    return Lowered(forward, backward, None, nothing, None, lambda: nothing)


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
