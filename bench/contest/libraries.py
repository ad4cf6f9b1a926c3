"""Networks as libraries make them, with random weights of their own configurations; nothing is downloaded.

``LIBRARIES["gpt2"]("tiny")`` gives a :class:`Workload`. The libraries are those of the extra ``contest``, and each is
imported only when a workload of it is made. Sizes:

* ``tiny``: a step well below half a second, most of them two blocks: for tests.
* ``large``: an eager step of 0.5 to 5 seconds on two cores, with activations that outweigh the gradients.

Two things differ between a compiled step and an eager one, whatever the backend:

* Hugging Face's decoders hand ``is_causal`` to the attention in eager mode. While torch before 2.14 traces them, they
  make a mask and hand that over.
* Their mixture of experts calls ``grouped_mm`` in eager mode. Compiled in another precision than bfloat16 it calls an
  operator of the library, ``transformers::grouped_mm_fallback``.
"""

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.contest.workload import Workload


@dataclass(frozen=True)
class Made:
    """What a library made. The names are those of :class:`Workload`."""

    model: nn.Module
    inputs: tuple[Tensor, ...]
    chains: tuple[str, ...] = ()
    blocks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Library:
    """A network of a library: ``make(**sizes[size])`` makes it, and ``checkpoint`` turns on the library's own."""

    name: str
    summary: str
    make: Callable[..., Made]
    checkpoint: Callable[[nn.Module], None]
    sizes: Mapping[str, Mapping[str, int]]
    random: bool = False

    def __call__(self, size: str) -> Workload:
        """The workload of this size, the same every time; the global random state is left as it was.

        Raises:
            ValueError: a size that this network does not have.
            ImportError: the library is not installed.
        """
        if size not in self.sizes:
            raise ValueError(f"{self.name} has no size {size!r}; it has {', '.join(self.sizes)}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = self.make(**self.sizes[size])
        return Workload(
            self.name,
            size,
            self.summary,
            made.model.train(),
            made.inputs,
            loss=_the_output,
            random=self.random,
            chains=made.chains,
            blocks=made.blocks,
            checkpoint=self.checkpoint,
        )


class LanguageLoss(nn.Module):
    """A language model of Hugging Face; its own loss of tokens and labels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = self.model(input_ids=tokens, labels=labels).loss
        return loss


class ImageLoss(nn.Module):
    """A classifier of images, and the cross entropy against their classes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, classes: Tensor) -> Tensor:
        return F.cross_entropy(self.model(images), classes)


class NoiseLoss(nn.Module):
    """A U-Net that is to tell the noise in images, at some time and for some text, and its mean squared error."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, noised: Tensor, times: Tensor, text: Tensor, noise: Tensor) -> Tensor:
        return F.mse_loss(self.model(noised, times, encoder_hidden_states=text).sample, noise)


def _the_output(output: Tensor) -> Tensor:
    return output


@cache
def _declare_missing_kernels() -> None:
    """Make torchvision importable where torch has no CUDA. timm needs it, the others import it where it is installed.

    The wheels of torchvision on PyPI are linked to a torch with CUDA. Beside one without, their kernels cannot be
    loaded, and the import fails where it describes two operators that are then not there. No network here calls them,
    so they are declared, without kernels.
    """
    if torch.version.cuda is not None or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        for name in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
        importlib.import_module("torchvision")


def import_library(name: str) -> Any:
    _declare_missing_kernels()
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"this workload needs {name}, which cannot be imported ({error}): pip install 'graphremat[contest]'",
            name=name,
        ) from error


def _tokens(batch: int, length: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Tokens twice: a library moves the labels itself, and inputs are not shared."""
    tokens = torch.randint(vocabulary, (batch, length))
    return tokens, tokens.clone()


def _gpt2(layers: int, width: int, heads: int, vocabulary: int, batch: int, length: int) -> Made:
    transformers = import_library("transformers")
    config = transformers.GPT2Config(
        vocab_size=vocabulary,
        n_positions=length,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
        attn_implementation="sdpa",
    )
    gpt2 = transformers.GPT2LMHeadModel(config)
    gpt2.loss_type = "ForCausalLM"  # what it falls back to, but with a warning that cannot be traced
    return Made(LanguageLoss(gpt2), _tokens(batch, length, vocabulary), chains=("model.transformer.h",))


def _bert(layers: int, width: int, heads: int, vocabulary: int, batch: int, length: int) -> Made:
    transformers = import_library("transformers")
    config = transformers.BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=length,
        use_cache=False,
        attn_implementation="sdpa",
    )
    tokens, labels = _tokens(batch, length, vocabulary)
    masked = torch.rand(batch, length) < 0.15
    model = LanguageLoss(transformers.BertForMaskedLM(config))
    inputs = (tokens.masked_fill(masked, 1), labels.masked_fill(~masked, -100))
    return Made(model, inputs, chains=("model.bert.encoder.layer",))


