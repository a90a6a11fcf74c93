"""Plants one fault into a class, once the file that defines it is imported. `sitecustomize.py` of a test run loads this file.

The environment variable CONFORMANCE_FAULT names a JSON file: "file" and "class" say where, and "fault" says what, "" for none.
At the end the names of all modules of installed packages are written to the file "seen", if the class was imported. Nothing of
the user's is changed.
"""

import atexit
import json
import os
import sys
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

VARIABLE = "CONFORMANCE_FAULT"


class Planting(Loader):
    """The loader of the file, which plants the fault after it."""

    def __init__(self, loader: Any, task: dict[str, Any]):
        self.loader, self.task = loader, task

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        found: Any = module
        for name in self.task["class"].split("."):
            found = getattr(found, name, None)
        if found is None:
            return
        if self.task["fault"]:
            from .all import plant

            plant(found, self.task, self.task["fault"])
        self.task["found"] = True
        leave()  # the tests may end this process in a way of their own


class Finder:
    """Asks all other finders, and replaces the loader of the one file."""

    def __init__(self, task: dict[str, Any]):
        self.task, self.file = task, os.path.realpath(task["file"])

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if spec.origin and spec.loader and os.path.realpath(spec.origin) == self.file:
                    spec.loader = Planting(spec.loader, self.task)
                return spec
        return None


task: dict[str, Any] = {}


def install() -> None:
    with open(os.environ[VARIABLE], encoding="utf-8") as file:
        task.update(json.load(file))
    sys.meta_path.insert(0, Finder(task))  # pyright: ignore[reportArgumentType]
    atexit.register(leave)


def leave() -> None:
    """Writes which modules were imported."""
    if task.get("found"):
        names = [name for name, module in list(sys.modules.items()) if "site-packages" in str(getattr(module, "__file__", ""))]
        with open(task["seen"], "w", encoding="utf-8") as file:
            json.dump(names, file)
