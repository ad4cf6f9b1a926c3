"""Prices of nodes: FLOPs by hand, every operator of small networks priced, kinds, and the cache on disk."""

import logging
import math
import operator
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from graphremat.passes import problem
from graphremat.passes.costs import (
    FREE,
    Basis,
    mask_seconds,
    op_cost,
    priced_by_bytes_alone,
    tensor_bytes,
    times_computed,
)
from graphremat.passes.devices import Device, find_device
from graphremat.passes.flops import node_flops
from graphremat.passes.kinds import (
    NodeKind,
    classify_kind,
    op_name,
    problem_kind,
    replays_from_seed,
    tensors_in,
)
from graphremat.passes.measure_device import cache_path, cpu_name, device_of
from graphremat.passes.problem import Kind
from graphremat.passes.torch_private import inductor_decompositions

aten = torch.ops.aten
prims = torch.ops.prims

CPU = Device(
    name="test CPU",
    kind="cpu",
    memory_bytes=2**34,
    bandwidth_bytes_per_second=4e10,
    flops_per_second={"float32": 2e11, "bfloat16": 8e11},
    kernel_seconds=1e-6,
    simple_ops_per_second=1e11,
    cache_bytes=2**23,
    cache_bytes_per_second=1.6e11,
    large_block_bytes=2**25,
    first_touch_bytes_per_second=4e9,
)


def trace(
    function: Callable[..., Any], *inputs: Any, tracing_mode: str = "fake", decompose: bool = False
) -> fx.Graph:
    table = inductor_decompositions() if decompose else None
    return make_fx(function, decomposition_table=table, tracing_mode=tracing_mode)(*inputs).graph


def only(graph: fx.Graph, name: str) -> fx.Node:
    (node,) = [n for n in graph.nodes if n.op == "call_function" and op_name(n) == name]
    return node


