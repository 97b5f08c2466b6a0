"""Weight matrices of modules, and the axis of their features."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from bpfree import BadValue
from bpfree.nn.weights import feature_axis, has_default_init, is_plain, weight_matrices


class Gain(nn.Module):
    """Multiplies by a parameter of any shape."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


class Project(nn.Module):
    """A linear map that is not an `nn.Linear`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))


@pytest.mark.parametrize(
    ("module", "count"),
    [
        (nn.PReLU(8), 0),
        (Gain(8), 0),
        (Gain(1, 8, 1, 1), 0),
        (nn.LayerNorm([4, 8, 8]), 0),
        (nn.RMSNorm([4, 8]), 0),
        (nn.InstanceNorm2d(4, affine=True), 0),
        (nn.Linear(1, 8), 1),
        (nn.Linear(8, 1, bias=False), 1),
        (nn.Conv2d(4, 4, 1, groups=4), 1),
        (nn.Bilinear(3, 4, 5), 1),
        (nn.Embedding(7, 4), 1),
        (nn.LSTM(4, 8), 2),
        (nn.LSTM(4, 8, 2), 4),
        (nn.MultiheadAttention(4, 2), 2),
        (Project(), 1),
        (nn.Sequential(nn.Linear(4, 4), nn.PReLU(), nn.Linear(4, 4)), 2),
        (nn.Sequential(*[nn.Linear(4, 4)] * 2), 2),
        (parametrizations.weight_norm(nn.Linear(4, 4)), 1),
        (parametrizations.spectral_norm(nn.Conv1d(4, 4, 3)), 1),
        (parametrizations.weight_norm(nn.Linear(1, 4)), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_matrices_and_kernels_count_but_scales_and_shifts_do_not(module: nn.Module, count: int) -> None:
    assert len(list(weight_matrices(module))) == count


def test_lazy_layers_are_refused_by_name() -> None:
    with pytest.raises(BadValue, match=r"^1\.: a lazy layer"):
        list(weight_matrices(nn.Sequential(nn.ReLU(), nn.LazyLinear(4))))


def test_layers_that_do_more_than_a_product_are_not_plain() -> None:
    class Doubling(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    hooked = nn.Linear(4, 4)
    hooked.register_forward_pre_hook(lambda *_: None)
    computed = parametrizations.weight_norm(nn.Linear(4, 4))
    assert is_plain(nn.Linear(4, 4))
    assert not any(is_plain(layer) for layer in (Doubling(4, 4), hooked, computed))
    assert is_plain(computed, computed=True)


def test_default_initialization_is_recognized() -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        layers = (nn.Linear(3, 2), nn.Linear(64, 32), nn.Conv2d(16, 32, 3), nn.ConvTranspose2d(32, 16, 3))
        assert all(has_default_init(layer) for layer in layers)
        for layer in layers[1:]:
            optimizer = torch.optim.Adam(layer.parameters(), 1e-3)
            for p in layer.parameters():
                p.grad = torch.randn_like(p)
            optimizer.step()
            assert not has_default_init(layer)
    decayed = nn.Linear(64, 32)
    with torch.no_grad():
        decayed.weight.mul_(0.8)
    assert not has_default_init(decayed)


@pytest.mark.parametrize(
    ("module", "shape", "axis"),
    [
        (nn.Linear(4, 6), (2, 6), 1),
        (nn.Linear(4, 6), (2, 5, 6), -1),
        (nn.Linear(4, 6), (2, 6, 6), -1),
        (nn.Conv1d(4, 6, 3), (2, 6, 5), 1),
        (nn.Conv2d(4, 6, 3), (2, 6, 6, 6), 1),
        (nn.Sequential(nn.Conv2d(4, 6, 3), nn.Linear(6, 6)), (2, 6, 5, 5), 1),
        (nn.LSTM(4, 3, bidirectional=True), (2, 5, 6), -1),
        (nn.ReLU(), (2, 5, 6), 1),
    ],
)
def test_feature_axis_has_the_size_of_the_last_layer(
    module: nn.Module, shape: tuple[int, ...], axis: int
) -> None:
    assert feature_axis(module, torch.zeros(shape)) == axis
