"""Simulated multimode fiber: a modulator shapes the input field, and a camera measures the speckle."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree.physics.calibration import probes
from bpfree.physics.quantize import check_bits, quantize
from bpfree.physics.simulated import (
    Disorder,
    Simulated,
    SimulationOptions,
    complex_dtype,
    complex_normal,
    haar_unitary,
)


class MultimodeFiber(Simulated):
    """A modulator of ``grid x grid`` pixels, a fiber with m guided modes, and a camera with pooled pixels.

    With x the drive in 2^drive_bits levels, F the unitary Fourier transform and M the modes inside a circle::

        E = x (amplitude)  or  exp(i pi x) (phase);     c = M F E / sqrt(P)
        kerr_steps times, where kerr > 0:   c <- U_s c ;   c <- c * exp(i (kerr / kerr_steps) m |c|^2)
        I = grid^2 | F^-1 M^T T diag(exp(i phase_sd phi)) c |^2
        I <- Poisson(photons I) / photons + noise N ;   I <- camera in 2^camera_bits levels up to saturation
        y = mean over pool x pool pixels of I (intensity) or of sqrt(I) (amplitude)

    P is the mean power in the modes over random drives. For such drives, sum |c|^2 and the mean of I are
    about 1, and ``kerr`` is about the mean Kerr phase in radians; sum |c|^2 is larger for a brighter image. T
    is complex Gaussian with a mean square of 1 / m (strong scattering), or unitary with a loss that increases
    linearly over the modes up to ``loss_db`` (a fiber). U_s are unitary. Only the mode phases phi drift, as
    measured in fibers (arXiv 1810.06643).

    Args:
        grid: Number of pixels along each side of the modulator and of the camera; n_in is grid^2.
        mask_radius: Radius of the circle of guided modes, in pixels of the Fourier plane.
        transmission: ``"gaussian"`` or ``"unitary"``.
        loss_db: Largest loss of a mode, for ``"unitary"``.
        kerr, kerr_steps: Strength of the Kerr effect, and number of split steps.
        encoding: ``"amplitude"`` or ``"phase"``.
        detection: ``"amplitude"`` or ``"intensity"``.
        drive_bits, camera_bits: Resolution; None: no quantization.
        saturation: Intensity at which the camera clips, in mean intensities; None: no clipping, which
            requires ``camera_bits=None``.
        photons: Photoelectrons per camera pixel at I = 1; None: no shot noise.
        pool: Side of the pooling window, an odd number; the stride is 2. 1: no pooling.
        phase_sd: Standard deviation of the drifting mode phases, in radians.
        input_range: Range of the drives x.
        noise: Read noise per camera pixel, in mean intensities.
        options: See `Simulated`.

    Raises:
        BadValue: If an argument is out of range.
    """

    drifting = ("phase",)

    def __init__(
        self,
        grid: int = 51,
        mask_radius: float = 20.0,
        *,
        transmission: Literal["gaussian", "unitary"] = "gaussian",
        loss_db: float = 0.0,
        kerr: float = 0.0,
        kerr_steps: int = 8,
        encoding: Literal["amplitude", "phase"] = "amplitude",
        detection: Literal["amplitude", "intensity"] = "amplitude",
        drive_bits: int | None = 8,
        camera_bits: int | None = 10,
        saturation: float | None = 8.0,
        photons: float | None = None,
        pool: int = 3,
        phase_sd: float = 1.0,
        input_range: tuple[float, float] = (0.0, 1.0),
        noise: float = 0.0,
        **options: Unpack[SimulationOptions],
    ) -> None:
        _check_choice("transmission", transmission, ("gaussian", "unitary"))
        _check_choice("encoding", encoding, ("amplitude", "phase"))
        _check_choice("detection", detection, ("amplitude", "intensity"))
        if grid < 2 or not 0.5 <= mask_radius <= grid / 2 or pool < 1 or pool % 2 == 0 or kerr_steps < 1:
            raise BadValue(
                f"grid = {grid}, mask_radius = {mask_radius}, pool = {pool}, kerr_steps = {kerr_steps}: "
                "expected grid >= 2, a radius of 0.5 to grid / 2, an odd pool, and at least one step"
            )
        check_bits(drive_bits=drive_bits, camera_bits=camera_bits)
        if camera_bits is not None and saturation is None:
            raise BadValue(f"camera_bits = {camera_bits} needs a saturation: its levels divide that range")
        if min(kerr, loss_db, phase_sd) < 0 or (photons is not None and photons <= 0):
            raise BadValue(
                f"kerr = {kerr}, loss_db = {loss_db}, phase_sd = {phase_sd}, photons = {photons}: "
                "expected no negative value, and photons above 0 or None"
            )
        self.grid, self.mask = grid, _circle(grid, mask_radius)
        self.modes = len(self.mask)
        self.transmission, self.loss_db, self.kerr, self.kerr_steps = transmission, loss_db, kerr, kerr_steps
        self.encoding, self.detection, self.phase_sd = encoding, detection, phase_sd
        self.drive_bits, self.camera_bits, self.saturation = drive_bits, camera_bits, saturation
        self.photons, self.pool = photons, pool
        self.input_range = input_range
        side = grid if pool == 1 else (grid - 1) // 2 + 1
        self.n_in, self.n_out = grid**2, side**2
        super().__init__(noise=noise, **options)

    def _disorder_shapes(self) -> Mapping[str, tuple[int, ...]]:
        square = (self.modes, self.modes)
        shapes = {"t_real": square, "t_imag": square, "phase": (self.modes,)}
        if self.kerr:
            shapes |= {"u_real": (self.kerr_steps, *square), "u_imag": (self.kerr_steps, *square)}
        return shapes

    def _build(self, disorder: Disorder, *, differentiable: bool) -> nn.Module:
        if self.transmission == "gaussian":
            matrix = complex_normal(disorder["t_real"], disorder["t_imag"], 1 / self.modes)
        else:
            loss = torch.linspace(0, self.loss_db, self.modes, dtype=torch.float64)
            matrix = haar_unitary(disorder["t_real"], disorder["t_imag"]) * 10 ** (-loss / 20)
        matrix = matrix * torch.exp(1j * self.phase_sd * disorder["phase"])
        steps = haar_unitary(disorder["u_real"], disorder["u_imag"]) if self.kerr else None
        return _Fiber(self, matrix, steps, differentiable).to(self.device)

    def _detect(self, signal: Tensor, *, noisy: bool) -> Tensor:
        """Apply the camera: intensities ``[B, grid^2]`` to pooled pixels ``[B, n_out]``."""
        if noisy and self.photons is not None:
            counts = self._rng["shot"].poisson(self.photons * signal.cpu().double().numpy())
            signal = torch.from_numpy(counts).to(signal) / self.photons
        if noisy and self.noise:
            signal = self._with_noise(signal, 1.0)
        if self.saturation is not None:
            signal = quantize(signal, self.camera_bits, 0.0, self.saturation, straight_through=True)
        if self.detection == "amplitude":
            # The derivative of the square root is infinite at 0.
            signal = signal.clamp_min(_DARK).sqrt()
        if self.pool > 1:
            image = signal.view(-1, 1, self.grid, self.grid)
            signal = F.avg_pool2d(image, self.pool, stride=2, padding=self.pool // 2)
        return signal.flatten(1)


_DARK = 1e-12


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise BadValue(f"{name} = {value!r}: expected one of {', '.join(choices)}")


def _circle(grid: int, radius: float) -> Tensor:
    """Return the indices, in the flattened Fourier plane, of the spatial frequencies inside a circle."""
    k = torch.fft.fftfreq(grid, d=1 / grid, dtype=torch.float64).round()
    indices: Tensor = (k[:, None] ** 2 + k[None] ** 2 <= radius**2).flatten().nonzero().squeeze(1)
    return indices


class _Fiber(nn.Module):
    matrix: Tensor
    steps: Tensor | None
    mask: Tensor

    def __init__(
        self, fiber: MultimodeFiber, matrix: Tensor, steps: Tensor | None, differentiable: bool
    ) -> None:
        super().__init__()
        dtype = complex_dtype(fiber.dtype)
        self.grid, self.modes, self.kerr = fiber.grid, fiber.modes, fiber.kerr
        self.encoding, self.drive_bits, self.input_range = (
            fiber.encoding,
            fiber.drive_bits,
            fiber.input_range,
        )
        self.differentiable = differentiable
        self.register_buffer("matrix", matrix.to(dtype))
        self.register_buffer("steps", steps.to(dtype) if steps is not None else None)
        self.register_buffer("mask", fiber.mask)
        self.power = 1.0
        random_drives = torch.from_numpy(probes(64, fiber.n_in, fiber.input_range, seed=0)).to(fiber.dtype)
        self.power = float(self.launch(random_drives).abs().square().sum(1).mean())

    def launch(self, u: Tensor) -> Tensor:
        """Drives ``[B, grid^2]`` to mode amplitudes ``[B, m]``."""
        x = quantize(u, self.drive_bits, *self.input_range, straight_through=self.differentiable)
        field = x if self.encoding == "amplitude" else torch.polar(torch.ones_like(x), math.pi * x)
        plane = torch.fft.fft2(field.view(-1, self.grid, self.grid), norm="ortho")
        modes: Tensor = plane.flatten(1).index_select(1, self.mask) / math.sqrt(self.power)
        return modes

    def kerr_effect(self, c: Tensor, steps: Tensor) -> Tensor:
        """Mode amplitudes ``[B, m]`` to those after the split steps ``[S, m, m]`` of the Kerr effect."""
        share = self.kerr * self.modes / len(steps)
        for step in steps:
            c = c @ step.T
            c = c * torch.exp(1j * share * c.abs().square())
        return c

    def forward(self, u: Tensor) -> Tensor:
        """Drives to intensities on the camera, both ``[B, grid^2]``."""
        c = self.launch(u)
        if self.steps is not None:
            c = self.kerr_effect(c, self.steps)
        c = c @ self.matrix.T
        plane = torch.zeros(len(c), self.grid**2, dtype=c.dtype, device=c.device)
        plane = plane.index_copy_(1, self.mask, c)
        field = torch.fft.ifft2(plane.view(-1, self.grid, self.grid), norm="ortho")
        # Not abs().square(), because the derivative of abs is undefined at 0.
        intensity: Tensor = field.real.square().add_(field.imag.square()).flatten(1).mul_(self.grid**2)
        return intensity
