"""Looking at one real step of a compiled graph: something is told when its forward and its backward begin and end.

What it relies on of torch: hooks before and after the node of a compiled function run around its backward.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from graphremat.passes import torch_private as private
from graphremat.region import tensors_of


class Watch(Protocol):
    """What is told. The device has done its work at each call. An end comes once; it may never come."""

    def forward_begins(self) -> None: ...

    def forward_ends(self) -> None: ...

    def backward_begins(self) -> None: ...

    def backward_ends(self) -> None: ...


def run_watched(run: Callable[..., Any], arguments: Sequence[Any], watch: Watch) -> tuple[Any, bool]:
    """What ``run(*arguments)`` gives, and whether a backward can come; only then is ``watch`` told more."""
    wait = waiting_for(arguments)
    wait()
    watch.forward_begins()
    try:
        out = run(*arguments)
        wait()
    finally:
        watch.forward_ends()
    node = private.compiled_node(out)
    if node is None:
        return out, False
    pending = [True]

    def before(_: Any) -> None:
        if pending:
            wait()
            watch.backward_begins()

    def after(*_: Any) -> None:
        if pending:
            pending.clear()
            wait()
            watch.backward_ends()

    node.register_prehook(before)
    node.register_hook(after)
    return out, True


def waiting_for(arguments: Sequence[Any]) -> Callable[[], None]:
    """What waits until the device of the arguments has done its work; on a CPU there is nothing to wait for."""
    devices = {t.device for t in tensors_of(list(arguments)) if t.device.type != "cpu"}

    def wait() -> None:
        for device in devices:
            torch.accelerator.synchronize(device)

    return wait
