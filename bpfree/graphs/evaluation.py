"""Class scores of nodes, and of pairs of nodes, whose graph is processed as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bpfree._feature_store import Store
from bpfree.core.block import BaseBlock
from bpfree.core.cascade import Cascade
from bpfree.core.readouts import Readout, class_probabilities
from bpfree.data import GraphData
from bpfree.encodings.base import View
from bpfree.encodings.graph import GraphEncoding
from bpfree.engine.evaluation import Evaluator
from bpfree.engine.settle import settle
from bpfree.graphs.nodes import NodeQuery, Nodes, PairOutputs
from bpfree.losses import LocalLoss


class GraphEvaluator(Evaluator):
    """Class scores of all samples of a data set of nodes, or of pairs of nodes.

    Readouts get the outputs of one forward pass. Where blocks get feedback from above, they get those of the
    last sweeps, and their scores are summed.

    Args:
        cascade: The blocks and readouts.
        data: The samples. Of their graph, features and edges are used, and no labels.
        cache: Whether `freeze_below` caches the states above frozen blocks.
        store: Where they are stored; by default in memory.
        encoding: The encoding of the data's graph; by default that of the training graph.
    """

    data: GraphData

    def __init__(
        self,
        cascade: Cascade,
        data: GraphData,
        cache: bool = False,
        store: Store | None = None,
        encoding: GraphEncoding | None = None,
    ) -> None:
        super().__init__(cascade, data, cache, store)
        encoding = encoding or cascade.encoding  # type: ignore[assignment]
        assert isinstance(encoding, GraphEncoding)
        self.encoding, self._query = encoding, encoding.evaluation_query(data.ids)
        #: By input kind, the states above the frozen blocks, and the outputs of these for the samples.
        self._states: dict[View, Nodes] = {}
        self._frozen: dict[View, list[Tensor]] = {}

    def first(self, n_samples: int) -> GraphEvaluator:
        few = self.data.take(torch.arange(min(n_samples, self.n_samples), device=self.data.ids.device))
        return GraphEvaluator(self.cascade, few, encoding=self.encoding)

    @torch.no_grad()
    def freeze_below(self, height: int, readouts: Sequence[str]) -> None:
        if not self.cache:
            return
        for view in {self.cascade.readout(name).view for name in readouts}:
            outputs = self._frozen.setdefault(view, [])
            nodes = self._states.get(view) or self._nodes(view)
            for block in self.cascade.units[len(outputs) : height]:
                above = self._next_input(block, nodes)
                # The outputs for pairs are those of all nodes, which have just been computed.
                if nodes.query.pairs is not None:
                    outputs.append(self._of_samples(above.states.states[0], nodes.query))
                else:
                    outputs += block.outputs(nodes)
                nodes = above
            self._states[view] = nodes

    @torch.no_grad()
    def outputs(self, number: int, n_blocks: int) -> Iterator[tuple[Tensor, Tensor]]:
        self.cascade.eval()
        yield self._forward("plain", n_blocks)[number], self.data.y[: self.n_samples]

    @torch.no_grad()
    def scores(self, readouts: Sequence[str], n_blocks: int | None = None) -> dict[str, Tensor]:
        training = self.cascade.training
        self.cascade.eval()
        scores: dict[str, Tensor] = {}
        per_block = next((name for name in readouts if self.cascade.readout(name).scores_blocks), None)
        for view in dict.fromkeys(self.cascade.readout(name).view for name in readouts):
            sweeps = self._sweeps(view, n_blocks)
            losses = self.cascade.losses[: len(sweeps[0])]
            for name in (name for name in readouts if self.cascade.readout(name).view == view):
                readout = self.cascade.readout(name)
                scores[name] = torch.stack([readout(outputs, losses) for outputs in sweeps]).sum(0)
                if name == per_block:
                    scores |= self._block_scores(readout, sweeps, losses)
        self.cascade.train(training)
        return scores

    def _block_scores(
        self, readout: Readout, sweeps: list[list[Tensor]], losses: Sequence[LocalLoss]
    ) -> dict[str, Tensor]:
        """Scores of each block alone: of one sweep, or the sum of the probabilities of several."""
        totals: dict[str, Tensor] = {}
        for outputs in sweeps:
            for k, scores in enumerate(readout.per_block(outputs, losses)):
                if scores is None:
                    continue
                value = class_probabilities(scores, losses[k]) if len(sweeps) > 1 else scores
                name = f"block {k + 1}"
                totals[name] = totals[name] + value if name in totals else value
        return totals

    def _sweeps(self, view: View, n_blocks: int | None) -> list[list[Tensor]]:
        """For each sweep that readouts use, the blocks' outputs for the samples."""
        first, last = self.cascade.sweeps
        if last == 1:
            return [self._forward(view, n_blocks)]
        query = self._query
        # The front's output for the lowest states does not change from sweep to sweep.
        nodes = self.encoding.nodes(view).with_query(NodeQuery(pairs=query.pairs, repeated=True))
        units = self.cascade.units[:n_blocks]
        sweeps = list(settle(units, nodes, self.encoding.message(), last))[first:]
        return [[self._of_samples(output, query) for output in outputs] for outputs in sweeps]

    def _forward(self, view: View, n_blocks: int | None) -> list[Tensor]:
        """The blocks' outputs for the samples, of one forward pass."""
        outputs = list(self._frozen.get(view, []))
        nodes = self._states.get(view) or self._nodes(view)
        units = self.cascade.units[len(outputs) : n_blocks]
        for block in units:
            outputs += block.outputs(nodes)
            if block is not units[-1]:
                nodes = self._next_input(block, nodes)
        return outputs[: None if n_blocks is None else n_blocks]

    def _nodes(self, view: View) -> Nodes:
        return self.encoding.nodes(view, cache=self.cache, store=self.store).with_query(self._query)

    def _next_input(self, block: BaseBlock, nodes: Nodes) -> Nodes:
        above = block.next_input(nodes)
        assert isinstance(above, Nodes)
        return above.with_query(self._query)

    def _of_samples(self, output: Tensor, query: NodeQuery) -> Tensor:
        """Of an output for all nodes, what readouts need for the samples."""
        if query.pairs is not None:
            return PairOutputs(output, query.pairs)  # type: ignore[return-value]
        return output if query.target_nodes is None else output[query.target_nodes]


