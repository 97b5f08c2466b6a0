"""Time of a Forward-Forward epoch, compared with a recipe that is common in public PyTorch code.

    python -m benchmarks.profiles.forward_forward_epoch [--repeats 3]

The recipe, as a plain loop: torchvision's data set, one image at a time through ToTensor, of which a Python
data set makes the positive, negative and neutral copy; a loader with four worker processes; one forward pass
per copy with a classifier on the neutral one; one backward pass of the summed losses; the loss of each layer
and its accuracy on the copies logged. Both train MNIST, 3 x 1000, batch 100, with the same optimizer and
losses (threshold and peer normalization), alternating in one process on the same number of images; the result
is the ratio of the medians.
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
from torchvision import transforms
from torchvision.datasets import MNIST

import bpfree
from benchmarks._record import changes, record
from bpfree.data._sources import data_root
from bpfree.nn import StraightThroughReLU

WIDTH, LAYERS, BATCH, CLASSES = 1000, 3, 100, 10
LIMIT = 0.45

Triple = tuple[Tensor, Tensor, Tensor, int]


class PerSample(Dataset[Triple]):
    """A data set that prepares one sample at a time."""

    def __init__(self, n: int) -> None:
        self.images = MNIST(str(data_root(None)), train=True, transform=transforms.ToTensor())
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Triple:
        image, label = self.images[index]
        wrong = [c for c in range(CLASSES) if c != label][int(torch.randint(CLASSES - 1, (1,)))]
        copies = []
        for code in (F.one_hot(torch.tensor(label), CLASSES), F.one_hot(torch.tensor(wrong), CLASSES)):
            copy = image.clone()
            copy[:, 0, :CLASSES] = code
            copies.append(copy)
        neutral = image.clone()
        neutral[:, 0, :CLASSES] = 1 / CLASSES
        return copies[0], copies[1], neutral, label


def _norm(x: Tensor) -> Tensor:
    return x / (x.square().mean(1, keepdim=True).sqrt() + 1e-8)


class CommonRecipe:
    """The plain loop."""

    def __init__(self, n: int) -> None:
        torch.manual_seed(0)
        widths = [784, *[WIDTH] * LAYERS]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.activation = StraightThroughReLU()
        self.classifier = nn.Linear(WIDTH * (LAYERS - 1), CLASSES, bias=False)
        self.activity = [torch.full((WIDTH,), 0.5) for _ in range(LAYERS)]
        groups = [
            {"params": self.layers.parameters(), "lr": 1e-3, "weight_decay": 3e-4},
            {"params": self.classifier.parameters(), "lr": 1e-2, "weight_decay": 3e-3},
        ]
        self.optimizer = torch.optim.SGD(groups, momentum=0.9)
        self.loader = DataLoader(PerSample(n), BATCH, shuffle=True, num_workers=4, drop_last=True)

    def _forward(self, x: Tensor) -> list[Tensor]:
        outputs = []
        h = _norm(x.flatten(1))
        for layer in self.layers:
            outputs.append(self.activation(layer(h.detach())))
            h = _norm(outputs[-1])
        return outputs

    def _peer(self, layer: int, z: Tensor) -> Tensor:
        mean = 0.9 * self.activity[layer].detach() + 0.1 * z.mean(0)
        self.activity[layer] = mean
        return (mean.mean() - mean).square().mean()

    def epoch(self) -> dict[str, float]:
        """Train for one epoch; returns the logged values, summed over the batches."""
        logged: dict[str, float] = {}
        for positive, negative, neutral, label in self.loader:
            self.optimizer.zero_grad()
            loss = torch.zeros(())
            for rows, target in ((positive, torch.ones(BATCH)), (negative, torch.zeros(BATCH))):
                for k, z in enumerate(self._forward(rows)):
                    logits = z.square().sum(1) - WIDTH
                    part = F.binary_cross_entropy_with_logits(logits, target) / 2
                    if target[0] == 1:
                        part = part + 0.03 * self._peer(k, z)
                    loss = loss + part
                    right = ((logits > 0) == (target > 0)).float().mean()
                    for name, value in ((f"loss {k}", part), (f"right {k}", right)):
                        logged[name] = logged.get(name, 0.0) + value.item()
            with torch.no_grad():
                states = [_norm(z) for z in self._forward(neutral)]
            loss = loss + F.cross_entropy(self.classifier(torch.cat(states[1:], 1)), label)
            loss.backward()
            self.optimizer.step()
            logged["loss"] = logged.get("loss", 0.0) + loss.item()
        return logged


def main() -> int:
    """Time both; 0 if the ratio is within the limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message="This DataLoader will create 4 worker processes")
    train = bpfree.data.load("mnist").train
    recipe = CommonRecipe(len(train))
    torch.manual_seed(0)
    trainer = bpfree.ForwardForward(bpfree.nn.mlp([784, *[WIDTH] * LAYERS, CLASSES]), progress=False)
    times: dict[str, list[float]] = {"recipe": [], "bpfree": []}
    for _ in range(arguments.repeats):
        start = time.perf_counter()
        recipe.epoch()
        times["recipe"].append(time.perf_counter() - start)
        start = time.perf_counter()
        trainer.fit(train, epochs=1, batch_size=BATCH)
        times["bpfree"].append(time.perf_counter() - start)
    ratio = statistics.median(times["bpfree"]) / statistics.median(times["recipe"])
    figures = {"seconds": times, "ratio": ratio, "limit": LIMIT, "images": len(train)}
    return record("forward_forward_epoch", figures, ratio <= LIMIT, changes(parser, arguments))


if __name__ == "__main__":
    sys.exit(main())
