"""What training scripts do, each beside plain ``torch.compile``: the same gradients at every budget, the same refusals.

Plain ``aot_eager`` is the reference, since it draws the same random numbers; scripts that draw none are held to eager.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import graphremat
from bench.training_scripts import DRAWS, NEEDS, REFUSED, SCRIPTS, WRONG, Compile


def run(name: str, compile_: Compile) -> list[Tensor] | type[Exception]:
    """What the script returns, or the class of what it raises."""
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    torch.compiler.reset()
    torch.manual_seed(0)
    try:
        return [t.detach().clone() for t in SCRIPTS[name](compile_)]
    except Exception as error:  # noqa: BLE001
        return type(error)


def assert_equal(
    got: list[Tensor] | type[Exception], wanted: list[Tensor] | type[Exception], tolerance: float
) -> None:
    if isinstance(wanted, type) or isinstance(got, type):
        assert got == wanted
        return
    assert len(got) == len(wanted)
    for mine, theirs in zip(got, wanted, strict=True):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)


def graphremat_at(budget: float | None) -> Compile:
    options = {"lowering": "aot_eager", "memory_budget": budget, "on_failure": "error"}
    return lambda model, **kw: torch.compile(model, backend="graphremat", options=options, **kw)


def plain(model: Callable[..., object], **options: Any) -> Callable[..., object]:
    return torch.compile(model, backend="aot_eager", **options)


def eager(model: Callable[..., object], **_: Any) -> Callable[..., object]:
    return model


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_trains_at_the_lowest_peak_as_with_plain_compile(name: str) -> None:
    wanted, got = run(name, plain), run(name, graphremat_at(0.0))
    assert isinstance(wanted, type) == (name in REFUSED), wanted
    if name not in WRONG:
        assert_equal(got, wanted, 1e-6)
    if name not in DRAWS | REFUSED:
        assert_equal(got, run(name, eager), 1e-4)


@pytest.mark.parametrize("budget", [None, 0.5])
@pytest.mark.parametrize("name", ["checkpointed_dropout", "grad_scaler_and_master_weights", "dynamic_shapes"])
def test_a_script_trains_at_other_budgets(name: str, budget: float | None) -> None:
    assert_equal(run(name, graphremat_at(budget)), run(name, plain), 1e-6)


def test_a_kept_random_state_is_followed() -> None:
    run("checkpointed_dropout", graphremat_at(0.0))
    assert graphremat.last_report().unfollowed == ""
