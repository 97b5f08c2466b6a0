"""Simulated chaotic microwave cavity with a programmable metasurface."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Unpack

import torch
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree.physics.quantize import check_bits, quantize
from bpfree.physics.simulated import Disorder, Simulated, SimulationOptions, complex_dtype


class MicrowaveCavity(Simulated):
    """A transmitter, receivers and a metasurface of n atoms in a chaotic cavity. The drive sets the atoms.

    With ports T, R and A = the atoms, each atom reflecting with Gamma_i = reflection * exp(i pi (1 - u_i)),
    receiver r measures at the frequency f_k (output index = frequencies * r + k)::

        K(f) = sum_n w_n w_n^T / (f_n - f + i f / (2 Q)) ;      S(f) = (1 + i K)^-1 (1 - i K)
        y_rk = | S_RT + S_RA [diag(1 / Gamma) - S_AA]^-1 S_AT | (r, f_k)

    f_n are unfolded eigenvalues of a Gaussian orthogonal matrix, w_n normal with variance coupling * spacing
    / pi (random waves). The waves scatter at the atoms many times, so the output is nonlinear in the
    configuration although the medium is linear; more so for a higher Q and a larger coupling. The model is
    passive, which is checked for every S.

    Args:
        atoms: Number of atoms, n_in.
        frequencies: Number of frequencies, evenly spaced over the band. The cost is proportional to it.
        receivers: Number of receiving antennas; n_out is frequencies * receivers.
        band_hz: Lowest and highest frequency.
        modes: Number of resonances; they span five times the band.
        q: Quality factor.
        atom_coupling, antenna_coupling: 0 (closed) to 1 (perfect at the center of the band).
        reflection: Magnitude of the reflection of an atom.
        bits: An atom has 2^bits phase states; 1 bit: 0 or pi. None: any phase.
        noise: See `Simulated`; the default is the noise of a network analyzer at -60 dB.
        options: See `Simulated`.

    Raises:
        BadValue: If an argument is out of range.
        AssertionError: If a scattering matrix has a singular value above 1.
    """

    # The resonances drift; the positions of the antennas and atoms do not.
    drifting = ("levels",)

    def __init__(
        self,
        atoms: int = 40,
        frequencies: int = 20,
        *,
        receivers: int = 1,
        band_hz: tuple[float, float] = (5.147e9, 5.247e9),
        modes: int = 120,
        q: float = 300.0,
        atom_coupling: float = 0.1,
        antenna_coupling: float = 0.9,
        reflection: float = 0.95,
        bits: int | None = 1,
        noise: float = 1e-3,
        **options: Unpack[SimulationOptions],
    ) -> None:
        if min(atoms, frequencies, receivers, modes) < 1 or q <= 0 or not 0 < band_hz[0] < band_hz[1]:
            raise BadValue(
                f"atoms = {atoms}, frequencies = {frequencies}, receivers = {receivers}, modes = {modes}, "
                f"q = {q}, band_hz = {band_hz}: expected at least 1 of each, q > 0, and 0 < low < high"
            )
        if not (0 < reflection <= 1 and 0 < atom_coupling <= 1 and 0 < antenna_coupling <= 1):
            raise BadValue(
                f"reflection = {reflection}, atom_coupling = {atom_coupling}, antenna_coupling = "
                f"{antenna_coupling}: expected values above 0 and at most 1"
            )
        check_bits(bits=bits)
        self.n_in, self.n_out = atoms, frequencies * receivers
        self.frequencies, self.antennas = frequencies, 1 + receivers
        self.band_hz, self.modes, self.q = band_hz, modes, q
        self.atom_coupling, self.antenna_coupling = atom_coupling, antenna_coupling
        self.reflection, self.bits = reflection, bits
        super().__init__(noise=noise, **options)

    def _disorder_shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {"levels": (self.modes, self.modes), "waves": (self.modes, self.antennas + self.n_in)}

    def scattering(self, disorder: Disorder | None = None) -> Tensor:
        """Return S of all P ports (transmitter, receivers, atoms without load): ``[F, P, P]``."""
        disorder = disorder or self._disorder
        low, high = self.band_hz
        spacing = 5 * (high - low) / self.modes
        resonances = low - 2 * (high - low) + spacing * unfolded_levels(disorder["levels"])
        coupling = torch.full((self.antennas + self.n_in,), self.atom_coupling, dtype=torch.float64)
        coupling[: self.antennas] = self.antenna_coupling
        waves = disorder["waves"] * (coupling * spacing / math.pi).sqrt()
        f = torch.linspace(low, high, self.frequencies, dtype=torch.float64)
        response = 1 / (resonances - f[:, None] + 0.5j * f[:, None] / self.q)
        k = torch.einsum("np,fn,nq->fpq", waves.to(response.dtype), response, waves.to(response.dtype))
        one = torch.eye(k.shape[-1], dtype=k.dtype)
        s: Tensor = torch.linalg.solve(one + 1j * k, one - 1j * k)
        largest = float(torch.linalg.matrix_norm(s, 2).max())
        assert largest <= 1 + 1e-9, f"the cavity is not passive: singular value {largest}"
        return s

    def _build(self, disorder: Disorder, *, differentiable: bool) -> nn.Module:
        s = self.scattering(disorder).to(complex_dtype(self.dtype))
        return _Metasurface(s, self.antennas, self.reflection, self.bits, differentiable).to(self.device)


def unfolded_levels(normal: Tensor) -> Tensor:
    """Return the eigenvalues of a Gaussian orthogonal matrix, unfolded to mean density 1: ``[N]``, sorted."""
    n = len(normal)
    # The eigenvalue density of (G + G^T) / sqrt(2 n) is a semicircle of radius 2.
    x = torch.linalg.eigvalsh((normal + normal.T) / math.sqrt(2 * n)).clamp(-2, 2) / 2
    share: Tensor = 0.5 + (x * (1 - x.square()).sqrt() + torch.asin(x)) / math.pi
    return n * share


class _Metasurface(nn.Module):
    s: Tensor

    def __init__(
        self, s: Tensor, antennas: int, reflection: float, bits: int | None, differentiable: bool
    ) -> None:
        super().__init__()
        self.register_buffer("s", s)
        self.antennas, self.reflection, self.bits = antennas, reflection, bits
        self.differentiable = differentiable

    def forward(self, u: Tensor) -> Tensor:
        """Drives ``[B, n]`` to outputs ``[B, receivers * F]``."""
        state = quantize(u, self.bits, 0.0, 1.0, straight_through=self.differentiable)
        # 1 / Gamma, for a phase of pi (1 - state)
        inverse = torch.polar(torch.full_like(state, 1 / self.reflection), math.pi * (state - 1))
        n = self.antennas
        loaded = torch.diag_embed(inverse).unsqueeze(1) - self.s[:, n:, n:]
        incident = self.s[:, n:, :1].expand(len(u), -1, -1, -1)
        scattered = self.s[:, 1:n, n:] @ torch.linalg.solve(loaded, incident)
        y: Tensor = (self.s[:, 1:n, 0] + scattered[..., 0]).abs()
        return y.mT.flatten(1)
