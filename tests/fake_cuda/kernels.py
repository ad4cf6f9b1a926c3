"""Compile the Triton kernels in Inductor's wrappers to binaries, and read what they take of a multiprocessor."""

import re
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

_KERNEL = re.compile(r"async_compile\.triton\('(\w+)', '''(.*?)''', device_str", re.DOTALL)
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Usage:
    """One kernel in one of its launch configurations; ``spill_bytes`` are of a thread, with its stack."""

    kernel: str
    warps: int
    registers: int
    shared_bytes: int
    spill_bytes: int


def least_spills(usages: Iterable[Usage]) -> dict[str, int]:
    """For each kernel, the bytes that its best launch configuration spills: of several Inductor takes the fastest, and
    none that spills more than a little if there is another."""
    least: dict[str, int] = {}
    for use in usages:
        least[use.kernel] = min(use.spill_bytes, least.get(use.kernel, use.spill_bytes))
    return least


def sources_of(wrappers: Iterable[str]) -> dict[str, str]:
    """The kernels' sources in wrappers, by name; alike ones are given once."""
    found: dict[str, str] = {}
    known: set[str] = set()
    for wrapper in wrappers:
        for name, source in _KERNEL.findall(wrapper):
            body = source.replace(name, "kernel")
            if body not in known:
                known.add(body)
                found[f"{name}_{len(found)}"] = source
    return found


def compiled(name: str, source: str, capability: tuple[int, int]) -> list[Usage]:
    """Compile a kernel for every launch configuration that Inductor would try.

    Relied on: where a reduction takes so many registers that too few of its blocks run at once,
    ``CachingAutotuner._dynamic_scale_rblock`` also compiles it with a block half as long along the reduction.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.py"
        path.write_text(source)
        scope: dict[str, Any] = {"__file__": str(path), "__name__": name}
        exec(compile(source, str(path), "exec"), scope)  # Triton reads the function's source from the file
        kernel = next(value for value in scope.values() if hasattr(value, "_create_compile_meta"))
        usages: list[Usage] = []
        kernel.compile_results = []

        def add(config: Any) -> None:
            usages.append(_usage(name, kernel, config, capability))
            binary = SimpleNamespace(n_regs=usages[-1].registers)
            kernel.compile_results.append(SimpleNamespace(config=config, kernel=binary))

        for config in kernel.configs:
            add(config)
        if kernel._could_rblock_scale:
            for config in kernel._iter_rblock_scale_candidates():  # it goes on with what is added meanwhile
                add(config)
        return usages


def _usage(name: str, kernel: Any, config: Any, capability: tuple[int, int]) -> Usage:
    meta = kernel._create_compile_meta(config)
    arch = capability[0] * 10 + capability[1]
    binary = triton.compile(
        ASTSource(kernel.fn, meta["signature"], meta["constants"], meta["configs"][0]),
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": config.num_warps, "num_stages": config.num_stages, "debug": False},
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        told = subprocess.run(
            [_TOOLS / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    used = {key: int(value) for key, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", told)}
    return Usage(name, config.num_warps, used["REG"], binary.metadata.shared, used["STACK"] + used["LOCAL"])
