"""Direct feedback alignment: the output's error reaches a block through a fixed random matrix."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bpfree import _seeds
from bpfree.losses.base import LocalLoss


class DirectFeedback(LocalLoss):
    """Direct feedback alignment (Nøkland, arXiv 1609.01596): a random projection of the output error.

    With ``e [rows, C]`` the error at the network's output, which is the feedback, and ``B [C, n]`` a fixed
    matrix with rows of unit length, the gradient with respect to the flattened output is ``e B / rows``: the
    scale of a mean cross-entropy. The loss is the product of this gradient and the output, so that autograd
    computes it; the value of the loss has no meaning.

    Args:
        seed: Seed of B.
        number: Index of the block, so that blocks have different matrices.
    """

    by_row = True
    matrix: Tensor

    def __init__(self, seed: int = 0, number: int = 0) -> None:
        super().__init__()
        self.seed, self.number = seed, number

    def build(self, output: Tensor, n_classes: int) -> None:
        generator = _seeds.generator(torch.device("cpu"), self.seed, "feedback", self.number)
        matrix = torch.randn(n_classes, output[0].numel(), generator=generator)
        self.register_buffer("matrix", F.normalize(matrix).to(output.device))

    def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
        assert feedback is not None
        return (output.flatten(1) * self.delta(feedback)).sum()

    def delta(self, error: Tensor) -> Tensor:
        """The gradient with respect to the flattened output, ``[rows, n]``, for ``error [rows, C]``."""
        return error @ self.matrix / len(error)
