"""One thing to train, with what a contestant needs to know of it: where its blocks are."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Workload:
    """``loss(model(*inputs)).backward()`` is a step.

    Attributes:
        chains: names of lists of modules (``"blocks"``, ``"encoder.layers"``) that run one behind the other, each
            called with what the one before it returned, a tensor, and with the same further arguments: several can be
            put into one checkpoint.
        blocks: names of further blocks, that can be put into checkpoints only one by one.
        checkpoint: turns on what the library itself offers, as ``gradient_checkpointing_enable`` does; None if nothing.
        random: each step draws random numbers.
    """

    name: str
    size: str
    summary: str
    model: nn.Module
    inputs: tuple[Tensor, ...]
    loss: Callable[[Any], Tensor]
    random: bool = False
    chains: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()
    checkpoint: Callable[[nn.Module], None] | None = None

    def twin(self) -> nn.Module:
        """A copy of the model's structure with the same parameters and buffers, to be changed at will."""
        shared = [*self.model.parameters(), *self.model.buffers()]
        return copy.deepcopy(self.model, {id(tensor): tensor for tensor in shared})
