"""`conformance gpu`, tested without a GPU: a rehearsal of all steps, and each way in which the command can be cut short."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from conformance.bench import machine
from conformance.commands import gpu
from conformance.run import plan, runner, verdict
from conformance.run.examine import Outcome

ROOT = Path(__file__).parents[3]


def arguments(folder: Path, device: str = "cpu", minutes: float = 8.0, small: bool = True) -> argparse.Namespace:
    return argparse.Namespace(out=str(folder), device=device, minutes=minutes, small=small)


def states(folder: Path) -> dict[str, str]:
    rows = [line.split(" | ") for line in (folder / "summary.md").read_text(encoding="utf-8").splitlines() if " | " in line]
    return {row[0].removeprefix("| "): row[1] for row in rows[1:]}


def test_the_rehearsal_runs_every_step(tmp_path):
    command = [sys.executable, "-m", "conformance", "gpu", str(tmp_path / "out"), "--device", "cpu", "--small"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=480)
    out = tmp_path / "out"
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert states(out) == dict.fromkeys(["versions and settings", "tests", "verdict", "benchmark"], "done")
    lines = ran.stdout.splitlines()
    assert ran.stderr == "" and len(lines) == 5 and all(": done, " in line for line in lines[:4]), ran.stdout
    assert "rehearsal" in (out / "summary.md").read_text(encoding="utf-8")
    environment = json.loads((out / "environment.json").read_text(encoding="utf-8"))
    assert environment["torch"] == torch.__version__ and {"cuda.matmul.allow_tf32", "triton"} <= environment.keys()
    assert "passed" in (out / "tests.log").read_text(encoding="utf-8") and (out / "tests.xml").exists()
    reports = json.loads((out / "report.json").read_text(encoding="utf-8"))["reports"]
    assert reports[0]["subject"]["spec"] == "lora_torch" and len(reports) == 2
    assert all(report["verdict"] == "conformant" for report in reports)
    bench = json.loads((out / "bench" / "bench.json").read_text(encoding="utf-8"))
    assert [result["workload"]["name"] for result in bench["workloads"]] == ["C1"] and (out / "bench" / "bench.md").exists()
    assert not [*out.rglob("*part")]


def faked(monkeypatch, *actions) -> None:
    monkeypatch.setattr(gpu, "STEPS", tuple(gpu.Step(f"step {i}", "", needs, act) for i, (needs, act) in enumerate(actions)))


def test_a_step_that_fails_or_does_not_fit_stops_no_other(tmp_path, monkeypatch, capsys):
    seen = []

    def breaks(*_):
        raise OSError("no such thing")

    def looks(_, folder, seconds, told):
        told("on its way")
        seen.append((states(folder), seconds))
        return "done", "a | b"

    faked(monkeypatch, (0, breaks), (1e6, breaks), (0, looks), (0, lambda *_: ("cut off", "")))
    assert gpu.run(arguments(tmp_path, minutes=2)) == 1
    assert states(tmp_path) == {"step 0": "failed", "step 1": "not run", "step 2": "done", "step 3": "cut off"}
    (before, seconds), = seen
    assert before == {"step 0": "failed", "step 1": "not run", "step 2": "running", "step 3": "not run"} and 50 < seconds <= 60
    text = (tmp_path / "summary.md").read_text(encoding="utf-8")
    assert "OSError: no such thing" in text and "of the 2 minutes were left, and it needs 1000000 s" in text and "a / b" in text
    assert "step 2: done, a | b" in capsys.readouterr().out

    faked(monkeypatch, (0, lambda *_: ("done", "")), (0, lambda *_: ("not here", "no pytest")))
    assert gpu.run(arguments(tmp_path)) == 0
    faked(monkeypatch, (0, lambda *_: ("done", "")), (1e6, breaks))
    assert gpu.run(arguments(tmp_path)) == 3


def test_an_interruption_leaves_a_summary(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    faked(monkeypatch, (0, lambda *_: ("done", "")), (0, interrupted), (0, interrupted))
    with pytest.raises(KeyboardInterrupt):
        gpu.run(arguments(tmp_path))
    assert states(tmp_path) == {"step 0": "done", "step 1": "cut off", "step 2": "not run"}


STUBBORN = """
import os, signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
if os.fork() == 0:
    signal.alarm(0)
