"""From the joint graph to the torch-free problem, with a side table back to the nodes. Knows FX."""

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import torch
import torch.fx as fx

from graphremat.passes import torch_private as private
from graphremat.passes.buffers import is_mask
from graphremat.passes.classify import JointGraph
from graphremat.passes.costs import copy_seconds, mask_seconds, op_cost, times_computed
from graphremat.passes.devices import Device
from graphremat.passes.garbage import garbage_left
from graphremat.passes.hints import SizeHint, symbol_hints
from graphremat.passes.kinds import is_overwritten, op_name, problem_kind, replays_from_seed, tensors_in
from graphremat.passes.problem import Builder, Holder, Kind, Op, Phase, Problem
from graphremat.passes.scratch import CONVOLUTIONS, channels_last, scratch_bytes, spare_bytes
from graphremat.passes.traffic import JoinedReads

OVERWRITTEN = "a kernel of the user's own writes its result over it"
PART_OPS = frozenset({"aten.select", "aten.slice"})
"""Views of a part of their operand's elements."""
HEAVY_OPS = frozenset(
    {f"aten.{name}" for name in ("exp", "log", "log10", "log1p", "log2", "sigmoid", "tanh")}
)
"""Inductor gives these a buffer on the CPU when they have several readers (``StorageBox.should_realize_on_reuse``)."""


@dataclass(frozen=True, eq=False)
class Index:
    """Which node an op or a value of the problem comes from."""

    op_node: tuple[fx.Node, ...]
    value_node: tuple[fx.Node | None, ...]
    """None for a result of a multi-output op that nothing reads."""
    value_of: dict[fx.Node, int]

    kernels: frozenset[object]
    """Targets of ops that are kernels of their own."""

    @cached_property
    def targets(self) -> frozenset[object]:
        """Targets of ops that are not views: what a check of the order goes by."""
        return frozenset(node.target for node, view in zip(self.op_node, self.views, strict=True) if not view)

    views: tuple[bool, ...] = ()
    """For each op, whether its node is a view or writes nothing."""

    sizes: dict[str, int] = field(default_factory=dict)
    """What each symbol is taken to be in the problem's sizes, by name."""


@garbage_left()
def build_problem(
    joint: JointGraph,
    device: Device,
    *,
    fuses: bool,
    size_hint: SizeHint,
    measured: Mapping[fx.Node, float] | None = None,
    runs_here: bool = True,
) -> tuple[Problem, Index]:
    """Describe the joint graph as a :class:`Problem`.

    Args:
        joint: the classified joint graph.
        device: the device whose prices hold.
        fuses: whether the lowering joins ops into kernels (Inductor does, ``aot_eager`` does not).
        size_hint: evaluates symbolic sizes.
        measured: seconds of nodes that were timed, in place of their prices.
        runs_here: whether the graph is to run on the device that it was traced for. Ops of libraries are then run to
            see what they allocate inside.
    """
    reader = _Reader(joint, device, fuses, size_hint, measured or {}, runs_here)
    for node in joint.module.graph.nodes:
        reader.read(node)
    return reader.finish()


