"""Counter-current learning: a block's output against what a feedback network makes of the classes."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree.losses.base import ClosedFormLoss, ClosedFormStep, FeedbackLoss
from bpfree.losses.cross_entropy import LocalCrossEntropy
from bpfree.nn import at_least_float32
from bpfree.nn._closed_form import body_gradients

Form = Literal["dot", "cosine", "decorrelated"]
#: Layers that feedback layers are made for.
Reversed = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Ramp(nn.Module):
    """Calls, in training mode, give 1/n, 2/n, ... and 1 from the n-th on: a loss that warms up.

    Args:
        n: Steps of the warm-up; 0 for none.
    """

    count: Tensor

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, loss: Tensor) -> Tensor:
        """``loss`` times the share that counts now."""
        if self.n == 0 or not self.training:
            return loss
        self.count += 1
        return loss * (self.count / self.n).clamp(max=1.0)


class CounterCurrent(FeedbackLoss, ClosedFormLoss):
    """The pair loss of Kao and Hariharan (arXiv 2409.19841), with the feedback layer that it owns.

    From above come the prototypes of all C classes, ``[C, ...]``; the feedback layer V makes of them the
    prototypes ``b [C, d]`` of this block, which go on downwards. With ``a [rows, d]`` the block's output and
    ``Y [rows, C]`` one-hot, both flattened::

        dot:           base k / d * mean((a b^T - Y)^2)
        cosine:        weight * mean((n(a) n(b)^T - Y)^2)                     n(x) = x / (|x| + 1e-8), by row
        decorrelated:  cosine + decorrelation * (mean((n(a) n(a)^T - I)^2) + mean((n(b) n(b)^T - I)^2))

    The gradient moves the block's body and V, and nothing else.

    Args:
        above: The layer (linear or convolutional) of the next block, which V reverses in shape; no weight is
            shared.
        activation: What follows V; None for none.
        form: Which of the three.
        k: Scale of ``dot``.
        base: Width at which the scale of ``dot`` is k.
        weight: Weight of the cross term of the cosine forms.
        decorrelation: Weight of the other terms of ``decorrelated``.
        per_sample: Compare each row with the prototypes of the batch's labels, one per row, instead of those
            of all classes: classes count as often as they come.
        warmup: See `Ramp`.
    """

    def __init__(
        self,
        above: nn.Module,
        activation: nn.Module | None = None,
        form: Form = "dot",
        k: float = 0.5,
        base: float = 256.0,
        weight: float = 1.0,
        decorrelation: float = 0.5,
        per_sample: bool = False,
        warmup: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(above, Reversed):
            raise BadValue(f"counter-current learning reverses linear and convolutional layers, not {above}")
        self.form, self.k, self.base, self.weight = form, k, base, weight
        self.decorrelation, self.per_sample, self.ramp = decorrelation, per_sample, Ramp(warmup)
        self.by_row = form != "decorrelated" and not per_sample
        # In a tuple, which is no submodule: the layer is the next block's own.
        self._above: tuple[Reversed] = (above,)
        self._activation = (activation,)
        self._message: Tensor | None = None

    def build(self, output: Tensor, n_classes: int) -> None:
        self.n_classes = n_classes
        self.feedback = reverse(self._above[0], output.shape[1:], self._activation[0]).to(output.device)

    def weights(self) -> tuple[Tensor, Tensor]:
        """The weights of the layer above, and of the feedback layer that reverses it."""
        above = self._above[0].weight
        return above, next(p for p in self.feedback.parameters() if p.ndim > 1)

    def feedback_parameters(self) -> Iterable[nn.Parameter]:
        return self.feedback.parameters()

    def make_feedback(self, message: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        assert message is not None
        self._message = message
        prototypes = self.feedback(message)
        return prototypes, prototypes

    def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
        assert feedback is not None
        a, b, same = output.flatten(1), *self._partners(target, feedback.flatten(1))
        if self.form == "dot":
            return self.ramp(self.base * self.k / a.shape[1] * _distance(a, b, same))  # type: ignore[no-any-return]
        a, b = (x / (x.norm(dim=1, keepdim=True) + 1e-8) for x in (at_least_float32(a), at_least_float32(b)))
        loss = self.weight * _distance(a, b, same)
        if self.form == "decorrelated":
            loss = loss + self.decorrelation * sum(
                _distance(x, x, torch.eye(len(x), dtype=x.dtype, device=x.device)) for x in (a, b)
            )
        return self.ramp(loss)  # type: ignore[no-any-return]

    def closed_form(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> ClosedFormStep:
        if self.form != "dot" or self.per_sample:
            raise TypeError("the closed form is that of form = 'dot' with class prototypes")
        assert feedback is not None
        assert self._message is not None
        a, b, same = output.flatten(1), *self._partners(target, feedback.flatten(1))
        difference = a @ b.T - same
        scale = self.ramp(torch.full_like(difference[0, 0], self.base * self.k / a.shape[1]))
        error = difference * (2 * scale / difference.numel())
        gradients = body_gradients(self.feedback, self._message, feedback, error.T @ a)
        return ClosedFormStep(scale * difference.square().mean(), (error @ b).view_as(output), gradients)

    def _partners(self, target: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
        """Whom each row is compared with, ``[m, d]``, and 1 where they are of one class, ``[rows, m]``."""
        if self.per_sample:
            return prototypes[target], (target.unsqueeze(1) == target).to(prototypes.dtype)
        return prototypes, F.one_hot(target, self.n_classes).to(prototypes.dtype)


def _distance(a: Tensor, b: Tensor, same: Tensor) -> Tensor:
    """``mean((a b^T - same)^2)``."""
    return (at_least_float32(a @ b.T) - same).square().mean()


class PrototypeOutput(LocalCrossEntropy, FeedbackLoss):
    """Cross-entropy of the network's output layer, which sends each class once down the wire: ``[C, C]``.

    Args:
        head: The output layer.
        warmup: See `Ramp`.
    """

    def __init__(self, head: nn.Module, warmup: int = 0) -> None:
        super().__init__(head)
        self.ramp = Ramp(warmup)

    def build(self, output: Tensor, n_classes: int) -> None:
        super().build(output, n_classes)
        self.n_classes = n_classes

    def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
        return self.ramp(super().forward(output, target))  # type: ignore[no-any-return]

    def closed_form(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> ClosedFormStep:
        loss, error, gradients = super().closed_form(output, target)
        share = self.ramp(torch.ones_like(loss))
        return ClosedFormStep(share * loss, share * error, {p: g.mul_(share) for p, g in gradients.items()})

    def make_feedback(self, message: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        weight = next(self.parameters())
        return None, torch.eye(self.n_classes, dtype=weight.dtype, device=weight.device)


def _no_way(above: nn.Module, shape: torch.Size, expected: str) -> str:
    return (
        f"counter-current learning: a block gives {list(shape)} a sample where {above} takes {expected}: "
        "the feedback cannot be led back; put nothing but pooling, flattening, normalization, activations "
        "and dropout between layers"
    )


def reverse(above: nn.Module, shape: torch.Size, activation: nn.Module | None = None) -> nn.Sequential:
    """A layer that maps what ``above`` gives back to samples of ``shape``, the input of its block.

    A linear layer's outputs become inputs. A convolution's output is scaled up to the size of the input by
    repeating values, then filtered by a convolution of the same kernel with stride 1.

    Args:
        above: The layer, linear or convolutional.
        shape: Of a sample of the block below, without the batch.
        activation: What follows.

    Raises:
        BadValue: If a sample of ``shape`` is no input of ``above``, but for a flattening.
    """
    layers: list[nn.Module] = []
    if isinstance(above, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        if len(shape) != len(above.kernel_size) + 1 or shape[0] != above.in_channels:
            raise BadValue(_no_way(above, shape, f"maps of {above.in_channels} channels"))
        size = tuple(map(int, above.kernel_size))
        # An even kernel takes one off, and finds one more there.
        larger = tuple(n + 1 - side % 2 for n, side in zip(shape[1:], size, strict=True))
        padding = tuple((side - 1) // 2 for side in size)
        layers += [
            nn.Upsample(size=larger),
            CONVOLUTIONS[len(size)](
                above.out_channels, above.in_channels, size, padding=padding, bias=above.bias is not None
            ),
        ]
    else:
        assert isinstance(above, nn.Linear)
        if math.prod(shape) != above.in_features:
            raise BadValue(_no_way(above, shape, f"{above.in_features} values, flattened"))
        layers.append(nn.Linear(above.out_features, above.in_features, bias=above.bias is not None))
        if len(shape) > 1:
            layers.append(nn.Unflatten(1, tuple(shape)))
    return nn.Sequential(*layers, *([copy.deepcopy(activation)] if activation is not None else []))
