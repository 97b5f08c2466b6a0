"""Old names of public things: accepted for one release, with a warning that gives the new name."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from bpfree._errors import BadValue


def warn_renamed(old: str, new: str, stacklevel: int = 3) -> None:
    """Warn that ``old`` is now ``new``."""
    warnings.warn(
        f"{old} is now {new}; the old name will be removed in the next release",
        FutureWarning,
        stacklevel=stacklevel,
    )


def module_getattr(module: str, table: Mapping[str, str]) -> Callable[[str], Any]:
    """A ``__getattr__`` for a module, by which attributes with old names can still be imported.

    Args:
        module: ``__name__`` of the module.
        table: The new name of each old one: an attribute of the module, or ``"package.module:attribute"``.
    """

    def get(name: str) -> Any:
        if name not in table:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        path, _, attribute = table[name].rpartition(":")
        warn_renamed(f"{module}.{name}", f"{path or module}.{attribute}")
        return getattr(importlib.import_module(path or module), attribute)

    return get


def with_new_keys(values: Mapping[str, Any], table: Mapping[str, str], where: str = "") -> dict[str, Any]:
    """``values`` with the old keys of ``table`` replaced by the new ones, in the same order.

    Args:
        values: Settings as a user gave them.
        table: The new key of each old one.
        where: Name of the section, for the message.

    Raises:
        BadValue: If both the old and the new key are given.
    """
    prefix = f"{where}." if where else ""
    for old, new in table.items():
        if old in values and new in values:
            raise BadValue(f"{prefix}{old} and {prefix}{new} are the same setting: give {new} alone")
    for old in values.keys() & table.keys():
        warn_renamed(f"{prefix}{old}", f"{prefix}{table[old]}", stacklevel=4)
    return {table.get(key, key): value for key, value in values.items()}
