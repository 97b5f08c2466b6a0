"""Networks of other kinds: layers that scale, recurrent ones, blocks, tied, reused, frozen, compiled, pretrained."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.utils.parametrizations as parametrizations
from torch import Tensor, nn
from torch.nn.utils import parametrize

import bpfree
from benchmarks.robustness import _by_hand as hand
from benchmarks.robustness import _nets as nets
from benchmarks.robustness._case import (
    ANY,
    REFUSED,
    RIGHT,
    RIGHT_OR_REFUSED,
    RIGHT_OR_WARNED,
    SPOKEN,
    Case,
    Cases,
    Outcome,
)
from benchmarks.robustness._compare import as_by_hand, learns, rates, row, solves, trainer_of
from benchmarks.robustness._judge import Watch
from benchmarks.robustness._samples import samples
from bpfree import testing
from bpfree.trainers import TRAINERS

found = Cases()


def _seeded(make: Callable[[], Sequence[nn.Module]], *starts: int) -> Callable[[], hand.Net]:
    def made() -> hand.Net:
        torch.manual_seed(3)
        return nets.of(make(), starts)

    return made


def _by_hand(
    trainers: Sequence[str],
    name: str,
    shape: tuple[int, ...],
    make: Callable[[], hand.Net],
    expected: frozenset[Outcome] = RIGHT,
    text: str = "plain",
    **settings: Any,
) -> None:
    for trainer in trainers:

        def attempt(watch: Watch, trainer: str = trainer) -> str | None:
            s = samples(*shape)
            return as_by_hand(watch, trainer, make, s.data, s, **settings)

        found.add(trainer, name, text, expected)(attempt)


def _solved(
    trainers: Sequence[str],
    name: str,
    shape: tuple[int, ...],
    make: Callable[[], nn.Module],
    expected: frozenset[Outcome] = RIGHT,
    text: str = "plain",
    at_least: float = 0.7,
    says: str = "",
    **settings: Any,
) -> None:
    for trainer in trainers:

        def attempt(watch: Watch, trainer: str = trainer) -> str | None:
            torch.manual_seed(3)
            s, net = samples(*shape), make()
            fit = {"epochs": 40}
            return solves(watch, trainer, net, s.data, s, at_least=at_least, fit=fit, **settings)

        found.add(trainer, name, text, expected, says)(attempt)


TWO = ("mono_forward", "backprop")
LOCAL = ("mono_forward", "local", "dfa", "cafo", "random_features")

# ---- layers that only scale --------------------------------------------------------------------------------

SCALING: dict[str, Callable[[], nn.Module]] = {
    "PReLU": nn.PReLU,
    "PReLU of each unit": lambda: nn.PReLU(16),
    "RMSNorm": lambda: nn.RMSNorm(16),
    "LayerNorm": lambda: nn.LayerNorm(16),
    "gain": lambda: nets.Gain(16),
    "batch norm": lambda: nn.BatchNorm1d(16),
    "GroupNorm": lambda: nn.GroupNorm(4, 16),
}

for _name, _layer in SCALING.items():
    _by_hand(
        ("mono_forward",) if _name != "PReLU" else LOCAL,
        f"mlp with {_name} behind the first layer",
        (12,),
        _seeded(
            lambda layer=_layer: [
                nn.Linear(12, 16),
                *([] if isinstance(layer(), nn.PReLU) else [nn.ReLU()]),
                layer(),
                nn.Linear(16, 14),
                nn.ReLU(),
                nn.Linear(14, 3),
            ],
            0,
            2 if isinstance(_layer(), nn.PReLU) else 3,
            4 if isinstance(_layer(), nn.PReLU) else 5,
        ),
    )

_by_hand(
    ("mono_forward", "dfa"),
    "conv2d with affine InstanceNorm",
    (1, 8, 8),
    _seeded(
        lambda: [
            nn.Conv2d(1, 4, 3),
            nn.InstanceNorm2d(4, affine=True),
            nn.ReLU(),
            nn.Conv2d(4, 5, 3),
            nn.PReLU(5),
            nn.Flatten(),
            nn.Linear(80, 3),
        ],
        0,
        3,
        6,
    ),
)
_by_hand(
    ("mono_forward",),
    "mlp with a scaling layer in front",
    (12,),
    _seeded(
        lambda: [nn.LayerNorm(12), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)],
        0,
        3,
        5,
    ),
)
_by_hand(
    ("mono_forward",),
    "mlp with a scaling layer behind the output",
    (12,),
    _seeded(
        lambda: [nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3), nets.Gain(3)],
        0,
        2,
        4,
    ),
    RIGHT_OR_REFUSED,
)

# ---- convolutions, recurrent layers, attention ----------------------------------------------------------------

_by_hand(
    TWO,
    "conv1d without pooling, dilated",
    (2, 12),
    _seeded(
        lambda: [
            nn.Conv1d(2, 4, 3, dilation=2),
            nn.Tanh(),
            nn.Conv1d(4, 4, 3, groups=2),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(24, 3),
        ],
        0,
        2,
        5,
    ),
)
_by_hand(
    ("mono_forward", "dfa"),
    "transposed convolution",
    (1, 8, 8),
    _seeded(
        lambda: [
            nn.Conv2d(1, 4, 3, stride=2),
            nn.ReLU(),
            nn.ConvTranspose2d(4, 3, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(147, 3),
        ],
        0,
        2,
        5,
    ),
)
_by_hand(
    (*LOCAL, "backprop"),
    "LSTM of two layers",
    (6, 4),
    _seeded(
        lambda: [nets.Steps(nn.LSTM(4, 8, batch_first=True)), nets.LastStep(nn.LSTM(8, 8, batch_first=True)), nn.Linear(8, 3)],
        0,
        1,
        2,
    ),
)
_by_hand(
    ("mono_forward", "backprop", "cafo"),
    "GRU",
    (6, 4),
    _seeded(lambda: [nets.LastStep(nn.GRU(4, 12, batch_first=True)), nn.Linear(12, 3)], 0, 1),
)
_by_hand(
    ("mono_forward", "backprop", "dfa"),
    "transformer encoder layers",
    (5, 8),
    _seeded(
        lambda: [
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
            nn.Flatten(),
            nn.Linear(40, 3),
        ],
        0,
        1,
        3,
    ),
    RIGHT_OR_WARNED,
)
_by_hand(
    ("mono_forward", "backprop"),
    "residual blocks",
    (12,),
    _seeded(
        lambda: [
            nn.Linear(12, 16),
            nn.ReLU(),
            nets.Residual(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))),
            nn.ReLU(),
            nn.Linear(16, 3),
        ],
        0,
        2,
        4,
    ),
)
_by_hand(
    ("mono_forward", "dfa", "cafo", "backprop"),
    "linear layers over a sequence",
    (5, 8),
    _seeded(
        lambda: [nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 6), nn.ReLU(), nn.Flatten(), nn.Linear(30, 3)],
        0,
        2,
        5,
    ),
)
_solved(
    ("forward_forward",), "LSTM", (6, 4), lambda: nn.Sequential(nets.LastStep(nn.LSTM(4, 24, batch_first=True)), nn.Linear(24, 3)), ANY
)
for _trainer in ("counter_current",):
    _solved(
        (_trainer,),
        "conv2d with a hidden linear layer",
        (1, 8, 8),
        lambda: nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(96, 24), nn.ReLU(), nn.Linear(24, 3)
        ),
        RIGHT_OR_REFUSED,
        at_least=0.5,
    )
    _solved((_trainer,), "conv2d", (1, 8, 8), lambda: row(nets.conv2d()), at_least=0.5)
    _solved((_trainer,), "conv1d", (1, 12), lambda: row(nets.conv1d()), RIGHT_OR_REFUSED, at_least=0.5)
    _solved((_trainer,), "conv3d", (1, 4, 4, 4), lambda: row(nets.conv3d()), RIGHT_OR_REFUSED, at_least=0.5)
    _solved(
        (_trainer,),
        "linear layers over a sequence",
        (5, 8),
        lambda: nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Flatten(), nn.Linear(50, 3)),
        RIGHT_OR_REFUSED,
        at_least=0.5,
    )
    _solved(
        (_trainer,),
        "conv2d with an even kernel",
        (1, 8, 8),
        lambda: nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 2), nn.ReLU(), nn.Flatten(), nn.Linear(200, 3)),
        RIGHT_OR_REFUSED,
        at_least=0.5,
    )
for _name, _net, _shape in (
    ("conv1d", nets.conv1d, (1, 12)),
    ("conv2d", nets.conv2d, (1, 8, 8)),
    ("conv3d", nets.conv3d, (1, 4, 4, 4)),
):
    for _loss in ("predsim", "mean_goodness", "prototype_goodness", "sparsemax", "closed_form"):
        _solved(
            ("local",),
            _name,
            _shape,
            lambda net=_net: row(net()),
            RIGHT_OR_REFUSED if _name != "conv2d" else RIGHT,
            f"loss {_loss}",
            at_least=0.6,
            loss=_loss,
        )
for _loss in ("predsim", "mean_goodness", "prototype_goodness"):
    _solved(
        ("local",),
        "LSTM of two layers",
        (6, 4),
        lambda: nn.Sequential(
            nets.Steps(nn.LSTM(4, 16, batch_first=True)), nets.LastStep(nn.LSTM(16, 16, batch_first=True)), nn.Linear(16, 3)
        ),
        RIGHT_OR_REFUSED,
        f"loss {_loss}",
        at_least=0.5,
        loss=_loss,
    )
_solved(
    ("forward_forward",), "conv2d", (1, 8, 8), lambda: row(nets.conv2d()), RIGHT_OR_WARNED, at_least=0.5, lr=0.03
)
_solved(
    ("forward_forward",), "conv1d", (1, 16), lambda: row(nets.conv1d(length=16)), RIGHT_OR_WARNED | REFUSED, at_least=0.5
)

# ---- cut by pooling -------------------------------------------------------------------------------------------


def _level(name: str, net: Callable[[], nn.Module], shape: tuple[int, ...], blocks: int, level: str, cut: Any) -> None:
    for trainer in ("mono_forward", "forward_forward"):

        @found.add(trainer, name, f"cut = {cut!r}, declared level", RIGHT_OR_WARNED)
        def declared(watch: Watch, trainer: str = trainer) -> str | None:
            torch.manual_seed(3)
            s = samples(*shape)
            made = trainer_of(trainer, net(), watch, cut=cut)
            made.build_for(s.data)
            got = len(made.cascade.units)
            if got != blocks:
                return f"{got} blocks, expected {blocks}"
            return None if made.locality == level else f"declared {made.locality}, expected {level}"


_level("conv1d", lambda: row(nets.conv1d()), (1, 12), 2, "L2", "pool")
_level("conv2d", lambda: row(nets.conv2d()), (1, 8, 8), 2, "L2", "pool")
_level(
    "conv3d",
    lambda: nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(2), nn.Conv3d(4, 5, 1), nn.ReLU(), nn.Flatten(), nn.Linear(40, 3)
    ),
    (1, 4, 4, 4),
    2,
    "L2",
    "pool",
)
_level("mlp", lambda: row(nets.mlp(hidden=(16, 16, 16, 16))), (12,), 2, "L1", 2)
_level("mlp", lambda: row(nets.mlp(hidden=(16, 16))), (12,), 1, "L0", 1)
_level("mlp of one hidden layer", lambda: row(nets.mlp(hidden=(16,))), (12,), 1, "L2", "weight")
_level(
    "LSTM of two layers in one module",
    lambda: nn.Sequential(nets.LastStep(nn.LSTM(4, 8, 2, batch_first=True)), nn.Linear(8, 3)),
    (6, 4),
    1,
    "L0",
    "weight",
)
_level(
    "two LSTM modules",
    lambda: nn.Sequential(
        nets.Steps(nn.LSTM(4, 8, 2, batch_first=True)), nets.LastStep(nn.LSTM(8, 8, 2, batch_first=True)), nn.Linear(8, 3)
    ),
    (6, 4),
    2,
    "L1",
    "weight",
)

# ---- reused and tied ------------------------------------------------------------------------------------------


def _reused_activation() -> hand.Net:
    torch.manual_seed(3)
    act = nn.Tanh()
    return nets.of([nn.Linear(12, 16), act, nn.Linear(16, 14), act, nn.Linear(14, 3)], [0, 2, 4])


_by_hand((*LOCAL, "backprop", "backprop_ds"), "mlp that uses one activation object twice", (12,), _reused_activation)


def _reused_norm() -> nn.Module:
    norm = nn.BatchNorm1d(16)
    return nn.Sequential(nn.Linear(12, 16), norm, nn.ReLU(), nn.Linear(16, 16), norm, nn.ReLU(), nn.Linear(16, 3))


def _reused_linear() -> nn.Module:
    layer = nn.Linear(12, 12)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), nn.Linear(12, 3))


def _tied() -> nn.Module:
    net = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
    net[2].weight = net[0].weight  # type: ignore[union-attr,assignment]
    return net


def _tied_view() -> nn.Module:
    net = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
    net[2].weight.data = net[0].weight.data.T  # type: ignore[union-attr]
    return net


LEARNING, FIXED = ("mono_forward", "local", "dfa"), ("cafo", "random_features")
for _trainers, _expected in ((LEARNING, REFUSED), (FIXED, RIGHT_OR_REFUSED)):
    _solved(_trainers, "mlp with batch norm used twice", (12,), _reused_norm, _expected, says="1.*4")
    _solved(_trainers, "mlp with a linear layer used twice", (12,), _reused_linear, _expected, says="0.*2", at_least=0.6)
    _solved(_trainers, "mlp with tied weights", (12,), _tied, _expected, says="0.*2", at_least=0.6)
_solved(("mono_forward",), "mlp with weights that share memory", (12,), _tied_view, SPOKEN)
_solved(("backprop",), "mlp with a linear layer used twice", (12,), _reused_linear, RIGHT_OR_REFUSED)
_solved(("backprop",), "mlp with tied weights", (12,), _tied, RIGHT_OR_REFUSED)


@found.add("localize", "mlp that uses one activation object twice", "scores of the cascade")
def localized_reused(watch: Watch) -> str | None:
    net = row(_reused_activation())
    s = samples(12)
    cascade = bpfree.localize(net)
    trainer = trainer_of("mono_forward", cascade, watch)
    trainer.build((12,), 3)
    with torch.no_grad():
        same = torch.allclose(cascade.eval()(s.x), net(s.x), atol=1e-5)
    return None if same else "the cascade computes something else"


# ---- layouts of parameters ------------------------------------------------------------------------------------


def _gapped() -> hand.Net:
    net = nets.mlp()
    for layer in (net.layers[1], net.layers[3]):
        weight = layer.weight.detach()  # type: ignore[union-attr]
        wide = torch.zeros(weight.shape[0], 2 * weight.shape[1])  # type: ignore[operator]
        wide[:, ::2] = weight  # type: ignore[assignment]
        layer.weight = nn.Parameter(wide[:, ::2])  # type: ignore[union-attr]
    return net


def _transposed() -> hand.Net:
    net = nets.mlp()
    for layer in (net.layers[1], net.layers[3]):
        layer.weight = nn.Parameter(layer.weight.detach().T.contiguous().T)  # type: ignore[union-attr,operator]
    return net


def _expanded() -> nn.Module:
    net = row(nets.mlp())
    net[1].weight = nn.Parameter(torch.full((1, 1), 0.1).expand(16, 12))  # type: ignore[union-attr]
    return net


for _trainer in ("mono_forward", "backprop", "dfa", "cafo"):
    for _text, _make in (("views with gaps", _gapped), ("transposed", _transposed)):

        @found.add(_trainer, "mlp", f"parameters: {_text}", RIGHT_OR_WARNED)
        def laid(watch: Watch, trainer: str = _trainer, make: Callable[[], hand.Net] = _make) -> str | None:
            s = samples(12)
            return as_by_hand(watch, trainer, nets.mlp, s.data, s, model=row(make()))


for _text, _make in (("views with gaps", _gapped), ("transposed", _transposed)):
    for _optimizer in ("adam", "sgd"):

        @found.add("mono_forward", "mlp", f"parameters: {_text}, analytic gradients, {_optimizer}", RIGHT_OR_WARNED)
        def laid_analytic(
            watch: Watch, make: Callable[[], hand.Net] = _make, optimizer: str = _optimizer
        ) -> str | None:
            s = samples(12)
            plain, odd = (
                trainer_of("mono_forward", row(net), Watch(), gradients="analytic", optimizer=optimizer, lr=0.01)
                for net in (nets.mlp(), make())
            )
            for trainer in (plain, odd):
                trainer.fit(s.data, epochs=5, batch_size=48)
            same = torch.allclose(plain.model(s.x), odd.model(s.x), atol=1e-3)
            return None if same else "other scores than with weights that lie densely"


for _trainer in ("mono_forward", "backprop"):

    @found.add(_trainer, "mlp", "parameters: one value expanded", ANY)
    def laid_expanded(watch: Watch, trainer: str = _trainer) -> str | None:
        # Not trained where they are left so: a fused optimizer would write outside of their memory.
        s = samples(12)
        made = trainer_of(trainer, _expanded(), watch, lr=0.01)
        made.build((12,), 3)
        held = [p for o in made.optimizers.values() for group in o.param_groups for p in group["params"]]
        if any(0 in p.stride() for p in held):
            return "an optimizer is given a parameter whose elements share memory"
        made.fit(s.data, epochs=60)
        return learns(made, s.data, at_least=0.6)


# ---- types ----------------------------------------------------------------------------------------------------


def _double() -> nn.Module:
    return row(nets.mlp()).double()


for _trainer in ("mono_forward", "backprop", "cafo", "forward_forward", "counter_current"):

    @found.add(_trainer, "float64 mlp", "float64 samples", RIGHT_OR_REFUSED | RIGHT_OR_WARNED)
    def double(watch: Watch, trainer: str = _trainer) -> str | None:
        s = samples(12)
        fit = {"epochs": 40}
        return solves(watch, trainer, _double(), (s.x.double(), s.y), s, at_least=0.3, fit=fit)


@found.add("mono_forward", "float64 mlp", "float32 samples", RIGHT_OR_REFUSED)
def double_single(watch: Watch) -> str | None:
    s = samples(12)
    return solves(watch, "mono_forward", _double(), s.data, s, at_least=0.6)


for _kind in ("half", "bfloat16"):

    @found.add("mono_forward", f"{_kind} mlp", "plain", ANY)
    def narrow(watch: Watch, kind: str = _kind) -> str | None:
        s = samples(12)
        net = getattr(row(nets.mlp()), kind)()
        return solves(watch, "mono_forward", net, s.data, s, at_least=0.6)


@found.add("mono_forward", "mlp of which one layer is float64", "plain", REFUSED)
def mixed(watch: Watch) -> str | None:
    s, net = samples(12), row(nets.mlp())
    net[3].double()
    return solves(watch, "mono_forward", net, s.data, s)


# ---- frozen ---------------------------------------------------------------------------------------------------


def _freeze(make: Callable[[], hand.Net], *layers: int) -> Callable[[], hand.Net]:
    def made() -> hand.Net:
        net = make()
        for k in layers:
            net.layers[k].requires_grad_(False)
        return net

    return made


for _text, _layers in (
    ("first layer frozen", (1,)),
    ("hidden layer frozen", (3,)),
    ("output layer frozen", (5,)),
    ("all but the output layer frozen", (1, 3)),
):
    for _trainer in ("mono_forward", "backprop", "backprop_ds", "mf_joint", "dfa", "local", "random_features", "cafo"):
        if _trainer in ("mono_forward", "backprop", "dfa") or _text == "hidden layer frozen":
            _by_hand((_trainer,), "mlp", (12,), _freeze(nets.mlp, *_layers), RIGHT_OR_REFUSED | RIGHT_OR_WARNED, _text)


def _all_frozen() -> nn.Module:
    return row(nets.mlp()).requires_grad_(False)


_solved(("mono_forward", "backprop", "dfa"), "mlp", (12,), _all_frozen, SPOKEN | RIGHT, "everything frozen", at_least=0.0)

for _trainer in ("forward_forward", "counter_current"):
    for _text, _layers in (("hidden layer frozen", (3,)), ("first layer frozen", (1,)), ("output layer frozen", (5,))):

        @found.add(_trainer, "mlp", _text, ANY)
        def frozen_layer(watch: Watch, trainer: str = _trainer, layers: tuple[int, ...] = _layers) -> str | None:
            s = samples(12)
            net = row(_freeze(nets.mlp, *layers)())
            before = [p.detach().clone() for k in layers for p in net[k].parameters()]
            made = trainer_of(trainer, net, watch, lr=rates(trainer))
            made.fit(s.data, epochs=3)
            after = [p for k in layers for p in net[k].parameters()]
            same = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
            return None if same else "frozen weights have moved"


for _trainer in ("mono_forward", "backprop", "dfa", "counter_current", "forward_forward", "local", "backprop_ds"):

    @found.add(_trainer, "conv2d with batch norm", "batch norm frozen in evaluation mode", RIGHT_OR_WARNED | REFUSED)
    def frozen_statistics(watch: Watch, trainer: str = _trainer) -> str | None:
        s, net = samples(1, 8, 8), row(nets.conv2d(norm=True))
        for layer in net:
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval().requires_grad_(False)
        before = {k: v.clone() for k, v in net.state_dict().items() if "running" in k}
        made = trainer_of(trainer, net, watch, lr=rates(trainer))
        made.fit(s.data, epochs=3)
        moved = [k for k, v in before.items() if not torch.equal(v, net.state_dict()[k])]
        return f"statistics have moved: {moved}" if moved else None


for _trainer in ("mono_forward", "backprop"):

    @found.add(_trainer, "mlp", "a layer in evaluation mode, not frozen", ANY)
    def left_in_eval(watch: Watch, trainer: str = _trainer) -> str | None:
        s, net = samples(12), row(nets.mlp())
        net.eval()
        return solves(watch, trainer, net, s.data, s, fit={"epochs": 60})


# ---- pretrained -----------------------------------------------------------------------------------------------


def _pretrained() -> nn.Sequential:
    s, net = samples(12), row(nets.mlp(hidden=(16, 14)))
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(s.x), s.y).backward()
        optimizer.step()
    return net


for _trainer in sorted(set(hand.LOOPS) | {"forward_forward"}):

    @found.add(_trainer, "mlp", "pretrained", RIGHT if _trainer != "forward_forward" else SPOKEN | RIGHT)
    def pretrained(watch: Watch, trainer: str = _trainer) -> str | None:
        s, net = samples(12), _pretrained()
        made = trainer_of(trainer, net, Watch(), lr=1e-9)
        before = [p.detach().clone() for p in net.parameters()]
        made.fit(s.data, epochs=1)
        far = max((a - b).abs().max().item() for a, b in zip(before, net.parameters(), strict=True))
        return None if far < 1e-4 else f"weights were drawn anew: they moved by {far:.2f} at lr = 1e-9"


# ---- reparametrized, lazy, compiled, scripted, wrapped, copied --------------------------------------------------


def _parametrized(wrap: Callable[[nn.Module], nn.Module]) -> Callable[[], hand.Net]:
    def made() -> hand.Net:
        net = nets.mlp()
        net.layers = [wrap(m) if isinstance(m, nn.Linear) and k < 5 else m for k, m in enumerate(net.layers)]
        return net

    return made


class Symmetric(nn.Module):
    """Twice what is stored."""

    def forward(self, w: Tensor) -> Tensor:
        return 2 * w


def _doubled(m: nn.Module) -> nn.Module:
    parametrize.register_parametrization(m, "weight", Symmetric())
    return m


def _old_weight_norm(m: nn.Module) -> nn.Module:
    return nn.utils.weight_norm(m)


for _trainer in ("mono_forward", "backprop", "cafo"):
    _by_hand((_trainer,), "mlp with weight_norm", (12,), _parametrized(parametrizations.weight_norm))
    _by_hand((_trainer,), "mlp with a parametrization of one's own", (12,), _parametrized(_doubled))
_by_hand(("mono_forward",), "mlp with weight_norm of the older kind", (12,), _parametrized(_old_weight_norm))
_solved(
    ("mono_forward", "backprop"),
    "mlp with spectral_norm",
    (12,),
    lambda: row(_parametrized(parametrizations.spectral_norm)()),
    at_least=0.6,
)
_solved(
    ("mono_forward", "backprop"), "mlp with orthogonal weights", (12,), lambda: row(_parametrized(parametrizations.orthogonal)()), at_least=0.6
)
for _name, _wrap in (
    ("weight_norm", parametrizations.weight_norm),
    ("spectral_norm", parametrizations.spectral_norm),
    ("a parametrization of one's own", _doubled),
):

    @found.add("assert_locality", f"mlp with {_name}", "no false alarm")
    def proof(watch: Watch, wrap: Callable[[nn.Module], nn.Module] = _wrap) -> str | None:
        s = samples(12, n=16)

        def make(**settings: Any) -> bpfree.Trainer:
            return bpfree.MonoForward(row(_parametrized(wrap)()), progress=False, **settings)

        trainer = make()
        trainer.build((12,), 3)
        try:
            testing.assert_locality(trainer, s.x, s.y)
        except AssertionError as error:
            return f"false alarm: {str(error)[:200]}"
        return None


def _lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(14), nn.ReLU(), nn.LazyLinear(3))


_solved(("mono_forward", "backprop", "cafo"), "lazy mlp", (12,), _lazy, RIGHT_OR_REFUSED)


@found.add("mono_forward", "mlp compiled by torch.compile", "eager backend", RIGHT_OR_REFUSED)
def compiled_net(watch: Watch) -> str | None:
    s = samples(12)
    net = torch.compile(row(nets.mlp()), backend="eager")
    return as_by_hand(watch, "mono_forward", nets.mlp, s.data, s, model=net)  # type: ignore[arg-type]


@found.add("backprop", "mlp compiled by torch.compile", "eager backend", RIGHT_OR_REFUSED)
def compiled_backprop(watch: Watch) -> str | None:
    s = samples(12)
    net = torch.compile(row(nets.mlp()), backend="eager")
    return as_by_hand(watch, "backprop", nets.mlp, s.data, s, model=net)  # type: ignore[arg-type]


@found.add("mono_forward", "mlp", "compile = 'eager'")
def compiled_blocks(watch: Watch) -> str | None:
    s = samples(12)
    return as_by_hand(watch, "mono_forward", nets.mlp, s.data, s, compile="eager")


@found.add("mono_forward", "mlp", "compile = 'no such backend'", REFUSED)
def compiled_unknown(watch: Watch) -> str | None:
    s = samples(12)
    return as_by_hand(watch, "mono_forward", nets.mlp, s.data, s, compile="no_such_backend")


@found.add("mono_forward", "scripted mlp", "plain", RIGHT_OR_REFUSED)
def scripted(watch: Watch) -> str | None:
    s = samples(12)
    return as_by_hand(watch, "mono_forward", nets.mlp, s.data, s, model=torch.jit.script(row(nets.mlp())))


@found.add("mono_forward", "mlp in DataParallel", "plain", RIGHT_OR_REFUSED)
def parallel(watch: Watch) -> str | None:
    s = samples(12)
    return as_by_hand(watch, "mono_forward", nets.mlp, s.data, s, model=nn.DataParallel(row(nets.mlp())))


class Own(nn.Module):
    """A module of one's own, whose forward runs its layers in order, or not."""

    def __init__(self, order: Sequence[int] = (0, 1, 2, 3, 4, 5)) -> None:
        super().__init__()
        for k, layer in enumerate(nets.mlp(hidden=(12, 12)).layers):
            self.add_module(f"layer{k}", layer)
        self.order = tuple(order)

    def forward(self, x: Tensor) -> Tensor:
        for k in self.order:
            x = getattr(self, f"layer{k}")(x)
        return x


