"""What only a real card shows: budgets by its allocator, gradients of its kernels, measured prices and buffers."""

import pytest
import torch
from torch import Tensor

import graphremat
from bench.keep_budget import Bench, Setting, storage_bytes
from graphremat.device_memory import cublas_workspace_bytes
from graphremat.measure import gradient_error, measure_peak
from graphremat.passes.devices import BLOCK_BYTES
from graphremat.passes.torch_private import cuda_graphs, max_autotune

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

MOST_PREDICTION_ERROR = 0.005
"""Of the peak: the code's bytes against the allocator's."""


@pytest.fixture(autouse=True)
def _exact_and_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.compiler.config, "force_disable_caches", True)  # each graph has a report


def measured_peak(bench: Bench, call: object) -> int:
    """Parameters, buffers, batch and what the step adds, in the allocator's blocks."""
    held = [*bench.case.model.parameters(), *bench.case.model.buffers(), *bench.case.inputs]
    peak = measure_peak(lambda: bench.step(call), clear=bench.clear, device="cuda")  # type: ignore[arg-type]
    return peak.peak_bytes + storage_bytes(held, BLOCK_BYTES["cuda"])


@pytest.mark.parametrize("budget", [None, 0.3])
@pytest.mark.parametrize("network", ["llama", "dropout_gpt", "resnet", "unet"])
def test_budgets_are_kept_by_the_allocator(network: str, budget: float | None) -> None:
    bench = Bench(Setting(network, "tiny", device="cuda"))
    call = bench.compiled(budget)
    gradients, buffers = bench.first_step(call)
    report = graphremat.last_report()
    assert gradient_error(bench.reference[0], gradients) <= 1e-5
    assert gradient_error(bench.reference[1], buffers) <= 1e-5
    del gradients, buffers
    peak = measured_peak(bench, call)
    assert report.budget_bytes is None or peak <= report.budget_bytes
    assert report.generated_peak_bytes == pytest.approx(peak, rel=MOST_PREDICTION_ERROR)
    assert (report.recomputed_ops > 0) or budget is None


def test_autocast_in_bfloat16() -> None:
    bench = Bench(Setting("llama", "small", device="cuda"))

    def first_step(backend: str, **keywords: object) -> list[Tensor | None]:
        torch.compiler.reset()
        call = torch.compile(bench.case.model, backend=backend, fullgraph=True, **keywords)  # type: ignore[call-overload]
        with torch.autocast("cuda", torch.bfloat16):
            return bench.first_step(call)[0]

    reference = first_step("inductor")
    gradients = first_step("graphremat", options={"memory_budget": 0.2})
    report = graphremat.last_report()
    assert report.recomputed_ops > 0
    assert gradient_error(reference, gradients) <= 3e-2  # two orders of rounding to 8 bits
    del reference, gradients
    with torch.autocast("cuda", torch.bfloat16):
        # The compiled code of the last backend is called, not compiled anew.
        call = torch.compile(
            bench.case.model, backend="graphremat", fullgraph=True, options={"memory_budget": 0.2}
        )
        peak = measured_peak(bench, call)
    assert report.budget_bytes is not None
    assert peak <= report.budget_bytes
    assert report.generated_peak_bytes == pytest.approx(peak, rel=MOST_PREDICTION_ERROR)


def test_auto_is_what_the_card_has_left() -> None:
    bench = Bench(Setting("two_losses", "tiny", device="cuda"))
    call = torch.compile(bench.case.model, backend="graphremat", options={"memory_budget": "auto"})
    bench.step(call)
    budget = graphremat.last_report().budget_bytes
    assert budget is not None
    total = torch.cuda.get_device_properties(0).total_memory
    assert total / 2 < budget <= total


def test_profiled_steps_are_told_by_the_report() -> None:
    bench = Bench(Setting("llama", "small", device="cuda"))
    options = {"memory_budget": 0.3, "profile": True}
    call = torch.compile(bench.case.model, backend="graphremat", fullgraph=True, options=options)
    for _ in range(8):
        bench.clear()
        bench.step(call)
    truth = next(r.truth for r in reversed(graphremat.reports()) if r.truth is not None)
    assert truth.peak_bytes == pytest.approx(truth.generated_peak_bytes, rel=MOST_PREDICTION_ERROR)
    assert 0 < truth.attributed_seconds <= truth.call_seconds


def test_measured_prices_give_a_plan_under_the_budget() -> None:
    bench = Bench(Setting("llama", "small", device="cuda"))
    options = {"memory_budget": 0.3, "costs": "measure"}
    call = torch.compile(bench.case.model, backend="graphremat", fullgraph=True, options=options)
    bench.step(call)
    report = graphremat.last_report()
    bench.clear()
    assert report.budget_bytes is not None
    assert measured_peak(bench, call) <= report.budget_bytes


def test_kernels_that_inductor_chose_by_the_clock_keep_the_budget() -> None:
    bench = Bench(Setting("linear_stack", "tiny", device="cuda"))
    with max_autotune():
        call = bench.compiled(0.3)
        gradients, _ = bench.first_step(call)
    report = graphremat.last_report()
    assert gradient_error(bench.reference[0], gradients) <= 1e-5
    del gradients
    peak = measured_peak(bench, call)
    assert report.recomputed_ops > 0
    assert report.budget_bytes is not None
    assert peak <= report.budget_bytes
    assert report.generated_peak_bytes == pytest.approx(peak, rel=MOST_PREDICTION_ERROR)


def test_a_cuda_graph_records_no_more_than_the_budget() -> None:
    """Over it come one workspace of cuBLAS, in the graph's own pool, and the copy of the batch that it reads."""
    bench = Bench(Setting("llama", "small", device="cuda"))
    options = {"memory_budget": 0.3}
    call = torch.compile(bench.case.model, backend="graphremat", fullgraph=True, options=options)
    peaks = []
    with cuda_graphs():
        for _ in range(4):  # one compiles, one records, the others replay
            torch.compiler.cudagraph_mark_step_begin()
            bench.clear()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            bench.step(call)
            torch.cuda.synchronize()
            peaks.append(torch.cuda.max_memory_allocated() - before)
        gradients = [parameter.grad for parameter in bench.case.model.parameters()]
        assert gradient_error(bench.reference[0], gradients) <= 1e-5
    report = graphremat.last_report()
    assert report.recomputed_ops > 0
    assert report.budget_bytes is not None
    workspace = cublas_workspace_bytes(torch.device("cuda"))
    batch = storage_bytes(bench.case.inputs, BLOCK_BYTES["cuda"])
    assert 0 < peaks[1] <= report.budget_bytes - report.input_bytes + workspace + batch
