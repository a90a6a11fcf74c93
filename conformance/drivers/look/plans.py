"""Ways to call a class or function. Names, annotations and defaults give an order; a trial decides."""

import dataclasses
import inspect
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from conformance.drivers.look.arguments import Plan
from conformance.drivers.look.configurations import holds_a_rank, kind_for
from conformance.drivers.look.names import AROUND, MERGES, ONCE, PARTS, ROLES, SIZES, SURE, role_of, whole

MOST = 400  # plans that are tried for one class
PART_PLANS = 3  # and for the class of a LoRA part that it is given
# What an argument that no name explains may stand for, by its annotation.
ANYTHING = ("linear", "in", "out", "rank", "alpha", "width", "part", "model", "weight", "configuration", "single", "one",
            "name", "false", "true", "convolution", "turned weight", "targets", "down", "up", "sizes", "turned sizes", "none")
BY_KIND = {
    "bool": ("false", "true"), "str": ("name",), "int": ("rank", "in", "out", "alpha", "single", "width"),
    "float": ("alpha", "zero", "one", "rank"), "Linear": ("linear", "down", "up", "convolution"),
    "Conv1D": ("convolution", "linear"),
    "Module": ("linear", "part", "model", "convolution", "down", "up"),
    "Tensor": ("weight", "b", "turned weight"), "Parameter": ("weight", "b", "turned weight"),
    "tuple": ("sizes", "turned sizes", "targets"), "Tuple": ("sizes", "turned sizes", "targets"),
    "Size": ("turned sizes", "sizes"), "dict": ("configuration",),
    "Dict": ("configuration",), "list": ("targets",), "List": ("targets",), "Iterable": ("targets",),
    "Sequence": ("targets",),
}


def plans(call: Callable[..., Any], with_parts: bool = True) -> Iterator[Plan]:
    """Ways to call it, the likeliest first. Without `with_parts` there are none that give it a ready LoRA module."""
    arguments, positional = signature(call)
    kind = next((found for a in arguments if (found := kind_for(a, call)) is not None), None)
    options = _told_apart({a.name: likely(a) for a in arguments}, arguments)
    if not any(found[0] == "rank" for found in options.values()):  # then a width that has a default may be the rank
        options |= {name: ["rank", *found] for name, found in options.items() if found[0] == "width" and len(found) == 1}
        if not any("out" in found for found in options.values()):  # and in is out, too
            options |= {name: [*found, "width"] for name, found in options.items() if found[0] == "in"}
    hidden = {p.name for p in _hidden(call, {p.name for p in parameters_of(call)})}
    every = itertools.islice(ordered(list(options.values())), 20 * MOST)
    roles = ({name: role for name, role in zip(options, chosen, strict=True) if role} for chosen in every)
    for given in itertools.islice(filter(_coherent, roles), MOST):
        plan = Plan(call, given, positional, kind if "configuration" in given.values() else None)
        if "part" not in given.values():
            yield plan
        if "configuration" in given.values() and hidden & set(given):  # it may have them
            yield dataclasses.replace(plan, roles={name: role for name, role in given.items() if name not in hidden})
        for part in _parts(call, arguments) if with_parts and "part" in given.values() else ():
            yield dataclasses.replace(plan, part=part)


def _told_apart(options: dict[str, list[str]], arguments: list[inspect.Parameter]) -> dict[str, list[str]]:
    """The options, without those of an optional argument that has a role by a part of its name while another argument has the
    role: rank_dropout stands beside dropout."""
    taken = {role for name in options if (role := whole(name))}
    for argument in arguments:
        role = options[argument.name][0]
        if role in PARTS.values() and not whole(argument.name) and argument.default is not argument.empty:
            if role in taken:
                options[argument.name] = [""]
            taken.add(role)
    return options


def _parts(call: Callable[..., Any], arguments: list[inspect.Parameter]) -> Iterator[Plan]:
    """Ways to make a LoRA module that the call is given: its class is named by an annotation, or stands beside the call. No
    such class is a linear layer itself."""
    beside = [a.annotation for a in arguments] + list(vars(inspect.getmodule(call) or object).values())
    for cls in dict.fromkeys(value for value in beside if _own_module(value) and value is not call):
        if not issubclass(cls, nn.Linear) and any(role_of(a.name) == "rank" for a in signature(cls)[0]):
            whole = (plan for plan in plans(cls, with_parts=False) if plan.offers("rank"))
            yield from itertools.islice(whole, PART_PLANS)


def _own_module(value: Any) -> bool:
    """Whether it is a class of modules that is not torch's."""
    return isinstance(value, type) and issubclass(value, nn.Module) and not value.__module__.startswith("torch.")


def parameters_of(call: Callable[..., Any]) -> list[inspect.Parameter]:
    """The parameters of the call, with annotations that are no texts where their names are known."""
    try:
        return list(inspect.signature(call, eval_str=True).parameters.values())
    except Exception:  # an annotation may be any text
        return list(inspect.signature(call).parameters.values())


