"""Counter-current learning: a block's output is compared with class prototypes from a feedback network."""

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
#: Layers for which a feedback layer can be made.
Reversible = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Ramp(nn.Module):
    """A linear warm-up: call k in training mode multiplies its argument by ``min(k / n, 1)``.

    Args:
        n: Number of warm-up steps; 0: no warm-up.
    """

    count: Tensor

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, loss: Tensor) -> Tensor:
        """``loss`` times the factor of this step; in evaluation mode the factor is 1."""
        if self.n == 0 or not self.training:
            return loss
        self.count += 1
        return loss * (self.count / self.n).clamp(max=1.0)


class CounterCurrent(FeedbackLoss, ClosedFormLoss):
    """The pair loss of Kao and Hariharan (arXiv 2409.19841), with its feedback layer.

    The message from the block above has the prototypes of all C classes, ``[C, ...]``. The feedback layer V
    maps them to the prototypes ``b [C, d]`` of this block, which are also the message for the block below.
    With ``a [rows, d]`` the block's output, ``a`` and ``b`` flattened, and ``Y [rows, C]`` the one-hot
    labels::

        dot:           base k / d * mean((a b^T - Y)^2)
        cosine:        weight * mean((n(a) n(b)^T - Y)^2)                     n(x) = x / (|x| + 1e-8), by row
        decorrelated:  cosine + decorrelation * (mean((n(a) n(a)^T - I)^2) + mean((n(b) n(b)^T - I)^2))

    Only the block's body and V have a gradient.

    Args:
        above: The layer (linear or convolutional) of the next block. V maps from the shape of its output to
            the shape of its input; no weight is shared.
        activation: The activation after V; None: no activation.
        form: ``"dot"``, ``"cosine"`` or ``"decorrelated"``.
        k: Scale of ``dot``.
        base: Width at which the scale of ``dot`` is k.
        weight: Weight of the cross term of the cosine forms.
        decorrelation: Weight of the other terms of ``decorrelated``.
        per_sample: Whether to compare each row with the prototypes of the labels in the batch, one per row,
            instead of one per class: a class has as many terms as samples in the batch.
        warmup: Number of warm-up steps, see `Ramp`.

    Raises:
        BadValue: If ``above`` is another kind of layer; in `build`, if its input does not have the shape of
            the block's output.
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
        if not isinstance(above, Reversible):
            raise BadValue(
                f"counter-current learning: no feedback layer for {above}; "
                "expected a linear or convolutional layer"
            )
        self.form, self.k, self.base, self.weight = form, k, base, weight
        self.decorrelation, self.per_sample, self.ramp = decorrelation, per_sample, Ramp(warmup)
        self.by_row = form != "decorrelated" and not per_sample
        # In a tuple, so that it is not a submodule: the layer belongs to the next block.
        self._above: tuple[Reversible] = (above,)
        self._activation = (activation,)
        self._message: Tensor | None = None

    def build(self, output: Tensor, n_classes: int) -> None:
        self.n_classes = n_classes
        self.feedback = reverse(self._above[0], output.shape[1:], self._activation[0]).to(output.device)

    def weights(self) -> tuple[Tensor, Tensor]:
        """Return the weights of the layer above and of the feedback layer."""
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
        a, b, same = output.flatten(1), *self._compared(target, feedback.flatten(1))
        if self.form == "dot":
            result: Tensor = self.ramp(self.base * self.k / a.shape[1] * _distance(a, b, same))
            return result
        a, b = (x / (x.norm(dim=1, keepdim=True) + 1e-8) for x in (at_least_float32(a), at_least_float32(b)))
        loss = self.weight * _distance(a, b, same)
        if self.form == "decorrelated":
            loss = loss + self.decorrelation * sum(
                _distance(x, x, torch.eye(len(x), dtype=x.dtype, device=x.device)) for x in (a, b)
            )
        scaled: Tensor = self.ramp(loss)
        return scaled

    def closed_form(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> ClosedFormStep:
        if self.form != "dot" or self.per_sample:
            raise TypeError("there is a closed form only for form = 'dot' and per_sample = False")
        assert feedback is not None
        assert self._message is not None
        a, b, same = output.flatten(1), *self._compared(target, feedback.flatten(1))
        difference = a @ b.T - same
        scale = self.ramp(torch.full_like(difference[0, 0], self.base * self.k / a.shape[1]))
        error = difference * (2 * scale / difference.numel())
        gradients = body_gradients(self.feedback, self._message, feedback, error.T @ a)
        return ClosedFormStep(scale * difference.square().mean(), (error @ b).view_as(output), gradients)

    def _compared(self, target: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the prototypes that rows are compared with, ``[m, d]``, and 1 for equal classes, else 0,
        ``[rows, m]``.
        """
        if self.per_sample:
            return prototypes[target], (target.unsqueeze(1) == target).to(prototypes.dtype)
        return prototypes, F.one_hot(target, self.n_classes).to(prototypes.dtype)


