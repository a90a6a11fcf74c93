"""Loads the Subject that a user names: a built-in name, `package.module:attribute`, `path/to/file.py:attribute`, or
`cmd:PROGRAM ARGUMENTS`."""

import importlib
import importlib.util
import pkgutil
import shlex
import sys
from pathlib import Path

from conformance import subjects
from conformance.drivers import environments
from conformance.drivers.hosted import HostedSubject, NotLoaded
from conformance.drivers.process import LIMIT, MEMORY, START, ProcessSubject, start_limit
from conformance.files.function_subject import FunctionSubject, is_reader
from conformance.subject import Subject


class LoadError(Exception):
    """The subject could not be loaded. The message says what was looked for, and why it was not found."""


def built_in() -> dict[str, str]:
    """Name of each built-in subject → why it cannot run here and how to install it, or "" if it can. Imports no library."""
    found = {}
    for info in pkgutil.iter_modules(subjects.__path__):
        missing, name = missing_here(info.name), environment(info.name)
        found[info.name] = ""
        if missing and not (name and environments.made(name)):
            install = f"conformance subjects --install {info.name}" if name else "pip install '.[peers]'"
            found[info.name] = f"{', '.join(missing)} not installed ({install})"
    return found


def missing_here(name: str) -> list[str]:
    """The packages that a built-in subject needs and that this interpreter does not have."""
    return [package for package in _module(name).NEEDS if not _installed(package)]


def environment(name: str) -> str | None:
    """The name of the environment that a built-in subject uses if its packages are not installed here. None if it has none."""
    return getattr(_module(name), "ENVIRONMENT", None)


def _module(name: str):
    return importlib.import_module(f"conformance.subjects.{name}")


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # imported already, by a module that has no __spec__
        return name in sys.modules


def reach(spec: str, timeout: float = 30.0, memory: float = MEMORY, wrapped: tuple[str, ...] = ()) -> ProcessSubject:
    """The subject that `spec` names, in a process of its own. A Python subject has `timeout` seconds for each answer, a program
    a third of that and at most LIMIT. Both may take `memory` GiB. `wrapped` is a command that runs the subject's command, such
    as a sandbox. Raises LoadError with the reason."""
    command = _command(spec)
    if command is not None:
        return _program(spec, [*wrapped, *command], min(LIMIT, timeout / 3), memory, start_limit(timeout))
    try:
        return HostedSubject(spec, timeout, memory, start_limit(timeout), wrapped)
    except NotLoaded as error:
        raise LoadError(str(error)) from error
    except (Exception, SystemExit) as error:
        raise LoadError(f"loading it failed: {error}") from error


def _command(spec: str) -> list[str] | None:
    """The command of a subject that is a program. None for one that Python loads. Raises LoadError."""
    if spec.startswith("cmd:"):
        try:
            command = shlex.split(spec.removeprefix("cmd:"))
        except ValueError as error:
            raise LoadError(f"{spec!r} is no command line: {error}") from error
        if not command:
            raise LoadError(f"{spec!r} names no program, expected cmd:PROGRAM ARGUMENTS")
        return command
    if ":" in spec or spec.endswith(".py") or not _available(spec):
        return None
    return environments.command(environment(spec) or "", environments.SUBJECT, spec) if missing_here(spec) else None


def load(spec: str, limit: float = LIMIT, memory: float = MEMORY) -> Subject:
    """The subject that `spec` names, in this process. A subject that is another program has `limit` seconds for each answer,
    and `memory` GiB. Raises LoadError with the reason."""
    command = _command(spec)
    if command is not None:
        return _program(spec, command, limit, memory)
    if ":" not in spec and spec.endswith(".py"):
        raise LoadError(f"{spec}: say which class of it, as {spec}:CLASS; it has: {_candidates(_from_file(Path(spec)))}")
    if ":" not in spec:
        return _module(spec).subject()
    place, _, attribute = spec.rpartition(":")
    if not place or not attribute:
        raise LoadError(f"{spec!r}: expected package.module:attribute or path/to/file.py:attribute")
    module = imported(place)
    value = module
    for name in attribute.split("."):
        try:
            value = getattr(value, name)
        except AttributeError:
            raise LoadError(f"{place} has no attribute {attribute!r}; it has: {_candidates(module)}") from None
    return as_subject(value, spec)


def as_subject(value, spec: str) -> Subject:
    """The Subject that `value` is or stands for: a Subject, a class of one, a class of torch modules or of objects that change
    modules, a function that returns a module, or one that reads adapter files. What is no module and has a method `build`
    counts as a Subject. Raises LoadError for anything else."""
    if is_reader(value):
        return FunctionSubject(value)
    torch = sys.modules.get("torch")  # whoever defines an nn.Module has imported it
    module = torch is not None and isinstance(value, type) and issubclass(value, torch.nn.Module)
    if not module and callable(getattr(value, "build", None)):
        return value() if isinstance(value, type) else value
    if torch is not None and callable(value) and not isinstance(value, torch.nn.Module):
        from conformance.drivers.torch_module import ModuleSubject

        return ModuleSubject(value)  # pyright: ignore[reportArgumentType] only a call shows what it returns
    kind = f"the class {value.__name__}" if isinstance(value, type) else f"an instance of {type(value).__name__}"
    raise LoadError(
        f"{spec} is {kind}; expected a conformance.Subject (class or instance) or a torch.nn.Module class, or a function "
        "that returns a module, which takes (in_features, out_features, rank, alpha), or one that reads adapter files, which "
        "takes (path, base)"
    )


def _available(name: str) -> bool:
    """True for a built-in subject that can run here. Raises LoadError for any other name, with the reason."""
    known = built_in()
    if name not in known:
        others = "others are package.module:attribute, path/to/file.py:attribute or cmd:PROGRAM"
        raise LoadError(f"no built-in subject {name!r}; there are {', '.join(known)}; {others}")
    if known[name]:
        raise LoadError(f"{name} is not available: {known[name]}")
    return True


def _program(spec: str, command: list[str], limit: float, memory: float, start: float = START) -> ProcessSubject:
    try:
        return ProcessSubject(command, limit, memory, start)
    except (Exception, SystemExit) as error:
        raise LoadError(f"{spec}: {type(error).__name__}: {error}") from error


def imported(place: str):
    """The module of a file or of a dotted name. Raises LoadError."""
    return _from_file(Path(place)) if place.endswith(".py") else _from_module(place)


def _candidates(module) -> str:
    """The names in the module that could be subjects."""
    names = [n for n, value in vars(module).items() if not n.startswith("_") and (
        getattr(value, "__module__", "") == module.__name__ or isinstance(value, Subject))]
    return ", ".join(names) or "nothing of its own"


def _from_file(path: Path):
    if not path.is_file():
        raise LoadError(f"no file {path}")
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    assert module_spec is not None and module_spec.loader is not None  # it ends in .py
    loader, module = module_spec.loader, importlib.util.module_from_spec(module_spec)
    sys.modules.setdefault(path.stem, module)  # pickle and dataclasses look a module up by its name
    sys.path.append(str(path.resolve().parent))  # last, so that none of its files hides an installed module
    return _executed(lambda: loader.exec_module(module) or module, str(path))


def _from_module(name: str):
    sys.path.insert(0, "")
    return _executed(lambda: importlib.import_module(name), name)


def _executed(run, name: str):
    try:
        return run()
    except (Exception, SystemExit) as error:
        raise LoadError(f"importing {name} raised {type(error).__name__}: {error}") from error
