"""What stands between a computer and physics: converters, noise, saturation, drift; around any system."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree.physics.answers import checked_forward
from bpfree.physics.calibration import probes
from bpfree.physics.device import Device
from bpfree.physics.quantise import check_bits, quantise
from bpfree.physics.simulated import load_rng, random, rng_state
from bpfree.physics.system import Array, PhysicalSystem


class NonIdeal:
    """A system behind imperfect electronics; itself a `PhysicalSystem`.

    In this order, with N standard normal and ``scale`` the system's mean output::

        u <- DAC(u) + input_noise * width of the input range * N , clipped to the range
        y <- system(u)
        y <- y (1 + gain_drift g) + offset_drift scale o
        y <- y (1 + multiplicative N) + additive scale N ;   y <- Poisson(photons y / scale) scale / photons
        y <- clipped to [0 or -saturation scale, saturation scale] ;   y <- ADC(y)

    g and o are Ornstein-Uhlenbeck processes of every output, with the correlation time ``drift_time_s``; they
    begin at 0 and end up standard normal. Phases cannot be reached from outside: a system has its own drift.

    Args:
        system: Any system.
        dac_bits, adc_bits: Resolution; None: no quantisation.
        input_noise, multiplicative, additive: Standard deviations.
        photons: Mean number of detected quanta at the mean output; None: no shot noise.
        saturation: In mean outputs; None: never, and then no ADC.
        signed: Whether the detector sees negative values.
        gain_drift, offset_drift: Standard deviations that the drifts end up with.
        drift_time_s: Their correlation time; None: no drift.
        seconds_per_pass: What one row adds to the drift's clock.
        scale: The mean output; by default it is measured, once, with 256 random drives.
        seed: Which noise and drift.
    """

    def __init__(
        self,
        system: PhysicalSystem,
        *,
        dac_bits: int | None = None,
        adc_bits: int | None = None,
        input_noise: float = 0.0,
        multiplicative: float = 0.0,
        additive: float = 0.0,
        photons: float | None = None,
        saturation: float | None = None,
        signed: bool = False,
        gain_drift: float = 0.0,
        offset_drift: float = 0.0,
        drift_time_s: float | None = None,
        seconds_per_pass: float = 0.0,
        scale: float | None = None,
        seed: int = 0,
    ) -> None:
        if min(input_noise, multiplicative, additive, gain_drift, offset_drift, seconds_per_pass) < 0:
            raise BadValue("a noise, a drift or a duration is negative; expected at least 0")
        if adc_bits is not None and saturation is None:
            raise BadValue(f"adc_bits = {adc_bits} needs a saturation: its levels divide that range")
        check_bits(dac_bits=dac_bits, adc_bits=adc_bits)
        positive = {
            "photons": photons,
            "saturation": saturation,
            "drift_time_s": drift_time_s,
            "scale": scale,
        }
        for name, value in positive.items():
            if value is not None and value <= 0:
                raise BadValue(f"{name} = {value}: expected a number above 0, or None")
        if drift_time_s is None and gain_drift + offset_drift > 0:
            raise BadValue("gain_drift and offset_drift need a drift_time_s")
        self.system, self.dac_bits, self.adc_bits = system, dac_bits, adc_bits
        self.input_noise, self.multiplicative, self.additive = input_noise, multiplicative, additive
        self.photons, self.saturation, self.signed = photons, saturation, signed
        self.gain_drift, self.offset_drift, self.drift_time_s = gain_drift, offset_drift, drift_time_s
        self.seconds_per_pass = seconds_per_pass
        self.n_in, self.n_out, self.input_range = system.n_in, system.n_out, system.input_range
        self.kind: str = getattr(system, "kind", "device")
        self.time_s = 0.0
        self._frozen = False
        self._rng = {name: random(seed, name) for name in ("input", "gain", "additive", "shot", "drift")}
        self._gain, self._offset = np.zeros(self.n_out), np.zeros(self.n_out)
        self.scale = scale if scale is not None else self._measured_scale()

    def _measured_scale(self) -> float:
        # A Device sends failed calls again.
        y = Device(self.system).answers(probes(256, self.n_in, self.input_range, seed=0))
        scale = float(np.abs(y).mean())
        if scale == 0:
            raise BadValue("the system answered nothing but 0 to 256 random drives; is it switched on?")
        return scale

    def forward(self, u: Array) -> Array:
        """Answers ``[B, n_out]`` to ``u [B, n_in]``; see `PhysicalSystem`."""
        if not self._frozen:
            self._drift(self.seconds_per_pass * len(u))
        low, high = self.input_range
        drive = quantise(torch.from_numpy(u), self.dac_bits, low, high).numpy()
        if self.input_noise and not self._frozen:
            noise = self.input_noise * (high - low) * self._normal("input", u.shape)
            drive = np.clip(drive + noise, low, high).astype(u.dtype)
        y = checked_forward(self.system, drive)
        y = y * (1 + self.gain_drift * self._gain) + self.offset_drift * self.scale * self._offset
        if not self._frozen:
            y = self._noisy(y)
        return self._converted(torch.from_numpy(y)).numpy().astype(u.dtype, copy=False)

    def _normal(self, stream: str, shape: tuple[int, ...]) -> Array:
        return self._rng[stream].standard_normal(shape)

    def _noisy(self, y: Array) -> Array:
        if self.multiplicative:
            y = y * (1 + self.multiplicative * self._normal("gain", y.shape))
        if self.additive:
            y = y + self.additive * self.scale * self._normal("additive", y.shape)
        if self.photons is not None:
            unit = self.scale / self.photons
            y = self._rng["shot"].poisson(np.maximum(y, 0) / unit) * unit
        return y

    def _converted(self, y: Tensor) -> Tensor:
        if self.saturation is None:
            return y
        top = self.saturation * self.scale
        return quantise(y, self.adc_bits, -top if self.signed else 0.0, top, straight_through=True)

    def _drift(self, seconds: float) -> None:
        self.time_s += seconds
        if self.drift_time_s is None or seconds == 0:
            return
        keep = math.exp(-seconds / self.drift_time_s)
        fresh = math.sqrt(1 - keep**2) * self._normal("drift", (2, self.n_out))
        self._gain = keep * self._gain + fresh[0]
        self._offset = keep * self._offset + fresh[1]

    def advance(self, seconds: float) -> None:
        """Let time pass, for the electronics and for the system where it has a clock."""
        if seconds < 0:
            raise BadValue(f"advance({seconds}): time does not run backwards")
        if not self._frozen:
            self._drift(seconds)
        if hasattr(self.system, "advance"):
            self.system.advance(seconds)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """No noise, no drift, no passing of time inside; quantisers and saturation stay.

        Raises:
            BadValue: If the system inside cannot be frozen.
        """
        if not hasattr(self.system, "frozen"):
            raise BadValue(f"{type(self.system).__name__} has no frozen(): its noise cannot be switched off")
        was, self._frozen = self._frozen, True
        try:
            with self.system.frozen():
                yield
        finally:
            self._frozen = was

    def differentiable_twin(self, mismatch: float = 0.0, seed: int = 0) -> nn.Module:
        """The system's twin between ideal quantisers and the saturation; it knows nothing of noise and drift.

        Raises:
            BadValue: If the system has no twin.
        """
        if not hasattr(self.system, "differentiable_twin"):
            raise BadValue(f"{type(self.system).__name__} has no differentiable twin")
        return _Twin(self, self.system.differentiable_twin(mismatch, seed))

    def report(self) -> dict[str, Any]:
        """What the system reports."""
        own = getattr(self.system, "report", None)
        return own() if own is not None else {}

    def state_dict(self) -> dict[str, Any]:
        """Random state and drift, and the system's own state where it offers one."""
        own = getattr(self.system, "state_dict", None)
        return {
            "time_s": self.time_s,
            "scale": self.scale,
            "gain": self._gain.copy(),
            "offset": self._offset.copy(),
            "random": {name: rng_state(rng) for name, rng in self._rng.items()},
            "system": own() if own is not None else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` took."""
        self.time_s, self.scale = state["time_s"], state["scale"]
        self._gain, self._offset = np.array(state["gain"]), np.array(state["offset"])
        for name, rng in self._rng.items():
            load_rng(rng, state["random"][name])
        if state["system"] is not None:
            self.system.load_state_dict(state["system"])  # type: ignore[attr-defined]

    def close(self) -> None:
        """Close the system."""
        if hasattr(self.system, "close"):
            self.system.close()


class _Twin(nn.Module):
    def __init__(self, owner: NonIdeal, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self._owner = owner

    def forward(self, u: Tensor) -> Tensor:
        owner = self._owner
        drive = quantise(u, owner.dac_bits, *owner.input_range, straight_through=True)
        return owner._converted(self.inner(drive))
