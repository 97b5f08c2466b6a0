"""How a labelled example is shown to the first block: as it is, or with a label written into it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree.losses import accuracy
from bpfree.nn import LengthNorm, StraightThroughReLU
from bpfree.nn.weights import is_plain

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
        redraw: Whether a sample looks different each time; if so, features of it cannot be cached, except
            where all its `looks` can be.
        whole: Whether a sample cannot be shown without all the others: a node of a graph.
        measure: What `judge` gives.
    """

    views: int = 1
    redraw: bool = False
    whole: bool = False
    measure: str = "accuracy"

    def build(self, n_classes: int) -> None:
        """Be told how many classes there are; called once."""

    def looks(self, x: Tensor) -> Tensor:
        """Every way in which `encode` may show the samples ``x [B, ...]``, ``[looks * B, ...]``, look by
        look.

        For encodings that are redrawn among a few looks; what is drawn says which are shown, see `chosen`.
        """
        raise TypeError(f"{type(self).__name__} has too many looks to tell them apart")

    def chosen(self, y: Tensor, drawn: Tensor | None) -> tuple[Tensor, Tensor]:
        """The looks that `encode` shows the samples ``y [B]`` in, ``[views, B]``, and the rows' targets."""
        raise TypeError(f"{type(self).__name__} does not tell looks apart")

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

    def copies(self, view: View) -> int:
        """How many rows of `view` stand for one sample."""
        return 1

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
        n_classes: Number of classes C; 0: as it is told by `build`.
        scale: Value of the code; 1 is the range of raw pixels.
        negatives: ``"uniform"`` over the C-1 wrong classes; ``"permuted"``, the labels of the batch
            shuffled, of which about one in C is the true one; ``"hard"``, drawn from the classifier's
            probabilities of the wrong classes.
        redraw: Whether the wrong label is drawn at every step or once for the whole run.
    """

    views = 2

    def __init__(
        self,
        n_classes: int = 0,
        scale: float = 1.0,
        negatives: Literal["uniform", "permuted", "hard"] = "uniform",
        redraw: bool = True,
    ) -> None:
        self.n_classes, self.scale, self.negatives, self.redraw = n_classes, scale, negatives, redraw

    def build(self, n_classes: int) -> None:
        self.n_classes = self.n_classes or n_classes

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
        return self._overlay(x, codes)

    def _overlay(self, x: Tensor, codes: Tensor) -> Overlaid:
        if x[0].numel() <= self.n_classes:
            raise BadValue(f"{self.n_classes} label values do not fit into an input of {x[0].numel()} values")
        return Overlaid(x, codes)


class LabelSlots(Encoding, nn.Module):
    """Puts C values in front of the (flattened) sample: a label's is the amplitude, all others are 0.

    A training sample becomes a row with its own label, target 1, and rows with wrong ones, target 0; all
    positives stand first. ``candidates`` fills each slot in turn, ``[C * B]`` rows; ``neutral`` and ``plain``
    leave all at 0.

    Args:
        n_classes: Number of classes C.
        negatives: ``"random"``, one of the C-1 wrong labels, redrawn at every step; ``"all"`` of them.

    Attributes:
        amplitude: Value of a filled slot, in the unit of the samples; a buffer, 1 at first.
    """

    amplitude: Tensor

    def __init__(self, n_classes: int, negatives: Literal["random", "all"] = "random") -> None:
        nn.Module.__init__(self)
        self.n_classes, self.redraw = n_classes, negatives == "random"
        self.views = 2 if self.redraw else n_classes
        self.register_buffer("amplitude", torch.ones(()))

    def draw(self, y: Tensor, generator: torch.Generator, scores: Tensor | None = None) -> Tensor:
        """Wrong labels of each sample, ``[B, views - 1]``."""
        if self.redraw:
            offset = torch.randint(1, self.n_classes, (len(y), 1), generator=generator, device=y.device)
        else:
            offset = torch.arange(1, self.n_classes, device=y.device)
        return (y.unsqueeze(1) + offset) % self.n_classes

    def copies(self, view: View) -> int:
        return self.n_classes if view == "candidates" else 1

    def looks(self, x: Tensor) -> Tensor:
        return self.view(x, "candidates")

    def chosen(self, y: Tensor, drawn: Tensor | None) -> tuple[Tensor, Tensor]:
        assert drawn is not None
        labels = torch.cat([y.unsqueeze(1), drawn], 1).T
        own = torch.arange(self.views, device=y.device) == 0
        return labels, own.long().repeat_interleave(len(y))

    def encode(self, x: Tensor, y: Tensor, drawn: Tensor | None) -> tuple[Tensor, Tensor]:
        labels, target = self.chosen(y, drawn)
        return self.labelled(x, labels), target

    def labelled(self, x: Tensor, labels: Tensor) -> Tensor:
        """The samples ``x [B, ...]`` under ``labels [V, B]``, ``[V * B, C + d]``."""
        return self._slotted(x, F.one_hot(labels, self.n_classes))

    def view(self, x: Tensor, view: View) -> Tensor:
        if view == "candidates":
            return self._slotted(x, torch.eye(self.n_classes, device=x.device).unsqueeze(1))
        return self._slotted(x, torch.zeros(1, 1, self.n_classes, device=x.device))

    def _slotted(self, x: Tensor, codes: Tensor) -> Tensor:
        """Rows ``[V * B, C + d]`` of the samples ``x [B, ...]`` under the codes ``[V, B or 1, C]``."""
        x = x.flatten(1)
        codes = (codes * self.amplitude).to(x.dtype).expand(-1, len(x), -1)
        return torch.cat([codes, x.expand(len(codes), *x.shape)], 2).flatten(0, 1)


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
    inner = [m for m in layers if not isinstance(m, nn.Flatten)]
    # What its hooks do, or a forward of its own, needs a call of the layer.
    if isinstance(inner[0], nn.Linear) and is_plain(inner[0], computed=True):
        return nn.Sequential(OverlaidLinear(inner[0]), *inner[1:])
    return nn.Sequential(DenseRows(), LengthNorm(), *layers)
