"""The pair loss against explicit loops, its closed form against autograd, and the feedback."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bpfree import BadValue
from bpfree.losses import CounterCurrent, PrototypeOutput
from bpfree.losses.counter_current import Ramp, reverse

B, C, D, ABOVE = 7, 3, 5, 4
G = torch.Generator().manual_seed(0)
OUTPUT = torch.randn(B, D, generator=G, dtype=torch.float64)
MESSAGE = torch.randn(C, ABOVE, generator=G, dtype=torch.float64)
LABELS = torch.arange(B) % C


def pair(activation: nn.Module | None = None, **options: Any) -> CounterCurrent:
    torch.manual_seed(0)
    loss = CounterCurrent(nn.Linear(D, ABOVE), activation, **options)
    loss.build(OUTPUT, C)
    return loss.double()


def value(loss: CounterCurrent, output: Tensor = OUTPUT) -> Tensor:
    feedback, _ = loss.make_feedback(MESSAGE)
    result: Tensor = loss(output, LABELS, feedback)
    return result


def unit(x: Tensor) -> Tensor:
    return x / x.norm()


def test_the_dot_loss_is_the_scaled_mean_of_squares() -> None:
    loss = pair(nn.ELU(), k=0.3, base=100.0)
    linear = loss.feedback[0]
    b = [nn.functional.elu(linear.weight @ row + linear.bias) for row in MESSAGE]
    total = sum((OUTPUT[i] @ b[c] - float(LABELS[i] == c)) ** 2 for i in range(B) for c in range(C))
    torch.testing.assert_close(value(loss), 0.3 * 100 / D * total / (B * C))


@pytest.mark.parametrize("form", ["cosine", "decorrelated"])
def test_the_cosine_losses_are_their_formulas(form: Any) -> None:
    loss = pair(form=form, weight=0.7, decorrelation=0.2)
    b = loss.feedback(MESSAGE)
    cross = sum(
        (unit(OUTPUT[i]) @ unit(b[c]) - float(LABELS[i] == c)) ** 2 for i in range(B) for c in range(C)
    )
    expected = 0.7 * cross / (B * C)
    if form == "decorrelated":
        for x in (OUTPUT, b):
            n = len(x)
            auto = sum((unit(x[i]) @ unit(x[j]) - float(i == j)) ** 2 for i in range(n) for j in range(n))
            expected = expected + 0.2 * auto / n**2
    torch.testing.assert_close(value(loss), expected, rtol=1e-6, atol=1e-8)


def test_per_sample_is_one_feedback_pass_for_each_label() -> None:
    loss = pair(nn.Tanh(), per_sample=True, k=0.5, base=float(D))
    b = loss.feedback(MESSAGE[LABELS])
    same = (LABELS[:, None] == LABELS).double()
    torch.testing.assert_close(value(loss), 0.5 * (OUTPUT @ b.T - same).square().mean())


@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize("activation", [None, nn.ELU(), nn.ReLU(), nn.Tanh()], ids=str)
def test_the_closed_form_equals_autograd(activation: nn.Module | None, warmup: int) -> None:
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-6)):
        grads = []
        for closed_form in (False, True):
            loss = pair(activation, warmup=warmup).to(dtype)
            output = OUTPUT.to(dtype, copy=True).requires_grad_()
            with torch.set_grad_enabled(not closed_form):
                feedback, _ = loss.make_feedback(MESSAGE.to(dtype))
                if closed_form:
                    result, error, gradients = loss.closed_form(output, LABELS, feedback)
                else:
                    result = loss(output, LABELS, feedback)
                    result.backward()
                    error, gradients = output.grad, {p: p.grad for p in loss.parameters()}
            grads.append([result.detach(), error, *(gradients[p] for p in loss.parameters())])
        for expected, actual in zip(*grads, strict=True):
            torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_the_closed_form_is_scaled_by_the_warm_up() -> None:
    full, warming_up = pair(nn.Tanh()), pair(nn.Tanh(), warmup=4)
    warming_up.load_state_dict(full.state_dict(), strict=False)

    def step(loss: CounterCurrent) -> list[Tensor]:
        feedback, _ = loss.make_feedback(MESSAGE)
        value, error, gradients = loss.closed_form(OUTPUT, LABELS, feedback)
        return [value, error, *(gradients[p] for p in loss.parameters())]

    expected = [tensor.clone() for tensor in step(full)]
    for factor in (0.25, 0.5, 0.75, 1.0, 1.0):
        for actual, full_value in zip(step(warming_up), expected, strict=True):
            torch.testing.assert_close(actual, factor * full_value)


def test_forms_without_a_closed_form_raise_an_error() -> None:
    for options in ({"form": "cosine"}, {"per_sample": True}):
        loss = pair(**options)
        feedback, _ = loss.make_feedback(MESSAGE)
        with pytest.raises(TypeError, match="closed form"):
            loss.closed_form(OUTPUT, LABELS, feedback)


def test_a_row_of_zeros_has_a_finite_gradient_of_zero() -> None:
    for form in ("dot", "cosine", "decorrelated"):
        loss = pair(form=form)
        rows = OUTPUT.clone()
        rows[2] = 0
        rows.requires_grad_()
        masked = rows * (torch.arange(B) != 2).double().unsqueeze(1)
        value(loss, masked).backward()
        assert rows.grad is not None
        assert rows.grad.isfinite().all()
        assert not rows.grad[2].any()


def test_the_message_of_the_output_layer_is_one_row_per_class() -> None:
    top = PrototypeOutput(nn.Linear(D, C, dtype=OUTPUT.dtype))
    top.build(OUTPUT, C)
    feedback, below = top.make_feedback(None)
    assert feedback is None
    assert below is not None
    assert torch.equal(below, torch.eye(C, dtype=OUTPUT.dtype))


def test_the_ramp_changes_in_training_mode_only() -> None:
    ramp = Ramp(4)
    one = torch.ones(())
    assert [ramp(one).item() for _ in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    fresh = Ramp(4).eval()
    assert fresh(one).item() == 1
    assert fresh.count == 0


def test_feedback_layers_map_outputs_to_the_shape_of_inputs() -> None:
    for above, shape, message in [
        (nn.Linear(5, 4, bias=False), (5,), (3, 4)),
        (nn.Linear(18, 4), (2, 3, 3), (3, 4)),
        (nn.Conv2d(2, 6, 3, padding=1, bias=False), (2, 8, 8), (3, 6, 4, 4)),
        (nn.Conv2d(2, 6, 3, stride=2, padding=1), (2, 7, 5), (3, 6, 4, 3)),
        (nn.Conv2d(2, 6, (4, 3)), (2, 8, 8), (3, 6, 5, 6)),
        (nn.Conv1d(2, 6, 3, padding=1), (2, 8), (3, 6, 4)),
        (nn.Conv3d(2, 6, 2), (2, 4, 4, 4), (3, 6, 3, 3, 3)),
    ]:
        feedback_layer = reverse(above, torch.Size(shape), nn.ELU())
        assert feedback_layer(torch.randn(message)).shape == (3, *shape)
        assert (above.bias is None) == all(p.ndim > 1 for p in feedback_layer.parameters())
    with pytest.raises(BadValue, match="linear or convolutional"):
        CounterCurrent(nn.ConvTranspose2d(1, 1, 3))
