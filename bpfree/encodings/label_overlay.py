"""Label codes that overwrite the first values of an input, or are an additional input (Forward-Forward)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree._renamed import module_getattr
from bpfree._rows import StructuredRows
from bpfree.encodings.base import Encoding, HasBody, View
from bpfree.nn import LengthNorm, StraightThroughReLU, at_least_float32
from bpfree.nn.layers import WIDE
from bpfree.nn.weights import is_plain, weight_matrices

#: Where the label code is: in place of the first C values of a sample (``force``), or as C additional inputs
#: (``beside``). ``auto``: ``force`` for images whose first C values are equal in all training samples, and
#: ``beside`` otherwise.
Overlay = Literal["auto", "force", "beside"]


@dataclass(frozen=True)
class Overlaid(StructuredRows):
    """Images with several label codes each, stored separately.

    Attributes:
        images: ``[B, ...]``. The codes replace the first C values of each flattened image, unless the first
            layer is a `LabeledLayer`, which has additional inputs for the codes.
        codes: Label codes of the V views, ``[V, B, C]`` or ``[V, 1, C]``.
    """

    images: Tensor
    codes: Tensor

    def dense(self) -> Tensor:
        """Return all rows, ``[V * B, ...]``: all images with the first code, then all with the second."""
        views, _, width = self.codes.shape
        rows = self.images.expand(views, *self.images.shape).flatten(2).clone()
        rows[:, :, :width] = self.codes
        return rows.view(-1, *self.images.shape[1:])

    def samples(self, views: int, start: int, stop: int) -> Overlaid:
        codes = self.codes if self.codes.shape[1] == 1 else self.codes[:, start:stop]
        return Overlaid(self.images[start:stop], codes)


class LabelOverlay(Encoding):
    """Adds a label code to the input (Hinton, arXiv 2212.13345): over its first C values, or beside it.

    A training sample has two rows: one with its label and the target 1, and one with a wrong label and the
    target 0. The positive rows come first. In the ``neutral`` view all values of the code are 1/C; the
    ``candidates`` view has one row for each label, ``[C * B]`` rows.

    Args:
        n_classes: Number of classes C; 0: the number that `build` is called with.
        scale: Value of a code over the input, where 1 is the range of raw pixels; or length of a code beside
            the input, see `LabeledLayer`.
        negatives: Distribution of the wrong label. ``"uniform"``: uniform over the C-1 wrong classes;
            ``"permuted"``: the labels of the batch in random order, of which about one in C is correct;
            ``"hard"``: the classifier's probabilities of the wrong classes.
        redraw: Whether the wrong label is drawn at each step, or once for the run.
        overlay: Where the code is, see `Overlay`.

    Attributes:
        beside: Whether the code is beside the input. None: not determined yet; it is set by the first
            training data, and until then the code is over the input.
        fitted: Whether the scale of a code beside the input has been set by training data.
    """

    views = 2

    def __init__(
        self,
        n_classes: int = 0,
        scale: float = 1.0,
        negatives: Literal["uniform", "permuted", "hard"] = "uniform",
        redraw: bool = True,
        overlay: Overlay = "auto",
    ) -> None:
        self.n_classes, self.scale, self.negatives, self.redraw = n_classes, scale, negatives, redraw
        self.needs_scores = negatives == "hard"
        self.overlay, self.fitted = overlay, False
        self.beside: bool | None = None if overlay == "auto" else overlay == "beside"

    def build(self, n_classes: int) -> None:
        self.n_classes = self.n_classes or n_classes

    def place(self, sample_shape: Sequence[int]) -> None:
        """Set `beside` for samples with less than three dimensions or not more values than the code."""
        if self.beside is None and (
            len(sample_shape) < 3 or torch.Size(sample_shape).numel() <= self.n_classes
        ):
            self.beside = True

    def prepare(self, first_block: HasBody, sample_shape: Sequence[int]) -> None:
        self.place(sample_shape)
        self._check_size(torch.Size(sample_shape).numel())
        if self.beside:
            first_block.body = add_label_inputs(first_block.body, self.n_classes)

    def draw(self, y: Tensor, generator: torch.Generator, scores: Tensor | None = None) -> Tensor:
        """Draw a label for each negative row, ``[B]``.

        Raises:
            BadValue: If negatives are ``"hard"`` and there are no ``scores [B, C]``.
        """
        if self.negatives == "uniform":
            offset = torch.randint(1, self.n_classes, y.shape, generator=generator, device=y.device)
            return (y + offset) % self.n_classes
        if self.negatives == "permuted":
            return y[torch.randperm(len(y), generator=generator, device=y.device)]
        if scores is None:
            raise BadValue(
                "negatives = 'hard': expected a classifier readout that is trained with the blocks; "
                "add one, or use 'uniform'"
            )
        # The constant is needed if all probabilities of wrong classes are 0. NaN scores are reported by the
        # classifier's loss, not here.
        wrong = (scores.softmax(1).nan_to_num(1.0) + 1e-12).scatter(1, y.unsqueeze(1), 0.0)
        return torch.multinomial(wrong, 1, generator=generator).squeeze(1)

    def encode(self, x: Tensor, y: Tensor, random_part: Tensor | None) -> tuple[Overlaid, Tensor]:
        assert random_part is not None
        codes = F.one_hot(torch.stack([y, random_part]), self.n_classes) * self.scale
        target = torch.arange(1, -1, -1, device=y.device).repeat_interleave(len(y))
        return Overlaid(x, codes.to(x.dtype)), target

    def copies(self, view: View) -> int:
        return self.n_classes if view == "candidates" else 1

    def view(self, x: Tensor, view: View) -> Overlaid:
        if view == "candidates":
            codes = torch.eye(self.n_classes, dtype=x.dtype, device=x.device).unsqueeze(1) * self.scale
        elif view == "neutral":
            codes = torch.full(
                (1, 1, self.n_classes), self.scale / self.n_classes, dtype=x.dtype, device=x.device
            )
        else:
            raise BadValue(
                "a readout needs the 'plain' view, without a label code, on which the blocks were not "
                "trained; use one of the 'neutral' or 'candidates' view"
            )
        self._check_size(x[0].numel())
        return Overlaid(x, codes)

    def _check_size(self, values: int) -> None:
        if not self.beside and values <= self.n_classes:
            raise BadValue(
                f"overlay: a code of {self.n_classes} label values does not fit into an input of {values} "
                "values; use overlay = 'beside'"
            )


class OverlaidLinear(nn.Module):
    """`LengthNorm` and a linear layer, with the product of images and weights computed once for all labels.

    Equals ``linear(LengthNorm()(rows.dense().flatten(1)))``, at the cost of B rows instead of V * B.

    Args:
        linear: The layer.
        eps: As in `LengthNorm`.
        flat: Whether samples are flattened; otherwise the layer is applied to their last dimension.
    """

    def __init__(self, linear: nn.Linear, eps: float = 1e-8, flat: bool = True) -> None:
        super().__init__()
        self.linear, self.eps, self.flat = linear, eps, flat

    def forward(self, rows: Overlaid) -> Tensor:
        if not self.flat and rows.images.ndim > 2:
            result: Tensor = self.linear(LengthNorm(self.eps)(rows.dense()))
            return result
        classes, weight = rows.codes.shape[-1], self.linear.weight
        pixels = rows.images.flatten(1)[:, classes:]
        # The backward pass of a split concatenates the gradients; that of two slices pads and adds them.
        code_weight, pixel_weight = weight.split([classes, weight.shape[1] - classes], 1)
        products = pixels @ pixel_weight.T + rows.codes @ code_weight.T
        squares = pixels.square().sum(1) + rows.codes.square().sum(2)
        rms = (squares / weight.shape[1]).sqrt() + self.eps
        out: Tensor = products / rms.unsqueeze(2)
        if self.linear.bias is not None:
            out = out + self.linear.bias
        return out.flatten(0, 1)


class DenseRows(nn.Module):
    """Calls `Overlaid.dense`, for a first layer that is not linear."""

    def forward(self, rows: Overlaid) -> Tensor:
        return rows.dense()


class LabelColumns(nn.Module):
    """C additional columns of a layer's weight matrix, for label codes beside its input.

    They are parameters of this module, so that the layer does not change in the network that it belongs to.
    They are initialized from a normal distribution with the root mean square of the layer's weights.

    Args:
        layer: A linear layer or a convolution.
        n_classes: Number of classes C.

    Attributes:
        weight: ``[out, C]``.
        unit: Length of a code of scale 1, in the unit of the samples; a buffer.
        fan_in: Number of inputs of one unit of the layer.
    """

    #: The columns do not count as a weight matrix, see `bpfree.nn.weights.weight_matrices`.
    extends_layer: ClassVar[bool] = True
    unit: Tensor

    def __init__(self, layer: nn.Linear | nn.modules.conv._ConvNd, n_classes: int) -> None:
        super().__init__()
        if isinstance(layer, nn.Linear):
            self.fan_in, n_out = layer.in_features, layer.out_features
        else:
            self.fan_in = layer.in_channels // layer.groups * math.prod(layer.kernel_size)
            n_out = layer.out_channels
        size = layer.weight.detach().square().mean().sqrt()
        self.weight = nn.Parameter(layer.weight.new_empty(n_out, n_classes).normal_() * size)
        self.register_buffer("unit", layer.weight.new_tensor(math.sqrt(self.fan_in)))

    def forward(self, codes: Tensor) -> Tensor:
        return F.linear(codes, self.weight)


class LabeledLayer(nn.Module):
    """`LengthNorm` of samples concatenated with label codes, and the first layers, with C additional inputs.

    With ``x [d]`` a sample, ``c [C]`` its label code in units of `LabelColumns.unit`, and ``W`` and ``U`` the
    weights of the layer and of the label::

        r = sqrt((sum x_i^2 + sum c_k^2) / (d + C)) + eps
        out = W x / r + U c / r + b

    For a convolution, ``U c / r`` is added at all positions.

    Args:
        before: Layers before the first layer with weights.
        layer: The first layer with weights.
        n_classes: Number of classes C.
        eps: As in `LengthNorm`.
    """

    def __init__(
        self,
        before: Sequence[nn.Module],
        layer: nn.Linear | nn.modules.conv._ConvNd,
        n_classes: int,
        eps: float = 1e-8,
    ) -> None:
        super().__init__()
        self.before, self.layer, self.eps = nn.Sequential(*before), layer, eps
        self.label = LabelColumns(layer, n_classes)

    def forward(self, rows: Overlaid) -> Tensor:
        x, codes = rows.images, rows.codes * self.label.unit.to(rows.codes.dtype)
        # All codes of a call have the same length, so the layer is computed once for all labels of a sample.
        wide = x if x.dtype in WIDE else at_least_float32(x)
        code = codes[0, 0] if codes.dtype in WIDE else at_least_float32(codes[0, 0])
        squares = wide.flatten(1).square().sum(1) + code.square().sum()
        rms = (squares / (x[0].numel() + codes.shape[-1])).sqrt().to(x.dtype) + self.eps
        out = self.layer(self.before(x / rms.view(-1, *[1] * (x.ndim - 1))))
        label = self.label(codes / rms.unsqueeze(1))
        positions = [1] * (out.ndim - 2)
        features_last = isinstance(self.layer, nn.Linear)
        shape = (*label.shape[:2], *positions, -1) if features_last else (*label.shape, *positions)
        result: Tensor = out + label.view(shape)
        return result.flatten(0, 1)


def add_label_inputs(body: nn.Module, n_classes: int) -> nn.Module:
    """Return the first of `overlaid_bodies` with additional inputs for label codes.

    Raises:
        BadValue: If the first layer with weights is neither linear nor a convolution.
    """
    first, *layers = body if isinstance(body, nn.Sequential) else [body]
    if isinstance(first, LabeledLayer):
        return body
    if isinstance(first, OverlaidLinear):
        before: list[nn.Module] = [nn.Flatten()] if first.flat else []
        return nn.Sequential(LabeledLayer(before, first.linear, n_classes), *layers)
    if isinstance(first, DenseRows):
        layers = layers[1:]
    # Normalization layers have parameters, but no weight matrices.
    index = next((k for k, m in enumerate(layers) if any(True for _ in weight_matrices(m))), 0)
    layer = layers[index]
    if not isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
        raise BadValue(
            f"the first layer with weights is a {type(layer).__name__}: label codes beside the input need a "
            "linear layer or a convolution; add one before it, or use overlay = 'force', which overwrites "
            f"the first {n_classes} values of a sample"
        )
    return nn.Sequential(LabeledLayer(layers[:index], layer, n_classes), *layers[index + 1 :])


def overlaid_bodies(
    stages: Sequence[nn.Sequential], norm: type[nn.Module] = LengthNorm, straight_through: bool = False
) -> list[nn.Module]:
    """Return the stages of a network as bodies of blocks with goodness losses.

    The input of the first is `Overlaid`, and its length is normalized. The inputs of the others are
    normalized by ``norm``, so that the goodness of a block cannot be computed from the input of the next.

    Args:
        stages: Bottom first. Their layers with weights are used, not copied.
        norm: Normalization before each stage but the first.
        straight_through: Whether the last ReLU of a stage is replaced by a `StraightThroughReLU`.
    """
    return [_overlaid_body(list(stage), k == 0, norm, straight_through) for k, stage in enumerate(stages)]


def _overlaid_body(layers: list[nn.Module], first: bool, norm: type[nn.Module], straight: bool) -> nn.Module:
    last = max((i for i, m in enumerate(layers) if isinstance(m, nn.ReLU)), default=None)
    if straight and last is not None:
        # Only the ReLU whose output the goodness is computed from: the gradient of others would be wrong.
        layers[last] = StraightThroughReLU()
    if not first:
        return nn.Sequential(norm(), *layers)
    inner = [m for m in layers if not (isinstance(m, nn.Flatten) and m.start_dim == 1)]
    # A layer with hooks or its own forward must be called.
    if isinstance(inner[0], nn.Linear) and is_plain(inner[0], computed=True):
        flat = isinstance(layers[0], nn.Flatten)
        return nn.Sequential(OverlaidLinear(inner[0], flat=flat), *inner[1:])
    return nn.Sequential(DenseRows(), LengthNorm(), *layers)


__getattr__ = module_getattr(__name__, {"LabelledLayer": "LabeledLayer"})
