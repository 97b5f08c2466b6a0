"""Graph data sets: read through torch-geometric offline, split as published, refused with a reason."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from bpfree import BadValue, DataNotFound
from bpfree.data import GraphData, fold_indices, load_graph
from bpfree.graph import Graph
from tests.helpers import nodes


def write_planetoid(folder: Path, name: str) -> np.ndarray[Any, Any]:
    """Files as of Planetoid, of 1700 nodes in a ring with 20 features and 3 classes; returns the labels."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    x = csr_matrix((generator.random((1700, 20)) < 0.3).astype(np.float32))
    labels = generator.integers(3, size=1700)
    y = np.eye(3, dtype=np.int32)[labels]
    ring = {i: [(i - 1) % 1700, (i + 1) % 1700] for i in range(1700)}
    parts: dict[str, Any] = {"x": x[:60], "y": y[:60], "tx": x[700:], "ty": y[700:]}
    parts |= {"allx": x[:700], "ally": y[:700], "graph": ring}
    for part, content in parts.items():
        (folder / f"ind.{name}.{part}").write_bytes(pickle.dumps(content))
    (folder / f"ind.{name}.test.index").write_text("".join(f"{i}\n" for i in range(700, 1700)))
    return labels


def test_planetoid_is_read_normalised_and_split(tmp_path: Path) -> None:
    labels = torch.from_numpy(write_planetoid(tmp_path / "Planetoid" / "Cora" / "raw", "cora"))
    train, validation, test = load_graph("cora", root=tmp_path)
    assert (len(train), len(validation), len(test)) == (1088, 272, 340)
    together = torch.cat([train.ids, validation.ids, test.ids])
    assert torch.equal(together.sort().values, torch.arange(1700))
    assert torch.equal(train.y, labels[train.ids])
    assert train.graph is test.graph and train.graph.n_edges == 3400
    sums = train.features.sum(1)
    torch.testing.assert_close(sums[sums > 0], torch.ones(int((sums > 0).sum())))
    public = load_graph("cora", root=tmp_path, split="public")
    assert [len(part) for part in public] == [60, 500, 1000]


def test_links_are_split_and_test_messages_flow_along_validation_edges_too(
    tmp_path: Path,
) -> None:
    write_planetoid(tmp_path / "Planetoid" / "Cora" / "raw", "cora")
    train, validation, test = load_graph("cora", root=tmp_path, split="links", fold=1)
    assert train.n_classes == 2 and train.ids.shape[1] == 2
    for part, share in ((train, 0.64), (validation, 0.16), (test, 0.2)):
        assert int(part.y.sum()) * 2 == len(part)
        assert int(part.y.sum()) == pytest.approx(1700 * share, abs=2)
    assert torch.equal(train.graph.edge_index, validation.graph.edge_index)
    assert test.graph.n_edges == train.graph.n_edges + len(validation)
    messages = {tuple(edge) for edge in test.graph.edge_index.T.tolist()}
    held_out = {tuple(pair) for pair in test.ids[test.y == 1].tolist()}
    assert not messages & held_out
    again = load_graph("cora", root=tmp_path, split="links", fold=1)
    assert torch.equal(train.ids, again.train.ids)
    assert not torch.equal(train.ids, load_graph("cora", root=tmp_path, split="links", fold=2).train.ids)


def test_the_folds_are_the_published_ones() -> None:
    assert [len(part) for part in fold_indices(2995, 0)] == [1916, 480, 599]
    tests = torch.cat([fold_indices(100, fold)[2] for fold in range(5)])
    assert torch.equal(tests.sort().values, torch.arange(100))


def test_the_embedded_graph_joins_each_digit_to_its_like() -> None:
    train, _, _ = load_graph("digits_graph")
    edges = {tuple(edge) for edge in train.graph.edge_index.T.tolist()}
    assert all((b, a) in edges for a, b in edges)
    assert not any(a == b for a, b in edges)
    degree = torch.bincount(train.graph.edge_index[1], minlength=1797)
    assert degree.min() >= 8
    a, b = train.graph.edge_index
    y = torch.full((1797,), -1)
    y[train.ids] = train.y
    both = (y[a] >= 0) & (y[b] >= 0)
    assert (y[a] == y[b])[both].float().mean() > 0.9


def test_missing_and_damaged_data_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match=r"Planetoid/CiteSeer/raw/ind\.citeseer"):
        load_graph("citeseer", root=tmp_path)
    raw = tmp_path / "Planetoid" / "Cora" / "raw"
    write_planetoid(raw, "cora")
    (raw / "ind.cora.graph").write_bytes(b"nothing")
    with pytest.raises(DataNotFound, match="whole"):
        load_graph("cora", root=tmp_path)


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    for arguments, word in (
        ({"name": "corra"}, "corra"),
        ({"name": "digits_graph", "fold": 5}, "fold is 5"),
        ({"name": "digits_graph", "split": "random"}, "random"),
        ({"name": "digits_graph", "split": "public"}, "public"),
    ):
        with pytest.raises(BadValue, match=word):
            load_graph(**arguments)  # type: ignore[arg-type]


def test_data_that_do_not_fit_are_refused() -> None:
    x, graph, ids, y = torch.rand(4, 2), Graph(torch.tensor([[0], [1]]), 4), torch.arange(3), torch.arange(3)
    GraphData(x, graph, ids, y, 3)
    for bad in (
        (x[:3], graph, ids, y, 3),
        (x, graph, ids + 2, y, 3),
        (x, graph, ids, y, 2),
        (x, graph, ids.float(), y, 3),
        (x, graph, ids, y[:2], 3),
        (x, graph, ids[:0], y[:0], 3),
    ):
        with pytest.raises(BadValue, match="graph"):
            GraphData(*bad)  # type: ignore[arg-type]


def test_content_tells_data_apart() -> None:
    data = nodes()
    assert data.content() == nodes().content()
    others = (data.take(torch.arange(5)), nodes(seed=1))
    assert all(other.content() != data.content() for other in others)
