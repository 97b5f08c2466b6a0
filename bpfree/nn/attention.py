"""Attention over the edges of a graph, as products with sparse matrices: no edge carries a row."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bpfree.sparse import Columns, Edges, times


def attend(conv: Any, x: Columns, edges: Edges) -> Tensor:
    """What a `GATConv` answers, ``[r, H]``, for the edges given alone (Velickovic et al., arXiv 1710.10903).

    Args:
        conv: torch-geometric's layer.
        x: Of all sources, ``[n, d]``.
        edges: From n sources to r rows, the own loops among them.
    """
    h = times(x, conv.lin.weight).view(-1, conv.heads, conv.out_channels).transpose(0, 1).contiguous()
    scores = torch.bmm(h, torch.stack([conv.att_src[0], conv.att_dst[0]], 2))
    sent, received = scores.unbind(2)
    wide = torch.promote_types(h.dtype, torch.float32)
    # There are no products of sparse matrices in half precision everywhere.
    with torch.autocast(h.device.type, enabled=False):
        mixed: Tensor = _Attention.apply(
            edges, h.to(wide), sent.to(wide), received.to(wide)[:, edges.own], conv.negative_slope
        )
    return mixed.to(h.dtype).transpose(0, 1).flatten(1) + conv.bias  # type: ignore[no-any-return]


class _Attention(torch.autograd.Function):
    """Softmax over the edges into a row, and the mean of the sources under it: ``[K, r, D]`` for K heads.

    For a head, with e = leaky(sent_source + received_target) and a = softmax(e) within a row, the answer is
    ``A h`` where A has the values a. Backward::

        dh = A^T g ;   da = <g_target, h_source> ;   de = a (da - sum_row a da)

    Kept for it are h and a number for each edge and head, where operations on gathered rows keep D of them.
    """

    @staticmethod
    def forward(ctx: Any, edges: Edges, h: Tensor, sent: Tensor, received: Tensor, slope: float) -> Tensor:
        energy = sent.T[edges.source] + received.T[edges.target]
        steep = energy > 0
        energy = F.leaky_relu(energy, slope, inplace=True)
        weight = (energy - edges.largest(energy)[edges.target]).exp_()
        share = weight / edges.into_rows(weight)[edges.target]
        ctx.edges, ctx.slope = edges, slope
        ctx.save_for_backward(h, share, steep)
        return torch.stack([edges.matrix(a) @ own for a, own in zip(share.T, h, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor, Tensor, None]:
        h, share, steep = ctx.saved_tensors
        edges, grad = ctx.edges, grads[0].contiguous()
        moved = torch.stack([edges.turned_matrix(a) @ g for a, g in zip(share.T, grad, strict=True)])
        pull = edges.inner(grad.transpose(0, 1).contiguous(), h.transpose(0, 1).contiguous())
        pull = share * (pull - edges.into_rows(share * pull)[edges.target])
        pull = torch.where(steep, pull, ctx.slope * pull)
        return None, moved, edges.into_sources(pull).T, edges.into_rows(pull).T, None
