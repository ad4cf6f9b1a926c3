"""Hold predicted seconds against measured ones, op by op, on this processor.

    python bench/check_costs.py               # every distinct op of a few joint graphs, run alone
    python bench/check_costs.py --pointwise   # cost of one element of each pointwise operator in generated code
    python bench/check_costs.py --fused       # what is left of that in a kernel that reads and writes

The first sets the constants of `graphremat.passes.costs` for library kernels, the second the table CPU_ELEMENT_OPS, the
third FUSED_SHARE. Run them on a quiet machine.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from graphremat.passes.costs import CPU_ELEMENT_OPS, OpCost, op_cost
from graphremat.passes.devices import Device
from graphremat.passes.kinds import NodeKind, classify_kind, op_name, tensors_in
from graphremat.passes.measure_device import device_of
from graphremat.passes.torch_private import inductor_decompositions

REPEATS = 5
FLUSH_BYTES = 256 * 2**20


class LlamaBlock(nn.Module):
    """RMSNorm, causal attention, SwiGLU, dropout and a loss over a small vocabulary; (batch, tokens) -> scalar."""

    def __init__(self, width: int = 512, heads: int = 8, vocabulary: int = 2048) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Embedding(vocabulary, width)
        self.norm_1, self.norm_2 = nn.RMSNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.gate, self.up = nn.Linear(width, 1408, bias=False), nn.Linear(width, 1408, bias=False)
        self.down = nn.Linear(1408, width, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        batch, length, width = x.shape
        qkv = self.qkv(self.norm_1(x)).view(batch, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        h = self.norm_2(x)
        x = x + F.dropout(self.down(F.silu(self.gate(h)) * self.up(h)), 0.1) + F.gelu(h, approximate="tanh")
        return F.cross_entropy((x @ self.embed.weight.T).flatten(0, 1), tokens.flatten())


class ConvBlock(nn.Module):
    """Convolutions (plain, strided, grouped, transposed) with norms, pooling and upsampling; (n, 3, s, s) -> scalar."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.wide = nn.Conv2d(channels, 2 * channels, 3, padding=1, stride=2)
        self.grouped = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=8)
        self.depthwise = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.point = nn.Conv2d(2 * channels, channels, 1)
        self.up = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.group_norm = nn.GroupNorm(8, channels)
        self.head = nn.Linear(channels, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        first = F.relu(self.norm(self.stem(image)))
        x = F.silu(self.depthwise(self.grouped(self.wide(first))))
        x = F.gelu(self.group_norm(self.up(self.point(x))))
        x = torch.cat([x, first], 1)[:, : x.shape[1]] + F.interpolate(
            F.max_pool2d(first, 2), scale_factor=2.0
        )
        return self.head(F.adaptive_avg_pool2d(F.avg_pool2d(x, 2), 1).flatten(1)).logsumexp(-1).sum()


class Routed(nn.Module):
    """Softmax routing, top-k, sort, cumulative sum, gather and scatter; (tokens, width) -> scalar."""

    def __init__(self, width: int = 256, experts: int = 8) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts)
        self.experts = nn.Parameter(torch.randn(experts, width, width) / 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, index = torch.softmax(self.router(x), -1).topk(2, -1)
        order = index[:, 0].sort().indices
        rows = x[order].view(self.experts.shape[0], -1, x.shape[1])
        y = torch.zeros_like(x).index_add(0, order, torch.bmm(rows, self.experts).flatten(0, 1))
        y = torch.tanh(y) * weight[:, :1] + torch.cumsum(x, 0).sort(0).values.pow(3) * 1e-6
        return (
            y.scatter_add(0, index[:, :1].expand_as(y), x).std()
            + y.erf().mean()
            + (y.abs() + 1).log().pow(1.7).sum()
        )


def joint_graph(module: nn.Module, *inputs: torch.Tensor) -> fx.GraphModule:
    """Forward and backward of a scalar loss as one graph of aten operators with real values in ``meta``."""
    state = state_of(module)
    trained = [name for name, _ in module.named_parameters()]

    def step(weights: dict[str, torch.Tensor], *args: torch.Tensor) -> tuple[torch.Tensor, ...]:
        loss = torch.func.functional_call(module, weights, args)
        return loss, *torch.autograd.grad(loss, [weights[name] for name in trained])

    return make_fx(step, decomposition_table=inductor_decompositions(), tracing_mode="fake")(state, *inputs)


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@dataclass(frozen=True)
class Row:
    op: str
    shapes: str
    measured_seconds: float
    cost: OpCost


class Stopwatch(fx.Interpreter):
    """Runs a graph on real tensors and times each distinct op that has a price, operands cold when asked."""

    def __init__(self, graph: fx.GraphModule, device: Device, *, cold: bool) -> None:
        super().__init__(graph)
        self.device = device
        self.rows: dict[tuple[str, str], Row] = {}
        self.flush = torch.zeros(FLUSH_BYTES // 4 if cold else 0)

    def run_node(self, n: fx.Node) -> Any:
        if op_cost(n, self.device).seconds > 0 and classify_kind(n) is not NodeKind.CREATION:
            operands = [t for operand in n.all_input_nodes for t in tensors_in(operand.meta["val"])]
            key = (op_name(n), " ".join("x".join(map(str, t.shape)) or "()" for t in operands))
            if key not in self.rows:
                args, kwargs = self.fetch_args_kwargs_from_env(n)
                seconds = self._seconds(lambda: n.target(*args, **kwargs))  # type: ignore[operator]
                self.rows[key] = Row(*key, seconds, op_cost(n, self.device))
        return super().run_node(n)

    def _seconds(self, run: Callable[[], object]) -> float:
        best = math.inf
        for _ in range(REPEATS):
            self.flush.add_(1.0)
            started = time.perf_counter()
            run()
            best = min(best, time.perf_counter() - started)
        return best


def check_ops(device: Device, *, cold: bool) -> None:
    """Print measured and predicted seconds of every distinct op, worst ratio first, and their rank correlation."""
    torch.manual_seed(0)
    cases: list[tuple[nn.Module, torch.Tensor]] = [
        (LlamaBlock(), torch.randint(0, 2048, (4, 256))),
        (ConvBlock(), torch.randn(8, 3, 64, 64)),
        (Routed(), torch.randn(2048, 256)),
    ]
    rows: list[Row] = []
    for module, x in cases:
        graph = joint_graph(module, x)
        watch = Stopwatch(graph, device, cold=cold)
        with torch.no_grad():
            watch.run(state_of(module), x)
        rows += watch.rows.values()
    rows.sort(key=lambda row: math.log(row.measured_seconds / row.cost.seconds))
    print(f"{'op':46} {'measured us':>12} {'predicted us':>12} {'ratio':>6}  basis        operands")
    for row in rows:
        ratio = row.measured_seconds / row.cost.seconds
        print(
            f"{row.op:46} {row.measured_seconds * 1e6:12.1f} {row.cost.seconds * 1e6:12.1f} {ratio:6.2f}  "
            f"{row.cost.basis.value:12} {row.shapes}"
        )
    measured = [row.measured_seconds for row in rows]
    predicted = [row.cost.seconds for row in rows]
    large = [(m, p) for m, p in zip(measured, predicted, strict=True) if m > 20e-6]
    print(f"\n{len(rows)} distinct ops, operands {'cold' if cold else 'warm'}")
    print(f"rank correlation: all {_rank_correlation(measured, predicted):.3f}, ", end="")
    print(f"the {len(large)} that take over 20 us {_rank_correlation(*zip(*large, strict=True)):.3f}")
    print(f"sum of measured {sum(measured) * 1e3:.1f} ms, of predicted {sum(predicted) * 1e3:.1f} ms")


def _rank_correlation(a: Any, b: Any) -> float:
    return float(spearmanr(a, b).statistic)


POINTWISE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "add": lambda x: x + 1.0001,
    "mul": lambda x: x * 1.0001,
    "div": lambda x: 1.0 / (x + 2),
    "where": lambda x: torch.where(x > 0.3, x * 0.5, x + 0.2),
    "sqrt": lambda x: torch.sqrt(x + 2),
    "rsqrt": lambda x: torch.rsqrt(x + 2),
    "exp": lambda x: torch.exp(x * -0.5),
    "expm1": lambda x: torch.expm1(x * 0.1),
    "log": lambda x: torch.log(x + 2),
    "log1p": lambda x: torch.log1p(x.abs()),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "erfc": lambda x: torch.erfc(x * 0.5),
    "lgamma": lambda x: torch.lgamma(x.abs() + 1),
    "sin": torch.sin,
    "cos": torch.cos,
    "atan2": lambda x: torch.atan2(x, x + 1.0),
    "pow (any exponent)": lambda x: torch.pow(x.abs() + 1, 0.3),
    "pow (3)": lambda x: torch.pow(x, 3) * 0.1,
    "fmod": lambda x: torch.fmod(x, 0.77) + 0.1,
    "float to int and back": lambda x: x.to(torch.int64).float() + 0.3,
    "rand": lambda x: x + torch.rand_like(x),
}


def check_pointwise(simple_seconds: float, *, chain: int = 9, elements: int = 2**16) -> None:
    """Print what one element costs in generated code, in simple operations: the slope between two chain lengths."""
    x = torch.rand(elements)
    print(f"one simple operation is {simple_seconds * 1e9:.4f} ns on one thread")
    for name, operator in POINTWISE.items():
        short, long = (_compiled_seconds(operator, length, x) for length in (1, chain))
        slope = (long - short) / (chain - 1) / elements
        print(f"{name:24} {slope * 1e9:8.3f} ns {slope / simple_seconds:8.1f} simple operations", flush=True)


def check_fused(device: Device, *, rounds: int = 60) -> None:
    """Print what an operator adds to the product of two tensors, as a share of its arithmetic as priced."""
    for elements in (2**18, 2**20, 2**22):
        inputs = torch.rand(elements), torch.rand(elements)
        torch.compiler.reset()
        compiled = {
            name: partial(_times_another(operator), *inputs) for name, operator in {"": None, **FUSED}.items()
        }
        seconds: dict[str, list[float]] = {name: [] for name in compiled}
        for _ in range(rounds):  # in turns
            for name, run in compiled.items():
                seconds[name] += _timings(run, 1)
        plain = min(seconds.pop("")[1:])
        print(f"{elements} elements, x * y: {plain * 1e6:.0f} us")
        for name, found in seconds.items():
            priced = CPU_ELEMENT_OPS[name] * elements / device.simple_ops_per_second
            print(f"{name:24} {(min(found[1:]) - plain) / priced:8.2f} of {priced * 1e6:.0f} us", flush=True)


FUSED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "exp": torch.exp,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "gelu": F.gelu,
    "log": lambda x: torch.log(x + 1),
    "cos": torch.cos,
}


