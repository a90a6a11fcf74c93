"""From what a user types to a Subject: a built-in name, `package.module:attribute`, or `path/to/file.py:attribute`."""

import importlib
import importlib.util
import pkgutil
import sys
from pathlib import Path

from conformance import subjects
from conformance.subject import Subject


class LoadError(Exception):
    """The subject could not be loaded; the message says what was looked for, and why it was not found."""


def built_in() -> dict[str, str]:
    """Name → what it needs that is not installed, or "" if it can run here. Imports none of them."""
    found = {}
    for info in pkgutil.iter_modules(subjects.__path__):
        module = importlib.import_module(f"conformance.subjects.{info.name}")
        missing = [name for name in module.NEEDS if not _installed(name)]
        found[info.name] = ", ".join(missing)
    return found


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # imported already, by a module that has no __spec__
        return name in sys.modules


def load(spec: str) -> Subject:
    """The subject that `spec` names. Raises LoadError with the reason."""
    if spec.startswith("cmd:"):
        raise LoadError(f"{spec}: programs of another process cannot be checked yet")
    if ":" not in spec:
        return _built_in(spec)
    place, _, attribute = spec.rpartition(":")
    if not place or not attribute:
        raise LoadError(f"{spec!r}: expected package.module:attribute or path/to/file.py:attribute")
    module = _from_file(Path(place)) if place.endswith(".py") else _from_module(place)
    value = module
    for name in attribute.split("."):
        try:
            value = getattr(value, name)
        except AttributeError:
            raise LoadError(f"{place} has no attribute {attribute!r}; it has: {_candidates(module)}") from None
    return as_subject(value, spec)


def as_subject(value, spec: str) -> Subject:
    """A Subject as it is, or made of its class, or one around an nn.Module class. Whatever has a `build` is a Subject."""
    if callable(getattr(value, "build", None)):
        return value() if isinstance(value, type) else value
    torch = sys.modules.get("torch")  # whoever defines an nn.Module has imported it
    module = torch is not None and isinstance(value, type) and issubclass(value, torch.nn.Module)
    function = torch is not None and callable(value) and not isinstance(value, (type, torch.nn.Module))
    if module or function:
        from conformance.torch_module import ModuleSubject

        return ModuleSubject(value)  # pyright: ignore[reportArgumentType] what it returns is seen when it is called
    kind = f"the class {value.__name__}" if isinstance(value, type) else f"an instance of {type(value).__name__}"
    raise LoadError(
        f"{spec} is {kind}; expected a conformance.Subject (class or instance) or a torch.nn.Module class, or a function "
        "that returns a module, which takes (in_features, out_features, rank, alpha)"
    )


def _built_in(name: str) -> Subject:
    known = built_in()
    if name.endswith(".py"):
        raise LoadError(f"{name}: say which class of it, as {name}:CLASS; it has: {_candidates(_from_file(Path(name)))}")
    if name not in known:
        others = "others are package.module:attribute or path/to/file.py:attribute"
        raise LoadError(f"no built-in subject {name!r}; there are {', '.join(known)}; {others}")
    if known[name]:
        raise LoadError(f"{name} is not available: {known[name]} is not installed ({_how(name)})")
    return importlib.import_module(f"conformance.subjects.{name}").subject()


def _how(name: str) -> str:
    """How what a built-in subject needs is installed."""
    module = importlib.import_module(f"conformance.subjects.{name}")
    return getattr(module, "INSTALL", "pip install '.[peers]'")


def _candidates(module) -> str:
    """The names of what could be a subject in it."""
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
    sys.path.append(str(path.resolve().parent))  # last: a file of its own name must not stand in for another's
    return _executed(lambda: loader.exec_module(module) or module, str(path))


def _from_module(name: str):
    sys.path.insert(0, "")
    return _executed(lambda: importlib.import_module(name), name)


def _executed(run, name: str):
    try:
        return run()
    except (Exception, SystemExit) as error:
        raise LoadError(f"importing {name} raised {type(error).__name__}: {error}") from error
