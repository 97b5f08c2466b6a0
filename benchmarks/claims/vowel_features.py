"""Vowel features, compared with hand-measured formants and by the accuracy of simple classifiers.

    BPFREE_DATA=... python -m benchmarks.claims.vowel_features

Writes ``results/vowel_features.json``. Passes if the median error of each formant is at most 5 %, and if an
SVM reaches, on speakers that it does not know, 95 % (7 vowels, log-mel), 92 % (12 vowels, log-mel) and 89 %
(12 vowels, formants).
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.svm import SVC

from benchmarks._record import record
from bpfree.data import TensorData, load
from bpfree.data._sources import data_root
from bpfree.data._vowels import SEVEN, read_recordings, read_table

SPLITS = 10
REQUIRED = {"vowels_7": 0.95, "vowels_12": 0.92, "vowels_12_formants": 0.89}


def accuracy(name: str) -> dict[str, float]:
    """Mean and sd over splits of two classifiers' accuracy on speakers that they do not know."""
    scores: dict[str, list[float]] = {"lda": [], "svm": []}
    for seed in range(SPLITS):
        train, validation, test = load(name, standardize=True, split_seed=seed)
        x, y = (np.concatenate(both) for both in zip(arrays(train), arrays(validation), strict=True))
        for key, classifier in (("lda", LinearDiscriminantAnalysis()), ("svm", SVC(C=10))):
            scores[key].append(float(classifier.fit(x, y).score(*arrays(test))))
    return {f"{key}_{what}": f(values) for key, values in scores.items() for what, f in STATISTICS.items()}


STATISTICS: dict[str, Any] = {
    "mean": lambda values: float(np.mean(values)),
    "sd": lambda values: float(np.std(values, ddof=1)),
}


def arrays(data: TensorData) -> tuple[Any, Any]:
    """Standardized features and labels as NumPy arrays."""
    x, y = data.batch(torch.arange(len(data)))
    return x.numpy(), y.numpy()


def formant_errors() -> Any:
    """Relative errors of the formants on the recordings with hand-measured formants, ``[258, 12]``."""
    root = data_root(None)
    ours = read_recordings(root, "formants", SEVEN, "w", download=False)
    by_token = {(who, int(y)): x for who, y, x in zip(ours.speakers, ours.y, ours.x, strict=True)}
    hand = read_table(root, download=False)
    rows = zip(hand.speakers, hand.y, hand.x, strict=True)
    return np.stack([np.abs((by_token[who, int(y)] / x - 1).numpy()) for who, y, x in rows])


def main() -> int:
    """Measure; 0 if the claims hold."""
    errors = formant_errors()
    scores = {name: accuracy(name) for name in (*REQUIRED, "vowels_7_formants", "vowel_formants")}
    median = np.median(errors, axis=0)
    figures: dict[str, Any] = {
        "splits": SPLITS,
        "accuracy_on_other_talkers": scores,
        "median_relative_error_of_12_formants": [round(float(value), 4) for value in median],
        "share_off_by_more_than_15_percent": [
            round(float(value), 4) for value in (errors > 0.15).mean(axis=0)
        ],
    }
    right = all(scores[name]["svm_mean"] >= required for name, required in REQUIRED.items())
    return record("vowel_features", figures, bool(right and (median <= 0.05).all()))


if __name__ == "__main__":
    sys.exit(main())
