"""Validation of settings, which are frozen dataclasses, with pydantic."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from bpfree._errors import BadValue

if TYPE_CHECKING:
    from _typeshed import DataclassInstance
    from pydantic import GetCoreSchemaHandler, ValidationError
    from pydantic_core import CoreSchema

T = TypeVar("T", bound="DataclassInstance")

#: Value of ``__pydantic_config__`` of a dataclass: unknown keys, NaN and conversions raise an error.
STRICT = {"extra": "forbid", "strict": True, "allow_inf_nan": False}


def validate(settings: type[T], values: Mapping[str, object], where: str) -> T:
    """Create an instance of the dataclass ``settings``.

    Args:
        settings: A dataclass.
        values: Values of its fields.
        where: Name of the section, in messages.

    Raises:
        BadValue: If a key is unknown or a value invalid. The message has one line for each such key, with the
            value and what was expected.
    """
    from pydantic import ValidationError

    for key in values:
        if not isinstance(key, str):
            raise BadValue(f"{where}.{key!r}: unknown key; expected the name of a setting")
    try:
        checked = _checked(settings)(**values)
    except ValidationError as error:
        raise BadValue("\n".join(_sentences(error, settings, where))) from None
    assert isinstance(checked, settings)
    return checked


@dataclass(frozen=True)
class Must:
    """Annotation of a field, as in ``Annotated[str, Must(check)]``: ``check`` validates the value.

    Attributes:
        check: Function of the value that raises a ValueError with what was expected.
    """

    check: Callable[[Any], object]

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import PydanticCustomError, core_schema

        def checked(value: object) -> object:
            try:
                self.check(value)
            except ValueError as error:
                text = str(error).replace("{", "{{").replace("}", "}}")
                raise PydanticCustomError("value", text) from None
            return value

        return core_schema.no_info_after_validator_function(checked, handler(source))


@cache
def _checked(settings: type[DataclassInstance]) -> Callable[..., object]:
    """Subclass of ``settings`` whose constructor validates its arguments."""
    from pydantic import dataclasses

    checked: Any = dataclasses.dataclass(settings, frozen=True, kw_only=True)
    # pickle would find `settings` by the name of the subclass, which is another class.
    checked.__reduce__ = lambda self: (
        _restore,
        (settings, {f.name: getattr(self, f.name) for f in fields(self)}),
    )
    constructor: Callable[..., object] = checked
    return constructor


def _restore(settings: type[DataclassInstance], values: dict[str, object]) -> object:
    return _checked(settings)(**values)


def _sentences(error: ValidationError, settings: type[DataclassInstance], where: str) -> Iterator[str]:
    for item in error.errors(include_url=False):
        path = ".".join([where, *map(str, item["loc"])]).strip(".")
        if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            yield f"{path}: unknown key; {allowed_keys(settings, str(item['loc'][-1]))}"
        elif item["type"] in ("missing", "missing_argument"):
            yield f"{path}: missing; set a value"
        else:
            yield f"{path} = {item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}"


def allowed_keys(settings: type[DataclassInstance], key: str) -> str:
    """List the keys of ``settings``, with the most similar to ``key`` first."""
    return did_you_mean(key, [f.name for f in fields(settings)])


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """List the allowed ``names``, with the most similar to ``name`` first."""
    names = sorted(names)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}allowed: {', '.join(names) or 'none'}"
