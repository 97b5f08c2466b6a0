"""The training loop: stages, early stopping, histories, checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from bpfree import (
    Backprop,
    BadValue,
    Checkpoint,
    CounterCurrentLearning,
    Diverged,
    ForwardForward,
    Hooks,
    MonoForward,
    RandomFeatures,
    Trainer,
)
from bpfree.data import TensorData
from bpfree.engine import checkpoint as ckpt
from bpfree.engine.evaluation import Evaluator
from bpfree.engine.feed import Feed
from tests.helpers import CLASSES, easy, make_mlp, snapshot, vectors


def mf(**settings: Any) -> Trainer:
    return MonoForward(make_mlp(), progress=False, **settings)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes validation accuracies follow a script; the weights at each evaluation are recorded."""

    def script(*values: float) -> list[dict[str, torch.Tensor]]:
        weights: list[dict[str, torch.Tensor]] = []

        def evaluate(self: Evaluator, metric: Any, readouts: Any, n_blocks: Any = None) -> dict[str, float]:
            weights.append(snapshot(self.cascade))
            return dict.fromkeys(readouts, values[len(weights) - 1])

        monkeypatch.setattr(Evaluator, "evaluate", evaluate)
        return weights

    return script


# ---- early stopping --------------------------------------------------------------------------------------


def test_a_stage_stops_when_it_is_stale_and_ends_with_its_best_weights(scripted: Any) -> None:
    weights = scripted(0.2, 0.1, 0.5, 0.4, 0.5, 0.9, 0.9)
    trainer = mf()
    history = trainer.fit(vectors(), vectors(), epochs=7, patience=2)
    # The fifth evaluation is the second in a row that is not better than 0.5; earlier ones do not count.
    assert history.stages == [
        {"name": "all blocks", "epochs": 5, "stopped_early": True, "best_epoch": 3, "best": 0.5}
    ]
    assert len(history.rows) == 5
    for name, tensor in trainer.cascade.state_dict().items():
        assert torch.equal(tensor, weights[2][name])
        assert not tensor.dtype.is_floating_point or not torch.equal(tensor, weights[4][name])


def test_the_last_weights_stay_without_restore_best(scripted: Any) -> None:
    weights = scripted(0.5, 0.4, 0.3)
    trainer = mf()
    history = trainer.fit(vectors(), vectors(), epochs=3, restore_best=False)
    assert history.stages[0]["best_epoch"] == 1
    assert all(torch.equal(t, weights[2][name]) for name, t in trainer.cascade.state_dict().items())


def test_a_gain_of_less_than_min_delta_is_none(scripted: Any) -> None:
    scripted(0.50, 0.51, 0.515, 0.53, 0.531)
    history = mf().fit(vectors(), vectors(), epochs=5, min_delta=0.012)
    assert (history.stages[0]["best_epoch"], history.stages[0]["best"]) == (4, 0.53)


def test_evaluations_may_be_rarer_but_the_last_epoch_has_one(scripted: Any) -> None:
    scripted(0.1, 0.2, 0.3)
    history = mf().fit(vectors(), vectors(), epochs=5, eval_every=2)
    assert ["validation" in row for row in history.rows] == [False, True, False, True, True]
    assert history.curve("last") == [(2, 0.1), (4, 0.2), (5, 0.3)]


def test_every_stage_of_a_greedy_run_stops_separately(scripted: Any) -> None:
    scripted(0.5, 0.4, 0.6, 0.7, 0.6)
    history = mf(schedule="greedy").fit(vectors(), vectors(), epochs=4, patience=1)
    stages = [(s["name"], s["epochs"], s["best_epoch"], s["stopped_early"]) for s in history.stages]
    assert stages == [("block 1", 2, 1, True), ("block 2", 3, 2, True)]


def test_patience_needs_validation_data() -> None:
    with pytest.raises(BadValue, match=r"patience = 3: early stopping needs validation data"):
        mf().fit(vectors(), patience=3)


# ---- the history -----------------------------------------------------------------------------------------


def test_a_row_has_the_losses_and_accuracies_of_every_block() -> None:
    trainer = MonoForward(make_mlp(16, 16, 16), progress=False)
    history = trainer.fit(vectors(), vectors(seed=1), epochs=2, batch_size=16)
    row = history.rows[-1]
    assert (row["stage"], row["epoch"], row["step"], row["lr"]) == ("all blocks", 2, 6, 1e-3)
    assert len(row["loss"]) == 3
    names = ["last", "sum", "sum_probabilities", "block 1", "block 2", "block 3"]
    assert sorted(row["validation"]) == sorted(names)
    assert row["validation"]["block 3"] == row["validation"]["last"]


