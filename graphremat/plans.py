"""Which plans there are for a joint graph, torch's own among them, and which of them to take under a budget."""

import copy
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial

import torch.fx as fx

from graphremat.candidates import Lowering
from graphremat.choose import Aim, Choice, choose
from graphremat.options import Options
from graphremat.passes import torch_private as private
from graphremat.passes.build import Index
from graphremat.passes.classify import JointGraph
from graphremat.passes.frontier import Candidate, Frontier, judge
from graphremat.passes.plan import Plan, check_plan
from graphremat.passes.planner import plan_frontier, with_exact
from graphremat.passes.problem import Problem
from graphremat.passes.schedule import schedule
from graphremat.report import TORCHS_PLAN

log = logging.getLogger("graphremat")

WORTH_IT = 0.03
"""Another plan than torch's is taken where there is no budget if it gains more than this share of peak or step."""

REPLAYS_DIFFER = 0.03
"""Share of a peak by which two replays of one graph, both corrected alike, are taken to be told apart. Inductor orders
what torch's plan leaves open: the code of that plan took 1.8% less than its replay says in a GPT with dropout."""

EFFORT_WITHOUT_BUDGET = 0.1
"""Where there is no budget, other plans than the fastest are for the report alone."""


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
        plan = schedule(problem, saved, TORCHS_PLAN)
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
    """The place of the plan to take where nothing limits it: torch's own, or the first behind it whose gain is more
    than what a replay can be off: in bytes, and in seconds or at no more seconds and no more recomputation. Where only
    seconds are gained it is the first that gains them, whose peak has to be held against that of torch's code."""
    first, *others = (c.replay for c in frontier.candidates)
    faster = 0
    for place, run in enumerate(others, start=1):
        if run.seconds > first.seconds:
            break
        gains_seconds = run.seconds < first.seconds * (1 - WORTH_IT)
        gains_bytes = run.peak_bytes < first.peak_bytes * (1 - WORTH_IT)
        if gains_bytes and (gains_seconds or run.recompute_seconds <= first.recompute_seconds):
            return place
        faster = faster or place * gains_seconds
    return faster


def chosen_plan(
    frontier: Frontier, lowering: Lowering, budget: int | float | None, aim: Aim | None
) -> Choice:
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
    if budget is None and fastest > 0 and not _is_below(plans[0], plans[fastest], truth(choice.place)):
        torchs_bytes = lowering.truth(0, plans[0], reuse_under=math.inf).peak_bytes
        if truth(choice.place) > torchs_bytes:  # faster than torch's, but not at a higher peak
            choice = replace(choose_under(torchs_bytes), budget_bytes=None)
            if not choice.fits:
                return Choice(0, None, True, {0: torchs_bytes})
    true_bytes = {places[k]: size for k, size in choice.true_bytes.items()}
    return replace(choice, place=places[choice.place], true_bytes=true_bytes)


def _is_below(torchs: Candidate, taken: Candidate, true_bytes: int) -> bool:
    """Whether torch's plan surely has a peak above the true one of the plan taken, so that nobody need generate its
    code: by its replay as it is, and by its replay corrected by what the other one's was off."""
    replayed = torchs.replay.peak_bytes
    corrected = replayed * true_bytes / max(taken.replay.peak_bytes, 1)
    return true_bytes < min(replayed, corrected) * (1 - REPLAYS_DIFFER)


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
