"""Evaluation uses the features, edges and node numbers of the given graph; expected values by hand."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bpfree import BackpropGNN, BadValue, ForwardGNN, HopMLP, HopRidge
from bpfree.data import GraphData
from bpfree.graphs.graph import Graph, unit_rows
from bpfree.trainers import GraphTrainer
from tests.helpers import CLASSES, make_gnn, nodes, pairs, vectors

TRAIN = nodes()
REST = torch.tensor([i for i in range(60) if i not in TRAIN.ids.tolist()])

ARMS: dict[str, Callable[[], GraphTrainer]] = {
    "single_forward": lambda: ForwardGNN(make_gnn(), progress=False),
    "both_ways": lambda: ForwardGNN(make_gnn(), progress=False, direction="both_ways"),
    "prototypes": lambda: ForwardGNN(make_gnn(), progress=False, learnable_prototypes=True),
    "top_to_loss": lambda: ForwardGNN(
        make_gnn(), progress=False, variant="top_to_loss", schedule="simultaneous"
    ),
    "top_to_input": lambda: ForwardGNN(
        make_gnn(), progress=False, variant="top_to_input", schedule="simultaneous", sweeps=4
    ),
    "label_appending": lambda: ForwardGNN(make_gnn(), progress=False, variant="label_appending"),
    "virtual_nodes": lambda: ForwardGNN(make_gnn(), progress=False, variant="virtual_nodes"),
    "backprop": lambda: BackpropGNN(make_gnn(), progress=False),
    "backprop_virtual": lambda: BackpropGNN(make_gnn(), progress=False, virtual=True),
    "hop_mlp": lambda: HopMLP(make_gnn(), progress=False),
    "hop_ridge": lambda: HopRidge(make_gnn(), progress=False),
}


def built(arm: str, data: GraphData = TRAIN) -> GraphTrainer:
    trainer = ARMS[arm]()
    trainer.build_for(data)  # type: ignore[arg-type]
    return trainer


def scores(trainer: GraphTrainer, data: GraphData) -> Tensor:
    return trainer.make_evaluator(data).scores([trainer.cascade.headline])[trainer.cascade.headline]


def other() -> GraphData:
    """A graph of another size, all of whose nodes are samples."""
    found = nodes(n=70, known=70, seed=5)
    return replace(found, ids=torch.arange(70), y=found.features[:, :CLASSES].argmax(1))


def adjacency(edges: Tensor, n: int) -> Tensor:
    """The operator of a GCN, dense."""
    a = torch.eye(n)
    a[edges[1], edges[0]] = 1.0
    scale = a.sum(1).rsqrt()
    return scale.unsqueeze(1) * a * scale


def layers(trainer: GraphTrainer) -> list[tuple[Tensor, Tensor]]:
    return [(conv.lin.weight.detach(), conv.bias.detach()) for conv in trainer.net.convs]  # type: ignore[union-attr, misc]


def states(trainer: GraphTrainer, h: Tensor, a: Tensor) -> list[Tensor]:
    """Outputs of all layers."""
    found = []
    for weight, bias in layers(trainer):
        h = (a @ unit_rows(h) @ weight.T + bias).relu()
        found.append(h)
    return found


def prototypes(trainer: GraphTrainer, both: bool) -> list[Tensor]:
    """States of the virtual nodes on the training graph."""
    virtual = trainer.cascade.encoding.virtual  # type: ignore[union-attr]
    assert isinstance(virtual, Tensor)
    edges = torch.stack([TRAIN.ids, 60 + TRAIN.y])
    edges = torch.cat([edges, edges.flip(0)], 1) if both else edges
    a = adjacency(torch.cat([TRAIN.graph.edge_index, edges], 1), 63)
    return [h[60:] for h in states(trainer, torch.cat([TRAIN.features, virtual]), a)]


def by_hand(arm: str, trainer: GraphTrainer, data: GraphData) -> Tensor:
    """Scores of all nodes of a graph without known labels."""
    n = len(data.features)
    a = adjacency(data.graph.edge_index, n)
    if arm in ("single_forward", "both_ways", "top_to_loss"):
        own, known = states(trainer, data.features, a), prototypes(trainer, arm == "both_ways")
        if arm == "top_to_loss":
            own, known = (
                [torch.stack([h[k], *map(unit_rows, h[k + 1 :])]).mean(0) for k in range(2)]
                for h in (own, known)
            )
        return torch.stack([(h @ p.T).softmax(1) for h, p in zip(own, known, strict=True)]).sum(0)
    if arm == "prototypes":
        known = [loss.prototypes.detach() for loss in trainer.cascade.losses]  # type: ignore[misc]
        pairs_ = zip(states(trainer, data.features, a), known, strict=True)
        return torch.stack([(h @ p.T).softmax(1) for h, p in pairs_]).sum(0)
    if arm == "top_to_input":
        return _swept(trainer, data)
    if arm in ("label_appending", "virtual_nodes"):
        return torch.stack([_goodness(arm, trainer, data, k) for k in range(CLASSES)], 1)
    if arm.startswith("backprop"):
        (w1, b1), (w2, b2) = layers(trainer)
        return a @ (a @ data.features @ w1.T + b1).relu() @ w2.T + b2
    x = unit_rows(data.features)
    phi = torch.cat([x, a @ x, a @ a @ x], 1)
    if arm == "hop_mlp":
        first, _, second = trainer.cascade.units[0].body  # type: ignore[misc]
        return (phi @ first.weight.T + first.bias).relu() @ second.weight.T + second.bias  # type: ignore[no-any-return]
    return trainer.cascade.losses[0].scores(phi)  # type: ignore[return-value]


def _swept(trainer: GraphTrainer, data: GraphData) -> Tensor:
    """The graph in front of the training graph, in two of five sweeps; labels come to the latter alone."""
    n, virtual = len(data.features), trainer.cascade.encoding.virtual  # type: ignore[union-attr]
    assert isinstance(virtual, Tensor)
    x = torch.cat([data.features, TRAIN.features, virtual])
    links = torch.stack([n + TRAIN.ids, n + 60 + TRAIN.y])
    a = adjacency(torch.cat([data.graph.edge_index, n + TRAIN.graph.edge_index, links], 1), n + 63)
    labels = torch.full((n + 63, CLASSES), 1 / CLASSES)
    labels[n + TRAIN.ids] = F.one_hot(TRAIN.y, CLASSES).float()
    labels[n + 60 :] = torch.eye(CLASSES)
    (w1, b1), (w2, b2) = layers(trainer)
    upper, top, total = torch.zeros(n + 63, 16), torch.zeros(n + 63, CLASSES), torch.zeros(n, CLASSES)
    for sweep in range(5):
        first = (a @ torch.cat([unit_rows(x), unit_rows(upper)], 1) @ w1.T + b1).relu()
        upper = (a @ torch.cat([unit_rows(first), unit_rows(top)], 1) @ w2.T + b2).relu()
        top = labels
        if sweep >= 3:
            total += sum((h[:n] @ h[n + 60 :].T).softmax(1) for h in (first, upper))
    return total


def _goodness(arm: str, trainer: GraphTrainer, data: GraphData, k: int) -> Tensor:
    """Goodness of all nodes under one candidate, over all layers."""
    n, edges = len(data.features), data.graph.edge_index
    if arm == "label_appending":
        code = F.one_hot(torch.full((n,), k), CLASSES).float()
        found = states(trainer, torch.cat([data.features, code], 1), adjacency(edges, n))
    else:
        virtual = trainer.cascade.encoding.virtual  # type: ignore[union-attr]
        assert isinstance(virtual, Tensor)
        links = torch.stack([torch.arange(n), torch.full((n,), n + k)])
        a = adjacency(torch.cat([edges, links, links.flip(0)], 1), n + CLASSES)
        found = [h[:n] for h in states(trainer, torch.cat([data.features, virtual]), a)]
    return torch.stack([h.square().sum(1) - 2.0 for h in found]).sum(0)


@pytest.mark.parametrize("arm", ARMS)
def test_another_graph_is_evaluated_as_by_hand(arm: str) -> None:
    trainer, data = built(arm), other()
    if arm == "hop_ridge":
        trainer.fit(TRAIN, epochs=1, batch_size=100)
    expected = by_hand(arm, trainer, data)
    torch.testing.assert_close(scores(trainer, data), expected, rtol=1e-3, atol=1e-4)
    right = (expected.argmax(1) == data.y).float().mean().item()
    assert trainer.evaluate(data)["accuracy"] == pytest.approx(right, abs=0.02)
    assert torch.equal(trainer.predict(data), scores(trainer, data).argmax(1))


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("change", ["features", "edges"])
def test_changed_features_or_edges_are_evaluated_as_by_hand(arm: str, change: str) -> None:
    trainer = built(arm)
    if arm == "hop_ridge":
        trainer.fit(TRAIN, epochs=1, batch_size=100)
    data = replace(TRAIN, ids=REST, y=TRAIN.features[REST, :CLASSES].argmax(1))
    data = (
        replace(data, features=TRAIN.features.flip(0))
        if change == "features"
        else replace(data, graph=Graph(TRAIN.graph.edge_index[:, ::3], 60))
    )
    expected = by_hand(arm, trainer, data)[REST]
    torch.testing.assert_close(scores(trainer, data), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "arm", ["both_ways", "top_to_input", "label_appending", "virtual_nodes", "backprop_virtual"]
)
def test_a_training_node_is_evaluated_without_its_label(arm: str) -> None:
    trainer = built(arm)
    expected = by_hand(arm, trainer, TRAIN)
    torch.testing.assert_close(scores(trainer, TRAIN), expected[TRAIN.ids], rtol=1e-3, atol=1e-4)
    # The scores of a node do not depend on the other samples.
    every = replace(TRAIN, ids=torch.arange(60), y=torch.zeros(60, dtype=torch.long))
    rest = replace(every, ids=REST, y=every.y[REST])
    together = scores(trainer, every)
    torch.testing.assert_close(together[TRAIN.ids], scores(trainer, TRAIN), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(together[REST], scores(trainer, rest), rtol=1e-3, atol=1e-4)
    assert torch.equal(trainer.predict(torch.arange(60)), together.argmax(1))


@pytest.mark.parametrize("arm", ARMS)
def test_labels_of_evaluated_samples_have_no_effect(arm: str) -> None:
    trainer, data = built(arm), other()
    permuted = replace(data, y=(data.y + 1) % CLASSES)
    assert torch.equal(scores(trainer, data), scores(trainer, permuted))


@pytest.mark.parametrize("arm", ARMS)
def test_copies_of_the_training_graph_are_the_training_graph(arm: str) -> None:
    trainer = built(arm)
    rest = replace(TRAIN, ids=REST, y=TRAIN.y[:20])
    order = torch.randperm(TRAIN.graph.n_edges, generator=torch.Generator().manual_seed(0))
    copy = replace(
        rest, features=TRAIN.features.clone(), graph=Graph(TRAIN.graph.edge_index[:, order].clone(), 60)
    )
    assert torch.equal(scores(trainer, rest), scores(trainer, copy))


@pytest.mark.parametrize("arm", ["single_forward", "prototypes", "backprop", "hop_mlp", "hop_ridge"])
def test_renumbered_nodes_are_the_same_nodes(arm: str) -> None:
    trainer = built(arm)
    trainer.fit(TRAIN, epochs=2, batch_size=100)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    place = order.argsort()
    permuted = replace(
        TRAIN,
        features=TRAIN.features[order],
        graph=Graph(place[TRAIN.graph.edge_index], 60),
        ids=place[TRAIN.ids],
    )
    torch.testing.assert_close(scores(trainer, permuted), scores(trainer, TRAIN), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["gcn", "sage", "gat"])
@pytest.mark.parametrize("cache", [True, False])
def test_validation_on_another_graph_is_what_evaluate_returns(kind: Any, cache: bool) -> None:
    data = other()
    for settings in ({}, {"variant": "label_appending"}, {"direction": "both_ways"}):
        trainer = ForwardGNN(make_gnn(kind), progress=False, cache=cache, **settings)  # type: ignore[arg-type]
        history = trainer.fit(TRAIN, data, epochs=3, batch_size=100, restore_best=False)
        found = trainer.evaluate(data)
        last = history.rows[-1]["validation"]
        assert last[trainer.cascade.headline] == pytest.approx(found["accuracy"], abs=0.02)


@pytest.mark.parametrize("arm", ["single_forward", "top_to_loss", "both_ways"])
def test_classify_and_evaluate_agree_on_another_graph(arm: str) -> None:
    trainer, data = built(arm), other()
    assert isinstance(trainer, ForwardGNN)
    if arm == "top_to_loss":
        with pytest.raises(BadValue, match="single_forward"):
            trainer.classify(data.features, data.graph)
        return
    torch.testing.assert_close(scores(trainer, data), trainer.classify(data.features, data.graph))


def test_pairs_are_evaluated_on_the_given_graph_and_predicted_as_zero_or_one() -> None:
    data = pairs()
    moved = replace(data, features=data.features.flip(0), graph=nodes(seed=3).graph)
    for trainer in (
        ForwardGNN(make_gnn(), progress=False, variant="link"),
        ForwardGNN(
            make_gnn(), progress=False, variant="link_top_to_input", schedule="simultaneous", sweeps=4
        ),
        BackpropGNN(make_gnn(), progress=False),
    ):
        trainer.build_for(data)  # type: ignore[arg-type]
        fresh = type(trainer)(make_gnn(), progress=False, **_settings(trainer))
        fresh.build_for(moved)  # type: ignore[arg-type]
        fresh.cascade.load_state_dict(trainer.cascade.state_dict())
        torch.testing.assert_close(scores(trainer, moved), scores(fresh, moved))
        assert not torch.allclose(scores(trainer, moved), scores(trainer, data))
        first, last = trainer.cascade.sweeps
        mean = scores(trainer, data).squeeze(1) / ((last - first) * len(trainer.cascade.units))
        assert torch.equal(trainer.predict(data), (mean > 0.5).long())
        assert torch.equal(trainer.predict(data.ids), trainer.predict(data))


def _settings(trainer: GraphTrainer) -> dict[str, Any]:
    names = ("variant", "schedule", "sweeps") if isinstance(trainer, ForwardGNN) else ()
    return {name: getattr(trainer.settings, name) for name in names}


def test_nodes_are_given_by_numbers_or_by_a_mask() -> None:
    trainer = built("single_forward")
    mask = torch.zeros(60, dtype=torch.bool)
    mask[REST] = True
    assert torch.equal(trainer.predict(mask), trainer.predict(REST))
    assert torch.equal(trainer.predict(torch.tensor([7, 3, 7])), trainer.predict(torch.arange(60))[[7, 3, 7]])
    assert torch.equal(trainer.predict(mask.numpy()), trainer.predict(mask))
    assert torch.equal(trainer.predict(torch.arange(60).numpy()), trainer.predict(torch.arange(60)))
    for bad, word in (
        (torch.tensor([60]), "60"),
        (torch.tensor([-1]), "-1"),
        (torch.tensor([1.0]), "float32"),
        (mask.long(), "bool"),
        (mask[:59], "59"),
        (torch.tensor([[1, 2]]), "built for numbers of nodes"),
        (TRAIN.features, "built for numbers of nodes"),
        (torch.tensor(3), "expected a tensor"),
        ([1, 2], "expected a tensor"),
    ):
        with pytest.raises(BadValue, match=word):
            trainer.predict(bad)


def test_data_of_another_kind_are_refused_before_training() -> None:
    trainer = built("single_forward")
    for bad, word in (
        (vectors(), "GraphData"),
        (pairs(), "cannot evaluate"),
        (nodes(width=9), "cannot evaluate"),
        (replace(TRAIN, features=TRAIN.features.clone().fill_(torch.nan)), "NaN"),
    ):
        with pytest.raises(BadValue, match=word):
            trainer.evaluate(bad)
    for bad, word in ((vectors(), "GraphData"), (pairs(), "validation"), (nodes(width=9), "validation")):
        with pytest.raises(BadValue, match=word):
            trainer.fit(TRAIN, bad, epochs=1)
    for arm in ("hop_mlp", "hop_ridge"):
        with pytest.raises(BadValue, match="pairs"):
            built(arm, pairs())
    with pytest.raises(BadValue, match="cannot train on"):
        built("backprop").build_for(pairs())  # type: ignore[arg-type]
    twice = torch.cat([TRAIN.ids, TRAIN.ids[:1]])
    with pytest.raises(BadValue, match="twice"):
        trainer.fit(replace(TRAIN, ids=twice, y=torch.cat([TRAIN.y, TRAIN.y[:1]])), epochs=1)
    only = replace(pairs(), y=torch.ones(40, dtype=torch.long))
    links = ForwardGNN(make_gnn(), progress=False, variant="link")
    with pytest.raises(BadValue, match="label 1"):
        links.fit(pairs(), only, epochs=1)
    links.build_for(pairs())  # type: ignore[arg-type]
    with pytest.raises(BadValue, match="label 1"):
        links.evaluate(only)


def test_a_refused_graph_leaves_the_trainer_as_it_was() -> None:
    trainer = ForwardGNN(make_gnn(), progress=False)
    with pytest.raises(BadValue, match="variant"):
        trainer.build_for(pairs())  # type: ignore[arg-type]
    trainer.fit(TRAIN, epochs=1, batch_size=100)
    before = scores(trainer, TRAIN)
    with pytest.raises(BadValue):
        trainer.build_for(nodes(width=9))  # type: ignore[arg-type]
    assert trainer.train_data.features.shape == (60, 12)
    assert torch.equal(scores(trainer, TRAIN), before)


def test_features_of_any_precision_are_accepted() -> None:
    trainer, twin = built("backprop"), built("backprop", replace(TRAIN, features=TRAIN.features.double()))
    double = replace(TRAIN, features=TRAIN.features.double())
    assert torch.equal(scores(trainer, TRAIN), scores(twin, TRAIN))
    assert trainer.evaluate(double) == trainer.evaluate(TRAIN)
    twin.fit(double, epochs=1, batch_size=100)
    trainer.fit(TRAIN, epochs=1, batch_size=100)
    assert torch.equal(scores(trainer, TRAIN), scores(twin, TRAIN))


def test_changes_in_place_are_refused() -> None:
    data = replace(TRAIN, features=TRAIN.features.clone(), graph=Graph(TRAIN.graph.edge_index.clone(), 60))
    for arm in ("single_forward", "backprop"):
        trainer = built(arm, data)
        trainer.evaluate(data)
        data.features.mul_(2)
        with pytest.raises(BadValue, match="features was changed in place"):
            trainer.evaluate(data)
        trainer.fit(data, epochs=1, batch_size=100)
        trainer.evaluate(data)
    data.graph.edge_index.fill_(3)
    with pytest.raises(BadValue, match="edge_index was changed in place"):
        trainer.evaluate(data)


def test_shared_samples_and_classes_without_samples_are_warned_about_once() -> None:
    with pytest.warns(UserWarning, match="9 of 9 validation samples") as seen:
        ForwardGNN(make_gnn(), progress=False).fit(TRAIN, TRAIN.take(torch.arange(9)), epochs=3)
    assert len([w for w in seen if "no better than" not in str(w.message)]) == 1
    links = pairs()
    apart = replace(links, ids=links.ids.flip(0)[:30], y=links.y.flip(0)[:30])
    with pytest.warns(UserWarning, match="validation") as seen:
        ForwardGNN(make_gnn(), progress=False, variant="link").fit(links, apart, epochs=1, batch_size=100)
    assert [str(w.message).split()[0] for w in seen] == ["30", "10"]
    with pytest.warns(UserWarning, match="no training sample has the class 3, 4, of 5 classes"):
        HopRidge(make_gnn(), progress=False).fit(replace(TRAIN, n_classes=5), epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".* no better than")
        rest = replace(TRAIN, ids=REST, y=TRAIN.y[:20])
        ForwardGNN(make_gnn(), progress=False).fit(TRAIN, rest, epochs=1)
        ForwardGNN(make_gnn(), progress=False).fit(TRAIN, TRAIN, epochs=1)
        # The same numbers are other nodes of another graph.
        ForwardGNN(make_gnn(), progress=False).fit(TRAIN, other(), epochs=1)


def test_a_step_accepts_training_nodes_with_their_labels_alone() -> None:
    for arm in ("label_appending", "virtual_nodes"):
        trainer = built(arm)
        trainer.step(TRAIN.ids[:5], TRAIN.y[:5])
        with pytest.raises(BadValue, match="not among the training data"):
            trainer.step(REST[:5], TRAIN.y[:5])
        with pytest.raises(BadValue, match="not among the training data"):
            trainer.step(TRAIN.ids[:5], (TRAIN.y[:5] + 1) % CLASSES)
    trainer = built("single_forward")
    with pytest.raises(BadValue, match="mask"):
        trainer.step(torch.ones(60, dtype=torch.bool), TRAIN.y)
    with pytest.raises(BadValue, match="built for numbers of nodes"):
        trainer.step(torch.tensor([[1, 2]]), torch.tensor([1]))


@pytest.mark.parametrize("arm", ARMS)
def test_a_trainer_can_be_fitted_to_one_graph_after_another(arm: str) -> None:
    trainer, data = built(arm), other()
    trainer.fit(TRAIN, epochs=1, batch_size=100)
    trainer.step(TRAIN.ids, TRAIN.y)
    trainer.fit(data, epochs=1, batch_size=100)
    trainer.step(data.ids, data.y)
    fresh = built(arm, data)
    fresh.cascade.load_state_dict(trainer.cascade.state_dict())
    rest = replace(TRAIN, ids=REST, y=TRAIN.y[:20])
    assert torch.equal(scores(trainer, data), scores(fresh, data))
    assert torch.equal(scores(trainer, rest), scores(fresh, rest))


@pytest.mark.parametrize("arm", ["single_forward", "virtual_nodes", "label_appending", "hop_mlp"])
def test_a_saved_trainer_is_the_same_or_is_refused(arm: str, tmp_path: Any) -> None:
    path, rest = tmp_path / "gnn.safetensors", replace(TRAIN, ids=REST, y=TRAIN.y[:20])
    trainer = built(arm)
    trainer.fit(TRAIN, epochs=2, batch_size=100)
    trainer.save(path)
    # Virtual nodes have random features, of another seed here.
    twin = type(trainer)(make_gnn(), progress=False, seed=7, **_variant(trainer))
    with pytest.raises(BadValue, match="build_for"):
        twin.load(path)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    twin.build_for(TRAIN.take(order))  # type: ignore[arg-type]
    twin.load(path)
    torch.testing.assert_close(scores(twin, rest), scores(trainer, rest))
    elsewhere = built(arm, other())
    if arm == "hop_mlp":
        elsewhere.load(path)
        assert torch.equal(scores(elsewhere, rest), scores(trainer, rest))
        return
    with pytest.raises(BadValue, match="another graph"):
        elsewhere.load(path)


def _variant(trainer: GraphTrainer) -> dict[str, Any]:
    return {"variant": trainer.settings.variant} if isinstance(trainer, ForwardGNN) else {}


def test_features_of_extreme_length_are_refused_or_warned_about() -> None:
    large, small = (replace(TRAIN, features=TRAIN.features * by) for by in (1e30, 1e-9))
    for arm in ("single_forward", "backprop", "hop_ridge"):
        with pytest.raises(BadValue, match=r"features of up to 1e\+30 are too large"):
            ARMS[arm]().fit(large, epochs=1)
        with pytest.raises(BadValue, match="too large"):
            built(arm).evaluate(large)
    with pytest.warns(UserWarning, match="a length above"):
        ARMS["single_forward"]().fit(small, epochs=1)
    built("backprop", replace(TRAIN, features=TRAIN.features.clone().requires_grad_())).evaluate(TRAIN)


def test_the_model_and_classify_check_their_arguments() -> None:
    trainer = built("single_forward")
    assert isinstance(trainer, ForwardGNN)
    assert trainer.model(REST).shape == (20, CLASSES)
    for bad in (torch.tensor([60]), torch.tensor([-1]), torch.ones(60, dtype=torch.bool)):
        with pytest.raises(BadValue, match=r"0\.\.59"):
            trainer.model(bad)
    for prototypes_ in ([torch.rand(CLASSES, 5)] * 2, trainer.prototypes()[:1]):
        with pytest.raises(BadValue, match="prototypes have the shapes"):
            trainer.classify(TRAIN.features, TRAIN.graph, prototypes_)
    with pytest.raises(BadValue, match="cannot evaluate"):
        trainer.classify(TRAIN.features[:, :9], TRAIN.graph)


def test_the_smallest_graphs_train() -> None:
    none = torch.zeros(2, 0, dtype=torch.long)
    for n in (1, 2, 5):
        x, ids = torch.rand(n, 12, generator=torch.Generator().manual_seed(0)), torch.arange(n)
        data = GraphData(x, Graph(none, n), ids, torch.arange(n) % 2, 2)
        for make in ARMS.values():
            trainer = make()
            with warnings.catch_warnings():
                # One node has one class.
                warnings.filterwarnings(
                    "ignore", message=".*no training sample has the class 1" if n == 1 else "-"
                )
                trainer.fit(data, epochs=1, batch_size=100)
            assert trainer.predict(data).shape == (n,)
            assert scores(trainer, data).isfinite().all()


@pytest.mark.parametrize("kind", [ForwardGNN, BackpropGNN, HopMLP])
def test_a_step_on_all_nodes_uses_the_given_labels(kind: Any) -> None:
    other_labels = (TRAIN.y + 1) % CLASSES
    permuted = torch.arange(len(TRAIN)).flip(0)
    found = []
    for x, y in (
        (TRAIN.ids, TRAIN.y),
        (TRAIN.ids[permuted], TRAIN.y[permuted]),
        (TRAIN.ids, other_labels),
        (TRAIN.ids[:-1], other_labels[:-1]),
    ):
        trainer = kind(make_gnn(), progress=False)
        trainer.build_for(TRAIN)
        found.append(trainer.step(x, y, 0)[0].item())
    assert found[0] == found[1]
    assert abs(found[2] - found[0]) > 1e-4
    # One node less is a loss of nearly the same.
    assert abs(found[3] - found[2]) < abs(found[2] - found[0])


def test_the_old_name_of_the_training_data_is_accepted() -> None:
    trainer = built("single_forward")
    with pytest.warns(FutureWarning, match="train_data"):
        assert trainer.bound is trainer.train_data
