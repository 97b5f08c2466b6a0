"""Labels over or beside the input: where training data put them, what is computed, and what is warned of."""

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
from bpfree.encodings.label_overlay import LabelledLayer, LabelOverlay, Overlaid, OverlaidLinear
from bpfree.testing import assert_locality
from bpfree.trainers.labels import first_values_vary
from tests.helpers import CLASSES, images, make_cnn, make_mlp, snapshot, vectors


def table(n: int = 400, width: int = 8, classes: int = 4, scale: float = 1.0, seed: int = 0) -> TensorData:
    """The class is told by the largest of the first columns, the very ones that a label would overwrite."""
    x = torch.randn(n, width, generator=torch.Generator().manual_seed(seed))
    return TensorData(x * scale, x[:, :classes].argmax(1), classes)


def bordered(n: int = 40, scale: float = 1.0) -> TensorData:
    """Images whose first row is 0 in all of them."""
    data = images(n)
    data.x[:, :, 0] = 0.0
    return replace(data, x=data.x * scale)


def first_layer(trainer: Trainer) -> Any:
    return trainer.cascade.units[0].body[0]  # type: ignore[index]


def encoding(trainer: Trainer) -> LabelOverlay:
    found = trainer.cascade.encoding
    assert isinstance(found, LabelOverlay)
    return found


def ff(net: nn.Module | None = None, **settings: Any) -> ForwardForward:
    return ForwardForward(make_mlp() if net is None else net, progress=False, **settings)


# ---- what is computed ------------------------------------------------------------------------------------


