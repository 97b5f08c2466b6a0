"""The configs of strong nets: every arm can be built, and has the declared block boundaries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from bpfree import BadValue
from bpfree.bench.config import Cell, cells
from bpfree.bench.sections import net_config

FOLDER = Path(__file__).parents[2] / "configs" / "strong"
SHAPES = {"mnist": (1, 28, 28), "fashion_mnist": (1, 28, 28), "cifar10": (3, 32, 32)}


def first_seed(path: Path) -> list[Cell]:
    config: dict[str, Any] = YAML(typ="safe", pure=True).load(path)
    return cells({**config, "seeds": [0], "device": "cpu"})


def narrow(cell: Cell) -> Any:
    """The cell's trainer with its net at a sixteenth of its width, but with a channel for each class."""
    net = {**cell.net.record(), "width": 0.16}
    if "hidden" in net:
        net["hidden"] = 16
    torch.manual_seed(0)
    made = net_config(net).build(SHAPES[cell.dataset.name], 10)
    return cell.trainer.make(made, 0, torch.device("cpu"))


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_arm_is_built_with_its_baselines(path: Path) -> None:
    found = first_seed(path)
    trainers = {cell.trainer.id for cell in found}
    assert {"local", "backprop", "backprop_ds", "mono_forward", "random_features"} <= trainers
    assert len({str(cell.net) for cell in found}) == 1
    assert len({str(cell.fit) for cell in found}) == 1
    for cell in found:
        trainer = narrow(cell)
        trainer.build(SHAPES[cell.dataset.name], 10)
        if cell.trainer.id == "local":
            assert trainer.locality in ("L1", "L2")
            assert len(trainer.cascade.units) > 6


@pytest.mark.parametrize(
    ("name", "count"), [("vgg8b", 8_900_234), ("vgg11b", 11_555_978), ("resnet", 11_173_962)]
)
def test_a_config_names_the_nets_and_their_settings(name: str, count: int) -> None:
    with torch.device("meta"):
        net = net_config({"name": name}).build((3, 32, 32), 10)
    assert sum(p.numel() for p in net.parameters()) == count
    with pytest.raises(BadValue, match=r"net\.widht: unknown key; did you mean 'width'"):
        net_config({"name": name, "widht": 0.5})
    with pytest.raises(BadValue, match="needs images"):
        net_config({"name": name}).build((12,), 10)
