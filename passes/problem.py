"""The rematerialization problem of one joint graph, free of torch.

A :class:`Problem` says which ops there are, what they read and write, what each costs and which may run again. It is
all that the solvers see, it is what ``10-problem.json`` of a dump holds, and it can be loaded and solved on a machine
without torch.

    >>> from graphremat.passes.problem import Builder, Kind, Phase
    >>> b = Builder()
    >>> x = b.input("x", 4096)
    >>> h = b.op("relu", [x], Kind.FUSIBLE, Phase.FORWARD, size_bytes=4096, seconds=1e-6)
    >>> y = b.op("mm", [h], Kind.KERNEL, Phase.FORWARD, size_bytes=4096, seconds=1e-5)
    >>> t = b.tangent("tangent", 4096)
    >>> g = b.op("mm_backward", [t, h], Kind.KERNEL, Phase.BACKWARD, size_bytes=4096, seconds=1e-5)
    >>> problem = b.build(forward_outputs=[y], backward_outputs=[g])
    >>> [op.name for op in problem.ops]
    ['relu', 'mm', 'mm_backward']
    >>> Problem.from_json(problem.to_json()) == problem
    True
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from functools import cached_property

import numpy as np
import numpy.typing as npt

from graphremat.passes.sizes import evaluate, rounded_up, symbols_of

FORMAT = 1
"""Version of the JSON form; raised whenever an old dump would be misread."""


class Phase(str, Enum):
    """Where the joint graph needs an op: for a forward output, behind a tangent, or only for the backward's sake."""

    FORWARD = "forward"
    EITHER = "either"
    BACKWARD = "backward"


class Kind(str, Enum):
    """What an op is to a code generator that fuses.

    ``VIEW`` shares its operand's storage and costs nothing. ``FUSIBLE`` ops can live inside another kernel; a
    ``REDUCTION`` can take its producers in, and its result is a buffer; a ``KERNEL`` reads and writes buffers only.
    """

    VIEW = "view"
    FUSIBLE = "fusible"
    REDUCTION = "reduction"
    KERNEL = "kernel"


class Holder(str, Enum):
    """Who owns a storage: the caller (alive the whole step), the autograd engine (all backward), or the graph."""

    CALLER = "caller"
    ENGINE = "engine"
    GRAPH = "graph"


@dataclass(frozen=True)
class Storage:
    """A block of device memory. Where its size is not fixed, ``size`` says what it depends on
    (:mod:`graphremat.passes.sizes`), and ``size_bytes`` is what it was planned with."""

    name: str
    size_bytes: int
    holder: Holder = Holder.GRAPH
    size: str = ""


@dataclass(frozen=True)
class Value:
    """A tensor: a name in the joint graph, the storage it lies in, and words for a report."""

    name: str
    storage: int
    producer: int = -1
    """Index of the op that writes it; -1 for a graph input."""
    label: str = ""
    """Dtype and shape, as ``f32[4, 256]``."""
    module: str = ""
    source: str = ""


@dataclass(frozen=True)
class Op:
    """One op of the joint graph. ``reads`` and ``writes`` are indices of values."""

    name: str
    target: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    kind: Kind
    phase: Phase
    seconds: float = 0.0
    """Alone: arithmetic or memory traffic, whichever is longer, and the launch."""
    fused_seconds: float = 0.0
    """Inside another kernel: the arithmetic alone."""
    flops: int = 0
    reads_many: bool = False
    """Not to be repeated in every reader (too heavy, or of random numbers); a fusing compiler gives it a buffer when it
    has several readers."""
    written_out: bool = False
    """A fusing compiler gives its result a buffer unless all its readers run in the same kernel, be it one reader."""
    relays: bool = False
    """It reads an operand in another order than it writes its result, which so cannot take the operand's place."""
    scratch_bytes: int = 0
    """What it allocates for itself and frees before it returns."""
    keep: str = ""
    """Why this op must not run a second time; empty if it may."""
    unsavable: str = ""
    """Why its result cannot be saved; empty if it can."""


