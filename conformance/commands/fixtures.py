"""conformance fixtures: tiny models and adapters with the right answers."""

import argparse
from pathlib import Path

from rich.text import Text

from conformance import fixtures
from conformance.commands.shared import console

HELP = "write tiny random Llamas and adapters for them, with the right ΔW and logits"
EPILOG = """\
For whoever tests a loader or a server of adapters: no download, no GPU,
under 4 MB.

  llama, llama-tied, …     models, as transformers reads them
  adapters/rslora, …       adapters in PEFT's format, one for each feature
  truth/rslora.safetensors ΔW in float64; for each prompt the right logits,
                           a proven bound of their own error, and how far a
                           program that computes in float32 may be off
  index.json               all of them, the prompts as tokens and as text, and
                           the power: how far the nearest known fault of a
                           loader moves the logits, in units of that bound
  corpus/                  what `conformance corpus` writes

In Python: from conformance import fixtures; fixtures.write(DIR).
docs/vectors.md shows both, and a fixture of pytest.
"""


def declare(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("folder", metavar="DIR", help="it must be empty, or not be there")


def run(arguments: argparse.Namespace) -> int:
    with console().status("the logits are computed"):  # seen on a terminal alone
        made = fixtures.write(Path(arguments.folder))
    screen = console()
    for one in (*made.bases, *made.adapters):
        screen.print(Text(f"{one.name:<16} {one.says}"))
    size = sum(path.stat().st_size for path in made.folder.rglob("*") if path.is_file())
    count = f"{len(made.bases)} models, {len(made.adapters)} adapters and the corpus"
    screen.print(Text(f"wrote {count}, {size / 1e6:.1f} MB, to {made.folder}"))
    return 0
