"""Local losses by name, for configurations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, field, fields, make_dataclass
from functools import cache
from typing import get_type_hints

from bpfree._errors import BadValue
from bpfree._settings import STRICT, did_you_mean, validate
from bpfree.losses.base import LocalLoss

_LOSSES: dict[str, type[LocalLoss]] = {}


def register_loss(name: str) -> Callable[[type[LocalLoss]], type[LocalLoss]]:
    """Class decorator: register a `LocalLoss` under ``name``.

    The options of the loss are the arguments of its constructor whose values a configuration can have
    (numbers, strings, lists of them); `make_loss` checks them by their annotations.

    Raises:
        BadValue: If another class is registered under this name.
    """

    def decorator(loss: type[LocalLoss]) -> type[LocalLoss]:
        registered = _LOSSES.get(name)
        if registered is not None and registered.__qualname__ != loss.__qualname__:
            raise BadValue(
                f"register_loss({name!r}): {registered.__qualname__} already has this name; "
                "choose another one"
            )
        _LOSSES[name] = loss
        return loss

    return decorator


def make_loss(name: str, options: Mapping[str, object] | None = None) -> LocalLoss:
    """Return a new instance of the loss that is registered under ``name``.

    Args:
        name: The name.
        options: Arguments of its constructor.

    Raises:
        BadValue: If the name or an option is unknown, or the value of an option is invalid.
    """
    if name not in _LOSSES:
        raise BadValue(f"unknown local loss {name!r}; {did_you_mean(name, _LOSSES)}")
    kind = _LOSSES[name]
    if not options:
        return kind()
    checked: object = validate(_options(kind), options, f"loss_options of {name!r}")
    return kind(**{option: getattr(checked, option) for option in options})


@cache
def _options(kind: type[LocalLoss]) -> type:
    """Return a dataclass with the options of ``kind`` as fields."""
    hints = get_type_hints(kind.__init__, include_extras=True)
    options = [
        (name, hints.get(name, object), field(default=MISSING if p.default is p.empty else p.default))
        for name, p in inspect.signature(kind).parameters.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and _is_configurable(hints.get(name, object))
    ]
    return make_dataclass(
        kind.__name__, options, frozen=True, kw_only=True, namespace={"__pydantic_config__": STRICT}
    )


def _is_configurable(hint: type) -> bool:
    """Whether a configuration can have a value of this type; not so for modules and tensors."""
    from pydantic import PydanticSchemaGenerationError, TypeAdapter

    try:
        TypeAdapter(hint)
    except PydanticSchemaGenerationError:
        return False
    return True


def loss_names() -> list[str]:
    """Return the names of all registered losses."""
    return sorted(_LOSSES)


def loss_options(name: str) -> list[str]:
    """Return the names of the options of the loss that is registered under ``name``."""
    return [option.name for option in fields(_options(_LOSSES[name]))]
