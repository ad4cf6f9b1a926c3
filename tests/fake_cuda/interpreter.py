"""Run a wrapper that Inductor generated for CUDA on the CPU: its kernels under Triton's interpreter, the rest as it is.

``TRITON_INTERPRET=1`` has to be set before triton is imported. What the interpreter lacks is given here in numpy: the
functions of libdevice, whose stubs return nothing there, and reductions by functions of Inductor, which it would call
for one element after another. Of several launch configurations the one with the largest blocks is taken, since the
interpreter's time goes by the number of blocks.
"""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import triton.language as tl
from torch._inductor.codecache import PyCodeCache
from torch._inductor.runtime import triton_helpers
from torch._inductor.runtime.triton_heuristics import CachingAutotuner
from triton.language.extra import libdevice
from triton.runtime import interpreter
from triton.runtime.interpreter import TensorHandle

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "ceil": np.ceil,
    "cos": np.cos,
    "erf": np.vectorize(math.erf, otypes=[np.float64]),
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "floor": np.floor,
    "isinf": np.isinf,
    "isnan": np.isnan,
    "log": np.log,
    "log1p": np.log1p,
    "log2": np.log2,
    "nearbyint": np.rint,
    "pow": np.power,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "signbit": np.signbit,
    "sin": np.sin,
    "sqrt": np.sqrt,
    "tanh": np.tanh,
    "trunc": np.trunc,
}
"""Of libdevice, what the kernels of the networks call and what is likely to be called."""

REDUCTIONS = {
    triton_helpers.maximum: np.max,
    triton_helpers.minimum: np.min,
}

ON_THE_CPU = (
    (r"from torch\._C import _cuda_getCurrentRawStream as get_raw_stream", "get_raw_stream = lambda _: 0"),
    (r"torch\._C\._dynamo\.guards\._empty_strided_cuda", "torch._C._dynamo.guards._empty_strided_cpu"),
    (r"with torch\.cuda\._DeviceGuard\(0\):", "if True:"),
    (r"torch\.cuda\.set_device\(0\)", "pass"),
    (r"device\(type='cuda', index=0\)(?=[,)])", "device(type='cpu')"),
)
"""What is replaced in a wrapper: the device, its stream and its allocator."""


def _in_numpy(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **_: Any) -> Any:
        given = [x if isinstance(x, tl.tensor) else _constant(x) for x in arguments]
        first = given[0]
        found = function(*(x.handle.data for x in given))
        if found.dtype == np.bool_:
            kind = tl.block_type(tl.int1, first.type.shape) if first.type.is_block() else tl.int1
        else:
            kind, found = first.type, found.astype(first.handle.data.dtype)
        return tl.tensor(TensorHandle(found, kind.scalar), kind)

    return call


def _constant(number: float) -> Any:
    return tl.tensor(TensorHandle(np.array(number, np.float32), tl.float32), tl.float32)


@contextmanager
def interpreting() -> Iterator[None]:
    """In this block kernels can be interpreted."""
    one_by_one = interpreter.ReduceOps.apply_impl
    run = CachingAutotuner.run

    def reduced(self: Any, given: Any) -> Any:
        at_once = REDUCTIONS.get(self.combine_fn)
        parts = given if isinstance(given, tuple) else (given,)
        if at_once is None or len(parts) > 1:
            return one_by_one(self, given)
        found = at_once(parts[0].handle.data, axis=self.axis, keepdims=self.keep_dims)
        return self.to_tensor(found, parts[0].dtype)

    def run_largest(self: Any, *arguments: Any, **options: Any) -> Any:
        self.configs = [max(self.configs, key=_block_elements)]
        return run(self, *arguments, **options)

    with ExitStack() as stack:
        for name, function in FUNCTIONS.items():
            stack.enter_context(patch.object(libdevice, name, _in_numpy(function)))
        stack.enter_context(patch.object(interpreter.ReduceOps, "apply_impl", reduced))
        stack.enter_context(patch.object(CachingAutotuner, "run", run_largest))
        stack.enter_context(patch.object(triton_helpers, "set_driver_to_gpu", lambda: None))
        yield


def _block_elements(config: Any) -> int:
    return math.prod(size for name, size in config.kwargs.items() if name.endswith("BLOCK"))


def wrapper_on_the_cpu(source: str) -> ModuleType:
    """A generated wrapper as a module whose ``call`` takes tensors on the CPU."""
    for pattern, here in ON_THE_CPU:
        source = re.sub(pattern, here, source)
    return PyCodeCache.load(source)
