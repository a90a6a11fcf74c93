"""What was computed before, by the hash of all that it follows from: in memory, and in files that workers and runs share.

A file is the SHA-256 of the rest, a line of JSON (name, dtype and shape of every array) and the arrays' bytes. It appears as a
whole or not at all, and one that cannot be read, or has another hash, is not there: then the answer is computed. The folder is
`$CONFORMANCE_CACHE` or `~/.cache/conformance`; an empty one is as good as none.
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
ENTRIES = 1024  # in memory, of some 10 kB each
DAYS, BYTES = 30, 256 * 2**20  # of the files: what was last used before, and the oldest beyond this size, is removed

_writes = True
_known: OrderedDict[str, tuple[Arrays, ...]] = OrderedDict()
_tidied: set[Path] = set()


def folder() -> Path:
    """Where everything is that may be lost."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "conformance"
    return Path(os.environ.get("CONFORMANCE_CACHE") or home)


def write_files(allowed: bool) -> None:
    """Whether this process may leave files. One with code of others in it may not: some libraries change NumPy for everybody,
    and a wrong number would outlast the run."""
    global _writes
    _writes = allowed


def once(key: str, compute: Callable[[], tuple[Arrays, ...]]) -> tuple[Arrays, ...]:
    """What `compute` gives, which must follow from the key: see `hashed`."""
    if key not in _known:
        path = folder() / "spreads" / key
        found = _read(path)
        if found is None:
            found = compute()
            if _writes:
                _write(path, found)
        for array in (array for arrays in found for array in arrays.values()):
            array.flags.writeable = False  # the next who asks gets the same
        _known[key] = found
    _known.move_to_end(key)
    if len(_known) > ENTRIES:
        _known.popitem(last=False)
    return tuple(map(dict, _known[key]))


def hashed(*parts: object) -> str:
    """The hash of the parts: arrays and dicts of them by their bytes, and everything else by its repr."""
    total = hashlib.sha256()
    for part in parts:
        for name, one in part.items() if isinstance(part, dict) else [("", part)]:
            data = np.ascontiguousarray(one).tobytes() if isinstance(one, np.ndarray) else repr(one).encode()
            kind = (one.dtype.str, one.shape) if isinstance(one, np.ndarray) else ""
            total.update(f"{type(part).__name__} {name!r} {kind} {len(data)} ".encode())
            total.update(data)
    return total.hexdigest()


def hashed_files(paths: Iterable[Path]) -> str:
    """The hash of what the files say, and of what else the numbers depend on: NumPy, and the machine's longdouble."""
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
    except (ValueError, TypeError):  # of another format, though whole
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
    """Removes what is old, and of the rest the oldest beyond the size."""
    files = sorted(((entry.stat(), entry.path) for entry in os.scandir(place)), key=lambda one: -one[0].st_mtime)
    size, oldest = 0, time.time() - DAYS * 86400
    for stat, path in files:
        size += stat.st_size
        if size > BYTES or stat.st_mtime < oldest:
            with suppress(OSError):
                os.unlink(path)
