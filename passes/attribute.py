"""Seconds of real kernels, attributed to the ops of a plan and held against their prices. Free of torch.

A kernel of the generated code computes one op or several. What it took is divided among the runs of its ops in
proportion to their prices, as the replay of the plan counts them there. What an op took over all of its runs, over
their prices, is its *ratio*: the correction of its price. An op that no kernel was seen to compute gets the ratio of
all ops of its kind together.

    >>> from graphremat.passes.testing import chain
    >>> from graphremat.passes.schedule import schedule
    >>> problem = chain(length=2)
    >>> plan = schedule(problem, [])
    >>> names = [problem.ops[i].name for i in plan.forward]
    >>> timed = [TimedCall((name,), name, 3.0) for name in names]
    >>> attribute(problem, plan, timed, []).ratios[names[0]]
    3.0
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from graphremat.passes.plan import Plan
from graphremat.passes.problem import Kind, Problem
from graphremat.passes.replay import replay

MOST_RATIO = 10.0
"""A kernel that takes more than so many times its price, or less than the inverse, was disturbed or is not what it was
taken for: its ratio is cut off there."""


@dataclass(frozen=True)
class TimedCall:
    """One call of generated code: the nodes that it computes, its text, and the seconds of its fastest run."""

    nodes: tuple[str, ...]
    text: str
    seconds: float = 0.0


@dataclass(frozen=True)
class CallTruth:
    """A call and the price of its ops; ``recomputed`` is the part of its seconds that ops run a second time take."""

    phase: str
    text: str
    ops: tuple[str, ...]
    priced_seconds: float
    measured_seconds: float
    recomputed_seconds: float


@dataclass(frozen=True)
class Attribution:
    """What was measured, op by op.

    Attributes:
        ratios: measured over priced seconds by the op's name, for every op that is no view.
        calls: every call that computes something, in the order of the code.
        seconds: of all calls.
        attributed_seconds: of calls whose ops are known and have prices.
        recomputed_seconds: of what runs a second time.
    """

    ratios: Mapping[str, float]
    calls: tuple[CallTruth, ...]
    seconds: float
    attributed_seconds: float
    recomputed_seconds: float


def attribute(
    problem: Problem, plan: Plan, forward: Sequence[TimedCall], backward: Sequence[TimedCall]
) -> Attribution:
    """Hold the timed calls of both graphs against the plan that they were made from."""
    run = replay(problem, plan)
    op_of = {op.name: index for index, op in enumerate(problem.ops)}
    measured: defaultdict[int, float] = defaultdict(float)
    priced: defaultdict[int, float] = defaultdict(float)
    calls: list[CallTruth] = []
    attributed = recomputed = 0.0
    seen: set[int] = set()
    phases = (
        ("forward", forward, plan.forward, run.op_seconds[: run.forward_length]),
        ("backward", backward, plan.backward, run.op_seconds[run.forward_length :]),
    )
    for phase, timed, order, seconds in phases:
        prices: defaultdict[int, list[float]] = defaultdict(list)
        for index, price in zip(order, seconds.tolist(), strict=True):
            prices[index].append(price)
        again = [index for index in order if index in seen] if phase == "backward" else []
        seen.update(order)
        for call in timed:
            indices = _own(
                [op_of[name] for name in call.nodes if name in op_of and prices[op_of[name]]], problem
            )
            shares = {index: _next(prices[index]) for index in indices}
            price = sum(shares.values())
            second_time = sum(share for index, share in shares.items() if index in again)
            if price > 0:
                attributed += call.seconds
                recomputed += call.seconds * second_time / price
                for index, share in shares.items():
                    measured[index] += call.seconds * share / price
                    priced[index] += share
            names = tuple(problem.ops[i].name for i in indices)
            calls.append(
                CallTruth(
                    phase,
                    call.text,
                    names,
                    price,
                    call.seconds,
                    call.seconds * second_time / price if price else 0.0,
                )
            )
    return Attribution(
        _ratios(problem, measured, priced),
        tuple(calls),
        sum(call.measured_seconds for call in calls),
        attributed,
        recomputed,
    )


def _own(indices: list[int], problem: Problem) -> list[int]:
    """Of the ops that a call is said to compute, those that it does: a library's kernel reads what others wrote."""
    kernels = [index for index in indices if problem.ops[index].kind is Kind.KERNEL]
    return kernels if kernels and problem.fuses else indices


def _next(prices: list[float]) -> float:
    """The price of the next run; of the last one, where the code has more runs than the plan."""
    return prices.pop(0) if len(prices) > 1 else prices[0]


def _ratios(problem: Problem, measured: Mapping[int, float], priced: Mapping[int, float]) -> dict[str, float]:
    of_kind: dict[Kind, list[float]] = {kind: [0.0, 0.0] for kind in Kind}
    for index, price in priced.items():
        of_kind[problem.ops[index].kind][0] += measured[index]
        of_kind[problem.ops[index].kind][1] += price
    whole = _ratio(sum(m for m, _ in of_kind.values()), sum(p for _, p in of_kind.values()))
    found = {}
    for index, op in enumerate(problem.ops):
        if op.kind is Kind.VIEW:
            continue
        own, (kind_measured, kind_priced) = priced.get(index, 0.0), of_kind[op.kind]
        if own > 0:
            found[op.name] = _ratio(measured[index], own)
        else:
            found[op.name] = _ratio(kind_measured, kind_priced) if kind_priced > 0 else whole
    return found


def _ratio(measured: float, priced: float) -> float:
    """Rounded to two digits, so that noise in the third gives the same plan."""
    if priced <= 0 or measured <= 0:
        return 1.0
    return float(f"{min(MOST_RATIO, max(1 / MOST_RATIO, measured / priced)):.2g}")


def corrected(problem: Problem, ratios: Mapping[str, float]) -> Problem:
    """The problem with the prices of its ops multiplied by ratios, which are given by the ops' names."""
    ops = tuple(
        replace(op, seconds=op.seconds * ratio, fused_seconds=op.fused_seconds * ratio)
        if ratio != 1.0
        else op
        for op, ratio in ((op, ratios.get(op.name, 1.0)) for op in problem.ops)
    )
    return replace(problem, ops=ops)
