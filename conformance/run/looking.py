"""The process of `conformance look`: imports a file or a module, looks at one class or function of it or at all, and prints
what it found as JSON. Code of other people runs here, and nothing of the judge.

    python -P -m conformance.run.looking PLACE[:NAME]
"""

import inspect
import json
import os
import sys
import warnings
from types import ModuleType
from typing import Any

from torch import nn

from conformance.drivers.look.names import makes
from conformance.drivers.look.refused import NotRecognised
from conformance.drivers.look.words import told
from conformance.drivers.look.writing import named, subject
from conformance.drivers.torch_module import ModuleSubject
from conformance.run.loading import LoadError, imported


def main(spec: str) -> dict[str, Any]:
    """What was found: "found", "refused" and "error", for the place and name."""
    place, _, name = spec.rpartition(":") if ":" in spec else (spec, "", "")
    try:
        module = imported(place)
    except LoadError as error:
        return {"error": str(error)}
    if name and not hasattr(module, name):
        return {"error": f"{place} has no {name}; it has: {', '.join(candidates(module)) or 'nothing of its own'}"}
    found, refused = [], []
    every = [each for each in candidates(module) if isinstance(getattr(module, each), type) or makes(each)]
    for each in [name] if name else every:
        try:
            found.append(looked(getattr(module, each), each, place))
        except NotRecognised as reason:
            if name or "lora" in each.lower() or " is built" in str(reason):  # it holds factors
                refused.append({"name": each, "why": str(reason)})
        except Exception as error:  # the code of the class may do anything
            refused.append({"name": each, "why": f"looking at it raised {type(error).__name__}: {error}"})
    return {"found": found, "refused": refused}


def candidates(module: ModuleType) -> list[str]:
    """The module classes and the functions that are written in this module."""
    return [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__ and (
        inspect.isfunction(value) or isinstance(value, type) and issubclass(value, nn.Module))]


def looked(call: Any, name: str, place: str) -> dict[str, Any]:
    """What was found about the class or function. Raises NotRecognised."""
    made = ModuleSubject(call)
    found = made.found
    zero = tuple(letter for letter in "AB" if not made.fresh().adapter()[letter].any())
    methods = made.merging
    return {"name": name, "rows": told(found, methods, zero), "subject": subject(found, methods, name, place),
            "subject_name": f"{named(name)}Subject", "compensates": made.compensates}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the code prints goes to standard error
    answers.write(json.dumps(main(sys.argv[1])))
    answers.flush()
