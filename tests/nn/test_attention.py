"""Gradient of graph attention against finite differences; `test_graph` compares it with torch-geometric."""

from __future__ import annotations

import pytest
import torch

from bpfree.nn.attention import _Attention
from bpfree.sparse import Edges


@pytest.mark.parametrize("slope", [0.2, 1.0])
def test_the_gradient_is_that_of_finite_differences(slope: float) -> None:
    generator = torch.Generator().manual_seed(0)
    source = torch.tensor([0, 1, 2, 3, 0, 2, 4])
    edges = Edges(source, torch.tensor([0, 0, 1, 1, 1, 2, 2]), torch.tensor([0, 2, 4]), 5)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.double).requires_grad_()

    h, sent, received = random(5, 3), random(5), random(3)
    assert torch.autograd.gradcheck(
        lambda *inputs: _Attention.apply(edges, *inputs, slope), (h, sent, received)
    )


def test_softmax_is_stable_for_large_scores() -> None:
    edges = Edges(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), torch.tensor([0, 1]), 2)
    sent, received = torch.tensor([1000.0, 1000.0]), torch.tensor([0.0, -3000.0])
    result = _Attention.apply(edges, torch.tensor([[1.0], [3.0]]), sent, received, 0.2)
    assert torch.equal(result, torch.tensor([[2.0], [3.0]]))
