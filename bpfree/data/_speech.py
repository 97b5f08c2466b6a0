"""Features of recorded vowels: log-mel energies and formants."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Signal = NDArray[np.float64]

#: Relative positions in the vowel at which features are computed.
POSITIONS = (0.2, 0.5, 0.8)
MEL_BANDS = 20
_MEL_HZ = (80.0, 7600.0)
_POINTS = 41


def vowel_span(signal: Signal, rate: int) -> tuple[float, float]:
    """Start and end of the vowel in a recorded word, in seconds.

    The vowel is the longest run of voiced frames (30 ms long, 5 ms apart). A frame is voiced if its energy is
    within 15 dB of the highest and it is periodic with 75 to 500 Hz. If no frame is voiced, the whole signal
    is the vowel.
    """
    from scipy.signal import butter, sosfiltfilt

    band = sosfiltfilt(butter(4, (100, 4000), "bandpass", fs=rate, output="sos"), signal)
    frames = _frames(band, round(0.03 * rate), round(0.005 * rate))
    energy = np.square(frames).sum(1)
    lags = slice(round(rate / 500), round(rate / 75) + 1)
    spectrum = np.fft.rfft(frames, 2 * frames.shape[1])
    correlation = np.fft.irfft(np.abs(spectrum) ** 2)[:, : frames.shape[1]]
    # Fewer samples overlap at a longer lag.
    overlap = 1 - np.arange(frames.shape[1]) / frames.shape[1]
    periodicity = (correlation / overlap)[:, lags].max(1) / np.maximum(correlation[:, 0], 1e-12)
    voiced = (energy > energy.max() * 10**-1.5) & (periodicity > 0.35)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], voiced, [0]])))
    if len(edges) == 0:
        return 0.0, len(signal) / rate
    starts, ends = edges[::2], edges[1::2]
    longest = np.argmax(ends - starts)
    return float(starts[longest] * 0.005), float((ends[longest] - 1) * 0.005 + 0.03)


def _frames(signal: Signal, length: int, hop: int) -> Signal:
    """Frames ``[n, length]`` of a signal, which is padded with zeros if it is shorter than one frame."""
    if len(signal) < length:
        signal = np.pad(signal, (0, length - len(signal)))
    return np.lib.stride_tricks.sliding_window_view(signal, length)[::hop]


def mel_features(signal: Signal, rate: int) -> Signal:
    """Log energies of 20 mel bands at 20, 50 and 80 % of the vowel, ``[60]``; each position has mean 0."""
    start, end = vowel_span(signal, rate)
    length = round(0.025 * rate)
    window = np.hanning(length)
    bank = mel_filters(MEL_BANDS, 1024, rate, *_MEL_HZ)
    features = []
    for position in POSITIONS:
        middle = round((start + position * (end - start)) * rate)
        # The mean of five frames, 5 ms apart, depends less on the position of a frame in a period.
        firsts = [middle - length // 2 + round(k * 0.005 * rate) for k in (-2, -1, 0, 1, 2)]
        frames = np.stack([_cut(signal, first, length) for first in firsts])
        power = np.abs(np.fft.rfft(frames * window, 1024)) ** 2
        band = np.log(power.mean(0) @ bank.T + 1e-10)
        features.append(band - band.mean())
    return np.concatenate(features)


def _cut(signal: Signal, first: int, length: int) -> Signal:
    """``length`` samples from index ``first`` on, with zeros outside the signal."""
    padded = np.zeros(length)
    low, high = max(first, 0), min(first + length, len(signal))
    if low < high:
        padded[low - first : high - first] = signal[low:high]
    return padded


def mel_filters(bands: int, n_fft: int, rate: int, low: float, high: float) -> Signal:
    """Triangular filters with equal spacing in mel, 2595 log10(1 + f / 700): ``[bands, n_fft // 2 + 1]``."""
    lowest, highest = (float(2595 * np.log10(1 + hz / 700)) for hz in (low, high))
    edges_mel = np.linspace(lowest, highest, bands + 2)
    edges = 700 * (10 ** (edges_mel / 2595) - 1)
    f = np.fft.rfftfreq(n_fft, 1 / rate)
    rising = (f - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - f) / (edges[2:] - edges[1:-1])[:, None]
    return np.asarray(np.clip(np.minimum(rising, falling), 0, None))


def burg(frames: Signal, order: int) -> Signal:
    """Linear prediction of frames ``[n, length]`` by Burg's method: ``[n, order + 1]``, the first 1."""
    forward, backward = frames[:, 1:].copy(), frames[:, :-1].copy()
    a = np.ones((len(frames), 1))
    for _ in range(order):
        energy = np.square(forward).sum(1) + np.square(backward).sum(1)
        k = -2 * (forward * backward).sum(1, keepdims=True) / np.maximum(energy, 1e-20)[:, None]
        padded = np.pad(a, ((0, 0), (0, 1)))
        a = padded + k * padded[:, ::-1]
        forward, backward = (forward + k * backward)[:, 1:], (backward + k * forward)[:, :-1]
    return a


def formant_tracks(signal: Signal, rate: int, ceiling: float) -> Signal:
    """F1, F2 and F3 in Hz at 41 positions in the vowel, ``[41, 3]``; missing values are interpolated.

    Args:
        signal: Samples.
        rate: Samples per second.
        ceiling: Highest frequency in Hz: 5000 suits women, 4000 suits men.

    Raises:
        ValueError: If a formant has no value at any position.
    """
    from scipy.ndimage import median_filter
    from scipy.signal import resample_poly

    low_rate = round(2 * ceiling)
    divisor = np.gcd(low_rate, rate)
    x = resample_poly(signal, low_rate // divisor, rate // divisor)
    x = np.append(x[0], x[1:] - 0.97 * x[:-1])
    start, end = vowel_span(signal, rate)
    length = round(0.025 * low_rate)
    middles = np.round(np.linspace(start, end, _POINTS) * low_rate).astype(int)
    frames = np.stack([_cut(x, middle - length // 2, length) for middle in middles]) * np.hamming(length)
    tracks = np.full((_POINTS, 3), np.nan)
    for track, coefficients in zip(tracks, burg(frames, 10), strict=True):
        formants = _resonances(coefficients, low_rate)[:3]
        track[: len(formants)] = formants
    for formant in range(3):
        known = np.flatnonzero(~np.isnan(tracks[:, formant]))
        if len(known) == 0:
            raise ValueError(f"F{formant + 1} was not found in the vowel")
        tracks[:, formant] = np.interp(np.arange(_POINTS), known, tracks[known, formant])
    return np.asarray(median_filter(tracks, size=(5, 1), mode="nearest"))


def _resonances(coefficients: Signal, rate: int) -> Signal:
    """Frequencies of the narrow poles of a prediction filter, in Hz, in ascending order."""
    roots = np.roots(coefficients)
    roots = roots[roots.imag > 0]
    f = np.angle(roots) * rate / (2 * np.pi)
    bandwidth = -np.log(np.maximum(np.abs(roots), 1e-12)) * rate / np.pi
    return np.sort(f[(f > 150) & (f < rate / 2 - 150) & (bandwidth < 700)])


def formant_features(signal: Signal, rate: int, ceiling: float) -> Signal:
    """F1, F2, F3 in the steady state and at 20, 50 and 80 % of the vowel, in Hz: ``[12]``.

    The steady state is the position between 15 and 60 % at which F1 and F2 change least.
    """
    tracks = formant_tracks(signal, rate, ceiling)
    positions = np.linspace(0, 1, _POINTS)
    change = np.abs(np.gradient(np.log(tracks[:, :2]), axis=0)).sum(1)
    smooth = np.convolve(change, np.ones(5) / 5, mode="same")
    inside = np.flatnonzero((positions >= 0.15) & (positions <= 0.60))
    steady = inside[np.argmin(smooth[inside])]
    indices = [int(steady), *(round(position * (_POINTS - 1)) for position in POSITIONS)]
    return np.asarray(tracks[indices].ravel())
