"""``python -m tests.fake_cuda.lower``: lower networks for a card that is not there, and say what came of it.

    python -m tests.fake_cuda.lower --networks llama,dropout_gpt --budgets none,0.5,0.0 --capability 9.0 --kernels

One JSON line for each network and budget: the bytes that are planned and those of the generated code (blocks of 512, as
CUDA's allocator has them), the budget, and how many kernels there are; with ``--kernels`` these are compiled, and the
line has the most registers, the most shared memory and what spills: in all launch configurations that Inductor tries,
and in the one of each kernel that spills least.
"""

from tests.fake_cuda import shim

shim.load()

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import fx
from torch._functorch import config as functorch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.cuda.amp import common as amp
from torch.nn import functional

import graphremat
from bench.networks import NETWORKS, Case
from bench.uncompiled import uncompiled
from graphremat.backend import graphremat as backend
from graphremat.passes.devices import find_device
from graphremat.passes.frontier import Candidate, judge
from graphremat.passes.torch_private import modules_changed_without_data
from graphremat.tracing import trace_step
from graphremat.truth import StepTruth
from tests.fake_cuda.device import fake_cuda
from tests.fake_cuda.kernels import compiled, least_spills, sources_of
from tests.fake_cuda.networks import FOR_A_CARD

ALL = {**NETWORKS, **FOR_A_CARD}
ATTENTION = functional.scaled_dot_product_attention
TORCH = "torch"
"""In place of a budget: what ``torch.compile`` makes."""
PRICES = {
    (8, 0): "A100-80GB",
    (8, 9): "L4",
    (9, 0): "H100",
    (10, 0): "B200",
    (12, 0): "RTX-5090",
}


def fused_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Any:
    """What a card takes for attention without a mask or dropout; without a card, torch takes the products apart."""
    if attn_mask is not None or dropout_p or options:
        return ATTENTION(query, key, value, attn_mask, dropout_p, is_causal, **options)
    if query.dtype == torch.float32:
        efficient = torch.ops.aten._scaled_dot_product_efficient_attention
        return efficient(query, key, value, None, True, 0.0, is_causal)[0]
    return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, is_causal)[0]


@dataclass(frozen=True)
class Setting:
    """What is lowered, and for which card. ``dtype`` is that of the weights; ``autocast`` is for the forward alone."""

    network: str
    size: str = "tiny"
    dtype: str = "float32"
    capability: tuple[int, int] = (9, 0)
    autocast: bool = False
    dynamic: bool = False

    def case(self) -> Case:
        """The network on the card, inside of a mode for fake tensors."""
        with torch.device("cuda:0"), modules_changed_without_data():
            case = ALL[self.network].build(self.size)
            return case.to("cuda:0", getattr(torch, self.dtype))

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """Autocast to bfloat16, where that is meant, which believes that there is a card."""
        with ExitStack() as stack:
            if self.autocast:
                stack.enter_context(patch.object(amp, "amp_definitely_not_available", lambda: False))
                stack.enter_context(torch.autocast("cuda", torch.bfloat16))
            yield


@dataclass(frozen=True, eq=False)
class Lowered:
    """A step on fake tensors that was planned and lowered.

    Attributes:
        case: the network, on the card.
        report: what the backend says of it.
        wrappers: the code of forward and backward.
        graphs: what that was generated from.
        arguments: what the forward is called with: parameters, buffers and inputs of the case.
    """

    case: Case
    report: graphremat.Report
    wrappers: tuple[str, str]
    graphs: tuple[fx.GraphModule, fx.GraphModule]
    arguments: tuple[Any, ...]


def lowered(setting: Setting, budget: float | None) -> Lowered:
    """Plan and lower the step of a network; nothing is compiled."""
    torch.compiler.reset()
    graphs: list[fx.GraphModule] = []
    called: list[tuple[Any, ...]] = []
    with tempfile.TemporaryDirectory() as folder, FakeTensorMode(allow_non_fake_inputs=True):
        case = setting.case()
        options = {
            "memory_budget": budget,
            "device_costs": PRICES[setting.capability],
            "on_failure": "error",
            "dump_dir": folder,
        }
        call: Callable[..., object] = torch.compile(
            case.model, backend=backend, fullgraph=True, dynamic=setting.dynamic, options=options
        )
        with (
            uncompiled(graphs, called),
            functorch.patch(force_non_lazy_backward_lowering=True),
            setting.tracing(),
        ):
            call(*case.inputs)
        report = graphremat.last_report()
        assert report.dump_dir is not None
        forward, backward = (
            (Path(report.dump_dir) / name).read_text()
            for name in ("60-forward-code.py", "61-backward-code.py")
        )
    return Lowered(case, report, (forward, backward), (graphs[0], graphs[1]), called[0])


