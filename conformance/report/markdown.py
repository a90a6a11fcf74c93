"""The report of a run in Markdown, as the summary of a job of CI."""

from collections import Counter

from conformance.requirements import groups
from conformance.run.verdict import FAILING, Report

MOST = 20  # causes that are told whole
MARKS = {"conformant": "✅", "partial": "⚠️", "nonconformant": "❌", "void": "⚠️", "error": "❌"}


def summary(report: Report, notes: list[str], expected: dict[str, str]) -> str:
    """A heading with the verdict, `notes`, a table of the groups, and each cause with its script. `expected` has the reasons of
    the requirements that are expected to fail."""
    report = report.cleaned()
    title = f"{report.name} {report.version}".strip()
    lines = [f"## {MARKS[report.verdict]} {_cell(title)}: {report.verdict}", ""]
    lines += [f"> {_cell(text)}" for text in (report.unloadable, *notes) if text]
    lines += ["", "| group | passed | failed | expected to fail | not offered, or undecided |", "|---|---:|---:|---:|---:|"]
    for group in groups().values():
        counts = Counter(_column(report, r.id, expected) for r in report.planned if r.group == group.id)
        if counts:
            cells = (counts[name] for name in ("passed", "failed", "expected", "other"))
            lines.append(f"| {group.id} {group.title} | {' | '.join(str(count or '') for count in cells)} |")
    for cause in report.causes[:MOST]:
        head, outcome = cause.head, report.outcomes[cause.head.id]
        reason = expected.get(head.id)
        lines += ["", f"<details{'' if reason else ' open'}><summary><b>{head.id}</b> {head.title}: {outcome.status}"
                  f"{f', expected: {_cell(reason)}' if reason else ''}</summary>", "", head.sentence, ""]
        told = (("case", outcome.failure.get("case")), ("got", outcome.failure.get("got")),
                ("want", outcome.failure.get("want")), ("likely cause", outcome.diagnosis), ("message", outcome.message),
                ("fails, too", " ".join(cause.requirements[1:])))
        lines += [f"* {name}: {_cell(str(value))}" for name, value in told if value]
        lines += ["", *_code(outcome.reproduce or ""), "", "</details>"]
    if len(report.causes) > MOST:
        lines += ["", f"{len(report.causes) - MOST} more causes are in the output of the job."]
    return "\n".join(lines) + "\n"


def _column(report: Report, id: str, expected: dict[str, str]) -> str:
    status = report.outcomes[id].status if id in report.outcomes else "unsupported"
    if status in FAILING:
        return "expected" if id in expected else "failed"
    return "passed" if status == "pass" else "other"


def _cell(text: str) -> str:
    """The text in one line, with nothing in it that Markdown or HTML would read."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|#" else c for c in text)


def _code(text: str) -> list[str]:
    """A block of code, fenced by more backticks than the text has in a row."""
    fence = "```"
    while fence in text:
        fence += "`"
    return [f"{fence}python", text, fence] if text else []
