"""Cutting: a cascade of a network computes what the network computes, and shares its parameters."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from bpfree import Backprop, BadValue, ForwardForward, Local, MonoForward, localize, split
from bpfree.core.localize import ordered_modules
from bpfree.losses import Goodness, LocalSparsemax, loss_names
from bpfree.trainers import Trainer
from tests.helpers import CLASSES, easy, images, make_cnn, make_mlp, vectors


def settled(net: nn.Module) -> nn.Module:
    """Set statistics of normalization layers that differ from 0 and 1, so that each layer has an effect."""
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return net


def vgg() -> nn.Module:
    torch.manual_seed(0)
    net = torchvision.models.vgg11_bn(num_classes=10)
    # The same architecture with narrow hidden layers: the wide ones are half a gigabyte.
    net.avgpool = nn.AdaptiveAvgPool2d(1)
    net.classifier[0], net.classifier[3] = nn.Linear(512, 32), nn.Linear(32, 24)
    net.classifier[6] = nn.Linear(24, 10)
    return settled(net)


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return settled(torchvision.models.resnet18(num_classes=10))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "mlp": (lambda: make_mlp(dropout=0.5), (12,), 2),
    "cnn": (lambda: settled(make_cnn(batch_norm=True)), (1, 8, 8), 2),
    "vgg11_bn": (vgg, (3, 32, 32), 10),
    # A stem and four stages of two residual blocks each.
    "resnet18": (resnet, (3, 32, 32), 9),
}
nets = pytest.mark.parametrize(("make", "shape", "n_blocks"), NETS.values(), ids=NETS.keys())


def samples(shape: tuple[int, ...], n: int = 3) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(1))


@nets
def test_the_cascade_has_the_output_of_the_network(
    make: Callable[[], nn.Module], shape: tuple[int, ...], n_blocks: int
) -> None:
    net, x = make().eval(), samples(shape)
    cascade = localize(net).eval()
    assert len(cascade.units) == n_blocks
    with torch.no_grad():
        cascade.build(x, net(x).shape[1])
        torch.testing.assert_close(cascade(x), net(x))
        for block in cascade.units:
            for p in block.body.parameters():
                p.mul_(1.1)
        torch.testing.assert_close(cascade(x), net(x))


@pytest.mark.parametrize("name", NETS)
def test_the_state_dict_of_the_network_does_not_change(name: str) -> None:
    net = NETS[name][0]()
    names = list(net.state_dict())
    cascade = localize(net)
    assert cascade.to_module() is net
    assert list(net.state_dict()) == names
    assert {id(p) for p in cascade.parameters()} == {id(p) for p in net.parameters()}


@pytest.mark.parametrize("name", NETS)
def test_training_the_cascade_trains_all_layers_of_the_network(name: str) -> None:
    make, shape, _ = NETS[name]
    net = make()
    before = {key: p.detach().clone() for key, p in net.named_parameters()}
    trainer = Local(net, progress=False)
    classes = CLASSES if name in ("mlp", "cnn") else 10
    x = samples(shape, 4)
    trainer.build(shape, classes)
    trainer.step(x, torch.arange(4) % CLASSES)
    assert trainer.model is net
    still = [key for key, p in net.named_parameters() if torch.equal(p, before[key])]
    assert still == []


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet18"])
def test_the_trained_network_can_be_exported(name: str) -> None:
    make, shape, _ = NETS[name]
    net, x = localize(make()).to_module().eval(), samples(shape)
    exported = torch.export.export(net, (x,)).module()
    torch.testing.assert_close(exported(x), net(x))


def test_a_cascade_with_another_readout_can_be_exported() -> None:
    trainer = MonoForward(make_mlp(), readout="sum_probabilities", progress=False)
    trainer.fit(vectors(), epochs=1)
    x = samples((12,))
    exported = torch.export.export(trainer.model, (x,)).module()
    torch.testing.assert_close(exported(x), trainer.model(x))


def test_a_forward_forward_network_can_be_exported() -> None:
    trainer = ForwardForward(make_mlp(), progress=False)
    trainer.fit(vectors(), epochs=1)
    x = samples((12,))
    exported = torch.export.export(trainer.model.eval(), (x,)).module()
    torch.testing.assert_close(exported(x), trainer.model(x))


# ---- cuts -----------------------------------------------------------------------------------------------


def kinds(stage: nn.Module) -> str:
    """First letters of the layers, as in ``FLR``."""
    return "".join(type(layer).__name__[0] for layer in stage.children())


def deep(*layers: str) -> nn.Sequential:
    """A net of convolutions C, poolings M, ReLUs R, a flattening F and linear layers L, all of width 4."""
    kind: dict[str, Callable[[], nn.Module]] = {
        "C": lambda: nn.Conv2d(1, 1, 3, padding=1),
        "M": lambda: nn.MaxPool2d(2),
        "R": nn.ReLU,
        "F": nn.Flatten,
        "L": lambda: nn.Linear(4, 4),
    }
    return nn.Sequential(*(kind[name]() for name in "".join(layers)))


@pytest.mark.parametrize(
    ("layers", "cut", "stages", "output"),
    [
        ("FLRLRL", "weight", ["FLR", "LR"], "Linear"),
        ("FLRLRL", "linear", ["FLR", "LR"], "Linear"),
        ("CRCRFL", "conv", ["CR", "CRF"], "Linear"),
        # Only at convolutions or linear layers. Layers with weights before the first one are a block.
        ("CRCRFLRLRL", "conv", ["CR", "CRFLRLR"], "Linear"),
        ("CRCRFLRLRL", "linear", ["CRCRF", "LR", "LR"], "Linear"),
        ("CRCRMFLRLRL", "weight", ["CR", "CRMF", "LR", "LR"], "Linear"),
        ("FLRLRLRLRL", 1, ["FLRLRLRLR"], "Linear"),
        ("FLRLRLRLRL", 2, ["FLRLR", "LRLR"], "Linear"),
        ("FLRLRLRLRL", 4, ["FLR", "LR", "LR", "LR"], "Linear"),
        ("FLRLRLRLRL", ["5"], ["FLRLR", "LRLR"], "Linear"),
        ("FLRLRLRLRL", ["7", "3"], ["FLR", "LRLR", "LR"], "Linear"),
        ("CRCRMCRCRMFL", "weight", ["CR", "CRM", "CR", "CRMF"], "Linear"),
        ("CRCRMCRMFL", "pool", ["CRCRM", "CRMF"], "Linear"),
        # There are no weights after the last pooling, so no block begins there.
        ("CRCRMCRCRMFL", "pool", ["CRCRM", "CRCRMF"], "Linear"),
        ("CRMCRMFLRL", "pool", ["CRM", "CRMF", "LR"], "Linear"),
        # Modules after the output layer belong to it.
        ("FLRLR", "weight", ["FLR"], "Sequential"),
    ],
)
def test_blocks_begin_at_the_cuts(layers: str, cut: Any, stages: list[str], output: str) -> None:
    found, head = split(deep(layers), cut)
    assert [kinds(stage) for stage in found] == stages
    assert type(head).__name__ == output


def test_modules_in_containers_have_their_full_names() -> None:
    net = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Sequential(nn.Linear(4, 4)))
    assert [name for name, _ in ordered_modules(net)] == ["0.0", "0.1", "1.0"]
    stages, output = split(net)
    assert (kinds(stages[0]), type(output).__name__) == ("LR", "Linear")


def test_vgg_can_be_cut_after_its_poolings() -> None:
    net, x = vgg().eval(), samples((3, 32, 32))
    cascade = localize(net, cut="pool").eval()
    # There are five poolings; the classifier begins after the last.
    assert len(cascade.units) == 6
    with torch.no_grad():
        cascade.build(x, 10)
        torch.testing.assert_close(cascade(x), net(x))


def test_a_norm_belongs_to_the_layer_before_it() -> None:
    stages, _ = split(make_cnn(batch_norm=True))
    assert [kinds(stage) for stage in stages] == ["CBRA", "CBRAF"]


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (0, "cut = 0: expected 1 to 4 blocks"),
        (5, "cut = 5: expected 1 to 4"),
        (-1, "cut = -1"),
        ("layers", "cut = 'layers': unknown; expected weight"),
        (["6x"], "cut at '6x': no such module"),
        (["9"], "cut at '9': no such module"),  # the output layer
    ],
)
def test_invalid_cuts_are_refused(cut: Any, message: str) -> None:
    with pytest.raises(BadValue, match=message):
        split(deep("FLRLRLRLRL"), cut)
    with pytest.raises(BadValue, match=message):
        MonoForward(deep("FLRLRLRLRL"), cut=cut, progress=False).build((4,), 4)


@pytest.mark.parametrize("cut", [["0"], ["2", "3"]])
def test_a_cut_with_a_block_without_weights_is_refused(cut: list[str]) -> None:
    # There are no weights between two of the names.
    with pytest.raises(BadValue, match="cut"):
        ForwardForward(make_mlp(), cut=cut, progress=False).build((12,), CLASSES)


@pytest.mark.parametrize("net", [nn.Linear(4, 4), deep("FLR"), torchvision.models.SqueezeNet(num_classes=3)])
def test_a_net_that_cannot_be_cut_is_refused(net: nn.Module) -> None:
    with pytest.raises(BadValue, match=r"has [01] layers with weights .*pass an nn\.Sequential"):
        split(net)


class Skipping(nn.Sequential):
    """Does not call its children in order."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self[0](x)
        return self[2](hidden + self[1](hidden))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(MonoForward, {}), (MonoForward, {"readout": "sum"}), (Backprop, {}), (ForwardForward, {})],
)
def test_a_module_that_does_not_call_its_children_in_order_is_refused(
    kind: type[Trainer], settings: Any
) -> None:
    net = Skipping(nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, CLASSES))
    with pytest.raises(BadValue, match="Skipping does not call its children in order"):
        kind(net, progress=False, **settings).fit(vectors(), epochs=1)


