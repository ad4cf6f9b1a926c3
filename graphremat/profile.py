"""Planning by what real steps take: the first steps are followed and timed, prices are corrected, the plan made anew.

The first step compiles the backward; the kernels of the next :data:`TIMED_STEPS` are timed one by one; one more, when
nothing of the compilation is left in memory, is followed by the allocator's events. What the kernels took, held against
the prices of the ops that they compute, corrects the prices (:mod:`graphremat.passes.attribute`). The graph is planned
once more with these under the same budget, and where that gives another plan, the two take turns by the clock
(:mod:`graphremat.autotune`), so a slower plan is never kept. Every one of these steps is a real one, whose gradients
are used. It is one round: a second one would correct prices by what is timed of the same kernels again.
"""

import gc
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from graphremat import report as reporting
from graphremat.dumps import Dumps
from graphremat.errors import DumpError
from graphremat.kernel_clock import Code, Stopwatch
from graphremat.measure import MeasurementError, byte_curve
from graphremat.passes import torch_private as private
from graphremat.passes.attribute import Attribution, TimedCall
from graphremat.region import Compiled
from graphremat.report import Report, Truth
from graphremat.report_page import add_page
from graphremat.watch import run_watched

log = logging.getLogger("graphremat")

TIMED_STEPS = 3
"""Steps in which kernels are timed; the fastest run of each counts."""
MOST_DISTURBED = 3
"""Steps that may be disturbed (a second call before the backward of the first) before nothing is measured."""

Continue = Callable[[Compiled, Attribution], Callable[..., Any]]
"""What runs from now on, given the plan that was measured and what was found."""


class Profiled:
    """Callable as the compiled graph is."""

    def __init__(self, first: Compiled, device: torch.device, settled: Continue) -> None:
        self._first = first
        self._settled = settled
        self._kept: Callable[..., Any] | None = None
        times = [partial(_Times, first, device)] * TIMED_STEPS
        self._plans: list[Callable[[], _Sample]] = [_Sample, *times, partial(_Peak, device)]
        """What the next steps are for: the first compiles the backward."""
        self._running: _Sample | None = None
        self._taken: list[_Sample] = []
        self._disturbed = 0

    def __call__(self, *arguments: Any) -> Any:
        if self._kept is None:
            self._close_last()
        if self._kept is None and not self._plans:
            self._kept = self._measured()
        if self._kept is not None:
            return self._kept(*arguments)
        sample = self._plans[0]()
        out, differentiates = run_watched(self._first.run, arguments, sample)
        if differentiates:
            self._running = sample
        else:
            sample.drop()
        return out

    def _close_last(self) -> None:
        """Keep what the last step gave, or drop it where its backward has not come."""
        sample, self._running = self._running, None
        if sample is None:
            return
        if sample.done:
            self._taken.append(sample)
            self._plans.pop(0)
            return
        sample.drop()
        self._disturbed += 1
        if self._disturbed >= MOST_DISTURBED:
            log.info("the steps of the graph are not one forward and one backward each: it is not profiled")
            self._kept = self._first.run

    def _measured(self) -> Callable[..., Any]:
        first, report = self._first, self._first.report
        assert first.attribute is not None
        assert report is not None
        times = [sample for sample in self._taken if isinstance(sample, _Times)]
        (peak,) = (sample for sample in self._taken if isinstance(sample, _Peak))
        found = first.attribute(*(_fastest([t.calls[k] for t in times]) for k in range(2)))
        truth = truth_of(report, found, peak.bytes_over_inputs, min(t.seconds for t in times))
        measured = replace(first, report=replace(report, truth=truth))
        assert measured.report is not None
        reporting.record(measured.report)
        log.info("graph %d in real steps:\n%s", report.graph, truth)
        if report.dump_dir is not None:
            try:
                dumps = Dumps(Path(report.dump_dir))
                dumps.write("70-truth.md", truth.to_markdown)
                dumps.write("report.json", measured.report.to_json)
                dumps.write("report.txt", lambda: f"{measured.report}\n")
                add_page(dumps)
            except DumpError as error:  # training goes on
                log.warning("%s", error)
        self._taken.clear()
        return self._settled(measured, found)


