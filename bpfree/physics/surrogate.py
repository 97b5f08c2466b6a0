"""A measured cavity as a device: a model of its form, fitted to what was measured. Not the cavity itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree.physics.answers import numbers
from bpfree.physics.inspection import named
from bpfree.physics.simulated import Disorder, Simulated, random
from bpfree.physics.system import Array

_RESTARTS = 6
_FEW_ROWS = 1000


class CavitySurrogate(Simulated):
    """Coherent mixing and magnitudes, fitted to drives and measured answers of an acoustic cavity.

    Each answer is a function of the loudspeakers' amplitudes at one tone, that which it depends on most::

        y = | sum_s H_s a_s + offset | ,   H, offset complex;   or   y = c_0 + sum_s c_s a_s ,   c real

    whichever predicts held-out measurements better. The noise is what the model leaves unexplained on
    held-out rows, of every output. The surrogate knows the cavity where it was measured; drives whose length
    is outside the measured lengths are counted as out of range.

    Args:
        u: Measured drives ``[N, sources * tones]``, amplitudes (index = tones * source + tone).
        y: Measured answers ``[N, n_out]``.
        sources: Number of loudspeakers.
        held_out: One row in so many is not fitted. They are spread over the whole recording, for a cavity
            that drifts meanwhile is another one at its end.
        noise: In units of the unexplained standard deviation; 0: none.
        options: See `Simulated`; ``seed_device`` has no meaning here.

    Attributes:
        r_squared: Of every output on the held-out rows, ``[n_out]``.
        total_r_squared: The same of all outputs together, each weighing by its variance.
        magnitudes: Which outputs are modelled as magnitudes, ``[n_out]``.
        tone: Which tone each output follows, ``[n_out]``.

    Raises:
        BadValue: If the measurements do not fit together, are too few or no real, finite numbers, or if an
            output never changes.
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
        **options: Any,
    ) -> None:
        try:
            u, y = numbers(u, "u"), numbers(y, "y")
        except ValueError as error:
            raise BadValue(str(error)) from None
        if u.ndim != 2 or y.ndim != 2 or len(u) != len(y) or len(u) < 100 or u.shape[1] % sources:
            raise BadValue(
                f"u is {list(u.shape)} and y {list(y.shape)}; expected [N, {sources} * tones] and [N, n_out] "
                "with the same N of at least 100"
            )
        constant = np.ptp(y, axis=0) == 0
        if constant.any():
            raise BadValue(f"{named(constant)} have one value in all {len(y)} rows; leave them out of y")
        self.sources, self.n_in, self.n_out = sources, u.shape[1], y.shape[1]
        self.input_range = (float(u.min()), float(u.max()))
        norms = np.linalg.norm(u, axis=1)
        self.measured_norms = (float(norms.min()), float(norms.max()))
        self.rows = self.out_of_range_rows = 0
        if held_out < 2:
            raise BadValue(f"held_out = {held_out}: expected at least 2, one row in so many")
        test = np.arange(len(u)) % held_out == held_out - 1
        self._fit(u[~test], y[~test], u[test], y[test])
        super().__init__(noise=noise, **options)

    def _fit(self, u: Array, y: Array, u_test: Array, y_test: Array) -> None:
        tones = u.shape[1] // self.sources
        linear = np.linalg.lstsq(_with_one(u), y, rcond=None)[0][:-1]
        strength = np.square(linear * u.std(axis=0)[:, None]).reshape(self.sources, tones, -1).sum(axis=0)
        self.tone = strength.argmax(axis=0)

        def inputs(rows: Array) -> Array:
            """Amplitudes at each output's tone and a constant, ``[N, n_out, S + 1]``."""
            at_tone = rows.reshape(len(rows), self.sources, tones)[:, :, self.tone].transpose(0, 2, 1)
            return np.concatenate([at_tone, np.ones((len(rows), self.n_out, 1))], axis=2)

        a, a_test = inputs(u), inputs(u_test)
        straight = np.stack([np.linalg.lstsq(a[:, k], y[:, k], rcond=None)[0] for k in range(self.n_out)])
        curved = fit_magnitudes(a, y)
        guesses = {
            False: np.einsum("nks,ks->nk", a_test, straight),
            True: np.abs(np.einsum("nks,ks->nk", a_test, curved)),
        }
        errors = {kind: np.square(guess - y_test).mean(axis=0) for kind, guess in guesses.items()}
        self.magnitudes = errors[True] < errors[False]
        unexplained = np.where(self.magnitudes, errors[True], errors[False])
        self._residual = np.sqrt(unexplained)
        variance = y_test.var(axis=0)
        self.r_squared = 1 - unexplained / np.where(variance > 0, variance, 1)
        self.total_r_squared = 1 - float(unexplained.sum() / variance.sum())
        self._weights = np.where(self.magnitudes[:, None], curved, straight)
        # Relative to the mean weight of an output the numbers are of order 1, as a twin's error is.
        self._size = np.sqrt(np.square(np.abs(self._weights)).mean(axis=1, keepdims=True))

    def _disorder_shapes(self) -> Mapping[str, tuple[int, ...]]:
        return dict.fromkeys(("real", "imaginary"), self._weights.shape)

    def _first_disorder(self) -> Disorder:
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
        """Answers ``[B, n_out]``; see `PhysicalSystem`."""
        norms = np.linalg.norm(u, axis=1)
        low, high = self.measured_norms
        self.rows += len(u)
        self.out_of_range_rows += int(((norms < low) | (norms > high)).sum())
        return super().forward(u)

    def report(self) -> dict[str, Any]:
        """That it is a surrogate, how good a one, and how many rows asked for more than was measured."""
        return {
            "surrogate": True,
            "surrogate_r_squared": self.total_r_squared,
            "out_of_range_rows": self.out_of_range_rows,
            "out_of_range_share": self.out_of_range_rows / self.rows if self.rows else None,
        }

    def state_dict(self) -> dict[str, Any]:
        """`Simulated.state_dict`, and the counts."""
        return super().state_dict() | {"rows": self.rows, "out_of_range_rows": self.out_of_range_rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` took."""
        super().load_state_dict(state)
        self.rows, self.out_of_range_rows = state["rows"], state["out_of_range_rows"]


def _with_one(u: Array) -> Array:
    return np.concatenate([u, np.ones((len(u), 1))], axis=1)


def fit_magnitudes(a: Array, y: Array, seed: int = 0) -> Array:
    """Complex weights ``[K, S]`` that minimise the squared error of ``|sum_s a[n, k, s] w[k, s]|`` to ``y``.

    Several random starts on few rows; the best of them for each k is finished on all rows.

    Args:
        a: Real inputs ``[N, K, S]``.
        y: Magnitudes ``[N, K]``.
        seed: Which starts.
    """
    rng = random(seed, "fit_magnitudes")
    shape = (_RESTARTS, *a.shape[1:])
    size = np.abs(y).mean(axis=0) / np.sqrt(np.square(a).sum(axis=2).mean(axis=0))
    starts = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) * size[:, None]
    few = slice(0, _FEW_ROWS)
    weights, errors = _levenberg_marquardt(a[few], y[few], starts, 60)
    best = errors.argmin(axis=0)
    chosen = weights[best, np.arange(len(best))]
    finished: Array = _levenberg_marquardt(a, y, chosen[None], 20)[0][0]
    return finished


def _levenberg_marquardt(a: Array, y: Array, weights: Array, steps: int) -> tuple[Array, Array]:
    """Improve each of ``weights [R, K, S]`` alone; returns them and their mean squared errors ``[R, K]``."""

    def mix(w: Array) -> Array:
        return np.asarray(np.einsum("nks,rks->rnk", a, w))

    def error(w: Array) -> Array:
        return np.asarray(np.square(np.abs(mix(w)) - y).mean(axis=1))

    errors = error(weights)
    damping = np.full(errors.shape, 1e-2)
    for _ in range(steps):
        field = mix(weights)
        unit = field / np.maximum(np.abs(field), 1e-300)
        # d|f| = Re(conj(f) / |f| df), by the real and by the imaginary parts of the weights
        slopes = np.concatenate(
            [np.einsum("rnk,nks->rkns", part, a) for part in (unit.real, unit.imag)], axis=3
        )
        curvature = slopes.swapaxes(2, 3) @ slopes
        gradient = np.einsum("rkns,rnk->rks", slopes, np.abs(field) - y)
        diagonal = np.einsum("rkss->rks", curvature)
        # A common phase of all weights changes nothing: without damping there would be no unique step.
        damped = curvature + _diagonal(damping[..., None] * diagonal + 1e-12 * diagonal.mean())
        step = np.linalg.solve(damped, gradient[..., None])[..., 0]
        real, imaginary = np.split(step, 2, axis=2)
        tried = weights - (real + 1j * imaginary)
        tried_errors = error(tried)
        better = tried_errors < errors
        weights = np.where(better[..., None], tried, weights)
        errors = np.where(better, tried_errors, errors)
        damping = np.where(better, damping / 3, np.minimum(damping * 4, 1e6))
    return weights, errors


def _diagonal(values: Array) -> Array:
    """Diagonal matrices ``[..., n, n]`` of ``values [..., n]``."""
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
        """``[B, n_in] -> [B, n_out]``"""
        amplitudes = u.view(len(u), self.sources, u.shape[1] // self.sources)[:, :, self.tone].to(
            self.weights.dtype
        )
        sums = torch.einsum("bsk,ks->bk", amplitudes, self.weights[:, :-1]) + self.weights[:, -1]
        y: Tensor = torch.where(self.magnitudes, sums.abs(), sums.real).to(u.dtype)
        return y
