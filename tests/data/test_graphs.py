"""Graph data sets: read offline with torch-geometric, split, and checked."""

from __future__ import annotations

import os
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from bpfree import BadValue, DataNotFound, ForwardGNN
from bpfree.data import GRAPH_NAMES, GraphData, _graphs, describe_graphs, fold_indices, load_graph
from bpfree.graphs.graph import Graph
from tests.helpers import make_gnn, nodes


def write_planetoid(folder: Path, name: str) -> np.ndarray[Any, Any]:
    """Write a ring of 1700 nodes with 20 features and 3 classes in Planetoid's format; return the labels."""
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


def test_planetoid_is_read_normalized_and_split(tmp_path: Path) -> None:
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


def test_links_are_split_and_the_test_graph_has_the_validation_edges(
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


def test_the_order_of_pairs_and_of_their_nodes_is_random() -> None:
    for part in load_graph("digits_graph", split="links"):
        edge, up = part.y == 1, part.ids[:, 0] < part.ids[:, 1]
        # Four standard deviations of a fair coin toss.
        bound = 2.0 / len(part) ** 0.5
        assert abs((up == edge).float().mean() - 0.5) < bound
        assert abs(up[edge].float().mean() - 0.5) < 2 * bound
        assert abs(up[~edge].float().mean() - 0.5) < 2 * bound
        early = torch.arange(len(part)) < len(part) / 2
        assert abs((early == edge).float().mean() - 0.5) < bound
        assert not (part.ids[:, 0] == part.ids[:, 1]).any()


def test_pairs_are_unique_and_labels_match_the_edges() -> None:
    parts = load_graph("digits_graph", split="links")
    pairs = torch.cat([part.ids for part in parts]).sort(1).values
    assert len(torch.unique(pairs, dim=0)) == len(pairs)
    edges = {tuple(e) for e in load_graph("digits_graph").train.graph.edge_index.T.tolist()}
    y = torch.cat([part.y for part in parts]).tolist()
    assert [tuple(pair) in edges for pair in pairs.tolist()] == [bool(label) for label in y]


def test_links_are_reproducible_and_do_not_change_global_generators() -> None:
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    first = load_graph("digits_graph", split="links", fold=2)
    assert states[0] == random.getstate()
    assert np.array_equal(states[1][1], np.random.get_state()[1])  # type: ignore[index, arg-type]
    assert torch.equal(states[2], torch.get_rng_state())
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    again = load_graph("digits_graph", split="links", fold=2)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.ids, b.ids) and torch.equal(a.y, b.y)
        assert torch.equal(a.graph.edge_index, b.graph.edge_index)


def test_edges_are_split_as_by_torch_geometric(tmp_path: Path) -> None:
    from torch_geometric.data import Data
    from torch_geometric.transforms import RandomLinkSplit

    write_planetoid(tmp_path / "Planetoid" / "Cora" / "raw", "cora")
    edge_index = load_graph("cora", root=tmp_path).train.graph.edge_index
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(101)
        transform = RandomLinkSplit(num_val=0.16, num_test=0.2, is_undirected=True)
        expected = transform(Data(edge_index=edge_index, num_nodes=1700))
    for part, theirs in zip(load_graph("cora", root=tmp_path, split="links", fold=1), expected, strict=True):
        assert torch.equal(part.graph.edge_index, theirs.edge_index)
        positive = theirs.edge_label_index[:, theirs.edge_label == 1].T
        mine = part.ids[part.y == 1].sort(1).values
        assert torch.equal(torch.unique(mine, dim=0), torch.unique(positive, dim=0))


