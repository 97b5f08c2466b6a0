"""What all simulated systems share: disorder and noise of separate seeds, drift, chunks, and twins."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree._seeds import derive
from bpfree.physics.calibration import probes
from bpfree.physics.system import Array

#: Independent standard normal numbers, by name; every system is a deterministic function of such numbers.
Disorder = dict[str, Tensor]

_PROBES = 256


def random(seed: int, *parts: int | str) -> np.random.Generator:
    """A numpy generator for the stream of ``seed`` named by ``parts``."""
    return np.random.Generator(np.random.Philox(derive(seed, *parts)))


class Simulated(ABC):
    """A system whose physics is a torch module, a function of its drives and of frozen disorder.

    A subclass says how many normal numbers its disorder takes (`_disorder_shapes`) and what module follows
    from them (`_build`); `_detect` may add a detector. Everything that tells two devices of one kind apart is
    in these numbers, so one mechanism makes drift, sudden changes and mismatched twins: ``sqrt(1 - eps^2)
    disorder + eps * fresh numbers`` is another device of the same statistics, correlated with the first.

    Args:
        seed_device: Which disorder.
        seed_noise: Which noise; the noise does not depend on the disorder nor on how drives are batched.
        noise: Standard deviation of additive noise on each output, as a fraction of the mean output over
            random drives of the device as made. It does not change with the batch.
        drift_time_s: Correlation time of the disorder, which then drifts as an Ornstein-Uhlenbeck process
            (correlation exp(-t / drift_time_s) after t seconds); None: it stands still.
        seconds_per_pass: How long one row takes on the device's own clock.
        chunk: Most rows that are computed at once, so that what comes between stays in cache; it
            does not change the answers.
        dtype: float64, or float32 for speed.
        device: Torch device that computes.
    """

    kind: str = "simulated"
    input_range: tuple[float, float] = (0.0, 1.0)
    n_in: int
    n_out: int
    #: The parts of the disorder that drift; None is all of them.
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
        self._disorder = self._first_disorder()
        self._changed: set[str] = set()
        self._core: nn.Module | None = self._build(self._disorder, differentiable=False)
        self._rng = {name: random(seed_noise, name) for name in ("noise", "shot", "drift")}
        self._mean_output = (
            float(np.abs(self._answer(self._reference(), noisy=False)).mean()) if noise else 0.0
        )

    @abstractmethod
    def _disorder_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """How many normal numbers each part of the disorder takes."""

    @abstractmethod
    def _build(self, disorder: Disorder, *, differentiable: bool) -> nn.Module:
        """The physics: a module ``[B, n_in] -> [B, signals]`` without parameters.

        ``differentiable`` asks for surrogate gradients where the physics has none, as at a quantiser.
        """

    def _detect(self, signal: Tensor, *, noisy: bool) -> Tensor:
        """What the detector makes of the signals ``[B, signals]``: ``[B, n_out]``."""
        return self._with_noise(signal, self._mean_output) if noisy else signal

    def _with_noise(self, signal: Tensor, unit: float | Tensor) -> Tensor:
        if self.noise == 0:
            return signal
        kind = np.float32 if signal.dtype == torch.float32 else np.float64
        normal = torch.from_numpy(self._rng["noise"].standard_normal(tuple(signal.shape), kind))
        return signal + self.noise * unit * normal.to(signal)

    def forward(self, u: Array) -> Array:
        """Answers ``[B, n_out]`` to ``u [B, n_in]``; see `PhysicalSystem`."""
        if not self._frozen and self.seconds_per_pass:
            self.advance(self.seconds_per_pass * len(u))
        return self._answer(u, noisy=not self._frozen).astype(u.dtype, copy=False)

    def _answer(self, u: Array, *, noisy: bool) -> Array:
        if self._core is None:
            self._core = self._build(self._disorder, differentiable=False)
        drive = torch.from_numpy(np.ascontiguousarray(u))
        with torch.no_grad():
            parts = [
                self._detect(self._core(part.to(self.device, self.dtype)), noisy=noisy).cpu()
                for part in drive.split(self.chunk)
            ]
        return torch.cat(parts).numpy()

    def _first_disorder(self) -> Disorder:
        return self._draw(self.seed_device, "disorder")

    def _reference(self) -> Array:
        return probes(_PROBES, self.n_in, self.input_range, seed=0)

    def _draw(self, seed: int, *parts: int | str) -> Disorder:
        return {
            name: torch.from_numpy(random(seed, *parts, name).standard_normal(shape))
            for name, shape in self._disorder_shapes().items()
        }

    def differentiable_twin(self, mismatch: float = 0.0, seed: int = 0) -> nn.Module:
        """A torch module of this device as it is now, without its noise, for trainers that need one.

        Args:
            mismatch: eps in 0..1. 0 is the exact device, 1 another one of the same kind.
            seed: Which error the twin makes.
        """
        disorder = _mixed(self._disorder, self._draw(seed, "twin"), _checked(mismatch))
        return _Twin(self._build(disorder, differentiable=True), self._detect)

    def disturb(self, eps: float, seed: int = 0) -> None:
        """Change the device at once: disorder becomes ``sqrt(1 - eps^2) disorder + eps * fresh numbers``."""
        self._change(self._draw(seed, "disturbance"), _checked(eps))

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass on the device's clock, and its disorder drift; without effect while frozen."""
        if seconds < 0:
            raise BadValue(f"advance({seconds}): time does not run backwards")
        if self._frozen:
            return
        self.time_s += seconds
        if self.drift_time_s is None or seconds == 0:
            return
        fresh = {
            name: torch.from_numpy(self._rng["drift"].standard_normal(part.shape))
            for name, part in self._disorder.items()
            if self.drifting is None or name in self.drifting
        }
        eps = math.sqrt(-math.expm1(-2 * seconds / self.drift_time_s))
        self._change(fresh, eps)

    def _change(self, fresh: Disorder, eps: float) -> None:
        self._disorder = _mixed(self._disorder, fresh, eps)
        self._changed |= fresh.keys()
        self._core = None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """No noise, no drift, no passing of time inside."""
        was, self._frozen = self._frozen, True
        try:
            yield
        finally:
            self._frozen = was

    def state_dict(self) -> dict[str, Any]:
        """Random state, clock, and the parts of the disorder that have changed."""
        return {
            "time_s": self.time_s,
            "random": {name: rng_state(rng) for name, rng in self._rng.items()},
            "disorder": {name: self._disorder[name].numpy() for name in sorted(self._changed)},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` took."""
        self.time_s = state["time_s"]
        for name, rng in self._rng.items():
            load_rng(rng, state["random"][name])
        changed = {name: torch.from_numpy(part).clone() for name, part in state["disorder"].items()}
        self._disorder = self._first_disorder() | changed
        self._changed = set(changed)
        self._core = None


class _Twin(nn.Module):
    """A core and the detector behind it, without noise."""

    def __init__(self, core: nn.Module, detect: Callable[..., Tensor]) -> None:
        super().__init__()
        self.core, self.detect = core, detect

    def forward(self, u: Tensor) -> Tensor:
        return self.detect(self.core(u), noisy=False)


def _checked(eps: float) -> float:
    if not 0 <= eps <= 1:
        raise BadValue(f"eps = {eps}: expected 0 (the same device) to 1 (another one)")
    return eps


def _mixed(old: Disorder, fresh: Disorder, eps: float) -> Disorder:
    """``sqrt(1 - eps^2) old + eps fresh``; parts of which there is nothing fresh stay."""
    keep = math.sqrt(1 - eps**2)
    return {name: keep * part + eps * fresh[name] if name in fresh else part for name, part in old.items()}


def rng_state(rng: np.random.Generator) -> dict[str, Any]:
    """The state of a generator made by `random`, as JSON values."""
    state = rng.bit_generator.state
    inner = {name: values.tolist() for name, values in state["state"].items()}
    return {**state, "state": inner, "buffer": state["buffer"].tolist()}


def load_rng(rng: np.random.Generator, state: Mapping[str, Any]) -> None:
    """Put back what `rng_state` took."""
    inner = {name: np.array(values, np.uint64) for name, values in state["state"].items()}
    rng.bit_generator.state = {**state, "state": inner, "buffer": np.array(state["buffer"], np.uint64)}


def complex_normal(real: Tensor, imaginary: Tensor, variance: float) -> Tensor:
    """Circular complex normal numbers of the given variance (mean of |z|^2), from standard normal ones."""
    return torch.complex(real, imaginary) * math.sqrt(variance / 2)


def haar_unitary(real: Tensor, imaginary: Tensor) -> Tensor:
    """A unitary matrix of the Haar measure from standard normal numbers ``[..., m, m]``"""
    q, r = torch.linalg.qr(torch.complex(real, imaginary))
    diagonal = r.diagonal(dim1=-2, dim2=-1)
    unitary: Tensor = q * (diagonal / diagonal.abs()).unsqueeze(-2)
    return unitary


def complex_dtype(dtype: torch.dtype) -> torch.dtype:
    """The complex dtype with real parts of ``dtype``."""
    return torch.complex64 if dtype == torch.float32 else torch.complex128