_solved(TWO, "module of one's own", (12,), Own, RIGHT_OR_REFUSED)
_solved(TWO, "module that runs its layers in another order", (12,), lambda: Own((0, 3, 4, 1, 2, 5)), RIGHT_OR_REFUSED)
_solved(TWO, "module that skips a layer", (12,), lambda: Own((0, 1, 2, 5)), RIGHT_OR_REFUSED)
_solved(TWO, "nested Sequential", (12,), lambda: nn.Sequential(nn.Sequential(*list(row(nets.mlp()))[:3]), nn.Sequential(*list(row(nets.mlp()))[3:])))
_solved(("mono_forward",), "one linear layer", (12,), lambda: nn.Sequential(nn.Linear(12, 3)), REFUSED)
_solved(("mono_forward",), "linear layer outside a Sequential", (12,), lambda: nn.Linear(12, 3), REFUSED)
_solved(("mono_forward",), "no layer", (12,), nn.Sequential, REFUSED)
_solved(("mono_forward",), "ModuleList", (12,), lambda: nn.ModuleList(nets.mlp().layers), REFUSED)
_solved(("mono_forward",), "embedding in front", (12,), lambda: nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 3)), RIGHT_OR_REFUSED)
_solved(("mono_forward",), "mlp that ends in Softmax", (12,), lambda: nn.Sequential(*nets.mlp().layers, nn.Softmax(1)), ANY, at_least=0.5)
_solved(("mono_forward",), "mlp with as many outputs as classes and one more", (12,), lambda: row(nets.mlp(classes=4)), REFUSED)
_solved(("mono_forward",), "mlp with one output", (12,), lambda: row(nets.mlp(classes=1)), REFUSED)
_solved(
    ("mono_forward", "dfa"),
    "in-place activations",
    (12,),
    lambda: nn.Sequential(nn.Linear(12, 16), nn.ReLU(inplace=True), nn.Linear(16, 14), nn.ReLU(inplace=True), nn.Linear(14, 3)),
)
_solved(
    ("mono_forward",),
    "mlp with two outputs of a block",
    (12,),
    lambda: nn.Sequential(nn.LSTM(12, 8, batch_first=True), nn.Linear(8, 3)),
    REFUSED,
)