@pytest.mark.parametrize(
    "rows",
    [
        [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
        [[0.25, 0.5, 0.0], [0.0, 0.0, 0.0], [3.0, 1.0, 0.0]],
        [[1.0, -3.0, 0.5], [0.0, 0.0, 0.0], [-1.0, 1.0, 0.0]],
    ],
)
def test_features_are_normalized_as_by_torch_geometric(
    rows: list[list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch_geometric.data import Data
    from torch_geometric.transforms import NormalizeFeatures

    x, edges = torch.tensor(rows).repeat(10, 1), torch.tensor([[0, 1], [1, 0]])
    raw = Data(x=x, edge_index=edges, y=torch.arange(30) % 2)
    monkeypatch.setattr(_graphs, "_digits", lambda: raw)
    assert torch.equal(load_graph("digits_graph").train.features, NormalizeFeatures()(raw.clone()).x)
    assert torch.equal(load_graph("digits_graph", normalize=False).train.features, x)


def test_nonnegative_features_are_divided_by_their_sum() -> None:
    x = load_graph("digits_graph", normalize=False).train.features
    # The minimum is 0 and all sums are at least 1.
    assert torch.equal(load_graph("digits_graph").train.features, x / x.sum(1, keepdim=True))


def test_edges_with_one_direction_raise_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_geometric.data import Data

    raw = Data(x=torch.rand(9, 2), edge_index=torch.tensor([[0, 1, 2], [1, 0, 3]]), y=torch.arange(9) % 2)
    monkeypatch.setattr(_graphs, "_digits", lambda: raw)
    with pytest.raises(BadValue, match="one direction"):
        load_graph("digits_graph", split="links")
    full = torch.combinations(torch.arange(9)).T
    raw.edge_index = torch.cat([full, full.flip(0)], 1)
    with pytest.raises(BadValue, match="fewer than 36 pairs that are not edges"):
        load_graph("digits_graph", split="links")


def test_the_folds_have_the_published_sizes() -> None:
    assert [len(part) for part in fold_indices(2995, 0)] == [1916, 480, 599]
    tests = torch.cat([fold_indices(100, fold)[2] for fold in range(5)])
    assert torch.equal(tests.sort().values, torch.arange(100))


def test_the_digits_graph_connects_nearest_neighbors() -> None:
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


def test_missing_and_damaged_data_raise_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataNotFound, match=r"Planetoid/CiteSeer/raw/ind\.citeseer"):
        load_graph("citeseer", root=tmp_path)
    raw = tmp_path / "Planetoid" / "Cora" / "raw"
    write_planetoid(raw, "cora")
    (raw / "ind.cora.graph").write_bytes(b"nothing")
    with pytest.raises(DataNotFound, match="must be complete"):
        load_graph("cora", root=tmp_path)


def test_missing_files_are_named_and_not_downloaded(tmp_path: Path) -> None:
    raw = tmp_path / "Planetoid" / "Cora" / "raw"
    write_planetoid(raw, "cora")
    (raw / "ind.cora.ally").unlink()
    with pytest.raises(DataNotFound, match=r"but ind\.cora\.ally is missing"):
        load_graph("cora", root=tmp_path)


@pytest.mark.parametrize("part", ["graph", "allx", "ty", "test.index"])
@pytest.mark.parametrize(
    "content", [b"", b"nothing", b"1698\n1699\n1697", b"1699\n", pickle.dumps({"a": 1}), pickle.dumps([1, 2])]
)
def test_damaged_files_raise_data_not_found(part: str, content: bytes, tmp_path: Path) -> None:
    raw = tmp_path / "Planetoid" / "Cora" / "raw"
    write_planetoid(raw, "cora")
    (raw / f"ind.cora.{part}").write_bytes(content)
    with pytest.raises(DataNotFound, match=r"cora cannot be read from .*Planetoid"):
        load_graph("cora", root=tmp_path)


def test_replaced_files_are_read_again(tmp_path: Path) -> None:
    raw = tmp_path / "Planetoid" / "Cora" / "raw"
    labels = torch.from_numpy(write_planetoid(raw, "cora"))
    train = load_graph("cora", root=tmp_path).train
    assert torch.equal(train.y, labels[train.ids])
    for part in ("y", "ty", "ally"):
        file = raw / f"ind.cora.{part}"
        permuted = pickle.loads(file.read_bytes())[:, [1, 2, 0]]
        file.write_bytes(pickle.dumps(permuted))
        later = file.stat().st_mtime + 10
        os.utime(file, (later, later))
    assert torch.equal(load_graph("cora", root=tmp_path).train.y, (labels[train.ids] + 2) % 3)


def write_npz(path: Path, **changed: Any) -> None:
    """Write a ring of six nodes with two features and two classes in CitationFull's format."""
    path.parent.mkdir(parents=True)
    ring = csr_matrix((np.ones(6), (np.arange(6), (np.arange(6) + 1) % 6)), shape=(6, 6))
    x = csr_matrix(np.eye(6, 2, dtype=np.float32))
    arrays: dict[str, Any] = {"labels": np.arange(6) % 2}
    for name, matrix in (("adj", ring), ("attr", x)):
        arrays |= {f"{name}_{key}": getattr(matrix, key) for key in ("data", "indices", "indptr", "shape")}
    arrays |= changed
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})


