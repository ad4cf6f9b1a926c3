"""What kind of work a node of a joint graph is, as far as Inductor's fusion and the planner's prices care.

The decision is torch's own where torch has one: the schema says what is a view, the tags say what is pointwise, a
reduction or random. Inductor's decompositions leave operators that carry no such tag; those are in the tables below.
"""

import enum
from functools import cache
from typing import Any

import torch
from torch import fx

from graphremat.passes import problem
from graphremat.passes.torch_private import operator_arguments


class NodeKind(enum.Enum):
    """How a node runs once Inductor has generated code."""

    BOUNDARY = "boundary"
    """Placeholder, constant or output of the graph: no work."""
    SYMBOLIC = "symbolic"
    """Sizes and other Python numbers: host arithmetic, no work on the device."""
    VIEW = "view"
    """The same storage seen with other sizes: no kernel, no bytes."""
    CREATION = "creation"
    """A tensor made of nothing (full, arange): fuses into every reader and reads nothing."""
    FUSIBLE = "fusible"
    """One output element from one element (or a fixed few) of the inputs: fuses into its readers."""
    REDUCTION = "reduction"
    """Fuses with what it reads; its result is materialised before most readers start."""
    RANDOM = "random"
    """Draws random numbers; see :func:`replays_from_seed` before repeating one."""
    KERNEL = "kernel"
    """A kernel of its own, whose inputs and outputs are all materialised: matmul, convolution, attention, sort, any
    operator of which nothing better is known."""


USER_KERNEL = "triton_kernel_wrapper_functional"
"""A call of a Triton kernel that the user has written: operands by name under ``kwargs``, of which those named by
``tensors_to_clone`` are copied before the kernel writes to them; the copies are the result, by the same names."""

# Schemas that say "view" are not listed. reshape and _unsafe_view copy when no view exists: Inductor then lowers the
# copy as a pointwise kernel, which a reader usually absorbs, so they count as views; lift_fresh of a constant likewise.
VIEW_OPS = frozenset(
    {
        "aten._unsafe_view",
        "aten.reshape",
        "aten.lift",
        "aten.lift_fresh",
        "aten._reshape_alias",
        "aten.contiguous",
    }
)

CREATION_OPS = frozenset(
    f"aten.{name}"
    for name in (
        "arange", "empty", "empty_like", "empty_permuted", "empty_strided", "eye", "full", "full_like", "linspace",
        "logspace", "new_empty", "new_empty_strided", "new_full", "new_ones", "new_zeros", "ones", "ones_like",
        "scalar_tensor", "tril_indices", "triu_indices", "zeros", "zeros_like",
    )
) | {"prims.iota", "prims.empty_strided", "prims.empty_permuted", "prims.full", "prims.full_like"}  # fmt: skip

# Pointwise for Inductor, without the pointwise tag: index arithmetic, data movement and leftovers of decompositions.
FUSIBLE_OPS = frozenset(
    f"aten.{name}"
    for name in (
        "_adaptive_avg_pool2d_backward", "_softmax_backward_data", "_log_softmax_backward_data", "_to_copy",
        "_unsafe_index", "_unsafe_masked_index", "as_strided_scatter", "avg_pool2d_backward", "avg_pool3d_backward",
        "bucketize", "cat", "constant_pad_nd", "copy", "copy_", "diagonal_scatter", "embedding", "fill", "flip",
        "gather", "index", "index_select", "lift_fresh_copy", "masked_fill", "max_pool2d_with_indices_backward",
        "native_dropout_backward", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "repeat",
        "replication_pad1d", "replication_pad2d", "replication_pad3d", "roll", "select_scatter", "slice_scatter",
        "split_with_sizes_copy", "stack", "tril", "triu", "upsample_bicubic2d", "upsample_bilinear2d",
        "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest2d_backward", "upsample_nearest3d", "view_copy",
    )
) | {
    "prims._low_memory_max_pool_offsets_to_indices", "prims.convert_element_type", "prims.fma",
    "prims.inductor_force_stride_order", "prims.inductor_lookup_seed", "prims.rev", "prims.where",
}  # fmt: skip

