"""What the lowest learning block is fed: kept features, and the streams that samples and labels come from."""

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


def rows_seen(trainer: Trainer, data: TensorData) -> dict[int, Counter[bool]]:
    """Rows that each block's body (or front) was called on, by whether it was learning at the time."""
    seen: dict[int, Counter[bool]] = {}
    trainer.build(data.sample_shape, data.n_classes)
    for k, block in enumerate(trainer.cascade.units):
        seen[k] = Counter()

        def count(_: nn.Module, __: Any, output: Tensor, k: int = k) -> None:
            seen[k][torch.is_grad_enabled()] += len(output)

        (block.front or block.body).register_forward_hook(count)
    return seen


# Whole batches: a short one may be filled up, so that it has the bits of a whole one.
N = 48


@pytest.mark.parametrize("epochs", [1, 3])
def test_greedy_with_cache_shows_each_sample_to_a_frozen_block_once(epochs: int) -> None:
    trainer = MonoForward(make_mlp(16, 16, 16), schedule="greedy", progress=False)
    seen = rows_seen(trainer, vectors(N))
    trainer.fit(vectors(N), epochs=epochs, batch_size=16)
    assert seen == {
        0: Counter({True: N * epochs, False: N}),
        1: Counter({True: N * epochs, False: N}),
        # Nothing stands above the last block.
        2: Counter({True: N * epochs}),
    }


def test_greedy_without_cache_runs_the_frozen_blocks_again_and_again() -> None:
    trainer = MonoForward(make_mlp(16, 16, 16), schedule="greedy", cache=False, progress=False)
    seen = rows_seen(trainer, vectors(N))
    trainer.fit(vectors(N), epochs=3, batch_size=16)
    assert [seen[k][False] for k in range(3)] == [N * 3 * 2, N * 3, 0]


def test_pairs_are_kept_where_negatives_are_drawn_once_and_not_otherwise() -> None:
    for redraw, frozen in ((False, 2 * N), (True, 2 * N * 3)):
        trainer = ForwardForward(
            make_mlp(), schedule="greedy", redraw_negatives=redraw, readout="goodness", classifier=False,
            progress=False,
        )  # fmt: skip
        seen = rows_seen(trainer, vectors(N))
        trainer.fit(vectors(N), epochs=3, batch_size=16)
        assert (seen[0][False], seen[0][True]) == (frozen, 2 * N * 3)


def test_the_classifier_of_a_greedy_run_hears_each_sample_once() -> None:
    trainer = ForwardForward(make_mlp(), schedule="greedy", redraw_negatives=False, progress=False)
    seen = rows_seen(trainer, vectors(N))
    trainer.fit(vectors(N), epochs=3, batch_size=16)
    # Pairs for the second block, then neutral rows for the classifier.
    assert seen[0][False] == 2 * N + N
    assert seen[1][False] == N


def test_a_front_answers_once_for_each_sample() -> None:
    for schedule in ("simultaneous", "greedy"):
        trainer = RandomFeatures(make_mlp(), schedule=schedule, progress=False)
        seen = rows_seen(trainer, vectors(N))
        trainer.fit(vectors(N), epochs=5, batch_size=16)
        assert seen[0] == Counter({False: N}), schedule
    # The front of a block further up is a constant too once the blocks below are frozen.
    assert seen[1] == Counter({False: N})


def wide_mlp() -> nn.Module:
    return make_mlp(256, 16, width=300)


@pytest.mark.parametrize("n", [32, 33, 37, 47])
@pytest.mark.parametrize("make", [make_mlp, wide_mlp, make_cnn])
def test_kept_features_have_the_bits_of_fresh_ones_in_any_order(make: Any, n: int) -> None:
    # A last batch of one or of a few takes another path through the linear algebra.
    data = images(n) if make is make_cnn else vectors(n, 300 if make is wide_mlp else 12)
    trainers = [MonoForward(make(), progress=False, schedule="greedy") for _ in range(2)]
    for trainer in trainers:
        trainer.build(data.sample_shape, data.n_classes)
        trainer.cascade.eval()
    kept, fresh = (
        Feed(trainer.cascade, data, 0, 16, cache)
        for trainer, cache in zip(trainers, (True, False), strict=True)
    )
    trainers[1].cascade.load_state_dict(trainers[0].cascade.state_dict())
    for feed in (kept, fresh):
        feed.freeze_below(1)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(3))
    for step, indices in enumerate(order.split(16)):
        (ours, labels), (theirs, same) = kept.rows(indices, 0, step), fresh.rows(indices, 0, step)
        assert isinstance(ours, Tensor)
        assert isinstance(theirs, Tensor)
        assert torch.equal(ours, theirs), f"batch of {len(indices)}"
        assert torch.equal(labels, same)


def test_negatives_and_augmentation_follow_epoch_and_step_alone() -> None:
    data = images()
    trainer = ForwardForward(make_cnn(), progress=False)
    trainer.build(data.sample_shape, CLASSES)
    for samples in (data, replace(data, augment=("shift",))):
        feeds = [Feed(trainer.cascade, samples, seed, 16, True) for seed in (0, 0, 1)]
        indices = torch.arange(16)

        def shown(feed: Feed, epoch: int, step: int, indices: Tensor = indices) -> Tensor:
            rows, _ = feed.rows(indices, epoch, step)
            return rows.dense()  # type: ignore[union-attr]

        first = shown(feeds[0], 1, 2)
        shown(feeds[1], 0, 0)
        assert torch.equal(first, shown(feeds[1], 1, 2))
        for other in (shown(feeds[0], 1, 3), shown(feeds[0], 2, 2), shown(feeds[2], 1, 2)):
            assert not torch.equal(first, other)


def test_augmented_data_is_never_kept() -> None:
    data = replace(images(), augment=("shift",))
    trainer = MonoForward(make_cnn(), schedule="greedy", progress=False)
    trainer.build(data.sample_shape, CLASSES)
    feed = Feed(trainer.cascade, data, 0, 16, True)
    feed.freeze_below(1)
    indices = torch.arange(16)
    once, again = (feed.rows(indices, epoch, 0)[0] for epoch in (0, 1))
    assert not torch.equal(once, again)  # type: ignore[arg-type]


def test_the_wrong_label_of_a_sample_stays_where_it_is_drawn_once() -> None:
    trainer = ForwardForward(make_mlp(), redraw_negatives=False, progress=False)
    data = vectors()
    trainer.build(data.sample_shape, CLASSES)
    feed = Feed(trainer.cascade, data, 0, 16, True)

    def wrong(indices: Tensor, epoch: int) -> Tensor:
        rows, _ = feed.rows(indices, epoch, 0)
        return rows.codes[1].argmax(1)  # type: ignore[union-attr]

    everyone = wrong(torch.arange(40), 0)
    assert not (everyone == data.y).any()
    order = torch.randperm(40)[:16]
    assert torch.equal(wrong(order, 5), everyone[order])
