"""`conformance look` as a user sees it: what it says, and what it writes."""

import sys
from pathlib import Path

import pytest
from thorough import few

sys.path.append(str(Path(__file__).parent))
from test_cli import MODULES, ROOT, conformance

CORPUS = "tests/conformance/drivers/look_corpus.py"


def test_a_class_is_shown():
    done = conformance("look", f"{MODULES}:Wrapper")
    assert done.returncode == 0, done.stderr
    for part in ("Wrapper(linear=nn.Linear(in, out), rank=rank, alpha=alpha)", "linear.weight (out, in)",
                 "B (rank, out), zero at the start", "alpha / rank", "merge(), undone by unmerge()"):
        assert part in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_a_file_is_shown_with_what_is_not_recognised():
    done = conformance("look", CORPUS)
    assert done.returncode == 0
    assert "LowRankBranch" in done.stdout and "a linear layer, to whose output it is added" in done.stdout
    assert "the scale is alpha: it is not divided by the rank" in done.stdout


def test_what_cannot_be_found_is_explained():
    done = conformance("look", f"{MODULES}:NoFactors")
    assert done.returncode == 1
    assert "NoFactors: not recognised" in done.stdout and "linear.weight (5, 7)" in done.stdout
    assert conformance("look", f"{MODULES}:NoSuchClass").returncode == 4
    assert conformance("look", "no/such/file.py").returncode == 4
    assert conformance("look", MODULES, "--write", "subject.py").returncode == 2


KINDS = ("Wrapped", "LowRankUpdate", "LoRAModule", "inject_lora", "BottleneckAdapter", "OverWeight")


@pytest.mark.parametrize("name", few(KINDS))
def test_what_is_written_is_a_subject(name, tmp_path):
    """One way of each kind is written, and judged."""
    path = tmp_path / f"{name}_subject.py"
    done = conformance("look", f"{ROOT / CORPUS}:{name}", "--write", str(path))
    assert done.returncode == 0, done.stderr
    command = done.stdout.split("now run: conformance ")[1].split()
    judged = conformance(*command, "--only", "FWD-01", "GRAD-01", "--jobs", "1", "--examples", "8")
    assert judged.returncode == 0, judged.stdout


def test_no_file_is_written_over(tmp_path):
    path = tmp_path / "Wrapped_subject.py"
    path.write_text("mine\n")
    again = conformance("look", f"{ROOT / CORPUS}:Wrapped", "--write", str(path))
    assert again.returncode == 2 and "exists already" in again.stderr and path.read_text() == "mine\n"


def test_functions_that_save_or_upload_are_not_called(tmp_path):
    """`look` tries functions that may make a layer. One that saves may leave a file behind, or upload it."""
    path = tmp_path / "file.py"
    names = ("save_adapter", "push_to_hub", "merge_and_export", "download_weights")
    path.write_text("import pathlib\n" + "".join(
        f"def {name}(model, rank=4):\n    pathlib.Path({str(tmp_path / name)!r}).touch()\n" for name in names))
    made = (ROOT / MODULES).read_text(encoding="utf-8").replace("class Wrapper(nn.Module):", f"""class Wrapper(nn.Module):
    def merge_and_save(self):
        __import__("pathlib").Path({str(tmp_path / "merge_and_save")!r}).touch()

    @classmethod
    def download(cls, linear, rank, alpha):
        __import__("pathlib").Path({str(tmp_path / "download")!r}).touch()
""")
    (tmp_path / "methods.py").write_text(made, encoding="utf-8")
    conformance("look", str(path))
    assert conformance("look", f"{tmp_path / 'methods.py'}:Wrapper").returncode == 0
    assert not [name for name in (*names, "merge_and_save", "download") if (tmp_path / name).exists()]
    conformance("look", f"{path}:save_adapter")  # somebody asks for it
    assert (tmp_path / "save_adapter").exists()


def test_what_takes_too_long_is_ended(tmp_path):
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(300)\n", encoding="utf-8")
    done = conformance("look", str(tmp_path / "slow.py"), "--timeout", "3")
    assert done.returncode == 4 and "took longer than 3 s" in done.stderr
