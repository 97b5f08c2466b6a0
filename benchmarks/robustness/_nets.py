"""Small networks with fixed weights, and the indices at which their blocks begin."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from benchmarks.robustness._by_hand import Net


def mlp(width: int = 12, hidden: Sequence[int] = (16, 14), classes: int = 3) -> Net:
    """Flatten, linear layers with ReLU, output layer."""
    torch.manual_seed(3)
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in zip([width, *hidden], hidden, strict=False):
        layers += [nn.Linear(a, b), nn.ReLU()]
    layers.append(nn.Linear(hidden[-1], classes))
    return Net(layers, [0, *range(3, 2 * len(hidden) + 1, 2), 2 * len(hidden) + 1])


def conv1d(channels: int = 1, length: int = 12, classes: int = 3) -> Net:
    """Two convolutions over time with pooling."""
    torch.manual_seed(3)
    layers = [
        nn.Conv1d(channels, 5, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(5, 6, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool1d(2),
        nn.Flatten(),
        nn.Linear(6 * (length // 4), classes),
    ]
    return Net(layers, [0, 3, 7])


def conv2d(channels: int = 1, side: int = 8, classes: int = 3, norm: bool = False) -> Net:
    """Two convolutions with pooling, optionally with batch normalization."""
    torch.manual_seed(3)
    first = [nn.Conv2d(channels, 5, 3, padding=1), *([nn.BatchNorm2d(5)] if norm else []), nn.ReLU()]
    second = [nn.Conv2d(5, 6, 3, padding=1), *([nn.BatchNorm2d(6)] if norm else []), nn.ReLU()]
    pooled = [nn.AvgPool2d(2), nn.Flatten(), nn.Linear(6 * (side // 4) ** 2, classes)]
    layers = [*first, nn.MaxPool2d(2), *second, *pooled]
    return Net(layers, [0, len(first) + 1, len(layers) - 1])


def conv3d(classes: int = 3) -> Net:
    """Two convolutions over volumes of side 4."""
    torch.manual_seed(3)
    layers = [
        nn.Conv3d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Conv3d(4, 5, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5 * 8, classes),
    ]
    return Net(layers, [0, 3, 6])


#: Networks, and the shape of their samples.
NETS: dict[str, tuple[Callable[[], Net], tuple[int, ...]]] = {
    "mlp": (mlp, (12,)),
    "mlp of one hidden layer": (lambda: mlp(hidden=(16,)), (12,)),
    "mlp of three hidden layers": (lambda: mlp(hidden=(16, 12, 10)), (12,)),
    "conv1d": (conv1d, (1, 12)),
    "conv2d": (conv2d, (1, 8, 8)),
    "conv2d with batch norm": (lambda: conv2d(norm=True), (1, 8, 8)),
    "conv3d": (conv3d, (1, 4, 4, 4)),
}


def of(layers: Sequence[nn.Module], starts: Sequence[int]) -> Net:
    """A network of any layers; their weights follow from the last `torch.manual_seed`."""
    return Net(list(layers), list(starts))


class LastStep(nn.Module):
    """The last output of a recurrent layer: ``[B, T, d]`` to ``[B, h]``."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0][:, -1]  # type: ignore[no-any-return]


class Steps(nn.Module):
    """All outputs of a recurrent layer: ``[B, T, d]`` to ``[B, T, h]``."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]  # type: ignore[no-any-return]


class MeanOverTime(nn.Module):
    """``[B, T, d]`` to ``[B, d]``."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class Residual(nn.Module):
    """``x + f(x)``."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inside(x)  # type: ignore[no-any-return]


class Gain(nn.Module):
    """A learned factor for each feature."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


def linear(layer: nn.Module) -> nn.Linear:
    """The layer as a `nn.Linear`."""
    assert isinstance(layer, nn.Linear)
    return layer
