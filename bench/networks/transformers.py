"""Transformers in five habits: post-norm, dropout everywhere, encoder-decoder, routed experts, called twice."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.networks.parts import (
    DecoderBlock,
    EncoderBlock,
    Inputs,
    join_heads,
    random_tokens,
    split_heads,
    token_loss,
)


class PostNormBlock(nn.Module):
    """Attention, then a ReLU feed-forward of four times the width, each added and then normalised."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.attention_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.feed_forward_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        attended, _ = self.attention(x, x, x, need_weights=False)
        x = self.attention_norm(x + attended)
        return self.feed_forward_norm(x + self.down(F.relu(self.up(x))))


class PostNormTransformer(nn.Module):
    """A stack of post-norm blocks over ``(batch, length, width)``; the loss is the mean square to a target."""

    def __init__(self, layers: int, width: int, heads: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(PostNormBlock(width, heads) for _ in range(layers))

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return F.mse_loss(x, target)


def post_norm(layers: int, width: int, heads: int, batch: int, length: int) -> tuple[nn.Module, Inputs]:
    model = PostNormTransformer(layers, width, heads)
    return model, (torch.randn(batch, length, width), torch.randn(batch, length, width))


class DropoutBlock(nn.Module):
    """Pre-norm GPT block; attention weights, attention output and feed-forward output are all dropped out."""

    def __init__(self, width: int, heads: int, length: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.projections = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("future", torch.ones(length, length, dtype=torch.bool).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self._attend(self.attention_norm(x)))
        return x + self.dropout(self.down(F.gelu(self.up(self.feed_forward_norm(x)))))

    def _attend(self, x: Tensor) -> Tensor:
        query, key, value = (split_heads(part, self.heads) for part in self.projections(x).chunk(3, dim=-1))
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        weights = self.dropout(scores.masked_fill(self.future, float("-inf")).softmax(-1))
        return self.output(join_heads(weights @ value))


class DropoutGPT(nn.Module):
    """Token numbers to the mean cross entropy of the next ones, with learned positions; draws masks each step."""

    def __init__(
        self, layers: int, width: int, heads: int, vocabulary: int, length: int, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(DropoutBlock(width, heads, length, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.dropout(self.embedding(tokens) + self.positions)
        for block in self.blocks:
            x = block(x)
        return token_loss(self.head(self.norm(x)), targets)


def dropout_gpt(
    layers: int, width: int, heads: int, vocabulary: int, batch: int, length: int
) -> tuple[nn.Module, Inputs]:
    model = DropoutGPT(layers, width, heads, vocabulary, length)
    return model, (random_tokens(batch, length, vocabulary), random_tokens(batch, length, vocabulary))


class EncoderDecoder(nn.Module):
    """Source tokens are encoded once; every decoder block reads that encoding, which is thus long alive."""

    def __init__(self, layers: int, width: int, heads: int, vocabulary: int, length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        self.encoder = nn.ModuleList(EncoderBlock(width, heads) for _ in range(layers))
        self.encoder_norm = nn.LayerNorm(width)
        self.decoder = nn.ModuleList(DecoderBlock(width, heads) for _ in range(layers))
        self.decoder_norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, source: Tensor, tokens: Tensor, targets: Tensor) -> Tensor:
        context = self.embedding(source) + self.positions
        for block in self.encoder:
            context = block(context)
        context = self.encoder_norm(context)
        x = self.embedding(tokens) + self.positions
        for block in self.decoder:
            x = block(x, context)
        return token_loss(self.head(self.decoder_norm(x)), targets)


def encoder_decoder(
    layers: int, width: int, heads: int, vocabulary: int, batch: int, length: int
) -> tuple[nn.Module, Inputs]:
    model = EncoderDecoder(layers, width, heads, vocabulary, length)
    return model, tuple(random_tokens(batch, length, vocabulary) for _ in range(3))


class CalledTwice(nn.Module):
    """The same stack of blocks runs twice over its own output, with a norm between: shared weights, two uses."""

    def __init__(self, layers: int, width: int, heads: int) -> None:
        super().__init__()
        self.shared = nn.Sequential(*(EncoderBlock(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, width)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        again = self.shared(self.norm(self.shared(x)))
        return F.mse_loss(self.head(self.norm(again)), target)


def called_twice(layers: int, width: int, heads: int, batch: int, length: int) -> tuple[nn.Module, Inputs]:
    return CalledTwice(layers, width, heads), (
        torch.randn(batch, length, width),
        torch.randn(batch, length, width),
    )
