"""ForwardGNN by hand on dense matrices, the labels it uses, its cost, and other graphs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bpfree import BadValue, ForwardGNN, _seeds
from bpfree.data import GraphData
from bpfree.encodings.graph import GraphEncoding
from bpfree.graphs.graph import Graph, unit_rows
from bpfree.graphs.nodes import Nodes
from bpfree.graphs.sparse import SparseMatrix
from bpfree.meters import saved_for_backward
from bpfree.trainers.forward_gnn import LINKS, TOP_DOWN, Variant
from tests.helpers import CLASSES, make_gnn, make_mlp, nodes, pairs, vectors


def built(
    data: Any = None, kind: Any = "gcn", hidden: tuple[int, ...] = (16, 16), **settings: Any
) -> ForwardGNN:
    trainer = ForwardGNN(make_gnn(kind, hidden), progress=False, **settings)
    trainer.build_for(nodes() if data is None else data)
    return trainer


def augmented(data: GraphData, both: bool = False) -> tuple[Tensor, Tensor]:
    """Features with random virtual ones, and the dense normalised adjacency, of the trainer with seed 0."""
    n, k = len(data.features), data.n_classes
    stream = _seeds.generator(torch.device("cpu"), 0, "virtual features")
    x = torch.cat([data.features, torch.randn(k, data.features.shape[1], generator=stream)])
    a = torch.eye(n + k)
    a[data.graph.edge_index[1], data.graph.edge_index[0]] = 1.0
    a[n + data.y, data.ids] = 1.0
    if both:
        a[data.ids, n + data.y] = 1.0
    scale = a.sum(1).rsqrt()
    return x, scale.unsqueeze(1) * a * scale


def others(data: GraphData) -> GraphData:
    """The nodes that are not in ``data``."""
    rest = torch.ones(data.graph.n_nodes, dtype=torch.bool).index_fill(0, data.ids, False)
    return replace(data, ids=rest, y=data.features[:, :CLASSES].argmax(1))


@pytest.mark.parametrize("direction", ["one_way", "both_ways"])
def test_a_greedy_run_is_the_published_one(direction: Any) -> None:
    data, epochs, lr = nodes(), 3, 1e-2
    trainer = built(direction=direction, lr=lr)
    weights = [[p.detach().clone().requires_grad_() for p in conv.parameters()] for conv in trainer.net.convs]
    history = trainer.fit(data, epochs=epochs, batch_size=100)
    h, a = augmented(data, direction == "both_ways")
    losses: list[float] = []
    total = torch.zeros(60, CLASSES)
    for bias, weight in weights:
        optimizer = torch.optim.Adam([bias, weight], lr=lr, weight_decay=5e-4)
        z = a @ unit_rows(h.detach())
        for _ in range(epochs):
            out = (z @ weight.T + bias).relu()
            loss = F.cross_entropy(out[data.ids] @ out[60:].T, data.y)
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        h = (z @ weight.T + bias).relu()
        total += (h[:60] @ h[60:].T).softmax(1).detach()
    found = [row["loss"][0] for row in history.rows]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(losses), rtol=1e-4, atol=1e-5)
    scores = trainer.cascade(torch.arange(60)).detach()
    torch.testing.assert_close(scores, total, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["gcn", "sage", "gat"])
def test_one_way_edges_leave_real_nodes_as_they_are(kind: Any) -> None:
    data = nodes()
    for direction, same in (("one_way", True), ("both_ways", False)):
        trainer = built(kind=kind, direction=direction)
        encoding = trainer.cascade.encoding
        assert isinstance(encoding, GraphEncoding)
        plain = GraphEncoding(data.features, data.graph, data.ids, data.y, CLASSES).nodes(None)
        shown = encoding.nodes(None)
        with torch.no_grad():
            for block in trainer.cascade.units:
                plain, shown = plain.next_layer(block(plain)), shown.next_layer(block(shown))
        equal = torch.allclose(shown.states.states[0][:60], plain.states.states[0], rtol=1e-5, atol=1e-6)
        assert equal == same


def test_a_step_reads_no_edge_once_the_aggregate_is_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    multiply = SparseMatrix.__matmul__

    def count(self: SparseMatrix, x: Tensor) -> Tensor:
        calls.append(self.shape)
        return multiply(self, x)

    monkeypatch.setattr(SparseMatrix, "__matmul__", count)
    seen = []
    for epochs in (1, 7):
        trainer = built(hidden=(16, 16, 16))
        calls.clear()
        trainer.fit(nodes(), nodes(seed=1).take(torch.arange(9)), epochs=epochs, batch_size=16, patience=3)
        seen.append(len(calls))
    assert seen[0] == seen[1]
    uncached = built(cache=False)
    calls.clear()
    uncached.fit(nodes(), epochs=7, batch_size=16)
    assert len(calls) > 3 * seen[1]


@pytest.mark.parametrize("variant", get_args(Variant))
def test_building_propagates_nothing_over_the_graph(variant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, multiply = list[int](), SparseMatrix.__matmul__

    def look(self: SparseMatrix, x: Tensor) -> Tensor:
        seen.append(self.shape[0])
        return multiply(self, x)

    monkeypatch.setattr(SparseMatrix, "__matmul__", look)
    schedule = "simultaneous" if variant in TOP_DOWN else "greedy"
    trainer = built(pairs() if variant in LINKS else nodes(), variant=variant, schedule=schedule)
    assert seen and max(seen) <= 2 + CLASSES
    seen.clear()
    trainer.cascade(trainer.train_data.ids)
    assert seen and max(seen) >= 60


def test_the_aggregate_is_computed_again_for_another_graph() -> None:
    data = nodes()
    trainer = built(data)
    trainer.fit(data, epochs=1, batch_size=100)
    fewer = replace(data, graph=Graph(data.graph.edge_index[:, :40], 60))
    trainer.fit(fewer, epochs=1, batch_size=100)
    fresh = built(fewer)
    fresh.cascade.load_state_dict(trainer.cascade.state_dict())
    ids = torch.arange(60)
    torch.testing.assert_close(trainer.cascade(ids), fresh.cascade(ids))


def saved(depth: int, n: int) -> int:
    trainer = built(nodes(n), hidden=(16,) * depth)
    with saved_for_backward() as meter:
        trainer.fit(nodes(n), epochs=1, batch_size=100)
    return meter.peak_bytes


def test_bytes_saved_grow_neither_with_depth_nor_with_nodes() -> None:
    few = saved(2, 60)
    assert saved(16, 60) == few
    assert saved(2, 3000) <= 1.05 * few


def test_validation_labels_have_no_effect() -> None:
    train, other = nodes(), torch.tensor([i for i in range(60) if i not in nodes().ids.tolist()])
    validation = GraphData(train.features, train.graph, other, torch.zeros(20, dtype=torch.long), CLASSES)
    for settings in ({}, {"variant": "label_appending"}, {"variant": "virtual_nodes"}):
        runs = []
        for y in (validation.y, validation.y + 1):
            trainer = built(**settings)
            trainer.fit(train, replace(validation, y=y), epochs=2, batch_size=100, restore_best=False)
            runs.append(trainer.cascade(other))
        assert torch.equal(*runs)


@pytest.mark.parametrize("learnable", [False, True])
def test_weights_and_prototypes_alone_classify_another_graph(learnable: bool) -> None:
    data = nodes()
    trainer = built(learnable_prototypes=learnable, lr=1e-2)
    trainer.fit(data, epochs=5, batch_size=100)
    prototypes = trainer.prototypes()
    assert [tuple(p.shape) for p in prototypes] == [(CLASSES, 16)] * 2
    expected = trainer.cascade(torch.arange(60))
    torch.testing.assert_close(trainer.classify(data.features, data.graph, prototypes), expected)
    # A graph of two copies without an edge between them.
    twice = torch.cat([data.graph.edge_index, data.graph.edge_index + 60], 1)
    found = trainer.classify(data.features.repeat(2, 1), Graph(twice, 120))
    torch.testing.assert_close(found, expected.repeat(2, 1))
    with pytest.raises(BadValue, match="top_to_loss"):
        built(variant="top_to_loss", schedule="simultaneous").prototypes()


def test_the_sweeps_of_top_to_input_are_those_by_hand() -> None:
    data = nodes()
    trainer = built(variant="top_to_input", schedule="simultaneous", sweeps=4)
    rest = others(data)
    found = trainer.make_evaluator(rest).scores(["sum_probabilities"])
    x, a = augmented(data)
    labels = torch.full((63, CLASSES), 1 / CLASSES)
    labels[data.ids] = F.one_hot(data.y, CLASSES).float()
    labels[60:] = torch.eye(CLASSES)
    (b1, w1), (b2, w2) = ([p.detach() for p in conv.parameters()] for conv in trainer.net.convs)
    upper, top, total = torch.zeros(63, 16), torch.zeros(63, CLASSES), 0
    for sweep in range(5):
        first = (a @ torch.cat([unit_rows(x), unit_rows(upper)], 1) @ w1.T + b1).relu()
        upper = (a @ torch.cat([unit_rows(first), unit_rows(top)], 1) @ w2.T + b2).relu()
        top = labels
        if sweep >= 3:
            total = total + sum((h[rest.ids] @ h[60:].T).softmax(1) for h in (first, upper))
    torch.testing.assert_close(found["sum_probabilities"], total)


def test_top_to_loss_averages_its_output_and_all_states_above() -> None:
    data = nodes()
    trainer = built(variant="top_to_loss", schedule="simultaneous", hidden=(16, 16, 16))
    found = trainer.make_evaluator(data).scores(["sum_probabilities"])
    h, a = augmented(data)
    outputs = []
    for conv in trainer.net.convs:
        bias, weight = (p.detach() for p in conv.parameters())
        h = (a @ unit_rows(h) @ weight.T + bias).relu()
        outputs.append(h)
    total = torch.zeros(40, CLASSES)
    for k, own in enumerate(outputs):
        m = torch.stack([own, *(unit_rows(above) for above in outputs[k + 1 :])]).mean(0)
        total += (m[data.ids] @ m[60:].T).softmax(1)
    torch.testing.assert_close(found["sum_probabilities"], total)


class ByHand:
    """The layers of a trainer with seed 0, which take single steps, and their losses.

    Layer j maps states j - 1 to states j; states 0 are the features.
    """

    def __init__(self, trainer: ForwardGNN, data: GraphData, lr: float) -> None:
        x, self.a = augmented(data)
        self.data, self.depth = data, len(trainer.net.convs)
        self.states = {0: x}
        self.losses: dict[int, list[float]] = {j + 1: [] for j in range(self.depth)}
        self.layers, self.optimizers = {}, {}
        for j, conv in enumerate(trainer.net.convs, 1):
            self.layers[j] = [p.detach().clone().requires_grad_() for p in conv.parameters()]
            self.optimizers[j] = torch.optim.Adam(self.layers[j], lr=lr, weight_decay=5e-4)

    def step(self, j: int, rows: Tensor, above: list[Tensor]) -> Tensor:
        """A step of layer j; returns its output before it."""
        bias, weight = self.layers[j]
        output = (self.a @ rows @ weight.T + bias).relu()
        m = torch.stack([output, *above]).mean(0)
        loss = F.cross_entropy(m[self.data.ids] @ m[60:].T, self.data.y)
        self.losses[j].append(loss.item())
        self.optimizers[j].zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizers[j].step()
        return output.detach()

    def compare(self, rows: list[dict[str, Any]], losses: dict[int, list[float]]) -> None:
        """Compare the losses of a history's epochs with ``losses``."""
        found = torch.tensor([row["loss"] for row in rows]).T
        expected = torch.tensor([losses[j + 1][: len(rows)] for j in range(self.depth)])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depth", [2, 3])