# ---- trainers that are given a net which is cut already, and settings that come too late ------------------------

for _text, _settings in (
    ("head_pool", {"head_pool": 1}),
    ("cut", {"cut": "pool"}),
    ("cut by number", {"cut": 1}),
):

    @found.add("mono_forward", "localized conv2d", f"setting that comes too late: {_text}", SPOKEN)
    def late(watch: Watch, settings: dict[str, Any] = _settings) -> str | None:
        s = samples(1, 8, 8)
        made = trainer_of("mono_forward", bpfree.localize(row(nets.conv2d())), watch, **settings)
        made.fit(s.data, epochs=1)
        return "the setting was ignored"


for _text, _settings in (
    ("loss", {"loss": "sparsemax"}),
    ("loss_options", {"loss_options": {"bias": True}}),
    ("output", {"output": "apart"}),
):

    @found.add("local", "localized mlp", f"setting that comes too late: {_text}", SPOKEN)
    def late_local(watch: Watch, settings: dict[str, Any] = _settings) -> str | None:
        s = samples(12)
        made = trainer_of("local", bpfree.localize(row(nets.mlp())), watch, **settings)
        made.fit(s.data, epochs=1)
        return "the setting was ignored"


for _trainer in sorted(set(hand.LOOPS) - {"mono_forward", "local"} | {"forward_forward"}):

    @found.add(_trainer, "localized mlp", "plain", RIGHT_OR_REFUSED)
    def cut_already(watch: Watch, trainer: str = _trainer) -> str | None:
        s = samples(12)
        return solves(watch, trainer, bpfree.localize(row(nets.mlp())), s.data, s)


