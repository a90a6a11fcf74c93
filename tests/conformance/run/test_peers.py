"""Runs the suite on libraries that other people wrote, if they are installed here: exactly the expected requirements fail."""

import pytest
from thorough import THOROUGH

from conformance.run import plan, runner, verdict

# Each looked into and found to be so in the pinned versions; see the requirement of that id for why it matters.
FINDINGS = {
    "peft": {
        "MERGE-08", "MERGE-11", "MERGE-17", "MERGE-19", "STATE-08", "STATE-09", "STATE-12", "INPUT-05", "INPUT-06",
        "INPUT-08", "MULTI-10", "MULTI-13", "MULTI-17", "TORCH-32", "TORCH-38", "TORCH-54", "FILE-14", "FILE-15", "FILE-16",
        "FILE-17", "FILE-18", "FILE-20", "FILE-21", "FILE-23", "FILE-26", "FILE-35",
    },
    "loralib": {
        "MERGE-08", "MERGE-11", "MERGE-17", "MERGE-19", "STATE-07", "STATE-08", "STATE-09", "STATE-12", "DTYPE-07",
        "INPUT-05", "INPUT-06", "TORCH-02", "TORCH-15", "TORCH-32", "TORCH-38", "TORCH-54", "GRAD-20",
    },
    "article": {"INIT-07", "INPUT-05"},
    "lora_ref": set(),  # lora_torch is judged by the README's first command, which tests/test_readme.py runs
}


MARKS = {"peft": pytest.mark.peers("peft"), "loralib": pytest.mark.peers("loralib"), "article": pytest.mark.thorough}


@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, ())) for name in FINDINGS])
def test_verdicts(name):
    report = runner.run([name], plan.Options(examples=8 if name == "lora_ref" and not THOROUGH else 24))[0]
    failed = {id: outcome.message for id, outcome in report.outcomes.items() if outcome.status in verdict.FAILING}
    assert set(failed) == FINDINGS[name], failed
    must = {r.id for r in report.planned if r.level == "MUST"} & set(failed)
    assert report.verdict == ("nonconformant" if must else "conformant")
