"""Labels over or beside the input: their place, the computation, files and warnings."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpfree import BadValue, ForwardForward, Local, Trainer, _seeds, localize
from bpfree.data import TensorData, load
from bpfree.encodings.label_overlay import LabeledLayer, LabelOverlay, Overlaid, OverlaidLinear
from bpfree.testing import assert_locality
from bpfree.trainers.labels import first_values_vary
from tests.helpers import CLASSES, images, make_cnn, make_mlp, snapshot, vectors


def table(n: int = 400, width: int = 8, classes: int = 4, scale: float = 1.0, seed: int = 0) -> TensorData:
    """The class is the index of the largest of the first columns, which a label code would overwrite."""
    x = torch.randn(n, width, generator=torch.Generator().manual_seed(seed))
    return TensorData(x * scale, x[:, :classes].argmax(1), classes)


def bordered(n: int = 40, scale: float = 1.0) -> TensorData:
    """Images whose first row is 0 in all of them."""
    data = images(n)
    data.x[:, :, 0] = 0.0
    return replace(data, x=data.x * scale)


def first_layer(trainer: Trainer) -> Any:
    return next(trainer.cascade.units[0].body.children())


def encoding(trainer: Trainer) -> LabelOverlay:
    result = trainer.cascade.encoding
    assert isinstance(result, LabelOverlay)
    return result


def ff(net: nn.Module | None = None, **settings: Any) -> ForwardForward:
    return ForwardForward(make_mlp() if net is None else net, progress=False, **settings)


# ---- what is computed ------------------------------------------------------------------------------------


def test_a_label_beside_a_table_is_forward_forward_on_concatenated_columns() -> None:
    lr, data = 0.02, table(32, width=12, classes=CLASSES)
    trainer = ff(momentum=0.0, weight_decay=0.0, lr=lr, peer_weight=0.0, readout="goodness", classifier=False)
    trainer.build(data.sample_shape, CLASSES)
    x, y = data.batch(torch.arange(32))
    units = trainer.cascade.units
    first = first_layer(trainer)
    weight = torch.cat([first.label.weight, first.layer.weight], 1).detach().clone()
    layers = [(weight, first.layer.bias.detach().clone())]
    layers += [tuple(p.detach().clone() for p in block.body.parameters()) for block in units[1:]]
    # The length of the code is the root mean square length of the samples.
    length = x.square().sum(1).mean().sqrt()
    for number in range(3):
        generator = _seeds.generator(torch.device("cpu"), 0, "negatives", 0, number)
        wrong = (y + torch.randint(1, CLASSES, y.shape, generator=generator)) % CLASSES
        h = torch.cat([F.one_hot(torch.cat([y, wrong]), CLASSES) * length, x.repeat(2, 1)], 1)
        sign = torch.cat([torch.ones(32), torch.zeros(32)])
        losses = trainer.step(x, y, number)
        for k, (w, b) in enumerate(layers):
            w.requires_grad_(), b.requires_grad_()
            h = h.detach() / (h.detach().square().mean(1, keepdim=True).sqrt() + 1e-8)
            h = (h @ w.T + b).relu()
            loss = F.binary_cross_entropy_with_logits(h.square().sum(1) - h.shape[1], sign)
            torch.testing.assert_close(losses[k], loss.detach(), rtol=1e-6, atol=1e-6)
            grads = torch.autograd.grad(loss, [w, b])
            layers[k] = tuple((p - lr * g).detach() for p, g in zip((w, b), grads, strict=True))
    after = torch.cat([first.label.weight, first.layer.weight], 1)
    torch.testing.assert_close(after.detach(), layers[0][0], rtol=1e-6, atol=1e-6)
    second = next(units[1].body.parameters())
    torch.testing.assert_close(second.detach(), layers[1][0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_a_class_that_depends_on_the_first_columns_is_learned(scale: float) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    trainer = ff(net)
    trainer.fit(table(scale=scale), epochs=30, batch_size=32)
    accuracies = trainer.evaluate(table(scale=scale))["readouts"]
    assert accuracies["classifier"] > 0.93
    assert accuracies["goodness"] > 0.85


def test_there_can_be_fewer_inputs_than_classes() -> None:
    data = table(width=4)
    net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    trainer = ff(net)
    trainer.fit(data, epochs=15, batch_size=32)
    assert trainer.evaluate(data)["accuracy"] > 0.9


LAYERS: dict[str, tuple[list[nn.Module], Any, tuple[int, ...]]] = {
    "linear": ([nn.Flatten()], nn.Linear(12, 5), (3, 4)),
    "tokens": ([], nn.Linear(4, 5, bias=False), (3, 4)),
    "signals": ([], nn.Conv1d(3, 5, 2), (3, 4)),
    "images": ([nn.BatchNorm2d(2).eval()], nn.Conv2d(2, 5, 3, padding=1, stride=2), (2, 4, 6)),
    "volumes": ([], nn.Conv3d(2, 4, 2, groups=2), (2, 3, 3, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_with_a_label_adds_the_columns_to_its_output_on_normalized_rows(name: str) -> None:
    before, layer, shape = LAYERS[name]
    with_label = LabeledLayer(before, layer, CLASSES).double()
    x = torch.rand(4, *shape, dtype=torch.float64)
    codes = torch.eye(CLASSES, dtype=torch.float64).unsqueeze(1)
    output = with_label(Overlaid(x, codes)).unflatten(0, (CLASSES, 4))
    for i in range(4):
        for label in range(CLASSES):
            code = codes[label, 0] * with_label.label.unit
            r = torch.cat([x[i].flatten(), code]).square().mean().sqrt() + 1e-8
            of_sample: Tensor = layer(nn.Sequential(*before)(x[i : i + 1] / r))[0]
            of_code = with_label.label.weight @ code / r
            if name not in ("linear", "tokens"):
                of_code = of_code.view(-1, *[1] * (of_sample.ndim - 1))
            torch.testing.assert_close(output[label, i], of_sample + of_code)


def test_the_columns_have_the_scale_of_the_layers_weights() -> None:
    trainer = ff(make_mlp(400, width=200))
    trainer.build((200,), 3)
    first = first_layer(trainer)
    assert first.label.weight.shape == (400, 3)
    assert first.label.weight.std().item() == pytest.approx(400**-0.5, rel=0.1)


def test_the_network_is_not_changed_and_shares_its_weights() -> None:
    net = make_mlp()
    names = list(net.state_dict())
    trainer = ff(net)
    trainer.fit(vectors(), epochs=1)
    assert list(net.state_dict()) == names
    assert first_layer(trainer).layer is net[1]
    assert net(vectors().x).shape == (40, CLASSES)
    assert trainer.model(vectors().x).argmax(1).equal(trainer.predict(vectors().x))


def test_the_columns_are_part_of_the_first_layer() -> None:
    for net, data in ((make_mlp(), vectors()), (make_cnn(), images())):
        trainer = ff(net)
        assert_locality(trainer, data.x, data.y)
        trainer.build(data.sample_shape, CLASSES)
        assert trainer.locality == "L2"


# ---- the place, by the training data ---------------------------------------------------------------------


def test_over_a_constant_border_it_has_the_bits_of_the_overlay_of_the_paper() -> None:
    states = []
    for overlay in ("auto", "force"):
        trainer = ff(make_mlp(width=64), overlay=overlay)
        trainer.fit(bordered(), epochs=2, batch_size=16)
        assert not encoding(trainer).beside
        assert type(first_layer(trainer)) is OverlaidLinear
        states.append(snapshot(trainer.cascade))
    assert all(torch.equal(t, states[1][name]) for name, t in states[0].items())


def test_one_pixel_that_varies_puts_the_label_beside() -> None:
    data = bordered()
    data.x[-1, 0, 0, CLASSES] = 0.5
    assert not first_values_vary(data, CLASSES)
    data.x[-1, 0, 0, CLASSES - 1] = 0.5
    assert first_values_vary(data, CLASSES)
    trainer = ff(make_cnn())
    trainer.fit(data, epochs=1)
    assert encoding(trainer).beside
    assert type(first_layer(trainer)) is LabeledLayer


def test_the_first_values_are_those_of_the_flattened_sample() -> None:
    x = torch.zeros(5, 2, 3, 4)
    data = TensorData(x, torch.arange(5), 5)
    order = torch.arange(24).view(2, 3, 4)
    for k in (0, 3, 4, 11, 12, 23):
        x.zero_()
        x[2][order == k] = 1.0
        assert [first_values_vary(data, n) for n in (k, k + 1) if n] == [False, True][k == 0 :]


@pytest.mark.parametrize(
    ("augment", "row", "fill", "varies"),
    [
        ((), 1, 0.0, False),
        (("flip",), 1, 0.0, True),
        (("crop",), 4, 0.0, True),
        (("crop",), 5, 0.0, False),
        (("shift",), 5, 0.0, False),
        # A shift fills the border with 0.
        (("shift",), 5, 1.0, True),
        (("crop",), 5, 1.0, False),
    ],
)
def test_augmentation_can_move_pixels_to_the_border(
    augment: Any, row: int, fill: float, varies: bool
) -> None:
    x = torch.full((6, 1, 8, 8), fill)
    x[3, 0, row, 7] = 0.5
    assert first_values_vary(TensorData(x, torch.arange(6) % 3, 3, augment=augment), 3) == varies


def test_the_label_is_beside_flat_inputs_and_sequences() -> None:
    flat = TensorData(bordered().x.flatten(1), bordered().y, CLASSES)
    trainer = ff(make_mlp(width=64))
    trainer.fit(flat, epochs=1)
    assert encoding(trainer).beside
    tokens = TensorData(bordered().x[:, 0], bordered().y, CLASSES)
    net = nn.Sequential(nn.Conv1d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, CLASSES))
    trainer = ff(net)
    trainer.fit(tokens, epochs=1)
    assert encoding(trainer).beside


@pytest.mark.parametrize("net", [make_cnn, lambda: make_mlp(width=64)])
def test_a_trainer_that_was_built_sets_the_place_by_its_first_data(net: Any) -> None:
    first, second = ff(net()), ff(net())
    second.build((1, 8, 8), CLASSES)
    assert encoding(second).beside is None
    for trainer in (first, second):
        trainer.fit(images(), epochs=1)
        assert encoding(trainer).beside
    assert all(torch.equal(t, second.cascade.state_dict()[k]) for k, t in first.cascade.state_dict().items())


@pytest.mark.parametrize("change", ["optimizer", "learning rate"])
@pytest.mark.parametrize("by", ["fit", "load"])
def test_an_optimizer_of_the_user_updates_the_weights_of_labels(change: str, by: str, tmp_path: Path) -> None:
    settings: Any = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.01}
    saved = ff(make_mlp(width=64), **settings)
    saved.fit(images(), epochs=1)
    saved.save(tmp_path / "file")
    trainer = ff(make_mlp(width=64), **settings)
    trainer.build((1, 8, 8), CLASSES)
    (group,) = trainer.optimizers["block0"].param_groups
    if change == "optimizer":
        trainer.optimizers["block0"] = torch.optim.SGD(
            group["params"], 0.5, weight_decay=group["weight_decay"], fused=True
        )
    group["lr"] = 0.5
    second = torch.optim.SGD(trainer.optimizers["block1"].param_groups[0]["params"], 0.01)
    trainer.optimizers["block1"] = second
    first = trainer.optimizers["block0"]
    if by == "load":
        trainer.load(tmp_path / "file")
        before = snapshot(trainer.cascade)
    trainer.fit(images(), epochs=1)
    assert trainer.optimizers["block0"] is first
    assert trainer.optimizers["block1"] is second
    # The first block has the same bits as with this learning rate as a setting.
    fast = ff(make_mlp(width=64), **settings | {"lr": 0.5})
    fast.build_for(images())
    if by == "load":
        fast.cascade.load_state_dict(before)
    fast.fit(images(), epochs=1)
    expected = snapshot(fast.cascade.units[0])
    assert all(torch.equal(t, expected[n]) for n, t in snapshot(trainer.cascade.units[0]).items())


def test_a_step_before_fit_sets_the_place_by_its_batch() -> None:
    trainer, data = ff(make_cnn()), images()
    trainer.build((1, 8, 8), CLASSES)
    before = len(list(trainer.cascade.parameters()))
    trainer.step(data.x * 40, data.y)
    label = first_layer(trainer).label
    assert len(list(trainer.cascade.parameters())) == before + 1
    assert any(p is label.weight for g in trainer.optimizers["block0"].param_groups for p in g["params"])
    expected = (data.x * 40).square().mean().sqrt() * 3
    torch.testing.assert_close(label.unit, expected)
    trainer.step(data.x, data.y)
    torch.testing.assert_close(label.unit, expected)


@pytest.mark.parametrize("localized", [True, False])
def test_the_place_is_set_for_localized_networks_too(localized: bool) -> None:
    for data, beside in ((images(), True), (bordered(), False), (vectors(), True)):
        net = make_cnn() if data.x.ndim > 2 else make_mlp()
        trainer = (
            Local(localize(net, "goodness"), progress=False)
            if localized
            else Local(net, loss="goodness", progress=False)
        )
        trainer.fit(data, epochs=1)
        assert encoding(trainer).beside == beside
        assert isinstance(first_layer(trainer), LabeledLayer) == beside
    with_setting = Local(make_cnn(), loss="goodness", overlay="beside", progress=False)
    with_setting.fit(bordered(), epochs=1)
    assert encoding(with_setting).beside
    forced = localize(make_cnn(), "goodness", overlay="force")
    with pytest.warns(UserWarning, match="overwrites the first 3 values"):
        Local(forced, progress=False).fit(images(), epochs=1)


def test_networks_and_losses_without_a_place_for_labels_are_refused() -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(12, 16)

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.inner(x)

    net = nn.Sequential(Doubled(), nn.ReLU(), nn.Linear(16, CLASSES))
    with pytest.raises(BadValue, match="first layer with weights is a Doubled"):
        ff(net).fit(vectors(), epochs=1)
    with pytest.raises(BadValue, match="LocalCrossEntropy uses no label codes"):
        localize(make_mlp(), overlay="beside")
    with pytest.raises(BadValue, match=r"overlay = .beside.*bpfree.localize"):
        Local(localize(make_mlp(), "goodness"), overlay="beside", progress=False).build((12,), CLASSES)


def test_labels_are_not_added_beside_a_normalization_over_several_dimensions() -> None:
    net = nn.Sequential(nn.LayerNorm([1, 8, 8]), *make_cnn())
    trainer = ff(net, overlay="beside")
    trainer.fit(images(), epochs=1)
    first = first_layer(trainer)
    assert isinstance(first, LabeledLayer) and isinstance(first.layer, nn.Conv2d)
    assert [type(m) for m in first.before] == [nn.LayerNorm]


# ---- files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [vectors(), images(), bordered()], ids=["table", "images", "border"])
def test_a_file_contains_the_place_of_labels(tmp_path: Path, data: TensorData) -> None:
    def make() -> ForwardForward:
        return ff(make_mlp(width=data.x[0].numel()))

    trainer = make()
    trainer.fit(replace(data, x=data.x * 0.5), epochs=1)
    trainer.save(tmp_path / "file")
    built = make()
    built.build(data.sample_shape, CLASSES)
    for other in (make(), built):
        other.load(tmp_path / "file", data.sample_shape)
        assert encoding(other).beside == encoding(trainer).beside
        assert torch.equal(other.cascade(data.x), trainer.cascade(data.x))
        copied = copy.deepcopy(trainer)
        copied.reset_optimizers()
        for expected, loss in zip(copied.step(data.x, data.y), other.step(data.x, data.y), strict=True):
            assert torch.equal(loss, expected)


def test_loading_a_file_does_not_replace_an_optimizer_of_the_user(tmp_path: Path) -> None:
    trainer = ff(make_mlp(width=64), overlay="beside")
    trainer.fit(images(), epochs=1)
    trainer.save(tmp_path / "file")
    optimizer = torch.optim.SGD(trainer.cascade.units[0].trainable(), 0.1)
    trainer.optimizers["block0"] = optimizer
    trainer.load(tmp_path / "file")
    assert trainer.optimizers["block0"] is optimizer
    assert not trainer.optimizers["block1"].state


def test_a_file_with_another_place_of_labels_is_refused(tmp_path: Path) -> None:
    trainer = ff()
    trainer.fit(vectors(), epochs=1)
    trainer.save(tmp_path / "file")
    with pytest.raises(BadValue, match=r"label beside its input.*overlay = 'beside'"):
        ff(overlay="force").load(tmp_path / "file", (12,))


# ---- warnings --------------------------------------------------------------------------------------------


def warnings_of(trainer: Trainer, data: TensorData) -> list[str]:
    """The warnings of a training run."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(data, epochs=2, batch_size=16)
    return [str(w.message) for w in caught]