def test_the_layout_of_npz_files_is_checked(tmp_path: Path) -> None:
    def path(number: int) -> Path:
        return tmp_path / str(number) / "CitationFull" / "cora_ml" / "raw" / "cora_ml.npz"

    # The published files have node names as objects, which are not read.
    write_npz(path(0), node_names=np.array(["a", None], dtype=object))
    assert load_graph("cora_ml", root=tmp_path / "0").train.graph.n_edges == 12
    path(1).parent.mkdir(parents=True)
    np.savez(path(1), edge_index=np.zeros((2, 3)), x=np.eye(3), y=np.arange(3))
    with pytest.raises(BadValue, match=r"contains edge_index, x, y, but no adj_data.*expected adj_data"):
        load_graph("cora_ml", root=tmp_path / "1")
    path(2).parent.mkdir(parents=True)
    np.savez(path(2), **{"adj_matrix.data": np.ones(2), "attr_matrix.data": np.ones(2), "labels": np.ones(2)})
    with pytest.raises(BadValue, match=r"contains adj_matrix\.data, attr_matrix\.data, labels, but no"):
        load_graph("cora_ml", root=tmp_path / "2")
    write_npz(path(3), labels=np.array(["a"] * 6, dtype=object))
    with pytest.raises(BadValue, match="pickled objects in labels"):
        load_graph("cora_ml", root=tmp_path / "3")
    for number, content in enumerate((b"", b"nothing", pickle.dumps({"labels": 1}), b"PK\x03\x04broken"), 4):
        path(number).parent.mkdir(parents=True)
        path(number).write_bytes(content)
        with pytest.raises(DataNotFound, match=r"complete \.npz file"):
            load_graph("cora_ml", root=tmp_path / str(number))
    write_npz(path(8), adj_indptr=np.arange(3))
    with pytest.raises(DataNotFound, match="cannot be read"):
        load_graph("cora_ml", root=tmp_path / "8")
    github = tmp_path / "GitHub" / "raw" / "github.npz"
    github.parent.mkdir(parents=True)
    np.savez(github, edges=np.zeros((3, 2)), features=np.array([None] * 3, dtype=object), target=np.arange(3))
    with pytest.raises(BadValue, match="pickled objects in features"):
        load_graph("github", root=tmp_path)


def test_invalid_arguments_raise_an_error(tmp_path: Path) -> None:
    for arguments, word in (
        ({"name": "corra"}, "corra"),
        ({"name": "digits_graph", "fold": 5}, "fold is 5"),
        ({"name": "digits_graph", "split": "random"}, "random"),
        ({"name": "digits_graph", "split": "public"}, "public"),
    ):
        with pytest.raises(BadValue, match=word):
            load_graph(**arguments)  # type: ignore[arg-type]


def test_inconsistent_data_raise_an_error() -> None:
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


def test_content_differs_between_data_sets() -> None:
    data = nodes()
    assert data.content() == nodes().content()
    others = (data.take(torch.arange(5)), nodes(seed=1))
    assert all(other.content() != data.content() for other in others)


