"""Systems that several tests use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bpfree.physics import AcousticCavity, AcousticMembranes, MicrowaveCavity, MultimodeFiber, Simulated
from bpfree.physics.calibration import probes
from bpfree.physics.system import Array


def small_fiber(**options: Any) -> MultimodeFiber:
    return MultimodeFiber(**{"grid": 8, "mask_radius": 3.0, **options})


def small_microwave(**options: Any) -> MicrowaveCavity:
    return MicrowaveCavity(**{"atoms": 6, "frequencies": 5, "modes": 30, **options})


def small_membranes(**options: Any) -> AcousticMembranes:
    settings = {"sources": 2, "microphones": 2, "membranes": 3, "modes": 8, "tones_hz": (250.0, 500.0)}
    return AcousticMembranes(**{**settings, "duration_s": 0.024, "step_s": 1 / 16000, **options})


#: A small system of every simulated kind; each accepts the options of `Simulated`.
SIMULATED: dict[str, Callable[..., Simulated]] = {
    "acoustic": AcousticCavity,
    "membranes": small_membranes,
    "fiber": small_fiber,
    "fiber with Kerr": lambda **options: small_fiber(kerr=0.5, kerr_steps=2, **options),
    "unitary fiber": lambda **options: small_fiber(transmission="unitary", **options),
    "microwave": small_microwave,
    "analog microwave": lambda **options: small_microwave(bits=None, **options),
}


def drives(system: Any, n: int = 16, seed: int = 7) -> Array:
    """Random drives over the whole input range, ``[n, n_in]``."""
    return probes(n, system.n_in, system.input_range, seed)


class Doubler:
    """A minimal system: y = (2 u, -u)."""

    n_in, n_out, input_range = 3, 6, (-1.0, 1.0)

    def forward(self, u: Array) -> Array:
        return np.concatenate([2 * u, -u], axis=1)


def _broken(value: Any) -> Callable[[Array], Array]:
    def fault(y: Array) -> Array:
        y[1, 2] = value
        return y

    return fault


def _raising(error: Exception) -> Callable[[Array], Array]:
    def fault(y: Array) -> Array:
        raise error

    return fault


#: Functions that convert the correct output ``[B, 6]`` to an invalid one.
FAULTS: dict[str, Callable[[Any], Any]] = {
    "complex": lambda y: y + 0j,
    "complex64": lambda y: (y + 1j).astype(np.complex64),
    "masked": lambda y: np.ma.array(y, mask=y == y[1, 2]),
    "objects": lambda y: y.astype(object),
    "strings": lambda y: y.astype(str),
    "dates": lambda y: y.astype("datetime64[s]"),
    "a list": lambda y: y.tolist(),
    "a tensor": torch.from_numpy,
    "nothing": lambda _: None,
    "a number": lambda y: float(y[0, 0]),
    "transposed": lambda y: y.T,
    "a row too many": lambda y: np.concatenate([y, y[:1]]),
    "one row": lambda y: y[:1],
    "flat": lambda y: y.ravel(),
    "half precision overflow": lambda y: np.where(y == y[1, 2], np.float16(np.inf), y.astype(np.float16)),
    "extended precision overflow": lambda y: y.astype(np.longdouble) * np.longdouble("1e4000"),
    "NaN": _broken(np.nan),
    "infinite": _broken(-np.inf),
    "SCPI not a number": _broken(9.91e37),
    "SCPI overload": _broken(-9.9e37),
    "SCPI not a number in milli": _broken(9.91e34),
    "huge": _broken(1e300),
    "a broadcast scalar": lambda y: np.broadcast_to(y[:1, :1], (len(y), 1)),
    "a mistake": _raising(KeyError("channel")),
    "a dead cable": _raising(TimeoutError("no reply from GPIB0::12")),
}
