"""Training rows: cached features, and the random streams of samples and labels."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bpfree import ForwardForward, MonoForward, RandomFeatures, Trainer
from bpfree.data import TensorData
from bpfree.engine.feed import Feed
from tests.helpers import CLASSES, images, make_cnn, make_mlp, vectors


def count_rows(trainer: Trainer, data: TensorData) -> dict[int, Counter[bool]]:
    """Count the rows of each block's body (or front), with gradients enabled and disabled."""
    counts: dict[int, Counter[bool]] = {}
    trainer.build(data.sample_shape, data.n_classes)
    for k, block in enumerate(trainer.cascade.units):
        counts[k] = Counter()

        def count(_: nn.Module, __: Any, output: Tensor, k: int = k) -> None:
            counts[k][torch.is_grad_enabled()] += len(output)

        (block.front or block.body).register_forward_hook(count)
    return counts


# Full batches: a shorter one may be padded.
N = 48


@pytest.mark.parametrize("epochs", [1, 3])
def test_greedy_with_cache_calls_a_frozen_block_once_per_sample(epochs: int) -> None:
    trainer = MonoForward(make_mlp(16, 16, 16), schedule="greedy", progress=False)
    counts = count_rows(trainer, vectors(N))
    trainer.fit(vectors(N), epochs=epochs, batch_size=16)
    assert counts == {
        0: Counter({True: N * epochs, False: N}),
        1: Counter({True: N * epochs, False: N}),
        # There is no block above the last one.
        2: Counter({True: N * epochs}),
    }


def test_greedy_without_cache_calls_the_frozen_blocks_in_each_epoch() -> None:
    trainer = MonoForward(make_mlp(16, 16, 16), schedule="greedy", cache=False, progress=False)
    counts = count_rows(trainer, vectors(N))
    trainer.fit(vectors(N), epochs=3, batch_size=16)
    assert [counts[k][False] for k in range(3)] == [N * 3 * 2, N * 3, 0]


def test_features_are_cached_only_if_negatives_are_drawn_once() -> None:
    for redraw, frozen in ((False, 2 * N), (True, 2 * N * 3)):
        trainer = ForwardForward(
            make_mlp(), schedule="greedy", redraw_negatives=redraw, readout="goodness", classifier=False,
            progress=False,
        )  # fmt: skip
        counts = count_rows(trainer, vectors(N))
        trainer.fit(vectors(N), epochs=3, batch_size=16)
        assert (counts[0][False], counts[0][True]) == (frozen, 2 * N * 3)


def test_the_classifier_of_a_greedy_run_uses_cached_outputs() -> None:
    trainer = ForwardForward(make_mlp(), schedule="greedy", redraw_negatives=False, progress=False)
    counts = count_rows(trainer, vectors(N))
    trainer.fit(vectors(N), epochs=3, batch_size=16)
    # Positive and negative rows for the second block, then neutral rows for the classifier.
    assert counts[0][False] == 2 * N + N
    assert counts[1][False] == N


def test_a_front_is_called_once_per_sample() -> None:
    for schedule in ("simultaneous", "greedy"):
        trainer = RandomFeatures(make_mlp(), schedule=schedule, progress=False)
        counts = count_rows(trainer, vectors(N))
        trainer.fit(vectors(N), epochs=5, batch_size=16)
        assert counts[0] == Counter({False: N}), schedule
    # So is the front of the next block, since the blocks below are frozen.
    assert counts[1] == Counter({False: N})


def wide_mlp() -> nn.Module:
    return make_mlp(256, 16, width=300)


@pytest.mark.parametrize("n", [32, 33, 37, 47])
@pytest.mark.parametrize("make", [make_mlp, wide_mlp, make_cnn])
def test_cached_features_equal_computed_ones_in_any_order(make: Any, n: int) -> None:
    # Matrix products of small batches can use other algorithms.
    data = images(n) if make is make_cnn else vectors(n, 300 if make is wide_mlp else 12)
    trainers = [MonoForward(make(), progress=False, schedule="greedy") for _ in range(2)]
    for trainer in trainers:
        trainer.build(data.sample_shape, data.n_classes)
        trainer.cascade.eval()
    cached, uncached = (
        Feed(trainer.cascade, data, 0, 16, cache)
        for trainer, cache in zip(trainers, (True, False), strict=True)
    )
    trainers[1].cascade.load_state_dict(trainers[0].cascade.state_dict())
    for feed in (cached, uncached):
        feed.freeze_below(1)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(3))
    for step, indices in enumerate(order.split(16)):
        (actual, labels), (expected, same) = cached.rows(indices, 0, step), uncached.rows(indices, 0, step)
        assert isinstance(actual, Tensor)
        assert isinstance(expected, Tensor)
        assert torch.equal(actual, expected), f"batch of {len(indices)}"
        assert torch.equal(labels, same)


def test_negatives_and_augmentation_depend_on_seed_epoch_and_step() -> None:
    data = images()
    trainer = ForwardForward(make_cnn(), progress=False)
    trainer.build(data.sample_shape, CLASSES)
    for samples in (data, replace(data, augment=("shift",))):
        feeds = [Feed(trainer.cascade, samples, seed, 16, True) for seed in (0, 0, 1)]
        indices = torch.arange(16)

        def rows_of(feed: Feed, epoch: int, step: int, indices: Tensor = indices) -> Tensor:
            rows, _ = feed.rows(indices, epoch, step)
            return rows.dense()  # type: ignore[union-attr]

        first = rows_of(feeds[0], 1, 2)
        rows_of(feeds[1], 0, 0)
        assert torch.equal(first, rows_of(feeds[1], 1, 2))
        for other in (rows_of(feeds[0], 1, 3), rows_of(feeds[0], 2, 2), rows_of(feeds[2], 1, 2)):
            assert not torch.equal(first, other)


def test_augmented_data_are_not_cached() -> None:
    data = replace(images(), augment=("shift",))
    trainer = MonoForward(make_cnn(), schedule="greedy", progress=False)
    trainer.build(data.sample_shape, CLASSES)
    feed = Feed(trainer.cascade, data, 0, 16, True)
    feed.freeze_below(1)
    indices = torch.arange(16)
    once, again = (feed.rows(indices, epoch, 0)[0] for epoch in (0, 1))
    assert not torch.equal(once, again)  # type: ignore[arg-type]


def test_without_redraw_the_wrong_label_of_a_sample_does_not_change() -> None:
    trainer = ForwardForward(make_mlp(), redraw_negatives=False, progress=False)
    data = vectors()
    trainer.build(data.sample_shape, CLASSES)
    feed = Feed(trainer.cascade, data, 0, 16, True)

    def wrong(indices: Tensor, epoch: int) -> Tensor:
        rows, _ = feed.rows(indices, epoch, 0)
        return rows.codes[1].argmax(1)  # type: ignore[union-attr]

    all_labels = wrong(torch.arange(40), 0)
    assert not (all_labels == data.y).any()
    order = torch.randperm(40)[:16]
    assert torch.equal(wrong(order, 5), all_labels[order])
