"""A surrogate of a measured acoustic cavity: a parametric model that is fitted to measurements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree.physics.inspection import name_outputs
from bpfree.physics.outputs import finite_array
from bpfree.physics.simulated import Disorder, Simulated, SimulationOptions, random
from bpfree.physics.state import Report, StateDict
from bpfree.physics.system import Array

Complex = NDArray[np.complexfloating]

_RESTARTS = 6
_FEW_ROWS = 1000


class CavitySurrogate(Simulated):
    """A model of coherent mixing and magnitudes, fitted to measured drives and outputs of an acoustic cavity.

    Each output is a function of the amplitudes of the loudspeakers at one tone, the tone on which it depends
    most. It is one of ::

        y = | sum_s H_s a_s + offset | ,   H, offset complex;   or   y = c_0 + sum_s c_s a_s ,   c real

    whichever predicts held-out measurements better. The standard deviation of the noise of each output is the
    residual on held-out rows. The surrogate is valid in the range of the measurements; drives whose length is
    outside the range of measured lengths are counted.

    Args:
        u: Measured drives ``[N, sources * tones]``, amplitudes (index = tones * source + tone).
        y: Measured outputs ``[N, n_out]``.
        sources: Number of loudspeakers.
        held_out: One in ``held_out`` rows is held out. The held-out rows are spread over the entire
            recording, because the cavity may drift.
        noise: Standard deviation of the noise, in units of the residual; 0: no noise.
        options: See `Simulated`; ``seed_device`` has no effect.

    Attributes:
        r_squared: R^2 of each output on the held-out rows, ``[n_out]``.
        total_r_squared: R^2 of all outputs together, each weighted by its variance.
        magnitudes: Whether each output is modeled as a magnitude, ``[n_out]``.
        tone: The tone of each output, ``[n_out]``.

    Raises:
        BadValue: If the measurements have inconsistent shapes, fewer than 100 rows, or values that are not
            real and finite; if an output never changes; or if ``held_out`` is below 2.
    """

    kind = "surrogate"

    def __init__(
        self,
        u: Array,
        y: Array,
        *,
        sources: int = 4,
        held_out: int = 5,
        noise: float = 1.0,
        **options: Unpack[SimulationOptions],
    ) -> None:
        try:
            u, y = finite_array(u, "u"), finite_array(y, "y")
        except ValueError as error:
            raise BadValue(str(error)) from None
        if u.ndim != 2 or y.ndim != 2 or len(u) != len(y) or len(u) < 100 or u.shape[1] % sources:
            raise BadValue(
                f"u is {list(u.shape)} and y {list(y.shape)}; expected [N, {sources} * tones] and [N, n_out] "
                "with the same N of at least 100"
            )
        constant = np.ptp(y, axis=0) == 0
        if constant.any():
            raise BadValue(
                f"{name_outputs(constant)} have the same value in all {len(y)} rows; remove them from y"
            )
        self.sources, self.n_in, self.n_out = sources, u.shape[1], y.shape[1]
        self.input_range = (float(u.min()), float(u.max()))
        norms = np.linalg.norm(u, axis=1)
        self.measured_norms = (float(norms.min()), float(norms.max()))
        self.rows = self.out_of_range_rows = 0
        if held_out < 2:
            raise BadValue(f"held_out = {held_out}: expected at least 2: one in held_out rows is held out")
        test = np.arange(len(u)) % held_out == held_out - 1
        self._fit(u[~test], y[~test], u[test], y[test])
        super().__init__(noise=noise, **options)

    def _fit(self, u: Array, y: Array, u_test: Array, y_test: Array) -> None:
        tones = u.shape[1] // self.sources
        linear = np.linalg.lstsq(_with_constant(u), y, rcond=None)[0][:-1]
        strength = np.square(linear * u.std(axis=0)[:, None]).reshape(self.sources, tones, -1).sum(axis=0)
        self.tone = strength.argmax(axis=0)

        def inputs(rows: Array) -> Array:
            """Return the amplitudes at the tone of each output and a constant, ``[N, n_out, S + 1]``."""
            at_tone = rows.reshape(len(rows), self.sources, tones)[:, :, self.tone].transpose(0, 2, 1)
            return np.concatenate([at_tone, np.ones((len(rows), self.n_out, 1))], axis=2)

        a, a_test = inputs(u), inputs(u_test)
        linear_fit = np.stack([np.linalg.lstsq(a[:, k], y[:, k], rcond=None)[0] for k in range(self.n_out)])
        magnitude_fit = fit_magnitudes(a, y)
        predictions = {
            False: np.einsum("nks,ks->nk", a_test, linear_fit),
            True: np.abs(np.einsum("nks,ks->nk", a_test, magnitude_fit)),
        }
        errors = {is_magnitude: np.square(p - y_test).mean(axis=0) for is_magnitude, p in predictions.items()}
        self.magnitudes = errors[True] < errors[False]
        unexplained = np.where(self.magnitudes, errors[True], errors[False])
        self._residual = np.sqrt(unexplained)
        variance = y_test.var(axis=0)
        self.r_squared = 1 - unexplained / np.where(variance > 0, variance, 1)
        self.total_r_squared = 1 - float(unexplained.sum() / variance.sum())
        self._weights = np.where(self.magnitudes[:, None], magnitude_fit, linear_fit)
        # Divided by the mean weight of an output, the weights are of order 1, like the disorder of a
        # mismatch.
        self._size = np.sqrt(np.square(np.abs(self._weights)).mean(axis=1, keepdims=True))

    def _disorder_shapes(self) -> Mapping[str, tuple[int, ...]]:
        return dict.fromkeys(("real", "imaginary"), self._weights.shape)

    def _initial_disorder(self) -> Disorder:
        relative = self._weights / self._size
        return {
            "real": torch.from_numpy(relative.real.copy()),
            "imaginary": torch.from_numpy(relative.imag.copy()),
        }

    def _build(self, disorder: Disorder, *, differentiable: bool) -> nn.Module:
        weights = torch.complex(disorder["real"], disorder["imaginary"]) * torch.from_numpy(self._size)
        return _Surrogate(
            weights, torch.from_numpy(self.tone), torch.from_numpy(self.magnitudes), self.sources
        ).to(self.device)

    def _detect(self, signal: Tensor, *, noisy: bool) -> Tensor:
        if not noisy:
            return signal
        return self._with_noise(signal, torch.from_numpy(self._residual).to(signal))

    def forward(self, u: Array) -> Array:
        """Compute the outputs ``[B, n_out]``; see `PhysicalSystem`."""
        norms = np.linalg.norm(u, axis=1)
        low, high = self.measured_norms
        self.rows += len(u)
        self.out_of_range_rows += int(((norms < low) | (norms > high)).sum())
        return super().forward(u)

    def report(self) -> Report:
        """Return the R^2 of the surrogate, and how many drives were outside the range of the measurements."""
        return {
            "surrogate": True,
            "surrogate_r_squared": self.total_r_squared,
            "out_of_range_rows": self.out_of_range_rows,
            "out_of_range_share": self.out_of_range_rows / self.rows if self.rows else None,
        }

    def state_dict(self) -> StateDict:
        """Return the `Simulated.state_dict` and the counts."""
        return super().state_dict() | {"rows": self.rows, "out_of_range_rows": self.out_of_range_rows}

    def load_state_dict(self, state: StateDict) -> None:
        """Restore a `state_dict`."""
        super().load_state_dict(state)
        self.rows, self.out_of_range_rows = state["rows"], state["out_of_range_rows"]


def _with_constant(u: Array) -> Array:
    return np.concatenate([u, np.ones((len(u), 1))], axis=1)


def fit_magnitudes(a: Array, y: Array, seed: int = 0) -> Complex:
    """Fit complex ``w [K, S]`` by least squares of ``|sum_s a[n, k, s] w[k, s]| - y[n, k]``.

    Several random initial values are optimized on some of the rows; the best one for each k is optimized on
    all rows.

    Args:
        a: Real inputs ``[N, K, S]``.
        y: Magnitudes ``[N, K]``.
        seed: Seed of the initial values.
    """
    rng = random(seed, "fit_magnitudes")
    shape = (_RESTARTS, *a.shape[1:])
    size = np.abs(y).mean(axis=0) / np.sqrt(np.square(a).sum(axis=2).mean(axis=0))
    starts = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) * size[:, None]
    few = slice(0, _FEW_ROWS)
    weights, errors = _levenberg_marquardt(a[few], y[few], starts, 60)
    best = errors.argmin(axis=0)
    best_weights = weights[best, np.arange(len(best))]
    result: Complex = _levenberg_marquardt(a, y, best_weights[None], 20)[0][0]
    return result


def _levenberg_marquardt(a: Array, y: Array, weights: Complex, steps: int) -> tuple[Complex, Array]:
    """Optimize each of ``weights [R, K, S]``; return them and their mean squared errors ``[R, K]``."""

    def mix(w: Complex) -> Complex:
        return np.asarray(np.einsum("nks,rks->rnk", a, w))

    def error(w: Complex) -> Array:
        return np.asarray(np.square(np.abs(mix(w)) - y).mean(axis=1))

    errors = error(weights)
    damping = np.full(errors.shape, 1e-2)
    for _ in range(steps):
        field = mix(weights)
        unit = field / np.maximum(np.abs(field), 1e-300)
        # d|f| = Re(conj(f) / |f| df), with respect to the real and to the imaginary parts of the weights
        slopes = np.concatenate(
            [np.einsum("rnk,nks->rkns", part, a) for part in (unit.real, unit.imag)], axis=3
        )
        curvature = slopes.swapaxes(2, 3) @ slopes
        gradient = np.einsum("rkns,rnk->rks", slopes, np.abs(field) - y)
        diagonal = np.einsum("rkss->rks", curvature)
        # The error does not depend on a common phase of the weights, so the step is unique only with damping.
        damped = curvature + _diagonal(damping[..., None] * diagonal + 1e-12 * diagonal.mean())
        step = np.linalg.solve(damped, gradient[..., None])[..., 0]
        real, imaginary = np.split(step, 2, axis=2)
        new_weights = weights - (real + 1j * imaginary)
        new_errors = error(new_weights)
        better = new_errors < errors
        weights = np.where(better[..., None], new_weights, weights)
        errors = np.where(better, new_errors, errors)
        damping = np.where(better, damping / 3, np.minimum(damping * 4, 1e6))
    return weights, errors


def _diagonal(values: Array) -> Array:
    """Return diagonal matrices ``[..., n, n]`` of ``values [..., n]``."""
    return np.asarray(values[..., None] * np.eye(values.shape[-1]))


class _Surrogate(nn.Module):
    weights: Tensor
    tone: Tensor
    magnitudes: Tensor

    def __init__(self, weights: Tensor, tone: Tensor, magnitudes: Tensor, sources: int) -> None:
        super().__init__()
        self.register_buffer("weights", weights)
        self.register_buffer("tone", tone)
        self.register_buffer("magnitudes", magnitudes)
        self.sources = sources

    def forward(self, u: Tensor) -> Tensor:
        """Drives ``[B, n_in]`` to outputs ``[B, n_out]``."""
        amplitudes = u.view(len(u), self.sources, u.shape[1] // self.sources)[:, :, self.tone].to(
            self.weights.dtype
        )
        sums = torch.einsum("bsk,ks->bk", amplitudes, self.weights[:, :-1]) + self.weights[:, -1]
        y: Tensor = torch.where(self.magnitudes, sums.abs(), sums.real).to(u.dtype)
        return y
