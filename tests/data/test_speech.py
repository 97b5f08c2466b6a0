"""Features of speech, computed for synthetic sounds with known formants."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import lfilter

from bpfree.data._speech import burg, formant_features, formant_tracks, mel_features, mel_filters, vowel_span

RATE = 16000


def vowel(formants: tuple[float, ...], seconds: float = 0.4, pitch: float = 200.0, silence: float = 0.1):
    """A pulse train with the spectral tilt of a voice, filtered by resonances, between two silences."""
    n = round(seconds * RATE)
    sound = np.zeros(n)
    sound[:: round(RATE / pitch)] = 1.0
    sound = lfilter([1.0], [1, -0.97], sound)
    for hz, bandwidth in zip(formants, (60, 80, 120, 150, 200), strict=False):
        r = np.exp(-np.pi * bandwidth / RATE)
        sound = lfilter([1.0], [1, -2 * r * np.cos(2 * np.pi * hz / RATE), r**2], sound)
    sound *= 0.5 / np.abs(sound).max()
    quiet = 1e-4 * np.random.default_rng(0).standard_normal(n + 2 * round(silence * RATE))
    quiet[round(silence * RATE) :][:n] += sound
    return quiet


@pytest.mark.parametrize("formants", [(300, 2300, 3000), (700, 1220, 2600), (500, 1500, 2500)])
def test_formants_equal_those_of_the_synthetic_vowel(formants):
    features = formant_features(vowel((*formants, 3700, 4600)), RATE, 5000.0).reshape(4, 3)
    np.testing.assert_allclose(features, np.tile(formants, (4, 1)), rtol=0.04)


def test_a_changing_formant_is_measured_at_each_position():
    first, second = (vowel((f1, 1700, 2700, 3700, 4600), 0.2, silence=0) for f1 in (400, 800))
    glide = np.concatenate([np.zeros(800), first, second, np.zeros(800)])
    features = formant_features(glide, RATE, 5000.0).reshape(4, 3)
    assert abs(features[1, 0] - 400) < 60 and abs(features[3, 0] - 800) < 80


def test_vowel_span_excludes_silence():
    start, end = vowel_span(vowel((500, 1500, 2500), seconds=0.3, silence=0.2), RATE)
    assert start == pytest.approx(0.2, abs=0.03) and end == pytest.approx(0.5, abs=0.04)
    noise = np.random.default_rng(0).standard_normal(8000)
    noise[3000:5000] *= 20  # loud, but not voiced
    assert vowel_span(np.zeros(100), RATE) == (0.0, 100 / RATE)


def test_burg_estimates_an_autoregressive_process():
    rng = np.random.default_rng(0)
    a = np.array([1, -1.2, 0.8, -0.3])
    x = lfilter([1.0], a, rng.standard_normal((5, 4000)), axis=1)
    np.testing.assert_allclose(burg(x, 3), np.tile(a, (5, 1)), atol=0.05)
    # The filters are always stable.
    assert all(np.abs(np.roots(c)).max() < 1 for c in burg(rng.standard_normal((20, 60)), 10))


def test_a_signal_without_formants_raises_an_error():
    with pytest.raises(ValueError, match="F1"):
        formant_tracks(np.zeros(8000), RATE, 5000.0)


def test_mel_filters_are_adjacent_triangles():
    bank = mel_filters(20, 1024, RATE, 80.0, 7600.0)
    assert bank.shape == (20, 513) and bank.min() == 0 and bank.max() <= 1
    f = np.fft.rfftfreq(1024, 1 / RATE)
    centers = 700 * (
        10 ** (np.linspace(2595 * np.log10(1 + 80 / 700), 2595 * np.log10(1 + 7600 / 700), 22) / 2595) - 1
    )
    inside = (f > centers[1]) & (f < centers[-2])
    np.testing.assert_allclose(bank[:, inside].sum(0), 1)
    np.testing.assert_allclose(f[bank[5:].argmax(1)], centers[6:-1], atol=RATE / 1024)


def test_mel_features_depend_on_the_vowel_but_not_on_loudness():
    a, b = vowel((300, 2300, 3000)), vowel((700, 1220, 2600))
    features = mel_features(a, RATE)
    assert features.shape == (60,)
    np.testing.assert_allclose(mel_features(0.3 * a, RATE), features, atol=0.02)
    np.testing.assert_allclose(features.reshape(3, 20).mean(1), 0, atol=1e-12)
    assert np.abs(mel_features(b, RATE) - features).max() > 2
    # The first vowel has more energy near 2300 Hz, the second near 1200 Hz.
    f = 700 * (
        10 ** (np.linspace(2595 * np.log10(1 + 80 / 700), 2595 * np.log10(1 + 7600 / 700), 22) / 2595) - 1
    )
    near = [int(np.argmin(np.abs(f[1:-1] - hz))) for hz in (1220, 2300)]
    assert (
        features[near[1]] > features[near[0]]
        and mel_features(b, RATE)[near[0]] > mel_features(b, RATE)[near[1]]
    )