@dataclass(frozen=True, eq=False)
class Table:
    """The columns of a problem that loops over all ops read again and again, as plain lists and arrays."""

    reads: list[tuple[int, ...]]
    writes: list[tuple[int, ...]]
    phases: list[Phase]
    producers: list[int]
    """For each value, the op that makes it; negative for inputs."""
    makes: list[tuple[tuple[int, int], ...]]
    """For each op, its ``(value, storage)``; -1 for a storage that the graph does not own."""
    views: list[tuple[tuple[int, int], ...] | None]
    """For each view, its ``(value, the value read that lies in the same storage)``, -1 if there is none; None for an
    op that is no view."""
    plain_views: list[tuple[int, int] | None]
    """The same, where a view reads one value and writes one in the same storage, as nearly all do; else None."""
    is_kernel: list[bool]
    """Neither a view nor joined with other ops: all that it reads and writes lies in buffers."""
    is_pointwise: list[bool]
    """Its result may be left without a buffer."""
    reads_many: list[bool]
    written_out: list[bool]
    inputs: list[int]
    """For each op, the inputs that it reads, through views or not: a bit each."""
    relays: npt.NDArray[np.bool_]
    scratch: npt.NDArray[np.int64]
    seconds: npt.NDArray[np.float64]
    fused_seconds: npt.NDArray[np.float64]
    flops: npt.NDArray[np.int64]
    storage_bytes: npt.NDArray[np.int64]
    engine_bytes: int


