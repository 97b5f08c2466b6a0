"""VGG8b, VGG11b and residual networks: shapes, block boundaries, and published numbers of parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bpfree
from bpfree import BadValue
from bpfree.nn import VGG8B, VGG11B, PadShortcut, RowNorm, resnet, vgg

IMAGES = [(1, 28, 28), (3, 32, 32)]


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def vgg_parameters(
    shape: tuple[int, int, int], layers: tuple[int | str, ...], width: int, hidden: int
) -> int:
    """Weights without biases, two parameters of batch norm for each channel, and the output layer."""
    channels, side, _ = shape
    total = 0
    for layer in layers:
        if isinstance(layer, str):
            side //= 2
            continue
        total += 9 * channels * layer * width + 2 * layer * width
        channels = layer * width
    return total + channels * side * side * hidden + 2 * hidden + 10 * hidden + 10


@pytest.mark.parametrize(
    ("shape", "layers", "width", "millions"),
    [
        ((1, 28, 28), VGG8B, 1, 7.3),
        ((1, 28, 28), VGG8B, 2, 28.2),
        ((3, 32, 32), VGG8B, 1, 8.9),
        ((3, 32, 32), VGG11B, 1, 11.6),
        ((3, 32, 32), VGG11B, 3, 91.3),
    ],
)
def test_vgg_has_the_published_parameters(
    shape: tuple[int, int, int], layers: tuple[int | str, ...], width: int, millions: float
) -> None:
    with torch.device("meta"):
        net = vgg(shape, 10, layers, width)
    assert count(net) == vgg_parameters(shape, layers, width, 1024)
    # The paper rounds to 0.1 million.
    assert abs(count(net) / 1e6 - millions) < 0.06


def test_resnet_18_has_the_known_parameters_and_resnet_34_those_of_its_blocks() -> None:
    with torch.device("meta"):
        net, larger = resnet((3, 32, 32), 10), resnet((3, 32, 32), 10, blocks=(3, 4, 6, 3))
    assert count(net) == 11_173_962
    widths = (64, 128, 256, 512)
    more = sum(n * (2 * 9 * w * w + 4 * w) for n, w in zip((1, 2, 4, 1), widths, strict=True))
    assert count(larger) == 11_173_962 + more


def test_layer_norm_and_pad_shortcuts_have_no_parameters() -> None:
    net = resnet((1, 28, 28), 10, blocks=(1, 1), width=0.25, norm="layer", shortcut="pad")
    convolutions = 9 * (16 + 2 * 16 * 16 + 16 * 32 + 32 * 32)
    assert count(net) == convolutions + 32 * 10 + 10


@pytest.mark.parametrize("shape", IMAGES)
def test_nets_accept_both_image_sizes_and_have_finite_initial_gradients(shape: tuple[int, int, int]) -> None:
    x = torch.rand(4, *shape)
    for net in (
        vgg(shape, 10, width=1 / 16, dropout=0.1),
        vgg(shape, 10, VGG11B, width=1 / 16, norm="layer"),
        resnet(shape, 10, width=1 / 16, dropout=0.1),
        resnet(shape, 10, width=1 / 16, norm="layer", shortcut="pad"),
    ):
        scores = net(x)
        assert scores.shape == (4, 10)
        scores.square().mean().backward()  # type: ignore[no-untyped-call]
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_vgg_halves_its_maps_at_the_published_layers() -> None:
    x, sides = torch.rand(2, 1, 28, 28), []
    for module in vgg((1, 28, 28), 10, width=1 / 16):
        x = module(x)
        if isinstance(module, nn.Conv2d):
            sides.append((x.shape[1], x.shape[2]))
    assert sides == [(8, 28), (16, 28), (16, 14), (32, 14), (32, 7), (32, 3)]


def test_a_cut_after_activations_puts_pooling_dropout_and_norms_into_the_next_block() -> None:
    net = vgg((1, 28, 28), 10, width=1 / 16, dropout=0.1)
    cascade = bpfree.localize(net, cut="activation", output="apart")
    assert len(cascade.units) == 8
    assert all(isinstance(block.body[-1], nn.LeakyReLU) for block in cascade.units[:-1])
    assert [type(m).__name__ for m in cascade.units[2].body][:3] == ["Dropout2d", "MaxPool2d", "Conv2d"]
    assert [type(m).__name__ for m in cascade.units[-1].body] == ["Dropout"]
    by_layer = bpfree.localize(vgg((1, 28, 28), 10, width=1 / 16, norm="layer"), cut="activation")
    assert all(isinstance(block.body[0], RowNorm) for block in by_layer.units[1:])


def test_block_boundaries_are_between_residual_blocks() -> None:
    net = resnet((1, 28, 28), 10, width=1 / 16, norm="layer", shortcut="pad", dropout=0.1)
    cascade = bpfree.localize(net, cut="activation", output="none")
    kinds = [[type(m).__name__ for m in block.body] for block in cascade.units]
    assert kinds[:2] == [["Conv2d", "ReLU"], ["RowNorm", "BasicBlock"]]
    assert kinds[2:] == [["Dropout2d", "RowNorm", "BasicBlock"]] * 7


def test_the_padded_shortcut_keeps_every_second_pixel_and_adds_empty_channels() -> None:
    x = torch.rand(2, 3, 5, 4)
    result = PadShortcut(5, 2)(x)
    assert result.shape == (2, 5, 3, 2)
    assert torch.equal(result[:, :3], x[:, :, ::2, ::2])
    assert result[:, 3:].abs().max() == 0


def test_images_that_are_too_small_to_be_halved_are_refused() -> None:
    with pytest.raises(BadValue, match="images of 8x8 cannot be halved 4 times"):
        vgg((1, 8, 8), 3)
