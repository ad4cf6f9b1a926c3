"""What several networks over tokens share."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Inputs = tuple[Tensor, ...]


def random_tokens(batch: int, length: int, vocabulary: int) -> Tensor:
    return torch.randint(vocabulary, (batch, length))


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy of logits ``(batch, length, vocabulary)`` against token numbers ``(batch, length)``."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def split_heads(x: Tensor, heads: int) -> Tensor:
    """``(batch, length, width)`` to ``(batch, heads, length, width / heads)``."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


class CrossAttention(nn.Module):
    """Attention of ``x`` over ``context``; of ``x`` over its own past when the two are the same and ``causal``."""

    def __init__(self, width: int, heads: int, *, causal: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        query = split_heads(self.query(x), self.heads)
        key, value = (split_heads(part, self.heads) for part in self.key_value(context).chunk(2, dim=-1))
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return self.output(join_heads(attended))


def _feed_forward(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
    )


class EncoderBlock(nn.Module):
    """Pre-norm self-attention without a mask, and a GELU feed-forward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = CrossAttention(width, heads)
        self.feed_forward = _feed_forward(width)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        x = x + self.attention(normed, normed)
        return x + self.feed_forward(x)


class DecoderBlock(nn.Module):
    """Pre-norm causal self-attention, attention over the encoder's output, and a GELU feed-forward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.own_norm = nn.LayerNorm(width)
        self.own = CrossAttention(width, heads, causal=True)
        self.cross_norm = nn.LayerNorm(width)
        self.cross = CrossAttention(width, heads)
        self.feed_forward = _feed_forward(width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        normed = self.own_norm(x)
        x = x + self.own(normed, normed)
        x = x + self.cross(self.cross_norm(x), context)
        return x + self.feed_forward(x)
