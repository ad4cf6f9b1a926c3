"""A Llama-style decoder in plain torch, and the sizes of published ones, to plan a step with.

RMSNorm in float32, rotary positions, grouped-query attention through ``scaled_dot_product_attention``, SwiGLU, and the
mean cross entropy of the next token inside. The sizes are those of the public model configurations (``config.json`` of
each repository named in ``LLAMAS``); ``tests/test_models.py`` holds the counts of parameters against published ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class LlamaSize:
    """What a configuration says: counts, and the base of the rotary angles; ``source`` is where it is published."""

    layers: int
    width: int
    heads: int
    key_value_heads: int
    hidden: int
    vocabulary: int
    rotary_base: float
    source: str


LLAMAS: Mapping[str, LlamaSize] = MappingProxyType(
    {
        "llama-tiny": LlamaSize(4, 64, 4, 2, 192, 256, 10000.0, "none: for trying things out"),
        "llama-2-7b": LlamaSize(32, 4096, 32, 32, 11008, 32000, 10000.0, "meta-llama/Llama-2-7b-hf"),
        "llama-2-13b": LlamaSize(40, 5120, 40, 40, 13824, 32000, 10000.0, "meta-llama/Llama-2-13b-hf"),
        "llama-3-8b": LlamaSize(32, 4096, 32, 8, 14336, 128256, 500000.0, "meta-llama/Meta-Llama-3-8B"),
        "llama-3-70b": LlamaSize(80, 8192, 64, 8, 28672, 128256, 500000.0, "meta-llama/Meta-Llama-3-70B"),
    }
)
"""Sizes by name."""


class RMSNorm(nn.Module):
    """Scales the last axis to a mean square of one, in float32, then by a learned weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)
        return self.weight * normed.to(x.dtype)


class RotaryAttention(nn.Module):
    """Causal self-attention whose queries and keys are rotated by their position.

    With fewer ``key_value_heads`` than ``heads``, each key and value serves ``heads / key_value_heads`` queries.
    """

    def __init__(self, width: int, heads: int, key_value_heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.key_value_heads = key_value_heads
        key_value_width = width // heads * key_value_heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, key_value_width, bias=False)
        self.value = nn.Linear(width, key_value_width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        query = _split_heads(self.query(x), self.heads)
        key, value = (_split_heads(part(x), self.key_value_heads) for part in (self.key, self.value))
        query, key = _rotate(query, cosine, sine), _rotate(key, cosine, sine)
        if self.key_value_heads < self.heads:
            times = self.heads // self.key_value_heads
            key, value = key.repeat_interleave(times, dim=1), value.repeat_interleave(times, dim=1)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.output(attended.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """``(batch, length, width)`` to ``(batch, heads, length, width / heads)``."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # type: ignore[no-any-return]


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotates the pairs (first half, second half) of the last axis by the angles of ``(length, half)``."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


class LlamaBlock(nn.Module):
    """Pre-norm rotary attention and a SwiGLU feed-forward."""

    def __init__(self, width: int, heads: int, hidden: int, key_value_heads: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(width)
        self.attention = RotaryAttention(width, heads, key_value_heads)
        self.feed_forward_norm = RMSNorm(width)
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cosine, sine)
        normed = self.feed_forward_norm(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))  # type: ignore[no-any-return]


class LlamaDecoder(nn.Module):
    """Token numbers ``(batch, length)`` to the mean cross entropy, in float32, of the next ones."""

    def __init__(
        self,
        layers: int,
        width: int,
        heads: int,
        hidden: int,
        vocabulary: int,
        length: int,
        key_value_heads: int,
        rotary_base: float = 10000.0,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(LlamaBlock(width, heads, hidden, key_value_heads) for _ in range(layers))
        self.norm = RMSNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        half = width // heads // 2
        angles = torch.outer(torch.arange(length).float(), rotary_base ** (-torch.arange(half) / half))
        self.register_buffer("cosine", angles.cos())
        self.register_buffer("sine", angles.sin())

    def get_output_embeddings(self) -> nn.Module:
        """The layer that gives logits, by the name that Hugging Face's models have for it."""
        return self.head

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cosine, self.sine)
        logits = self.head(self.norm(x)).float()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def llama(name: str, batch: int = 1, sequence: int = 2048) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """The decoder of that name in ``LLAMAS``, and tokens and targets of ``(batch, sequence)``."""
    size = LLAMAS[name]
    model = LlamaDecoder(
        size.layers, size.width, size.heads, size.hidden, size.vocabulary, sequence, size.key_value_heads,
        size.rotary_base,
    )  # fmt: skip
    tokens, targets = (torch.randint(size.vocabulary, (batch, sequence)) for _ in range(2))
    return model, (tokens, targets)
