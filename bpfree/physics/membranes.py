"""Simulated acoustic box with nonlinear membranes, by the equations of motion of its modes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bpfree._errors import BadValue, DeviceError
from bpfree.physics.microwave import unfolded_levels
from bpfree.physics.simulated import Disorder, Simulated, SimulationOptions, complex_dtype

#: Relative change of the speed of sound per kelvin at room temperature; it is proportional to sqrt(T).
_PER_KELVIN = 0.0017
#: Number of time steps in a segment of gradient checkpointing.
_SEGMENT = 64


class AcousticMembranes(Simulated):
    """Loudspeakers drive the modes q of a box. Its pressure moves J membranes x, which act back on the modes.

    With phi the mode shapes at random positions (random waves), and prime the time derivative::

        q_n'' + (w_n / Q) q_n' + w_n^2 q_n = gain w_0^2 sum_s phi_n(s) v_s(t)
                                             - back_action sum_j phi_n(j) x_j''
        x_j'' + (w_j / Q_m) x_j' + w_j^2 (x_j + beta x_j^3) = coupling w_j^2 sum_n phi_n(j) q_n
        v_s = sum_k a[s, k] sin(2 pi f_k t) ;      mic_m = sum_n phi_n(m) q_n

    The outputs are the amplitudes of each tone at each microphone (output index = tones * microphone + tone),
    measured with a Hann window over the second half of the time. beta is the strength of a cubic restoring
    force; with 0 the box is linear up to the magnitude. w_n are unfolded eigenvalues of a Gaussian orthogonal
    matrix. Only the temperature drifts; it scales all w_n. The integrator is semi-implicit Euler.

    Args:
        sources, microphones, membranes, modes: Number of each.
        tones_hz: Driven frequencies; the analyzed time must contain a whole number of periods of each.
        band_hz: Lowest and highest resonance of the box.
        membrane_band_hz: Lowest and highest resonance of the membranes.
        q, membrane_q: Quality factors.
        beta, coupling, gain, back_action: See the equations; w_0 is 2 pi 450 Hz.
        duration_s: Simulated time of each row; the second half is analyzed.
        step_s: Time step.
        temperature_sd_k: Standard deviation of the drifting temperature, in kelvin.
        noise: See `Simulated`; the default is a signal-to-noise ratio of 40 dB.
        options: See `Simulated`. In float64, 256 rows take about 3 MiB per millisecond of analyzed sound.

    Raises:
        BadValue: If an argument is out of range.
        DeviceError: In `forward`, if the motion of the membranes diverges.
    """

    drifting = ("temperature",)

    def __init__(
        self,
        sources: int = 4,
        microphones: int = 4,
        *,
        tones_hz: Sequence[float] = (250.0, 337.5, 462.5, 575.0, 712.5),
        membranes: int = 8,
        modes: int = 60,
        band_hz: tuple[float, float] = (150.0, 1400.0),
        membrane_band_hz: tuple[float, float] = (250.0, 700.0),
        q: float = 40.0,
        membrane_q: float = 8.0,
        beta: float = 1.0,
        coupling: float = 1.0,
        gain: float = 0.1,
        back_action: float = 0.02,
        duration_s: float = 0.16,
        step_s: float = 1 / 32000,
        temperature_sd_k: float = 1.0,
        noise: float = 0.01,
        **options: Unpack[SimulationOptions],
    ) -> None:
        if min(sources, microphones, membranes, modes, len(tones_hz)) < 1 or min(q, membrane_q, step_s) <= 0:
            raise BadValue(
                f"sources = {sources}, microphones = {microphones}, membranes = {membranes}, "
                f"modes = {modes}, {len(tones_hz)} tones, q = {q}, membrane_q = {membrane_q}, "
                f"step_s = {step_s}: expected at least 1 of each, and q and step_s above 0"
            )
        window = duration_s / 2
        for tone in tones_hz:
            if tone <= 0 or abs(tone * window - round(tone * window)) > 1e-6 or tone * window < 3:
                raise BadValue(
                    f"tones_hz: {tone} Hz has {tone * window} periods in the {window} s that are analyzed; "
                    "expected a whole number of at least 3"
                )
        self.n_in, self.n_out = sources * len(tones_hz), microphones * len(tones_hz)
        self.sources, self.microphones, self.membranes, self.modes = sources, microphones, membranes, modes
        self.tones_hz, self.band_hz, self.membrane_band_hz = tuple(tones_hz), band_hz, membrane_band_hz
        self.q, self.membrane_q, self.beta, self.coupling = q, membrane_q, beta, coupling
        self.gain, self.back_action = gain, back_action
        self.duration_s, self.step_s, self.temperature_sd_k = duration_s, step_s, temperature_sd_k
        super().__init__(noise=noise, **options)

    def _disorder_shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {
            "levels": (self.modes, self.modes),
            "at_sources": (self.sources, self.modes),
            "at_microphones": (self.modes, self.microphones),
            "at_membranes": (self.modes, self.membranes),
            "membranes": (self.membranes,),
            "temperature": (1,),
        }

    def _build(self, disorder: Disorder, *, differentiable: bool) -> nn.Module:
        low, high = self.band_hz
        level = unfolded_levels(disorder["levels"]) / self.modes
        factor = 1 + _PER_KELVIN * self.temperature_sd_k * disorder["temperature"]
        modes_hz = (low + (high - low) * level) * factor
        low, high = self.membrane_band_hz
        membranes_hz = low + (high - low) * torch.special.ndtr(disorder["membranes"])
        return _Box(self, disorder, modes_hz, membranes_hz, differentiable).to(self.device, self.dtype)


class _Box(nn.Module):
    at_sources: Tensor
    at_microphones: Tensor
    at_membranes: Tensor
    w2: Tensor
    damping: Tensor
    membrane_w2: Tensor
    membrane_damping: Tensor

    def __init__(
        self,
        box: AcousticMembranes,
        disorder: Disorder,
        modes_hz: Tensor,
        membranes_hz: Tensor,
        differentiable: bool,
    ) -> None:
        super().__init__()
        w, membrane_w = 2 * math.pi * modes_hz, 2 * math.pi * membranes_hz
        buffers = {
            "at_sources": box.gain * (2 * math.pi * 450) ** 2 * disorder["at_sources"],
            "at_microphones": disorder["at_microphones"],
            "at_membranes": disorder["at_membranes"],
            "w2": w.square(),
            "damping": w / box.q,
            "membrane_w2": membrane_w.square(),
            "membrane_damping": membrane_w / box.membrane_q,
        }
        for name, value in buffers.items():
            self.register_buffer(name, value)
        self.tones = 2 * math.pi * torch.tensor(box.tones_hz, dtype=torch.float64)
        self.beta, self.coupling, self.back_action = box.beta, box.coupling, box.back_action
        self.dt, self.steps = box.step_s, round(box.duration_s / box.step_s)
        self.differentiable = differentiable

    def forward(self, u: Tensor) -> Tensor:
        """Drives ``[B, S * F]`` to outputs ``[B, M * F]``."""
        amplitudes = u.view(len(u), len(self.at_sources), len(self.tones))
        zero = [u.new_zeros(len(u), n) for n in (*[len(self.w2)] * 2, *[len(self.membrane_w2)] * 2)]
        state = tuple(zero)
        spectrum = torch.zeros((), dtype=complex_dtype(u.dtype), device=u.device)
        for start in range(0, self.steps, _SEGMENT):
            stop = min(start + _SEGMENT, self.steps)
            segment = (amplitudes, state, start, stop)
            if self.differentiable and u.requires_grad:
                state, part = checkpoint(self._segment, *segment, use_reentrant=False)
            else:
                state, part = self._segment(*segment)
            spectrum = spectrum + part
        if not torch.isfinite(spectrum).all():
            raise DeviceError(
                f"the membranes' motion diverged (beta = {self.beta}, drive up to {float(u.max()):.3g}); "
                "reduce beta, the drive or the time step",
                retryable=False,
            )
        y: Tensor = spectrum.abs().flatten(1)
        return y

    def _segment(
        self, amplitudes: Tensor, state: tuple[Tensor, ...], start: int, stop: int
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Advance the state; return it and the contribution to the microphones' spectra, ``[B, M, F]``."""
        q, q_rate, x, x_rate = state
        # In double precision, because the phase of a late step is large.
        phase = torch.arange(start, stop, dtype=torch.float64)[:, None] * self.dt * self.tones
        v = torch.einsum("bsk,tk->tbs", amplitudes, phase.sin().to(amplitudes))
        force = v @ self.at_sources
        modes = []
        for push in force:
            pressure = q @ self.at_membranes
            x_push = (
                self.membrane_w2 * (self.coupling * pressure - x - self.beta * x**3)
                - self.membrane_damping * x_rate
            )
            q_push = (
                push - self.damping * q_rate - self.w2 * q - self.back_action * (x_push @ self.at_membranes.T)
            )
            q_rate, x_rate = q_rate + self.dt * q_push, x_rate + self.dt * x_push
            q, x = q + self.dt * q_rate, x + self.dt * x_rate
            modes.append(q)
        sound = torch.stack(modes) @ self.at_microphones
        return (q, q_rate, x, x_rate), torch.einsum(
            "tbm,tk->bmk", sound + 0j, self._analysis_window(start, stop, sound)
        )

    def _analysis_window(self, start: int, stop: int, like: Tensor) -> Tensor:
        """Return a Hann window over the second half times exp(-i w t), ``[T, F]``, scaled for sines."""
        # The state after a step belongs to the end of the step.
        step = torch.arange(start + 1, stop + 1, dtype=torch.float64)
        half = self.steps / 2
        position = (step - half) / half
        window = torch.where(position >= 0, torch.sin(math.pi * position).square(), 0) * (2 / half)
        wave = torch.exp(-1j * step[:, None] * self.dt * self.tones)
        return (2 * window[:, None] * wave).to(complex_dtype(like.dtype)).to(like.device)