@dataclass(frozen=True)
class Problem:
    """Forward and backward ops in a fixed order.

    ``fuses`` tells whether the lowering joins ops into kernels. ``groups`` tells whether all that runs between two
    kernels of their own is one function besides, as Inductor has it on a CPU: what any of it reads or writes is alive
    until all of it has run. The bytes of a storage are a multiple of ``block_bytes``, as the device's allocator has it.
    """

    storages: tuple[Storage, ...]
    values: tuple[Value, ...]
    ops: tuple[Op, ...]
    forward_outputs: tuple[int, ...]
    backward_outputs: tuple[int, ...]
    fuses: bool = True
    groups: bool = False
    block_bytes: int = 1

    @cached_property
    def input_bytes(self) -> int:
        """Bytes of parameters, buffers and batch: alive all the time, whatever the plan."""
        return sum(s.size_bytes for s in self.storages if s.holder is Holder.CALLER)

    @cached_property
    def gradient_bytes(self) -> int:
        """Bytes of what the backward returns and the caller does not own already."""
        held = {self.values[v].storage for v in self.backward_outputs}
        return sum(self.storages[s].size_bytes for s in held if self.storages[s].holder is Holder.GRAPH)

    @cached_property
    def step_seconds(self) -> float:
        """Seconds of every op run once, each alone."""
        return sum(op.seconds for op in self.ops)

    @cached_property
    def readers(self) -> tuple[tuple[int, ...], ...]:
        """For each value, the ops that read it, in order."""
        found: list[list[int]] = [[] for _ in self.values]
        for index, op in enumerate(self.ops):
            for value in dict.fromkeys(op.reads):
                found[value].append(index)
        return tuple(tuple(f) for f in found)

    @cached_property
    def inside_readers(self) -> tuple[bool, ...]:
        """For each op, whether a copy of it would live inside the kernels that read it: where ops are joined, a
        pointwise op that feeds no kernel of its own, directly or through views."""
        feeds_kernel = [False] * len(self.values)
        for op in reversed(self.ops):
            through_view = op.kind is Kind.VIEW and any(feeds_kernel[w] for w in op.writes)
            if op.kind is Kind.KERNEL or through_view:
                for read in op.reads:
                    feeds_kernel[read] = True
        return tuple(
            op.kind is Kind.FUSIBLE and self.fuses and not any(feeds_kernel[w] for w in op.writes)
            for op in self.ops
        )

    @cached_property
    def base(self) -> tuple[int, ...]:
        """For each value, the value that is not a view and lies in the same storage (itself, if it is none)."""
        result = list(range(len(self.values)))
        for op in self.ops:
            if op.kind is Kind.VIEW:
                for write in op.writes:
                    sources = [r for r in op.reads if self.values[r].storage == self.values[write].storage]
                    result[write] = result[sources[0]] if sources else write
        return tuple(result)

    @cached_property
    def views(self) -> tuple[tuple[int, ...], ...]:
        """For each value, the views that lie in its storage; none for a view."""
        found: list[list[int]] = [[] for _ in self.values]
        for value, base in enumerate(self.base):
            if base != value:
                found[base].append(value)
        return tuple(tuple(f) for f in found)

    @cached_property
    def table(self) -> Table:
        """The columns of this problem."""
        values, storages = self.values, self.storages

        def seen(op: Op) -> tuple[tuple[int, int], ...]:
            return tuple(
                (w, next((r for r in op.reads if values[r].storage == values[w].storage), -1))
                for w in op.writes
            )

        def made(op: Op) -> tuple[tuple[int, int], ...]:
            return tuple((w, s if owned[s] else -1) for w in op.writes for s in (values[w].storage,))

        owned = [s.holder is Holder.GRAPH for s in storages]
        bit = [1 << number if v.producer < 0 else 0 for number, v in enumerate(values)]
        views = [seen(op) if op.kind is Kind.VIEW else None for op in self.ops]
        plain = [
            links[0] if links and len(links) == len(op.reads) == 1 and links[0][1] >= 0 else None
            for op, links in zip(self.ops, views, strict=True)
        ]
        return Table(
            reads=[op.reads for op in self.ops],
            writes=[op.writes for op in self.ops],
            phases=[op.phase for op in self.ops],
            producers=[v.producer for v in values],
            makes=[() if op.kind is Kind.VIEW else made(op) for op in self.ops],
            views=views,
            plain_views=plain,
            is_kernel=[op.kind is Kind.KERNEL or not self.fuses for op in self.ops],
            is_pointwise=[op.kind is Kind.FUSIBLE and self.fuses for op in self.ops],
            reads_many=[op.reads_many for op in self.ops],
            written_out=[op.written_out for op in self.ops],
            inputs=[sum({bit[self.base[r]] for r in op.reads}) for op in self.ops],
            scratch=np.array([op.scratch_bytes for op in self.ops], dtype=np.int64),
            relays=np.array([op.relays for op in self.ops], dtype=np.bool_),
            seconds=np.array([op.seconds for op in self.ops], dtype=np.float64),
            fused_seconds=np.array([op.fused_seconds for op in self.ops], dtype=np.float64),
            flops=np.array([op.flops for op in self.ops], dtype=np.int64),
            storage_bytes=np.array([s.size_bytes for s in storages], dtype=np.int64),
            engine_bytes=sum(s.size_bytes for s in storages if s.holder is Holder.ENGINE),
        )

    def graph_bytes(self, storage: int) -> int:
        """Bytes of a storage that the graph owns; 0 for one that the caller or autograd holds."""
        held = self.storages[storage]
        return held.size_bytes if held.holder is Holder.GRAPH else 0

    def held_by_caller(self, value: int) -> bool:
        """Whether the value's storage is alive the whole step without being saved."""
        return self.storages[self.values[value].storage].holder is Holder.CALLER

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        """What the sizes of storages depend on, by name; empty where all are fixed."""
        return tuple(sorted(frozenset().union(*(symbols_of(s.size) for s in self.storages if s.size))))

    def at_sizes(self, sizes: Mapping[str, int]) -> "Problem":
        """The same problem for other sizes; the seconds stay those that it was planned with.

        Raises:
            ValueError: a symbol has no number.
        """
        if not self.symbols:
            return self
        texts = {s.size for s in self.storages if s.size}
        bytes_of = {text: rounded_up(max(0, evaluate(text, sizes)), self.block_bytes) for text in texts}
        storages = (replace(s, size_bytes=bytes_of[s.size]) if s.size else s for s in self.storages)
        return replace(self, storages=tuple(storages))

    def to_json(self) -> str:
        """The problem as JSON text, stable from run to run; :meth:`from_json` reads it."""
        body = {
            "format": FORMAT,
            "fuses": self.fuses,
            "groups": self.groups,
            "block_bytes": self.block_bytes,
            "forward_outputs": self.forward_outputs,
            "backward_outputs": self.backward_outputs,
            "storages": [asdict(s) for s in self.storages],
            "values": [asdict(v) for v in self.values],
            "ops": [asdict(o) for o in self.ops],
        }
        return json.dumps(body, indent=1)

    @staticmethod
    def from_json(text: str) -> "Problem":
        """Read what :meth:`to_json` wrote. Raises ValueError for another format."""
        body = json.loads(text)
        if not isinstance(body, dict) or body.get("format") != FORMAT:
            found = body.get("format") if isinstance(body, dict) else type(body).__name__
            raise ValueError(f"not a problem of format {FORMAT}: found {found!r}")
        return Problem(
            storages=tuple(
                Storage(s["name"], s["size_bytes"], Holder(s["holder"]), s.get("size", ""))
                for s in body["storages"]
            ),
            values=tuple(Value(**v) for v in body["values"]),
            ops=tuple(
                Op(
                    **{
                        **o,
                        "reads": tuple(o["reads"]),
                        "writes": tuple(o["writes"]),
                        "kind": Kind(o["kind"]),
                        "phase": Phase(o["phase"]),
                    }
                )
                for o in body["ops"]
            ),
            forward_outputs=tuple(body["forward_outputs"]),
            backward_outputs=tuple(body["backward_outputs"]),
            fuses=body["fuses"],
            groups=body.get("groups", False),
            block_bytes=body.get("block_bytes", 1),
        )


