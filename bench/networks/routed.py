"""A mixture of experts with top-k routing and static shapes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.networks.parts import (
    CrossAttention,
    Inputs,
    random_tokens,
    token_loss,
)


class RoutedExperts(nn.Module):
    """Each token goes to its ``chosen`` likeliest experts; an expert takes at most ``capacity`` tokens.

    All shapes are static: tokens are gathered into ``experts`` x ``capacity`` slots, and what finds its expert full
    lands in one more slot that is read as zero. The second result is the usual load-balancing loss.
    """

    def __init__(self, width: int, hidden: int, experts: int, chosen: int) -> None:
        super().__init__()
        self.experts = experts
        self.chosen = chosen
        self.router = nn.Linear(width, experts, bias=False)
        self.up = nn.Parameter(torch.randn(experts, width, hidden) * width**-0.5)
        self.down = nn.Parameter(torch.randn(experts, hidden, width) * hidden**-0.5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        tokens = x.flatten(0, 1)
        count, width = tokens.shape
        capacity = count * self.chosen * 5 // (self.experts * 4)
        probabilities = self.router(tokens).softmax(-1)
        gates, choice = probabilities.topk(self.chosen, dim=-1)
        routed = choice.flatten().unsqueeze(-1) == torch.arange(self.experts, device=x.device)
        rank = (routed.long().cumsum(0) * routed).sum(-1) - 1
        full = self.experts * capacity
        slot = torch.where(rank < capacity, choice.flatten() * capacity + rank, full)
        token = torch.arange(count, device=x.device).repeat_interleave(self.chosen)
        nobody = torch.full((full + 1,), count, device=x.device)
        taken_by = nobody.scatter(0, slot, token)[:full]
        padded = torch.cat((tokens, tokens.new_zeros(1, width)))
        hidden = F.gelu(padded[taken_by].view(self.experts, capacity, width) @ self.up)
        result = torch.cat(((hidden @ self.down).flatten(0, 1), tokens.new_zeros(1, width)))
        mixed = (result[slot].view(count, self.chosen, width) * gates.unsqueeze(-1)).sum(1)
        share = routed.view(count, self.chosen, self.experts).to(x.dtype).mean((0, 1))
        return mixed.view_as(x), self.experts * (share * probabilities.mean(0)).sum()


class ExpertsBlock(nn.Module):
    """Pre-norm causal attention, and routed experts in place of a feed-forward."""

    def __init__(self, width: int, heads: int, hidden: int, experts: int, chosen: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = CrossAttention(width, heads, causal=True)
        self.experts_norm = nn.LayerNorm(width)
        self.experts = RoutedExperts(width, hidden, experts, chosen)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.attention_norm(x)
        x = x + self.attention(normed, normed)
        mixed, balance = self.experts(self.experts_norm(x))
        return x + mixed, balance


class MixtureOfExperts(nn.Module):
    """A decoder of routed blocks; the load-balancing losses are added to the cross entropy."""

    def __init__(
        self, layers: int, width: int, heads: int, hidden: int, experts: int, chosen: int, vocabulary: int
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(
            ExpertsBlock(width, heads, hidden, experts, chosen) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.embedding(tokens)
        balances: list[Tensor] = []
        for block in self.blocks:
            x, balance = block(x)
            balances.append(balance)
        return token_loss(self.head(self.norm(x)), targets) + 0.01 * torch.stack(balances).mean()


def mixture_of_experts(
    layers: int,
    width: int,
    heads: int,
    hidden: int,
    experts: int,
    chosen: int,
    vocabulary: int,
    batch: int,
    length: int,
) -> tuple[nn.Module, Inputs]:
    model = MixtureOfExperts(layers, width, heads, hidden, experts, chosen, vocabulary)
    return model, (random_tokens(batch, length, vocabulary), random_tokens(batch, length, vocabulary))
