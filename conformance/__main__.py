"""The command line: `conformance …`, or `python -m conformance …`. Each command has a file in commands/."""

import argparse
import io
import signal
import sys
from typing import Any

from conformance import __version__
from conformance.commands import bench, conventions, explain, findings, gpu, init, release, run, selftest, subjects
from conformance.commands import list as listing

COMMANDS = {
    "run": run, "list": listing, "explain": explain, "selftest": selftest, "bench": bench, "subjects": subjects,
    "conventions": conventions, "findings": findings, "init": init, "gpu": gpu, "release": release,
}
EXAMPLES = """\
examples:
  conformance run                            lora_torch, this project's layer
  conformance run peft loralib               installed libraries, side by side
  conformance run my_layer.py:MyLoRA         an nn.Module class, or a Subject
  conformance run 'cmd:./my-lora'            a program that speaks the protocol
  conformance run peft --only MERGE GRAD-04  some groups or requirements alone
  conformance explain MERGE-01               what is asked, why, and who says so
  conformance selftest                       how good the suite itself is
  conformance bench                          speed and memory, side by side
  conformance init my_subject.py             a subject to start from
  conformance init --language c my_lora.c    a program to start from
  conformance subjects --install flax_nnx    a library, in an environment
  conformance gpu out                        everything that needs a GPU

exit status:
  0 conformant   1 a MUST failed   2 usage   3 void or incomplete
  4 a subject could not be loaded, or no requirement could be decided
"""


def main(argv: list[str] | None = None) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show ᵀ gets a ? instead
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # no worker is left behind
    arguments = parser().parse_args(argv)
    try:
        return COMMANDS[arguments.command].run(arguments)
    except (ValueError, OSError) as error:
        print(f"conformance {arguments.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        more = "; the same command with --resume goes on" if getattr(arguments, "resume", None) is not None else ""
        print(f"conformance {arguments.command}: interrupted{more}", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    options: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    found = argparse.ArgumentParser(
        "conformance", description="Tells, with proof, whether a LoRA implementation is right.", epilog=EXAMPLES, **options)
    found.add_argument("--version", action="version", version=f"conformance {__version__}")
    commands = found.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="command")
    for name, command in COMMANDS.items():
        epilog = EXAMPLES if name == "run" else getattr(command, "EPILOG", None)
        command.declare(commands.add_parser(name, help=command.HELP, description=command.HELP, epilog=epilog, **options))
    return found


if __name__ == "__main__":
    sys.exit(main())
