"""Local cross-entropy, and its closed form against autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from bpfree import Block
from bpfree.losses import LocalCrossEntropy
from bpfree.metrics import accuracy
from bpfree.nn._closed_form import body_gradients

B, N, C = 7, 5, 3


def rows() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(B, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(C, (B,), generator=generator)


def test_the_loss_is_the_formula() -> None:
    loss = LocalCrossEntropy()
    output = torch.randn(B, N, dtype=torch.float64)
    loss.build(output, C)
    loss = loss.double()
    _, y = rows()
    matrix = loss.head[1].weight  # type: ignore[index]
    total = 0.0
    for row, label in zip(output, y.tolist(), strict=True):
        scores = [sum((m * v).item() for m, v in zip(line, row, strict=True)) for line in matrix]
        total += math.log(sum(math.exp(s) for s in scores)) - scores[label]
    assert loss(output, y).item() == pytest.approx(total / B, rel=1e-12)


def test_the_default_head_is_a_projection_of_the_flat_output_without_bias() -> None:
    loss = LocalCrossEntropy()
    loss.build(torch.zeros(2, 4, 3, 3), C)
    assert [tuple(p.shape) for p in loss.parameters()] == [(C, 36)]
    assert loss.scores(torch.zeros(2, 4, 3, 3)).shape == (2, C)


def test_a_given_head_is_used() -> None:
    head = nn.Linear(N, C)
    loss = LocalCrossEntropy(head)
    loss.build(torch.zeros(2, N), C)
    assert loss.head is head


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.ELU, nn.Tanh, None])
@pytest.mark.parametrize("head", [None, "with bias"])
def test_the_closed_form_equals_autograd(
    bias: bool, activation: type[nn.Module] | None, head: str | None
) -> None:
    torch.manual_seed(0)
    x, y = rows()
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(4, N, bias=bias)]
    body = nn.Sequential(*layers, *([activation()] if activation else [])).double()
    loss = LocalCrossEntropy(nn.Linear(N, C) if head else None)
    loss.build(body(x).float(), C)
    block = Block(body, loss.double())
    losses, _, _ = block.objective(x, y, None)
    losses[0].backward()  # type: ignore[no-untyped-call]
    expected = {name: p.grad for name, p in block.named_parameters()}
    assert len(expected) == 2 + bias + bool(head)
    block.zero_grad()
    with torch.no_grad():
        output = body(x)
        value, error, gradients = loss.closed_form(output, y)
        gradients |= body_gradients(body, x, output, error)
    assert value.item() == pytest.approx(losses[0].item(), rel=1e-12)
    for name, p in block.named_parameters():
        torch.testing.assert_close(gradients[p], expected[name], rtol=1e-6, atol=1e-12, msg=name)


def test_the_closed_form_needs_one_linear_head_and_one_linear_layer() -> None:
    deep = LocalCrossEntropy(nn.Sequential(nn.Linear(N, N), nn.Linear(N, C)))
    with pytest.raises(TypeError, match="one linear layer as head"):
        deep.closed_form(torch.zeros(B, N), torch.zeros(B, dtype=torch.long))
    body = nn.Sequential(nn.Linear(4, N), nn.GELU())
    with pytest.raises(TypeError, match="ReLU, ELU, Tanh"):
        body_gradients(body, torch.zeros(B, 4), torch.zeros(B, N), torch.zeros(B, N))


def test_accuracy_is_the_share_of_rows_whose_label_has_the_largest_score() -> None:
    scores = torch.tensor([[1.0, 2.0, 0.0], [3.0, 2.0, 1.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    assert accuracy(scores, torch.tensor([1, 0, 2, 1])) == 0.75
