"""What the readouts say of nodes, and of pairs of nodes, whose graph must be seen whole."""

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
from bpfree.graphs.nodes import Ends, Nodes
from bpfree.losses import LocalLoss


class GraphEvaluator(Evaluator):
    """Class scores of all samples of a data set that stand on a graph.

    Readouts listen to one pass; where blocks read messages from above, to the sum over the last sweeps.

    Args:
        cascade: The blocks and readouts.
        data: The samples. Of their graph nothing but the features and edges is seen.
        cache: Whether `freeze_below` keeps the states above frozen blocks.
        store: Where they are kept; by default in memory.
        encoding: How they are shown; by default as those of the training graph.
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
        found = encoding or cascade.encoding
        assert isinstance(found, GraphEncoding)
        self.encoding, self._states = found, dict[View, Nodes]()
        self._frozen: dict[View, list[Tensor]] = {}
        self.ids = data.ids

    def first(self, n_samples: int) -> GraphEvaluator:
        few = self.data.take(torch.arange(min(n_samples, self.n_samples), device=self.ids.device))
        return GraphEvaluator(self.cascade, few, encoding=self.encoding)

    @torch.no_grad()
    def freeze_below(self, height: int, readouts: Sequence[str]) -> None:
        if not self.cache:
            return
        for view in {self.cascade.readout(name).view for name in readouts}:
            kept = self._frozen.setdefault(view, [])
            nodes = self._states.get(view) or self._asked(view)
            for block in self.cascade.units[len(kept) : height]:
                above = self._up(block, nodes)
                # A pair's outputs are those of all nodes, which the block above is told anyway.
                pairs = nodes.pairs is not None
                kept += [self._picked(above.states[0], nodes)] if pairs else block.outputs(nodes)
                nodes = above
            self._states[view] = nodes

    @torch.no_grad()
    def outputs(self, number: int, n_blocks: int) -> Iterator[tuple[Tensor, Tensor]]:
        self.cascade.eval()
        yield self._passed("plain", n_blocks)[number], self.data.y[: self.n_samples]

    @torch.no_grad()
    def scores(self, readouts: Sequence[str], n_blocks: int | None = None) -> dict[str, Tensor]:
        training = self.cascade.training
        self.cascade.eval()
        found: dict[str, Tensor] = {}
        teller = next((name for name in readouts if self.cascade.readout(name).scores_blocks), None)
        for view in dict.fromkeys(self.cascade.readout(name).view for name in readouts):
            sweeps = self._sweeps(view, n_blocks)
            losses = self.cascade.losses[: len(sweeps[0])]
            for name in (name for name in readouts if self.cascade.readout(name).view == view):
                readout = self.cascade.readout(name)
                found[name] = torch.stack([readout(outputs, losses) for outputs in sweeps]).sum(0)
                if name == teller:
                    found |= self._apart(readout, sweeps, losses)
        self.cascade.train(training)
        return found

    def _apart(
        self, readout: Readout, sweeps: list[list[Tensor]], losses: Sequence[LocalLoss]
    ) -> dict[str, Tensor]:
        """Scores of each block alone: of one sweep, or the sum of the probabilities of several."""
        found: dict[str, Tensor] = {}
        for outputs in sweeps:
            for k, scores in enumerate(readout.per_block(outputs, losses)):
                if scores is None:
                    continue
                own = class_probabilities(scores, losses[k]) if len(sweeps) > 1 else scores
                name = f"block {k + 1}"
                found[name] = found[name] + own if name in found else own
        return found

    def _sweeps(self, view: View, n_blocks: int | None) -> list[list[Tensor]]:
        """The outputs that readouts listen to, for each sweep: of the samples' rows."""
        first, last = self.cascade.sweeps
        if last == 1:
            return [self._passed(view, n_blocks)]
        nodes = self._asked(view)
        # What fronts make of the states of all nodes at the bottom does not change from sweep to sweep.
        whole = self.encoding.nodes(view).wanting(None, keeps=True, pairs=nodes.pairs)
        units = self.cascade.units[:n_blocks]
        swept = list(settle(units, whole, self.encoding.message(), last))[first:]
        return [[self._picked(output, nodes) for output in outputs] for outputs in swept]

    def _passed(self, view: View, n_blocks: int | None) -> list[Tensor]:
        """The outputs of one pass up, of the samples' rows."""
        kept = list(self._frozen.get(view, []))
        nodes = self._states.get(view) or self._asked(view)
        units = self.cascade.units[len(kept) : n_blocks]
        for block in units:
            kept += block.outputs(nodes)
            if block is not units[-1]:
                nodes = self._up(block, nodes)
        return kept[: None if n_blocks is None else n_blocks]

    def _asked(self, view: View) -> Nodes:
        return self.encoding.ask(self.encoding.nodes(view, keep=self.cache, store=self.store), self.ids)

    def _up(self, block: BaseBlock, nodes: Nodes) -> Nodes:
        above = block.next_input(nodes)
        assert isinstance(above, Nodes)
        return self.encoding.ask(above, self.ids)

    def _picked(self, output: Tensor, nodes: Nodes) -> Tensor:
        if nodes.pairs is not None:
            return Ends(output, nodes.pairs)  # type: ignore[return-value]
        return output if nodes.wanted is None else output[nodes.wanted]


