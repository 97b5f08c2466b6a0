"""State on disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bpfree import BadValue, MonoForward
from bpfree.engine import checkpoint as ckpt
from tests.helpers import make_cnn, make_mlp, vectors

CPU = torch.device("cpu")


def test_tensors_and_state_come_back_as_they_were(tmp_path: Path) -> None:
    tensors = {"a": torch.rand(3, 4).T, "n": torch.tensor(7), "b.c": torch.rand(2).to(torch.bfloat16)}
    state = {"position": {"epoch": 3, "best": 0.1}, "names": ["ä", "b"], "none": None}
    ckpt.write(tmp_path / "new" / "file", tensors, state)
    loaded, values = ckpt.read(tmp_path / "new" / "file", CPU)
    assert values == state
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor)
        assert loaded[name].dtype == tensor.dtype


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_file_of_another_kind_is_an_error(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "foreign")
    with pytest.raises(BadValue, match="foreign: not a bpfree state file"):
        ckpt.read(tmp_path / "foreign", CPU)


def test_prefixes_are_added_and_removed() -> None:
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
def test_a_loaded_optimizer_continues_as_the_saved_one(make: Any) -> None:
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


def test_a_module_is_loaded_completely_or_not_at_all() -> None:
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


def test_complex_tensors_keep_conjugation_sign_and_precision(tmp_path: Path) -> None:
    z = torch.randn(4, 3, dtype=torch.complex128)
    tensors = {
        "conjugate": z.to(torch.complex64).conj(),
        "negative": z.conj().imag,
        "negative without gaps": torch._neg_view(torch.randn(3)),
        "double": z,
        "double conjugate transposed": z.mH,
        "scalar": z[0, 0],
        "none": z[:0],
    }
    assert tensors["conjugate"].is_conj()
    assert tensors["negative"].is_neg()
    assert tensors["negative without gaps"].is_neg()
    ckpt.write(tmp_path / "file", tensors, {})
    loaded, _ = ckpt.read(tmp_path / "file", CPU)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].tolist() == tensor.tolist()


@pytest.mark.parametrize(
    "dtype",
    ["bool", "uint8", "int64", "uint16", "float16", "bfloat16", "float64", "float8_e4m3fn", "complex32"],
)
@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_other_types_keep_their_bytes(dtype: str, tmp_path: Path) -> None:
    tensor = torch.tensor([0.0, 1.0, -2.0]).to(getattr(torch, dtype))
    ckpt.write(tmp_path / "file", {"a": tensor}, {})
    loaded = ckpt.read(tmp_path / "file", CPU)[0]["a"]
    assert loaded.dtype == tensor.dtype
    assert torch.equal(loaded.view(torch.uint8), tensor.view(torch.uint8))


def test_tensors_that_share_memory_are_each_written(tmp_path: Path) -> None:
    tensor = torch.randn(4, 3)
    tensors = {"a": tensor, "b": tensor, "part": tensor[1:], "turned": tensor.T}
    ckpt.write(tmp_path / "file", tensors, {})
    loaded, _ = ckpt.read(tmp_path / "file", CPU)
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (torch.eye(3).to_sparse(), "sparse_coo"),
        (torch.eye(3, device="meta"), "meta"),
        ("text", "a str, not a tensor"),
    ],
)
def test_an_unsupported_tensor_is_refused_by_name(value: Any, kind: str, tmp_path: Path) -> None:
    with pytest.raises(BadValue, match=f"layer.buffer is .*{kind}.*cannot be saved"):
        ckpt.write(tmp_path / "file", {"layer.buffer": value}, {})
    assert not (tmp_path / "file").exists()


def test_a_run_is_refused_before_it_trains_if_its_state_cannot_be_saved(tmp_path: Path) -> None:
    net = make_mlp()
    net[1].register_buffer("mask", torch.eye(3).to_sparse())
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(BadValue, match="mask is a tensor of another kind"):
        MonoForward(net, progress=False).fit(vectors(), epochs=1, checkpoint=tmp_path / "run")
    assert all(torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))


class Rotated(nn.Module):
    """Weights its input by the real part of a complex buffer."""

    def __init__(self, phase: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("phase", phase)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        phase = self.get_buffer("phase")
        return (x * phase * phase.imag).imag.float()


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_a_net_with_a_conjugated_buffer_predicts_the_same_after_loading(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    def net(phase: torch.Tensor) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(Rotated(phase), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))

    phase = torch.randn(12, dtype=dtype)
    trained = MonoForward(net(phase.conj()), progress=False)
    trained.fit(vectors(), epochs=1)
    trained.save(tmp_path / "file")
    loaded = MonoForward(net(torch.zeros_like(phase)), progress=False)
    loaded.load(tmp_path / "file", (12,))
    assert torch.equal(loaded.model(vectors().x), trained.model(vectors().x))