# Reductions without the reduction tag. Pooling reduces a small window; fused normalisations reduce and then map.
REDUCTION_OPS = frozenset(
    f"aten.{name}"
    for name in (
        "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "_batch_norm_with_update", "_fused_rms_norm",
        "_fused_rms_norm_backward", "_log_softmax", "_native_batch_norm_legit",
        "_native_batch_norm_legit_functional", "_native_batch_norm_legit_no_training", "_safe_softmax", "_softmax",
        "adaptive_max_pool2d", "adaptive_max_pool3d", "amax", "amin", "aminmax", "avg_pool2d", "avg_pool3d",
        "batch_norm_backward", "max_pool2d_with_indices", "max_pool3d_with_indices", "mean", "native_batch_norm",
        "native_batch_norm_backward", "native_group_norm", "native_group_norm_backward", "native_layer_norm",
        "native_layer_norm_backward", "nll_loss_forward", "nll_loss_backward", "nll_loss2d_forward",
        "nll_loss2d_backward",
    )
) | {"prims._low_memory_max_pool_with_offsets", "prims.prepare_softmax_online", "prims.sum", "prims.var"}  # fmt: skip

# Inductor generates a loop for these unless an index is a mask or the type has no atomic addition
# (`torch._inductor.lowering.index_put_impl_`): like a reduction it takes its operands in and ends in a buffer.
SCATTER_OPS = frozenset({"aten._unsafe_index_put", "aten.index_put", "aten.scatter"})
NO_ATOMIC_ADDITION = frozenset({torch.bool, torch.int64})

RANDOM_OPS = frozenset(
    {
        "prims.inductor_random",
        "prims.inductor_randint",
        "prims.inductor_seed",
        "prims.inductor_seeds",
        "prims.inductor_rand_eager_offset",
        "prims.inductor_rand_eager_offsets",
        "prims.philox_rand",
    }
)

# These take their randomness as an operand (a seed that inductor_seeds drew), so running one twice gives one answer.
REPLAYABLE_RANDOM_OPS = frozenset({"prims.inductor_random", "prims.inductor_randint"})


def op_name(node: fx.Node) -> str:
    """The operator of a node without its overload: ``"aten.mm"``, ``"prims.iota"``, or a function's own name."""
    return _target_name(node.target)


@cache
def _target_name(target: Any) -> str:
    packet = getattr(target, "overloadpacket", None)
    if packet is not None:
        return str(packet)
    return target if isinstance(target, str) else str(getattr(target, "__name__", target))


def argument(node: fx.Node, name: str) -> Any:
    """The argument of that name, positional, by keyword or the schema's default; None if there is none."""
    if name in node.kwargs:
        return node.kwargs[name]
    for position, (known, default) in enumerate(operator_arguments(node.target)):
        if known == name:
            return node.args[position] if position < len(node.args) else default
    return None


