"""Executes derivations/transformer.md and methods.md: each numbered equation holds up to rounding, and a mistake in it shows.

A section of a page has its values in tests/pages, by its title: names for random arrays, and for what loops, other forms of the
same function and the complex step make of them. No formula of the pages is used to find them.
"""

import ast
import functools
from collections.abc import Iterator

import numpy as np
import pytest
from pages import methods, transformer
from pages.definitions import SECTIONS, Names, sigma
from pages.equations import Equation, check_numbers, equations, name_of, python_of, sides, stated_shape

from lora_ref.error.gradcheck import relative_error

GRADIENT_ERROR = 1e-12  # every gradient agrees with the complex step to this, relatively

PAGES = {"transformer": transformer, "methods": methods}  # which put their sections into SECTIONS
EQUATIONS = [equation for page in PAGES for equation in equations(page)]
FUNCTIONS = {"exp": np.exp, "log": np.log, "tanh": np.tanh, "sqrt": np.sqrt, "abs": np.abs, "π": np.pi}


@functools.cache
def names_of(page: str, title: str, condition: str) -> Names:
    return FUNCTIONS | {"σ": sigma} | SECTIONS[page, title](condition)


def error(equation: Equation, right: str) -> float:
    """Of a right side in Python, beside the largest entry of the left; of "0 · T", beside the largest entry of T."""
    names = names_of(equation.page, equation.section, equation.condition)
    left, own = python_of(equation.left), python_of(equation.right)
    got, want = (np.asarray(side, float) for side in sides(left, right, names))
    beside = np.asarray(sides(left, own.removeprefix("0 * "), names)[own.startswith("0 * ")], float)
    return relative_error(got, want, np.full(got.shape, np.abs(beside).max()))


def slips(node: ast.AST, source: str) -> Iterator[str]:
    """Mistakes that can replace a part of a formula."""

    def of(part: ast.AST) -> str:
        return f"({ast.get_source_segment(source, part)})"

    match node:
        case ast.BinOp(left, op, right):  # the other sign; one of the two left out
            if isinstance(op, ast.Add | ast.Sub):
                yield of(left) + ("-" if isinstance(op, ast.Add) else "+") + of(right)
            yield from (of(left), of(right))
        case ast.UnaryOp(_, part) | ast.Attribute(part, "T"):
            yield of(part)
        case ast.Call(ast.Name("loop"), [_, term]):  # the first term alone
            yield f"({of(term)})(0)"
        case ast.Call(_, [argument]):
            yield of(argument)
        case ast.Constant(int() | float() as value):
            yield f"{value + 1}"


def spoiled(right: str) -> Iterator[str]:
    """The right side, in Python, with one mistake in it."""
    yield f"{right} + 1"
    if right.startswith("0 * "):  # nothing behind the zero can be wrong
        yield right.removeprefix("0 * ")
        return
    yield f"-({right})"
    source = right.encode()
    for node in ast.walk(ast.parse(right, mode="eval")):
        for instead in slips(node, right):
            before, after = source[: node.col_offset], source[node.end_col_offset :]  # type: ignore[attr-defined]
            yield f"{before.decode()}({instead}){after.decode()}"


@pytest.mark.parametrize("equation", EQUATIONS, ids=name_of)
def test_the_equation_holds(equation: Equation) -> None:
    assert error(equation, python_of(equation.right)) < GRADIENT_ERROR


@pytest.mark.parametrize("equation", EQUATIONS, ids=name_of)
def test_the_equation_has_the_stated_shape(equation: Equation) -> None:
    names = names_of(equation.page, equation.section, equation.condition)
    left, _ = sides(python_of(equation.left), "0", names)
    assert np.shape(left) == stated_shape(equation, names)


@pytest.mark.parametrize("equation", EQUATIONS, ids=name_of)
def test_a_mistake_in_the_equation_is_seen(equation: Equation) -> None:
    for mistake in spoiled(python_of(equation.right)):
        try:
            with np.errstate(all="ignore"):
                assert error(equation, mistake) >= GRADIENT_ERROR, f"{equation.left} = {mistake} holds too"
        except (ValueError, IndexError):
            pass  # shapes that do not fit, or a place outside, which is as good


@pytest.mark.parametrize("page", PAGES)
def test_the_equations_are_numbered_from_1_and_every_reference_has_its_equation(page: str) -> None:
    check_numbers(page)


def test_every_section_of_values_has_its_equations() -> None:
    assert set(SECTIONS) == {(equation.page, equation.section) for equation in EQUATIONS}
