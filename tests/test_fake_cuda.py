"""Networks lowered for a card that is not there: budgets in the bytes of the CUDA code, and kernels that compile."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++"),
    pytest.mark.skipif(torch.version.cuda is not None, reason="needs a torch without CUDA"),
]


def lowered(*arguments: str) -> list[dict[str, object]]:
    command = [sys.executable, "-m", "tests.fake_cuda.lower", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("network", ["llama", "dropout_gpt", "resnet", "mixture_of_experts"])
def test_the_budget_is_kept_by_the_code_for_a_card(network: str) -> None:
    free, tight = lowered("--networks", network, "--budgets", "none,0.0")
    assert free["budget_bytes"] is None
    for row in (free, tight):
        assert row["kernels"] > 0  # type: ignore[operator]
        assert row["generated_bytes"] <= 1.05 * row["planned_bytes"]  # type: ignore[operator]
    # With no budget there is no fence, and Inductor may run early what frees bytes: then the code takes less.
    assert tight["generated_bytes"] == pytest.approx(tight["planned_bytes"], rel=0.05)
    assert tight["generated_bytes"] <= tight["budget_bytes"] < free["generated_bytes"]  # type: ignore[operator]
    assert tight["recomputed_ops"] > 0  # type: ignore[operator]


@pytest.mark.parametrize(("capability", "dtype"), [("8.0", "float32"), ("9.0", "bfloat16")])
def test_every_kernel_is_compiled_to_a_binary(capability: str, dtype: str) -> None:
    arguments = ("--networks", "llama", "--size", "one_block", "--budgets", "0.0", "--kernels")
    (row,) = lowered(*arguments, "--capability", capability, "--dtype", dtype)
    assert (row["capability"], row["dtype"]) == (capability, dtype)
    assert row["binaries"] >= row["kernels"] > 0  # type: ignore[operator]
    assert 0 < row["most_registers"] <= 255  # type: ignore[operator]
