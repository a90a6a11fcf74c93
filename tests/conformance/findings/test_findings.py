"""The committed results: every failure of the full run has a finding, every finding belongs to a failure, and each script
prints what it says. FINDINGS.md depends only on these, so a new requirement does not need a new run."""

import pytest

from conformance.findings import page as findings
from conformance.report import generated
from conformance.run.loading import environment

FOUND = findings.all_findings()


def test_every_failure_is_explained_and_nothing_else():
    assert findings.unexplained(FOUND, findings.reports()) == []


def without_since(text: str) -> str:
    """The page with an empty region `since`, which depends on today's requirements. test_generated.py tests that region."""
    head, mark, rest = text.partition("<!-- generated: since -->\n")
    return head + mark + rest[rest.index("<!-- /generated -->"):]


def test_the_page_is_fresh():
    fresh = findings.page(FOUND, findings.reports(), findings.full_run(), findings.asked())
    assert without_since(findings.PATH.read_text(encoding="utf-8")) == fresh, "python -m conformance.report.generated"


def test_the_sentences_are_those_of_the_run():
    """requirements.json and full.json are of the same state of the package, and name the same requirements."""
    then, run = findings.asked(), findings.full_run()
    assert (then.version, then.code) == (run["options"]["version"], run["options"]["code"])
    for report in run["reports"]:
        rows = {row["id"]: (row["level"], row["title"]) for row in report["requirements"]}
        assert rows == {id: row[:2] for id, row in then.requirements.items()}, report["subject"]
        assert report["executed"] == report["planned"] == len(rows) and not report["message"], report["subject"]


def test_the_run_is_of_many():
    """At least fifteen implementations from five environments, and no canary passed."""
    reports = findings.reports()
    assert len(reports) >= 15
    assert len({environment(report["subject"]["spec"]) for report in reports}) >= 5
    for report in reports:
        assert set(report["canaries"].values()) <= {"fail", "error", "unsupported"}, report["subject"]
        assert report["conventions"]


def test_what_is_different_since_then_is_told(monkeypatch):
    """The page names a new requirement, a removed one, one with other words and a new subject, and nothing else."""
    row = findings.Sentence("MUST", "some title", "It MUST be so.")
    judged = [report["subject"]["spec"] for report in findings.full_run()["reports"]]
    monkeypatch.setattr(findings, "others", lambda: judged)
    monkeypatch.setattr(findings, "worded_now", lambda: {"FWD-01": row, "FWD-02": row, "FWD-04": row, "FWD-05": row})
    then = findings.Asked("0", "0", "today", {"FWD-01": row, "FWD-02": row, "FWD-04": row, "FWD-05": row})
    assert findings.since(then) == []
    other = row._replace(level="SHOULD")
    then = findings.Asked("0", "0", "today", {"FWD-01": row, "FWD-02": other, "FWD-03": row})
    monkeypatch.setattr(findings, "others", lambda: [*judged, "new_one"])
    assert findings.since(then) == [
        "* Not asked yet: FWD-04, FWD-05.", "* No longer a requirement: FWD-03.", "* Worded otherwise now: FWD-02.",
        "* Implementations that were not asked: new_one."]


def test_a_page_with_a_failure_that_nothing_explains_is_not_written(monkeypatch):
    monkeypatch.setattr(findings, "all_findings", lambda: FOUND[1:])
    with pytest.raises(ValueError, match=f"{FOUND[0].subject} {FOUND[0].requirements[0]} fails, and no finding says why"):
        generated.findings()


@pytest.mark.peers
@pytest.mark.parametrize("subject", sorted({finding.subject for finding in FOUND}))
def test_the_scripts_print_what_they_say(subject):
    """Each script runs in its own process with only its library, if the library is installed."""
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
