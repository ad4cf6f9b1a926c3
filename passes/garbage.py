"""Python's garbage collector while a graph is read or planned. Free of torch."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def garbage_left() -> Iterator[None]:
    """The collector waits: it would look through all that is made inside again and again, and free next to none.

    Also a decorator. What forms no cycle is freed as always.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
