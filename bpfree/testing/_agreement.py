"""Laws about schedules: other orders of the same work give the same bits; one block is backpropagation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpfree import _seeds
from bpfree._rows import Rows
from bpfree.core.block import descend
from bpfree.data import TensorData, as_data
from bpfree.testing._common import MakeTrainer, assert_same_bits, assert_same_history
from bpfree.trainers import Backprop, Trainer


def assert_schedules_agree(
    make_trainer: MakeTrainer,
    data: Any,
    *,
    steps: int = 4,
    epochs: int = 2,
    batch_size: int = 16,
    greedy: bool = True,
) -> None:
    """Check that a schedule changes when work is done, and not what comes of it.

    Simultaneous: a few steps that update each block by itself give, bit for bit, the weights and losses of
    steps that add all losses up, take one backward pass through their sum and then step every optimizer;
    with Adam and with SGD. Greedy: a run that keeps the features of frozen blocks ends with the same bits,
    and the same history, as one that computes them anew.

    Args:
        make_trainer: Makes the trainer; given ``optimizer``, ``schedule`` and ``cache``. A trainer with
            ``gradients = "analytic"`` is spared the first part: it has no backward passes to add up.
        data: Training data, as for `Trainer.fit`.
        steps: Steps of the first part.
        epochs: Epochs of each stage of the second part.
        batch_size: Samples per step.
        greedy: Whether to check the second part. It says something only where data and encoding stay the
            same from one epoch to the next.

    Raises:
        AssertionError: naming the schedule and the tensor that differs.
    """
    samples = as_data(data)
    for optimizer in ("adam", "sgd"):
        apart, summed = make_trainer(optimizer=optimizer), make_trainer(optimizer=optimizer)
        _assert_sum_agrees(apart, summed, samples, steps, batch_size)
    if greedy:
        _assert_cache_agrees(make_trainer, samples, epochs, batch_size)


def _assert_sum_agrees(
    apart: Trainer, summed: Trainer, data: TensorData, steps: int, batch_size: int
) -> None:
    for trainer in (apart, summed):
        trainer.build_for(data)
    if any(block.gradients == "analytic" for block in apart.cascade.units):
        return
    what = f"{apart.id} with {apart.settings.optimizer}: updates by block, and one through the sum"
    assert_same_bits(apart.cascade, summed.cascade, f"{apart.id}: two new trainers")
    for number in range(steps):
        indices = torch.arange(number * batch_size, (number + 1) * batch_size) % len(data)
        x, y = data.batch(indices)
        x, y = x.to(apart.device), y.to(apart.device)
        ours = apart.step(x, y, number)
        with summed.running():
            theirs = _summed_step(summed, x, y, number)
        for k, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            if not torch.equal(one, other):
                raise AssertionError(f"{what}: loss {k + 1} of step {number + 1}: {one} and {other}")
        assert_same_bits(apart.cascade, summed.cascade, f"{what}, after step {number + 1}")


def _summed_step(trainer: Trainer, x: Tensor, y: Tensor, number: int) -> list[Tensor]:
    """What `Trainer.step` does, with one backward pass through the sum of all losses."""
    cascade, seed = trainer.cascade, _seeds.derive(trainer.seed, "step", 0, number)
    cascade.train()
    scores, extra = None, []
    for readout in (cascade.readout(name) for name in cascade.readouts):
        if readout.learns:
            _seeds.seed_global(y.device, seed, "readout")
            with torch.no_grad():
                outputs = cascade.outputs(cascade.encoding.view(x, readout.view))
            scores = readout(outputs, cascade.losses).detach()
            extra.append(readout.objective(outputs, y))
    generator = _seeds.generator(y.device, trainer.seed, "negatives", 0, number)
    rows: Rows
    rows, target = cascade.encoding.encode(x, y, cascade.encoding.draw(y, generator, scores))
    losses: list[Tensor] = []
    totals = list(extra)
    lessons = descend(cascade.units, cascade.encoding.message())
    for k, (block, lesson) in enumerate(zip(cascade.units, lessons, strict=True)):
        _seeds.seed_global(y.device, seed, k)
        rows = block.concat_feedback(rows, lesson)
        found, output = block.objective(block.run_front(rows), target, lesson)
        losses, rows = losses + found, block.next_input(rows, block.loss.upward(output.detach()))
        totals.append(block.total(found))
        for loss in block.losses:
            loss.memory = loss.remembered(output.detach())
    with torch.autocast(y.device.type, enabled=False):
        torch.autograd.backward(torch.stack(totals).sum())
    for optimizer in trainer.optimizers.values():
        optimizer.step()
        optimizer.zero_grad()
    return [loss.detach() for loss in losses + extra]


def _assert_cache_agrees(make_trainer: MakeTrainer, data: TensorData, epochs: int, batch_size: int) -> None:
    kept, fresh = (make_trainer(schedule="greedy", cache=cache) for cache in (True, False))
    runs = [trainer.fit(data, data, epochs=epochs, batch_size=batch_size) for trainer in (kept, fresh)]
    what = f"{kept.id}, greedy with and without kept features"
    assert_same_bits(kept.cascade, fresh.cascade, what)
    assert_same_history(runs[0], runs[1], what)


def assert_one_block_is_backprop(
    make_net: Callable[[], nn.Module],
    data: Any,
    *,
    epochs: int = 2,
    batch_size: int = 16,
    seed: int = 0,
    lr: float = 1e-2,
    weight_decay: float = 0.0,
) -> None:
    """Check that a cascade of one block trains exactly as the same net in a plain PyTorch loop.

    Each of the optimizers SGD, Adam and AdamW, in its fused form, must end with the same bits, and each epoch
    with the same mean loss. The loop draws the order of samples and the dropout noise from the streams that
    `bpfree._seeds` documents.

    Args:
        make_net: Makes the net, new and with the same weights at each call.
        data: Training data, as for `Trainer.fit`.
        epochs: Passes over the data.
        batch_size: Samples per step.
        seed: Seed of the run.
        lr: Learning rate.
        weight_decay: Weight decay.

    Raises:
        AssertionError: naming the optimizer, and the parameter or the epoch that differs.
    """
    samples = as_data(data)
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "sgd": partial(torch.optim.SGD, momentum=0.9),
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
    }
    for name, kind in kinds.items():
        trainer = Backprop(
            make_net(), seed=seed, progress=False, optimizer=name, lr=lr, weight_decay=weight_decay
        )
        history = trainer.fit(samples, epochs=epochs, batch_size=batch_size)
        net = make_net()
        optimizer = kind(net.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
        with trainer.running():
            means = _plain_loop(net, optimizer, samples.to(trainer.device), epochs, batch_size, seed)
        what = f"a cascade of one block and a plain loop, both with {name}"
        assert_same_bits(trainer.model, net, what)
        found = [row["loss"][0] for row in history.rows]
        if found != means:
            raise AssertionError(f"{what}: the mean losses of the epochs differ: {found} and {means}")


def _plain_loop(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: TensorData,
    epochs: int,
    batch_size: int,
    seed: int,
) -> list[float]:
    """Backpropagation as anyone would write it; returns the mean loss of each epoch."""
    device, means = data.y.device, []
    net.train()
    for epoch in range(epochs):
        generator = _seeds.generator(device, seed, "order", epoch)
        order = torch.randperm(len(data), generator=generator, device=device)
        total, batches = torch.zeros((), device=device), torch.split(order, batch_size)
        for number, indices in enumerate(batches):
            x, y = data.batch(indices)
            _seeds.seed_global(device, _seeds.derive(seed, "step", epoch, number), 0)
            loss = F.cross_entropy(net(x), y)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            total += loss.detach()
        means.append((total / len(batches)).item())
    return means
