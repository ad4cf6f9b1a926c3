"""The exact peak of a step, by running what will run on tensors without data and following every storage.

Inductor's generated wrappers are executed as they are, with kernels that do nothing and tensors on the ``meta`` device,
so each allocation, reuse and ``del`` happens where it will happen. For a step that is not lowered, the two FX graphs
are walked op by op instead, each value freed after its last use.

What of torch it relies on: a wrapper is a Python module with a function ``call(list_of_inputs)`` that clears its list;
it allocates through names that start with ``empty_strided`` and through ATen calls; it gets kernels from an object of
class ``AsyncCompile``; storages keep their Python object, so a weak reference tells when one dies. AOTAutograd hands
the wrapper's backward its saved tensors and tangents in a list that it keeps no copy of; ``fx.Interpreter.boxed_run``
frees a value after the node that reads it last, and what no node reads at the end.
"""

import ast
import itertools
import operator
import re
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import CodeType
from typing import Any, Literal, TypeAlias

import torch
from torch import fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from graphremat.errors import PlanningError
from graphremat.lowering import (
    GeneratedCode,
    SymbolSpec,
    TensorSpec,
    describe_inputs,
    output_names,
    output_nodes,
    placeholder_values,
)
from graphremat.passes.problem import Problem
from graphremat.passes.replay import Replay
from graphremat.passes.torch_private import HigherOrderOperator, disable_current_modes, storage_key
from graphremat.scratch import scratch_bytes

Phase: TypeAlias = Literal["inputs", "forward", "backward"]


@dataclass(frozen=True)
class StepTruth:
    """What one forward and backward keep alive, in bytes of the device.

    Attributes:
        peak_bytes: the most that is alive at once, inputs included.
        input_bytes: parameters, buffers and batch, alive for the whole step; views of one storage count once.
        forward_peak_bytes, backward_peak_bytes: the same of each half.
        saved_bytes: alive between the halves, and neither an input nor an output for the user.
        gradient_bytes: what the backward returns and was not alive before it.
        peak_at: "phase:name" of the kernel, call or allocation where the peak is reached first.
        alive_at_peak: (name, bytes) of what is alive there, largest first.
        curve: (label, bytes alive after it) of every allocation, free, kernel and call.
        forward_kernels, backward_kernels: kernels and calls in the order in which they run.
        unfollowed: why the code could not be followed without data; the bytes are then those of the planner's replay,
            and there is no curve. Empty where the bytes are those of the code.
    """

    peak_bytes: int
    input_bytes: int
    forward_peak_bytes: int
    backward_peak_bytes: int
    saved_bytes: int
    gradient_bytes: int
    peak_at: str
    alive_at_peak: tuple[tuple[str, int], ...]
    curve: tuple[tuple[str, int], ...]
    forward_kernels: tuple[str, ...]
    backward_kernels: tuple[str, ...]
    unfollowed: str = ""


def replayed_truth(problem: Problem, run: Replay, unfollowed: str) -> StepTruth:
    """What the planner's replay says, for code that cannot be followed."""
    phases = run.curve[: run.forward_length], run.curve[run.forward_length :]
    forward, backward = (int(part.max()) if len(part) else problem.input_bytes for part in phases)
    return StepTruth(
        peak_bytes=run.peak_bytes,
        input_bytes=problem.input_bytes,
        forward_peak_bytes=forward,
        backward_peak_bytes=backward,
        saved_bytes=run.saved_bytes,
        gradient_bytes=problem.gradient_bytes,
        peak_at=f"{run.peak_phase.value}:op {run.peak_position} of the plan",
        alive_at_peak=tuple(run.alive_at(problem, run.peak_position)),
        curve=(),
        forward_kernels=(),
        backward_kernels=(),
        unfollowed=unfollowed,
    )