@pytest.mark.parametrize(("layers", "cut"), [("FLRLRL", "conv"), ("CRCRCRFL", "linear")])
def test_a_cut_at_a_missing_kind_of_layer_is_refused(layers: str, cut: str) -> None:
    with pytest.raises(BadValue, match=f"cut = '{cut}': there is no such layer"):
        split(deep(layers), cut)


def test_vgg_can_be_cut_at_its_convolutions() -> None:
    # VGG-11 has eight; its two hidden linear layers are in the last block.
    net, x = vgg().eval(), samples((3, 32, 32))
    cascade = localize(net, cut="conv").eval()
    assert len(cascade.units) == 8
    with torch.no_grad():
        cascade.build(x, 10)
        torch.testing.assert_close(cascade(x), net(x))
    # All convolutions are one block, followed by one block for each of the two.
    assert len(localize(net, cut="linear").units) == 3


# ---- losses ----------------------------------------------------------------------------------------------


def test_localize_accepts_the_name_of_a_loss() -> None:
    with pytest.raises(BadValue, match="unknown local loss 'mono'"):
        localize(make_mlp(), loss="mono")


def test_localize_accepts_a_function_that_returns_a_loss() -> None:
    cascade = localize(make_mlp(16, 16, 16), loss=LocalSparsemax)
    assert [type(loss).__name__ for loss in cascade.losses] == ["LocalSparsemax"] * 2 + ["LocalCrossEntropy"]
    cascade = localize(make_mlp(16, 16, 16), loss=partial(Goodness, "mean"))
    assert [loss.goodness_form for loss in cascade.losses] == ["mean"] * 3


