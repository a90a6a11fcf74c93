"""What is done with a layer after it was made: methods that give it what its constructor does not take, and whatever may switch
it on. Names give an order; a trial decides."""

import inspect
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from conformance.drivers.look.actions import Aside, Attribute, FirstPass, Forward, parts_of
from conformance.drivers.look.arguments import Beside, Plan
from conformance.drivers.look.configurations import fields_of
from conformance.drivers.look.names import AROUND, ROLES, chooses, harmless, role_of, switches
from conformance.drivers.look.plans import likely, methods, once, ordered, parameters_of, signature

METHOD_PLANS = 20  # that are tried for a method
GIVES = {"rank", "in", "out", "down", *AROUND}  # what a method may give to a layer that lacks it
NEUTRAL = ("training", "merged", "is_merged", "inplace")  # attributes that are no switches


def completed(plan: Plan) -> Iterator[Plan]:
    """The plan, with numbers that are set beside the class, with a method that is called afterwards, or with a first pass. They
    are tried for a class whose constructor does not get all that a layer needs."""
    if beside := _beside(plan.call) if isinstance(plan.call, type) and not plan.offers("rank") else ():
        yield replace(plan, beside=beside)
    for name, method in methods(plan.call).items():
        arguments = [a for a in parameters_of(method)[1:] if a.kind not in (a.VAR_POSITIONAL, a.VAR_KEYWORD)]
        gives = {role_of(a.name) for a in arguments} & GIVES
        if gives and not name.startswith("__") and name != "forward" and harmless(name):
            for chosen in itertools.islice(ordered([likely(a) for a in arguments]), METHOD_PLANS):
                roles = {a.name: role for a, role in zip(arguments, chosen, strict=True) if role}
                if once(list(roles.values())):
                    yield replace(plan, then=(*plan.then, Plan(method, roles)))
    if not plan.then:
        yield replace(plan, then=(Plan(FirstPass(), {"x": "x"}),))


def constructors(call: Callable[..., Any]) -> list[Callable[..., Any]]:
    """The call, and the class methods of a class that may make one of it."""
    if not isinstance(call, type):
        return [call]
    return [call, *(getattr(call, name) for name, value in vars(call).items() if isinstance(value, classmethod | staticmethod)
                    and not name.startswith("_") and harmless(name))]


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


# --- switches ------------------------------------------------------------------------------------------------------------


def switched(plan: Plan, made: Any) -> Iterator[Plan]:
    """The plan, with one further thing that may switch the layer on: a method, a function beside the class, a flag of the call
    or of its configuration, or an attribute. `made` is what the plan gives."""
    keys = _keys(made)
    if needed := needed_besides_x(made) if isinstance(made, nn.Module) else []:
        roles = {name: "rank" for name in needed if role_of(name) == "rank"}
        others = [name for name in needed if name not in roles]
        for values in itertools.islice(itertools.product((1.0, *keys, 0, True, None, keys), repeat=len(others)), METHOD_PLANS):
            literals = dict(zip(others, values, strict=True))
            yield replace(plan, then=(*plan.then, Plan(Forward(), roles, literals=literals)))
    for step in (*_own_steps(made, keys), *_steps_aside(plan.call, keys)):
        yield replace(plan, then=(*plan.then, step))
    for argument in signature(plan.call)[0]:
        if isinstance(argument.default, bool) and argument.name not in plan.roles:
            yield replace(plan, literals=plan.literals | {argument.name: not argument.default})
    for name, default in fields_of(plan.kind).items() if plan.kind is not None else ():
        if isinstance(default, bool) and role_of(name) is None:
            yield replace(plan, fields=plan.fields | {name: not default})
    for attribute in _attributes(made, keys):
        yield replace(plan, then=(*plan.then, Plan(attribute, {})))


def needed_besides_x(module: nn.Module) -> list[str]:
    """The arguments besides x that the forward pass cannot do without."""
    every = parameters_of(module.forward)[1:]
    return [p.name for p in every if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _own_steps(made: Any, keys: list[str]) -> Iterator[Plan]:
    for name, method in methods(type(made)).items():
        if switches(name):
            yield from _calls(method, parameters_of(method)[1:], keys)


def _steps_aside(call: Callable[..., Any], keys: list[str]) -> Iterator[Plan]:
    """Calls of functions that stand beside the class, with the module or without it."""
    for name, function in vars(inspect.getmodule(call) or object).items():
        if inspect.isfunction(function) and function is not call and switches(name):
            arguments = parameters_of(function)
            yield from _calls(Aside(function), arguments, keys) if chooses(name) else ()
            yield from _calls(function, arguments[1:], keys) if arguments else ()


def _calls(call: Callable[..., Any], arguments: list[inspect.Parameter], keys: list[str]) -> Iterator[Plan]:
    """Calls with what switches something on: with nothing, or with True, a name, 1 or the layer for each argument needed."""
    needed = [a for a in arguments if a.default is a.empty and a.kind not in (a.VAR_POSITIONAL, a.VAR_KEYWORD)]
    roles = {a.name: str(role_of(a.name)) for a in needed if role_of(a.name) in ("linear", "model")}
    others = [a.name for a in needed if a.name not in roles]
    for values in itertools.islice(itertools.product((True, *keys, keys, 1.0), repeat=len(others)), METHOD_PLANS):
        yield Plan(call, roles, literals=dict(zip(others, values, strict=True)))


def _attributes(made: Any, keys: list[str]) -> Iterator[Attribute]:
    """Flags turned round, factors of 0 made 1, and names that are not given yet."""
    seen: set[str] = set()
    for part in parts_of(made):
        own = not type(part).__module__.startswith("torch.")
        for name, value in [*vars(part).items()] if own and hasattr(part, "__dict__") else ():
            if name in seen or name.startswith("__") or name in NEUTRAL:
                continue
            seen.add(name)
            if isinstance(value, bool):
                yield Attribute(name, not value)
            elif isinstance(value, int | float) and value == 0:
                yield Attribute(name, 1.0)
            elif value is None or isinstance(value, str | list) and not value:
                yield from (Attribute(name, key) for key in (*keys, keys))


def _keys(made: Any) -> list[str]:
    """Names that the module has for its adapters: the keys of its dicts, and the texts in its lists."""
    found: list[str] = []
    for part in parts_of(made):
        held = [*vars(part).values()] if hasattr(part, "__dict__") else []
        for value in (*held, *(part.children() if isinstance(part, nn.Module) else ()), part):
            if isinstance(value, dict | nn.ModuleDict | nn.ParameterDict):
                found += [key for key in value if isinstance(key, str) and not _is_torchs(part, value)]
            elif isinstance(value, list | tuple):
                found += [one for one in value if isinstance(one, str)]
    return list(dict.fromkeys([*found, "default"]))[:4]


def _is_torchs(part: Any, value: Any) -> bool:
    """Whether the dict is one of those in which torch keeps the parameters, buffers and hooks of a module."""
    return isinstance(part, nn.Module) and any(value is vars(part).get(name) for name in vars(torch.nn.Module()))
