"""A small byte-level language model and its text: what the demo trains, and on what.

The text is what every machine with Python has: the source files of the standard library.
"""

import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graphremat.errors import GraphrematError

SEED = 20
CORPUS_BYTES = 4_000_000


@dataclass(frozen=True)
class Size:
    """How large the model and its batches are, and for how many steps it is trained."""

    blocks: int = 4
    width: int = 128
    heads: int = 4
    batch: int = 16
    length: int = 128
    steps: int = 120


class Block(nn.Module):
    """Causal attention and a feed-forward of four times the width, each normalised first and added: [b, t, d]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.feed_norm = nn.LayerNorm(width)
        self.feed_in = nn.Linear(width, 4 * width, bias=False)
        self.feed_out = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.query_key_value(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        attention = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.attention_out(attention.transpose(1, 2).flatten(2))
        feed: Tensor = self.feed_out(F.gelu(self.feed_in(self.feed_norm(x)), approximate="tanh"))
        return x + feed


class ByteModel(nn.Module):
    """A decoder over bytes. It takes tokens [batch, length + 1] and gives the mean loss of the next byte."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.bytes = nn.Embedding(256, size.width)
        self.places = nn.Parameter(0.02 * torch.randn(size.length, size.width))
        self.blocks = nn.Sequential(*(Block(size.width, size.heads) for _ in range(size.blocks)))
        self.norm = nn.LayerNorm(size.width)
        self.head = nn.Linear(size.width, 256, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.blocks(self.bytes(tokens[:, :-1]) + self.places)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), tokens[:, 1:].flatten())


def corpus(limit_bytes: int = CORPUS_BYTES) -> Tensor:
    """The first bytes of the standard library's modules, in order of their names: uint8 [at most limit_bytes].

    Raises:
        GraphrematError: this Python comes without its sources.
    """
    text = bytearray()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text += path.read_bytes()
        if len(text) >= limit_bytes:
            break
    if not text:
        raise GraphrematError(
            "this Python comes without the sources of its standard library: nothing to train on"
        )
    return torch.frombuffer(text[:limit_bytes], dtype=torch.uint8)


def batches(text: Tensor, size: Size) -> tuple[Tensor, ...]:
    """Windows of the text at seeded random places: for each step int64 [batch, length + 1], in a storage of its own."""
    generator = torch.Generator().manual_seed(SEED)
    window = size.length + 1
    starts = torch.randint(len(text) - window, (size.steps, size.batch, 1), generator=generator)
    return tuple(text[start + torch.arange(window)].long() for start in starts)


def new_model(size: Size) -> ByteModel:
    """The model as it is before the first step, the same every time."""
    torch.manual_seed(SEED)
    return ByteModel(size)
