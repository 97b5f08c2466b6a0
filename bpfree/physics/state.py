"""A device's state is a dict of arrays and JSON values; here it is taken apart into the two and rejoined."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bpfree.physics.system import Array

_MARK = "__array__"


def split_state(state: Any) -> tuple[dict[str, Array], Any]:
    """The arrays of a nested state by path, and the state as JSON can hold it, with marks in their place.

    Numpy scalars and tuples become plain numbers and lists.
    """
    arrays: dict[str, Array] = {}

    def walk(node: Any, path: str) -> Any:
        if isinstance(node, np.ndarray):
            arrays[path] = node
            return {_MARK: path}
        if isinstance(node, np.generic):
            return node.item()
        if isinstance(node, Mapping):
            return {
                str(key): walk(value, f"{path}/{key}" if path else str(key)) for key, value in node.items()
            }
        if isinstance(node, list | tuple):
            return [walk(value, f"{path}/{i}") for i, value in enumerate(node)]
        return node

    return arrays, walk(state, "")


def join_state(arrays: Mapping[str, Array], rest: Any) -> Any:
    """Undo `split_state`."""
    if isinstance(rest, Mapping):
        if set(rest) == {_MARK}:
            return arrays[rest[_MARK]]
        return {key: join_state(arrays, value) for key, value in rest.items()}
    if isinstance(rest, list):
        return [join_state(arrays, value) for value in rest]
    return rest
