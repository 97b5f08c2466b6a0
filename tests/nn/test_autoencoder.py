"""Shapes, parameters, receptive fields and initial weights of the autoencoder, calculated by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bpfree.nn import autoencoder


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def shapes(net: nn.Sequential, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    x, result = torch.rand(2, *shape), []
    for block in net:
        x = block(x)
        result.append(tuple(x.shape[1:]))
    return result


def test_each_block_halves_or_doubles_the_resolution() -> None:
    assert shapes(autoencoder((3, 32, 32), (16, 32, 64)), (3, 32, 32)) == [
        (16, 16, 16), (32, 8, 8), (64, 4, 4), (32, 8, 8), (16, 16, 16), (3, 32, 32),
    ]  # fmt: skip


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 7, 5), (2, 9, 16), (1, 1, 1)], ids=str)
def test_outputs_have_the_size_of_the_images(shape: tuple[int, ...]) -> None:
    result = shapes(autoencoder(shape, (4, 6)), shape)
    assert result[-1] == shape
    halves = [((shape[1] + 1) // 2, (shape[2] + 1) // 2)]
    halves.append(((halves[0][0] + 1) // 2, (halves[0][1] + 1) // 2))
    assert [s[1:] for s in result[:2]] == halves
    assert [s[1:] for s in result[2:]] == [halves[0], shape[1:]]


def test_only_filters_and_decoder_biases_are_parameters() -> None:
    net = autoencoder((3, 32, 32), (16, 32))
    encoder = 9 * (3 * 16 + 16 * 32)
    # Four values of each channel for each position, each with a bias.
    decoder = 9 * (32 * 4 * 16 + 16 * 4 * 3) + 4 * 16 + 4 * 3
    assert count(net) == encoder + decoder
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 2
    assert not any(norm.affine for norm in norms)


@pytest.mark.parametrize(("n", "field"), [(1, 3), (2, 7), (3, 15)])
def test_receptive_fields_of_the_encoder(n: int, field: int) -> None:
    # Three pixels, in steps of 1, 2 and 4: 3, then 3 + 2*2, then 7 + 4*2.
    encoder = autoencoder((1, 64, 64), (4, 4, 4), "relu")[:n].eval()
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.ones_(module.weight)
    x = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    out = encoder(x)
    middle = out.shape[2] // 2
    out[0, 0, middle, middle].backward()
    assert x.grad is not None
    field_pixels = (x.grad[0, 0] != 0).nonzero()
    assert (field_pixels.max(0).values - field_pixels.min(0).values + 1).tolist() == [field, field]


def test_a_code_value_reaches_the_pixels_of_nine_positions() -> None:
    # A filter of size 3 reaches one position on either side, and each position has 2 x 2 pixels.
    block = autoencoder((1, 32, 32), (4, 6))[2].eval()
    convolution = block[0]
    assert isinstance(convolution, nn.Conv2d)
    nn.init.ones_(convolution.weight)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    code = torch.zeros(1, 6, 8, 8)
    code[0, 0, 3, 5] = 1.0
    touched = (block(code)[0, 0] != 0).nonzero()
    assert touched.min(0).values.tolist() == [4, 8]
    assert touched.max(0).values.tolist() == [9, 13]


def test_pixels_of_a_position_have_separate_filters() -> None:
    block = autoencoder((1, 8, 8), (2,))[1].eval()
    convolution = block[0]
    assert isinstance(convolution, nn.Conv2d) and convolution.bias is not None
    nn.init.zeros_(convolution.weight)
    with torch.no_grad():
        convolution.bias.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    image = block(torch.zeros(1, 2, 4, 4))[0, 0]
    assert torch.equal(image, torch.tensor([[1.0, 2.0], [3.0, 4.0]]).repeat(4, 4))


def test_initial_weights_are_orthogonal_and_the_last_block_zero() -> None:
    nets = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        nets.append(autoencoder((3, 32, 32), (16, 8)))
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))
    assert not torch.equal(nets[0][0][0].weight, nets[2][0][0].weight)
    # The last block starts at zero, so every output is zero.
    assert not nets[0](torch.rand(4, 3, 32, 32)).any()
    for block in nets[0][:-1]:
        conv = next(m for m in block if isinstance(m, nn.Conv2d))
        matrix = conv.weight.detach().flatten(1)
        # The filters are orthonormal if there are at most as many as values in each.
        assert len(matrix) <= matrix.shape[1]
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(len(matrix)), rtol=0, atol=1e-5)
