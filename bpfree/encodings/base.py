"""How labeled samples become inputs of the first block: the interface, and samples as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from bpfree._errors import BadValue
from bpfree._rows import Rows

View = Literal["plain", "neutral", "candidates"]


class Encoding:
    """Samples as they are. The base class of the other encodings.

    Attributes:
        views: Number of rows of a sample in training.
        redraw: Whether a sample is encoded differently in each step. Its features cannot be cached then,
            unless it is encoded as one of a few `variants`.
        needs_scores: Whether `draw` needs the class scores of a readout that is trained.
        transductive: Whether a sample needs all others to be encoded, as the nodes of a graph do.
    """

    views: int = 1
    redraw: bool = False
    needs_scores: bool = False
    transductive: bool = False

    def build(self, n_classes: int) -> None:
        """Set the number of classes; called once."""

    def prepare(self, first_block: Any, sample_shape: Sequence[int]) -> None:
        """Adapt the first block to encoded samples; called once, before heads are built. Here: nothing.

        Args:
            first_block: The `bpfree.Block`.
            sample_shape: Shape of a sample, without the batch.
        """

    def variants(self, x: Tensor) -> Tensor:
        """Every row that `encode` may make of the samples ``x [B, ...]``, ``[variants * B, ...]``.

        Variant by variant; for encodings that draw among a few variants, see `chosen_variants`.
        """
        raise TypeError(f"{type(self).__name__} has no fixed number of variants")

    def chosen_variants(self, y: Tensor, drawn: Tensor | None) -> tuple[Tensor, Tensor]:
        """The numbers of the variants that `encode` makes of samples ``y [B]``, and the rows' targets.

        Returns:
            ``[views, B]`` and ``[views * B]``.
        """
        raise TypeError(f"{type(self).__name__} has no fixed number of variants")

    def draw(self, y: Tensor, generator: torch.Generator, scores: Tensor | None = None) -> Tensor | None:
        """Draw the random part of the encoding of the samples ``y [B]``; here nothing is random."""
        return None

    def encode(self, x: Tensor, y: Tensor, drawn: Tensor | None) -> tuple[Rows, Tensor]:
        """Rows for the first block and the target of each row, ``[views * B, ...]`` and ``[views * B]``."""
        return x, y

    def answers(self, data: Any) -> Tensor:
        """The targets of a metric: the labels ``[N]`` of the data set."""
        return data.y  # type: ignore[no-any-return]

    def copies(self, view: View) -> int:
        """Number of rows of a sample in ``view``."""
        return 1

    def message(self) -> Tensor | None:
        """The message for the top block, see `bpfree.losses.FeedbackLoss`; here None."""
        return None

    def view(self, x: Tensor, view: View) -> Rows:
        """The rows that a readout needs, made without the label.

        Raises:
            BadValue: If this encoding has no such view.
        """
        if view != "plain":
            raise BadValue(f"a readout needs the {view!r} view, which only encodings with labels have")
        return x


class Reconstruct(Encoding):
    """Samples as they are, which are the targets, too. Labels are not used."""

    def encode(self, x: Tensor, y: Tensor, drawn: Tensor | None) -> tuple[Tensor, Tensor]:
        return x, x

    def answers(self, data: Any) -> Tensor:
        """The images."""
        return data.batch(torch.arange(len(data.y), device=data.y.device))[0]  # type: ignore[no-any-return]
