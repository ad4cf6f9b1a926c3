"""The options of the backend: what a user may pass in ``torch.compile(..., options={...})``.

Everything is validated here and nowhere else: what :meth:`Options.parse` returns can be used as it is. This module
needs no torch.

>>> options = Options.parse({"memory_budget": "20GiB"})
>>> options.memory_budget, options.lowering
(21474836480, 'inductor')
>>> Options.parse({"memory_bugdet": "20GiB"})
Traceback (most recent call last):
graphremat.errors.OptionError: unknown option 'memory_bugdet': did you mean 'memory_budget'?
>>> Options.parse({"memory_budget": 2e9})
Traceback (most recent call last):
graphremat.errors.OptionError: memory_budget=2000000000.0 is not a fraction from 0 to 1: give bytes as int or a ...
"""

import difflib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from pathlib import Path
from reprlib import Repr
from types import MappingProxyType
from typing import Any, Literal, NoReturn, TypeAlias

from graphremat.errors import OptionError
from graphremat.units import MAX_BYTES, parse_bytes

Budget: TypeAlias = int | float | Literal["auto"] | None
"""Bytes as ``int``, a fraction in [0, 1] as ``float``, what the device has left, or ``None`` for the fastest plan."""

_OPERATOR = re.compile(r"\w+::\w+")

DUMP_VARIABLE = "GRAPHREMAT_DUMP"
"""The environment variable that ``dump_dir`` falls back to."""


