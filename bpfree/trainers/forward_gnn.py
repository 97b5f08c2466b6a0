"""ForwardGNN: graph networks trained by forward passes, layer by layer (Park et al., arXiv 2403.11004)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from bpfree._errors import BadValue
from bpfree.core.cascade import Cascade
from bpfree.core.readouts import BlockReadout, GoodnessReadout, Readout, SumReadout
from bpfree.data import GraphData
from bpfree.encodings.graph import GraphEncoding, Pairs
from bpfree.encodings.graph_labels import AppendedLabels, LinkedLabels
from bpfree.encodings.virtual_nodes import Direction, VirtualFeatures, VirtualNodes
from bpfree.engine.conditioning import condition
from bpfree.engine.schedule import Schedule
from bpfree.engine.settings import TrainerSettings
from bpfree.graphs.blocks import FeedbackGraphBlock, GraphBlock
from bpfree.graphs.graph import Graph
from bpfree.graphs.nodes import Nodes
from bpfree.graphs.states import NodeStates
from bpfree.losses import (
    ClassPrototypes,
    Goodness,
    LocalLoss,
    PairScore,
    TopToInput,
    TopToInputPairs,
    TopToLoss,
)
from bpfree.losses.prototypes import Similarity
from bpfree.nn import learned_part
from bpfree.trainers.base import bodies, level_of
from bpfree.trainers.graph import GraphTrainer

Variant = Literal[
    "single_forward",
    "top_to_loss",
    "top_to_input",
    "label_appending",
    "virtual_nodes",
    "link",
    "link_goodness",
    "link_top_to_input",
]

#: Variants in which blocks get the states of those above as feedback.
TOP_DOWN = ("top_to_loss", "top_to_input", "link_top_to_input")

#: Variants that classify pairs of nodes: edge or no edge.
LINKS = ("link", "link_goodness", "link_top_to_input")


@dataclass(frozen=True, kw_only=True)
class ForwardGNNSettings(TrainerSettings):
    """Settings of ForwardGNN; the defaults are the paper's, except the direction of virtual edges.

    Attributes:
        lr: Learning rate of every layer.
        weight_decay: Weight decay of every layer.
        schedule: ``greedy``; the top-down variants need ``simultaneous``.
        variant: For node classification: ``single_forward``, without feedback or with the states above in
            the loss (``top_to_loss``) or the input (``top_to_input``); Forward-Forward with labels as
            features (``label_appending``) or as edges (``virtual_nodes``). For link prediction: ``link``,
            ``link_goodness``, ``link_top_to_input``.
        direction: Direction of virtual edges: ``one_way``, to the virtual nodes, or ``both_ways``.
        virtual_features: Features of the virtual nodes: ``random`` or ``zero``.
        learnable_prototypes: Whether each layer learns a prototype for each class, without virtual nodes.
        similarity: Similarity of a node and a prototype: ``dot`` or ``cosine``.
        temperature: Divides the similarity.
        threshold: theta of the goodness.
        clip: Largest norm of a layer's gradient; None: no limit.
        sweeps: Sweeps of ``top_to_input`` at inference; predictions use all but the first two.
    """

    lr: Annotated[float, Gt(0)] = 1e-3
    weight_decay: Annotated[float, Ge(0)] = 5e-4
    schedule: Schedule = "greedy"
    variant: Variant = "single_forward"
    direction: Direction = "one_way"
    virtual_features: VirtualFeatures = "random"
    learnable_prototypes: bool = False
    similarity: Similarity = "dot"
    temperature: Annotated[float, Gt(0)] = 1.0
    threshold: float = 2.0
    clip: Annotated[float, Gt(0)] | None = None
    sweeps: Annotated[int, Ge(3)] = 10


class ForwardGNN(GraphTrainer):
    """Each layer learns by itself to classify nodes by class prototypes, or pairs of nodes as edges.

    The aggregation of a GCN or SAGE layer is its fixed front. Under the greedy schedule it is computed once,
    and training steps use the rows of labeled nodes alone. The prediction is the sum of the layers'
    probabilities.
    """

    id = "forward_gnn"
    Settings = ForwardGNNSettings
    settings: ForwardGNNSettings

    def make_encoding(self, data: GraphData) -> GraphEncoding:
        s = self.settings
        if (data.ids.ndim == 2) != (s.variant in LINKS):
            kind = "pairs of nodes" if data.ids.ndim == 2 else "nodes"
            raise BadValue(f"variant = {s.variant!r}: not possible for data of {kind}")
        parts = (data.features, data.graph, data.ids, data.y, data.n_classes)
        if s.variant in LINKS:
            return Pairs(*parts)
        if s.variant == "label_appending":
            return AppendedLabels(*parts, self.generator("wrong labels"))
        if s.variant == "virtual_nodes":
            return LinkedLabels(*parts, self.generator("wrong labels"), s.virtual_features)
        if s.learnable_prototypes:
            return GraphEncoding(*parts)
        all_nodes, label_feedback = s.variant in TOP_DOWN, s.variant == "top_to_input"
        generator = self.generator("virtual features")
        return VirtualNodes(*parts, s.direction, s.virtual_features, generator, all_nodes, label_feedback)

    def make_cascade(self, n_classes: int) -> Cascade:
        s = self.settings
        self._check()
        inputs, feedback = self._widths(n_classes)
        convs = self.net.make_layers(inputs, self.net.hidden)
        blocks: list[GraphBlock] = []
        for conv, width in zip(convs, feedback, strict=True):
            front, body = learned_part(self.net, conv)
            loss = self._loss(n_classes)
            blocks.append(
                FeedbackGraphBlock(body, loss, front, width) if width else GraphBlock(body, loss, front)
            )
        readouts: dict[str, Readout]
        if s.variant in ("label_appending", "virtual_nodes"):
            readouts = {"goodness": GoodnessReadout(skip_first=False)}
        else:
            readouts = {"sum_probabilities": SumReadout(probabilities=True), "last": BlockReadout()}
        sweeps = {"top_to_loss": (1, 2), "top_to_input": (3, s.sweeps + 1)}
        sweeps["link_top_to_input"] = sweeps["top_to_input"]
        return Cascade(blocks, readouts, sweeps=sweeps.get(s.variant, (0, 1)))

    def _check(self) -> None:
        s = self.settings
        if s.variant in TOP_DOWN and s.schedule != "simultaneous":
            raise BadValue(
                f"schedule = {s.schedule!r}: variant {s.variant!r} needs feedback from layers that are being "
                "trained; expected 'simultaneous'"
            )
        if s.learnable_prototypes and s.variant != "single_forward":
            raise BadValue(
                f"learnable_prototypes = true: expected variant = 'single_forward', not {s.variant!r}"
            )
        if s.variant in ("label_appending", "virtual_nodes") and s.schedule != "greedy":
            raise BadValue(f"schedule = {s.schedule!r}: variant {s.variant!r} needs 'greedy'")

    def _widths(self, n_classes: int) -> tuple[list[int], list[int]]:
        """The width of each layer's input, and the width of the feedback in it."""
        s, hidden = self.settings, self.net.hidden
        below = [self.train_data.sample_shape[0], *hidden[:-1]]
        if s.variant == "label_appending":
            below[0] += n_classes
        if s.variant not in ("top_to_input", "link_top_to_input"):
            return below, [0] * len(hidden)
        feedback = [*hidden[1:], n_classes if s.variant == "top_to_input" else 0]
        return [a + b for a, b in zip(below, feedback, strict=True)], feedback

    def _loss(self, n_classes: int) -> LocalLoss:
        s = self.settings
        if s.variant == "link_top_to_input":
            return TopToInputPairs()
        if s.variant in LINKS:
            return PairScore("goodness" if s.variant == "link_goodness" else "cross_entropy", s.threshold)
        if s.variant in ("label_appending", "virtual_nodes"):
            return Goodness("sum", s.threshold, "balanced")
        kinds = {"top_to_loss": TopToLoss, "top_to_input": TopToInput}
        kind = kinds.get(s.variant, ClassPrototypes)
        return kind(n_classes, s.learnable_prototypes, s.similarity, s.temperature)

    def condition(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        condition(optimizers, self.settings.clip, False)

    @property
    def locality(self) -> str:
        return level_of(bodies(self.cascade.units))

    # ---- other graphs ----------------------------------------------------------------------------------

    @torch.no_grad()
    def prototypes(self) -> list[Tensor]:
        """The prototypes of every layer, ``[C, H]`` each, for `classify`.

        Raises:
            BadValue: If the variant has no prototypes that are the same for every graph.
        """
        s = self.settings
        if s.variant != "single_forward":
            raise BadValue(f"variant = {s.variant!r}: only 'single_forward' has prototypes for other graphs")
        self.cascade.eval()
        nodes, prototypes = self._encoding.nodes(None), []
        for block in self.cascade.units:
            output = block(nodes)
            prototypes.append(block.loss.split(output)[1].clone())  # type: ignore[operator]
            nodes = nodes.next_layer(output)
        return prototypes

    @torch.no_grad()
    def classify(self, features: Tensor, graph: Graph, prototypes: list[Tensor] | None = None) -> Tensor:
        """Class scores of all nodes of any graph, ``[n, C]``: the sum of the layers' probabilities.

        Args:
            features: ``[n, F]``.
            graph: The graph, without virtual nodes.
            prototypes: The result of `prototypes`, which is called by default.

        Raises:
            BadValue: If the shapes of features, graph or prototypes do not fit the trainer.
        """
        ids = torch.arange(len(features), device=features.device)
        data = GraphData(features, graph, ids, torch.zeros_like(ids), self.train_data.n_classes)
        data = cast(GraphData, self._data(data))
        nodes = Nodes(NodeStates((data.features,), (data.graph,)))
        self.cascade.eval()
        prototypes = self.prototypes() if prototypes is None else prototypes
        expected = [(data.n_classes, width) for width in self.net.hidden]
        if (shapes := [tuple(p.shape) for p in prototypes]) != expected:
            raise BadValue(f"prototypes have the shapes {shapes}; expected {expected}, one for each layer")
        total: Any = 0
        for block, layer_prototypes in zip(self.cascade.units, prototypes, strict=True):
            output = block(nodes)
            scores = block.loss.similarities(output, layer_prototypes)  # type: ignore[operator]
            total, nodes = total + scores.softmax(1), nodes.next_layer(output)
        return total  # type: ignore[no-any-return]
