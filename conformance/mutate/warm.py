"""Runs the tests of somebody else in forks of a process that has imported torch, and what else takes long, already.

It is started by its path, in the folder of the tests, and knows nothing of conformance. The first line on standard input is a
JSON list of the modules to import. Each further line asks for one run, and is answered by two lines: the process, and how it
ended. The answer to the first line is whether a file that must not be imported before the fork was.
"""

import importlib
import json
import os
import sys
import warnings
from contextlib import suppress


def main() -> None:
    sys.path[0] = os.getcwd()  # as `python -m pytest` does it
    asked, said = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    first = json.loads(asked.readline())
    import pytest  # noqa: F401
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in first["modules"]:
            with suppress(Exception, SystemExit):
                importlib.import_module(name)
    files = {os.path.realpath(str(getattr(module, "__file__", ""))) for module in list(sys.modules.values())}
    print(json.dumps(first["file"] in files), file=said, flush=True)
    for line in asked:
        one = json.loads(line)
        child = os.fork()
        if not child:
            said.close()
            tests(one)
        print(json.dumps(child), file=said, flush=True)
        print(json.dumps(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])), file=said, flush=True)


def tests(one: dict) -> None:
    """Runs pytest in this process, and ends it."""
    os.setsid()
    output = os.open(one["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(one["env"])
    import conformance_plant  # pyright: ignore[reportMissingImports] it stands beside sitecustomize.py, see trial.py

    conformance_plant.plant()
    sys.argv = ["pytest", *one["arguments"]]
    import pytest

    status = 1
    try:
        status = int(pytest.main(one["arguments"]))
        sys.modules["conformance_planted.hook"].leave()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
