"""Wrong layers that lay hands on what judges them: the truth, the comparison, the search, the report, the libraries below."""

import builtins
import ctypes
import gc
import importlib
import inspect
import json
import os
import random
import sys
import types

import numpy as np
from layers import Wrong, at, subject


def modules(start: str = "conformance"):
    """The modules of a package that this process has imported."""
    return [module for name, module in list(sys.modules.items()) if name.split(".")[0] == start and module is not None]


def everywhere(name: str, value) -> None:
    """Gives every module of the package that has such a name this value for it."""
    for module in modules():
        if hasattr(module, name):
            setattr(module, name, value)


def attributes(name: str, attribute: str):
    """Imports a module of the package if it is there, and gives the attribute of it."""
    return getattr(importlib.import_module(name), attribute)


@at("load")
def sets_the_scale_of_the_truth():
    from lora_ref import lora

    right = lora.scale
    lora.scale = lambda *args: -right(*args)


@at("forward")
def sets_the_formula_of_the_truth(layer, x):
    from lora_ref import lora

    right = lora.forward
    if right.__name__ == "forward":
        lora.forward = lambda x, W, b, p, scale, mask=None: right(x, W, b, p, -scale, mask)


@at("load")
def sets_the_true_answers():
    case = attributes("conformance.truth.case", "Case")
    right = case.truth.func
    case.truth = property(lambda self: right(self.replace(alpha=-self.config.alpha)))


@at("load")
def replaces_the_comparisons():
    for name in ("expect_equal", "expect_within", "expect_within_spread"):
        right = attributes("conformance.truth.compare", name)
        everywhere(name, lambda *args, right=right: right(*args) if "expected to be" in args[-1] else 0.0)


@at("forward")
def replaces_the_comparisons_late(layer, x):
    for name in ("expect_equal", "expect_within", "same", "expect"):
        everywhere(name, lambda *args, **more: 0.0)


@at("load")
def makes_all_numbers_zero():
    attributes("conformance.truth.compare", "wide")
    everywhere("wide", lambda array: np.zeros(np.shape(array)))


@at("load")
def mismatches_are_not_offered():
    from conformance import Unsupported

    attributes("conformance.truth.compare", "Mismatch")
    everywhere("Mismatch", type("Mismatch", (Unsupported,), {"__init__": lambda self, *args, **more: None}))


@at("forward")
def mismatches_cannot_be_made(layer, x):
    def init(self, *args, **more):
        raise attributes("hypothesis.errors", "UnsatisfiedAssumption")

    attributes("conformance.truth.compare", "Mismatch").__init__ = init


@at("load")
def replaces_checks():
    for requirement in attributes("conformance.requirements", "all_requirements")():
        object.__setattr__(requirement, "check", lambda subject, case: 0.0)


@at("load")
def replaces_the_attempt():
    search = attributes("conformance.run.examine", "_Search")
    right = search.attempt

    def attempt(self, case):
        if "CANARY" in self.requirement.id:
            right(self, case)
        self.decided += 1

    search.attempt = attempt


@at("load")
def outcomes_are_passes():
    outcome = attributes("conformance.run.examine", "Outcome")
    outcome.status = property(lambda self: "fail" if "CANARY" in self.id else "pass", lambda self, value: None)


@at("load")
def reports_are_conformant():
    attributes("conformance.run.verdict", "Report").verdict = property(lambda self: "conformant")


@at("load")
def no_case_is_drawn():
    attributes("conformance.run.case_bank", "_drawn")
    everywhere("_drawn", lambda *args: [])


@at("load")
def one_case_is_drawn():
    """Every search begins and ends with the simplest case, in which everything is zero."""
    import hypothesis

    right = hypothesis.settings.__init__
    hypothesis.settings.__init__ = lambda *args, **more: right(*args, **more | {"max_examples": 1})
    hypothesis.seed = lambda number: lambda function: function


@at("load")
def tests_are_not_called():
    import hypothesis

    hypothesis.given = lambda *args, **more: lambda function: lambda: None


@at("load")
def replaces_numpy_functions():
    np.array_equal = np.allclose = lambda *args, **more: True
    np.isnan = lambda array, *args, **more: np.ones(np.shape(array), bool)
    np.abs = np.absolute = lambda array, *args, **more: np.zeros(np.shape(array))


@at("load")
def replaces_how_numpy_counts():
    right = np.asarray
    np.asarray = np.array = lambda *args, **more: right(np.zeros(np.shape(args[0])))
    np.broadcast_to = lambda array, shape: np.full(shape, np.inf)


