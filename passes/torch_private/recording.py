"""What torch records: the structured trace (TORCH_TRACE, shown by tlparse), and the allocator's events in a profile.

Relied on: `trace_structured("artifact", ...)` adds a text under a name to the compilation that is running, and asks for
the text only where somebody records. `torch.profiler.profile.profiler.kineto_results.experimental_event_tree()` has
nodes with `name`, `start_time_ns` and `children`, and for the name "[memory]" `extra_fields` with `ptr`, `alloc_size`
(signed) and `device`. The public events (`profile.events()`) carry the sizes, but no address to tell blocks apart.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


def trace_artifact(name: str, text: Callable[[], str]) -> None:
    """Add a text to torch's structured trace of this compilation."""
    from torch._logging import trace_structured

    trace_structured("artifact", lambda: {"name": name, "encoding": "string"}, payload_fn=text)


@dataclass(frozen=True)
class MemoryEvent:
    """One allocation (``nbytes > 0``) or free (``nbytes < 0``) of the block at ``address``."""

    time_ns: int
    address: int
    nbytes: int
    device_type: str


def profiler_is_running() -> bool:
    """Whether a profiler of torch is recording in this process, which allows no second one."""
    return bool(torch._C._autograd._profiler_enabled())


def after_next_backward(act: Callable[[], None]) -> Callable[[], None]:
    """Call ``act`` once, when the next backward pass that this thread starts has returned; gives what calls it off.

    A profiler cannot be stopped in a hook: the engine puts the state that the thread had back in place afterwards.
    Relied on: ``torch.autograd`` calls the engine by the name ``_engine_run_backward``, for ``backward`` and ``grad``.
    """
    run, thread, waiting = torch.autograd._engine_run_backward, threading.get_ident(), [True]

    def call_off() -> None:
        waiting.clear()
        if torch.autograd._engine_run_backward is patched:
            torch.autograd._engine_run_backward = run

    def patched(*args: Any, **kwargs: Any) -> Any:
        try:
            return run(*args, **kwargs)
        finally:
            if waiting and threading.get_ident() == thread:
                call_off()
                act()

    torch.autograd._engine_run_backward = patched
    return call_off


def profiled_memory_events(recorded: torch.profiler.profile) -> list[MemoryEvent]:
    """The allocator's events of a finished profile with ``profile_memory=True``, in order of time.

    Raises:
        RuntimeError: the profile has not run.
    """
    if recorded.profiler is None or recorded.profiler.kineto_results is None:
        raise RuntimeError("the profile has not run, so it has no events")
    events: list[MemoryEvent] = []
    pending: list[Any] = list(reversed(recorded.profiler.kineto_results.experimental_event_tree()))
    while pending:
        node = pending.pop()
        pending.extend(reversed(node.children))
        if node.name == "[memory]":
            fields = node.extra_fields
            events.append(MemoryEvent(node.start_time_ns, fields.ptr, fields.alloc_size, fields.device.type))
    return sorted(events, key=lambda event: event.time_ns)
