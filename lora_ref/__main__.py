"""The command line: `python -m lora_ref compare` and `python -m lora_ref papers`."""

import argparse
import json
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

from lora_ref.study import comparison, papers, report

EPILOG = """
examples:
  python -m lora_ref compare                        a table, and which claims about the methods held
  python -m lora_ref compare --picture compare.svg  and a picture (needs matplotlib)
  python -m lora_ref compare --seeds 1 --steps 50 --pretraining 300   a quick look
  python -m lora_ref papers                         the papers' parameter counts, recomputed
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m lora_ref", description="LoRA and the methods that it is measured against, in NumPy alone.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser(
        "compare", help="fine-tune one small model with every method, and measure",
        description="Pretrains a small transformer on a made-up language, fine-tunes it on a shifted one with each method, "
                    "and prints what each trains, costs and reaches. About two minutes on two cores.")
    one.add_argument("--seeds", type=int, default=3, metavar="N", help="fine-tunings of each method (3)")
    one.add_argument("--steps", type=int, default=200, metavar="N", help="of each fine-tuning (200)")
    one.add_argument("--pretraining", type=int, default=1000, metavar="N", help="steps before them (1000)")
    one.add_argument("--picture", metavar="FILE", help="draw it too, as .svg or .png; needs matplotlib")
    one.add_argument("--json", metavar="FILE", help="write all that was measured")
    commands.add_parser("papers", help="the parameter counts of the LoRA paper, recomputed from the configurations",
                        description="Every trainable-parameter count of the LoRA paper beside the one of the configuration.")
    options = parser.parse_args(argv)
    if options.command == "papers":
        print(papers.table())
        return 0
    return compared(one, options)


def compared(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    for name in "seeds", "steps", "pretraining":
        if getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)}, expected at least 1")
    if options.picture and Path(options.picture).suffix not in (".svg", ".png"):
        parser.error(f"--picture {options.picture}: expected a name that ends in .svg or .png")
    if options.picture and find_spec("matplotlib") is None:
        parser.error("--picture needs matplotlib, which is not installed (pip install matplotlib)")
    for path in filter(None, (options.picture, options.json)):
        if not Path(path).resolve().parent.is_dir():
            parser.error(f"{path}: there is no folder {Path(path).resolve().parent}")
    result = comparison.run(options.seeds, options.steps, options.pretraining, progress)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    print(report.table(result))
    print("\nClaims about the methods")
    for claim, verdict, found in report.claims(result):
        print(textwrap.fill(f"{claim}: {verdict.upper()}. {found}.", 80, initial_indent="* ", subsequent_indent="  "))
    print(f"\n{result.seconds:.0f} s")
    if options.json:
        Path(options.json).write_text(json.dumps(report.as_dict(result), indent=1), encoding="utf-8")
    if options.picture:
        from lora_ref.study.picture import draw

        draw(result, options.picture)
    return 0


def progress(share: float, what: str) -> None:
    """Shows the progress on one line of the terminal; does nothing if standard error is not a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{share:4.0%}  {what}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
