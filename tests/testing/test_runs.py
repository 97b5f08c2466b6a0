"""The laws of schedules, runs and errors must find out whoever breaks them."""

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


def test_same_bits_names_the_tensor_that_differs() -> None:
    one, other = make_mlp(), make_mlp()
    assert_same_bits(one, other)
    with torch.no_grad():
        other[3].weight[0, 0] += 1e-6
    with pytest.raises(AssertionError, match=r"a and b: 3\.weight differs"):
        assert_same_bits(one, other, "a and b")
    with pytest.raises(AssertionError, match=r"different tensors: \['5\.bias'\]"):
        assert_same_bits(one, make_mlp(output_bias=False))


# ---- schedules -------------------------------------------------------------------------------------------


def test_an_update_that_rescales_its_gradient_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    update = Block.update

    def scaled(self: Block, *args: Any) -> Any:
        next(self.body.parameters()).register_hook(lambda grad: grad * (1 + 1e-6))
        return update(self, *args)

    monkeypatch.setattr(Block, "update", scaled)
    with pytest.raises(AssertionError, match=r"mono_forward with adam: .* after step 1"):
        assert_schedules_agree(make_trainer, vectors(), greedy=False)


def test_a_block_that_steps_on_other_rows_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    update = Block.update

    def scaled(self: Block, sensed: Any, target: Tensor, lesson: Any = None) -> Any:
        return update(self, sensed * (1 + 1e-6), target, lesson)

    monkeypatch.setattr(Block, "update", scaled)
    with pytest.raises(AssertionError, match=r"loss 1 of step 1|after step 1"):
        assert_schedules_agree(make_trainer, vectors(), greedy=False)


def test_stale_features_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    keep = Feed._keep

    def stale(self: Feed) -> None:
        keep(self)
        if self.features is not None:
            self.features = self.features * (1 + 1e-6)

    monkeypatch.setattr(Feed, "_keep", stale)
    with pytest.raises(AssertionError, match="greedy with and without kept features"):
        assert_schedules_agree(make_trainer, vectors())


def test_a_stage_that_goes_on_training_the_block_below_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    enter = TrainingLoop._enter

    def loose(self: TrainingLoop, stage: Any) -> None:
        enter(self, stage)
        if stage.first > 0:
            with torch.no_grad():
                self.cascade.units[0].body[1].weight.mul_(1.01)

    monkeypatch.setattr(TrainingLoop, "_enter", loose)
    with pytest.raises(AssertionError, match="greedy with and without kept features"):
        assert_schedules_agree(make_trainer, vectors())


