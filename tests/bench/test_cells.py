"""Cells: settings that are checked once, and records that agree with rows of earlier releases."""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest

from bpfree import BadValue
from bpfree.bench import cell as module
from bpfree.bench.cells import Cell, config_of
from bpfree.bench.config import cells
from bpfree.trainers import TRAINERS, FitSettings, TrainerSettings

#: Configs, and the ids and row configs (as hashes) of their cells as bpfree 0.1 made them. They never change:
#: where a setting gets another name, `Cell.record` keeps the old one.
CASES: dict[str, Any] = json.loads(Path(__file__).with_name("cells.json").read_text())


def digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def of_case(name: str) -> list[Cell]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # some keys have other names by now
        return cells(CASES[name]["config"], 2)


@pytest.mark.parametrize("name", CASES)
def test_ids_and_row_configs_are_those_of_earlier_rows(name: str) -> None:
    found = [[cell.id, digest(config_of(cell.record()))] for cell in of_case(name)]
    assert found == CASES[name]["cells"]


def test_the_cases_have_every_trainer_and_net() -> None:
    found = [cell for name in CASES for cell in of_case(name)]
    assert {cell.trainer.id for cell in found} == set(TRAINERS)
    nets = {"mlp", "cnn", "cafo_cnn", "vgg8b", "resnet", "gcn", "sage", "gat", "physical"}
    assert {cell.net.name for cell in found} >= nets
    assert any(cell.energy for cell in found) and any(cell.tuning for cell in found)


@pytest.mark.parametrize("name", CASES)
def test_a_record_gives_the_cell_again_in_another_process(name: str) -> None:
    for cell in of_case(name):
        again = Cell.from_record(pickle.loads(pickle.dumps(cell.record())))
        assert again == cell and again.id == cell.id and again.record() == cell.record()
        assert isinstance(again.trainer.settings, TRAINERS[cell.trainer.id].Settings)
        assert isinstance(again.fit, FitSettings)


def test_settings_are_frozen_and_typed() -> None:
    cell = of_case("everything")[0]
    assert isinstance(cell.trainer.settings, TrainerSettings) and cell.fit.drop_last is True
    for part in (cell, cell.trainer, cell.trainer.settings, cell.fit, cell.net, cell.dataset, cell.energy):
        with pytest.raises(FrozenInstanceError):
            part.seed = 1  # type: ignore[union-attr]


def test_another_seed_is_another_cell_of_the_same_config() -> None:
    cell = of_case("everything")[0]
    other = replace(cell, seed=cell.seed + 1)
    assert other.id != cell.id and config_of(other.record()) == config_of(cell.record())
    changed = replace(cell, trainer=cell.trainer.changed({"lr": 0.5}, "trainer"))
    assert changed.id != cell.id and changed.record()["trainer"]["lr"] == 0.5
    with pytest.raises(BadValue, match=r"trainer\.lr = -1"):
        cell.trainer.changed({"lr": -1}, "trainer")


def test_a_row_is_headed_by_the_cell() -> None:
    cell = of_case("everything")[0]
    row = module.failed(cell.record(), "oom", "no memory")
    assert (row["cell_id"], row["seed"], row["arm"], row["status"]) == (cell.id, cell.seed, cell.arm, "oom")
    assert row["config"] == config_of(cell.record()) and row["tuning"] == {"trials": 3, "seconds": 1.5}
    assert json.loads(json.dumps(row["config"])) == json.loads(json.dumps(config_of(cell.record())))


def test_keys_of_earlier_releases_are_accepted_with_a_message() -> None:
    new: dict[str, Any] = {
        "dataset": {"name": "digits"},
        "net": {"name": "physical", "normalize": "l2"},
        "physics": {"system": "optical"},
        "trainer": {"id": "physical"},
        "energy": {"modeled": True},
        "seeds": [0],
    }
    old = {**new, "net": {"name": "physical", "normalise": "l2"}, "energy": {"modelled": True}}
    (expected,) = cells(new)
    with pytest.warns(FutureWarning) as warned:
        (found,) = cells(old)
    assert {str(w.message).partition(";")[0] for w in warned} == {
        "energy.modelled is now energy.modeled",
        "net.normalise is now net.normalize",
    }
    assert found == expected
    # Rows keep the old names, so that a folder of earlier rows continues.
    assert found.record()["net"]["normalise"] == "l2" and found.record()["energy"]["modelled"] is True
