"""Which storages are alive while code runs on tensors without data.

What of torch it relies on: storages keep their Python object, so a weak reference tells when one dies; a dispatch mode
sees every ATen call.
"""

import re
import sys
import weakref
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from graphremat.errors import PlanningError
from graphremat.lowering import SymbolSpec, TensorSpec, describe_inputs, placeholder_values
from graphremat.passes.scratch import scratch_bytes, spare_bytes
from graphremat.passes.sizes import rounded_up
from graphremat.passes.torch_private import HigherOrderOperator, disable_current_modes, storage_key

Phase: TypeAlias = Literal["inputs", "forward", "backward"]


@dataclass
class StorageLog:
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

    def track(self, tensor: torch.Tensor, name: str, device_type: str, spare: int = 0) -> None:
        """Count the tensor's storage, and so many bytes more, from now until it dies, unless it is known already."""
        key = storage_key(tensor)
        if key in self._alive:
            return
        storage = tensor.untyped_storage()
        size = rounded_up(storage.nbytes() + spare, self.round_to_bytes)
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

    def _record(self, label: str, change: int, serial: int) -> None:
        if self.recording:
            self.alive_bytes += change
            self.events.append((self.phase, label, change, serial))

    def _died(self, key: int, serial: int) -> None:
        del self._alive[key], self._devices[key]
        self._record(self.names[serial], -self.sizes[serial], serial)


def _empty_storage(size: int) -> torch.UntypedStorage:
    return torch.empty(size, dtype=torch.uint8, device="meta").untyped_storage()


def materialize(specs: Iterable[TensorSpec | SymbolSpec], log: StorageLog) -> list[Any]:
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
        log.track(tensor, spec.name, spec.device.type)
        values.append(tensor)
    return values


def described_placeholders(gm: fx.GraphModule) -> tuple[TensorSpec | SymbolSpec, ...]:
    names = [node.name for node in gm.graph.find_nodes(op="placeholder")]
    return describe_inputs(names, placeholder_values(gm))


RNG_STATE_BYTES = 5056
"""Of the CPU's generator, as ``torch.get_rng_state`` gives it. An accelerator's state lies on the CPU as well."""


class Calls(TorchDispatchMode):
    """Sees every ATen call: sends what it would allocate to the meta device, and counts the storages it returns.

    A flag that is read decides which way the code goes: see :meth:`StorageLog.decide`. Of the higher-order operators it
    knows those that keep a random state and draw with it again.
    """

    supports_higher_order_operators = True

    def __init__(self, log: StorageLog) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.log = log

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            return self._higher_order(func, args, kwargs)
        if func is torch.ops.aten._local_scalar_dense.default and args[0].dtype is torch.bool:
            return self.log.decide(line_of_wrapper())
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
            device_type = self.log.device_of(given)
            if devices and devices[0].type != "meta":
                device_type = devices[0].type
            name = self.log.node or assigned_name() or str(func)
            spare = spare_bytes(str(func), args, device_type)
            for leaf in fresh:
                self.log.track(leaf, name, device_type, spare)
        if not getattr(func, "is_view", False):
            scratch = scratch_bytes(str(func), args, self.log.device_type)
            self.log.called(self.log.node or str(func), scratch)
        return result

    def _higher_order(self, func: HigherOrderOperator, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Operators that keep a random state and draw with it again: what they draw is seen like any other call."""
        match func.name():
            case "run_and_save_rng_state":
                return self._random_state(), self.__torch_dispatch__(args[0], (), args[1:], kwargs)
            case "run_with_rng_state":
                before = self._random_state()  # put back afterwards
                drawn = self.__torch_dispatch__(args[1], (), args[2:], kwargs)
                del before
                return drawn
            case "graphsafe_run_with_rng_state":
                kwargs = {name: value for name, value in kwargs.items() if name != "rng_state"}
                return self.__torch_dispatch__(args[0], (), args[1:], kwargs)
        raise PlanningError(f"{func.name()} can't be followed without data")

    def _random_state(self) -> torch.Tensor:
        with disable_current_modes():
            state = torch.empty(RNG_STATE_BYTES, dtype=torch.uint8, device="meta")
        self.log.track(state, self.log.node or "random state", "cpu")
        return state


_ASSIGNMENT = re.compile(r"\s*([A-Za-z_]\w*(?:, [A-Za-z_]\w*)*) = ")
SOURCES: dict[str, list[str]] = {}
"""Source lines of the wrappers that are running now, by file name: storages are named by their lines."""


def assigned_name() -> str | None:
    """The variable that the wrapper line which is running now assigns to."""
    source, line = _running()
    match = _ASSIGNMENT.match(SOURCES[source][line - 1]) if source else None
    return match[1] if match else None


def line_of_wrapper() -> int:
    return _running()[1]


def _running() -> tuple[str, int]:
    """The innermost wrapper that is running now, and its line; "" and 0 if none is."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename in SOURCES:
            return frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]
    return "", 0
