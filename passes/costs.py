"""What one node of a joint graph costs on a device, in seconds, by a roofline. Knows FX.

A kernel takes as long as the slower of its arithmetic and its memory traffic, plus the time any kernel takes. What an
op adds to a kernel that others are fused into, too, is told apart: no traffic, and of its arithmetic what is not hidden
behind the traffic of the others. A result without a buffer is computed wherever it is read, a broadcast one many times
over (:func:`times_computed`).

Prices are a pure function of the node and the device: no clock, no random choice, no state. An operator that no formula
knows is priced by the bytes it moves and says so (:attr:`OpCost.basis`); see :func:`priced_by_bytes_alone`.
"""

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import log2

import torch
from torch import fx

from graphremat.passes.devices import Device
from graphremat.passes.flops import node_flops, shape_of
from graphremat.passes.hints import SizeHint, default_size_hint
from graphremat.passes.kinds import NodeKind, argument, classify_kind, op_name, tensors_in

# Cost of one output element in simple float32 operations (an addition), by operator.
#
# CPU: measured on the C++ that Inductor generates: time of nine chained operators less the time of one, per operator
# and element, one thread of an AMD EPYC (Zen 5, AVX-512), in units of half a matmul FLOP's reciprocal (0.021 ns there).
# Command: `python bench/check_costs.py --pointwise`.
CPU_ELEMENT_OPS: Mapping[str, float] = {
    "acos": 50.0, "acosh": 120.0, "asin": 50.0, "asinh": 120.0, "atan": 40.0, "atan2": 110.0, "atanh": 120.0,
    "cos": 32.0, "cosh": 80.0, "digamma": 200.0, "div": 2.0, "elu": 40.0, "erf": 52.0, "erfc": 170.0, "erfinv": 120.0,
    "exp": 37.0, "exp2": 37.0, "expm1": 40.0, "fmod": 54.0, "gelu": 60.0, "gelu_backward": 110.0, "lgamma": 200.0,
    "log": 39.0, "log10": 39.0, "log1p": 65.0, "log2": 39.0, "log_sigmoid_forward": 100.0, "logit": 45.0, "mish": 150.0,
    "pow": 150.0, "reciprocal": 2.0, "remainder": 54.0, "rsqrt": 6.5, "sigmoid": 45.0, "silu": 45.0,
    "silu_backward": 50.0, "sin": 32.0, "sinh": 80.0, "softplus": 80.0, "sqrt": 2.7, "tan": 60.0, "tanh": 100.0,
    "where": 2.0,
}  # fmt: skip

# GPU: from the table of arithmetic throughput in NVIDIA's CUDA C++ programming guide (128 float32 additions, 16 special
# functions per clock and multiprocessor: a factor of 8) times the special functions in CUDA's own code. Not measured.
GPU_ELEMENT_OPS: Mapping[str, float] = {
    "acos": 20.0, "acosh": 30.0, "asin": 20.0, "asinh": 30.0, "atan": 20.0, "atan2": 40.0, "atanh": 30.0,
    "cos": 20.0, "cosh": 24.0, "digamma": 60.0, "div": 10.0, "elu": 12.0, "erf": 20.0, "erfc": 30.0, "erfinv": 30.0,
    "exp": 10.0, "exp2": 9.0, "expm1": 14.0, "fmod": 30.0, "gelu": 25.0, "gelu_backward": 40.0, "lgamma": 60.0,
    "log": 12.0, "log10": 12.0, "log1p": 16.0, "log2": 10.0, "log_sigmoid_forward": 25.0, "logit": 22.0, "mish": 40.0,
    "pow": 40.0, "reciprocal": 9.0, "remainder": 30.0, "rsqrt": 9.0, "sigmoid": 20.0, "silu": 20.0,
    "silu_backward": 25.0, "sin": 20.0, "sinh": 24.0, "softplus": 24.0, "sqrt": 9.0, "tan": 30.0, "tanh": 18.0,
    "where": 1.0,
}  # fmt: skip

CACHED_SHARE = 0.5
"""Share of a small op's operands that is found in the last-level cache. All of them warm or all cold, pointwise ops ran
at 160 or 33 GB/s (`bench/check_costs.py`, with and without `--cold`); in a step the producer or the reader is near, the
saved value is not."""

FUSED_SHARE = {"cpu": 0.25, "cuda": 1.0}
"""Share of a pointwise op's arithmetic that it adds to a kernel that reads and writes. CPU: beside a product of two
tensors, exp, sigmoid, silu, log, cos, erf and gelu took 0.3 to 0.7 of it where all was in the caches and up to 0.1
where it was not (tanh 0.6 and 0.4); what was saved is not in the caches. `bench/check_costs.py --fused`. GPU: not
measured."""