def test_force_warns_once_if_it_overwrites_values_that_vary() -> None:
    (message,) = warnings_of(ff(overlay="force"), vectors())
    assert "the label overwrites the first 3 values of a sample and these differ" in message
    trainer = ff(overlay="force")
    trainer.build((12,), CLASSES)
    with pytest.warns(UserWarning, match="first batch: the label overwrites"):
        trainer.step(vectors().x, vectors().y)
    trainer.step(vectors().x, vectors().y)
    assert warnings_of(ff(make_cnn(), overlay="force"), bordered()) == []


@pytest.mark.parametrize(
    ("data", "settings", "warned"),
    [
        (bordered(), {}, False),
        (bordered(scale=255.0), {}, True),
        (bordered(scale=0.01), {}, True),
        (bordered(scale=255.0), {"label_scale": 255.0}, False),
        (bordered(scale=255.0), {"overlay": "beside"}, False),
        (replace(bordered(), mean=(0.4,), std=(0.3,)), {}, True),
        (vectors(), {}, False),
        (table(), {}, False),
        (table(scale=255.0), {}, False),
    ],
)
def test_a_code_on_another_scale_than_the_inputs_gives_one_warning(
    data: TensorData, settings: Any, warned: bool
) -> None:
    net = make_mlp(width=data.x[0].numel())
    trainer = ff(net if data.n_classes == CLASSES else _with_four_outputs(net), **settings)
    messages = warnings_of(trainer, data)
    assert len(messages) == warned
    assert not warned or "the label code is 1 and the inputs have magnitudes up to" in messages[0]


