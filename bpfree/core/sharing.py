"""Blocks that learn apart must own what they learn: one tensor moved by two optimizers is moved twice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from bpfree._errors import BadValue
from bpfree.core.block import BaseBlock, Block

#: How losses are given to blocks.
OWN_LOSSES = "make a loss for each block, for example [Loss() for _ in blocks]"


class HasBlocks(Protocol):
    """A cascade."""

    readouts: Any

    @property
    def units(self) -> list[BaseBlock]:
        """The blocks, bottom first."""


class Part(NamedTuple):
    """Modules that learn together.

    Attributes:
        label: What an error calls them.
        modules: The modules, by name.
        learns: Whether parameters of theirs that are not frozen are moved.
    """

    label: str
    modules: dict[str, nn.Module]
    learns: bool


class Held(NamedTuple):
    """A parameter, who holds it, and whether it is moved there."""

    part: Part
    name: str
    tensor: Tensor
    moved: bool


def gradient_groups(blocks: Sequence[BaseBlock]) -> list[tuple[str, list[Block]]]:
    """Groups of blocks between which no gradient passes, bottom first, each with its label."""
    found: list[tuple[str, list[Block]]] = []
    for k, block in enumerate(blocks, 1):
        parts = block.parts
        if len(parts) > 1 and block.detach:
            found += [(f"block {k}.{j}", [part]) for j, part in enumerate(parts, 1)]
        else:
            found.append((f"block {k}", parts))
    return found


def check_objects(cascade: HasBlocks) -> None:
    """Check that no block, loss or readout object is in two places.

    Raises:
        BadValue: If one does, naming the places.
    """
    blocks = [(label, block) for label, group in gradient_groups(cascade.units) for block in group]
    check_once("block", blocks, "make a Block for each")
    losses = [(label, block.loss) for label, block in blocks]
    check_once("loss", losses, OWN_LOSSES)
    learning = [(f"readout {n!r}", r) for n, r in cascade.readouts.items() if getattr(r, "learns", False)]
    check_once("readout", learning, "make a readout for each name")


def check_once(kind: str, objects: Iterable[tuple[str, nn.Module]], fix: str) -> None:
    """Check that no two of the labelled ``objects`` are one.

    Raises:
        BadValue: If two are, naming their labels, what kind they are, and the fix.
    """
    places = defaultdict(list)
    for label, found in objects:
        places[id(found)].append(label)
    for labels in places.values():
        if len(labels) > 1:
            raise BadValue(f"{', '.join(labels[:-1])} and {labels[-1]} are given one {kind} object: {fix}")


def check_weights(cascade: HasBlocks, net: nn.Module | None = None) -> None:
    """Check that what a block or readout learns is used by no other.

    Args:
        cascade: Blocks and readouts, with their heads.
        net: The network, whose names of parameters are used in the message.

    Raises:
        BadValue: If two of them share weights that one of them learns, or running statistics; or if two
            parameters of one of them lie in one memory.
    """
    parts = parts_of(cascade)
    names: dict[int, list[str]] = defaultdict(list)
    if net is not None:
        for name, p in net.named_parameters(remove_duplicate=False):
            names[id(p)].append(name)
    for a, b in shared_weights(parts):
        first, second = (" = ".join(names.get(id(held.tensor), [held.name])) for held in (a, b))
        if a.part is b.part:
            raise BadValue(
                f"{first} and {second} are two parameters in one memory, each with a gradient of its own: "
                "tie them by one nn.Parameter, or give each layer weights of its own"
            )
        what = (
            f"the weight {first} is used" if first == second else f"{first} and {second} are one tensor, used"
        )
        raise BadValue(
            f"{what} in {a.part.label} and in {b.part.label}, which learn apart: give each layer weights of "
            "its own, or cut the network so that the layers that share them are in one block"
        )
    _check_statistics(parts)


def shared_weights(parts: Sequence[Part]) -> list[tuple[Held, Held]]:
    """Pairs of parameters with memory in common, of which one is moved, that are not one in one part."""
    stored: dict[int, list[Held]] = defaultdict(list)
    for part in parts:
        for prefix, module in part.modules.items():
            for name, p in module.named_parameters(prefix):
                if p.numel() and not p.is_meta:
                    held = Held(part, f"{part.label}: {name}", p, part.learns and p.requires_grad)
                    stored[p.untyped_storage().data_ptr()].append(held)
    return [
        (a, b)
        for together in stored.values()
        for a, b in combinations(together, 2)
        if (a.part is not b.part or a.tensor is not b.tensor)
        and (a.moved or b.moved)
        and _overlap(a.tensor, b.tensor)
    ]


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one storage have an element in common."""
    if a is b or a.element_size() != b.element_size():
        return True
    size = a.untyped_storage().nbytes() // a.element_size()
    taken = torch.zeros(size, dtype=torch.bool)
    taken.as_strided(a.shape, a.stride(), a.storage_offset()).fill_(True)
    return bool(taken.as_strided(b.shape, b.stride(), b.storage_offset()).any())


def parts_of(cascade: HasBlocks) -> list[Part]:
    """What learns apart in a cascade: blocks, readouts; and the fronts of blocks, which do not learn."""
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
            # The closed form sets each gradient once: it does not add up those of two uses.
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
    """Raise if a layer with running statistics is in two parts that train."""
    seen: Mapping[int, list[str]] = defaultdict(list)
    for part in parts:
        modules = {m for module in part.modules.values() for m in module.modules()} if part.learns else set()
        for norm in modules:
            own = list(norm.parameters())
            frozen = bool(own) and not any(p.requires_grad for p in own)
            if isinstance(norm, _NormBase) and norm.running_mean is not None and not frozen:
                seen[id(norm)].append(part.label)
    for labels in seen.values():
        if len(labels) > 1:
            raise BadValue(
                f"{labels[0]} and {labels[1]} share a normalization layer with running statistics, and learn "
                "apart: give each a layer of its own"
            )
