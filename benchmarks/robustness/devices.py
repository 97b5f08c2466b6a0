"""Physical systems with odd outputs, with the physical trainers and alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import bpfree
from benchmarks.robustness._case import (
    ANY,
    REFUSED,
    REFUSED_OR_WARNED,
    RIGHT,
    RIGHT_OR_REFUSED,
    RIGHT_OR_WARNED,
    Case,
    Cases,
    Outcome,
)
from benchmarks.robustness._compare import consistent, learns, trainer_of
from benchmarks.robustness._samples import samples
from benchmarks.robustness._verdict import Watch
from bpfree.physics import AcousticCavity, Device, DeviceError

registry = Cases()
WIDE, OUT = 20, 24


class Box:
    """Waves that mix, measured by their magnitude; the output of a row depends on that row alone.

    Args:
        change: Changes the outputs ``[B, n_out]`` before they are returned; it may raise an error.
    """

    n_in, n_out, input_range = WIDE, OUT, (0.0, 1.0)

    def __init__(self, change: Callable[[Any, Box], Any] = lambda y, box: y) -> None:
        draw = np.random.default_rng(7)
        self.paths = draw.standard_normal((WIDE, OUT)) + 1j * draw.standard_normal((WIDE, OUT))
        self.change, self.calls, self.noise = change, 0, np.random.default_rng(8)
        self.buffer = np.empty((4096, OUT))

    def waves(self, u: Any) -> Any:
        """The complex amplitudes."""
        return u @ self.paths

    def forward(self, u: Any) -> Any:
        """Magnitudes, changed."""
        self.calls += 1
        self.u = u
        return self.change(np.abs(self.waves(u)), self)


def _rows(y: Any, box: Box, share: float = 0.01) -> Any:
    if (box.noise.random(len(y)) < share).any():
        raise DeviceError("a frame was dropped")
    return y


def _buffered(y: Any, box: Box) -> Any:
    box.buffer[: len(y)] = y
    return box.buffer[: len(y)]


def _writing(y: Any, box: Box) -> Any:
    box.u[...] = 0
    return y


def _set(value: float, *index: Any) -> Callable[[Any, Box], Any]:
    def change(y: Any, box: Box) -> Any:
        y = y.copy()
        y[index] = value
        return y

    return change


def _fixed_rows(y: Any, box: Box) -> Any:
    raise DeviceError("the instrument is off")


def _foreign(y: Any, box: Box) -> Any:
    raise OSError("VI_ERROR_TMO: timeout expired")


#: Outputs of a device: text, change, outcomes with a trainer.
ANSWERS: list[tuple[str, Callable[[Any, Box], Any], frozenset[Outcome]]] = [
    ("as it should", lambda y, b: y, RIGHT),
    ("float32", lambda y, b: y.astype(np.float32), RIGHT),
    ("not contiguous", lambda y, b: np.asfortranarray(y), RIGHT),
    ("read only", lambda y, b: _locked(y), RIGHT),
    ("1 % of rows fail", _rows, RIGHT),
    ("one buffer for all answers", _buffered, RIGHT),
    ("writes into the drive", _writing, RIGHT_OR_REFUSED),
    ("complex", lambda y, b: b.waves(b.u), REFUSED),
    ("complex without imaginary part", lambda y, b: y.astype(complex), RIGHT_OR_REFUSED),
    ("masked", lambda y, b: np.ma.masked_array(y, y == y.max()), REFUSED_OR_WARNED),
    ("masked, nothing masked", lambda y, b: np.ma.masked_array(y, False), RIGHT_OR_REFUSED),
    ("9.91e37 for no number", _set(9.91e37, 0, 3), REFUSED_OR_WARNED),
    ("-9.9e37 for no number", _set(-9.9e37, slice(None), 3), REFUSED_OR_WARNED),
    ("all zero", lambda y, b: np.zeros_like(y), REFUSED_OR_WARNED),
    ("constant", lambda y, b: np.full_like(y, 2.5), REFUSED_OR_WARNED),
    (
        "the same for all rows",
        lambda y, b: np.broadcast_to(np.arange(OUT) / 3.0, y.shape).copy(),
        REFUSED_OR_WARNED,
    ),
    ("one channel at its rail", _set(10.0, slice(None), 5), REFUSED_OR_WARNED),
    ("all channels clip", lambda y, b: np.minimum(y, 0.3), ANY),
    ("wrapped int8", lambda y, b: (y * 100).astype(np.int64).astype(np.int8), REFUSED_OR_WARNED),
    ("int16", lambda y, b: (y * 1000).astype(np.int16), RIGHT_OR_REFUSED | RIGHT_OR_WARNED),
    ("bool", lambda y, b: y > 1.2, RIGHT_OR_REFUSED | RIGHT_OR_WARNED),
    ("float16", lambda y, b: y.astype(np.float16), RIGHT_OR_WARNED),
    ("strings", lambda y, b: y.astype(str), REFUSED),
    ("objects", lambda y, b: y.astype(object), RIGHT_OR_REFUSED),
    ("lists", lambda y, b: y.tolist(), RIGHT_OR_REFUSED),
    ("tensor", lambda y, b: torch.from_numpy(y), RIGHT_OR_REFUSED),
    ("NaN row", _set(float("nan"), 0), REFUSED),
    ("infinity", _set(float("inf"), 0, 0), REFUSED),
    ("a row too few", lambda y, b: y[1:], REFUSED),
    ("a channel too many", lambda y, b: np.pad(y, ((0, 0), (0, 1))), REFUSED),
    ("turned", lambda y, b: y.T.copy(), REFUSED),
    ("None", lambda y, b: None, REFUSED),
    ("never", _fixed_rows, REFUSED),
    ("never, by an error of its driver", _foreign, RIGHT_OR_REFUSED),
]


def _locked(y: Any) -> Any:
    y = y.copy()
    y.flags.writeable = False
    return y


def _net(device: Any, layers: int = 2, **options: Any) -> torch.nn.Sequential:
    torch.manual_seed(0)
    normalize = options.pop("normalize", "l2")
    return bpfree.nn.physical_net([device] * layers, (12,), 3, [15] * (layers - 1), "l2", False, normalize)


def _trained(watch: Watch, trainer: str, system: Any, at_least: float = 0.6, **settings: Any) -> str | None:
    s, device = samples(12, n=96), Device(system, pause_s=0.0)
    made = trainer_of(trainer, _net(device), watch, **settings)
    made.fit(s.data, epochs=8, batch_size=16)
    return learns(made, s.data, at_least=at_least) or consistent(made, s)


SETTINGS: dict[str, dict[str, Any]] = {
    "physical": {"lr": 1e-2, "inner_steps": 5},
    "physical_ridge": {"lam": [1e-3]},
    "physical_spsa": {"lr": 1e-2, "directions": 2},
    "physical_dfa": {"lr": 1e-2},
}

for _text, _change, _expected in ANSWERS:
    for _trainer in ("physical", "physical_ridge"):

        @registry.add(_trainer, "device", f"answers: {_text}", _expected, warning_is_enough=True)
        def answered(
            watch: Watch, trainer: str = _trainer, change: Callable[[Any, Box], Any] = _change
        ) -> str | None:
            return _trained(watch, trainer, Box(change), **SETTINGS[trainer])

    if _text in ("as it should", "complex", "1 % of rows fail", "all zero"):
        for _trainer in ("physical_spsa", "physical_dfa"):

            @registry.add(_trainer, "device", f"answers: {_text}", _expected, warning_is_enough=True)
            def answered_others(
                watch: Watch, trainer: str = _trainer, change: Callable[[Any, Box], Any] = _change
            ) -> str | None:
                least = 0.45 if trainer == "physical_spsa" else 0.6
                return _trained(watch, trainer, Box(change), at_least=least, **SETTINGS[trainer])


# ---- a device by itself ----------------------------------------------------------------------------------

ALONE = {
    "one channel at its rail": ANY,
    "1 % of rows fail": RIGHT,
    "all zero": ANY,
    "constant": ANY,
    "the same for all rows": ANY,
    "all channels clip": ANY,
    "wrapped int8": ANY,
}

for _text, _change, _expected in ANSWERS:

    @registry.add("Device", "forward", f"answers: {_text}", ALONE.get(_text, _expected))
    def alone(watch: Watch, change: Callable[[Any, Box], Any] = _change, text: str = _text) -> str | None:
        u = np.random.default_rng(0).random((40, WIDE))
        expected_value, before = np.abs(u @ Box().paths), u.copy()
        y = Device(Box(change), max_rows=16).forward(u)
        if not np.array_equal(u, before):
            return "the caller's drive was changed"
        if text in (
            "all zero",
            "constant",
            "the same for all rows",
            "all channels clip",
            "one channel at its rail",
        ):
            expected_value = np.asarray(change(expected_value, Box()))
        if text in ("int16", "wrapped int8", "bool", "float16", "float32"):
            expected_value = np.asarray(change(expected_value, Box())).astype(float)
        return (
            None
            if np.allclose(y, expected_value, atol=1e-5)
            else f"off by {np.abs(y - expected_value).max():.3g}"
        )


@registry.add("Device", "calibrate", "constant answers", ANY)
def calibrate_constant(watch: Watch) -> str | None:
    report = Device(Box(lambda y, b: np.full_like(y, 2.5))).calibrate(64)
    expected_value = report.nonlinearity_index
    return (
        None
        if expected_value is None or 0 <= expected_value <= 1
        else f"nonlinearity {expected_value} of a device that never varies"
    )


@registry.add("Device", "calibrate", "linear device")
def calibrate_linear(watch: Watch) -> str | None:
    report = Device(Box(lambda y, b: b.u @ b.paths.real)).calibrate(256)
    expected_value = report.nonlinearity_index
    return None if expected_value is not None and expected_value < 1e-6 else f"nonlinearity {expected_value}"


DRIVES: list[tuple[str, Any, frozenset[Outcome]]] = [
    ("a tensor", torch.rand(4, WIDE), REFUSED),
    ("integers", np.ones((4, WIDE), int), RIGHT_OR_REFUSED),
    ("complex", np.ones((4, WIDE), complex), REFUSED),
    ("NaN", np.full((4, WIDE), np.nan), REFUSED),
    ("another width", np.ones((4, 3)), REFUSED),
    ("one row without its axis", np.ones(WIDE), REFUSED),
    ("masked", np.ma.masked_array(np.full((4, WIDE), 0.5), np.eye(4, WIDE) > 0), REFUSED),
    ("no row", np.ones((0, WIDE)), RIGHT_OR_REFUSED),
    ("a list", [[0.5] * WIDE], RIGHT_OR_REFUSED),
]
for _text, _drive, _expected in DRIVES:

    @registry.add("Device", "forward", f"drive: {_text}", _expected)
    def driven(watch: Watch, drive: Any = _drive) -> str | None:
        y = Device(Box()).forward(drive)
        expected_value = np.abs(np.asarray(drive) @ Box().paths)
        return None if np.allclose(y, expected_value) else "another answer"


# ---- trainers --------------------------------------------------------------------------------------------


@registry.add("physical_backprop", "simulated device", "ideal twin")
def simulated(watch: Watch) -> str | None:
    s, device = samples(12, n=96), Device(AcousticCavity(noise=0.0))
    made = trainer_of("physical_backprop", _net(device), watch, lr=1e-2)
    made.fit(s.data, epochs=15, batch_size=16)
    return learns(made, s.data, at_least=0.7) or consistent(made, s)


@registry.add("physical_backprop", "device without a twin", "plain", REFUSED)
def no_twin(watch: Watch) -> str | None:
    return _trained(watch, "physical_backprop", Box())


@registry.add("physical_ridge", "device", "against least squares on the answers")
def ridge_by_hand(watch: Watch) -> str | None:
    from benchmarks.robustness._by_hand import ridge

    s, net = samples(12, n=96, noise=1.0), _net(Device(Box()))
    made = trainer_of("physical_ridge", net, watch, lam=[1e-2])
    made.fit(s.pair, batch_size=20)

    def features(x: torch.Tensor) -> torch.Tensor:
        rows = torch.nn.functional.pad(x, (3, 0))
        drive = torch.nn.functional.pad(rows.abs() / (rows.norm(dim=1, keepdim=True) + 1e-6), (0, WIDE - 15))
        y = torch.from_numpy(np.abs(drive.numpy() @ Box().paths)).float()
        scaled: torch.Tensor = y * OUT**0.5 / (y.norm(dim=1, keepdim=True) + 1e-12)
        return scaled

    weight, bias = ridge(features(s.x), s.y, 3, 1e-2)
    by_hand = (features(s.x).double() @ weight + bias).argmax(1)
    differ = int((made.predict(s.x) != by_hand).sum())
    return f"predict differs from least squares in {differ} of 96" if differ > 1 else None


for _trainer in ("physical", "physical_ridge", "physical_spsa", "physical_dfa", "physical_backprop"):

    @registry.add(_trainer, "mlp without devices", "plain", REFUSED)
    def no_device(watch: Watch, trainer: str = _trainer) -> str | None:
        from benchmarks.robustness import _nets as nets
        from benchmarks.robustness._compare import row

        s = samples(12)
        made = trainer_of(trainer, row(nets.mlp()), watch)
        made.fit(s.data, epochs=1)
        return "accepted"


@registry.add("physical", "device", "standardized, predict of raw samples")
def standardized(watch: Watch) -> str | None:
    s = samples(12, n=96)
    x = 5 + 3 * s.x
    data = bpfree.data.TensorData(x, s.y, 3, tuple(x.mean(0).tolist()), tuple(x.std(0).tolist()))
    made = trainer_of("physical", _net(Device(Box())), watch, **SETTINGS["physical"])
    made.fit(data, epochs=8, batch_size=16)
    return consistent(made, type(s)(x, s.y, 3), data)


@registry.add("physical", "device", "labels from 1", REFUSED_OR_WARNED)
def shifted(watch: Watch) -> str | None:
    s = samples(12, n=96)
    made = trainer_of("physical", _net(Device(Box())), watch, **SETTINGS["physical"])
    made.fit((s.x, s.y + 1), epochs=2, batch_size=16)
    return "a class was learned that no sample has"


@registry.add("physical", "device whose drive clips", "samples of 0 to 255", ANY, warning_is_enough=True)
def clips(watch: Watch) -> str | None:
    s = samples(12, n=96)
    torch.manual_seed(0)
    net = bpfree.nn.physical_net([Device(Box())], (12,), 3, [], "direct", False, "l2")
    made = trainer_of("physical", net, watch, **SETTINGS["physical"])
    made.fit((s.x * 255, s.y), epochs=4, batch_size=16)
    return learns(made, (s.x * 255, s.y), at_least=0.45)


__all__ = ["cases"]


def cases() -> list[Case]:
    """All cases."""
    return registry.all
