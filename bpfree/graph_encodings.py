"""How labelled nodes, and pairs of nodes, are shown: on the graph, beside virtual nodes, or under a label."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, Literal, Self
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from bpfree._errors import BadValue
from bpfree.encodings import Encoding, View
from bpfree.graph import Graph, Nodes, Unchanged, mostly_zero
from bpfree.kept import Store

Direction = Literal["one_way", "both_ways"]
VirtualFeatures = Literal["random", "zero"]


class GraphEncoding(Encoding):
    """Shows nodes as they are, on their graph. The base of the other encodings of graphs.

    A sample is the number of a node, and every row that a block sees is a node's. What the whole graph looks
    like is made once. Samples of another graph are judged by the encoding that `beside` makes for it.

    Args:
        features: Of the nodes, ``[n, F]``.
        graph: The graph that training sees.
        ids: The training nodes, ``[M]``.
        y: Their labels, ``[M]``.
        n_classes: Number of classes C.

    Attributes:
        knows_labels: Whether what samples are judged by includes labels of training nodes.
        tells_labels: Whether a training node would be judged by its own, too.
        virtual: Features of virtual nodes, ``[C, F]``; None: there are none.
    """

    whole = True
    knows_labels = False
    tells_labels = False
    virtual: Tensor | None = None

    def __init__(self, features: Tensor, graph: Graph, ids: Tensor, y: Tensor, n_classes: int) -> None:
        self.n_classes = n_classes
        self._place(features, graph, ids, y)

    def _place(self, features: Tensor, graph: Graph, ids: Tensor, y: Tensor) -> None:
        """Take up a graph and its labels, and forget what was made of another."""
        self.features, self.graph, self.ids, self.y = features, graph, ids, y
        self.sparse = mostly_zero(features)
        self._unchanged = Unchanged(features, "features")
        self._all: Tensor | None = None
        self._memos: WeakValueDictionary[tuple[Any, ...], _Memo] = WeakValueDictionary()
        self._stepped: Nodes | None = None

    def with_virtual(self, rows: Tensor) -> None:
        """Give the virtual nodes these features, ``[C, F]``."""
        self.virtual = rows
        self._place(self.features, self.graph, self.ids, self.y)

    def __getstate__(self) -> dict[str, Any]:
        """All but what is kept by the identity of tensors, which a copy does not share."""
        return {key: value for key, value in self.__dict__.items() if key not in ("_memos", "_stepped")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _memos=WeakValueDictionary(), _stepped=None)

    def shows_graph(self, features: Tensor, graph: Graph) -> bool:
        """Whether these are the features ``[n, F]`` and the edges, in any order, that this encoding shows."""
        own = self.features
        alike = features is own or (features.shape == own.shape and torch.equal(features, own))
        return alike and graph.equals(self.graph)

    def beside(self, features: Tensor, graph: Graph) -> Self:
        """The encoding by which nodes of another graph are judged: none of their labels is known.

        Args:
            features: Of its nodes, ``[n', F]``. They keep their numbers.
            graph: Its edges.
        """
        found = copy.copy(self)
        found._place(features, graph, self.ids, self.y)
        return found

    def nodes(self, view: View | None, keep: bool = True, store: Store | None = None) -> Nodes:
        """All nodes, none asked about yet.

        Args:
            view: What a readout asks for; None: what training sees.
            keep: Whether what fronts make of them may be kept: once for all who hold the same states on the
                same graphs, for as long as one of them does.
            store: Where it is kept; by default in memory.

        Raises:
            BadValue: If this encoding has no such view, or the features were changed since they came.
        """
        self._unchanged.check(self.features)
        found = replace(self.shown(view), sparse=self.sparse)
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

    def shown(self, view: View | None) -> Nodes:
        """`nodes`, without what is kept."""
        if view not in (None, "plain"):
            raise BadValue(f"a readout asked for the {view!r} view, which needs an encoding with labels")
        return Nodes((self.features,), (self.graph,))

    def rows(self, ids: Tensor) -> Tensor:
        """The rows that a loss must see beside, or instead of, those of the samples ``ids``."""
        return ids

    def asked(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, bool]:
        """Which nodes a step on the samples ``x`` asks about, their targets, and whether it will ask again.

        The order of the samples says nothing where all are there: then it is always the same one.
        """
        if self._are_all(x, y):
            if self._all is None:
                self._all = self.rows(self.ids)
            return self._all, self.targets(self.y), True
        return self.rows(x), self.targets(y), False

    def _are_all(self, x: Tensor, y: Tensor) -> bool:
        """Whether the samples ``x`` with labels ``y`` are all training samples, in any order."""
        if x is self.ids and y is self.y:
            return True
        if len(x) != len(self.ids):
            return False
        order, own = x.argsort(), self.ids.argsort()
        return torch.equal(x[order], self.ids[own]) and torch.equal(y[order], self.y[own])

    def targets(self, y: Tensor) -> Tensor:
        """What a loss is told of the labels ``y [B]``."""
        return y

    def select(self, nodes: Nodes, x: Tensor, y: Tensor) -> tuple[Nodes, Tensor]:
        """``nodes`` with those that a step on the samples ``x`` asks about, and the targets."""
        wanted, target, again = self.asked(x, y)
        return nodes.wanting(wanted, again), target

    def encode(self, x: Tensor, y: Tensor, drawn: Tensor | None) -> tuple[Nodes, Tensor]:  # type: ignore[override]
        self._unchanged.check(self.features)
        if self._stepped is None:
            self._stepped = self.nodes(None)
        return self.select(self._stepped, x, y)

    def ask(self, nodes: Nodes, x: Tensor) -> Nodes:
        """``nodes`` with those that readouts need to judge the samples ``x``, again and again."""
        return nodes.wanting(self.rows(x), keeps=True)

    def view(self, x: Tensor, view: View) -> Nodes:  # type: ignore[override]
        """``x`` asked about on the graph as it is in training, where their own labels may be shown."""
        if x.dtype != torch.int64 or not ((x >= 0) & (x < len(self.features))).all():
            last = len(self.features) - 1
            raise BadValue(f"x is {x.dtype} {list(x.shape)}: expected int64 numbers of nodes, 0..{last}")
        return self.ask(self.nodes(view, keep=False), x)


class _Memo(dict[Any, Any]):
    """What fronts have made, and the states and graphs that they made it of, whose numbers stay taken."""

    made_of: tuple[Tensor | Graph, ...]


def virtual_rows(
    features: Tensor, n_classes: int, virtual: VirtualFeatures, generator: torch.Generator | None
) -> Tensor:
    """Features of virtual nodes, ``[C, F]``.

    Args:
        features: Of the other nodes, ``[n, F]``.
        n_classes: C.
        virtual: ``random``, normal values, or ``zero``.
        generator: For the random ones.
    """
    rows = features.new_zeros(n_classes, features.shape[1])
    if virtual == "random":
        drawn = torch.randn(rows.shape, generator=generator, device=features.device)
        rows = drawn.to(features)
    return rows


def with_virtual(features: Tensor, sparse: bool, rows: Tensor) -> Nodes:
    """Nodes with ``features [n, F]`` and C virtual ones behind them, on no graph yet.

    Args:
        features: Of the nodes.
        sparse: Whether they are zeros for the most part.
        rows: Features of the virtual nodes, ``[C, F]``.
    """
    n_classes = len(rows)
    if not sparse or not rows.any():
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

    knows_labels = True
    virtual: Tensor

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
        self.direction, self.everywhere, self.tells = direction, everywhere, tells
        self.tells_labels = tells or direction == "both_ways"
        self.virtual = virtual_rows(features, n_classes, virtual, generator)
        super().__init__(features, graph, ids, y, n_classes)

    def _place(self, features: Tensor, graph: Graph, ids: Tensor, y: Tensor) -> None:
        super()._place(features, graph, ids, y)
        self.n_real = len(features)
        self._shown = with_virtual(features, self.sparse, self.virtual)
        self._virtual = torch.arange(self.n_real, self.n_real + self.n_classes, device=features.device)
        self._augmented: Graph | None = None

    def beside(self, features: Tensor, graph: Graph) -> Self:
        """As of the base class. The virtual nodes stand for what training made of the classes: the training
        graph, with its labels, is shown behind the other one, and no edge joins the two.
        """
        found = copy.copy(self)
        both = torch.cat([features, self.features])
        found._place(both, graph.beside(self.graph), self.ids + len(features), self.y)
        return found

    def shown(self, view: View | None) -> Nodes:
        if view not in (None, "plain"):
            return super().shown(view)
        if self._augmented is None:
            self._augmented = self.augmented()
        return replace(self._shown, graphs=(self._augmented,))

    def augmented(self) -> Graph:
        """The graph with the virtual nodes and their edges."""
        edges = torch.stack([self.ids, self.n_real + self.y])
        if self.direction == "both_ways":
            edges = torch.cat([edges, edges.flip(0)], 1)
        return self.graph.with_edges(edges, self.n_real + self.n_classes)

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
    other nodes under one class after another, training nodes under their own. Nodes of another graph are all
    shown under one class after another.

    Args:
        generator: For the order of the wrong classes.
        **options: As for `GraphEncoding`.
    """

    knows_labels = tells_labels = True

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

    def beside(self, features: Tensor, graph: Graph) -> Self:
        found = copy.copy(self)
        found.labels = self.labels[:, :0]
        found._place(features, graph, self.ids[:0], self.y[:0])
        return found

    def shown(self, view: View | None) -> Nodes:
        if view is None:
            return self.labelled(list(self.labels), None)
        if view != "candidates":
            raise BadValue(f"a readout asked for the {view!r} view: these blocks judge candidate labels only")
        return self.labelled([self.y] * self.n_classes, torch.arange(self.n_classes))

    def check_known(self, x: Tensor, y: Tensor) -> None:
        """Check that the nodes ``x [B]`` are training nodes with the labels ``y [B]``: no others are shown.

        Raises:
            BadValue: If one is not.
        """
        known = torch.full((len(self.features),), -1, device=y.device)
        known[self.ids] = self.y
        if bad := (known[x] != y).nonzero().flatten().tolist():
            raise BadValue(
                f"node {int(x[bad[0]])} with label {int(y[bad[0]])} is not among the training data that the "
                "trainer was built for, whose labels are part of what it is shown: build_for other data first"
            )

    @abstractmethod
    def labelled(self, labels: list[Tensor], others: Tensor | None) -> Nodes:
        """Views in which the training nodes have ``labels [M]``, all other nodes ``others`` (None: none)."""

    def targets(self, y: Tensor) -> Tensor:
        """1 for the rows of the first view, 0 for the others, ``[C * B]``."""
        first = torch.arange(self.n_classes, device=y.device) == 0
        return first.long().repeat_interleave(len(y))


class AppendedLabels(LabelledGraphs):
    """The label stands behind the features, ``[x, label]``; where there is none, 1/C everywhere (FF-LA)."""

    def labelled(self, labels: list[Tensor], others: Tensor | None) -> Nodes:
        codes, c = [], self.n_classes
        for number, own in enumerate(labels):
            code = self.features.new_full((len(self.features), self.n_classes), 1 / self.n_classes)
            if others is not None:
                code.zero_()[:, others[number]] = 1.0
            code[self.ids] = F.one_hot(own, self.n_classes).to(code)
            codes.append(code)
        width = self.features.shape[1]
        book = torch.eye(width + c, device=self.features.device)[width:].to(self.features)
        return Nodes((F.pad(self.features, (0, c)),), (self.graph,), codes=tuple(codes), book=book)


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
        # The order of the wrong classes is drawn first.
        super().__init__(features, graph, ids, y, n_classes, generator)
        self.with_virtual(virtual_rows(features, n_classes, virtual, generator))

    def _place(self, features: Tensor, graph: Graph, ids: Tensor, y: Tensor) -> None:
        super()._place(features, graph, ids, y)
        if self.virtual is not None:
            self._shown = with_virtual(features, self.sparse, self.virtual)

    def labelled(self, labels: list[Tensor], others: Tensor | None) -> Nodes:
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
            graphs.append(self.graph.with_edges(edges, n + self.n_classes))
        return replace(self._shown, graphs=tuple(graphs), leads=others is None)


class Pairs(GraphEncoding):
    """Shows the nodes as they are and asks about pairs of them."""

    def select(self, nodes: Nodes, x: Tensor, y: Tensor) -> tuple[Nodes, Tensor]:
        return nodes.wanting(None, keeps=True), torch.cat([x, y.unsqueeze(1)], 1)

    def ask(self, nodes: Nodes, x: Tensor) -> Nodes:
        return nodes.wanting(None, keeps=True, pairs=x)
