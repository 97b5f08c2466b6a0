"""The dtype of the parameters is that of all computations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bpfree import Autoencoder, Backprop, BadValue, Local, MonoForward, Trainer
from bpfree.data import TensorData
from bpfree.nn import autoencoder
from bpfree.trainers.inputs import find_device
from tests.helpers import CLASSES, PLAIN_TRAINERS, images, make_cnn, make_mlp, vectors

every = pytest.mark.parametrize("kind", PLAIN_TRAINERS.values(), ids=PLAIN_TRAINERS.keys())


def in_float64(data: TensorData) -> TensorData:
    return TensorData(data.x.double(), data.y, data.n_classes)


def test_a_float64_run_agrees_with_a_hand_written_loop() -> None:
    # Values that are equal in float32.
    x = 1 + torch.rand(40, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1e-8
    y = torch.arange(40) % CLASSES
    trainer = Backprop(make_mlp().double(), lr=0.01, optimizer="sgd", momentum=0.0, progress=False)
    history = trainer.fit((x, y), epochs=3, batch_size=40)
    net = make_mlp().double()
    for row in history.rows:
        loss = F.cross_entropy(net(x), y)
        assert row["loss"] == pytest.approx([loss.item()], rel=1e-6)
        grads = torch.autograd.grad(loss, list(net.parameters()))
        with torch.no_grad():
            for p, g in zip(net.parameters(), grads, strict=True):
                p -= 0.01 * g
    for p, q in zip(trainer.net.parameters(), net.parameters(), strict=True):
        assert p.dtype == torch.float64
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


@every
def test_every_trainer_accepts_a_float64_network(kind: type[Trainer], tmp_path: Path) -> None:
    trainer = kind(make_cnn(batch_norm=True).double(), progress=False)
    data = images()
    trainer.fit(in_float64(data), data, epochs=2, batch_size=16, checkpoint=tmp_path / "run")
    floats = [t for t in trainer.cascade.state_dict().values() if t.is_floating_point()]
    assert {t.dtype for t in floats} == {torch.float64}
    states = [v for o in trainer.optimizers.values() for s in o.state.values() for v in s.values()]
    assert {v.dtype for v in states if isinstance(v, torch.Tensor) and v.ndim} <= {torch.float64}
    assert torch.equal(trainer.predict(data.x.double()), trainer.predict(data.x))
    assert torch.get_default_dtype() == torch.float32
    trainer.save(tmp_path / "weights")
    loaded = kind(make_cnn(batch_norm=True, seed=1).double(), progress=False)
    loaded.load(tmp_path / "weights", (1, 8, 8))
    assert loaded.evaluate(data) == trainer.evaluate(data)
    x, y = data.batch(torch.arange(16))
    trainer.step(x.double(), y)
    with pytest.raises(BadValue, match=r"x is torch\.float32, the network torch\.float64: convert x\.to"):
        trainer.step(x, y)


def test_an_autoencoder_in_float64() -> None:
    trainer = Autoencoder(autoencoder((1, 8, 8), (4, 4)).double(), progress=False)
    trainer.fit(images(), epochs=1, batch_size=16)
    assert trainer.evaluate(images())["mse"] > 0


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_data_are_converted_to_the_dtype_of_the_network(kind: type[Trainer], dtype: torch.dtype) -> None:
    data, runs = vectors(), []
    x = data.x.to(dtype)
    for samples in (x, x.float()):
        trainer = kind(make_mlp(), progress=False)
        rows = trainer.fit((samples, data.y), epochs=1).rows
        runs.append((rows, trainer.predict(samples).tolist()))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_in_half_precision_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(
        BadValue, match=rf"parameters are {dtype}, which is too narrow .*net\.float\(\).*precision"
    ):
        MonoForward(make_mlp().to(dtype), progress=False)


def test_networks_with_two_dtypes_and_without_values_are_refused() -> None:
    net = make_mlp()
    net[1].double()
    with pytest.raises(BadValue, match=r"are torch\.float32 and torch\.float64: expected one dtype"):
        MonoForward(net, progress=False)
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(BadValue, match="on device 'meta', without values"):
        Local(empty, progress=False)
    with pytest.raises(BadValue, match=r"precision = 'bfloat16' with a network of torch\.float64"):
        MonoForward(make_mlp().double(), precision="bfloat16", progress=False)


def test_values_that_overflow_in_float32_are_refused() -> None:
    data = vectors()
    x = data.x.double()
    x[5, 3] = 1e300
    with pytest.raises(BadValue, match="NaN or infinite values in 1 of 40 samples, the first is number 5"):
        MonoForward(make_mlp(), progress=False).fit((x, data.y), epochs=1)
    MonoForward(make_mlp().double(), progress=False).build((12,), CLASSES)


@pytest.mark.parametrize("device", ["mps", "xpu", "hpu", "meta", "privateuseone"])
def test_a_missing_device_is_refused_in_one_sentence(device: Any) -> None:
    if device in ("mps", "xpu") and getattr(torch, device).is_available():
        pytest.skip("this machine has one")
    with pytest.raises(BadValue, match=rf"^device = '{device}': [^\n]*; try 'cpu'$"):
        find_device(device)