print(os.getpid(), flush=True)
time.sleep(300)
"""


def ended(pid: int) -> bool:
    for _ in range(200):
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().split(") ")[1].startswith("Z"):
                return True
        except OSError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_that_hangs_is_ended_with_all_that_it_started(tmp_path):
    told = []
    code, text = gpu.process([sys.executable, "-c", STUBBORN], tmp_path / "log", 4.0, told.append)
    assert code is None and len(text.split()) == 2 and text.split()[-1] in told
    assert all(ended(int(pid)) for pid in text.split())
    three = [sys.executable, "-c", "print('a')\nraise SystemExit(3)"]
    assert gpu.process(three, tmp_path / "log", 60.0, told.append) == (3, "a\n")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_whoever_kills_the_command_leaves_no_process_on_the_gpu(tmp_path):
    child = "import os, time; print(os.getpid(), flush=True); time.sleep(300)"
    code = f"""
import sys
from pathlib import Path
from conformance.commands import gpu
gpu.process([sys.executable, "-c", {child!r}], Path({str(tmp_path / "log")!r}), 6.0, lambda text: print(text, flush=True))
"""
    command = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert command.stdout is not None
    pid = next(int(line) for line in command.stdout if line.strip().isdigit())
    command.send_signal(signal.SIGKILL)
    command.wait()
    command.stdout.close()
    assert ended(pid)


def test_a_verdict_that_is_cut_off_leaves_what_was_decided(tmp_path, monkeypatch):
    def run(specs, options, progress):
        report = verdict.Report(specs[0], specs[0], planned=plan.plan(options))
        report.outcomes["FWD-01"] = Outcome("FWD-01", "pass", examples=2)
        progress(report, report.outcomes["FWD-01"])
        time.sleep(300)

    monkeypatch.setattr(runner, "run", run)
    state, text = gpu.verdict(arguments(tmp_path), tmp_path, 0.5, lambda text: None)
    assert state == "cut off" and text == "lora_torch: void, 1 of 2 asked, 1 passed"
    (report,) = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["reports"]
    assert (report["verdict"], report["executed"], report["planned"]) == ("void", 1, 2)
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_a_requirement_that_lora_torch_fails_is_a_failure_and_one_that_another_fails_is_none(tmp_path, monkeypatch):
    for guilty, state in (("lora_torch", "failed"), ("article", "done")):
        def run(specs, options, progress, guilty=guilty):
            status = "fail" if specs[0] == guilty else "pass"
            report = verdict.Report(specs[0], specs[0], planned=plan.plan(options))
            report.outcomes |= {r.id: Outcome(r.id, status) for r in report.planned}
            progress(report, None)

        monkeypatch.setattr(runner, "run", run)
        found, text = gpu.verdict(arguments(tmp_path), tmp_path, 60.0, lambda text: None)
        assert found == state and f"{guilty}: nonconformant" in text and "failed: FWD-01 FWD-11" in text


def test_on_cuda_every_step_is_told_the_device(tmp_path, monkeypatch):
    commands, options = [], []
    monkeypatch.setattr(gpu, "process", lambda command, *_: (commands.append(command), (1, "no GPU"))[1])
    monkeypatch.setattr(runner, "run", lambda specs, given, noted: options.append((specs[0], given.device, given.only)))
    for step in gpu.STEPS:
        step.action(arguments(tmp_path, "cuda", small=False), tmp_path, 60.0, lambda text: None)
    environment, tests, bench = commands
    assert environment[-1] == "cuda" and tests[tests.index("-k") + 1] == "cuda" and tests[3].endswith("tests/lora_torch")
    assert bench[bench.index("--device") + 1] == "cuda" and "--small" not in bench
    assert bench[4] == "lora_torch" and "lora_torch-one-pass" in bench and not any("autotuned" in word for word in bench)
    assert options[0] == ("lora_torch", "cuda", ()) and len(options) > 1


def test_what_is_not_here_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu.conformance, "__file__", str(tmp_path / "site-packages" / "conformance" / "__init__.py"))
    state, text = gpu.tests(arguments(tmp_path), tmp_path, 60.0, lambda text: None)
    assert state == "not here" and "there is no folder" in text


def test_the_machine_of_a_gpu(monkeypatch):
    card = SimpleNamespace(name="A card", major=9, minor=0, total_memory=1 << 36)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    found = json.loads(json.dumps(machine.environment("cuda")))
    assert (found["device"], found["capability"], found["memory in bytes"]) == ("A card", "9.0", 1 << 36)
    assert found["variables"]["NVIDIA_TF32_OVERRIDE"] == "0"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match="finds no CUDA device"):
        gpu.run(arguments(tmp_path / "out", "cuda"))
    assert not (tmp_path / "out").exists()
