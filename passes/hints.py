"""The number that stands for a symbolic size while a graph is planned."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from graphremat.passes import torch_private as private

UNKNOWN_SIZE = 4096
"""Stands in for a symbolic size that has no hint; torch's partitioner assumes the same."""

SizeHint = Callable[[Any], int]
"""From a size (int or SymInt) to the int to price it with."""

_assumed: ContextVar[Mapping[str, int] | None] = ContextVar("assumed sizes", default=None)


@contextmanager
def assuming_sizes(sizes: Mapping[str, int]) -> Iterator[None]:
    """Plan for these numbers, by the symbols' names, and not for those with which the graph was traced."""
    token = _assumed.set(dict(sizes))
    try:
        yield
    finally:
        _assumed.reset(token)


def default_size_hint(size: Any) -> int:
    """The size itself, or what a symbolic one is assumed to be, else what it was traced with; adds no guard."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    return private.hint_for(size, _assumed.get() or {}, UNKNOWN_SIZE)


def symbol_hints(sizes: Iterable[Any]) -> dict[str, int]:
    """The same for each symbol that the sizes depend on, by name."""
    symbolic = [size for size in sizes if isinstance(size, torch.SymInt)]
    return {
        name: hint
        for size in symbolic
        for name, hint in private.hints_of_symbols(size, _assumed.get() or {}, UNKNOWN_SIZE).items()
    }