SMALL_POWERS = (1, 2, 3, 0.5, -1, -2)
"""Exponents that become multiplications, a root or a division in generated code."""
SMALL_POWER_OPS = 3.0

# The same per element for operators that are no plain map. CPU: generated code, measured as above; sorting with torch's
# own kernel, which generated code calls. GPU: rough ratios of memory passes to arithmetic, not measured; nearly all of
# these are bound by traffic there.
RANDOM_OPS_PER_ELEMENT = {"cpu": 340.0, "cuda": 98.0}
"""One Philox number. CPU: scalar code. GPU: 268 million took a kernel of an H100 0.785 ms."""
SORT_OPS_PER_COMPARISON = {"cpu": 200.0, "cuda": 10.0}
"""Sorting n numbers takes n log2(n) comparisons of so many simple operations."""
SCAN_OPS_PER_ELEMENT = {"cpu": 260.0, "cuda": 5.0}
"""CPU: torch's kernel along a strided dimension; a contiguous one is faster."""
SCATTER_OPS_PER_ELEMENT = {"cpu": 20.0, "cuda": 10.0}
"""Accumulating through an index: 7 for whole rows, 26 for single elements."""
GATHER_OPS_PER_ELEMENT = {"cpu": 4.0, "cuda": 2.0}
"""Reading rows through an index: 3."""
ELEMENT_GATHER_OPS_PER_ELEMENT = {"cpu": 19.0, "cuda": 2.0}
"""Reading single elements through an index of the output's shape."""
REDUCTION_OPS_PER_ELEMENT = {"cpu": 4.0, "cuda": 1.0}
"""Sums and extrema: 3 along rows, 6 along columns, 5 for amax."""
VARIANCE_OPS_PER_ELEMENT = {"cpu": 12.0, "cuda": 8.0}
"""Welford's update: 5 along rows, 20 for the channels of images."""
MAX_POOL_OPS_PER_ELEMENT = {"cpu": 95.0, "cuda": 4.0}
"""Per element of a window; the index of the maximum comes along."""
AVERAGE_POOL_OPS_PER_ELEMENT = {"cpu": 11.0, "cuda": 1.0}
MASK_OPS_PER_ELEMENT = {"cpu": 460.0, "cuda": 0.0}
"""Writing an element of a mask (350) and reading it once (110): generated C++ packs vectors of booleans into bytes one
by one. A mask that stays inside a kernel costs nothing of it."""

KERNEL_EFFICIENCY: Mapping[tuple[str, str], float] = {
    ("cpu", "attention"): 0.4,
    ("cpu", "convolution"): 1.2,
    ("cpu", "depthwise convolution"): 0.19,
    ("cpu", "transposed convolution"): 0.2,
    ("cuda", "attention"): 0.7,
    ("cuda", "convolution"): 0.5,
    ("cuda", "depthwise convolution"): 0.05,
    ("cuda", "transposed convolution"): 0.6,
}
"""Share of the matmul rate that a family of library kernels reaches. CPU: measured with `bench/check_costs.py`; above
one, because oneDNN's convolutions are better on this processor than MKL's matmul. GPU: not measured but for
convolutions: with 0.5 a U-Net's step in bfloat16 (size `gpu`) comes out at the 66 ms that it took on an H100."""

DEPTHWISE_WEIGHTS = 16
"""A convolution with at most so many input times output channels in a group counts as depthwise."""


class Basis(enum.Enum):
    """What a price rests on."""

    FREE = "free"
    FLOPS = "flops"
    ELEMENTS = "elements"
    BYTES_ALONE = "bytes alone"
    """No formula knows the operator: its arithmetic is left out."""


@dataclass(frozen=True)
class OpCost:
    """The price of running one node as a kernel of its own.

    Attributes:
        seconds: ``max(arithmetic_seconds, traffic_seconds)`` plus the device's time per kernel; 0 for a free node.
        flops: multiplications and additions of matmul-like operators; 0 for the others.
        moved_bytes: bytes read and written, each operand once, of the operands no more than ``most_read``.
        fused_seconds: what it adds to a kernel of several ops.
        arithmetic_seconds: the time with no memory traffic.
        traffic_seconds: the time of the reads and writes alone.
        basis: what the arithmetic rests on.
    """

    seconds: float
    flops: int
    moved_bytes: int
    fused_seconds: float
    arithmetic_seconds: float
    traffic_seconds: float
    basis: Basis


FREE = OpCost(0.0, 0, 0, 0.0, 0.0, 0.0, Basis.FREE)


