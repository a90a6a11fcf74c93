"""Reads lora-xfails.txt: the requirements that are expected to fail, each with the day on which that ends, and the reason.

    # requirement   until        reason
    SCALE-01        2027-03-31   alpha is not divided by the rank before 2.0, see issue 12
    SPACE:MERGE-02  2027-03-31   only with rows at and above 4096

A line with `SPACE:` is about what the sweep of the space finds, which a requirement's own cases may not show.
"""

import datetime
import re
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

NAME = "lora-xfails.txt"
SPACE = "SPACE:"  # before an id


class Xfail(NamedTuple):
    """One line of the file."""

    id: str
    until: datetime.date
    reason: str
    line: int


class Wrong(ValueError):
    """Something is wrong with the file. The message has all of it, line by line."""


def read(path: Path, known: Collection[str], today: datetime.date) -> dict[str, Xfail]:
    """The entries by id. Raises Wrong for a line that is no entry, that names no requirement, that says again what another
    line says, or whose day has come."""
    found: dict[str, Xfail] = {}
    problems = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        text = text.strip()
        if not text or text.startswith("#"):
            continue
        try:
            entry = _entry(text, number)
            _check(entry, known, today)
            if entry.id in found:
                raise Wrong(f"{entry.id} stands in line {found[entry.id].line}, too")
            found[entry.id] = entry
        except Wrong as problem:
            problems.append(f"{path}:{number}: {problem}")
    if problems:
        raise Wrong("\n".join(problems))
    return found


def _entry(text: str, line: int) -> Xfail:
    id, until, reason = (*text.split(maxsplit=2), "", "")[:3]
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", until) or not reason:
        raise Wrong(f"{text!r} is no entry, expected an id, a day such as 2027-03-31 until which it holds, and a reason")
    try:
        return Xfail(id, datetime.date.fromisoformat(until), reason, line)
    except ValueError as error:
        raise Wrong(f"{until} is no day: {error}") from None


def _check(entry: Xfail, known: Collection[str], today: datetime.date) -> None:
    if entry.id.removeprefix(SPACE) not in known:
        raise Wrong(f"{entry.id} matches no requirement; `conformance list` shows them")
    if entry.until < today:
        raise Wrong(f"{entry.id} was expected to fail until {entry.until}, which is over: mend it, or look at it again and "
                    "give it another day")