def test_top_to_input_trains_as_in_the_papers_alternation(depth: int) -> None:
    # There, layers of even number step first, and then the others, on the states after that. One forward pass
    # without feedback precedes the first round; here, the lowest layer takes a step in it.
    data, lr = nodes(), 1e-2
    trainer = built(variant="top_to_input", schedule="simultaneous", hidden=(16,) * depth, lr=lr)
    hand = ByHand(trainer, data, lr)
    history = trainer.fit(data, epochs=4, batch_size=100)
    labels = torch.full((63, CLASSES), 1 / CLASSES)
    labels[data.ids] = F.one_hot(data.y, CLASSES).float()
    labels[60:] = torch.eye(CLASSES)
    hand.states |= {j: torch.zeros(63, 16) for j in range(1, depth + 1)} | {depth + 1: labels}

    def turn(j: int) -> None:
        below, above = hand.states[j - 1], hand.states[j + 1]
        hand.states[j] = hand.step(j, torch.cat([unit_rows(below), unit_rows(above)], 1), [])

    turn(1)
    for _ in range(4):
        for j in [*range(2, depth + 1, 2), *range(1, depth + 1, 2)]:
            turn(j)
    hand.compare(history.rows, hand.losses)


def test_top_to_loss_trains_all_layers_at_once_on_the_states_of_the_step_before() -> None:
    data, lr = nodes(), 1e-2
    trainer = built(variant="top_to_loss", schedule="simultaneous", hidden=(16, 16, 16), lr=lr)
    hand = ByHand(trainer, data, lr)
    history = trainer.fit(data, epochs=4, batch_size=100)
    for step in range(4):
        before, after = dict(hand.states), dict(hand.states)
        for j in (1, 2, 3):
            # There are no states before the first step: those below are computed in it, those above missing.
            below = before[j - 1] if step else after[j - 1]
            above = [before[k] for k in range(j + 1, 4)] if step else []
            after[j] = unit_rows(hand.step(j, unit_rows(below), above))
        hand.states = after
    hand.compare(history.rows, hand.losses)


