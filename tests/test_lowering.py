"""Code generation without a compiler: what the real compile would give, again and again, and nothing is left behind."""

import platform
import subprocess
import threading
from typing import Any

import pytest
import torch
from torch import fx, nn

from graphremat import lowering
from graphremat.errors import PlanningError
from graphremat.lowering import GeneratedCode, SymbolSpec, TensorSpec
from graphremat.passes import torch_private
from tests.steps import Observed, build, op_by_op, with_inductor


def body(source: str) -> list[str]:
    """The wrapper without its first line, which names the compilation."""
    return source.splitlines()[1:]


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **_: Any) -> Any:
        if args and args[0][1:] == ["--version"]:
            raise FileNotFoundError(args[0][0])
        raise AssertionError(f"a process was started: {args}")

    torch_private.forget_compiler()
    monkeypatch.setattr(subprocess, "Popen", fail)
    monkeypatch.setattr(subprocess, "run", fail)
    monkeypatch.setattr(subprocess, "check_output", fail)


@pytest.mark.inductor
@pytest.mark.parametrize("name", ["perceptron", "attention", "convolutions"])
def test_the_wrappers_are_those_of_the_real_compile(name: str) -> None:
    model, inputs = build(name)
    observed = Observed()
    with_inductor(model, observed)(*inputs).backward()
    forward, backward = observed.codes[0]
    assert body(forward.source) == body(observed.sources[0])
    assert body(backward.source) == body(observed.sources[1])


@pytest.mark.inductor
def test_the_wrappers_of_symbolic_sizes_are_those_of_the_real_compile() -> None:
    model, (batch,) = build("perceptron")
    torch._dynamo.mark_dynamic(batch, 0)  # noqa: TID251
    observed = Observed()
    with_inductor(model, observed)(batch).backward()
    forward, backward = observed.codes[0]
    assert body(forward.source) == body(observed.sources[0])
    assert body(backward.source) == body(observed.sources[1])
    assert [spec.value for spec in forward.inputs if isinstance(spec, SymbolSpec)] == [256]


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize("name", ["perceptron", "attention", "convolutions"])
def test_no_process_is_started_and_the_result_repeats(name: str) -> None:
    model, inputs = build(name)
    observed = Observed(repeats=2)
    op_by_op(model, observed, inductor_passes=True)(*inputs)
    assert observed.codes[0] == observed.codes[1]
    assert observed.truths[0] == observed.truths[1]


@pytest.mark.usefixtures("no_compiler")
def test_nothing_is_left_behind() -> None:
    model, inputs = build("convolutions")
    seen: list[bool] = []

    def look(forward: fx.GraphModule, backward: fx.GraphModule) -> None:
        def state() -> Any:
            metas = [
                (node.name, node.op, node.target, str(node.args), sorted(node.meta), id(node.meta.get("val")))
                for gm in (forward, backward)
                for node in gm.graph.nodes
            ]
            return metas, torch_private.inductor_state(), torch.get_rng_state().tolist()

        before = state()
        lowering.generate_step_code(forward, backward, user_visible_outputs=1)
        seen.append(state() == before)

    observed = Observed(repeats=0, look=look)
    op_by_op(model, observed, inductor_passes=True)(*inputs)
    assert seen == [True]


def test_a_draft_allocates_the_same() -> None:
    model, inputs = build("attention")
    sources: list[tuple[str, str]] = []

    def look(forward: fx.GraphModule, backward: fx.GraphModule) -> None:
        for draft in (False, True):
            codes = lowering.generate_step_code(forward, backward, user_visible_outputs=1, draft=draft)
            sources.append((codes[0].source, codes[1].source))

    op_by_op(model, Observed(repeats=0, look=look), inductor_passes=True)(*inputs)
    (exact, exact_backward), (draft, draft_backward) = sources
    assert allocations(exact) == allocations(draft)
    assert allocations(exact_backward) == allocations(draft_backward)
    assert "Vectorized" in exact
    assert "Vectorized" not in draft


def allocations(source: str) -> list[str]:
    return [
        line.strip()
        for line in source.splitlines()
        if " = empty_strided_cpu(" in line or line.strip().startswith("del ")
    ]


