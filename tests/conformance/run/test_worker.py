"""A subject that raises, exits, dies, hangs, prints or answers nonsense fails only the requirement at hand, and the report says
how."""

import faulthandler
import tempfile
import threading
import time
from pathlib import Path

import pytest

from conformance.run import plan, runner, verdict, worker
from conformance.truth import cache

BROKEN = Path(__file__).parents[1] / "broken.py"


def run(name: str, *only: str, timeout: float = 30.0, examples: int = 4) -> verdict.Report:
    options = plan.Options(only=only, jobs=1, timeout=timeout, examples=examples)
    return runner.run([f"{BROKEN}:{name}"], options)[0]


@pytest.mark.parametrize(
    ("name", "status", "says"),
    [
        ("raises", "error", "forward() raised RuntimeError: no forward today"),
        ("exits", "crash", "forward() raised SystemExit: 3"),
        ("exits_hard", "crash", "exited with status 7"),
        ("crashes", "crash", "killed by SIGSEGV; it last printed: about to die"),
        ("hangs", "timeout", "took longer than"),
        ("returns_nothing", "fail", "what forward() returns: got nothing (None), want ndarray"),
        ("returns_list", "fail", "what forward() returns: got list, want ndarray"),
        ("wrong_shape", "fail", "shape of y: got"),
        ("returns_nan", "fail", "got nan, want"),
    ],
)
def test_the_run_goes_on(name, status, says):
    """FWD-01 fails because of the fault. INIT-03, which does not call forward, is still examined."""
    report = run(name, "FWD-01", "INIT-03", timeout=2.0 if name == "hangs" else 30.0)
    assert report.outcomes["FWD-01"].status == status
    assert says in report.outcomes["FWD-01"].message
    assert report.outcomes["INIT-03"].status == "pass"
    assert report.outcomes["FWD-01"].reproduce
    assert report.verdict == "nonconformant"
    assert report.exit_status == 1


def test_wrong_dtype_is_named():
    options = plan.Options(only=("DTYPE-01", "FWD-01"), dtypes=("float32",), jobs=1, examples=4)
    report = runner.run([f"{BROKEN}:wrong_dtype"], options)[0]
    assert report.outcomes["FWD-01"].status == "pass"  # the numbers are right
    assert report.outcomes["DTYPE-01"].status == "fail"
    assert "dtype of y of a float32 layer: got float64, want float32" in report.outcomes["DTYPE-01"].message


def test_missing_gradients_are_named():
    report = run("gives_no_gradient", "GRAD-02")
    assert "dA" in report.outcomes["GRAD-02"].message
    assert report.outcomes["GRAD-02"].status == "fail"


@pytest.mark.parametrize("name", ["noisy", "reads_input"])
def test_noise_does_not_disturb(name):
    report = run(name, "FWD-01")
    assert report.outcomes["FWD-01"].status == "pass"
    assert report.verdict == "conformant"


def test_nothing_could_be_said():
    report = run("raises", "FWD-01")
    assert report.verdict == "error"
    assert report.exit_status == 4


@pytest.mark.parametrize("name", ["raises"])
def test_refusals_are_not_passed_by_what_never_works(name):
    report = run(name, "INPUT")
    assert "pass" not in {outcome.status for outcome in report.outcomes.values()}


def test_offering_nothing_is_void():
    report = run("OffersNothing", "FWD-01", "MERGE-01")
    assert {outcome.status for outcome in report.outcomes.values()} == {"unsupported"}
    assert set(report.profiles.values()) == {"not offered"}
    assert report.exit_status == 3


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (f"{BROKEN}:not_a_subject", "is an instance of int; expected a conformance.Subject"),
        (f"{BROKEN}:absent", "has no attribute 'absent'; it has: subject,"),
        (f"{BROKEN}", "say which class of it"),
        (":Thing", "expected package.module:attribute or path/to/file.py:attribute"),
        (f"{BROKEN}:RaisesOnBuild", "building a layer raised RuntimeError: cannot build"),
        ("no/such/file.py:Thing", "no file no/such/file.py"),
        ("no_such_module:Thing", "importing no_such_module raised ModuleNotFoundError"),
        ("no_such_name", "no built-in subject 'no_such_name'; there are adapters, article, file, flax_nnx"),
    ],
)
def test_unloadable(spec, says):
    report = runner.run([spec], plan.Options(only=("FWD-01",), jobs=1))[0]
    assert says in report.unloadable
    assert report.exit_status == 4


def test_subjects_do_not_disturb_each_other():
    specs = [f"{BROKEN}:exits_hard", "lora_ref"]
    reports = runner.run(specs, plan.Options(only=("FWD-01", "FWD-03"), jobs=2, examples=4))
    assert [report.spec for report in reports] == specs
    assert [report.exit_status for report in reports] == [4, 0]


def test_what_hangs_again_and_again_is_given_less_time():
    report = run("hangs", "FWD", "INIT-03", timeout=4.0)  # the canaries hang as well
    assert any("took longer than 0.4 s" in outcome.message for outcome in report.outcomes.values())
    assert report.outcomes["INIT-03"].status == "pass"
    assert len(report.outcomes) == len(report.planned)


ONE_PROCESS_ONLY = """
import os
from pathlib import Path
os.close(os.open(Path(__file__).with_suffix(".lock"), os.O_CREAT | os.O_EXCL))
from conformance.run.loading import load
subject = load("lora_ref")
"""


def test_a_worker_that_cannot_be_started_leaves_the_work_to_the_others(tmp_path):
    (tmp_path / "once.py").write_text(ONE_PROCESS_ONLY)
    options = plan.Options(only=("FWD",), jobs=2, examples=4)
    report = runner.run([f"{tmp_path / 'once.py'}:subject"], options)[0]
    assert report.verdict == "conformant", report.unloadable
    assert len(report.outcomes) == len(report.planned)


def test_a_judge_that_takes_too_long_says_where_it_was():
    def slow():
        while not where.tell():
            time.sleep(0.01)
            where.seek(0, 2)
        return ()

    over = threading.Event()  # of another thread, whose place is not told
    threading.Thread(target=over.wait, daemon=True).start()
    with tempfile.TemporaryFile() as where:
        assert worker._place(where) == ""
        faulthandler.dump_traceback_later(0.1, file=where)
        cache.once("of test_a_judge_that_takes_too_long_says_where_it_was", slow, files=False)
        said = worker._place(where)
    over.set()
    assert said.startswith("; it was in slow (conformance/run/test_worker.py:")
    assert ", called from once (conformance/truth/cache.py:" in said
