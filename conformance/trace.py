"""Between a requirement and a subject: remembers every call, so that a failure can be shown as a script of a few
lines, checks the type of every answer, and tells an exception of the subject from a fault of the harness."""

import ast
import textwrap
from contextlib import suppress

import numpy as np

from conformance.compare import Mismatch
from conformance.subject import Call, Layer, LayerConfig, Subject, Unsupported

_ANSWERS = {
    "adapter": dict, "backward": dict, "trainable": dict,
    "forward": np.ndarray, "weight": np.ndarray, "bias": (np.ndarray, type(None)),
}
_READINGS = ("adapter", "trainable", "weight", "bias")  # change nothing
MAX_SCRIPT_ELEMENTS = 400
WIDTH = 100  # of a line of a script


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
        self._subject, self._layers = subject, {}
        self.calls: list[tuple[Call, tuple]] = []  # and the arguments themselves, to see whether they change
        self.elements = 0  # of all arrays handed over, to know whether a script stays readable

    def build(self, config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None) -> "TracedLayer":
        name = f"layer{len(self._layers) + 1 if self._layers else ''}"
        self._layers[name] = None
        layer = TracedLayer(self, name)
        layer._layer = self._layers[name] = self._ask(f"{name}.build", self._subject.build, (config, weight, bias), Layer)
        self.calls[-1:] = [(call._replace(target=layer._layer), args) for call, args in self.calls[-1:]]
        return layer

    def _ask(self, label: str, action, args: tuple, answer=None):
        """`label` is the layer's name and the method's."""
        name, method = label.split(".")
        self.elements += sum(a.size for a in _arrays(args))
        readable = self.elements <= MAX_SCRIPT_ELEMENTS
        call = Call(name, method, _copied(args), None, False, self._layers[name]) if readable else None
        raised, result = True, None
        try:
            result = action(*args)
            raised = False
        except Unsupported:
            call = None  # as if it had not been asked
            raise
        except (Exception, SystemExit) as error:
            raise SubjectError(f"{method}()", error) from error
        finally:
            if call is not None:
                self.calls.append((call._replace(answer=_copied(result), raised=raised), args))
        if answer is not None and not isinstance(result, answer):
            want = " or ".join(t.__name__ for t in (answer if isinstance(answer, tuple) else (answer,)))
            got = "nothing (None)" if result is None else type(result).__name__
            raise Mismatch(f"what {method}() returns", got, want)
        for key, array in result.items() if answer is dict and method != "trainable" else ():
            if not isinstance(array, np.ndarray):
                raise Mismatch(f"what {method}() gives for {key!r}", type(array).__name__, "ndarray")
        return result

    def script(self, spec: str) -> str | None:  # type: ignore[override] the calls are its own
        """The calls as a Python script, in the subject's own words if it has any, and else through this package; None if
        it would be too long."""
        if self.elements > MAX_SCRIPT_ELEMENTS or not self.calls:
            return None
        calls = told([call._replace(changed=_bits(call.args) != _bits(args)) for call, args in self.calls])
        own = None
        with suppress(Exception):  # a report comes first; and whatever has a `build` is a subject, with or without `script`
            own = self._subject.script(calls, spec)
        return wrapped(own or through_this_package(calls, spec))


class TracedLayer(Layer):
    """Passes every method of Layer on to the subject's layer."""

    _layer: Layer

    def __init__(self, subject: Traced, name: str):
        self._subject, self._name = subject, name


def _passed_on(method: str):
    def ask(self: TracedLayer, *args):
        return self._subject._ask(f"{self._name}.{method}", getattr(self._layer, method), args, _ANSWERS.get(method))

    return ask


for _method in [name for name, value in vars(Layer).items() if callable(value) and not name.startswith("_")]:
    setattr(TracedLayer, _method, _passed_on(_method))


class Name(str):
    """The variable that stands for an argument."""


def told(calls: list[Call]) -> list[Call]:
    """The calls without the readings that a script does not need, and `shown` where it must print the answer: an output
    from which no gradient is taken, the last gradients, and a reading at the end or with another answer than before.
    Directories get names."""
    found, directories = [], {}
    for i, call in enumerate(calls):
        later = calls[i + 1 :]
        same_layer = [c for c in later if c.layer == call.layer]
        if call.method in _READINGS:
            again = next((c for c in same_layer if c.method == call.method), None)
            at_end = all(c.method in _READINGS for c in later)
            if not call.raised and not (at_end if again is None else _bits(again.answer) != _bits(call.answer)):
                continue
            shown = True
        elif call.method == "forward":
            shown = next((c.method for c in same_layer if c.method in ("forward", "backward")), "") != "backward"
        else:
            shown = call.method == "backward" and all(c.method != "backward" for c in later)
        paths = [str(arg) for arg in call.args if hasattr(arg, "__fspath__")]
        for path in paths:
            directories.setdefault(path, Name(f"directory{len(directories) + 1 if directories else ''}"))
        args = tuple(directories.get(str(arg), arg) if paths else arg for arg in call.args)
        found.append(call._replace(args=args, shown=shown))
    return found


