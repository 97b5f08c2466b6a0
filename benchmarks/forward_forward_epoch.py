"""Time of a Forward-Forward epoch against the recipe that public PyTorch code commonly follows.

    python -m benchmarks.forward_forward_epoch [--repeats 3]

The recipe, as a plain loop: a Python data set that makes the positive, negative and neutral copy of one
sample at a time, a loader with four worker processes, one forward pass per copy with a classifier on the
neutral one, and one backward pass of the summed losses. Both train MNIST, 3 x 1000, batch 100, with the
same optimizer and losses, in one process on the same data, taking turns; the ratio of the medians counts.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import bpfree
from benchmarks._record import record

WIDTH, LAYERS, BATCH, CLASSES = 1000, 3, 100, 10
LIMIT = 0.45

Triple = tuple[Tensor, Tensor, Tensor, int]


class PerSample(Dataset[Triple]):
    """One sample at a time, as such code does it."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Triple:
        image = self.images[index].float().div(255).flatten()
        label = int(self.labels[index])
        wrong = [c for c in range(CLASSES) if c != label][int(torch.randint(CLASSES - 1, (1,)))]
        copies = []
        for code in (F.one_hot(torch.tensor(label), CLASSES), F.one_hot(torch.tensor(wrong), CLASSES)):
            copy = image.clone()
            copy[:CLASSES] = code
            copies.append(copy)
        neutral = image.clone()
        neutral[:CLASSES] = 1 / CLASSES
        return copies[0], copies[1], neutral, label


def _norm(x: Tensor) -> Tensor:
    return x / (x.square().mean(1, keepdim=True).sqrt() + 1e-8)


class CommonRecipe:
    """The plain loop."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        torch.manual_seed(0)
        widths = [images[0].numel(), *[WIDTH] * LAYERS]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.classifier = nn.Linear(WIDTH * (LAYERS - 1), CLASSES, bias=False)
        groups = [
            {"params": self.layers.parameters(), "lr": 1e-3, "weight_decay": 3e-4},
            {"params": self.classifier.parameters(), "lr": 1e-2, "weight_decay": 3e-3},
        ]
        self.optimizer = torch.optim.SGD(groups, momentum=0.9)
        self.loader = DataLoader(
            PerSample(images, labels), BATCH, shuffle=True, num_workers=4, drop_last=True
        )

    def _forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        goodness, states = [], []
        h = _norm(x)
        for layer in self.layers:
            z = layer(h.detach()).relu()
            goodness.append(z.square().sum(1))
            h = _norm(z)
            states.append(h)
        return goodness, states

    def epoch(self) -> None:
        """One pass over the data."""
        for positive, negative, neutral, label in self.loader:
            self.optimizer.zero_grad()
            loss = torch.zeros(())
            for rows, target in ((positive, torch.ones(BATCH)), (negative, torch.zeros(BATCH))):
                for goodness in self._forward(rows)[0]:
                    loss = loss + F.binary_cross_entropy_with_logits(goodness - WIDTH, target) / 2
            with torch.no_grad():
                states = self._forward(neutral)[1]
            loss = loss + F.cross_entropy(self.classifier(torch.cat(states[1:], 1)), label)
            loss.backward()
            self.optimizer.step()
            loss.item()


def main() -> int:
    """Time both; 0 if the ratio is within the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    warnings.filterwarnings("ignore", message="This DataLoader will create 4 worker processes")
    train = bpfree.data.load("mnist").train
    recipe = CommonRecipe(train.x, train.y)
    torch.manual_seed(0)
    trainer = bpfree.ForwardForward(bpfree.nn.mlp([784, *[WIDTH] * LAYERS, CLASSES]), progress=False)
    times: dict[str, list[float]] = {"recipe": [], "bpfree": []}
    for _ in range(repeats):
        start = time.perf_counter()
        recipe.epoch()
        times["recipe"].append(time.perf_counter() - start)
        start = time.perf_counter()
        trainer.fit(train, epochs=1, batch_size=BATCH)
        times["bpfree"].append(time.perf_counter() - start)
    ratio = statistics.median(times["bpfree"]) / statistics.median(times["recipe"])
    figures = {"seconds": times, "ratio": ratio, "limit": LIMIT, "images": len(train)}
    return record("forward_forward_epoch", figures, ratio <= LIMIT)


if __name__ == "__main__":
    sys.exit(main())
