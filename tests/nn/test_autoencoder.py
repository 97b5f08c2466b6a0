"""The autoencoder's shapes, parameters, receptive fields and first weights, worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bpfree.nn import autoencoder


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def shapes(net: nn.Sequential, shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    x, found = torch.rand(2, *shape), []
    for stage in net:
        x = stage(x)
        found.append(tuple(x.shape[1:]))
    return found


def test_each_stage_halves_or_doubles() -> None:
    assert shapes(autoencoder((3, 32, 32), (16, 32, 64)), (3, 32, 32)) == [
        (16, 16, 16), (32, 8, 8), (64, 4, 4), (32, 8, 8), (16, 16, 16), (3, 32, 32),
    ]  # fmt: skip


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 7, 5), (2, 9, 16), (1, 1, 1)], ids=str)
def test_images_come_back_in_their_own_size(shape: tuple[int, ...]) -> None:
    found = shapes(autoencoder(shape, (4, 6)), shape)
    assert found[-1] == shape
    halves = [((shape[1] + 1) // 2, (shape[2] + 1) // 2)]
    halves.append(((halves[0][0] + 1) // 2, (halves[0][1] + 1) // 2))
    assert [s[1:] for s in found[:2]] == halves
    assert [s[1:] for s in found[2:]] == [halves[0], shape[1:]]


def test_parameters_are_filters_and_the_decoders_biases() -> None:
    net = autoencoder((3, 32, 32), (16, 32))
    encoder = 9 * (3 * 16 + 16 * 32)
    # Four values of every channel for each position, with a bias for each.
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
    seen = (x.grad[0, 0] != 0).nonzero()
    assert (seen.max(0).values - seen.min(0).values + 1).tolist() == [field, field]


def test_a_decoder_stage_gives_a_value_the_children_of_nine_positions() -> None:
    # A filter of three reaches one position further on either side, and each position has 2 x 2 children.
    stage = autoencoder((1, 32, 32), (4, 6))[2].eval()
    convolution = stage[0]
    assert isinstance(convolution, nn.Conv2d)
    nn.init.ones_(convolution.weight)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    code = torch.zeros(1, 6, 8, 8)
    code[0, 0, 3, 5] = 1.0
    touched = (stage(code)[0, 0] != 0).nonzero()
    assert touched.min(0).values.tolist() == [4, 8]
    assert touched.max(0).values.tolist() == [9, 13]


def test_children_of_a_position_have_filters_of_their_own() -> None:
    stage = autoencoder((1, 8, 8), (2,))[1].eval()
    convolution = stage[0]
    assert isinstance(convolution, nn.Conv2d) and convolution.bias is not None
    nn.init.zeros_(convolution.weight)
    with torch.no_grad():
        convolution.bias.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    image = stage(torch.zeros(1, 2, 4, 4))[0, 0]
    assert torch.equal(image, torch.tensor([[1.0, 2.0], [3.0, 4.0]]).repeat(4, 4))


def test_it_starts_orthogonal_and_blind() -> None:
    nets = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        nets.append(autoencoder((3, 32, 32), (16, 8)))
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))
    assert not torch.equal(nets[0][0][0].weight, nets[2][0][0].weight)
    # The last stage starts at zero, so every image comes back black.
    assert not nets[0](torch.rand(4, 3, 32, 32)).any()
    for stage in nets[0][:-1]:
        conv = next(m for m in stage if isinstance(m, nn.Conv2d))
        matrix = conv.weight.detach().flatten(1)
        # The filters are orthonormal where there are fewer of them than values in one.
        assert len(matrix) <= matrix.shape[1]
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(len(matrix)), rtol=0, atol=1e-5)
