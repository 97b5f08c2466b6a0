"""What the readouts say of nodes, and of pairs of nodes, whose graph must be seen whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bpfree.cascade import Block, Cascade
from bpfree.encodings import View
from bpfree.graph import Ends, Nodes
from bpfree.graph_encodings import GraphEncoding
from bpfree.losses import LocalLoss
from bpfree.readouts import Readout
from bpfree.schedules import Data, Store, settle
from bpfree.trainers.evaluation import Evaluator


class GraphEvaluator(Evaluator):
    """Class scores of all samples of a data set that stand on a graph.

    Readouts listen to one pass; where blocks read messages from above, to the sum over the last sweeps.

    Args:
        cascade: The blocks and readouts.
        data: The samples, of whose graph nothing but the features and edges is seen.
        cache: Whether `climb` keeps the states above frozen blocks.
        store: Where they are kept; by default in memory.
    """

    def __init__(self, cascade: Cascade, data: Data, cache: bool = False, store: Store | None = None) -> None:
        super().__init__(cascade, data, cache, store)
        assert isinstance(cascade.encoding, GraphEncoding)
        self.encoding, self._states = cascade.encoding, dict[View, Nodes]()
        self._frozen: dict[View, list[Tensor]] = {}
        self.ids = data.batch(torch.arange(len(data.y), device=data.y.device))[0]

    def first(self, n_samples: int) -> Evaluator:
        few = GraphEvaluator(self.cascade, self.data)
        few.n_samples = min(n_samples, self.n_samples)
        few.ids = self.ids[: few.n_samples]
        return few

    @torch.no_grad()
    def climb(self, height: int, readouts: Sequence[str]) -> None:
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
        teller = next((name for name in readouts if self.cascade.readout(name).tells_blocks), None)
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
                own = losses[k].probabilities(scores) if len(sweeps) > 1 else scores
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
        graph = getattr(self.data, "graph", None)
        whole = self.encoding.nodes(view, graph).wanting(None, keeps=True, pairs=nodes.pairs)
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
        graph = getattr(self.data, "graph", None)
        return self.encoding.ask(
            self.encoding.nodes(view, graph, keep=self.cache, store=self.store), self.ids
        )

    def _up(self, block: Block, nodes: Nodes) -> Nodes:
        above = block.onward(nodes)
        assert isinstance(above, Nodes)
        return self.encoding.ask(above, self.ids)

    def _picked(self, output: Tensor, nodes: Nodes) -> Tensor:
        if nodes.pairs is not None:
            return Ends(output, nodes.pairs)  # type: ignore[return-value]
        return output if nodes.wanted is None else output[nodes.wanted]


def make_evaluator(
    cascade: Cascade, data: Data, cache: bool = False, store: Store | None = None
) -> Evaluator:
    """The evaluator for the kind of samples that the cascade is shown."""
    if cascade.encoding.whole:
        return GraphEvaluator(cascade, data, cache, store)
    return Evaluator(cascade, data, cache, store)
