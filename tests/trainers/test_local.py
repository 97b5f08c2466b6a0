"""Mono-Forward, `Local`, and the controls: backpropagation, deep supervision, random features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bpfree import (
    Backprop,
    BadValue,
    Checkpoint,
    DeepSupervision,
    Local,
    LocalLoss,
    MFJoint,
    MonoForward,
    RandomFeatures,
    Trainer,
    localize,
    register_loss,
)
from bpfree.losses import LocalCrossEntropy
from bpfree.testing import assert_locality, assert_schedules_agree
from tests.helpers import CLASSES, easy, make_cnn, make_mlp, snapshot, vectors


@register_loss("tests.quiet")
class Quiet(LocalLoss):
    """The mean square of the output; it has no class scores."""

    def forward(self, output: Tensor, target: Tensor, feedback: Tensor | None = None) -> Tensor:
        return output.square().mean()


def built(kind: type[Trainer], net: nn.Module | None = None, **settings: Any) -> Trainer:
    trainer = kind(make_mlp() if net is None else net, progress=False, **settings)
    trainer.build((12,), CLASSES)
    return trainer


@pytest.mark.parametrize(
    ("kind", "settings", "level"),
    [
        (MonoForward, {}, "L2"),
        (MonoForward, {"cut": 1}, "L0"),
        (MonoForward, {"gradients": "analytic"}, "L3"),
        (Local, {}, "L2"),
        (Local, {"cut": 1}, "L0"),
        (RandomFeatures, {}, "L2"),
        (Backprop, {}, "L0"),
        (DeepSupervision, {}, "L0"),
        (MFJoint, {}, "L0"),
    ],
)
def test_the_declared_level_of_locality(kind: type[Trainer], settings: Any, level: str) -> None:
    assert built(kind, **settings).locality == level


def test_closed_form_gradients_agree_with_autograd() -> None:
    runs = []
    for gradients in ("autograd", "analytic"):
        net = make_mlp(16, 16, activation="tanh")
        trainer = MonoForward(net, gradients=gradients, optimizer="sgd", lr=0.1, progress=False)
        trainer.build((12,), CLASSES)
        trainer.cascade.double()
        for number in range(10):
            x, y = vectors(16, seed=number).batch(torch.arange(16))
            trainer.step(x.double(), y, number)
        runs.append(snapshot(trainer.cascade))
    for name, tensor in runs[0].items():
        torch.testing.assert_close(runs[1][name], tensor, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("net", [make_cnn, lambda: make_mlp(activation="gelu"), lambda: make_mlp(16, 16, 16)])
def test_bodies_without_closed_form_gradients_are_refused(net: Any) -> None:
    trainer = MonoForward(net(), gradients="analytic", cut=1 if net is not make_cnn else 2, progress=False)
    shape = (1, 8, 8) if net is make_cnn else (12,)
    x = torch.rand(8, *shape)
    with pytest.raises(BadValue, match="closed form needs a linear layer"):
        trainer.fit((x, torch.arange(8) % CLASSES), epochs=1)


def test_the_output_layer_of_the_net_is_the_head_of_the_last_block() -> None:
    net = make_mlp()
    for kind in (MonoForward, Local, RandomFeatures, MFJoint):
        last = built(kind, net).cascade.losses[-1]
        assert isinstance(last, LocalCrossEntropy)
        assert last.head is net[-1]


@pytest.mark.parametrize("kind", [MonoForward, MFJoint, DeepSupervision, RandomFeatures])
@pytest.mark.parametrize(("pool", "features"), [(None, 4 * 4 * 4), (1, 4), (2, 4 * 2 * 2)])
def test_local_heads_on_maps_can_be_pooled(kind: type[Trainer], pool: int | None, features: int) -> None:
    trainer = kind(make_cnn(), progress=False, head_pool=pool)
    trainer.build((1, 8, 8), CLASSES)
    # The first block has 4 maps of 4 x 4. The head of the last block is the output layer of the network.
    loss, output = trainer.cascade.losses[0], trainer.cascade.outputs(torch.rand(5, 1, 8, 8))[0]
    (weight,) = loss.parameters()
    assert weight.shape == (CLASSES, features)
    means = output if pool is None else output.unflatten(2, (pool, -1)).unflatten(4, (pool, -1)).mean((3, 5))
    torch.testing.assert_close(loss.scores(output), means.flatten(1) @ weight.T)


def test_vectors_are_not_pooled() -> None:
    trainer = built(MonoForward, make_mlp(), head_pool=1)
    (weight,) = trainer.cascade.losses[0].parameters()
    assert weight.shape == (CLASSES, 16)


@pytest.mark.parametrize("headline", ["last", "sum", "sum_probabilities"])
@pytest.mark.parametrize("kind", [MonoForward, Local, RandomFeatures])
def test_the_setting_readout_is_the_prediction_rule(kind: type[Trainer], headline: str) -> None:
    trainer = built(kind, readout=headline)
    assert trainer.cascade.headline == headline
    assert set(trainer.cascade.readouts) == {"last", "sum", "sum_probabilities"}
    assert (trainer.model is trainer.net) == (headline == "last")


def test_with_a_loss_without_scores_there_is_only_the_last_readout() -> None:
    trainer = built(Local, make_mlp(16, 16, 16), loss="tests.quiet")
    assert list(trainer.cascade.readouts) == ["last"]
    assert [type(loss).__name__ for loss in trainer.cascade.losses] == ["Quiet", "Quiet", "LocalCrossEntropy"]
    with pytest.raises(BadValue, match="readout = 'sum': needs class scores of all blocks"):
        built(Local, loss="tests.quiet", readout="sum")


@pytest.mark.parametrize("schedule", ["simultaneous", "greedy"])
def test_a_loss_without_scores_can_be_trained_and_validated(schedule: str) -> None:
    trainer = Local(make_mlp(16, 16, 16), loss="tests.quiet", schedule=schedule, progress=False)
    history = trainer.fit(easy(), easy(seed=1), epochs=2)
    assert "last" in history.rows[-1]["validation"]
    assert 0 <= trainer.evaluate(easy())["accuracy"] <= 1


def test_random_features_keep_their_weights_and_train_their_heads() -> None:
    net = make_mlp(dropout=0.2)
    before = snapshot(net)
    trainer = built(RandomFeatures, net, lr=0.02)
    heads = [snapshot(loss) for loss in trainer.cascade.losses]
    trainer.fit(easy(), epochs=10, batch_size=16)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]) == (not name.startswith("7")), name
    for loss, head in zip(trainer.cascade.losses, heads, strict=True):
        assert all(not torch.equal(t, head[name]) for name, t in loss.state_dict().items())
    assert trainer.evaluate(easy(seed=1))["accuracy"] > 0.9


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (MonoForward, {}),
        (MonoForward, {"schedule": "greedy"}),
        (MonoForward, {"gradients": "analytic"}),
        (Local, {}),
        (Backprop, {}),
        (DeepSupervision, {"aux_weight": 0.5}),
        (MFJoint, {}),
    ],
    ids=str,
)
def test_it_learns(kind: type[Trainer], settings: Any) -> None:
    trainer = kind(make_mlp(), lr=0.02, progress=False, **settings)
    trainer.fit(easy(), epochs=8, batch_size=16)
    accuracies = trainer.evaluate(easy(seed=1))["readouts"]
    assert all(value > 0.9 for value in accuracies.values())


@pytest.mark.parametrize("kind", [MonoForward, Local])
def test_a_localized_network_predicts_by_the_setting_readout(kind: type[Trainer]) -> None:
    net = make_mlp()
    trainer = built(kind, localize(net), readout="sum_probabilities")
    x = vectors().x
    probabilities = [scores.softmax(1) for scores in (loss.scores(o) for loss, o in zip(
        trainer.cascade.losses, trainer.cascade.outputs(x), strict=True
    )) if scores is not None]  # fmt: skip
    assert torch.allclose(trainer.model(x), torch.stack(probabilities).sum(0))
    assert trainer.model is not net
    with pytest.raises(BadValue, match="unknown"):
        built(kind, localize(make_mlp(), loss="tests.quiet"), readout="sum")


def test_a_checkpoint_with_other_validation_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    train = easy()
    MonoForward(make_mlp(), progress=False).fit(
        train, easy(30), epochs=1, checkpoint=Checkpoint(path, every_s=0.0)
    )
    with pytest.raises(BadValue, match="another run"):
        MonoForward(make_mlp(), progress=False).fit(train, easy(20), epochs=1, checkpoint=path)


@pytest.mark.parametrize(
    ("loss", "options", "output"),
    [
        ("predsim", {"sim_weight": 0.5, "features": 12}, "apart"),
        ("predsim", {"sim_weight": 1.0}, "apart"),
        ("mean_goodness", {"scale": 4.0}, "none"),
        ("prototype_goodness", {"temperature": 0.2}, "none"),
    ],
)
def test_strong_losses_learn_are_local_and_have_scores_for_every_block(
    loss: str, options: dict[str, Any], output: str
) -> None:
    def make(**settings: Any) -> Trainer:
        return Local(
            make_mlp(24, 24), loss=loss, loss_options=options, output=output, progress=False, **settings
        )

    assert_locality(make(), easy().x, easy().y)
    assert_schedules_agree(make, easy(40))
    trainer = make(lr=0.01)
    trainer.fit(easy(), epochs=12, batch_size=16)
    accuracies = trainer.evaluate(easy(seed=1))["blocks"]
    assert len(accuracies) == (3 if output == "apart" else 2)
    assert min(accuracies) > 0.8
    assert trainer.locality == "L2"


@pytest.mark.parametrize("loss", ["mean_goodness", "prototype_goodness"])
def test_goodness_without_negative_samples_needs_one_pass_and_predicts_by_its_scores(
    loss: str,
) -> None:
    trainer, data = Local(make_mlp(), loss=loss, output="none", progress=False), easy()
    trainer.fit(data, epochs=1, batch_size=16)
    counts: list[int] = []
    body = trainer.cascade.units[0].body
    body.register_forward_hook(lambda module, rows, output: counts.append(len(output)))
    predicted = trainer.predict(data.x)
    assert sum(counts) == len(data.x)
    outputs = trainer.cascade.outputs(data.x)
    scores = trainer.cascade.losses[-1].scores(outputs[-1])
    assert scores is not None
    assert torch.equal(predicted, scores.argmax(1))
    for output, loss_of_block in zip(outputs, trainer.cascade.losses, strict=True):
        block_scores = loss_of_block.scores(output)
        assert block_scores is not None
        expected = torch.nn.functional.cross_entropy(block_scores, data.y)
        assert torch.equal(loss_of_block(output, data.y), expected)
