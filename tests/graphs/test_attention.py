"""Attention along edges against differences of its own values; against torch-geometric in `test_graph`."""

from __future__ import annotations

import pytest
import torch

from bpfree.graphs.attention import _Attention
from bpfree.graphs.sparse import Edges


@pytest.mark.parametrize("slope", [0.2, 1.0])
def test_the_gradient_is_that_of_finite_differences(slope: float) -> None:
    generator = torch.Generator().manual_seed(0)
    source = torch.tensor([0, 1, 2, 3, 0, 2, 4])
    edges = Edges(source, torch.tensor([0, 0, 1, 1, 1, 2, 2]), torch.tensor([0, 2, 4]), 5)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.double).requires_grad_()

    h, sent, received = drawn(5, 3), drawn(5), drawn(3)
    assert torch.autograd.gradcheck(
        lambda *given: _Attention.apply(edges, *given, slope), (h, sent, received)
    )


def test_shares_are_right_where_energies_are_far_from_zero() -> None:
    edges = Edges(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), torch.tensor([0, 1]), 2)
    sent, received = torch.tensor([1000.0, 1000.0]), torch.tensor([0.0, -3000.0])
    found = _Attention.apply(edges, torch.tensor([[1.0], [3.0]]), sent, received, 0.2)
    assert torch.equal(found, torch.tensor([[2.0], [3.0]]))
