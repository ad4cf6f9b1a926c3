"""Copies of models, and threads."""

import copy
import threading

import torch
from torch import Tensor

from bench.training_scripts.parts import Compile, gradients, mlp, script, step


@script
def a_copy_and_its_state(compile_: Compile) -> list[Tensor]:
    model = mlp()
    compiled = compile_(model)
    compiled(torch.randn(8, 32)).sum().backward()
    twin = copy.deepcopy(model)
    twin.load_state_dict(
        compiled._orig_mod.state_dict() if hasattr(compiled, "_orig_mod") else model.state_dict()
    )
    return [*twin.state_dict().values(), *step(compile_, twin, torch.randn(8, 32))]


@script
def other_threads(compile_: Compile) -> list[Tensor]:
    """One after the other: tracing in one thread while another runs a backward fails in torch itself."""
    models, x = [mlp(layers=k) for k in (2, 3)], torch.randn(8, 32)
    for call in [compile_(model) for model in models]:
        run = threading.Thread(target=lambda call=call: call(x).pow(2).mean().backward())
        run.start()
        run.join()
    return [g for m in models for g in gradients(m)]
