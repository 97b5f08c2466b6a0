"""Local heads have a limited size, are counted in `describe`, and are refused if memory is too small."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import bpfree._memory
from bpfree import BadValue, CascadedForward, DeepSupervision, ForwardForward, Local, MonoForward
from bpfree.trainers import Trainer
from tests.helpers import CLASSES, easy, images, make_cnn, make_mlp

GB = 10**9


def wide(n: int = 8) -> nn.Sequential:
    """Maps of 64 channels, 64 (2n)^2 values a sample, then vectors."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 4, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES),
    )  # fmt: skip


def test_the_heads_of_a_resnet18_at_224_pixels_are_bounded() -> None:
    trainer = MonoForward(torchvision.models.resnet18(num_classes=1000), progress=False)
    trainer.build((3, 224, 224), 1000)
    linears = [m for loss in trainer.cascade.losses[:-1] for m in loss.modules() if isinstance(m, nn.Linear)]
    # 64 channels of 8 x 8 (three times), 128 of 5 x 5, 256 of 4 x 4, 512 of 2 x 2.
    assert [m.in_features for m in linears] == [4096] * 3 + [3200] * 2 + [4096] * 2 + [2048]
    assert "network 11,689,512, local heads 28,928,000" in trainer.describe()


@pytest.mark.parametrize(
    ("kind", "settings", "pooled"),
    [
        (MonoForward, {}, lambda maps: F.adaptive_avg_pool2d(maps, 8)),
        (DeepSupervision, {}, lambda maps: F.adaptive_avg_pool2d(maps, 8)),
        (CascadedForward, {}, lambda maps: F.adaptive_avg_pool2d(maps.square(), 8).sqrt()),
        (
            CascadedForward,
            {"predictor": "closed_form"},
            lambda maps: F.adaptive_avg_pool2d(maps.square(), 8).sqrt(),
        ),
        (
            Local,
            {"loss": "prototype_goodness", "output": "none"},
            lambda maps: F.adaptive_avg_pool2d(maps, 8),
        ),
        (Local, {"loss": "predsim"}, lambda maps: F.avg_pool2d(maps, 2)),
    ],
)
def test_a_head_has_at_most_4096_features(
    kind: type[Trainer], settings: Any, pooled: Callable[[Tensor], Tensor]
) -> None:
    trainer = kind(wide(), progress=False, **settings)
    trainer.build((1, 16, 16), CLASSES)
    trainer.cascade.eval()
    maps = torch.rand(3, 64, 16, 16)
    loss: Any = trainer.cascade.losses[0]
    features = (
        loss.features if hasattr(loss, "accumulator") or hasattr(loss, "prototypes") else loss.head[:-1]
    )
    torch.testing.assert_close(features(maps), pooled(maps).flatten(1), atol=1e-5, rtol=1e-5)
    if settings.get("predictor") != "closed_form":
        trainer.fit(images(size=16), epochs=1)


def test_the_limit_does_not_change_smaller_heads() -> None:
    bounded, unbounded = (MonoForward(make_cnn(), head_features=n, progress=False) for n in (4096, None))
    for trainer in (bounded, unbounded):
        trainer.fit(images(), epochs=1)
    expected = unbounded.cascade.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in bounded.cascade.state_dict().items())


def test_sequences_are_pooled_over_their_positions() -> None:
    class Mean(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean(1)

    net = nn.Sequential(
        nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 8), nn.ReLU(), Mean(), nn.Linear(8, CLASSES)
    )
    trainer = MonoForward(net, head_features=64, progress=False)
    trainer.build((10, 5), CLASSES)
    x = torch.rand(3, 10, 32)
    head: Any = trainer.cascade.losses[0].head
    halves = torch.stack([x[:, :5].mean(1), x[:, 5:].mean(1)], 2).flatten(1)
    torch.testing.assert_close(head[:-1](x), halves)


@pytest.mark.parametrize(
    ("kind", "settings", "needed"),
    [
        # Values, gradients and the optimizer's state of the heads, 3 x 16384. The network has 3 KB.
        (MonoForward, {"head_features": None}, 4 * 4 * 3 * 16384),
        (MonoForward, {"head_features": None, "optimizer": "sgd"}, 3 * 4 * 3 * 16384),
        (MonoForward, {"head_features": None, "optimizer": "sgd", "momentum": 0.0}, 2 * 4 * 3 * 16384),
        (ForwardForward, {"skip_first": False}, 3 * 4 * 3 * 16384),
        (CascadedForward, {"predictor": "closed_form"}, 3 * 8 * 4097**2),
    ],
)
def test_heads_that_need_too_much_memory_are_refused_before_they_are_created(
    kind: type[Trainer], settings: Any, needed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for available, refused in ((needed - 1, True), (needed + 100_000, False)):
        monkeypatch.setattr(bpfree._memory, "available", lambda _, available=available: available)
        trainer = kind(wide(), progress=False, **settings)
        if refused:
            with pytest.raises(BadValue, match=r"need .* GB of memory, and cpu has .* GB left"):
                trainer.build((1, 16, 16), CLASSES)
        else:
            trainer.build((1, 16, 16), CLASSES)


def test_available_memory_is_that_of_the_machine_and_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(bpfree._memory, "_CGROUP", tmp_path)
    machine = bpfree._memory.available(cpu)
    assert machine is not None
    assert machine > 0
    for name, text in (
        ("memory.max", "5000"),
        ("memory.current", "4000"),
        ("memory.stat", "anon 9\ninactive_file 500\n"),
    ):
        (tmp_path / name).write_text(text)
    assert bpfree._memory.available(cpu) == 1500
    (tmp_path / "memory.max").write_text("max")
    assert bpfree._memory.available(cpu) != 1500
    assert bpfree._memory.available(torch.device("meta")) is None


def test_the_heads_of_an_mlp_are_not_pooled() -> None:
    trainer = MonoForward(make_mlp(5000, 16), progress=False)
    trainer.fit(easy(), epochs=1)
    (weight,) = trainer.cascade.losses[0].parameters()
    assert weight.shape == (CLASSES, 5000)
