"""The command line: `conformance …`, or `python -m conformance …`. Each command has a file in commands/."""

import argparse
import io
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from importlib import import_module
from types import ModuleType
from typing import Any

from conformance import __version__
from conformance.report import ascii

COMMANDS = ("run", "look", "list", "explain", "selftest", "bench", "subjects", "conventions", "findings", "init", "file",
            "corpus", "exchange", "probe", "page", "vectors", "fixtures", "mutate", "diff", "join", "check-report", "gpu",
            "release")
EXAMPLES = """\
examples:
  conformance run                            lora_torch, this project's layer
  conformance run peft loralib               installed libraries, side by side
  conformance run my_layer.py:MyLoRA         an nn.Module class, or a Subject
  conformance run 'cmd:./my-lora'            a program that speaks the protocol
  conformance run peft --only MERGE GRAD-04  some groups or requirements alone
  conformance run my_layer.py:MyLoRA --sandbox   code that is not trusted
  conformance look my_layer.py               what is recognised in a file
  conformance explain MERGE-01               what is asked, why, and who says so
  conformance selftest                       how good the suite itself is
  conformance bench                          speed and memory, side by side
  conformance init my_subject.py             a subject to start from
  conformance init --language c my_lora.c    a program to start from
  conformance subjects --install flax_nnx    a library, in an environment
  conformance vectors export vectors         test vectors for any language
  conformance probe URL --model NAME         does a server apply an adapter?
  conformance diff old.json new.json         what changed between two reports
  conformance gpu out                        everything that needs a GPU

exit status:
  0 conformant   1 a MUST failed   2 usage
  3 partial, void or incomplete; a report could not be written; a fault of
    conformance
  4 a subject could not be loaded, or no requirement could be decided
  129, 130, 143  interrupted by SIGHUP, SIGINT, SIGTERM
  141            nobody reads the output any more
"""
SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
AT_ONCE = 5.0  # seconds after a signal in which others are taken for the same wish: the command is ending already


class Stopped(KeyboardInterrupt):
    """One of SIGNALS arrived. `status` is the exit status that belongs to it."""

    def __init__(self, number: int):
        self.status = 128 + number


def main(argv: list[str] | None = None) -> int:
    """Gives the exit status. It is 0 or 1 only if the command says so, whatever breaks. Without `argv` the process is the
    command's own, and its signals are handled. A program that calls a command with `argv` keeps its signals as they are."""
    open_streams()
    owns_process = argv is None
    if owns_process:
        catch_signals()
    argv = sys.argv[1:] if argv is None else argv
    arguments = argparse.Namespace(command="")
    try:
        try:
            parser(argv[:1]).parse_args(argv, arguments)
            return command(arguments.command).run(arguments)
        finally:
            sys.stdout.flush()
    except Stopped as stopped:
        goes_on = getattr(arguments, "resume", None) is not None and arguments.json
        say(arguments, "interrupted" + ("; the same command with --resume goes on" if goes_on else ""))
        status = stopped.status
    except BrokenPipeError:
        status = 128 + signal.SIGPIPE
    except (ValueError, OSError) as error:
        say(arguments, str(error))
        status = 2 if isinstance(error, ValueError) or error.filename else 3  # without a name it is the output: a full disk
    except Exception:
        say(arguments, f"this is a fault of conformance itself, and says nothing about a subject\n{traceback.format_exc()}")
        status = 3
    for number in SIGNALS if owns_process else ():
        signal.signal(number, signal.SIG_IGN)  # the command is over
    try:
        sys.stdout.flush()
    except OSError:  # what could not be printed would be tried again at the end, and change the exit status
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def open_streams() -> None:
    """Makes the standard streams fit to print to. A closed one is as one that nobody reads, and a character that a terminal
    cannot show, such as ᵀ, becomes what `report.ascii` has for it."""
    ascii.register()
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets this number: it is the lowest that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r"))  # noqa: SIM115 it lives as long as the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ascii.NAME)


def catch_signals() -> None:
    """Lets a signal end the command in order, as Ctrl-C does, so that no worker and no half-written file is left behind. One
    that the caller chose to ignore, as nohup does, stays ignored."""
    last = float("-inf")

    def stop(number: int, frame) -> None:
        nonlocal last
        if time.monotonic() - last > AT_ONCE:
            last = time.monotonic()
            raise Stopped(number)

    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)


def say(arguments: argparse.Namespace, text: str) -> None:
    with suppress(OSError):  # nobody reads standard error
        print(f"{f'conformance {arguments.command}'.strip()}: {text}", file=sys.stderr, flush=True)


def command(name: str) -> ModuleType:
    return import_module(f"conformance.commands.{name.replace('-', '_')}")


def parser(first: list[str]) -> argparse.ArgumentParser:
    """The parser of a command line that begins with `first`, which has at most one word. If it is a command, no other one is
    imported: all of them together take seconds."""
    options: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}
    found = argparse.ArgumentParser(
        "conformance", description="Tells, with proof, whether a LoRA implementation is right.", epilog=EXAMPLES, **options)
    found.add_argument("--version", action="version", version=f"conformance {__version__}")
    commands = found.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="command")
    for name in [name for name in COMMANDS if name in first] or COMMANDS:
        module = command(name)
        epilog = EXAMPLES if name == "run" else getattr(module, "EPILOG", None)
        module.declare(commands.add_parser(name, help=module.HELP, description=module.HELP, epilog=epilog, **options))
    return found


if __name__ == "__main__":
    sys.exit(main())
