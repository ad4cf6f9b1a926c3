"""What users say of checkpoints: honoured, or ignored where they ask for that."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import checkpoint as ckpt

import graphremat
from bench.training_scripts import SCRIPTS  # noqa: F401 (registers graphremat_scripts::cubed)
from bench.training_scripts.annotations import Checkpointed, RegionBudget
from graphremat.measure import measure_peak

plain_checkpoint = partial(ckpt.checkpoint, use_reentrant=False)


def selective(policy: ckpt.CheckpointPolicy) -> Callable[..., Tensor]:
    """Checkpoints with one policy for matrix products; everything else is recomputed."""

    def decide(_: object, op: object, *args: object, **kwargs: object) -> ckpt.CheckpointPolicy:
        products = (torch.ops.aten.addmm.default, torch.ops.aten.mm.default)
        return policy if op in products else ckpt.CheckpointPolicy.MUST_RECOMPUTE

    contexts = partial(ckpt.create_selective_checkpoint_contexts, decide)
    return partial(ckpt.checkpoint, use_reentrant=False, context_fn=contexts)


def report_of(model: nn.Module, **options: Any) -> graphremat.Report:
    torch.compiler.reset()
    asked = {"lowering": "aot_eager", "on_failure": "error", **options}
    torch.compile(model, backend="graphremat", options=asked)(torch.randn(64, 32)).pow(2).mean().backward()
    return graphremat.last_report()


def measured(model: nn.Module, call: Callable[..., Tensor]) -> int:
    x = torch.randn(64, 32)

    def step() -> None:
        call(x).pow(2).mean().backward()

    return measure_peak(step, clear=lambda: model.zero_grad(set_to_none=True)).peak_bytes


@pytest.mark.parametrize("call", [plain_checkpoint, selective(ckpt.CheckpointPolicy.MUST_SAVE)])
def test_an_annotated_model_ends_at_or_below_the_peak_of_plain_compile(call: Callable[..., Tensor]) -> None:
    model = Checkpointed(call)
    torch.compiler.reset()
    plain = measured(model, torch.compile(model, backend="aot_eager"))
    torch.compiler.reset()
    options = {"lowering": "aot_eager", "memory_budget": 0.0, "on_failure": "error"}
    assert measured(model, torch.compile(model, backend="graphremat", options=options)) <= plain


def test_checkpoints_are_recomputed_unless_they_are_ignored() -> None:
    model = Checkpointed(plain_checkpoint)
    honoured, ignored = (report_of(model, annotations=word) for word in ("honour", "ignore"))
    assert honoured.recomputed_ops > ignored.recomputed_ops
    assert honoured.saved_bytes < ignored.saved_bytes


def test_what_must_be_saved_is_saved_unless_that_is_ignored() -> None:
    model = Checkpointed(selective(ckpt.CheckpointPolicy.MUST_SAVE))
    honoured, ignored = (
        report_of(model, annotations=word, memory_budget=0.0) for word in ("honour", "ignore")
    )
    assert honoured.saved_bytes > ignored.saved_bytes
    assert honoured.generated_peak_bytes > ignored.generated_peak_bytes


def test_the_budget_of_a_region_is_kept_unless_it_is_ignored() -> None:
    """It is torch's own, in saved bytes; with no budget in bytes our plan is no higher than torch's for it."""
    tight, loose = (report_of(RegionBudget(budget)) for budget in (0.0, 1.0))
    assert tight.generated_peak_bytes < loose.generated_peak_bytes
    ignored = report_of(RegionBudget(0.0), annotations="ignore")
    assert ignored.generated_peak_bytes == loose.generated_peak_bytes


def test_an_operator_of_unknown_effect_runs_again_where_the_user_asks_for_that() -> None:
    def cubed(block: nn.Module, x: Tensor) -> Tensor:
        return plain_checkpoint(lambda h: block(torch.ops.graphremat_scripts.cubed(h)), x)

    assert report_of(Checkpointed(cubed), memory_budget=0.0).recomputed_ops > 0
