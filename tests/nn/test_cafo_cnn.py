"""The network of Cascaded-Forward: published widths, receptive fields, and the order of its layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bpfree import BadValue, CascadedForward, split
from bpfree.nn import cafo_cnn


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def receptive_fields(stage: nn.Module, size: int, channels: int = 1) -> list[int]:
    """Return the number of pixels in a row that each output of ``stage`` in a row depends on.

    The weights are set to a positive value, so that a brighter pixel increases every output that depends on
    it.
    """
    for module in stage.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 0.1)
    stage.eval()
    base = torch.rand(1, channels, 1, size, generator=torch.Generator().manual_seed(0)).expand(
        -1, -1, size, -1
    )
    with torch.no_grad():
        brighter = base + 100 * torch.eye(size).view(size, 1, 1, size)
        changed = (stage(brighter) > stage(base) + 1e-3).any(1).any(1)
    return changed.sum(0).tolist()


@pytest.mark.parametrize(
    ("shape", "features"),
    [
        ((3, 32, 32), (8192, 8192, 8192)),
        ((1, 28, 28), (6272, 6272, 4608)),
        ((3, 84, 84), (56448, 56448, 51200)),
    ],
    ids=str,
)
def test_features_have_the_published_lengths(shape: tuple[int, ...], features: tuple[int, ...]) -> None:
    x, result = torch.rand(2, *shape), []
    for stage in split(cafo_cnn(shape, 10))[0]:
        x = stage(x)
        result.append(x.flatten(1).shape[1])
    assert tuple(result) == features


@pytest.mark.parametrize(("classes", "predictors"), [(10, 245_790), (100, 2_457_900)])
def test_bodies_and_predictors_have_the_published_parameters(classes: int, predictors: int) -> None:
    net = cafo_cnn((3, 32, 32), classes)
    trainer = CascadedForward(net, progress=False, head_features=None)
    trainer.build((3, 32, 32), classes)
    # 9 (3 * 32 + 32 * 128 + 128 * 512) weights of filters, 2 (32 + 128 + 512) of normalization.
    assert count(*(block.front for block in trainer.cascade.units if block.front is not None)) == 628_896
    assert count(*trainer.cascade.losses) == predictors


def test_layers_have_the_published_order() -> None:
    net = cafo_cnn((1, 28, 28), 10)
    names = [type(layer).__name__ for layer in net]
    assert names == ["Conv2d", "ReLU", "MaxPool2d", "BatchNorm2d"] * 3 + ["Flatten", "Linear"]
    for layer in net:
        if isinstance(layer, nn.Conv2d):
            assert (layer.bias, layer.kernel_size, layer.padding) == (None, (3, 3), (1, 1))
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.eps == 1e-4


def test_receptive_fields_match_a_calculation_by_hand() -> None:
    # With the stride s so far, a convolution adds 2 s pixels; pooling adds s and doubles the stride:
    # 1 + 2 + 1 = 4;  4 + 2*2 + 2 = 10;  10 + 4*2 + 4 = 22.
    stages = split(cafo_cnn((1, 56, 56), 3, (2, 3, 4)))[0]
    for n, field, stride in ((1, 4, 2), (2, 10, 4), (3, 22, 8)):
        maps = [layer for stage in stages[:n] for layer in stage if not isinstance(layer, nn.Flatten)]
        result = receptive_fields(nn.Sequential(*maps), 56)
        assert len(result) == 56 // stride
        # Away from the edges every output has its full receptive field.
        assert result[len(result) // 2] == max(result) == field


def test_weights_depend_on_the_seed_and_are_kaiming_uniform() -> None:
    nets = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        nets.append(cafo_cnn((3, 32, 32), 10))
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))
    assert not torch.equal(nets[0][0].weight, nets[2][0].weight)
    for layer, fan_in in ((nets[0][0], 27), (nets[0][4], 288), (nets[0][8], 1152)):
        # Uniform up to sqrt(6 / fan_in): the gain of ReLU.
        bound = (6 / fan_in) ** 0.5
        assert 0.95 * bound < layer.weight.abs().max().item() <= bound


def test_images_that_are_too_small_are_refused() -> None:
    with pytest.raises(BadValue, match="halved 2 times, not 3"):
        cafo_cnn((3, 7, 7), 10)
