"""The baselines on graphs against plain loops of torch-geometric and scikit-learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge

from bpfree import BackpropGNN, HopMLP, HopRidge
from bpfree.data import GraphData
from bpfree.graphs.graph import Graph, unit_rows
from bpfree.graphs.nodes import Nodes
from bpfree.graphs.sparse import SparseMatrix
from bpfree.graphs.states import NodeStates
from bpfree.nn import Hops
from tests.helpers import CLASSES, make_gnn, nodes, pairs


@pytest.mark.parametrize("kind", ["gcn", "sage", "gat"])
def test_backpropagation_is_a_plain_loop_of_torch_geometric(kind: Any) -> None:
    data = nodes()
    trainer = BackpropGNN(make_gnn(kind), progress=False)
    trainer.build_for(data)  # type: ignore[arg-type]
    start = {name: p.clone() for name, p in trainer.net.state_dict().items()}
    history = trainer.fit(data, epochs=3, batch_size=100)
    net = make_gnn(kind)
    net.make_layers([12, 16], [16, CLASSES])
    net.load_state_dict(start)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, weight_decay=5e-4)
    losses = []
    for _ in range(3):
        loss = F.cross_entropy(net(data.features, data.graph.edge_index)[data.ids], data.y)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(torch.tensor([row["loss"][0] for row in history.rows]), torch.tensor(losses))


@pytest.mark.parametrize("kind", ["gcn", "sage", "gat"])
@pytest.mark.parametrize("sparse", [False, True])
def test_unusual_edges_have_the_same_effect_as_in_torch_geometric(kind: Any, sparse: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    some, loops = torch.randint(20, (2, 40), generator=generator), torch.arange(7).repeat(2, 1)
    x = torch.rand(20, 200 if sparse else 12, generator=generator)
    x = x * (torch.rand(x.shape, generator=generator) < 0.05) if sparse else x
    for edges in (
        torch.cat([some, some[:, :20], some[:, :5]], 1),  # several times
        torch.cat([some, loops, loops], 1),
        some[:, some[0] < some[1]],  # one direction
        some[:, (some < 9).all(0)],  # isolated nodes
        some[:, :0],
    ):
        data = GraphData(x, Graph(edges, 20), torch.arange(20), torch.arange(20) % CLASSES, CLASSES)
        options: dict[str, Any] = {"optimizer": "sgd", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0}
        trainer = BackpropGNN(make_gnn(kind), progress=False, **options)
        trainer.build_for(data)  # type: ignore[arg-type]
        scores = trainer.net(x, edges)
        torch.testing.assert_close(trainer.cascade(data.ids), scores)
        parameters = list(trainer.net.parameters())
        expected = torch.autograd.grad(F.cross_entropy(scores, data.y), parameters)
        before = [p.detach().clone() for p in parameters]
        trainer.step(data.ids, data.y)
        for old, new, gradient in zip(before, parameters, expected, strict=True):
            torch.testing.assert_close(old - new, gradient, rtol=1e-4, atol=1e-5)


def test_backpropagation_propagates_nothing_twice_and_no_row_that_is_not_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen, multiply = list[tuple[int, int]](), SparseMatrix.__matmul__

    def look(self: SparseMatrix, x: torch.Tensor) -> torch.Tensor:
        seen.append(self.shape)
        return multiply(self, x)

    monkeypatch.setattr(SparseMatrix, "__matmul__", look)
    trainer = BackpropGNN(make_gnn(hidden=(16, 16, 16)), progress=False)
    trainer.build_for(nodes())  # type: ignore[arg-type]
    seen.clear()
    trainer.fit(nodes(), epochs=3, batch_size=100)
    assert seen == [(60, 60), *3 * [(60, 60), (40, 60)]]


def test_backpropagation_with_virtual_nodes_uses_their_edges() -> None:
    data = nodes()
    found = []
    for virtual in (False, True):
        trainer = BackpropGNN(make_gnn(), progress=False, virtual=virtual)
        trainer.build_for(data)  # type: ignore[arg-type]
        assert trainer.cascade(data.ids).shape == (40, CLASSES)
        found.append(trainer.cascade(data.ids))
    assert not torch.allclose(*found)


def test_the_logit_of_a_pair_is_the_inner_product() -> None:
    data = pairs()
    trainer = BackpropGNN(make_gnn(), progress=False)
    trainer.build_for(data)  # type: ignore[arg-type]
    z = trainer.net(data.features, data.graph.edge_index)
    dots = (z[data.ids[:, 0]] * z[data.ids[:, 1]]).sum(1, keepdim=True)
    torch.testing.assert_close(trainer.cascade(data.ids), dots.sigmoid())


@pytest.mark.parametrize("width", [12, 40])
def test_the_ridge_is_scikit_learns(width: int) -> None:
    data = nodes(width=width)
    trainer = HopRidge(make_gnn(), progress=False, lam=[1e-2])
    trainer.fit(data, epochs=1, batch_size=100)
    with torch.no_grad():
        phi = Hops(2)(Nodes(NodeStates((data.features,), (data.graph,))))
    assert isinstance(phi, torch.Tensor)
    known = phi[data.ids].double()
    penalty = 1e-2 * known.square().sum().item() / known.shape[1]
    ridge = Ridge(alpha=penalty).fit(known.numpy(), F.one_hot(data.y, CLASSES).double().numpy())
    expected = torch.from_numpy(ridge.predict(phi.double().numpy())).float()
    torch.testing.assert_close(trainer.cascade(torch.arange(60)), expected, rtol=1e-3, atol=1e-4)


def test_the_mlp_is_one_of_hop_features_alone() -> None:
    data = nodes()
    trainer = HopMLP(make_gnn(), progress=False)
    trainer.build_for(data)  # type: ignore[arg-type]
    a, x = data.graph.operator("gcn").dense(), unit_rows(data.features)
    phi = torch.cat([x, a @ x, a @ a @ x], 1)[data.ids]
    first, _, second = trainer.cascade.units[0].body
    expected = (phi @ first.weight.T + first.bias).relu() @ second.weight.T + second.bias
    torch.testing.assert_close(trainer.cascade(data.ids), expected)
