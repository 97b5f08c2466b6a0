"""Attention along edges against differences of its own values; against torch-geometric in `test_layers`."""

from __future__ import annotations

import pytest
import torch

from bpfree.graphs.attention import _Attention
from bpfree.graphs.edges import Edges


@pytest.mark.parametrize("slope", [0.2, 1.0])
def test_the_gradient_is_that_of_finite_differences(slope: float) -> None:
    generator = torch.Generator().manual_seed(0)
    source = torch.tensor([0, 1, 2, 3, 0, 2, 4])
    edges = Edges(source, torch.tensor([0, 0, 1, 1, 1, 2, 2]), torch.tensor([0, 2, 4]), 5)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.double).requires_grad_()

    h, source_energy, target_energy = random(5, 3), random(5), random(3)
    assert torch.autograd.gradcheck(
        lambda *given: _Attention.apply(edges, *given, slope), (h, source_energy, target_energy)
    )


def test_the_softmax_is_right_for_energies_far_from_zero() -> None:
    edges = Edges(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), torch.tensor([0, 1]), 2)
    source_energy, target_energy = torch.tensor([1000.0, 1000.0]), torch.tensor([0.0, -3000.0])
    output = _Attention.apply(edges, torch.tensor([[1.0], [3.0]]), source_energy, target_energy, 0.2)
    assert torch.equal(output, torch.tensor([[2.0], [3.0]]))
