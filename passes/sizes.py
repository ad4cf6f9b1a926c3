"""Sizes that are not fixed: text in Python's arithmetic over named symbols, as ``128*s77`` bytes. Free of torch.

>>> evaluate("4*((1 + s77) // 2) + max(s77, 3)", {"s77": 8})
24
>>> sorted(symbols_of("u0*s77 + max(s77, 3)"))
['s77', 'u0']
>>> import sympy
>>> evaluate("128*s77 + 64*(s77 - 1)", {"s77": sympy.Symbol("s77")}).expand()
192*s77 - 64
"""

import ast
import math
import operator
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any

import sympy

_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
}
_OF_NUMBERS: dict[str, Callable[..., Any]] = {
    "max": max,
    "min": min,
    "math.ceil": math.ceil,
    "math.floor": math.floor,
    "math.trunc": math.trunc,
    "Mod": operator.mod,
}
_OF_SYMBOLS: dict[str, Callable[..., Any]] = {
    "max": sympy.Max,
    "min": sympy.Min,
    "math.ceil": sympy.ceiling,
    "math.floor": sympy.floor,
    "math.trunc": sympy.floor,  # sizes are not negative
    "Mod": sympy.Mod,
}
for _functions in (_OF_NUMBERS, _OF_SYMBOLS):  # as sympy writes them
    _functions |= {
        sympys: _functions[name] for sympys, name in (("floor", "math.floor"), ("ceiling", "math.ceil"))
    }
    _functions |= {"Max": _functions["max"], "Min": _functions["min"]}


def rounded_up(number: int, step: int) -> int:
    """The next multiple of ``step``, or the number if it is one.

    >>> rounded_up(513, 512), rounded_up(512, 512), rounded_up(0, 512), rounded_up(513, 1)
    (1024, 512, 0, 513)
    """
    return -(-number // step) * step


def symbols_of(text: str) -> frozenset[str]:
    """The names of the symbols in a size."""
    return frozenset(
        node.id for node in ast.walk(_parsed(text)) if isinstance(node, ast.Name) and node.id not in _NAMES
    )


def evaluate(text: str, sizes: Mapping[str, Any]) -> Any:
    """The size in bytes or elements for these numbers; a sympy expression if they are sympy's.

    Raises:
        ValueError: the text is no arithmetic, or a symbol has no number.
    """
    symbolic = any(isinstance(size, sympy.Basic) for size in sizes.values())
    value = _value(_parsed(text), text, sizes, _OF_SYMBOLS if symbolic else _OF_NUMBERS, symbolic)
    return math.ceil(value) if isinstance(value, Fraction) else value


_NAMES = frozenset({"math", *_OF_NUMBERS})


@lru_cache(maxsize=4096)
def _parsed(text: str) -> ast.expr:
    try:
        return ast.parse(text, mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"{text!r} is no size: {error}") from error


def _value(
    node: ast.expr,
    text: str,
    sizes: Mapping[str, Any],
    functions: Mapping[str, Callable[..., Any]],
    symbolic: bool,
) -> Any:
    def of(part: ast.expr) -> Any:
        return _value(part, text, sizes, functions, symbolic)

    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.Name(id=name):
            if name not in sizes:
                known = ", ".join(sorted(sizes)) or "none"
                raise ValueError(f"the size {text} needs a number for {name}; given are: {known}")
            return sizes[name]
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return of(left) / of(right) if symbolic else Fraction(of(left)) / Fraction(of(right))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](of(left), of(right))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -of(operand)
        case ast.Call(func=func, args=arguments, keywords=[]) if (name := ast.unparse(func)) in functions:
            return functions[name](*map(of, arguments))
    raise ValueError(f"the size {text} has {ast.unparse(node)!r}, which is no arithmetic of sizes")