@pytest.mark.parametrize("name", [name for name in loss_names() if "." not in name])
def test_all_losses_localize_an_mlp_and_a_convolutional_net(name: str) -> None:
    for net, data in ((make_mlp(), easy()), (make_cnn(), images())):
        trainer = Local(localize(net, loss=name), progress=False, lr=0.02)
        history = trainer.fit(data, data, epochs=6, batch_size=16)
        assert len(trainer.cascade.units) == 2
        assert all(last <= first for first, last in zip(
            history.rows[0]["loss"], history.rows[-1]["loss"], strict=True
        ))  # fmt: skip
        if data.x.ndim == 2:
            assert trainer.evaluate(easy(seed=1))["accuracy"] > 0.8


def test_a_localized_goodness_is_forward_forward_without_a_classifier() -> None:
    net = localize(make_mlp(16, 16, 16), loss="goodness")
    ours = Local(net, readout="sum", progress=False, lr=0.01)
    theirs = ForwardForward(
        make_mlp(16, 16, 16), progress=False, lr=0.01, optimizer="adam", weight_decay=0.0,
        lr_schedule="constant", peer_weight=0.0, readout="goodness", classifier=False, init="torch",
    )  # fmt: skip
    for trainer in (ours, theirs):
        trainer.fit(easy(), epochs=2, batch_size=16)
    for one, other in zip(ours.cascade.units, theirs.cascade.units, strict=True):
        found, expected = one.body.state_dict(), other.body.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert torch.equal(ours.predict(easy(seed=1).x), theirs.predict(easy(seed=1).x))


def test_a_one_pass_loss_does_not_change_the_network() -> None:
    net = make_mlp(32, 32)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    trainer = Local(localize(net, loss="closed_form"), progress=False)
    trainer.fit(easy(), easy(seed=1), batch_size=16)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert trainer.evaluate(easy(seed=2))["accuracy"] > 0.9
    assert trainer.locality == "L3"


