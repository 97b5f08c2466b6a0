"""Figures that tell how two networks, or a network and the classes, agree."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def weight_alignment(forward: Tensor, feedback: Tensor) -> float:
    """Cosine of a layer's weights with the transpose of those of the layer that leads back.

    Args:
        forward: ``[out, in]``, or filters ``[out, in, h, w]``.
        feedback: ``[in, out]``, or filters ``[in, out, h, w]``, whose transpose is also turned around.
    """
    turned = feedback.transpose(0, 1)
    if turned.ndim > 2:
        turned = turned.flip(tuple(range(2, turned.ndim)))
    return F.cosine_similarity(forward.flatten(), turned.flatten(), 0).item()


def between_within(output: Tensor, y: Tensor) -> float:
    """Variance of the class means over that inside classes, of ``output [B, d]`` with labels ``y [B]``."""
    labels, index = y.unique(return_inverse=True)
    output = output.double()
    sums = torch.zeros(len(labels), output.shape[1], dtype=output.dtype, device=output.device)
    means = sums.index_add(0, index, output) / index.bincount().unsqueeze(1)
    inside = (output - means[index]).square().sum()
    between = (means[index] - output.mean(0)).square().sum()
    return (between / inside).item() if inside > 0 else float("inf")


def linear_cka(one: Tensor, other: Tensor) -> float:
    """Linear centred kernel alignment, 0 to 1, of ``[B, d]`` and ``[B, e]`` (Kornblith, 1905.00414)."""
    grams = []
    # In float64, which no autocast narrows.
    for x in (one.double(), other.double()):
        centred = x - x.mean(0)
        grams.append((centred @ centred.T).flatten())
    return F.cosine_similarity(grams[0], grams[1], 0).item()
