"""Bytes that an optimizer keeps for each trained parameter, by the optimizer's name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch

from graphremat.named import find_named

BLOCK_8BIT = 256
LEAST_8BIT = 4096
"""An 8-bit optimizer keeps one float32 scale for every ``BLOCK_8BIT`` numbers of each of its two states, and leaves
tensors with fewer than ``LEAST_8BIT`` elements in 32 bits (bitsandbytes' documented defaults)."""

FLOAT32_BYTES = 4


def bytes_of(parameter: torch.Tensor) -> int:
    """Bytes of one tensor's elements."""
    return parameter.numel() * parameter.element_size()


def _no_state(parameter: torch.Tensor) -> int:
    return 0


def _two_states(parameter: torch.Tensor) -> int:
    return 2 * bytes_of(parameter)


def _two_states_8bit(parameter: torch.Tensor) -> int:
    count = parameter.numel()
    if count < LEAST_8BIT:
        return 2 * FLOAT32_BYTES * count
    return 2 * (count + FLOAT32_BYTES * -(-count // BLOCK_8BIT))


def _two_states_float32(parameter: torch.Tensor) -> int:
    return 2 * FLOAT32_BYTES * parameter.numel()


def _with_master(parameter: torch.Tensor) -> int:
    is_narrow = parameter.element_size() < FLOAT32_BYTES
    return _two_states_float32(parameter) + FLOAT32_BYTES * parameter.numel() * is_narrow


OPTIMIZERS: Mapping[str, Callable[[torch.Tensor], int]] = MappingProxyType(
    {
        "none": _no_state,
        "sgd": _no_state,
        "sgd-momentum": bytes_of,
        "adam": _two_states,
        "adamw": _two_states,
        "adamw-8bit": _two_states_8bit,
        "adamw-fp32": _two_states_float32,
        "adamw-master": _with_master,
    }
)
"""By name. States have the parameter's dtype, as torch's own optimizers keep them, unless the name says otherwise:
``adamw-fp32`` keeps both in float32 beside narrow weights, ``adamw-master`` a float32 copy of those weights as well
(mixed precision as in Micikevicius et al. 2017, arXiv 1710.03740)."""


def state_of(optimizer: str) -> Callable[[torch.Tensor], int]:
    """Bytes of state for one parameter as a function; raises OptionError for an unknown optimizer."""
    return find_named(OPTIMIZERS, optimizer, "optimizer")