@at("load")
def replaces_builtins():
    builtins.isinstance = lambda thing, kind: True


@at("load")
def replaces_any_and_len():
    builtins.any, builtins.len = (lambda found: False), (lambda thing: 1)


@at("load")
def replaces_max_and_abs():
    builtins.max = builtins.abs = lambda *args, **more: 0.0


@at("load")
def answers_in_json():
    right = json.dumps

    def dumps(value, *args, **more):
        if isinstance(value, dict) and "outcome" in value:
            value["outcome"] |= {"status": "pass", "examples": 9}
        return right(value, *args, **more)

    json.dumps = dumps
    everywhere("dumps", dumps)


@at("load")
def replaces_os_write():
    right = os.write
    os.write = lambda file, data: right(file, bytes(data).replace(b'"fail"', b'"pass"'))


@at("load")
def replaces_stdout():
    class Says:
        def write(self, text):
            return len(text)

        def __getattr__(self, name):
            return lambda *args: None

    sys.stdout = sys.__stdout__ = sys.stderr = Says()


@at("load")
def imports_get_its_own_truth():
    """A finder before all others. Whatever is imported from now on as lora_ref.lora is another module."""
    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name.startswith(("lora_ref", "conformance.truth")):
                raise ModuleNotFoundError(name)

    sys.meta_path.insert(0, Finder())
    for module in modules("lora_ref"):
        sys.modules[module.__name__] = types.ModuleType(module.__name__)


@at("build")
def the_random_numbers_are_known(config, weight, bias):
    random.seed(0)
    np.random.seed(0)
    random.Random.random = lambda self: 0.0
    random.Random.getrandbits = lambda self, bits: 0


def right_answer(thing, layer, x):
    """The true y in an object, if it is the case at hand."""
    case = getattr(thing, "case", thing)
    if type(case).__name__ == "Case" and case.x.shape == x.shape and case.W.shape == layer.W.shape:
        return np.asarray(case.truth.y, x.dtype)
    return None


@at("forward")
def looks_in_the_frames(layer, x):
    frame = sys._getframe()
    while frame is not None:
        for value in list(frame.f_locals.values()):
            if (found := right_answer(value, layer, x)) is not None:
                return found
        frame = frame.f_back


@at("forward")
def looks_at_all_objects(layer, x):
    for thing in gc.get_objects():
        if type(thing).__name__ == "Case" and thing.x.tobytes() == x.tobytes() and thing.W.tobytes() == layer.W.tobytes():
            return np.asarray(thing.truth.y, x.dtype)


@at("forward")
def changes_the_case_above(layer, x):
    for frame in inspect.stack():
        case = frame.frame.f_locals.get("case")
        if type(case).__name__ == "Case":
            case.truth.y = Wrong.forward(layer, x)


@at("load")
def traces_every_call():
    """The comparison's own variables are set while it runs."""
    def local(frame, event, argument):
        if frame.f_code.co_name == "expect_equal" and "want" in frame.f_locals:
            want = frame.f_locals["want"]
            if isinstance(want, np.ndarray) and want.flags.writeable:
                want[...] = np.nan
            got = frame.f_locals["got"]
            if isinstance(got, np.ndarray) and got.flags.writeable:
                got[...] = np.nan
        return local

    sys.settrace(lambda frame, event, argument: local if frame.f_code.co_name == "expect_equal" else None)


@at("forward")
def writes_into_objects(layer, x):
    """False gets the digits of 1."""
    for place in (0, 8):
        ctypes.memset(id(False) + object.__basicsize__ + place, 1, 1)


@at("load")
def saves_its_own_report():
    """Finds the file of --json on the command line of its ancestors, and writes what it would like to read there."""
    process = os.getpid()
    while process > 1:
        with open(f"/proc/{process}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
        if b"--json" in words:
            path = words[words.index(b"--json") + 1].decode()
            if os.path.exists(os.path.dirname(os.path.abspath(path))):
                subject = {"name": "saves_its_own_report", "version": "1", "spec": ""}
                with open(path, "w", encoding="utf-8") as file:
                    json.dump({"schema": 1, "reports": [{"subject": subject, "verdict": "conformant"}]}, file)
        with open(f"/proc/{process}/stat") as file:
            process = int(file.read().rpartition(")")[2].split()[1])


class Opinionated(Wrong):
    """Every attribute that the harness may look for is there."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **more: np.ones(1)


answers_to_every_name = subject("answers_to_every_name", Opinionated)
