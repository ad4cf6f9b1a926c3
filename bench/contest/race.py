"""Measures contestants on one workload: peak, gradients, FLOPs, compile time, and steps in turns.

Everything here runs in a process of its own, which :mod:`.runner` watches: what takes the process down is then a
failure of one contestant and not of the run.
"""

import copy
import os
import platform
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import graphremat
from bench.contest.contestants import REFERENCE_CONTESTANT, Contestant
from bench.contest.rows import OURS, REFERENCE, Row
from bench.contest.workload import Workload
from bench.keep_budget import storage_bytes
from bench.malloc import keep_freed_memory
from bench.sources import digest_of
from graphremat.measure import gradient_error, measure_peak, time_interleaved
from graphremat.passes.flops import attention_flops, grouped_mm_flops
from graphremat.passes.torch_private import compiled_graphs, kernel_metrics, many_recompilations

STEP_SEED = 7
"""Random numbers of a step start here, the same for every contestant."""
GROUP = 8
"""So many contestants, and the reference, take turns with each other before all do: what is written down then is not
lost if a later one takes the process down."""
MOST_GRADIENT_ERROR = 1e-4
"""Relative, of the whole gradient in float32, of sums in another order; more is another gradient: a failure. Where
torch.compile itself is further from eager, as with batch norms at their first step, twice that is allowed."""
CONTEST_SOURCES = ("bench/networks/*.py", "bench/contest/[clpw]*.py")
OUR_SOURCES = ("graphremat/*.py", "passes/**/*.py")


def sources_of(contestant: Contestant) -> str:
    """Digest of what a measurement depends on: only ours depends on the project."""
    return digest_of((*CONTEST_SOURCES, *OUR_SOURCES) if contestant.family == OURS else CONTEST_SOURCES)


def new_row(contestant: Contestant, workload: str, size: str) -> Row:
    """A row that says what, where and when, with nothing measured yet."""
    return Row(
        workload,
        size,
        contestant.name,
        contestant.family,
        sources_of(contestant),
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        threads=torch.get_num_threads(),
        torch_version=torch.__version__,
        date=time.strftime("%Y-%m-%d"),
    )


def get_ready() -> None:
    """Settings of the process: nothing out of caches, many compiled versions of one function, and an allocator that is
    the same in every step."""
    torch.compiler.config.force_disable_caches = True
    warnings.filterwarnings("ignore", message="dynamo_pgo force disabled")
    many_recompilations()
    keep_freed_memory()


@dataclass
class Ready:
    """A contestant whose first step is over."""

    row: Row
    step: Callable[[], None]


