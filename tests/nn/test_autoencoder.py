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
    assert shapes(autoencoder((3, 32, 32)), (3, 32, 32)) == [
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


def test_parameters_are_filters_and_the_last_bias_alone() -> None:
    net = autoencoder((3, 32, 32))
    filters = 9 * (3 * 16 + 16 * 32 + 32 * 64 + 64 * 32 + 32 * 16 + 16 * 3)
    assert count(net) == filters + 3 == 46_947
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 5
    assert not any(norm.affine for norm in norms)


@pytest.mark.parametrize(("n", "field"), [(1, 3), (2, 7), (3, 15)])
def test_receptive_fields_of_the_encoder(n: int, field: int) -> None:
    # Three pixels, in steps of 1, 2 and 4: 3, then 3 + 2*2, then 7 + 4*2.
    encoder = autoencoder((1, 64, 64))[:n].eval()
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


def test_a_decoder_stage_spreads_a_value_over_four_pixels() -> None:
    # Value s fills pixels 2s and 2s+1; a filter of three sees it from one pixel more on either side.
    stage = autoencoder((1, 32, 32), (4, 6))[2].eval()
    for module in stage.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.ones_(module.weight)
    code = torch.zeros(1, 6, 8, 8)
    code[0, 0, 3, 5] = 1.0
    touched = (stage(code)[0, 0] != 0).nonzero()
    assert touched.min(0).values.tolist() == [5, 9]
    assert touched.max(0).values.tolist() == [8, 12]


def test_it_starts_orthogonal_and_blind() -> None:
    nets = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        nets.append(autoencoder((3, 32, 32)))
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))
    assert not torch.equal(nets[0][0][0].weight, nets[2][0][0].weight)
    # The filters of the last stage are zero: all it gives is its bias.
    out, bias = nets[0](torch.rand(4, 3, 32, 32)), nets[0][-1][1].bias
    assert torch.equal(out, bias.view(1, 3, 1, 1).expand_as(out))
    for stage in nets[0][:-1]:
        conv = next(m for m in stage if isinstance(m, nn.Conv2d))
        matrix = conv.weight.detach().flatten(1)
        # Fewer filters than values in one: their rows are orthonormal.
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(len(matrix)), rtol=0, atol=1e-5)