def op_cost(
    node: fx.Node, device: Device, size_hint: SizeHint = default_size_hint, *, most_read: int | None = None
) -> OpCost:
    """The price of one node of a joint graph whose ``meta["val"]`` holds (fake) tensors.

    Args:
        node: any node; views, sizes, placeholders and outputs are free.
        device: where it runs.
        size_hint: turns a size into the int to price it with; by default the size that was traced.
        most_read: bytes that are read at most; None if that is all operands.
    """
    kind = classify_kind(node)
    outputs = tensors_in(node.meta.get("val"))
    if kind in (NodeKind.BOUNDARY, NodeKind.SYMBOLIC, NodeKind.VIEW) or not outputs:
        return FREE
    if op_name(node) in _UNINITIALISED:
        return FREE
    moved_bytes = _moved_bytes(node, kind, size_hint, most_read)
    flops = node_flops(node, size_hint) if kind in (NodeKind.KERNEL, NodeKind.RANDOM) else None
    if flops is not None:
        basis = Basis.FLOPS
        dtype = str(_matmul_operand(node).dtype).removeprefix("torch.")
        rate = device.matmul_flops_per_second(dtype) * KERNEL_EFFICIENCY.get(
            (device.kind, _family(node, size_hint)), 1.0
        )
        arithmetic_seconds = flops / rate
    else:
        operations = _element_operations(node, kind, device, size_hint)
        basis = Basis.BYTES_ALONE if operations is None else Basis.ELEMENTS
        arithmetic_seconds = (operations or 0.0) / device.simple_ops_per_second
    traffic_seconds = _traffic_seconds(moved_bytes, device) + _first_touch_seconds(outputs, device, size_hint)
    return OpCost(
        seconds=max(arithmetic_seconds, traffic_seconds) + device.kernel_seconds,
        flops=flops or 0,
        moved_bytes=moved_bytes,
        fused_seconds=arithmetic_seconds * (FUSED_SHARE[device.kind] if kind is NodeKind.FUSIBLE else 1.0),
        arithmetic_seconds=arithmetic_seconds,
        traffic_seconds=traffic_seconds,
        basis=basis,
    )


def times_computed(graph: fx.Graph, size_hint: SizeHint = default_size_hint) -> dict[fx.Node, float]:
    """How often generated code computes an element of each pointwise result that has no buffer.

    It is computed wherever it is read: once for each element of a result that it is broadcast to, of a sum over that,
    or of what is gathered from it. Only results that are computed more than once are in the dictionary.
    """
    computed: dict[fx.Node, int] = {}
    found: dict[fx.Node, float] = {}
    for node in reversed(graph.nodes):
        kind = classify_kind(node)
        if kind not in (NodeKind.FUSIBLE, NodeKind.VIEW):
            continue
        most = own = _elements(tensors_in(node.meta.get("val")), size_hint) if kind is NodeKind.FUSIBLE else 0
        for user in node.users:
            if classify_kind(user) is NodeKind.REDUCTION:
                most = max(most, *(_elements([tensor], size_hint) for tensor in _input_tensors(user)))
            elif op_name(user) not in _PLACEMENTS:
                most = max(most, computed.get(user, 0))
        computed[node] = most
        if 0 < own < most:
            found[node] = most / own
    return found


def copy_seconds(val: torch.Tensor, device: Device, size_hint: SizeHint = default_size_hint) -> float:
    """Seconds to copy what a view shows into a buffer of its own, in a kernel alone."""
    traffic_seconds = _traffic_seconds(2 * tensor_bytes(val, size_hint), device)
    return traffic_seconds + _first_touch_seconds([val], device, size_hint) + device.kernel_seconds


def mask_seconds(node: fx.Node, device: Device, size_hint: SizeHint = default_size_hint) -> float:
    """What a buffer for a node's result costs over its traffic, in generated code: that of packing a mask."""
    val = node.meta.get("val")
    if not isinstance(val, torch.Tensor) or val.dtype != torch.bool:
        return 0.0
    if classify_kind(node) is not NodeKind.FUSIBLE:
        return 0.0
    return _elements([val], size_hint) * MASK_OPS_PER_ELEMENT[device.kind] / device.simple_ops_per_second


def priced_by_bytes_alone(nodes: Iterable[fx.Node], device: Device) -> tuple[str, ...]:
    """Names of the operators among the nodes that no formula knows, sorted: what a report must say."""
    unknown = {op_name(node) for node in nodes if op_cost(node, device).basis is Basis.BYTES_ALONE}
    return tuple(sorted(unknown))