class Track:
    """One workload, and the gradients that others are held against: eager's, or torch.compile's where a step is
    compiled. The two draw other random numbers, and where a ReLU is at zero by one and not by the other, the gradient
    of a deep network is another one (1e-4 in ``post_norm``); what is told of torch.compile is its error by eager."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.parameters = [p for p in workload.model.parameters() if p.requires_grad]
        self.buffers = [buffer.clone() for buffer in workload.model.buffers()]
        held = [*workload.model.parameters(), *workload.model.buffers(), *workload.inputs]
        self.held_bytes = storage_bytes(held)
        with _counting() as counter:
            self.eager = self._gradients(workload.model)
        self.eager_flops = counter.get_total_flops()
        self.gradient_bytes = storage_bytes([g for g in self.eager if g is not None])
        self.compiled: list[Tensor | None] = self.eager
        self.reference: Ready | None = None
        self.groups: list[list[Ready]] = []
        self.allowed_error = MOST_GRADIENT_ERROR

    def _gradients(self, call: Callable[..., Any]) -> list[Tensor | None]:
        """Of one step that starts from the buffers at the start."""
        self.clear()
        for buffer, start in zip(self.workload.model.buffers(), self.buffers, strict=True):
            buffer.data.copy_(start)
        self.step(call)
        found = [None if p.grad is None else p.grad.detach() for p in self.parameters]
        self.clear()
        return found

    def clear(self) -> None:
        """Drops the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def step(self, call: Callable[..., Any]) -> None:
        """One forward and backward from the step's seed."""
        torch.manual_seed(STEP_SEED)
        self.workload.loss(call(*self.workload.inputs)).backward()

    def prepare(self, contestant: Contestant) -> Ready:
        """The first step, which compiles, and everything that is not a time.

        Raises:
            Exception: whatever the contestant fails with.
        """
        row = new_row(contestant, self.workload.name, self.workload.size)
        is_eager = contestant.family.startswith("eager")
        kernels, reports = kernel_metrics()["generated_kernel_count"], len(graphremat.reports())
        graphs = compiled_graphs()
        start = time.perf_counter()
        call = contestant.prepare(replace(self.workload, model=with_own_code(self.workload.model)))
        gradients = self._gradients(call)
        first_step_seconds = time.perf_counter() - start
        is_reference = contestant.name == REFERENCE
        if is_reference:
            self.compiled = gradients
        by_eager = is_eager or (is_reference and not self.workload.random)
        error = gradient_error(self.eager if by_eager else self.compiled, gradients)
        del gradients
        if is_reference:
            self.allowed_error = max(MOST_GRADIENT_ERROR, 2 * error)
        flops = self._recomputed_flops(contestant, call, compiled_graphs() - graphs)
        peak = measure_peak(lambda: self.step(call), clear=self.clear)
        self.clear()
        row = replace(
            row,
            held_bytes=self.held_bytes,
            gradient_bytes=self.gradient_bytes,
            peak_bytes=peak.peak_bytes,
            gradient_error=error,
            recomputed_flops=flops,
            kernels=None if is_eager else kernel_metrics()["generated_kernel_count"] - kernels,
            first_step_seconds=first_step_seconds,
        )
        if contestant.family == OURS:
            row = replace(row, **_told_by_reports(graphremat.reports()[reports:]))
        if not error <= self.allowed_error:
            row = replace(row, failure=f"the gradient is off by {error:.1e}")

        def step() -> None:
            self.clear()
            self.step(call)

        return Ready(row, step)

    def _recomputed_flops(self, contestant: Contestant, call: Callable[..., Any], graphs: int) -> int | None:
        """Of one step; None where it is made of several compiled graphs: who calls them how often is not known."""
        if not graphs:
            with _counting() as counter:
                self._gradients(call)
            return int(counter.get_total_flops() - self.eager_flops)
        if graphs > 1 or contestant.flops is None:
            return None
        return contestant.flops.compiled - contestant.flops.joint

    def race(
        self, contestants: Sequence[Contestant], rounds: int, tell: Callable[[str, Row], None]
    ) -> list[Row]:
        """Prepares all and has them take turns, :data:`GROUP` at a time with the reference.

        Args:
            rounds: timed steps of each.
            tell: called with ``"start"`` and an empty row before a contestant is prepared, with ``"ready"`` when all
                but its time is known, and with ``"done"`` and the whole row.
        """
        rows = []
        for first in range(0, len(contestants), GROUP):
            self.reference = self.reference or self.prepare(REFERENCE_CONTESTANT())
            ready: list[Ready] = []
            for contestant in contestants[first : first + GROUP]:
                empty = new_row(contestant, self.workload.name, self.workload.size)
                tell("start", empty)
                try:
                    one = self.reference if contestant.name == REFERENCE else self.prepare(contestant)
                except Exception as error:  # noqa: BLE001  # a contestant may fail with anything; it is recorded
                    self.clear()
                    one = Ready(replace(empty, failure=line_of(error)), lambda: None)
                if one.row.failure is None:
                    ready.append(one)
                    tell("ready", one.row)
                else:
                    rows.append(one.row)
                    tell("done", one.row)
            for row in self._timed(ready, rounds):
                rows.append(row)
                tell("done", row)
            self.groups.append(ready)
        return rows

    def race_all(self, rounds: int, tell: Callable[[str, Row], None]) -> None:
        """All groups as one take turns once more: a machine's speed differs by some hundredths from the minutes of one
        group to those of the next, also in the ratio of two steps. Their rows are told anew, as in :meth:`race`."""
        if len(self.groups) > 1:
            for row in self._timed([one for group in self.groups for one in group], rounds):
                tell("done", row)

    def _timed(self, ready: Sequence[Ready], rounds: int) -> list[Row]:
        if not ready or self.reference is None:
            return []
        times = time_interleaved(
            {one.row.contestant: one.step for one in (self.reference, *ready)}, rounds=rounds
        )
        self.clear()
        reference = times[REFERENCE]
        return [
            replace(
                one.row,
                rounds=rounds,
                median_seconds=times[one.row.contestant].median_seconds,
                min_seconds=times[one.row.contestant].min_seconds,
                spread_seconds=times[one.row.contestant].spread_seconds,
                reference_seconds=reference.min_seconds,
                reference_median_seconds=reference.median_seconds,
            )
            for one in ready
        ]


def with_own_code(model: nn.Module) -> nn.Module:
    """The model with a copy of the code of its ``forward``, all else shared.

    Where Dynamo breaks a graph (``checkpoint_sequential`` makes it), it may give the code up for good, by its object:
    whoever is compiled later from the same code would get one graph for each block, and other peaks.
    """
    forward = type(model).forward
    copied = FunctionType(
        forward.__code__.replace(),
        forward.__globals__,
        forward.__name__,
        forward.__defaults__,
        forward.__closure__,
    )
    copied.__kwdefaults__ = forward.__kwdefaults__
    shown = copy.copy(model)
    shown.forward = MethodType(copied, shown)
    return shown


def _counting() -> FlopCounterMode:
    """torch's counter, told of what it does not know: attention on the CPU, and products by groups."""

    def forward(query: Any, key: Any, value: Any, dropout: float = 0.0, is_causal: bool = False, *_: Any,
                **__: Any) -> int:  # fmt: skip
        return attention_flops(query, key, value, causal=is_causal, backward=False)

    def backward(grad: Any, query: Any, key: Any, value: Any, out: Any, lse: Any, dropout: float, is_causal: bool,
               *_: Any, **__: Any) -> int:  # fmt: skip
        return attention_flops(query, key, value, causal=is_causal, backward=True)

    def grouped(a: Any, b: Any, *_: Any, **__: Any) -> int:
        return grouped_mm_flops(a, b)

    aten = torch.ops.aten
    known = {
        aten._scaled_dot_product_flash_attention_for_cpu: forward,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
        aten._grouped_mm: grouped,
    }
    return FlopCounterMode(display=False, custom_mapping=known)


def _told_by_reports(reports: Sequence[graphremat.Report]) -> dict[str, Any]:
    """What our backend says of its graphs; peaks of several are not sums, nor FLOPs of those that are called more than
    once, so they are only told of one."""
    if not reports:
        raise RuntimeError("nothing was planned")
    told: dict[str, Any] = {"plan_seconds": sum(report.plan_seconds for report in reports)}
    if len(reports) == 1:
        (report,) = reports
        told |= {
            "recomputed_flops": report.recomputed_flops,
            "budget_bytes": None if report.budget_bytes is None else report.budget_bytes - report.input_bytes,
            "planned_bytes": report.planned_peak_bytes - report.input_bytes,
            "generated_bytes": report.generated_peak_bytes - report.input_bytes,
        }
    return told


def line_of(error: Exception) -> str:
    """What an exception says first."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
