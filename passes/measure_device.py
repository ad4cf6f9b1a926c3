"""Measure what a processor can do, once, and remember it on disk. Needs torch.

Datasheets do not predict a CPU: cores shared with others, vector width, the math library and the allocator decide. A
quarter of a second of measuring does. Every number is rounded to two significant digits, so that a second measurement
rarely changes a plan, and kept in the user's cache directory under a name made of the processor, the number of
threads and torch's version. GPUs that :mod:`graphremat.passes.devices` does not know are measured in the same way.
"""

import hashlib
import logging
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch

from graphremat.passes.cache import default_cache_dir, one_at_a_time, write_whole
from graphremat.passes.devices import Device, UnknownDevice, find_device
from graphremat.passes.torch_private import disable_current_modes

logger = logging.getLogger(__name__)

CACHE_FORMAT = 2
"""Raise when the meaning of a cached number changes."""

MATMUL_DTYPES = {"float32": 768, "bfloat16": 768, "float64": 384, "float16": 192}
"""Side of the square matrices by dtype: large enough for the full rate, small enough for slow fallbacks (float16 has no
kernel on many CPUs and runs 100 times slower)."""
STREAM_BYTES = 64 * 2**20
"""Bytes of each array of the streaming measurement: beyond the last-level cache of most processors."""
CACHE_BYTES = 2**20
LARGE_CACHE_BYTES = 5 * 2**20
"""Bytes of each of three arrays of the measurements in cache; the larger tells whether the cache holds as much."""
LARGE_BLOCK_BYTES = 32 * 2**20
"""From this size on glibc's malloc always asks the operating system for fresh pages (DEFAULT_MMAP_THRESHOLD_MAX)."""
REPEATS = 2
"""Timings of one rate in one round."""
ROUNDS = 2
ENOUGH_SECONDS = 0.8
"""No further round is begun after this time."""
PARALLEL_SHARE = 0.8
"""Share of linear scaling that parallel matmuls reach at least when nothing else runs: 1.0 with 2 threads here."""
DISTURBED = 0.7
"""A round this much slower than the best means that the machine was busy; undisturbed rounds differ by 5%."""


def device_of(device: torch.device, *, cache_dir: Path | None = None) -> Device:
    """What is known of a device of this machine: from the table of GPUs, else measured once and cached.

    Args:
        device: ``cpu`` or ``cuda``.
        cache_dir: where measurements are kept; by default :func:`default_cache_dir`.

    Raises:
        UnknownDevice: there is no way to price that type of device.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        try:
            known = find_device(name)
        except UnknownDevice as error:
            logger.info("%s; it is measured instead", error)
            return _cached(name, device, cache_dir)
        return known if torch.get_float32_matmul_precision() == "highest" else known.with_tf32()
    if device.type == "cpu":
        return _cached(cpu_name(), device, cache_dir)
    raise UnknownDevice(f"no prices for a device of type {device.type!r}: only cpu and cuda are known")


def cpu_name() -> str:
    """The processor's model name, as the operating system gives it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith(("model name", "Model\t")):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown CPU"


def cache_path(name: str, device_type: str, directory: Path) -> Path:
    """The file of a device's measurement: one per processor, thread count, torch version and instruction set."""
    threads = torch.get_num_threads() if device_type == "cpu" else 0
    capability = torch.backends.cpu.get_cpu_capability() if device_type == "cpu" else ""
    precision = torch.get_float32_matmul_precision()
    key = "\n".join((str(CACHE_FORMAT), name, str(threads), capability, precision, torch.__version__))
    return directory / f"device-{device_type}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _cached(name: str, device: torch.device, cache_dir: Path | None) -> Device:
    directory = cache_dir if cache_dir is not None else default_cache_dir()
    path = cache_path(name, device.type, directory)
    remembered = _read(path)
    if remembered is not None:
        return remembered
    with one_at_a_time(path):
        remembered = _read(path)
        if remembered is not None:
            return remembered
        measured = measure(name, device)
        write_whole(path, measured.to_json() + "\n")
    # Every process must plan with the same numbers, so what is on disk counts.
    return _read(path) or measured


