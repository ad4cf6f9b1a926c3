"""``python -m tests.fake_cuda.lower``: lower networks for a card that is not there, and say what came of it.

    python -m tests.fake_cuda.lower --networks llama,dropout_gpt --budgets none,0.5,0.0 --capability 9.0 --kernels

One JSON line for each network and budget: the bytes that are planned and those of the generated code (blocks of 512, as
CUDA's allocator has them), the budget, and how many kernels there are; with ``--kernels`` these are compiled, and the
line has the most registers, the most shared memory and all that spills.
"""

from tests.fake_cuda import shim

shim.load()

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

import graphremat
from bench.networks import NETWORKS
from bench.uncompiled import uncompiled
from graphremat.backend import graphremat as backend
from tests.fake_cuda.device import fake_cuda
from tests.fake_cuda.kernels import compiled, sources_of

ATTENTION = functional.scaled_dot_product_attention
PRICES = {(8, 0): "A100-80GB", (8, 9): "L4", (9, 0): "H100"}


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


def report_of(network: str, size: str, dtype: str, options: dict[str, object]) -> graphremat.Report:
    """Plan and lower the step of a network on fake tensors; nothing is compiled."""
    torch.compiler.reset()
    with FakeTensorMode(allow_non_fake_inputs=True):
        torch.set_default_dtype(getattr(torch, dtype))  # fake parameters cannot be moved or cast
        try:
            with torch.device("cuda:0"):
                case = NETWORKS[network].build(size)
        finally:
            torch.set_default_dtype(torch.float32)
        call: Callable[..., object] = torch.compile(
            case.model, backend=backend, fullgraph=True, options={"on_failure": "error", **options}
        )
        with uncompiled():
            call(*case.inputs)
    return graphremat.last_report()


def row_of(
    network: str, size: str, dtype: str, budget: float | None, capability: tuple[int, int], *, kernels: bool
) -> dict[str, object]:
    """What is said of one network at one budget."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"memory_budget": budget, "device_costs": PRICES[capability], "dump_dir": folder}
        report = report_of(network, size, dtype, options)
        assert report.dump_dir is not None
        wrappers = [path.read_text() for path in sorted(Path(report.dump_dir).glob("6*-code.py"))]
    sources = sources_of(wrappers)
    row: dict[str, object] = {
        "network": network,
        "size": size,
        "dtype": dtype,
        "budget": budget,
        "capability": ".".join(map(str, capability)),
        "budget_bytes": report.budget_bytes,
        "planned_bytes": report.planned_peak_bytes,
        "generated_bytes": report.generated_peak_bytes,
        "recomputed_ops": report.recomputed_ops,
        "kernels": len(sources),
    }
    if kernels:
        usages = [use for name, source in sources.items() for use in compiled(name, source, capability)]
        row |= {
            "binaries": len(usages),
            "most_registers": max(use.registers for use in usages),
            "most_shared_bytes": max(use.shared_bytes for use in usages),
            "spill_bytes": sum(use.spill_bytes for use in usages),
        }
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fake_cuda.lower",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--networks", default=",".join(NETWORKS), help="comma-separated (default: all)")
    parser.add_argument("--budgets", default="none,0.5,0.0", help="none or fractions (default: %(default)s)")
    parser.add_argument("--size", default="tiny", help="of the networks (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", help="or bfloat16")
    parser.add_argument("--capability", default="9.0", help="8.0, 8.9 or 9.0 (default: %(default)s)")
    parser.add_argument("--kernels", action="store_true", help="compile the kernels")
    chosen = parser.parse_args(arguments)
    major, minor = map(int, chosen.capability.split("."))
    with (
        fake_cuda((major, minor)),
        patch.object(functional, "scaled_dot_product_attention", fused_attention),
    ):
        for network in chosen.networks.split(","):
            for text in chosen.budgets.split(","):
                budget = None if text == "none" else float(text)
                row = row_of(
                    network, chosen.size, chosen.dtype, budget, (major, minor), kernels=chosen.kernels
                )
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    sys.exit(main())
