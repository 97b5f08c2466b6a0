"""How a labelled example is shown to the first block: as it is, or with a label written into it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree.losses import accuracy

View = Literal["plain", "neutral", "candidates"]


@dataclass(frozen=True)
class Overlaid:
    """The same images under several labels, not yet multiplied out.

    Attributes:
        images: ``[B, ...]``; the first C values of each (flattened) are to be overwritten.
        codes: ``[V, B, C]`` or ``[V, 1, C]``, what is written there in each of the V views.
    """

    images: Tensor
    codes: Tensor

    def dense(self) -> Tensor:
        """All rows, ``[V * B, ...]``: every image under the first label, then under the second."""
        views, _, width = self.codes.shape
        rows = self.images.expand(views, *self.images.shape).flatten(2).clone()
        rows[:, :, :width] = self.codes
        return rows.view(-1, *self.images.shape[1:])


class Encoding:
    """Shows images as they are. The base of the other encodings.

    Attributes:
        views: How many rows a sample becomes in training.
        redraw: Whether a sample looks different each time; if so, features of it cannot be cached.
        whole: Whether a sample cannot be shown without all the others: a node of a graph.
        measure: What `judge` gives.
    """

    views: int = 1
    redraw: bool = False
    whole: bool = False
    measure: str = "accuracy"

    def draw(self, y: Tensor, generator: torch.Generator, scores: Tensor | None = None) -> Tensor | None:
        """Draw what is random in the encoding of the samples ``y [B]``: nothing here."""
        return None

    def encode(self, x: Tensor, y: Tensor, drawn: Tensor | None) -> tuple[Tensor | Overlaid, Tensor]:
        """Rows for the first block and the target of each row, ``[views * B, ...]`` and ``[views * B]``."""
        return x, y

    def answers(self, data: Any) -> Tensor:
        """What scores are judged against: the labels ``[N]`` of the data set."""
        return data.y  # type: ignore[no-any-return]

    def judge(self, scores: Tensor, answers: Tensor) -> float:
        """How good scores are, higher is better: the share of rows that they classify rightly."""
        return accuracy(scores, answers)

    def message(self) -> Tensor | None:
        """What comes to the top block as its message from above: nothing here."""
        return None

    def view(self, x: Tensor, view: View) -> Tensor | Overlaid:
        """The rows that a readout asks for, without knowing the label.

        Raises:
            BadValue: If this encoding has no such view.
        """
        if view != "plain":
            raise BadValue(f"a readout asked for the {view!r} view, which needs an encoding with labels")
        return x


class Reconstruct(Encoding):
    """Shows images as they are, and asks for them back; labels take no part."""

    measure = "negative squared error"

    def encode(self, x: Tensor, y: Tensor, drawn: Tensor | None) -> tuple[Tensor, Tensor]:
        return x, x

    def answers(self, data: Any) -> Tensor:
        """The images."""
        return data.batch(torch.arange(len(data.y), device=data.y.device))[0]  # type: ignore[no-any-return]

    def judge(self, scores: Tensor, answers: Tensor) -> float:
        """The negative mean squared error."""
        return -F.mse_loss(scores, answers).item()


class LabelOverlay(Encoding):
    """Overwrites the first C values of the input by a label code (Hinton, arXiv 2212.13345).

    A training sample becomes two rows, target 1 with its own label and target 0 with a wrong one; the
    positives stand first. ``neutral`` writes 1/C everywhere; ``candidates`` writes each label in turn,
    ``[C * B]`` rows.

    Args:
        n_classes: Number of classes C.
        scale: Value of the code; 1 is the range of raw pixels.
        negatives: ``"uniform"`` over the C-1 wrong classes; ``"permuted"``, the labels of the batch
            shuffled, of which about one in C is the true one; ``"hard"``, drawn from the classifier's
            probabilities of the wrong classes.
        redraw: Whether the wrong label is drawn at every step or once for the whole run.
    """

    views = 2

    def __init__(
        self,
        n_classes: int,
        scale: float = 1.0,
        negatives: Literal["uniform", "permuted", "hard"] = "uniform",
        redraw: bool = True,
    ) -> None:
        self.n_classes, self.scale, self.negatives, self.redraw = n_classes, scale, negatives, redraw

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
        return self._overlay(x, codes.to(x.dtype)), torch.arange(
            1, -1, -1, device=y.device
        ).repeat_interleave(len(y))

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
        return self._overlay(x, codes)

    def _overlay(self, x: Tensor, codes: Tensor) -> Overlaid:
        if x[0].numel() <= self.n_classes:
            raise BadValue(f"{self.n_classes} label values do not fit into an input of {x[0].numel()} values")
        return Overlaid(x, codes)


class OverlaidLinear(nn.Module):
    """`LengthNorm` and a linear layer on overlaid images, the images' part computed once for all labels.

    Equals ``linear(LengthNorm()(rows.dense().flatten(1)))``, at the cost of B rows instead of V * B.
    """

    def __init__(self, linear: nn.Linear, eps: float = 1e-8) -> None:
        super().__init__()
        self.linear, self.eps = linear, eps

    def forward(self, rows: Overlaid) -> Tensor:
        classes, weight = rows.codes.shape[-1], self.linear.weight
        pixels = rows.images.flatten(1)[:, classes:]
        products = pixels @ weight[:, classes:].T + rows.codes @ weight[:, :classes].T
        squares = pixels.square().sum(1) + rows.codes.square().sum(2)
        rms = (squares / weight.shape[1]).sqrt() + self.eps
        out = products / rms.unsqueeze(2)
        if self.linear.bias is not None:
            out = out + self.linear.bias
        return out.flatten(0, 1)


class DenseRows(nn.Module):
    """Multiplies overlaid images out, for a first layer that is not linear."""

    def forward(self, rows: Overlaid) -> Tensor:
        return rows.dense()
