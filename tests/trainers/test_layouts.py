"""Parameters that lie in memory with gaps, turned, or on top of one another."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bpfree
from bpfree import Autoencoder, BadValue, MonoForward
from bpfree.data import TensorData
from bpfree.engine.settings import make_optimizer
from bpfree.nn.layout import is_dense, overlaps_itself
from bpfree.trainers import TRAINERS, TrainerSettings
from tests.helpers import CLASSES, PLAIN_TRAINERS, images, make_cnn, make_gnn, make_mlp, nodes, vectors

Layout = Callable[[Tensor], Tensor]


def with_gaps(tensor: Tensor) -> Tensor:
    """The same values, each second element of a larger tensor's rows."""
    view = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1] + 3), 7.0)[..., 1:-2:2]
    return view.copy_(tensor)


def turned(tensor: Tensor) -> Tensor:
    """The same values without gaps, the first dimension last in memory."""
    return tensor.movedim(0, -1).contiguous().movedim(-1, 0)


def laid(module: nn.Module, layout: Layout | None) -> nn.Module:
    for p in module.parameters() if layout is not None else ():
        assert layout is not None
        p.data = layout(p.detach())
    return module


def values(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


@pytest.mark.parametrize("layout", [with_gaps, turned])
@pytest.mark.parametrize("gradients", ["autograd", "analytic"])
def test_training_is_that_of_a_hand_written_loop(layout: Layout, gradients: Any) -> None:
    data, net = vectors(16), make_mlp(bias=True)
    torch.manual_seed(1)
    heads = [torch.randn(CLASSES, 16) / 4, None]
    weights = [p.detach().clone().requires_grad_() for p in net.parameters()]
    stages = [(weights[0], weights[1]), (weights[2], weights[3])]
    trainer = MonoForward(laid(net, layout), gradients=gradients, optimizer="sgd", lr=0.1, progress=False)
    trainer.build((12,), CLASSES)
    head = trainer.cascade.losses[0].linear  # type: ignore[operator]
    head.weight.data = layout(heads[0])  # type: ignore[arg-type]
    trainer.reset_optimizers()
    own = heads[0].clone().requires_grad_()  # type: ignore[union-attr]
    reference = torch.optim.SGD([*weights, own], 0.1, momentum=0.9, fused=False)
    for _ in range(5):
        trainer.step(data.x, data.y)
        x = data.x
        for k, (weight, bias) in enumerate(stages):
            x = F.relu(F.linear(x.detach(), weight, bias))
            scores = F.linear(x, own) if k == 0 else F.linear(x, weights[4], weights[5])
            F.cross_entropy(scores, data.y).backward()
        reference.step()
        reference.zero_grad()
    for found, expected in zip([*net.parameters(), head.weight], [*weights, own], strict=True):
        torch.testing.assert_close(found.detach(), expected.detach())


@pytest.mark.parametrize("layout", [with_gaps, turned])
@pytest.mark.parametrize("name", PLAIN_TRAINERS)
def test_every_trainer_moves_the_same_elements(name: str, layout: Layout) -> None:
    def fitted(layout: Layout | None) -> list[Tensor]:
        net = laid(make_mlp(16, 16, 16), layout)
        TRAINERS[name](net, lr=0.01, progress=False).fit(vectors(), epochs=2, batch_size=16)
        return values(net)

    torch.testing.assert_close(fitted(layout), fitted(None), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("layout", [with_gaps, turned])
def test_convolutions_stacks_graphs_and_autoencoders_too(layout: Layout) -> None:
    def fitted(
        make: Callable[[], nn.Module], kind: Any, data: Any, lay: Any, **settings: Any
    ) -> list[Tensor]:
        torch.manual_seed(0)
        net = laid(make(), lay)
        kind(net, lr=0.01, progress=False, **settings).fit(data, epochs=2, batch_size=16)
        return values(net)

    blank = TensorData(images().x, torch.zeros(40, dtype=torch.long), 1)
    cases: list[tuple[Any, ...]] = [
        (make_cnn, MonoForward, images(), {}),
        (make_cnn, MonoForward, images(), {"channels_last": True}),
        (lambda: make_mlp(16, 16, 16, 16), MonoForward, vectors(), {"gradients": "stacked"}),
        (lambda: bpfree.nn.autoencoder((1, 8, 8), (6, 4)), Autoencoder, blank, {"code_lr": 0.02}),
    ]
    for make, kind, data, settings in cases:
        plain = fitted(make, kind, data, None, **settings)
        torch.testing.assert_close(fitted(make, kind, data, layout, **settings), plain, rtol=1e-3, atol=1e-4)

    def graph(lay: Layout | None) -> list[Tensor]:
        trainer = TRAINERS["forward_gnn"](make_gnn(), lr=0.01, progress=False)
        trainer.build_for(nodes())
        laid(trainer.cascade, lay)
        trainer.fit(nodes(), epochs=2)
        return values(trainer.cascade)

    torch.testing.assert_close(graph(layout), graph(None), rtol=1e-3, atol=1e-4)


def test_a_view_goes_on_sharing_its_memory_and_nothing_beside_it_changes() -> None:
    net, base = make_mlp(16), torch.full((16, 20), 7.0)
    base[:, 4:16] = net[1].weight.detach()  # type: ignore[union-attr]
    net[1].weight.data = base[:, 4:16]  # type: ignore[union-attr]
    before = base.clone()
    MonoForward(net, lr=0.01, progress=False).fit(vectors(), epochs=1)
    assert torch.equal(base[:, 4:16], net[1].weight.detach())  # type: ignore[union-attr]
    assert not torch.equal(base[:, 4:16], before[:, 4:16])
    assert torch.equal(base[:, :4], before[:, :4])
    assert torch.equal(base[:, 16:], before[:, 16:])


def test_a_resumed_run_with_gaps_has_the_same_bits(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def fit(stop: bool, file: str) -> list[Tensor]:
        net = laid(make_mlp(), with_gaps)

        def progress(done: int, of: int, row: Any) -> None:
            if stop and done == 2:
                raise Stop

        hooks, point = bpfree.Hooks(progress=progress), bpfree.Checkpoint(tmp_path / file, 0)
        MonoForward(net, progress=False).fit(vectors(), epochs=3, hooks=hooks, checkpoint=point)
        return values(net)

    whole = fit(False, "whole")
    with pytest.raises(Stop):
        fit(True, "parts")
    assert all(map(torch.equal, fit(False, "parts"), whole))


def test_elements_that_share_memory_are_refused_by_name() -> None:
    net = make_mlp(16)
    net[1].weight.data = torch.rand(16, 1).expand(16, 12)  # type: ignore[union-attr]
    with pytest.raises(BadValue, match=r"weight \[16, 12\] has elements that share memory"):
        MonoForward(net, progress=False).fit(vectors(), epochs=1)
    # What is not trained may lie as it likes.
    net[1].weight.requires_grad_(False)  # type: ignore[union-attr]
    MonoForward(net, progress=False).fit(vectors(), epochs=1)


def test_how_memory_is_filled() -> None:
    x = torch.zeros(4, 6, 5)
    dense = [x, x.transpose(0, 2), x[1:3], x[:, :0], x[:1].transpose(0, 1), torch.tensor(1.0)]
    assert [is_dense(t) for t in dense] == [True] * len(dense)
    gaps = [x[:, 1:], x[::2], x[..., 0], x[0].expand(2, 6, 5)]
    assert [is_dense(t) for t in gaps] == [False] * len(gaps)
    crossed = torch.zeros(20).as_strided((2, 3), (3, 2))
    assert [overlaps_itself(t) for t in (*dense, *gaps, crossed)] == [False] * 9 + [True, False]
    assert overlaps_itself(torch.zeros(20).as_strided((3, 3), (2, 2)))


def test_one_parameter_with_gaps_leaves_its_optimizer_unfused() -> None:
    plain, gaps = nn.Parameter(torch.zeros(3, 4)), nn.Parameter(torch.zeros(3, 8)[:, ::2])
    for parameters, apart, fused in (
        ([plain], [], True),
        ([plain, gaps], [], False),
        ([plain], [([gaps], 0.1)], False),
        ([copy.deepcopy(gaps)], [], True),
    ):
        optimizer = make_optimizer(parameters, TrainerSettings(), apart=apart)
        assert {group["fused"] for group in optimizer.param_groups} == {fused}
