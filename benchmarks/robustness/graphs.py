"""Graphs: `evaluate` and `validation` use the nodes that they are given; odd graphs, features and labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import bpfree
from benchmarks.robustness import _by_hand as hand
from benchmarks.robustness._case import (
    ANY,
    REFUSED,
    RIGHT,
    RIGHT_OR_REFUSED,
    RIGHT_OR_WARNED,
    Case,
    Cases,
    Outcome,
)
from benchmarks.robustness._compare import trainer_of
from benchmarks.robustness._verdict import Watch
from bpfree.data import GraphData
from bpfree.graphs.graph import Graph

registry = Cases()
TRAINERS = ("forward_gnn", "backprop_gnn", "hop_mlp", "hop_ridge")
N, F_IN, CLASSES = 90, 12, 3
#: Variants of ForwardGNN and their settings.
VARIANTS: dict[str, dict[str, Any]] = {
    "single_forward": {},
    "learnable prototypes": {"learnable_prototypes": True},
    "label_appending": {"variant": "label_appending"},
    "virtual_nodes": {"variant": "virtual_nodes", "threshold": 0.5, "lr": 2e-2},
    "top_to_loss": {"variant": "top_to_loss", "schedule": "simultaneous"},
    "top_to_input": {"variant": "top_to_input", "schedule": "simultaneous"},
}


def graph(seed: int = 0, noise: float = 0.4) -> tuple[Tensor, Tensor, Tensor]:
    """Features ``[n, F]``, edges ``[2, E]``, classes ``[n]``; nodes of a class are connected and similar."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(CLASSES, (N,), generator=draw)
    pattern = (torch.rand(CLASSES, F_IN, generator=torch.Generator().manual_seed(5)) > 0.5).float()
    x = pattern[y] + noise * torch.rand(N, F_IN, generator=draw) + 0.05
    a, b = torch.randint(N, (2, 12 * N), generator=draw)
    same_class = (y[a] == y[b]) & (a != b)
    edges = torch.stack([a[same_class], b[same_class]])[:, : 2 * N]
    edges = torch.cat([edges, torch.stack([a, b])[:, :20]], 1)
    edges = edges[:, edges[0] != edges[1]]
    return x, torch.unique(torch.cat([edges, edges.flip(0)], 1), dim=1), y


def data(x: Tensor, edges: Tensor, y: Tensor, ids: Tensor) -> GraphData:
    """The nodes ``ids`` of a graph."""
    return GraphData(x, Graph(edges, len(x)), ids, y[ids], CLASSES)


def parts(seed: int = 0, noise: float = 0.4) -> tuple[GraphData, GraphData]:
    """Training and test nodes of one graph."""
    x, edges, y = graph(seed, noise)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    train = data(x, edges, y, order[:50])
    return train, replace(train, ids=order[50:], y=y[order[50:]])


def normal(edges: Tensor, n: int) -> Tensor:
    """``D^-1/2 (A + I) D^-1/2``, dense, D the degrees of incoming edges."""
    a = torch.zeros(n, n).index_put_((edges[1], edges[0]), torch.ones(edges.shape[1]), accumulate=True)
    a.fill_diagonal_(1)
    scale = a.sum(1).rsqrt()
    return scale[:, None] * a * scale[None]


def made(watch: Watch, trainer: str, kind: str = "gcn", **settings: Any) -> bpfree.Trainer:
    """A trainer of two layers."""
    if trainer != "hop_ridge":
        settings = {"lr": 2e-2} | settings
    if trainer == "forward_gnn":
        settings = {"lr": 5e-3} | settings
    torch.manual_seed(0)
    return trainer_of(trainer, bpfree.nn.GNN(kind, [16, 16]), watch, **settings)  # type: ignore[arg-type]


def gcn(trainer: bpfree.Trainer, x: Tensor, edges: Tensor) -> Tensor:
    """Class scores of all nodes, from the weights of a graph convolutional network and dense matrices."""
    a = normal(edges, len(x))
    first, second = trainer.net.convs  # type: ignore[misc]
    with torch.no_grad():
        hidden = (a @ (x @ first.lin.weight.T) + first.bias).relu()
        scores: Tensor = a @ (hidden @ second.lin.weight.T) + second.bias
    return scores


def hops(x: Tensor, edges: Tensor) -> Tensor:
    """``[x, A x, A A x]`` of rows of unit length."""
    a, x = normal(edges, len(x)), F.normalize(x)
    return torch.cat([x, a @ x, a @ (a @ x)], 1)


