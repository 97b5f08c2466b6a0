"""Old names of public things: accepted for one release, with a warning that gives the new name."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
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


def refuse_old_members(cls: type, table: Mapping[str, str]) -> None:
    """Refuse a class that overrides a member of 0.1, which nothing calls any more.

    Args:
        cls: The class, as ``__init_subclass__`` gets it.
        table: What takes the place of each old member.

    Raises:
        BadValue: naming the member and its replacement.
    """
    for name in table.keys() & cls.__dict__.keys():
        raise BadValue(f"{cls.__name__}.{name} is no longer called: use {table[name]}")


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


#: Modules of 0.1, and what holds their names now.
OLD_MODULES = {
    "bpfree.cascade": "bpfree.core",
    "bpfree.cutting": "bpfree.core.localize",
    "bpfree.graph": "bpfree.graphs.graph",
    "bpfree.graph_encodings": "bpfree.encodings.graph",
    "bpfree.readouts": "bpfree.core.readouts",
    "bpfree.sparse": "bpfree.graphs.sparse",
    "bpfree.stacked": "bpfree.core.stacked",
    "bpfree.trainers.settings": "bpfree.engine.settings",
}


class _OldModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the modules of `OLD_MODULES` under their new names."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self) if name in OLD_MODULES else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        new = OLD_MODULES[spec.name]
        warn_renamed(spec.name, new, stacklevel=2)
        module = ModuleType(spec.name)
        vars(module).update(vars(importlib.import_module(new)))
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: `create_module` has set all names."""


def accept_old_modules() -> None:
    """Let ``import bpfree.readouts`` and other old module names import the new modules, with a warning."""
    if not any(isinstance(finder, _OldModules) for finder in sys.meta_path):
        sys.meta_path.append(_OldModules())
