"""Every trainer, with every variant of its steps, passes the checks of `bpfree.testing`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bpfree
from bpfree import testing
from bpfree.graphs.layers import GraphKind
from bpfree.trainers import TRAINERS, Trainer
from tests.helpers import images, make_cnn, make_gnn, make_mlp, nodes, pairs, vectors


@dataclass(frozen=True)
class Case:
    """A trainer by id, its settings, its level of locality, and a function that returns its network."""

    trainer: str
    settings: dict[str, Any]
    level: str
    net: Callable[[], nn.Module] = make_mlp

    def __call__(self, **settings: Any) -> Trainer:
        return TRAINERS[self.trainer](self.net(), progress=False, **{**self.settings, **settings})

    @property
    def data(self) -> Any:
        if issubclass(TRAINERS[self.trainer], bpfree.trainers.GraphTrainer):
            return pairs() if "link" in self.settings.get("variant", "") else nodes()
        return images() if self.net not in (make_mlp, deep_mlp, physical_net) else vectors()


def deep_mlp() -> nn.Module:
    return make_mlp(16, 16, 16, 16)


def cafo_cnn() -> nn.Module:
    torch.manual_seed(0)
    return bpfree.nn.cafo_cnn((1, 8, 8), 3, (4, 6))


def cnn_with_norm() -> nn.Module:
    return make_cnn(batch_norm=True, pool="max")


def ff(level: str = "L2", net: Callable[[], nn.Module] = make_mlp, **settings: Any) -> Case:
    return Case("forward_forward", settings, level, net)


def cafo(level: str = "L2", **settings: Any) -> Case:
    return Case("cafo", settings, level, cafo_cnn)


def ccl(level: str = "L2", net: Callable[[], nn.Module] = make_mlp, **settings: Any) -> Case:
    return Case("counter_current", {"lr": 0.1, **settings}, level, net)


def mf(level: str = "L2", net: Callable[[], nn.Module] = make_mlp, **settings: Any) -> Case:
    return Case("mono_forward", settings, level, net)


def physical_net() -> nn.Module:
    device = bpfree.physics.Device(bpfree.physics.AcousticCavity(noise=0.05))
    torch.manual_seed(0)
    return bpfree.nn.physical_net([device] * 2, (12,), 3, [15], "l2")


def physical(trainer: str = "physical", level: str = "L3", **settings: Any) -> Case:
    return Case(trainer, settings, level, physical_net)


def gnn(level: str = "L2", kind: GraphKind = "gcn", **settings: Any) -> Case:
    if settings.get("variant") in ("top_to_loss", "top_to_input", "link_top_to_input"):
        settings["schedule"] = "simultaneous"
    return Case("forward_gnn", settings, level, lambda: make_gnn(kind))


CASES: dict[str, Case] = {
    "backprop": Case("backprop", {}, "L0"),
    "backprop cnn": Case("backprop", {}, "L0", make_cnn),
    "backprop_ds": Case("backprop_ds", {"aux_weight": 0.3}, "L0"),
    "mf_joint": Case("mf_joint", {}, "L0"),
    "random_features": Case("random_features", {}, "L2"),
    "random_features greedy": Case("random_features", {"schedule": "greedy"}, "L2"),
    "ff": ff(),
    "ff no peer": ff(peer_weight=0.0),
    "ff peer": ff(peer_weight=0.03),
    "ff mean": ff(goodness="mean", optimizer="adam"),
    "ff symmetric": ff(objective="symmetric"),
    "ff permuted": ff(negatives="permuted"),
    "ff hard": ff(negatives="hard"),
    "ff goodness readout": ff(readout="goodness", classifier=False),
    "ff fixed negatives": ff(redraw_negatives=False),
    "ff greedy": ff(schedule="greedy"),
    "ff greedy fixed negatives": ff(schedule="greedy", redraw_negatives=False),
    "ff cnn": ff(net=make_cnn),
    "mf": mf(),
    "mf deep": mf(net=deep_mlp, readout="sum"),
    "mf analytic": mf("L3", gradients="analytic"),
    "mf stacked": mf("L3", net=deep_mlp, gradients="stacked"),
    "mf greedy": mf(schedule="greedy"),
    "mf greedy analytic": mf("L3", schedule="greedy", gradients="analytic"),
    "mf cnn": mf(net=make_cnn, readout="sum_probabilities"),
    "mf cnn norm": mf(net=cnn_with_norm),
    "mf two blocks": mf("L1", net=deep_mlp, cut=2),
    "mf any block": mf(net=deep_mlp, readout="block:2"),
    "mf greedy any block": mf(net=deep_mlp, readout="block:2", schedule="greedy"),
    "mf cnn pooled": mf(net=make_cnn, head_pool=1),
    "ff layer norm": ff(norm="layer", goodness="mean", optimizer="adam"),
    "mf bfloat16": mf(precision="bfloat16"),
    "mf cnn channels last": mf(net=cnn_with_norm, schedule="greedy", channels_last=True),
    "cafo channels last": cafo("L1", channels_last=True, blocks="dfa", block_epochs=1),
    "ccl cnn channels last": ccl(net=make_cnn, channels_last=True),
    "ff greedy bfloat16": ff(schedule="greedy", redraw_negatives=False, precision="bfloat16"),
    "cafo": cafo(),
    "cafo simultaneous": cafo(schedule="simultaneous", readout="sum"),
    "cafo sparsemax analytic": cafo("L3", predictor="sparsemax", gradients="analytic"),
    "cafo closed form": cafo("L3", predictor="closed_form", schedule="simultaneous"),
    "cafo closed form greedy": cafo("L3", predictor="closed_form"),
    "cafo pooled": cafo(pool=[2, None]),
    "cafo trained blocks": cafo("L1", blocks="dfa", block_epochs=1),
    "dfa": Case("dfa", {}, "L1"),
    "dfa cnn": Case("dfa", {}, "L1", cafo_cnn),
    "dfa last block": Case("dfa", {"last_block": "feedback"}, "L1", deep_mlp),
    "ccl": ccl(),
    "ccl analytic": ccl("L3", net=deep_mlp, gradients="analytic"),
    "ccl cosine": ccl(loss="cosine", centralize=True, warmup=3),
    "ccl decorrelated cnn": ccl(loss="decorrelated", net=make_cnn),
    "ccl samples": ccl(targets="samples", feedback_lr=0.02),
    "ccl input pair": ccl(input_pair=True),
    "ccl joint": ccl("L1", joint=True, gate=0.5),
    "local": Case("local", {"loss": "mono_forward"}, "L2"),
    "gnn": gnn(),
    "gnn together": gnn(schedule="simultaneous", direction="both_ways", virtual_features="zero"),
    "gnn bfloat16": gnn(precision="bfloat16"),
    "gnn sage": gnn("L1", "sage", similarity="cosine", temperature=0.1),
    "gnn gat": gnn("L1", "gat"),
    "gnn learnable": gnn(learnable_prototypes=True),
    "gnn top to loss": gnn(variant="top_to_loss", clip=1.0),
    "gnn top to input": gnn(variant="top_to_input"),
    "gnn top to input gat": gnn("L1", "gat", variant="top_to_input"),
    "gnn labels": gnn(variant="label_appending"),
    "gnn labels gat": gnn("L1", "gat", variant="label_appending"),
    "gnn virtual": gnn(variant="virtual_nodes"),
    "gnn link": gnn(variant="link"),
    "gnn link goodness": gnn(variant="link_goodness"),
    "gnn link top to input": gnn(variant="link_top_to_input"),
    "backprop gnn": Case("backprop_gnn", {"dropout": 0.3}, "L0", make_gnn),
    "backprop gnn virtual": Case("backprop_gnn", {"virtual": True}, "L0", lambda: make_gnn("gat")),
    "hop mlp": Case("hop_mlp", {}, "L0", make_gnn),
    "physical": physical(inner_steps=3),
    "physical one pass": physical(level="L2", readout="one_pass"),
    "physical backprop": physical("physical_backprop", "L0"),
    "physical dfa": physical("physical_dfa", "L1"),
    "physical ridge": physical("physical_ridge"),
    "physical spsa": physical("physical_spsa"),
    "hop ridge": Case("hop_ridge", {"hops": 1}, "L3", make_gnn),
}

every = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def test_every_trainer_has_a_case() -> None:
    assert {case.trainer for case in CASES.values()} == set(TRAINERS)


@every
def test_the_declared_locality_is_correct(case: Case) -> None:
    data = case.data
    x, y = data.batch(torch.arange(12))
    trainer = case()
    trainer.build_for(data)
    assert trainer.locality == case.level
    testing.assert_locality(trainer, x, y)


@every
def test_schedules_agree(case: Case) -> None:
    settings = case.settings
    redrawn = case.trainer == "forward_forward" and settings.get("redraw_negatives", True)
    simultaneous_only = case.trainer == "counter_current" or "top_to" in settings.get("variant", "")
    simultaneous_only |= settings.get("gradients") == "stacked"
    # A device has other noise in each measurement, so that cached and new outputs differ.
    noisy = case.trainer == "physical"
    testing.assert_schedules_agree(case, case.data, greedy=not (redrawn or simultaneous_only or noisy))


@every
def test_the_same_seed_gives_the_same_run(case: Case) -> None:
    solved = case.settings.get("predictor") == "closed_form" or case.trainer == "hop_ridge"
    data = case.data
    testing.assert_same_seed_same_run(case, data, data, other_seed_differs=not solved)


@every
def test_a_resumed_run_equals_an_uninterrupted_one(case: Case, tmp_path: Path) -> None:
    data = case.data
    testing.assert_resumes(case, data, tmp_path, data, epochs=2)


@every
def test_failures_raise_errors(case: Case) -> None:
    testing.assert_nothing_fails_quietly(case, case.data)


@pytest.mark.parametrize(
    "settings",
    [{"lr_schedule": "cosine"}, {"optimizer": "sgd"}, {"optimizer": "adamw", "weight_decay": 0.1}],
)
def test_other_optimizers_and_schedules_are_resumed(settings: dict[str, Any], tmp_path: Path) -> None:
    testing.assert_resumes(mf(**settings), vectors(), tmp_path, stops=[2, 5, 9])


@pytest.mark.parametrize("schedule", ["simultaneous", "greedy"])
@pytest.mark.parametrize("trainer", ["mono_forward", "forward_forward", "backprop"])
def test_dropout_depends_on_the_seed_and_is_resumed(trainer: str, schedule: str, tmp_path: Path) -> None:
    case = Case(trainer, {"schedule": schedule}, "", lambda: make_mlp(dropout=0.3))
    testing.assert_same_seed_same_run(case, vectors(), vectors())
    testing.assert_resumes(case, vectors(), tmp_path, stops=[1, 4, 6])
    testing.assert_schedules_agree(case, vectors(), greedy=trainer != "forward_forward")


def test_early_stopping_is_resumed(tmp_path: Path) -> None:
    for schedule in ("simultaneous", "greedy"):
        testing.assert_resumes(
            mf(schedule=schedule, lr=0.05),
            vectors(),
            tmp_path / schedule,
            vectors(seed=1),
            epochs=8,
            patience=2,
        )


@pytest.mark.parametrize("net", [make_mlp, lambda: make_mlp(dropout=0.3)], ids=["mlp", "dropout"])
def test_one_block_is_backpropagation(net: Callable[[], nn.Module]) -> None:
    testing.assert_one_block_is_backprop(net, vectors(), weight_decay=0.01)


def test_one_block_is_backpropagation_with_convolutions_and_norms() -> None:
    testing.assert_one_block_is_backprop(cnn_with_norm, images())


def test_registered_losses_pass_every_check() -> None:
    testing.check_local_loss("mono_forward")
    testing.check_local_loss("sparsemax")
    testing.check_local_loss("goodness")
    testing.check_local_loss("closed_form")