def _times_another(
    operator: Callable[[torch.Tensor], torch.Tensor] | None,
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    if operator is None:
        return torch.compile(lambda x, y: x * y, dynamic=False)
    return torch.compile(lambda x, y: operator(x) * y, dynamic=False)


WHOLE: dict[str, tuple[Callable[..., torch.Tensor], tuple[int, ...]]] = {
    "sum over rows": (lambda x: x.sum(-1), (512, 512)),
    "sum over columns": (lambda x: x.sum(0), (512, 512)),
    "amax": (lambda x: x.amax(-1), (512, 512)),
    "var_mean": (lambda x: torch.var_mean(x, -1)[0], (512, 512)),
    "var_mean of channels": (lambda x: torch.var_mean(x, (0, 2, 3))[0], (8, 32, 32, 32)),
    "cumsum": (lambda x: x.cumsum(0), (512, 512)),
    "max_pool2d": (lambda x: F.max_pool2d(x, 2), (8, 32, 32, 32)),
    "avg_pool2d": (lambda x: F.avg_pool2d(x, 2), (8, 32, 32, 32)),
    "index": (lambda x: x[x[:, 0].to(torch.int64)], (512, 512)),
    "gather": (lambda x: x.gather(1, x.to(torch.int64)), (512, 512)),
    "index_add": (lambda x: x.index_add(0, x[:, 0].to(torch.int64), x), (512, 512)),
    "embedding_backward": (lambda x: x.index_put((x[:, 0].to(torch.int64),), x, accumulate=True), (512, 512)),
    "scatter_add": (lambda x: x.scatter_add(0, x.to(torch.int64), x), (512, 512)),
    "upsample": (lambda x: F.interpolate(x, scale_factor=2.0), (8, 32, 16, 16)),
}


def check_whole(simple_seconds: float) -> None:
    """Print what one input element of operators that are no pointwise map costs in generated code, one thread."""
    for name, (operator, shape) in WHOLE.items():
        x = torch.rand(shape)
        seconds = _compiled_seconds(operator, 1, x) - _compiled_seconds(operator, 1, x[:1]) * (shape[0] > 8)
        per_element = seconds / x.numel()
        simple = per_element / simple_seconds
        print(f"{name:24} {per_element * 1e9:8.3f} ns {simple:8.1f} simple operations", flush=True)


def check_masks(simple_seconds: float, *, elements: int = 2**20) -> None:
    """Print what one element of a mask costs that generated code writes, and that it reads, one thread."""
    x = torch.rand(elements)
    mask = x > 0.3
    plain = _compiled_seconds(lambda x: x * 0.5, 1, x)
    uses: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "mask written": lambda x: x > 0.3,
        "mask read": lambda x: torch.where(mask, x, 0.0),
    }
    for name, operator in uses.items():
        per_element = (_compiled_seconds(operator, 1, x) - plain) / elements
        print(f"{name:24} {per_element * 1e9:8.3f} ns {per_element / simple_seconds:8.1f} simple operations")


