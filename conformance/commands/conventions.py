"""conformance conventions: shows what implementations have chosen where they are free to choose."""

import argparse
import sys

from conformance.commands.shared import console
from conformance.drivers.hosted import RAW, HostedSubject
from conformance.drivers.process import ProcessSubject
from conformance.record.trace import SubjectError
from conformance.report import terminal
from conformance.run import conventions
from conformance.run.loading import LoadError, reach
from conformance.subject import Subject, Unsupported
from conformance.truth.compare import Mismatch

HELP = "show free choices, such as layout and scale, and how to convert adapters"


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subjects", nargs="+", metavar="SUBJECT",
                        help="as for run; for two, it also says how an adapter of one becomes one of the other")


def run(arguments: argparse.Namespace) -> int:
    screen = console()
    try:
        subjects = [as_it_stands(reach(spec)) for spec in arguments.subjects]
    except LoadError as error:
        print(f"conformance conventions: {error}", file=sys.stderr)
        return 4
    terminal.show_conventions(screen, [(subject.name, conventions.conventions(subject)) for subject in subjects])
    if len(subjects) == 2:
        for source, target in (subjects, subjects[::-1]):
            terminal.show_conversion(screen, source.name, target.name, converted(source, target))
    return 0


def as_it_stands(subject: ProcessSubject) -> ProcessSubject:
    """The subject, with nothing made up for: a scale of another rule is a convention here."""
    if isinstance(subject, HostedSubject) and subject.compensates:
        subject.as_(RAW)
    return subject


def converted(source: Subject, target: Subject) -> list[str]:
    try:
        return conventions.conversion(source, target)
    except (Unsupported, SubjectError, Mismatch) as reason:
        return [f"not known: {reason}"]