def _with_four_outputs(net: nn.Sequential) -> nn.Sequential:
    return nn.Sequential(*net[:-1], nn.Linear(16, 4))


def test_features_that_length_normalization_makes_constant_give_a_warning() -> None:
    x = vectors().x
    (message,) = warnings_of(ff(), replace(vectors(), x=x + 100))
    assert "vary by 0.3% around their means" in message
    scaled = x.clone()
    scaled[:, 5] *= 1000
    (message,) = warnings_of(ff(), replace(vectors(), x=scaled))
    assert "input 5 has 100.0% of the variance of all 12 that vary" in message
    (message,) = warnings_of(ff(), replace(vectors(), x=x * 0))
    assert "0 everywhere" in message
    # No warning if the other features are constant.
    scaled[:, :5] = scaled[:, 6:] = 1.0
    assert warnings_of(ff(), replace(vectors(), x=scaled - scaled.mean(0))) == []


def test_other_data_than_those_that_set_the_place_give_a_warning() -> None:
    trainer = ff(make_mlp(width=64))
    assert warnings_of(trainer, bordered()) == []
    (message,) = warnings_of(trainer, images())
    assert "as earlier training data have set" in message
    trainer = ff()
    assert warnings_of(trainer, vectors()) == []
    assert warnings_of(trainer, vectors()) == []
    unit = first_layer(trainer).label.unit.clone()
    (message,) = warnings_of(trainer, replace(vectors(), x=vectors().x * 100))
    assert "100 times as long as those that set the scale" in message
    assert torch.equal(unit, first_layer(trainer).label.unit)


def test_digits_have_the_label_beside_them_and_give_no_warning() -> None:
    splits = load("digits")
    trainer = ff(make_mlp(16, width=64))
    trainer.net[-1] = nn.Linear(16, 10)
    assert first_values_vary(splits.train, 10)
    assert warnings_of(trainer, splits.train) == []
    assert encoding(trainer).beside
