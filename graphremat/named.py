"""A thing by its name, or an error that says what there is."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

from graphremat.errors import OptionError

T = TypeVar("T")


def find_named(table: Mapping[str, T], name: str, what: str) -> T:
    """``table[name]``.

    Raises:
        OptionError: there is no such name; the message has the nearest one.

    >>> find_named({"nf4": 4, "int8": 8}, "nf5", "base")
    Traceback (most recent call last):
    graphremat.errors.OptionError: unknown base 'nf5': did you mean 'nf4'? (known: nf4, int8)
    """
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, n=1)
    meant = f": did you mean {near[0]!r}?" if near else ""
    raise OptionError(f"unknown {what} {name!r}{meant} (known: {', '.join(table)})")
