"""The sandbox of a subject: bubblewrap (bwrap), where it is installed. It takes away the network, the rest of the file system's
writeability, the home folder and the sight of other processes. SECURITY.md says what that promises and what it does not.
"""

import os
import shutil
import sys
from pathlib import Path

import conformance
from conformance.truth import cache

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc", "/opt")  # seen, and read-only


def check() -> None:
    """Raises ValueError where there is no bwrap, and where a folder that must be seen holds one that must not."""
    if shutil.which("bwrap") is None:
        raise ValueError("--sandbox needs bubblewrap (bwrap), which is not installed; SECURITY.md shows a container instead")
    for seen in _seen():
        for private in _private():
            if Path(os.path.realpath(private)).is_relative_to(os.path.realpath(seen)):
                raise ValueError(f"--sandbox hides {private}, which is in {seen}, the current folder or one of packages; go to "
                                 "the subject's own folder")


def command(exchange: str, device: str = "cpu") -> tuple[str, ...]:
    """The command that runs the rest of a command line in the sandbox. There, the interpreter, the packages, the system and the
    current folder are read-only, and what is written is lost, except in the folder `exchange`."""
    words = [shutil.which("bwrap") or "bwrap", "--unshare-all", "--die-with-parent", "--new-session",
             "--cap-drop", "ALL"]  # root would keep them, and could make everything writeable again
    for folder in SYSTEM:  # bwrap does all this in the order of its arguments: what comes later lies on top
        words += ["--ro-bind-try", folder, folder]
    for folder in _private():
        words += ["--tmpfs", folder]
    for folder in _seen():
        words += ["--ro-bind-try", folder, folder]
    words += ["--proc", "/proc", "--dev", "/dev", "--bind", exchange, exchange]
    if device == "cuda":
        for node in sorted(map(str, Path("/dev").glob("nvidia*"))):
            words += ["--dev-bind-try", node, node]
    return (*words, "--")


def _private() -> list[str]:
    """The folders in whose place the subject sees empty ones. One that holds another comes before it."""
    return sorted({str(Path.home()), "/tmp"})


def _seen() -> list[str]:
    """The folders that the subject needs: the interpreter, the packages, the environments, and the current one."""
    packages = [os.path.abspath(entry) for entry in sys.path if entry and os.path.exists(entry)]
    here = [sys.prefix, sys.base_prefix, str(Path(conformance.__file__).parents[1]), str(cache.folder() / "environments")]
    return list(dict.fromkeys([*here, *packages, os.getcwd()]))