def test_the_backward_gets_the_strides_of_the_forward() -> None:
    model, inputs = build("convolutions")
    observed = Observed()
    op_by_op(model, observed, inductor_passes=True)(*inputs)
    forward, backward = observed.codes[0]
    by_name = {spec.name: spec for spec in backward.inputs if isinstance(spec, TensorSpec)}
    convolution = by_name["convolution"]
    assert convolution.stride == (16 * 48 * 48, 1, 16 * 48, 16)
    assert forward.output_strides[observed.names.index("convolution")] == convolution.stride


def test_inputs_that_share_a_storage_say_so() -> None:
    base = torch.empty(10, 4)
    specs = lowering.describe_inputs(["base", "row", "other", "size"], [base, base[3], torch.empty(2), 7])
    tensors = [spec for spec in specs if isinstance(spec, TensorSpec)]
    assert [spec.storage for spec in tensors] == [0, 0, 1]
    assert [spec.storage_bytes for spec in tensors] == [160, 160, 8]
    assert tensors[1].storage_offset == 12
    assert specs[3] == SymbolSpec("size", 7)


def test_the_cpp_wrapper_is_refused() -> None:
    gm = fx.symbolic_trace(nn.Identity())
    with torch_private.inductor_config(cpp_wrapper=True), pytest.raises(PlanningError, match="cpp_wrapper"):
        lowering.generate_code(gm, [torch.empty(2)], is_backward=False)


def test_every_placeholder_needs_an_input() -> None:
    gm = fx.symbolic_trace(nn.Identity())
    with pytest.raises(ValueError, match="1 placeholders, but 0 inputs"):
        lowering.generate_code(gm, [], is_backward=False)


def test_what_would_compile_is_named() -> None:
    model, inputs = build("perceptron")
    codes: list[GeneratedCode] = []

    def look(forward: fx.GraphModule, _: fx.GraphModule) -> None:
        with torch_private.inductor_config(benchmark_fusion=True):
            values = lowering.placeholder_values(forward)
            codes.append(lowering.generate_code(forward, values, is_backward=False, user_visible_outputs=1))

    op_by_op(model, Observed(repeats=0, look=look), inductor_passes=True)(*inputs)
    assert codes[0].switched_off == ("benchmark_fusion",)


@pytest.mark.parametrize("draws", [False, True])
def test_a_graph_that_draws_numbers_is_told_by_its_ops(draws: bool) -> None:
    graph = fx.Graph()
    seeds = graph.call_function(torch.ops.prims.inductor_seeds.default, (1, torch.device("cpu")))
    seed = graph.call_function(torch.ops.prims.inductor_lookup_seed.default, (seeds, 0))
    number = graph.call_function(torch.ops.prims.inductor_random.default, ([4], seed, "rand"))
    graph.output((number if draws else seed,))
    graph.eliminate_dead_code()
    module = fx.GraphModule(nn.Module(), graph)
    assert lowering.draws_numbers(module) == draws


@pytest.mark.skipif(platform.machine() != "x86_64", reason="there the compiler is asked nothing")
def test_what_is_assumed_while_the_compiler_is_asked_does_not_become_its_answer() -> None:
    asked, may_answer = threading.Event(), threading.Event()

    def refuses() -> bool:
        asked.set()
        assert may_answer.wait(60)
        return False

    with (
        torch_private.inductor_config(cpp_cache_precompile_headers=False),
        torch_private.compiler_answering(refuses),
    ):
        torch_private.start_asking_compiler()
        assert asked.wait(60)
        with torch_private.no_compiler():
            assert torch_private.vector_instructions()
            may_answer.set()
            torch_private.wait_for_compiler()
        assert torch_private.vector_instructions() == []


@pytest.mark.skipif(platform.machine() != "x86_64", reason="there the compiler is asked nothing")
def test_the_compiler_is_asked_once_and_before_inductor_needs_the_answer() -> None:
    answers: list[bool] = []

    def knows() -> bool:
        answers.append(True)
        return True

    with (
        torch_private.inductor_config(cpp_cache_precompile_headers=False),
        torch_private.compiler_answering(knows),
    ):
        torch_private.start_asking_compiler()
        torch_private.start_asking_compiler()
        torch_private.wait_for_compiler()
        known = len(answers)
        assert len(torch_private.vector_instructions()) == known == len(answers)
