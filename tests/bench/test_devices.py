"""Devices in a config: seeds, options, the ablation, and their section of a row."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from bpfree import BadValue
from bpfree.bench.arms import groups
from bpfree.bench.cell import run
from bpfree.bench.cells import config_of
from bpfree.bench.config import cells
from bpfree.bench.devices import make_devices, physics_config

CONFIG: dict[str, Any] = {
    "dataset": {"name": "digits", "train_size": 64, "validation_size": 20},
    "net": {"name": "physical", "hidden": [64], "drive": "picture", "skip": False, "normalize": "l2"},
    "physics": {"system": "optical", "seeds": [0, 1], "options": {"grid": 18, "mask_radius": 4.0}},
    "fit": {"epochs": 2, "batch_size": 32, "eval_every": 2},
    "trainer": {"id": "physical", "inner_steps": 2},
    "controls": [
        {"label": "no physics", "physics": {"system": "none"}, "trainer": {"id": "physical"}},
        {"trainer": {"id": "physical_ridge"}},
    ],
    "seeds": [0, 1],
}


def changed(**sections: Any) -> dict[str, Any]:
    return {**copy.deepcopy(CONFIG), **sections}


def test_every_model_seed_runs_on_every_device_and_an_arm_may_have_its_own() -> None:
    found = cells(changed())
    assert [(c.arm, c.seed, c.device_seed) for c in found[:6]] == [
        ("physical", 0, 0), ("physical", 0, 1), ("no physics", 0, 0), ("no physics", 0, 1),
        ("physical_ridge", 0, 0), ("physical_ridge", 0, 1),
    ]  # fmt: skip
    assert len({c.id for c in found}) == len(found) == 12
    assert [c.physics.system for c in found[:4:2] if c.physics] == ["optical", "none"]
    assert all(c.physics is not None and c.physics.options == {} for c in found if c.arm == "no physics")


def test_cells_without_devices_keep_the_names_they_had() -> None:
    plain = {
        "dataset": {"name": "digits"},
        "net": {"name": "mlp", "hidden": [8]},
        "trainer": {"id": "backprop"},
    }
    (cell,) = cells({**plain, "seeds": [0]})
    known = ("dataset", "net", "trainer", "fit", "seed", "threads", "device", "plugins")
    parts = {key: cell.record()[key] for key in known}
    assert cell.id == hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def test_devices_differ_by_seed_and_noise_by_the_models_seed_too() -> None:
    section = {"system": "acoustic", "seeds": [0], "shared": True, "options": {}, "nonideal": None}

    def answers(device_seed: int, seed: int, **more: Any) -> Any:
        import numpy as np

        device = make_devices(physics_config({**section, **more}), 2, device_seed, seed)[0]
        return device.forward(np.full((3, 20), 0.5))

    assert (answers(0, 0) == answers(0, 0)).all()
    assert not (answers(0, 0) == answers(0, 1)).any()
    quiet = {"options": {"noise": 0.0}}
    assert (answers(0, 0, **quiet) == answers(0, 1, **quiet)).all()
    assert not (answers(0, 0, **quiet) == answers(1, 0, **quiet)).any()
    shared, own = (make_devices(physics_config({**section, "shared": s}), 2, 0, 0) for s in (True, False))
    assert shared[0] is shared[1] and own[0] is not own[1]


def test_a_row_counts_passes_and_describes_the_device(tmp_path: Path) -> None:
    (cell, _, ablated, *_) = cells(changed(physics={"system": "acoustic", "seeds": [0, 1]}, seeds=[0],
        net={"name": "physical", "hidden": [], "drive": "l2"}, dataset={"name": "digits", "train_size":
        64}))  # fmt: skip
    with pytest.raises(BadValue, match="do not fit"):
        run(cell, tmp_path, 10.0, lambda done, of: None)
    (cell, _, ablated, *_) = cells(changed(seeds=[0]))
    row = run(cell, tmp_path, 10.0, lambda done, of: None)
    assert row["status"] == "ok" and row["device_seed"] == 0
    assert row["physics"]["passes"]["train"] == 2 * 2 * 64 * 2
    assert row["physics"]["passes"]["eval"] == 10 * 2 * 20
    assert row["physics"]["devices"][0]["kind"] == "simulated"
    assert "device_seed" not in row["config"] and row["config"]["physics"]["system"] == "optical"
    assert "modelled" not in row["physics"]
    without = run(ablated, tmp_path, 10.0, lambda done, of: None)
    assert without["physics"]["passes"] == {} and without["physics"]["devices"] == []


def test_a_row_has_the_modeled_time_of_the_stated_hardware(tmp_path: Path) -> None:
    physics = {**CONFIG["physics"], "seeds": [0], "profile": {"pass_s": 0.1, "flop_j": 1e-12}}
    cell = cells(changed(physics=physics, seeds=[0]))[0]
    row = run(cell, tmp_path, 10.0, lambda done, of: None)
    found = row["physics"]["modelled"]
    assert found["time_s"] == pytest.approx(0.1 * row["physics"]["passes"]["train"])
    assert found["energy_j"] == pytest.approx(1e-12 * row["flops"]["train_total"])
    assert row["config"]["physics"]["profile"] == physics["profile"]


def test_the_measured_cavity_is_a_surrogate(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    from bpfree.bench import devices
    from bpfree.physics import AcousticCavity

    cavity = AcousticCavity(noise=0.0, intermodulation=0.0)
    u = np.random.default_rng(0).random((400, 20))
    monkeypatch.setattr(devices, "acoustic_cavity", lambda: (u, cavity.forward(u)))
    section = {"system": "measured_acoustic", "options": {"noise": 0.0}}
    device = make_devices(physics_config(section), 1, 0, 0)[0]
    assert device.report()["kind"] == "surrogate"
    np.testing.assert_allclose(device.forward(u), cavity.forward(u), atol=1e-6)


def test_rows_of_several_devices_are_one_arm() -> None:
    rows = [
        {"arm": c.arm, "status": "ok", "seed": c.seed, "device_seed": c.device_seed,
         "trainer": c.trainer.id, "config": config_of(c.record()), "metrics": {"test_accuracy": 0.5}}
        for c in cells(changed())
    ]  # fmt: skip
    (group,) = groups(rows)
    assert [(a.name, len(a.by_seed("metrics", "test_accuracy"))) for a in group.arms] == [
        ("physical", 4), ("no physics", 4), ("physical_ridge", 4),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("physics", "name"),
    [
        ({"system": "water"}, "water"),
        ({"system": "optical", "options": {"gird": 20}}, "grid"),
        ({"system": "optical", "nonideal": {"dac": 3}}, "dac_bits"),
        ({"system": "optical", "seeds": []}, "seeds"),
        ({"system": "optical", "profile": {"bit_j": 1e-12, "drive_bits": 8}}, "answer_bits"),
        ({"system": "optical", "profile": {"pass_seconds": 1.0}}, "pass_s"),
        ({"system": "measured_acoustic", "options": {"u": 1}}, "options.u"),
        ({}, "system"),
    ],
)
def test_mistakes_are_refused(physics: dict[str, Any], name: str) -> None:
    with pytest.raises(BadValue, match=name):
        cells(changed(physics=physics))


def test_other_nets_have_no_devices() -> None:
    arm = {
        "net": {"name": "mlp", "hidden": [8]},
        "physics": {"system": "none"},
        "trainer": {"id": "backprop"},
    }
    with pytest.raises(BadValue, match="physical"):
        cells(changed(controls=[arm]))
