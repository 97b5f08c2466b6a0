"""All losses on outputs of all shapes: the value of a loop, or an error before training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bpfree import BadValue, CounterCurrentLearning, Local, localize
from bpfree.losses import CounterCurrent, LocalLoss, MeanGoodness, PredSim, loss_names
from bpfree.testing import assert_locality
from tests.helpers import CLASSES

Y = torch.arange(12) % CLASSES

#: Input of a sample, and the first of two equal layers (of six features) after it.
SHAPES: dict[str, tuple[tuple[int, ...], Callable[[int], nn.Module]]] = {
    "[B, C]": ((12,), lambda n: nn.Linear(n, 6)),
    "[B, C, L]": ((2, 8), lambda n: nn.Conv1d(n, 6, 3, padding=1)),
    "[B, C, H, W]": ((2, 6, 5), lambda n: nn.Conv2d(n, 6, 3, padding=1)),
    "[B, C, D, H, W]": ((2, 4, 3, 4), lambda n: nn.Conv3d(n, 6, 3, padding=1)),
    "[B, T, D]": ((7, 5), lambda n: nn.Linear(n, 6)),
    "[B, S, T, D]": ((2, 7, 5), lambda n: nn.Linear(n, 6)),
}
shapes = pytest.mark.parametrize("name", SHAPES)


def net(name: str) -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(0)
    shape, layer = SHAPES[name]
    x = torch.rand(12, *shape)
    width = shape[0] if "C" in name else shape[-1]
    body = nn.Sequential(layer(width), nn.ReLU(), layer(6), nn.ReLU(), nn.Flatten())
    return body.append(nn.Linear(body(x).shape[1], CLASSES)), x


@shapes
@pytest.mark.parametrize("loss", [name for name in loss_names() if "." not in name and name != "goodness"])
def test_all_losses_train_on_all_shapes(loss: str, name: str) -> None:
    model, x = net(name)
    trainer = Local(model, loss=loss, output="none", progress=False)
    trainer.fit((x, Y), (x, Y), epochs=1)
    assert len(trainer.cascade.units) == 2
    assert all(torch.isfinite(p).all() for p in trainer.cascade.parameters())


@shapes
@pytest.mark.parametrize("features", [4096, 12])
def test_predsim_is_its_formula_on_all_shapes(name: str, features: int) -> None:
    model, x = net(name)
    trainer = Local(
        model, loss="predsim", loss_options={"features": features, "sim_weight": 0.75}, progress=False
    )
    trainer.build(x.shape[1:], CLASSES)
    block, loss = trainer.cascade.units[0], trainer.cascade.losses[0]
    assert isinstance(loss, PredSim)
    output = block(x)
    maps = output if "C" in name else output.movedim(-1, 1)
    # Rows of standard deviations over all positions; a vector is unchanged.
    rows = torch.stack([row.flatten(1).std(1) if row.ndim > 1 else row for row in loss.projection(maps)])
    label = torch.eye(CLASSES)[Y]
    sim = (torch.corrcoef(rows) - torch.corrcoef(label)).square().mean()
    pred = nn.functional.cross_entropy(loss.scores(output), Y)
    torch.testing.assert_close(loss(output, Y), 0.25 * pred + 0.75 * sim, rtol=1e-4, atol=1e-5)
    head: Any = loss.head
    assert head[-1].in_features <= max(features, 6)
    assert_locality(trainer, x, Y)


def test_predsim_refuses_outputs_with_more_axes() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.Flatten(), nn.Linear(64, CLASSES))
    trainer = Local(model, loss="predsim", progress=False)
    with pytest.raises(BadValue, match=r"predsim on outputs of shape \[2, 2, 2, 2, 4\] per sample: expected"):
        trainer.build((2, 2, 2, 2, 3), CLASSES)


def test_mean_goodness_groups_the_features_of_sequences() -> None:
    model, x = net("[B, T, D]")
    trainer = Local(model, loss="mean_goodness", output="none", progress=False)
    trainer.build(x.shape[1:], CLASSES)
    block, loss = trainer.cascade.units[0], trainer.cascade.losses[0]
    assert isinstance(loss, MeanGoodness)
    output = block(x)
    torch.testing.assert_close(loss.goodness(output), output.mean(1).unflatten(1, (CLASSES, 2)).mean(2))


# ---- counter-current learning ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["[B, C]", "[B, C, L]", "[B, C, H, W]", "[B, C, D, H, W]"])
@pytest.mark.parametrize("settings", [{}, {"input_pair": True}, {"joint": True, "loss": "decorrelated"}])
def test_counter_current_learning_supports_convolutions_of_all_dimensions(name: str, settings: Any) -> None:
    model, x = net(name)
    trainer = CounterCurrentLearning(model, progress=False, **settings)
    trainer.fit((x, Y), (x, Y), epochs=1)
    assert_locality(trainer, x, Y)


def flattening(*before: nn.Module) -> nn.Sequential:
    """Convolutions, the layers ``before``, a hidden linear layer, and the output layer."""
    torch.manual_seed(0)
    conv = (
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
    return nn.Sequential(*conv, *before, nn.Linear(96, 8), nn.ReLU(), nn.Linear(8, CLASSES))


def test_feedback_passes_a_flattening() -> None:
    """The prototypes of the maps are computed from those of the hidden layer."""
    x = torch.rand(12, 1, 8, 8)
    trainer = CounterCurrentLearning(flattening(nn.Flatten(), nn.Dropout(0.0)), progress=False, k=2.0)
    trainer.build((1, 8, 8), CLASSES)
    trainer.cascade.eval()
    first, second, hidden = (loss for loss in trainer.cascade.losses[:3])
    assert all(isinstance(loss, CounterCurrent) for loss in (first, second, hidden))
    by_output, by_linear, by_conv = (loss.feedback for loss in (hidden, second, first))  # type: ignore[union-attr]
    b3 = by_output[0](torch.eye(CLASSES)).relu()  # type: ignore[index]
    b2 = by_linear[0](b3).view(CLASSES, 6, 4, 4).relu()  # type: ignore[index]
    b1 = by_conv[1](b2.repeat_interleave(2, 2).repeat_interleave(2, 3)).relu()  # type: ignore[index]
    net = trainer.net
    a1 = net[1](net[0](x))  # type: ignore[index]
    a2 = net[4](net[3](net[2](a1)))  # type: ignore[index]
    a3 = net[8](net[7](a2.flatten(1)))  # type: ignore[index]
    expected = [
        256 * 2.0 / a[0].numel() * (a.flatten(1) @ b.flatten(1).T - torch.eye(CLASSES)[Y]).square().mean()
        for a, b in ((a1, b1), (a2, b2), (a3, b3))
    ]
    torch.testing.assert_close(torch.stack(trainer.step(x, Y)[:3]), torch.stack(expected).detach())


@pytest.mark.parametrize(
    ("before", "message"),
    [
        ((nn.Flatten(), nn.BatchNorm1d(96)), "CounterCurrent cannot be computed for a block whose"),
        ((nn.Flatten(), nn.ReLU()), "CounterCurrent cannot be computed for a block whose"),
    ],
)
def test_layers_without_feedback_layers_are_refused_before_training(before: Any, message: str) -> None:
    trainer = CounterCurrentLearning(flattening(*before), progress=False)
    with pytest.raises(BadValue, match=message):
        trainer.build((1, 8, 8), CLASSES)


def test_feedback_to_a_linear_layer_that_acts_on_each_position_is_refused() -> None:
    model, x = net("[B, T, D]")
    with pytest.raises(
        BadValue, match=r"a block has the shape \[7, 6\] per sample, but Linear.* expects 6 values, flattened"
    ):
        CounterCurrentLearning(model, progress=False).fit((x, Y), epochs=1)


class MapsOnly(LocalLoss):
    """A loss for maps only."""

    def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
        return output.mean((2, 3)).square().mean()


def test_a_loss_that_fails_for_an_output_is_refused_before_training() -> None:
    cascade = localize(net("[B, C]")[0], loss=MapsOnly)
    with pytest.raises(
        BadValue, match=r"MapsOnly cannot be computed for a block whose output has the shape \[6\] per"
    ):
        Local(cascade, progress=False).build((12,), CLASSES)