@dataclass(frozen=True)
class Options:
    """What the user asked for, checked. Make one with :meth:`parse`.

    Attributes:
        memory_budget: the most bytes that one step of the compiled call may hold at its worst moment: ``None`` for the
            fastest plan, bytes, a fraction between the lowest (0.0) and the fastest plan's (1.0) peak, or ``"auto"``
            for what the device has left.
        memory_reserve: bytes of the budget that are left to what the graph cannot see.
        dump_dir: where the stages and the report are written; ``None`` writes nothing.
        lowering: what makes code of the planned graphs: ``"inductor"``, or ``"aot_eager"`` to run them op by op.
        on_infeasible: raise :class:`~graphremat.errors.BudgetInfeasible` (``"error"``), or take the plan with the
            lowest peak and warn (``"min_peak"``), when no plan fits.
        on_failure: where planning fails, which is a bug in graphremat or something in the graph that it does not know:
            run what torch makes of the graph without recomputation, with a warning (``"fallback"``; a budget in bytes
            that this would not keep is an error all the same), or raise
            :class:`~graphremat.errors.PlanningError` (``"error"``).
        annotations: ``"honour"`` or ``"ignore"`` what ``torch.utils.checkpoint`` asks for.
        repeatable: operators (``"namespace::name"``) that are not torch's own, your own say, and that compute and do
            nothing else: what they give may be made again in the backward, where it is otherwise saved.
        costs: price the graph's ops by formulas (``"model"``), or time its matrix products, convolutions and attentions
            on the device (``"measure"``), once for each op and shape; what was timed is kept for the next compilation.
        device_costs: the device whose speed prices the ops; ``None`` is the device that the graph is on.
        max_plans: how many plans the frontier keeps.
        most_recomputations: how often one op may run again, at most; ``None`` for as often as a tight budget asks for.
        planner_seconds: seconds after which the planner settles for the plans that it has found; ``None`` lets it end.
            With a limit the plan may depend on how fast the machine is.
        exact_seconds: seconds that the exact solver may take to find a faster plan for the budget and to prove how fast
            one can be; ``None`` leaves it out. For the patient, on graphs of some dozens of ops.
        max_lowerings: how many plans are lowered to generated code, at most, to find one that fits.
        autotune: how many plans under the budget take turns in the first steps; the fastest by the clock is kept. 1
            leaves the choice to the model. Graphs of symbolic sizes are not tuned.
        profile: follow and time the first steps, correct the prices of the ops by what their kernels took, plan again,
            and keep the new plan if it is faster by the clock. Graphs of symbolic sizes are not profiled.
        fence: refuse the fusions that would move work of the backward past a kernel of the plan.
        verify: how closely the result of every stage is checked.
    """

    memory_budget: Budget = None
    memory_reserve: int = 0
    dump_dir: Path | None = field(default=None, metadata={"changes_plan": False})
    lowering: Literal["inductor", "aot_eager"] = "inductor"
    on_infeasible: Literal["error", "min_peak"] = "error"
    on_failure: Literal["fallback", "error"] = "fallback"
    annotations: Literal["honour", "ignore"] = "honour"
    repeatable: tuple[str, ...] = ()
    costs: Literal["model", "measure"] = "model"
    device_costs: str | None = None
    max_plans: int = 64
    most_recomputations: int | None = 2
    planner_seconds: float | None = None
    exact_seconds: float | None = None
    max_lowerings: int = 8
    autotune: int = 1
    profile: bool = False
    fence: bool = True
    verify: bool = True

    @classmethod
    def parse(cls, mapping: Mapping[str, object] | None = None) -> "Options":
        """Options from what the user wrote; what is not named keeps its default.

        Raises:
            OptionError: an option is unknown, or has a value that is not allowed.
        """
        if mapping is None:
            mapping = {}
        if not isinstance(mapping, Mapping):
            raise OptionError(f"options must be a mapping from name to value, not {_show(mapping)}")
        for name in mapping:
            if not isinstance(name, str) or name not in _PARSERS:
                raise OptionError(_unknown(name))
        values = {name: parse(name, mapping[name]) for name, parse in _PARSERS.items() if name in mapping}
        if values.get("costs") == "measure" and values.get("device_costs") is not None:
            raise OptionError(
                "costs='measure' times ops on the device that the graph is on: device_costs, which names another "
                "one, must be None"
            )
        if values.get("dump_dir") is None:
            values["dump_dir"] = _dump_dir_of_environment()
        return cls(**values)

    @property
    def shared_bytes(self) -> int | None:
        """The bytes that all graphs of a step share; None where each graph has a budget of its own: none at all, a
        fraction of its own range, or what memory is left when it is compiled."""
        if not isinstance(self.memory_budget, int):
            return None
        return max(0, self.memory_budget - self.memory_reserve)

    def cache_key(self) -> str:
        """Stable text that differs between two options that may give different plans.

        >>> Options().cache_key() == Options(dump_dir=Path("dump")).cache_key()
        True
        >>> Options(memory_budget=1).cache_key() == Options(memory_budget=1.0).cache_key()
        False
        """
        return json.dumps(dict(self._plan_items()), sort_keys=True, allow_nan=False)

    def _plan_items(self) -> Iterator[tuple[str, object]]:
        for option in fields(self):
            if option.metadata.get("changes_plan", True):
                yield option.name, getattr(self, option.name)


def _budget(name: str, value: object) -> Budget:
    if value is None:
        return None
    if isinstance(value, str):
        if value.strip().lower() == "auto":
            return "auto"
        n_bytes = _bytes_of_text(name, value, allowed="bytes, a fraction from 0 to 1, 'auto' or None")
    elif isinstance(value, Integral) and not isinstance(value, bool):
        n_bytes = _bounded(name, value, 0, MAX_BYTES, unit="bytes")
    elif isinstance(value, Real) and not isinstance(value, bool):
        return _fraction(name, value)
    else:
        _refuse(
            name, value, "bytes as int or text like '20GiB', a fraction from 0 to 1 as float, 'auto' or None"
        )
    if n_bytes == 0:
        raise OptionError(f"{name}={_show(value)} leaves no byte: for the lowest peak say 0.0 (a float)")
    return n_bytes


def _fraction(name: str, value: Real) -> float:
    try:
        fraction = float(value)
    except OverflowError:
        fraction = math.inf
    if not 0 <= fraction <= 1:  # refuses NaN too
        raise OptionError(
            f"{name}={_show(value)} is not a fraction from 0 to 1: give bytes as int or a string with a unit"
        )
    return abs(fraction)  # abs: -0.0 is 0.0


