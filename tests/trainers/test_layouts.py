"""Parameters with gaps in memory, with permuted strides, or with elements that share memory."""

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
    """The same values, as every second element of the rows of a larger tensor."""
    view = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1] + 3), 7.0)[..., 1:-2:2]
    return view.copy_(tensor)


def permuted(tensor: Tensor) -> Tensor:
    """The same values without gaps, the first dimension last in memory."""
    return tensor.movedim(0, -1).contiguous().movedim(-1, 0)


def with_layout(module: nn.Module, layout: Layout | None) -> nn.Module:
    for p in module.parameters() if layout is not None else ():
        assert layout is not None
        p.data = layout(p.detach())
    return module


def values(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


@pytest.mark.parametrize("layout", [with_gaps, permuted])
@pytest.mark.parametrize("gradients", ["autograd", "analytic"])
def test_training_agrees_with_a_hand_written_loop(layout: Layout, gradients: Any) -> None:
    data, net = vectors(16), make_mlp(bias=True)
    torch.manual_seed(1)
    initial_head = torch.randn(CLASSES, 16) / 4
    weights = [p.detach().clone().requires_grad_() for p in net.parameters()]
    stages = [(weights[0], weights[1]), (weights[2], weights[3])]
    trainer = MonoForward(
        with_layout(net, layout), gradients=gradients, optimizer="sgd", lr=0.1, progress=False
    )
    trainer.build((12,), CLASSES)
    (head,) = trainer.cascade.losses[0].parameters()
    head.data = layout(initial_head)
    trainer.reset_optimizers()
    expected_head = initial_head.clone().requires_grad_()
    reference = torch.optim.SGD([*weights, expected_head], 0.1, momentum=0.9, fused=False)
    for _ in range(5):
        trainer.step(data.x, data.y)
        x = data.x
        for k, (weight, bias) in enumerate(stages):
            x = F.relu(F.linear(x.detach(), weight, bias))
            scores = F.linear(x, expected_head) if k == 0 else F.linear(x, weights[4], weights[5])
            F.cross_entropy(scores, data.y).backward()
        reference.step()
        reference.zero_grad()
    for p, expected in zip([*net.parameters(), head], [*weights, expected_head], strict=True):
        torch.testing.assert_close(p.detach(), expected.detach())


@pytest.mark.parametrize("layout", [with_gaps, permuted])
@pytest.mark.parametrize("name", PLAIN_TRAINERS)
def test_every_trainer_updates_the_same_elements(name: str, layout: Layout) -> None:
    def fitted(layout: Layout | None) -> list[Tensor]:
        net = with_layout(make_mlp(16, 16, 16), layout)
        TRAINERS[name](net, lr=0.01, progress=False).fit(vectors(), epochs=2, batch_size=16)
        return values(net)

    torch.testing.assert_close(fitted(layout), fitted(None), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("layout", [with_gaps, permuted])
def test_other_networks_and_update_rules_update_the_same_elements(layout: Layout) -> None:
    def fitted(
        make: Callable[[], nn.Module], kind: Any, data: Any, layout: Any, **settings: Any
    ) -> list[Tensor]:
        torch.manual_seed(0)
        net = with_layout(make(), layout)
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

    def graph(layout: Layout | None) -> list[Tensor]:
        trainer = TRAINERS["forward_gnn"](make_gnn(), lr=0.01, progress=False)
        trainer.build_for(nodes())
        with_layout(trainer.cascade, layout)
        trainer.fit(nodes(), epochs=2)
        return values(trainer.cascade)

    torch.testing.assert_close(graph(layout), graph(None), rtol=1e-3, atol=1e-4)


def test_a_view_still_shares_its_memory_and_other_elements_do_not_change() -> None:
    net, base = make_mlp(16), torch.full((16, 20), 7.0)
    weight = next(net.parameters())
    base[:, 4:16] = weight.detach()
    weight.data = base[:, 4:16]
    before = base.clone()
    MonoForward(net, lr=0.01, progress=False).fit(vectors(), epochs=1)
    assert torch.equal(base[:, 4:16], weight.detach())
    assert not torch.equal(base[:, 4:16], before[:, 4:16])
    assert torch.equal(base[:, :4], before[:, :4])
    assert torch.equal(base[:, 16:], before[:, 16:])


def test_a_resumed_run_with_gaps_has_the_same_bits(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def fit(stop: bool, file: str) -> list[Tensor]:
        net = with_layout(make_mlp(), with_gaps)

        def progress(done: int, total: int, row: Any) -> None:
            if stop and done == 2:
                raise Stop

        hooks, checkpoint = bpfree.Hooks(progress=progress), bpfree.Checkpoint(tmp_path / file, 0)
        MonoForward(net, progress=False).fit(vectors(), epochs=3, hooks=hooks, checkpoint=checkpoint)
        return values(net)

    expected = fit(False, "uninterrupted")
    with pytest.raises(Stop):
        fit(True, "resumed")
    assert all(map(torch.equal, fit(False, "resumed"), expected))


def test_elements_that_share_memory_are_refused_by_name() -> None:
    net = make_mlp(16)
    weight = next(net.parameters())
    weight.data = torch.rand(16, 1).expand(16, 12)
    with pytest.raises(BadValue, match=r"weight \[16, 12\] has elements that share memory"):
        MonoForward(net, progress=False).fit(vectors(), epochs=1)
    # Any layout is allowed for parameters that are not trained.
    weight.requires_grad_(False)
    MonoForward(net, progress=False).fit(vectors(), epochs=1)


def test_dense_and_overlapping_tensors_are_detected() -> None:
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
        optimizer = make_optimizer(parameters, TrainerSettings(), other_groups=apart)
        assert {group["fused"] for group in optimizer.param_groups} == {fused}
