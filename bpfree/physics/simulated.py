"""Base class of simulated systems: disorder, noise, drift and digital models."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree._renamed import warn_renamed
from bpfree._seeds import derive
from bpfree.physics.calibration import probes
from bpfree.physics.state import StateDict
from bpfree.physics.system import Array

#: Independent standard normal numbers, by name. The physics of a device is a deterministic function of them.
Disorder = dict[str, Tensor]

_PROBES = 256


class SimulationOptions(TypedDict, total=False):
    """Keyword arguments of `Simulated`, except ``noise``."""

    seed_device: int
    seed_noise: int
    drift_time_s: float | None
    seconds_per_pass: float
    chunk: int
    dtype: torch.dtype
    device: str | torch.device


def random(seed: int, *parts: int | str) -> np.random.Generator:
    """Return a numpy generator for the random stream of ``seed`` that is named ``parts``."""
    return np.random.Generator(np.random.Philox(derive(seed, *parts)))


class Simulated(ABC):
    """Base class of systems whose physics is a torch module that depends on random disorder.

    A subclass defines the shapes of its disorder (`_disorder_shapes`) and the module for a given disorder
    (`_build`); `_detect` may add a detector. The disorder is all that differs between two devices of one
    kind. Drift, sudden changes and mismatched digital models are therefore all of the form ``sqrt(1 - eps^2)
    * disorder + eps * new_disorder``: a device of the same statistics, correlated with the first.

    Args:
        seed_device: Seed of the disorder.
        seed_noise: Seed of the noise. The noise depends neither on the disorder nor on the batches.
        noise: Standard deviation of the additive noise on each output, in units of the mean output of the
            initial device over random drives.
        drift_time_s: Correlation time of the disorder in seconds. The disorder drifts as an
            Ornstein-Uhlenbeck process with the correlation exp(-t / drift_time_s) after t seconds. None: no
            drift.
        seconds_per_pass: Simulated duration of one row in seconds.
        chunk: Maximum number of rows that are computed at once, so that intermediate values fit the cache. It
            does not change the outputs.
        dtype: ``torch.float64``, or ``torch.float32`` for speed.
        device: Torch device of the simulation.

    Raises:
        BadValue: If an argument is out of range.
    """

    kind: str = "simulated"
    input_range: tuple[float, float] = (0.0, 1.0)
    n_in: int
    n_out: int
    #: Names of the parts of the disorder that drift; None: all of them.
    drifting: ClassVar[tuple[str, ...] | None] = None

    def __init__(
        self,
        *,
        seed_device: int = 0,
        seed_noise: int = 0,
        noise: float = 0.0,
        drift_time_s: float | None = None,
        seconds_per_pass: float = 0.0,
        chunk: int = 256,
        dtype: torch.dtype = torch.float64,
        device: str | torch.device = "cpu",
    ) -> None:
        if noise < 0 or seconds_per_pass < 0 or (drift_time_s is not None and drift_time_s <= 0) or chunk < 1:
            raise BadValue(
                f"noise = {noise}, seconds_per_pass = {seconds_per_pass}, drift_time_s = {drift_time_s}, "
                f"chunk = {chunk}: expected noise and seconds of at least 0, a drift time above 0 or None, "
                "and a chunk of at least 1"
            )
        self.seed_device, self.seed_noise = seed_device, seed_noise
        self.noise, self.drift_time_s, self.seconds_per_pass = noise, drift_time_s, seconds_per_pass
        self.chunk, self.dtype, self.device = chunk, dtype, torch.device(device)
        self.time_s = 0.0
        self._frozen = False
        self._disorder = self._initial_disorder()
        self._changed: set[str] = set()
        self._physics: nn.Module | None = self._build(self._disorder, differentiable=False)
        self._rng = {name: random(seed_noise, name) for name in ("noise", "shot", "drift")}
        self._mean_output = self._measured_mean() if noise else 0.0

    @abstractmethod
    def _disorder_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of each part of the disorder."""

    @abstractmethod
    def _build(self, disorder: Disorder, *, differentiable: bool) -> nn.Module:
        """Return the physics, a module ``[B, n_in]`` to ``[B, n_signals]`` without parameters.

        With ``differentiable``, operations without a gradient, such as quantization, have a surrogate
        gradient.
        """

    def _detect(self, signal: Tensor, *, noisy: bool) -> Tensor:
        """Apply the detector: signals ``[B, n_signals]`` to outputs ``[B, n_out]``."""
        return self._with_noise(signal, self._mean_output) if noisy else signal

    def _with_noise(self, signal: Tensor, unit: float | Tensor) -> Tensor:
        if self.noise == 0:
            return signal
        kind = np.float32 if signal.dtype == torch.float32 else np.float64
        normal = torch.from_numpy(self._rng["noise"].standard_normal(tuple(signal.shape), kind))
        return signal + self.noise * unit * normal.to(signal)

    def forward(self, u: Array) -> Array:
        """Compute the outputs ``[B, n_out]`` for drives ``u [B, n_in]``; see `PhysicalSystem`."""
        noisy = not self._frozen
        if noisy and self.seconds_per_pass:
            self.advance(self.seconds_per_pass * len(u))
        if self._physics is None:
            self._physics = self._build(self._disorder, differentiable=False)
        drive = torch.from_numpy(np.ascontiguousarray(u))
        with torch.no_grad():
            parts = [
                self._detect(self._physics(part.to(self.device, self.dtype)), noisy=noisy).cpu()
                for part in drive.split(self.chunk)
            ]
        y: Array = torch.cat(parts).numpy()
        return y.astype(u.dtype, copy=False)

    def _measured_mean(self) -> float:
        # In the dtype of the simulation, so that the mean is taken of its own outputs.
        dtype = np.float32 if self.dtype == torch.float32 else np.float64
        drives: Array = self._random_drives().astype(dtype)
        with self.frozen():
            return float(np.abs(Simulated.forward(self, drives)).mean())

    def _initial_disorder(self) -> Disorder:
        return self._sample(self.seed_device, "disorder")

    def _random_drives(self) -> Array:
        return probes(_PROBES, self.n_in, self.input_range, seed=0)

    def _sample(self, seed: int, *parts: int | str) -> Disorder:
        return {
            name: torch.from_numpy(random(seed, *parts, name).standard_normal(shape))
            for name, shape in self._disorder_shapes().items()
        }

    def digital_model(self, mismatch: float = 0.0, seed: int = 0) -> nn.Module:
        """Return a differentiable torch module of the device in its present state, without noise.

        Args:
            mismatch: Error eps of the model, 0 to 1. With 0 the model is exact; with 1 it is a model of
                another device of the same kind.
            seed: Seed of the error.

        Raises:
            BadValue: If ``mismatch`` is out of range.
        """
        # The stream keeps its old name, so that models do not change.
        disorder = _mix(self._disorder, self._sample(seed, "twin"), _check_eps(mismatch))
        return _DigitalModel(self._build(disorder, differentiable=True), self._detect)

    def differentiable_twin(self, mismatch: float = 0.0, seed: int = 0) -> nn.Module:
        """Old name of `digital_model`."""
        warn_renamed(f"{type(self).__name__}.differentiable_twin", "digital_model")
        return self.digital_model(mismatch, seed)

    def disturb(self, eps: float, seed: int = 0) -> None:
        """Change the device at once, to ``sqrt(1 - eps^2) * disorder + eps * new_disorder``.

        Raises:
            BadValue: If ``eps`` is not in 0 to 1.
        """
        self._change(self._sample(seed, "disturbance"), _check_eps(eps))

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` of simulated time pass, in which the disorder drifts. No effect inside `frozen`.

        Raises:
            BadValue: If ``seconds`` is negative.
        """
        if seconds < 0:
            raise BadValue(f"advance({seconds}): expected at least 0 seconds")
        if self._frozen:
            return
        self.time_s += seconds
        if self.drift_time_s is None or seconds == 0:
            return
        new = {
            name: torch.from_numpy(self._rng["drift"].standard_normal(part.shape))
            for name, part in self._disorder.items()
            if self.drifting is None or name in self.drifting
        }
        eps = math.sqrt(-math.expm1(-2 * seconds / self.drift_time_s))
        self._change(new, eps)

    def _change(self, new: Disorder, eps: float) -> None:
        self._disorder = _mix(self._disorder, new, eps)
        self._changed |= new.keys()
        self._physics = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Context manager: no noise, no drift, and no simulated time passes inside."""
        before, self._frozen = self._frozen, True
        try:
            yield
        finally:
            self._frozen = before

    def state_dict(self) -> StateDict:
        """Return the states of the generators, the simulated time, and the changed parts of the disorder."""
        return {
            "time_s": self.time_s,
            "random": {name: rng_state(rng) for name, rng in self._rng.items()},
            "disorder": {name: self._disorder[name].numpy() for name in sorted(self._changed)},
        }

    def load_state_dict(self, state: StateDict) -> None:
        """Restore a `state_dict`."""
        self.time_s = state["time_s"]
        for name, rng in self._rng.items():
            load_rng(rng, state["random"][name])
        changed = {name: torch.from_numpy(part).clone() for name, part in state["disorder"].items()}
        self._disorder = self._initial_disorder() | changed
        self._changed = set(changed)
        self._physics = None


class _DigitalModel(nn.Module):
    """The physics and the detector, without noise."""

    def __init__(self, physics: nn.Module, detect: Callable[..., Tensor]) -> None:
        super().__init__()
        self.physics, self.detect = physics, detect

    def forward(self, u: Tensor) -> Tensor:
        return self.detect(self.physics(u), noisy=False)


def _check_eps(eps: float) -> float:
    if not 0 <= eps <= 1:
        raise BadValue(f"eps = {eps}: expected 0 (the same device) to 1 (another one)")
    return eps


def _mix(old: Disorder, new: Disorder, eps: float) -> Disorder:
    """Return ``sqrt(1 - eps^2) * old + eps * new``; parts that are not in ``new`` do not change."""
    factor = math.sqrt(1 - eps**2)
    return {name: factor * part + eps * new[name] if name in new else part for name, part in old.items()}


def rng_state(rng: np.random.Generator) -> StateDict:
    """Return the state of a generator that `random` returned, as JSON values."""
    state = rng.bit_generator.state
    inner = {name: values.tolist() for name, values in state["state"].items()}
    return {**state, "state": inner, "buffer": state["buffer"].tolist()}


def load_rng(rng: np.random.Generator, state: StateDict) -> None:
    """Restore an `rng_state`."""
    inner = {name: np.array(values, np.uint64) for name, values in state["state"].items()}
    rng.bit_generator.state = {**state, "state": inner, "buffer": np.array(state["buffer"], np.uint64)}


def complex_normal(real: Tensor, imaginary: Tensor, variance: float) -> Tensor:
    """Convert standard normal numbers to circular complex normal ones with E|z|^2 = ``variance``."""
    return torch.complex(real, imaginary) * math.sqrt(variance / 2)


def haar_unitary(real: Tensor, imaginary: Tensor) -> Tensor:
    """Convert standard normal numbers ``[..., m, m]`` to Haar-distributed unitary matrices."""
    q, r = torch.linalg.qr(torch.complex(real, imaginary))
    diagonal = r.diagonal(dim1=-2, dim2=-1)
    unitary: Tensor = q * (diagonal / diagonal.abs()).unsqueeze(-2)
    return unitary


def complex_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the complex dtype whose real part has the dtype ``dtype``."""
    return torch.complex64 if dtype == torch.float32 else torch.complex128
