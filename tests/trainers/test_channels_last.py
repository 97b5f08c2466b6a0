"""Channels last: all maps of a run have this memory format, and losses do not change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bpfree.trainers import TRAINERS
from tests.helpers import CLASSES, images, make_cnn

NAMES = [
    "backprop",
    "backprop_ds",
    "mono_forward",
    "forward_forward",
    "counter_current",
    "cafo",
    "random_features",
]


def fitted(name: str, channels_last: bool) -> tuple[list[list[float]], list[Tensor]]:
    """The losses of a run, and the outputs of its convolutions."""
    maps: list[Tensor] = []
    settings: dict[str, Any] = {"lr": 0.01, "channels_last": channels_last, "progress": False}
    trainer = TRAINERS[name](make_cnn(activation="elu"), **settings)
    trainer.build((1, 8, 8), CLASSES)
    for module in trainer.cascade.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: maps.append(output))
    history = trainer.fit(images(), epochs=2, batch_size=16)
    return [row["loss"] for row in history.rows], maps


@pytest.mark.parametrize("name", NAMES)
def test_channels_last_does_not_change_the_losses(name: str) -> None:
    plain, _ = fitted(name, False)
    losses, maps = fitted(name, True)
    batches = [output for output in maps if len(output) > CLASSES]
    assert batches
    assert all(output.is_contiguous(memory_format=torch.channels_last) for output in batches)
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(plain), rtol=1e-4, atol=1e-5)
