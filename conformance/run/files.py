"""The files that a subject is made of, each with the SHA-256 of its bytes. `--resume` takes a report only if they are as they
were."""

import hashlib
import importlib.machinery
import os
import shlex
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from stat import S_ISREG

from conformance.drivers import environments
from conformance.run.loading import environment, missing_here

FILES, BYTES = 2000, 2**25  # that are read of what a subject says it has loaded: files, and bytes of each


def files_of(spec: str) -> dict[str, str]:
    """The files that can be told from the spec alone, as absolute path → hash.

    Of path/to/file.py:attribute these are the file and all Python files beside it; of a program its own file and every argument
    that is a file; of a built-in subject with an environment the lists of what is installed there. It is {} for a module, and
    for a built-in subject without an environment."""
    place = spec.rpartition(":")[0]
    if spec.startswith("cmd:"):
        words = []
        with suppress(ValueError):  # a quotation that is not closed
            words = shlex.split(spec.removeprefix("cmd:"))
        program = shutil.which(words[0]) if words else None
        return hashed([*words, *([program] if program else [])])
    if place.endswith(".py"):
        return hashed([place, *Path(place).parent.glob("*.py")])
    if ":" not in spec:
        with suppress(ImportError):  # there is no such subject
            if missing_here(spec) and (name := environment(spec)):
                folder = environments.folder(name)
                return hashed([folder / "made.json", *folder.glob("lib/*/site-packages/*.dist-info/RECORD")])
    return {}


def code(paths: Iterable[str]) -> list[str]:
    """Those of the paths that a subject names which are files of code, and not too large to be read."""
    found = []
    for path in sorted(map(str, paths))[:FILES]:
        with suppress(OSError, ValueError):
            stat = os.stat(path)
            if path.endswith(tuple(importlib.machinery.all_suffixes())) and S_ISREG(stat.st_mode) and stat.st_size <= BYTES:
                found.append(path)
    return found


def hashed(paths: Iterable[str | Path]) -> dict[str, str]:
    """Absolute path → SHA-256 of each of these files. What is no file, or cannot be read, is left out."""
    found = {}
    for path in paths:
        with suppress(OSError, ValueError):  # a name with a NUL
            path = Path(path).absolute()
            if path.is_file():
                with path.open("rb") as file:
                    found[str(path)] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
