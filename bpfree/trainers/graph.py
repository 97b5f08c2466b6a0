"""The base of trainers on graphs, which are built for a graph and its training labels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from bpfree import _seeds
from bpfree._errors import BadValue
from bpfree._feature_store import Store
from bpfree._renamed import warn_renamed
from bpfree._types import JsonObject
from bpfree.data import GraphData, TensorData
from bpfree.data._convert import as_tensor, is_array
from bpfree.encodings.graph import GraphEncoding
from bpfree.encodings.graph_labels import LabeledGraphs
from bpfree.engine import checkpoint as ckpt
from bpfree.engine.base_feed import BaseFeed
from bpfree.engine.evaluation import Evaluator
from bpfree.engine.history import History
from bpfree.engine.settings import FitSettings, state_values
from bpfree.graphs.evaluation import make_evaluator
from bpfree.graphs.feed import GraphFeed
from bpfree.graphs.graph import Graph
from bpfree.metrics import ACCURACY, ROC_AUC
from bpfree.nn import GNN
from bpfree.trainers.base import Trainer
from bpfree.trainers.building import check_several_classes
from bpfree.trainers.graph_checks import check_classes, check_scale, check_validation, digest
from bpfree.trainers.inputs import check_data


class GraphTrainer(Trainer):
    """Trains a `bpfree.nn.GNN` on `bpfree.data.GraphData`; a sample is the number of a node, or two numbers.

    The layers of the network are created when the graph is known, with weights drawn by the trainer's seed.
    """

    net: GNN

    def __init__(self, net: nn.Module, **options: Any) -> None:
        self._train_data: GraphData | None = None
        super().__init__(net, **options)
        if not isinstance(net, GNN):
            raise BadValue(f"{self.id} trains a bpfree.nn.GNN, not a {type(net).__name__}")

    # ---- for subclasses --------------------------------------------------------------------------------

    @abstractmethod
    def make_encoding(self, data: GraphData) -> GraphEncoding:
        """The encoding of the training data."""

    @property
    def train_data(self) -> GraphData:
        """The training data that the trainer was built for.

        Raises:
            BadValue: Before `build_for` or `fit`.
        """
        if self._train_data is None:
            raise BadValue(f"{self.id} has no graph yet: call fit or build_for first")
        return self._train_data

    @property
    def bound(self) -> GraphData:
        """The old name of `train_data`."""
        warn_renamed(f"{type(self).__name__}.bound", "train_data")
        return self.train_data

    def generator(self, purpose: str) -> torch.Generator:
        """A random generator for one purpose, seeded by the trainer's seed, on its device."""
        return _seeds.generator(self.device, self.seed, purpose)

    # ---- building --------------------------------------------------------------------------------------

    def build(self, sample_shape: Sequence[int], n_classes: int) -> None:
        """Check that `build_for` was called, which builds a trainer on a graph, for as many classes.

        Raises:
            BadValue: If it was not, or for another number of classes.
        """
        if self.train_data.n_classes != n_classes:
            raise BadValue(
                f"the trainer was built for {self.train_data.n_classes} classes, the data have {n_classes}"
            )

    def build_for(self, data: TensorData) -> None:
        """Create layers, heads and optimizers for these training data, or use existing ones for other data.

        Raises:
            BadValue: If the data are no graph, do not fit existing layers, or contain a node twice.
        """
        given = self._graph_data(data)
        if self._cascade is not None:
            self._check_kind(given, "train on")
        graph = cast(GraphData, check_data(given, self.n_classes, self.device))
        check_scale(graph)
        ids = graph.ids
        if ids.ndim == 1 and len(ids.unique()) < len(ids):
            raise BadValue(
                f"{graph.name}: a training node occurs twice in ids; expected each once: ids.unique()"
            )
        if self._cascade is not None:
            self._cascade.encoding = self.make_encoding(graph)
            self._cascade.set_states({})
            self._train_data = graph
            return
        if torch.get_default_dtype() != torch.float32:
            raise BadValue(
                f"torch's default dtype is {torch.get_default_dtype()}: {self.id} computes in float32"
            )
        encoding, self._train_data = self.make_encoding(graph), graph
        self.metric = ROC_AUC if ids.ndim == 2 else ACCURACY
        try:
            with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
                _seeds.seed_global(self.device, self.seed, "heads")
                cascade = self.make_cascade(graph.n_classes).to(self.device)
                check_several_classes(self.metric, graph.n_classes)
                few = _two_nodes(graph)
                cascade.encoding = self.make_encoding(few)
                cascade.eval().build(few.ids, graph.n_classes, state_values(self.settings))
                cascade.encoding = encoding
            self._adopt(cascade, graph.n_classes, graph.sample_shape)
        except BadValue:
            self._train_data = None
            raise

    def _graph_data(self, data: Any) -> GraphData:
        """``data`` with features of the layers' dtype.

        Raises:
            BadValue: If it is no `GraphData`.
        """
        if not isinstance(data, GraphData):
            raise BadValue(
                f"{self.id} takes bpfree.data.GraphData, not a {type(data).__name__}: see "
                "bpfree.data.load_graph; convert a torch_geometric Data by "
                "bpfree.data.GraphData.from_pyg(data, 'train')"
            )
        x = data.features
        if x.dtype == torch.float32 and not x.requires_grad:
            return data
        return replace(data, features=x.detach().float())

    def _check_kind(self, data: GraphData, use: str = "evaluate") -> None:
        train = self.train_data
        kinds = [(d.sample_shape, d.n_classes, d.ids.ndim) for d in (train, data)]
        if kinds[0] != kinds[1]:
            raise BadValue(f"the trainer was built for {train!r}; it cannot {use} {data!r}")

    def _check_shape(self, sample_shape: Sequence[int]) -> None:
        expected = self.train_data.sample_shape
        if tuple(sample_shape) != expected:
            raise BadValue(f"{self.id}: nodes have features {tuple(sample_shape)}, expected {expected}")

    def _check_batch(self, x: Tensor, y: Tensor) -> None:
        if isinstance(x, Tensor) and x.dtype == torch.bool:
            raise BadValue("x is a mask: a step takes numbers of nodes, mask.nonzero().squeeze(1)")
        data = self.data_of(x, y)
        if x.device != self.device or y.device != self.device:
            raise BadValue(f"the batch is on {x.device}, the network on {self.device}: move it there")
        self._check_kind(cast(GraphData, data), "train on")
        if isinstance(self._encoding, LabeledGraphs):
            self._encoding.check_training_nodes(x, y)

    # ---- training --------------------------------------------------------------------------------------

    def fit(self, train: Any, validation: Any = None, **options: Any) -> History:
        """Train; arguments, result and errors are those of `Trainer.fit`.

        Args:
            train: `bpfree.data.GraphData`.
            validation: The same, on this graph or on another, see `evaluate`.
            **options: As for `Trainer.fit`.

        Warns:
            UserWarning: If a class has no training sample; or, unless ``validation`` is ``train`` itself, if
                validation samples are training samples, or edges of the graph.
        """
        same, train = validation is train, self._graph_data(train)
        if validation is not None:
            validation = train if same else self._graph_data(validation)
            # Validation on the training data themselves is intended.
            if not same:
                check_validation(train, validation)
        if self._cascade is not None:
            self._check_kind(train, "train on")
        check_classes(train)
        return super().fit(train, validation, **options)

    def make_feed(self, train: TensorData, fit: FitSettings, store: Store) -> BaseFeed:
        single_block = self.settings.schedule == "greedy"
        return GraphFeed(self.cascade, train, fit.batch_size, self._caches_features(), store, single_block)

    def make_evaluator(self, data: TensorData, cache: bool = False, store: Store | None = None) -> Evaluator:
        return make_evaluator(self.cascade, cast(GraphData, data), cache, store)

    def _caches_validation(self) -> bool:
        """Whether validation caches the states above frozen blocks in a run: under every schedule."""
        return self.settings.cache

    # ---- using -----------------------------------------------------------------------------------------

    def evaluate(self, data: Any) -> JsonObject:
        """As `Trainer.evaluate`; of pairs of nodes the area under the ROC curve, as ``"roc_auc"``.

        Args:
            data: `bpfree.data.GraphData`, with the features and edges to evaluate on. Nodes of the training
                graph are evaluated with the labels of training nodes, where the method uses them. A training
                node whose own label would reach its prediction is evaluated as a node of another graph, where
                no label is known. Prototypes of classes always come from the training graph.
        """
        return super().evaluate(data)

    def predict(self, x: Any) -> Tensor:
        """The class of each sample, ``[B]``.

        Args:
            x: Numbers of nodes ``[B]`` of the training graph, pairs of them ``[B, 2]``, or a mask ``[n]``, as
                a tensor or NumPy array; or `bpfree.data.GraphData`, on any graph, whose labels are not used.

        Returns:
            Classes; for pairs 1 if the mean probability of an edge is above 0.5, else 0.

        Raises:
            BadValue: If the samples do not fit the training data.
        """
        if isinstance(x, GraphData):
            data = self._data(x)
        elif is_array(x) and x.ndim:
            x = as_tensor(x, "x")
            data = self._data(self.data_of(x, torch.zeros(len(x), dtype=torch.long, device=x.device)))
        else:
            raise BadValue(f"x is {x!r}: expected a tensor or array [B] of numbers of nodes, or GraphData")
        headline = self.cascade.headline
        with self.running():
            scores = self.make_evaluator(data).scores([headline])[headline]
        if self.train_data.ids.ndim == 1:
            return scores.argmax(1)
        first, last = self.cascade.sweeps
        return (scores.squeeze(1) > 0.5 * (last - first) * len(self.cascade.units)).long()

    def data_of(self, x: Tensor, y: Tensor) -> TensorData:
        """Nodes ``x [B]``, or pairs ``[B, 2]``, with labels ``y [B]``, on the training graph."""
        train = self.train_data
        if isinstance(x, Tensor) and x.ndim != train.ids.ndim:
            kind = "numbers of nodes [B]" if train.ids.ndim == 1 else "pairs of nodes [B, 2]"
            raise BadValue(f"x is {x.dtype} {list(x.shape)}; {self.id} was built for {kind}")
        x, y = (part.to(self.device) if isinstance(part, Tensor) else part for part in (x, y))
        return cast(TensorData, replace(train, ids=x, y=y))

    def _data(self, data: Any) -> TensorData:
        graph: Any = self._graph_data(data)
        self._check_kind(graph)
        samples = super()._data(graph)
        check_scale(cast(GraphData, samples))
        return samples

    def _check_kind_of_data(self, data: Any) -> None:
        self._graph_data(data)

    def _saved_state(self) -> JsonObject:
        """The state of `Trainer`, with a digest of the training graph where predictions depend on it."""
        state, encoding = super()._saved_state(), self._encoding
        if encoding.uses_labels:
            state["graph"] = digest(self.train_data)
        if encoding.virtual is not None:
            # Another device draws other values from the same seed.
            state["virtual"] = encoding.virtual.tolist()
        return state

    def load(self, path: str | Path, sample_shape: Sequence[int] | None = None) -> None:
        """Load a file of `save` into a trainer of the same kind and network that `build_for` has built.

        Args:
            path: The file.
            sample_shape: Not needed: the training data have it.

        Raises:
            BadValue: If the trainer has not been built, or the file is of another trainer or network, or of
                one whose predictions depend on another training graph.
        """
        train = self.train_data
        _, state = ckpt.read(Path(path), self.device)
        if state.get("graph", None) not in (None, digest(train)):
            raise BadValue(
                f"{path} was trained on another graph, or other training nodes, and its predictions "
                "depend on them: build the trainer for those first"
            )
        super().load(path, sample_shape)
        if (virtual := state.get("virtual")) is not None and self._encoding.virtual is not None:
            self._encoding.set_virtual(torch.tensor(virtual).to(train.features))

    @property
    def _encoding(self) -> GraphEncoding:
        encoding = self.cascade.encoding
        assert isinstance(encoding, GraphEncoding)
        return encoding


def _two_nodes(data: GraphData) -> GraphData:
    """Data like ``data`` with two nodes, by which everything that depends on shapes is created quickly."""
    ids = torch.arange(2, device=data.ids.device)
    ids = ids if data.ids.ndim == 1 else ids.repeat(2, 1)
    graph = Graph(data.graph.edge_index[:, :0], 2)
    features = data.features[:2] if len(data.features) > 1 else data.features.repeat(2, 1)
    return GraphData(features, graph, ids, torch.zeros_like(ids.flatten()[:2]), data.n_classes)