def _t5(layers: int, width: int, heads: int, vocabulary: int, batch: int, length: int) -> Made:
    transformers = import_library("transformers")
    config = transformers.T5Config(
        vocab_size=vocabulary,
        d_model=width,
        d_kv=width // heads,
        d_ff=4 * width,
        num_layers=layers,
        num_heads=heads,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = LanguageLoss(transformers.T5ForConditionalGeneration(config))
    inputs = (torch.randint(vocabulary, (batch, length)), torch.randint(vocabulary, (batch, length)))
    # no chains: the first block of a side makes the position bias that the others are called with
    blocks = tuple(f"model.{side}.block.{n}" for side in ("encoder", "decoder") for n in range(layers))
    return Made(model, inputs, blocks=blocks)


def _decoder_config(
    layers: int, width: int, heads: int, hidden: int, vocabulary: int, length: int
) -> dict[str, Any]:
    """What Llama, Mistral and Mixtral have in common; half as many heads for keys and values."""
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "max_position_embeddings": length,
        "attention_dropout": 0.0,
        "use_cache": False,
        "attn_implementation": "sdpa",
    }


def _llama(
    layers: int, width: int, heads: int, hidden: int, vocabulary: int, batch: int, length: int
) -> Made:
    transformers = import_library("transformers")
    config = transformers.LlamaConfig(**_decoder_config(layers, width, heads, hidden, vocabulary, length))
    model = LanguageLoss(transformers.LlamaForCausalLM(config))
    return Made(model, _tokens(batch, length, vocabulary), chains=("model.model.layers",))


def _mistral(
    layers: int, width: int, heads: int, hidden: int, vocabulary: int, batch: int, length: int
) -> Made:
    transformers = import_library("transformers")
    config = transformers.MistralConfig(
        **_decoder_config(layers, width, heads, hidden, vocabulary, length), sliding_window=length // 2
    )
    model = LanguageLoss(transformers.MistralForCausalLM(config))
    return Made(model, _tokens(batch, length, vocabulary), chains=("model.model.layers",))


def _mixtral(
    layers: int, width: int, heads: int, hidden: int, vocabulary: int, batch: int, length: int
) -> Made:
    transformers = import_library("transformers")
    config = transformers.MixtralConfig(
        **_decoder_config(layers, width, heads, hidden, vocabulary, length),
        num_local_experts=4,
        num_experts_per_tok=2,
        # the default's shapes depend on data, and "batched_mm" copies an expert's weights for every token
        experts_implementation="grouped_mm",
    )
    model = LanguageLoss(transformers.MixtralForCausalLM(config))
    return Made(model, _tokens(batch, length, vocabulary), chains=("model.model.layers",))


def _lora_llama(
    layers: int, width: int, heads: int, hidden: int, vocabulary: int, batch: int, length: int
) -> Made:
    peft = import_library("peft")
    base = _llama(layers, width, heads, hidden, vocabulary, batch, length)
    config = peft.LoraConfig(
        r=16,
        lora_alpha=32,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        init_lora_weights=False,  # the default's zeros make half of the gradients zero in the first step
    )
    model = LanguageLoss(peft.get_peft_model(base.model.model, config))
    return Made(model, base.inputs, chains=("model.base_model.model.model.layers",))


def _resnet50(most: int, channels: int, classes: int, batch: int, side: int) -> Made:
    """A ResNet-50 with at most so many blocks a stage, and with so many channels in its first."""
    layers = tuple(min(count, most) for count in (3, 4, 6, 3))
    widths = tuple(channels * factor for factor in (1, 2, 4, 8))
    resnet = import_library("timm").create_model(
        "resnet50",
        layers=layers,
        channels=widths,
        num_classes=classes,
        zero_init_last=False,  # else most of the gradients are zero in the first step
    )
    model = ImageLoss(resnet)
    inputs = (torch.randn(batch, 3, side, side), torch.randint(classes, (batch,)))
    return Made(model, inputs, chains=tuple(f"model.layer{n}" for n in (1, 2, 3, 4)))


def _vit(layers: int, width: int, heads: int, classes: int, batch: int, side: int) -> Made:
    vit = import_library("timm").create_model(
        "vit_small_patch16_224",
        img_size=side,
        depth=layers,
        embed_dim=width,
        num_heads=heads,
        num_classes=classes,
    )
    model = ImageLoss(vit)
    inputs = (torch.randn(batch, 3, side, side), torch.randint(classes, (batch,)))
    return Made(model, inputs, chains=("model.blocks",))


