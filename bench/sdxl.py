"""The U-Net of SDXL with its published sizes, to plan a step of training with; it is made, never run.

The sizes are those of ``unet/config.json`` of stabilityai/stable-diffusion-xl-base-1.0. Images and text are given as
the parts before the U-Net would give them: latents of an eighth of the image's side, states of both encoders.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.contest.libraries import import_library

LATENT_CHANNELS = 4
PIXELS_OF_A_LATENT = 8
TEXT_TOKENS = 77
TEXT_WIDTH = 2048
POOLED_WIDTH = 1280
TIME_IDS = 6
NOISE_TIMES = 1000
SIDE = 128
"""Latents of an image of 1024 pixels, for which the network was made."""


class NoiseLoss(nn.Module):
    """Noised latents, their times, text and the images' sizes to the mean squared error, in float32, of the noise."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self, noised: Tensor, times: Tensor, text: Tensor, pooled: Tensor, sizes: Tensor, noise: Tensor
    ) -> Tensor:
        told = {"text_embeds": pooled, "time_ids": sizes}
        (found,) = self.unet(
            noised, times, encoder_hidden_states=text, added_cond_kwargs=told, return_dict=False
        )
        return F.mse_loss(found.float(), noise.float())


def unet() -> nn.Module:
    """SDXL's U-Net with random weights.

    Raises:
        ImportError: diffusers is not installed.
    """
    diffusers = import_library("diffusers")
    return diffusers.UNet2DConditionModel(  # type: ignore[no-any-return]
        sample_size=SIDE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        layers_per_block=2,
        cross_attention_dim=TEXT_WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=POOLED_WIDTH + TIME_IDS * 256,
    )


def training(batch: int = 8, sequence: int = SIDE) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The U-Net with its loss, and a batch for it; ``sequence`` is the side of the latents."""
    latents = (batch, LATENT_CHANNELS, sequence, sequence)
    inputs = (
        torch.randn(latents),
        torch.randint(NOISE_TIMES, (batch,)),
        torch.randn(batch, TEXT_TOKENS, TEXT_WIDTH),
        torch.randn(batch, POOLED_WIDTH),
        torch.full((batch, TIME_IDS), float(sequence * PIXELS_OF_A_LATENT)),
        torch.randn(latents),
    )
    return NoiseLoss(unet().train()), inputs
