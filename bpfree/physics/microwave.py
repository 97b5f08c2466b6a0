"""Waves in a chaotic cavity whose walls are programmed: the medium is linear, the program is not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree.physics.quantise import check_bits, quantise
from bpfree.physics.simulated import Disorder, Simulated, complex_dtype


class MicrowaveCavity(Simulated):
    """A transmitter, receivers and a metasurface of n atoms in a chaotic cavity; its program is the drive.

    With ports T, R and A = the atoms, each atom reflecting with Gamma_i = reflection * exp(i pi (1 - u_i)),
    receiver r hears at the frequency f_k (answer index = frequencies * r + k)::

        K(f) = sum_n w_n w_n^T / (f_n - f + i f / (2 Q)) ;      S(f) = (1 + i K)^-1 (1 - i K)
        y_rk = | S_RT + S_RA [diag(1 / Gamma) - S_AA]^-1 S_AT | (r, f_k)

    f_n are unfolded eigenvalues of a Gaussian orthogonal matrix, w_n normal with variance
    coupling * spacing / pi (random waves). Waves meet the atoms many times, so the answer is nonlinear in the
    configuration although the medium is linear: the more so, the higher Q and the coupling. The model is
    passive, and every S is checked for it.

    Args:
        atoms: n_in.
        frequencies: How many, evenly spaced over the band. Each costs the simulator one set of equations.
        receivers: Antennas that listen; n_out is frequencies * receivers.
        band_hz: Lowest and highest of them.
        modes: Number of resonances; they span five times the band.
        q: Quality factor.
        atom_coupling, antenna_coupling: 0 (closed) to 1 (perfect at band centre).
        reflection: Magnitude of an atom's reflection.
        bits: Phase states of an atom, 2^bits; 1 is 0 or pi. None: any phase.
        noise: See `Simulated`; the default is an analyser's noise at -60 dB.
        options: See `Simulated`.

    Raises:
        AssertionError: If a scattering matrix had a singular value above 1.
    """

    # The resonances move; where the antennas and atoms sit does not.
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
        **options: Any,
    ) -> None:
        if min(atoms, frequencies, receivers, modes) < 1 or q <= 0 or not 0 < band_hz[0] < band_hz[1]:
            raise BadValue(
                f"atoms = {atoms}, frequencies = {frequencies}, receivers = {receivers}, modes = {modes}, "
                f"q = {q}, band_hz = {band_hz}: expected at least 1 of each, q > 0, and a rising band above 0"
            )
        if not (0 < reflection <= 1 and 0 < atom_coupling <= 1 and 0 < antenna_coupling <= 1):
            raise BadValue(
                f"reflection = {reflection}, atom_coupling = {atom_coupling}, antenna_coupling = "
                f"{antenna_coupling}: expected all above 0, at most 1"
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
        """S of all P ports (transmitter, receivers, atoms) without the atoms' load: ``[F, P, P]``."""
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
    """Eigenvalues of a Gaussian orthogonal matrix with their mean density made 1: ``[N]`` in 0..N, rising."""
    n = len(normal)
    # (G + G^T) / sqrt(2 n) has a semicircle of radius 2.
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
        """``[B, n] -> [B, receivers * F]``"""
        state = quantise(u, self.bits, 0.0, 1.0, straight_through=self.differentiable)
        # 1 / Gamma, for a phase of pi (1 - state)
        inverse = torch.polar(torch.full_like(state, 1 / self.reflection), math.pi * (state - 1))
        n = self.antennas
        loaded = torch.diag_embed(inverse).unsqueeze(1) - self.s[:, n:, n:]
        incident = self.s[:, n:, :1].expand(len(u), -1, -1, -1)
        scattered = self.s[:, 1:n, n:] @ torch.linalg.solve(loaded, incident)
        y: Tensor = (self.s[:, 1:n, 0] + scattered[..., 0]).abs()
        return y.mT.flatten(1)
