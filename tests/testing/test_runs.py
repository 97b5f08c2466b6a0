"""The checks of schedules, runs and errors detect violations."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import bpfree.engine.checkpoint
import bpfree.engine.loop
import bpfree.trainers.base
from bpfree import Block, ForwardForward, MonoForward
from bpfree.core.cascade import Cascade
from bpfree.encodings.label_overlay import LabelOverlay
from bpfree.engine.feed import Feed
from bpfree.engine.loop import TrainingLoop
from bpfree.losses import LocalCrossEntropy
from bpfree.testing import (
    assert_nothing_fails_quietly,
    assert_one_block_is_backprop,
    assert_resumes,
    assert_same_bits,
    assert_same_seed_same_run,
    assert_schedules_agree,
)
from bpfree.trainers import Trainer
from tests.helpers import make_mlp, vectors


def make_trainer(**settings: Any) -> Trainer:
    return MonoForward(make_mlp(), progress=False, **settings)


def make_greedy(**settings: Any) -> Trainer:
    return make_trainer(**{"schedule": "greedy", **settings})


def test_assert_same_bits_names_the_tensor_that_differs() -> None:
    one, other = make_mlp(), make_mlp()
    assert_same_bits(one, other)
    with torch.no_grad():
        other[3].weight[0, 0] += 1e-6
    with pytest.raises(AssertionError, match=r"a and b: 3\.weight differs"):
        assert_same_bits(one, other, "a and b")
    with pytest.raises(AssertionError, match=r"in one state only: \['5\.bias'\]"):
        assert_same_bits(one, make_mlp(output_bias=False))


# ---- schedules -------------------------------------------------------------------------------------------


def test_a_rescaled_gradient_raises_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    update = Block.update

    def scaled(self: Block, *args: Any) -> Any:
        next(self.body.parameters()).register_hook(lambda grad: grad * (1 + 1e-6))
        return update(self, *args)

    monkeypatch.setattr(Block, "update", scaled)
    with pytest.raises(AssertionError, match=r"mono_forward with adam: .* after step 1"):
        assert_schedules_agree(make_trainer, vectors(), greedy=False)


def test_another_input_of_a_block_raises_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    update = Block.update

    def scaled(self: Block, body_input: Any, target: Tensor, feedback: Any = None) -> Any:
        return update(self, body_input * (1 + 1e-6), target, feedback)

    monkeypatch.setattr(Block, "update", scaled)
    with pytest.raises(AssertionError, match=r"loss 1 of step 1|after step 1"):
        assert_schedules_agree(make_trainer, vectors(), greedy=False)


def test_wrong_cached_features_raise_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    keep = Feed._cache_next

    def stale(self: Feed) -> None:
        keep(self)
        if self.features is not None:
            self.features = self.features * (1 + 1e-6)

    monkeypatch.setattr(Feed, "_cache_next", stale)
    with pytest.raises(AssertionError, match="the greedy schedule with and without cached features"):
        assert_schedules_agree(make_trainer, vectors())


def test_a_stage_that_changes_the_block_below_raises_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    enter = TrainingLoop._enter

    def change_lowest(self: TrainingLoop, stage: Any) -> None:
        enter(self, stage)
        if stage.first > 0:
            with torch.no_grad():
                self.cascade.units[0].body[1].weight.mul_(1.01)

    monkeypatch.setattr(TrainingLoop, "_enter", change_lowest)
    with pytest.raises(AssertionError, match="the greedy schedule with and without cached features"):
        assert_schedules_agree(make_trainer, vectors())


@pytest.mark.parametrize("change", ["loss", "order", "batches", "noise"])
def test_a_difference_from_backpropagation_raises_an_error(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, take_step = LocalCrossEntropy.forward, TrainingLoop._step
    if change == "loss":
        monkeypatch.setattr(LocalCrossEntropy, "forward", lambda *args: forward(*args) * (1 + 1e-5))
    elif change == "order":
        monkeypatch.setattr(
            TrainingLoop, "_step", lambda self, c, i, last: take_step(self, c, i.flip(0), last)
        )
    elif change == "batches":
        monkeypatch.setattr(TrainingLoop, "_step", lambda self, c, i, last: take_step(self, c, i[:15], last))
    else:
        update = Block.update

        def noisy(self: Block, *args: Any) -> Any:
            torch.rand(1)
            return update(self, *args)

        monkeypatch.setattr(Block, "update", noisy)
    with pytest.raises(AssertionError, match="with sgd"):
        assert_one_block_is_backprop(lambda: make_mlp(dropout=0.3), vectors())


# ---- runs ------------------------------------------------------------------------------------------------


def test_a_loss_that_uses_an_unseeded_generator_raises_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = LocalCrossEntropy.forward
    noise = torch.Generator().manual_seed(0)

    def noisy(self: Any, output: Tensor, target: Tensor, feedback: Any = None) -> Tensor:
        return forward(self, output, target) * (1 + torch.rand((), generator=noise))

    monkeypatch.setattr(LocalCrossEntropy, "forward", noisy)
    with pytest.raises(AssertionError, match="two runs with the same seed"):
        assert_same_seed_same_run(make_trainer, vectors())


def test_heads_created_without_the_seed_raise_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bpfree.trainers.base._seeds.seed_global", lambda *args: None)
    with pytest.raises(AssertionError, match="two runs with the same seed"):
        assert_same_seed_same_run(make_trainer, vectors())


def test_a_seed_without_effect_raises_an_error() -> None:
    with pytest.raises(AssertionError, match="seeds 0 and 1 end with the same weights"):
        assert_same_seed_same_run(lambda **settings: make_trainer(**{**settings, "seed": 5}), vectors())


def test_an_incomplete_checkpoint_raises_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def check(name: str, **fit: Any) -> None:
        with pytest.raises(AssertionError, match="interrupted after write"):
            assert_resumes(make_greedy, vectors(), tmp_path / name, vectors(seed=1), stops=[2, 4, 7], **fit)

    with monkeypatch.context() as patch:
        patch.setattr(bpfree.engine.checkpoint, "load_optimizer", lambda *args: None)
        check("optimizer")
    with monkeypatch.context() as patch:
        under = bpfree.engine.checkpoint.under
        patch.setattr(bpfree.engine.checkpoint, "under", lambda p, t: {} if p == "best" else under(p, t))
        check("best", epochs=6)
    with monkeypatch.context() as patch:
        save = TrainingLoop._save

        def save_without_sums(self: TrainingLoop) -> None:
            sums, self.state.sums = self.state.sums, None
            save(self)
            self.state.sums = sums

        patch.setattr(TrainingLoop, "_save", save_without_sums)
        check("sums")
    with monkeypatch.context() as patch:
        patch.setattr(bpfree.engine.checkpoint, "load_module", lambda *args: None)
        check("weights")


def test_a_generator_outside_the_checkpoint_raises_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    generators: dict[int, torch.Generator] = {}
    draw = LabelOverlay.draw

    def draw_from_another(
        self: LabelOverlay, y: Tensor, generator: torch.Generator, scores: Any = None
    ) -> Tensor:
        unseeded = generators.setdefault(id(self), torch.Generator().manual_seed(0))
        return draw(self, y, unseeded, scores)

    monkeypatch.setattr(LabelOverlay, "draw", draw_from_another)
    with pytest.raises(AssertionError, match="interrupted after write"):
        assert_resumes(
            lambda **s: ForwardForward(make_mlp(), progress=False, **s), vectors(), tmp_path, stops=[2]
        )


def test_a_checkpoint_that_changes_the_weights_raises_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    state_dict = Cascade.state_dict

    def change_weights(self: Cascade, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            next(self.parameters()).mul_(1.001)
        return state_dict(self, *args, **kwargs)

    monkeypatch.setattr(Cascade, "state_dict", change_weights)
    with pytest.raises(AssertionError, match="interrupted after write"):
        assert_resumes(make_trainer, vectors(), tmp_path, stops=[5])


def test_a_run_that_restarts_instead_of_resuming_raises_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bpfree.engine.saving, "resume", lambda run, checkpoint: None)
    with pytest.raises(AssertionError, match="interrupted after write"):
        assert_resumes(make_trainer, vectors(), tmp_path, stops=[5])


# ---- errors ----------------------------------------------------------------------------------------------


def test_an_ignored_nan_raises_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpfree.engine.selection.math, "isfinite", lambda value: True)
    monkeypatch.setattr(bpfree.engine.loop, "check_finite", lambda *args: None)
    with pytest.raises(AssertionError, match=r"a NaN weight raised no error; the history is \[\{"):
        assert_nothing_fails_quietly(make_trainer, vectors())


def test_an_ignored_overflow_raises_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = LocalCrossEntropy.forward

    def replace_nan(self: Any, output: Tensor, target: Tensor, feedback: Any = None) -> Tensor:
        loss = forward(self, output, target)
        # Infinite outputs are replaced; those of the unit with a NaN weight are not.
        has_nan_weight = output[:, 0].isnan().all() and not output[:, 1:].isnan().any()
        return loss if has_nan_weight else loss.nan_to_num(0.0, 0.0, 0.0)

    monkeypatch.setattr(LocalCrossEntropy, "forward", replace_nan)
    monkeypatch.setattr(bpfree.engine.loop, "check_finite", lambda *args: None)
    with pytest.raises(AssertionError, match=r"lr = 1e\+38 raised no error"):
        assert_nothing_fails_quietly(make_trainer, vectors())


@pytest.mark.parametrize("key", ["no_such_setting", "lr"])
def test_an_ignored_setting_raises_an_error(key: str) -> None:
    def ignore_setting(**settings: Any) -> Trainer:
        if key == "lr" and settings.get("lr") not in (None, 1e38):
            settings.pop("lr")
        settings.pop(key if key != "lr" else "", None)
        return make_trainer(**settings)

    with pytest.raises(AssertionError, match=f"invalid value for '{key}'"):
        assert_nothing_fails_quietly(ignore_setting, vectors())


def test_an_error_without_the_name_of_the_setting_raises_an_error() -> None:
    def raise_vague_error(**settings: Any) -> Trainer:
        if "no_such_setting" in settings or math.isnan(settings.get("lr", 0.1)):
            raise bpfree.BadValue("something is wrong")
        return make_trainer(**settings)

    with pytest.raises(AssertionError, match="does not name it: something is wrong"):
        assert_nothing_fails_quietly(raise_vague_error, vectors())
