"""The report of `conformance selftest` on the terminal: each mutant with the requirements that failed it, each honest
implementation, and the score of each group."""

from contextlib import contextmanager
from itertools import count

from rich.console import Console
from rich.table import Table
from rich.text import Text

from conformance.report.progress import line
from conformance.requirements import groups
from conformance.run.selftest import SelfTest, Trial


@contextmanager
def progress(console: Console, total: int, first: str):
    """Yields what is to be called with the name of each that is done, `total` times; draws a bar on a terminal and nothing
    elsewhere. `first` says what is done before that."""
    done = count(1)
    with line(console, first, total) as told:
        yield lambda name: told(name, next(done), total)


def show(console: Console, found: SelfTest) -> None:
    for group in groups().values():
        trials = [trial for trial in found.mutants if trial.group == group.id]
        if trials:
            console.print(Text(f"{group.id} {group.title}: known-bad", style="bold"))
            console.print(_matrix(trials))
    console.print(Text("honest variations", style="bold"))
    table = with_columns("variation", "verdict", "SHOULD failed")
    for trial in found.honest:
        wronged = trial in found.wronged
        verdict = Text("WRONGLY FAILED" if wronged else "conformant", style="red" if wronged else "green")
        table.add_row(trial.name, verdict, " ".join(trial.by))
    console.print(table)
    console.print()
    table = with_columns("group", "killed", "score")
    for group, (killed, of) in found.by_group().items():
        table.add_row(group, f"{killed}/{of}", f"{killed / of:.0%}")
    killed = sum(trial.killed for trial in found.mutants)
    table.add_row("all", f"{killed}/{len(found.mutants)}", f"{found.score:.1%}")
    console.print(table)
    rows = {row for trial in found.mutants for row in trial.reports}
    honest = f"{len(found.honest) - len(found.wronged)} of {len(found.honest)} honest variations passed"
    honest += f" all {sum(trial.cases for trial in found.honest):,} cases" if not found.wronged else ""
    console.print(f"\n{len(rows)} public reports re-created; {honest}; {found.seconds:.0f} s")
    for problem in found.problems:
        console.print(Text(f"PROBLEM {problem}", style="bold red"))
    if not found.problems:
        console.print(Text("SELF-TEST PASSED: all killed, none wronged, no requirement idle", style="bold green"))


def _matrix(trials: list[Trial]) -> Table:
    table = with_columns("mutant", "reports", "failed by")
    for trial in trials:
        rows = " ".join(row.removeprefix("BUG-") for row in trial.reports) or "–"
        table.add_row(trial.name, rows, " ".join(trial.by) if trial.by else Text("SURVIVES", style="bold red"))
    return table


def with_columns(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(column)
    return table
