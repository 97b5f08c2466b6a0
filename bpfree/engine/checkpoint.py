"""State files: tensors in the safetensors format, other values as JSON in the same file; no pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bpfree._errors import BadValue
from bpfree._types import JsonMapping, JsonObject

Tensors = dict[str, Tensor]

#: Metadata key: names of complex tensors that are saved as pairs of real numbers, ``[..., 2]``.
PAIRS = "complex_as_pairs"


def write(path: Path, tensors: Mapping[str, Tensor], state: JsonMapping) -> None:
    """Write both to ``path`` atomically: a reader finds the old file or the new one, never a part.

    Raises:
        BadValue: If it cannot be written, or the format does not support a tensor; an existing file is then
            unchanged.
    """
    from safetensors.torch import save

    check_path(path)
    plain, pairs = _plain(path, tensors)
    metadata = {"state": json.dumps(state)} | ({PAIRS: json.dumps(pairs)} if pairs else {})
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            file.write(save(plain, metadata=metadata))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise BadValue(f"{path}: cannot be written: {error.strerror or error}") from None


def check_tensors(path: Path, tensors: JsonMapping) -> None:
    """Check that the format supports ``tensors``.

    Raises:
        BadValue: naming the first that is not a dense tensor of numbers.
    """
    for name, value in tensors.items():
        kind = _unwritable(value)
        if kind is not None:
            raise BadValue(
                f"{path}: {name} is {kind}, which cannot be saved: leave it out of the state "
                "(persistent=False), or make it a dense tensor"
            )


def _plain(path: Path, tensors: JsonMapping) -> tuple[Tensors, list[str]]:
    """Dense tensors with memory of their own, and the names of those that are pairs for complex numbers."""
    check_tensors(path, tensors)
    plain: Tensors = {}
    pairs: list[str] = []
    stored: set[int] = set()
    for name, value in tensors.items():
        # The conjugate or negative of a tensor may be the tensor with a flag, which the format does not have.
        tensor = value.detach().resolve_conj().resolve_neg()
        if tensor.is_complex() and tensor.dtype != torch.complex64:
            tensor = torch.view_as_real(tensor)
            pairs.append(name)
        tensor = tensor.contiguous()
        # The format has no shared memory: tensors that a network shares are saved one by one.
        if tensor.untyped_storage().data_ptr() in stored:
            tensor = tensor.clone()
        stored.add(tensor.untyped_storage().data_ptr())
        plain[name] = tensor
    return plain, pairs


def _unwritable(value: Any) -> str | None:
    """Why the format does not support ``value``; None: it does."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}, not a tensor"
    if value.is_meta:
        return "a meta tensor, without values"
    if value.is_quantized or value.is_nested or value.layout != torch.strided:
        kind = "quantized" if value.is_quantized else "nested" if value.is_nested else str(value.layout)
        return f"a tensor of another kind ({kind})"
    return None


def check_path(path: Path) -> None:
    """Check that ``path`` can be a file; its folder is created.

    Raises:
        BadValue: If it cannot.
    """
    if path.is_dir():
        raise BadValue(f"{path} is a folder: name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise BadValue(f"{path}: {path.parent} is a file, not a folder; name another file") from None
    except OSError as error:
        raise BadValue(f"{path}: {path.parent} cannot be created: {error.strerror or error}") from None


def read(path: Path, device: torch.device) -> tuple[Tensors, JsonObject]:
    """The tensors and values that `write` wrote.

    Raises:
        BadValue: If the file is missing, or `write` did not write it.
    """
    from safetensors import SafetensorError, safe_open

    if path.is_dir():
        raise BadValue(f"{path} is a folder: name the file in it")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        for name in json.loads(metadata.get(PAIRS, "[]")):
            tensors[name] = torch.view_as_complex(tensors[name])
        return tensors, json.loads(metadata["state"])
    except FileNotFoundError:
        raise BadValue(
            f"{path}: no such file; it is written by Trainer.save or Trainer.fit(checkpoint=...)"
        ) from None
    except OSError as error:
        raise BadValue(f"{path}: cannot be read: {error}") from None
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise BadValue(f"{path}: not a bpfree state file ({error})") from None


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """``tensors`` with ``prefix.`` before each name."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """The tensors whose names begin with ``prefix.``, with that removed from the names."""
    start = prefix + "."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Tensors:
    """The tensors in an optimizer's state, by number of the parameter and name."""
    state = optimizer.state_dict()["state"]
    return {
        f"{i}.{name}": v for i, slot in state.items() for name, v in slot.items() if isinstance(v, Tensor)
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load the result of `optimizer_tensors`; the hyperparameters do not change."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    slots: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        # The format has no memory layout, and the rounding of a step depends on it: moments get the layout
        # of their parameter.
        parameter = parameters[int(index)]
        is_moment = tensor.shape == parameter.shape
        slots.setdefault(int(index), {})[name] = _with_layout(tensor, parameter) if is_moment else tensor
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})


@torch.no_grad()
def _with_layout(tensor: Tensor, like: Tensor) -> Tensor:
    return torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)


def load_module(module: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load ``tensors`` into ``module``.

    Raises:
        BadValue: naming the first tensors that are missing, unexpected, or of another shape.
    """
    state = module.state_dict()
    wrong = [name for name in state.keys() | tensors.keys() if name not in state or name not in tensors]
    wrong += [name for name in state.keys() & tensors.keys() if state[name].shape != tensors[name].shape]
    if wrong:
        raise BadValue(
            f"{path} contains another network: these tensors do not fit: {', '.join(sorted(wrong)[:5])}"
        )
    module.load_state_dict(dict(tensors))
