"""Between a requirement and a subject: remembers every call, so that a failure can be shown as a script of a few
lines, checks the type of every answer, and tells an exception of the subject from a fault of the harness."""

import numpy as np

from conformance.compare import Mismatch
from conformance.subject import Layer, LayerConfig, Subject, Unsupported

_ANSWERS = {
    "adapter": dict, "backward": dict, "trainable": dict,
    "forward": np.ndarray, "weight": np.ndarray, "bias": (np.ndarray, type(None)),
}
MAX_SCRIPT_ELEMENTS = 400


class SubjectError(Exception):
    """The subject raised. `error` is what it raised, `call` what it was asked."""

    def __init__(self, call: str, error: BaseException):
        self.call, self.error = call, error
        super().__init__(f"{call} raised {type(error).__name__}: {error}")


def refuses(action, *args) -> bool:
    """Whether the call raises an error: some requirements accept, or demand, a refusal."""
    try:
        action(*args)
    except SubjectError as error:
        if isinstance(error.error, SystemExit):
            raise
        return True
    return False


class Traced(Subject):
    """A subject whose layers remember what was asked of them, in one list for the whole case."""

    def __init__(self, subject: Subject):
        self._subject, self._layers = subject, 0
        self.calls: list[list] = []  # [what was asked, copies of the arguments as they were then, whether it raised]
        self.elements = 0  # of all arrays handed over, to know whether a script stays readable

    def build(self, config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None) -> "TracedLayer":
        self._layers += 1
        name = "layer" if self._layers == 1 else f"layer{self._layers}"
        layer = TracedLayer(self, name)
        layer._layer = self._ask(f"{name} = subject.build", self._subject.build, (config, weight, bias), Layer)
        return layer

    def _ask(self, label: str, method, args: tuple, answer=None):
        self.elements += sum(a.size for a in _arrays(args))
        if self.elements <= MAX_SCRIPT_ELEMENTS:
            self.calls.append([label, _copied(args), False])
        try:
            result = method(*args)
        except Unsupported:
            raise
        except (Exception, SystemExit) as error:
            self.calls[-1][2] = True
            raise SubjectError(label.split(" = ")[-1].replace("subject.", "").split(".")[-1] + "()", error) from error
        if answer is not None and not isinstance(result, answer):
            name = label.split(".")[-1]
            want = " or ".join(t.__name__ for t in (answer if isinstance(answer, tuple) else (answer,)))
            raise Mismatch(f"what {name}() returns", "nothing (None)" if result is None else type(result).__name__, want)
        for key, array in result.items() if answer is dict and not label.endswith(".trainable") else ():
            if not isinstance(array, np.ndarray):
                raise Mismatch(f"what {label.split('.')[-1]}() gives for {key!r}", type(array).__name__, "ndarray")
        return result

    def script(self, spec: str) -> str | None:
        """The calls as a Python script that needs this package and the subject, or None if it would be too long."""
        if self.elements > MAX_SCRIPT_ELEMENTS:
            return None
        body = "\n".join(_line(*call, last=call is self.calls[-1]) for call in self.calls)
        head = ["from numpy import array, inf, nan", "from conformance import LayerConfig, load"]
        if "bfloat16" in body:
            head.append("from ml_dtypes import bfloat16")
        if "directory" in body:
            head.append("import tempfile; directory = tempfile.mkdtemp()")
        return "\n".join([*head, f"subject = load({spec!r})", body])


class TracedLayer(Layer):
    """Passes every method of Layer on to the subject's layer."""

    _layer: Layer

    def __init__(self, subject: Traced, name: str):
        self._subject, self._name = subject, name


def _passed_on(method: str):
    def ask(self: TracedLayer, *args):
        label = f"{self._name}.{method}"
        return self._subject._ask(label, getattr(self._layer, method), args, _ANSWERS.get(method))

    return ask


for _method in [name for name, value in vars(Layer).items() if callable(value) and not name.startswith("_")]:
    setattr(TracedLayer, _method, _passed_on(_method))


def _arrays(value):
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, dict | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _arrays(item)


def _copied(value):
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return tuple(map(_copied, value)) if isinstance(value, tuple) else value


def _source(value) -> str:
    """Python source of an argument."""
    if isinstance(value, np.ndarray):
        name, plain = value.dtype.name, value.astype(np.float64)
        whole = np.isfinite(plain).all() and (plain == np.trunc(plain)).all()
        numbers = (plain.astype(np.int64) if whole else plain).tolist()
        return f"array({numbers}, {'bfloat16' if name == 'bfloat16' else repr(name)})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_source(item)}" for key, item in value.items()) + "}"
    if isinstance(value, LayerConfig):
        plain = LayerConfig(1, 1, 1, 1.0)
        shown = {k: v for k, v in vars(value).items() if k in ("in_features", "out_features", "rank", "alpha")}
        shown |= {k: v for k, v in vars(value).items() if k not in shown and v != getattr(plain, k)}
        return "LayerConfig(" + ", ".join(f"{k}={v!r}" for k, v in shown.items()) + ")"
    if hasattr(value, "__fspath__"):
        return "directory"
    return repr(value)


def _line(label: str, args: tuple, raised: bool, last: bool) -> str:
    """One call; an error on the way is caught and shown, and at the end it is left to speak for itself."""
    call = f"{label}({', '.join(map(_source, args))})"
    call = f"print({call})" if label.split(".")[-1] in _ANSWERS else call
    return f"try: {call}\nexcept Exception as error: print(error)" if raised and not last else call