def share(scores: Tensor, of: GraphData) -> float:
    """Accuracy on the samples ``of``, from scores of all nodes."""
    return float((scores[of.ids].argmax(1) == of.y).float().mean())


def by_hand(trainer: bpfree.Trainer, train: GraphData) -> Callable[[GraphData], float]:
    """Accuracy on nodes of any graph, computed without bpfree from the trained weights."""
    if trainer.id == "backprop_gnn":
        return lambda d: share(gcn(trainer, d.features, d.graph.edge_index), d)
    if trainer.id == "hop_ridge":
        phi = hops(train.features, train.graph.edge_index)[train.ids]
        weight, bias = hand.ridge(phi, train.y, train.n_classes, 1e-2)
        return lambda d: share(hops(d.features, d.graph.edge_index).double() @ weight + bias, d)
    if trainer.id == "hop_mlp":
        body = trainer.cascade.units[0].body
        return lambda d: share(_layers(body, hops(d.features, d.graph.edge_index)), d)
    assert isinstance(trainer, bpfree.ForwardGNN)
    prototypes = trainer.prototypes()
    return lambda d: share(_single_forward(trainer, prototypes, d.features, d.graph.edge_index), d)


@torch.no_grad()
def _layers(body: Any, x: Tensor) -> Tensor:
    for layer in body:
        x = F.linear(x, layer.weight, layer.bias) if hasattr(layer, "weight") else layer(x)
    return x


@torch.no_grad()
def _single_forward(trainer: bpfree.Trainer, prototypes: list[Tensor], x: Tensor, edges: Tensor) -> Tensor:
    """The sum over layers of the softmax of the products with the prototypes."""
    a, total = normal(edges, len(x)), torch.zeros(len(x), len(prototypes[0]))
    for conv, prototype in zip(trainer.net.convs, prototypes, strict=True):  # type: ignore[arg-type]
        x = (a @ (x / (x.norm(dim=1, keepdim=True) + 1e-8)) @ conv.lin.weight.T + conv.bias).relu()
        total = total + (x @ prototype.T).softmax(1)
    return total


def fitted(watch: Watch, trainer: str, train: GraphData, **settings: Any) -> bpfree.Trainer:
    """A trained trainer."""
    if trainer == "hop_ridge":
        settings = {"lam": [1e-2]} | settings
    trained = made(watch, trainer, **settings)
    trained.fit(train, epochs=40, batch_size=1000)
    return trained


def renumbered(d: GraphData, seed: int = 3) -> GraphData:
    """The same graph and nodes with other node numbers."""
    new = torch.randperm(len(d.features), generator=torch.Generator().manual_seed(seed))
    x = torch.empty_like(d.features)
    x[new] = d.features
    return GraphData(x, Graph(new[d.graph.edge_index], len(x)), new[d.ids], d.y, d.n_classes)


def zeroed(d: GraphData) -> GraphData:
    """The same nodes without features."""
    return replace(d, features=torch.zeros_like(d.features))


def _larger(d: GraphData) -> GraphData:
    x = torch.cat([d.features, torch.rand(7, F_IN, generator=torch.Generator().manual_seed(2))])
    return GraphData(x, Graph(d.graph.edge_index, len(x)), d.ids, d.y, d.n_classes)


OTHERS: list[tuple[str, Callable[[GraphData], GraphData], frozenset[Outcome]]] = [
    ("the training graph", lambda d: d, RIGHT),
    ("nodes renumbered", renumbered, RIGHT_OR_REFUSED),
    ("features zeroed", zeroed, RIGHT_OR_REFUSED),
    ("features of other nodes", lambda d: replace(d, features=d.features.roll(1, 0)), RIGHT_OR_REFUSED),
    ("another graph", lambda d: parts(9)[1], RIGHT_OR_REFUSED),
    ("edges taken away", lambda d: replace(d, graph=Graph(d.graph.edge_index[:, :0], N)), RIGHT_OR_REFUSED),
    ("a larger graph", _larger, RIGHT_OR_REFUSED),
    ("float64 features", lambda d: replace(d, features=d.features.double()), RIGHT_OR_REFUSED),
    ("other features in number", lambda d: replace(d, features=d.features[:, :5]), REFUSED),
    ("NaN features", lambda d: replace(d, features=d.features * float("nan")), REFUSED),
]


