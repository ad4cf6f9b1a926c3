"""A Llama-style decoder: RMSNorm, rotary positions, SwiGLU, flash attention, loss inside."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.networks.parts import (
    Inputs,
    join_heads,
    random_tokens,
    split_heads,
    token_loss,
)


class RMSNorm(nn.Module):
    """Scales the last axis to a mean square of one, then by a learned weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6))


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
        query = split_heads(self.query(x), self.heads)
        key, value = (split_heads(part(x), self.key_value_heads) for part in (self.key, self.value))
        query, key = _rotate(query, cosine, sine), _rotate(key, cosine, sine)
        if self.key_value_heads < self.heads:
            times = self.heads // self.key_value_heads
            key, value = key.repeat_interleave(times, dim=1), value.repeat_interleave(times, dim=1)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.output(join_heads(attended))


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
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))


class LlamaDecoder(nn.Module):
    """Token numbers ``(batch, length)`` to the mean cross entropy of the next ones."""

    def __init__(
        self,
        layers: int,
        width: int,
        heads: int,
        hidden: int,
        vocabulary: int,
        length: int,
        key_value_heads: int,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(LlamaBlock(width, heads, hidden, key_value_heads) for _ in range(layers))
        self.norm = RMSNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        half = width // heads // 2
        angles = torch.outer(torch.arange(length).float(), 10000.0 ** (-torch.arange(half) / half))
        self.register_buffer("cosine", angles.cos())
        self.register_buffer("sine", angles.sin())

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cosine, self.sine)
        return token_loss(self.head(self.norm(x)), targets)


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
