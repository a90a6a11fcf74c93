"""conformance init: writes a subject to start from."""

import argparse
from importlib.resources import files
from pathlib import Path

from conformance.report import output

HELP = "write a commented subject to start from, which passes as it stands"
SKELETONS = {  # by language: the file in skeletons/, its ending, and the command to run next
    "c": ("lora.c", ".c", "cc -O2 -o {program} {path} && conformance run cmd:{program}"),
    "javascript": ("lora.js", ".js", "conformance run 'cmd:node {path}'"),
    "python": ("lora.py", ".py", "conformance run 'cmd:python {path}'"),
}
SUBJECT = "subject.py", ".py", "conformance run {path}:MySubject"


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the file to write; it must not exist")
    parser.add_argument("--language", choices=SKELETONS,
                        help="write a program in this language that speaks the protocol, instead of a Python subject: for an "
                             "implementation that cannot be imported here")


def run(arguments: argparse.Namespace) -> int:
    path = Path(arguments.file)
    if path.exists():
        raise ValueError(f"{path} exists already; nothing was written")
    skeleton, ending, following = SKELETONS.get(arguments.language, SUBJECT)
    if path.suffix != ending:
        raise ValueError(f"{path}: expected a name that ends in {ending}")
    output.write(str(path), files("conformance.skeletons").joinpath(skeleton).read_bytes())
    program = f"./{path.with_suffix('')}" if not path.is_absolute() else str(path.with_suffix(""))
    print(f"wrote {path}\nnow run: {following.format(path=path, program=program)}")
    return 0
