"""A Llama-style decoder in sizes for tests and benchmarks; the network is :mod:`graphremat.llama`'s."""

from torch import nn

from bench.networks.parts import Inputs, random_tokens
from graphremat.llama import LlamaDecoder


def llama(
    layers: int,
    width: int,
    heads: int,
    hidden: int,
    vocabulary: int,
    batch: int,
    length: int,
    key_value_heads: int | None = None,
) -> tuple[nn.Module, Inputs]:
    """A decoder and its tokens; keys and values have as many heads as queries where nothing is said."""
    model = LlamaDecoder(layers, width, heads, hidden, vocabulary, length, key_value_heads or heads)
    return model, (random_tokens(batch, length, vocabulary), random_tokens(batch, length, vocabulary))