def test_beside_a_table_it_is_forward_forward_on_joined_columns() -> None:
    lr, data = 0.02, table(32, width=12, classes=CLASSES)
    trainer = ff(momentum=0.0, weight_decay=0.0, lr=lr, peer_weight=0.0, readout="goodness", classifier=False)
    trainer.build(data.sample_shape, CLASSES)
    x, y = data.batch(torch.arange(32))
    units = trainer.cascade.units
    first = first_layer(trainer)
    joined = torch.cat([first.label.weight, first.layer.weight], 1).detach().clone()
    layers = [(joined, first.layer.bias.detach().clone())]
    layers += [tuple(p.detach().clone() for p in block.body.parameters()) for block in units[1:]]
    # The code is as long as the samples are, by the root of the mean square.
    length = x.square().sum(1).mean().sqrt()
    for number in range(3):
        stream = _seeds.generator(torch.device("cpu"), 0, "negatives", 0, number)
        wrong = (y + torch.randint(1, CLASSES, y.shape, generator=stream)) % CLASSES
        h = torch.cat([F.one_hot(torch.cat([y, wrong]), CLASSES) * length, x.repeat(2, 1)], 1)
        sign = torch.cat([torch.ones(32), torch.zeros(32)])
        found = trainer.step(x, y, number)
        for k, (w, b) in enumerate(layers):
            w.requires_grad_(), b.requires_grad_()
            h = h.detach() / (h.detach().square().mean(1, keepdim=True).sqrt() + 1e-8)
            h = (h @ w.T + b).relu()
            loss = F.binary_cross_entropy_with_logits(h.square().sum(1) - h.shape[1], sign)
            torch.testing.assert_close(found[k], loss.detach(), rtol=1e-6, atol=1e-6)
            grads = torch.autograd.grad(loss, [w, b])
            layers[k] = tuple((p - lr * g).detach() for p, g in zip((w, b), grads, strict=True))
    now = torch.cat([first.label.weight, first.layer.weight], 1)
    torch.testing.assert_close(now.detach(), layers[0][0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(units[1].body[1].weight.detach(), layers[1][0], rtol=1e-6, atol=1e-6)  # type: ignore[index]


@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_a_class_that_the_first_columns_tell_is_learned(scale: float) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    trainer = ff(net)
    trainer.fit(table(scale=scale), epochs=30, batch_size=32)
    found = trainer.evaluate(table(scale=scale))["readouts"]
    assert found["classifier"] > 0.93
    assert found["goodness"] > 0.85


def test_there_may_be_fewer_inputs_than_classes() -> None:
    data = table(width=4)
    net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    trainer = ff(net)
    trainer.fit(data, epochs=15, batch_size=32)
    assert trainer.evaluate(data)["accuracy"] > 0.9


LAYERS: dict[str, tuple[list[nn.Module], nn.Module, tuple[int, ...]]] = {
    "linear": ([nn.Flatten()], nn.Linear(12, 5), (3, 4)),
    "tokens": ([], nn.Linear(4, 5, bias=False), (3, 4)),
    "signals": ([], nn.Conv1d(3, 5, 2), (3, 4)),
    "images": ([nn.BatchNorm2d(2).eval()], nn.Conv2d(2, 5, 3, padding=1, stride=2), (2, 4, 6)),
    "volumes": ([], nn.Conv3d(2, 4, 2, groups=2), (2, 3, 3, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_with_a_label_is_that_layer_on_normalized_rows_plus_the_columns(name: str) -> None:
    before, layer, shape = LAYERS[name]
    labelled = LabelledLayer(before, layer, CLASSES).double()  # type: ignore[arg-type]
    x = torch.rand(4, *shape, dtype=torch.float64)
    codes = torch.eye(CLASSES, dtype=torch.float64).unsqueeze(1)
    found = labelled(Overlaid(x, codes)).unflatten(0, (CLASSES, 4))
    for i in range(4):
        for label in range(CLASSES):
            code = codes[label, 0] * labelled.label.unit
            r = torch.cat([x[i].flatten(), code]).square().mean().sqrt() + 1e-8
            alone: Tensor = layer(nn.Sequential(*before)(x[i : i + 1] / r))[0]
            column = labelled.label.weight @ code / r
            own = column if name in ("linear", "tokens") else column.view(-1, *[1] * (alone.ndim - 1))
            torch.testing.assert_close(found[label, i], alone + own)


def test_the_columns_are_drawn_as_the_weights_of_the_layer_are() -> None:
    trainer = ff(make_mlp(400, width=200))
    trainer.build((200,), 3)
    first = first_layer(trainer)
    assert first.label.weight.shape == (400, 3)
    assert first.label.weight.std().item() == pytest.approx(400**-0.5, rel=0.1)


def test_the_users_network_stays_as_it_is_and_shares_its_weights() -> None:
    net = make_mlp()
    names = list(net.state_dict())
    trainer = ff(net)
    trainer.fit(vectors(), epochs=1)
    assert list(net.state_dict()) == names
    assert first_layer(trainer).layer is net[1]
    assert net(vectors().x).shape == (40, CLASSES)
    assert trainer.model(vectors().x).argmax(1).equal(trainer.predict(vectors().x))


def test_the_columns_belong_to_the_layer_that_they_stand_beside() -> None:
    for net, data in ((make_mlp(), vectors()), (make_cnn(), images())):
        trainer = ff(net)
        assert_locality(trainer, data.x, data.y)
        trainer.build(data.sample_shape, CLASSES)
        assert trainer.locality == "L2"


# ---- where the training data put it ----------------------------------------------------------------------


def test_over_a_border_that_never_varies_it_is_the_papers_overlay_bit_for_bit() -> None:
    states = []
    for overlay in ("auto", "force"):
        trainer = ff(make_mlp(width=64), overlay=overlay)
        trainer.fit(bordered(), epochs=2, batch_size=16)
        assert not encoding(trainer).beside
        assert type(first_layer(trainer)) is OverlaidLinear
        states.append(snapshot(trainer.cascade))
    assert all(torch.equal(t, states[1][name]) for name, t in states[0].items())


def test_one_pixel_of_one_image_puts_it_beside() -> None:
    data = bordered()
    data.x[-1, 0, 0, CLASSES] = 0.5
    assert not first_values_vary(data, CLASSES)
    data.x[-1, 0, 0, CLASSES - 1] = 0.5
    assert first_values_vary(data, CLASSES)
    trainer = ff(make_cnn())
    trainer.fit(data, epochs=1)
    assert encoding(trainer).beside
    assert type(first_layer(trainer)) is LabelledLayer


def test_values_are_those_of_the_flattened_sample() -> None:
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
        # What a shift brings in is 0.
        (("shift",), 5, 1.0, True),
        (("crop",), 5, 1.0, False),
    ],
)
def test_augmentation_moves_pixels(augment: Any, row: int, fill: float, varies: bool) -> None:
    x = torch.full((6, 1, 8, 8), fill)
    x[3, 0, row, 7] = 0.5
    assert first_values_vary(TensorData(x, torch.arange(6) % 3, 3, augment=augment), 3) == varies


def test_flat_input_and_sequences_are_no_images() -> None:
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
def test_a_trainer_that_was_built_before_decides_when_it_sees_data(net: Any) -> None:
    first, second = ff(net()), ff(net())
    second.build((1, 8, 8), CLASSES)
    assert encoding(second).beside is None
    for trainer in (first, second):
        trainer.fit(images(), epochs=1)
        assert encoding(trainer).beside
    assert all(torch.equal(t, second.cascade.state_dict()[k]) for k, t in first.cascade.state_dict().items())


@pytest.mark.parametrize("given", ["set", "changed"])
@pytest.mark.parametrize("by", ["fit", "load"])
def test_an_optimizer_from_outside_moves_the_weights_of_labels_too(
    given: str, by: str, tmp_path: Path
) -> None:
    settings: Any = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.01}
    saved = ff(make_mlp(width=64), **settings)
    saved.fit(images(), epochs=1)
    saved.save(tmp_path / "file")
    trainer = ff(make_mlp(width=64), **settings)
    trainer.build((1, 8, 8), CLASSES)
    (group,) = trainer.optimizers["block0"].param_groups
    if given == "set":
        trainer.optimizers["block0"] = torch.optim.SGD(
            group["params"], 0.5, weight_decay=group["weight_decay"], fused=True
        )
    group["lr"] = 0.5
    own = torch.optim.SGD(trainer.optimizers["block1"].param_groups[0]["params"], 0.01)
    trainer.optimizers["block1"] = own
    first = trainer.optimizers["block0"]
    if by == "load":
        trainer.load(tmp_path / "file")
        before = snapshot(trainer.cascade)
    trainer.fit(images(), epochs=1)
    assert trainer.optimizers["block0"] is first
    assert trainer.optimizers["block1"] is own
    # The same as with that rate as a setting: the bits of the first block.
    fast = ff(make_mlp(width=64), **settings | {"lr": 0.5})
    fast.build_for(images())
    if by == "load":
        fast.cascade.load_state_dict(before)
    fast.fit(images(), epochs=1)
    theirs = snapshot(fast.cascade.units[0])
    assert all(torch.equal(t, theirs[n]) for n, t in snapshot(trainer.cascade.units[0]).items())


def test_a_step_before_any_fit_takes_its_batch_for_the_data() -> None:
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


@pytest.mark.parametrize("premade", [True, False])
def test_localized_networks_do_so_too(premade: bool) -> None:
    for data, beside in ((images(), True), (bordered(), False), (vectors(), True)):
        net = make_cnn() if data.x.ndim > 2 else make_mlp()
        trainer = (
            Local(localize(net, "goodness"), progress=False)
            if premade
            else Local(net, loss="goodness", progress=False)
        )
        trainer.fit(data, epochs=1)
        assert encoding(trainer).beside == beside
        assert isinstance(first_layer(trainer), LabelledLayer) == beside
    asked = Local(make_cnn(), loss="goodness", overlay="beside", progress=False)
    asked.fit(bordered(), epochs=1)
    assert encoding(asked).beside
    forced = localize(make_cnn(), "goodness", overlay="force")
    with pytest.warns(UserWarning, match="overwrites the first 3 values"):
        Local(forced, progress=False).fit(images(), epochs=1)


def test_what_has_no_place_for_a_label_is_refused() -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(12, 16)

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.inner(x)

    net = nn.Sequential(Doubled(), nn.ReLU(), nn.Linear(16, CLASSES))
    with pytest.raises(BadValue, match="first layer with weights is a Doubled"):
        ff(net).fit(vectors(), epochs=1)
    with pytest.raises(BadValue, match="LocalCrossEntropy is shown no labels"):
        localize(make_mlp(), overlay="beside")
    with pytest.raises(BadValue, match=r"overlay = .beside.*bpfree.localize"):
        Local(localize(make_mlp(), "goodness"), overlay="beside", progress=False).build((12,), CLASSES)


def test_a_norm_over_several_dimensions_is_no_layer_for_a_label() -> None:
    net = nn.Sequential(nn.LayerNorm([1, 8, 8]), *make_cnn())
    trainer = ff(net, overlay="beside")
    trainer.fit(images(), epochs=1)
    first = first_layer(trainer)
    assert isinstance(first, LabelledLayer) and isinstance(first.layer, nn.Conv2d)
    assert [type(m) for m in first.before] == [nn.LayerNorm]


# ---- files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [vectors(), images(), bordered()], ids=["table", "images", "border"])
def test_a_file_says_where_the_label_goes(tmp_path: Path, data: TensorData) -> None:
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
        twin = copy.deepcopy(trainer)
        twin.reset_optimizers()
        for one, another in zip(twin.step(data.x, data.y), other.step(data.x, data.y), strict=True):
            assert torch.equal(one, another)


def test_an_optimizer_that_was_set_stays_when_a_file_is_loaded(tmp_path: Path) -> None:
    trainer = ff(make_mlp(width=64), overlay="beside")
    trainer.fit(images(), epochs=1)
    trainer.save(tmp_path / "file")
    own = torch.optim.SGD(trainer.cascade.units[0].trainable(), 0.1)
    trainer.optimizers["block0"] = own
    trainer.load(tmp_path / "file")
    assert trainer.optimizers["block0"] is own
    assert not trainer.optimizers["block1"].state


def test_a_file_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    trainer = ff()
    trainer.fit(vectors(), epochs=1)
    trainer.save(tmp_path / "file")
    with pytest.raises(BadValue, match=r"label beside its input.*overlay = 'beside'"):
        ff(overlay="force").load(tmp_path / "file", (12,))


# ---- warnings --------------------------------------------------------------------------------------------


def told(trainer: Trainer, data: TensorData) -> list[str]:
    """What is warned of while ``trainer`` trains."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(data, epochs=2, batch_size=16)
    return [str(w.message) for w in caught]


def test_force_warns_once_if_it_overwrites_what_varies() -> None:
    (message,) = told(ff(overlay="force"), vectors())
    assert "the label overwrites the first 3 values of a sample and these differ" in message
    trainer = ff(overlay="force")
    trainer.build((12,), CLASSES)
    with pytest.warns(UserWarning, match="first batch: the label overwrites"):
        trainer.step(vectors().x, vectors().y)
    trainer.step(vectors().x, vectors().y)
    assert told(ff(make_cnn(), overlay="force"), bordered()) == []


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
def test_scales_that_the_code_does_not_suit_are_warned_of_once(
    data: TensorData, settings: Any, warned: bool
) -> None:
    net = make_mlp(width=data.x[0].numel())
    found = told(ff(net, **settings) if data.n_classes == CLASSES else ff(_wider(net), **settings), data)
    assert len(found) == warned
    assert not warned or "the label code is 1 and the inputs have magnitudes up to" in found[0]


def _wider(net: nn.Sequential) -> nn.Sequential:
    return nn.Sequential(*net[:-1], nn.Linear(16, 4))


def test_columns_that_the_length_hides_are_warned_of() -> None:
    x = vectors().x
    (message,) = told(ff(), replace(vectors(), x=x + 100))
    assert "vary by 0.3% around their means" in message
    far = x.clone()
    far[:, 5] *= 1000
    (message,) = told(ff(), replace(vectors(), x=far))
    assert "input 5 has 100.0% of the variance of all 12 that vary" in message
    (message,) = told(ff(), replace(vectors(), x=x * 0))
    assert "0 everywhere" in message
    # There is nothing to hide in the others.
    far[:, :5] = far[:, 6:] = 1.0
    assert told(ff(), replace(vectors(), x=far - far.mean(0))) == []


def test_other_data_than_the_label_was_placed_for_are_warned_of() -> None:
    trainer = ff(make_mlp(width=64))
    assert told(trainer, bordered()) == []
    (message,) = told(trainer, images())
    assert "as was decided before these data were seen" in message
    trainer = ff()
    assert told(trainer, vectors()) == []
    assert told(trainer, vectors()) == []
    unit = first_layer(trainer).label.unit.clone()
    (message,) = told(trainer, replace(vectors(), x=vectors().x * 100))
    assert "100 times as long as those that the scale" in message
    assert torch.equal(unit, first_layer(trainer).label.unit)


def test_the_digits_of_the_default_suite_have_it_beside_and_nothing_to_warn_of() -> None:
    splits = load("digits")
    trainer = ff(make_mlp(16, width=64))
    trainer.net[-1] = nn.Linear(16, 10)
    assert first_values_vary(splits.train, 10)
    assert told(trainer, splits.train) == []
    assert encoding(trainer).beside
