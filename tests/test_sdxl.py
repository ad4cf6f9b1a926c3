"""SDXL's U-Net is the published one, and what it is called with fits it."""

import importlib.util
import sys

import pytest
import torch
from torch import nn

from bench.sdxl import training, unet
from graphremat.models import find_model
from graphremat.passes.torch_private import FakeTensorMode

PUBLISHED_PARAMETERS = 2_567_463_684
"""Of stabilityai/stable-diffusion-xl-base-1.0's unet."""


@pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="diffusers is not installed")
def test_the_network_is_the_published_one_and_gives_a_loss_of_its_inputs() -> None:
    with FakeTensorMode():
        model, inputs = find_model("bench.sdxl:training", batch=2, sequence=32)()
        assert isinstance(model, nn.Module)
        assert sum(p.numel() for p in model.parameters()) == PUBLISHED_PARAMETERS
        assert inputs[0].shape == (2, 4, 32, 32)
        loss = model(*inputs)
    assert loss.shape == ()
    assert loss.dtype is torch.float32


@pytest.mark.parametrize("make", [unet, training])
def test_what_is_needed_is_said(monkeypatch: pytest.MonkeyPatch, make: object) -> None:
    assert callable(make)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"needs diffusers, .*'graphremat\[contest\]'"):
        make()