@pytest.mark.parametrize("loss", ["mono_forward", "goodness"])
def test_a_localized_network_can_have_a_readout_of_any_block(loss: str) -> None:
    net = localize(make_mlp(16, 16, 16), loss=loss)
    trainer = Local(net, readout="block:2", progress=False)
    trainer.fit(easy(), easy(seed=1), epochs=2, batch_size=16)
    found = trainer.evaluate(easy(seed=2))
    assert trainer.cascade.headline == "block:2"
    assert found["accuracy"] == found["blocks"][1]


def test_saved_weights_can_be_loaded_into_the_original_architecture(tmp_path: Path) -> None:
    trainer = MonoForward(make_cnn(batch_norm=True), progress=False)
    trainer.fit(images(), epochs=1)
    path = tmp_path / "weights.pt"
    torch.save(trainer.model.state_dict(), path)
    fresh = make_cnn(seed=9, batch_norm=True).eval()
    fresh.load_state_dict(torch.load(path))
    x, _ = images().batch(torch.arange(8))
    assert torch.equal(fresh(x).argmax(1), trainer.predict(x))


def test_a_cut_at_activations_puts_passive_layers_into_the_next_block() -> None:
    net = make_cnn(pool="max")
    kinds = [[type(m).__name__ for m in block.body] for block in localize(net, cut="activation").units]
    assert kinds == [["Conv2d", "ReLU"], ["MaxPool2d", "Conv2d", "ReLU", "MaxPool2d", "Flatten"]]
    trainer = MonoForward(net, cut="activation", progress=False)
    trainer.build((1, 8, 8), CLASSES)
    torch.testing.assert_close(trainer.model(images().x), net(images().x))


def test_the_output_layer_can_be_a_block_or_unused() -> None:
    net = make_cnn(pool="max")
    apart = localize(net, "mono_forward", "activation", output="apart")
    assert [type(m).__name__ for m in apart.units[1].body] == ["MaxPool2d", "Conv2d", "ReLU"]
    assert [type(m).__name__ for m in apart.units[2].body] == ["MaxPool2d", "Flatten"]
    apart.build(images().x, CLASSES)
    assert apart.losses[2].head is net[-1]
    assert apart.to_module() is net
    torch.testing.assert_close(apart.eval()(images().x), net.eval()(images().x))
    whole = localize(net, "mono_forward", output="apart")
    assert [len(block.body) for block in whole.units] == [3, 4, 0]
    aside = localize(net, "mono_forward", output="none")
    aside.build(images().x, CLASSES)
    assert len(aside.units) == 2
    assert not {id(p) for p in net[-1].parameters()} & {id(p) for p in aside.parameters()}


def test_output_apart_is_refused_for_losses_without_an_output_layer() -> None:
    for loss in ("goodness", "closed_form"):
        with pytest.raises(BadValue, match="is used in all blocks, without an output layer"):
            localize(make_mlp(), loss, output="apart")


def test_localize_passes_options_to_the_loss() -> None:
    cascade = localize(make_mlp(16, 16), "prototype_goodness", options={"temperature": 0.5}, output="none")
    assert [loss.temperature for loss in cascade.losses] == [0.5, 0.5]
    with pytest.raises(BadValue, match=r"loss_options of 'predsim'\.weight: unknown key.*sim_weight"):
        localize(make_mlp(), "predsim", options={"weight": 0.5})


@pytest.mark.parametrize(("layers", "blocks"), [(5, 2), (5, 3), (7, 3), (7, 4), (8, 3)])
def test_a_number_that_does_not_divide_the_layers_gives_blocks_of_similar_size(
    layers: int, blocks: int
) -> None:
    stages, _ = split(make_mlp(*[8] * layers), blocks)
    sizes = [sum(isinstance(m, nn.Linear) for m in stage) for stage in stages]
    assert len(sizes) == blocks
    assert sum(sizes) == layers
    assert max(sizes) - min(sizes) == 1


# ---- layers that begin a block ---------------------------------------------------------------------------


