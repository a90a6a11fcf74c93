"""Arranges what the page shows: subjects, requirements by group, and one cell for each pair of them."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from conformance.report.evidence import of_the_space
from conformance.report.json import catalogue
from conformance.report.page.documents import KINDS, Documents
from conformance.requirements import all_requirements
from conformance.run.verdict import FAILING

Row = dict  # of a requirement, as in the JSON report


@dataclass(frozen=True)
class Entry:
    """One subject in one run."""

    report: dict
    run: dict
    slug: str  # of its spec, fit for the name of a file and for a link
    name: str  # with a part of the spec, if other subjects have the same name

    @property
    def spec(self) -> str:
        return self.report["subject"]["spec"]

    @property
    def version(self) -> str:
        return self.report["subject"]["version"]

    @property
    def verdict(self) -> str:
        return self.report["verdict"]

    @cached_property
    def rows(self) -> dict[str, Row]:
        return {row["id"]: row for row in self.report["requirements"]}

    @cached_property
    def statuses(self) -> Counter[str]:
        return Counter(row["status"] for row in self.rows.values())

    @property
    def decided(self) -> int:
        return self.statuses["pass"] + self.failing

    @property
    def failing(self) -> int:
        return sum(self.statuses[status] for status in FAILING)

    def failed(self, level: str) -> list[str]:
        return [id for id, row in self.rows.items() if row["level"] == level and row["status"] in FAILING]

    @property
    def causes(self) -> list[dict]:
        """What explains the failures, a MUST before a SHOULD. In a report of a version that did not group them, failures for
        which the same known fault was named are one cause. Every failure is in one, whatever the report says."""
        failing = [row for row in self.rows.values() if row["status"] in FAILING]
        known = {row["id"] for row in failing}
        found = [{"fault": "", **cause, "requirements": [id for id in cause["requirements"] if id in known]}
                 for cause in self.report.get("causes", ())]
        told = {id for cause in found for id in cause["requirements"]}
        grouped: dict[str, list[str]] = {}
        for row in sorted(failing, key=lambda row: row["level"] != "MUST"):
            if row["id"] not in told:
                grouped.setdefault(row["diagnosis"] or row["id"], []).append(row["id"])
        return [cause for cause in found if cause["requirements"]] + [
            {"fault": "", "requirements": ids} for ids in grouped.values()]

    @property
    def rests_on(self) -> list[str]:
        """What the verdict rests on, a sentence each: the space, the share that was answered, and marks that limit it."""
        report, told = self.report, []
        if swept := report.get("space"):
            told.append(of_the_space(swept))
        if report.get("asked"):
            told.append(f"{report['answered']} of {report['asked']} cases that could tell were answered")
        part = self.run.get("options", {}).get("only") or self.run.get("options", {}).get("level", "may") != "may"
        told.append(f"{len(self.rows)} of {report['planned']} requirements" + (
            ", a part of all: the verdict is on what was asked" if part else ""))
        told.append(f"{len(report['canaries'])} checks of the judge itself" if report["canaries"] else "")
        told += [f"{id}: {words}; all others were asked as if it were not so" for id, words in
                 report.get("compensates", {}).items()]
        told.append(f"no layers in {', '.join(report['declined'])}" if report.get("declined") else "")
        told.append("--in-process: nothing kept the subject apart from its judge" if report.get("in_process") else "")
        told.append("it ran in a sandbox" if report.get("sandbox") else "")
        return [words for words in told if words]


@dataclass(frozen=True)
class Asked:
    """One requirement, in the words that it had when it was asked."""

    id: str
    level: str
    group: str
    title: str
    profile: str = ""
    sentence: str = ""
    formula: str = ""
    why: str = ""
    sources: Sequence[str] = ()


@dataclass(frozen=True)
class Group:
    id: str
    title: str
    requirements: list[Asked]

    def score(self, entry: Entry) -> tuple[int, int, str]:
        """Passed, decided, and the mark of the worst failure: must, should or none."""
        rows = [entry.rows[r.id] for r in self.requirements if r.id in entry.rows]
        passed, failed = (sum(row["status"] in of for row in rows) for of in (("pass",), FAILING))
        levels = {row["level"] for row in rows if row["status"] in FAILING}
        return passed, passed + failed, "must" if "MUST" in levels else "should" if levels else "none"


@dataclass
class View:
    """Everything that the templates get."""

    entries: list[Entry]  # the newest of each subject
    history: dict[str, list[Entry]]  # slug → all runs of the subject, oldest first
    groups: list[Group]
    runs: list[dict]
    tests: list[dict]  # of conformance mutate
    others: dict[str, dict | None]  # kind → document

    @property
    def requirements(self) -> list[Asked]:
        return [requirement for group in self.groups for requirement in group.requirements]

    @property
    def verdicts(self) -> Counter[str]:
        return Counter(entry.verdict for entry in self.entries)


def view(documents: Documents) -> View:
    history: dict[str, list[Entry]] = {}
    names = {report["subject"]["spec"]: report["subject"]["name"] for run in documents.runs for report in run["reports"]}
    slugs, often = _slugs(names), Counter(names.values())
    for run in documents.runs:
        for report in run["reports"]:
            spec = report["subject"]["spec"]
            name, slug, last = names[spec] or spec, slugs[spec], spec.rpartition(":")[2]
            entry = Entry(report, run, slug, f"{name} ({last})" if often[names[spec]] > 1 and last != name else name)
            history.setdefault(slug, []).append(entry)
    entries = [every[-1] for every in history.values()]
    return View(entries, history, _groups(entries, documents), documents.runs, documents.tests,
                {kind: documents.others.get(kind) for kind in KINDS})


def _slugs(specs: Iterable[str]) -> dict[str, str]:
    """A word for each spec, which is the same in every run and differs from all others."""
    found: dict[str, str] = {}
    for spec in specs:
        word = re.sub(r"[^A-Za-z0-9_.-]+", "-", spec).strip(".-") or "subject"
        number, free = 1, word
        while free in found.values() and spec not in found:
            number += 1
            free = f"{word}-{number}"
        found.setdefault(spec, free)
    return found


def _groups(entries: list[Entry], documents: Documents) -> list[Group]:
    """The requirements that any of the entries was asked, by group, in the order of the specification. What they say comes from
    the run, or from a file with the sentences of that time. The formula and the reason of a run that tells none are those of
    today, if the sentence is still the same."""
    now = catalogue(all_requirements())
    titles, then = dict(now["groups"]), documents.others.get("sentences", {}).get("requirements", {})
    asked: dict[str, Asked] = {}
    for entry in entries:
        told = entry.run.get("catalogue", {})
        titles |= told.get("groups", {})
        for row in entry.rows.values():
            own = told.get("requirements", {}).get(row["id"]) or then.get(row["id"], {})
            today = now["requirements"].get(row["id"], {})
            words = today | own if own.get("sentence", today.get("sentence")) == today.get("sentence") else own
            said = {name: words[name] for name in ("profile", "sentence", "formula", "why", "sources") if name in words}
            asked[row["id"]] = Asked(row["id"], row["level"], row["group"], row["title"], **said)
    order = list(titles)
    members: dict[str, list[Asked]] = {}
    for requirement in sorted(asked.values(), key=lambda requirement: requirement.id):
        members.setdefault(requirement.group, []).append(requirement)
    ids = sorted(members, key=lambda id: (order.index(id) if id in order else len(order), id))
    return [Group(id, titles.get(id, id), members[id]) for id in ids]
