"""Seconds of the expensive ops of one graph, measured on the device, once for each op and shape. Needs torch and FX.

A roofline knows a processor by a few rates; a library's kernel for one shape may be twice as fast or slow. The distinct
matrix products, convolutions and attentions of a network are few, so they can be timed: each is run on memory of the
same shapes, strides and dtypes until the best of a few runs is known. What was measured is kept in the cache directory,
one file for a device, a number of threads and a version of torch, and is rounded to two digits, so that planning again
gives the same plan. Ops whose time depends on their data (lookups, sorting) and pointwise ops, which are fused, are
left to the formulas of :mod:`graphremat.passes.costs`.
"""

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import fx

from graphremat.passes import torch_private as private
from graphremat.passes.cache import default_cache_dir, one_at_a_time, write_whole
from graphremat.passes.costs import Basis, op_cost
from graphremat.passes.devices import Device
from graphremat.passes.hints import SizeHint, default_size_hint
from graphremat.passes.kinds import NodeKind, classify_kind, op_name, tensors_in
from graphremat.passes.measure_device import cache_path

logger = logging.getLogger(__name__)

MOST_SECONDS = 30.0
"""Of measuring for one graph; ops that are left then keep their formulas' prices."""
RUNS = 5
"""Of one op, the best counts; fewer once they have taken :data:`LONG_SECONDS` together."""
LONG_SECONDS = 0.5
LEAST_SECONDS = 1e-5
"""By its formula; what takes less is not worth measuring."""


@dataclass(frozen=True)
class MeasuredOps:
    """Seconds by node, and what it took to know them.

    Attributes:
        seconds: of every node that was measured, now or before.
        distinct: how many different ops those nodes are.
        measured_now: how many of these were not known before.
        took_seconds: of measuring them.
        left: how many different ops were not measured for want of time.
    """

    seconds: Mapping[fx.Node, float] = field(default_factory=dict)
    distinct: int = 0
    measured_now: int = 0
    took_seconds: float = 0.0
    left: int = 0


def measure_ops(
    graph: fx.Graph,
    device: Device,
    where: torch.device,
    *,
    size_hint: SizeHint = default_size_hint,
    cache_dir: Path | None = None,
    most_seconds: float = MOST_SECONDS,
) -> MeasuredOps:
    """Measure the distinct expensive ops of a graph that the cache does not know yet, the longest first.

    Args:
        graph: a joint graph whose nodes have (fake) tensors in ``meta["val"]``.
        device: the prices of ``where``, to tell what is expensive.
        where: the device to measure on; this process should have it to itself.
        size_hint: turns symbolic sizes into those to measure with.
        cache_dir: where measurements are kept; by default :func:`graphremat.passes.cache.default_cache_dir`.
        most_seconds: of measuring; ops that are left are measured when another graph has them.
    """
    nodes: dict[str, list[fx.Node]] = {}
    expected: dict[str, float] = {}
    for node in graph.nodes:
        if not _is_measured(node):
            continue
        cost = op_cost(node, device, size_hint)
        if cost.basis is Basis.FLOPS and cost.seconds >= LEAST_SECONDS:
            key = op_key(node, size_hint)
            nodes.setdefault(key, []).append(node)
            expected[key] = cost.seconds
    path = ops_path(device.name, where, cache_dir)
    known = _read(path)
    missing = sorted((key for key in nodes if key not in known), key=lambda key: (-expected[key], key))
    found: dict[str, float] = {}
    started = time.perf_counter()
    if missing:
        with one_at_a_time(path):
            known = _read(path)  # another process may have measured meanwhile
            for key in (key for key in missing if key not in known):
                if time.perf_counter() - started + RUNS * expected[key] > most_seconds:
                    continue
                seconds = _measured(nodes[key][0], where, size_hint)
                if seconds is not None:
                    found[key] = seconds
            if found:
                known = {**_read(path), **found}
                write_whole(path, json.dumps({"format": FORMAT, "seconds": known}, indent=0) + "\n")
    took = time.perf_counter() - started if found else 0.0
    left = sum(key not in known for key in nodes)
    if found:
        logger.info(
            "measured %d ops in %.2f s (%d known before, %d left)",
            len(found),
            took,
            len(nodes) - len(found) - left,
            left,
        )
    return MeasuredOps(
        seconds={node: known[key] for key, same in nodes.items() if key in known for node in same},
        distinct=len(nodes) - left,
        measured_now=len(found),
        took_seconds=took,
        left=left,
    )


