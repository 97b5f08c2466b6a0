"""How labeled samples become inputs of the first block: the interface, and samples as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree._renamed import refuse_old_members, warn_renamed
from bpfree._rows import Rows

#: A view of a sample without its label: no label code, a neutral code, or each label in turn.
View = Literal["plain", "neutral", "candidates"]


class LabeledSamples(Protocol):
    """The part of a data set that encodings use."""

    @property
    def y(self) -> Tensor:
        """Labels, ``[N]``."""

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return the samples ``[B, ...]`` and labels ``[B]``, augmented if a generator is given."""


class HasBody(Protocol):
    """A block with one body."""

    body: nn.Module


#: Members of 0.1, and what takes their place.
REPLACED = {
    "looks": "variants(x)",
    "chosen": "chosen_variants(y, drawn)",
    "whole": "the attribute transductive",
    "measure": "the attribute metric of the trainer",
    "judge": "the attribute metric of the trainer",
}


class Encoding:
    """Unchanged samples and labels. The base class of the other encodings.

    Attributes:
        views: Number of rows per sample in training.
        redraw: Whether the random part of the encoding is drawn again in each step. Features can then only be
            cached if the encoding chooses among a few `variants`.
        needs_scores: Whether `draw` needs the class scores of a readout that is trained.
        transductive: Whether the rows of a sample depend on all other samples, as for nodes of a graph.
    """

    views: int = 1
    redraw: bool = False
    needs_scores: bool = False
    transductive: bool = False

    def __init_subclass__(cls, **options: object) -> None:
        """Refuse members of version 0.1, and accept a method by its old name.

        Raises:
            BadValue: If the class defines a member that is no longer called, with what takes its place.
        """
        super().__init_subclass__(**options)
        refuse_old_members(cls, REPLACED)
        if "answers" in cls.__dict__ and "metric_targets" not in cls.__dict__:
            warn_renamed(f"{cls.__name__}.answers", f"{cls.__name__}.metric_targets")
            setattr(cls, "metric_targets", cls.__dict__["answers"])  # noqa: B010

    def build(self, n_classes: int) -> None:
        """Set the number of classes; called once."""

    def prepare(self, first_block: HasBody, sample_shape: Sequence[int]) -> None:
        """Adapt the first block to encoded samples. Called once, before heads are built; by default a no-op.

        Args:
            first_block: The `bpfree.Block`.
            sample_shape: Shape of a sample, without the batch dimension.
        """

    def variants(self, x: Tensor) -> Tensor:
        """Return all rows that `encode` can return for the samples ``x [B, ...]``, ``[variants * B, ...]``.

        The rows are ordered by variant. For encodings that choose among a few variants at random.

        Raises:
            TypeError: If the number of variants is not fixed.
        """
        raise TypeError(f"{type(self).__name__} has no fixed number of variants")

    def chosen_variants(self, y: Tensor, random_part: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the indices of the variants that `encode` returns, and the targets of the rows.

        Args:
            y: Labels of the samples, ``[B]``.
            random_part: The result of `draw`.

        Returns:
            ``[views, B]`` and ``[views * B]``.

        Raises:
            TypeError: If the number of variants is not fixed.
        """
        raise TypeError(f"{type(self).__name__} has no fixed number of variants")

    def draw(self, y: Tensor, generator: torch.Generator, scores: Tensor | None = None) -> Tensor | None:
        """Draw the random part of the encoding of samples with the labels ``y [B]``; by default None.

        Args:
            y: Labels, ``[B]``.
            generator: The random stream.
            scores: Class scores ``[B, C]`` of a readout, if `needs_scores`.
        """
        return None

    def encode(self, x: Tensor, y: Tensor, random_part: Tensor | None) -> tuple[Rows, Tensor]:
        """Encode samples for training.

        Args:
            x: Samples, ``[B, ...]``.
            y: Labels, ``[B]``.
            random_part: The result of `draw`.

        Returns:
            The input of the first block, ``[views * B, ...]``, and the target of each row, ``[views * B]``.
        """
        return x, y

    def metric_targets(self, data: LabeledSamples) -> Tensor:
        """Return the targets of a metric: by default the labels ``[N]`` of the data set."""
        return data.y

    def copies(self, view: View) -> int:
        """Return the number of rows per sample in ``view``."""
        return 1

    def message(self) -> Tensor | None:
        """Return the message for the top block, see `bpfree.losses.FeedbackLoss`; by default None."""
        return None

    def view(self, x: Tensor, view: View) -> Rows:
        """Encode samples ``x [B, ...]`` for a readout, without their labels.

        Raises:
            BadValue: If this encoding has no such view.
        """
        if view != "plain":
            raise BadValue(
                f"a readout needs the {view!r} view of samples, but {type(self).__name__} has only the "
                "'plain' view; use an encoding with labels, such as LabelOverlay"
            )
        return x


class Reconstruct(Encoding):
    """Unchanged samples, which are also the targets. Labels are not used."""

    def encode(self, x: Tensor, y: Tensor, random_part: Tensor | None) -> tuple[Tensor, Tensor]:
        return x, x

    def metric_targets(self, data: LabeledSamples) -> Tensor:
        """Return the samples ``[N, ...]``."""
        return data.batch(torch.arange(len(data.y), device=data.y.device))[0]
