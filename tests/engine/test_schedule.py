"""Schedules as plans."""

from __future__ import annotations

from bpfree import ForwardForward, MonoForward
from bpfree.engine.schedule import Stage, plan
from bpfree.trainers import Trainer
from tests.helpers import CLASSES, make_mlp


def built(kind: type[Trainer]) -> Trainer:
    trainer = kind(make_mlp(), progress=False)
    trainer.build((12,), CLASSES)
    return trainer


def test_simultaneous_is_one_stage_of_all_blocks_and_readouts() -> None:
    assert plan("simultaneous", built(MonoForward).cascade) == [Stage("all blocks", 0, 2, True)]


def test_greedy_is_a_stage_for_each_block() -> None:
    expected = [Stage("block 1", 0, 1, False), Stage("block 2", 1, 2, False)]
    assert plan("greedy", built(MonoForward).cascade) == expected


def test_readouts_with_parameters_are_the_last_stage() -> None:
    stages = plan("greedy", built(ForwardForward).cascade)
    assert stages[-1] == Stage("readout", 2, 2, True)
    assert len(stages) == 3
