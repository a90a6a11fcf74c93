"""Cache of computed arrays, in memory and in files that workers and runs share. The key is a hash of all inputs.

A file holds the SHA-256 of the rest, a line of JSON (name, dtype and shape of every array) and the arrays' bytes. It is written
as a whole or not at all. A file that cannot be read, or whose hash is wrong, counts as missing: the arrays are computed again.
The folder is `$CONFORMANCE_CACHE` or `~/.cache/conformance`. It may be emptied at any time.
"""

import hashlib
import json
import os
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]
ENTRIES = 1024  # kept in memory, about 10 kB each
DAYS, BYTES = 30, 256 * 2**20  # files unused for so long are removed, and the oldest ones beyond this size

_writes = True
_known: OrderedDict[str, tuple[Arrays, ...]] = OrderedDict()
_tidied: set[Path] = set()


def folder() -> Path:
    """The folder of the cache files, which may be removed at any time."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "conformance"
    return Path(os.environ.get("CONFORMANCE_CACHE") or home)


def write_files(allowed: bool) -> None:
    """Sets whether this process may write cache files. A process that runs code of other projects may not: some libraries
    change NumPy for the whole process, and a wrong number in a file would be used by later runs."""
    global _writes
    _writes = allowed


def once(key: str, compute: Callable[[], tuple[Arrays, ...]], files: bool = True) -> tuple[Arrays, ...]:
    """The result of `compute`, from the cache if it is there. The key must cover all inputs of `compute`: see `hashed`. Without
    `files` it is kept in memory alone."""
    if key not in _known:
        path = folder() / "spreads" / key
        found = _read(path) if files else None
        if found is None:
            found = compute()
            if _writes and files:
                _write(path, found)
        for array in (array for arrays in found for array in arrays.values()):
            array.flags.writeable = False  # the next caller gets the same arrays
        _known[key] = found
    _known.move_to_end(key)
    if len(_known) > ENTRIES:
        _known.popitem(last=False)
    return tuple(map(dict, _known[key]))


def hashed(*parts: object) -> str:
    """The hash of the parts. Arrays and dicts of arrays count by their bytes, everything else by its repr."""
    total = hashlib.sha256()
    for part in parts:
        for name, one in part.items() if isinstance(part, dict) else [("", part)]:
            data = np.ascontiguousarray(one).tobytes() if isinstance(one, np.ndarray) else repr(one).encode()
            kind = (one.dtype.str, one.shape) if isinstance(one, np.ndarray) else ""
            total.update(f"{type(part).__name__} {name!r} {kind} {len(data)} ".encode())
            total.update(data)
    return total.hexdigest()


def hashed_files(paths: Iterable[Path]) -> str:
    """The hash of all that the numbers depend on: the contents of the files, NumPy, and the machine's longdouble."""
    machine = np.__version__, sys.byteorder, np.dtype(np.longdouble).itemsize, np.finfo(np.longdouble).nmant
    return hashed(machine, *(part for path in sorted(paths) for part in (path.name, path.read_bytes())))


def _read(path: Path) -> tuple[Arrays, ...] | None:
    try:
        data = path.read_bytes()
        os.utime(path)
    except OSError:
        return None
    if hashlib.sha256(data[32:]).digest() != data[:32]:
        return None
    header, _, body = data[32:].partition(b"\n")
    try:
        found, start = [], 0
        for said in json.loads(header):
            arrays = {}
            for name, dtype, shape in said:
                count = int(np.prod(shape, dtype=int))
                arrays[name] = np.frombuffer(body, dtype, count, start).reshape(shape)
                start += arrays[name].nbytes
            found.append(arrays)
        return tuple(found)
    except (ValueError, TypeError):  # a whole file, but of another format
        return None


def _write(path: Path, found: tuple[Arrays, ...]) -> None:
    header = [[(name, a.dtype.str, a.shape) for name, a in arrays.items()] for arrays in found]
    body = b"".join(a.tobytes() for arrays in found for a in arrays.values())
    rest = json.dumps(header).encode() + b"\n" + body
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.parent not in _tidied:
            _tidied.add(path.parent)
            _tidy(path.parent)
        handle, temporary = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(rest).digest() + rest)
            os.replace(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise


def _tidy(place: Path) -> None:
    """Removes old files, and then the oldest ones until the rest is within the size limit."""
    files = sorted(((entry.stat(), entry.path) for entry in os.scandir(place)), key=lambda one: -one[0].st_mtime)
    size, oldest = 0, time.time() - DAYS * 86400
    for stat, path in files:
        size += stat.st_size
        if size > BYTES or stat.st_mtime < oldest:
            with suppress(OSError):
                os.unlink(path)
