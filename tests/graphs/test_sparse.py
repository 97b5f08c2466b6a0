"""Sparse matrices, edges and matrices in parts, against dense matrices and loops."""

from __future__ import annotations

import torch
from torch import Tensor

from bpfree.graphs.edges import Edges
from bpfree.graphs.matrices import Concatenated, Repeated, WithCodes, linear
from bpfree.graphs.sparse import SparseMatrix


def test_a_sparse_product_and_its_gradient_are_the_dense_ones_also_with_other_values() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.rand(7, 5, generator=generator, dtype=torch.double)
    matrix[matrix < 0.6] = 0
    sparse = SparseMatrix.from_dense(matrix)
    doubled = sparse.with_values(2 * sparse.value)
    for product_of, scale in ((sparse, 1.0), (doubled, 2.0), (sparse, 1.0)):
        x = torch.rand(5, 3, generator=generator, dtype=torch.double, requires_grad=True)
        weight = torch.rand(7, 3, generator=generator, dtype=torch.double)
        (gradient,) = torch.autograd.grad(((product_of @ x) * weight).sum(), x)
        torch.testing.assert_close(product_of @ x, scale * matrix @ x)
        torch.testing.assert_close(gradient, scale * matrix.T @ weight)


def some_edges() -> tuple[Edges, list[tuple[int, int]]]:
    """Edges from five sources to three rows, not sorted, and the same edges as pairs."""
    pairs = [(4, 1), (0, 0), (2, 2), (1, 0), (0, 1), (4, 0), (3, 2)]
    source, target = torch.tensor(pairs).T
    return Edges(source, target, torch.tensor([0, 4, 2]), 5), pairs


def test_sums_largest_and_inner_products_along_edges_are_those_of_a_loop() -> None:
    edges, pairs = some_edges()
    assert sorted(zip(edges.source.tolist(), edges.target.tolist(), strict=True)) == sorted(pairs)
    generator = torch.Generator().manual_seed(0)
    value = torch.rand(7, generator=generator)
    rows, sources = torch.rand(3, 6, generator=generator), torch.rand(5, 6, generator=generator)
    by_row, by_source = torch.zeros(3), torch.zeros(5)
    largest, matrix = torch.full((3,), -torch.inf), torch.zeros(3, 5)
    inner = torch.empty(7)
    for e, (s, r) in enumerate(zip(edges.source.tolist(), edges.target.tolist(), strict=True)):
        by_row[r] += value[e]
        by_source[s] += value[e]
        largest[r] = torch.maximum(largest[r], value[e])
        matrix[r, s] = value[e]
        inner[e] = rows[r] @ sources[s]
    torch.testing.assert_close(edges.sum_by_row(value), by_row)
    torch.testing.assert_close(edges.sum_by_source(value), by_source)
    assert torch.equal(edges.max_by_row(value), largest)
    assert torch.equal(edges.matrix(value).to_dense(), matrix)
    assert torch.equal(edges.transposed_matrix(value).to_dense(), matrix.T)
    torch.testing.assert_close(edges.inner_products(rows, sources), inner)


def test_each_head_has_all_edges_and_no_edge_joins_two_heads() -> None:
    edges, pairs = some_edges()
    copies = edges.per_head(3)
    copied = list(zip(copies.source.tolist(), copies.target.tolist(), strict=True))
    assert sorted(copied) == sorted((3 * s + head, 3 * r + head) for s, r in pairs for head in range(3))
    assert copies.row_sources.tolist() == [3 * source + head for source in (0, 4, 2) for head in range(3)]
    assert copies.n_sources == 15
    assert edges.per_head(3) is copies


def test_concatenated_columns_are_multiplied_as_one_matrix() -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.double)

    mean, state, mean_above, state_above = random(4, 3), random(4, 3), random(4, 2), random(4, 2)
    left, right = random(6, 5), random(6, 5)
    expected = torch.cat([mean, mean_above], 1) @ left.T + torch.cat([state, state_above], 1) @ right.T
    below = torch.cat([mean, state], 1)
    for part in (below, SparseMatrix.from_dense(below)):
        rows = Concatenated(part, torch.cat([mean_above, state_above], 1))
        torch.testing.assert_close(linear(rows, left, right), expected)


def test_rows_with_codes_are_multiplied_as_their_sum() -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.double)

    base, codes, codebook = random(4, 6), random(8, 4), random(2, 3)
    left, right = random(5, 3).requires_grad_(), random(5, 3).requires_grad_()
    rows = base.repeat(2, 1) + torch.cat([codes[:, :2] @ codebook, codes[:, 2:] @ codebook], 1)
    expected = rows[:, :3] @ left.T + rows[:, 3:] @ right.T
    expected_grads = torch.autograd.grad(expected.square().sum(), (left, right))
    for part in (base, SparseMatrix.from_dense(base)):
        product = linear(WithCodes(Repeated(part, 2), codes, codebook), left, right)
        torch.testing.assert_close(product, expected)
        grads = torch.autograd.grad(product.square().sum(), (left, right))
        torch.testing.assert_close(grads, expected_grads)