def _distance(a: Tensor, b: Tensor, same: Tensor) -> Tensor:
    """``mean((a b^T - same)^2)``."""
    return (at_least_float32(a @ b.T) - same).square().mean()


class PrototypeOutput(LocalCrossEntropy, FeedbackLoss):
    """Cross-entropy of the network's output layer. Its message is one one-hot row per class, ``[C, C]``.

    Args:
        head: The output layer.
        warmup: Number of warm-up steps, see `Ramp`.
    """

    def __init__(self, head: nn.Module, warmup: int = 0) -> None:
        super().__init__(head)
        self.ramp = Ramp(warmup)

    def build(self, output: Tensor, n_classes: int) -> None:
        super().build(output, n_classes)
        self.n_classes = n_classes

    def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
        result: Tensor = self.ramp(super().forward(output, target))
        return result

    def closed_form(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> ClosedFormStep:
        loss, error, gradients = super().closed_form(output, target)
        factor = self.ramp(torch.ones_like(loss))
        scaled = {p: g.mul_(factor) for p, g in gradients.items()}
        return ClosedFormStep(factor * loss, factor * error, scaled)

    def make_feedback(self, message: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        weight = next(self.parameters())
        return None, torch.eye(self.n_classes, dtype=weight.dtype, device=weight.device)


def _shape_error(above: nn.Module, shape: torch.Size, expected: str) -> str:
    return (
        f"counter-current learning: the output of a block has the shape {list(shape)} per sample, but "
        f"{above} expects {expected}: no feedback layer can be made; use only pooling, flattening, "
        "normalization, activations and dropout between layers"
    )


def reverse(above: nn.Module, shape: torch.Size, activation: nn.Module | None = None) -> nn.Sequential:
    """Make the feedback layer of ``above``: it maps its outputs to samples of ``shape``, the block's input.

    For a linear layer, it is a linear layer with inputs and outputs exchanged. For a convolution, the output
    is scaled up to the size of the input by repeating values, then filtered by a convolution with the same
    kernel size and stride 1.

    Args:
        above: The layer, linear or convolutional.
        shape: Shape of an output of the block below, without the batch dimension.
        activation: The activation after the layer; None: no activation.

    Raises:
        BadValue: If ``above`` does not accept a sample of ``shape``, flattened for a linear layer.
    """
    layers: list[nn.Module] = []
    if isinstance(above, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        if len(shape) != len(above.kernel_size) + 1 or shape[0] != above.in_channels:
            raise BadValue(_shape_error(above, shape, f"maps of {above.in_channels} channels"))
        size = tuple(map(int, above.kernel_size))
        # The output of an even kernel is one smaller than its input.
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
            raise BadValue(_shape_error(above, shape, f"{above.in_features} values, flattened"))
        layers.append(nn.Linear(above.out_features, above.in_features, bias=above.bias is not None))
        if len(shape) > 1:
            layers.append(nn.Unflatten(1, tuple(shape)))
    return nn.Sequential(*layers, *([copy.deepcopy(activation)] if activation is not None else []))