def methods(call: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    """The methods that the author of a class wrote: those of torch's classes are left out."""
    if not isinstance(call, type):
        return {}
    found: dict[str, Callable[..., Any]] = {}
    for cls in reversed(call.__mro__):
        if not cls.__module__.startswith("torch.") and cls is not object:
            found |= {name: value for name, value in vars(cls).items() if inspect.isfunction(value)}
    return found


def signature(call: Callable[..., Any]) -> tuple[list[inspect.Parameter], tuple[str, ...]]:
    """The arguments of the call. In the place of *args and **kwargs stand those of the base class that gets them. Also the
    names of those that can only be given by place."""
    own = parameters_of(call)
    named = [p for p in own if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    passed_on = {p.kind for p in own} & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    if inspect.Parameter.VAR_KEYWORD in passed_on:
        named += _hidden(call, {p.name for p in named})
    if not passed_on or not isinstance(call, type):
        return named, ()
    first = next((i for i, cls in enumerate(call.__mro__) if "__init__" in vars(cls)), 0)
    base = next((cls for cls in call.__mro__[first + 1 :] if "__init__" in vars(cls) and cls not in (nn.Module, object)), None)
    if base is None:
        return named, ()
    more = [p for p in signature(base)[0] if p.name not in {q.name for q in named}]
    if any(role_of(q.name) in AROUND or _kind(q) == "Linear" for q in named):  # the sizes are those of the layer
        more = [p for p in more if role_of(p.name) not in SIZES]
    if inspect.Parameter.VAR_KEYWORD in passed_on:
        return [*more, *named], ()
    more = [p for p in more if p.default is p.empty]
    return [*more, *named], tuple(p.name for p in more)


def _hidden(call: Callable[..., Any], known: set[str]) -> list[inspect.Parameter]:
    """Further arguments that the call may read from its **kwargs: names of the rank, alpha and dropout among its constants."""
    function = call.__init__ if isinstance(call, type) else call
    constants = function.__code__.co_consts if inspect.isfunction(function) else ()
    wanted = [one for one in constants if isinstance(one, str) and ROLES.get(one) in PARTS.values() and one not in known]
    return [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in wanted]


def turned(plan: Plan) -> Plan:
    """The plan with in and out exchanged."""
    other = {"in": "out", "out": "in"}
    return dataclasses.replace(plan, roles={name: other.get(role, role) for name, role in plan.roles.items()})


def ordered(options: list[list[str]]) -> Iterator[tuple[str, ...]]:
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


def once(roles: list[str]) -> bool:
    once = [role for role in roles if role in ONCE]
    return len(set(once)) == len(once)


def _coherent(given: dict[str, str]) -> bool:
    """Whether these roles make a layer: they give both sizes once, and pairs are whole."""
    roles = list(given.values())
    pairs = ("in" in roles) == ("out" in roles) and ("down" in roles) == ("up" in roles)
    if not once(roles) or not pairs or "b" in roles and not {"weight", "turned weight"} & set(roles):
        return False
    around = {role for role in AROUND if role in roles}
    if not around and ("down" in roles or "rank" in roles and not {"width", "in"} & set(roles)):
        return True  # the factors give the sizes, or a later call does
    if "in" in roles or "width" in roles and "out" not in roles:
        return around <= {"configuration", "linear", "weight", "turned weight"}
    return 1 <= len(around) <= 2


def likely(argument: inspect.Parameter) -> list[str]:
    """What the argument may stand for, the likeliest first. "" leaves it out."""
    default, needed, kind = argument.default, argument.default is argument.empty, _kind(argument)
    role = role_of(argument.name)
    if kind == "Conv1D" or "conv1d" in argument.name.lower() and not kind:
        return list(BY_KIND["Conv1D"])
    if role in ("down", "up", "part") and kind in ("int", "float", "bool", "str"):
        role = None
    if role in PARTS.values() and argument.name not in ROLES and isinstance(default, bool | str):
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
    if role in ("part", "down", "up") and not needed:
        return ["", role] if default is None else [""]
    if role is not None and not needed and role != "weight":
        return [role, *[""] * (role in AROUND)]
    if role == "weight" and default is None:
        return ["", "weight", "turned weight"]
    if not needed:
        return [""]
    if role is not None and role in SURE:
        return [role]
    if dataclasses.is_dataclass(argument.annotation) or holds_a_rank(argument.annotation):
        return ["configuration"]
    if _own_module(argument.annotation):
        return ["part", "linear", "convolution"]
    if role is None and not kind and any(word in argument.name.lower() for word in MERGES):
        return ["false", "true"]
    first = [] if role is None else ["sizes", "turned sizes"] if role == "sizes" else [role]
    return list(dict.fromkeys([*first, *BY_KIND.get(kind, ANYTHING)]))


def _kind(argument: inspect.Parameter) -> str:
    """The kind of the annotation, one of BY_KIND. "" if there is none, or another one."""
    if argument.annotation is argument.empty:
        return ""
    plain = isinstance(argument.annotation, type)
    text = argument.annotation.__name__ if plain else str(argument.annotation)
    words = set(re.findall(r"\w+", text))
    return text if text in BY_KIND else next((kind for kind in BY_KIND if kind[0].isupper() and kind in words), "")
