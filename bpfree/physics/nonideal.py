"""Imperfect electronics around a physical system: converters, noise, saturation and drift."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree._renamed import warn_renamed
from bpfree.physics.calibration import probes
from bpfree.physics.device import Device
from bpfree.physics.outputs import checked_forward
from bpfree.physics.quantize import check_bits, quantize
from bpfree.physics.simulated import load_rng, random, rng_state
from bpfree.physics.state import Report, StateDict
from bpfree.physics.system import Array, PhysicalSystem, find_digital_model


class NonIdeal:
    """A physical system with imperfect electronics, which is a `PhysicalSystem` itself.

    The following is applied in this order, with N standard normal and ``scale`` the mean output of the
    system::

        u <- DAC(u) + input_noise * width of the input range * N , clipped to the range
        y <- system(u)
        y <- y (1 + gain_drift g) + offset_drift scale o
        y <- y (1 + multiplicative N) + additive scale N ;   y <- Poisson(photons y / scale) scale / photons
        y <- clipped to [0 or -saturation scale, saturation scale] ;   y <- ADC(y)

    g and o are one Ornstein-Uhlenbeck process for each output, with the correlation time ``drift_time_s``.
    They start at 0, and their stationary distribution is standard normal. Drift inside the system, such as
    that of optical phases, is not modeled here.

    Args:
        system: Any system.
        dac_bits, adc_bits: Resolution of the converters; None: no quantization.
        input_noise, multiplicative, additive: Standard deviations.
        photons: Mean number of detected quanta at the mean output; None: no shot noise.
        saturation: Largest measured value, in mean outputs; None: no saturation, which requires
            ``adc_bits=None``.
        signed: Whether the detector measures negative values.
        gain_drift, offset_drift: Standard deviations of the drifts in the stationary state.
        drift_time_s: Correlation time of the drifts in seconds; None: no drift.
        seconds_per_pass: Simulated duration of one row in seconds.
        scale: The mean output. By default it is measured once, with 256 random drives.
        seed: Seed of the noise and the drifts.

    Raises:
        BadValue: If an argument is out of range, or the outputs of the system are all 0.
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
            raise BadValue(
                f"input_noise = {input_noise}, multiplicative = {multiplicative}, additive = {additive}, "
                f"gain_drift = {gain_drift}, offset_drift = {offset_drift}, seconds_per_pass = "
                f"{seconds_per_pass}: expected values of at least 0"
            )
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
        # A Device repeats failed calls.
        y = Device(self.system).forward_unchecked(probes(256, self.n_in, self.input_range, seed=0))
        scale = float(np.abs(y).mean())
        if scale == 0:
            raise BadValue("all outputs of the system for 256 random drives are 0; is it switched on?")
        return scale

    def forward(self, u: Array) -> Array:
        """Compute the outputs ``[B, n_out]`` for drives ``u [B, n_in]``; see `PhysicalSystem`."""
        if not self._frozen:
            self._drift(self.seconds_per_pass * len(u))
        low, high = self.input_range
        drive = quantize(torch.from_numpy(u), self.dac_bits, low, high).numpy()
        if self.input_noise and not self._frozen:
            noise = self.input_noise * (high - low) * self._normal("input", u.shape)
            drive = np.clip(drive + noise, low, high).astype(u.dtype)
        y = checked_forward(self.system, drive)
        y = y * (1 + self.gain_drift * self._gain) + self.offset_drift * self.scale * self._offset
        if not self._frozen:
            y = self._add_noise(y)
        return self._convert(torch.from_numpy(y)).numpy().astype(u.dtype, copy=False)

    def _normal(self, stream: str, shape: tuple[int, ...]) -> Array:
        return self._rng[stream].standard_normal(shape)

    def _add_noise(self, y: Array) -> Array:
        if self.multiplicative:
            y = y * (1 + self.multiplicative * self._normal("gain", y.shape))
        if self.additive:
            y = y + self.additive * self.scale * self._normal("additive", y.shape)
        if self.photons is not None:
            unit = self.scale / self.photons
            y = self._rng["shot"].poisson(np.maximum(y, 0) / unit) * unit
        return y

    def _convert(self, y: Tensor) -> Tensor:
        if self.saturation is None:
            return y
        top = self.saturation * self.scale
        return quantize(y, self.adc_bits, -top if self.signed else 0.0, top, straight_through=True)

    def _drift(self, seconds: float) -> None:
        self.time_s += seconds
        if self.drift_time_s is None or seconds == 0:
            return
        decay = math.exp(-seconds / self.drift_time_s)
        new = math.sqrt(1 - decay**2) * self._normal("drift", (2, self.n_out))
        self._gain = decay * self._gain + new[0]
        self._offset = decay * self._offset + new[1]

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` of simulated time pass for the electronics and, if it has ``advance``, the system.

        Raises:
            BadValue: If ``seconds`` is negative.
        """
        if seconds < 0:
            raise BadValue(f"advance({seconds}): expected at least 0 seconds")
        if not self._frozen:
            self._drift(seconds)
        if hasattr(self.system, "advance"):
            self.system.advance(seconds)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Context manager: no noise, no drift, and no simulated time passes inside.

        Quantization and saturation still apply.

        Raises:
            BadValue: If the system has no method ``frozen``.
        """
        if not hasattr(self.system, "frozen"):
            raise BadValue(f"{type(self.system).__name__} has no frozen(): its noise cannot be switched off")
        before, self._frozen = self._frozen, True
        try:
            with self.system.frozen():
                yield
        finally:
            self._frozen = before

    def digital_model(self, mismatch: float = 0.0, seed: int = 0) -> nn.Module:
        """Return the digital model of the system with quantization and saturation, without noise and drift.

        Raises:
            BadValue: If the system has no digital model.
        """
        make = find_digital_model(self.system)
        if make is None:
            raise BadValue(f"{type(self.system).__name__} has no digital model")
        return _DigitalModel(self, make(mismatch, seed))

    def differentiable_twin(self, mismatch: float = 0.0, seed: int = 0) -> nn.Module:
        """Old name of `digital_model`."""
        warn_renamed("NonIdeal.differentiable_twin", "digital_model")
        return self.digital_model(mismatch, seed)

    def report(self) -> Report:
        """Return the report of the system."""
        system_report = getattr(self.system, "report", None)
        return system_report() if system_report is not None else {}

    def state_dict(self) -> StateDict:
        """Return the states of the generators, of the drifts, and of the system, if it has ``state_dict``."""
        system_state = getattr(self.system, "state_dict", None)
        return {
            "time_s": self.time_s,
            "scale": self.scale,
            "gain": self._gain.copy(),
            "offset": self._offset.copy(),
            "random": {name: rng_state(rng) for name, rng in self._rng.items()},
            "system": system_state() if system_state is not None else None,
        }

    def load_state_dict(self, state: StateDict) -> None:
        """Restore a `state_dict`."""
        self.time_s, self.scale = state["time_s"], state["scale"]
        self._gain, self._offset = np.array(state["gain"]), np.array(state["offset"])
        for name, rng in self._rng.items():
            load_rng(rng, state["random"][name])
        if state["system"] is not None:
            load = getattr(self.system, "load_state_dict", None)
            if load is None:
                raise BadValue(f"{type(self.system).__name__} has a saved state but no load_state_dict()")
            load(state["system"])

    def close(self) -> None:
        """Close the system, if it has a method ``close``."""
        if hasattr(self.system, "close"):
            self.system.close()


class _DigitalModel(nn.Module):
    def __init__(self, nonideal: NonIdeal, system_model: nn.Module) -> None:
        super().__init__()
        self.system_model = system_model
        self._nonideal = nonideal

    def forward(self, u: Tensor) -> Tensor:
        nonideal = self._nonideal
        drive = quantize(u, nonideal.dac_bits, *nonideal.input_range, straight_through=True)
        return nonideal._convert(self.system_model(drive))
