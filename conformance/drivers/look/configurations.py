"""What a class that takes one configuration object is given: an object of the class that is there for it, or of none."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from conformance.drivers.look.names import ROLES, role_of


class Configuration:
    """An object that has whatever a configuration calls for, under any name that is in use for it, as attribute or as item.

    `fields` holds further ones. What was asked for and is not there is kept in `missing`."""

    def __init__(self, values: dict[str, Any], fields: dict[str, Any]):
        self._values, self._fields = {"name": "default"} | values, fields
        self._missing: list[str] = []

    @property
    def missing(self) -> list[str]:
        return self._missing

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name in self._fields:
            return self._fields[name]
        role = ROLES.get(name) or role_of(name)
        if role not in self._values:
            self._missing.append(name)
            raise AttributeError(f"a configuration of no class has no {name}")
        return self._values[role]

    def __getitem__(self, name: str) -> Any:
        try:
            return getattr(self, name)
        except AttributeError:
            raise KeyError(name) from None

    def __contains__(self, name: str) -> bool:
        return hasattr(self, name)

    def keys(self) -> set[str]:
        return {"rank", "alpha", *self._fields}

    def get(self, name: str, default: Any = None) -> Any:
        return getattr(self, name, default)


def kind_for(argument: inspect.Parameter, call: Callable[..., Any]) -> type | None:
    """The class of the configuration that the argument takes: its annotation, or the only class beside the call that holds a
    rank and is no module."""
    if holds_a_rank(argument.annotation):
        return argument.annotation
    if role_of(argument.name) != "configuration":
        return None
    beside = vars(inspect.getmodule(call) or object).values()
    found = [value for value in beside if holds_a_rank(value)]
    return found[0] if len(found) == 1 else None


def holds_a_rank(value: Any) -> bool:
    """Whether it is a class of configurations: no module, and one of its fields is a rank."""
    plain = isinstance(value, type) and not issubclass(value, nn.Module)
    return plain and any(role_of(name) == "rank" for name in fields_of(value))


def fields_of(kind: type) -> dict[str, Any]:
    """The fields of the class → the default of each, or inspect.Parameter.empty: the fields of a dataclass, the arguments of
    the constructor, the attributes of the class."""
    found = {name: value for name, value in vars(kind).items() if not name.startswith("_") and not callable(value) and not (
        isinstance(value, property | classmethod | staticmethod))}
    if dataclasses.is_dataclass(kind):
        for field in dataclasses.fields(kind):
            default = field.default if field.default is not dataclasses.MISSING else inspect.Parameter.empty
            found[field.name] = default if field.default_factory is dataclasses.MISSING else field.default_factory()
        return found
    for name, argument in _arguments(kind).items():
        found[name] = argument.default
    return found


def _arguments(kind: type) -> dict[str, inspect.Parameter]:
    try:
        every = inspect.signature(kind).parameters
    except (TypeError, ValueError):
        return {}
    return {name: p for name, p in every.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def made(kind: type, known: dict[str, Any], fields: dict[str, Any]) -> Any:
    """An object of the class, with the known values of roles, and with `fields` as they are."""
    have = fields_of(kind)
    values = {name: known[role] for name in have if (role := role_of(name)) in known and role != "configuration"} | fields
    taken = _arguments(kind)
    one = kind(**{name: value for name, value in values.items() if name in taken})
    for name, value in values.items():
        if name not in taken:
            setattr(one, name, value)
    return one
