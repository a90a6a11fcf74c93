"""The protocol: PROTOCOL.md and the schema are true, the skeletons in three languages pass, and a program that breaks fails
only the requirement at hand."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import conformance
from conformance.drivers.process import USERS_PATH, ProcessSubject, Program, _environment
from conformance.drivers.protocol import decode, encode
from conformance.run import plan, runner, verdict
from conformance.run.loading import LoadError, load
from conformance.run.worker import Worker
from conformance.subject import LayerConfig, Unsupported

HERE, PACKAGE = Path(__file__).parents[1], Path(conformance.__file__).parent
SCHEMA = jsonschema.Draft202012Validator(json.loads((PACKAGE / "protocol.schema.json").read_text()))
TRANSCRIPT = [json.loads(line) for line in re.findall(r"^\{.*\}$", (PACKAGE / "PROTOCOL.md").read_text(), re.M)]
BROKEN = f"cmd:{sys.executable} {HERE / 'broken_program.py'}"


@pytest.fixture(scope="session", params=["c", "javascript", "python"])
def program(request, tmp_path_factory) -> list[str]:
    """The command of a skeleton, as `init` writes it."""
    language, folder = request.param, tmp_path_factory.mktemp("program")
    file = folder / f"lora.{ {'c': 'c', 'javascript': 'js', 'python': 'py'}[language]}"
    tool = {"c": "cc", "javascript": "node", "python": sys.executable}[language]
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    init = [sys.executable, "-m", "conformance", "init", "--language", language, str(file)]
    said = subprocess.run(init, check=True, capture_output=True, text=True).stdout
    assert f"wrote {file}" in said
    assert len(file.read_text().splitlines()) <= 120
    if language != "c":
        return [tool, str(file)]
    strict = ["-Wall", "-Wextra", "-Werror", "-fsanitize=undefined", "-fno-sanitize-recover"]
    subprocess.run([tool, "-O2", *strict, "-o", str(folder / "lora"), str(file)], check=True)
    return [str(folder / "lora")]


def server(name: str) -> list[str]:
    """The command of a built-in subject, or one of tests and mutants, in a process of its own."""
    words = f"from conformance.run.loading import load; from conformance.drivers.protocol import serve; serve(load({name!r}))"
    return [sys.executable, "-c", words]


def run(spec: str, *only: str, timeout: float = 30.0, examples: int = 4, memory: float = 8.0) -> verdict.Report:
    return runner.run([spec], plan.Options(only=only, jobs=1, timeout=timeout, examples=examples, memory=memory))[0]


def test_the_page_is_true(program):
    """Each program answers the requests in PROTOCOL.md as the page says, and every line fits the schema."""
    talk = subprocess.run(program, input="".join(json.dumps(m, separators=(",", ":")) + "\n" for m in TRANSCRIPT[::2]),
                          capture_output=True, text=True, check=True)
    answers = [json.loads(line) for line in talk.stdout.splitlines()]
    for message in (*TRANSCRIPT, *answers):
        SCHEMA.validate(message)
    assert answers == TRANSCRIPT[1::2]
    assert decode(TRANSCRIPT[-1]["result"]).tolist() == [[10.0]]


def test_skeletons_pass(program):
    report = run(f"cmd:{' '.join(program)}", "FWD", "INIT", "GRAD", "PARAM", "SCALE", "INPUT", "LEARN", examples=3)
    failed = {id: outcome.message for id, outcome in report.outcomes.items() if outcome.status in verdict.FAILING}
    assert not failed
    assert report.verdict == "conformant"
    assert sum(outcome.status == "pass" for outcome in report.outcomes.values()) > 60


def test_everything_said_fits_the_schema(monkeypatch):
    said = []
    plain = Program._answer

    def heard(self, line, seconds):
        answer = plain(self, line, seconds)
        said.extend([json.loads(line), answer])
        return answer

    monkeypatch.setattr(Program, "_answer", heard)
    subject = ProcessSubject(server("conformance.mutants:SeveralAdapters"))
    layer = subject.build(LayerConfig(3, 2, 1, 2.0), np.ones((2, 3), np.float32), None)
    for method, *args in (
        ("adapter",), ("set_adapter", layer.adapter()), ("weight",), ("bias",), ("forward", np.ones((2, 3), np.float32)[::-1]),
        ("backward", np.ones((2, 2), np.float32)), ("zero_grad",), ("trainable",), ("train", False), ("step", 0.5),
        ("merge",), ("unmerge",), ("input_needs_grad", False), ("factor_needs_grad", "A", False),
        ("add_adapter", "second", layer.adapter(), np.nan),
        ("activate", {"default": 0.5}), ("remove_adapter", "third"), ("combine", "fourth", {"default": 1.0}),
        ("forward_mixed", np.ones((2, 3), np.float32), ("default", None)), ("stored",),
    ):
        try:
            getattr(layer, method)(*args)
        except Exception:  # what it answers is not what is asked here
            assert {"unsupported", "error"} & set(said[-1])
    assert len(said) > 30
    for message in said:
        SCHEMA.validate(message)


ARRAYS = st.builds(
    lambda shape, dtype, seed: np.random.default_rng(seed).integers(-128, 128, shape).astype(dtype),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
    st.sampled_from([np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int64, np.bool_]), st.integers(0, 99),
)


@given(ARRAYS, st.booleans(), st.booleans(), st.booleans())
def test_arrays_come_back_as_they_were(array, reverse, readonly, strided):
    array = array.T[::-1] if reverse and array.ndim else array
    array.flags.writeable = not readonly
    back = decode(json.loads(json.dumps(encode(array, strided))))
    assert back.dtype == array.dtype and back.shape == array.shape
    assert back.tobytes() == array.tobytes()
    if strided and not array.flags.c_contiguous:
        assert back.flags.writeable == array.flags.writeable
        assert back.strides == array.strides


def test_bits_come_back():
    """NaN with its payload, −0 and the smallest number of bfloat16 arrive with the same bits."""
    bits = np.array([0x7FC1, 0x8000, 0x0001, 0xFF80], np.uint16).view(ml_dtypes.bfloat16)
    assert decode(encode(bits)).tobytes() == bits.tobytes()


@pytest.mark.parametrize(
    ("fault", "status", "says"),
    [
        ("dies", "crash", "the program was killed by SIGSEGV; it last printed: about to die"),
        ("exits", "crash", "the program exited with status 7"),
        ("hangs", "timeout", "the program took longer than 1 s"),
        ("floods", "timeout", "the program took longer than 1 s; it last printed: xxx"),
        ("eats", "error", ""),
        ("raises", "error", "forward() raised RuntimeError: no forward today"),
        ("answers-nothing", "error", "neither result, unsupported nor error"),
        ("garbles", "error", "the result of forward cannot be read"),
    ],
)
def test_a_program_that_breaks_costs_one_requirement(fault, status, says):
    report = run(f"{BROKEN} {fault}", "FWD-01", "INIT-03", timeout=3.0 if status == "timeout" else 30.0, memory=0.5)
    found = report.outcomes["FWD-01"]
    assert found.status == status or fault == "eats" and found.status == "crash", found
    assert says in found.message
    assert report.outcomes["INIT-03"].status == "pass", report.outcomes["INIT-03"]


def test_noise_is_no_answer():
    assert load(f"{BROKEN} is-noisy").name == "broken"


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("cmd:", "names no program"),
        ("cmd:./no-such-program", "FileNotFoundError"),
        ("cmd:true", "Died: the program exited with status 0"),
        (f"{BROKEN} is-newer", "expected an object with protocol: 1"),
    ],
)
def test_what_is_no_program_is_told(spec, says):
    with pytest.raises(LoadError, match=re.escape(says)):
        load(spec)


def statuses(report: verdict.Report) -> dict[str, str]:
    return {id: outcome.status for id, outcome in report.outcomes.items()}


@pytest.mark.parametrize(
    ("name", "only"),
    [
        ("conformance.mutants:SeveralAdapters", ("FWD-01", "MERGE-01", "MULTI")),
        ("conformance.mutants:ScalesXInPlace", ("FWD-01", "FWD-10", "FWD-11")),
        ("conformance.mutants:StepsTheCallersArrays", ("INPUT-07", "INPUT-08")),
        ("article", ("FWD-01", "INIT-07", "INPUT-05")),
    ],
)
def test_a_process_changes_no_verdict(name, only, tmp_path):
    """In a process of their own, an honest layer, layers that write to their arguments, and a torch module get the same
    statuses and messages."""
    file = tmp_path / "program.py"
    file.write_text(server(name)[-1])
    here, there = run(name, *only), run(f"cmd:{sys.executable} {file}", *only)
    assert statuses(here) == statuses(there)
    assert {id: o.message for id, o in here.outcomes.items() if o.status == "fail"} == {
        id: o.message for id, o in there.outcomes.items() if o.status == "fail"}


DOUBLED = """
from conformance.drivers.protocol import serve
from conformance.subjects import lora_torch
subject = lora_torch.subject()
plain = subject.build
def build(*args):
    layer = plain(*args)
    layer.module.scale *= 2
    return layer