for _trainer in ("mono_forward", "local"):

    @found.add(_trainer, "localized mlp", "plain")
    def localized(watch: Watch, trainer: str = _trainer) -> str | None:
        s = samples(12)
        return as_by_hand(watch, trainer, nets.mlp, s.data, s, model=bpfree.localize(row(nets.mlp())))


@found.add("mono_forward", "mlp", "trained by two trainers one after another")
def handed_on(watch: Watch) -> str | None:
    s, net = samples(12), row(nets.mlp())
    trainer_of("backprop", net, Watch(), lr=0.01).fit(s.data, epochs=20)
    return solves(watch, "mono_forward", net, s.data, s)


@found.add("mono_forward", "mlp", "another class count than at first", REFUSED)
def other_classes(watch: Watch) -> str | None:
    s = samples(12)
    made = trainer_of("mono_forward", row(nets.mlp()), watch)
    made.fit(s.data, epochs=1)
    watch.used(made.net)
    made.fit(bpfree.data.TensorData(s.x, s.y, 4), epochs=1)
    return "accepted"


for _trainer, _kind in sorted(TRAINERS.items()):

    @found.add(_trainer, "no network", "net = 'mlp'", REFUSED)
    def no_net(watch: Watch, kind: type[bpfree.Trainer] = _kind) -> str | None:
        kind("mlp")  # type: ignore[arg-type]
        return "accepted"

    @found.add(_trainer, "mlp", "a setting that there is not", REFUSED)
    def unknown_setting(watch: Watch, kind: type[bpfree.Trainer] = _kind) -> str | None:
        kind(row(nets.mlp()), learning_rate=0.1)
        return "accepted"


__all__ = ["cases", "copy", "learns"]


def cases() -> list[Case]:
    """All cases."""
    return found.all
