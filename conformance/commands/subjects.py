"""conformance subjects: lists the built-in subjects, and makes the environments that they need."""

import argparse
import sys
from collections.abc import Iterable
from importlib import import_module

from conformance.commands.shared import console
from conformance.drivers import environments
from conformance.report import terminal
from conformance.run.loading import built_in, environment, missing_here

HELP = "list the built-in subjects and say which can run here, or install some"


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--install", nargs="+", default=[], metavar="NAME",
                        help="make the environments that these subjects need; all stands for every one. They are made in "
                             "$CONFORMANCE_CACHE or ~/.cache/conformance")


def run(arguments: argparse.Namespace) -> int:
    if arguments.install:
        return install(arguments.install)
    for name, missing in built_in().items():
        doc = (import_module(f"conformance.subjects.{name}").__doc__ or "").splitlines()[0]
        state = "ready" if not missing_here(name) else f"ready, in the environment {environment(name)}"
        print(f"{name:15}{f'not available: {missing}' if missing else state}\n{'':15}{doc}")
    return 0


def install(names: list[str]) -> int:
    """Makes the environments that the subjects of these names need."""
    known = built_in()
    for name in names:
        if name != "all" and name not in known:
            raise ValueError(f"no built-in subject {name}; there are {', '.join(known)}")
    wanted = [name for name in known if environment(name)] if "all" in names else names
    for name in wanted:
        if environment(name) is None:
            console().print(f"{name} needs no environment of its own")
    return make(filter(None, dict.fromkeys(environment(name) for name in wanted)))


def make(needed: Iterable[str]) -> int:
    """Makes these environments, unless they are there. Gives the exit status of the command."""
    screen = console()
    for name in needed:
        if environments.made(name):
            screen.print(f"{name}: is there, in {environments.folder(name)}", soft_wrap=True)
            continue
        screen.print(f"{name}: about {environments.ENVIRONMENTS[name].size}")
        try:
            with terminal.steps(screen) as told:
                environments.make(name, told)
        except environments.CannotInstall as error:
            print(f"conformance: {name}: {error}", file=sys.stderr)
            return 4
        screen.print(f"{name}: made, in {environments.folder(name)}", soft_wrap=True)
    return 0
