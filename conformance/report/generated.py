"""Writes all generated text: `python -m conformance.report.generated`. A test fails while a file on disk is stale.

SPEC.md, FILES.md, findings/FINDINGS.md and results/index.html are generated whole. README.md, results/exchange.md and
the other pages of the checkout are written by hand, except for the text between two comments: a number from COUNTS within a
line, or a text from REGIONS on lines of its own.

    <!-- count: mutants -->439<!-- /count -->

    <!-- generated: groups -->
    <!-- /generated -->
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

from conformance.files import corpus
from conformance.findings import page
from conformance.mutants import all_mutants, honest_subjects
from conformance.report import files_spec, matrix, spec
from conformance.report.page import documents, write
from conformance.report.page.view import view
from conformance.requirements import all_requirements
from conformance.requirements import groups as all_groups
from conformance.run.diagnosis import catalogue
from conformance.run.loading import built_in, environment

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "conformance" / "results"
MARKS = {  # for each kind of region: its first comment, its name, its text and its last comment
    "count": re.compile(r"(<!-- count: (\S+) -->)(.*?)(<!-- /count -->)"),
    "generated": re.compile(r"^(<!-- generated: (\S+) -->\n)(.*?)^(<!-- /generated -->)$", re.M | re.S),
}


def recreated() -> int:
    """The number of public bug reports that some mutant re-creates."""
    return len({report for mutant in all_mutants() for report in mutant.reports})


def of_level(level: str) -> int:
    return sum(requirement.level == level for requirement in all_requirements())


def of_kind(kind: str) -> int:
    return sum(finding.kind == kind for finding in page.all_findings())


def groups() -> str:
    """A table of the groups, with the number of requirements and of mutants in each."""
    asked, musts = (Counter(r.group for r in all_requirements() if r.level.startswith(level)) for level in ("", "MUST"))
    bad = Counter(mutant.group for mutant in all_mutants())
    rows = [f"| {g.id} | {g.title} | {asked[g.id]} | {musts[g.id]} | {bad[g.id]} |" for g in all_groups().values()]
    total = f"| all | | {asked.total()} | {musts.total()} | {len(all_mutants())} |"
    return "\n".join(["| group | | requirements | MUST | known-bad |", "|---|---|---:|---:|---:|", *rows, total])


def selftest() -> str:
    """A sentence with the numbers of what `conformance selftest` tries."""
    return (f"`conformance selftest` tries {len(all_mutants())} known-bad layers, models and readers of files, which re-create "
            f"{recreated()} of the {len(catalogue())} public bug reports in the catalogue, and {len(honest_subjects())} honest "
            "ones, which differ in what is free.")


COUNTS: dict[str, Callable[[], int]] = {
    "requirements": lambda: len(all_requirements()),
    "groups": lambda: len(all_groups()),
    "must": lambda: of_level("MUST"),
    "should": lambda: of_level("SHOULD"),
    "mutants": lambda: len(all_mutants()),
    "honest": lambda: len(honest_subjects()),
    "reports": recreated,
    "reports_total": lambda: len(catalogue()),
    "subjects": lambda: len(built_in()),
    "files_cases": lambda: len(list(corpus.cases())),
    "files_valid": lambda: sum(case.valid for case in corpus.cases()),
    # numbers of the full run that is committed:
    "implementations": lambda: len(page.reports()),
    "environments": lambda: len({environment(report["subject"]["spec"]) for report in page.reports()}),
    "faulty": lambda: len({finding.subject for finding in page.all_findings() if finding.kind == "fault"}),
    "faults": lambda: of_kind("fault"),
    "choices": lambda: of_kind("convention"),
}
REGIONS: dict[str, Callable[[], str]] = {
    "groups": groups,
    "selftest": selftest,
    "findings": lambda: f"{page.summary(page.all_findings(), page.reports())}.",
    "since": lambda: "\n".join(page.since(page.asked())),
    "matrix-counts": matrix.counts,
    "matrix-features": matrix.features,
    "matrix-wrong": matrix.wrong,
    "matrix-merges": matrix.merges,
    "matrix-versions": matrix.versions,
}


@cache
def written(kind: str, name: str) -> str:
    """The text for the region of that kind and name. Raises ValueError for an unknown name."""
    known = COUNTS if kind == "count" else REGIONS
    if name not in known:
        raise ValueError(f"<!-- {kind}: {name} --> is not known; there are {', '.join(known)}")
    text = str(known[name]())
    return text if kind == "count" or not text else f"\n{text}\n\n"


def filled(text: str) -> str:
    """The text with its regions brought up to date. Raises ValueError for a region without an end or with an unknown name."""
    for kind, marks in MARKS.items():
        begun, ended = text.count(f"<!-- {kind}: "), text.count(f"<!-- /{kind} -->")
        if not len(marks.findall(text)) == begun == ended:
            raise ValueError(f"{begun} regions <!-- {kind}: … --> begin and {ended} end with <!-- /{kind} -->; a count stands "
                             "in one line, and each comment of the other kind has a line of its own")
        text = marks.sub(lambda found, kind=kind: found[1] + written(kind, found[2]) + found[4], text)
    return text


def pages() -> list[Path]:
    """The pages that are written by hand and may have regions."""
    return [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md")), matrix.PATH]


def findings() -> str:
    """The text of FINDINGS.md. Raises ValueError while a failure has no finding, or a finding no failure."""
    found, ran = page.all_findings(), page.reports()
    if problems := page.unexplained(found, ran):
        raise ValueError("\n".join(problems))
    return filled(page.page(found, ran, page.full_run(), page.asked()))


def results_page() -> str:
    """The page of the full run, with what else is in the folder of results."""
    return write.page(view(documents.read(map(str, sorted(RESULTS.glob("*.json"))))), site=False)


def files() -> dict[Path, Callable[[], str]]:
    """Every generated file and every page that may have regions → the function that makes its text."""
    by_hand = {path: lambda path=path: filled(path.read_text(encoding="utf-8")) for path in pages()}
    return {spec.PATH: spec.render, files_spec.PATH: files_spec.render, page.PATH: findings,
            RESULTS / "index.html": results_page, **by_hand}


def stale(write: bool = False) -> list[Path]:
    """The files that are out of date. With `write` they are brought up to date. Raises ValueError if the text of a file cannot
    be made, after all the others are done."""
    found, problems = [], []
    for path, fresh in files().items():
        try:
            text = fresh()
        except ValueError as error:
            problems.append(f"{path}: {error}")
            continue
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            found.append(path)
            if write:
                path.write_text(text, encoding="utf-8")
    if problems:
        raise ValueError("\n".join(problems))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m conformance.report.generated", description=(
        "writes SPEC.md, FILES.md, FINDINGS.md, results/index.html, and the generated regions of README.md and the other pages "
        "of this checkout"))
    parser.add_argument("--check", action="store_true", help="write nothing; say which are stale, with status 1")
    check = parser.parse_args().check
    try:
        found = stale(write=not check)
    except (ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 2
    for path in found:
        print(f"{'stale' if check else 'wrote'}: {path.relative_to(ROOT)}")
    print(f"{len(found)} of {len(files())} generated files {'are stale' if check else 'were stale'}")
    return 1 if check and found else 0


if __name__ == "__main__":
    sys.exit(main())
