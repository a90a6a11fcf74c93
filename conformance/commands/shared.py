"""Helpers that several commands use: the console, and checks of arguments before the work begins."""

import argparse
import os
import sys
from collections.abc import Callable

from rich.console import Console

from conformance.report import output

CORES = os.cpu_count() or 1


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise  # rich itself would exit with status 1, which is a verdict


def console() -> Console:
    """The console to print to. It is 80 columns wide if the output is not a terminal. It prints text as it is: a bracket in a
    name is no markup."""
    return _Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 80)


def positive(kind: type):
    """The argparse type of an argument that is a number above zero and at most a million."""
    def parse(text: str):
        value = kind(text)
        if not 0 < value <= 1e6:
            raise argparse.ArgumentTypeError(f"{text} is not a positive number of at most a million")
        return value

    parse.__name__ = "number"
    return parse


class Written:
    """Writes the files of a report, and remembers which of them could not be written, and why. A disk that is full must not
    cost the run."""

    def __init__(self, *files: str | None):
        """Raises ValueError, before the work begins, for a file that cannot be written, or that is named twice."""
        self.failed: dict[str, str] = {}
        named = [os.path.realpath(file) for file in files if file]
        for file in filter(None, files):
            output.check(file)
            if named.count(os.path.realpath(file)) > 1 and not output.is_stream(file):
                raise ValueError(f"{file} is named for two reports")

    def __call__(self, file: str | None, write: Callable[[str], None]) -> None:
        """Calls `write` with the file, if there is one."""
        if file:
            self.failed.pop(file, None)
            try:
                write(file)
            except OSError as error:
                self.failed[file] = error.strerror or str(error)

    def status(self, otherwise: int) -> int:
        """Says what could not be written. Gives the exit status of the command."""
        for file, why in self.failed.items():
            print(f"conformance: {file} was not written: {why}", file=sys.stderr)
        return max(otherwise, 3) if self.failed else otherwise


def check_device(device: str) -> None:
    """Raises ValueError for "cuda" where torch finds no CUDA device."""
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ValueError("--device cuda: torch finds no CUDA device here")
