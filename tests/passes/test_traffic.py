"""What joined kernels read: each buffer once, and nothing that lies in no buffer."""

from collections.abc import Callable

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from graphremat.passes.costs import op_cost, tensor_bytes
from graphremat.passes.devices import find_device
from graphremat.passes.hints import default_size_hint
from graphremat.passes.kinds import op_name, problem_kind
from graphremat.passes.problem import Kind
from graphremat.passes.torch_private import inductor_decompositions
from graphremat.passes.traffic import JoinedReads

ROWS, LENGTH = 512, 1024
BFLOAT16 = ROWS * LENGTH * 2
FLOAT = 2 * BFLOAT16


def reads(function: Callable[..., object], *arguments: Tensor) -> list[tuple[str, Kind, int]]:
    """Operator, kind and bytes read of every node."""
    graph = make_fx(function, decomposition_table=inductor_decompositions())(*arguments).graph
    joined = JoinedReads(default_size_hint)
    found = []
    for node in graph.nodes:
        if node.op == "call_function":
            kind = problem_kind(node)
            found.append((op_name(node), kind, joined.bytes_read(node, kind)))
    return found


def test_a_softmax_reads_its_argument_once_and_in_its_own_precision() -> None:
    x = torch.randn(ROWS, LENGTH, dtype=torch.bfloat16)
    found = reads(lambda x: x.float().softmax(-1).bfloat16(), x)
    assert {"aten.amax", "aten.exp", "aten.sum"} <= {name for name, _, _ in found}
    rows = sum(size for *_, size in found) - BFLOAT16  # the maximum and the sum of every row
    assert 0 < rows <= 2 * ROWS * 4


def test_behind_a_product_it_is_read_again() -> None:
    x, weight = torch.randn(ROWS, LENGTH), torch.randn(LENGTH, LENGTH)
    found = reads(lambda x, w: (x.sin(), x.cos(), x @ w, x.exp()), x, weight)
    assert found == [
        ("aten.sin", Kind.FUSIBLE, FLOAT),
        ("aten.cos", Kind.FUSIBLE, 0),
        ("aten.mm", Kind.KERNEL, FLOAT + LENGTH * LENGTH * 4),
        ("aten.exp", Kind.FUSIBLE, FLOAT),
    ]


def test_of_two_operands_and_their_smaller_sum_the_sum_is_read() -> None:
    x, y = torch.randn(ROWS, LENGTH), torch.randn(ROWS, LENGTH)
    found = reads(lambda x, y, w: ((z := x + y), x @ w, z.sin()), x, y, torch.randn(LENGTH, LENGTH))
    assert found[-1] == ("aten.sin", Kind.FUSIBLE, FLOAT)


def test_random_numbers_are_not_read() -> None:
    def dropped(x: Tensor) -> Tensor:
        seed = torch.ops.prims.inductor_seed(x.device)
        return x * (torch.ops.prims.inductor_random(x.shape, seed, "rand") > 0.1)

    found = reads(dropped, torch.randn(ROWS, LENGTH))
    assert sum(size for *_, size in found) - FLOAT < 64  # the seed


def test_prices_follow_what_is_read() -> None:
    graph = make_fx(lambda x: x.sin())(torch.randn(ROWS, LENGTH)).graph
    node: fx.Node = next(node for node in graph.nodes if node.op == "call_function")
    card = find_device("H100")
    whole, less, none = (op_cost(node, card, most_read=most) for most in (None, FLOAT // 2, 0))
    assert whole.moved_bytes == 2 * tensor_bytes(node.meta["val"])
    assert [whole.moved_bytes - cost.moved_bytes for cost in (less, none)] == [FLOAT // 2, FLOAT]
    assert whole.seconds > less.seconds > none.seconds > none.fused_seconds == whole.fused_seconds
