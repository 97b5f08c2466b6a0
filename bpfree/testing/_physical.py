"""Checks of physical devices: training uses no model of them, counts their passes, and can be replayed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from bpfree._errors import BadValue, DeviceError
from bpfree._types import JsonObject
from bpfree.data import TensorData, as_data
from bpfree.nn import physical_net
from bpfree.physics import Device, PhysicalSystem, Recorder, Replay
from bpfree.physics.outputs import checked_output
from bpfree.physics.system import Array
from bpfree.testing._common import assert_same_bits
from bpfree.trainers import Physical

#: Returns a new system, or always the same one.
MakeSystem = Callable[[], PhysicalSystem]


def physical_trainer(
    device: Device,
    data: TensorData,
    *,
    layers: int = 2,
    seed: int = 0,
    net: JsonObject | None = None,
    **settings: Any,
) -> Physical:
    """Create a trainer of physical local learning with one device for all layers.

    Args:
        device: The device.
        data: Data with the shape of samples and the number of classes.
        layers: Number of layers L.
        seed: Seed of the weights and of the run.
        net: Further arguments of `bpfree.nn.physical_net`. Default: drives of unit norm, with skip
            connections.
        **settings: Settings of the trainer.
    """
    torch.manual_seed(seed)
    hidden = [data.n_classes + torch.Size(data.sample_shape).numel()] * (layers - 1)
    network = physical_net(
        [device] * layers, data.sample_shape, data.n_classes, hidden, **{"drive": "l2", **(net or {})}
    )
    return Physical(network, seed=seed, progress=False, **settings)


def assert_model_free(
    make_system: MakeSystem, data: object, *, epochs: int = 2, batch_size: int = 16, **options: Any
) -> None:
    """Check that training uses only the outputs of a device, and no model or gradient of it.

    The system must return real, finite arrays and not modify them later, and the device must refuse a tensor
    that requires a gradient. Runs with closed-form gradients and with local autograd must finish although the
    backward pass of each output, and the differentiable model of the system, raise an error. The gradient of
    a layer's loss must reach exactly the weight and bias of that layer, and its features must not require a
    gradient.

    Args:
        make_system: Returns the system.
        data: Training data, as for `Trainer.fit`.
        epochs: Number of epochs of each run.
        batch_size: Number of samples of each step.
        **options: Options of the trainer and its network, such as ``layers``, ``net`` or ``inner_steps``.

    Raises:
        AssertionError: If a check fails. The message names what was used of the device.
    """
    samples = as_data(data)
    device = Device(make_system())
    low, high = device.input_range
    middle = np.full((2, device.n_in), (low + high) / 2)
    _check_outputs(device, middle)
    try:
        device.measure(torch.from_numpy(middle).requires_grad_())
    except BadValue:
        pass
    else:
        raise AssertionError("the device accepted a tensor that requires a gradient")
    for gradients in ("analytic", "autograd"):
        without_gradient = _DeviceWithoutGradient(_SystemWithoutModel(make_system()))
        trainer = physical_trainer(without_gradient, samples, gradients=gradients, **options)
        trainer.fit(samples, epochs=epochs, batch_size=batch_size)
        _check_gradients(trainer, samples)


def _check_outputs(device: Device, middle: Array) -> None:
    """Check the outputs of the system itself, without the copies and checks of `Device`."""
    drive = middle.copy()
    output = device.system.forward(drive)
    try:
        first = checked_output(output, len(middle), device.n_out)
    except DeviceError as error:
        raise AssertionError(str(error)) from error
    if not np.array_equal(drive, middle):
        raise AssertionError("the system modified its input; copy the drive in forward")
    device.system.forward(np.full_like(middle, device.input_range[1]))
    if not np.array_equal(output, first):
        raise AssertionError("a later call changed an earlier output; return a new array in forward")


def _check_gradients(trainer: Physical, data: TensorData) -> None:
    """Check the parameters that the gradient of each layer's loss reaches."""
    x, y = data.batch(torch.arange(min(8, len(data))))
    encoding = trainer.cascade.encoding
    rows, target = encoding.encode(x, y, encoding.draw(y, torch.Generator().manual_seed(0)))
    for k, block in enumerate(trainer.cascade.units):
        features = block.run_front(rows)
        assert isinstance(features, Tensor)
        if features.requires_grad:
            raise AssertionError(f"the features of layer {k + 1} require a gradient")
        objective = block.objective(features, target, None)
        rows = objective.output.detach()
        reached = _leaves(objective.total)
        expected = {id(p) for p in block.parts[0].body.parameters()}
        if reached != expected:
            raise AssertionError(
                f"the gradient of the loss of layer {k + 1} reaches {len(reached - expected)} tensors "
                f"outside the layer, and misses {len(expected - reached)} of its parameters"
            )


