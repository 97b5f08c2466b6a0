"""Attention over the edges of a graph, as products with sparse matrices: no edge carries a row."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bpfree.graphs.sparse import Columns, Edges, multiply, times


def attend(conv: Any, x: Columns, edges: Edges) -> Tensor:
    """What a `GATConv` answers, ``[r, H]``, for the edges given alone (Velickovic et al., arXiv 1710.10903).

    Heads are nodes of their own, K for each, that never meet. What the edges compare of a node is asked of
    ``x``, of which it is linear too: of the K D values of h it would have to be read anew.

    Args:
        conv: torch-geometric's layer, of K heads with D values each.
        x: Of all sources, ``[n, d]``.
        edges: From n sources to r rows, the own loops among them.
    """
    weight, heads = conv.lin.weight, conv.heads
    both = torch.block_diag(*torch.cat([conv.att_src, conv.att_dst]).unbind(1))
    h = times(x, weight).reshape(-1, conv.out_channels)
    # Weights are turned, as they lie, so that the two gradients of theirs lie alike.
    sent, received = times(x, (weight.T @ both.T).T).view(-1, heads, 2).unbind(2)
    wide = torch.promote_types(h.dtype, torch.float32)
    parted = edges.parted(heads)
    # There are no products of sparse matrices in half precision everywhere.
    with torch.autocast(h.device.type, enabled=False):
        mixed: Tensor = _Attention.apply(
            parted,
            h.to(wide),
            sent.flatten().to(wide),
            received.flatten().to(wide)[parted.own],
            conv.negative_slope,
        )
    return mixed.to(h.dtype).view(-1, len(weight)) + conv.bias  # type: ignore[no-any-return]


class _Attention(torch.autograd.Function):
    """Softmax over the edges into a row, and the mean of the sources under it: ``[r, D]``.

    With e = leaky(sent_source + received_target) and a = softmax(e) within a row, the answer is ``A h`` where
    A has the values a. Backward::

        dh = A^T g ;   da = <g_target, h_source> ;   de = a (da - sum_row a da)

    Kept for it are h and a number for each edge, where operations on gathered rows keep D of them.
    """

    @staticmethod
    def forward(ctx: Any, edges: Edges, h: Tensor, sent: Tensor, received: Tensor, slope: float) -> Tensor:
        energy = sent.index_select(0, edges.source).add_(received.index_select(0, edges.target))
        steep = energy > 0
        energy = F.leaky_relu(energy, slope, inplace=True)
        weight = energy.sub_(edges.largest(energy).index_select(0, edges.target)).exp_()
        share = weight.div_(edges.into_rows(weight).index_select(0, edges.target))
        ctx.edges, ctx.slope = edges, slope
        ctx.save_for_backward(h, share, steep)
        return multiply(edges.matrix(share), h)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor, Tensor, None]:
        h, share, steep = ctx.saved_tensors
        edges, grad = ctx.edges, grads[0].contiguous()
        moved = multiply(edges.turned_matrix(share), grad)
        pull = edges.inner(grad, h)
        pull = share * (pull - edges.into_rows(share * pull).index_select(0, edges.target))
        pull = torch.where(steep, pull, ctx.slope * pull)
        return None, moved, edges.into_sources(pull), edges.into_rows(pull), None