def step_truth(
    forward: GeneratedCode,
    backward: GeneratedCode,
    *,
    forward_outputs: Sequence[str | None],
    num_user_outputs: int,
    num_mutated_inputs: int = 0,
    tangents_held: bool = False,
    round_to_bytes: int = 1,
) -> StepTruth:
    """Follow the storages of both generated wrappers, forward and then backward.

    Args:
        forward, backward: as :func:`graphremat.lowering.generate_step_code` gives them.
        forward_outputs: the name of each forward output's node, None for none. Where the backward has a placeholder of
            that name it receives that very output; every other placeholder is a tangent, and is allocated when the
            backward starts.
        num_user_outputs: how many outputs, after the mutated inputs, the caller holds until the backward is over.
        num_mutated_inputs: how many outputs come first that are copied into inputs and dropped when the forward ends.
        tangents_held: whether the caller keeps all tangents alive through the backward; otherwise only those of scalars
            are, and the backward frees the others after their last use.
        round_to_bytes: what a device's allocator rounds the size of every storage up to.

    Raises:
        PlanningError: a wrapper does something that can't be followed without data.
    """
    found: list[StepTruth] = []
    for branch in (True, False):
        ledger = _Ledger(round_to_bytes, _counted_device((*forward.inputs, *backward.inputs)), branch)
        programs = _WrapperProgram(forward, ledger), _WrapperProgram(backward, ledger)
        found.append(
            _run_step(ledger, *programs, forward_outputs, num_user_outputs, num_mutated_inputs, tangents_held)
        )
        if not ledger.asked:
            break
    return max(found, key=lambda truth: truth.peak_bytes)


def dry_run_graphs(
    forward: fx.GraphModule,
    backward: fx.GraphModule,
    *,
    num_user_outputs: int,
    num_mutated_inputs: int = 0,
    tangents_held: bool = False,
    round_to_bytes: int = 1,
) -> StepTruth:
    """Follow the storages of the two graphs run op by op, as ``lowering="aot_eager"`` runs them.

    The arguments and errors are those of :func:`step_truth`. Neither graph is changed.
    """
    forward_inputs = _described_placeholders(forward)
    backward_inputs = _described_placeholders(backward)
    ledger = _Ledger(round_to_bytes, _counted_device((*forward_inputs, *backward_inputs)))
    forward_program = _GraphProgram(forward, forward_inputs, ledger)
    backward_program = _GraphProgram(backward, backward_inputs, ledger)
    names = output_names(forward)
    return _run_step(
        ledger, forward_program, backward_program, names, num_user_outputs, num_mutated_inputs, tangents_held
    )


# --- the step ---


def _run_step(
    ledger: "_Ledger",
    forward: "_WrapperProgram | _GraphProgram",
    backward: "_WrapperProgram | _GraphProgram",
    forward_outputs: Sequence[str | None],
    num_user_outputs: int,
    num_mutated_inputs: int,
    tangents_held: bool,
) -> StepTruth:
    with disable_current_modes(), torch.no_grad():
        inputs = _materialize(forward.inputs, ledger)
        held = [*inputs, *forward.hold_constants(), *backward.hold_constants()]
        input_bytes = ledger.alive_bytes

        ledger.phase = "forward"
        outputs = forward.run(list(inputs))
        if len(outputs) != len(forward_outputs):
            raise PlanningError(
                f"the forward returned {len(outputs)} values, but {len(forward_outputs)} outputs were named"
            )
        del outputs[:num_mutated_inputs]
        held += outputs[:num_user_outputs]
        wanted = {spec.name for spec in backward.inputs}
        names = forward_outputs[num_mutated_inputs:]
        passed = {name: outputs[index] for index, name in enumerate(names) if name in wanted}
        outputs.clear()
        saved_bytes = ledger.bytes_of(passed.values(), without=ledger.serials_of(held))

        ledger.phase = "backward"
        tangents = _materialize([spec for spec in backward.inputs if spec.name not in passed], ledger)
        # backward() itself holds on to the tangent of the loss that it is called on; others die with their last use.
        held += [tangent for tangent in tangents if tangents_held or _is_scalar(tangent)]
        before = ledger.serials_of([*passed.values(), *tangents, *held])
        tangents.reverse()
        arguments = [passed[spec.name] if spec.name in passed else tangents.pop() for spec in backward.inputs]
        passed.clear()
        gradients = backward.run(arguments)
        gradient_bytes = ledger.bytes_of(gradients, without=before)
        ledger.recording = False
    return ledger.summary(input_bytes=input_bytes, saved_bytes=saved_bytes, gradient_bytes=gradient_bytes)


def _empty_storage(size: int) -> torch.UntypedStorage:
    return torch.empty(size, dtype=torch.uint8, device="meta").untyped_storage()