@pytest.mark.parametrize("change", ["loss", "order", "batches", "noise"])
def test_anything_but_plain_backpropagation_is_found(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, step = LocalCrossEntropy.forward, TrainingLoop._step
    if change == "loss":
        monkeypatch.setattr(LocalCrossEntropy, "forward", lambda *args: forward(*args) * (1 + 1e-5))
    elif change == "order":
        monkeypatch.setattr(TrainingLoop, "_step", lambda self, c, i, last: step(self, c, i.flip(0), last))
    elif change == "batches":
        monkeypatch.setattr(TrainingLoop, "_step", lambda self, c, i, last: step(self, c, i[:15], last))
    else:
        update = Block.update

        def noisy(self: Block, *args: Any) -> Any:
            torch.rand(1)
            return update(self, *args)

        monkeypatch.setattr(Block, "update", noisy)
    with pytest.raises(AssertionError, match="with sgd"):
        assert_one_block_is_backprop(lambda: make_mlp(dropout=0.3), vectors())


# ---- runs ------------------------------------------------------------------------------------------------


def test_a_run_that_draws_from_the_global_generator_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = LocalCrossEntropy.forward
    noise = torch.Generator().manual_seed(0)

    def noisy(self: Any, output: Tensor, target: Tensor, lesson: Any = None) -> Tensor:
        return forward(self, output, target) * (1 + torch.rand((), generator=noise))

    monkeypatch.setattr(LocalCrossEntropy, "forward", noisy)
    with pytest.raises(AssertionError, match="two runs with the same seed"):
        assert_same_seed_same_run(make_trainer, vectors())


def test_heads_that_are_made_without_the_seed_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bpfree.trainers.base._seeds.seed_global", lambda *args: None)
    with pytest.raises(AssertionError, match="two runs with the same seed"):
        assert_same_seed_same_run(make_trainer, vectors())


def test_a_seed_without_effect_is_found() -> None:
    with pytest.raises(AssertionError, match="seed 1 ends with the bits"):
        assert_same_seed_same_run(lambda **settings: make_trainer(**{**settings, "seed": 5}), vectors())


def test_what_a_checkpoint_forgets_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def check(name: str, **fit: Any) -> None:
        with pytest.raises(AssertionError, match="stopped after write"):
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

        def forgetful(self: TrainingLoop) -> None:
            sums, self.state.sums = self.state.sums, None
            save(self)
            self.state.sums = sums

        patch.setattr(TrainingLoop, "_save", forgetful)
        check("sums")
    with monkeypatch.context() as patch:
        patch.setattr(bpfree.engine.checkpoint, "load_module", lambda *args: None)
        check("weights")


def test_a_generator_that_is_carried_along_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    carried: dict[int, torch.Generator] = {}
    draw = LabelOverlay.draw

    def drawn(self: LabelOverlay, y: Tensor, generator: torch.Generator, scores: Any = None) -> Tensor:
        own = carried.setdefault(id(self), torch.Generator().manual_seed(0))
        return draw(self, y, own, scores)

    monkeypatch.setattr(LabelOverlay, "draw", drawn)
    with pytest.raises(AssertionError, match="stopped after write"):
        assert_resumes(
            lambda **s: ForwardForward(make_mlp(), progress=False, **s), vectors(), tmp_path, stops=[2]
        )


def test_a_checkpoint_that_changes_the_run_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    state_dict = Cascade.state_dict

    def disturbing(self: Cascade, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            next(self.parameters()).mul_(1.001)
        return state_dict(self, *args, **kwargs)

    monkeypatch.setattr(Cascade, "state_dict", disturbing)
    with pytest.raises(AssertionError, match="stopped after write"):
        assert_resumes(make_trainer, vectors(), tmp_path, stops=[5])


def test_a_run_that_starts_again_instead_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bpfree.engine.saving, "resume", lambda run, checkpoint: None)
    with pytest.raises(AssertionError, match="stopped after write"):
        assert_resumes(make_trainer, vectors(), tmp_path, stops=[5])


# ---- errors ----------------------------------------------------------------------------------------------


def test_a_nan_that_is_swallowed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpfree.engine.selection.math, "isfinite", lambda value: True)
    monkeypatch.setattr(bpfree.engine.loop, "check_finite", lambda *args: None)
    with pytest.raises(AssertionError, match=r"a weight that is NaN gave no error, but the history \[\{"):
        assert_nothing_fails_quietly(make_trainer, vectors())


def test_a_huge_rate_that_is_swallowed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = LocalCrossEntropy.forward

    def hiding(self: Any, output: Tensor, target: Tensor, lesson: Any = None) -> Tensor:
        loss = forward(self, output, target)
        # Infinite activity is hidden; that of the one unit with a NaN weight is not.
        poisoned = output[:, 0].isnan().all() and not output[:, 1:].isnan().any()
        return loss if poisoned else loss.nan_to_num(0.0, 0.0, 0.0)

    monkeypatch.setattr(LocalCrossEntropy, "forward", hiding)
    monkeypatch.setattr(bpfree.engine.loop, "check_finite", lambda *args: None)
    with pytest.raises(AssertionError, match=r"lr = 1e\+38 gave no error"):
        assert_nothing_fails_quietly(make_trainer, vectors())


@pytest.mark.parametrize("key", ["no_such_setting", "lr"])
def test_a_setting_that_is_swallowed_is_found(key: str) -> None:
    def deaf(**settings: Any) -> Trainer:
        if key == "lr" and settings.get("lr") not in (None, 1e38):
            settings.pop("lr")
        settings.pop(key if key != "lr" else "", None)
        return make_trainer(**settings)

    with pytest.raises(AssertionError, match=f"bad value for '{key}'"):
        assert_nothing_fails_quietly(deaf, vectors())


def test_an_error_that_does_not_name_its_setting_is_found() -> None:
    def mumbling(**settings: Any) -> Trainer:
        if "no_such_setting" in settings or math.isnan(settings.get("lr", 0.1)):
            raise bpfree.BadValue("something is wrong")
        return make_trainer(**settings)

    with pytest.raises(AssertionError, match="does not name it: something is wrong"):
        assert_nothing_fails_quietly(mumbling, vectors())
