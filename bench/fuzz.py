"""``python -m bench.fuzz --cases 2000 --seed 0``: random networks under random budgets, beside plain ``torch.compile``.

Each case is a network of :mod:`bench.random_networks`, shapes, options and a budget, drawn by hypothesis from the seed.
Its step runs under graphremat lowered by ``aot_eager``, and in eager; where eager draws other random numbers or rounds
otherwise, under plain ``aot_eager`` in its place (with the partitioner that recomputes nothing: the other one reads a
buffer again that the forward has overwritten, and gives wrong gradients without a word). A case fails where

* graphremat raises and plain compile does not, or another error (``BudgetInfeasible`` is no failure);
* an output, a gradient or a buffer differs;
* the peak of the code is over the budget, or the allocator measures another peak (where no kernel allocates inside);
* a second, perhaps larger batch goes over a budget in bytes.

A failure is made smaller by leaving out what it does not need, and printed as a program that can be pasted into a test.
The exit code is 1 then.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

import graphremat
from bench.random_networks import OPS, Program, RandomNetwork, Step
from graphremat.errors import BudgetInfeasible
from graphremat.measure import measure_peak

PLAIN = "aot_eager_default_partitioner"
SAME = 1e-6
"""Relative error against plain ``aot_eager``: the same kernels on the same numbers, added up in any order."""
CLOSE = 1e-4
"""Relative error against eager, whose kernels round otherwise."""
LEAST_SHARE = 1e-3
"""A tensor's error is relative to its own norm, or to this share of the norm of all where that is more: a gradient that
is zero but for rounding has no digits to compare."""
INEXACT = {"low_precision", "half_and_back", "lookup", "sorted", "best", "pooled", "maximum"}
"""Ops after which another rounding may lead to quite another result: they are held to plain compile."""


@dataclass(frozen=True)
class Case:
    """A network, its shapes, and what graphremat is asked for.

    Attributes:
        budget: None, a fraction, or a factor above 1: the fastest plan's peak less the inputs over it, in bytes.
        again: a second batch size for the same compiled network, or None.
    """

    program: Program
    batch: int
    length: int
    budget: float | None = 0.0
    options: dict[str, object] = field(default_factory=dict)
    dynamic: bool | None = None
    input_gradient: bool = False
    again: int | None = None


@st.composite
def programs(draw: st.DrawFn, most_steps: int = 8) -> Program:
    """Programs of one to ``most_steps`` steps between two with parameters."""
    names = st.sampled_from(sorted(OPS))
    place = st.sampled_from((0, 0, 0, 1, 2, 3))
    drawn = draw(st.lists(names, min_size=1, max_size=most_steps))
    steps = [Step(name, tuple(draw(place) for _ in range(OPS[name].operands))) for name in drawn]
    outputs = draw(st.sampled_from(((0,), (0,), (0, 1), (0, 2))))
    first = Step(draw(st.sampled_from(("linear", "feed_forward", "convolution"))))
    width = draw(st.sampled_from((4, 8, 16)))
    last = Step(draw(st.sampled_from(("linear", "layer_norm", "scale"))))
    return Program(width, (first, *steps, last), outputs, draw(st.booleans()))


@st.composite
def cases(draw: st.DrawFn, most_steps: int = 8) -> Case:
    """A program and everything around it."""
    options: dict[str, object] = {}
    if draw(st.booleans()):
        options["annotations"] = draw(st.sampled_from(("honour", "ignore")))
    if draw(st.booleans()):
        options["most_recomputations"] = draw(st.sampled_from((1, 3, None)))
    budgets = st.one_of(st.none(), st.just(0.0), st.floats(0.0, 1.0), st.sampled_from((1.05, 1.2, 1.5, 2.0)))
    return Case(
        draw(programs(most_steps)),
        batch=draw(st.integers(1, 5)),
        length=draw(st.integers(1, 33)),
        budget=draw(budgets),
        options=options,
        dynamic=draw(st.sampled_from((None, None, True))),
        input_gradient=draw(st.booleans()),
        again=draw(st.sampled_from((None, None, None, 2, 6))),
    )


class _Run:
    """One network with one compiler: the steps of a case and what came of them."""

    def __init__(self, case: Case, compile_: Callable[[nn.Module], Callable[..., list[Tensor]]]) -> None:
        self.case = case
        torch.compiler.reset()
        torch.manual_seed(0)
        self.model = RandomNetwork(case.program).train()
        self.call = compile_(self.model)

    def inputs(self, batch: int) -> Tensor:
        torch.manual_seed(batch)
        x = torch.randn(batch, self.case.length, self.case.program.width)
        return x.requires_grad_(self.case.input_gradient)

    def step(self, x: Tensor) -> list[Tensor | None]:
        """Outputs, gradients and buffers of one step."""
        self.model.zero_grad(set_to_none=True)
        torch.manual_seed(7)
        outputs = self.call(x)
        sum(out.pow(2).mean() for out in outputs).backward()  # type: ignore[union-attr]
        gradients = [p.grad for p in self.model.parameters()]
        return [
            *(o.detach() for o in outputs),
            *gradients,
            x.grad,
            *(b.clone() for b in self.model.buffers()),
        ]

    def steps(self) -> list[Tensor | None] | str:
        """Those of every batch size of the case, or the class of what was raised."""
        found: list[Tensor | None] = []
        try:
            for batch in filter(None, (self.case.batch, self.case.again)):
                found += self.step(self.inputs(batch))
        except BudgetInfeasible:
            raise
        except Exception as error:  # noqa: BLE001 (whatever it is, the other compiler must raise it too)
            return type(error).__name__
        return found


def check(case: Case) -> str:
    """Run a case; "" or why there was nothing to compare.

    Raises:
        AssertionError: graphremat does not do what it promises.
    """
    asked = {
        "lowering": "aot_eager",
        "memory_budget": _budget_of(case),
        "on_failure": "error",
        **case.options,
    }
    before = _last_graph()
    ours = _Run(case, _compiler(case, "graphremat", options=asked))
    try:
        got = ours.steps()
    except BudgetInfeasible as error:
        assert error.lowest_peak_bytes > error.budget_bytes
        return "infeasible"
    plain = case.program.draws or bool(INEXACT & {step.op for step in case.program.steps})
    if plain or isinstance(got, str):
        wanted = _Run(case, _compiler(case, PLAIN)).steps()
    else:
        wanted = _Run(case, lambda model: model).steps()
    if isinstance(wanted, str) or isinstance(got, str):
        assert got == wanted, f"graphremat: {got}, plain compile: {wanted}"
        return f"{got} in both"
    if not all(t is None or bool(t.isfinite().all()) for t in wanted):
        return "not finite"
    _check_equal(wanted, got, SAME if plain else CLOSE)
    for report in (report for report in graphremat.reports() if report.graph > before):
        assert not report.unfollowed, report.unfollowed
        assert report.budget_bytes is None or report.generated_peak_bytes <= report.budget_bytes
    budget = asked["memory_budget"]
    if not case.program.has_workspaces and (case.again is None or isinstance(budget, int)):
        promised = graphremat.last_report().generated_peak_bytes
        _check_measured(ours, promised if case.again is None else budget)
    return ""


def _compiler(case: Case, backend: str, **more: object) -> Callable[[nn.Module], Callable[..., list[Tensor]]]:
    return lambda model: torch.compile(model, backend=backend, dynamic=case.dynamic, **more)  # type: ignore[call-overload,no-any-return]


def _check_equal(wanted: Sequence[Tensor | None], got: Sequence[Tensor | None], most: float) -> None:
    present = [t.double().norm().item() for t in wanted if t is not None]
    least = LEAST_SHARE * math.hypot(*present)
    assert len(wanted) == len(got)
    for place, (theirs, mine) in enumerate(zip(wanted, got, strict=True)):
        assert (theirs is None) == (mine is None), f"tensor {place} is missing on one side"
        if theirs is None or mine is None:
            continue
        assert (theirs.shape, theirs.dtype) == (mine.shape, mine.dtype)
        norm = max(theirs.double().norm().item(), least)
        off = (theirs.double() - mine.double()).norm().item()
        assert off <= most * norm, f"tensor {place} of {len(wanted)} is off by {off / norm:.1e}"


def _budget_of(case: Case) -> int | float | None:
    """A factor above 1 as bytes: what the fastest plan needs over its inputs, divided by it."""
    factor = case.budget
    if factor is None or factor <= 1.0:
        return factor
    run = _Run(case, _compiler(case, "graphremat", options={"lowering": "aot_eager"}))
    before = _last_graph()
    with suppress(Exception):
        run.step(run.inputs(case.batch))
    if _last_graph() == before:
        return None
    report = graphremat.last_report()
    return report.input_bytes + math.ceil((report.generated_peak_bytes - report.input_bytes) / factor)


def _last_graph() -> int:
    return max((report.graph for report in graphremat.reports()), default=-1)


def _check_measured(run: _Run, promised: int) -> None:
    x = run.inputs(run.case.again or run.case.batch)

    def clear() -> None:
        run.model.zero_grad(set_to_none=True)
        x.grad = None

    def step() -> None:
        sum(out.pow(2).mean() for out in run.call(x)).backward()  # type: ignore[union-attr]

    measured = measure_peak(step, clear=clear).peak_bytes
    held = sum(t.nbytes for t in (x, *run.model.parameters(), *run.model.buffers()))
    outside = 8 * sum(out.nbytes for out in run.call(x))  # the loss and its backward are not in the graph
    assert measured + held <= promised + outside, f"measured {measured + held}, promised {promised}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw, run, count."""
    parser = argparse.ArgumentParser(prog="python -m bench.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=2000, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of hypothesis (default: %(default)s)")
    parser.add_argument("--most-steps", type=int, default=8, help="of a network (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    console = Console()
    counts: dict[str, int] = {}
    failed: list[Case] = []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("cases", total=chosen.cases)

        @seed(chosen.seed)
        @settings(
            max_examples=chosen.cases,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            verbosity=Verbosity.quiet,
        )
        @given(cases(chosen.most_steps))
        def run(case: Case) -> None:
            try:
                outcome = check(case)
            except Exception as error:
                if not failed:
                    count = sum(counts.values())
                    progress.console.print(
                        f"case {count}: {type(error).__name__}: {error}\n{case}\nshrinking"
                    )
                failed.append(case)
                raise
            finally:
                progress.advance(task)
            counts[outcome or "as promised"] = counts.get(outcome or "as promised", 0) + 1

        failure = None
        try:
            run()
        except Exception as error:  # noqa: BLE001
            failure = error
    console.print(f"seed {chosen.seed}: " + ", ".join(f"{n} {what}" for what, n in sorted(counts.items())))
    if failure is not None:
        console.print(
            f"{type(failure).__name__}: {failure}\n{failed[-1]}", highlight=False
        )  # the smallest comes last
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
