"""What trainers on graphs share: they are built for a graph and its training labels."""

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
from bpfree.data import GraphData, TensorData
from bpfree.data._convert import as_tensor, is_array
from bpfree.graph import Graph
from bpfree.graph_encodings import GraphEncoding, LabelledGraphs
from bpfree.metrics import ACCURACY, ROC_AUC
from bpfree.nn import GNN
from bpfree.trainers import checkpoint as ckpt
from bpfree.trainers.base import Trainer
from bpfree.trainers.building import check_several_classes
from bpfree.trainers.graph_checks import check_classes, check_scale, check_validation, digest
from bpfree.trainers.graph_evaluation import make_evaluator
from bpfree.trainers.history import History
from bpfree.trainers.inputs import check_data
from bpfree.trainers.settings import kept_values


class GraphTrainer(Trainer):
    """Trains a `bpfree.nn.GNN` on `bpfree.data.GraphData`; a sample is the number of a node, or two.

    The network is grown when the graph is known, with weights drawn from the trainer's seed.
    """

    net: GNN

    def __init__(self, net: nn.Module, **options: Any) -> None:
        self._bound: GraphData | None = None
        super().__init__(net, **options)
        if not isinstance(net, GNN):
            raise BadValue(f"{self.id} trains a bpfree.nn.GNN, not a {type(net).__name__}")

    # ---- what a family says ----------------------------------------------------------------------------

    @abstractmethod
    def make_encoding(self, data: GraphData) -> GraphEncoding:
        """How the nodes of ``data``, the training data, are shown."""

    @property
    def bound(self) -> GraphData:
        """The training data that the trainer was built for.

        Raises:
            BadValue: Before `build_for` or `fit`.
        """
        if self._bound is None:
            raise BadValue(f"{self.id} has not seen its graph yet: call fit or build_for first")
        return self._bound

    def stream(self, purpose: str) -> torch.Generator:
        """A random stream of the run's, on the trainer's device."""
        return _seeds.generator(self.device, self.seed, purpose)

    # ---- building --------------------------------------------------------------------------------------

    def build(self, sample_shape: Sequence[int], n_classes: int) -> None:
        """Nothing but a check: a trainer on a graph is built for its training data, by `build_for`.

        Raises:
            BadValue: If that was not done, or for another number of classes.
        """
        if self.bound.n_classes != n_classes:
            raise BadValue(
                f"the trainer was built for {self.bound.n_classes} classes, the data have {n_classes}"
            )

    def build_for(self, data: TensorData) -> None:
        """Make layers, heads and optimizers for these training data, or show these to layers made before.

        Raises:
            BadValue: If the data are no graph, or not one like that seen before, or name a node twice.
        """
        given = self._given(data)
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
            self._cascade.remember({})
            self._bound = graph
            return
        if torch.get_default_dtype() != torch.float32:
            raise BadValue(
                f"torch's default dtype is {torch.get_default_dtype()}: {self.id} computes in float32"
            )
        encoding, self._bound = self.make_encoding(graph), graph
        self.metric = ROC_AUC if ids.ndim == 2 else ACCURACY
        try:
            with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
                _seeds.seed_global(self.device, self.seed, "heads")
                cascade = self.make_cascade(graph.n_classes).to(self.device)
                check_several_classes(self.metric, graph.n_classes)
                few = _two_nodes(graph)
                cascade.encoding = self.make_encoding(few)
                cascade.eval().build(few.ids, graph.n_classes, kept_values(self.settings))
                cascade.encoding = encoding
            self._adopt(cascade, graph.n_classes, graph.sample_shape)
        except BadValue:
            self._bound = None
            raise

    def _given(self, data: Any) -> GraphData:
        """``data`` with features in the type that the layers have.

        Raises:
            BadValue: If they are no graph.
        """
        if not isinstance(data, GraphData):
            raise BadValue(
                f"{self.id} takes bpfree.data.GraphData, not a {type(data).__name__}: see "
                "bpfree.data.load_graph; of a torch_geometric Data make one by "
                "bpfree.data.GraphData.from_pyg(data, 'train')"
            )
        x = data.features
        if x.dtype == torch.float32 and not x.requires_grad:
            return data
        return replace(data, features=x.detach().float())

    def _check_kind(self, data: GraphData, use: str = "judge") -> None:
        b = self.bound
        if (data.sample_shape, data.n_classes, data.ids.ndim) != (b.sample_shape, b.n_classes, b.ids.ndim):
            raise BadValue(f"the trainer was built for {b!r}; it cannot {use} {data!r}")

    def _check_shape(self, sample_shape: Sequence[int]) -> None:
        if tuple(sample_shape) != self.bound.sample_shape:
            raise BadValue(
                f"{self.id}: nodes have features {tuple(sample_shape)}, expected {self.bound.sample_shape}"
            )

    def _check_batch(self, x: Tensor, y: Tensor) -> None:
        if isinstance(x, Tensor) and x.dtype == torch.bool:
            raise BadValue("x is a mask: a step takes numbers of nodes, mask.nonzero().squeeze(1)")
        found = self.data_of(x, y)
        if x.device != self.device or y.device != self.device:
            raise BadValue(f"the batch is on {x.device}, the network on {self.device}: move it there")
        self._check_kind(cast(GraphData, found), "train on")
        if isinstance(self._encoding, LabelledGraphs):
            self._encoding.check_known(x, y)

    # ---- training --------------------------------------------------------------------------------------

    def fit(self, train: Any, validation: Any = None, **options: Any) -> History:
        """Train; arguments, result and errors are those of `Trainer.fit`.

        Args:
            train: `bpfree.data.GraphData`.
            validation: The same, on this graph or on another, see `evaluate`.
            **options: As for `Trainer.fit`.

        Warns:
            UserWarning: If a class has no training sample; or, unless ``validation`` is ``train`` itself, if
                validation samples are training samples, or edges along which messages flow.
        """
        same, train = validation is train, self._given(train)
        if validation is not None:
            validation = train if same else self._given(validation)
            # The training data themselves are given on purpose.
            if not same:
                check_validation(train, validation)
        if self._cascade is not None:
            self._check_kind(train, "train on")
        check_classes(train)
        return super().fit(train, validation, **options)

    # ---- using -----------------------------------------------------------------------------------------

    def evaluate(self, data: Any) -> dict[str, Any]:
        """As `Trainer.evaluate`; of pairs of nodes the area under the ROC curve, as ``"roc_auc"``.

        Args:
            data: `bpfree.data.GraphData`, whose own features and edges are what is evaluated. Nodes of the
                training graph are judged with the labels of training nodes around them, where the method
                uses them. A training node that would see its own label is judged as a node of another graph,
                where no label is known. Prototypes of classes always come from the training graph.
        """
        return super().evaluate(data)

    def predict(self, x: Any) -> Tensor:
        """The class of each sample, ``[B]``.

        Args:
            x: Numbers of nodes ``[B]`` of the training graph, pairs of them ``[B, 2]``, or a mask ``[n]``, as
                a tensor or NumPy array; or `bpfree.data.GraphData`, on any graph, whose labels are not looked
                at.

        Returns:
            Classes; of pairs 1 where the mean of the probabilities says that it is an edge, else 0.

        Raises:
            BadValue: If the samples do not fit what the trainer was built for.
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
            scores = make_evaluator(self.cascade, data).scores([headline])[headline]
        if self.bound.ids.ndim == 1:
            return scores.argmax(1)
        first, last = self.cascade.sweeps
        return (scores.squeeze(1) > 0.5 * (last - first) * len(self.cascade.units)).long()

    def data_of(self, x: Tensor, y: Tensor) -> TensorData:
        """Nodes ``x [B]``, or pairs ``[B, 2]``, with labels ``y [B]``, on the graph that training saw."""
        b = self.bound
        if isinstance(x, Tensor) and x.ndim != b.ids.ndim:
            kind = "numbers of nodes [B]" if b.ids.ndim == 1 else "pairs of nodes [B, 2]"
            raise BadValue(f"x is {x.dtype} {list(x.shape)}; {self.id} was built for {kind}")
        x, y = (part.to(self.device) if isinstance(part, Tensor) else part for part in (x, y))
        return cast(TensorData, GraphData(b.features, b.graph, x, y, b.n_classes, b.name))

    def _data(self, data: Any) -> TensorData:
        given: Any = self._given(data)
        self._check_kind(given)
        found = super()._data(given)
        check_scale(cast(GraphData, found))
        return found

    def _check_kind_of_data(self, data: Any) -> None:
        self._given(data)

    def _saved_state(self) -> dict[str, Any]:
        """That of `Trainer`, with what identifies the training graph, where predictions depend on it."""
        state, encoding = super()._saved_state(), self._encoding
        if encoding.knows_labels:
            state["graph"] = digest(self.bound)
        if encoding.virtual is not None:
            # Another device would draw others from the same seed.
            state["virtual"] = encoding.virtual.tolist()
        return state

    def load(self, path: str | Path, sample_shape: Sequence[int] | None = None) -> None:
        """Load what `save` wrote, into a trainer of the same kind and network that `build_for` has built.

        Args:
            path: The file.
            sample_shape: Not needed: the graph has it.

        Raises:
            BadValue: If the trainer has not been built, or the file is of another trainer or network, or of
                one that was trained on another graph, and needs it.
        """
        bound = self.bound
        _, state = ckpt.read(Path(path), self.device)
        if state.get("graph", None) not in (None, digest(bound)):
            raise BadValue(
                f"{path} was trained on another graph, or other training nodes, and its predictions "
                "depend on them: build the trainer for those first"
            )
        super().load(path, sample_shape)
        if (rows := state.get("virtual")) is not None and self._encoding.virtual is not None:
            self._encoding.with_virtual(torch.tensor(rows).to(bound.features))

    @property
    def _encoding(self) -> GraphEncoding:
        encoding = self.cascade.encoding
        assert isinstance(encoding, GraphEncoding)
        return encoding


def _two_nodes(data: GraphData) -> GraphData:
    """Data of the kind of ``data`` with two nodes: what depends on shapes alone needs no more to be built."""
    ids = torch.arange(2, device=data.ids.device)
    ids = ids if data.ids.ndim == 1 else ids.repeat(2, 1)
    graph = Graph(data.graph.edge_index[:, :0], 2)
    features = data.features[:2] if len(data.features) > 1 else data.features.repeat(2, 1)
    return GraphData(features, graph, ids, torch.zeros_like(ids.flatten()[:2]), data.n_classes)
