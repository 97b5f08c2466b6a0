"""Splits a nested state into its arrays and its JSON values, and joins them again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

_ARRAY_KEY = "__array__"

#: A nested dict or list of arrays and JSON values.
State: TypeAlias = object
#: Arrays and JSON values by name, for `state_dict`.
StateDict: TypeAlias = dict[str, Any]
#: JSON values by name, for `report`.
Report: TypeAlias = dict[str, object]


def split_state(state: State) -> tuple[dict[str, NDArray[np.generic]], State]:
    """Split a nested state into ``(arrays, values)``.

    ``arrays`` maps the path of each array to the array. ``values`` is the state with a reference in the place
    of each array, so that JSON can store it. Numpy scalars and tuples become numbers and lists.
    """
    arrays: dict[str, NDArray[np.generic]] = {}

    def walk(node: State, path: str) -> State:
        if isinstance(node, np.ndarray):
            arrays[path] = node
            return {_ARRAY_KEY: path}
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


def join_state(arrays: Mapping[str, NDArray[np.generic]], values: State) -> Any:
    """Join what `split_state` has split."""
    if isinstance(values, Mapping):
        if set(values) == {_ARRAY_KEY}:
            return arrays[values[_ARRAY_KEY]]
        return {key: join_state(arrays, value) for key, value in values.items()}
    if isinstance(values, list):
        return [join_state(arrays, value) for value in values]
    return values
