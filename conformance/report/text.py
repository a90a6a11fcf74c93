"""Prints paragraphs, and names with a text beside each. No line has spaces at its end, and what is too long for a line, such as
a link, goes on in the next one: nothing is cut off on a narrow terminal."""

from collections.abc import Iterable

from rich.console import Console
from rich.style import StyleType
from rich.text import Text

GAP = 2  # spaces between the names and the texts
NARROW = 36  # columns: a text that would get fewer stands below its name


def paragraph(console: Console, text: str, indent: int = 0, hanging: int = 0, style: StyleType = "") -> None:
    """Prints the text, wrapped. Each line but the first is indented by `hanging` more."""
    for number, line in enumerate(_wrapped(console, text, indent + hanging)):
        console.print(Text(" " * (indent + hanging * bool(number)) + line), soft_wrap=True, style=style)


def pairs(console: Console, rows: Iterable[tuple[str, str]], indent: int = 0) -> None:
    """Prints a pair after the other. An empty name continues the one before it."""
    rows = list(rows)
    names = max((len(name) for name, _ in rows), default=0) + GAP
    beside = console.width - indent - names >= NARROW
    start = indent + (names if beside else GAP)
    for name, text in rows:
        short = not beside and len(name) + GAP + len(text) <= console.width - indent  # fits beside its name all the same
        lines = _wrapped(console, text, 0 if short else start)
        if beside or short:
            first = f"{name:{names if beside else len(name) + GAP}}{lines[0] if lines else ''}".rstrip()
            console.print(Text(" " * indent + first), soft_wrap=True)
            lines = lines[1:]
        elif name:
            console.print(Text(" " * indent + name), soft_wrap=True)
        for line in lines:
            console.print(Text(" " * start + line), soft_wrap=True)


def _wrapped(console: Console, text: str, start: int) -> list[str]:
    """The lines of the text, to the right of `start` columns."""
    return [line.plain.rstrip() for line in Text(text).wrap(console, max(1, console.width - start), overflow="fold")]
