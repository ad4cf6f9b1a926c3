"""What a step really costs: its peak bytes by the allocator's own events, its seconds, its gradients' error.

Nothing here knows the planner, so it measures any callable: eager, ``torch.compile`` or this project's backend.

Two mistakes are easy to make, and both are guarded against here:

* A block that was allocated before the profile and is freed inside it has no truthful free event: the CPU
  allocator's size table either does not know it or knows an older block at the same address, and the running sum
  goes wrong. Old gradients are the usual case. :func:`measure_peak` follows every address and raises
  :class:`MeasurementError`.
* Another busy process makes a multi-threaded step several times slower. :func:`time_interleaved` takes turns
  between the contestants, so that a disturbance hits all of them, and reports the spread.
"""

import gc
import math
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from graphremat.errors import GraphrematError
from graphremat.passes.torch_private import MemoryEvent, forget_compiled, profiled_memory_events

MAX_MEASURED_RUNS = 4
"""How often a step is run to see two runs in a row with equal bytes: the first may fill caches for later ones."""


class MeasurementError(GraphrematError, RuntimeError):
    """A measurement contradicts itself, so no figure is given; the message says what to change in the step."""


@dataclass(frozen=True)
class PeakMeasurement:
    """What one step did to the memory of a device.

    Attributes:
        peak_bytes: the most bytes alive at once, over what was alive before the step.
        end_bytes: bytes still alive when the step returned, over what was alive before (usually gradients).
        events: allocations and frees seen.
    """

    peak_bytes: int
    end_bytes: int
    events: int


@dataclass(frozen=True)
class Timing:
    """Seconds of one contestant of :func:`time_interleaved`; the spread is the interquartile range."""

    min_seconds: float
    median_seconds: float
    spread_seconds: float
    seconds: tuple[float, ...]


def measure_peak(
    step: Callable[[], object],
    *,
    clear: Callable[[], object] | None = None,
    device: torch.device | str | None = None,
) -> PeakMeasurement:
    """The bytes that one ``step()`` adds at its worst moment.

    The step runs until two runs in a row give the same bytes: at least twice, at most
    :data:`MAX_MEASURED_RUNS` times. ``clear()`` runs before each, outside the measured region: it must drop what the
    step before left behind (``model.zero_grad(set_to_none=True)``). The cyclic garbage collector is off while the
    step runs.

    Args:
        step: what is measured, typically one forward and backward. What it returns is dropped at once.
        clear: drops the leftovers of the step before. May be left out when the step leaves nothing.
        device: ``None`` or a CPU device: events of the CPU allocator, exact to the byte, for allocations of the
            calling thread and of the autograd threads that it starts. A CUDA device:
            ``torch.cuda.max_memory_allocated``, which counts in the caching allocator's blocks (multiples of 512
            bytes).

    Raises:
        MeasurementError: the step frees a block that was alive before it, the events contradict each other, or
            no two runs in a row gave the same bytes.
        ValueError: a device of another kind.

    >>> measure_peak(lambda: torch.zeros(1000).relu_().exp()).peak_bytes
    8000
    """
    place = torch.device("cpu" if device is None else device)
    if place.type not in ("cpu", "cuda"):
        raise ValueError(
            f"measure_peak: device={device!r} is not supported; allowed: 'cpu', 'cuda', 'cuda:<index>'"
        )
    before: PeakMeasurement | None = None
    seen: list[tuple[int, int]] = []
    for _ in range(MAX_MEASURED_RUNS):
        if clear is not None:
            clear()
        with _garbage_collector_off():
            now = _one_peak_on_cuda(step, place) if place.type == "cuda" else _one_peak_on_cpu(step)
        seen.append((now.peak_bytes, now.end_bytes))
        if before is not None and seen[-1] == seen[-2]:
            return now
        before = now
    raise MeasurementError(
        f"no two runs in a row of the step gave the same bytes; (peak, end) of each: {seen}. Warm the step up "
        "first, and let clear() drop everything that a step leaves behind"
    )


def byte_curve(events: Iterable[MemoryEvent]) -> Iterator[int]:
    """Bytes alive after each event, over what was alive before the first; events in order of time.

    Raises:
        MeasurementError: a free of a block that the events did not allocate, a free of another size than its
            allocation, or an allocation at an address that is still alive.
    """
    alive_bytes: dict[int, int] = {}
    total_bytes = 0
    for event in events:
        if event.nbytes >= 0:
            if event.address in alive_bytes:
                raise MeasurementError(
                    f"the allocator reports {event.nbytes} bytes at an address where "
                    f"{alive_bytes[event.address]} bytes are still alive: a free was lost, or the events are out of "
                    "order"
                )
            alive_bytes[event.address] = event.nbytes
        else:
            allocated_bytes = alive_bytes.pop(event.address, None)
            if allocated_bytes is None:
                raise MeasurementError(
                    f"the step freed a block of (perhaps) {-event.nbytes} bytes that was allocated before it; "
                    "the allocator's sizes of such blocks are not to be trusted. Old gradients are the usual case: "
                    "drop them in clear(), with zero_grad(set_to_none=True), and not in the step"
                )
            if allocated_bytes != -event.nbytes:
                raise MeasurementError(
                    f"a block of {allocated_bytes} bytes was freed as {-event.nbytes} bytes"
                )
        total_bytes += event.nbytes
        yield total_bytes


