"""Helpers that several commands use: the console, and checks of arguments before the work begins."""

import argparse
import os
import sys
from pathlib import Path

from rich.console import Console

CORES = os.cpu_count() or 1


def console() -> Console:
    """The console to print to. It is 80 columns wide if the output is not a terminal."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 80)


def positive(kind: type):
    """The argparse type of an argument that is a number above zero and at most a million."""
    def parse(text: str):
        value = kind(text)
        if not 0 < value <= 1e6:
            raise argparse.ArgumentTypeError(f"{text} is not a positive number of at most a million")
        return value

    parse.__name__ = "number"
    return parse


def check_files(*files: str | None) -> None:
    """Raises ValueError for a file that cannot be written because its folder does not exist, or because it is a folder."""
    for file in filter(None, files):
        if not Path(file).resolve().parent.is_dir():
            raise ValueError(f"{file}: there is no folder {Path(file).parent}")
        if Path(file).is_dir():
            raise ValueError(f"{file} is a folder, expected the name of a file")


def check_device(device: str) -> None:
    """Raises ValueError for "cuda" where torch finds no CUDA device."""
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ValueError("--device cuda: torch finds no CUDA device here")