class Gain(nn.Module):
    """Scales each channel."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


@pytest.mark.parametrize(
    "scale",
    [
        nn.PReLU,
        lambda: nn.RMSNorm([4, 8, 8]),
        lambda: nn.LayerNorm([4, 8, 8]),
        lambda: nn.InstanceNorm2d(4, affine=True),
        lambda: nn.GroupNorm(2, 4),
        lambda: Gain(4, 1, 1),
        lambda: Gain(1, 4, 1, 1),
    ],
)
def test_layers_that_only_scale_belong_to_the_block_below(scale: Callable[[], nn.Module]) -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), scale(), nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1), scale(), nn.Flatten(),
        nn.Linear(256, CLASSES), Gain(CLASSES),
    )  # fmt: skip
    stages, output = split(net)
    assert [len(stage) for stage in stages] == [3, 3]
    assert isinstance(stages[0][0], nn.Conv2d)
    assert [type(m) for m in output] == [nn.Linear, Gain]  # type: ignore[attr-defined]
    with pytest.raises(BadValue, match="expected 1 to 2 blocks"):
        split(net, 3)


def test_the_gradient_of_a_block_passes_its_prelu() -> None:
    """Each block is trained by its cross-entropy, computed after the activation."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 8), nn.PReLU(), nn.Linear(8, 8), nn.PReLU(8), nn.Linear(8, CLASSES))
    trainer = MonoForward(net, progress=False, optimizer="sgd", lr=0.1, momentum=0.0)
    trainer.build((12,), CLASSES)
    head = trainer.cascade.losses[0].linear.weight.detach().clone().requires_grad_()  # type: ignore[operator, union-attr]
    weights = [p.detach().clone().requires_grad_() for p in net.parameters()]
    x, y = vectors().batch(torch.arange(10))
    trainer.step(x, y)
    w1, b1, a1, w2, b2, a2, w3, b3 = weights
    hidden = torch.where((z := x @ w1.T + b1) > 0, z, a1 * z)
    nn.functional.cross_entropy(hidden @ head.T, y).backward()
    above = torch.where((z := hidden.detach() @ w2.T + b2) > 0, z, a2 * z)
    nn.functional.cross_entropy(above @ w3.T + b3, y).backward()
    for ours, p in zip(net.parameters(), weights, strict=True):
        assert p.grad is not None
        torch.testing.assert_close(ours.detach(), p.detach() - 0.1 * p.grad)


@pytest.mark.parametrize(
    ("conv", "pool", "shape"),
    [
        (nn.Conv1d, lambda: nn.MaxPool1d(2), (1, 16)),
        (nn.Conv1d, lambda: nn.AdaptiveAvgPool1d(4), (1, 16)),
        (nn.Conv1d, lambda: nn.LPPool1d(2, 2), (1, 16)),
        (nn.Conv2d, lambda: nn.FractionalMaxPool2d(2, output_ratio=0.5), (1, 8, 8)),
        (nn.Conv3d, lambda: nn.AvgPool3d(2), (1, 4, 4, 4)),
    ],
)
def test_poolings_of_all_dimensions_end_blocks(
    conv: type[nn.Module], pool: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    body = (conv(1, 2, 3, padding=1), nn.ReLU(), pool(), conv(2, 2, 3, padding=1), nn.ReLU(), nn.Flatten())
    width = nn.Sequential(*body)(torch.rand(1, *shape)).shape[1]
    trainer = MonoForward(nn.Sequential(*body, nn.Linear(width, CLASSES)), cut="pool", progress=False)
    trainer.build(shape, CLASSES)
    assert [len(block.body) for block in trainer.cascade.units] == [3, 3]  # type: ignore[arg-type]
    with pytest.raises(BadValue, match="cut = 'pool': there is no pooling"):
        split(make_mlp(), "pool")


def test_lazy_layers_are_refused() -> None:
    net = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.Linear(8, CLASSES))
    with pytest.raises(BadValue, match="a lazy layer with uninitialized parameters"):
        MonoForward(net, progress=False).fit(vectors(), epochs=1)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (MonoForward, {"head_pool": 1}),
        (MonoForward, {"head_features": 64}),
        (MonoForward, {"cut": 1}),
        (Local, {"loss": "predsim"}),
        (Local, {"loss_options": {"sim_weight": 0.5}}),
        (Local, {"output": "none"}),
    ],
)
def test_settings_of_the_cut_are_refused_for_a_network_that_has_been_cut(
    kind: type[Trainer], settings: Any
) -> None:
    with pytest.raises(
        BadValue, match=f"{next(iter(settings))} = .*has its blocks and losses already.*bpfree.localize"
    ):
        kind(localize(make_cnn()), progress=False, **settings)
    kind(localize(make_cnn()), progress=False, readout="sum").build((1, 8, 8), CLASSES)
