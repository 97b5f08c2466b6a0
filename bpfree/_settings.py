"""Settings are frozen dataclasses; pydantic checks them, and what it finds is told in one plain sentence."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, TypeVar

from bpfree._errors import BadValue

T = TypeVar("T")

#: Put into a dataclass as ``__pydantic_config__``: unknown keys, NaN and silent conversions are errors.
STRICT = {"extra": "forbid", "strict": True, "allow_inf_nan": False}


def validate(settings: type[T], values: Mapping[str, Any], where: str) -> T:
    """Make a ``settings`` dataclass out of ``values``.

    Raises:
        BadValue: naming every key that is unknown or has a bad value, the value, and what is allowed.
    """
    from pydantic import ValidationError

    for key in values:
        if not isinstance(key, str):
            raise BadValue(f"{where}.{key!r}: unknown key; keys are names, and this is none")
    try:
        checked: T = _checked(settings)(**values)  # type: ignore[arg-type]
        return checked
    except ValidationError as error:
        raise BadValue("\n".join(_sentences(error, settings, where))) from None


@dataclass(frozen=True)
class Must:
    """Says of a field, as in ``Annotated[str, Must(check)]``, that ``check`` must take its value.

    Attributes:
        check: Raises a ValueError that says what was expected.
    """

    check: Callable[[Any], object]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import PydanticCustomError, core_schema

        def checked(value: Any) -> Any:
            try:
                self.check(value)
            except ValueError as error:
                text = str(error).replace("{", "{{").replace("}", "}}")
                raise PydanticCustomError("value", text) from None
            return value

        return core_schema.no_info_after_validator_function(checked, handler(source))


@cache
def _checked(settings: type) -> Any:
    """A subclass of ``settings`` whose constructor checks its arguments."""
    from pydantic import dataclasses

    checked: Any = dataclasses.dataclass(settings, frozen=True, kw_only=True)
    # It has the name of `settings`, so pickle would look it up there and find another class.
    checked.__reduce__ = lambda self: (
        _remade,
        (settings, {f.name: getattr(self, f.name) for f in fields(self)}),
    )
    return checked


def _remade(settings: type, values: dict[str, Any]) -> Any:
    return _checked(settings)(**values)


def _sentences(error: Any, settings: type, where: str) -> Iterator[str]:
    for item in error.errors(include_url=False):
        path = ".".join([where, *map(str, item["loc"])]).strip(".")
        if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            yield f"{path}: unknown key; {allowed_keys(settings, str(item['loc'][-1]))}"
        elif item["type"] in ("missing", "missing_argument"):
            yield f"{path}: missing; it must be given"
        else:
            yield f"{path} = {item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}"


def allowed_keys(settings: type, key: str) -> str:
    """Say which keys ``settings`` has, the nearest to ``key`` first."""
    return did_you_mean(key, settings.__dataclass_fields__)  # type: ignore[attr-defined]


def did_you_mean(name: str, names: Mapping[str, Any] | list[str] | tuple[str, ...]) -> str:
    """Say what ``names`` there are, and which of them ``name`` may have meant."""
    near = difflib.get_close_matches(name, list(names), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}allowed: {', '.join(sorted(names)) or 'none'}"
