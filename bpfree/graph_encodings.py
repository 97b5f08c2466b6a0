"""How labelled nodes, and pairs of nodes, are shown: on the graph, beside virtual nodes, or under a label."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, Literal
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from bpfree._errors import BadValue
from bpfree.encodings import Encoding, View
from bpfree.graph import Graph, Nodes, mostly_zero
from bpfree.kept import Store

Direction = Literal["one_way", "both_ways"]
VirtualFeatures = Literal["random", "zero"]


class GraphEncoding(Encoding):
    """Shows nodes as they are, on their graph. The base of the other encodings of graphs.

    A sample is the number of a node, and every row that a block sees is a node's. What the whole graph looks
    like is made once, and again only for another graph.

    Args:
        features: Of the nodes, ``[n, F]``.
        graph: The graph that training sees.
        ids: The training nodes, ``[M]``.
        y: Their labels, ``[M]``.
        n_classes: Number of classes C.
    """

    whole = True

    def __init__(self, features: Tensor, graph: Graph, ids: Tensor, y: Tensor, n_classes: int) -> None:
        self.features, self.graph, self.ids, self.y, self.n_classes = features, graph, ids, y, n_classes
        self.sparse = mostly_zero(features)
        self._all: Tensor | None = None
        self._memos: WeakValueDictionary[tuple[Any, ...], _Memo] = WeakValueDictionary()
        self._stepped: Nodes | None = None

    def __getstate__(self) -> dict[str, Any]:
        """All but what is kept by the identity of tensors, which a copy does not share."""
        return {k: v for k, v in self.__dict__.items() if k not in ("_memos", "_stepped")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _memos=WeakValueDictionary(), _stepped=None)

    def nodes(
        self,
        view: View | None,
        graph: Graph | None = None,
        keep: bool = True,
        store: Store | None = None,
    ) -> Nodes:
        """All nodes, none asked about yet.

        Args:
            view: What a readout asks for; None: what training sees.
            graph: Another graph over the same nodes than that of training.
            keep: Whether what fronts make of them may be kept: once for all who hold the same states on the
                same graphs, for as long as one of them does.
            store: Where it is kept; by default in memory.

        Raises:
            BadValue: If this encoding has no such view.
        """
        found = replace(self.shown(view, self.graph if graph is None else graph), sparse=self.sparse)
        if not keep:
            return replace(found, memo=None)
        store = store or Store()
        made_of: tuple[Tensor | Graph, ...] = (*found.states, *found.codes, *found.graphs)
        key = (store.folder, *map(id, made_of))
        memo = self._memos.get(key)
        if memo is None:
            memo = self._memos[key] = _Memo()
            memo.made_of = made_of
        return replace(found, memo=memo, store=store)

    def shown(self, view: View | None, graph: Graph) -> Nodes:
        """`nodes`, without what is kept."""
        if view not in (None, "plain"):
            raise BadValue(f"a readout asked for the {view!r} view, which needs an encoding with labels")
        return Nodes((self.features,), (graph,))

    def rows(self, ids: Tensor) -> Tensor:
        """The rows that a loss must see beside, or instead of, those of the samples ``ids``."""
        return ids

    def asked(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, bool]:
        """Which nodes a step on the samples ``x`` asks about, their targets, and whether it will ask again.

        The order of the samples says nothing where all are there: then it is always the same one.
        """
        whole = len(x) == len(self.ids)
        if x is self.ids or (whole and torch.equal(x.sort().values, self.ids.sort().values)):
            if self._all is None:
                self._all = self.rows(self.ids)
            return self._all, self.targets(self.y), True
        return self.rows(x), self.targets(y), False

    def targets(self, y: Tensor) -> Tensor:
        """What a loss is told of the labels ``y [B]``."""
        return y

    def select(self, nodes: Nodes, x: Tensor, y: Tensor) -> tuple[Nodes, Tensor]:
        """``nodes`` with those that a step on the samples ``x`` asks about, and the targets."""
        wanted, target, again = self.asked(x, y)
        return nodes.wanting(wanted, again), target

    def encode(self, x: Tensor, y: Tensor, drawn: Tensor | None) -> tuple[Nodes, Tensor]:  # type: ignore[override]
        if self._stepped is None:
            self._stepped = self.nodes(None)
        return self.select(self._stepped, x, y)

    def ask(self, nodes: Nodes, x: Tensor) -> Nodes:
        """``nodes`` with those that readouts need to judge the samples ``x``, again and again."""
        return nodes.wanting(self.rows(x), keeps=True)

    def view(self, x: Tensor, view: View) -> Nodes:  # type: ignore[override]
        return self.ask(self.nodes(view, keep=False), x)


class _Memo(dict[Any, Any]):
    """What fronts have made, and the states and graphs that they made it of, whose numbers stay taken."""

    made_of: tuple[Tensor | Graph, ...]


def with_virtual(
    features: Tensor,
    sparse: bool,
    n_classes: int,
    virtual: VirtualFeatures,
    generator: torch.Generator | None,
) -> Nodes:
    """Nodes with ``features [n, F]`` and C virtual ones behind them, on no graph yet.

    Args:
        features: Of the nodes.
        sparse: Whether they are zeros for the most part.
        n_classes: C.
        virtual: Features of the virtual nodes: ``random``, normal values, or ``zero``.
        generator: For the random ones.
    """
    rows = features.new_zeros(n_classes, features.shape[1])
    if virtual == "random":
        drawn = torch.randn(rows.shape, generator=generator, device=features.device)
        rows = drawn.to(features)
    if virtual == "zero" or not sparse:
        return Nodes((torch.cat([features, rows]),), ())
    # A full row would fill those of its neighbours, which are sparse otherwise.
    codes = F.pad(torch.eye(n_classes).to(features), (0, 0, len(features), 0))
    return Nodes((F.pad(features, (0, 0, 0, n_classes)),), (), codes=(codes,), book=rows)


class VirtualNodes(GraphEncoding):
    """A node for each class, to which the training nodes of that class are joined (arXiv 2403.11004).

    The virtual nodes are the last C. Virtual edges come from training labels alone.

    Args:
        direction: ``one_way``: edges from training nodes to virtual ones, which leave all other nodes as they
            were; ``both_ways``: in both directions.
        virtual: Their features: ``random``, normal values drawn once, or ``zero``.
        generator: For the random features.
        everywhere: Whether all nodes are asked about in training, targets -1 where there is no label.
        tells: Whether the labels come to the top block as its message.
        **options: As for `GraphEncoding`.
    """

    def __init__(
        self,
        features: Tensor,
        graph: Graph,
        ids: Tensor,
        y: Tensor,
        n_classes: int,
        direction: Direction = "one_way",
        virtual: VirtualFeatures = "random",
        generator: torch.Generator | None = None,
        everywhere: bool = False,
        tells: bool = False,
    ) -> None:
        super().__init__(features, graph, ids, y, n_classes)
        self.direction, self.n_real = direction, len(features)
        self.everywhere, self.tells = everywhere, tells
        self._shown = with_virtual(features, self.sparse, n_classes, virtual, generator)
        self._virtual = torch.arange(self.n_real, self.n_real + n_classes, device=features.device)
        self._known: tuple[Graph, Graph] | None = None

    def shown(self, view: View | None, graph: Graph) -> Nodes:
        if view not in (None, "plain"):
            return super().shown(view, graph)
        if self._known is None or self._known[0] is not graph:
            self._known = (graph, self.augmented(graph))
        return replace(self._shown, graphs=(self._known[1],))

    def augmented(self, graph: Graph) -> Graph:
        """``graph`` with the virtual nodes and their edges."""
        edges = torch.stack([self.ids, self.n_real + self.y])
        if self.direction == "both_ways":
            edges = torch.cat([edges, edges.flip(0)], 1)
        return graph.with_edges(edges, self.n_real + self.n_classes)

    def rows(self, ids: Tensor) -> Tensor:
        """The samples' nodes, and the virtual ones last."""
        return torch.cat([ids, self._virtual])

    def select(self, nodes: Nodes, x: Tensor, y: Tensor) -> tuple[Nodes, Tensor]:
        if not self.everywhere:
            return super().select(nodes, x, y)
        target = y.new_full((self.n_real,), -1)
        target[x] = y
        return nodes.wanting(None, keeps=True), target

    def message(self) -> Tensor | None:
        """Labels as probabilities, ``[n + C, C]``: those of training nodes, equal ones of others."""
        if not self.tells:
            return None
        found = self.features.new_full((self.n_real + self.n_classes, self.n_classes), 1 / self.n_classes)
        found[self.ids] = F.one_hot(self.y, self.n_classes).to(found)
        found[self.n_real :] = torch.eye(self.n_classes, device=found.device)
        return found


