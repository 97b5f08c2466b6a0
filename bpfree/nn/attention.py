"""Graph attention by products with sparse matrices: no row of features is gathered for each edge."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from bpfree.sparse import Columns, Edges, multiply, times


class GATLayer(Protocol):
    """Attributes of torch-geometric's ``GATConv`` that are used here."""

    lin: nn.Linear
    att_src: Tensor
    att_dst: Tensor
    bias: Tensor
    heads: int
    out_channels: int
    negative_slope: float


def attend(conv: GATLayer, x: Columns, edges: Edges) -> Tensor:
    """Compute the output of a ``GATConv``, ``[r, H]`` (Velickovic et al., arXiv 1710.10903).

    Each head is computed on a separate copy of the nodes, so K heads are one attention over K n nodes. The
    attention scores are linear in ``x`` and computed from it, which is cheaper than from the K D values of h.

    Args:
        conv: torch-geometric's layer, with K heads of D values each.
        x: Features of all source nodes, ``[n, d]``.
        edges: Edges from n sources to r rows, including self-loops.
    """
    weight, heads = conv.lin.weight, conv.heads
    both = torch.block_diag(*torch.cat([conv.att_src, conv.att_dst]).unbind(1))
    h = times(x, weight).reshape(-1, conv.out_channels)
    # By the transposed weight, so that both gradients of the weight have the same strides.
    sent, received = times(x, (weight.T @ both.T).T).view(-1, heads, 2).unbind(2)
    wide = torch.promote_types(h.dtype, torch.float32)
    parted = edges.parted(heads)
    # Products of sparse matrices in half precision are not available on all devices.
    with torch.autocast(h.device.type, enabled=False):
        mixed: Tensor = _Attention.apply(
            parted,
            h.to(wide),
            sent.flatten().to(wide),
            received.flatten().to(wide)[parted.own],
            conv.negative_slope,
        )
    output: Tensor = mixed.to(h.dtype).view(-1, len(weight)) + conv.bias
    return output


class _Context(FunctionCtx):
    saved_tensors: tuple[Tensor, ...]
    edges: Edges
    slope: float


class _Attention(torch.autograd.Function):
    """Softmax over the edges of each row, and the mean of the sources weighted by it: ``[r, D]``.

    With e = leaky_relu(sent_source + received_target) and a = softmax(e) within a row, the output is ``A h``
    where A is the sparse matrix of the values a. Backward::

        dh = A^T g ;   da = <g_target, h_source> ;   de = a (da - sum_row a da)

    The backward pass needs h and one number for each edge; operations on gathered rows would save D of them.
    """

    @staticmethod
    def forward(
        ctx: _Context, edges: Edges, h: Tensor, sent: Tensor, received: Tensor, slope: float
    ) -> Tensor:
        energy = sent.index_select(0, edges.source).add_(received.index_select(0, edges.target))
        positive = energy > 0
        energy = F.leaky_relu(energy, slope, inplace=True)
        weight = energy.sub_(edges.largest(energy).index_select(0, edges.target)).exp_()
        share = weight.div_(edges.into_rows(weight).index_select(0, edges.target))
        ctx.edges, ctx.slope = edges, slope
        ctx.save_for_backward(h, share, positive)
        return multiply(edges.matrix(share), h)

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor) -> tuple[None, Tensor, Tensor, Tensor, None]:
        h, share, positive = ctx.saved_tensors
        edges, grad = ctx.edges, grads[0].contiguous()
        grad_h = multiply(edges.turned_matrix(share), grad)
        grad_energy = edges.inner(grad, h)
        grad_energy = share * (
            grad_energy - edges.into_rows(share * grad_energy).index_select(0, edges.target)
        )
        grad_energy = torch.where(positive, grad_energy, ctx.slope * grad_energy)
        return None, grad_h, edges.into_sources(grad_energy), edges.into_rows(grad_energy), None