def _diffusion_unet(layers: int, channels: int, text_width: int, batch: int, side: int) -> Made:
    diffusers = import_library("diffusers")
    unet = diffusers.UNet2DConditionModel(
        sample_size=side,
        block_out_channels=(channels, 2 * channels, 2 * channels),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=layers,
        norm_num_groups=8,
        attention_head_dim=4,
        cross_attention_dim=text_width,
    )
    images = (batch, 4, side, side)
    noised, noise, text = torch.randn(images), torch.randn(images), torch.randn(batch, 16, text_width)
    blocks = tuple(f"model.{way}_blocks.{n}" for way in ("down", "up") for n in range(3))
    inputs = (noised, torch.randint(1000, (batch,)), text, noise)
    return Made(NoiseLoss(unet), inputs, blocks=(*blocks, "model.mid_block"))


def _checkpoint_transformers(model: nn.Module) -> None:
    model.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator, union-attr]


def _checkpoint_timm(model: nn.Module) -> None:
    model.model.set_grad_checkpointing()  # type: ignore[operator, union-attr]


def _checkpoint_diffusers(model: nn.Module) -> None:
    model.model.enable_gradient_checkpointing()  # type: ignore[operator, union-attr]


def _sizes(fields: str, **rows: tuple[int, ...]) -> Mapping[str, Mapping[str, int]]:
    """A small table: the names of the columns, and one row a size."""
    return MappingProxyType({size: dict(zip(fields.split(), row, strict=True)) for size, row in rows.items()})


_SIX = "layers width heads vocabulary batch length"
_SEVEN = "layers width heads hidden vocabulary batch length"

_ALL = (
    Library(
        "gpt2",
        "GPT-2 of transformers, with its dropout of 0.1",
        _gpt2,
        _checkpoint_transformers,
        _sizes(_SIX, tiny=(2, 32, 4, 64, 4, 32), large=(6, 384, 6, 4096, 4, 256)),
        random=True,
    ),
    Library(
        "bert",
        "BERT of transformers for masked words, with its dropout of 0.1",
        _bert,
        _checkpoint_transformers,
        _sizes(_SIX, tiny=(2, 32, 4, 64, 4, 32), large=(6, 384, 6, 4096, 4, 256)),
        random=True,
    ),
    Library(
        "t5",
        "T5 of transformers, without dropout",
        _t5,
        _checkpoint_transformers,
        _sizes(_SIX, tiny=(2, 32, 4, 64, 4, 32), large=(4, 384, 6, 4096, 6, 256)),
    ),
    Library(
        "transformers_llama",
        "Llama of transformers",
        _llama,
        _checkpoint_transformers,
        _sizes(_SEVEN, tiny=(2, 32, 4, 88, 64, 4, 32), large=(6, 512, 8, 1408, 4096, 6, 256)),
    ),
    Library(
        "mistral",
        "Mistral of transformers, with a window of half the sequence",
        _mistral,
        _checkpoint_transformers,
        _sizes(_SEVEN, tiny=(2, 32, 4, 88, 64, 4, 32), large=(6, 512, 8, 1408, 4096, 6, 256)),
    ),
    Library(
        "mixtral",
        "Mixtral of transformers, two of four experts, their matrices multiplied in groups",
        _mixtral,
        _checkpoint_transformers,
        _sizes(_SEVEN, tiny=(2, 32, 4, 64, 64, 4, 32), large=(4, 384, 6, 768, 4096, 8, 256)),
    ),
    Library(
        "lora_llama",
        "Llama of transformers, frozen, with the LoRA of peft on all its projections",
        _lora_llama,
        _checkpoint_transformers,
        _sizes(_SEVEN, tiny=(2, 32, 4, 88, 64, 4, 32), large=(6, 512, 8, 1408, 4096, 6, 256)),
    ),
    Library(
        "resnet50",
        "ResNet-50 of timm",
        _resnet50,
        _checkpoint_timm,
        _sizes("most channels classes batch side", tiny=(2, 32, 10, 4, 64), large=(6, 64, 1000, 16, 128)),
    ),
    Library(
        "vit",
        "ViT of timm with patches of 16",
        _vit,
        _checkpoint_timm,
        _sizes(
            "layers width heads classes batch side",
            tiny=(4, 32, 4, 10, 8, 64),
            large=(12, 384, 6, 1000, 8, 224),
        ),
    ),
    Library(
        "diffusion_unet",
        "U-Net of diffusers that reads a text, against noise",
        _diffusion_unet,
        _checkpoint_diffusers,
        _sizes("layers channels text_width batch side", tiny=(1, 8, 16, 2, 8), large=(2, 64, 128, 4, 32)),
    ),
)

LIBRARIES: Mapping[str, Callable[[str], Workload]] = MappingProxyType(
    {library.name: library for library in _ALL}
)
"""Every workload by name, in the order of the tables."""
