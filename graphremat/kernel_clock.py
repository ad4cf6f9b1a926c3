"""Seconds of the kernels of a compiled graph in a real step, and which nodes of the graph each of them computes.

Inductor's wrapper is a Python function that calls one kernel after the other. While it is timed its code is another
one, with a look at the clock between the calls; before and after it is what Inductor made. Which nodes a call computes
is in comments that were written when the code was generated (:func:`torch_private.origins_in_comments`). A graph that
is run op by op is timed node by node.

What it relies on of torch is in :func:`torch_private.wrapper_function`. Where there is no such function (another kind
of wrapper), or where it is not called anew each time (CUDA graphs), nothing is timed.
"""

import ast
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, Protocol, TypeAlias

import torch
from torch import fx

from graphremat.passes import torch_private as private
from graphremat.passes.attribute import TimedCall

Tick: TypeAlias = Callable[[int], None]
"""Told, with the number of a call, that this call starts; with -1, that something else does."""

_MARK = re.compile(rf"^\s*{re.escape(private.ORIGINS)}(.*)$")
_TICK = "_graphremat_tick"


class Code(Protocol):
    """The code of one graph, forward or backward, which can be timed."""

    @property
    def calls(self) -> Sequence[TimedCall]:
        """The calls by their numbers, with no seconds yet."""

    def start(self, tick: Tick) -> None:
        """From now on the code tells ``tick`` what it starts."""

    def stop(self) -> None:
        """No more."""


class Stopwatch:
    """Seconds between ticks, by number: of the processor, or of the accelerator's own events."""

    def __init__(self, device: torch.device) -> None:
        self._events = device.type != "cpu"
        self._ticks: list[tuple[int, Any]] = []

    def tick(self, number: int) -> None:
        """What ran until now ends, and ``number`` starts."""
        if self._events:
            event = torch.Event(enable_timing=True)
            event.record()
            self._ticks.append((number, event))
        else:
            self._ticks.append((number, time.perf_counter()))

    def seconds(self) -> dict[int, float]:
        """By number, for all its runs since the last time that this was asked."""
        found: dict[int, float] = {}
        if self._events and self._ticks:
            self._ticks[-1][1].synchronize()
        for (number, began), (_, ended) in zip(self._ticks, self._ticks[1:], strict=False):
            took = began.elapsed_time(ended) / 1e3 if self._events else ended - began
            found[number] = found.get(number, 0.0) + took
        self._ticks.clear()
        return found


def code_of(compiled: Any) -> Code | None:
    """The code of what Inductor compiled, if it can be timed."""
    function = private.wrapper_function(compiled)
    return None if function is None else _Wrapper.of(function)


@dataclass(eq=False)
class _Wrapper:
    """A wrapper that Inductor generated. ``timed`` is the same with ticks between the calls."""

    function: FunctionType
    timed: CodeType
    calls: Sequence[TimedCall]
    _plain: CodeType | None = None

    @classmethod
    def of(cls, function: FunctionType) -> "_Wrapper | None":
        path = function.__code__.co_filename
        try:
            source = Path(path).read_text()
            timed, calls = with_ticks(source, function.__name__, path)
        except (OSError, SyntaxError, LookupError):
            return None
        return cls(function, timed, calls) if timed.co_freevars == function.__code__.co_freevars else None

    def start(self, tick: Tick) -> None:
        if self._plain is None:
            self._plain = self.function.__code__
        self.function.__globals__[_TICK] = tick
        self.function.__code__ = self.timed

    def stop(self) -> None:
        if self._plain is not None:
            self.function.__code__, self._plain = self._plain, None
            self.function.__globals__.pop(_TICK, None)


def with_ticks(source: str, name: str, path: str = "<wrapper>") -> tuple[CodeType, list[TimedCall]]:
    """The code of the function ``name`` of a module, with ticks, and the calls that they tell of.

    Raises:
        LookupError: the module has no such function.
    """
    lines = source.splitlines()
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef) and n.name == name]
    if not functions:
        raise LookupError(f"no function {name} in {path}")
    function = functions[0]
    calls: list[TimedCall] = []
    marks = {k: m.group(1) for k, line in enumerate(lines, 1) if (m := _MARK.match(line))}
    pending = sorted(k for k in marks if function.lineno <= k <= (function.end_lineno or len(lines)))
    state = {"number": -1, "told": -1}

    def ticking(body: list[ast.stmt]) -> list[ast.stmt]:
        found: list[ast.stmt] = []
        for statement in body:
            while pending and pending[0] < statement.lineno:
                state["number"] = len(calls)
                nodes = marks[pending.pop(0)]
                calls.append(TimedCall(tuple(nodes.split(", ")) if nodes else (), ""))
            if isinstance(statement, (ast.With, ast.If, ast.For)):
                statement.body = ticking(statement.body)
            elif not isinstance(statement, ast.FunctionDef):
                number = -1 if _is_bookkeeping(statement) else state["number"]
                if number >= 0 and not calls[number].text and _calls_a_kernel(statement):
                    calls[number] = TimedCall(calls[number].nodes, ast.unparse(statement))
                if number != state["told"]:
                    found.append(_tick(number, statement))
                    state["told"] = number
            found.append(statement)
        return found

    function.body = [_tick(-1, function.body[0]), *ticking(function.body)]
    module = ast.fix_missing_locations(ast.Module([function], type_ignores=[]))
    (code,) = (c for c in compile(module, path, "exec").co_consts if isinstance(c, CodeType))
    return code, calls


def _is_bookkeeping(statement: ast.stmt) -> bool:
    """Allocations, frees, checks and the return: nothing that an op asks for."""
    if isinstance(statement, (ast.Delete, ast.Return)):
        return True
    return _called(statement).startswith(("assert_", "empty_strided", "args."))


def _calls_a_kernel(statement: ast.stmt) -> bool:
    return _called(statement) not in ("", "get_raw_stream", "reinterpret_tensor")


def _called(statement: ast.stmt) -> str:
    """The function that a statement calls."""
    value = statement.value if isinstance(statement, (ast.Expr, ast.Assign)) else None
    return ast.unparse(value.func) if isinstance(value, ast.Call) else ""


def _tick(number: int, at: ast.stmt) -> ast.stmt:
    call = ast.parse(f"{_TICK}({number})").body[0]
    for node in ast.walk(call):
        ast.copy_location(node, at)
    return call


class GraphCode:
    """A graph that is run node by node; callable as compiled code is."""

    def __init__(self, graph: fx.GraphModule) -> None:
        self._graph = graph
        self._tick: Tick | None = None
        nodes = [node for node in graph.graph.nodes if node.op == "call_function"]
        self.calls: Sequence[TimedCall] = [TimedCall((node.name,), str(node.target)) for node in nodes]
        self._numbers = {node: number for number, node in enumerate(nodes)}

    def start(self, tick: Tick) -> None:
        """See :class:`Code`."""
        self._tick = tick

    def stop(self) -> None:
        """See :class:`Code`."""
        self._tick = None

    def __call__(self, arguments: list[Any]) -> Any:
        tick = self._tick
        if tick is None:
            return fx.Interpreter(self._graph).boxed_run(arguments)
        return _Ticking(self._graph, tick, self._numbers).boxed_run(arguments)


class _Ticking(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule, tick: Tick, numbers: dict[fx.Node, int]) -> None:
        super().__init__(graph)
        self._ticks, self._numbers = tick, numbers

    def run_node(self, n: fx.Node) -> Any:
        self._ticks(self._numbers.get(n, -1))
        return super().run_node(n)
