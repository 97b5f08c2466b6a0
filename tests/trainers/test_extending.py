"""A run goes on for more epochs where nothing in it depends on their number; else it is said why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bpfree import Backprop, BadValue, CascadedForward, Checkpoint, Hooks, MonoForward, Trainer
from bpfree.engine import checkpoint as ckpt
from tests.helpers import PLAIN_TRAINERS, easy, images, make_cnn, make_mlp, snapshot, vectors

CONSTANT = {"lr_schedule": "constant", "schedule": "simultaneous"}


def trained(trainer: Trainer, epochs: int, path: Path | None = None, **options: Any) -> Any:
    options = {"train": easy(), "validation": easy(seed=1), "batch_size": 16} | options
    history = trainer.fit(epochs=epochs, checkpoint=path, **options)
    return history.rows, history.stages, snapshot(trainer.cascade)


def assert_same(found: Any, expected: Any) -> None:
    assert found[:2] == expected[:2]
    assert all(torch.equal(tensor, found[2][name]) for name, tensor in expected[2].items())


@pytest.mark.parametrize("kind", PLAIN_TRAINERS.values(), ids=PLAIN_TRAINERS.keys())
def test_a_finished_run_that_goes_on_has_the_bits_of_a_longer_one(
    kind: type[Trainer], tmp_path: Path
) -> None:
    whole = trained(kind(make_mlp(dropout=0.2), progress=False, **CONSTANT), 5)
    for epochs in (2, 3, 5):
        found = trained(kind(make_mlp(dropout=0.2), progress=False, **CONSTANT), epochs, tmp_path / "run")
    assert_same(found, whole)


@pytest.mark.parametrize("options", [{}, {"restore_best": False}, {"validation": None}, {"patience": 2}],
                         ids=["best", "last", "no validation", "patience"])  # fmt: skip
def test_the_best_of_the_shorter_run_may_be_the_best_of_the_longer(options: Any, tmp_path: Path) -> None:
    # A rate that is too high: the best epoch comes early.
    settings = {"lr": 0.3, "optimizer": "sgd", "progress": False}
    whole = trained(MonoForward(make_mlp(), **settings), 6, **options)
    for epochs in (2, 4, 6):
        found = trained(MonoForward(make_mlp(), **settings), epochs, tmp_path / "run", **options)
    assert_same(found, whole)


def test_a_run_that_was_broken_off_goes_on_for_another_number_of_epochs(tmp_path: Path) -> None:
    def stop(done: int, of: int, row: Any) -> None:
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    whole = trained(MonoForward(make_mlp(), progress=False), 4)
    run = Checkpoint(tmp_path / "run", every_s=0.0)
    with pytest.raises(KeyboardInterrupt):
        trained(MonoForward(make_mlp(), progress=False), 9, run, hooks=Hooks(progress=stop))  # type: ignore[arg-type]
    assert_same(trained(MonoForward(make_mlp(), progress=False), 4, tmp_path / "run"), whole)


@pytest.mark.parametrize(
    ("settings", "epochs", "options", "reason"),
    [
        ({"lr_schedule": "cosine"}, 5, {}, "lr_schedule = 'cosine' depends on the number of epochs"),
        ({"schedule": "greedy"}, 5, {}, "its stages have trained for 3 epochs each"),
        ({}, 2, {}, "3 epochs are done"),
        ({}, 5, {"eval_every": 2}, "it was evaluated after epoch 3, which is not a multiple of 2"),
    ],
    ids=["schedule", "stages", "fewer", "evaluation"],
)
def test_what_depends_on_the_number_of_epochs_is_named(
    settings: Any, epochs: int, options: Any, reason: str, tmp_path: Path
) -> None:
    trained(MonoForward(make_mlp(), progress=False, **settings), 3, tmp_path / "run", **options)
    with pytest.raises(BadValue, match=rf"fit\.epochs is 3 there and {epochs} here\), and {reason}: remove"):
        trained(MonoForward(make_mlp(), progress=False, **settings), epochs, tmp_path / "run", **options)


def test_each_difference_is_named_with_both_values(tmp_path: Path) -> None:
    path = tmp_path / "run"
    MonoForward(make_mlp(), lr=0.01, progress=False).fit(vectors(), epochs=1, checkpoint=path)

    def message(trainer: Trainer, data: Any = None, **options: Any) -> str:
        with pytest.raises(BadValue, match="belongs to another run") as told:
            trainer.fit(data or vectors(), checkpoint=path, **{"epochs": 1, **options})
        return str(told.value).partition("(")[2].rpartition(")")[0]

    def mf(**settings: Any) -> Trainer:
        return MonoForward(make_mlp(), progress=False, **{"lr": 0.01, **settings})

    assert message(mf(lr=0.5)) == "lr is 0.01 there and 0.5 here"
    assert message(mf(seed=4), batch_size=8, epochs=2) == (
        "seed is 0 there and 4 here; fit.epochs is 1 there and 2 here; fit.batch_size is 128 there and 8 here"
    )
    assert message(mf(), vectors(seed=1)) == "the training samples or labels are different"
    assert message(mf(), vectors(41)).startswith(
        "train.samples is 40 there and 41 here; the training samples"
    )
    assert "the network is a different one" in message(MonoForward(make_mlp(8), lr=0.01, progress=False))
    assert "trainer is 'mono_forward' there and 'backprop' here" in message(
        Backprop(make_mlp(), lr=0.01, progress=False)
    )
    assert "validation.samples is None there and 40 here" in message(mf(), validation=vectors(seed=1))
    replaced = mf()
    replaced.build((12,), 3)
    replaced.cascade.units[0].optimizer = torch.optim.SGD(replaced.cascade.units[0].parameters(), 0.1)
    assert message(replaced).startswith("optimizers.block0 is None there and \"SGD [{'lr': 0.1")
    changed = mf()
    changed.build((12,), 3)
    changed.optimizers["block0"].param_groups[0]["lr"] = 0.02
    assert message(changed).startswith("optimizers.block0 is None there and \"Adam [{'lr': 0.02")


def test_a_learning_rate_that_was_changed_by_hand_is_part_of_the_run(tmp_path: Path) -> None:
    def run(lr: float) -> int:
        trainer = MonoForward(make_mlp(), lr=0.01, progress=False)
        trainer.build((12,), 3)
        trainer.optimizers["block0"].param_groups[0]["lr"] = lr
        return trainer.fit(vectors(), epochs=1, checkpoint=tmp_path / "run").resumed

    assert [run(0.02), run(0.02)] == [0, 1]
    with pytest.raises(BadValue, match=r"optimizers\.block0 is .*0\.02.* there and .*0\.03.* here"):
        run(0.03)


def test_a_run_with_other_frozen_layers_is_another_run(tmp_path: Path) -> None:
    def run(name: str, freeze: bool) -> int:
        net = make_mlp()
        next(net.parameters()).requires_grad_(not freeze)
        return MonoForward(net, progress=False).fit(vectors(), epochs=1, checkpoint=tmp_path / name).resumed

    assert run("free", False) == 0
    frozen = r"frozen parameters is None there and \['blocks.0.body.1.weight'\] here"
    with pytest.raises(BadValue, match=frozen):
        run("free", True)
    assert [run("frozen", True), run("frozen", True)] == [0, 1]
    with pytest.raises(BadValue, match="frozen parameters"):
        run("frozen", False)


def test_a_checkpoint_that_does_not_say_what_it_is_of_is_refused_too(tmp_path: Path) -> None:
    path = tmp_path / "run"
    MonoForward(make_mlp(), progress=False).fit(vectors(), epochs=1, checkpoint=path)
    tensors, state = ckpt.read(path, torch.device("cpu"))
    del state["identity"]
    ckpt.write(path, tensors, state | {"fingerprint": "old"})
    with pytest.raises(BadValue, match=r"belongs to another run \(other settings, seed or data\): remove it"):
        MonoForward(make_mlp(), progress=False).fit(vectors(), epochs=1, checkpoint=path)


def test_blocks_that_were_trained_before_stay_as_they_were(tmp_path: Path) -> None:
    def cafo() -> Trainer:
        return CascadedForward(make_cnn(), blocks="dfa", block_epochs=2, progress=False, **CONSTANT)

    data = {"train": images(), "validation": images(seed=1)}
    whole = trained(cafo(), 4, **data)
    for epochs in (2, 4):
        found = trained(cafo(), epochs, tmp_path / "run", **data)
    assert_same(found, whole)
