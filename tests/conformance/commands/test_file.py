"""`conformance file` and `conformance corpus` as a user sees them."""

import json
import re
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
from test_cli import ROOT, conformance


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "corpus"
    done = conformance("corpus", str(folder))
    assert done.returncode == 0 and "valid" in done.stdout, done.stderr
    assert conformance("corpus", str(folder)).returncode == 2  # it is not empty now
    return folder


def test_a_right_file_is_shown_module_by_module(corpus, tmp_path):
    out = tmp_path / "report.json"
    done = conformance("file", str(corpus / "peft/P-4-pass-both_patterns"), "--json", str(out))
    assert done.returncode == 0, done.stderr
    for part in ("PEFT: 2 modules", "model.layers.0.self_attn.q_proj", "10×12", "alpha_pattern 8 / 2", "no issue is an error"):
        assert part in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    report = json.loads(out.read_text())
    assert report["schema"] == 1 and report["right"]
    assert [(m["rank"], m["scale"], m["weight"]) for m in report["modules"]] == [(2, 4.0, [10, 12]), (4, 0.75, [10, 12])]


def test_a_wrong_file_is_told_with_its_code_and_clause(corpus, tmp_path):
    out = tmp_path / "report.json"
    done = conformance("file", str(corpus / "peft/R-3-fail-a_without_b"), "--json", str(out))
    assert done.returncode == 1
    assert "FILE-021 error: a factor has no partner (R-3)" in done.stdout
    issues = json.loads(out.read_text())["issues"]
    assert [issue["clause"] for issue in issues if issue["severity"] == "error"] == ["R-3"]


def test_a_base_model_and_a_reader(corpus, tmp_path):
    adapter = str(corpus / "peft/P-3-pass-rslora")
    (tmp_path / "base.json").write_text(json.dumps({"model.layers.0.self_attn.q_proj.weight": [10, 12]}))
    done = conformance("file", adapter, "--base", str(tmp_path / "base.json"), "--for", "llama.cpp")
    assert done.returncode == 1
    assert "FILE-040" in done.stdout and "0.5 times their strength" in " ".join(done.stdout.split())
    assert conformance("file", adapter, "--base", str(tmp_path / "no.json")).returncode == 2
    assert "this is PEFT" in conformance("file", adapter, "--for", "mlx-lm").stdout


def test_what_is_no_adapter_is_told_and_nothing_is_run(tmp_path):
    done = conformance("file", str(tmp_path / "nothing"))
    assert done.returncode == 1 and "FILE-001" in done.stdout
    (tmp_path / "x.safetensors").write_bytes(b"\x80\x04cos\nsystem\n(S'touch ran'\ntR.")
    done = conformance("file", str(tmp_path / "x.safetensors"))
    assert done.returncode == 1 and "FILE-007" in done.stdout and not Path("ran").exists()


def test_the_page_shows_what_the_command_prints(corpus):
    """Each block of docs/files.md that begins with a command."""
    page = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
    shown = re.findall(r"^```text\n\$ conformance file corpus/(\S+)\n(.*?)^```$", page, re.M | re.S)
    assert len(shown) == 2
    for place, text in shown:
        assert conformance("file", str(corpus / place)).stdout == text