class LabelledGraphs(GraphEncoding, ABC):
    """Forward-Forward on graphs: the true labels in the first view, wrong ones in the C - 1 others.

    Each training node has one random order of its wrong classes, drawn once; the candidates view shows all
    other nodes under one class after another, training nodes under their own.

    Args:
        generator: For the order of the wrong classes.
        **options: As for `GraphEncoding`.
    """

    def __init__(
        self,
        features: Tensor,
        graph: Graph,
        ids: Tensor,
        y: Tensor,
        n_classes: int,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(features, graph, ids, y, n_classes)
        drawn = torch.rand(len(y), n_classes, generator=generator, device=y.device)
        drawn[torch.arange(len(y), device=y.device), y] = -1.0  # the true class comes first
        self.labels = drawn.argsort(1).T.contiguous()

    def shown(self, view: View | None, graph: Graph) -> Nodes:
        if view is None:
            return self.labelled(graph, list(self.labels), None)
        if view != "candidates":
            raise BadValue(f"a readout asked for the {view!r} view: these blocks judge candidate labels only")
        return self.labelled(graph, [self.y] * self.n_classes, torch.arange(self.n_classes))

    @abstractmethod
    def labelled(self, graph: Graph, labels: list[Tensor], others: Tensor | None) -> Nodes:
        """Views in which the training nodes have ``labels [M]``, all other nodes ``others`` (None: none)."""

    def targets(self, y: Tensor) -> Tensor:
        """1 for the rows of the first view, 0 for the others, ``[C * B]``."""
        first = torch.arange(self.n_classes, device=y.device) == 0
        return first.long().repeat_interleave(len(y))


class AppendedLabels(LabelledGraphs):
    """The label stands behind the features, ``[x, label]``; where there is none, 1/C everywhere (FF-LA)."""

    def labelled(self, graph: Graph, labels: list[Tensor], others: Tensor | None) -> Nodes:
        codes, c = [], self.n_classes
        for number, own in enumerate(labels):
            code = self.features.new_full((len(self.features), self.n_classes), 1 / self.n_classes)
            if others is not None:
                code.zero_()[:, others[number]] = 1.0
            code[self.ids] = F.one_hot(own, self.n_classes).to(code)
            codes.append(code)
        width = self.features.shape[1]
        book = torch.eye(width + c, device=self.features.device)[width:].to(self.features)
        return Nodes((F.pad(self.features, (0, c)),), (graph,), codes=tuple(codes), book=book)


class LinkedLabels(LabelledGraphs):
    """The label is an edge to the virtual node of a class (FF-VN); the wrong views go on from the true one.

    The edges go in both directions: along one, no node would feel its label.

    Args:
        virtual: Features of the virtual nodes, as for `VirtualNodes`.
        **options: As for `LabelledGraphs`.
    """

    def __init__(
        self,
        features: Tensor,
        graph: Graph,
        ids: Tensor,
        y: Tensor,
        n_classes: int,
        generator: torch.Generator | None = None,
        virtual: VirtualFeatures = "random",
    ) -> None:
        super().__init__(features, graph, ids, y, n_classes, generator)
        self._shown = with_virtual(features, self.sparse, n_classes, virtual, generator)

    def labelled(self, graph: Graph, labels: list[Tensor], others: Tensor | None) -> Nodes:
        n = len(self.features)
        rest = torch.ones(n, dtype=torch.bool, device=self.ids.device)
        rest[self.ids] = False
        unknown = rest.nonzero().squeeze(1)
        graphs = []
        for number, own in enumerate(labels):
            edges = torch.stack([self.ids, n + own])
            if others is not None:
                shown = torch.stack([unknown, torch.full_like(unknown, n + int(others[number]))])
                edges = torch.cat([edges, shown], 1)
            edges = torch.cat([edges, edges.flip(0)], 1)
            graphs.append(graph.with_edges(edges, n + self.n_classes))
        return replace(self._shown, graphs=tuple(graphs), leads=others is None)


class Pairs(GraphEncoding):
    """Shows the nodes as they are and asks about pairs of them, judged by the area under the ROC."""

    measure = "roc_auc"

    def select(self, nodes: Nodes, x: Tensor, y: Tensor) -> tuple[Nodes, Tensor]:
        return nodes.wanting(None, keeps=True), torch.cat([x, y.unsqueeze(1)], 1)

    def ask(self, nodes: Nodes, x: Tensor) -> Nodes:
        return nodes.wanting(None, keeps=True, pairs=x)

    def judge(self, scores: Tensor, answers: Tensor) -> float:
        """Area under the ROC of ``scores [B, 1]`` against ``answers [B]``."""
        from sklearn.metrics import roc_auc_score

        return float(roc_auc_score(answers.cpu().numpy(), scores.squeeze(1).cpu().numpy()))
