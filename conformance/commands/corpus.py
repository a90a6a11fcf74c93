"""conformance corpus: writes small adapter files with the right answer beside them."""

import argparse
from collections import Counter
from pathlib import Path

from rich.text import Text

from conformance.commands.shared import console
from conformance.files import corpus

HELP = "write small adapter files, valid and invalid, with the right answer"
EPILOG = """\
For whoever tests a reader of adapter files. Each case is a folder that is
about one clause of conformance/FILES.md:

  peft/P-3-pass-rslora        the files of the adapter, and truth.safetensors:
                              ΔW of each module in float64
  peft/R-3-fail-a_without_b   files that a reader has to refuse
  index.json                  all cases: clause, valid or not, the issues that
                              `conformance file` finds, and the power: how far
                              the nearest known fault moves ΔW, over ‖ΔW‖

The files are the same to the byte everywhere.
"""


def declare(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("folder", metavar="DIR", help="it must be empty, or not be there")


def run(arguments: argparse.Namespace) -> int:
    folder = Path(arguments.folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty; nothing was written")
    made = corpus.write(folder)
    screen = console()
    for format, count in Counter(case.format for case in made).items():
        valid = sum(case.valid for case in made if case.format == format)
        screen.print(Text(f"{format:<10} {valid:>3} valid  {count - valid:>3} invalid"))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    screen.print(Text(f"wrote {len(made)} cases, {size / 1e6:.1f} MB, to {folder}"))
    return 0
