"""`load_graph`: read a graph by name with torch-geometric, and split its labels."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from bpfree._errors import BadValue, DataNotFound
from bpfree.data._graph_data import GraphData
from bpfree.data._sources import ROOT_VARIABLE, data_root, may_download, read_digits
from bpfree.graphs.graph import Graph

if TYPE_CHECKING:
    from numpy.lib.npyio import NpzFile

Split = Literal["folds", "public", "links"]

#: Number of nearest neighbors that are connected to each image in the graph of the digits.
N_NEIGHBORS = 8


class _Raw(Protocol):
    """What this module uses of a ``torch_geometric.data.Data``."""

    x: Tensor
    y: Tensor
    edge_index: Tensor


class GraphSource(NamedTuple):
    """A graph that torch-geometric reads and downloads."""

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

#: Suffixes of the names of Planetoid's files.
PARTS = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")

#: Number of test nodes of each Planetoid graph.
TEST_NODES = 1000

#: Arrays in the files of CitationFull and Amazon (Shchur et al., arXiv 1811.05868), without ``labels``.
SPARSE_ARRAYS = tuple(f"{a}_{b}" for a in ("adj", "attr") for b in ("data", "indices", "indptr", "shape"))

GRAPH_NAMES = ("digits_graph", *_SOURCES)
"""Names of the graphs for `load_graph`."""


class GraphSplits(NamedTuple):
    """Disjoint training, validation and test sets of the labeled nodes, or pairs of nodes, of a graph."""

    train: GraphData
    validation: GraphData
    test: GraphData


def describe_graphs() -> list[tuple[str, str]]:
    """Name and one-line description of each graph of `load_graph`."""
    digits = (
        "1797 handwritten digits, connected to their nearest neighbors; part of scikit-learn, no download"
    )
    return [("digits_graph", digits)] + [
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
    """Load a graph, with its nodes (or pairs of nodes) split into training, validation and test sets.

    Args:
        name: One of `GRAPH_NAMES`.
        split: ``folds``: five folds of 64/16/20 %, as in ForwardGNN (Park et al., arXiv 2403.11004).
            ``public``: the published split of Planetoid. ``links``: pairs of nodes, 64/16/20 % of the edges
            and an equal number of pairs that are not edges. The graph has the training edges; that of the
            test set also has the validation edges. The order of pairs, and of the nodes of a pair, is random.
        fold: Index of the fold, 0 to 4; for ``links``, index of the random split; no effect for ``public``.
        root: Folder of the data sets. Default: $BPFREE_DATA, or the user's cache folder if that is not set.
            It must be writable, because torch-geometric writes processed files to it.
        download: Whether to download missing data. Default: only into the user's cache folder.
        normalize: Whether to scale the features as ``NormalizeFeatures`` of torch-geometric: the minimum of
            all values is subtracted, and the features of each node are divided by their sum if it exceeds 1.
        device: Device of the tensors.

    Raises:
        DataNotFound: If data are missing and cannot be downloaded, or cannot be read.
        BadValue: If the name, split or fold is unknown, or a file has other contents than the graph.
    """
    if name not in GRAPH_NAMES:
        raise BadValue(f"there is no graph {name!r}; expected one of {', '.join(GRAPH_NAMES)}")
    if not 0 <= fold < 5:
        raise BadValue(f"fold is {fold}; expected 0 to 4")
    raw = _digits() if name == "digits_graph" else _read(name, data_root(root), may_download(root, download))
    x = raw.x.float()
    if normalize:
        x = x - x.min()
        x = x / x.sum(1, keepdim=True).clamp(min=1.0)
    splits: dict[str, Callable[[str, _Raw, Tensor, int], GraphSplits]] = {
        "folds": _folds,
        "public": _public,
        "links": _links,
    }
    if split not in splits:
        raise BadValue(f"split is {split!r}; expected one of {', '.join(splits)}")
    return GraphSplits(*(part.to(device) for part in splits[split](name, raw, x, fold)))


def fold_indices(n: int, fold: int) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the training, validation and test nodes of one fold of n nodes.

    The folds are those of ForwardGNN: the test nodes by `KFold(5, shuffle=True, random_state=101)`, and the
    validation nodes by `train_test_split(test_size=0.2, random_state=127 * fold)` of the others.
    """
    from sklearn.model_selection import KFold, train_test_split

    others, test = list(KFold(5, shuffle=True, random_state=101).split(range(n)))[fold]
    train, validation = train_test_split(others, test_size=0.2, random_state=127 * fold)
    return torch.from_numpy(train), torch.from_numpy(validation), torch.from_numpy(test)


def _folds(name: str, raw: _Raw, x: Tensor, fold: int) -> GraphSplits:
    parts = fold_indices(len(x), fold)
    return _nodes(name, raw, x, parts)


