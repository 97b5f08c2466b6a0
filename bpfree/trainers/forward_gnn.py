"""ForwardGNN: graph networks that learn layer by layer, forwards only (Park et al., arXiv 2403.11004)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from bpfree._errors import BadValue
from bpfree.cascade import Block, Cascade
from bpfree.data import GraphData
from bpfree.graph import Graph, Nodes
from bpfree.graph_encodings import (
    AppendedLabels,
    Direction,
    GraphEncoding,
    LinkedLabels,
    Pairs,
    VirtualFeatures,
    VirtualNodes,
)
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
from bpfree.readouts import BlockReadout, GoodnessReadout, Readout, SumReadout
from bpfree.schedules import Schedule
from bpfree.trainers.base import bodies, level_of
from bpfree.trainers.gradients import condition
from bpfree.trainers.graph import GraphTrainer
from bpfree.trainers.settings import TrainerSettings

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

#: Variants whose blocks are sent the states of those above.
TOP_DOWN = ("top_to_loss", "top_to_input", "link_top_to_input")

#: Variants that tell edges from other pairs of nodes.
LINKS = ("link", "link_goodness", "link_top_to_input")


@dataclass(frozen=True, kw_only=True)
class ForwardGNNSettings(TrainerSettings):
    """Settings of ForwardGNN; the defaults are the paper's, but for the direction of virtual edges.

    Attributes:
        lr: Learning rate of every layer.
        weight_decay: Weight decay of every layer.
        schedule: ``greedy``; the top-down variants need ``simultaneous``.
        variant: Of node classification: ``single_forward``, also with the states above joining the loss
            (``top_to_loss``) or the input (``top_to_input``); Forward-Forward with labels as features
            (``label_appending``) or as edges (``virtual_nodes``). Of link prediction: ``link``,
            ``link_goodness``, ``link_top_to_input``.
        direction: Of virtual edges: ``one_way``, to the virtual nodes, or ``both_ways``.
        virtual_features: Of the virtual nodes: ``random`` or ``zero``.
        learnable_prototypes: A learned prototype for each class and layer in place of virtual nodes.
        similarity: Of a node and a prototype: ``dot`` or ``cosine``.
        temperature: Divides it.
        threshold: theta of the goodness.
        clip: Largest norm of a layer's gradient; None: any.
        sweeps: Sweeps of ``top_to_input`` at inference; the first two are not listened to.
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
    """Each layer learns by itself to bring nodes near the prototype of their class; or to know edges.

    The aggregation of a GCN or SAGE layer is its fixed front: under the greedy schedule it is computed once,
    and training goes on with the rows of labelled nodes alone. The prediction is the sum of the layers'
    probabilities.
    """

    id = "forward_gnn"
    Settings = ForwardGNNSettings
    settings: ForwardGNNSettings

    def make_encoding(self, data: GraphData) -> GraphEncoding:
        s = self.settings
        if (data.ids.ndim == 2) != (s.variant in LINKS):
            kind = "pairs of nodes" if data.ids.ndim == 2 else "nodes"
            raise BadValue(f"variant = {s.variant!r}: it does not go with data of {kind}")
        parts = (data.features, data.graph, data.ids, data.y, data.n_classes)
        if s.variant in LINKS:
            return Pairs(*parts)
        if s.variant == "label_appending":
            return AppendedLabels(*parts, self.stream("wrong labels"))
        if s.variant == "virtual_nodes":
            return LinkedLabels(*parts, self.stream("wrong labels"), s.virtual_features)
        if s.learnable_prototypes:
            return GraphEncoding(*parts)
        everywhere = s.variant in TOP_DOWN
        stream = self.stream("virtual features")
        tells = s.variant == "top_to_input"
        return VirtualNodes(*parts, s.direction, s.virtual_features, stream, everywhere, tells)

    def make_cascade(self, n_classes: int) -> Cascade:
        s = self.settings
        self._check()
        inputs, upper = self._widths(n_classes)
        convs = self.net.make_layers(inputs, self.net.hidden)
        blocks = []
        for conv, above in zip(convs, upper, strict=True):
            front, body = learned_part(self.net, conv)
            blocks.append(Block(body, self._loss(n_classes), front, upper=above))
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
                f"schedule = {s.schedule!r}: in variant {s.variant!r} messages come from layers that learn: "
                "'simultaneous' only"
            )
        if s.learnable_prototypes and s.variant != "single_forward":
            raise BadValue(f"learnable_prototypes = true: with variant 'single_forward', not {s.variant!r}")
        if s.variant in ("label_appending", "virtual_nodes") and s.schedule != "greedy":
            raise BadValue(f"schedule = {s.schedule!r}: variant {s.variant!r} is greedy only")

    def _widths(self, n_classes: int) -> tuple[list[int], list[int | None]]:
        """The inputs of the layers, and what of them comes from above."""
        s, hidden = self.settings, self.net.hidden
        below = [self.bound.sample_shape[0], *hidden[:-1]]
        if s.variant == "label_appending":
            below[0] += n_classes
        if s.variant not in ("top_to_input", "link_top_to_input"):
            return below, [None] * len(hidden)
        top = [n_classes] if s.variant == "top_to_input" else [0]
        above = [*hidden[1:], *top]
        return [a + b for a, b in zip(below, above, strict=True)], list(above)

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
        """The prototypes of every layer, ``[C, H]`` each: with the weights, all that another graph needs.

        Raises:
            BadValue: If the variant has none that are the same on every graph.
        """
        s = self.settings
        if s.variant != "single_forward":
            raise BadValue(f"variant = {s.variant!r}: only 'single_forward' has prototypes for other graphs")
        self.cascade.eval()
        at, found = self.cascade.encoding, []
        assert isinstance(at, GraphEncoding)
        nodes = at.nodes(None).wanting(None)
        for block in self.cascade.units:
            output = block(nodes)
            found.append(block.loss.split(output)[1].clone())  # type: ignore[operator]
            nodes = nodes.up(output)
        return found

    @torch.no_grad()
    def classify(self, features: Tensor, graph: Graph, prototypes: list[Tensor] | None = None) -> Tensor:
        """Class scores of all nodes of any graph, ``[n, C]``: the sum of the layers' probabilities.

        Args:
            features: ``[n, F]``.
            graph: The graph, without virtual nodes.
            prototypes: What `prototypes` gave; by default it is asked.

        Raises:
            BadValue: If they do not fit together, or the features are not those of the training graph's kind.
        """
        ids = torch.arange(len(features), device=features.device)
        data = GraphData(features, graph, ids, torch.zeros_like(ids), self.bound.n_classes)
        given = cast(GraphData, self._data(data))
        found: Any = 0
        nodes = Nodes((given.features,), (given.graph,))
        self.cascade.eval()
        kept = self.prototypes() if prototypes is None else prototypes
        expected = [(data.n_classes, width) for width in self.net.hidden]
        if (shapes := [tuple(own.shape) for own in kept]) != expected:
            raise BadValue(f"prototypes have the shapes {shapes}; expected {expected}, one for each layer")
        for block, own in zip(self.cascade.units, kept, strict=True):
            output = block(nodes)
            scores = block.loss.similarities(output, own)  # type: ignore[operator]
            found, nodes = found + scores.softmax(1), nodes.up(output)
        return found  # type: ignore[no-any-return]
