"""What the readouts say of a data set, with the frozen part of a greedy cascade computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bpfree._errors import Diverged
from bpfree.cascade import Block, Cascade, Rows
from bpfree.encodings import View
from bpfree.graph import Ends, Nodes
from bpfree.graph_encodings import GraphEncoding
from bpfree.losses import LocalLoss
from bpfree.readouts import Readout
from bpfree.schedules import Data, settle

BATCH = 1024


class Evaluator:
    """Class scores of all samples of a data set.

    Args:
        cascade: The blocks and readouts.
        data: The samples; never augmented here.
        cache: Whether `climb` keeps the outputs of frozen blocks.
    """

    def __init__(self, cascade: Cascade, data: Data, cache: bool = False) -> None:
        self.cascade, self.data, self.cache = cascade, data, cache
        self.n_samples, self.height = len(data.y), 0
        self._frozen: dict[View, list[Tensor]] = {}
        self._sensed: dict[View, Tensor] = {}

    def first(self, n_samples: int) -> Evaluator:
        """An evaluator of the first ``n_samples`` alone."""
        few = Evaluator(self.cascade, self.data)
        few.n_samples = min(n_samples, self.n_samples)
        return few

    @torch.no_grad()
    def climb(self, height: int, readouts: Sequence[str]) -> None:
        """Freeze the blocks below ``height`` and the front of the next, for the views of ``readouts``."""
        if not self.cache:
            return
        views = {self.cascade.readout(name).view for name in readouts}
        starts = range(0, self.n_samples, BATCH)
        if height > self.height:
            for view in views:
                batches = [self._outputs(view, start, height) for start in starts]
                self._frozen[view] = [torch.cat(parts, 1) for parts in zip(*batches, strict=True)]
        self.height = height
        self._sensed = {}
        if height < len(self.cascade.units) and self.cascade.units[height].front is not None:
            self._sensed = {view: torch.cat([self._sense(view, i) for i in starts], 1) for view in views}

    @torch.no_grad()
    def outputs(self, number: int, n_blocks: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Output ``number`` of the first ``n_blocks`` blocks for the samples as they are, and the labels."""
        self.cascade.eval()
        for start in range(0, self.n_samples, BATCH):
            found = self._outputs("plain", start, n_blocks)[number].flatten(0, 1)
            yield found, self.data.y[start : start + len(found)]

    @torch.no_grad()
    def scores(self, readouts: Sequence[str], n_blocks: int | None = None) -> dict[str, Tensor]:
        """Scores ``[N, C]`` by each readout, and of each block as ``"block 1"`` and so on.

        Args:
            readouts: Names; the blocks are told apart by the first of them that can.
            n_blocks: How many blocks the readouts listen to; all by default.
        """
        training = self.cascade.training
        self.cascade.eval()
        found: dict[str, list[Tensor]] = {}
        teller = next((name for name in readouts if self.cascade.readout(name).tells_blocks), None)
        for view in dict.fromkeys(self.cascade.readout(name).view for name in readouts):
            for start in range(0, self.n_samples, BATCH):
                outputs = [o.flatten(0, 1) for o in self._outputs(view, start, n_blocks)]
                losses = self.cascade.losses[: len(outputs)]
                for name in readouts:
                    if self.cascade.readout(name).view == view:
                        found.setdefault(name, []).append(self.cascade.readout(name)(outputs, losses))
                if teller is not None and self.cascade.readout(teller).view == view:
                    for k, scores in enumerate(self.cascade.readout(teller).per_block(outputs, losses)):
                        if scores is not None:
                            found.setdefault(f"block {k + 1}", []).append(scores)
        self.cascade.train(training)
        return {name: torch.cat(parts) for name, parts in found.items()}

    def accuracies(self, readouts: Sequence[str], n_blocks: int | None = None) -> dict[str, float]:
        """Share of samples that each readout, and each block alone, classifies rightly."""
        scores = self.scores(readouts, n_blocks)
        for name, found in scores.items():
            if not found.isfinite().all():
                raise Diverged(
                    f"the scores of {name} are not finite: nor are the samples, or the weights by now"
                )
        encoding = self.cascade.encoding
        answers = encoding.answers(self.data)[: self.n_samples]
        return {name: encoding.judge(s, answers) for name, s in scores.items()}

    def _sense(self, view: View, start: int) -> Tensor:
        """What the front of the block at ``height`` answers to one batch of samples, ``[views, B, ...]``."""
        block, below = self.cascade.units[self.height], self._outputs(view, start, self.height)
        indices = self._indices(start)
        rows: Rows
        if below:
            rows = below[-1].flatten(0, 1)
        else:
            rows = self.cascade.encoding.view(self.data.batch(indices)[0], view)
        answer = block.sense(rows)
        assert isinstance(answer, Tensor)
        found: Tensor = answer.unflatten(0, (-1, len(indices)))
        return found

    def _indices(self, start: int) -> Tensor:
        return torch.arange(start, min(start + BATCH, self.n_samples), device=self.data.y.device)

    def _outputs(self, view: View, start: int, n_blocks: int | None) -> list[Tensor]:
        """Outputs of the first blocks for one batch of samples, ``[views, B, ...]`` each."""
        indices = self._indices(start)
        kept = [o[:, indices] for o in self._frozen.get(view, [])]
        rows: Rows
        if kept:
            rows = kept[-1].flatten(0, 1)
            blocks = self.cascade.units[self.height : n_blocks]
        else:
            x, _ = self.data.batch(indices)
            rows = self.cascade.encoding.view(x, view)
            blocks = self.cascade.units[:n_blocks]
        for block in blocks:
            if view in self._sensed and block is self.cascade.units[self.height]:
                outputs = [block.body(self._sensed[view][:, indices].flatten(0, 1))]
            else:
                outputs = block.outputs(rows)
            kept += [o.unflatten(0, (-1, len(indices))) for o in outputs]
            rows = outputs[-1]
        return kept


class GraphEvaluator(Evaluator):
    """Class scores of all samples of a data set that stand on a graph.

    Readouts listen to one pass; where blocks read messages from above, to the sum over the last sweeps.

    Args:
        cascade: The blocks and readouts.
        data: The samples, of whose graph nothing but the features and edges is seen.
        cache: Whether `climb` keeps the states above frozen blocks.
    """

    def __init__(self, cascade: Cascade, data: Data, cache: bool = False) -> None:
        super().__init__(cascade, data, cache)
        assert isinstance(cascade.encoding, GraphEncoding)
        self.encoding, self._states = cascade.encoding, dict[View, Nodes]()
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
                kept += block.outputs(nodes)
                nodes = self._up(block, nodes)
            self._states[view] = nodes
        self.height = height

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
        whole = nodes.wanting(None, pairs=nodes.pairs)
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
        return self.encoding.ask(self.encoding.nodes(view, graph, keep=self.cache), self.ids)

    def _up(self, block: Block, nodes: Nodes) -> Nodes:
        above = block.onward(nodes)
        assert isinstance(above, Nodes)
        return self.encoding.ask(above, self.ids)

    def _picked(self, output: Tensor, nodes: Nodes) -> Tensor:
        if nodes.pairs is not None:
            return Ends(output, nodes.pairs)  # type: ignore[return-value]
        return output if nodes.wanted is None else output[nodes.wanted]


def make_evaluator(cascade: Cascade, data: Data, cache: bool = False) -> Evaluator:
    """The evaluator for the kind of samples that the cascade is shown."""
    return (GraphEvaluator if cascade.encoding.whole else Evaluator)(cascade, data, cache)
