"""A mangled config gives one clear error, never a traceback; a good one gives the cells it says."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from bpfree import BadValue
from bpfree.bench.__main__ import main
from bpfree.bench.cell import load_data
from bpfree.bench.config import cells
from bpfree.bench.files import override, read_yaml
from bpfree.data import load_graph

GOOD: dict[str, Any] = {
    "name": "good",
    "dataset": {"name": "digits", "augment": ["shift"], "train_size": 500, "standardize": True},
    "net": {"name": "mlp", "hidden": [32, 16], "dropout": 0.1},
    "fit": {"epochs": 2, "batch_size": 64, "patience": 3, "min_delta": 0.0},
    "trainer": {"id": "mono_forward", "lr": 0.001, "schedule": "greedy"},
    "controls": [
        {"trainer": {"id": "backprop", "lr": 0.01}, "fit": {"epochs": 3}},
        {
            "label": "ff",
            "trainer": {"id": "forward_forward", "peer_weight": 0.0},
            "net": {"name": "mlp", "hidden": [8]},
        },
    ],
    "seeds": [3, 4],
    "threads": 1,
}

DROP = "(the key is left out)"
UNKNOWN_KEYS = [
    "epochs", "datasets", "trainer.learning_rate", "trainer.threshold", "trainer.Lr", "fit.epoch", "fit.lr",
    "fit.checkpoint", "net.widths", "net.channels", "dataset.root", "dataset.size", "dataset.augmentation",
    "controls.0.lr", "controls.0.trainer.momentun", "controls.0.fit.seed", "controls.1.net.depth", "seed",
    "controls.1.trainer.aux_weight", "output",
]  # fmt: skip
BAD_VALUES: list[tuple[str, Any]] = [
    ("trainer.lr", float("nan")), ("trainer.lr", float("inf")), ("trainer.lr", 0), ("trainer.lr", -0.001),
    ("trainer.lr", "fast"), ("trainer.lr", None), ("trainer.lr", True), ("trainer.lr", [0.1]),
    ("trainer.weight_decay", -1e-4), ("trainer.weight_decay", "none"), ("trainer.momentum", 1.0),
    ("trainer.momentum", -0.1), ("trainer.optimizer", "adamax"), ("trainer.optimizer", 3),
    ("trainer.lr_schedule", "linear"), ("trainer.schedule", "parallel"), ("trainer.cache", "yes"),
    ("trainer.cache", 1), ("trainer.precision", "fp8"), ("trainer.compile", 5), ("trainer.readout", "first"),
    ("trainer.gradients", "numeric"), ("trainer.id", "mono_foward"), ("trainer.id", 7), ("trainer.id", DROP),
    ("trainer", "mono_forward"), ("trainer", None), ("trainer", DROP), ("trainer", []),
    ("fit.epochs", 0), ("fit.epochs", -3), ("fit.epochs", 2.5), ("fit.epochs", "2"), ("fit.epochs", None),
    ("fit.batch_size", 0), ("fit.batch_size", 1e3), ("fit.patience", 0), ("fit.patience", "never"),
    ("fit.min_delta", -0.1), ("fit.min_delta", 1.0), ("fit.min_delta", float("nan")),
    ("fit.restore_best", "best"),
    ("fit.eval_every", 0), ("fit", 10), ("fit", ["epochs"]),
    ("net.name", "transformer"), ("net.name", None), ("net.name", DROP), ("net", DROP), ("net", "mlp"),
    ("net.hidden", []), ("net.hidden", [32, 0]), ("net.hidden", [32, "x"]), ("net.hidden", 32),
    ("net.hidden", DROP), ("net.activation", "swish2"), ("net.activation", 1), ("net.dropout", 1.0),
    ("net.dropout", -0.5), ("net.output_bias", 0), ("controls.1.net.hidden", [-1]),
    ("dataset.name", "mnits"), ("dataset.name", 5), ("dataset.name", DROP), ("dataset", DROP),
    ("dataset", "digits"),
    ("dataset.train_size", 0), ("dataset.train_size", -5), ("dataset.train_size", 1.5),
    ("dataset.augment", "flip"),
    ("dataset.augment", [1]), ("dataset.standardize", "no"), ("dataset.split_seed", -1), ("dataset.path", 3),
    ("dataset.validation_size", 0), ("dataset.image_size", -2), ("dataset.download", "always"),
    ("seeds", []), ("seeds", [1, 1]), ("seeds", [-1]), ("seeds", ["a"]), ("seeds", 5), ("threads", 0),
    ("threads", 1.5), ("device", 4), ("controls", {"trainer": {}}), ("controls.0", "backprop"),
    ("controls.0.trainer", DROP), ("controls.0.label", 3), ("plugins", ["nowhere.py"]),
    ("plugins", "rule.py"),
    ("protocols", ["A", "C"]), ("protocols", "A"), ("targets", [1.5]), ("targets", [0.0]), ("targets", 0.9),
]  # fmt: skip
AT_RUN_TIME: list[tuple[str, Any]] = [
    ("dataset.augment", ["twirl"]), ("dataset.train_size", 10**6), ("dataset.path", "somewhere"),
    ("device", "gpu7"), ("device", "cuda:0"), ("trainer.cut", "everywhere"), ("trainer.cut", 9),
]  # fmt: skip


def mangled(key: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(GOOD)
    *parents, last = key.split(".")
    at: Any = config
    for parent in parents:
        at = at[int(parent) if isinstance(at, list) else parent]
    if value == DROP:
        del at[last]
    else:
        at[int(last) if isinstance(at, list) else last] = value
    return config


def cases() -> Iterator[tuple[str, Any]]:
    yield from ((key, 1) for key in UNKNOWN_KEYS)
    yield from BAD_VALUES


def refusal(config: Any, folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command line says of a config that it must refuse."""
    path = folder / "config.yaml"
    if isinstance(config, str):
        path.write_text(config)
    else:
        YAML(typ="safe", pure=True).dump(config, path)
    code = main(["run", str(path), "--out", str(folder / "out"), *arguments])
    captured = capsys.readouterr()
    assert code == 2
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err + captured.out
    assert not (folder / "out" / "results.jsonl").exists()
    return captured.err


