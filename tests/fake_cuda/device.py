"""What torch, Inductor and Triton ask about a device, answered for a card that is not there."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import triton
from torch._dynamo.device_interface import CudaInterface
from torch._inductor import config
from torch._inductor import utils as inductor_utils
from torch._inductor.fx_passes.joint_graph import UniformValueConstantFolder
from torch._inductor.runtime import triton_helpers
from torch._inductor.runtime.hints import DeviceProperties
from torch._subclasses import fake_tensor
from torch.utils import _triton
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget

CARDS = {
    (8, 0): ("NVIDIA A100-SXM4-80GB", 108, 2048, 166912, 80, 40),
    (8, 9): ("NVIDIA L4", 58, 1536, 101376, 24, 48),
    (9, 0): ("NVIDIA H100 80GB HBM3", 132, 2048, 232448, 80, 50),
    (10, 0): ("NVIDIA B200", 148, 2048, 232448, 180, 126),
    (12, 0): ("NVIDIA GeForce RTX 5090", 170, 1536, 101376, 32, 96),
}
"""By compute capability: name, multiprocessors, threads of each, most shared memory of a block in bytes,
memory in GiB, cache in MiB. From the CUDA C++ Programming Guide, "Compute Capabilities", and NVIDIA's data sheets."""


def properties_of(capability: tuple[int, int]) -> Any:
    """As ``torch.cuda.get_device_properties`` gives them."""
    name, processors, threads, shared, memory, cache = CARDS[capability]
    return SimpleNamespace(
        name=name,
        major=capability[0],
        minor=capability[1],
        multi_processor_count=processors,
        max_threads_per_multi_processor=threads,
        max_threads_per_block=1024,
        regs_per_multiprocessor=65536,
        shared_memory_per_block=49152,
        shared_memory_per_block_optin=shared,
        shared_memory_per_multiprocessor=shared + 1024,
        total_memory=memory << 30,
        L2_cache_size=cache << 20,
        warp_size=32,
        gcnArchName="",
    )


class _Driver:
    """As much of Triton's driver as compiling needs."""

    def __init__(self, properties: Any) -> None:
        self._target = GPUTarget("cuda", properties.major * 10 + properties.minor, 32)
        limits = {
            "max_shared_mem": properties.shared_memory_per_block_optin,
            "multiprocessor_count": properties.multi_processor_count,
            "warpSize": 32,
        }
        self.utils = SimpleNamespace(get_device_properties=lambda _: limits)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int = 0) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)

    def get_device_interface(self) -> Any:
        return torch.cuda

    def is_active(self) -> bool:
        return True


class _OnCpu(TorchDispatchMode):
    """What is made on the card is made on the CPU instead."""

    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        def here(value: Any) -> Any:
            on_card = isinstance(value, torch.device) and value.type == "cuda"
            return torch.device("cpu") if on_card else value

        return func(*map(here, args), **{name: here(value) for name, value in (kwargs or {}).items()})


@contextmanager
def fake_cuda(capability: tuple[int, int]) -> Iterator[None]:
    """In this block there is one device, ``cuda:0``, of this capability, for fake tensors and code generation.

    Padding of matrix products is off: Inductor decides on it by timing them.
    """
    properties = properties_of(capability)

    def always(value: object) -> Callable[..., Any]:
        return lambda *_, **__: value

    new_enough = capability >= (8, 0)
    of_torch_cuda = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_properties": properties,
        "get_device_capability": capability,
        "get_device_name": properties.name,
        "_is_compiled": True,
        "is_initialized": True,
        "synchronize": None,
        "_lazy_init": None,
        "device": nullcontext(),
        "is_bf16_supported": new_enough,
        "is_tf32_supported": new_enough,
        "set_rng_state": None,
        "manual_seed_all": None,
    }
    fold = UniformValueConstantFolder.run

    def fold_on_cpu(self: Any, *args: Any, **kwargs: Any) -> Any:
        with _OnCpu():  # it runs ops on one element to learn their value
            return fold(self, *args, **kwargs)

    before = triton.runtime.driver._active
    with ExitStack() as stack:
        for name, value in of_torch_cuda.items():
            stack.enter_context(patch.object(torch.cuda, name, always(value)))
        stack.enter_context(patch.object(torch.cuda, "get_rng_state", lambda *_: torch.get_rng_state()))
        for name in (
            "get_device_properties",
            "current_device",
            "device_count",
            "synchronize",
            "is_bf16_supported",
        ):
            stack.enter_context(patch.object(CudaInterface, name, staticmethod(always(of_torch_cuda[name]))))
        for name in ("get_device_properties", "current_device"):
            answer = staticmethod(always(of_torch_cuda[name]))
            stack.enter_context(patch.object(CudaInterface.Worker, name, answer))
        stack.enter_context(patch.object(torch._C, "_cuda_getCurrentRawStream", always(0), create=True))
        stack.enter_context(patch.object(fake_tensor, "init_gpu_context", always(None)))
        stack.enter_context(patch.object(fake_tensor.FakeTensorMode, "avoid_device_init", True))
        stack.enter_context(patch.object(UniformValueConstantFolder, "run", fold_on_cpu))
        stack.enter_context(patch.object(triton_helpers, "set_driver_to_gpu", always(None)))
        stack.enter_context(config.patch(compile_threads=1, fx_graph_cache=False, shape_padding=False))
        triton.runtime.driver.set_active(_Driver(properties))
        stack.callback(setattr, triton.runtime.driver, "_active", before)
        _forget_answers()
        stack.callback(_forget_answers)
        yield


def _forget_answers() -> None:
    """What torch asked once about the device and remembers."""
    answers = [DeviceProperties.create, inductor_utils.get_gpu_type, inductor_utils.is_big_gpu]
    for name, value in vars(_triton).items():
        if name.startswith(("has_", "triton_", "_device")):
            answers.append(value)
    for answer in answers:
        forget = getattr(getattr(answer, "__func__", answer), "cache_clear", None)
        if forget is not None:
            forget()
