"""Networks of linear layers: a plain deep chain, and a trunk with two heads and two losses."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Inputs = tuple[Tensor, ...]


class LinearReLU(nn.Linear):
    """A linear layer and its ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class LinearStack(nn.Module):
    """``layers`` times linear and ReLU, all of one width; the loss is the mean square of what comes out."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(LinearReLU(width, width) for _ in range(layers))
        for layer in self.layers:
            nn.init.kaiming_normal_(
                layer.weight, nonlinearity="relu"
            )  # keeps the signal alive over 100 layers

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x.square().mean()


def linear_stack(layers: int, width: int, batch: int) -> tuple[nn.Module, Inputs]:
    return LinearStack(layers, width), (torch.randn(batch, width),)


class ResidualMLP(nn.Module):
    """``x + down(tanh(up(norm(x))))`` with a hidden width of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class TwoLosses(nn.Module):
    """One trunk, two heads, two scalar outputs: a cross entropy of labels, and a reconstruction error."""

    def __init__(self, layers: int, width: int, classes: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*(ResidualMLP(width) for _ in range(layers)))
        self.classifier = nn.Linear(width, classes)
        self.decoder = nn.Sequential(*(ResidualMLP(width) for _ in range(max(1, layers // 2))))

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(x)
        return F.cross_entropy(self.classifier(features), labels), F.mse_loss(self.decoder(features), x)


def two_losses(layers: int, width: int, batch: int) -> tuple[nn.Module, Inputs]:
    return TwoLosses(layers, width, classes=16), (torch.randn(batch, width), torch.randint(16, (batch,)))


def weighted_sum(losses: tuple[Tensor, Tensor]) -> Tensor:
    return losses[0] + 0.5 * losses[1]
