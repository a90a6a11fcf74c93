"""conformance findings: shows what the suite found in public LoRA implementations."""

import argparse

from rich.progress import track
from rich.text import Text

from conformance.commands.shared import console
from conformance.findings import page
from conformance.report import generated

HELP = "show what the suite found in public implementations: every cause, with a script"


def declare(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("subjects", nargs="*", metavar="SUBJECT", help="only what was found in these built-in subjects (default: all)")
    add("--try", action="store_true", dest="tried",
        help="run the scripts whose libraries are installed, and compare what they print")
    add("--write", action="store_true",
        help="in a checkout: write findings/FINDINGS.md from results/full.json, results/requirements.json and the scripts")


def run(arguments: argparse.Namespace) -> int:
    found = [f for f in page.all_findings() if not arguments.subjects or f.subject in arguments.subjects]
    if not found:
        raise ValueError(f"nothing was found in {', '.join(arguments.subjects)}; there are findings in "
                         f"{', '.join(dict.fromkeys(f.subject for f in page.all_findings()))}")
    if arguments.write:
        return written()
    return tried(found) if arguments.tried else shown(found)


def shown(found: list[page.Finding]) -> int:
    """Prints one line for each cause, under the name of its subject."""
    screen, subject = console(), ""
    for finding in found:
        if finding.subject != subject:
            subject = finding.subject
            screen.print(Text(subject, style="bold"))
        fails = " ".join((*finding.requirements, *finding.since))
        screen.print(Text(f"  {finding.kind:11}{finding.sentence} ({fails}; scripts/{finding.file}.py)"))
    return 0


def tried(found: list[page.Finding]) -> int:
    screen, wrong, absent = console(), [], 0
    for finding in track(found, "scripts", console=screen, disable=not screen.is_terminal):
        got = page.printed(finding)
        absent += got is None
        if got is not None and got != finding.prints:
            wrong.append(f"{finding.file} printed\n{got}\nexpected\n{finding.prints}")
    right = len(found) - absent - len(wrong)
    print("\n".join([*wrong, f"{right} of {len(found)} as they say, {absent} not available here"]))
    return 1 if wrong else 0


def written() -> int:
    page.PATH.write_text(generated.findings(), encoding="utf-8")
    print(f"wrote {page.PATH}")
    return 0
