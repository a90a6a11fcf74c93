"""The report of a run on the terminal: progress while it runs, each failure with all that is needed to see it again, then the
verdict.

It is readable at 80 columns and without colour: colours repeat what words say.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table
from rich.text import Text

from conformance.report import text
from conformance.report.evidence import evidence, of_the_space
from conformance.report.progress import line
from conformance.requirements import groups, profiles
from conformance.run.causes import Cause
from conformance.run.examine import Outcome
from conformance.run.verdict import FAILING, Report, plain
from conformance.truth.space import FACTORS, word

GROUP_COLUMN, SUBJECT_COLUMN = 28, 13  # widths that the table of groups needs, about
CONVENTIONS_PER_TABLE = 2
CAUSES_TOLD = 3  # in the line below a verdict
COLOURS = {"conformant": "green", "partial": "yellow", "nonconformant": "red", "void": "yellow", "error": "red"}
SHORT = {"conformant": "yes", "nonconformant": "NO", "partial": "partial", "not offered": "–"}


@contextmanager
def progress(console: Console, specs: list[str], planned: int, drawn: bool = True):
    """Yields the callback for `runner.run`. It draws one line for all subjects, on a terminal, if it is to be `drawn`."""
    counts, failed = dict.fromkeys(specs, 0), dict.fromkeys(specs, 0)
    with line(console, "loading", planned * len(specs), drawn) as told:

        def noted(report: Report, outcome: Outcome | None) -> None:
            counts[report.spec] = len(report.outcomes) + len(report.space) if outcome else planned
            failed[report.spec] = sum(o.status in FAILING for o in report.outcomes.values())
            name = report.name or report.spec.rpartition(":")[2]
            words = f"{name} {outcome.id if outcome else 'is done'}" + f", {sum(failed.values())} failed" * any(failed.values())
            told(plain(words), sum(counts.values()), planned * len(specs))

        yield noted


@contextmanager
def steps(console: Console):
    """Yields the callback for `environments.make`. It draws a line on a terminal, and elsewhere prints one for each step."""
    last = -1
    with line(console, "") as told:

        def noted(step: int, total: int, words: str) -> None:
            nonlocal last
            told(words, step, total)
            if not console.is_terminal and step != last:
                console.print(Text(f"  {step + 1}/{total} {words}"), soft_wrap=True)
            last = step

        yield noted


def show(console: Console, reports: list[Report], seed: int) -> None:
    reports = [report.cleaned() for report in reports]
    for report in reports:
        for cause in report.causes:
            _failure(console, report, cause)
    shown = [report for report in reports if report.outcomes]
    side_by_side = max(1, (console.width - GROUP_COLUMN) // SUBJECT_COLUMN)
    for start in range(0, len(shown), side_by_side):
        console.print(_table(shown[start : start + side_by_side]))
        console.print()
    if shown:
        legend = "passed / decided;  ! a MUST failed,  ~ a SHOULD failed,  – not offered, or not asked"
        text.paragraph(console, legend, style="dim")
        console.print()
    for report in reports:
        _verdict(console, report)
    text.paragraph(console, f"a part of the cases was drawn anew; --seed {seed} draws the same again", style="dim")


def failure(report: Report, cause: Cause) -> str:
    """What `show` prints of a failure, as plain text."""
    return _text(lambda console: _failure(console, report.cleaned(), cause))


def verdict(report: Report) -> str:
    """What `show` prints of a report below all failures, as plain text: its table, if it has outcomes, and its verdict."""
    def told(console: Console) -> None:
        if report.outcomes:
            console.print(_table([report]))
        _verdict(console, report)

    report = report.cleaned()
    return _text(told)


def _text(told: Callable[[Console], None]) -> str:
    console = Console(file=io.StringIO(), width=80, highlight=False, markup=False, emoji=False, color_system=None)
    with console.capture() as captured:
        told(console)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()).strip("\n")


def show_conventions(console: Console, found: list[tuple[str, dict[str, str]]]) -> None:
    for start in range(0, len(found), CONVENTIONS_PER_TABLE):
        shown = found[start : start + CONVENTIONS_PER_TABLE]
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for column in ("", *(plain(name) for name, _ in shown)):
            table.add_column(Text(column), overflow="fold")
        for probe in shown[0][1]:
            table.add_row(probe, *(Text(answers.get(probe, "")) for _, answers in shown))
        console.print(table)
        console.print()


def show_conversion(console: Console, source: str, target: str, lines: list[str]) -> None:
    console.print(Text(f"from {source} to {target}:", style="bold"))
    for words in lines:
        text.paragraph(console, words, 2)


def _failure(console: Console, report: Report, cause: Cause) -> None:
    requirement, outcome = cause.head, report.outcomes[cause.head.id]
    colour = "bold red" if requirement.level == "MUST" else "yellow"
    head = Text.assemble((f"{outcome.status.upper()} {requirement.level} ", colour),
                         (f"{report.name} {requirement.id}", "bold"), f" {requirement.title}")
    console.print(head)
    text.paragraph(console, requirement.sentence, 2)
    beside = evidence(outcome.failure, outcome.message)
    beside += [("why", requirement.why)] if requirement.why else []
    beside += [("likely cause", outcome.diagnosis)] if outcome.diagnosis else []
    beside += [("fails, too", " ".join(cause.requirements[1:]))] if len(cause.requirements) > 1 else []
    text.pairs(console, beside, indent=2)
    if outcome.reproduce:
        text.paragraph(console, "to see it alone:", 2)
        for line in outcome.reproduce.splitlines():
            console.print(Text(f"    {line}"), soft_wrap=True, style="dim")
    console.print()


def _table(reports: list[Report]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("group")
    for report in reports:
        table.add_column(Text(report.name), overflow="fold")
    for group in groups().values():
        if any(r.group == group.id for report in reports for r in report.planned):
            table.add_row(f"{group.id:7}{group.title}", *(_cell(report, group.id) for report in reports))
    table.add_section()
    for profile in profiles():
        values = [report.profiles[profile] for report in reports]
        table.add_row(f"profile {profile}", *(Text(SHORT[v], style=COLOURS.get(v, "dim")) for v in values))
    return table


def _cell(report: Report, group: str) -> Text:
    members = [r for r in report.planned if r.group == group]
    statuses = [report.status(r) for r in members]
    passed, failed = statuses.count("pass"), [r for r, s in zip(members, statuses, strict=True) if s in FAILING]
    if not passed and not failed:
        return Text("–", style="dim")
    must = any(r.level == "MUST" for r in failed)
    mark = " !" if must else " ~" if failed else ""
    return Text(f"{passed}/{passed + len(failed)}{mark}", style="red" if must else "yellow" if failed else "green")


def _verdict(console: Console, report: Report) -> None:
    title = f"{report.name} {report.version}".strip()
    console.print(Text.assemble((title, "bold"), ": ", (report.verdict.upper(), f"bold {COLOURS[report.verdict]}")))
    for words in [report.unloadable] if report.unloadable else _reasons(report):
        text.paragraph(console, words, 2, hanging=2)
    if report.taken_from:
        text.paragraph(console, f"taken from {plain(report.taken_from)}", 2, hanging=2)


def _reasons(report: Report) -> Iterator[str]:
    """What the verdict rests on, a line each: counts, what limits it, what failed and why, and the space."""
    statuses = [outcome.status for outcome in report.outcomes.values()]
    counts = [f"{statuses.count('pass')} passed"]
    counts += [f"{statuses.count(s)} {w}" for s, w in _WORDS.items() if statuses.count(s)]
    yield f"{', '.join(counts)}; {len(statuses)} of {len(report.planned)} requirements, {report.seconds:.1f} s"
    if not report.whole:
        yield "a part of the requirements: the verdict is on what was asked"
    yield from (f"no verdict: {words}" for words in report.void_since)
    for level in ("MUST", "SHOULD"):
        ids = [r.id for r in report.planned if r.level == level and report.status(r) in FAILING]
        if ids:
            yield f"{level} failed: {' '.join(ids)}"
    if len(report.causes) > 1 or any(len(cause.requirements) > 1 for cause in report.causes):
        yield f"causes: {len(report.causes)}, of which {', '.join(map(_told, report.causes[:CAUSES_TOLD]))}"
    if report.declined:
        yield f"no layers in {', '.join(report.declined)}: not offered"
    if report.swept:
        yield _of_the_space(report.swept)
    for id, words in report.compensates.items():
        yield f"{words}: {id} says so; all others were asked as if it were not so, and --strict asks as it is"
    if report.in_process:
        yield "--in-process: nothing kept the subject apart from its judge"
    if report.answered < report.asked:
        partial = "; that is too few to call it conformant" if report.verdict == "partial" else ""
        yield f"{report.answered} of {report.asked} cases answered, the others not offered{partial}"


def _told(cause: Cause) -> str:
    """A cause in a few words."""
    more = len(cause.requirements) - 1
    return f"{cause.head.id} {cause.head.title}{f' ({more} more fail of it)' if more else ''}"


def _of_the_space(swept: dict) -> str:
    """What the sweep rests on, in one sentence, with the levels that the subject does not offer."""
    names = {name for name in swept["declined"] if name.rpartition(" ")[0]}
    for factor in FACTORS:
        others = {f"{factor.name} {word(level)}" for level in factor.levels if level != factor.plain}
        if len(others) > 1 and others <= names:
            names = names - others | {f"any other {factor.name} than {word(factor.plain)}"}
    return of_the_space(swept) + (f"; not offered: {', '.join(sorted(names))}" if names else "")


_WORDS = {
    "fail": "failed", "error": "raised an error", "crash": "crashed", "timeout": "timed out",
    "unsupported": "not offered", "indeterminate": "indeterminate",
}
