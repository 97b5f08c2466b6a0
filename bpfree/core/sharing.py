"""Checks that no parameter, loss or module is used in two blocks, where two optimizers would update it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from bpfree._errors import BadValue
from bpfree.core.block import BaseBlock, Block

#: Fix for a loss that is used in several blocks.
ONE_LOSS_PER_BLOCK = "create a loss for each block, for example [Loss() for _ in blocks]"


class HasBlocks(Protocol):
    """The part of `Cascade` that the checks use."""

    readouts: nn.ModuleDict

    @property
    def units(self) -> list[BaseBlock]:
        """The blocks, bottom first."""


class Part(NamedTuple):
    """Modules that are updated together.

    Attributes:
        label: Name of the part in messages.
        modules: Modules by name.
        learns: Whether parameters that require a gradient are updated.
    """

    label: str
    modules: dict[str, nn.Module]
    learns: bool


class Use(NamedTuple):
    """Use of a parameter in a part, and whether it is updated there."""

    part: Part
    name: str
    tensor: Tensor
    updated: bool


def gradient_groups(blocks: Sequence[BaseBlock]) -> list[tuple[str, list[Block]]]:
    """Groups of blocks with labels, bottom first. No gradient passes from one group to another."""
    groups: list[tuple[str, list[Block]]] = []
    for k, block in enumerate(blocks, 1):
        parts = block.parts
        if len(parts) > 1 and block.detach:
            groups += [(f"block {k}.{j}", [part]) for j, part in enumerate(parts, 1)]
        else:
            groups.append((f"block {k}", parts))
    return groups


def check_objects(cascade: HasBlocks) -> None:
    """Check that no block, loss or readout object is used twice.

    Raises:
        BadValue: If an object is used twice.
    """
    blocks = [(label, block) for label, group in gradient_groups(cascade.units) for block in group]
    check_once("block", blocks, "create a Block for each position")
    losses = [(label, block.loss) for label, block in blocks]
    check_once("loss", losses, ONE_LOSS_PER_BLOCK)
    learning = [(f"readout {n!r}", r) for n, r in cascade.readouts.items() if getattr(r, "learns", False)]
    check_once("readout", learning, "create a readout for each name")


def check_once(kind: str, objects: Iterable[tuple[str, nn.Module]], fix: str) -> None:
    """Check that all objects are different.

    Args:
        kind: Kind of the objects, in messages.
        objects: Objects with labels.
        fix: What to do if two objects are the same.

    Raises:
        BadValue: If two objects are the same.
    """
    labels_of = defaultdict(list)
    for label, module in objects:
        labels_of[id(module)].append(label)
    for labels in labels_of.values():
        if len(labels) > 1:
            raise BadValue(f"{', '.join(labels[:-1])} and {labels[-1]} have the same {kind} object; {fix}")


def check_weights(cascade: HasBlocks, net: nn.Module | None = None) -> None:
    """Check that no trainable parameter of a block or readout is used by another one.

    Args:
        cascade: A cascade with built blocks and readouts.
        net: The network, for the names of parameters in messages.

    Raises:
        BadValue: If two blocks or readouts share running statistics, or a parameter that one of them updates;
            or if two parameters of one of them share memory.
    """
    parts = separate_parts(cascade)
    names: dict[int, list[str]] = defaultdict(list)
    if net is not None:
        for name, p in net.named_parameters(remove_duplicate=False):
            names[id(p)].append(name)
    for a, b in shared_weights(parts):
        first, second = (" = ".join(names.get(id(use.tensor), [use.name])) for use in (a, b))
        if a.part is b.part:
            raise BadValue(
                f"{first} and {second} are two parameters that share memory, but have separate gradients; "
                "use the same nn.Parameter in both layers, or separate weights"
            )
        what = (
            f"the weight {first} is used" if first == second else f"{first} and {second} are one tensor, used"
        )
        raise BadValue(
            f"{what} in {a.part.label} and in {b.part.label}, which are updated separately; use separate "
            "weights, or set cut so that the layers that share them are in one block"
        )
    _check_statistics(parts)


def shared_weights(parts: Sequence[Part]) -> list[tuple[Use, Use]]:
    """Pairs of uses that share memory, at least one of which is updated.

    Two uses of one parameter in the same part are allowed, and are left out.
    """
    by_storage: dict[int, list[Use]] = defaultdict(list)
    for part in parts:
        for prefix, module in part.modules.items():
            for name, p in module.named_parameters(prefix):
                if p.numel() and not p.is_meta:
                    use = Use(part, f"{part.label}: {name}", p, part.learns and p.requires_grad)
                    by_storage[p.untyped_storage().data_ptr()].append(use)
    return [
        (a, b)
        for uses in by_storage.values()
        for a, b in combinations(uses, 2)
        if (a.part is not b.part or a.tensor is not b.tensor)
        and (a.updated or b.updated)
        and _overlap(a.tensor, b.tensor)
    ]


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors with the same storage share an element."""
    if a is b or a.element_size() != b.element_size():
        return True
    size = a.untyped_storage().nbytes() // a.element_size()
    elements = torch.zeros(size, dtype=torch.bool)
    elements.as_strided(a.shape, a.stride(), a.storage_offset()).fill_(True)
    return bool(elements.as_strided(b.shape, b.stride(), b.storage_offset()).any())


def separate_parts(cascade: HasBlocks) -> list[Part]:
    """Parts of a cascade that are updated separately: blocks and readouts; and fronts, which are fixed."""
    parts: list[Part] = []
    for label, group in gradient_groups(cascade.units):
        fronts: dict[str, nn.Module] = {}
        bodies: dict[str, nn.Module] = {}
        losses: dict[str, nn.Module] = {}
        for j, block in enumerate(group):
            prefix = f"blocks.{j}." if len(group) > 1 else ""
            bodies[f"{prefix}body"], losses[f"{prefix}loss"] = block.body, block.loss
            if block.front is not None:
                fronts[f"{prefix}front"] = block.front
        parts.append(Part(f"the fixed front of {label}", fronts, False))
        if any(not block.rule.autograd for block in group):
            # The closed form does not sum the gradients of two uses of a parameter.
            parts += [Part(label, bodies, True), Part(f"the head of {label}", losses, True)]
        else:
            parts.append(Part(label, bodies | losses, True))
    parts += [
        Part(f"readout {name!r}", {"": readout}, True)
        for name, readout in cascade.readouts.items()
        if getattr(readout, "learns", False)
    ]
    return parts


def _check_statistics(parts: Sequence[Part]) -> None:
    """Check that no layer with running statistics is in two trainable parts.

    Raises:
        BadValue: If a layer is in two parts.
    """
    labels_of: Mapping[int, list[str]] = defaultdict(list)
    for part in parts:
        modules = {m for module in part.modules.values() for m in module.modules()} if part.learns else set()
        for norm in modules:
            parameters = list(norm.parameters())
            frozen = bool(parameters) and not any(p.requires_grad for p in parameters)
            if isinstance(norm, _NormBase) and norm.running_mean is not None and not frozen:
                labels_of[id(norm)].append(part.label)
    for labels in labels_of.values():
        if len(labels) > 1:
            raise BadValue(
                f"{labels[0]} and {labels[1]} share a normalization layer with running statistics, but are "
                "updated separately; use separate layers"
            )
