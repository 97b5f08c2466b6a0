"""Local losses by name, so that a configuration can ask for one."""

from __future__ import annotations

from collections.abc import Callable

from bpfree._errors import BadValue
from bpfree._settings import did_you_mean
from bpfree.losses._base import LocalLoss

_LOSSES: dict[str, Callable[[], LocalLoss]] = {}


def register_loss(name: str) -> Callable[[type[LocalLoss]], type[LocalLoss]]:
    """Class decorator: make a `LocalLoss`, constructed without arguments, known as ``name``.

    Raises:
        BadValue: If another class has that name already.
    """

    def decorator(loss: type[LocalLoss]) -> type[LocalLoss]:
        known = _LOSSES.get(name)
        if known is not None and getattr(known, "__qualname__", None) != loss.__qualname__:
            raise BadValue(f"a local loss named {name!r} exists already: choose another name")
        _LOSSES[name] = loss
        return loss

    return decorator


def make_loss(name: str) -> LocalLoss:
    """A new instance of the loss known as ``name``.

    Raises:
        BadValue: If there is none.
    """
    if name not in _LOSSES:
        raise BadValue(f"unknown local loss {name!r}; {did_you_mean(name, _LOSSES)}")
    return _LOSSES[name]()


def loss_names() -> list[str]:
    """The names that `make_loss` knows."""
    return sorted(_LOSSES)
