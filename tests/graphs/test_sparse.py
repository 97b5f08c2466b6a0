"""Sparse matrices, edges and rows in parts, against dense matrices and loops."""

from __future__ import annotations

import torch
from torch import Tensor

from bpfree.graphs.sparse import Edges, Raised, Repeated, SideBySide, SparseMatrix, times


def test_a_sparse_product_and_its_gradient_are_the_dense_ones_also_with_other_values() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.rand(7, 5, generator=generator, dtype=torch.double)
    matrix[matrix < 0.6] = 0
    sparse = SparseMatrix.of(matrix)
    doubled = sparse.with_values(2 * sparse.value)
    for found, scale in ((sparse, 1.0), (doubled, 2.0), (sparse, 1.0)):
        x = torch.rand(5, 3, generator=generator, dtype=torch.double, requires_grad=True)
        weight = torch.rand(7, 3, generator=generator, dtype=torch.double)
        (gradient,) = torch.autograd.grad(((found @ x) * weight).sum(), x)
        torch.testing.assert_close(found @ x, scale * matrix @ x)
        torch.testing.assert_close(gradient, scale * matrix.T @ weight)


def some_edges() -> tuple[Edges, list[tuple[int, int]]]:
    """Edges from five sources to three rows, given in no order, and the same as pairs."""
    pairs = [(4, 1), (0, 0), (2, 2), (1, 0), (0, 1), (4, 0), (3, 2)]
    source, target = torch.tensor(pairs).T
    return Edges(source, target, torch.tensor([0, 4, 2]), 5), pairs


def test_sums_largest_and_inner_products_along_edges_are_those_of_a_loop() -> None:
    edges, pairs = some_edges()
    assert sorted(zip(edges.source.tolist(), edges.target.tolist(), strict=True)) == sorted(pairs)
    generator = torch.Generator().manual_seed(0)
    value = torch.rand(7, generator=generator)
    rows, sources = torch.rand(3, 6, generator=generator), torch.rand(5, 6, generator=generator)
    into_rows, into_sources = torch.zeros(3), torch.zeros(5)
    largest, matrix = torch.full((3,), -torch.inf), torch.zeros(3, 5)
    inner = torch.empty(7)
    for e, (s, r) in enumerate(zip(edges.source.tolist(), edges.target.tolist(), strict=True)):
        into_rows[r] += value[e]
        into_sources[s] += value[e]
        largest[r] = torch.maximum(largest[r], value[e])
        matrix[r, s] = value[e]
        inner[e] = rows[r] @ sources[s]
    torch.testing.assert_close(edges.into_rows(value), into_rows)
    torch.testing.assert_close(edges.into_sources(value), into_sources)
    assert torch.equal(edges.largest(value), largest)
    assert torch.equal(edges.matrix(value).to_dense(), matrix)
    assert torch.equal(edges.turned_matrix(value).to_dense(), matrix.T)
    torch.testing.assert_close(edges.inner(rows, sources), inner)


def test_parts_of_nodes_have_the_edges_of_their_nodes_and_meet_no_other_part() -> None:
    edges, pairs = some_edges()
    parted = edges.parted(3)
    found = list(zip(parted.source.tolist(), parted.target.tolist(), strict=True))
    assert sorted(found) == sorted((3 * s + part, 3 * r + part) for s, r in pairs for part in range(3))
    assert parted.own.tolist() == [3 * own + part for own in (0, 4, 2) for part in range(3)]
    assert parted.n_sources == 15
    assert edges.parted(3) is parted


def test_rows_in_parts_are_multiplied_as_if_they_stood_in_one_matrix() -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.double)

    mean, own, mean_above, own_above = drawn(4, 3), drawn(4, 3), drawn(4, 2), drawn(4, 2)
    left, right = drawn(6, 5), drawn(6, 5)
    expected = torch.cat([mean, mean_above], 1) @ left.T + torch.cat([own, own_above], 1) @ right.T
    below = torch.cat([mean, own], 1)
    for part in (below, SparseMatrix.of(below)):
        rows = SideBySide(part, torch.cat([mean_above, own_above], 1))
        torch.testing.assert_close(times(rows, left, right), expected)


def test_raised_and_repeated_rows_are_multiplied_as_their_sum_written_out() -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.double)

    base, codes, book = drawn(4, 6), drawn(8, 4), drawn(2, 3)
    left, right = drawn(5, 3).requires_grad_(), drawn(5, 3).requires_grad_()
    rows = base.repeat(2, 1) + torch.cat([codes[:, :2] @ book, codes[:, 2:] @ book], 1)
    expected = rows[:, :3] @ left.T + rows[:, 3:] @ right.T
    wanted = torch.autograd.grad(expected.square().sum(), (left, right))
    for part in (base, SparseMatrix.of(base)):
        found = times(Raised(Repeated(part, 2), codes, book), left, right)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found.square().sum(), (left, right)), wanted)
