"""Inductor's generated wrappers, run on tensors without data.

What of torch it relies on: a wrapper is a Python module with a function ``call(list_of_inputs)`` that clears its list;
it allocates through names that start with ``empty_strided`` and through ATen calls; it gets kernels from an object of
class ``AsyncCompile``.
"""

import ast
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import CodeType
from typing import Any

import torch

from graphremat.dry_storages import SOURCES, Calls, StorageLog, assigned_name, materialize
from graphremat.errors import PlanningError
from graphremat.lowering import GeneratedCode
from graphremat.passes.torch_private import disable_current_modes

_WRAPPER_FILES = "<wrapper "
# What a wrapper for a device imports and this machine may lack; no allocation goes through them.
_STREAMS_AND_KERNELS = ("triton", "torch._C", "torch._inductor.runtime")


class WrapperProgram:
    """A generated wrapper, executed with its kernels, allocations and devices replaced."""

    def __init__(self, code: GeneratedCode, log: StorageLog) -> None:
        self.inputs = code.inputs
        self.code = code
        self.log = log
        self.namespace: dict[str, Any] = {
            "__name__": "dry_run",
            "__file__": "dry_run",
            **dict(code.namespace),
        }
        # How each name is replaced once the wrapper has bound it, from what it was bound to.
        self.replacements: dict[str, Callable[[Any], Any]] = {
            "torch": lambda _: _Torch(),
            "AsyncCompile": lambda _: lambda: _Compiler(log),
            "extern_kernels": lambda kernels: _ExternKernels(kernels, log),
            "alloc_from_pool": lambda _: _alloc_from_pool,
            "assert_size_stride": lambda _: _restride,
            "assert_tensor_metadata": lambda _: _restride,  # from torch 2.14 on
            "assert_alignment": lambda _: _nothing,
            "get_raw_stream": lambda _: lambda _: 0,
        }

    def hold_constants(self) -> list[torch.Tensor]:
        """Load the wrapper's module; its constants count as inputs."""
        constants = materialize(self.code.constants, self.log)
        self.namespace.update(zip((spec.name for spec in self.code.constants), constants, strict=True))
        SOURCES[self.filename] = self.code.source.splitlines()
        for statement in ast.parse(self.code.source).body:
            self._execute(statement)
        return constants

    @property
    def filename(self) -> str:
        return f"{_WRAPPER_FILES}{id(self)}>"

    def run(self, arguments: list[Any]) -> list[Any]:
        """Call the wrapper; `arguments` is emptied, as the wrapper does to its list."""
        try:
            with Calls(self.log):
                return list(self.namespace["call"](arguments))
        finally:
            del SOURCES[self.filename]

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
                    self.log, name.removeprefix("empty_strided").removeprefix("_")
                )


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


def _restride(tensor: torch.Tensor | None, size: Sequence[int], stride: Sequence[int], *_: Any) -> None:
    """A wrapper says which strides an op's result has; a meta kernel may choose others than the real one does (a
    convolution of channels-last tensors), and the scratch of a later op depends on them."""
    if tensor is not None and tuple(tensor.shape) == tuple(size) and tensor.stride() != tuple(stride):
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

    def __init__(self, log: StorageLog, suffix: str) -> None:
        self.log = log
        # "empty_strided_cpu_pinned" is memory of the host, "empty_strided_p2p" of the device.
        self.device_type = {"": None, "cpu_pinned": "cpu", "p2p": log.device_type}.get(suffix, suffix)

    def __call__(
        self, size: Sequence[int], stride: Sequence[int], dtype: Any = None, *_: Any, **kwargs: Any
    ) -> Any:
        device_type = self.device_type or torch.device(kwargs["device"]).type
        with disable_current_modes():
            tensor = torch.empty_strided(size, stride, dtype=dtype or kwargs.get("dtype"), device="meta")
        self.log.track(tensor, assigned_name() or "buffer", device_type)
        return tensor


class _Kernel:
    """In place of a compiled kernel."""

    def __init__(self, log: StorageLog, name: str) -> None:
        self.log = log
        self.name = name

    def __call__(self, *_: Any, **__: Any) -> None:
        self.log.called(self.name)

    run = __call__


class _Compiler:
    """In place of ``AsyncCompile``: every language gives a kernel that does nothing."""

    def __init__(self, log: StorageLog) -> None:
        self._log = log

    def wait(self, scope: dict[str, Any]) -> None:
        """The module is loaded: kernels are called by their variables' names."""
        for name, value in scope.items():
            if isinstance(value, _Kernel):
                value.name = name

    def __getattr__(self, language: str) -> Callable[..., _Kernel]:
        return lambda *_, **__: _Kernel(self._log, language)


class _ExternKernels:
    """In place of ``extern_kernels``: what writes to ``out=`` allocates nothing and isn't run."""

    def __init__(self, kernels: Any, log: StorageLog) -> None:
        self._kernels = kernels
        self._log = log

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if kwargs.get("out") is not None:
                self._log.called(f"extern_kernels.{name}")
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
