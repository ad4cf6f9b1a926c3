"""Symbolic sizes.

Relied on: a SymInt's node has its sympy expression and the ShapeEnv that knows its symbols; Inductor prints such an
expression as Python. The ShapeEnv of a TracingContext stays usable after the compilation that it was made for.
"""

from collections.abc import Mapping
from typing import Any

import sympy
import torch

from graphremat.passes.torch_private.tracing import tracing_context


def symbol_of(size: Any) -> str:
    """The name of the symbol that a SymInt is; "" if it is an expression, or no SymInt."""
    expression = size.node.expr if isinstance(size, torch.SymInt) else None
    return str(expression.name) if expression is not None and expression.is_Symbol else ""


def size_text(size: torch.SymInt | int) -> str:
    """A size as Python's arithmetic over symbols; "" if it depends on none."""
    from torch.utils._sympy.printers import PythonPrinter

    if not isinstance(size, torch.SymInt) or not size.node.expr.free_symbols:
        return ""
    return str(PythonPrinter().doprint(size.node.expr))  # type: ignore[no-untyped-call]


def hint_for(size: torch.SymInt, numbers: Mapping[str, int], unknown: int) -> int:
    """What a SymInt is if its symbols have these numbers; others have their hints, or are ``unknown``. No guard."""
    if not numbers and size.node._hint is not None:
        return int(size.node._hint)
    expression, env = size.node.expr, size.node.shape_env
    known = {s: sympy.Integer(numbers[s.name]) for s in expression.free_symbols if s.name in numbers}
    return hint_of_expression(env, expression.xreplace(known), unknown)


def hint_of_expression(env: Any, expression: sympy.Expr, unknown: int | None = None) -> int:
    """The number of an expression over the symbols of a ShapeEnv, which has a method for it since torch 2.13."""
    if hasattr(env, "optimization_hint"):
        return int(env.optimization_hint(expression, unknown))
    known = expression.xreplace(env.backed_var_to_val)
    return int(known.xreplace(dict.fromkeys(known.free_symbols, unknown)))


def hints_of_symbols(size: torch.SymInt, numbers: Mapping[str, int], unknown: int) -> dict[str, int]:
    """The same for each of its symbols, by name."""
    env = size.node.shape_env
    return {
        str(s.name): numbers[s.name] if s.name in numbers else hint_of_expression(env, s, unknown)
        for s in size.node.expr.free_symbols
    }


def size_sources() -> dict[str, str]:
    """Where the symbols of the graph that is being compiled come from, in Dynamo's words."""
    env = getattr(getattr(tracing_context(), "fake_mode", None), "shape_env", None)
    sources = getattr(env, "var_to_sources", {})
    return {symbol.name: found[0].name for symbol, found in sources.items() if found}
