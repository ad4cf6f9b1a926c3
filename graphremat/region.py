"""One compiled graph under a budget in bytes, which is compiled again where that is needed.

Two things ask for it: other graphs of the step, which leave less of the budget than the graph was planned for (see
:mod:`graphremat.ledger`), and a call with larger symbolic sizes than it was planned for. The second is found out by
following the compiled code anew with the new sizes; the graph is compiled again only if it would exceed the budget.

What it relies on of torch: a graph that was compiled for symbolic sizes can be compiled again in the tracing context of
its first compilation, with the inputs of that (``tests/test_symbolic_sizes.py``).
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from graphremat.choose import Aim
from graphremat.errors import BudgetInfeasible, GraphrematError, PlanningError
from graphremat.passes import torch_private as private
from graphremat.passes.attribute import Attribution, TimedCall
from graphremat.passes.plan import Plan
from graphremat.report import Report
from graphremat.share import Alternative
from graphremat.units import format_bytes

if TYPE_CHECKING:
    from graphremat.kernel_clock import Code
    from graphremat.ledger import Ledger

FIRST_SHARE = 0.5
"""Of the budget, for graphs that others may follow, while these are not known."""

Storages: TypeAlias = dict[int, int]
"""Address to bytes."""
Sizes: TypeAlias = tuple[tuple[str, int], ...]
"""Names of symbolic sizes and their numbers."""


@dataclass(frozen=True, eq=False)
class Compiled:
    """What runs, and what is known of it.

    Attributes:
        run: the compiled function.
        report: None where torch took the code from a cache, or where there was nothing to plan.
        peak_at: the peak of the code for other symbolic sizes.
        alternatives_at: all plans for other symbolic sizes, as the planner sees them; the seconds do not change.
        plan: what was planned; None as ``report`` is.
        attribute: holds timed calls of the forward and the backward against the plan.
        codes: the code of the forward and, once it was compiled, of the backward; None for what cannot be timed.
    """

    run: Callable[..., Any]
    report: Report | None = None
    peak_at: Callable[[Mapping[str, int]], int] | None = None
    alternatives_at: Callable[[Mapping[str, int]], list[Alternative]] | None = None
    plan: Plan | None = None
    attribute: Callable[[Sequence[TimedCall], Sequence[TimedCall]], Attribution] | None = None
    codes: Sequence["Code | None"] = ()
    _peaks: dict[Sizes, int] = field(default_factory=dict)
    _alternatives: dict[Sizes, list[Alternative]] = field(default_factory=dict)

    def peak_bytes(self, sizes: Sizes) -> int:
        """The peak of the code, found once for each of the sizes; 0 if there was nothing to plan."""
        assert self.report is not None
        if sizes == planned_sizes(self.report) or self.peak_at is None:
            return self.report.generated_peak_bytes
        if sizes not in self._peaks:
            if len(self._peaks) >= MOST_PEAKS:
                self._peaks.clear()
            self._peaks[sizes] = self.peak_at(dict(sizes))
        return self._peaks[sizes]

    def alternatives(self, sizes: Sizes) -> list[Alternative]:
        """All plans for other sizes; those of the last sizes that were asked for are kept."""
        assert self.alternatives_at is not None
        if sizes not in self._alternatives:
            self._alternatives.clear()
            self._alternatives[sizes] = self.alternatives_at(dict(sizes))
        return self._alternatives[sizes]


MOST_PEAKS = 1024
"""Peaks for other sizes that are remembered."""


def planned_sizes(report: Report) -> Sizes:
    """What a graph was planned for."""
    return tuple((size.name, size.planned) for size in report.sizes)


class Region:
    """Callable as the compiled graph is.

    ``compile_first`` compiles with the given inputs, and is told whether the graph must be planned rather than taken
    from a cache; ``compile_again`` is kept, so it must hold on to no input. ``symbols`` has a name for each input that
    is a symbolic size, and "" for every other.
    """

    def __init__(
        self,
        compile_first: Callable[[Sequence[Any], Aim, bool], Compiled],
        compile_again: Callable[[Sequence[Any], Aim], Compiled],
        inputs: Sequence[Any],
        budget_bytes: int,
        *,
        symbols: Sequence[str] = (),
        followed: bool,
        lowest_if_infeasible: bool,
        ledger: "Ledger",
    ) -> None:
        self.number = next(_numbers)
        self.budget_bytes = budget_bytes
        self.symbols = symbols if any(symbols) else ()
        self.lowest_if_infeasible = lowest_if_infeasible
        self.aim: Aim | None = None
        """What it is to be compiled for at its next call."""
        self.over: BudgetInfeasible | None = None
        """What it is to raise at its next call."""
        self.frugal = False
        """Whether it was compiled for saving least, in a step whose calls are not known yet."""
        self.divided = False
        """Whether its plan is one that all graphs of the step have agreed on."""
        self._compile = compile_again
        self._ledger = ledger
        self._outgrown: set[Sizes] = set()
        """Sizes that it was compiled again for, since they did not fit."""
        held = ledger.held_bytes(map(address_of, tensors_of(inputs)))
        peak = budget_bytes - held
        if followed:
            peak = min(peak, int(budget_bytes * FIRST_SHARE))
        self.planned = bool(held or self.symbols)
        """Whether planning was insisted on; without, torch's cache may give the code but no report."""
        self.compiled = compile_first(inputs, Aim(max(0, peak), most_bytes=budget_bytes), self.planned)
        self.sizes: Sizes = planned_sizes(self.report) if self.report is not None else ()
        """The symbolic sizes with the highest peak of all that it was called with."""

    def __call__(self, *arguments: Any) -> Any:
        before = self.sizes
        made = self._ledger.begin(self, arguments)
        try:
            if self.over is not None:
                error, self.over = self.over, None
                raise error
            if self.aim is not None:
                aim, self.aim, self.planned = self.aim, None, True
                self._compile_again(arguments, aim)
            out = self.compiled.run(*arguments)
        except BaseException:
            self.sizes = before
            self._ledger.forget(made)
            raise
        self._ledger.wait(self, made, arguments, out)
        return out

    def _compile_again(self, arguments: Sequence[Any], aim: Aim) -> None:
        try:
            self.compiled = self._compile(arguments, aim)
        except GraphrematError:
            raise
        except RuntimeError as error:
            raise PlanningError(
                f"a graph could not be compiled again to keep {format_bytes(self.budget_bytes)} with "
                f"{_shown(aim.sizes) or 'what other graphs hold'}: {error}"
            ) from error

    @property
    def report(self) -> Report | None:
        """Of the code in place."""
        return self.compiled.report

    @property
    def chosen(self) -> int:
        """The place of its plan among the alternatives."""
        return 0 if self.report is None else self.report.chosen

    @property
    def peak_bytes(self) -> int:
        """Of the code in place, with its inputs; the budget where torch took it from a cache."""
        return self.budget_bytes if self.report is None else self.compiled.peak_bytes(self.sizes)

    @property
    def saved_bytes(self) -> int:
        """By its plan, beyond inputs and outputs."""
        return self.alternatives()[self.chosen].saved_bytes

    def alternatives(self) -> list[Alternative]:
        """All its plans, corrected by how far the peak of the code lies from the planned one."""
        report = self.report
        if report is None:  # nothing to plan
            return [Alternative(0, 0, 0.0)]
        if self.compiled.alternatives_at is None or self.sizes == planned_sizes(report):
            plans = [
                Alternative(p.planned_peak_bytes, p.saved_bytes, p.step_seconds)
                for p in (*report.frontier, *report.frugal)
            ]
        else:
            plans = self.compiled.alternatives(self.sizes)
        fixed = report.input_bytes
        planned = plans[report.chosen].peak_bytes - fixed
        ratio = (self.peak_bytes - fixed) / planned if planned > 0 else 1.0
        return [replace(plan, peak_bytes=fixed + round((plan.peak_bytes - fixed) * ratio)) for plan in plans]

    def ask(self, peak_bytes: int, saved_bytes: int | None = None, most_bytes: int | None = None) -> None:
        """Have it compiled again at its next call, for its worst sizes."""
        self.aim = Aim(max(0, peak_bytes), saved_bytes, most_bytes, self.sizes)

    def ask_for_larger_sizes(self) -> None:
        """Have it compiled again for its worst sizes, which do not fit now.

        Sizes that it was compiled for before get the lowest plan: two shapes must not take turns.
        """
        again = self.sizes in self._outgrown
        self._outgrown.add(self.sizes)
        self.ask(0 if again else self.budget_bytes, most_bytes=self.budget_bytes)

    def note_sizes(self, arguments: Sequence[Any]) -> bool:
        """Take notice of a call's symbolic sizes; whether they have a higher peak than all before."""
        if not self.symbols or self.report is None:
            return False
        numbers = {name: int(n) for name, n in zip(self.symbols, arguments, strict=True) if name}
        worst = dict(self.sizes)
        sizes = tuple((name, numbers.get(name, size)) for name, size in self.sizes)
        if all(size <= worst[name] for name, size in sizes):
            return False
        if self.compiled.peak_bytes(sizes) <= self.peak_bytes:
            return False
        self.sizes = sizes
        return True


_numbers = itertools.count()


def _shown(sizes: Sizes) -> str:
    return ", ".join(f"{name} = {size}" for name, size in sizes)


def tensors_of(values: Any) -> list[torch.Tensor]:
    """The strided tensors among inputs or outputs."""
    found = values if isinstance(values, (tuple, list)) else (values,)
    return [v for v in found if isinstance(v, torch.Tensor) and v.layout == torch.strided]


def static_of(arguments: Sequence[Any]) -> tuple[Storages, Storages]:
    """Parameters and buffers among the inputs of a call, and the bytes of the gradients that they will have."""
    found = [t for t in tensors_of(arguments) if private.is_static_input(t)]
    gradients = {address_of(t): t.nbytes for t in found if t.requires_grad}
    return {address_of(t): t.untyped_storage().nbytes() for t in found}, gradients


def address_of(tensor: torch.Tensor) -> int:
    """Where its storage lies."""
    return tensor.untyped_storage().data_ptr()
