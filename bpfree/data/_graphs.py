"""The named graphs: read by torch-geometric, and split as published."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bpfree._errors import BadValue, DataNotFound
from bpfree.data._graph_data import GraphData
from bpfree.data._sources import ROOT_VARIABLE, data_root, may_download, read_digits
from bpfree.graphs.graph import Graph

Split = Literal["folds", "public", "links"]

#: Neighbours of each image in the graph of the digits.
NEIGHBOURS = 8


class GraphSource(NamedTuple):
    """A graph that torch-geometric knows how to read and download."""

    description: str
    class_name: str
    graph: str | None
    files: str


_SOURCES = {
    "cora": GraphSource("2708 papers, 7 classes", "Planetoid", "Cora", "Cora/raw/ind.cora.*"),
    "citeseer": GraphSource("3327 papers, 6 classes", "Planetoid", "CiteSeer", "CiteSeer/raw/ind.citeseer.*"),
    "pubmed": GraphSource("19717 papers, 3 classes", "Planetoid", "PubMed", "PubMed/raw/ind.pubmed.*"),
    "cora_ml": GraphSource("2995 papers, 7 classes", "CitationFull", "Cora_ML", "cora_ml/raw/cora_ml.npz"),
    "citeseer_full": GraphSource(
        "4230 papers, 6 classes", "CitationFull", "CiteSeer", "citeseer/raw/citeseer.npz"
    ),
    "pubmed_full": GraphSource("19717 papers, 3 classes", "CitationFull", "PubMed", "pubmed/raw/pubmed.npz"),
    "photo": GraphSource(
        "7650 products, 8 classes", "Amazon", "Photo", "Photo/raw/amazon_electronics_photo.npz"
    ),
    "computers": GraphSource(
        "13752 products, 10 classes", "Amazon", "Computers", "Computers/raw/amazon_electronics_computers.npz"
    ),
    "github": GraphSource("37700 developers, 2 classes", "GitHub", None, "raw/github.npz"),
}

#: Ends of the names of Planetoid's files.
PARTS = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")

#: Test nodes of each of Planetoid's graphs.
TEST_NODES = 1000

#: Arrays in the files of CitationFull and Amazon (Shchur et al., arXiv 1811.05868), beside ``labels``.
SPARSE_ARRAYS = tuple(f"{a}_{b}" for a in ("adj", "attr") for b in ("data", "indices", "indptr", "shape"))

GRAPH_NAMES = ("digits_graph", *_SOURCES)
"""The graphs that `load_graph` knows."""


class GraphSplits(NamedTuple):
    """The three parts of a graph's labels; no node, or pair, is in two of them."""

    train: GraphData
    validation: GraphData
    test: GraphData


def describe_graphs() -> list[tuple[str, str]]:
    """(name, description in one line) of each graph."""
    own = "1797 handwritten digits, each joined to those like it; part of scikit-learn, no download"
    return [("digits_graph", own)] + [
        (name, f"{s.description} ({s.class_name} of torch-geometric)") for name, s in _SOURCES.items()
    ]


def load_graph(
    name: str,
    *,
    split: Split = "folds",
    fold: int = 0,
    root: str | Path | None = None,
    download: bool | None = None,
    normalize: bool = True,
    device: str | torch.device = "cpu",
) -> GraphSplits:
    """Load a graph, its nodes (or pairs of nodes) split into train, validation and test.

    Args:
        name: one of `GRAPH_NAMES`.
        split: ``folds``: five folds of 64/16/20 %, as in ForwardGNN (Park et al., arXiv 2403.11004);
            ``public``: Planetoid's own; ``links``: pairs of nodes, 64/16/20 % of the edges and as many pairs
            that are none, where messages flow along training edges, and for the test part along validation
            edges as well; the order of pairs, and of the two nodes of a pair, says nothing.
        fold: which fold, 0 to 4; links: which draw; it has no effect on ``public``.
        root: the folder of the data sets; by default $BPFREE_DATA, else the user's cache folder.
            torch-geometric writes processed files beside the raw ones, so it must be writable.
        download: whether missing data may be downloaded; by default only into the user's cache folder.
        normalize: scale the features as torch-geometric's ``NormalizeFeatures`` does: the smallest value of
            all is taken off, then each node's features are divided by their sum, where that is more than 1.
        device: where the tensors are to live.

    Raises DataNotFound where data are missing and cannot be downloaded, or cannot be read; BadValue for an
    unknown name, split or fold, or a file with other contents than those of the graph.
    """
    if name not in GRAPH_NAMES:
        raise BadValue(f"graph {name!r} is not known; expected one of {', '.join(GRAPH_NAMES)}")
    if not 0 <= fold < 5:
        raise BadValue(f"fold is {fold}; expected 0 to 4")
    raw = _digits() if name == "digits_graph" else _read(name, data_root(root), may_download(root, download))
    x = raw.x.float()
    if normalize:
        x = x - x.min()
        x = x / x.sum(1, keepdim=True).clamp(min=1.0)
    makers: dict[str, Callable[..., GraphSplits]] = {"folds": _folds, "public": _public, "links": _links}
    if split not in makers:
        raise BadValue(f"split is {split!r}; expected one of {', '.join(makers)}")
    return GraphSplits(*(part.to(device) for part in makers[split](name, raw, x, fold)))


