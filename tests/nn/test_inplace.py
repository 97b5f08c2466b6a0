"""ReLUs that work in place: only where this changes no result, and only during a training step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from bpfree import Backprop, DeepSupervision, MonoForward
from bpfree.nn.inplace import overwritable_relus, overwrite_inputs
from tests.helpers import make_cnn, make_mlp, vectors


class PreActivated(nn.Module):
    """A residual layer that begins with the activation: overwriting its input would change the skip."""

    def __init__(self, relu: nn.ReLU) -> None:
        super().__init__()
        self.relu, self.linear = relu, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(self.relu(x))


def test_which_relus_may_work_in_place() -> None:
    relu, shared, hooked = nn.ReLU(), nn.ReLU(), nn.Linear(4, 4)
    hooked.register_forward_hook(lambda *_: None)
    linear = [nn.Linear(4, 4) for _ in range(9)]
    cases: list[tuple[list[nn.Module], list[nn.Module]]] = [
        ([linear[0], relu], [relu]),
        ([nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), relu], [relu]),
        ([nn.Sequential(linear[0]), nn.Sequential(relu)], [relu]),
        ([relu, linear[0]], []),
        ([linear[0], nn.Tanh(), relu], []),
        ([hooked, relu], []),
        ([linear[0], shared, linear[1], shared], [shared]),
        ([linear[0], shared, linear[1], nn.Tanh(), shared], []),
        ([linear[0], shared, PreActivated(shared)], []),
        ([linear[0], nn.ReLU(inplace=True)], []),
    ]
    for layers, expected in cases:
        assert overwritable_relus(nn.Sequential(*layers)) == expected, layers
    assert overwritable_relus(PreActivated(relu)) == []


def test_relus_are_restored_after_an_exception() -> None:
    relu = nn.ReLU()
    with pytest.raises(RuntimeError), overwrite_inputs([relu]):
        assert relu.inplace
        raise RuntimeError
    assert not relu.inplace


@pytest.mark.parametrize("kind", [Backprop, DeepSupervision, MonoForward])
@pytest.mark.parametrize("make", [make_mlp, lambda: make_cnn(batch_norm=True)])
def test_a_step_in_place_has_the_same_bits(
    kind: type[MonoForward], make: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.rand(8, 12) if make is make_mlp else torch.rand(8, 1, 8, 8)
    y = torch.arange(8) % 3
    overwrote: list[bool] = []
    trainers = []
    for plain in (False, True):
        trainer = kind(make(), progress=False)
        trainer.build(x.shape[1:], 3)
        if plain:
            monkeypatch.setattr("bpfree.core.block.overwritable_relus", lambda body: [])
        for module in trainer.net.modules():
            if isinstance(module, nn.ReLU):
                module.register_forward_pre_hook(lambda m, _: overwrote.append(m.inplace))
        overwrote.clear()
        for number in range(2):
            trainer.step(x, y, number)
        assert set(overwrote) == {not plain}
        assert not any(m.inplace for m in trainer.net.modules() if isinstance(m, nn.ReLU))
        trainers.append(trainer)
    ours, theirs = (trainer.cascade.state_dict() for trainer in trainers)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_validation_does_not_work_in_place() -> None:
    trainer = MonoForward(make_mlp(), progress=False)
    trainer.fit(vectors(), vectors(), epochs=1)
    assert all(not block.overwriting for block in trainer.cascade.units)
