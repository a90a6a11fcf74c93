"""--sandbox: the command line of bubblewrap, by a bwrap that records its arguments, and what it keeps a subject from, where
bubblewrap is installed."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from conformance.drivers import sandbox

ROOT = Path(__file__).parents[3]
RECORDER = """\
#!/bin/sh
printf '%s\\n' "$@" END >> "$(dirname "$0")/recorded"
while [ "$1" != -- ]; do shift; done
shift
exec "$@"
"""
SERVED = """\
from conformance.drivers.protocol import serve
from conformance.run.canary_layers import subject

serve(subject("honest"))
"""
PROBING = """\
import ctypes
import os
import socket
from pathlib import Path

from modules import Plain as Subject

found = []
if (Path.home() / "secret").exists():
    found.append("the home folder is seen")
if any(int(name) > 9 for name in os.listdir("/proc") if name.isdigit()):
    found.append("other processes are seen")
if not found:  # in the sandbox: what is read-only must stay so
    ctypes.CDLL(None).mount(None, b"/usr", None, 0x1020, None)  # MS_REMOUNT | MS_BIND, without MS_RDONLY
found += [f"{folder} can be written" for folder in (os.getcwd(), PACKAGES, "/usr", "/etc") if os.access(folder, os.W_OK)]
with socket.socket() as line:
    if line.connect_ex(("127.0.0.1", PORT)) == 0:
        found.append("there is a network")
if found:
    raise RuntimeError(", ".join(found))
"""


def conformance(*arguments: str, path: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "conformance", "run", *arguments, "--jobs", "1"]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300,
                          env=os.environ | {"PATH": path} | environment)


@pytest.fixture
def recorder(tmp_path) -> Path:
    """A folder with a bwrap that writes its arguments into the file `recorded` beside it, and runs what follows `--`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "bwrap").write_text(RECORDER)
    (folder / "bwrap").chmod(0o755)
    return folder


def mounts(words: list[str]) -> list[tuple[str, str]]:
    """Option and place of everything that is mounted, in order."""
    takes = {"--ro-bind-try": 2, "--bind": 2, "--tmpfs": 1, "--proc": 1, "--dev": 1}
    return [(word, words[at + takes[word]]) for at, word in enumerate(words) if word in takes]


@pytest.mark.parametrize("kind", ["module", "program"])
def test_a_subject_runs_in_the_sandbox(tmp_path, recorder, kind):
    """Python or program: it is started by bwrap, and the report says so. All it sees is read-only, but for the folder in which
    layers are saved."""
    path, report, served = f"{recorder}:{os.environ['PATH']}", tmp_path / "report.json", tmp_path / "served.py"
    served.write_text(SERVED)
    subject = "tests/conformance/modules.py:Plain" if kind == "module" else f"cmd:{sys.executable} {served}"
    done = conformance(subject, "--only", "FWD-01", "--sandbox", "--json", str(report), path=path)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(report.read_text())["reports"][0]
    assert told["verdict"] == "conformant" and told["sandbox"] is True and told["in_process"] is False
    words = (recorder / "recorded").read_text().split("\n")
    words = words[: words.index("END")]
    options, program = words[: words.index("--")], words[words.index("--") + 1 :]
    assert {"--unshare-all", "--die-with-parent", "--new-session"} <= set(options)
    assert options[options.index("--cap-drop") + 1] == "ALL"
    assert program[0] == sys.executable
    mounted = mounts(options)
    (exchange,) = [place for option, place in mounted if option == "--bind"]
    assert exchange not in (str(Path.home()), "/tmp", str(ROOT)) and "conformance-" in exchange
    assert not any(word.startswith(("--share", "--dev-bind", "--overlay")) for word in options)
    for private in (str(Path.home()), "/tmp"):
        hidden = mounted.index(("--tmpfs", private))
        later = [place for option, place in mounted[hidden + 1 :]]
        assert ("--ro-bind-try", str(ROOT)) in mounted[hidden:]  # it may lie in the home folder
        assert not any(Path(private).is_relative_to(place) for place in later), "what was hidden is seen again"
    assert mounted.index(("--dev", "/dev")) < mounted.index(("--bind", exchange))  # it lies in /dev/shm


def test_there_must_be_a_sandbox(tmp_path):
    """Without bwrap the command ends at once, and says what is missing."""
    done = conformance("lora_ref", "--only", "FWD-01", "--sandbox", path=str(tmp_path))
    assert done.returncode == 2 and "needs bubblewrap (bwrap), which is not installed" in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


def test_a_subject_in_the_judge_is_in_no_sandbox(recorder):
    done = conformance("lora_ref", "--only", "FWD-01", "--sandbox", "--in-process", path=f"{recorder}:{os.environ['PATH']}")
    assert done.returncode == 2 and "--sandbox and --in-process" in done.stderr
    assert not (recorder / "recorded").exists()


@pytest.mark.parametrize("where", ["", ".."])
def test_what_is_hidden_is_not_shown_again(tmp_path, recorder, where):
    """The current folder is seen. So it must neither be the home folder nor hold it."""
    home = tmp_path / "home"
    home.mkdir()
    done = conformance("lora_ref", "--only", "FWD-01", "--sandbox", path=f"{recorder}:{os.environ['PATH']}", cwd=home / where,
                       HOME=str(home))
    assert done.returncode == 2 and f"--sandbox hides {home}" in done.stderr
    assert not (recorder / "recorded").exists()


def test_a_gpu_is_seen_where_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox.Path, "glob", lambda self, pattern: [Path("/dev/nvidia0"), Path("/dev/nvidiactl")])
    words = sandbox.command(str(tmp_path), "cuda")
    assert words[-7:] == ("--dev-bind-try", "/dev/nvidia0", "/dev/nvidia0", "--dev-bind-try", "/dev/nvidiactl",
                          "/dev/nvidiactl", "--")
    assert "--dev-bind-try" not in sandbox.command(str(tmp_path))


def usable() -> bool:
    bwrap = shutil.which("bwrap")
    words = ["--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "true"]
    return bool(bwrap) and subprocess.run([str(bwrap), *words], capture_output=True).returncode == 0


@pytest.mark.skipif(not usable(), reason="bubblewrap is not installed, or may not make a sandbox here")
def test_what_the_sandbox_keeps_a_subject_from(tmp_path):
    """Also root: it sees no network, no home folder and no other process, and can make nothing writeable again. Without the
    sandbox the same subject finds all of that."""
    home, work = tmp_path / "home", tmp_path / "work"
    for folder in (home, work):
        folder.mkdir()
    (home / "secret").touch()
    shutil.copy(ROOT / "tests/conformance/modules.py", work)
    with socket.create_server(("127.0.0.1", 0)) as server:
        text = PROBING.replace("PORT", str(server.getsockname()[1])).replace("PACKAGES", repr(str(ROOT)))
        (work / "probing.py").write_text(text)
        asked = ("probing.py:Subject", "--only", "FWD-01", "STATE-01")
        done = conformance(*asked, "--sandbox", path=os.environ["PATH"], cwd=work, HOME=str(home))
        assert done.returncode == 0, done.stdout + done.stderr
        done = conformance(*asked, path=os.environ["PATH"], cwd=work, HOME=str(home))
        assert done.returncode == 4 and "the home folder is seen" in done.stdout and "there is a network" in done.stdout
