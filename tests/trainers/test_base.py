"""The methods of a trainer: build, step, evaluate, predict, save, load, clone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bpfree
from bpfree import (
    Backprop,
    BadValue,
    Checkpoint,
    DeepSupervision,
    Diverged,
    ForwardForward,
    History,
    Hooks,
    Local,
    MFJoint,
    MonoForward,
    RandomFeatures,
    Trainer,
    _seeds,
    localize,
)
from bpfree.trainers import RunContext
from tests.helpers import CLASSES, PLAIN_TRAINERS, easy, images, make_cnn, make_mlp, snapshot, vectors

every = pytest.mark.parametrize("kind", PLAIN_TRAINERS.values(), ids=PLAIN_TRAINERS.keys())


def unchanged(module: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    after = module.state_dict()
    return after.keys() == before.keys() and all(torch.equal(after[n], t) for n, t in before.items())


# ---- building --------------------------------------------------------------------------------------------


def test_a_trainer_must_be_built_before_it_is_used() -> None:
    trainer = MonoForward(make_mlp(), progress=False)
    for use in (lambda: trainer.model, lambda: trainer.predict(torch.zeros(2, 12)), lambda: trainer.cascade):
        with pytest.raises(BadValue, match="call fit, load or build first"):
            use()


def test_shapes_and_classes_that_do_not_fit_are_refused() -> None:
    trainer = MonoForward(make_mlp(), progress=False)
    with pytest.raises(BadValue, match=r"does not accept samples of shape \(13,\)"):
        trainer.build((13,), CLASSES)
    trainer.build((12,), CLASSES)
    with pytest.raises(BadValue, match="built for 3 classes, the data have 5"):
        trainer.build((12,), 5)


def test_building_twice_changes_neither_weights_nor_the_global_generator() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    trainer = MonoForward(make_mlp(), progress=False)
    torch.manual_seed(3)
    trainer.build((12,), CLASSES)
    before = snapshot(trainer.cascade)
    trainer.build((12,), CLASSES)
    assert unchanged(trainer.cascade, before)
    assert torch.equal(torch.rand(4), expected)


def test_heads_depend_on_the_seed_and_the_network_keeps_its_weights() -> None:
    net, same, other = (make_mlp() for _ in range(3))
    weights = snapshot(net)
    heads = []
    for module, seed in ((net, 0), (same, 0), (other, 1)):
        trainer = MonoForward(module, seed=seed, progress=False)
        trainer.build((12,), CLASSES)
        heads += trainer.cascade.losses[0].parameters()
    assert unchanged(net, weights)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize("kind", [Backprop, DeepSupervision, MFJoint, ForwardForward, RandomFeatures])
def test_trainers_that_cut_the_network_refuse_a_cascade(kind: type[Trainer]) -> None:
    with pytest.raises(BadValue, match=f"{kind.id} cuts the network itself"):
        kind(localize(make_mlp()), progress=False).build((12,), CLASSES)


@pytest.mark.parametrize("kind", [MonoForward, Local])
def test_a_given_cascade_is_trained_in_place(kind: type[Trainer]) -> None:
    cascade = localize(make_mlp(16, 16, 16), cut=2)
    trainer = kind(cascade, lr=0.02, progress=False)
    trainer.fit(easy(), epochs=8, batch_size=16)
    assert trainer.cascade is cascade
    assert trainer.evaluate(easy(seed=1))["accuracy"] > 0.9


# ---- the caller's generators -----------------------------------------------------------------------------


@every
def test_training_restores_the_global_generator(kind: type[Trainer]) -> None:
    trainer = kind(make_mlp(dropout=0.3), progress=False)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    trainer.build((12,), CLASSES)
    trainer.step(*vectors(16).batch(torch.arange(16)))
    assert torch.equal(torch.get_rng_state(), before)
    trainer.fit(vectors(), vectors(), epochs=1, batch_size=16)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_interrupted_run_restores_the_global_generator() -> None:
    def stop(done: int, total: int, row: Any) -> None:
        raise KeyboardInterrupt

    trainer = MonoForward(make_mlp(), progress=False)
    before = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(vectors(), epochs=2, hooks=Hooks(progress=stop))
    assert torch.equal(torch.get_rng_state(), before)


def test_networks_created_after_two_runs_differ() -> None:
    nets = []
    for _ in range(2):
        MonoForward(make_mlp_unseeded(), progress=False).fit(vectors(), epochs=1)
        nets.append(make_mlp_unseeded())
    assert not torch.equal(nets[0][1].weight, nets[1][1].weight)


def make_mlp_unseeded() -> nn.Sequential:
    return bpfree.nn.mlp([12, 16, 16, CLASSES])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every
def test_training_on_a_gpu_restores_its_generator(kind: type[Trainer]) -> None:
    trainer = kind(make_mlp(dropout=0.3), device="cuda", progress=False)
    torch.cuda.manual_seed(3)
    before = torch.cuda.get_rng_state()
    trainer.fit(vectors(), vectors(), epochs=1, batch_size=16)
    assert torch.equal(torch.cuda.get_rng_state(), before)


@every
def test_requires_grad_is_restored_after_training(kind: type[Trainer]) -> None:
    net = make_cnn(batch_norm=True)
    frozen = net[0].bias
    frozen.requires_grad_(False)
    kind(net, progress=False).fit(images(), epochs=1, batch_size=16)
    # The parameters that require a gradient are the same as before.
    assert [name for name, p in net.named_parameters() if not p.requires_grad] == ["0.bias"]
    assert all(p.grad is None for p in net.parameters())


# ---- using -----------------------------------------------------------------------------------------------


@every
def test_predictions_agree_with_evaluation_and_with_the_model(kind: type[Trainer]) -> None:
    trainer = kind(make_mlp(16, 16, 16), progress=False)
    trainer.fit(easy(), epochs=2, batch_size=16)
    data = easy(seed=1)
    result = trainer.evaluate(data)
    predicted = trainer.predict(data.x)
    assert result["accuracy"] == pytest.approx((predicted == data.y).float().mean().item())
    assert result["accuracy"] == result["readouts"][trainer.cascade.headline]
    with torch.no_grad():
        assert torch.equal(trainer.model(data.x).argmax(1), predicted)
        assert torch.equal(trainer.cascade(data.x).argmax(1), predicted)


@every
def test_predictions_do_not_depend_on_the_batch(kind: type[Trainer]) -> None:
    trainer = kind(make_cnn(batch_norm=True), progress=False)
    trainer.fit(images(), epochs=1, batch_size=16)
    x = images(seed=1).x
    singly = torch.cat([trainer.predict(x[i : i + 1]) for i in range(12)])
    assert torch.equal(singly, trainer.predict(x)[:12])


@every
def test_evaluation_changes_no_state(kind: type[Trainer]) -> None:
    trainer = kind(make_cnn(batch_norm=True), progress=False)
    trainer.fit(images(), epochs=1, batch_size=16)
    for training in (True, False):
        trainer.cascade.train(training)
        before, rng = snapshot(trainer.cascade), torch.get_rng_state()
        trainer.evaluate(images(seed=1))
        trainer.predict(images(seed=1).x)
        assert unchanged(trainer.cascade, before)
        assert trainer.cascade.training == training
        assert torch.equal(torch.get_rng_state(), rng)
        assert all(p.grad is None for p in trainer.cascade.parameters())


@pytest.mark.parametrize(
    ("kind", "blocks"), [(MonoForward, 3), (ForwardForward, 3), (Backprop, 1), (DeepSupervision, 4)]
)
def test_each_block_is_evaluated_separately(kind: type[Trainer], blocks: int) -> None:
    trainer = kind(make_mlp(16, 16, 16), progress=False)
    trainer.fit(easy(), epochs=1)
    assert len(trainer.evaluate(easy())["blocks"]) == blocks


@pytest.mark.parametrize("kind", [MonoForward, Backprop])
def test_scores_that_are_not_finite_raise_an_error(kind: type[Trainer]) -> None:
    trainer = kind(make_mlp(), progress=False)
    trainer.build((12,), CLASSES)
    with torch.no_grad():
        next(trainer.net.parameters())[0] = torch.nan
    with pytest.raises(Diverged):
        trainer.evaluate(vectors())


@every
def test_a_single_step_is_the_first_step_of_a_fit(kind: type[Trainer]) -> None:
    # The epoch has one batch, with the samples in the order of the first epoch.
    one, other = (kind(make_mlp(), progress=False) for _ in range(2))
    data = vectors(16)
    one.fit(data, epochs=1, batch_size=16)
    order = torch.randperm(16, generator=_seeds.generator(torch.device("cpu"), 0, "order", 0))
    other.build((12,), CLASSES)
    other.step(*data.batch(order))
    assert unchanged(other.cascade, snapshot(one.cascade))


# ---- hooks of subclasses ----------------------------------------------------------------------------------


def test_prepare_is_called_once_with_the_data_and_options_of_the_run(tmp_path: Path) -> None:
    runs: list[RunContext] = []

    class Prepared(MonoForward):
        def prepare(self, run: RunContext) -> History:
            runs.append(run)
            return History([{"stage": "before", "step": 3}])

    trainer, train, validation = Prepared(make_mlp(), progress=False), vectors(), vectors(seed=1)
    history = trainer.fit(train, validation, epochs=1, batch_size=8, checkpoint=tmp_path / "run")
    assert [row["step"] for row in history.rows] == [3, 3 + 5]
    (run,) = runs
    assert torch.equal(run.train.x, train.x)
    assert run.validation is not None
    assert torch.equal(run.validation.x, validation.x)
    assert (run.fit.epochs, run.fit.batch_size) == (1, 8)
    assert run.checkpoint == Checkpoint(tmp_path / "run")
    # A run that continues from its checkpoint is not prepared again.
    assert (
        Prepared(make_mlp(), progress=False)
        .fit(train, validation, epochs=1, batch_size=8, checkpoint=tmp_path / "run")
        .resumed
    )
    assert len(runs) == 1


def test_prepare_with_the_arguments_of_the_first_release_is_refused() -> None:
    with pytest.raises(
        BadValue, match=r"Old\.prepare.*called with one argument now; define prepare\(self, run\)"
    ):

        class Old(MonoForward):
            def prepare(self, train: Any, validation: Any, fit: Any, checkpoint: Any, hooks: Any) -> History:
                return History()


# ---- saving and loading ----------------------------------------------------------------------------------


@every
def test_steps_without_a_number_count_from_the_last_one(kind: type[Trainer]) -> None:
    x, y = vectors(16).batch(torch.arange(16))
    trainer, numbered = (kind(make_mlp(dropout=0.5), progress=False) for _ in range(2))
    for one in (trainer, numbered):
        one.build((12,), CLASSES)
    for number in (0, 1, 2, 7, 8):
        losses = trainer.step(x, y, 7 if number == 7 else None)
        assert torch.equal(torch.stack(losses), torch.stack(numbered.step(x, y, number)))
    assert unchanged(trainer.cascade, snapshot(numbered.cascade))


def test_dropout_differs_from_step_to_step() -> None:
    trainer = MonoForward(make_mlp(dropout=0.5), lr=1e-12, optimizer="sgd", progress=False)
    trainer.build((12,), CLASSES)
    x, y = vectors(16).batch(torch.arange(16))
    assert len({trainer.step(x, y)[0].item() for _ in range(4)}) == 4


@every
def test_a_saved_file_is_loaded_into_a_new_trainer(kind: type[Trainer], tmp_path: Path) -> None:
    trainer = kind(make_cnn(batch_norm=True), progress=False)
    trainer.fit(images(), epochs=1, batch_size=16)
    trainer.save(tmp_path / "deep" / "weights.safetensors")
    fresh = kind(make_cnn(seed=5, batch_norm=True), seed=5, progress=False)
    fresh.load(tmp_path / "deep" / "weights.safetensors", (1, 8, 8))
    assert unchanged(fresh.cascade, snapshot(trainer.cascade))
    assert fresh.n_classes == CLASSES
    assert fresh.evaluate(images()) == trainer.evaluate(images())


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    trainer = MonoForward(make_mlp(), progress=False)
    trainer.build((12,), CLASSES)
    trainer.save(path)
    with pytest.raises(BadValue, match="saved by 'mono_forward', not by 'backprop'"):
        Backprop(make_mlp(), progress=False).load(path, (12,))
    with pytest.raises(BadValue, match="pass sample_shape"):
        MonoForward(make_mlp(), progress=False).load(path)
    with pytest.raises(BadValue, match=r"contains another network: .*blocks\.0\.body\.1\.bias"):
        MonoForward(make_mlp(20, 16), progress=False).load(path, (12,))
    with pytest.raises(BadValue, match=r"another network: .*blocks\.2"):
        MonoForward(make_mlp(16, 16, 16), progress=False).load(path, (12,))
    with pytest.raises(BadValue, match="nowhere: no such file"):
        trainer.load(tmp_path / "nowhere")
    (tmp_path / "junk").write_bytes(b"not a state file")
    with pytest.raises(BadValue, match="junk: not a bpfree state file"):
        trainer.load(tmp_path / "junk")


# ---- copies ----------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("settings", [{}, {"compile": "aot_eager"}], ids=str)
def test_a_clone_is_independent(kind: type[Trainer], settings: Any) -> None:
    trainer = kind(make_mlp(), progress=False, **settings)
    trainer.build((12,), CLASSES)
    x, y = vectors(16).batch(torch.arange(16))
    trainer.step(x, y, 0)
    before = snapshot(trainer.cascade)
    clone = trainer.clone()
    clone.step(x, y, 1)
    assert unchanged(trainer.cascade, before)
    assert all(p.grad is None for p in trainer.cascade.parameters())
    assert not unchanged(clone.cascade, before)
    # Momentum is copied too: both take the same second step.
    trainer.step(x, y, 1)
    assert unchanged(trainer.cascade, snapshot(clone.cascade))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every
def test_it_trains_and_predicts_on_a_gpu(kind: type[Trainer]) -> None:
    trainer = kind(make_mlp(), device="cuda", progress=False)
    trainer.fit(easy(), easy(seed=1), epochs=3, batch_size=16)
    assert {p.device.type for p in trainer.cascade.state_dict().values()} == {"cuda"}
    on_gpu = trainer.predict(easy(seed=1).x.cuda())
    assert torch.equal(on_gpu, trainer.predict(easy(seed=1).x))
