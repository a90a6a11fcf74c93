"""conformance look: shows what recognition finds out about a LoRA layer, and writes it down as a subject."""

import argparse
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from rich.text import Text

from conformance.commands.shared import console, positive
from conformance.drivers.hosted import own_environment, python
from conformance.report import output, text
from conformance.run.examine import plain

HELP = "show how a LoRA layer is built and where its arrays are, as found by trial"
EPILOG = """\
examples:
  conformance look my_layers.py             all LoRA layers of a file
  conformance look my_layers.py:MyLoRA      one class or function
  conformance look my_package.layers:MyLoRA
  conformance look my_layers.py:MyLoRA --write my_subject.py
                                            a subject, to be corrected by hand

exit status:
  0 found   1 no LoRA layer was recognised   2 usage   4 it cannot be imported
"""


def declare(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    add = parser.add_argument
    add("place", metavar="PLACE[:NAME]", help="path/to/file.py or package.module, and a class or function of it (default: all)")
    add("--write", metavar="FILE", help="write what was found about one class as a subject to this file; it must not exist")
    add("--timeout", type=positive(float), default=120.0, metavar="S", help="seconds that it may take (default: 120)")


def run(arguments: argparse.Namespace) -> int:
    if arguments.write and Path(arguments.write).exists():
        raise ValueError(f"{arguments.write} exists already; nothing was written")
    if arguments.write and (":" not in arguments.place or not arguments.write.endswith(".py")):
        raise ValueError("--write needs PLACE:NAME, one class or function, and the name of a file that ends in .py")
    said = answer(arguments.place, arguments.timeout)
    if "error" in said:
        print(f"conformance look: {plain(said['error'])}", file=sys.stderr)
        return 4
    screen = console()
    for one in said["found"]:
        screen.print(Text(plain(one["name"]), style="bold"))
        text.pairs(screen, [(name, plain(words)) for name, words in one["rows"]], indent=2)
        for words in one["compensates"].values():
            screen.print(Text(f"  a run says once that {plain(words)}"))
        screen.print()
    for one in said["refused"]:
        screen.print(Text(f"{plain(one['name'])}: not recognised", style="bold"))
        screen.print(Text(f"  {plain(one['why'])}"))
        screen.print()
    if not said["found"]:
        if not said["refused"]:
            screen.print("no LoRA layer was found")
        return 1
    if arguments.write:
        output.write(arguments.write, said["found"][0]["subject"].encode())
        subject = f"{arguments.write}:{said['found'][0]['subject_name']}"
        screen.print(f"wrote {arguments.write}\nnow run: conformance run {subject}", soft_wrap=True)
    return 0


def answer(place: str, seconds: float) -> dict:
    """What the process that imports the user's code says. It ends with all that is in its process group."""
    process = subprocess.Popen(
        python("conformance.run.looking", place), env=own_environment(os.environ.get("PYTHONPATH", "")),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    try:
        said, printed = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"error": f"it took longer than {seconds:g} s"}
    finally:
        with suppress(ProcessLookupError):  # its group is gone
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    try:
        return json.loads(said)
    except ValueError:
        last = printed.decode(errors="replace").strip().splitlines()[-1:]
        return {"error": f"looking at {place} ended with exit status {process.returncode}: {' '.join(last)[:200]}"}
