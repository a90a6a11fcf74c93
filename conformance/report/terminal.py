"""The report of a run on the terminal: progress while it runs, each failure with all that is needed to see it again, then the
verdict.

It is readable at 80 columns and without colour: colours repeat what words say.
"""

from contextlib import contextmanager

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from conformance.report.evidence import evidence
from conformance.requirements import groups, profiles
from conformance.run.causes import Cause
from conformance.run.examine import Outcome
from conformance.run.verdict import FAILING, Report, plain
from conformance.truth.space import STRENGTH

SUBJECTS_PER_TABLE, CONVENTIONS_PER_TABLE = 4, 2
CAUSES_TOLD = 3  # in the line below a verdict
COLOURS = {"conformant": "green", "partial": "yellow", "nonconformant": "red", "void": "yellow", "error": "red"}
SHORT = {"conformant": "yes", "nonconformant": "NO", "partial": "partial", "not offered": "–"}


@contextmanager
def progress(console: Console, specs: list[str], planned: int, drawn: bool = True):
    """Yields the callback for `runner.run`; draws bars on a terminal, if they are to be `drawn`, and nothing elsewhere."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TextColumn("{task.fields[note]}", markup=False))
    with Progress(*columns, console=console, transient=True, disable=not (drawn and console.is_terminal)) as bars:
        tasks = {spec: bars.add_task(plain(spec.rpartition(':')[2]), total=planned, note="loading") for spec in specs}

        def told(report: Report, outcome: Outcome | None) -> None:
            failed = sum(o.status in FAILING for o in report.outcomes.values())
            note = f"{outcome.id if outcome else ''} {f'{failed} failed' if failed else ''}"
            bars.update(tasks[report.spec], completed=len(report.outcomes) + len(report.space), note=note)

        yield told


@contextmanager
def steps(console: Console):
    """Yields the callback for `environments.make`. It draws a bar on a terminal, and elsewhere prints a line for each step."""
    columns = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task, last = bars.add_task("", total=None), [-1]

        def told(step: int, total: int, words: str) -> None:
            bars.update(task, completed=step, total=total, description=words[: max(20, console.width - 50)])
            if not console.is_terminal and step != last[0]:
                console.print(Text(f"  {step + 1}/{total} {words}"), soft_wrap=True)
            last[0] = step

        yield told


def show(console: Console, reports: list[Report], seed: int) -> None:
    reports = [report.cleaned() for report in reports]
    for report in reports:
        for cause in report.causes:
            _failure(console, report, cause)
    shown = [report for report in reports if report.outcomes]
    for start in range(0, len(shown), SUBJECTS_PER_TABLE):
        console.print(_table(shown[start : start + SUBJECTS_PER_TABLE]))
    if shown:
        console.print("passed / decided;  ! a MUST failed,  ~ a SHOULD failed,  – not offered, or not asked\n", style="dim")
    for report in reports:
        _verdict(console, report)
    console.print(f"a part of the cases was drawn anew; --seed {seed} draws the same again", style="dim")


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
    for line in lines:
        _indented(console, line)


def _failure(console: Console, report: Report, cause: Cause) -> None:
    requirement, outcome = cause.head, report.outcomes[cause.head.id]
    colour = "bold red" if requirement.level == "MUST" else "yellow"
    head = Text.assemble((f"{outcome.status.upper()} {requirement.level} ", colour),
                         (f"{report.name} {requirement.id}", "bold"), f" {requirement.title}")
    console.print(head)
    _indented(console, requirement.sentence)
    grid = Table.grid(padding=(0, 2))
    for name, words in evidence(outcome.failure, outcome.status, outcome.message):
        grid.add_row(name, Text(words))
    if requirement.why:
        grid.add_row("why", Text(requirement.why))
    if outcome.diagnosis:
        grid.add_row("likely cause", Text(outcome.diagnosis))
    if len(cause.requirements) > 1:
        grid.add_row("fails, too", Text(" ".join(cause.requirements[1:])))
    console.print(Padding(grid, (0, 0, 0, 2), expand=False))
    if outcome.reproduce:
        _indented(console, "to see it alone:")
        for line in outcome.reproduce.splitlines():
            console.print(Text(f"    {line}"), soft_wrap=True, style="dim")
    console.print()


def _indented(console: Console, text: str) -> None:
    console.print(Padding(Text(text), (0, 0, 0, 2), expand=False))


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
    text = Text.assemble((title, "bold"), ": ", (report.verdict.upper(), f"bold {COLOURS[report.verdict]}"))
    statuses = [outcome.status for outcome in report.outcomes.values()]
    if report.unloadable:
        text.append(f"\n  {report.unloadable}")
    else:
        counts = [f"{statuses.count('pass')} passed"]
        counts += [f"{statuses.count(s)} {w}" for s, w in _WORDS.items() if statuses.count(s)]
        done = f"{len(statuses)} of {len(report.planned)} requirements, {report.seconds:.1f} s"
        text.append(f"\n  {', '.join(counts)}; {done}")
        if not report.whole:
            text.append("\n  a part of the requirements: the verdict is on what was asked")
        for words in report.void_since:
            text.append(f"\n  no verdict: {words}")
        for level in ("MUST", "SHOULD"):
            ids = [r.id for r in report.planned if r.level == level and report.status(r) in FAILING]
            if ids:
                text.append(f"\n  {level} failed: {' '.join(ids)}")
        if len(report.causes) > 1 or any(len(cause.requirements) > 1 for cause in report.causes):
            text.append(f"\n  causes: {len(report.causes)}, of which {', '.join(map(_told, report.causes[:CAUSES_TOLD]))}")
        if report.declined:
            text.append(f"\n  no layers in {', '.join(report.declined)}: not offered")
        if report.swept:
            text.append(f"\n  {_of_the_space(report.swept)}")
        for id, words in report.compensates.items():
            text.append(f"\n  {words}: {id} says so; all others were asked as if it were not so, and --strict asks as it is")
        if report.in_process:
            text.append("\n  --in-process: nothing kept the subject apart from its judge")
        if report.answered < report.asked:
            partial = "; that is too few to call it conformant" if report.verdict == "partial" else ""
            text.append(f"\n  {report.answered} of {report.asked} cases answered, the others not offered{partial}")
    if report.taken_from:
        text.append(f"\n  taken from {plain(report.taken_from)}")
    console.print(text)


def _told(cause: Cause) -> str:
    """A cause in a few words."""
    more = len(cause.requirements) - 1
    return f"{cause.head.id} {cause.head.title}{f' ({more} more fail of it)' if more else ''}"


def _of_the_space(swept: dict) -> str:
    """What the sweep rests on, in one sentence."""
    text = f"the space: {swept['lived']} of {swept['cases']} cases"
    if swept["swept"] < swept["parts"]:
        text += f", {swept['parts'] - swept['swept']} of {swept['parts']} parts broke off"
    text += f"; they hold {STRENGTH[swept['exact']]}" if not swept["left"] and swept["swept"] == swept["parts"] else ""
    names = {name for name in swept["declined"] if name.rpartition(" ")[0]}
    return text + (f"; not offered: {', '.join(sorted(names))}" if names else "")


_WORDS = {
    "fail": "failed", "error": "raised an error", "crash": "crashed", "timeout": "timed out",
    "unsupported": "not offered", "indeterminate": "indeterminate",
}
