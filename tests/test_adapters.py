"""Adapters, dtypes and quantised bases: against arithmetic, and against the network that they stand for."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn

from graphremat.adapters import LoraLinear, add_lora, quantised_bytes
from graphremat.errors import OptionError
from graphremat.passes.torch_private import FakeTensorMode
from graphremat.subject import make_subject


class Tied(nn.Module):
    """An embedding whose weight is that of the last layer, and a layer between them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(32, 16)
        self.middle = nn.Linear(16, 16)
        self.head = nn.Linear(16, 32, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.middle(self.embedding(tokens)) * self.scale).sum()


def test_an_adapter_is_a_change_of_the_weight_of_low_rank() -> None:
    plain = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 6))
    weights = [(layer.weight.clone(), layer.bias.clone()) for layer in (plain[0], plain[2])]
    x = torch.randn(5, 12)
    before = plain(x)
    adapted = add_lora(plain, 3)
    assert torch.equal(adapted(x), before)
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained == {"0.down", "0.up", "2.down", "2.up"}
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == 3 * (12 + 8) + 3 * (8 + 6)
    for layer in (adapted[0], adapted[2]):
        assert isinstance(layer, LoraLinear)
        nn.init.normal_(layer.up)
    (first, first_bias), (last, last_bias) = weights
    first = first + adapted[0].up @ adapted[0].down  # type: ignore[operator]
    last = last + adapted[2].up @ adapted[2].down  # type: ignore[operator]
    expected = torch.tanh(x @ first.T + first_bias) @ last.T + last_bias
    torch.testing.assert_close(adapted(x), expected)


def test_the_layer_of_the_logits_gets_no_adapter_and_is_not_quantised() -> None:
    model = add_lora(Tied(), 2)
    assert isinstance(model.middle, LoraLinear)
    assert type(model.head) is nn.Linear
    # 256 numbers of 4 bytes become 4.127 bits each; that one weight is also the largest to be made again
    assert quantised_bytes(model, "nf4") == (256 * 4 - 133, 256 * 4)
    assert quantised_bytes(model, "int8") == (256 * 3, 256 * 4)


@pytest.mark.parametrize(
    "convert", [nn.Module.bfloat16, partial(nn.Module.to, device="cpu", dtype=torch.bfloat16)]
)
@pytest.mark.parametrize("fake", [False, True])
def test_a_factory_may_change_the_dtype_and_ties_stay(
    fake: bool, convert: Callable[[nn.Module], nn.Module]
) -> None:
    def make() -> nn.Module:
        return convert(Tied().requires_grad_(False)).float()

    with FakeTensorMode() if fake else nullcontext():
        subject = make_subject(make, dtype="bf16")
    model = subject.model
    assert isinstance(model, Tied)
    assert model.head.weight is model.embedding.weight
    assert isinstance(model.head.weight, nn.Parameter)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any(p.requires_grad for p in model.parameters())
    assert model.scale.dtype == torch.bfloat16
    assert model.count.dtype == torch.int64
    assert nn.Module._apply.__module__ == "torch.nn.modules.module"


def test_another_dtype_rounds_as_torch_does() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    expected = {k: v.to(torch.float16) if v.is_floating_point() else v for k, v in model.state_dict().items()}
    found = make_subject(lambda: (model, torch.zeros(2, 4)), dtype="fp16").model
    torch.testing.assert_close(found.state_dict(), expected)


def test_a_subject_counts_what_is_there() -> None:
    subject = make_subject(
        lambda: (Tied(), torch.zeros(3, dtype=torch.int64)), dtype="fp16", lora=2, base="int8"
    )
    numbers = 32 * 16 + 16 * 16 + 16
    assert subject.parameter_bytes == 2 * (numbers + 2 * (16 + 16)) - 256 * 2 + 256 + 256 * 2
    assert [p.numel() for p in subject.trained] == [32, 32]
    with_floats = make_subject(lambda: (nn.Linear(2, 2), {"input": torch.ones(2)}), dtype="bf16")
    assert with_floats.keywords["input"].dtype == torch.bfloat16


def test_mistakes_are_named() -> None:
    with pytest.raises(OptionError, match="did you mean 'bf16'"):
        make_subject(Tied, dtype="bf61")
    with pytest.raises(OptionError, match="at least 1"):
        add_lora(Tied(), 0)
    with pytest.raises(OptionError, match="Tanh holds no linear layer"):
        add_lora(nn.Tanh(), 4)
    with pytest.raises(OptionError, match="no linear layer is frozen"):
        quantised_bytes(Tied(), "nf4")
    with pytest.raises(OptionError, match="unknown base 'nf'"):
        quantised_bytes(Tied(), "nf")
    with pytest.raises(OptionError, match="dtype and lora would change the module"):
        make_subject(Tied(), dtype="bf16", lora=4)