def test_there_are_a_hundred_mangled_configs() -> None:
    assert len(list(cases())) >= 100


def test_the_good_config_is_good() -> None:
    found = cells(copy.deepcopy(GOOD))
    assert [(cell.arm, cell.seed) for cell in found] == [
        *((arm, 3) for arm in ("mono_forward", "backprop", "ff")),
        *((arm, 4) for arm in ("ff", "backprop", "mono_forward")),
    ]
    assert found[1].fit.epochs == 3
    assert found[1].fit.batch_size == 64
    assert found[2].net.record()["hidden"] == [8]
    assert found[0].net.record()["hidden"] == [32, 16]
    assert len({cell.id for cell in found}) == 6


@pytest.mark.parametrize(("key", "value"), list(cases()), ids=lambda v: str(v)[:30])
def test_a_mangled_config_is_refused_by_name(
    key: str, value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal(mangled(key, value), tmp_path, capsys)
    last = next(part for part in reversed(key.split(".")) if not part.isdigit())
    assert last in message
    given = value if isinstance(value, str) and value != DROP else None
    assert given is None or given in message


@pytest.mark.parametrize(("key", "value"), AT_RUN_TIME, ids=lambda v: str(v)[:30])
def test_errors_that_need_the_data_are_refused_too(
    key: str, value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = mangled(key, value)
    config["seeds"] = [0]
    message = refusal(config, tmp_path, capsys)
    assert str(value[0] if isinstance(value, list) else value) in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("trainer: {id: mono_forward", "not valid YAML"),
        ("- a\n- b\n", "expected keys and values"),
        ("", "expected keys and values"),
        ("seeds: [1]\nseeds: [2]\n", "not valid YAML"),
        ("trainer: {lr: 1e-3}\x00", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_mapping(
    text: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in refusal(text, tmp_path, capsys)


def test_missing_file_and_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml: no such file" in capsys.readouterr().err
    assert main(["run", str(tmp_path)]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "none")]) == 2
    assert "no such file" in capsys.readouterr().err


def test_set_overrides_and_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = copy.deepcopy(GOOD)
    override(config, "trainer.lr=2e-4")
    override(config, "controls.0.fit.epochs=7")
    override(config, "net.hidden=[5, 6]")
    found = cells(config)
    assert found[0].trainer.settings.lr == 2e-4
    assert found[1].fit.epochs == 7
    assert found[0].net.record()["hidden"] == [5, 6]
    for bad in (
        "trainer.lr",
        "=3",
        "trainer.lr.deep=1",
        "controls.9.fit.epochs=1",
        "controls.x=1",
        "net.hidden=[5,",
    ):
        assert bad.split("=")[0].strip("=") in refusal(GOOD, tmp_path, capsys, "--set", bad)
    assert "lr" in refusal(GOOD, tmp_path, capsys, "--set", "trainer.lr=.nan")


def test_yaml_floats_without_a_dot_are_floats(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("lr: 1e-3\n")
    assert read_yaml(path) == {"lr": 1e-3}


def test_the_cell_id_depends_on_all_but_the_label() -> None:
    base = cells(copy.deepcopy(GOOD))[0].id
    assert cells(mangled("label", "other"))[0].id == base
    for key, value in [("trainer.lr", 0.5), ("fit.epochs", 9), ("net.dropout", 0.0), ("seeds", [9])]:
        assert cells(mangled(key, value))[0].id != base


def test_two_equal_arms_are_refused() -> None:
    config = copy.deepcopy(GOOD)
    config["controls"].append(copy.deepcopy(config["controls"][0]))
    with pytest.raises(BadValue, match="two arms are the same"):
        cells(config)


def test_a_graph_takes_its_fold_from_the_seed_unless_it_is_given() -> None:
    config = {
        "name": "graph",
        "dataset": {"name": "digits_graph"},
        "net": {"name": "gat", "hidden": [8, 8], "heads": 2},
        "trainer": {"id": "forward_gnn", "lr": 1e-2},
        "controls": [{"trainer": {"id": "hop_ridge"}}],
        "seeds": [1, 6],
    }
    found = cells(config)
    assert [cell.seed for cell in found] == [1, 1, 6, 6]
    first, again = (load_data(cell, torch.device("cpu")) for cell in (found[0], found[2]))
    assert torch.equal(first.test.ids, again.test.ids)  # type: ignore[attr-defined]
    assert torch.equal(first.test.ids, load_graph("digits_graph", fold=1).test.ids)  # type: ignore[attr-defined]
    fixed = cells({**config, "dataset": {"name": "digits_graph", "fold": 3}})[0]
    expected = load_graph("digits_graph", fold=3).test.ids
    assert torch.equal(load_data(fixed, torch.device("cpu")).test.ids, expected)  # type: ignore[attr-defined]
    for key, value, word in (
        ("fold", 5, "fold"),
        ("augment", ["flip"], "augment"),
        ("split", "odd", "split"),
    ):
        with pytest.raises(BadValue, match=word):
            cells({**config, "dataset": {"name": "digits_graph", key: value}})
