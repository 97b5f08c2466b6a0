"""A label code over the first values of an input, or beside it (Forward-Forward)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree._rows import StructuredRows
from bpfree.encodings.base import Encoding, View
from bpfree.nn import LengthNorm, StraightThroughReLU, at_least_float32
from bpfree.nn.layers import WIDE
from bpfree.nn.weights import is_plain, weight_matrices

#: Where a label goes: over the first C values of a sample (``force``), beside them (``beside``), or, by
#: ``auto``, over them only in images whose first C values are the same in all training samples.
Overlay = Literal["auto", "force", "beside"]


@dataclass(frozen=True)
class Overlaid(StructuredRows):
    """The same images under several labels, not yet multiplied out.

    Attributes:
        images: ``[B, ...]``; the first C values of each (flattened) are to be overwritten, unless the first
            layer is a `LabelledLayer`, which takes the codes beside all of them.
        codes: ``[V, B, C]`` or ``[V, 1, C]``, the label codes of the V views.
    """

    images: Tensor
    codes: Tensor

    def dense(self) -> Tensor:
        """All rows, ``[V * B, ...]``: every image under the first label, then under the second."""
        views, _, width = self.codes.shape
        rows = self.images.expand(views, *self.images.shape).flatten(2).clone()
        rows[:, :, :width] = self.codes
        return rows.view(-1, *self.images.shape[1:])

    def samples(self, views: int, start: int, stop: int) -> Overlaid:
        codes = self.codes if self.codes.shape[1] == 1 else self.codes[:, start:stop]
        return Overlaid(self.images[start:stop], codes)


class LabelOverlay(Encoding):
    """Shows a label code over the first C values of the input (Hinton, arXiv 2212.13345), or beside them.

    A training sample becomes two rows, target 1 with its own label and target 0 with a wrong one; the
    positives stand first. ``neutral`` writes 1/C everywhere; ``candidates`` writes each label in turn,
    ``[C * B]`` rows.

    Args:
        n_classes: Number of classes C; 0: as it is told by `build`.
        scale: Value of the code over the input, where 1 is the range of raw pixels; of a code beside it, its
            length, see `LabelledLayer`.
        negatives: ``"uniform"`` over the C-1 wrong classes; ``"permuted"``, the labels of the batch
            shuffled, of which about one in C is the true one; ``"hard"``, drawn from the classifier's
            probabilities of the wrong classes.
        redraw: Whether the wrong label is drawn at every step or once for the whole run.
        overlay: Where the code goes, see `Overlay`.

    Attributes:
        beside: Whether the code stands beside the input; None: training data will decide, and until then it
            stands over it.
        seen: Whether training data have been looked at, so that the scale of a code beside them is known.
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
        self.overlay, self.seen = overlay, False
        self.beside: bool | None = None if overlay == "auto" else overlay == "beside"

    def build(self, n_classes: int) -> None:
        self.n_classes = self.n_classes or n_classes

    def place(self, sample_shape: Sequence[int]) -> None:
        """Put the code beside samples that are no images (three dimensions or more), or too small for it."""
        if self.beside is None and (
            len(sample_shape) < 3 or torch.Size(sample_shape).numel() <= self.n_classes
        ):
            self.beside = True

    def prepare(self, first_block: Any, sample_shape: Sequence[int]) -> None:
        self.place(sample_shape)
        self._check_room(torch.Size(sample_shape).numel())
        if self.beside:
            first_block.body = put_beside(first_block.body, self.n_classes)

    def draw(self, y: Tensor, generator: torch.Generator, scores: Tensor | None = None) -> Tensor:
        """A wrong label for each sample, ``[B]``; ``scores [B, C]`` are needed for hard negatives."""
        if self.negatives == "uniform":
            offset = torch.randint(1, self.n_classes, y.shape, generator=generator, device=y.device)
            return (y + offset) % self.n_classes
        if self.negatives == "permuted":
            return y[torch.randperm(len(y), generator=generator, device=y.device)]
        if scores is None:
            raise BadValue("negatives = 'hard': needs a classifier readout that trains beside the blocks")
        # The constant keeps a distribution over the wrong classes where the classifier is certain; that it
        # became NaN is for its loss to tell.
        wrong = (scores.softmax(1).nan_to_num(1.0) + 1e-12).scatter(1, y.unsqueeze(1), 0.0)
        return torch.multinomial(wrong, 1, generator=generator).squeeze(1)

    def encode(self, x: Tensor, y: Tensor, drawn: Tensor | None) -> tuple[Overlaid, Tensor]:
        assert drawn is not None
        codes = F.one_hot(torch.stack([y, drawn]), self.n_classes) * self.scale
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
                "a readout asked for images without a label, which these blocks were not trained on"
            )
        self._check_room(x[0].numel())
        return Overlaid(x, codes)

    def _check_room(self, values: int) -> None:
        if not self.beside and values <= self.n_classes:
            raise BadValue(
                f"{self.n_classes} label values do not fit into an input of {values} values; use "
                "overlay = 'beside'"
            )


