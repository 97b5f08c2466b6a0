"""All samples are scaled as the training data were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bpfree
from bpfree import BadValue, MonoForward, Trainer
from bpfree.data import TensorData
from bpfree.engine import checkpoint as ckpt
from bpfree.testing import assert_locality
from tests.helpers import CLASSES, PLAIN_TRAINERS, images, make_cnn, make_mlp, vectors

MEAN, STD = (0.4,), (0.2,)


def pictures(n: int = 40, seed: int = 0, **options: Any) -> TensorData:
    """uint8 images of three classes, dark, gray and bright."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(CLASSES, (n,), generator=generator)
    noise = torch.randint(60, (n, 1, 8, 8), generator=generator)
    return TensorData((noise + 90 * y[:, None, None, None]).to(torch.uint8), y, CLASSES, **options)


def table(n: int = 40, seed: int = 0, **options: Any) -> TensorData:
    """Features of very different sizes."""
    data = vectors(n, seed=seed)
    return TensorData((data.x + 3) * torch.logspace(-2, 2, 12), data.y, CLASSES, **options)


def statistics(x: Tensor) -> dict[str, tuple[float, ...]]:
    return {"mean": tuple(x.mean(0).tolist()), "std": tuple(x.std(0).tolist())}


def by_hand(trainer: Trainer, x: Tensor, mean: Any, std: Any) -> Tensor:
    """The predicted classes of float samples, standardized without the trainer."""
    shape = (-1, *[1] * (x.ndim - 2))
    with torch.no_grad():
        scores = trainer.cascade.eval()((x - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape))
    return scores.argmax(1)


@pytest.mark.parametrize("kind", PLAIN_TRAINERS.values(), ids=PLAIN_TRAINERS.keys())
def test_predictions_are_the_same_for_all_types_of_samples(kind: type[Trainer]) -> None:
    trainer = kind(make_cnn(), progress=False)
    train, test = (pictures(seed=s, mean=MEAN, std=STD) for s in (0, 1))
    trainer.fit(train, (test.x, test.y), epochs=2, batch_size=16)
    expected = by_hand(trainer, test.x.float() / 255, MEAN, STD)
    for x in (test.x, test.x.numpy(), test, test.x.float() / 255, test.x.double() / 255):
        assert torch.equal(trainer.predict(x), expected)
    accuracy = (expected == test.y).float().mean().item()
    for data in (test, (test.x, test.y), (test.x.numpy(), test.y.numpy()), TensorData(test.x, test.y, 3)):
        assert trainer.evaluate(data)["accuracy"] == pytest.approx(accuracy)


def test_validation_data_are_standardized_by_the_training_statistics() -> None:
    train, test = pictures(mean=MEAN, std=STD), pictures(seed=1)
    curves = []
    for validation in ((test.x, test.y), test, replace(test, mean=MEAN, std=STD)):
        history = MonoForward(make_cnn(), progress=False).fit(train, validation, epochs=2)
        curves.append([row["validation"] for row in history.rows])
    assert curves[0] == curves[1] == curves[2]


def test_a_table_is_standardized_by_the_training_statistics() -> None:
    stats = statistics(table().x)
    trainer = MonoForward(make_mlp(), progress=False)
    trainer.fit(table(**stats), epochs=2)
    assert torch.equal(trainer.predict(table(seed=1).x), by_hand(trainer, table(seed=1).x, **stats))


def test_the_scaling_is_saved_and_loaded(tmp_path: Path) -> None:
    trainer, test = MonoForward(make_cnn(), progress=False), pictures(seed=1)
    trainer.fit(pictures(mean=MEAN, std=STD), epochs=2)
    trainer.save(tmp_path / "weights")
    loaded = MonoForward(make_cnn(seed=1), progress=False)
    loaded.load(tmp_path / "weights", (1, 8, 8))
    assert loaded.scaling == trainer.scaling
    assert torch.equal(loaded.predict(test.x), trainer.predict(test.x))
    with pytest.raises(BadValue, match=r"mean \(0\.5\) and std \(0\.2\).*mean \(0\.4\) and std \(0\.2\)"):
        loaded.evaluate(replace(test, mean=(0.5,), std=STD))


def test_a_file_without_a_scaling_is_loaded(tmp_path: Path) -> None:
    trainer, test = MonoForward(make_cnn(), progress=False), pictures(seed=1, mean=MEAN, std=STD)
    trainer.fit(pictures(mean=MEAN, std=STD), epochs=1)
    trainer.save(tmp_path / "weights")
    tensors, state = ckpt.read(tmp_path / "weights", torch.device("cpu"))
    del state["scaling"]
    ckpt.write(tmp_path / "old", tensors, state)
    loaded = MonoForward(make_cnn(seed=1), progress=False)
    loaded.load(tmp_path / "old", (1, 8, 8))
    assert loaded.scaling is None
    assert loaded.evaluate(test) == trainer.evaluate(test)


