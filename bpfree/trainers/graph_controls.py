"""Baselines of ForwardGNN: backpropagation through the same network, and models of hop features."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Any

from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree.core.cascade import Cascade
from bpfree.core.readouts import BlockReadout, SumReadout
from bpfree.data import GraphData
from bpfree.encodings.graph import GraphEncoding, Pairs
from bpfree.encodings.virtual_nodes import Direction, VirtualFeatures, VirtualNodes
from bpfree.engine.settings import TrainerSettings
from bpfree.graphs.blocks import GraphBlock
from bpfree.graphs.sparse import SparseMatrix
from bpfree.graphs.states import NodeStates
from bpfree.losses import ClosedForm, LocalCrossEntropy, LocalLoss, PairScore
from bpfree.nn import EndToEndGNN, Hops
from bpfree.trainers.graph import GraphTrainer

#: Penalties of ridge regression on hop features, of which there are many for few labels.
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)


@dataclass(frozen=True, kw_only=True)
class BackpropGNNSettings(TrainerSettings):
    """Settings of backpropagation through a graph network; the defaults are those of the paper's baseline.

    Attributes:
        lr: Learning rate.
        weight_decay: Weight decay.
        normalize: Whether the rows of the features are divided by their length first, as in ForwardGNN.
        dropout: Share of each layer's inputs that training drops.
        virtual: Whether the graph has the virtual nodes and edges of single-forward.
        direction: Direction of virtual edges.
        virtual_features: Features of virtual nodes.
    """

    lr: Annotated[float, Gt(0)] = 1e-3
    weight_decay: Annotated[float, Ge(0)] = 5e-4
    normalize: bool = False
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    virtual: bool = False
    direction: Direction = "both_ways"
    virtual_features: VirtualFeatures = "random"


class BackpropGNN(GraphTrainer):
    """Backpropagation through a graph network, whose last layer gives the class scores.

    For pairs of nodes the last layer gives states, and the logit of a pair is their inner product.
    """

    id = "backprop_gnn"
    Settings = BackpropGNNSettings
    settings: BackpropGNNSettings

    def make_encoding(self, data: GraphData) -> GraphEncoding:
        s = self.settings
        parts = (data.features, data.graph, data.ids, data.y, data.n_classes)
        if data.ids.ndim == 2:
            return Pairs(*parts)
        if s.virtual:
            generator = self.generator("virtual features")
            return _UnusedVirtualNodes(*parts, s.direction, s.virtual_features, generator)
        return GraphEncoding(*parts)

    def make_cascade(self, n_classes: int) -> Cascade:
        pairs, hidden = self.train_data.ids.ndim == 2, self.net.hidden
        outputs = hidden if pairs else [*hidden[:-1], n_classes]
        self.net.make_layers([self.train_data.sample_shape[0], *hidden[:-1]], outputs)
        loss: LocalLoss = PairScore() if pairs else LocalCrossEntropy(nn.Identity())
        block = GraphBlock(EndToEndGNN(self.net, self.settings.normalize, self.settings.dropout), loss)
        return Cascade([block], {"last": SumReadout(probabilities=True) if pairs else BlockReadout()})

    @property
    def locality(self) -> str:
        return "L0"


class _UnusedVirtualNodes(VirtualNodes):
    """Virtual nodes on the graph whose outputs no loss uses."""

    def target_nodes(self, ids: Tensor) -> Tensor:
        return ids

    def _set_graph(self, *parts: Any) -> None:
        super()._set_graph(*parts)
        # Dropout acts on each value, so that the states cannot be in two parts.
        self._states = NodeStates((self._states.dense(0),), ())


@dataclass(frozen=True, kw_only=True)
class HopSettings(TrainerSettings):
    """Settings of the models of hop features.

    Attributes:
        hops: Highest power of the operator; None: the number of the network's layers.
        normalize: Whether the rows of the features are divided by their length first.
    """

    hops: Annotated[int, Ge(0)] | None = None
    normalize: bool = True


class HopModel(GraphTrainer):
    """A model of one block on hop features ``[x, A x, ..., A^k x]``, which are computed once."""

    settings: HopSettings

    def make_encoding(self, data: GraphData) -> GraphEncoding:
        if data.ids.ndim == 2:
            raise BadValue(f"{self.id} classifies nodes, and does not take pairs of nodes")
        return GraphEncoding(data.features, data.graph, data.ids, data.y, data.n_classes)

    @property
    def hops(self) -> int:
        """The highest power of the operator."""
        return len(self.net.hidden) if self.settings.hops is None else self.settings.hops

    def front(self) -> Hops:
        """The module that computes the hop features."""
        return Hops(self.hops, self.settings.normalize)


@dataclass(frozen=True, kw_only=True)
class HopMLPSettings(HopSettings):
    """Settings of the MLP on hop features.

    Attributes:
        lr: Learning rate.
        weight_decay: Weight decay.
        dropout: Share of each hidden layer that training drops.
    """

    lr: Annotated[float, Gt(0)] = 1e-3
    weight_decay: Annotated[float, Ge(0)] = 5e-4
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0


class HopMLP(HopModel):
    """An MLP with the network's hidden widths on hop features, trained by backpropagation (SIGN)."""

    id = "hop_mlp"
    Settings = HopMLPSettings
    settings: HopMLPSettings

    def make_cascade(self, n_classes: int) -> Cascade:
        widths = [self.train_data.sample_shape[0] * (self.hops + 1), *self.net.hidden[:-1], n_classes]
        layers: list[nn.Module] = []
        for number, (a, b) in enumerate(pairwise(widths)):
            layers += [nn.ReLU()] if number else []
            layers += [nn.Dropout(self.settings.dropout)] if number and self.settings.dropout else []
            layers.append(RowsLinear(a, b))
        block = GraphBlock(nn.Sequential(*layers), LocalCrossEntropy(nn.Identity()), self.front())
        return Cascade([block], {"last": BlockReadout()})

    @property
    def locality(self) -> str:
        return "L0"


@dataclass(frozen=True, kw_only=True)
class HopRidgeSettings(HopSettings):
    """Settings of ridge regression on hop features.

    Attributes:
        lam: Penalties, of which the best on validation data is used.
    """

    lam: list[float] = field(default_factory=lambda: list(PENALTIES))


class HopRidge(HopModel):
    """Ridge regression on hop features, solved exactly in one pass, without gradients."""

    id = "hop_ridge"
    Settings = HopRidgeSettings
    settings: HopRidgeSettings

    def make_cascade(self, n_classes: int) -> Cascade:
        features = self.train_data.sample_shape[0] * (self.hops + 1)
        loss = ClosedForm(self.settings.lam, dual=len(self.train_data) < features)
        block = GraphBlock(Dense(), loss, self.front())
        return Cascade([block], {"last": BlockReadout()})

    @property
    def locality(self) -> str:
        return "L3"


class RowsLinear(nn.Linear):
    """A linear layer that also takes sparse rows."""

    def forward(self, rows: Any) -> Tensor:
        if isinstance(rows, SparseMatrix):
            return rows @ self.weight.T + self.bias
        return super().forward(rows)


class Dense(nn.Module):
    """Converts sparse rows to dense ones."""

    def forward(self, rows: Any) -> Tensor:
        """``[rows, d]``, from dense or sparse rows."""
        return rows.dense() if isinstance(rows, SparseMatrix) else rows