def check_problem(problem: Problem) -> None:
    """Raise ValueError unless every index is in range, operands come before readers and sizes are not negative."""
    written: set[int] = {i for i, v in enumerate(problem.values) if v.producer < 0}
    for storage in problem.storages:
        if storage.size_bytes < 0:
            raise ValueError(f"storage {storage.name}: negative size {storage.size_bytes}")
    for index, op in enumerate(problem.ops):
        for read in op.reads:
            if read not in written:
                raise ValueError(f"op {op.name} reads value {read}, which nothing before it writes")
        for write in op.writes:
            if problem.values[write].producer != index:
                raise ValueError(
                    f"value {problem.values[write].name} does not name {op.name} as its producer"
                )
            if write in written:
                raise ValueError(f"value {problem.values[write].name} is written twice")
            written.add(write)
        if op.seconds < 0 or op.fused_seconds < 0:
            raise ValueError(f"op {op.name}: negative seconds")
        if op.phase is not Phase.BACKWARD:
            for read in op.reads:
                producer = problem.values[read].producer
                if producer >= 0 and problem.ops[producer].phase is Phase.BACKWARD:
                    raise ValueError(f"{op.phase.value} op {op.name} reads the backward value {read}")
        if op.phase is Phase.FORWARD:
            for read in op.reads:
                producer = problem.values[read].producer
                if producer >= 0 and problem.ops[producer].phase is not Phase.FORWARD:
                    raise ValueError(f"forward op {op.name} reads value {read}, which is not of the forward")
    for value in (*problem.forward_outputs, *problem.backward_outputs):
        if value not in written:
            raise ValueError(f"output value {value} is never written")


class Builder:
    """Builds a :class:`Problem` op by op; used by the FX reader and by tests. Values are returned as indices."""

    def __init__(self, *, fuses: bool = True, groups: bool = False, block_bytes: int = 1) -> None:
        self._block_bytes = block_bytes
        self._storages: list[Storage] = []
        self._values: list[Value] = []
        self._ops: list[Op] = []
        self._fuses = fuses
        self._groups = groups

    def storage(self, name: str, size_bytes: int, holder: Holder = Holder.GRAPH, size: str = "") -> int:
        """Add a storage and return its index."""
        self._storages.append(Storage(name, rounded_up(int(size_bytes), self._block_bytes), holder, size))
        return len(self._storages) - 1

    def value(self, name: str, storage: int, *, label: str = "", module: str = "", source: str = "") -> int:
        """Add a value that lies in ``storage`` and that no op has written yet."""
        self._values.append(Value(name, storage, -1, label, module, source))
        return len(self._values) - 1

    def storage_of(self, value: int) -> int:
        """The storage in which a value lies."""
        return self._values[value].storage

    def input(self, name: str, size_bytes: int) -> int:
        """Add a parameter, buffer or batch tensor."""
        return self.value(name, self.storage(name, size_bytes, Holder.CALLER))

    def tangent(self, name: str, size_bytes: int) -> int:
        """Add a gradient that comes in from outside."""
        return self.value(name, self.storage(name, size_bytes, Holder.ENGINE))

    def add(self, op: Op) -> int:
        """Add an op whose written values exist already; return its index."""
        index = len(self._ops)
        self._ops.append(op)
        for write in op.writes:
            old = self._values[write]
            self._values[write] = Value(old.name, old.storage, index, old.label, old.module, old.source)
        return index

    def op(
        self,
        name: str,
        reads: Iterable[int],
        kind: Kind,
        phase: Phase,
        *,
        size_bytes: int = 0,
        seconds: float = 0.0,
        fused_seconds: float = 0.0,
        scratch_bytes: int = 0,
        keep: str = "",
        unsavable: str = "",
    ) -> int:
        """Add an op with one result and return that value. A view lies in the storage of its first operand."""
        reads = tuple(reads)
        if kind is Kind.VIEW:
            storage = self._values[reads[0]].storage
        else:
            storage = self.storage(name, size_bytes)
        value = self.value(name, storage)
        self.add(
            Op(
                name=name,
                target=name.rstrip("0123456789_."),
                reads=reads,
                writes=(value,),
                kind=kind,
                phase=phase,
                seconds=seconds,
                fused_seconds=fused_seconds,
                scratch_bytes=scratch_bytes,
                keep=keep,
                unsavable=unsavable,
            )
        )
        return value

    def build(self, forward_outputs: Sequence[int], backward_outputs: Sequence[int]) -> Problem:
        """The finished problem, checked."""
        problem = Problem(
            tuple(self._storages),
            tuple(self._values),
            tuple(self._ops),
            tuple(forward_outputs),
            tuple(backward_outputs),
            self._fuses,
            self._groups,
            self._block_bytes,
        )
        check_problem(problem)
        return problem