class SplitEvaluator(Evaluator):
    """Class scores of samples of which each part has an evaluator of its own.

    Args:
        cascade: The blocks and readouts.
        data: All samples.
        parts: The evaluator of each part, and the positions of its samples in the data, ``[M]``.
    """

    data: GraphData

    def __init__(self, cascade: Cascade, data: GraphData, parts: list[tuple[GraphEvaluator, Tensor]]) -> None:
        super().__init__(cascade, data)
        self.parts = parts

    def first(self, n_samples: int) -> Evaluator:
        few = min(n_samples, self.n_samples)
        indices = torch.arange(few, device=self.data.y.device)
        parts = [(part.first(int((at < few).sum())), at[at < few]) for part, at in self.parts]
        return SplitEvaluator(self.cascade, self.data.take(indices), [part for part in parts if len(part[1])])

    def freeze_below(self, height: int, readouts: Sequence[str]) -> None:
        for part, _ in self.parts:
            part.freeze_below(height, readouts)

    def outputs(self, number: int, n_blocks: int) -> Iterator[tuple[Tensor, Tensor]]:
        for part, _ in self.parts:
            yield from part.outputs(number, n_blocks)

    def scores(self, readouts: Sequence[str], n_blocks: int | None = None) -> dict[str, Tensor]:
        order = torch.cat([positions for _, positions in self.parts]).argsort()
        scores = [part.scores(readouts, n_blocks) for part, _ in self.parts]
        return {name: torch.cat([part[name] for part in scores])[order] for name in scores[0]}


def make_evaluator(
    cascade: Cascade, data: GraphData, cache: bool = False, store: Store | None = None
) -> Evaluator:
    """The evaluator of nodes, or of pairs of nodes, of the training graph or of another.

    A training node whose own label would otherwise reach its prediction is evaluated as a node of another
    graph, where no label is known.
    """
    encoding = cascade.encoding
    assert isinstance(encoding, GraphEncoding)

    def without_labels() -> GraphEncoding:
        return encoding.for_graph(data.features, data.graph)

    if not encoding.is_of_graph(data.features, data.graph):
        return GraphEvaluator(cascade, data, cache, store, without_labels())
    leaking = torch.isin(data.ids, encoding.ids) if encoding.leaks_own_label else None
    if leaking is None or not leaking.any():
        return GraphEvaluator(cascade, data, cache, store)
    if leaking.all():
        return GraphEvaluator(cascade, data, cache, store, without_labels())
    parts = []
    for part_encoding, mask in ((encoding, ~leaking), (without_labels(), leaking)):
        positions = mask.nonzero().squeeze(1)
        evaluator = GraphEvaluator(cascade, data.take(positions), cache, store, part_encoding)
        parts.append((evaluator, positions))
    return SplitEvaluator(cascade, data, parts)
