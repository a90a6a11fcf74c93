"""Writes a report to the place that the user names: a file, a link to one, or a device, pipe or fifo.

A file is written as a whole or not at all: a new one beside it takes its place. What is not a file is written to directly.
"""

import os
import secrets
import stat
import sys
from contextlib import suppress
from pathlib import Path


def is_stream(path: str) -> bool:
    """Whether the name is that of a device, a pipe, a fifo, or this process's own output. Such a thing is never replaced, and
    gets one report, at the end."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return False
    return not stat.S_ISREG(found.st_mode) or _own(found) is not None


def check(path: str) -> None:
    """Raises ValueError if the place cannot be written. It changes nothing there."""
    try:
        if is_stream(path):
            if os.path.isdir(path):
                raise ValueError(f"{path} is a folder, expected the name of a file")
            if not os.access(path, os.W_OK):
                raise ValueError(f"{path} cannot be written")
            return
        target = Path(os.path.realpath(path))
        if not target.parent.is_dir():
            raise ValueError(f"{path}: there is no folder {target.parent}")
        if target.exists() and not os.access(target, os.W_OK):
            raise ValueError(f"{path} cannot be written")
        part = _part(target)
        try:
            part.open("xb").close()
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}") from error


def write(path: str, data: bytes) -> None:
    """Writes the report. Raises OSError if that fails; a file is then as it was."""
    if is_stream(path):
        _write_directly(path, data)
        return
    target = Path(os.path.realpath(path))
    part = _part(target)
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            part.chmod(stat.S_IMODE(target.stat().st_mode))
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _part(target: Path) -> Path:
    """A name beside the file that no other run uses."""
    return target.with_name(f".conformance-{secrets.token_hex(8)}.part")


def _own(found: os.stat_result) -> int | None:
    """The number of this process's standard output or standard error, if the place is one of them. Opened by its name, such as
    /dev/stdout, a file would be emptied."""
    for number in (1, 2):
        with suppress(OSError):  # it is closed
            if os.path.samestat(found, os.fstat(number)):
                return number
    return None


def _write_directly(path: str, data: bytes) -> None:
    own = _own(os.stat(path))
    if own is not None:
        (sys.stdout if own == 1 else sys.stderr).flush()
        number = os.dup(own)
    else:  # a fifo that nobody reads is an error at once, instead of a wait without end
        number = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        os.set_blocking(number, True)
    with open(number, "wb") as file:
        file.write(data)
