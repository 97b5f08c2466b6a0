"""State on disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bpfree import BadValue
from bpfree.trainers import checkpoint as ckpt
from tests.helpers import make_cnn, make_mlp

CPU = torch.device("cpu")


def test_tensors_and_state_come_back_as_they_were(tmp_path: Path) -> None:
    tensors = {"a": torch.rand(3, 4).T, "n": torch.tensor(7), "b.c": torch.rand(2).to(torch.bfloat16)}
    state = {"position": {"epoch": 3, "best": 0.1}, "names": ["ä", "b"], "none": None}
    ckpt.write(tmp_path / "new" / "file", tensors, state)
    found, told = ckpt.read(tmp_path / "new" / "file", CPU)
    assert told == state
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype


def test_a_write_that_breaks_off_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    ckpt.write(path, {"a": torch.zeros(1)}, {"old": True})

    def broken(*_: Any) -> None:
        raise OSError("the disk is full")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, broken)
            with pytest.raises(BadValue, match="file: cannot be written: the disk is full"):
                ckpt.write(path, {"a": torch.ones(1)}, {"old": False})
        assert ckpt.read(path, CPU)[1] == {"old": True}
        assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_a_file_of_another_kind_is_an_error(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "foreign")
    with pytest.raises(BadValue, match="foreign: not a bpfree state file"):
        ckpt.read(tmp_path / "foreign", CPU)


def test_prefixes_go_on_and_come_off() -> None:
    tensors = {"a": torch.zeros(1), "b.c": torch.ones(1)}
    merged = ckpt.prefixed("x", tensors) | ckpt.prefixed("x2", {"a": torch.ones(2)})
    assert ckpt.under("x", merged).keys() == tensors.keys()


@pytest.mark.parametrize(
    "make",
    [
        lambda ps: torch.optim.Adam(ps, 0.1, fused=True),
        lambda ps: torch.optim.AdamW(ps, 0.1, fused=True),
        lambda ps: torch.optim.SGD(ps, 0.1, momentum=0.9, fused=True),
        lambda ps: torch.optim.SGD(ps, 0.1, momentum=0.0, fused=True),
    ],
    ids=["adam", "adamw", "momentum", "sgd"],
)
def test_an_optimizer_goes_on_as_if_it_had_never_stopped(make: Any) -> None:
    nets = [make_mlp(), make_mlp()]
    optimizers = [make(list(net.parameters())) for net in nets]
    x = torch.rand(8, 12)

    def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        net(x).square().sum().backward()
        optimizer.step()

    for _ in range(3):
        step(nets[0], optimizers[0])
    nets[1].load_state_dict(nets[0].state_dict())
    # Copies, as a file makes them: else both would hold the same tensors.
    saved = {name: tensor.clone() for name, tensor in ckpt.optimizer_tensors(optimizers[0]).items()}
    ckpt.load_optimizer(optimizers[1], saved)
    for net, optimizer in zip(nets, optimizers, strict=True):
        step(net, optimizer)
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))


def test_a_module_is_loaded_whole_or_not_at_all() -> None:
    net = make_cnn()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    names = list(before)
    other = {name: tensor + 1 for name, tensor in before.items()}
    for wrong in (
        {**other, "extra": torch.zeros(1)},
        {name: other[name] for name in names[1:]},
        {**other, names[0]: torch.zeros(1)},
    ):
        with pytest.raises(BadValue, match=f"these tensors do not fit: ({names[0]}|extra)"):
            ckpt.load_module(net, wrong, Path("file"))
        assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    ckpt.load_module(net, other, Path("file"))
    assert torch.equal(net.state_dict()[names[0]], other[names[0]])
