"""Local losses by name, so that a configuration can ask for one, with its options."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, field, fields, make_dataclass
from functools import cache
from typing import Any, get_type_hints

from bpfree._errors import BadValue
from bpfree._settings import STRICT, did_you_mean, validate
from bpfree.losses.base import LocalLoss

_LOSSES: dict[str, type[LocalLoss]] = {}


def register_loss(name: str) -> Callable[[type[LocalLoss]], type[LocalLoss]]:
    """Class decorator: make a `LocalLoss`, constructed from keywords, known as ``name``.

    Its options are those arguments of its constructor that a configuration can spell (numbers, names, lists
    of them); `make_loss` checks them by their annotations.

    Raises:
        BadValue: If another class has that name already.
    """

    def decorator(loss: type[LocalLoss]) -> type[LocalLoss]:
        known = _LOSSES.get(name)
        if known is not None and known.__qualname__ != loss.__qualname__:
            raise BadValue(f"a local loss named {name!r} exists already: choose another name")
        _LOSSES[name] = loss
        return loss

    return decorator


def make_loss(name: str, options: Mapping[str, Any] | None = None) -> LocalLoss:
    """A new instance of the loss known as ``name``.

    Args:
        name: The name.
        options: Arguments of its constructor.

    Raises:
        BadValue: If there is none of that name, or it has no such option, or a value is bad.
    """
    if name not in _LOSSES:
        raise BadValue(f"unknown local loss {name!r}; {did_you_mean(name, _LOSSES)}")
    kind = _LOSSES[name]
    if not options:
        return kind()
    checked: Any = validate(_options(kind), options, f"loss_options of {name!r}")
    return kind(**{option: getattr(checked, option) for option in options})


@cache
def _options(kind: type[LocalLoss]) -> type:
    """A dataclass of the options of ``kind``."""
    hints = get_type_hints(kind.__init__, include_extras=True)
    spelled = [
        (name, hints.get(name, Any), field(default=MISSING if p.default is p.empty else p.default))
        for name, p in inspect.signature(kind).parameters.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and _can_be_spelled(hints.get(name, Any))
    ]
    return make_dataclass(
        kind.__name__, spelled, frozen=True, kw_only=True, namespace={"__pydantic_config__": STRICT}
    )


def _can_be_spelled(hint: Any) -> bool:
    from pydantic import PydanticSchemaGenerationError, TypeAdapter

    try:
        TypeAdapter(hint)
    except PydanticSchemaGenerationError:
        return False  # a module, a tensor
    return True


def loss_names() -> list[str]:
    """The names that `make_loss` knows."""
    return sorted(_LOSSES)


def loss_options(name: str) -> list[str]:
    """The names of the options of the loss known as ``name``."""
    return [option.name for option in fields(_options(_LOSSES[name]))]