class _Reader:
    def __init__(
        self,
        joint: JointGraph,
        device: Device,
        fuses: bool,
        size_hint: SizeHint,
        measured: Mapping[fx.Node, float],
        runs_here: bool,
    ) -> None:
        self._runs_here = runs_here
        self._joint = joint
        self._device = device
        self._fuses = fuses
        self._hint = size_hint
        self._measured = measured
        self._value_of: dict[fx.Node, int] = {}
        self._results: dict[fx.Node, dict[object, int]] = {}
        """Values of a multi-output op by position or, of a kernel of the user's own, by the name of the argument."""
        self._value_node: dict[int, fx.Node] = {}
        self._op_node: list[fx.Node] = []
        self._storage_of: dict[int, int] = {}
        self._values = 0
        self._sizes: dict[str, int] = {}
        tensors = (t for node in joint.module.graph.nodes for t in tensors_in(node.meta.get("val")))
        self._on_cpu = all(t.device.type in ("cpu", "meta") for t in tensors)
        self._code_for_cpu = self._on_cpu and (runs_here or device.kind == "cpu")
        self._times_computed = times_computed(joint.module.graph, size_hint) if fuses else {}
        self._joined_reads = JoinedReads(size_hint) if fuses and device.kind == "cuda" else None
        self._builder = Builder(
            fuses=fuses,
            groups=fuses and self._code_for_cpu,
            block_bytes=1 if self._code_for_cpu else device.block_bytes,
        )

    def read(self, node: fx.Node) -> None:
        val = node.meta.get("val")
        if node.op in ("placeholder", "get_attr"):
            if isinstance(val, torch.Tensor):
                tangent = node.op == "placeholder" and "tangents" in str(node.target)
                holder = Holder.ENGINE if tangent else Holder.CALLER
                storage = self._storage(node.name, val, holder)
                self._add_value(node, storage, val)
        elif node.op == "call_function":
            self._read_call(node, val)

    def _read_call(self, node: fx.Node, val: object) -> None:
        if (
            node.target is operator.getitem
            and isinstance(node.args[0], fx.Node)
            and node.args[0] in self._results
        ):
            value = self._results[node.args[0]].get(node.args[1])
            if value is not None:
                self._value_of[node] = value
                self._value_node[value] = node
            return
        if private.is_sym_node(node):
            return
        reads = self._reads(node)
        packing = mask_seconds(node, self._device, self._hint) if self._fuses else 0.0
        kind = problem_kind(node, for_cpu=self._code_for_cpu)
        lies_in_result = self._lies_in_the_result(node)
        most_read = None if self._joined_reads is None else self._joined_reads.bytes_read(node, kind)
        cost = op_cost(node, self._device, self._hint, most_read=most_read)
        args, copies = self._handed_over(node)
        copying = sum(copy_seconds(copy, self._device, self._hint) for copy in copies)
        seconds = cost.seconds + packing
        if isinstance(val, torch.Tensor) and self._is_a_part(node, kind):
            kind, writes = Kind.FUSIBLE, self._part(node, val)
            seconds = copy_seconds(val, self._device, self._hint)
        elif kind is Kind.VIEW and reads and tensors_in(val):
            writes = self._write(node, val, self._builder.storage_of(reads[0]))
        else:
            kind = kind if self._fuses and kind is not Kind.VIEW else Kind.KERNEL
            writes = self._write(node, val, self._builder.storage(node.name, 0) if lies_in_result else None)
        phase = self._joint.phases[node]
        self._builder.add(
            Op(
                name=node.name,
                target=str(node.target),
                reads=tuple(dict.fromkeys(reads)),
                writes=tuple(writes),
                kind=kind,
                phase=phase,
                seconds=self._measured.get(node, seconds) + copying,
                fused_seconds=cost.fused_seconds * self._times_computed.get(node, 1.0),
                flops=cost.flops,
                reads_many=(self._code_for_cpu and op_name(node) in HEAVY_OPS) or is_mask(node),
                written_out=replays_from_seed(node),
                relays=_relays(node),
                scratch_bytes=self._scratch_bytes(node, args, copies) if kind is Kind.KERNEL else 0,
                keep=self._joint.keep.get(node, ""),
                unsavable=self._joint.unsavable.get(node, OVERWRITTEN if lies_in_result else ""),
            )
        )
        self._op_node.append(node)

    def _reads(self, node: fx.Node) -> list[int]:
        reads: list[int] = []
        for operand in node.all_input_nodes:
            if operand in self._value_of:
                reads.append(self._value_of[operand])
            elif operand in self._results:
                reads.extend(self._results[operand].values())
        return reads

    def _write(self, node: fx.Node, val: object, seen: int | None = None) -> list[int]:
        """The results of a node: views of the storage ``seen``, or each in a storage of its own."""

        def storage(name: str, part: torch.Tensor, spare: int = 0) -> int:
            return self._storage(name, part, spare=spare) if seen is None else seen

        if isinstance(val, torch.Tensor):
            spare = 0 if self._fuses or seen is not None else self._spare_bytes(node)
            return [self._add_value(node, storage(node.name, val, spare), val)]
        if isinstance(val, (tuple, list, dict)):
            results: dict[object, int] = {}
            module, source = origin_of(node)
            for key, part in val.items() if isinstance(val, dict) else enumerate(val):
                if not isinstance(part, torch.Tensor):
                    continue
                name, label = f"{node.name}.{key}", tensor_label(part)
                results[key] = self._builder.value(
                    name, storage(name, part), label=label, module=module, source=source
                )
                self._values += 1
            self._results[node] = results
            return list(results.values())
        return []

    def _is_a_part(self, node: fx.Node, kind: Kind) -> bool:
        """Whether a node of the backward shows a part of a buffer to pointwise work alone. It counts as pointwise work
        then, since the part can be written out, so that the whole need not live on for it: the gradient of a
        concatenation is one buffer, of which each operand of the concatenation has its part."""
        if not self._fuses or kind is not Kind.VIEW or op_name(node) not in PART_OPS:
            return False
        if self._joint.phases[node] is not Phase.BACKWARD or not self._read_by_pointwise_work(node):
            return False
        whole = node.args[0]
        assert isinstance(whole, fx.Node)
        return self._hint(node.meta["val"].numel()) < self._hint(whole.meta["val"].numel())

    def _read_by_pointwise_work(self, node: fx.Node) -> bool:
        kinds = {user: problem_kind(user, for_cpu=self._code_for_cpu) for user in node.users}
        return all(
            user.op == "call_function"
            and (kind is Kind.FUSIBLE or (kind is Kind.VIEW and self._read_by_pointwise_work(user)))
            for user, kind in kinds.items()
        )

    def _part(self, node: fx.Node, val: torch.Tensor) -> list[int]:
        """A part in a buffer of its own, without what lies between its elements."""
        self._sizes |= symbol_hints(val.shape)
        size = val.numel() * val.dtype.itemsize
        storage = self._builder.storage(node.name, self._hint(size), size=private.size_text(size))
        return [self._add_value(node, storage, val)]

    def _lies_in_the_result(self, node: fx.Node) -> bool:
        """Whether a kernel of the user's own writes its result over that of this node, which counts as that result:
        both are never alive at once, and only the second can be saved."""
        can_run_again = node not in self._joint.keep
        return can_run_again and isinstance(node.meta.get("val"), torch.Tensor) and is_overwritten(node)

    def _storage(self, name: str, val: torch.Tensor, holder: Holder = Holder.GRAPH, *, spare: int = 0) -> int:
        self._sizes |= symbol_hints((*val.shape, *val.stride()))
        size = tensor_bytes(val, self._hint) + spare
        return self._builder.storage(name, size, holder, tensor_bytes_text(val))

    def _add_value(self, node: fx.Node, storage: int, val: torch.Tensor) -> int:
        module, source = origin_of(node)
        value = self._builder.value(node.name, storage, label=tensor_label(val), module=module, source=source)
        self._values += 1
        self._value_of[node] = value
        self._value_node[value] = node
        return value

    def finish(self) -> tuple[Problem, Index]:
        (output,) = self._joint.module.graph.find_nodes(op="output")
        results = list(output.args[0])
        split = self._joint.num_forward_outputs
        problem = self._builder.build(self._tensors(results[:split]), self._tensors(results[split:]))
        index = Index(
            op_node=tuple(self._op_node),
            value_node=tuple(self._value_node.get(v) for v in range(self._values)),
            value_of=self._value_of,
            kernels=frozenset(
                node.target
                for node, op in zip(self._op_node, problem.ops, strict=True)
                if op.kind is Kind.KERNEL and op.writes
            ),
            views=tuple(
                op.kind is Kind.VIEW or not op.writes or op_name(node) in PART_OPS
                for node, op in zip(self._op_node, problem.ops, strict=True)
            ),
            sizes=dict(sorted(self._sizes.items())),
        )
        return problem, index

    def _handed_over(self, node: fx.Node) -> tuple[Sequence[Any] | None, list[torch.Tensor]]:
        """What the op is called with, None where its sizes are symbolic; and what is copied for it before."""
        args = self._known_args(node)
        if args is None or str(node.target) not in CONVOLUTIONS:
            return args, []
        if not (self._on_cpu and self._fuses and self._runs_here):
            return args, []
        held = [isinstance(a, fx.Node) and a.op == "placeholder" for a in node.args]
        return channels_last(args, held)

    def _scratch_bytes(
        self, node: fx.Node, args: Sequence[Any] | None, copies: Sequence[torch.Tensor]
    ) -> int:
        """What the op allocates for itself, and what is copied for it; 0 where its sizes are symbolic."""
        if args is None:
            return 0
        device_type = "cpu" if self._on_cpu else "cuda"
        inside = scratch_bytes(str(node.target), args, device_type, probes=self._runs_here)
        return inside + sum(copy.nbytes for copy in copies)

    def _spare_bytes(self, node: fx.Node) -> int:
        args = self._known_args(node)
        return 0 if args is None else spare_bytes(str(node.target), args, "cpu" if self._on_cpu else "cuda")

    def _known_args(self, node: fx.Node) -> Sequence[Any] | None:
        """What the op was traced with; None where its sizes are symbolic."""
        args: Sequence[Any] = fx.node.map_arg(node.args, lambda operand: operand.meta.get("val"))
        sizes = [size for t in tensors_in(args) for size in (*t.shape, *t.stride())]
        return None if any(isinstance(size, torch.SymInt) for size in sizes) else args

    def _tensors(self, nodes: list[object]) -> list[int]:
        found = [self._value_of[n] for n in nodes if isinstance(n, fx.Node) and n in self._value_of]
        return list(dict.fromkeys(found))