def test_wrong_labels_as_edges_continue_from_the_true_states_and_as_features_from_their_own() -> None:
    for variant, states in (("virtual_nodes", 1), ("label_appending", CLASSES)):
        encoding = built(variant=variant).cascade.encoding
        assert isinstance(encoding, GraphEncoding)
        trainer = built(variant=variant)
        above = trainer.cascade.units[0].next_input(encoding.nodes(None))
        assert isinstance(above, Nodes)
        assert (len(above.states.states), above.states.n_variants) == (states, CLASSES)


def test_variants_learn_what_is_easy() -> None:
    data = nodes(200, known=120)
    # Nodes are classified by their own features: there are no edges but the virtual ones.
    data = replace(data, graph=Graph(torch.zeros(2, 0, dtype=torch.long), 200))
    cases: list[dict[str, Any]] = [
        {},
        {"learnable_prototypes": True},
        {"variant": "top_to_loss", "schedule": "simultaneous"},
        {"variant": "label_appending"},
    ]
    rest = torch.tensor([i for i in range(200) if i not in data.ids.tolist()])
    test = replace(data, ids=rest, y=data.features[rest, :CLASSES].argmax(1))
    for settings in cases:
        trainer = built(data, lr=1e-2, **settings)
        trainer.fit(data, epochs=150, batch_size=1000)
        assert trainer.evaluate(test)["accuracy"] > 0.75, settings


