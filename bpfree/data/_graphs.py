"""The named graphs: read by torch-geometric, and split as published."""

from __future__ import annotations

import pickle
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bpfree._errors import BadValue, DataNotFound
from bpfree.data._graph_data import GraphData
from bpfree.data._sources import ROOT_VARIABLE, data_root, may_download, read_digits
from bpfree.graph import Graph

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
            edges as well.
        fold: which fold, 0 to 4; links: which draw; it has no effect on ``public``.
        root: the folder of the data sets; by default $BPFREE_DATA, else the user's cache folder.
            torch-geometric writes processed files beside the raw ones, so it must be writable.
        download: whether missing data may be downloaded; by default only into the user's cache folder.
        normalize: divide the features of each node by their sum.
        device: where the tensors are to live.

    Raises DataNotFound where data are missing and cannot be downloaded; BadValue for an unknown name, split
    or fold.
    """
    if name not in GRAPH_NAMES:
        raise BadValue(f"graph {name!r} is not known; expected one of {', '.join(GRAPH_NAMES)}")
    if not 0 <= fold < 5:
        raise BadValue(f"fold is {fold}; expected 0 to 4")
    raw = _digits() if name == "digits_graph" else _read(name, data_root(root), may_download(root, download))
    x = raw.x.float()
    if normalize:
        x = x / x.sum(1, keepdim=True).clamp(min=1e-12)
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit's deprecation, at torch-geometric's import
        from torch_geometric.transforms import RandomLinkSplit
    draw = RandomLinkSplit(num_val=0.16, num_test=0.2, is_undirected=True, split_labels=False)
    with _seeded(101 * fold):
        found = draw(raw)
    parts = []
    for part in found:
        pairs, labels = part.edge_label_index.T.contiguous(), part.edge_label.long()
        parts.append(GraphData(x, Graph(part.edge_index, len(x)), pairs, labels, 2, name))
    return GraphSplits(*parts)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Global generators, of which torch-geometric draws, seeded inside and as they were afterwards."""
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        yield
    random.setstate(before[0])
    np.random.set_state(before[1])


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
    if not download and not any(folder.glob(source.files)):
        raise DataNotFound(
            f"{name} is not in {folder} and may not be downloaded there: expected {folder / source.files}. "
            f"To download it set download=True, or unset {ROOT_VARIABLE} and give no root"
        )
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
            return kind(*arguments)[0]
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise DataNotFound(
            f"{name} cannot be read from {folder} ({error}): its files must be whole and the folder "
            f"writable, since torch-geometric writes processed files there; set {ROOT_VARIABLE} to a "
            "writable copy"
        ) from error