def _relays(node: fx.Node) -> bool:
    """Whether an operand of the result's shape lies in memory in another order than the result."""
    val = node.meta.get("val")
    if not isinstance(val, torch.Tensor):
        return False
    shape, order = _shape_and_order(val)
    operands = map(_shape_and_order, tensors_in([n.meta.get("val") for n in node.all_input_nodes]))
    return any(shape == others and order != another for others, another in operands)


def _shape_and_order(val: torch.Tensor) -> tuple[list[str], list[str]]:
    """Sizes, and strides along dimensions of more than one element, as text: symbols are compared without a guard."""
    shape = [str(size) for size in val.shape]
    return shape, [str(stride) for size, stride in zip(shape, val.stride(), strict=True) if size != "1"]


def tensor_bytes(val: torch.Tensor, size_hint: SizeHint) -> int:
    """Bytes of the storage that a freshly made ``val`` takes: up to its last element, strides counted."""
    if val.layout is not torch.strided:
        return 0
    last = 0
    for size, stride in zip(val.shape, val.stride(), strict=True):
        extent = size_hint(size)
        if extent == 0:
            return 0
        last += (extent - 1) * size_hint(stride)
    return (last + 1) * val.dtype.itemsize


def tensor_bytes_text(val: torch.Tensor) -> str:
    """The same, as arithmetic over symbols; "" where nothing about it is symbolic."""
    sizes, strides = val.shape, val.stride()
    if val.layout is not torch.strided or not any(isinstance(s, torch.SymInt) for s in (*sizes, *strides)):
        return ""
    if any(isinstance(size, int) and size == 0 for size in sizes):
        return ""
    last = sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    return private.size_text((last + 1) * val.dtype.itemsize)


