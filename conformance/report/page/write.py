"""Fills the templates, and writes the page: one file, or a folder with a page and a badge for each subject.

Every page holds its style and its script, and asks for nothing else. Its content security policy lets run what has their
hashes and nothing else, whatever a subject has put into a report.
"""

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from conformance import __version__
from conformance.report import output
from conformance.report.evidence import evidence
from conformance.report.json import catalogue
from conformance.report.page import files, plots
from conformance.report.page.documents import Documents
from conformance.report.page.view import Entry, Row, View, view
from conformance.report.stored import STATUSES
from conformance.requirements import all_requirements, profiles
from conformance.run.verdict import FAILING

ONE_FILE = (".html", ".htm")
WORDS = {"unsupported": "not offered", "indeterminate": "no case could tell"}
MARKS = {"pass": "p", "unsupported": "u", "indeterminate": "i", "conformant": "p", "partial": "s", "nonconformant": "f",
         "void": "s", "not offered": "u", "not asked": "n"}  # classes of the style; everything else is an error
COLOURS = {"p": "#2b7a4b", "f": "#b3312a", "s": "#8a6100", "e": "#6a4696"}  # of badges: white text is readable on each
LETTER = 6.6  # pixels of a letter of a badge, about


class Inline(NamedTuple):
    """A style or a script, and its hash as a content security policy names it."""

    text: Markup
    hash: str


def check(place: str) -> None:
    """Raises ValueError if the page cannot be written to this place."""
    if is_file(place):
        output.check(place)
    elif Path(place).exists() and not Path(place).is_dir():
        raise ValueError(f"{place} is no folder; the name of one file ends in .html")
    elif not Path(place).absolute().parent.is_dir():
        raise ValueError(f"{place}: there is no folder {Path(place).absolute().parent}")


def is_file(place: str) -> bool:
    return place.endswith(ONE_FILE) or output.is_stream(place) and not Path(place).is_dir()


def write(place: str, documents: Documents) -> None:
    """Writes one file, or a folder with index.html. Raises OSError. Each file is written as a whole or not at all."""
    if is_file(place):
        output.write(place, page(view(documents), site=False).encode())
        return
    for name, text in site(view(documents)).items():
        path = Path(place) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        output.write(str(path), text.encode())


def site(shown: View) -> dict[str, str]:
    """The files of a site: name → text."""
    found = {"index.html": page(shown, site=True)}
    if shown.entries:
        found["open.html"] = _fill("open.html", catalogue=catalogue(all_requirements()))
    for entry in shown.entries:
        found[f"badges/{entry.slug}.svg"] = badge(entry)
        found[f"subjects/{entry.slug}.html"] = _fill(
            "subject.html", view=shown, entry=entry, by_id=_by_id(shown), history=_changes(shown.history[entry.slug]),
            badge=Markup(badge(entry)))
    return found


def page(shown: View, site: bool) -> str:
    """The whole page in one file. As the index of a site it has links to the other pages. Without a run it shows what tests
    catch."""
    if not shown.entries:
        return _fill("of_tests.html", view=shown, by_id={}, catalogue=_catalogue())
    selftest, triggered = shown.others["selftest"], shown.others["triggered"]
    strips = plots.strips(shown.groups, shown.entries)
    return _fill(
        "page.html", view=shown, site=site, by_id=_by_id(shown), catalogue=_catalogue(), profiles=_profiles(shown),
        strips=strips, formats=[name for name in ("all", *plots.FORMATS) if any(name in strip.marks for strip in strips)],
        kills=plots.kills(selftest) if selftest else None, dots=plots.dots(selftest) if selftest else None,
        powers=plots.powers(triggered) if triggered else None, **files.matrix(shown.others["exchange"] or {"readers": []}))


def badge(entry: Entry) -> str:
    """The verdict as SVG, with what was passed of what was decided."""
    label, words = "LoRA conformance", f"{entry.verdict} {entry.statuses['pass']}/{entry.decided}"
    left, right = (round(LETTER * len(text)) + 12 for text in (label, words))
    return _fill("badge.svg", label=label, words=words, left=left, right=right, colour=COLOURS[_mark(entry.verdict)])


def _profiles(shown: View) -> list[str]:
    asked = {name for entry in shown.entries for name in entry.report["profiles"]}
    return [name for name in profiles() if name in asked] + sorted(asked - set(profiles()))


def _catalogue() -> dict[str, dict]:
    return catalogue(all_requirements())["requirements"]


def _by_id(shown: View) -> dict:
    return {requirement.id: requirement for requirement in shown.requirements}


def _changes(history: list[Entry]) -> list[tuple[Entry, list[str], list[str]]]:
    """Each run of a subject, with what it fails and passed before, and what it passes and failed before."""
    found, before = [], None
    for entry in history:
        failing = {id for id, row in entry.rows.items() if row["status"] in FAILING}
        passing = {id for id, row in entry.rows.items() if row["status"] == "pass"}
        worse, better = (sorted(failing & before[1]), sorted(passing & before[0])) if before else ([], [])
        found.append((entry, worse, better))
        before = failing, passing
    return found


def _mark(value: Row | str) -> str:
    """The class of the style for a status or a verdict: of a row, a SHOULD that fails has its own."""
    status = value if isinstance(value, str) else value["status"]
    if status in FAILING and not isinstance(value, str) and value["level"] != "MUST":
        return "s"
    return MARKS.get(status, "f" if status == "fail" else "e")


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"


def _evidence(row: Row) -> list[tuple[str, str]]:
    return evidence(row.get("failure") or {}, row["message"])


def _inline(*names: str) -> Inline:
    folder = Path(__file__).parent / "templates"
    text = "".join((folder / name).read_text(encoding="utf-8") for name in names)
    return Inline(Markup(text), f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'")


@cache
def _environment() -> Environment:
    found = Environment(loader=PackageLoader("conformance.report.page"), autoescape=True, undefined=StrictUndefined,
                        trim_blocks=True, lstrip_blocks=True)
    found.filters |= {"mark": _mark, "word": lambda status: WORDS.get(status, status), "ratio": _ratio, "evidence": _evidence,
                      "file_mark": files.mark}
    found.globals |= {"FAILING": FAILING, "STATUSES": STATUSES, "version": __version__}
    return found


def _fill(template: str, **values) -> str:
    script = _inline("page.js", *(["open.js"] if template == "open.html" else []))
    return _environment().get_template(template).render(style=_inline("page.css"), script=script, **values)