for _trainer in TRAINERS:
    for _text, _change, _expected in OTHERS:

        @registry.add(_trainer, "gcn", f"evaluate: {_text}", _expected)
        def evaluated(
            watch: Watch, trainer: str = _trainer, change: Callable[[GraphData], GraphData] = _change
        ) -> str | None:
            train, test = parts()
            trained = fitted(watch, trainer, train)
            other = change(test)
            if other.features.shape[1] == F_IN and other.features.isfinite().all():
                expected = by_hand(trained, train)(replace(other, features=other.features.float()))
            else:
                expected = -1.0
            watch.end_training(trained.cascade)
            value = float(trained.evaluate(other)["accuracy"])
            return (
                None
                if abs(value - expected) <= 1 / 40 + 1e-6
                else f"evaluate {value:.3f}, by hand {expected:.3f}"
            )

    for _text, _change, _expected in OTHERS[1:5]:
        # Features without information may give a warning about accuracy at chance.
        @registry.add(_trainer, "gcn", f"validation: {_text}", _expected | RIGHT_OR_WARNED)
        def validated(
            watch: Watch, trainer: str = _trainer, change: Callable[[GraphData], GraphData] = _change
        ) -> str | None:
            train, test = parts()
            settings: dict[str, Any] = {"lam": [1e-2]} if trainer == "hop_ridge" else {}
            trained = made(watch, trainer, **settings)
            history = trained.fit(train, change(test), epochs=20, batch_size=1000, restore_best=False)
            value = next(iter(history.rows[-1]["validation"].values()))
            expected = by_hand(trained, train)(change(test))
            return (
                None
                if abs(value - expected) <= 1 / 40 + 1e-6
                else f"validation {value:.3f}, by hand {expected:.3f}"
            )


for _name, _settings in VARIANTS.items():

    @registry.add("forward_gnn", f"gcn, {_name}", "solves an easy graph")
    def variant(watch: Watch, settings: dict[str, Any] = _settings) -> str | None:
        train, test = parts()
        trained = made(watch, "forward_gnn", **settings)
        trained.fit(train, epochs=200 if "threshold" in settings else 60, batch_size=1000)
        value = trained.evaluate(test)["accuracy"]
        return None if value > 0.6 else f"accuracy {value:.2f} on an easy graph"

    @registry.add("forward_gnn", f"gcn, {_name}", "evaluate of the training nodes", RIGHT_OR_WARNED | REFUSED)
    def on_train(watch: Watch, settings: dict[str, Any] = _settings) -> str | None:
        train, _ = parts()
        trained = made(watch, "forward_gnn", **settings)
        trained.fit(train, epochs=200 if "threshold" in settings else 60, batch_size=1000)
        watch.end_training(trained.cascade)
        value = trained.evaluate(train)["accuracy"]
        return None if value > 0.6 else f"accuracy {value:.2f} on the nodes that it was trained on"

    @registry.add("forward_gnn", f"gcn, {_name}", "evaluate: features zeroed", RIGHT_OR_REFUSED)
    def variant_zeroed(watch: Watch, settings: dict[str, Any] = _settings) -> str | None:
        train, test = parts()
        trained = made(watch, "forward_gnn", **settings)
        trained.fit(train, epochs=200 if "threshold" in settings else 60, batch_size=1000)
        watch.end_training(trained.cascade)
        before, after = trained.evaluate(test)["accuracy"], trained.evaluate(zeroed(test))["accuracy"]
        return None if before != after else f"accuracy {after:.3f} with and without features"


for _kind in ("sage", "gat"):
    for _trainer in ("forward_gnn", "backprop_gnn"):

        @registry.add(_trainer, _kind, "evaluate: nodes renumbered", RIGHT_OR_REFUSED)
        def renumbered_kind(watch: Watch, trainer: str = _trainer, kind: str = _kind) -> str | None:
            train, test = parts()
            trained = fitted(watch, trainer, train, kind=kind)
            watch.end_training(trained.cascade)
            a, b = trained.evaluate(test)["accuracy"], trained.evaluate(renumbered(test))["accuracy"]
            return None if abs(a - b) <= 1 / 40 + 1e-6 else f"{a:.3f} became {b:.3f} under other numbers"


@registry.add("forward_gnn", "gcn", "classify by hand")
def classified(watch: Watch) -> str | None:
    train, test = parts()
    trained = fitted(watch, "forward_gnn", train)
    assert isinstance(trained, bpfree.ForwardGNN)
    prototypes = trained.prototypes()
    for d in (test, renumbered(test), zeroed(test)):
        a = trained.classify(d.features, d.graph)
        if not torch.allclose(
            a, _single_forward(trained, prototypes, d.features, d.graph.edge_index), atol=1e-4
        ):
            return "classify differs from dense matrices"
    return None