def _compiled_seconds(
    operator: Callable[[torch.Tensor], torch.Tensor], length: int, x: torch.Tensor
) -> float:
    def chain(x: torch.Tensor) -> torch.Tensor:
        for _ in range(length):
            x = operator(x)
        return x

    torch.compiler.reset()
    compiled = torch.compile(chain, dynamic=False)
    compiled(x)
    return min(_timings(lambda: compiled(x), 40))


def _timings(run: Callable[[], object], count: int) -> Iterator[float]:
    for _ in range(count):
        started = time.perf_counter()
        run()
        yield time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--pointwise", action="store_true", help="measure pointwise operators in generated code"
    )
    parser.add_argument("--fused", action="store_true", help="measure pointwise operators inside a kernel")
    parser.add_argument(
        "--cold", action="store_true", help="push the operands out of the caches before each run"
    )
    options = parser.parse_args()
    device = device_of(torch.device("cpu"))
    if options.fused:
        check_fused(device)
    elif options.pointwise:
        simple_seconds = torch.get_num_threads() / device.simple_ops_per_second
        torch.set_num_threads(1)
        check_masks(simple_seconds)
        check_whole(simple_seconds)
        check_pointwise(simple_seconds)
    else:
        check_ops(device, cold=options.cold)


if __name__ == "__main__":
    main()
