"""Tensors inside the inputs and outputs of modules: tuples, lists, mappings, dataclasses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import cast

from torch import Tensor

#: A tensor, or a container of such values and others.
Tree = object


def tensors(value: Tree) -> Iterator[Tensor]:
    """Yield the tensors of ``value``, in order, each occurrence once.

    Other objects, such as the key-value caches of a decoder, are not entered.
    """
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from tensors(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from tensors(getattr(value, field.name))


def map_tensors(function: Callable[[Tensor], object], value: Tree) -> Tree:
    """Return a copy of ``value`` in which each tensor is replaced by its image.

    Containers keep their type. A container without tensors is returned as it is.
    """
    if isinstance(value, Tensor):
        return function(value)
    if next(tensors(value), None) is None:
        return value
    if isinstance(value, Mapping):
        mapping = cast(dict[object, Tree], copy.copy(value))
        for key, item in value.items():
            mapping[key] = map_tensors(function, item)
        return mapping
    if isinstance(value, tuple | list):
        items = [map_tensors(function, item) for item in value]
        make = cast(Callable[..., Tree], type(value))
        return make(*items) if hasattr(value, "_fields") else make(items)
    assert is_dataclass(value)
    result = copy.copy(value)
    for field in fields(value):
        object.__setattr__(result, field.name, map_tensors(function, getattr(value, field.name)))
    return result


def replace(value: Tree, old: Tensor, new: Tensor) -> Tree:
    """Return ``value`` with the tensor ``new`` at all places of ``old``."""
    return map_tensors(lambda tensor: new if tensor is old else tensor, value)
