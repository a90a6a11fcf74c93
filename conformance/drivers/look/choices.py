"""The words among which an argument chooses, as the code of a class or function tells them."""

import ast
import inspect
import textwrap
import typing
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from torch import nn

from conformance.drivers.look.arguments import Plan
from conformance.drivers.look.plans import parameters_of

MOST = 8  # values that are tried for one argument


def chosen(plan: Plan) -> Iterator[Plan]:
    """The plan, with one of its values for an argument that must be given and chooses among words: those of its annotation, as
    Literal["a", "b"], and those that the code compares it with. Or with None for one that is False unless it is given: some
    code tells only None from a choice. Or with a module for one that is a class of modules unless it is given."""
    compared = _compared(plan.call)
    for argument in parameters_of(plan.call):
        if argument.default is argument.empty and argument.name in plan.roles:
            annotation = argument.annotation
            named = typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()
            for value in [*named, *compared.get(argument.name, [])][:MOST]:
                roles = {name: role for name, role in plan.roles.items() if name != argument.name}
                yield replace(plan, roles=roles, literals=plan.literals | {argument.name: value})
        elif argument.default is False and argument.name not in plan.roles:
            yield replace(plan, literals=plan.literals | {argument.name: None})
        elif isinstance(argument.default, type) and issubclass(argument.default, nn.Module) and argument.name not in plan.roles:
            with suppress(Exception):
                yield replace(plan, literals=plan.literals | {argument.name: argument.default()})


def without_fields(plan: Plan) -> Iterator[Plan]:
    """The plan, with None for a field of a configuration that was added as False."""
    for name in [name for name, value in plan.fields.items() if value is False and plan.kind is None]:
        yield replace(plan, fields=plan.fields | {name: None})


def _compared(call: Callable[..., Any]) -> dict[str, list[str]]:
    """The words that the code compares a name with, in ==, in `in`, in a match statement, or as keys of a dict: name → words.
    Those of an attribute, such as self.mode, are under its name."""
    found: dict[str, list[str]] = {}
    with suppress(OSError, TypeError, SyntaxError):
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(call)))):
            if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq | ast.NotEq | ast.In | ast.NotIn):
                subject, values = node.left, node.comparators
            elif isinstance(node, ast.Match):
                subject, values = node.subject, [case.pattern for case in node.cases]
            elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Dict):
                subject, values = node.slice, [key for key in node.value.keys if key is not None]
            else:
                continue
            name = subject.id if isinstance(subject, ast.Name) else subject.attr if isinstance(subject, ast.Attribute) else ""
            within = [one.value for value in values for one in ast.walk(value) if isinstance(one, ast.Constant)]
            found.setdefault(name, []).extend(word for word in within if isinstance(word, str))
    return {name: list(dict.fromkeys(words)) for name, words in found.items() if name}
