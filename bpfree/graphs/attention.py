"""Attention over the edges of a graph as products with sparse matrices: no row is gathered for an edge."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bpfree.graphs.edges import Edges
from bpfree.graphs.matrices import Matrix, linear
from bpfree.graphs.sparse import multiply

#: A convolution of torch-geometric, which has no types.
Conv = Any


def attend(conv: Conv, x: Matrix, edges: Edges) -> Tensor:
    """The output of a `GATConv` for the given edges alone, ``[r, H]`` (Velickovic et al., arXiv 1710.10903).

    Each of the K heads has copies of all nodes, and no edge joins copies of different heads. The two energies
    of each node are computed from ``x``, since they are linear in it: computed from h, they would read its
    K D values once more.

    Args:
        conv: torch-geometric's layer, of K heads with D values each.
        x: States of all sources, ``[n, d]``.
        edges: From n sources to r rows, self-loops included.
    """
    weight, heads = conv.lin.weight, conv.heads
    vectors = torch.block_diag(*torch.cat([conv.att_src, conv.att_dst]).unbind(1))
    h = linear(x, weight).reshape(-1, conv.out_channels)
    # The weights are stored transposed: multiplied so, the two gradients have the same layout.
    source_energy, target_energy = linear(x, (weight.T @ vectors.T).T).view(-1, heads, 2).unbind(2)
    dtype = torch.promote_types(h.dtype, torch.float32)
    edges = edges.per_head(heads)
    # Not every device has products of sparse matrices in half precision.
    with torch.autocast(h.device.type, enabled=False):
        mixed: Tensor = _Attention.apply(
            edges,
            h.to(dtype),
            source_energy.flatten().to(dtype),
            target_energy.flatten().to(dtype)[edges.row_sources],
            conv.negative_slope,
        )
    result: Tensor = mixed.to(h.dtype).view(-1, len(weight)) + conv.bias
    return result


class _Attention(torch.autograd.Function):
    """Softmax over the edges into a row, and the mean of the sources weighted by it: ``[r, D]``.

    With e = leaky_relu(source_energy + target_energy) and a = softmax(e) within a row, the output is ``A h``
    where A has the values a. Backward::

        dh = A^T g ;   da = <g_target, h_source> ;   de = a (da - sum_row a da)

    It saves h and one number for each edge, where operations on gathered rows save D of them.
    """

    @staticmethod
    def forward(
        ctx: Any, edges: Edges, h: Tensor, source_energy: Tensor, target_energy: Tensor, slope: float
    ) -> Tensor:
        energy = source_energy.index_select(0, edges.source)
        energy = energy.add_(target_energy.index_select(0, edges.target))
        positive = energy > 0
        energy = F.leaky_relu(energy, slope, inplace=True)
        weight = energy.sub_(edges.max_by_row(energy).index_select(0, edges.target)).exp_()
        attention = weight.div_(edges.sum_by_row(weight).index_select(0, edges.target))
        ctx.edges, ctx.slope = edges, slope
        ctx.save_for_backward(h, attention, positive)
        return multiply(edges.matrix(attention), h)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, Tensor, Tensor, None]:
        h, attention, positive = ctx.saved_tensors
        edges, grad = ctx.edges, grads[0].contiguous()
        h_grad = multiply(edges.transposed_matrix(attention), grad)
        energy_grad = edges.inner_products(grad, h)
        mean = edges.sum_by_row(attention * energy_grad).index_select(0, edges.target)
        energy_grad = attention * (energy_grad - mean)
        energy_grad = torch.where(positive, energy_grad, ctx.slope * energy_grad)
        return None, h_grad, edges.sum_by_source(energy_grad), edges.sum_by_row(energy_grad), None