def _public(name: str, raw: _Raw, x: Tensor, _: int) -> GraphSplits:
    masks: list[Tensor | None] = [getattr(raw, f"{part}_mask", None) for part in ("train", "val", "test")]
    if None in masks:
        raise BadValue(f"split is 'public', but {name} has no published split; use 'folds'")
    return _nodes(name, raw, x, tuple(mask.nonzero().squeeze(1) for mask in masks if mask is not None))


def _nodes(name: str, raw: _Raw, x: Tensor, parts: tuple[Tensor, ...]) -> GraphSplits:
    graph, y, n_classes = Graph(raw.edge_index, len(x)), raw.y.long(), int(raw.y.max()) + 1
    return GraphSplits(*(GraphData(x, graph, ids, y[ids], n_classes, name) for ids in parts))


def _links(name: str, raw: _Raw, x: Tensor, fold: int) -> GraphSplits:
    """Split edges as ``RandomLinkSplit(0.16, 0.2, is_undirected=True)`` of torch-geometric does.

    Unlike there, the order of pairs and of the nodes of a pair is random (torch-geometric returns edges
    before other pairs, each with the lower index first), and no pair that is not an edge is in two sets.
    """
    n, generator = len(x), torch.Generator().manual_seed(101 * fold)
    edges = _undirected(name, raw.edge_index, n)
    edges = edges[:, torch.randperm(edges.shape[1], generator=generator)]
    sizes = [0, int(0.16 * edges.shape[1]), int(0.2 * edges.shape[1])]
    sizes[0] = edges.shape[1] - sum(sizes)
    non_edges = _non_edges(edges, n, generator)
    parts, visible = [], [sizes[0], sizes[0], sizes[0] + sizes[1]]
    for positive, negative, n_visible in zip(
        edges.split(sizes, 1), non_edges.split(sizes, 1), visible, strict=True
    ):
        pairs = torch.cat([positive, negative], 1).T
        y = (torch.arange(len(pairs)) < positive.shape[1]).long()
        swapped = torch.rand(len(pairs), 1, generator=generator) < 0.5
        pairs = torch.where(swapped, pairs.flip(1), pairs)
        order = torch.randperm(len(pairs), generator=generator)
        visible_edges = edges[:, :n_visible]
        graph = Graph(torch.cat([visible_edges, visible_edges.flip(0)], 1), n)
        parts.append(GraphData(x, graph, pairs[order], y[order], 2, name))
    return GraphSplits(*parts)


def _undirected(name: str, edge_index: Tensor, n: int) -> Tensor:
    """Each undirected edge once, with the lower index first: ``[2, E]``.

    Raises:
        BadValue: If an edge has one direction only.
    """
    key = edge_index[0] * n + edge_index[1]
    reversed_key = edge_index[1] * n + edge_index[0]
    if not torch.equal(key.unique(), reversed_key.unique()):
        raise BadValue(f"split is 'links', but some edges of {name} have one direction only; use 'folds'")
    return edge_index[:, edge_index[0] < edge_index[1]]


