"""How a labeled sample is shown to the first block: the interface, and samples as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from bpfree._errors import BadValue
from bpfree._rows import Rows

View = Literal["plain", "neutral", "candidates"]


class Encoding:
    """Shows images as they are. The base of the other encodings.

    Attributes:
        views: How many rows a sample becomes in training.
        redraw: Whether a sample looks different each time; if so, features of it cannot be cached, except
            where all its `looks` can be.
        transductive: Whether a sample needs all others to be encoded, as the nodes of a graph do.
    """

    views: int = 1
    redraw: bool = False
    transductive: bool = False

    def build(self, n_classes: int) -> None:
        """Be told how many classes there are; called once."""

    def prepare(self, first_block: Any, sample_shape: Sequence[int]) -> None:
        """Adapt the first block to encoded samples; called once, before heads are built. Here: nothing.

        Args:
            first_block: The `bpfree.Block`.
            sample_shape: Shape of a sample, without the batch.
        """

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

    def encode(self, x: Tensor, y: Tensor, drawn: Tensor | None) -> tuple[Rows, Tensor]:
        """Rows for the first block and the target of each row, ``[views * B, ...]`` and ``[views * B]``."""
        return x, y

    def answers(self, data: Any) -> Tensor:
        """The targets of a metric: the labels ``[N]`` of the data set."""
        return data.y  # type: ignore[no-any-return]

    def copies(self, view: View) -> int:
        """How many rows of `view` stand for one sample."""
        return 1

    def message(self) -> Tensor | None:
        """What comes to the top block as its message from above: nothing here."""
        return None

    def view(self, x: Tensor, view: View) -> Rows:
        """The rows that a readout asks for, without knowing the label.

        Raises:
            BadValue: If this encoding has no such view.
        """
        if view != "plain":
            raise BadValue(f"a readout asked for the {view!r} view, which needs an encoding with labels")
        return x


class Reconstruct(Encoding):
    """Shows images as they are, and asks for them back; labels take no part."""

    def encode(self, x: Tensor, y: Tensor, drawn: Tensor | None) -> tuple[Tensor, Tensor]:
        return x, x

    def answers(self, data: Any) -> Tensor:
        """The images."""
        return data.batch(torch.arange(len(data.y), device=data.y.device))[0]  # type: ignore[no-any-return]