def truth_of(report: Report, found: Attribution, peak_over_inputs: int | None, seconds: float) -> Truth:
    """What was measured of a step beside what its report says."""
    return Truth(
        peak_bytes=None if peak_over_inputs is None else report.input_bytes + peak_over_inputs,
        planned_peak_bytes=report.planned_peak_bytes,
        generated_peak_bytes=report.generated_peak_bytes,
        step_seconds=seconds,
        planned_step_seconds=report.step_seconds,
        call_seconds=found.seconds,
        attributed_seconds=found.attributed_seconds,
        recomputed_seconds=found.recomputed_seconds,
        planned_recomputed_seconds=report.recomputed_seconds,
        calls=found.calls,
    )


def _fastest(runs: Sequence[Sequence[TimedCall]]) -> list[TimedCall]:
    return [min(same, key=lambda call: call.seconds) for same in zip(*runs, strict=True)]


class _Sample:
    """One step, of which nothing is measured. It is dropped where its backward does not come before the next step."""

    def __init__(self) -> None:
        self.done = False
        """Whether the step is over."""
        self.dropped = False

    def drop(self) -> None:
        self.dropped = True

    def forward_begins(self) -> None: ...

    def forward_ends(self) -> None: ...

    def backward_begins(self) -> None: ...

    def backward_ends(self) -> None:
        self.done = True


class _Peak(_Sample):
    """Follows the allocator from the start of a forward to the end of its backward. Python's garbage collector runs
    before, and is off meanwhile: what it frees in a step was alive before, so it would hide as much of the peak, and
    the CPU's allocator does not know the size of such blocks."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.bytes_over_inputs: int | None = None
        self._device = device
        self._collecting = False
        self._profile: Any = None
        self._call_off: Callable[[], None] = lambda: None
        self._before = 0

    def forward_begins(self) -> None:
        if self._device.type not in ("cpu", "cuda") or (
            self._device.type == "cpu" and private.profiler_is_running()
        ):
            log.info(
                "the peak of the step is not followed: there is another profiler, or no counter of this device"
            )
            return
        gc.collect()
        self._collecting = gc.isenabled()
        gc.disable()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        else:
            self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self._profile.start()
            self._call_off = private.after_next_backward(self._backward_returned)

    def backward_ends(self) -> None:
        if self.dropped or self._profile is not None:
            return
        if self._device.type == "cuda":
            self.bytes_over_inputs = torch.cuda.max_memory_allocated(self._device) - self._before
        self._stopped()
        self.done = True

    def _backward_returned(self) -> None:
        recorded = self._stopped()
        self.done = not self.dropped
        if recorded is not None:
            events = [e for e in private.profiled_memory_events(recorded) if e.device_type == "cpu"]
            try:
                self.bytes_over_inputs = max(byte_curve(events), default=0)
            except MeasurementError as error:
                log.info("the peak of the step could not be followed: %s", error)

    def drop(self) -> None:
        super().drop()
        self._stopped()

    def _stopped(self) -> Any:
        self._call_off()
        recorded, self._profile = self._profile, None
        if recorded is not None:
            recorded.stop()
        if self._collecting:
            self._collecting = False
            gc.enable()
        return recorded


class _Times(_Sample):
    """Times the calls of the forward and of the backward."""

    def __init__(self, first: Compiled, device: torch.device) -> None:
        super().__init__()
        self.seconds = 0.0
        self.calls: list[list[TimedCall]] = []
        self._codes = first.codes
        self._stopwatch = Stopwatch(device)
        self._began = 0.0

    def _code(self, number: int) -> Code | None:
        return self._codes[number] if number < len(self._codes) else None

    def _start(self, code: Code | None) -> None:
        if code is not None:
            code.start(self._stopwatch.tick)
        self._began = time.perf_counter()

    def _stop(self, code: Code | None) -> None:
        self.seconds += time.perf_counter() - self._began
        self._stopwatch.tick(-1)
        seconds = self._stopwatch.seconds()
        if code is not None:
            code.stop()
        calls = code.calls if code is not None else ()
        self.calls.append([replace(c, seconds=seconds.get(k, 0.0)) for k, c in enumerate(calls)])

    def forward_begins(self) -> None:
        self._start(self._code(0))

    def forward_ends(self) -> None:
        self._stop(self._code(0))

    def backward_begins(self) -> None:
        if not self.dropped:
            self._start(self._code(1))

    def backward_ends(self) -> None:
        if not self.dropped:
            self._stop(self._code(1))
            self.done = True

    def drop(self) -> None:
        super().drop()
        for code in self._codes:
            if code is not None:
                code.stop()