subject.build = build
serve(subject)
"""


def test_a_program_of_ours_has_words_of_its_own(tmp_path):
    """The script of a failure needs neither the process in which the failure was found, nor this package."""
    file = tmp_path / "program.py"
    file.write_text(DOUBLED)
    found = run(f"cmd:{sys.executable} {file}", "SCALE-01").outcomes["SCALE-01"]
    assert found.status == "fail" and found.reproduce
    assert "import lora_torch" in found.reproduce and "conformance import" not in found.reproduce


def test_a_program_has_the_packages_of_its_own(tmp_path):
    """A program does not inherit the PYTHONPATH of the worker."""
    file = tmp_path / "program.py"
    users = os.environ.get("PYTHONPATH", "")
    check = f"import os, sys\nif os.environ.get('PYTHONPATH', '') != {users!r}: sys.exit('it has the path of the worker')\n"
    file.write_text(check + server("article")[-1])
    options = {"dtypes": ["float32"], "timeout": 30.0, "memory": 8.0, "device": "cpu", "in_process": False, "sandbox": False,
               "scratch": str(tmp_path)}
    worker = Worker(f"cmd:{sys.executable} {file}", options, 30.0)
    try:
        worker.start()
        assert worker.about["name"] == "article"
    finally:
        worker.stop()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", "ours")
        patch.setenv(USERS_PATH, "theirs")
        assert _environment()["PYTHONPATH"] == "theirs"
        patch.setenv(USERS_PATH, "")
        assert "PYTHONPATH" not in _environment() and USERS_PATH not in _environment()


def test_what_is_not_offered_stays_so():
    layer = ProcessSubject(server("conformance.mutants:ForwardOnly")).build(
        LayerConfig(2, 2, 1, 1.0), np.eye(2, dtype=np.float32), None)
    with pytest.raises(Unsupported, match="merge"):
        layer.merge()