def test_the_loss_of_a_row_is_the_mean_over_the_steps_before_their_updates() -> None:
    data = vectors(48)
    trainer = mf(lr=1e-9)
    history = trainer.fit(data, epochs=1, batch_size=16)
    # At so small a rate the mean over batches is the loss over all data.
    rows, expected = data.x, []
    with torch.no_grad():
        for block in trainer.cascade.units:
            rows = block(rows)
            expected.append(block.loss(rows, data.y).item())
    assert history.rows[0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_steps_are_counted_through_all_stages_and_short_batches_count() -> None:
    history = mf(schedule="greedy").fit(vectors(40), epochs=2, batch_size=16)
    assert [row["step"] for row in history.rows] == [3, 6, 9, 12]
    assert [row["stage"] for row in history.rows] == ["block 1", "block 1", "block 2", "block 2"]
    assert [len(row["loss"]) for row in history.rows] == [1, 1, 1, 1]


def test_every_sample_is_shown_once_an_epoch_in_a_new_order(monkeypatch: pytest.MonkeyPatch) -> None:
    data, shown = vectors(40), []
    batch = TensorData.batch

    def noting(self: TensorData, indices: torch.Tensor, generator: Any = None) -> Any:
        shown.extend(indices.tolist())
        return batch(self, indices, generator)

    monkeypatch.setattr(TensorData, "batch", noting)
    mf().fit(data, epochs=2, batch_size=16)
    first, second = shown[:40], shown[40:]
    assert sorted(first) == sorted(second) == list(range(40))
    assert first != second
    assert first != sorted(first)


def test_forward_forward_reports_blocks_and_the_loss_of_its_classifier() -> None:
    history = ForwardForward(make_mlp(), progress=False).fit(vectors(), vectors(), epochs=1)
    assert len(history.rows[0]["loss"]) == 3
    assert set(history.rows[0]["validation"]) == {"classifier", "block 1", "block 2"}


# ---- what is alive ---------------------------------------------------------------------------------------


def test_a_greedy_run_frees_the_optimizers_of_frozen_blocks() -> None:
    alive: list[list[bool]] = []
    trainer = MonoForward(make_mlp(16, 16, 16), schedule="greedy", progress=False)

    def record(done: int, of: int, row: Any) -> None:
        alive.append([bool(b.optimizer and b.optimizer.state) for b in trainer.cascade.units])

    trainer.fit(vectors(), epochs=1, hooks=Hooks(progress=record))
    # Only the block that trains has moments.
    assert alive == [[True, False, False], [False, True, False], [False, False, True]]
    assert not any(optimizer.state for optimizer in trainer.optimizers.values())


@pytest.mark.parametrize("schedule", ["simultaneous", "greedy"])
@pytest.mark.parametrize("kind", [MonoForward, ForwardForward])
def test_after_a_run_blocks_can_be_stepped_by_hand_and_trained_again(
    kind: type[Trainer], schedule: str
) -> None:
    trainer = kind(make_mlp(), schedule=schedule, lr_schedule="cosine", lr=0.02, progress=False)
    first = trainer.fit(easy(), epochs=4, batch_size=16)
    before = snapshot(trainer.net)
    trainer.step(*easy(16).batch(torch.arange(16)))
    moved = [not torch.equal(p, before[name]) for name, p in trainer.net.named_parameters()]
    # Forward-Forward leaves the net's output layer alone.
    assert moved == [True] * 4 + [kind is MonoForward] * 2
    assert {group["lr"] for o in trainer.optimizers.values() for group in o.param_groups} <= {0.02, 0.01}
    again = trainer.fit(easy(), epochs=4, batch_size=16)
    assert [row["stage"] for row in again.rows] == [row["stage"] for row in first.rows]
    assert all(
        after["loss"][0] < row["loss"][0] for row, after in zip(first.rows[::4], again.rows[::4], strict=True)
    )


@pytest.mark.parametrize("kind", [MonoForward, RandomFeatures, ForwardForward])
def test_the_best_weights_are_those_that_a_stage_changes(kind: type[Trainer], tmp_path: Path) -> None:
    saved: list[set[str]] = []
    trainer = kind(make_mlp(16, 16, 16), schedule="greedy", progress=False)

    def record(done: int, of: int, row: Any) -> None:
        if row["epoch"] < 2:
            return  # the file was written before the first evaluation
        tensors, _ = ckpt.read(tmp_path / "run", torch.device("cpu"))
        saved.append({".".join(name.split(".")[:3]) for name in ckpt.under("best", tensors)})

    run = Checkpoint(tmp_path / "run", every_s=0.0)
    trainer.fit(vectors(), vectors(seed=1), epochs=2, checkpoint=run, hooks=Hooks(progress=record))
    part = {RandomFeatures: {"loss"}, MonoForward: {"body", "loss"}, ForwardForward: {"body", "loss"}}[kind]
    trained = [{f"blocks.{k}.{name}" for name in part} for k in range(3)]
    trained += [{"readouts.classifier.linear"}] if kind is ForwardForward else []
    assert saved == trained


def test_frozen_blocks_do_not_move_and_are_in_evaluation_mode() -> None:
    trainer = MonoForward(make_mlp(16, 16, 16, dropout=0.2), schedule="greedy", progress=False)
    states: list[list[dict[str, torch.Tensor]]] = []
    modes: list[list[bool]] = []

    def record(done: int, of: int, row: Any) -> None:
        states.append([snapshot(block) for block in trainer.cascade.units])

    @contextmanager
    def window(name: str) -> Iterator[None]:
        if name == "train":
            modes.append([block.training for block in trainer.cascade.units])
        yield

    trainer.fit(vectors(), epochs=2, hooks=Hooks(window, record))
    assert modes[0::2] == [[True, False, False], [False, True, False], [False, False, True]]
    for stage in range(3):
        before, after = states[2 * stage], states[2 * stage + 1]
        moved = [any(not torch.equal(a[n], b[n]) for n in a) for a, b in zip(before, after, strict=True)]
        assert moved == [k == stage for k in range(3)]
    assert not trainer.cascade.training


def test_validation_stores_no_autograd_graph_of_the_frozen_blocks() -> None:
    trainer = MonoForward(make_mlp(16, 16, 16), schedule="greedy", progress=False)
    trainer.build((12,), CLASSES)
    packed: list[torch.Tensor] = []
    evaluator = Evaluator(trainer.cascade, vectors(), cache=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
        evaluator.freeze_below(2, ["last"])
    assert packed == []


def test_the_windows_of_a_run_come_in_order() -> None:
    names: list[str] = []

    @contextmanager
    def window(name: str) -> Iterator[None]:
        names.append(f"+{name}")
        yield
        names.append(f"-{name}")

    mf().fit(vectors(), vectors(), epochs=2, hooks=Hooks(window))
    epoch = ["+train", "-train", "+eval", "-eval"]
    assert names == ["+calibrate", "-calibrate", "+cache", "-cache", *epoch, *epoch]


# ---- errors and checkpoints ------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_the_block_the_epoch_and_the_rate() -> None:
    trainer = mf(lr=0.25)
    trainer.build((12,), CLASSES)
    with torch.no_grad():
        trainer.cascade.units[1].body[0].weight.fill_(torch.nan)
    with pytest.raises(Diverged, match=r"all blocks, part 2 of 2, became nan in epoch 1: lower lr \(0\.25\)"):
        trainer.fit(vectors(), epochs=2)


def test_weights_that_diverge_in_the_last_step_are_an_error() -> None:
    # The only loss is finite: it was computed before the step.
    with pytest.raises(Diverged):
        Backprop(make_mlp(), lr=1e38, progress=False).fit(vectors(), vectors(), epochs=1, batch_size=40)


@pytest.mark.parametrize("change", ["seed", "settings", "fit", "data", "trainer"])
def test_a_checkpoint_of_another_run_is_refused(change: str, tmp_path: Path) -> None:
    path = tmp_path / "run.state"
    mf().fit(vectors(), epochs=1, checkpoint=Checkpoint(path, 0.0))
    trainer, data, batch_size = mf(), vectors(), 128
    if change == "seed":
        trainer = mf(seed=1)
    elif change == "settings":
        trainer = mf(lr=0.5)
    elif change == "trainer":
        trainer = Backprop(make_mlp(), progress=False)
    elif change == "fit":
        batch_size = 64
    else:
        data = vectors(41)
    with pytest.raises(BadValue, match=r"run\.state belongs to another run"):
        trainer.fit(data, epochs=1, batch_size=batch_size, checkpoint=path)


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    path = tmp_path / "run.state"
    first = mf()
    history = first.fit(vectors(), epochs=2, checkpoint=Checkpoint(path, 0.0))
    again = mf()
    windows: list[str] = []

    @contextmanager
    def window(name: str) -> Iterator[None]:
        windows.append(name)
        yield

    loaded = again.fit(vectors(), epochs=2, checkpoint=path, hooks=Hooks(window))
    assert "train" not in windows
    assert (loaded.rows, loaded.stages, loaded.resumed) == (history.rows, history.stages, 1)
    assert all(torch.equal(t, first.cascade.state_dict()[n]) for n, t in again.cascade.state_dict().items())


def test_checkpoints_are_written_at_most_every_so_often_and_at_the_end(tmp_path: Path) -> None:
    path, windows = tmp_path / "run.state", list[str]()

    @contextmanager
    def window(name: str) -> Iterator[None]:
        windows.append(name)
        yield

    first = mf()
    run = Checkpoint(path, every_s=3600.0)
    history = first.fit(vectors(), epochs=2, checkpoint=run, hooks=Hooks(window))
    assert windows.count("io") == 1
    # It holds the finished run: nothing is trained again, and nothing is written.
    written, again = path.read_bytes(), mf()
    loaded = again.fit(vectors(), epochs=2, checkpoint=run)
    assert (loaded.rows, loaded.resumed) == (history.rows, 1)
    assert all(torch.equal(t, first.cascade.state_dict()[n]) for n, t in again.cascade.state_dict().items())
    assert path.read_bytes() == written


# ---- optimizers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["trainer", "block", "both"])
def test_an_optimizer_that_was_set_trains_its_block(where: str) -> None:
    trainer = mf(optimizer="sgd", momentum=0.0, lr=0.01)
    trainer.build((12,), CLASSES)
    block = trainer.cascade.units[0]
    optimizer = torch.optim.SGD(block.trainable(), lr=0.5)
    if where != "block":
        trainer.optimizers["block0"] = optimizer
    if where != "trainer":
        block.optimizer = optimizer
    for _ in range(2):
        trainer.fit(vectors(), epochs=1)
        assert trainer.optimizers["block0"] is block.optimizer is optimizer
    # The same rate as a setting moves that block, and no other, by the same steps.
    fast, slow = mf(optimizer="sgd", momentum=0.0, lr=0.5), mf(optimizer="sgd", momentum=0.0, lr=0.01)
    for other in (fast, slow):
        other.fit(vectors(), epochs=1)
    first = mf(optimizer="sgd", momentum=0.0, lr=0.01)
    first.build((12,), CLASSES)
    first.optimizers["block0"] = torch.optim.SGD(first.cascade.units[0].trainable(), lr=0.5, fused=True)
    first.fit(vectors(), epochs=1)
    assert torch.equal(first.cascade.units[0].trainable()[0], fast.cascade.units[0].trainable()[0])
    assert not torch.equal(first.cascade.units[0].trainable()[0], slow.cascade.units[0].trainable()[0])


def test_a_second_run_begins_without_the_momentum_of_the_first() -> None:
    trainer = mf()
    trainer.fit(vectors(), epochs=1)
    before = dict(trainer.optimizers)
    trainer.fit(vectors(), epochs=1)
    assert all(trainer.optimizers[name] is not one for name, one in before.items())
    assert all(
        block.optimizer is trainer.optimizers[f"block{k}"] for k, block in enumerate(trainer.cascade.units)
    )


def test_an_optimizer_of_other_parameters_is_refused() -> None:
    trainer = mf()
    trainer.build((12,), CLASSES)
    trainer.optimizers["block0"] = torch.optim.SGD(trainer.net.parameters(), 0.1)
    with pytest.raises(BadValue, match="set for block0 has parameters that do not belong to block0"):
        trainer.fit(vectors(), epochs=1)
    for k in range(2):
        optimizer = torch.optim.SGD(trainer.cascade.units[0].trainable(), 0.1)
        if k:
            trainer.optimizers["block0"] = optimizer
        else:
            trainer.cascade.units[0].optimizer = optimizer
    with pytest.raises(
        BadValue, match=r"optimizers\['block0'\] and the optimizer of that block were set to different"
    ):
        trainer.fit(vectors(), epochs=1)


def test_the_gradient_hooks_of_a_family_are_registered_with_an_optimizer_that_was_set() -> None:
    runs = []
    for user_set in (False, True):
        trainer = CounterCurrentLearning(make_mlp(), lr=0.5, clip=1e-2, progress=False)
        trainer.build((12,), CLASSES)
        if user_set:
            for name, made in list(trainer.optimizers.items()):
                groups = [{"params": g["params"], "lr": g["lr"]} for g in made.param_groups]
                trainer.optimizers[name] = torch.optim.SGD(groups, 0.5, momentum=0.0, fused=True)
        for _ in range(2):
            trainer.fit(vectors(), epochs=1)
        runs.append(snapshot(trainer.cascade))
    assert all(torch.equal(tensor, runs[1][name]) for name, tensor in runs[0].items())


# ---- that it learns --------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"precision": "bfloat16"}, {"compile": "aot_eager"}], ids=str)
@pytest.mark.parametrize(
    ("kind", "lr"), [(MonoForward, 0.02), (Backprop, 0.02), (ForwardForward, 0.01)], ids=str
)
def test_it_learns_in_bfloat16_and_compiled(kind: type[Trainer], lr: float, settings: Any) -> None:
    trainer = kind(make_mlp(), progress=False, lr=lr, **settings)
    trainer.fit(easy(), epochs=12, batch_size=16)
    assert trainer.evaluate(easy(seed=1))["accuracy"] > 0.9
    assert all(p.dtype == torch.float32 for p in trainer.cascade.parameters())


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_learning_rate_that_was_changed_is_used(schedule: Any) -> None:
    by_setting, by_hand, twice = (
        MonoForward(make_mlp(), lr=lr, optimizer="sgd", momentum=0.0, lr_schedule=schedule, progress=False)
        for lr in (0.3, 0.01, 0.01)
    )
    for trainer in (by_setting, by_hand, twice):
        trainer.build_for(vectors())
    twice.fit(vectors(), epochs=2, batch_size=16)
    twice.cascade.load_state_dict(by_setting.cascade.state_dict())
    for trainer in (by_hand, twice):
        for optimizer in trainer.optimizers.values():
            optimizer.param_groups[0]["lr"] = 0.3
    for trainer in (by_setting, by_hand, twice):
        trainer.fit(vectors(), epochs=2, batch_size=16)
    for other in (by_hand, twice):
        for ours, theirs in zip(by_setting.cascade.parameters(), other.cascade.parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_a_run_that_ends_in_an_error_leaves_the_learning_rate_of_the_settings() -> None:
    trainer = MonoForward(make_mlp(), lr=0.1, lr_schedule="cosine", progress=False)

    def stop(done: int, of: int, row: Any) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.fit(vectors(), epochs=4, hooks=Hooks(progress=stop))
    made = list(trainer.optimizers.values())
    assert all(o.param_groups[0]["lr"] == 0.1 for o in made)
    trainer.fit(vectors(), epochs=1)
    assert not any(o in made for o in trainer.optimizers.values())


# ---- what the trainer provides ---------------------------------------------------------------------------


def test_a_run_uses_the_feed_and_the_evaluator_of_the_trainer() -> None:
    rows: list[int] = []

    class CountingFeed(Feed):
        def rows(self, indices: torch.Tensor, *args: Any) -> Any:
            rows.append(len(indices))
            return super().rows(indices, *args)

    class ConstantEvaluator(Evaluator):
        def evaluate(self, metric: Any, readouts: Any, n_blocks: Any = None) -> dict[str, float]:
            return dict.fromkeys(readouts, 0.25)

    class Own(MonoForward):
        def make_feed(self, train: Any, fit: Any, store: Any) -> Feed:
            return CountingFeed(self.cascade, train, self.seed, fit.batch_size, False, store)

        def make_evaluator(self, data: Any, cache: bool = False, store: Any = None) -> Evaluator:
            return ConstantEvaluator(self.cascade, data, cache, store)

    trainer = Own(make_mlp(), progress=False)
    history = trainer.fit(vectors(40), vectors(), epochs=1, batch_size=16)
    assert rows == [16, 16, 8]
    assert history.rows[0]["validation"]["last"] == 0.25
    assert trainer.evaluate(vectors())["accuracy"] == 0.25
