"""A report goes to the place that the user names. A file is replaced as a whole, and what is not a file is never replaced."""

import os
import resource
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from conformance.report import output


def test_a_file_is_replaced_as_a_whole(tmp_path):
    """Whoever has the old file open goes on reading the old one."""
    file = tmp_path / "report"
    file.write_bytes(b"old")
    with file.open("rb") as reader:
        output.check(str(file))
        output.write(str(file), b"new")
        assert reader.read() == b"old"
    assert file.read_bytes() == b"new" and os.listdir(tmp_path) == ["report"]


def test_the_mode_of_a_file_stays(tmp_path):
    file = tmp_path / "report"
    file.write_bytes(b"old")
    file.chmod(0o640)
    output.write(str(file), b"new")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_a_link(tmp_path, there):
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder" / "report", tmp_path / "link"
    if there:
        target.write_bytes(b"old")
    link.symlink_to("folder/report")
    output.check(str(link))
    output.write(str(link), b"new")
    assert link.is_symlink() and target.read_bytes() == b"new"
    assert os.listdir(tmp_path / "folder") == ["report"] and sorted(os.listdir(tmp_path)) == ["folder", "link"]


def test_a_fifo_stays_a_fifo(tmp_path):
    fifo, read = tmp_path / "fifo", []
    os.mkfifo(fifo)
    output.check(str(fifo))
    reader = threading.Thread(target=lambda: read.append(fifo.read_bytes()))
    reader.start()
    while True:
        try:
            output.write(str(fifo), b"x" * 200_000)  # more than it holds
            break
        except OSError:  # the reader is not there yet
            continue
    reader.join()
    assert read == [b"x" * 200_000] and stat.S_ISFIFO(fifo.stat().st_mode) and os.listdir(tmp_path) == ["fifo"]


def test_a_fifo_that_nobody_reads_is_an_error(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="No such device"):
        output.write(str(tmp_path / "fifo"), b"new")


def test_a_device_stays_a_device(tmp_path):
    device = tmp_path / "null"
    try:
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        device.write_bytes(b"")
    except OSError:  # only root may make and use one
        device.unlink(missing_ok=True)
        device.symlink_to(os.devnull)
    output.check(str(device))
    output.write(str(device), b"new")
    assert stat.S_ISCHR(device.stat().st_mode) and stat.S_ISCHR(os.stat(os.devnull).st_mode)


@pytest.mark.parametrize("to", ["pipe", "file"])
def test_standard_output_goes_on(tmp_path, to):
    """A report to /dev/stdout stands between what is printed before and after it, also if that is a file."""
    code = ("from conformance.report import output; print('before'); output.check('/dev/stdout')\n"
            "output.write('/dev/stdout', b'report\\n'); print('after')")
    if to == "pipe":
        said = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, timeout=60).stdout
    else:
        with (tmp_path / "out").open("wb") as file:
            subprocess.run([sys.executable, "-c", code], stdout=file, timeout=60)
        said = (tmp_path / "out").read_bytes()
    assert said == b"before\nreport\nafter\n"


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "report"
    file.write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            output.write(str(file), b"x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert file.read_bytes() == b"old" and os.listdir(tmp_path) == ["report"]


@pytest.mark.parametrize("moment", ["fsync", "chmod", "replace"])
def test_an_interrupt_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, moment):
    file = tmp_path / "report"
    file.write_bytes(b"old")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(*((os, moment) if moment == "fsync" else (Path, moment)), interrupted)
    with pytest.raises(KeyboardInterrupt):
        output.write(str(file), b"new")
    assert file.read_bytes() == b"old" and os.listdir(tmp_path) == ["report"]


def test_of_many_writers_one_wins_as_a_whole(tmp_path):
    file, texts = tmp_path / "report", [bytes([65 + i]) * 100_000 for i in range(8)]
    threads = [threading.Thread(target=output.write, args=(str(file), text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert file.read_bytes() in texts and os.listdir(tmp_path) == ["report"]


@pytest.mark.parametrize(("name", "said"), [
    ("folder", "is a folder"), ("none/report", "there is no folder"), ("file/report", "cannot be written|there is no folder"),
    ("loop", "cannot be written"), ("x" * 300, "cannot be written: File name too long"), ("/proc/report", "cannot be written")])
def test_what_cannot_be_written_is_known_before(tmp_path, name, said):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ValueError, match=said):
        output.check(str(tmp_path / name))
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "loop"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_what_is_protected_is_not_replaced(tmp_path):
    (tmp_path / "report").touch(0o444)
    with pytest.raises(ValueError, match="cannot be written"):
        output.check(str(tmp_path / "report"))


def test_a_check_changes_nothing(tmp_path):
    file = tmp_path / "report"
    file.write_bytes(b"old")
    before = file.stat()
    for name in ("report", "new"):
        output.check(str(tmp_path / name))
    assert os.path.samestat(file.stat(), before) and file.read_bytes() == b"old" and os.listdir(tmp_path) == ["report"]