def _leaves(loss: Tensor) -> set[int]:
    """Identities of the leaf tensors that the gradient of ``loss`` reaches."""
    seen, leaves, pending = set(), set(), [loss.grad_fn]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        pending += [function for function, _ in node.next_functions]
    return leaves


class _RaiseInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, output: Tensor) -> Tensor:
        return output.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        raise AssertionError("a gradient was sent into the device")


class _DeviceWithoutGradient(Device):
    """A device whose outputs raise an error in the backward pass."""

    def measure(self, u: Tensor) -> Tensor:
        # The output requires a gradient, so that a backward pass through it is not skipped.
        with torch.enable_grad():
            output: Tensor = _RaiseInBackward.apply(super().measure(u).requires_grad_())
        return output


class _SystemWithoutModel:
    """A system that can be driven, but whose differentiable model raises an error."""

    def __init__(self, system: PhysicalSystem) -> None:
        self.n_in, self.n_out, self.input_range = system.n_in, system.n_out, system.input_range
        self.forward = system.forward

    def digital_model(self, *_: object, **__: object) -> NoReturn:
        raise AssertionError("training used a model of the device")


def assert_pass_counts(
    make_system: MakeSystem,
    data: object,
    *,
    layers: int = 2,
    epochs: int = 2,
    batch_size: int = 16,
    **options: Any,
) -> None:
    """Check the numbers of rows that are sent to a device, and that the device counts them.

    For L layers, N samples, E epochs and C classes, training sends ``2 L N E`` rows with the simultaneous
    schedule, ``C L N E`` with all negatives, ``C N + 2 (L-1) N E`` with cached outputs of the first layer,
    and ``C L N`` with the greedy schedule and cached outputs of all layers. Prediction sends ``C L`` rows for
    each sample. The numbers do not depend on the number of inner steps, or on the size of the last batch.
    Rows are counted by purpose by the device, and in total by the system.

    Args:
        make_system: Returns the system.
        data: Training data, as for `Trainer.fit`.
        layers: Number of layers L.
        epochs: Number of epochs E.
        batch_size: Number of samples of each step.
        **options: Options of the trainer and its network.

    Raises:
        AssertionError: If a count is wrong. The message names the case, the count and the expected count.
    """
    samples = as_data(data)
    n, c = len(samples), samples.n_classes
    cases: list[tuple[str, JsonObject, int]] = [
        ("simultaneous", {}, 2 * layers * n * epochs),
        ("simultaneous, one inner step", {"inner_steps": 1}, 2 * layers * n * epochs),
        ("simultaneous, all negatives", {"negatives": "all"}, c * layers * n * epochs),
        ("first layer cached", {"cache": True}, c * n + 2 * (layers - 1) * n * epochs),
        ("greedy, all layers cached", {"cache": True, "schedule": "greedy"}, c * layers * n),
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
            raise AssertionError(f"{name}: prediction sent {counting.rows} rows; expected {c * layers * n}")


def _compare(name: str, counted: dict[str, int], expected: dict[str, int], received: int | None) -> None:
    expected = {purpose: expected.get(purpose, 0) for purpose in counted}
    if counted != expected:
        raise AssertionError(f"{name}: {counted} rows were counted; expected {expected}")
    if received is not None and received != sum(counted.values()):
        raise AssertionError(f"{name}: the system received {received} rows, but {counted} were counted")


class _Counting:
    """A system that counts the rows that it receives."""

    def __init__(self, system: PhysicalSystem) -> None:
        self.system, self.rows = system, 0
        self.n_in, self.n_out, self.input_range = system.n_in, system.n_out, system.input_range

    def forward(self, u: Array) -> Array:
        self.rows += len(u)
        return self.system.forward(u)


def assert_replays(
    make_system: MakeSystem, data: object, *, epochs: int = 2, batch_size: int = 16, **options: Any
) -> None:
    """Check that training with recorded outputs of a device gives the same weights as with the device.

    Args:
        make_system: Returns the system. Its noise may differ between calls.
        data: Training data, as for `Trainer.fit`.
        epochs: Number of epochs of each run.
        batch_size: Number of samples of each step.
        **options: Options of the trainer and its network.

    Raises:
        AssertionError: If the weights differ. The message names the tensor.
        DeviceError: If the second run needs outputs that were not recorded.
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
    assert_same_bits(second.cascade, first.cascade, "training with a device and with its recorded outputs")