def through_this_package(calls: list[Call], spec: str) -> str:
    """A script that needs this package, and can be written for every subject."""
    dtype = next(call.args[0].dtype for call in calls if call.method == "build")
    lines = []
    for call in calls:
        args = [_source(arg, dtype) for arg in call.args]
        if call.changed and call.method in ("forward", "backward"):
            lines.append(f"given = {args[0]}")
            args = ["given"]
        text = f"{call.layer}.{call.method}({', '.join(args)})"
        if call.method == "build":
            text = f"{call.layer} = subject.build({', '.join(args)})"
        text = f"print({text})" if call.shown else text
        lines += caught(text) if call.raised and call is not calls[-1] else [text]
        lines += ["print(given)"] if args == ["given"] else []
    body = "\n".join(lines)
    head = ["import ml_dtypes"] if "bfloat16" in body else []
    head += ["import numpy as np", "from conformance import LayerConfig, load", *temporary(calls)]
    head += [f"def a(numbers): return np.array(numbers, {dtype!r})"] if "a([" in body else []
    return "\n".join([*head, f"subject = load({spec!r})", body])


def temporary(calls: list[Call]) -> list[str]:
    """The lines that make the directories of the calls."""
    names = sorted({arg for call in calls for arg in call.args if isinstance(arg, Name)})
    return ["import tempfile"] * bool(names) + [f"{name} = tempfile.mkdtemp()" for name in names]


def caught(text: str) -> list[str]:
    """An error on the way is caught and shown; at the end it is left to speak for itself."""
    return ["try:", *textwrap.indent(text, "    ").splitlines(), "except Exception as error:", "    print(error)"]


def wrapped(script: str) -> str:
    """Long lines broken, where that does not change the meaning."""
    options = {"width": WIDTH, "break_long_words": False, "break_on_hyphens": False}
    lines = [textwrap.fill(line, subsequent_indent=" " * 8, **options) for line in script.splitlines()]
    broken = "\n".join(lines)
    with suppress(SyntaxError):
        return broken if ast.dump(ast.parse(broken)) == ast.dump(ast.parse(script)) else script
    return script


def number(value, whole: str = "") -> str:
    """Python source of a number, as short as its dtype allows; `whole` stands behind one without a fraction."""
    value = value if value.dtype == np.float64 else np.float32(value)
    if not np.isfinite(value):
        return f"float('{float(value)}')"
    return f"{int(value)}{whole}" if value == np.trunc(value) and abs(value) < 2**24 else str(value)


def nested(array: np.ndarray, whole: str = "") -> str:
    """Python source of the numbers of an array, as a list of lists."""
    if array.ndim == 0:
        return number(array[()], whole)
    return "[" + ", ".join(nested(part, whole) for part in array) + "]"


def memory(array: np.ndarray) -> tuple[np.ndarray, int, tuple[int, ...]]:
    """A copy of the stretch of memory that a view looks at, and of its places: the first one, and the strides. In items."""
    strides = tuple(stride // array.itemsize for stride in array.strides)
    first = -sum(min(0, (n - 1) * stride) for n, stride in zip(array.shape, strides, strict=True))
    last = first + sum(max(0, (n - 1) * stride) for n, stride in zip(array.shape, strides, strict=True))
    items = np.zeros(last + 1, array.dtype)
    np.ndarray(array.shape, array.dtype, items, first * array.itemsize, array.strides)[...] = array
    return items, first, strides


def _arrays(value):
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, dict | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _arrays(item)


def _bits(value):
    """What two values are compared by."""
    if isinstance(value, np.ndarray):
        return value.shape, value.tobytes()
    if isinstance(value, dict):
        return {key: _bits(item) for key, item in value.items()}
    return [_bits(item) for item in value] if isinstance(value, tuple) else value


def _copied(value):
    if isinstance(value, np.ndarray):
        if value.flags.c_contiguous:
            return value.copy()
        items, first, _ = memory(value)
        return np.ndarray(value.shape, value.dtype, items, first * value.itemsize, value.strides)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return tuple(map(_copied, value)) if isinstance(value, tuple) else value


def _source(value, dtype: str) -> str:
    """Python source of an argument. `a` makes an array of the dtype of the case."""
    if isinstance(value, np.ndarray):
        name = value.dtype.name
        if not value.flags.c_contiguous:
            items, first, _ = memory(value)
            return f"np.ndarray({value.shape}, {name!r}, {_source(items, dtype)}, {first * value.itemsize}, {value.strides})"
        if value.size > 2 and not value.any() or not value.size:
            return f"np.zeros({value.shape}, {name!r})"
        return f"a({nested(value)})" if name == dtype and value.ndim else f"np.array({nested(value)}, {name!r})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_source(item, dtype)}" for key, item in value.items()) + "}"
    if isinstance(value, LayerConfig):
        plain = vars(LayerConfig(0, 0, 0, 0.0))
        sizes = ("in_features", "out_features", "rank", "alpha")
        shown = [f"{k}={_plain(v)}" for k, v in vars(value).items() if k in sizes or v != plain[k]]
        return f"LayerConfig({', '.join(shown)})"
    return _plain(value)


def _plain(value) -> str:
    """A number that is not finite has no literal."""
    if isinstance(value, Name):
        return value
    return f"float('{value}')" if isinstance(value, float) and not np.isfinite(value) else repr(value)