class PartedEvaluator(Evaluator):
    """Class scores of samples that are shown in two ways: one evaluator for each, put together.

    Args:
        cascade: The blocks and readouts.
        data: All samples.
        parts: Evaluators of some of them, and where in the data they are, ``[M]``.
    """

    data: GraphData

    def __init__(self, cascade: Cascade, data: GraphData, parts: list[tuple[GraphEvaluator, Tensor]]) -> None:
        super().__init__(cascade, data)
        self.parts = parts

    def first(self, n_samples: int) -> Evaluator:
        few = min(n_samples, self.n_samples)
        at = torch.arange(few, device=self.data.y.device)
        parts = [(part.first(int((where < few).sum())), where[where < few]) for part, where in self.parts]
        return PartedEvaluator(self.cascade, self.data.take(at), [part for part in parts if len(part[1])])

    def freeze_below(self, height: int, readouts: Sequence[str]) -> None:
        for part, _ in self.parts:
            part.freeze_below(height, readouts)

    def outputs(self, number: int, n_blocks: int) -> Iterator[tuple[Tensor, Tensor]]:
        for part, _ in self.parts:
            yield from part.outputs(number, n_blocks)

    def scores(self, readouts: Sequence[str], n_blocks: int | None = None) -> dict[str, Tensor]:
        where = torch.cat([at for _, at in self.parts]).argsort()
        found = [part.scores(readouts, n_blocks) for part, _ in self.parts]
        return {name: torch.cat([scores[name] for scores in found])[where] for name in found[0]}


def make_evaluator(
    cascade: Cascade, data: GraphData, cache: bool = False, store: Store | None = None
) -> Evaluator:
    """The evaluator of nodes, or pairs of nodes, of the training graph or of another.

    A training node whose own label would otherwise reach its prediction is evaluated as a node of another
    graph, where no label is known.
    """
    encoding = cascade.encoding
    assert isinstance(encoding, GraphEncoding)

    def other() -> GraphEncoding:
        return encoding.beside(data.features, data.graph)

    if not encoding.shows_graph(data.features, data.graph):
        return GraphEvaluator(cascade, data, cache, store, other())
    told = torch.isin(data.ids, encoding.ids) if encoding.tells_labels else None
    if told is None or not told.any():
        return GraphEvaluator(cascade, data, cache, store)
    if told.all():
        return GraphEvaluator(cascade, data, cache, store, other())
    parts = []
    for shown, of in ((encoding, ~told), (other(), told)):
        at = of.nonzero().squeeze(1)
        parts.append((GraphEvaluator(cascade, data.take(at), cache, store, shown), at))
    return PartedEvaluator(cascade, data, parts)