def fold_indices(n: int, fold: int) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of the training, validation and test nodes of one fold, of n nodes.

    The recipe of ForwardGNN: `KFold(5, shuffle=True, random_state=101)`, and of what is not test
    `train_test_split(test_size=0.2, random_state=127 * fold)`.
    """
    from sklearn.model_selection import KFold, train_test_split

    rest, test = list(KFold(5, shuffle=True, random_state=101).split(range(n)))[fold]
    train, validation = train_test_split(rest, test_size=0.2, random_state=127 * fold)
    return torch.from_numpy(train), torch.from_numpy(validation), torch.from_numpy(test)


def _folds(name: str, raw: Any, x: Tensor, fold: int) -> GraphSplits:
    parts = fold_indices(len(x), fold)
    return _nodes(name, raw, x, parts)


def _public(name: str, raw: Any, x: Tensor, _: int) -> GraphSplits:
    if getattr(raw, "train_mask", None) is None:
        raise BadValue(f"split is 'public', which {name} has not; use 'folds'")
    masks = (raw.train_mask, raw.val_mask, raw.test_mask)
    return _nodes(name, raw, x, tuple(mask.nonzero().squeeze(1) for mask in masks))


def _nodes(name: str, raw: Any, x: Tensor, parts: tuple[Tensor, ...]) -> GraphSplits:
    graph, y, n_classes = Graph(raw.edge_index, len(x)), raw.y.long(), int(raw.y.max()) + 1
    return GraphSplits(*(GraphData(x, graph, ids, y[ids], n_classes, name) for ids in parts))


def _links(name: str, raw: Any, x: Tensor, fold: int) -> GraphSplits:
    """As torch-geometric's ``RandomLinkSplit(0.16, 0.2, is_undirected=True)``: edges in the same parts.

    There, pairs that are edges come first, each with the lower number in front, and a pair that is none may
    come in two parts, turned.
    """
    n, generator = len(x), torch.Generator().manual_seed(101 * fold)
    edges = _undirected(name, raw.edge_index, n)
    edges = edges[:, torch.randperm(edges.shape[1], generator=generator)]
    sizes = [0, int(0.16 * edges.shape[1]), int(0.2 * edges.shape[1])]
    sizes[0] = edges.shape[1] - sum(sizes)
    none = _non_edges(edges, n, generator)
    parts, flowing = [], [sizes[0], sizes[0], sizes[0] + sizes[1]]
    for own, others, number in zip(edges.split(sizes, 1), none.split(sizes, 1), flowing, strict=True):
        pairs = torch.cat([own, others], 1).T
        y = (torch.arange(len(pairs)) < own.shape[1]).long()
        turned = torch.rand(len(pairs), 1, generator=generator) < 0.5
        pairs = torch.where(turned, pairs.flip(1), pairs)
        order = torch.randperm(len(pairs), generator=generator)
        flows = edges[:, :number]
        graph = Graph(torch.cat([flows, flows.flip(0)], 1), n)
        parts.append(GraphData(x, graph, pairs[order], y[order], 2, name))
    return GraphSplits(*parts)


def _undirected(name: str, edge_index: Tensor, n: int) -> Tensor:
    """The edges, each once with the lower number first, ``[2, E]``."""
    key = edge_index[0] * n + edge_index[1]
    turned = edge_index[1] * n + edge_index[0]
    if not torch.equal(key.unique(), turned.unique()):
        raise BadValue(f"split is 'links', but some edges of {name} have one direction only; use 'folds'")
    return edge_index[:, edge_index[0] < edge_index[1]]


def _non_edges(edges: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """As many pairs of nodes, lower number first, that are no edges, none twice; ``[2, E]``."""
    number, taken = edges.shape[1], edges[0] * n + edges[1]
    if 2 * number > n * (n - 1) // 2:
        raise BadValue(f"split is 'links', but of {n} nodes there are not {number} pairs that are no edges")
    found = taken[:0]
    while len(found) < number:
        drawn = torch.randint(n, (number, 2), generator=generator).sort(1).values
        key = drawn[drawn[:, 0] < drawn[:, 1]] @ torch.tensor([n, 1])
        found = torch.cat([found, key[~torch.isin(key, taken)]]).unique()
    found = found[torch.randperm(len(found), generator=generator)[:number]]
    return torch.stack([found // n, found % n])


def _digits() -> Any:
    """The digits, each joined to its `NEIGHBOURS` nearest in both directions."""
    from sklearn.neighbors import kneighbors_graph

    images, labels = read_digits()
    x = images.flatten(1).float()
    found = kneighbors_graph(x.numpy(), NEIGHBOURS).tocoo()
    edges = torch.stack([torch.from_numpy(found.col).long(), torch.from_numpy(found.row).long()])
    both = torch.cat([edges, edges.flip(0)], 1)
    return _data(x, torch.unique(both, dim=1), labels)


def _data(x: Tensor, edge_index: Tensor, y: Tensor) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch_geometric.data import Data
    return Data(x=x, edge_index=edge_index, y=y)


def _read(name: str, root: Path, download: bool) -> Any:
    source = _SOURCES[name]
    folder = root / source.class_name
    files = _files(folder, source)
    if missing := [file.name for file in files if not file.exists()]:
        if not download:
            raise DataNotFound(
                f"{name} is not in {folder} and may not be downloaded there: expected "
                f"{folder / source.files}, but {', '.join(missing)} is missing. To download it set "
                f"download=True, or unset {ROOT_VARIABLE} and give no root"
            )
    elif source.class_name != "Planetoid":
        _check_arrays(name, files[0], source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit's deprecation, at torch-geometric's import
        from filelock import FileLock
        from torch_geometric import datasets
    kind = getattr(datasets, source.class_name)
    arguments = (str(folder),) if source.graph is None else (str(folder), source.graph)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Two processes that process the files at once would write into one another's.
        with FileLock(folder / f"{name}.lock"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            raw = kind(*arguments, force_reload=not missing and _older(files))[0]
            if len(raw.y) != len(raw.x):
                raise ValueError(f"{len(raw.y)} labels of {len(raw.x)} nodes")
            if source.class_name == "Planetoid":
                _check_test_index(files[-1], len(raw.x), gaps=name == "citeseer")
            return raw
    except Exception as error:  # torch-geometric lets through whatever a damaged file raises
        raise DataNotFound(
            f"{name} cannot be read from {folder} ({type(error).__name__}: {error}): its files must be whole "
            "and the folder writable, since torch-geometric writes processed files there; set "
            f"{ROOT_VARIABLE} to a writable copy"
        ) from error


def _files(folder: Path, source: GraphSource) -> list[Path]:
    """The files of a graph."""
    return [folder / source.files.replace("*", part) for part in (PARTS if "*" in source.files else ("",))]


def _older(files: list[Path]) -> bool:
    """Whether what torch-geometric has made of the files is older than they are."""
    made = files[0].parent.parent / "processed" / "data.pt"
    return made.exists() and max(file.stat().st_mtime for file in files) > made.stat().st_mtime


def _check_test_index(path: Path, n_nodes: int, gaps: bool) -> None:
    """Check that the file holds the numbers of the last nodes, with gaps or not; torch-geometric does not.

    Raises:
        ValueError: If it does not.
    """
    with path.open() as file, warnings.catch_warnings():
        warnings.simplefilter("error")  # numpy's, of an empty file
        numbers = np.sort(np.loadtxt(file, dtype=np.int64, ndmin=1))
    steps, last = np.diff(numbers), len(numbers) == TEST_NODES and numbers[-1] == n_nodes - 1
    if not last or (steps < 1).any() or ((steps > 1).any() and not gaps):
        raise ValueError(f"{path.name} does not hold the numbers of the last {TEST_NODES} nodes")


def _check_arrays(name: str, path: Path, source: GraphSource) -> None:
    """Check that the file has the arrays of its graph, as arrays of numbers; nothing is unpickled.

    Raises:
        BadValue: If it has others.
        DataNotFound: If it cannot be read.
    """
    expected = (
        ("edges", "features", "target") if source.class_name == "GitHub" else (*SPARSE_ARRAYS, "labels")
    )
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            there = list(found.files)
            pickled = [key for key in expected if key in there and not _of_numbers(found, key)]
    except Exception as error:  # torch-geometric lets through whatever a damaged file raises
        raise DataNotFound(
            f"{name} cannot be read from {path} ({type(error).__name__}: {error}): expected a whole .npz file"
        ) from error
    if missing := [key for key in expected if key not in there]:
        raise BadValue(
            f"{path} is not laid out as {name}: it has the arrays {', '.join(there)}, and no "
            f"{', no '.join(missing)}; expected {', '.join(expected)}; for other layouts make a "
            "bpfree.data.GraphData"
        )
    if pickled:
        raise BadValue(
            f"{path} holds pickled objects in {', '.join(pickled)}, which are not read: expected arrays of "
            "numbers"
        )


def _of_numbers(found: Any, key: str) -> bool:
    try:
        return bool(found[key].dtype.kind in "biuf")
    except ValueError:
        return False