class OverlaidLinear(nn.Module):
    """`LengthNorm` and a linear layer on overlaid images, the images' part computed once for all labels.

    Equals ``linear(LengthNorm()(rows.dense().flatten(1)))``, at the cost of B rows instead of V * B.

    Args:
        linear: The layer.
        eps: Of `LengthNorm`.
        flat: Whether samples are flattened; else the layer takes their last dimension.
    """

    def __init__(self, linear: nn.Linear, eps: float = 1e-8, flat: bool = True) -> None:
        super().__init__()
        self.linear, self.eps, self.flat = linear, eps, flat

    def forward(self, rows: Overlaid) -> Tensor:
        if not self.flat and rows.images.ndim > 2:
            return self.linear(LengthNorm(self.eps)(rows.dense()))  # type: ignore[no-any-return]
        classes, weight = rows.codes.shape[-1], self.linear.weight
        pixels = rows.images.flatten(1)[:, classes:]
        # One split, not two slices: its backward joins the two gradients where slices' pad and add them.
        of_codes, of_pixels = weight.split([classes, weight.shape[1] - classes], 1)
        products = pixels @ of_pixels.T + rows.codes @ of_codes.T
        squares = pixels.square().sum(1) + rows.codes.square().sum(2)
        rms = (squares / weight.shape[1]).sqrt() + self.eps
        out: Tensor = products / rms.unsqueeze(2)
        if self.linear.bias is not None:
            out = out + self.linear.bias
        return out.flatten(0, 1)


class DenseRows(nn.Module):
    """Multiplies overlaid images out, for a first layer that is not linear."""

    def forward(self, rows: Overlaid) -> Tensor:
        return rows.dense()


class LabelColumns(nn.Module):
    """What a layer answers to label codes beside its input: C more columns of its weights.

    They are kept apart from the layer, which so stays as it is in the network that it was taken from. They
    are drawn from a normal distribution with the root mean square of the layer's own weights.

    Args:
        layer: A linear layer or a convolution.
        n_classes: Number of classes C.

    Attributes:
        weight: ``[out, C]``.
        unit: Length of a code of scale 1, in the unit of the samples; a buffer.
        fan_in: Values of a sample that one unit of the layer sees.
    """

    #: They are no weight matrix of their own, see `bpfree.nn.weights.weight_matrices`.
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


