"""Ways to call a class or function. Names, annotations and defaults give an order; a trial decides."""

import dataclasses
import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from conformance.drivers.look.arguments import Beside, Plan
from conformance.drivers.look.names import AROUND, ONCE, PARTS, ROLES, SURE, role_of

MOST = 400  # plans that are tried for one class
METHOD_PLANS = 20  # and for a method that is called afterwards
# What an argument that no name explains may stand for, by its annotation.
ANYTHING = ("linear", "in", "out", "rank", "alpha", "width", "model", "weight", "configuration", "one", "name", "false",
            "true", "convolution", "turned weight")
BY_KIND = {
    "bool": ("false", "true"), "str": ("name",), "int": ("rank", "in", "out", "alpha", "width", "one"),
    "float": ("alpha", "zero", "one", "rank"), "Module": ("linear", "model", "convolution"), "Linear": ("linear",),
    "Tensor": ("weight", "b", "turned weight"), "Parameter": ("weight", "b", "turned weight"),
    "list": ("targets",), "List": ("targets",), "Iterable": ("targets",), "Sequence": ("targets",),
}


def plans(call: Callable[..., Any]) -> Iterator[Plan]:
    """Ways to call it, the likeliest first."""
    arguments, positional = signature(call)
    kind = next((found for a in arguments if (found := _configuration(a, call)) is not None), None)
    options = {a.name: _likely(a) for a in arguments}
    if not any(found[0] == "rank" for found in options.values()):  # then a width that has a default may be the rank
        options |= {name: ["rank", *found] for name, found in options.items() if found[0] == "width" and len(found) == 1}
    every = itertools.islice(_ordered(list(options.values())), 20 * MOST)
    roles = ({name: role for name, role in zip(options, chosen, strict=True) if role} for chosen in every)
    for given in itertools.islice(filter(_coherent, roles), MOST):
        yield Plan(call, given, positional, kind if "configuration" in given.values() else None)