def _odd(trainer: str, text: str, change: Callable[[], Any], expected: frozenset[Outcome]) -> None:
    @registry.add(trainer, "gcn", text, expected)
    def attempt(watch: Watch) -> str | None:
        values = change()
        trained = fitted(watch, trainer, values)
        if not isinstance(values, GraphData):
            return "accepted"
        value = float(trained.evaluate(values)["accuracy"])
        plain = replace(values, features=values.features.float().detach())
        sane = by_hand(trained, plain)(plain)
        return None if abs(value - sane) <= 1 / 25 + 1e-6 else f"evaluate {value:.3f}, by hand {sane:.3f}"


def _pyg() -> Any:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch_geometric.data import Data
    x, edges, y = graph()
    mask = torch.arange(N) < 50
    return Data(x=x, edge_index=edges, y=y, train_mask=mask)


def _raw(**changes: Any) -> Any:
    x, edges, y = graph()
    ids = torch.arange(50)
    values: dict[str, Any] = {
        "features": x,
        "graph": Graph(edges, N),
        "ids": ids,
        "y": y[ids],
        "n_classes": CLASSES,
    } | changes
    return GraphData(**values)


def _edges(change: Callable[[Tensor], Tensor]) -> Any:
    return _raw(graph=Graph(change(graph()[1]), N))


ODD: list[tuple[str, Callable[[], Any], frozenset[Outcome], str]] = [
    ("torch-geometric's Data", _pyg, REFUSED, "GraphData"),
    ("a pair of tensors", lambda: (torch.rand(48, 12), torch.arange(48) % 3), REFUSED, "GraphData"),
    ("boolean mask for ids", lambda: _raw(ids=torch.arange(N) < 50), RIGHT_OR_REFUSED, ""),
    ("negative features", lambda: _raw(features=graph()[0] - 0.5), RIGHT, ""),
    ("self loops", lambda: _edges(lambda e: torch.cat([e, torch.arange(9).repeat(2, 1)], 1)), RIGHT, ""),
    ("isolated nodes", lambda: _edges(lambda e: e[:, (e > 12).all(0)]), RIGHT, ""),
    ("no edge", lambda: _edges(lambda e: e[:, :0]), RIGHT, ""),
    ("directed edges", lambda: _edges(lambda e: e[:, e[0] < e[1]]), RIGHT, ""),
    ("edges twice", lambda: _edges(lambda e: torch.cat([e, e], 1)), RIGHT_OR_REFUSED | RIGHT_OR_WARNED, ""),
    ("int32 edges", lambda: _edges(lambda e: e.int()), RIGHT_OR_REFUSED, ""),
    ("edges turned", lambda: _edges(lambda e: e.T.contiguous()), REFUSED, ""),
    ("edges beyond the nodes", lambda: _edges(lambda e: e + 5), REFUSED, ""),
    ("negative edges", lambda: _edges(lambda e: e - 1), REFUSED, ""),
    ("float64 features", lambda: _raw(features=graph()[0].double()), RIGHT_OR_REFUSED, ""),
    ("integer features", lambda: _raw(features=graph()[0].long()), REFUSED, ""),
    ("sparse features", lambda: _raw(features=graph()[0].to_sparse()), RIGHT_OR_REFUSED, ""),
    ("features that require grad", lambda: _raw(features=graph()[0].requires_grad_()), RIGHT_OR_REFUSED, ""),
    ("features not contiguous", lambda: _raw(features=graph()[0].T.contiguous().T), RIGHT, ""),
    ("NaN in a node's features", lambda: _raw(features=_nan(graph()[0])), REFUSED, ""),
    (
        "rows that sum to zero",
        lambda: _raw(features=graph()[0] - graph()[0].mean(1, keepdim=True)),
        RIGHT,
        "",
    ),
    ("all features zero", lambda: _raw(features=torch.zeros(N, F_IN)), RIGHT_OR_WARNED | REFUSED, ""),
    ("a feature vector for each edge", lambda: _raw(features=torch.rand(N + 3, F_IN)), REFUSED, ""),
    (
        "the first class missing",
        lambda: _raw(y=graph()[2][:50] + 1, n_classes=4),
        RIGHT_OR_WARNED | REFUSED,
        "",
    ),
    ("a class missing", lambda: _raw(y=graph()[2][:50].clamp(max=1)), RIGHT_OR_WARNED | REFUSED, ""),
    ("float labels", lambda: _raw(y=graph()[2][:50].float()), REFUSED, ""),
    ("one-hot labels", lambda: _raw(y=F.one_hot(graph()[2][:50], 3)), REFUSED, ""),
    ("labels of all nodes", lambda: _raw(y=graph()[2]), REFUSED, ""),
    (
        "a node twice",
        lambda: _raw(ids=torch.arange(50).clamp(max=48)),
        RIGHT_OR_REFUSED | RIGHT_OR_WARNED,
        "",
    ),
    ("no node", lambda: _raw(ids=torch.arange(0), y=torch.arange(0)), REFUSED, ""),
    ("one node", lambda: _raw(ids=torch.arange(1), y=graph()[2][:1]), ANY, ""),
    ("numpy features", lambda: _raw(features=graph()[0].numpy()), RIGHT_OR_REFUSED, ""),
]