class LabelledLayer(nn.Module):
    """`LengthNorm` on samples and label codes joined, and the first layers, which so get C more inputs.

    With ``x [d]`` a sample, ``c [C]`` its label code in units of `LabelColumns.unit`, and ``W`` and ``U`` the
    weights of the layer and of the label::

        r = sqrt((sum x_i^2 + sum c_k^2) / (d + C)) + eps
        out = W x / r + U c / r + b

    Of a convolution, which sees a part of the sample in each place, ``U c / r`` is added in all places.

    Args:
        before: Layers in front of the first with weights.
        layer: The first layer with weights.
        n_classes: Number of classes C.
        eps: Of `LengthNorm`.
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
        # All codes of a call are equally long, so samples are computed once for all their labels.
        wide = x if x.dtype in WIDE else at_least_float32(x)
        code = codes[0, 0] if codes.dtype in WIDE else at_least_float32(codes[0, 0])
        squares = wide.flatten(1).square().sum(1) + code.square().sum()
        rms = (squares / (x[0].numel() + codes.shape[-1])).sqrt().to(x.dtype) + self.eps
        out = self.layer(self.before(x / rms.view(-1, *[1] * (x.ndim - 1))))
        label = self.label(codes / rms.unsqueeze(1))
        places = [1] * (out.ndim - 2)
        last = isinstance(self.layer, nn.Linear)
        label = label.view(*label.shape[:2], *places, -1) if last else label.view(*label.shape, *places)
        joined: Tensor = out + label
        return joined.flatten(0, 1)


def put_beside(body: nn.Module, n_classes: int) -> nn.Module:
    """The first of `overlaid_bodies`, changed so that it takes label codes beside the samples.

    Raises:
        BadValue: If its first layer with weights is neither linear nor a convolution.
    """
    first, *layers = body if isinstance(body, nn.Sequential) else [body]
    if isinstance(first, LabelledLayer):
        return body
    if isinstance(first, OverlaidLinear):
        before: list[nn.Module] = [nn.Flatten()] if first.flat else []
        return nn.Sequential(LabelledLayer(before, first.linear, n_classes), *layers)
    if isinstance(first, DenseRows):
        layers = layers[1:]
    # Normalization layers have parameters too, whatever their shape.
    at = next((k for k, m in enumerate(layers) if any(True for _ in weight_matrices(m))), 0)
    layer = layers[at]
    if not isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
        raise BadValue(
            f"the first layer with weights is a {type(layer).__name__}: a label can go beside the input of a "
            "linear layer or of a convolution; put one in front, or use overlay = 'force', which overwrites "
            f"the first {n_classes} values of a sample"
        )
    return nn.Sequential(LabelledLayer(layers[:at], layer, n_classes), *layers[at + 1 :])


def overlaid_bodies(
    stages: Sequence[nn.Sequential], norm: type[nn.Module] = LengthNorm, straight_through: bool = False
) -> list[nn.Module]:
    """The stages of a network as bodies whose goodness no other block can read off its input.

    The first takes overlaid images, and normalises their length; the others normalise what comes up.

    Args:
        stages: Bottom first; their layers with weights are used, not copied.
        norm: What stands before each stage but the first.
        straight_through: Whether the last ReLU of a stage is straight through.
    """
    return [_overlaid_body(list(stage), k == 0, norm, straight_through) for k, stage in enumerate(stages)]


def _overlaid_body(layers: list[Any], first: bool, norm: type[nn.Module], straight: bool) -> nn.Module:
    last = max((i for i, m in enumerate(layers) if isinstance(m, nn.ReLU)), default=None)
    if straight and last is not None:
        # Only where the goodness is taken: below it, the identity would be a wrong gradient.
        layers[last] = StraightThroughReLU()
    if not first:
        return nn.Sequential(norm(), *layers)
    inner = [m for m in layers if not (isinstance(m, nn.Flatten) and m.start_dim == 1)]
    # What its hooks do, or a forward of its own, needs a call of the layer.
    if isinstance(inner[0], nn.Linear) and is_plain(inner[0], computed=True):
        flat = isinstance(layers[0], nn.Flatten)
        return nn.Sequential(OverlaidLinear(inner[0], flat=flat), *inner[1:])
    return nn.Sequential(DenseRows(), LengthNorm(), *layers)
