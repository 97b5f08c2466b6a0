"""The interface of a feed: the training rows of the lowest block that is not frozen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from bpfree._rows import Rows
from bpfree.encodings.base import View


class BaseFeed(ABC):
    """Returns the input rows of the lowest block that is not frozen, and their targets.

    Attributes:
        device: Device of the rows.
        height: Number of frozen blocks.
        features: Cached input of the block at ``height``, or cached outputs of its front,
            ``[views, N, ...]``; None: nothing is cached as a tensor.
        made_in: Epoch of the stage in which ``features`` were computed.
    """

    device: torch.device
    height: int = 0
    features: Tensor | None = None
    made_in: int = 0

    @property
    def front_output(self) -> bool:
        """Whether the rows are outputs of the front of the block at ``height``."""
        return False

    @property
    def measured(self) -> bool:
        """Whether the cached features are outputs of a device, so that computing them again costs passes."""
        return False

    @abstractmethod
    def freeze_below(self, height: int) -> None:
        """Freeze the blocks below ``height``, and cache their features if that is possible."""

    def restore(self, height: int, features: Tensor, made_in: int) -> None:
        """Load cached features of a device that an earlier part of the run has saved.

        Args:
            height: Number of frozen blocks.
            features: The features, ``[views, N, ...]``.
            made_in: Epoch of the stage in which they were measured.
        """
        raise TypeError(f"{type(self).__name__} caches no outputs of devices")

    def renew(self, epoch: int) -> None:
        """Measure the cached features again, in ``epoch`` of the stage."""
        raise TypeError(f"{type(self).__name__} caches no outputs of devices")

    @abstractmethod
    def batches(self, n_samples: int, drop_last: bool = False) -> Iterator[Rows]:
        """Rows of the first block for the first ``n_samples`` training samples, batch by batch.

        Args:
            n_samples: Number of samples.
            drop_last: Whether to leave out a last, shorter batch, unless it is the only one.
        """

    @abstractmethod
    def samples(self, indices: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Samples ``[B, ...]`` and labels ``[B]`` of a training step, before any encoding."""

    @abstractmethod
    def rows(
        self, indices: Tensor, epoch: int, step: int, scores: Tensor | None = None
    ) -> tuple[Rows, Tensor]:
        """Input rows of the block at ``height`` and their targets, ``[V * B, ...]`` and ``[V * B]``.

        Args:
            indices: Samples of the step, ``[B]``.
            epoch: Number of the epoch, for the random streams.
            step: Number of the step in the epoch.
            scores: Class scores ``[B, C]``, if the encoding draws hard negatives.
        """

    @abstractmethod
    def outputs(self, x: Tensor, indices: Tensor, view: View) -> list[Tensor]:
        """Outputs of all blocks for the samples ``x [B, ...]`` in ``view``, without an autograd graph."""

    @abstractmethod
    def cache_outputs(self, view: View) -> None:
        """Cache the outputs of all blocks, which are frozen, in ``view``, if that is possible."""
