"""Reads a config from its file, and changes single values of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bpfree._errors import BadValue

#: Keys and values of YAML and JSON.
Mapped = dict[str, Any]
Values = Mapping[str, Any]


def read_yaml(path: Path) -> Mapped:
    """The mapping in a YAML 1.2 file.

    Raises:
        BadValue: If the file is missing, is not YAML, has a key twice, or is not a mapping.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadValue(f"{path}: no such file; configs are YAML files, see the folder configs/") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadValue(f"{path}: cannot be read: {error}") from None
    except YAMLError as error:
        raise BadValue(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise BadValue(f"{path}: expected keys and values, not a {type(content).__name__}")
    return content


def override(config: Mapped, assignment: str) -> None:
    """Apply ``key.sub=value`` to a config in place; the value is read as YAML.

    Raises:
        BadValue: If it has no ``=``, or a key on the path is in neither a mapping nor a list.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    path, equals, text = assignment.partition("=")
    if not equals or not path:
        raise BadValue(f"--set {assignment}: expected key=value, for example trainer.lr=2e-4")
    try:
        value = YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        raise BadValue(f"--set {assignment}: {text!r} is not a YAML value") from None
    *parents, last = path.split(".")
    node: object = config
    for key in parents:
        node = _child(node, key, assignment)
    if isinstance(node, list):
        _child(node, last, assignment)
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise BadValue(f"--set {assignment}: a part of {path!r} before the last is a value without keys")


def _child(node: object, key: str, assignment: str) -> object:
    if isinstance(node, dict):
        return node.setdefault(key, {})
    if isinstance(node, list) and key.isdecimal() and int(key) < len(node):
        return node[int(key)]
    raise BadValue(f"--set {assignment}: no item {key!r} at that place of the config")
