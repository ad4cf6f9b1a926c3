"""A model by its name: a function in a module or a file, a built-in, or a configuration of Hugging Face."""

import inspect
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from graphremat.errors import OptionError
from graphremat.factories import load_factory
from graphremat.llama import LLAMAS, llama
from graphremat.named import find_named

SEQUENCE = 2048
"""Tokens of an example where nothing is said, or as many as a configuration allows."""


def find_model(name: str, *, batch: int | None = None, sequence: int | None = None) -> Callable[..., Any]:
    """A function that makes the model and its inputs, of a batch if it is called with one.

    Args:
        name: ``MODULE:FACTORY``, ``FILE.py:FACTORY``, a name in :data:`graphremat.llama.LLAMAS`, or a folder with a
            ``config.json`` of Hugging Face, or that file (needs ``transformers``, the extra ``libraries``). No weights
            are read.
        batch: examples; handed to a factory as its first argument.
        sequence: tokens of an example; handed to a factory as the keyword ``sequence``.

    Raises:
        OptionError: there is no such model, it takes no batch or sequence, or ``transformers`` is missing.
    """
    sizes = {"batch": batch, "sequence": sequence}
    for option, value in sizes.items():
        if value is not None and value < 1:
            raise OptionError(f"{option}={value}: it is at least 1")
    path = Path(name)
    if path.name == "config.json" or (path.is_dir() and (path / "config.json").is_file()):
        return _from_config(path if path.is_file() else path / "config.json", batch or 1, sequence)
    if ":" in name:
        return _sized(load_factory(name), name, batch, sequence)
    if path.suffix or path.is_dir():
        raise OptionError(f"{name!r}: write FILE.py:FACTORY, or give a folder that holds a config.json")
    find_named(LLAMAS, name, "model")

    def make(batch: int = batch or 1) -> Any:
        return llama(name, batch, sequence or SEQUENCE)

    return make


def _sized(
    factory: Callable[..., Any], name: str, batch: int | None, sequence: int | None
) -> Callable[..., Any]:
    """The factory with a sequence, and with a batch unless it is called with another."""
    try:
        parameters = inspect.signature(factory).parameters
    except ValueError:  # a callable of C that tells nothing
        return factory
    if sequence is not None:
        if "sequence" not in parameters:
            raise OptionError(
                f"{name} takes no sequence: its parameters are {', '.join(parameters) or 'none'}"
            )
        factory = partial(factory, sequence=sequence)
    if batch is None:
        return factory
    if not parameters or next(iter(parameters)) == "sequence":
        raise OptionError(f"{name} takes no batch: its parameters are {', '.join(parameters) or 'none'}")

    def make(batch: int = batch) -> Any:
        return factory(batch)

    return make


def _from_config(path: Path, batch: int, sequence: int | None) -> Callable[..., Any]:
    """A causal language model of Hugging Face with its loss inside, made from its configuration alone."""
    try:
        import transformers
    except ImportError as error:
        raise OptionError(
            f"{path} is a configuration of Hugging Face, which needs transformers: pip install 'graphremat[libraries]'"
        ) from error
    try:
        kind = json.loads(path.read_text(encoding="utf-8")).get("model_type")
        config = transformers.AutoConfig.from_pretrained(str(path.parent))
        most = getattr(config, "max_position_embeddings", None) or SEQUENCE
        vocabulary = config.vocab_size
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise OptionError(f"{path} is no configuration of a language model: {error}") from error
    if type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise OptionError(f"{path}: transformers knows no causal language model of type {kind!r}")
    length = min(SEQUENCE, most) if sequence is None else sequence
    config.use_cache = False

    def make(batch: int = batch) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        tokens, targets = (torch.randint(vocabulary, (batch, length)) for _ in range(2))
        return _WithLoss(model.train()), (tokens, targets)

    return make


class _WithLoss(nn.Module):
    """Tokens and targets to the mean cross entropy in float32, as the library's own loss has it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def get_output_embeddings(self) -> nn.Module:
        """The layer that gives logits."""
        return self.model.get_output_embeddings()  # type: ignore[operator, no-any-return]

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = self.model(input_ids=tokens).logits.float()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