FORMAT = 1
"""Raise when the meaning of a cached number changes."""


def ops_path(name: str, where: torch.device, cache_dir: Path | None = None) -> Path:
    """The file with the seconds of ops on one device, number of threads and version of torch."""
    directory = cache_dir if cache_dir is not None else default_cache_dir()
    of_device = cache_path(name, where.type, directory)
    return of_device.with_name(of_device.name.replace("device-", "ops-"))


def op_key(node: fx.Node, size_hint: SizeHint = default_size_hint) -> str:
    """Equal for two nodes that do the same on tensors of the same shapes, strides and dtypes."""
    described = fx.node.map_arg(
        (node.args, node.kwargs), lambda n: _Described(_shown(n.meta.get("val"), size_hint))
    )
    text = f"{node.target} {described}"
    return text if len(text) <= MOST_CHARACTERS else hashlib.sha256(text.encode()).hexdigest()


MOST_CHARACTERS = 400


class _Described(str):
    """Text that shows as it is inside of a tuple."""

    def __repr__(self) -> str:
        return str(self)


def _shown(value: Any, size_hint: SizeHint) -> str:
    if not isinstance(value, torch.Tensor):
        return str(size_hint(value)) if isinstance(value, torch.SymInt) else str(value)
    shape, stride = (tuple(map(size_hint, sizes)) for sizes in (value.shape, value.stride()))
    return f"{str(value.dtype).removeprefix('torch.')}{shape}{stride}"


def _is_measured(node: fx.Node) -> bool:
    """Whether the op is a library's kernel, and runs alike whatever its data are."""
    if node.op != "call_function" or not isinstance(node.target, private.OpOverload):
        return False
    return (
        classify_kind(node) is NodeKind.KERNEL
        and op_name(node).startswith("aten.")
        and bool(tensors_in(node.meta.get("val")))
    )


def _measured(node: fx.Node, where: torch.device, size_hint: SizeHint) -> float | None:
    """Seconds of one run, rounded to two digits; None if it cannot be run on memory of its own."""
    assert callable(node.target)
    try:
        with torch.no_grad(), private.disable_current_modes():
            args, kwargs = fx.node.map_arg(
                (node.args, node.kwargs), lambda n: _real(n.meta.get("val"), where, size_hint)
            )
            node.target(*args, **kwargs)
            times: list[float] = []
            while len(times) < RUNS and sum(times) < LONG_SECONDS:
                _wait(where)
                started = time.perf_counter()
                node.target(*args, **kwargs)
                _wait(where)
                times.append(time.perf_counter() - started)
    except (RuntimeError, NotImplementedError, MemoryError) as error:
        logger.info("%s is priced by its formula, since it could not be run alone: %s", node, error)
        return None
    return float(f"{min(times):.1e}")


def _wait(where: torch.device) -> None:
    if where.type == "cuda":
        torch.cuda.synchronize(where)


def _real(value: Any, where: torch.device, size_hint: SizeHint) -> Any:
    """Memory like the traced tensor's, filled with halves (ones and zeros run faster on some processors)."""
    if isinstance(value, torch.SymInt):
        return size_hint(value)
    if not isinstance(value, torch.Tensor):
        return value
    shape, stride = (tuple(map(size_hint, sizes)) for sizes in (value.shape, value.stride()))
    on = where if value.device.type == where.type else value.device
    made = torch.empty_strided(shape, stride, dtype=value.dtype, device=on)
    return made.fill_(0.5) if value.dtype.is_floating_point else made.zero_()


def _read(path: Path) -> dict[str, float]:
    """What was measured before; a file that cannot be read is reported and begun anew."""
    try:
        body = json.loads(path.read_text())
        if body["format"] != FORMAT:
            raise ValueError(f"format {body['format']}")
        return {str(key): float(seconds) for key, seconds in body["seconds"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        logger.warning("the measured ops in %s cannot be used (%s): measuring again", path, error)
        return {}
