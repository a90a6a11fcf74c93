"""The report of `conformance selftest --triggered` on the terminal: kill rates, and the faults that survive."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from conformance.report.selftest import with_columns
from conformance.run.triggered import Of, Power

MOST = 40  # survivors that are listed


def show(console: Console, found: Power) -> None:
    titles: dict[str, Of] = {
        "levels in the trigger": lambda t: t.strength, "effect": lambda t: t.group, "build": lambda t: t.fault.build}
    for title, by in titles.items():
        console.print(_rates(found, title, by))
        console.print()
    for one in found.survivors[:MOST]:
        console.print(Text(f"SURVIVES {one.fault.words}; cases of the array that show the trigger: {one.cases}"))
    if len(found.survivors) > MOST:
        console.print(f"and {len(found.survivors) - MOST} more, which --json writes")
    alive = len(found.survivors)
    honest = f"{len(found.honest)} honest builds lived {sum(found.honest.values()):,} cases"
    honest += f", of which {len(found.false_alarms)} failed wrongly" if found.false_alarms else " and passed"
    console.print(f"\n{len(found.tried):,} faults, {alive:,} survive; {honest}; {found.seconds:.0f} s")
    for problem in found.problems:
        console.print(Text(f"PROBLEM {problem}", style="bold red"))


def _rates(found: Power, title: str, by: Of) -> Table:
    table = with_columns(title, "faults", "by the array", "by requirements", "killed")
    for key, (array, others, every) in found.rates(by).items():
        table.add_row(str(key), str(every), str(array), str(others), f"{(array + others) / every:.2%}")
    return table
