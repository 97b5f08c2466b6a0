"""Measures of the agreement of two networks, and of a network with the classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def weight_alignment(forward: Tensor, feedback: Tensor) -> float:
    """Cosine of a layer's weights with the transposed weights of its feedback layer.

    Args:
        forward: ``[out, in]``, or filters ``[out, in, h, w]``.
        feedback: ``[in, out]``, or filters ``[in, out, h, w]``, which are transposed and flipped.
    """
    transposed = feedback.transpose(0, 1)
    if transposed.ndim > 2:
        transposed = transposed.flip(tuple(range(2, transposed.ndim)))
    return F.cosine_similarity(forward.flatten(), transposed.flatten(), 0).item()


def between_within(output: Tensor, y: Tensor) -> float:
    """Between-class variance over within-class variance of ``output [B, d]`` with labels ``y [B]``."""
    labels, index = y.unique(return_inverse=True)
    output = output.double()
    sums = torch.zeros(len(labels), output.shape[1], dtype=output.dtype, device=output.device)
    means = sums.index_add(0, index, output) / index.bincount().unsqueeze(1)
    within = (output - means[index]).square().sum()
    between = (means[index] - output.mean(0)).square().sum()
    return (between / within).item() if within > 0 else float("inf")


def linear_cka(a: Tensor, b: Tensor) -> float:
    """Linear centered kernel alignment, 0 to 1, of ``a [B, d]`` and ``b [B, e]`` (Kornblith, 1905.00414)."""
    grams = []
    # Autocast does not change products in float64.
    for x in (a.double(), b.double()):
        centered = x - x.mean(0)
        grams.append((centered @ centered.T).flatten())
    return F.cosine_similarity(grams[0], grams[1], 0).item()