def tensor_bytes(tensor: torch.Tensor, size_hint: SizeHint = default_size_hint) -> int:
    """Bytes of the distinct elements that a tensor shows: an expanded dimension counts once."""
    elements = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        if not (isinstance(stride, int) and stride == 0):
            elements *= size_hint(size)
    return elements * tensor.element_size()


_UNINITIALISED = frozenset(
    f"aten.{name}"
    for name in ("empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided")
)
_GATHERS = frozenset(
    f"aten.{name}"
    for name in (
        "embedding",
        "gather",
        "index",
        "index_select",
        "_unsafe_index",
        "_unsafe_masked_index",
        "take",
    )
)
_PLACEMENTS = frozenset(
    f"aten.{name}"
    for name in (
        "as_strided_scatter",
        "cat",
        "constant_pad_nd",
        "diagonal_scatter",
        "select_scatter",
        "slice_scatter",
        "stack",
    )
)
"""What computes each element of its operands once, though it gives more elements."""
_SCATTERS = frozenset(
    f"aten.{name}"
    for name in (
        "_unsafe_index_put", "_unsafe_masked_index_put_accumulate", "embedding_dense_backward", "index_add",
        "index_copy", "index_fill", "index_put", "index_put_", "index_reduce", "masked_scatter", "put", "scatter",
        "scatter_add", "scatter_reduce", "upsample_bicubic2d_backward", "upsample_bilinear2d_backward",
        "upsample_linear1d_backward", "upsample_trilinear3d_backward",
    )
) | {"prims._unsafe_index_put_"}  # fmt: skip
_SORTS = frozenset({"aten.sort", "aten.topk", "aten.argsort", "aten.kthvalue", "aten.median", "aten.msort"})
_SCANS = frozenset({"aten.cumsum", "aten.cumprod", "aten.cummax", "aten.cummin", "aten.logcumsumexp"})
_POOLS = frozenset(
    f"aten.{name}"
    for name in (
        "avg_pool1d",
        "avg_pool2d",
        "avg_pool3d",
        "max_pool2d_with_indices",
        "max_pool3d_with_indices",
    )
) | {"prims._low_memory_max_pool_with_offsets"}
_VARIANCES = frozenset(
    f"aten.{name}"
    for name in (
        "_batch_norm_with_update", "_fused_rms_norm", "_native_batch_norm_legit",
        "_native_batch_norm_legit_functional", "native_batch_norm", "native_group_norm", "native_layer_norm", "std",
        "std_mean", "var", "var_mean",
    )
) | {"prims.var"}  # fmt: skip
_SOFTMAXES = frozenset(
    {
        "aten._softmax",
        "aten._safe_softmax",
        "aten._log_softmax",
        "aten.logsumexp",
        "prims.prepare_softmax_online",
    }
)


def _elements(tensors: Iterable[torch.Tensor], size_hint: SizeHint) -> int:
    total = 0
    for tensor in tensors:
        count = 1
        for size in tensor.shape:
            count *= size_hint(size)
        total += count
    return total


def _input_tensors(node: fx.Node) -> list[torch.Tensor]:
    return [tensor for operand in node.all_input_nodes for tensor in tensors_in(operand.meta.get("val"))]


def _moved_bytes(node: fx.Node, kind: NodeKind, size_hint: SizeHint, most_read: int | None) -> int:
    """Bytes read and written: each operand once, a gathered table only as far as it is read, a scatter's base twice."""
    written = sum(tensor_bytes(tensor, size_hint) for tensor in tensors_in(node.meta.get("val")))
    if kind is NodeKind.CREATION:
        return written
    operands = list(node.all_input_nodes)
    name = op_name(node)
    if name == "aten.copy_":
        operands = operands[1:] or operands
    read = 0
    for position, operand in enumerate(operands):
        size_bytes = sum(tensor_bytes(tensor, size_hint) for tensor in tensors_in(operand.meta.get("val")))
        read += min(size_bytes, written) if name in _GATHERS and position == 0 else size_bytes
    return written + (read if most_read is None else min(read, most_read))


def _traffic_seconds(moved_bytes: int, device: Device) -> float:
    """Streaming time; of what fits the cache, the share that a neighbour in the graph has just left there is faster."""
    cached_bytes = CACHED_SHARE * min(moved_bytes, device.cache_bytes)
    streamed = (moved_bytes - cached_bytes) / (
        device.bandwidth_bytes_per_second * device.bandwidth_efficiency
    )
    return streamed + (cached_bytes / device.cache_bytes_per_second if cached_bytes else 0.0)