def test_other_statistics_are_refused_with_both_values() -> None:
    trainer = MonoForward(make_cnn(), progress=False)
    trainer.fit(pictures(mean=MEAN, std=STD), epochs=1)
    other = pictures(mean=(0.1,), std=(0.3,))
    for use in (
        lambda: trainer.evaluate(other),
        lambda: trainer.predict(other),
        lambda: trainer.fit(other, epochs=1),
        lambda: trainer.fit(pictures(), other, epochs=1),
        lambda: MonoForward(make_cnn(), progress=False).fit(pictures(mean=MEAN, std=STD), other, epochs=1),
    ):
        with pytest.raises(
            BadValue, match=r"mean \(0\.1\) and std \(0\.3\), but .* \(0\.4\) and std \(0\.2\)"
        ):
            use()
    raw = MonoForward(make_cnn(), progress=False)
    raw.fit(pictures(), epochs=1)
    with pytest.raises(BadValue, match=r"mean \(0\.1\).* trained on data without standardization"):
        raw.evaluate(other)


def test_a_second_run_on_raw_samples_keeps_the_statistics() -> None:
    runs = []
    for second in (pictures(), pictures(mean=MEAN, std=STD)):
        trainer = MonoForward(make_cnn(), progress=False)
        trainer.fit(pictures(mean=MEAN, std=STD), epochs=1)
        runs.append(trainer.fit(second, epochs=1).rows)
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    ("train", "samples", "message"),
    [
        (pictures(), pictures().x.float(), r"values up to 2\d\d, but the model was trained on uint8 images"),
        (
            images(),
            pictures().x.float(),
            r"values up to 2\d\d, but the model was trained on images in 0\.\.1",
        ),
        (replace(pictures(), x=pictures().x.float()), pictures().x, "uint8, which is divided by 255, but"),
    ],
    ids=["uint8, 0..255", "0..1, 0..255", "0..255, uint8"],
)
def test_pixels_of_another_range_are_refused(train: TensorData, samples: Tensor, message: str) -> None:
    trainer = MonoForward(make_cnn(), progress=False)
    trainer.fit(train, epochs=1)
    for use in (trainer.predict, lambda x: trainer.evaluate((x, torch.zeros(len(x)).long()))):
        with pytest.raises(BadValue, match=message):
            use(samples)


def test_floats_in_0_to_1_and_their_uint8_images_are_the_same() -> None:
    data = pictures()
    trainer = MonoForward(make_cnn(), progress=False)
    trainer.fit(replace(data, x=data.x.float() / 255), epochs=1)
    assert torch.equal(trainer.predict(data.x), trainer.predict(data.x.float() / 255))


def test_samples_that_are_standardized_already_give_a_warning() -> None:
    stats = statistics(table().x)
    trainer = MonoForward(make_mlp(), progress=False)
    trainer.fit(table(**stats), epochs=1)
    standardized, _ = table(**stats).batch(torch.arange(40))
    with pytest.warns(UserWarning, match="mean 0 and standard deviation 1 already, and is standardized once"):
        trainer.predict(standardized)


def test_a_step_and_the_model_expect_scaled_batches() -> None:
    data = pictures(mean=MEAN, std=STD)
    trainer = MonoForward(make_cnn(), progress=False)
    trainer.fit(data, epochs=1)
    x, y = data.batch(torch.arange(len(data)))
    with torch.no_grad():
        assert torch.equal(trainer.model.eval()(x).argmax(1), trainer.predict(data.x))
    trainer.step(x, y)
    assert_locality(trainer, x, y)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([[0.0] * 12], "samples to predict are a list"),
        (None, "samples to predict are a NoneType"),
        (torch.tensor(1.0), "a single number"),
        (np.array([["a"] * 12]), "x is an array of <U1"),
        (torch.zeros(2, 12).cfloat(), r"torch\.complex64.*view_as_real"),
        (torch.zeros(2, 12).int(), r"x is torch\.int32"),
    ],
)
def test_wrong_samples_to_predict_are_refused(x: Any, message: str) -> None:
    trainer = MonoForward(make_mlp(), progress=False)
    trainer.build((12,), CLASSES)
    with pytest.raises(BadValue, match=message):
        trainer.predict(x)


def test_predictions_of_digits_agree_with_the_evaluation() -> None:
    digits = bpfree.data.load("digits", standardize=True)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    trainer = MonoForward(net, progress=False)
    trainer.fit(digits.train, epochs=5)
    predicted = trainer.predict(digits.test.x)
    accuracy = (predicted == digits.test.y).float().mean()
    assert trainer.evaluate(digits.test)["accuracy"] == pytest.approx(accuracy)
