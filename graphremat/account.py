"""The account of a compilation: the report, the dumps, and the error that says why a budget cannot be kept."""

import logging
from collections import defaultdict
from collections.abc import Mapping

from graphremat.candidates import Lowered
from graphremat.choose import Aim, Choice
from graphremat.dumps import Dumps
from graphremat.errors import BudgetInfeasible
from graphremat.options import Options
from graphremat.passes.classify import OPAQUE
from graphremat.passes.cut import CutGraph
from graphremat.passes.frontier import Candidate, Frontier
from graphremat.passes.measure_ops import MeasuredOps
from graphremat.passes.peak_formula import peak_formula
from graphremat.passes.problem import Problem
from graphremat.passes.torch_private import size_sources
from graphremat.report import FrontierPoint, Report, SymbolicSize, saved_table
from graphremat.report_page import add_page
from graphremat.truth import StepTruth
from graphremat.units import format_bytes

log = logging.getLogger("graphremat")


def over_budget(options: Options, problem: Problem, choice: Choice, truth: StepTruth) -> None:
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
    if opaque := _opaque_results(problem):
        help_words += (
            f"; {format_bytes(sum(opaque.values()))} are results of {', '.join(sorted(opaque))}, saved since running "
            "them twice might be seen: if they compute and do nothing else, name them in the option repeatable"
        )
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


def _opaque_results(problem: Problem) -> dict[str, int]:
    """Bytes that the operators give which are saved because nothing is known of them, by their names."""
    found: dict[str, int] = defaultdict(int)
    for op in problem.ops:
        if op.keep.startswith(OPAQUE):
            namespace, name, _ = op.target.split(".")
            found[f"{namespace}::{name}"] += sum(
                problem.graph_bytes(problem.values[value].storage) for value in op.writes
            )
    return dict(found)


def make_report(
    options: Options,
    problem: Problem,
    frontier: Frontier,
    choice: Choice,
    chosen: Lowered,
    graph: int,
    plan_seconds: float,
    dumps: Dumps,
    aim: Aim | None,
    sizes: Mapping[str, int],
    timed: MeasuredOps,
) -> Report:
    plans = (*frontier.candidates, *frontier.frugal)
    candidate = plans[choice.place]
    sources = size_sources() if sizes else {}

    def point(place: int) -> FrontierPoint:
        run = plans[place].replay
        return FrontierPoint(
            run.peak_bytes,
            choice.true_bytes.get(place),
            run.recompute_seconds,
            run.seconds,
            run.saved_bytes,
            plans[place].plan.origin,
        )

    return Report(
        graph=graph,
        lowering=options.lowering,
        budget_bytes=choice.budget_bytes if aim is None else options.shared_bytes,
        share_bytes=None if aim is None else aim.peak_bytes,
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
        added_seconds=candidate.replay.seconds - min(c.replay.seconds for c in frontier.candidates),
        step_seconds=candidate.replay.seconds,
        gap=frontier.gap(candidate),
        exact_gap=frontier.exact_gap(candidate),
        plan_seconds=plan_seconds,
        peak_at=chosen.truth.peak_at,
        holders=chosen.truth.alive_at_peak[:16],
        frontier=tuple(map(point, range(len(frontier.candidates)))),
        frugal=tuple(map(point, range(len(frontier.candidates), len(plans)))),
        chosen=choice.place,
        refused_fusions=0 if chosen.fence is None else len(set(chosen.fence.refused)),
        corrected=aim is not None and bool(aim.ratios),
        timed_ops=timed.distinct,
        timing_seconds=timed.took_seconds,
        sizes=tuple(SymbolicSize(name, size, sources.get(name, "")) for name, size in sizes.items()),
        peak_formula=peak_formula(problem, candidate.plan) if problem.symbols else "",
        unfollowed=chosen.truth.unfollowed,
        dump_dir=None if dumps.folder is None else str(dumps.folder),
    )


def cut_table(problem: Problem) -> str:
    """``15-cut.md``: the lower hull of the whole graph's min cut, from the fewest seconds to the fewest bytes."""
    lines = ["| saved bytes | recomputed ms | saved values |", "| --- " * 3 + "|"]
    for cut in CutGraph(problem).hull():
        names = ", ".join(problem.values[v].name for v in cut.saved)
        lines.append(f"| {cut.saved_bytes:,} | {cut.seconds * 1e3:.3f} | {names} |")
    return "\n".join(lines) + "\n"


def frontier_table(frontier: Frontier) -> str:
    """``20-frontier.md``: every plan of the frontier, as replayed."""
    lines = [
        "| place | peak bytes | saved bytes | recomputed ms | step ms | known gap | origin |",
        "| --- " * 7 + "|",
    ]
    for place, c in enumerate(frontier.candidates):
        r = c.replay
        lines.append(
            f"| {place} | {r.peak_bytes:,} | {r.saved_bytes:,} | {r.recompute_seconds * 1e3:.3f} "
            f"| {r.seconds * 1e3:.3f} | {frontier.gap(c):.2%} | {c.plan.origin} |"
        )
    return "\n".join(lines) + "\n"


def write_dumps(dumps: Dumps, problem: Problem, candidate: Candidate, chosen: Lowered, made: Report) -> None:
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
    dumps.write("saved.md", lambda: saved_table(problem, plan, run))
    dumps.write("report.json", made.to_json)
    dumps.write("report.txt", lambda: str(made) + "\n")
    add_page(dumps)
