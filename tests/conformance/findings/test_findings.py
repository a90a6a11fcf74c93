"""results/: every failure of the full run has a finding, every finding is of a failure, and its script prints what it says."""


import pytest

from conformance.findings import page as findings
from conformance.requirements import all_requirements
from conformance.run.loading import environment

FOUND = findings.all_findings()


def test_every_failure_is_explained_and_nothing_else():
    assert findings.unexplained(FOUND, findings.reports()) == []


def test_the_page_is_fresh():
    run = findings.full_run()
    page = findings.page(FOUND, findings.reports(), run)
    assert (findings.HERE / "FINDINGS.md").read_text(encoding="utf-8") == page, "conformance findings --write"


def test_the_readme_says_so():
    readme = " ".join((findings.HERE.parents[1] / "README.md").read_text(encoding="utf-8").split())
    assert findings.summary(FOUND, findings.reports()) in readme


def test_the_run_is_a_full_one():
    """At least fifteen implementations from five environments, each of which was asked everything."""
    reports = findings.reports()
    assert len(reports) >= 15
    assert len({environment(report["subject"]["spec"]) for report in reports}) >= 5
    known = {requirement.id for requirement in all_requirements()}
    for report in reports:
        assert {row["id"] for row in report["requirements"]} == known, report["subject"]
        assert set(report["canaries"].values()) <= {"fail", "error", "unsupported"}, report["subject"]
        assert report["conventions"]


@pytest.mark.parametrize("subject", sorted({finding.subject for finding in FOUND}))
def test_the_scripts_print_what_they_say(subject):
    """Each in a process of its own, with the library alone, where the library is here."""
    found = [finding for finding in FOUND if finding.subject == subject]
    for finding in found:
        printed = findings.printed(finding)
        if printed is None:
            pytest.skip(f"{subject} is not available here")
        assert printed == finding.prints, finding.file


def test_a_script_that_is_not_as_it_should_be_is_refused(tmp_path):
    file = tmp_path / "some-thing.py"
    head = '"""peft 1: wrong.\n\nrequirements: FWD-01\nkind: opinion\nwhy: so\nupstream: none\n"""\n'
    file.write_text(head + "print(1)\n# prints:\n# 1\n")
    with pytest.raises(ValueError, match="some-thing.py: expected requirements, kind, why, upstream"):
        findings.read(file)


def test_a_failure_without_a_finding_is_told():
    row = {"id": "FWD-01", "status": "fail"}
    told = findings.unexplained([], [{"subject": {"spec": "some"}, "requirements": [row]}])
    assert told == ["some FWD-01 fails, and no finding says why"]