def tensors_in(value: Any) -> list[torch.Tensor]:
    """The tensors of a ``meta["val"]``: itself, or those in its (nested) tuple, list or dict."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in tensors_in(item)]
    return []


def is_overwritten(node: fx.Node) -> bool:
    """Whether a kernel of the user's own writes over all of what this node makes, also through views, and nothing else
    reads it.

    Inductor then gives the kernel that buffer and makes no copy (``fx_passes/reinplace.py``).
    """
    while len(node.users) == 1:
        (user,) = node.users
        if op_name(user) == USER_KERNEL:
            operands, written = user.kwargs["kwargs"], user.kwargs["tensors_to_clone"]
            assert isinstance(operands, dict)
            assert isinstance(written, (list, tuple))
            return all(name in written for name, operand in operands.items() if operand is node)
        if classify_kind(user) is not NodeKind.VIEW or _elements_of(user) != _elements_of(node):
            return False
        node = user
    return False


def _elements_of(node: fx.Node) -> str:
    """How many, as text: symbols are compared without a guard."""
    return " ".join(str(tensor.numel()) for tensor in tensors_in(node.meta.get("val")))


def replays_from_seed(node: fx.Node) -> bool:
    """Whether a random node takes its randomness from a seed among its operands, so that a copy draws the same."""
    return op_name(node) in REPLAYABLE_RANDOM_OPS


def classify_kind(node: fx.Node) -> NodeKind:
    """The kind of one node; a pure function of its target, its arguments and the type of its ``meta["val"]``.

    An operator that neither torch's tags nor the tables here know is a :attr:`NodeKind.KERNEL`.
    """
    if node.op in ("placeholder", "get_attr", "output"):
        return NodeKind.BOUNDARY
    if node.op != "call_function":
        return NodeKind.KERNEL
    name = op_name(node)
    if name == "getitem":
        return NodeKind.VIEW if tensors_in(node.meta.get("val")) else NodeKind.SYMBOLIC
    if "val" in node.meta and node.meta["val"] is not None and not tensors_in(node.meta["val"]):
        # aten.item and the like wait for the device, but move no bytes worth a price.
        return NodeKind.SYMBOLIC
    tags = getattr(node.target, "tags", ())
    if name in RANDOM_OPS or (torch.Tag.nondeterministic_seeded in tags and not _without_dropout(node)):
        return NodeKind.RANDOM
    if name in VIEW_OPS or getattr(node.target, "is_view", False):
        return NodeKind.VIEW
    if name in CREATION_OPS:
        return NodeKind.CREATION
    if name in FUSIBLE_OPS or torch.Tag.pointwise in tags:
        return NodeKind.FUSIBLE
    if name in REDUCTION_OPS or torch.Tag.reduction in tags or _is_a_loop_of_scatters(node):
        return NodeKind.REDUCTION
    return NodeKind.KERNEL


def _is_a_loop_of_scatters(node: fx.Node) -> bool:
    """Whether the node writes through an index in generated code; see :data:`SCATTER_OPS`."""
    if op_name(node) not in SCATTER_OPS or argument(node, "reduce") is not None:
        return False
    indices = argument(node, "indices") or ()
    of_masks = any(
        t.dtype in (torch.bool, torch.uint8)
        for i in indices
        if i is not None
        for t in tensors_in(i.meta.get("val"))
    )
    adds_without_atomics = argument(node, "accumulate") is True and any(
        t.dtype in NO_ATOMIC_ADDITION for t in tensors_in(node.meta.get("val"))
    )
    return not of_masks and not adds_without_atomics


def _without_dropout(node: fx.Node) -> bool:
    """Whether the only randomness is a dropout whose probability is a literal 0, as in most attention kernels."""
    dropout = argument(node, "dropout_p")
    return isinstance(dropout, (int, float)) and dropout == 0


def problem_kind(node: fx.Node, *, for_cpu: bool | None = None) -> problem.Kind:
    """The same in the coarser words of the torch-free problem; what costs nothing is a view there.

    ``for_cpu`` is whether the code will be for a CPU; None for what the result lies on.
    """
    if replays_from_seed(node):
        return problem.Kind.FUSIBLE
    if op_name(node) == "aten.cat":
        if for_cpu is None:
            for_cpu = all(t.device.type != "cuda" for t in tensors_in(node.meta.get("val")))
        if for_cpu:  # Inductor computes the parts straight into the buffer (`lowering.cat`)
            return problem.Kind.REDUCTION
    return _PROBLEM_KIND[classify_kind(node)]


_PROBLEM_KIND = {
    NodeKind.BOUNDARY: problem.Kind.VIEW,
    NodeKind.SYMBOLIC: problem.Kind.VIEW,
    NodeKind.VIEW: problem.Kind.VIEW,
    NodeKind.CREATION: problem.Kind.FUSIBLE,
    NodeKind.FUSIBLE: problem.Kind.FUSIBLE,
    NodeKind.REDUCTION: problem.Kind.REDUCTION,
    NodeKind.RANDOM: problem.Kind.KERNEL,
    NodeKind.KERNEL: problem.Kind.KERNEL,
}
