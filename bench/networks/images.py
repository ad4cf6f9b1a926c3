"""Convolutional networks: a ResNet with BatchNorm, whose buffers change in training, and a U-Net with long skips."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Inputs = tuple[Tensor, ...]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm; the shortcut is a strided 1x1 one where the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """A stem and ``stages`` stages of ``blocks`` residual blocks; each stage halves the side, doubles channels."""

    def __init__(self, stages: int, blocks: int, channels: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(channels)
        self.blocks = nn.Sequential()
        width = channels
        for stage in range(stages):
            for block in range(blocks):
                wider = channels << stage
                self.blocks.append(ResidualBlock(width, wider, stride=2 if stage > 0 and block == 0 else 1))
                width = wider
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        features = self.blocks(F.relu(self.stem_norm(self.stem(images))))
        return F.cross_entropy(self.head(features.mean((2, 3))), labels)


def resnet(stages: int, blocks: int, channels: int, batch: int, side: int) -> tuple[nn.Module, Inputs]:
    return ResNet(stages, blocks, channels, classes=10), (
        torch.randn(batch, 3, side, side),
        torch.randint(10, (batch,)),
    )


class ConvolutionPair(nn.Module):
    """Two 3x3 convolutions, each with GroupNorm and SiLU."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, padding=1),
            nn.GroupNorm(4, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(4, channels),
            nn.SiLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class UNet(nn.Module):
    """Down ``levels`` times by pooling and up again; each level's features skip to the same level on the way up."""

    def __init__(self, levels: int, channels: int) -> None:
        super().__init__()
        widths = [channels << level for level in range(levels + 1)]
        self.down = nn.ModuleList(
            ConvolutionPair(a, b) for a, b in zip([3, *widths], widths[:-1], strict=False)
        )
        self.bottom = ConvolutionPair(widths[-2], widths[-1])
        self.up = nn.ModuleList(
            ConvolutionPair(widths[level + 1] + widths[level], widths[level])
            for level in reversed(range(levels))
        )
        self.head = nn.Conv2d(channels, 3, 1)

    def forward(self, images: Tensor, target: Tensor) -> Tensor:
        skips: list[Tensor] = []
        x = images
        for down in self.down:
            skips.append(down(x))
            x = F.max_pool2d(skips[-1], 2)
        x = self.bottom(x)
        for up in self.up:
            x = up(torch.cat((F.interpolate(x, scale_factor=2.0, mode="nearest"), skips.pop()), dim=1))
        return F.mse_loss(self.head(x), target)


def unet(levels: int, channels: int, batch: int, side: int) -> tuple[nn.Module, Inputs]:
    return UNet(levels, channels), (torch.randn(batch, 3, side, side), torch.randn(batch, 3, side, side))