def tensor_label(val: torch.Tensor) -> str:
    """Dtype and shape in short, as ``f32[4, 256]`` or ``f32[s77, 256]``."""
    short = (
        str(val.dtype).removeprefix("torch.").replace("float", "f").replace("int", "i").replace("bool", "b8")
    )
    return f"{short}[{', '.join(str(s) for s in val.shape)}]"


_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
REMEMBERED = 1024
"""Module paths and stack traces whose reading is kept: the nodes of one module, forward and backward, share them."""


def origin_of(node: fx.Node) -> tuple[str, str]:
    """The module path and the source line (``file:line``) that a node comes from; empty where torch kept none."""
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack") or {}
    path, _ = list(stack.values())[-1] if stack else ("", None)
    return _plain_path(str(path)), _last_frame(node.meta.get("stack_trace") or "")


@lru_cache(maxsize=REMEMBERED)
def _plain_path(path: str) -> str:
    """The path without what Dynamo adds: ``self``, or ``fn`` for a module of torch's own, is the module compiled; where
    a function is compiled, modules are its local (``L``) or global (``G``) variables."""
    steps = r"L\['(?:self|fn)'\]\.?|[LG]\['(\w+)'\]|_modules\['([^']+)'\]"
    return re.sub(steps, lambda m: m.group(1) or m.group(2) or "", path).strip(".")


@lru_cache(maxsize=REMEMBERED)
def _last_frame(trace: str) -> str:
    frames = _FRAME.findall(trace)
    return f"{frames[-1][0]}:{frames[-1][1]}" if frames else ""