def _byte_count(name: str, value: object) -> int:
    if isinstance(value, str):
        return _bytes_of_text(name, value, allowed="bytes")
    return _bounded(name, value, 0, MAX_BYTES, unit="bytes")


def _bytes_of_text(name: str, value: str, *, allowed: str) -> int:
    try:
        return parse_bytes(value)
    except ValueError as error:
        raise OptionError(f"{name}={_show(value)} is not allowed: {error} (allowed: {allowed})") from None


def _dump_dir(name: str, value: object) -> Path | None:
    if value is None:
        return None
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(path, str) or path == "" or "\0" in path:
        _refuse(name, value, "the path of a folder, or None")
    return Path(path)


def _dump_dir_of_environment() -> Path | None:
    path = os.environ.get(DUMP_VARIABLE, "")
    return Path(path) if path else None


def _device_costs(name: str, value: object) -> str | None:
    if value is not None and not (isinstance(value, str) and value.strip()):
        _refuse(name, value, "the name of a device, like 'A100-40GB', or None")
    return value


def _operators(name: str, value: object) -> tuple[str, ...]:
    names: list[Any] = list(value) if isinstance(value, (list, tuple, set, frozenset)) else [None]
    if not all(isinstance(n, str) and _OPERATOR.fullmatch(n) for n in names):
        _refuse(name, value, "a list of names of operators, like ['my_library::my_operator']")
    return tuple(sorted(set(names)))


def _switch(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        _refuse(name, value, "True or False")
    return value


def _one_of(*allowed: str) -> Callable[[str, object], str]:
    def parse(name: str, value: object) -> str:
        if not isinstance(value, str) or value not in allowed:
            _refuse(name, value, " or ".join(repr(word) for word in allowed))
        return value

    return parse


def _count(lowest: int, highest: int) -> Callable[[str, object], int]:
    return lambda name, value: _bounded(name, value, lowest, highest)


def _optional(parse: Callable[[str, object], Any]) -> Callable[[str, object], Any]:
    return lambda name, value: None if value is None else parse(name, value)


def _seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 10**9:
        _refuse(name, value, "a number of seconds above 0 and below 10**9, or None")
    return float(value)


def _bounded(name: str, value: object, lowest: int, highest: int, *, unit: str = "") -> int:
    span = f"from {lowest} to {highest}" if highest < MAX_BYTES else f"of at least {lowest} and below 2**63"
    if isinstance(value, bool) or not isinstance(value, Integral) or not lowest <= int(value) <= highest:
        _refuse(name, value, f"an int {span}{' ' + unit if unit else ''}")
    return int(value)


_PARSERS: Mapping[str, Callable[[str, object], Any]] = MappingProxyType(
    {
        "memory_budget": _budget,
        "memory_reserve": _byte_count,
        "dump_dir": _dump_dir,
        "lowering": _one_of("inductor", "aot_eager"),
        "on_infeasible": _one_of("error", "min_peak"),
        "on_failure": _one_of("fallback", "error"),
        "annotations": _one_of("honour", "ignore"),
        "repeatable": _operators,
        "costs": _one_of("model", "measure"),
        "device_costs": _device_costs,
        "max_plans": _count(2, 256),
        "most_recomputations": _optional(_count(1, 1000)),
        "planner_seconds": _optional(_seconds),
        "exact_seconds": _optional(_seconds),
        "max_lowerings": _count(1, 64),
        "autotune": _count(1, 16),
        "profile": _switch,
        "fence": _switch,
        "verify": _switch,
    }
)


def _unknown(name: object) -> str:
    known = list(_PARSERS)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5) if isinstance(name, str) else []
    hint = f"did you mean {near[0]!r}?" if near else f"the options are {', '.join(known)}"
    return f"unknown option {_show(name)}: {hint}"


def _refuse(name: str, value: object, allowed: str) -> NoReturn:
    raise OptionError(f"{name}={_show(value)} is not allowed: give {allowed}")


def _show(value: object) -> str:
    """``value`` for a message: short, and safe for integers that are too long to be written out."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return f"<an int of {value.bit_length()} bits>"
    shown = Repr()
    shown.maxstring = shown.maxother = 80
    return shown.repr(value)
