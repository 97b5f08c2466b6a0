"""Devices that tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bpfree.physics import AcousticCavity, AcousticMembranes, MicrowaveCavity, MultimodeFibre, Simulated
from bpfree.physics.calibration import probes
from bpfree.physics.system import Array


def small_fibre(**options: Any) -> MultimodeFibre:
    return MultimodeFibre(**{"grid": 8, "mask_radius": 3.0, **options})


def small_microwave(**options: Any) -> MicrowaveCavity:
    return MicrowaveCavity(**{"atoms": 6, "frequencies": 5, "modes": 30, **options})


def small_membranes(**options: Any) -> AcousticMembranes:
    settings = {"sources": 2, "microphones": 2, "membranes": 3, "modes": 8, "tones_hz": (250.0, 500.0)}
    return AcousticMembranes(**{**settings, "duration_s": 0.024, "step_s": 1 / 16000, **options})


#: Every simulated kind, small; each takes the options of `Simulated`.
SIMULATED: dict[str, Callable[..., Simulated]] = {
    "acoustic": AcousticCavity,
    "membranes": small_membranes,
    "fibre": small_fibre,
    "fibre with Kerr": lambda **options: small_fibre(kerr=0.5, kerr_steps=2, **options),
    "unitary fibre": lambda **options: small_fibre(transmission="unitary", **options),
    "microwave": small_microwave,
    "analogue microwave": lambda **options: small_microwave(bits=None, **options),
}


def drives(system: Any, n: int = 16, seed: int = 7) -> Array:
    """Random drives over the whole input range, ``[n, n_in]``."""
    return probes(n, system.n_in, system.input_range, seed)


class Doubler:
    """The dozen lines that a lab writes: y = (2 u, -u)."""

    n_in, n_out, input_range = 3, 6, (-1.0, 1.0)

    def forward(self, u: Array) -> Array:
        return np.concatenate([2 * u, -u], axis=1)
