"""Laws about physical devices: nothing is known of them, every row is counted, and a record can stand in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bpfree._errors import BadValue, DeviceError
from bpfree.data import TensorData, as_data
from bpfree.nn import physical_net
from bpfree.physics import Device, PhysicalSystem, Recorder, Replay
from bpfree.physics.outputs import checked_output
from bpfree.physics.system import Array
from bpfree.testing._common import assert_same_bits
from bpfree.trainers import Physical

#: Makes a system, or returns the one that there is.
MakeSystem = Callable[[], PhysicalSystem]


def physical_trainer(
    device: Device,
    data: TensorData,
    *,
    layers: int = 2,
    seed: int = 0,
    net: dict[str, Any] | None = None,
    **settings: Any,
) -> Physical:
    """Physical local learning on one device that serves all layers.

    Args:
        device: The device.
        data: Says the shape of samples and the number of classes.
        layers: Number of layers L.
        seed: Of the matrices and of the run.
        net: Further arguments of `bpfree.nn.physical_net`; by default drives of unit norm, with skip.
        **settings: Settings of the trainer.
    """
    torch.manual_seed(seed)
    hidden = [data.n_classes + torch.Size(data.sample_shape).numel()] * (layers - 1)
    made = physical_net(
        [device] * layers, data.sample_shape, data.n_classes, hidden, **{"drive": "l2", **(net or {})}
    )
    return Physical(made, seed=seed, progress=False, **settings)


def assert_model_free(
    make_system: MakeSystem, data: Any, *, epochs: int = 2, batch_size: int = 16, **options: Any
) -> None:
    """Check that training needs nothing of a device but its answers.

    The system takes numpy arrays and returns real, finite ones that it does not write into later, and the
    adapter refuses a tensor that requires a gradient. A whole run, by the closed form and by local autograd,
    finishes with every answer wrapped in a function whose backward pass raises, and with a differentiable
    twin that raises when it is asked for. What a layer's loss can reach through the graph is that layer's
    matrix and bias, and its features require no gradient.

    Args:
        make_system: Makes the system.
        data: Training data, as for `Trainer.fit`.
        epochs: Epochs of each run.
        batch_size: Samples per step.
        **options: Of the trainer and its network, as ``layers``, ``net`` or ``inner_steps``.

    Raises:
        AssertionError: saying what was asked of the device.
    """
    samples = as_data(data)
    device = Device(make_system())
    low, high = device.input_range
    middle = np.full((2, device.n_in), (low + high) / 2)
    _check_answers(device, middle)
    try:
        device.measure(torch.from_numpy(middle).requires_grad_())
    except BadValue:
        pass
    else:
        raise AssertionError("the device took a tensor that requires a gradient")
    for gradients in ("analytic", "autograd"):
        poisoned = _Poisoned(_NoTwin(make_system()))
        trainer = physical_trainer(poisoned, samples, gradients=gradients, **options)
        trainer.fit(samples, epochs=epochs, batch_size=batch_size)
        _audit(trainer, samples)


def _check_answers(device: Device, middle: Array) -> None:
    """Check what the system returns, for callers that have no `Device` to copy it and to judge it."""
    drive = middle.copy()
    answer = device.system.forward(drive)
    try:
        first = checked_output(answer, len(middle), device.n_out)
    except DeviceError as error:
        raise AssertionError(str(error)) from error
    if not np.array_equal(drive, middle):
        raise AssertionError("the system wrote into the drive that it was given; have it copy the drive")
    device.system.forward(np.full_like(middle, device.input_range[1]))
    if not np.array_equal(answer, first):
        raise AssertionError("a later call changed an earlier answer; have the system return a new array")


def _audit(trainer: Physical, data: TensorData) -> None:
    x, y = data.batch(torch.arange(min(8, len(data))))
    encoding = trainer.cascade.encoding
    rows, target = encoding.encode(x, y, encoding.draw(y, torch.Generator().manual_seed(0)))
    for k, block in enumerate(trainer.cascade.units):
        features = block.sense(rows)
        assert isinstance(features, Tensor)
        if features.requires_grad:
            raise AssertionError(f"the features of layer {k + 1} require a gradient")
        losses, rows = block.objective(features, target, None)
        rows = rows.detach()
        reached = _leaves(losses[0])
        own = {id(p) for p in block.body.parameters()}
        if reached != own:
            raise AssertionError(
                f"the loss of layer {k + 1} reaches {len(reached - own)} tensors beside its matrix and bias, "
                f"and misses {len(own - reached)} of these"
            )


def _leaves(loss: Tensor) -> set[int]:
    """The tensors that ``loss`` would send a gradient to, by identity."""
    seen, found, pending = set(), set(), [loss.grad_fn]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        pending += [following for following, _ in node.next_functions]
    return found


class _Poison(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, answer: Tensor) -> Tensor:
        return answer.clone()

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> Tensor:
        raise AssertionError("a gradient was sent into the device")


class _Poisoned(Device):
    def measure(self, u: Tensor) -> Tensor:
        # The answer claims to depend on something that learns, and raises if that is ever followed.
        with torch.enable_grad():
            answer: Tensor = _Poison.apply(super().measure(u).requires_grad_())
        return answer


class _NoTwin:
    """A system that may be driven, and asked for nothing else."""

    def __init__(self, system: PhysicalSystem) -> None:
        self.n_in, self.n_out, self.input_range = system.n_in, system.n_out, system.input_range
        self.forward = system.forward

    def digital_model(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("a model of the device was asked for")


def assert_passes(
    make_system: MakeSystem,
    data: Any,
    *,
    layers: int = 2,
    epochs: int = 2,
    batch_size: int = 16,
    **options: Any,
) -> None:
    """Check that rows are counted, and that they are as many as the formulas say.

    With L layers, N samples, E epochs, C classes: joint training sends ``2 L N E`` rows, with all negatives
    ``C L N E``, with the first layer's answers kept ``C N + 2 (L-1) N E``, greedy with all layers' kept
    ``C L N``; prediction sends ``C L`` for each sample. The number of inner steps changes none of it, nor
    does a last batch that is short. Rows are counted by what they were sent for, and where the system
    receives them.

    Args:
        make_system: Makes the system.
        data: Training data, as for `Trainer.fit`.
        layers: L.
        epochs: E.
        batch_size: Samples per step.
        **options: Of the trainer and its network.

    Raises:
        AssertionError: naming the case, what was counted and what the formula says.
    """
    samples = as_data(data)
    n, c = len(samples), samples.n_classes
    cases: list[tuple[str, dict[str, Any], int]] = [
        ("joint", {}, 2 * layers * n * epochs),
        ("joint, one inner step", {"inner_steps": 1}, 2 * layers * n * epochs),
        ("joint, all negatives", {"negatives": "all"}, c * layers * n * epochs),
        ("first layer kept", {"cache": True}, c * n + 2 * (layers - 1) * n * epochs),
        ("greedy, all layers kept", {"cache": True, "schedule": "greedy"}, c * layers * n),
    ]
    for name, settings, expected in cases:
        counting = _Counting(make_system())
        device = Device(counting)
        trainer = physical_trainer(
            device, samples, layers=layers, **{"inner_steps": 3, **options, **settings}
        )
        trainer.fit(samples, epochs=epochs, batch_size=batch_size)
        _compare(name, device.passes, {"train": expected}, counting.rows)
        counting.rows = 0
        trainer.evaluate(samples)
        _compare(f"{name}, prediction", device.passes, {"train": expected, "eval": c * layers * n}, None)
        if counting.rows != c * layers * n:
            raise AssertionError(f"{name}: prediction sent {counting.rows} rows, not {c * layers * n}")


def _compare(name: str, found: dict[str, int], expected: dict[str, int], received: int | None) -> None:
    whole = {purpose: expected.get(purpose, 0) for purpose in found}
    if found != whole:
        raise AssertionError(f"{name}: {found} rows were counted; the formula says {whole}")
    if received is not None and received != sum(found.values()):
        raise AssertionError(f"{name}: the system received {received} rows, {found} were counted")


class _Counting:
    """Counts rows where the system receives them."""

    def __init__(self, system: PhysicalSystem) -> None:
        self.system, self.rows = system, 0
        self.n_in, self.n_out, self.input_range = system.n_in, system.n_out, system.input_range

    def forward(self, u: Any) -> Any:
        self.rows += len(u)
        return self.system.forward(u)


def assert_replays(
    make_system: MakeSystem, data: Any, *, epochs: int = 2, batch_size: int = 16, **options: Any
) -> None:
    """Check that a record of what the device answered, with no physics inside, trains the same weights.

    Args:
        make_system: Makes the system; its noise may differ from one to the next.
        data: Training data, as for `Trainer.fit`.
        epochs: Epochs of each run.
        batch_size: Samples per step.
        **options: Of the trainer and its network.

    Raises:
        AssertionError: naming the tensor that differs.
        DeviceError: If the second run asks for anything that the first did not.
    """
    samples = as_data(data)
    recorder = Recorder(make_system())
    first = physical_trainer(Device(recorder), samples, **options)
    first.fit(samples, epochs=epochs, batch_size=batch_size)
    with TemporaryDirectory() as folder:
        record = Path(folder) / "record.npz"
        recorder.save(record)
        second = physical_trainer(Device(Replay(record)), samples, **options)
        second.fit(samples, epochs=epochs, batch_size=batch_size)
    assert_same_bits(second.cascade, first.cascade, "training on a device, and on the record of its answers")
