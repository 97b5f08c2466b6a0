"""Checks of schedules: all orders of the updates give equal results, and one block is backpropagation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpfree import _seeds
from bpfree._rows import Rows
from bpfree.core.block import send_feedback
from bpfree.data import TensorData, as_data
from bpfree.losses import StatefulFeedbackLoss
from bpfree.testing._common import MakeTrainer, assert_same_bits, assert_same_history
from bpfree.trainers import Backprop, Trainer


def assert_schedules_agree(
    make_trainer: MakeTrainer,
    data: object,
    *,
    steps: int = 4,
    epochs: int = 2,
    batch_size: int = 16,
    greedy: bool = True,
) -> None:
    """Check that the result of training does not depend on the order of the computation.

    Simultaneous schedule: steps that update each block separately give bit-identical weights and losses to
    steps that sum all losses, run one backward pass through the sum and then step every optimizer. This is
    checked with Adam and with SGD. Greedy schedule: a run that caches the features of frozen blocks ends with
    bit-identical weights and the same history as a run that recomputes them.

    Args:
        make_trainer: Returns the trainer, for given ``optimizer``, ``schedule`` and ``cache``. The first
            check is skipped if ``gradients = "analytic"``, because there are no backward passes to sum.
        data: Training data, as for `Trainer.fit`.
        steps: Number of steps of the first check.
        epochs: Number of epochs of each stage of the second check.
        batch_size: Number of samples of each step.
        greedy: Whether to run the second check. It is meaningful only if data and encoding are the same in
            all epochs.

    Raises:
        AssertionError: If results differ. The message names the schedule and the tensor.
    """
    samples = as_data(data)
    for optimizer in ("adam", "sgd"):
        separate, summed = make_trainer(optimizer=optimizer), make_trainer(optimizer=optimizer)
        _assert_sum_agrees(separate, summed, samples, steps, batch_size)
    if greedy:
        _assert_cache_agrees(make_trainer, samples, epochs, batch_size)


def _assert_sum_agrees(
    separate: Trainer, summed: Trainer, data: TensorData, steps: int, batch_size: int
) -> None:
    for trainer in (separate, summed):
        trainer.build_for(data)
    if any(not block.rule.autograd for block in separate.cascade.units):
        return
    what = f"{separate.id} with {separate.settings.optimizer}: separate updates and summed losses"
    assert_same_bits(separate.cascade, summed.cascade, f"{separate.id}: two new trainers")
    for number in range(steps):
        indices = torch.arange(number * batch_size, (number + 1) * batch_size) % len(data)
        x, y = data.batch(indices)
        x, y = x.to(separate.device), y.to(separate.device)
        losses = separate.step(x, y, number)
        with summed.running():
            expected = _summed_step(summed, x, y, number)
        for k, (loss, other) in enumerate(zip(losses, expected, strict=True)):
            if not torch.equal(loss, other):
                raise AssertionError(f"{what}: loss {k + 1} of step {number + 1} is {loss} and {other}")
        assert_same_bits(separate.cascade, summed.cascade, f"{what}, after step {number + 1}")


def _summed_step(trainer: Trainer, x: Tensor, y: Tensor, number: int) -> list[Tensor]:
    """`Trainer.step` with one backward pass through the sum of all losses; returns the losses."""
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
    feedbacks, _ = send_feedback(cascade.units, cascade.encoding.message())
    for k, (block, feedback) in enumerate(zip(cascade.units, feedbacks, strict=True)):
        _seeds.seed_global(y.device, seed, k)
        rows = block.concat_feedback(rows, feedback)
        values, total, output = block.objective(block.run_front(rows), target, feedback)
        output = output.detach()
        if isinstance(block.loss, StatefulFeedbackLoss):
            rows = block.next_input(rows, block.loss.passed_up(output))
            block.loss.state = block.loss.next_state(output)
        else:
            rows = block.next_input(rows, output)
        losses += values
        totals.append(total)
    with torch.autocast(y.device.type, enabled=False):
        torch.autograd.backward(torch.stack(totals).sum())
    for optimizer in trainer.optimizers.values():
        optimizer.step()
        optimizer.zero_grad()
    return [loss.detach() for loss in losses + extra]


def _assert_cache_agrees(make_trainer: MakeTrainer, data: TensorData, epochs: int, batch_size: int) -> None:
    cached, uncached = (make_trainer(schedule="greedy", cache=cache) for cache in (True, False))
    runs = [trainer.fit(data, data, epochs=epochs, batch_size=batch_size) for trainer in (cached, uncached)]
    what = f"{cached.id}: the greedy schedule with and without cached features"
    assert_same_bits(cached.cascade, uncached.cascade, what)
    assert_same_history(runs[0], runs[1], what)


def assert_one_block_is_backprop(
    make_net: Callable[[], nn.Module],
    data: object,
    *,
    epochs: int = 2,
    batch_size: int = 16,
    seed: int = 0,
    lr: float = 1e-2,
    weight_decay: float = 0.0,
) -> None:
    """Check that a cascade of one block trains as the same network in a plain PyTorch loop.

    With each of the fused optimizers SGD, Adam and AdamW, the weights must be bit-identical, and the mean
    losses of each epoch equal. The loop draws the order of samples and the dropout noise from the same random
    streams (`bpfree._seeds`).

    Args:
        make_net: Returns a new network with the same weights at each call.
        data: Training data, as for `Trainer.fit`.
        epochs: Number of epochs.
        batch_size: Number of samples of each step.
        seed: Seed of the run.
        lr: Learning rate.
        weight_decay: Weight decay.

    Raises:
        AssertionError: If results differ. The message names the optimizer, and the parameter or the losses.
    """
    samples = as_data(data)
    optimizers: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "sgd": partial(torch.optim.SGD, momentum=0.9),
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
    }
    for name, make_optimizer in optimizers.items():
        trainer = Backprop(
            make_net(), seed=seed, progress=False, optimizer=name, lr=lr, weight_decay=weight_decay
        )
        history = trainer.fit(samples, epochs=epochs, batch_size=batch_size)
        net = make_net()
        optimizer = make_optimizer(net.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
        with trainer.running():
            means = _plain_loop(net, optimizer, samples.to(trainer.device), epochs, batch_size, seed)
        what = f"a cascade of one block and a plain loop with {name}"
        assert_same_bits(trainer.model, net, what)
        losses = [row["loss"][0] for row in history.rows]
        if losses != means:
            raise AssertionError(f"{what}: the mean losses of the epochs differ: {losses} and {means}")


def _plain_loop(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: TensorData,
    epochs: int,
    batch_size: int,
    seed: int,
) -> list[float]:
    """A plain training loop with backpropagation; returns the mean loss of each epoch."""
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
