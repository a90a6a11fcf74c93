"""The group FILE: functions and programs as subjects, the scripts of failures, and the verdict on a reader without layers."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from conformance.drivers.process import ProcessSubject
from conformance.files.binary import with_header
from conformance.mutants import all_mutants, honest_subjects
from conformance.mutants.honest_reader import HonestReader
from conformance.requirements import all_requirements
from conformance.requirements.helpers import loaders
from conformance.run import case_bank, plan, runner
from conformance.run import examine as search
from conformance.run.diagnosis import Diagnosis
from conformance.run.examine import Outcome, examine
from conformance.run.loading import load
from conformance.run.verdict import Report
from conformance.truth.compare import Mismatch

FILE = Path(__file__).parents[1] / "readers.py"
REQUIREMENTS = {r.id: r for r in all_requirements() if r.group == "FILE"}


def test_a_function_is_a_reader_and_the_verdict_is_on_files_alone():
    report = runner.run([f"{FILE}:right"], plan.Options(only=("FILE",), jobs=1, examples=4))[0]
    failed = {id: o.message for id, o in report.outcomes.items() if o.status not in ("pass", "unsupported")}
    assert not failed and report.verdict == "conformant"
    assert report.outcomes["FILE-02"].status == "pass" and report.outcomes["FILE-26"].status == "unsupported"


def test_a_fault_is_named_and_its_script_shows_it(tmp_path):
    outcome = examine(REQUIREMENTS["FILE-02"], load(f"{FILE}:without_rslora"), f"{FILE}:without_rslora", examples=24, seed=0)
    assert outcome.status == "fail" and "use_rslora is not read" in str(outcome.diagnosis)
    assert "1 / √rank" in str(outcome.diagnosis)
    assert outcome.reproduce is not None
    ran = subprocess.run([sys.executable, "-c", outcome.reproduce], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert outcome.failure["got"] in ran.stdout


@pytest.mark.parametrize("id", ["FILE-14", "FILE-15", "FILE-19", "FILE-23", "FILE-26"])
def test_the_script_of_every_kind_of_failure_runs(id, capsys, monkeypatch):
    monkeypatch.setattr(search, "diagnose", lambda *_: Diagnosis(None))
    mutant = next(mutant for mutant in all_mutants() if mutant.kills[0] == id)
    outcome = examine(REQUIREMENTS[id], mutant, mutant.spec, examples=48, seed=0)
    assert outcome.status in ("fail", "error") and outcome.reproduce is not None
    exec(outcome.reproduce, {})
    assert capsys.readouterr().out


def test_a_pickle_is_known_by_its_name_or_its_bytes(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "new")
    torch.save({"a": torch.ones(2)}, tmp_path / "old", _use_new_zipfile_serialization=False)
    (tmp_path / "last.ckpt").touch()
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / f"protocol {protocol}").write_bytes(pickle.dumps({"r": 2, "name": ["q", None, 1.5]}, protocol))
    assert [path.name for path in tmp_path.iterdir() if not loaders.is_pickle(path)] == []


def test_what_is_no_pickle_is_not_taken_for_one(tmp_path):
    """Headers of 640 bytes and more begin with the two bytes of a pickle."""
    np.savez(tmp_path / "a.npz", a=np.ones(2))
    (tmp_path / "empty").touch()
    (tmp_path / "README.md").write_text("I have a rank of 2.")
    (tmp_path / "adapter_config.json").write_text('{"r": 2}')
    for length in (8, 640, 896, 1152, 1408):
        (tmp_path / f"{length}").write_bytes(with_header(b"{}".ljust(length)))
    assert [path.name for path in tmp_path.iterdir() if loaders.is_pickle(path)] == []


def test_a_delta_of_zeros_may_be_left_out():
    loaders.expect_same({"ΔW": {}}, {"ΔW": {"q": np.zeros((2, 3))}}, "after a load")
    with pytest.raises(Mismatch, match="ΔW of q after a load"):
        loaders.expect_same({"ΔW": {}}, {"ΔW": {"q": np.ones((2, 3))}}, "after a load")


def test_a_program_reads_files_too():
    """What a process answers, line by line, is what the same reader answers here."""
    words = "from conformance.drivers import protocol; from conformance import mutants; "
    subject = ProcessSubject([sys.executable, "-c", f"{words}protocol.serve(mutants.ScaleByTheGlobalRank)"])
    try:
        assert subject.loaders
        found = {id: case_bank.judge(r, subject, case_bank.first(r, ("float32",), 8, 1))[0] for id, r in REQUIREMENTS.items()
                 if id in ("FILE-01", "FILE-03", "FILE-14", "FILE-23")}
    finally:
        subject.stop()
    assert found == {"FILE-01": "pass", "FILE-03": "fail", "FILE-14": "pass", "FILE-23": "pass"}


def test_conformance_file_reads_what_was_drawn():
    """The truth of a case is made before the files, and `conformance file` knows nothing of it. It writes nothing, and warns of
    a setting that it does not know."""
    subject = load("file")
    found = {id: case_bank.judge(r, subject, case_bank.first(r, ("float32",), 8, 3))[0] for id, r in REQUIREMENTS.items()}
    other = {id: status for id, status in found.items() if status != "pass"}
    assert other == dict.fromkeys(("FILE-26", "FILE-27", "FILE-28", "FILE-29", "FILE-30"), "unsupported") | {"FILE-17": "fail"}


def outcomes(*passed: str, failed: tuple[str, ...] = ()) -> dict[str, Outcome]:
    said = {r.id: "unsupported" for r in all_requirements()}
    said |= dict.fromkeys(passed, "pass") | dict.fromkeys(failed, "fail")
    return {id: Outcome(id, status, examples=1) for id, status in said.items()}


def test_the_profile_of_files_rests_on_what_is_offered():
    """A reader of files needs no layer, and a layer that saves and loads needs no reader of files. Who offers both must pass
    both."""
    every = all_requirements()
    saving = [r.id for r in every if r.profile == "files" and r.group == "STATE"]
    reading_ = [r.id for r in every if r.group == "FILE"]

    def profile(*passed: str, failed: tuple[str, ...] = ()) -> str:
        return Report("x", planned=every, outcomes=outcomes(*passed, failed=failed)).profiles["files"]

    assert profile() == "not offered"
    assert profile(*saving) == profile(*reading_) == profile(*saving, *reading_) == "conformant"
    assert profile(*(id for id in reading_ if not REQUIREMENTS[id].optional)) == "conformant"
    assert profile(*saving, "FILE-01") == "partial"
    assert profile(*saving, failed=("FILE-14",)) == "nonconformant"
    assert Report("x", planned=every, outcomes=outcomes(*reading_)).verdict == "conformant"
    assert Report("x", planned=every, outcomes=outcomes(*saving)).verdict == "void"


def test_there_are_honest_readers_in_several_styles():
    own = [subject for subject in honest_subjects() if subject.layer.__module__.endswith(("readers", "honest_reader"))]
    others = [subject for subject in own if not issubclass(subject.layer, HonestReader)]
    assert len(own) >= 8 and len(others) >= 2
