"""conformance mutate: each fault shows in a layer that has all, and the tests of a scratch project are measured rightly."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conformance.__main__ import main
from conformance.commands.mutate import _done
from conformance.mutate.layer import found, proven
from conformance.mutate.planted.all import FAULTS, NOTHING, plant
from conformance.requirements import all_requirements
from conformance.run.examine import examine

WHOLE = f"{Path(__file__).with_name('whole.py')}:Whole"


@pytest.fixture(scope="module")
def layer():
    return found(WHOLE)


def test_there_are_enough_faults_and_each_names_requirements():
    known = {r.id for r in all_requirements()}
    assert len(FAULTS) >= 40
    assert all(fault.words.endswith(".") and fault.kills and set(fault.kills) <= known for fault in FAULTS.values())


@pytest.fixture(scope="module")
def shown(layer) -> dict[str, str]:
    """The requirement that each fault fails in the layer."""
    return dict(proven(layer, list(FAULTS)))


def test_every_fault_shows_in_a_layer_that_has_all(shown):
    assert [name for name, requirement in shown.items() if not requirement] == []


def test_what_was_planted_can_be_taken_away_again(layer):
    before = dict(vars(layer.cls))
    for name in (*FAULTS, NOTHING):
        plant(layer.cls, layer.facts, name).undo()
    assert dict(vars(layer.cls)) == before


def test_the_layer_wrapped_and_not_changed_passes(layer, shown):
    """The wrapping itself breaks none of the requirements that the faults fail."""
    requirements = {r.id: r for r in all_requirements()}
    patch = plant(layer.cls, layer.facts, NOTHING)
    try:
        for id in sorted(set(shown.values())):
            assert examine(requirements[id], layer.subject, "", examples=4, seed=0, explain=False).status == "pass", id
    finally:
        patch.undo()


TESTS = """\
import torch
from layers import Small


def test_shape():
    assert Small(8, 6, 2, 4.0)(torch.ones(3, 8)).shape == (3, 6)


def test_delta():
    layer = Small(8, 6, 2, 4.0)
    torch.nn.init.normal_(layer.lora_B)
    x = torch.randn(3, 8)
    assert torch.allclose(layer(x), layer.base(x) + 2 * x @ layer.lora_A @ layer.lora_B, 1e-3)
"""
LAYER = """\
import torch
from torch import nn


class Small(nn.Module):
    def __init__(self, in_features, out_features, rank, alpha):
        super().__init__()
        self.base = nn.Linear(in_features, out_features).requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(in_features, rank))
        self.lora_B = nn.Parameter(torch.zeros(rank, out_features))
        self.scale = alpha / rank

    def forward(self, x):
        return self.base(x) + self.scale * (x @ self.lora_A @ self.lora_B)
"""
CHOSEN = ("scale-is-alpha", "A-without-gradient", "merge-of-nothing")


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    (folder / "layers.py").write_text(LAYER)
    (folder / "test_layers.py").write_text(TESTS)
    return folder


def tree(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("out.")]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_score_of_a_scratch_project(project, monkeypatch, capsys):
    """One fault is caught, one gets through, and one does not show. No file changes. --resume takes what is still right."""
    monkeypatch.chdir(project)
    before = tree(project)
    command = ["mutate", "test_layers.py", "--layer", "layers.py:Small", "--json", "out.json", "--jobs", "1"]
    command += ["--html", "out.html", "--fault", *CHOSEN]
    assert main(command) == 1
    told = capsys.readouterr().out
    assert "your 2 tests caught 1 of 2 faults (50 %)" in told
    assert "A-without-gradient          GRAD-02" in told
    assert "not counted, since they do not show in this layer: merge-of-nothing" in told
    assert "--lora-subject layers.py:Small -k GRAD-02" in told
    assert max(map(len, told.splitlines())) <= 80
    found = json.loads((project / "out.json").read_text())
    rows = {row["fault"]: row for row in found["faults"]}
    assert rows["scale-is-alpha"]["how"] == "test_layers.py::test_delta"
    assert "2 tests caught 1 of 2 faults" in (project / "out.html").read_text(encoding="utf-8")
    assert main(["page", "out.json", "--html", "out.again.html"]) == 0
    assert (project / "out.again.html").read_bytes() == (project / "out.html").read_bytes()
    assert tree(project) == before
    assert _done("out.json", found) == rows  # what --resume takes from the file
    with pytest.raises(ValueError, match="they have changed"):
        _done("out.json", found | {"files": dict.fromkeys(found["files"], "0")})


def test_resume_keeps_what_is_known_of_other_faults(project, monkeypatch, capsys):
    """The file is that of the test above. The score is that of the faults that were asked."""
    monkeypatch.chdir(project)
    command = ["mutate", "test_layers.py", "--layer", "layers.py:Small", "--json", "out.json", "--jobs", "1", "--resume"]
    assert main([*command, "--fault", CHOSEN[1]]) == 1
    assert "caught 0 of 1 faults" in capsys.readouterr().out
    found = json.loads((project / "out.json").read_text())
    assert {row["fault"] for row in found["faults"]} == set(CHOSEN) and found["planted"] == 1


def test_ctrl_c_ends_it_with_its_processes(tmp_path):
    """The tests sleep as soon as a fault is planted. What was ended with them counts as no fault that they caught."""
    (tmp_path / "layers.py").write_text(LAYER)
    (tmp_path / "test_slow.py").write_text(
        "import json, os, pathlib, time, layers\n\ndef test_slow():\n"
        "    if json.load(open(os.environ['CONFORMANCE_FAULT']))['fault'] == 'scale-is-alpha':\n"
        "        pathlib.Path('started').write_text(str(os.getpid()))\n        time.sleep(600)\n")
    command = [sys.executable, "-m", "conformance", "mutate", "test_slow.py", "--layer", "layers.py:Small",
               "--json", "out.json", "--jobs", "1", "--fault", "scale-is-alpha", "A-without-gradient"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True,
                               env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])})
    try:
        started, until = tmp_path / "started", time.monotonic() + 120
        while not (started.exists() and started.read_text()):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=20)[1]
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in said, said
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(("code", "status", "said"), [
    ("import layers; y = layers.Small(2, 2, 2, 4.0); assert y.scale == 2", 1, "your tests caught 0 of 1 faults"),
    ("import layers; raise SystemExit(3)", 3, "do not pass (exit status 3) without a fault"),
    ("pass", 3, "never import the file of layers.py:Small"),
])
def test_a_command_of_the_users(project, monkeypatch, capsys, code, status, said):
    monkeypatch.chdir(project)
    command = ["mutate", "test_layers.py", "--layer", "layers.py:Small", "--fault", CHOSEN[0], "--", sys.executable, "-c", code]
    assert main(command) == status
    printed = capsys.readouterr()
    assert said in printed.out + printed.err


@pytest.mark.parametrize(("arguments", "status", "said"), [
    (("--layer", "layers.py:None"), 4, "has no attribute"),
    (("--layer", "layers.py:Small", "--fault", "none"), 2, "no such fault"),
    (("--layer", "layers.py:Small", "--resume"), 2, "--resume needs --json"),
    (("--layer", "layers.py:Small", "--html", "folder"), 2, "ends in .html"),
    (("--layer", "layers.py:Small", "--", "no-such-command"), 2, "no such command"),
])
def test_wrong_arguments(project, monkeypatch, capsys, arguments, status, said):
    monkeypatch.chdir(project)
    assert main(["mutate", "test_layers.py", *arguments]) == status
    assert said in capsys.readouterr().err