def rand(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("function", "inputs", "name", "flops"),
    [
        (torch.mm, (rand(3, 5), rand(5, 7)), "aten.mm", 2 * 3 * 5 * 7),
        (torch.bmm, (rand(4, 3, 5), rand(4, 5, 7)), "aten.bmm", 4 * 2 * 3 * 5 * 7),
        (torch.addmm, (rand(7), rand(3, 5), rand(5, 7)), "aten.addmm", 2 * 3 * 5 * 7),
        (
            lambda x, w: F.conv2d(x, w, padding=1, stride=2, groups=2),
            (rand(2, 4, 8, 8), rand(6, 2, 3, 3)),
            "aten.convolution",
            2 * 2 * 6 * (4 * 4) * (2 * 3 * 3),
        ),
        (
            lambda x, w: F.conv_transpose2d(x, w, stride=2),
            (rand(2, 4, 8, 8), rand(4, 6, 2, 2)),
            "aten.convolution",
            2 * 2 * 4 * (8 * 8) * (6 * 2 * 2),
        ),
        (F.conv1d, (rand(2, 4, 10), rand(6, 4, 3)), "aten.convolution", 2 * 2 * 6 * 8 * (4 * 3)),
    ],
)
def test_flops_by_hand(function: Callable[..., Any], inputs: tuple[Any, ...], name: str, flops: int) -> None:
    node = only(trace(function, *inputs), name)
    assert node_flops(node) == flops
    assert op_cost(node, CPU).flops == flops


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolution_backward_takes_twice_the_forward_whatever_the_groups(groups: int) -> None:
    def step(x: torch.Tensor, w: torch.Tensor) -> Any:
        return torch.autograd.grad(F.conv2d(x, w, padding=1, groups=groups).sum(), (x, w))

    x, w = rand(2, 4, 8, 8).requires_grad_(), rand(8, 4 // groups, 3, 3).requires_grad_()
    graph = trace(step, x, w)
    forward, backward = only(graph, "aten.convolution"), only(graph, "aten.convolution_backward")
    assert node_flops(backward) == 2 * (node_flops(forward) or 0) == 2 * 2 * 2 * 8 * 64 * (4 // groups * 9)


@pytest.mark.parametrize("causal", [False, True])
def test_cpu_attention_has_flops_and_causal_halves_them(causal: bool) -> None:
    def step(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Any:
        return torch.autograd.grad(F.scaled_dot_product_attention(q, k, v, is_causal=causal).sum(), (q, k, v))

    q, k, v = (rand(2, 3, 16, 8).requires_grad_() for _ in range(3))
    graph = trace(step, q, k, v)
    name = "aten._scaled_dot_product_flash_attention_for_cpu"
    matmul = 2 * (2 * 3) * 16 * 16 * 8 // (2 if causal else 1)
    assert node_flops(only(graph, name)) == 2 * matmul
    assert node_flops(only(graph, name + "_backward")) == 5 * matmul
    assert classify_kind(only(graph, name)) is NodeKind.KERNEL
    assert op_cost(only(graph, name), CPU).basis is Basis.FLOPS


def test_attention_with_dropout_is_random() -> None:
    graph = fx.Graph()
    q = placeholder(graph, 2, 3, 16, 8)
    kernel = aten._scaled_dot_product_flash_attention_for_cpu.default
    with torch.device("meta"):
        out = (torch.empty(2, 3, 16, 8), torch.empty(2, 3, 16))
    assert classify_kind(call(graph, kernel, (q, q, q, 0.1), out)) is NodeKind.RANDOM
    assert classify_kind(call(graph, kernel, (q, q, q, 0.0), out)) is NodeKind.KERNEL
    assert classify_kind(call(graph, kernel, (q, q, q), out)) is NodeKind.KERNEL


def placeholder(graph: fx.Graph, *shape: int, dtype: torch.dtype = torch.float32) -> fx.Node:
    node = graph.placeholder(f"x{len(graph.nodes)}")
    node.meta["val"] = torch.empty(shape, dtype=dtype, device="meta")
    return node


def call(graph: fx.Graph, target: Any, args: tuple[Any, ...], val: Any, **kwargs: Any) -> fx.Node:
    node = graph.call_function(target, args, kwargs)
    node.meta["val"] = val
    return node


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(64, 16)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.norm = nn.RMSNorm(16)
        self.gate = nn.Linear(16, 16)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.block(self.embed(tokens)) + F.dropout(F.silu(self.gate(self.embed(tokens))), 0.1)
        q = self.norm(x)[:, None]
        x = F.scaled_dot_product_attention(q, q, q, is_causal=True)[:, 0] + F.gelu(x) + torch.tanh(x)
        return F.cross_entropy((x @ self.embed.weight.T).flatten(0, 1), tokens.flatten())


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.grouped, self.up = nn.Conv2d(8, 8, 3, groups=4, padding=1), nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.group_norm, self.head = nn.GroupNorm(2, 4), nn.Linear(36, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm(self.first(x)))
        z = F.interpolate(F.silu(self.grouped(F.max_pool2d(y, 2))), scale_factor=2.0, mode="bilinear")
        z = torch.cat([self.up(F.avg_pool2d(z, 2)), y[:, :4]], 1)[:, :4]
        z = F.adaptive_avg_pool2d(F.instance_norm(self.group_norm(z)), 3).flatten(1)
        return F.mse_loss(F.pad(self.head(z), (1, 1)), torch.ones(x.shape[0], 6))


class Routed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(16, 4), nn.Parameter(torch.randn(4, 16, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, index = torch.softmax(self.router(x), -1).topk(2, -1)
        y = weight[:, :1] * torch.bmm(x[:, None], self.experts[index[:, 0]])[:, 0]
        y = y.index_add(0, index[:, 0], y) + torch.cumsum(y, 0).sort(0).values
        y = y.scatter_add(0, index[:, :1].expand_as(y), x) + torch.flip(y, (0,)).roll(1, 0)
        return y.std() + y.erf().logsumexp(-1).sum() + y.abs().pow(1.5).amax() + torch.bernoulli(weight).sum()


def joint_graph(
    module: nn.Module, *inputs: torch.Tensor, decompose: bool, tracing_mode: str = "fake"
) -> fx.Graph:
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    trained = [name for name, _ in module.named_parameters()]

    def step(state: dict[str, torch.Tensor], *inputs: torch.Tensor) -> Any:
        loss = torch.func.functional_call(module, state, inputs)
        return loss, *torch.autograd.grad(loss, [state[name] for name in trained], allow_unused=True)

    return trace(step, state, *inputs, decompose=decompose, tracing_mode=tracing_mode)


NETWORKS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "attention": lambda: (Attention(), torch.randint(0, 64, (2, 8))),
    "convolutions": lambda: (Convolutions(), rand(2, 3, 16, 16)),
    "routed": lambda: (Routed(), rand(12, 16)),
    "perceptron": lambda: (
        nn.Sequential(nn.Linear(8, 8), nn.ELU(), nn.Softplus(), nn.LayerNorm(8), Total()),
        rand(4, 8),
    ),
    "half precision": lambda: (
        nn.Sequential(nn.Linear(8, 8), nn.GELU(), Total()).bfloat16(),
        rand(4, 8, dtype=torch.bfloat16),
    ),
}


class Total(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float().pow(2).sum()


@pytest.mark.parametrize("decompose", [False, True], ids=["aten", "inductor"])
@pytest.mark.parametrize("device", [CPU, find_device("A100-40GB")], ids=["cpu", "gpu"])
@pytest.mark.parametrize("network", NETWORKS)
def test_every_op_of_small_networks_has_a_price(network: str, device: Device, decompose: bool) -> None:
    graph = joint_graph(*NETWORKS[network](), decompose=decompose)
    for node in graph.nodes:
        cost = op_cost(node, device)
        assert cost == op_cost(node, device)
        assert all(
            math.isfinite(s) and s >= 0 for s in (cost.seconds, cost.arithmetic_seconds, cost.traffic_seconds)
        )
        if cost is not FREE:
            longer = max(cost.arithmetic_seconds, cost.traffic_seconds)
            assert cost.seconds == pytest.approx(longer + device.kernel_seconds)
    assert decompose is False or priced_by_bytes_alone(graph.nodes, device) == ()


def test_symbolic_sizes_are_priced_by_hint_and_add_no_guard() -> None:
    tokens = torch.randint(0, 64, (2, 8))
    graph = joint_graph(Attention(), tokens, decompose=True, tracing_mode="symbolic")
    fixed = joint_graph(Attention(), tokens, decompose=True)
    tensors = [t for n in graph.nodes for t in tensors_in(n.meta.get("val"))]
    assert any(isinstance(size, torch.SymInt) for t in tensors for size in t.shape)
    guards = tensors[0].fake_mode.shape_env.guards
    before = len(guards)
    flops = sum(op_cost(n, CPU).flops for n in graph.nodes)
    assert flops == sum(op_cost(n, CPU).flops for n in fixed.nodes) > 0
    assert len(guards) == before
    assert sum(op_cost(n, CPU, lambda s: s if isinstance(s, int) else 64).flops for n in graph.nodes) > flops


KINDS: list[tuple[Any, tuple[Any, ...], NodeKind]] = [
    (aten.view.default, ([4],), NodeKind.VIEW),
    (aten._unsafe_view.default, ([4],), NodeKind.VIEW),
    (aten.reshape.default, ([4],), NodeKind.VIEW),
    (aten.expand.default, ([2, 2],), NodeKind.VIEW),
    (aten.permute.default, ([1, 0],), NodeKind.VIEW),
    (aten.slice.Tensor, (), NodeKind.VIEW),
    (aten.add.Tensor, (1,), NodeKind.FUSIBLE),
    (aten.exp.default, (), NodeKind.FUSIBLE),
    (aten.clone.default, (), NodeKind.FUSIBLE),
    (aten.cat.default, (), NodeKind.FUSIBLE),
    (aten.index.Tensor, (), NodeKind.FUSIBLE),
    (aten.gather.default, (), NodeKind.FUSIBLE),
    (aten.embedding.default, (), NodeKind.FUSIBLE),
    (aten.constant_pad_nd.default, (), NodeKind.FUSIBLE),
    (aten.where.self, (), NodeKind.FUSIBLE),
    (prims.convert_element_type.default, (torch.float32,), NodeKind.FUSIBLE),
    (prims.inductor_lookup_seed.default, (0,), NodeKind.FUSIBLE),
    (aten.sum.dim_IntList, ([0],), NodeKind.REDUCTION),
    (aten.amax.default, (), NodeKind.REDUCTION),
    (aten.var_mean.correction, (), NodeKind.REDUCTION),
    (aten._softmax.default, (0, False), NodeKind.REDUCTION),
    (aten.mm.default, (), NodeKind.KERNEL),
    (aten.convolution.default, (), NodeKind.KERNEL),
    (aten.sort.default, (), NodeKind.KERNEL),
    (aten.cumsum.default, (0,), NodeKind.KERNEL),
    (aten.full.default, (), NodeKind.CREATION),
    (aten.zeros_like.default, (), NodeKind.CREATION),
    (prims.iota.default, (), NodeKind.CREATION),
    (prims.inductor_random.default, (), NodeKind.RANDOM),
    (prims.inductor_seeds.default, (), NodeKind.RANDOM),
    (aten.native_dropout.default, (0.1, True), NodeKind.RANDOM),
    (aten.bernoulli.p, (0.1,), NodeKind.RANDOM),
    (aten.rand.default, (), NodeKind.RANDOM),
]


@pytest.mark.parametrize(("target", "rest", "kind"), KINDS, ids=[str(target) for target, _, _ in KINDS])
def test_kind_of_known_operators(target: Any, rest: tuple[Any, ...], kind: NodeKind) -> None:
    graph = fx.Graph()
    x = placeholder(graph, 2, 2)
    node = call(graph, target, (x, *rest), x.meta["val"])
    assert classify_kind(node) is kind
    if kind is not NodeKind.KERNEL:  # these need operands that fit
        assert (op_cost(node, CPU) is FREE) == (kind is NodeKind.VIEW)


def test_a_scatter_is_a_kernel_of_its_own_only_where_no_loop_is_generated() -> None:
    graph = fx.Graph()
    with torch.device("meta"):
        index, mask, whole = torch.empty(2, dtype=torch.int64), torch.empty(2) > 0, torch.empty(2).long()
    x, at, where, count = (
        placeholder(graph, 2),
        *(graph.placeholder(name) for name in ("at", "where", "count")),
    )
    for node, val in ((at, index), (where, mask), (count, whole)):
        node.meta["val"] = val

    def kind_of(target: Any, *operands: Any, **options: Any) -> NodeKind:
        return classify_kind(call(graph, target, operands, operands[0].meta["val"], **options))

    assert kind_of(aten.index_put.default, x, [at], x, True) is NodeKind.REDUCTION
    assert kind_of(aten.index_put.default, x, [where], x, True) is NodeKind.KERNEL
    assert kind_of(aten.index_put.default, count, [at], count, True) is NodeKind.KERNEL
    assert kind_of(aten.index_put.default, count, [at], count, False) is NodeKind.REDUCTION
    assert kind_of(aten.scatter.src, x, 0, at, x) is NodeKind.REDUCTION
    assert kind_of(aten.scatter.reduce, x, 0, at, x, reduce="add") is NodeKind.KERNEL


def test_concatenated_parts_get_a_buffer_on_a_processor() -> None:
    graph = fx.Graph()
    x = placeholder(graph, 2, 2)
    whole = call(graph, aten.cat.default, ([x, x],), torch.empty(4, 2, device="meta"))
    assert problem_kind(whole) is problem_kind(whole, for_cpu=True) is Kind.REDUCTION
    assert problem_kind(whole, for_cpu=False) is Kind.FUSIBLE
    assert classify_kind(whole) is NodeKind.FUSIBLE  # its price is that of a copy


def test_kinds_that_need_no_schema() -> None:
    graph = fx.Graph()
    x = placeholder(graph, 2, 2)
    assert classify_kind(x) is NodeKind.BOUNDARY
    assert classify_kind(call(graph, operator.mul, (2, 3), 6)) is NodeKind.SYMBOLIC
    assert classify_kind(call(graph, operator.getitem, ((x,), 0), x.meta["val"])) is NodeKind.VIEW
    assert classify_kind(call(graph, aten.sym_size.int, (x, 0), 2)) is NodeKind.SYMBOLIC
    assert classify_kind(graph.output(x)) is NodeKind.BOUNDARY


def test_a_number_from_its_seed_fuses_and_a_draw_does_not() -> None:
    graph = fx.Graph()
    seed = placeholder(graph, dtype=torch.int64)
    out = torch.empty(8, device="meta")
    replayed = call(graph, prims.inductor_random.default, ([8], seed, "rand"), out)
    drawn = call(graph, aten.rand.default, ([8],), out)
    assert (replays_from_seed(replayed), replays_from_seed(drawn)) == (True, False)
    assert (problem_kind(replayed), problem_kind(drawn)) == (problem.Kind.FUSIBLE, problem.Kind.KERNEL)


def test_an_unknown_operator_is_priced_by_its_bytes_and_named() -> None:
    graph = fx.Graph()
    x = placeholder(graph, 1024, 1024)
    node = call(graph, aten._cdist_forward.default, (x, x, 2.0, None), x.meta["val"])
    cost = op_cost(node, CPU)
    assert cost.basis is Basis.BYTES_ALONE
    assert cost.moved_bytes == 2 * 2**22
    assert cost.seconds > CPU.kernel_seconds
    assert priced_by_bytes_alone(graph.nodes, CPU) == ("aten._cdist_forward",)


def test_bytes_that_are_not_touched_are_not_charged() -> None:
    graph = fx.Graph()
    row = placeholder(graph, 1024)
    assert tensor_bytes(row.meta["val"].expand(64, 1024)) == 4096
    table, index = placeholder(graph, 10**6, 16), placeholder(graph, 8, dtype=torch.int64)
    rows = call(graph, aten.embedding.default, (table, index), torch.empty(8, 16, device="meta"))
    assert op_cost(rows, CPU).moved_bytes == 2 * 8 * 16 * 4 + 8 * 8
    full = call(graph, aten.full.default, ([1024], 0.0), torch.empty(1024, device="meta"))
    assert op_cost(full, CPU).moved_bytes == 4096


def test_transcendentals_cost_arithmetic_and_additions_cost_traffic() -> None:
    graph = fx.Graph()
    x = placeholder(graph, 2**22)
    add, tanh = (
        call(graph, f, a, x.meta["val"]) for f, a in ((aten.add.Tensor, (x, 1)), (aten.tanh.default, (x,)))
    )
    assert op_cost(add, CPU).arithmetic_seconds < op_cost(add, CPU).traffic_seconds
    assert op_cost(tanh, CPU).arithmetic_seconds > op_cost(tanh, CPU).traffic_seconds
    assert 0 < op_cost(tanh, CPU).fused_seconds < op_cost(tanh, CPU).arithmetic_seconds


def test_packing_a_mask_costs_more_than_its_traffic_and_only_on_a_processor() -> None:
    graph = fx.Graph()
    x = placeholder(graph, 2**22)
    le = call(graph, aten.le.Scalar, (x, 0), torch.empty(2**22, dtype=torch.bool, device="meta"))
    relu = call(graph, aten.relu.default, (x,), x.meta["val"])
    assert mask_seconds(le, CPU) > op_cost(le, CPU).traffic_seconds
    assert mask_seconds(relu, CPU) == mask_seconds(x, CPU) == 0
    assert mask_seconds(le, find_device("L4")) == 0


def test_traffic_grows_with_size_and_fresh_pages_cost_extra() -> None:
    def seconds(elements: int, device: Device) -> float:
        graph = fx.Graph()
        x = placeholder(graph, elements)
        return op_cost(call(graph, aten.neg.default, (x,), x.meta["val"]), device).traffic_seconds

    sizes = [2**n for n in range(10, 26)]
    times = [seconds(size, CPU) for size in sizes]
    assert times == sorted(times)
    without = replace(CPU, large_block_bytes=0)
    assert seconds(2**23, CPU) - seconds(2**23, without) == pytest.approx(2**25 / 4e9)
    assert seconds(2**22, CPU) == seconds(2**22, without)


def test_measured_device_is_cached_and_a_broken_file_is_measured_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = device_of(torch.device("cpu"), cache_dir=tmp_path)
    path = cache_path(cpu_name(), "cpu", tmp_path)
    assert Device.from_json(path.read_text()) == first
    assert device_of(torch.device("cpu"), cache_dir=tmp_path) == first
    path.write_text(path.read_text()[:40])
    with caplog.at_level(logging.WARNING):
        again = device_of(torch.device("cpu"), cache_dir=tmp_path)
    assert any("cannot be used" in record.message for record in caplog.records)
    assert again.name == first.name
    assert Device.from_json(path.read_text()) == again


def test_a_directory_that_cannot_be_written_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with caplog.at_level(logging.WARNING):
        device = device_of(torch.device("cpu"), cache_dir=blocked / "below")
    assert device.flops_per_second["float32"] > 0
    assert any("cannot be kept" in record.message for record in caplog.records)


def test_processes_that_start_together_get_the_same_numbers(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, torch; from graphremat.passes.measure_device import device_of;"
        "print(device_of(torch.device('cpu'), cache_dir=pathlib.Path(sys.argv[1])).to_json())"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = {process.communicate(timeout=300)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(answers) == 1
    assert not list(tmp_path.glob("*.tmp"))


def test_what_has_no_buffer_is_computed_wherever_it_is_read() -> None:
    def function(rows: torch.Tensor, x: torch.Tensor) -> Any:
        scale = aten.rsqrt.default(rows)
        scaled = aten.mul.Tensor(x, scale)
        summed = aten.sum.dim_IntList(aten.expand.default(scale, [8, 4]), [0])
        return summed, aten.cat.default([scaled, scaled], 1), aten.neg.default(scaled)

    graph = trace(function, rand(8, 1), rand(8, 16))
    assert times_computed(graph) == {only(graph, "aten.rsqrt"): 16.0}
    sums = trace(
        lambda rows: aten.sum.default(aten.expand.default(aten.exp.default(rows), [8, 4])), rand(8, 1)
    )
    assert times_computed(sums) == {only(sums, "aten.exp"): 4.0}
    gathered = trace(
        lambda x, at: aten.index.Tensor(aten.exp.default(x), [at]), rand(4), torch.zeros(8, dtype=torch.int64)
    )
    assert times_computed(gathered) == {only(gathered, "aten.exp"): 2.0}