def _read(path: Path) -> Device | None:
    """The cached device, or None if there is none; a file that cannot be read as one is reported and measured anew."""
    try:
        return Device.from_json(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        logger.warning("the cached measurement in %s cannot be used (%s): measuring again", path, error)
        return None


def measure(name: str, device: torch.device) -> Device:
    """Measure a device with torch's own kernels; takes about half a second where nothing else runs.

    Args:
        name: the name to give it.
        device: where to measure; the process should have it to itself. The best of a few rounds counts, so that a short
            disturbance does no harm; a longer one is warned of.
    """
    started = time.perf_counter()
    # A backend is called while tensors are fake; what is timed here must be real.
    with torch.no_grad(), disable_current_modes():
        rounds = [_round_of_rates(device)]
        while len(rounds) < ROUNDS and time.perf_counter() - started < ENOUGH_SECONDS:
            rounds.append(_round_of_rates(device))
    best = {key: max(rates[key] for rates in rounds) for key in rounds[0]}
    worst = min(rates["float32"] for rates in rounds)
    if worst < DISTURBED * best["float32"]:
        logger.warning(
            "something else was running while %s was measured: float32 matmuls ran at %.2g to %.2g FLOP/s; remove the "
            "files device-* in the cache directory to measure again on a quiet machine",
            name, worst, best["float32"],
        )  # fmt: skip
    measured = Device(
        name=name,
        kind=device.type,
        memory_bytes=_memory_bytes(device),
        bandwidth_bytes_per_second=_round(best["stream"]),
        flops_per_second={dtype: _round(best[dtype]) for dtype in MATMUL_DTYPES},
        kernel_seconds=_round(1 / best["kernels"]),
        simple_ops_per_second=_round(best["float32"] / 2),
        cache_bytes=3 * (LARGE_CACHE_BYTES if best["large_cache"] > best["cache"] / 2 else CACHE_BYTES),
        cache_bytes_per_second=_round(max(best["cache"], best["stream"])),
        large_block_bytes=LARGE_BLOCK_BYTES if best["first_touch"] else 0,
        first_touch_bytes_per_second=_round(best["first_touch"]),
        source="measured on this machine",
    )
    logger.info("measured %s in %.2f s: %s", name, time.perf_counter() - started, measured.to_json())
    return measured


def _round_of_rates(device: torch.device) -> dict[str, float]:
    """Every rate once: FLOP/s by dtype, bytes/s of streams, caches and fresh pages, and kernels per second.

    Another busy process makes a parallel kernel several times slower (its threads wait for each other), but hardly
    disturbs a short serial one. So a processor's rates are no lower than what one thread reaches, and its matmul and
    cache rates no lower than :data:`PARALLEL_SHARE` of one thread's times the number of threads.
    """
    rates = _rates(device)
    threads = torch.get_num_threads()
    if device.type == "cpu" and threads > 1:
        torch.set_num_threads(1)
        try:
            alone = _rates(device)
        finally:
            torch.set_num_threads(threads)
        for key, rate in alone.items():
            scales = key in MATMUL_DTYPES or key in ("cache", "large_cache")
            rates[key] = max(rates[key], rate * threads * PARALLEL_SHARE if scales else rate)
    return rates


def _rates(device: torch.device) -> dict[str, float]:
    stream, stream_seconds = _bandwidth(STREAM_BYTES, device)
    return {
        **{dtype: _matmul_flops_per_second(dtype, device) for dtype in MATMUL_DTYPES},
        "stream": stream,
        "cache": _bandwidth(CACHE_BYTES, device)[0],
        "large_cache": _bandwidth(LARGE_CACHE_BYTES, device)[0],
        "first_touch": _first_touch(STREAM_BYTES, stream_seconds, device) if device.type == "cpu" else 0.0,
        "kernels": 1 / _kernel_seconds(device),
    }


def _round(value: float) -> float:
    """Two significant digits."""
    return float(f"{value:.1e}")


def _seconds(run: Callable[[], object], device: torch.device, *, calls: int = 1) -> float:
    """The shortest of a few timings of ``calls`` calls, after one that is not timed."""
    best = float("inf")
    run()
    for _ in range(REPEATS):
        _wait(device)
        started = time.perf_counter()
        for _ in range(calls):
            run()
        _wait(device)
        best = min(best, time.perf_counter() - started)
    return max(best, 1e-9)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _matmul_flops_per_second(dtype: str, device: torch.device) -> float:
    # A GPU needs far larger matrices than a CPU before its full rate shows.
    side = MATMUL_DTYPES[dtype] * (1 if device.type == "cpu" else 8)
    a = torch.ones(side, side, dtype=getattr(torch, dtype), device=device)
    out = torch.empty_like(a)
    return 2 * side**3 / _seconds(lambda: torch.mm(a, a, out=out), device)


def _bandwidth(size_bytes: int, device: torch.device) -> tuple[float, float]:
    """Bytes per second of adding two arrays of that size into a third, and the seconds it took."""
    a, b, out = (torch.ones(size_bytes // 4, device=device) for _ in range(3))
    calls = max(1, STREAM_BYTES // size_bytes // 8)
    seconds = _seconds(lambda: torch.add(a, b, out=out), device, calls=calls) / calls
    return 3 * size_bytes / seconds, seconds


def _first_touch(size_bytes: int, stream_seconds: float, device: torch.device) -> float:
    """Bytes per second at which fresh pages come; 0 if filling a fresh block takes no longer than an old one."""
    old = torch.ones(size_bytes // 4, device=device)
    again = _seconds(lambda: old.fill_(1.0), device)
    fresh = _seconds(lambda: torch.empty_like(old).fill_(1.0), device)
    extra = fresh - again
    return size_bytes / extra if extra > stream_seconds / 4 else 0.0


def _kernel_seconds(device: torch.device) -> float:
    small = torch.ones(16, device=device)
    out = torch.empty_like(small)
    calls = 500
    return _seconds(lambda: torch.add(small, small, out=out), device, calls=calls) / calls


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