def test_masks_are_converted_to_indices() -> None:
    x, graph = torch.rand(6, 2), Graph(torch.tensor([[0], [1]]), 6)
    mask = torch.tensor([False, True, True, False, True, False])
    y = torch.tensor([-1, 0, 1, 99, 1, -1])
    for labels in (y, y[mask]):
        data = GraphData(x, graph, mask, labels, 2)
        assert data.ids.tolist() == [1, 2, 4] and data.y.tolist() == [0, 1, 1]
        assert data.take(torch.tensor([2])).ids.tolist() == [4]
    for bad, labels, word in (
        (mask[:5], y, "expected \\[6\\]"),
        (mask.long(), y, "use ids.bool"),
        (mask.unsqueeze(1).repeat(1, 3), y, "such as ids\\[:, 0\\]"),
        (mask.unsqueeze(1).repeat(1, 2).long(), y, "ids.bool\\(\\)\\[:, 0\\]"),
        (mask.unsqueeze(1).repeat(1, 3).long(), y, "expected indices of nodes, int64 \\[M\\]"),
        (mask.float(), y, "float32"),
        (mask.numpy(), y, "ndarray"),
        (~mask, y, "no label\\) for 2 of 3"),
        (torch.zeros_like(mask), y, "at least one"),
        (torch.tensor([1, 2, 4]), y, "by y\\[ids\\]"),
        (torch.tensor([1, 2, 1]), torch.tensor([0, 1, 1]), "node 1 has two different labels"),
    ):
        with pytest.raises(BadValue, match=word):
            GraphData(x, graph, bad, labels, 2)


def test_other_types_and_shapes_raise_an_error() -> None:
    x, graph, ids, y = torch.rand(4, 2), Graph(torch.tensor([[0], [1]]), 4), torch.arange(3), torch.arange(3)
    for bad, word in (
        ((x.to_sparse(), graph, ids, y, 3), "to_dense"),
        ((x.numpy(), graph, ids, y, 3), "ndarray"),
        ((x.long(), graph, ids, y, 3), "floats"),
        ((x, graph, ids, y.int(), 3), "int64"),
        ((x, graph, ids, y.unsqueeze(1), 3), "one label for each"),
        ((x, graph, ids, y, 3.0), "n_classes"),
        ((x, graph, ids.unsqueeze(1) * torch.tensor([1, 0]), y, 3), "expected 2 for pairs"),
        ((x[:, :0], graph, ids, y, 3), "floats"),
        ((x, graph.edge_index, ids, y, 3), "Graph"),
        ((x, graph, ids.to("meta"), y, 3), "one device"),
    ):
        with pytest.raises(BadValue, match=word):
            GraphData(*bad)  # type: ignore[arg-type]


def test_invalid_edges_raise_an_error() -> None:
    edges = torch.tensor([[0, 1, 2], [1, 2, 0]])
    for bad, n, word in (
        (edges.T.contiguous(), 3, r"edge_index\.T\.long"),
        (edges.float(), 3, r"edge_index\.long"),
        (edges.int(), 3, r"edge_index\.long"),
        (edges, 2, "node numbers 0..2"),
        (edges - 1, 3, "node numbers -1..1"),
        (torch.eye(3).to_sparse(), 3, "indices"),
        (edges.numpy(), 3, "ndarray"),
        (edges, 0, "at least 1"),
        (edges, 3.0, "integer"),
    ):
        with pytest.raises(BadValue, match=word):
            Graph(bad, n)  # type: ignore[arg-type]


def test_torch_geometric_data_are_converted() -> None:
    from torch_geometric.data import Data

    data = nodes()
    mask = torch.zeros(60, dtype=torch.bool)
    mask[data.ids] = True
    y = torch.full((60,), -1)
    y[data.ids] = data.y
    theirs = Data(x=data.features, edge_index=data.graph.edge_index, y=y, train_mask=mask, val_mask=~mask)
    found = GraphData.from_pyg(theirs)
    assert torch.equal(found.ids, data.ids.sort().values) and torch.equal(found.y, y[found.ids])
    assert found.n_classes == 3 and found.features is data.features
    for part, key, value, word in (
        ("test", "x", data.features, "no test_mask"),
        ("val", "x", data.features, "no label"),
        ("train", "edge_weight", torch.ones(data.graph.n_edges), "edge_weight"),
        ("train", "train_mask", mask.unsqueeze(1).repeat(1, 2), "select one"),
    ):
        changed = theirs.clone()
        changed[key] = value
        with pytest.raises(BadValue, match=word):
            GraphData.from_pyg(changed, part)  # type: ignore[arg-type]
    with pytest.raises(BadValue, match=r"GraphData\.from_pyg"):
        ForwardGNN(make_gnn(), progress=False).fit(theirs)


def test_every_graph_is_described_in_one_line() -> None:
    assert [name for name, _ in describe_graphs()] == list(GRAPH_NAMES)
    assert all(text and "\n" not in text for _, text in describe_graphs())