def _first_touch_seconds(outputs: list[torch.Tensor], device: Device, size_hint: SizeHint) -> float:
    """Fresh pages for outputs so large that the allocator gives them back to the operating system each time."""
    if not device.large_block_bytes:
        return 0.0
    sizes = [tensor_bytes(tensor, size_hint) for tensor in outputs]
    return (
        sum(size for size in sizes if size >= device.large_block_bytes) / device.first_touch_bytes_per_second
    )


def _matmul_operand(node: fx.Node) -> torch.Tensor:
    """The tensor whose dtype picks the matmul rate: the first floating operand."""
    operands = _input_tensors(node) or tensors_in(node.meta.get("val"))
    return next((tensor for tensor in operands if tensor.dtype.is_floating_point), operands[0])


def _family(node: fx.Node, size_hint: SizeHint) -> str:
    name = op_name(node)
    if "convolution" not in name:
        return "attention" if "attention" in name else "matmul"
    weight = shape_of(argument(node, "weight"), size_hint)
    groups = argument(node, "groups")
    if weight[0] * weight[1] <= DEPTHWISE_WEIGHTS * (groups if isinstance(groups, int) else 1):
        return "depthwise convolution"
    transposed = argument(node, "transposed") is True and "backward" not in name
    return "transposed convolution" if transposed else "convolution"


def _element_operations(node: fx.Node, kind: NodeKind, device: Device, size_hint: SizeHint) -> float | None:
    """Simple operations of a node that is no matmul; None if the operator is unknown."""
    name = op_name(node)
    written = _elements(tensors_in(node.meta.get("val")), size_hint)
    read = max((_elements([tensor], size_hint) for tensor in _input_tensors(node)), default=0)
    if name in _SORTS:
        length = _sorted_length(node, size_hint)
        return read * log2(max(2, length)) * SORT_OPS_PER_COMPARISON[device.kind]
    if name in _SCANS:
        return read * SCAN_OPS_PER_ELEMENT[device.kind]
    if name in _SCATTERS:
        return written + _scattered_elements(node, size_hint) * SCATTER_OPS_PER_ELEMENT[device.kind]
    if name == "aten.gather":
        return written * ELEMENT_GATHER_OPS_PER_ELEMENT[device.kind]
    if name in _GATHERS:
        return written * GATHER_OPS_PER_ELEMENT[device.kind]
    if name in _POOLS:
        table = AVERAGE_POOL_OPS_PER_ELEMENT if "avg" in name else MAX_POOL_OPS_PER_ELEMENT
        return (
            _elements(tensors_in(node.meta["val"])[:1], size_hint)
            * _window(node, size_hint)
            * table[device.kind]
        )
    if name in _VARIANCES:
        return read * VARIANCE_OPS_PER_ELEMENT[device.kind]
    if name in _SOFTMAXES:
        return read * (3 * REDUCTION_OPS_PER_ELEMENT[device.kind] + _element_table(device)["exp"])
    if kind is NodeKind.RANDOM:
        return written * RANDOM_OPS_PER_ELEMENT[device.kind]
    if kind is NodeKind.REDUCTION:
        return read * REDUCTION_OPS_PER_ELEMENT[device.kind]
    if kind in (NodeKind.FUSIBLE, NodeKind.CREATION):
        return written * _pointwise_operations(node, device)
    return None


def _element_table(device: Device) -> Mapping[str, float]:
    return CPU_ELEMENT_OPS if device.kind == "cpu" else GPU_ELEMENT_OPS


def _pointwise_operations(node: fx.Node, device: Device) -> float:
    name = op_name(node).rpartition(".")[2]
    if name == "pow" and argument(node, "exponent") in SMALL_POWERS:
        return SMALL_POWER_OPS
    return _element_table(device).get(name, 1.0)


def _sorted_length(node: fx.Node, size_hint: SizeHint) -> int:
    shape = shape_of(node.all_input_nodes[0], size_hint)
    dim = argument(node, "dim")
    return shape[dim if isinstance(dim, int) else -1] if shape else 1


def _scattered_elements(node: fx.Node, size_hint: SizeHint) -> int:
    """Elements that are added into the base: those of the source, else those of the index."""
    for name in ("values", "src", "source", "index", "grad_output", "grad"):
        operand = argument(node, name)
        if isinstance(operand, fx.Node):
            return _elements(tensors_in(operand.meta.get("val")), size_hint)
    return _elements(_input_tensors(node)[-1:], size_hint)


def _window(node: fx.Node, size_hint: SizeHint) -> int:
    sizes = argument(node, "kernel_size")
    window = 1
    for size in sizes if isinstance(sizes, (list, tuple)) else (sizes,):
        window *= size_hint(size) if isinstance(size, (int, torch.SymInt)) else 1
    return window
