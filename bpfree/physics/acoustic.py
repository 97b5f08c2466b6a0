"""Simulated acoustic cavity: tones mix coherently, and microphones measure magnitudes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Unpack

import torch
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree.physics.simulated import Disorder, Simulated, SimulationOptions, complex_dtype, complex_normal


class AcousticCavity(Simulated):
    """A scattering box with S loudspeakers of F tones each, and M microphones.

    With the amplitudes ``a [S, F]`` (drive index = F * source + tone) the spectral amplitude of tone k at
    microphone m (output index = F * microphone + tone) is::

        L[m, k] = sum_s H[m, s, k] a[s, k]
        y[m, k] = | L[m, k] + intermodulation * sum_ij C[m, k, i, j] L[m, i] conj(L[m, j]) |

    H is the complex Gaussian transfer function of the box, with a mean square of 1 / S. It is nearly the same
    for tones closer than ``correlation`` spacings, as in a box whose resonances have this width. C models the
    mixing of tones by an active membrane. Without C, the formula describes the measured cavity of Momeni et
    al. (Science 382, 1297, 2023).

    Args:
        sources, tones, microphones: S, F, M.
        intermodulation: Strength of the quadratic term; with 0 there is only coherent mixing and the
            magnitude.
        correlation: Correlation length of H in frequency, in tone spacings; 0: the tones are independent.
        options: See `Simulated`.
    """

    def __init__(
        self,
        sources: int = 4,
        tones: int = 5,
        microphones: int = 4,
        *,
        intermodulation: float = 0.05,
        correlation: float = 0.0,
        noise: float = 0.05,
        **options: Unpack[SimulationOptions],
    ) -> None:
        if min(sources, tones, microphones) < 1 or intermodulation < 0 or correlation < 0:
            raise BadValue(
                f"sources = {sources}, tones = {tones}, microphones = {microphones}, intermodulation = "
                f"{intermodulation}, correlation = {correlation}: expected at least 1 of each, none negative"
            )
        self.sources, self.tones, self.microphones = sources, tones, microphones
        self.intermodulation, self.correlation = intermodulation, correlation
        self.n_in, self.n_out = sources * tones, microphones * tones
        super().__init__(noise=noise, **options)

    def _disorder_shapes(self) -> Mapping[str, tuple[int, ...]]:
        transfer = (self.microphones, self.sources, self.tones)
        mixing = (self.microphones, self.tones, self.tones, self.tones)
        return {"h_real": transfer, "h_imag": transfer, "c_real": mixing, "c_imag": mixing}

    def _build(self, disorder: Disorder, *, differentiable: bool) -> nn.Module:
        transfer = complex_normal(disorder["h_real"], disorder["h_imag"], 1 / self.sources)
        if self.correlation:
            transfer = transfer @ _smoothing(self.tones, self.correlation).to(transfer.dtype)
        mixing = complex_normal(disorder["c_real"], disorder["c_imag"], 1.0)
        dtype = complex_dtype(self.dtype)
        cavity = _Cavity(
            transfer.to(dtype), mixing.to(dtype) if self.intermodulation else None,
            self.intermodulation,
        )  # fmt: skip
        return cavity.to(self.device)


def _smoothing(n: int, length: float) -> Tensor:
    """Return the symmetric square root of the correlation matrix exp(-|i - j| / length), ``[n, n]``."""
    i = torch.arange(n, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(torch.exp(-(i[:, None] - i[None]).abs() / length))
    root: Tensor = vectors * values.clamp_min(0).sqrt() @ vectors.T
    return root


class _Cavity(nn.Module):
    transfer: Tensor
    mixing: Tensor | None

    def __init__(self, transfer: Tensor, mixing: Tensor | None, strength: float) -> None:
        super().__init__()
        self.register_buffer("transfer", transfer)
        self.register_buffer("mixing", mixing)
        self.strength = strength

    def forward(self, u: Tensor) -> Tensor:
        """Drives ``[B, S * F]`` to outputs ``[B, M * F]``."""
        _, sources, tones = self.transfer.shape
        # Batched matrix products, by tone and then by microphone; einsum is slower here.
        amplitudes = u.view(-1, sources, tones).permute(2, 0, 1).to(self.transfer.dtype)
        field = torch.bmm(amplitudes, self.transfer.permute(2, 1, 0)).permute(2, 1, 0).contiguous()
        if self.mixing is not None:
            pairs = (field.unsqueeze(3) * field.conj().unsqueeze(2)).flatten(2)
            field = torch.baddbmm(field, pairs, self.mixing.flatten(2).mT, alpha=self.strength)
        return field.abs().transpose(0, 1).flatten(1)
