"""conformance page: makes a page, or a site, from JSON reports."""

import argparse

from conformance.commands.shared import Written
from conformance.report.page import documents, write

HELP = "make a page, or a site, from JSON reports"
EPILOG = """\
A report says by its keys what it is: of `conformance run`, `selftest`,
`selftest --triggered`, `exchange` or `mutate`, each with --json. Several
reports of `run` are a history: the page shows the newest of each subject.
Reports of `mutate` alone make a page of what tests catch.

examples:
  conformance page report.json --html report.html
                                 one file, which needs nothing else
  conformance page old.json new.json selftest.json --html site
                                 a folder: index.html, a page and a badge for
                                 each subject with its history, and a page
                                 that opens other people's reports
  conformance run peft --html report.html
                                 a run and its page at once

docs/page.md says how a site is published.

exit status:
  0 written   2 usage, or a file that is no report   3 it could not be written
"""


def declare(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    add = parser.add_argument
    add("reports", nargs="+", metavar="REPORT.json", help="a JSON report; at least one of `run` or of `mutate`")
    add("--html", required=True, metavar="PLACE", help="where to write it: one file if the name ends in .html, else a folder")


def run(arguments: argparse.Namespace) -> int:
    write.check(arguments.html)
    written = Written()
    found = documents.read(arguments.reports)
    written(arguments.html, lambda place: write.write(place, found))
    if not written.failed:
        print(f"wrote {arguments.html if write.is_file(arguments.html) else f'{arguments.html}/index.html'}")
    return written.status(0)