def lowered_by_torch(setting: Setting) -> tuple[Candidate, StepTruth, tuple[str, str]]:
    """What ``torch.compile`` makes of the step: its plan, the bytes of its code, and the code."""
    torch.compiler.reset()
    with FakeTensorMode(allow_non_fake_inputs=True):
        case = setting.case()
        with setting.tracing():
            device = find_device(PRICES[setting.capability])
            traced = trace_step(case.model, case.inputs, device=device, dynamic=setting.dynamic)
    assert traced.lowering is not None
    assert traced.torchs is not None
    candidate = judge(traced.problem, traced.torchs)
    truth = traced.lowering.truth(0, candidate, reuse_under=math.inf)
    wrappers = traced.lowering.done[0].wrappers
    assert wrappers is not None
    return candidate, truth, wrappers


def row_of(setting: Setting, budget: float | str | None, *, kernels: bool) -> dict[str, object]:
    """What is said of one network at one budget, or as :data:`TORCH` makes it."""
    row = {**asdict(setting), "capability": ".".join(map(str, setting.capability)), "budget": budget}
    if budget == TORCH:
        candidate, truth, wrappers = lowered_by_torch(setting)
        row |= {
            "budget_bytes": None,
            "planned_bytes": candidate.replay.peak_bytes,
            "generated_bytes": truth.peak_bytes,
        }
    else:
        assert not isinstance(budget, str)
        made = lowered(setting, budget)
        wrappers = made.wrappers
        row |= {
            "budget_bytes": made.report.budget_bytes,
            "planned_bytes": made.report.planned_peak_bytes,
            "generated_bytes": made.report.generated_peak_bytes,
            "recomputed_ops": made.report.recomputed_ops,
        }
    sources = sources_of(wrappers)
    row["kernels"] = len(sources)
    if kernels:
        usages = [
            use for name, source in sources.items() for use in compiled(name, source, setting.capability)
        ]
        least = least_spills(usages).values()
        row |= {
            "binaries": len(usages),
            "most_registers": max(use.registers for use in usages),
            "most_shared_bytes": max(use.shared_bytes for use in usages),
            "spill_bytes": sum(use.spill_bytes for use in usages),
            "spilling_kernels": sum(spilled > 0 for spilled in least),
            "least_spill_bytes": sum(least),
        }
    return row


def parse_budgets(text: str) -> list[float | str | None]:
    """Budgets as the command takes them."""
    return [None if b == "none" else TORCH if b == "torch" else float(b) for b in text.split(",")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fake_cuda.lower",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--networks", default=",".join(ALL), help="comma-separated (default: all)")
    parser.add_argument(
        "--budgets",
        default="torch,none,0.5,0.0",
        help="torch (what torch.compile makes), none or fractions (default: %(default)s)",
    )
    parser.add_argument("--size", default="tiny", help="of the networks (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", help="of the weights, or bfloat16")
    parser.add_argument("--autocast", action="store_true", help="the forward under autocast to bfloat16")
    parser.add_argument("--dynamic", action="store_true", help="sizes are symbols")
    cards = ", ".join(f"{major}.{minor}" for major, minor in PRICES)
    parser.add_argument("--capability", default="9.0", help=f"{cards} (default: %(default)s)")
    parser.add_argument("--kernels", action="store_true", help="compile the kernels")
    chosen = parser.parse_args(arguments)
    major, minor = map(int, chosen.capability.split("."))
    with (
        fake_cuda((major, minor)),
        patch.object(functional, "scaled_dot_product_attention", fused_attention),
    ):
        for network in chosen.networks.split(","):
            setting = Setting(
                network, chosen.size, chosen.dtype, (major, minor), chosen.autocast, chosen.dynamic
            )
            for budget in parse_budgets(chosen.budgets):
                print(json.dumps(row_of(setting, budget, kernels=chosen.kernels)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
