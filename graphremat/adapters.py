"""What is done to a network before its step is planned: its dtype, low-rank adapters, and a quantised base.

All of it works on tensors without data, and changes the module that it is given.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphremat.errors import OptionError
from graphremat.named import find_named

DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {
        "fp32": torch.float32,
        "bf16": torch.bfloat16,
        "fp16": torch.float16,
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
    }
)
"""Dtypes of weights by name."""

BASE_BITS: Mapping[str, float] = MappingProxyType({"nf4": 4.127, "int8": 8.0})
"""Bits for one number of a quantised frozen weight. nf4: 4, and 0.127 of doubly quantised constants (Dettmers et al.
2023, arXiv 2305.14314, section 3); int8: a scale a row is left out (Dettmers et al. 2022, arXiv 2208.07339)."""


class LoraLinear(nn.Module):
    """A frozen linear layer, and beside it the product of two narrow ones (Hu et al. 2021, arXiv 2106.09685)."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        weight = base.weight
        self.down = nn.Parameter(weight.new_empty(rank, base.in_features))
        self.up = nn.Parameter(weight.new_zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + F.linear(F.linear(x, self.down), self.up)  # type: ignore[no-any-return]


def add_lora(model: nn.Module, rank: int) -> nn.Module:
    """Freeze a model and put adapters, in the dtype of the weights, on its linear layers.

    All of them get one but the layer that gives logits, if the model has Hugging Face's ``get_output_embeddings`` to
    name it; that is what ``target_modules="all-linear"`` means in PEFT. A model that is nothing but one linear layer
    cannot be changed in place, so the result counts.

    Raises:
        OptionError: the rank is below 1, or there is no linear layer to put an adapter on.
    """
    if rank < 1:
        raise OptionError(f"lora={rank}: the rank of an adapter is at least 1")
    find_last = getattr(model, "get_output_embeddings", None)
    last = find_last() if callable(find_last) else None
    model.requires_grad_(False)
    adapted: dict[int, LoraLinear] = {}
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear and layer is not last:
                setattr(parent, name, adapted.setdefault(id(layer), LoraLinear(layer, rank)))
    if not adapted:
        raise OptionError(f"lora={rank}: {type(model).__name__} holds no linear layer to put an adapter on")
    return model


def find_dtype(name: str) -> torch.dtype:
    """The dtype of a name in ``DTYPES``; raises OptionError."""
    return find_named(DTYPES, name, "dtype")


def quantised_bytes(model: nn.Module, base: str) -> tuple[int, int]:
    """What a quantised base saves, and what it takes besides, in bytes.

    The weights of frozen linear layers, but not of the one that gives logits, are held in ``BASE_BITS``; each is made
    again in its own dtype for every product with it, so the largest of them is alive at some time.

    Raises:
        OptionError: no such way to quantise, or nothing to quantise.
    """
    bits = find_named(BASE_BITS, base, "base")
    find_last = getattr(model, "get_output_embeddings", None)
    last = find_last() if callable(find_last) else None
    weights = {
        id(layer.weight): layer.weight
        for layer in model.modules()
        if isinstance(layer, nn.Linear) and layer is not last and not layer.weight.requires_grad
    }
    if not weights:
        raise OptionError(f"base={base!r}: no linear layer is frozen; say lora=16, for example")
    whole = [w.numel() * w.element_size() for w in weights.values()]
    packed = math.ceil(sum(w.numel() for w in weights.values()) * bits / 8)
    return sum(whole) - packed, max(whole)
