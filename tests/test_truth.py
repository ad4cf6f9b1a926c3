"""The dry run against the allocator, against hand-counted steps, and against itself."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from graphremat.errors import PlanningError
from graphremat.lowering import GeneratedCode, SymbolSpec, TensorSpec
from graphremat.measure import PeakMeasurement, measure_peak
from graphremat.passes.scratch import bytes_beside, scratch_bytes, spare_bytes
from graphremat.passes.torch_private import MemoryEvent
from graphremat.tracing import trace_step
from graphremat.truth import StepTruth, dry_run_graphs, step_truth
from tests.steps import Observed, build, op_by_op, with_inductor

FLOAT = 4
# The step's loss is one number, and so is its tangent; torch's own sums of numbers are sometimes a few bytes more.
NUMBERS = 4 * FLOAT
# The profiler sees the memory of the thread that calls a kernel, not that of the other threads inside it.
OTHER_THREADS = 256


def measured(model: nn.Module, step: Callable[..., Any], inputs: tuple[torch.Tensor, ...]) -> PeakMeasurement:
    def forward_and_backward() -> None:
        loss = step(*inputs)
        loss.backward()

    return measure_peak(forward_and_backward, clear=lambda: model.zero_grad(set_to_none=True))


def added_bytes(truth: StepTruth) -> int:
    return truth.peak_bytes - truth.input_bytes


# --- against the allocator ---


@pytest.mark.inductor
@pytest.mark.parametrize(
    ("name", "tolerance"), [("perceptron", NUMBERS), ("attention", NUMBERS + OTHER_THREADS)]
)
def test_the_peak_of_a_compiled_step_is_the_measured_one(name: str, tolerance: int) -> None:
    model, inputs = build(name)
    observed = Observed()
    step = with_inductor(model, observed)
    step(*inputs).backward()
    real = measured(model, step, inputs)
    (truth,) = observed.truths
    assert added_bytes(truth) == pytest.approx(real.peak_bytes, abs=tolerance)
    assert added_bytes(truth) == pytest.approx(real.peak_bytes, rel=0.005)
    assert truth.gradient_bytes == real.end_bytes


@pytest.mark.inductor
def test_a_compiled_convolution_has_workspaces_that_only_onednn_knows() -> None:
    model, inputs = build("convolutions")
    observed = Observed()
    step = with_inductor(model, observed)
    step(*inputs).backward()
    real = measured(model, step, inputs)
    (truth,) = observed.truths
    assert added_bytes(truth) == pytest.approx(real.peak_bytes, rel=0.005)
    assert added_bytes(truth) <= real.peak_bytes
    assert truth.gradient_bytes == real.end_bytes


@pytest.mark.inductor
def test_tangents_of_an_outer_loss_die_in_the_backward_unless_they_are_held() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 256)
    )
    batch = torch.randn(512, 64)
    observed = Observed()
    step = with_inductor(model, observed)
    step(batch).sum().backward()
    (truth,) = observed.truths
    ((forward, backward),) = observed.codes
    held = step_truth(
        forward, backward, forward_outputs=observed.names, num_user_outputs=1, tangents_held=True
    )

    def engine_holds_the_tangent() -> None:
        output = step(batch)
        output.sum().backward()

    def caller_holds_the_tangent() -> None:
        output = step(batch)
        output.backward(torch.ones(512, 256))

    clear = lambda: model.zero_grad(set_to_none=True)  # noqa: E731
    numbers = 2 * FLOAT  # the sum and its tangent, outside the compiled call
    assert added_bytes(truth) == measure_peak(engine_holds_the_tangent, clear=clear).peak_bytes - numbers
    assert added_bytes(held) == measure_peak(caller_holds_the_tangent, clear=clear).peak_bytes


@pytest.mark.parametrize(
    ("name", "passes", "tolerance"),
    [
        ("perceptron", False, 0),
        ("perceptron", True, NUMBERS),
        ("attention", False, OTHER_THREADS),
        ("attention", True, OTHER_THREADS),
    ],
)
def test_the_peak_of_a_step_run_op_by_op_is_the_measured_one(name: str, passes: bool, tolerance: int) -> None:
    model, inputs = build(name)
    observed = Observed(repeats=0)
    step = op_by_op(model, observed, inductor_passes=passes)
    real = measured(model, step, inputs)
    truth = observed.graphs_truth
    assert truth is not None
    assert added_bytes(truth) == pytest.approx(real.peak_bytes, abs=tolerance)
    assert truth.gradient_bytes == real.end_bytes


# --- against counting by hand ---

WRAPPER = """
import torch
from torch import device, empty_strided
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.select_algorithm import extern_kernels
{imports}
aten = torch.ops.aten
assert_size_stride = torch._C._dynamo.guards.assert_size_stride
empty_strided_{device} = torch._C._dynamo.guards._empty_strided_{device}
empty_strided_cpu_pinned = torch._C._dynamo.guards._empty_strided_cpu_pinned
reinterpret_tensor = torch._C._dynamo.guards._reinterpret_tensor
alloc_from_pool = torch.ops.inductor._alloc_from_pool
async_compile = AsyncCompile()
first_kernel = async_compile.{language}('first', \'\'\'no code\'\'\')
async_compile.wait(globals())
del async_compile

def call(args):
    {body}
"""


def code(
    body: str,
    *inputs: TensorSpec | SymbolSpec,
    device: str = "cpu",
    language: str = "cpp_pybinding",
    imports: str = "",
) -> GeneratedCode:
    lines = "\n    ".join(body.strip().splitlines())
    source = WRAPPER.format(body=lines, device=device, language=language, imports=imports)
    return GeneratedCode(source=source, inputs=inputs, output_strides=())


def row(
    name: str, length: int, *, storage: int = 0, total: int | None = None, device: str = "cpu"
) -> TensorSpec:
    size = (total if total is not None else length) * FLOAT
    return TensorSpec(name, (length,), (1,), 0, torch.float32, torch.device(device), storage, size)


FORWARD = """
primals_1, primals_2 = args
args.clear()
assert_size_stride(primals_1, (100, ), (1, ))
buf0 = empty_strided_cpu((100, ), (1, ), torch.float32)
first_kernel(primals_1, buf0)
buf1 = empty_strided_cpu((50, ), (1, ), torch.float32)
extern_kernels.mm(buf0, primals_2, out=buf1)
buf2 = reinterpret_tensor(buf0, (10, 10), (10, 1), 0); del buf0  # reuse
buf3 = aten.sum.default(buf2)
return (buf3, buf1, primals_1, )
"""
BACKWARD = """
mm, primals_1, tangents_1 = args
args.clear()
buf4 = empty_strided_cpu((200, ), (1, ), torch.float32)
first_kernel(mm, buf4)
del mm
buf5 = empty_strided_cpu((100, ), (1, ), torch.float32)
first_kernel(buf4, buf5)
del buf4
return (buf5, None, )
"""


def by_hand(**changes: Any) -> StepTruth:
    forward = code(FORWARD, row("primals_1", 100, total=1000), row("primals_2", 20, storage=1))
    tangent = TensorSpec("tangents_1", (), (), 0, torch.float32, torch.device("cpu"), 2, FLOAT)
    backward = code(BACKWARD, row("mm", 50), row("primals_1", 100, storage=1, total=1000), tangent)
    return step_truth(
        forward, backward, forward_outputs=("sum_1", "mm", "primals_1"), num_user_outputs=1, **changes
    )


def test_a_step_counted_by_hand() -> None:
    truth = by_hand()
    inputs = 1020 * FLOAT
    assert truth.input_bytes == inputs
    assert truth.forward_peak_bytes == inputs + (100 + 50 + 1) * FLOAT
    assert truth.saved_bytes == 50 * FLOAT
    # The loss, its tangent and the two buffers; `mm` has died.
    assert truth.backward_peak_bytes == truth.peak_bytes == inputs + (1 + 1 + 200 + 100) * FLOAT
    assert truth.gradient_bytes == 100 * FLOAT
    assert truth.peak_at == "backward:first_kernel"
    assert truth.alive_at_peak == (
        ("primals_1", 1000 * FLOAT),
        ("buf4", 200 * FLOAT),
        ("buf5", 100 * FLOAT),
        ("primals_2", 20 * FLOAT),
        ("buf3", FLOAT),
        ("tangents_1", FLOAT),
    )
    assert truth.forward_kernels == ("first_kernel", "extern_kernels.mm", "aten.sum.default")
    assert truth.backward_kernels == ("first_kernel", "first_kernel")
    assert truth.curve[:3] == (
        ("inputs:primals_1", 1000 * FLOAT),
        ("inputs:primals_2", inputs),
        ("forward:buf0", inputs + 100 * FLOAT),
    )
    # The buffers that the backward keeps or returned are all that is left.
    assert truth.curve[-1][1] == inputs + (1 + 1 + 100) * FLOAT


def test_sizes_round_up_to_what_the_allocator_gives() -> None:
    truth = by_hand(round_to_bytes=512)
    assert truth.input_bytes == 4096 + 512
    assert truth.gradient_bytes == 512


def test_an_output_that_only_mutates_an_input_dies_with_the_forward() -> None:
    truth = by_hand(num_mutated_inputs=1)
    assert truth.backward_peak_bytes == by_hand().backward_peak_bytes - FLOAT + 50 * FLOAT


def test_a_wrapper_for_an_accelerator_is_followed_without_one() -> None:
    imports = "import triton\nfrom torch._C import _cuda_getCurrentRawStream as get_raw_stream"
    forward = """
primals_1, s0 = args
args.clear()
with torch.cuda._DeviceGuard(0):
    torch.cuda.set_device(0)
    buf0 = empty_strided_cuda((s0, ), (1, ), torch.float32)
    stream0 = get_raw_stream(0)
    first_kernel.run(primals_1, buf0, 100, stream=stream0)
    pinned = empty_strided_cpu_pinned((5000, ), (1, ), torch.float32)
    pool = empty_strided_cuda((800, ), (1, ), torch.uint8)
    buf1 = alloc_from_pool(pool, 400, torch.float32, (100, ), (1, ))
    del pool
    buf2 = aten.full.default([25], 1.0, dtype=torch.float32, device=device(type='cuda', index=0))
    buf3 = empty_strided((s0, ), (1, ), device='cuda', dtype=torch.float32)
return (buf0, buf1, s0, )
"""
    backward = "s0, alloc, tangents_1 = args\nargs.clear()\nreturn (tangents_1, )"
    symbol = SymbolSpec("s0", 100)
    truth = step_truth(
        code(
            forward,
            row("primals_1", 100, device="cuda"),
            symbol,
            device="cuda",
            language="triton",
            imports=imports,
        ),
        code(
            backward,
            symbol,
            row("alloc", 100, device="cuda"),
            row("tangents_1", 100, storage=1, device="cuda"),
        ),
        forward_outputs=("out", "alloc", "s0"),
        num_user_outputs=1,
    )
    assert added_bytes(truth) == 400 + 800 + 100 + 400
    assert truth.saved_bytes == 800
    assert truth.forward_kernels[0] == "first_kernel"


def test_what_needs_data_is_named() -> None:
    forward = code("buf0 = aten.nonzero.default(args[0])\nreturn (buf0, )", row("primals_1", 10))
    with pytest.raises(PlanningError, match=r"aten\.nonzero\.default can't be followed without data"):
        step_truth(forward, code("return ()"), forward_outputs=("nonzero",), num_user_outputs=1)


def test_an_import_that_allocates_is_not_guessed() -> None:
    forward = code("return ()", imports="import a_module_that_is_absent")
    with pytest.raises(PlanningError, match="a_module_that_is_absent"):
        step_truth(forward, forward, forward_outputs=(), num_user_outputs=0)


def test_every_output_needs_a_name() -> None:
    forward = code("return (args[0], )", row("primals_1", 10))
    with pytest.raises(PlanningError, match="returned 1 values, but 0 outputs"):
        step_truth(forward, forward, forward_outputs=(), num_user_outputs=0)


# --- properties ---


@pytest.mark.parametrize("name", ["perceptron", "attention", "convolutions"])
def test_generated_code_needs_no_more_than_its_graphs(name: str) -> None:
    model, inputs = build(name)
    observed = Observed()
    op_by_op(model, observed, inductor_passes=True)(*inputs)
    (truth,) = observed.truths
    assert observed.graphs_truth is not None
    assert truth.peak_bytes < observed.graphs_truth.peak_bytes
    assert truth.input_bytes == observed.graphs_truth.input_bytes
    assert truth.gradient_bytes == observed.graphs_truth.gradient_bytes
    assert truth.peak_bytes == max(truth.forward_peak_bytes, truth.backward_peak_bytes)
    assert truth.peak_bytes == max(size for _, size in truth.curve)
    assert sum(size for _, size in truth.alive_at_peak) == truth.peak_bytes
    at = [label for label, size in truth.curve if size == truth.peak_bytes]
    assert truth.peak_at in at


def test_graphs_are_left_as_they_are_and_constants_count_once() -> None:
    constant = torch.ones(100)

    def forward(value: torch.Tensor) -> Any:
        return (torch.ops.aten.add.Tensor(value, constant), value)

    def traced(function: Callable[..., Any], **values: torch.Tensor) -> fx.GraphModule:
        gm = fx.symbolic_trace(function)
        for node in gm.graph.find_nodes(op="placeholder"):
            node.meta["val"] = values[node.name]
        return gm

    def backward(value: torch.Tensor, tangents_1: torch.Tensor) -> Any:
        return (torch.ops.aten.mul.Tensor(value, tangents_1),)

    forward_graph = traced(forward, value=torch.empty(100))
    backward_graph = traced(backward, value=torch.empty(100), tangents_1=torch.empty(100))
    code_before = (forward_graph.code, backward_graph.code)
    truth = dry_run_graphs(forward_graph, backward_graph, num_user_outputs=1)
    assert truth == dry_run_graphs(forward_graph, backward_graph, num_user_outputs=1)
    assert (forward_graph.code, backward_graph.code) == code_before
    assert truth.input_bytes == 2 * 400
    assert added_bytes(truth) == 3 * 400


def test_flash_attention_on_half_precision_keeps_sums_and_products() -> None:
    query = torch.empty(2, 4, 1024, 32, dtype=torch.bfloat16, device="meta")
    name = "aten._scaled_dot_product_flash_attention_for_cpu.default"
    per_thread = (256 * 512 + 2 * 256 + 256 * 32) * 4 + 256 * 512 * 2
    assert scratch_bytes(name, [query] * 3) == torch.get_num_threads() * per_thread
    gradient = query.transpose(1, 2).contiguous().transpose(1, 2)
    backward = "aten._scaled_dot_product_flash_attention_for_cpu_backward.default"
    copied = scratch_bytes(backward, [query, query, query]) - scratch_bytes(
        backward, [gradient, query, query]
    )
    assert copied == query.numel() * 2
    assert scratch_bytes("aten.mm.default", [query]) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64])
@pytest.mark.parametrize("number", [2, 0.5])
@pytest.mark.parametrize("name", ["mul.Tensor", "add.Scalar", "rsub.Scalar", "gt.Scalar"])
def test_a_number_is_a_tensor_while_an_op_reads_it(name: str, number: float, dtype: torch.dtype) -> None:
    packet, overload = name.split(".")
    op = getattr(getattr(torch.ops.aten, packet), overload)
    tensor = torch.ones(1000, dtype=dtype)
    result = op(tensor, number)
    measured = measure_peak(lambda: op(tensor, number)).peak_bytes - result.nbytes
    assert scratch_bytes(f"aten.{name}", [tensor, number]) == measured


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_ops_that_the_cpu_runs_in_several_steps(dtype: torch.dtype) -> None:
    aten: Any = torch.ops.aten
    x, weight = torch.randn(8, 64, 48).to(dtype), torch.ones(48, dtype=dtype)
    mask = torch.rand(x.shape) > 0.5
    _, mean, rstd = aten.native_layer_norm.default(x, [48], weight, weight, 1e-5)
    calls: list[tuple[Any, list[Any]]] = [
        (aten.native_layer_norm_backward.default, [x, x, [48], mean, rstd, weight, weight, [True] * 3]),
        (aten.native_dropout_backward.default, [x, mask, 1.25]),
        (aten.mean.dim, [x, [-1], True]),
        (aten.mean.default, [x]),
    ]
    for op, args in calls:
        made = op(*args)
        kept = sum(part.nbytes for part in (made if isinstance(made, tuple) else (made,)))
        measured = measure_peak(lambda op=op, args=args: op(*args)).peak_bytes
        assert scratch_bytes(str(op), args) == measured - kept, op


class Mean(nn.Linear):
    """With a bfloat16 weight, the CPU's own mean takes more than all of its argument."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh().mean()


@pytest.mark.parametrize(("lowering", "takes"), [("inductor", 0), ("aot_eager", 2 * 256 * 64 * 2 + 4)])
def test_what_inductor_computes_itself_takes_nothing(lowering: str, takes: int) -> None:
    model, x = Mean(64, 64, dtype=torch.bfloat16), torch.randn(256, 64, dtype=torch.bfloat16)
    problem = trace_step(model, (x,), lowering=lowering, with_torchs=False).problem
    assert [op.scratch_bytes for op in problem.ops if "mean" in op.target] == [takes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("reduction", [0, 1, 2])
@pytest.mark.parametrize(
    "name", ["mse_loss", "smooth_l1_loss", "soft_margin_loss", "binary_cross_entropy", "huber_loss"]
)
def test_a_loss_lies_where_the_losses_of_all_elements_were(
    name: str, reduction: int, dtype: torch.dtype
) -> None:
    op = getattr(torch.ops.aten, name).default
    x, y = torch.rand(64, 100).to(dtype), torch.rand(64, 100).to(dtype)
    args = [x, y, *([None] if name == "binary_cross_entropy" else []), reduction]
    made = op(*args)
    spare = spare_bytes(str(op), args)
    assert made.untyped_storage().nbytes() == made.nbytes + spare
    if name != "huber_loss":  # composed of others, which the dry run sees for themselves
        measured = measure_peak(lambda: op(*args)).peak_bytes
        assert scratch_bytes(str(op), args) == measured - made.nbytes - spare


def test_a_result_where_a_freed_buffer_was_counts_once() -> None:
    sizes_at = [(100, 1), (-100, 1), (40, 1), (30, 2), (-30, 2)]
    events = [MemoryEvent(0, address, nbytes, "cpu") for nbytes, address in sizes_at]
    assert bytes_beside(events, {1}) == 60
    assert bytes_beside(events, set()) == 100


def test_what_could_not_be_probed_under_a_profiler_is_probed_later() -> None:
    image, weight = (
        torch.empty(2, 3, 17, 19),
        torch.empty(5, 3, 3, 3),
    )  # of no other test: what was probed is kept
    arguments = [image, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1]
    with torch.profiler.profile():
        assert scratch_bytes("aten.convolution.default", arguments) == 0
    assert scratch_bytes("aten.convolution.default", arguments) > 0
