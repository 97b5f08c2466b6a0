"""Autoencoders on MNIST by counter-current learning and by backpropagation, and a picture of what they give.

    python -m benchmarks.autoencoder [--seeds 3] [--epochs 10] [--train-size 50000]

Both train the same network, as many epochs, and are judged by the mean squared error of the test images, in
[0, 1]. Passed: the mean over seeds is at most twice backpropagation's. ``results/autoencoder.png`` shows test
images, under them their reconstructions by backpropagation, then by counter-current learning.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

import torch
from torch import Tensor

import bpfree
from benchmarks._record import RESULTS, record
from bpfree.data import Splits, load

RULES: dict[str, dict[str, Any]] = {"backprop": {"lr": 3e-3}, "counter_current": {}}
LIMIT, SHOWN, BATCH = 2.0, 12, 64


def train(rule: str, seed: int, data: Splits, epochs: int) -> tuple[dict[str, float], Tensor]:
    """Test error, the seconds of training, and reconstructions of the first test images."""
    torch.manual_seed(seed)
    net = bpfree.nn.autoencoder(data.train.sample_shape)
    trainer = bpfree.Autoencoder(net, rule=rule, seed=seed, lr_schedule="cosine", **RULES[rule])
    start = time.perf_counter()
    trainer.fit(data.train, data.validation, epochs=epochs, batch_size=BATCH)
    seconds = time.perf_counter() - start
    with torch.no_grad():
        pictures = trainer.model(data.test.batch(torch.arange(SHOWN))[0])
    return {"test_mse": trainer.evaluate(data.test)["mse"], "fit_s": seconds}, pictures


def main() -> int:
    """Train, write the figures and the picture; returns the exit code."""
    from torchvision.utils import save_image

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--train-size", type=int, default=50_000)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = load("mnist", train_size=given.train_size)
    rows: dict[str, list[dict[str, float]]] = {rule: [] for rule in RULES}
    shown = [data.test.batch(torch.arange(SHOWN))[0]]
    for seed in range(given.seeds):
        for rule, found in rows.items():
            figures, pictures = train(rule, seed, data, given.epochs)
            found.append({"seed": seed, **figures})
            if seed == 0:
                shown.append(pictures)
    save_image(torch.cat(shown).clamp(0, 1), RESULTS / "autoencoder.png", nrow=SHOWN)
    means = {rule: statistics.mean(row["test_mse"] for row in found) for rule, found in rows.items()}
    ratio = means["counter_current"] / means["backprop"]
    figures_of_all = {"settings": vars(given), "rows": rows, "mean_test_mse": means, "ratio": ratio}
    return record("autoencoder", figures_of_all, ratio <= LIMIT)


if __name__ == "__main__":
    sys.exit(main())