def signature(call: Callable[..., Any]) -> tuple[list[inspect.Parameter], tuple[str, ...]]:
    """The arguments of the call. In the place of *args and **kwargs stand those of the base class that gets them. Also the
    names of those that can only be given by place."""
    own = list(inspect.signature(call).parameters.values())
    named = [p for p in own if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    passed_on = {p.kind for p in own} & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    if not passed_on or not isinstance(call, type):
        return named, ()
    first = next((i for i, cls in enumerate(call.__mro__) if "__init__" in vars(cls)), 0)
    base = next((cls for cls in call.__mro__[first + 1 :] if "__init__" in vars(cls) and cls not in (nn.Module, object)), None)
    if base is None:
        return named, ()
    more = [p for p in signature(base)[0] if p.name not in {q.name for q in named}]
    if inspect.Parameter.VAR_KEYWORD in passed_on:
        return [*more, *named], ()
    more = [p for p in more if p.default is p.empty]
    return [*more, *named], tuple(p.name for p in more)


def more_steps(plan: Plan) -> Iterator[Plan]:
    """The plan, with numbers that are set beside the class, or with a method that is called afterwards. They are tried for a
    class whose arguments have no rank."""
    if plan.offers("rank") or not isinstance(plan.call, type):
        return
    if beside := _beside(plan.call):
        yield dataclasses.replace(plan, beside=beside)
    for name, method in vars(plan.call).items():
        if not inspect.isfunction(method) or name.startswith("__"):
            continue
        arguments = [a for a in list(inspect.signature(method).parameters.values())[1:]
                     if a.kind not in (a.VAR_POSITIONAL, a.VAR_KEYWORD)]
        if any(ROLES.get(a.name) == "rank" for a in arguments):
            for chosen in itertools.islice(_ordered([_likely(a) for a in arguments]), METHOD_PLANS):
                roles = {a.name: role for a, role in zip(arguments, chosen, strict=True) if role}
                if _once(list(roles.values())):
                    yield dataclasses.replace(plan, then=Plan(method, roles))


def turned(plan: Plan) -> Plan:
    """The plan with in and out exchanged."""
    other = {"in": "out", "out": "in"}
    return dataclasses.replace(plan, roles={name: other.get(role, role) for name, role in plan.roles.items()})


def _beside(call: type) -> tuple[Beside, ...]:
    """The rank, alpha and dropout that the class itself holds, or a dict of the module."""
    wanted = ("rank", "alpha", "dropout")
    found = [Beside(call, name, ROLES[name]) for name, value in vars(call).items()
             if ROLES.get(name) in wanted and isinstance(value, int | float)]
    if any(one.role == "rank" for one in found):
        return tuple(found)
    for value in vars(inspect.getmodule(call) or object).values():
        named = [key for key in value if isinstance(key, str) and ROLES.get(key) in wanted] if isinstance(value, dict) else []
        if any(ROLES[key] == "rank" for key in named):
            return tuple(Beside(value, key, ROLES[key]) for key in named)
    return ()


def _ordered(options: list[list[str]]) -> Iterator[tuple[str, ...]]:
    """Every choice of one item from each list, those first that take early items."""
    for late in range(sum(len(found) - 1 for found in options) + 1):
        yield from _of_lateness(options, late)


def _of_lateness(options: list[list[str]], late: int) -> Iterator[tuple[str, ...]]:
    if not options:
        if late == 0:
            yield ()
        return
    room = sum(len(found) - 1 for found in options[1:])
    for place in range(max(0, late - room), min(late, len(options[0]) - 1) + 1):
        for rest in _of_lateness(options[1:], late - place):
            yield (options[0][place], *rest)


def _once(roles: list[str]) -> bool:
    once = [role for role in roles if role in ONCE]
    return len(set(once)) == len(once)


def _coherent(given: dict[str, str]) -> bool:
    """Whether these roles make a layer: they give both sizes once, and pairs are whole."""
    roles = list(given.values())
    pairs = ("in" in roles) == ("out" in roles) and ("down" in roles) == ("up" in roles)
    if not _once(roles) or not pairs or "b" in roles and not {"weight", "turned weight"} & set(roles):
        return False
    around = {role for role in AROUND if role in roles}
    if "in" in roles or "width" in roles and "out" not in roles:
        return around <= {"configuration", "linear", "weight", "turned weight"}
    return 1 <= len(around) <= 2


def _likely(argument: inspect.Parameter) -> list[str]:
    """What the argument may stand for, the likeliest first. "" leaves it out."""
    default, needed, kind = argument.default, argument.default is argument.empty, _kind(argument)
    role = role_of(argument.name)
    if role in PARTS and argument.name not in ROLES and isinstance(default, bool | str):
        role = None  # it says whether, or in which way
    tensor = kind in ("Tensor", "Parameter")
    if role == "scaling" and not isinstance(default, str) or role == "multiplier" and not needed:
        role = None  # a number that overrides the rule, and not the name of a rule
    if role == "bias" and (isinstance(default, str) or tensor):
        role = "b" if tensor else None  # PEFT's bias says which biases train
    if role == "bias" and not kind and (needed or default is None):
        return ["bias", "b", *[""] * (not needed)]
    if role == "b" and kind in ("bool", "int"):
        role = "bias"
    if role is not None and not needed and role != "weight":
        return [role, *[""] * (role in AROUND)]
    if not needed:
        return [""]
    if role is not None and role in SURE:
        return [role]
    if dataclasses.is_dataclass(argument.annotation):
        return ["configuration"]
    first = [] if role is None else [role]
    return list(dict.fromkeys([*first, *BY_KIND.get(kind, ANYTHING)]))


def _kind(argument: inspect.Parameter) -> str:
    """The kind of the annotation, one of BY_KIND. "" if there is none, or another one."""
    if argument.annotation is argument.empty:
        return ""
    text = str(getattr(argument.annotation, "__name__", argument.annotation))
    return text if text in BY_KIND else next((kind for kind in BY_KIND if kind[0].isupper() and kind in text), "")


def _configuration(argument: inspect.Parameter, call: Callable[..., Any]) -> type | None:
    """The dataclass of a configuration: the argument's annotation, or the only one beside the call that has a rank."""
    if isinstance(argument.annotation, type) and dataclasses.is_dataclass(argument.annotation):
        return argument.annotation
    if ROLES.get(argument.name) != "configuration":
        return None
    beside = vars(inspect.getmodule(call) or object).values()
    found = [value for value in beside if isinstance(value, type) and dataclasses.is_dataclass(value) and any(
        ROLES.get(field.name) == "rank" for field in dataclasses.fields(value))]
    return found[0] if len(found) == 1 else None