def _nan(x: Tensor) -> Tensor:
    x[60, 2] = float("nan")
    return x


for _trainer in TRAINERS:
    for _text, _change2, _expected, _says in ODD:
        if _trainer == "backprop_gnn" or _text in (
            "torch-geometric's Data",
            "a class missing",
            "the first class missing",
            "no edge",
            "edges twice",
            "NaN in a node's features",
            "features that require grad",
            "float64 features",
            "negative features",
            "boolean mask for ids",
            "self loops",
            "all features zero",
        ):
            _odd(_trainer, _text, _change2, _expected)


for _trainer in TRAINERS:

    @registry.add(_trainer, "mlp", "a network that is no GNN", REFUSED)
    def no_gnn(watch: Watch, trainer: str = _trainer) -> str | None:
        trainer_of(trainer, torch.nn.Sequential(torch.nn.Linear(12, 3)), watch)
        return "accepted"


@registry.add("mono_forward", "mlp", "GraphData", REFUSED)
def not_a_graph_trainer(watch: Watch) -> str | None:
    from benchmarks.robustness import _nets as nets
    from benchmarks.robustness._compare import row

    trained = trainer_of("mono_forward", row(nets.mlp()), watch)
    trained.fit(parts()[0], epochs=1)
    return "accepted"


@registry.add("backprop_gnn", "gcn", "another graph in a second fit", RIGHT_OR_REFUSED)
def second_graph(watch: Watch) -> str | None:
    train, _ = parts()
    trained = fitted(watch, "backprop_gnn", train)
    other_train, other_test = parts(9)
    trained.fit(other_train, epochs=5, batch_size=1000)
    value = float(trained.evaluate(other_test)["accuracy"])
    expected = by_hand(trained, other_train)(other_test)
    return None if abs(value - expected) <= 1 / 40 else f"evaluate {value:.3f}, by hand {expected:.3f}"


@registry.add("backprop_gnn", "gcn", "predict of nodes")
def predicted(watch: Watch) -> str | None:
    train, test = parts()
    trained = fitted(watch, "backprop_gnn", train)
    scores = gcn(trained, train.features, train.graph.edge_index)
    same = (trained.predict(test.ids) == scores[test.ids].argmax(1)).float().mean().item()
    return None if same > 0.97 else f"predict agrees with dense matrices on {same:.2f} of the nodes"


@registry.add("backprop_gnn", "gcn", "predict of node numbers that there are not", REFUSED)
def predicted_beyond(watch: Watch) -> str | None:
    train, _ = parts()
    trained = fitted(watch, "backprop_gnn", train)
    watch.end_training(trained.cascade)
    trained.predict(torch.tensor([N + 4]))
    return "accepted"


@registry.add("backprop_gnn", "gcn", "predict of features", REFUSED)
def predicted_features(watch: Watch) -> str | None:
    train, _ = parts()
    trained = fitted(watch, "backprop_gnn", train)
    watch.end_training(trained.cascade)
    trained.predict(train.features)
    return "accepted"


@registry.add("load_graph", "digits_graph", "rows of features sum to one")
def normalized(watch: Watch) -> str | None:
    x = bpfree.data.load_graph("digits_graph").train.features
    return None if torch.allclose(x.sum(1), torch.ones(len(x)), atol=1e-4) else "rows do not sum to one"


def cases() -> list[Case]:
    """All cases."""
    return registry.all
