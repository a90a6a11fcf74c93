"""The wheel holds what the commands need and nothing else. The commands work from it without a checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("lora_ref", "lora_torch", "conformance")
LEFT_OUT = "conformance/results/"  # reports, which the commands of a checkout alone read and write
CACHES = {"__pycache__", "build"}


def checked_in() -> list[str]:
    """The files that git tracks in this checkout. In a copy without git: all files except caches."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        named = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
        return [name for name in named if name and (ROOT / name).is_file()]
    names = [path.relative_to(ROOT) for folder in (*PACKAGES, ".") for path in
             (ROOT / folder).glob("*" if folder == "." else "**/*") if path.is_file()]
    return [name.as_posix() for name in names if not CACHES & set(name.parts)]


def run(command: list, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "VIRTUAL_ENV"))}
    return subprocess.run([str(part) for part in command], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built in a copy of the checkout, so that files of an earlier build cannot get into it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in checked_in():
        if name.startswith(PACKAGES) or "/" not in name:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    (source / "lora_ref" / "__pycache__").mkdir()
    (source / "lora_ref" / "__pycache__" / "lora.cpython-311.pyc").touch()
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", out, "."]
    done = run(build, source)
    assert done.returncode == 0, done.stderr
    found, = out.iterdir()
    return found


def test_the_wheel_holds_the_three_packages_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    about = {name for name in names if name.partition("/")[0].endswith(".dist-info")}
    wanted = {name for name in checked_in() if name.split("/")[0] in PACKAGES and not name.startswith(LEFT_OUT)}
    assert {"conformance/SPEC.md", "conformance/known_faults.json", "conformance/skeletons/lora.c",
            "conformance/findings/FINDINGS.md", "lora_ref/derivations/lora.md"} <= wanted
    assert set(names) - about == wanted
    assert {name.partition("/")[2] for name in about} == {
        "METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The folder bin/ of an environment that has the wheel, and after it the packages that are installed here. A .pth file adds
    them, and those in a folder that a .pth file adds are not read: so a checkout that is installed here is not found."""
    place = tmp_path_factory.mktemp("environment")
    done = run([sys.executable, "-m", "venv", "--without-pip", place], place)
    assert done.returncode == 0, done.stderr
    python = place / "bin" / "python"
    done = run([sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel], place)
    assert done.returncode == 0, done.stderr
    site = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], place).stdout.strip())
    here = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (site / "zz_here.pth").write_text("\n".join(here) + "\n")
    return place / "bin"


def test_it_is_the_wheel_that_is_imported(installed, tmp_path):
    code = f"from importlib.util import find_spec; print(*(find_spec(name).origin for name in {PACKAGES}), sep='\\n')"
    done = run([installed / "python", "-c", code], tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(Path(file).is_relative_to(installed.parent) for file in done.stdout.splitlines()), done.stdout


@pytest.mark.parametrize(("arguments", "status", "said"), [
    ("run lora_torch --only FWD-01", 0, "lora_torch"),
    ("explain FWD-01", 0, "known faults"),
    ("list", 0, "FWD-01"),
    ("selftest --help", 0, "usage: conformance selftest"),
    ("findings peft", 0, "scripts/peft-"),
    ("init mine.py", 0, "wrote mine.py"),
    ("init --language c mine.c", 0, "wrote mine.c"),
    ("release", 2, "a release is made in a checkout"),
])
def test_a_command_works_without_a_checkout(installed, tmp_path, arguments, status, said):
    done = run([installed / "conformance", *arguments.split()], tmp_path)
    assert done.returncode == status and said in done.stdout + done.stderr, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if "init" in arguments:
        assert (tmp_path / arguments.split()[-1]).stat().st_size > 1000