def _one_peak_on_cpu(step: Callable[[], object]) -> PeakMeasurement:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    events = [event for event in profiled_memory_events(recorded) if event.device_type == "cpu"]
    curve = list(byte_curve(events))
    return PeakMeasurement(
        peak_bytes=max(curve, default=0), end_bytes=curve[-1] if curve else 0, events=len(events)
    )


def _one_peak_on_cuda(step: Callable[[], object], device: torch.device) -> PeakMeasurement:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before_bytes = torch.cuda.memory_allocated(device)
    before_events = _cuda_events(device)
    step()
    torch.cuda.synchronize(device)
    return PeakMeasurement(
        peak_bytes=torch.cuda.max_memory_allocated(device) - before_bytes,
        end_bytes=torch.cuda.memory_allocated(device) - before_bytes,
        events=_cuda_events(device) - before_events,
    )


def _cuda_events(device: torch.device) -> int:
    stats = torch.cuda.memory_stats(device)
    return int(stats.get("allocation.all.allocated", 0)) + int(stats.get("allocation.all.freed", 0))


@contextmanager
def _garbage_collector_off() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def time_interleaved(
    steps: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 1,
) -> dict[str, Timing]:
    """Seconds of each step, measured in turns: every round runs each once, in an order that is drawn for it.

    A step takes up to 1.4% less behind another run of itself, and some tenths of a percent more or less behind one than
    behind another, by what that leaves in the caches: with a fixed order each would always have the same one before it.
    The draw is the same every time. The garbage collector is off while steps run, and CUDA work is waited for where
    CUDA is in use.

    Args:
        steps: the contestants by name; each call is one step, clearing of its own gradients included.
        rounds: measured runs of each, at least 1.
        warmup: unmeasured runs of each before the first round.

    Raises:
        ValueError: no steps, ``rounds`` below 1 or ``warmup`` below 0.
    """
    if not steps or rounds < 1 or warmup < 0:
        raise ValueError(
            f"time_interleaved: {len(steps)} steps, rounds={rounds}, warmup={warmup}; needs 1, 1 and 0"
        )
    names = list(steps)
    for name in names:
        for _ in range(warmup):
            steps[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    draw = random.Random(0)
    with _garbage_collector_off():
        for _ in range(rounds):
            for name in draw.sample(names, len(names)):
                seconds[name].append(_seconds_of(steps[name]))
            gc.collect()
    return {name: _timing(tuple(seconds[name])) for name in names}


def _seconds_of(step: Callable[[], object]) -> float:
    _wait_for_cuda()
    start = time.perf_counter()
    step()
    _wait_for_cuda()
    return time.perf_counter() - start


def _wait_for_cuda() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _timing(seconds: tuple[float, ...]) -> Timing:
    low, middle, high = (
        statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    )
    return Timing(min_seconds=min(seconds), median_seconds=middle, spread_seconds=high - low, seconds=seconds)


def gradient_error(
    reference: Sequence[torch.Tensor | None],
    other: Sequence[torch.Tensor | None],
) -> float:
    """Relative error of a whole gradient: the norm of the difference over that of the reference, in float64.

    Both are the gradients of the same parameters in the same order, taken as one long vector. Zero against zero is
    0.0; anything else against a zero reference, and any difference that is not finite, is ``math.inf``.

    Raises:
        MeasurementError: another number of gradients, another shape, or one of the two is None where the other is
            not.

    >>> gradient_error([torch.tensor([3.0, 4.0]), None], [torch.tensor([3.0, 4.5]), None])
    0.1
    """
    if len(reference) != len(other):
        raise MeasurementError(f"{len(reference)} gradients against {len(other)}")
    difference_squared = reference_squared = 0.0
    for position, (expected, found) in enumerate(zip(reference, other, strict=True)):
        if expected is None and found is None:
            continue
        if expected is None or found is None:
            missing = "first" if expected is None else "second"
            raise MeasurementError(f"gradient {position} is None in the {missing} of the two only")
        if expected.shape != found.shape:
            raise MeasurementError(
                f"gradient {position}: shape {tuple(expected.shape)} against {tuple(found.shape)}"
            )
        exact = expected.detach().double()
        reference_squared += float(exact.square().sum())
        difference_squared += float((found.detach().double() - exact).square().sum())
    if not math.isfinite(difference_squared) or not math.isfinite(reference_squared):
        return math.inf
    if reference_squared == 0.0:
        return 0.0 if difference_squared == 0.0 else math.inf
    return math.sqrt(difference_squared / reference_squared)


@contextmanager
def fresh_cache() -> Iterator[None]:
    """Give Inductor an empty cache: a graph from an old one is not planned again, and has no report."""
    variable = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(variable)
    with tempfile.TemporaryDirectory(prefix="graphremat-", ignore_cleanup_errors=True) as folder:
        os.environ[variable] = folder
        forget_compiled()
        try:
            yield
        finally:
            forget_compiled()
            os.environ.pop(variable)
            if before is not None:
                os.environ[variable] = before