def _non_edges(edges: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Draw as many different pairs of nodes as there are edges, none of them an edge: ``[2, E]``.

    The lower index is first.

    Raises:
        BadValue: If there are fewer such pairs.
    """
    n_edges, edge_keys = edges.shape[1], edges[0] * n + edges[1]
    if 2 * n_edges > n * (n - 1) // 2:
        raise BadValue(
            f"split is 'links', but {n} nodes with {n_edges} edges have fewer than {n_edges} pairs that are "
            "not edges; use 'folds'"
        )
    keys = edge_keys[:0]
    while len(keys) < n_edges:
        candidates = torch.randint(n, (n_edges, 2), generator=generator).sort(1).values
        new_keys = candidates[candidates[:, 0] < candidates[:, 1]] @ torch.tensor([n, 1])
        keys = torch.cat([keys, new_keys[~torch.isin(new_keys, edge_keys)]]).unique()
    keys = keys[torch.randperm(len(keys), generator=generator)[:n_edges]]
    return torch.stack([keys // n, keys % n])


def _digits() -> _Raw:
    """Graph of the digits, with edges in both directions to the `N_NEIGHBORS` nearest neighbors of each."""
    from sklearn.neighbors import kneighbors_graph

    images, labels = read_digits()
    x = images.flatten(1).float()
    adjacency = kneighbors_graph(x.numpy(), N_NEIGHBORS).tocoo()
    edges = torch.stack([torch.from_numpy(adjacency.col).long(), torch.from_numpy(adjacency.row).long()])
    both = torch.cat([edges, edges.flip(0)], 1)
    return _data(x, torch.unique(both, dim=1), labels)


def _data(x: Tensor, edge_index: Tensor, y: Tensor) -> _Raw:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch_geometric.data import Data
    data: _Raw = Data(x=x, edge_index=edge_index, y=y)
    return data


def _read(name: str, root: Path, download: bool) -> _Raw:
    """Read one of `_SOURCES`, and download it first if it is missing and `download` is True.

    Raises:
        DataNotFound: If files are missing or damaged, or the folder is not writable.
        BadValue: If a file has other arrays than the graph.
    """
    source = _SOURCES[name]
    folder = root / source.class_name
    files = _files(folder, source)
    if missing := [file.name for file in files if not file.exists()]:
        if not download:
            raise DataNotFound(
                f"{name} is not in {folder}, and downloading is disabled: expected {folder / source.files}, "
                f"but {', '.join(missing)} is missing. To download it set download=True, or unset "
                f"{ROOT_VARIABLE} and leave root out"
            )
    elif source.class_name != "Planetoid":
        _check_arrays(name, files[0], source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # importing torch-geometric warns that torch.jit is deprecated
        from filelock import FileLock
        from torch_geometric import datasets
    cls = getattr(datasets, source.class_name)
    arguments = (str(folder),) if source.graph is None else (str(folder), source.graph)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Two processes that process the files at the same time would overwrite each other's results.
        with FileLock(folder / f"{name}.lock"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            raw: _Raw = cls(*arguments, force_reload=not missing and _is_outdated(files))[0]
            if len(raw.y) != len(raw.x):
                raise ValueError(f"{len(raw.y)} labels for {len(raw.x)} nodes")
            if source.class_name == "Planetoid":
                _check_test_index(files[-1], len(raw.x), gaps=name == "citeseer")
            return raw
    except Exception as error:  # torch-geometric does not catch the errors of damaged files
        raise DataNotFound(
            f"{name} cannot be read from {folder} ({type(error).__name__}: {error}); the files must be "
            "complete, and the folder writable because torch-geometric writes processed files to it; set "
            f"{ROOT_VARIABLE} to a writable copy"
        ) from error


def _files(folder: Path, source: GraphSource) -> list[Path]:
    """Paths of the raw files of a graph."""
    return [folder / source.files.replace("*", part) for part in (PARTS if "*" in source.files else ("",))]


def _is_outdated(files: list[Path]) -> bool:
    """Whether the processed file of torch-geometric is older than the raw files."""
    processed = files[0].parent.parent / "processed" / "data.pt"
    return processed.exists() and max(file.stat().st_mtime for file in files) > processed.stat().st_mtime


def _check_test_index(path: Path, n_nodes: int, gaps: bool) -> None:
    """Check that a file contains the indices of the last nodes, which torch-geometric does not check.

    Args:
        path: File of indices.
        n_nodes: Number of nodes of the graph.
        gaps: Whether indices may be missing.

    Raises:
        ValueError: If it contains other indices.
    """
    with path.open() as file, warnings.catch_warnings():
        warnings.simplefilter("error")  # NumPy warns if the file is empty
        indices = np.sort(np.loadtxt(file, dtype=np.int64, ndmin=1))
    steps, last = np.diff(indices), len(indices) == TEST_NODES and indices[-1] == n_nodes - 1
    if not last or (steps < 1).any() or ((steps > 1).any() and not gaps):
        raise ValueError(f"{path.name} does not contain the indices of the last {TEST_NODES} nodes")


def _check_arrays(name: str, path: Path, source: GraphSource) -> None:
    """Check that a file contains the arrays of its graph, all of them numeric. Nothing is unpickled.

    Raises:
        BadValue: If it contains other arrays.
        DataNotFound: If it cannot be read.
    """
    expected = (
        ("edges", "features", "target") if source.class_name == "GitHub" else (*SPARSE_ARRAYS, "labels")
    )
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            keys = list(archive.files)
            pickled = [key for key in expected if key in keys and not _is_numeric(archive, key)]
    except Exception as error:  # NumPy and zipfile raise many types of errors for damaged files
        raise DataNotFound(
            f"{name} cannot be read from {path} ({type(error).__name__}: {error}); expected a complete .npz "
            "file; replace the file"
        ) from error
    if missing := [key for key in expected if key not in keys]:
        raise BadValue(
            f"{path} does not have the layout of {name}: it contains {', '.join(keys)}, but no "
            f"{' and no '.join(missing)}; expected {', '.join(expected)}; for another layout create a "
            "bpfree.data.GraphData"
        )
    if pickled:
        raise BadValue(
            f"{path} has pickled objects in {', '.join(pickled)}, which are not read; expected numeric "
            "arrays; save the arrays as numbers"
        )


def _is_numeric(archive: NpzFile, key: str) -> bool:
    try:
        return bool(archive[key].dtype.kind in "biuf")
    except ValueError:
        return False