def test_links_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    place = torch.rand(120, 2, generator=generator)
    x = torch.cat([place, 1 - place, place.square()], 1)
    near = (torch.cdist(place, place) < 0.15).fill_diagonal_(False)
    edges = near.nonzero().T
    others = torch.randint(120, (2, edges.shape[1]), generator=generator)
    y = torch.cat([torch.ones(edges.shape[1]), torch.zeros(edges.shape[1])]).long()
    data = GraphData(x, Graph(edges, 120), torch.cat([edges, others], 1).T.contiguous(), y, 2)
    greedy, together = "greedy", "simultaneous"
    cases = {"link": greedy, "link_goodness": greedy, "link_top_to_input": together}
    for variant, schedule in cases.items():
        trainer = built(data, variant=variant, schedule=schedule, lr=1e-2)
        trainer.fit(data, epochs=60, batch_size=10_000)
        assert trainer.evaluate(data)["roc_auc"] > 0.85, variant


def test_settings_that_exclude_each_other_are_refused() -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"variant": "top_to_loss"}, "simultaneous"),
        ({"variant": "label_appending", "schedule": "simultaneous"}, "greedy"),
        ({"variant": "label_appending", "learnable_prototypes": True}, "learnable_prototypes"),
        ({"variant": "link"}, "nodes"),
    ]
    for settings, word in refused:
        with pytest.raises(BadValue, match=word):
            built(**settings)
    with pytest.raises(BadValue, match="pairs"):
        built(pairs())
    with pytest.raises(BadValue, match="GNN"):
        ForwardGNN(make_mlp())
    with pytest.raises(BadValue, match="load_graph"):
        ForwardGNN(make_gnn(), progress=False).fit(vectors())
    with pytest.raises(BadValue, match="cannot train on"):
        built().fit(nodes(width=9))


def test_a_saved_trainer_loads_into_one_built_for_the_graph(tmp_path: Any) -> None:
    trainer = built()
    trainer.fit(nodes(), epochs=2, batch_size=100)
    trainer.save(tmp_path / "gnn.safetensors")
    other = built(seed=0)
    other.load(tmp_path / "gnn.safetensors")
    assert torch.equal(other.predict(torch.arange(60)), trainer.predict(torch.arange(60)))
    with pytest.raises(BadValue, match="build_for"):
        ForwardGNN(make_gnn(), progress=False).load(tmp_path / "gnn.safetensors", (12,))


@pytest.mark.parametrize("variant", ["top_to_loss", "top_to_input"])
def test_a_second_fit_starts_without_the_states_of_the_first(variant: Any) -> None:
    first, second = (built(variant=variant, schedule="simultaneous") for _ in range(2))
    first.fit(nodes(), epochs=2, batch_size=60)

    second.cascade.load_state_dict(first.cascade.state_dict())
    runs = [trainer.fit(nodes(), epochs=2, batch_size=60) for trainer in (first, second)]
    assert runs[0].rows == runs[1].rows
    for ours, theirs in zip(first.cascade.parameters(), second.cascade.parameters(), strict=True):
        assert torch.equal(ours, theirs)