def _is_scalar(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() == 0


def _materialize(specs: Iterable[TensorSpec | SymbolSpec], ledger: "_Ledger") -> list[Any]:
    """Meta tensors for the specs; those of one storage share it."""
    storages: dict[int, torch.UntypedStorage] = {}
    values: list[Any] = []
    for spec in specs:
        if isinstance(spec, SymbolSpec):
            values.append(spec.value)
            continue
        storage = storages.get(spec.storage)
        if storage is None:
            storage = storages[spec.storage] = _empty_storage(spec.storage_bytes)
        tensor = torch.empty(0, dtype=spec.dtype, device="meta")
        tensor.set_(storage, spec.storage_offset, spec.shape, spec.stride)
        ledger.track(tensor, spec.name, spec.device.type)
        values.append(tensor)
    return values


def _described_placeholders(gm: fx.GraphModule) -> tuple[TensorSpec | SymbolSpec, ...]:
    names = [node.name for node in gm.graph.find_nodes(op="placeholder")]
    return describe_inputs(names, placeholder_values(gm))


def _counted_device(specs: Iterable[TensorSpec | SymbolSpec]) -> str:
    """The accelerator if an input lies on one, else the CPU: bytes elsewhere are not the device's."""
    types = {spec.device.type for spec in specs if isinstance(spec, TensorSpec)}
    return min(types - {"cpu", "meta"}, default="cpu")


# --- storages ---


@dataclass
class _Ledger:
    """Every storage that is alive, and every event that changed it.

    A storage is known by the address of its implementation while it lives, and by a serial number for good.
    """

    round_to_bytes: int
    device_type: str
    branch: bool = True  # which way the code goes where that depends on data
    asked: Counter[int] = field(default_factory=Counter)  # how often, by the line of the wrapper
    phase: Phase = "inputs"
    alive_bytes: int = 0
    recording: bool = True  # false when the step is over: what dies from then on is no event
    node: str | None = None  # the graph's node that is being evaluated
    names: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    # (phase, label, change of bytes, serial number of the storage); the number is -1 where a kernel or call starts, and
    # -2 where one ends that had bytes of its own
    events: list[tuple[Phase, str, int, int]] = field(default_factory=list)
    _alive: dict[int, tuple["weakref.ref[torch.UntypedStorage]", int]] = field(default_factory=dict)
    _devices: dict[int, str] = field(default_factory=dict)

    def track(self, tensor: torch.Tensor, name: str, device_type: str) -> None:
        """Count the tensor's storage from now until it dies, unless it is known already."""
        key = storage_key(tensor)
        if key in self._alive:
            return
        storage = tensor.untyped_storage()
        size = -(-storage.nbytes() // self.round_to_bytes) * self.round_to_bytes
        serial = len(self.names)
        self.names.append(name)
        self.sizes.append(size if device_type == self.device_type else 0)
        self._alive[key] = (weakref.ref(storage, lambda _: self._died(key, serial)), serial)
        self._devices[key] = device_type
        self._record(name, self.sizes[serial], serial)

    def called(self, name: str, scratch: int = 0) -> None:
        """A kernel or an op ran, with so many bytes of its own while it did."""
        self._record(name, scratch, -1)
        if scratch:
            self._record(f"{name} (end)", -scratch, -2)

    def decide(self, line: int) -> bool:
        """Which way to go where the code asks the data. What keeps asking is a loop, and ends after two rounds."""
        self.asked[line] += 1
        return self.branch and self.asked[line] <= 2

    def device_of(self, values: Iterable[Any]) -> str:
        """Where the first known tensor among the values lies."""
        for value in values:
            if isinstance(value, torch.Tensor) and (key := storage_key(value)) in self._devices:
                return self._devices[key]
        return self.device_type

    def serials_of(self, values: Iterable[Any]) -> set[int]:
        """The storages of the tensors among the values."""
        return {self._alive[storage_key(value)][1] for value in values if isinstance(value, torch.Tensor)}

    def bytes_of(self, values: Iterable[Any], *, without: set[int]) -> int:
        """Bytes of the storages of the tensors among the values, each counted once."""
        return sum(self.sizes[serial] for serial in self.serials_of(values) - without)

    def summary(self, *, input_bytes: int, saved_bytes: int, gradient_bytes: int) -> StepTruth:
        curve: list[tuple[str, int]] = []
        peaks: dict[Phase, int] = {"inputs": 0, "forward": 0, "backward": 0}
        alive_bytes = 0
        for phase, label, change, _ in self.events:
            alive_bytes += change
            curve.append((f"{phase}:{label}", alive_bytes))
            peaks[phase] = max(peaks[phase], alive_bytes)
        peak_bytes = max(peaks.values())
        first = next((index for index, (_, size) in enumerate(curve) if size == peak_bytes), 0)
        # A buffer is allocated just before the kernel that fills it: the kernel is the better name for the moment.
        at = first
        while at + 1 < len(curve) and curve[at + 1][1] == peak_bytes and self.events[at][3] >= 0:
            at += 1
        alive: dict[int, tuple[str, int]] = {}
        for _, label, change, serial in self.events[: first + 1]:
            if serial == -2:
                del alive[-1]
            elif serial in alive:
                del alive[serial]
            elif change:
                alive[serial] = (label if serial != -1 else f"inside {label}", change)
        return StepTruth(
            peak_bytes=peak_bytes,
            input_bytes=input_bytes,
            forward_peak_bytes=peaks["forward"] or input_bytes,
            backward_peak_bytes=peaks["backward"],
            saved_bytes=saved_bytes,
            gradient_bytes=gradient_bytes,
            peak_at=curve[at][0] if curve else "inputs",
            alive_at_peak=tuple(sorted(alive.values(), key=lambda holder: -holder[1])),
            curve=tuple(curve),
            forward_kernels=self._called_in("forward"),
            backward_kernels=self._called_in("backward"),
        )

    def _called_in(self, wanted: Phase) -> tuple[str, ...]:
        return tuple(label for phase, label, _, serial in self.events if phase == wanted and serial == -1)

    def _record(self, label: str, change: int, serial: int) -> None:
        if self.recording:
            self.alive_bytes += change
            self.events.append((self.phase, label, change, serial))

    def _died(self, key: int, serial: int) -> None:
        del self._alive[key], self._devices[key]
        self._record(self.names[serial], -self.sizes[serial], serial)


RNG_STATE_BYTES = 5056
"""Of the CPU's generator, as ``torch.get_rng_state`` gives it. An accelerator's state lies on the CPU as well."""


class _Calls(TorchDispatchMode):
    """Sees every ATen call: sends what it would allocate to the meta device, and counts the storages it returns.

    A flag that is read decides which way the code goes: see :meth:`_Ledger.decide`. Of the higher-order operators it knows those that keep a random state and draw with it again."""

    supports_higher_order_operators = True

    def __init__(self, ledger: _Ledger) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ledger = ledger

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            return self._higher_order(func, args, kwargs)
        if func is torch.ops.aten._local_scalar_dense.default and args[0].dtype is torch.bool:
            return self.ledger.decide(_line_of_wrapper())
        devices = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.device)]
        if devices:
            meta = torch.device("meta")
            args, kwargs = tree_map_only(torch.device, lambda _: meta, (args, kwargs))
        if kwargs.get("pin_memory"):
            kwargs = {**kwargs, "pin_memory": False}
        try:
            result = func(*args, **kwargs)
        except (NotImplementedError, RuntimeError) as error:
            raise PlanningError(f"{func} can't be followed without data: {error}") from error
        fresh = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        if fresh and "meta" in {leaf.device.type for leaf in fresh}:
            given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            device_type = self.ledger.device_of(given)
            if devices and devices[0].type != "meta":
                device_type = devices[0].type
            name = self.ledger.node or _assigned_name() or str(func)
            for leaf in fresh:
                self.ledger.track(leaf, name, device_type)
        if not getattr(func, "is_view", False):
            scratch = scratch_bytes(str(func), args) if self.ledger.device_type == "cpu" else 0
            self.ledger.called(self.ledger.node or str(func), scratch)
        return result

    def _higher_order(self, func: HigherOrderOperator, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        match func.name():
            case "run_and_save_rng_state":
                drawn = args[0](*args[1:], **kwargs)
                return torch.empty(RNG_STATE_BYTES, dtype=torch.uint8, device="cpu"), drawn
            case "run_with_rng_state":
                return args[1](*args[2:], **kwargs)
            case "graphsafe_run_with_rng_state":
                return args[0](*args[1:], **{k: v for k, v in kwargs.items() if k != "rng_state"})
        raise PlanningError(f"{func.name()} can't be followed without data")


# --- wrappers ---

_WRAPPER_FILES = "<wrapper "
_ASSIGNMENT = re.compile(r"\s*([A-Za-z_]\w*(?:, [A-Za-z_]\w*)*) = ")
# What a wrapper for a device imports and this machine may lack; no allocation goes through them.
_STREAMS_AND_KERNELS = ("triton", "torch._C", "torch._inductor.runtime")


class _WrapperProgram:
    """A generated wrapper, executed with its kernels, allocations and devices replaced."""

    def __init__(self, code: GeneratedCode, ledger: _Ledger) -> None:
        self.inputs = code.inputs
        self.code = code
        self.ledger = ledger
        self.namespace: dict[str, Any] = {
            "__name__": "dry_run",
            "__file__": "dry_run",
            **dict(code.namespace),
        }
        # How each name is replaced once the wrapper has bound it, from what it was bound to.
        self.replacements: dict[str, Callable[[Any], Any]] = {
            "torch": lambda _: _Torch(),
            "AsyncCompile": lambda _: lambda: _Compiler(ledger),
            "extern_kernels": lambda kernels: _ExternKernels(kernels, ledger),
            "alloc_from_pool": lambda _: _alloc_from_pool,
            "assert_size_stride": lambda _: _restride,
            "assert_alignment": lambda _: _nothing,
            "get_raw_stream": lambda _: lambda _: 0,
        }

    def hold_constants(self) -> list[torch.Tensor]:
        """Load the wrapper's module; its constants count as inputs."""
        constants = _materialize(self.code.constants, self.ledger)
        self.namespace.update(zip((spec.name for spec in self.code.constants), constants, strict=True))
        _SOURCES[self.filename] = self.code.source.splitlines()
        for statement in ast.parse(self.code.source).body:
            self._execute(statement)
        return constants

    @property
    def filename(self) -> str:
        return f"{_WRAPPER_FILES}{id(self)}>"

    def run(self, arguments: list[Any]) -> list[Any]:
        """Call the wrapper; `arguments` is emptied, as the wrapper does to its list."""
        try:
            with _Calls(self.ledger):
                return list(self.namespace["call"](arguments))
        finally:
            del _SOURCES[self.filename]

    def _execute(self, statement: ast.stmt) -> None:
        code: CodeType = compile(ast.Module([statement], []), self.filename, "exec")
        try:
            exec(code, self.namespace)
        except ImportError as error:
            for name in _absent_names(statement, error):
                self.namespace[name] = _Absent()
        for name in [name for name in self.replacements if name in self.namespace]:
            self.namespace[name] = self.replacements.pop(name)(self.namespace[name])
        for name, value in self.namespace.items():
            if name.startswith("empty_strided") and not isinstance(value, _Allocator):
                self.namespace[name] = _Allocator(
                    self.ledger, name.removeprefix("empty_strided").removeprefix("_")
                )


# Source lines of the wrappers that are running now, by file name: storages are named by the line that allocates them.
_SOURCES: dict[str, list[str]] = {}


def _assigned_name() -> str | None:
    """The variable that the wrapper line which is running now assigns to."""
    source, line = _running()
    match = _ASSIGNMENT.match(_SOURCES[source][line - 1]) if source else None
    return match[1] if match else None


def _line_of_wrapper() -> int:
    return _running()[1]


def _running() -> tuple[str, int]:
    """The innermost wrapper that is running now, and its line; "" and 0 if none is."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename in _SOURCES:
            return frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]
    return "", 0


def _absent_names(statement: ast.stmt, error: ImportError) -> list[str]:
    """The names that a failed import of a device's tools would have bound."""
    if isinstance(statement, ast.ImportFrom):
        modules = [statement.module or ""]
    elif isinstance(statement, ast.Import):
        modules = [alias.name for alias in statement.names]
    else:
        modules = [""]
    if not all(module.startswith(_STREAMS_AND_KERNELS) for module in modules):
        raise PlanningError(f"the generated wrapper imports what this machine lacks: {error}") from error
    assert isinstance(statement, (ast.Import, ast.ImportFrom))
    return [alias.asname or alias.name.partition(".")[0] for alias in statement.names]


def _restride(tensor: torch.Tensor, size: Sequence[int], stride: Sequence[int], *_: Any) -> None:
    """A wrapper says which strides an op's result has; a meta kernel may choose others than the real one does (a
    convolution of channels-last tensors), and the scratch of a later op depends on them."""
    if tuple(tensor.shape) == tuple(size) and tensor.stride() != tuple(stride):
        tensor.as_strided_(size, stride)


def _nothing(*_: Any, **__: Any) -> None:
    """In place of a check that needs data."""


def _alloc_from_pool(
    pool: torch.Tensor, offset_bytes: int, dtype: torch.dtype, size: Sequence[int], stride: Sequence[int]
) -> torch.Tensor:
    """A view of the pool's storage."""
    view = torch.empty(0, dtype=dtype, device="meta")
    offset = (pool.storage_offset() * pool.element_size() + offset_bytes) // view.element_size()
    return view.set_(pool.untyped_storage(), offset, tuple(size), tuple(stride))


class _Allocator:
    """In place of the ``empty_strided`` functions."""

    def __init__(self, ledger: _Ledger, suffix: str) -> None:
        self.ledger = ledger
        # "empty_strided_cpu_pinned" is memory of the host, "empty_strided_p2p" of the device.
        self.device_type = {"": None, "cpu_pinned": "cpu", "p2p": ledger.device_type}.get(suffix, suffix)

    def __call__(
        self, size: Sequence[int], stride: Sequence[int], dtype: Any = None, *_: Any, **kwargs: Any
    ) -> Any:
        device_type = self.device_type or torch.device(kwargs["device"]).type
        with disable_current_modes():
            tensor = torch.empty_strided(size, stride, dtype=dtype or kwargs.get("dtype"), device="meta")
        self.ledger.track(tensor, _assigned_name() or "buffer", device_type)
        return tensor


class _Kernel:
    """In place of a compiled kernel."""

    def __init__(self, ledger: _Ledger, name: str) -> None:
        self.ledger = ledger
        self.name = name

    def __call__(self, *_: Any, **__: Any) -> None:
        self.ledger.called(self.name)

    run = __call__


class _Compiler:
    """In place of ``AsyncCompile``: every language gives a kernel that does nothing."""

    def __init__(self, ledger: _Ledger) -> None:
        self._ledger = ledger

    def wait(self, scope: dict[str, Any]) -> None:
        """The module is loaded: kernels are called by their variables' names."""
        for name, value in scope.items():
            if isinstance(value, _Kernel):
                value.name = name

    def __getattr__(self, language: str) -> Callable[..., _Kernel]:
        return lambda *_, **__: _Kernel(self._ledger, language)


class _ExternKernels:
    """In place of ``extern_kernels``: what writes to ``out=`` allocates nothing and isn't run."""

    def __init__(self, kernels: Any, ledger: _Ledger) -> None:
        self._kernels = kernels
        self._ledger = ledger

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if kwargs.get("out") is not None:
                self._ledger.called(f"extern_kernels.{name}")
                return kwargs["out"]
            return getattr(self._kernels, name)(*args, **kwargs)

        return call


class _Torch:
    """In place of ``torch``: guards and streams of devices do nothing."""

    def __getattr__(self, name: str) -> Any:
        if name in {"cuda", "xpu", "mtia"}:
            return _Accelerator(getattr(torch, name))
        return getattr(torch, name)


class _Accelerator:
    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        if name in {"_DeviceGuard", "device", "stream"}:
            return lambda *_: nullcontext()
        if name in {"set_device", "synchronize", "_set_device"}:
            return _nothing
        return getattr(self._module, name)


class _Absent:
    """In place of a device's tool that isn't installed: usable as any function, decorator or namespace."""

    def __getattr__(self, name: str) -> "_Absent":
        return self

    def __call__(self, *_: Any, **__: Any) -> "_Absent":
        return self


# --- graphs ---


class _GraphProgram:
    """An FX graph, walked node by node; a value is freed after its last use, as :class:`torch.fx.Interpreter` does."""

    def __init__(
        self, gm: fx.GraphModule, inputs: tuple[TensorSpec | SymbolSpec, ...], ledger: _Ledger
    ) -> None:
        self.inputs = inputs
        self.ledger = ledger
        self.gm = gm
        self.constants: dict[str, Any] = {}
        self.dropped_after = _last_uses(gm.graph)

    def hold_constants(self) -> list[torch.Tensor]:
        """The tensors that the graph reads as attributes; they count as inputs."""
        for node in self.gm.graph.find_nodes(op="get_attr"):
            value = operator.attrgetter(str(node.target))(self.gm)
            if isinstance(value, torch.Tensor):
                (spec,) = describe_inputs([str(node.target)], [value])
                (value,) = _materialize([spec], self.ledger)
            self.constants[str(node.target)] = value
        return [value for value in self.constants.values() if isinstance(value, torch.Tensor)]

    def run(self, arguments: list[Any]) -> list[Any]:
        """Walk the graph; `arguments` is emptied."""
        with _Calls(self.ledger):
            return self.walk(arguments)

    def walk(self, arguments: list[Any]) -> list[Any]:
        """The same where calls are seen already."""
        values: dict[fx.Node, Any] = dict(
            zip(self.gm.graph.find_nodes(op="placeholder"), arguments, strict=True)
        )
        arguments.clear()
        for node in self.gm.graph.nodes:
            if node.op in {"placeholder", "output"}:
                continue
            self.ledger.node = node.name
            values[node] = self._evaluate(node, values)
            for dead in self.dropped_after.get(node, ()):
                del values[dead]
        self.ledger.node = None
        return [values[out] if isinstance(out, fx.Node) else out for out in output_nodes(self.gm)]

    def _evaluate(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        if node.op == "get_attr":
            return self.constants[str(node.target)]
        if node.op != "call_function":
            raise PlanningError(f"node {node.name} is a {node.op}, which no graph from AOTAutograd has")
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda read: values[read])
        assert callable(node.target)
        try:
            return node.target(*args, **kwargs)
        except PlanningError:
            if node.target is torch.ops.higher_order.invoke_subgraph:
                return self._called_region(args)
            if node.meta.get("val") is None:
                raise
            return self._as_traced(node)

    def _called_region(self, args: Sequence[Any]) -> tuple[Any, ...]:
        body, _, *operands = args
        program = _GraphProgram(body, _described_placeholders(body), self.ledger)
        program.hold_constants()
        return tuple(program.walk(list(operands)))

    def _as_traced(self, node: fx.Node) -> Any:
        """New tensors like those that the node had when it was traced: for sizes that depend on data, and for operators
        that hold graphs of their own, of which the one that takes the most is counted."""
        leaves, structure = tree_flatten(node.meta["val"])
        bodies = [
            self.constants.get(str(read.target)) for read in node.all_input_nodes if read.op == "get_attr"
        ]
        with disable_current_modes():
            inside = [self._inside(body) for body in bodies if isinstance(body, fx.GraphModule)]
            found = _materialize(describe_inputs([node.name] * len(leaves), leaves), self.ledger)
        self.ledger.called(node.name, max(inside, default=0))
        return tree_unflatten(found, structure)

    def _inside(self, body: fx.GraphModule) -> int:
        """What a graph takes while it runs, beyond its inputs and outputs."""
        ledger = _Ledger(self.ledger.round_to_bytes, self.ledger.device_type)
        program = _GraphProgram(body, _described_placeholders(body), ledger)
        held = _materialize(program.inputs, ledger)
        held += program.hold_constants()
        before = ledger.serials_of(held)
        input_bytes = ledger.alive_bytes
        outputs = program.run(held[: len(program.inputs)])
        output_bytes = ledger.bytes_of(outputs, without=before)
        ledger.recording = False
        peak = max(itertools.accumulate(change for _, _, change, _ in ledger.events))
        return max(0, peak - input_bytes - output_bytes)


def _last_uses(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """What is dropped after each node: values that no later node reads. What no node reads at all stays to the end."""
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        for read in node.all_input_nodes:
            last[read] = node
    dropped: dict[fx.Node, list[fx.Node]] = {}
    for node, reader in last.items():
        dropped.setdefault(reader, []).append(node)
    return dropped
