"""Networks and checkpoints of libraries, where they are installed: ``pip install 'graphremat[libraries]'``."""

from typing import Any

import torch
from torch import Tensor, nn

from bench.training_scripts.parts import NEEDS, Compile, drawing, gradients, script


def _checkpointed(model: nn.Module, compile_: Compile) -> list[Tensor]:
    """A step of a language model after ``gradient_checkpointing_enable()``."""
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
    tokens = torch.randint(0, 128, (2, 16))
    loss: Any = compile_(model)(input_ids=tokens, labels=tokens).loss
    loss.backward()
    return [loss.detach(), *gradients(model)]


@script
def hugging_face_llama(compile_: Compile) -> list[Tensor]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        use_cache=False,
    )
    return _checkpointed(LlamaForCausalLM(config), compile_)


@drawing
def hugging_face_gpt2(compile_: Compile) -> list[Tensor]:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=128, n_positions=64, n_embd=64, n_layer=3, n_head=4, use_cache=False, resid_pdrop=0.2
    )
    return _checkpointed(GPT2LMHeadModel(config), compile_)


NEEDS |= dict.fromkeys(("hugging_face_llama", "hugging_face_gpt2"), "transformers")
