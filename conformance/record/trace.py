"""Wraps a subject for a requirement. It records every call, so that a failure can be shown as a script of a few lines. It
checks the type of every answer, and tells an exception of the subject from a fault of the harness."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from conformance.loader import Loader
from conformance.model import Model, ModelConfig
from conformance.record import loader_script
from conformance.record.script import Odd, arrays, bits, memory, through_this_package, told, wrapped
from conformance.subject import Call, Layer, LayerConfig, Subject, Unsupported
from conformance.truth.case import DTYPES
from conformance.truth.compare import Mismatch, expect

_ANSWERS = {
    "adapter": dict, "arrays": dict, "as_module": dict, "base": dict, "backward": dict, "delta": dict,
    "trainable": dict,
    "forward": np.ndarray, "forward_mixed": np.ndarray, "weight": np.ndarray, "bias": (np.ndarray, type(None)),
}
MAX_SCRIPT_ELEMENTS = 400
BASES = ("none", "full")  # models that are built without a method to test


class SubjectError(Exception):
    """The subject raised an exception: `error`, in the call `call`."""

    def __init__(self, call: str, error: BaseException):
        self.call, self.error = call, error
        # Whether it is no refusal: the subject has ended, was stopped, or said what nobody can read.
        self.broke = isinstance(error, SystemExit) or getattr(error, "broke", False)
        super().__init__(f"{call} raised {type(error).__name__}: {error}")


def refuses(action, *args) -> bool:
    """Whether the call raises an error: some requirements accept, or demand, a refusal."""
    try:
        action(*args)
    except SubjectError as error:
        if error.broke:
            raise
        return True
    return False


class Traced(Subject):
    """A subject that records the calls to all its layers, in one list for the whole case."""

    def __init__(self, subject: Subject, record: bool = True):
        """Without `record` the arguments are not copied, and no script can be made."""
        self._subject, self._record = subject, record
        self.name, self.scale = getattr(subject, "name", ""), getattr(subject, "scale", None)
        self.alpha, self.scale_argument = getattr(subject, "alpha", None), getattr(subject, "scale_argument", "")
        self.square, self.rank = getattr(subject, "square", False), getattr(subject, "rank", None)
        self.freezes, self.methods = getattr(subject, "freezes", ""), tuple(getattr(subject, "methods", Subject.methods))
        self._layers: dict[str, Layer | None] = {}
        self.calls: list[tuple[Call, tuple]] = []  # with the arguments themselves, to see whether they change
        self.files: dict[str, dict[str, bytes]] = {}  # what loaders were given to read, by path
        self.elements = 0  # numbers in all arrays handed over; a script with too many is unreadable

    def build(self, config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None) -> "TracedLayer":
        self._offered(config.method)
        alpha = self.alpha if self.scale is None else self.scale * config.rank
        other = alpha is not None and (config.scaling, config.alpha) != ("standard", alpha)
        if other and isinstance(config.rank, int) and config.rank > 0:  # the implementation must refuse a bad rank itself
            fixed = f"{self.alpha:g} / rank" if self.scale is None else f"{self.scale:g}"
            raise Unsupported(f"alpha {config.alpha:g} with {config.scaling} scaling: the scale is always {fixed}")
        name = f"layer{len(self._layers) + 1 if self._layers else ''}"
        self._layers[name] = None
        layer = TracedLayer(self, name)
        layer._layer = self._layers[name] = self._ask(f"{name}.build", self._subject.build, (config, weight, bias), Layer)
        self.calls[-1:] = [(call._replace(target=layer._layer), args) for call, args in self.calls[-1:]]
        return layer

    def build_model(self, config: ModelConfig, arrays: dict[str, np.ndarray]) -> "TracedModel":
        """Builds a model. No script is made of its calls: it has more numbers than a script can show."""
        if config.method not in BASES:
            self._offered(config.method)
        self.elements = MAX_SCRIPT_ELEMENTS + 1
        name = f"model{len(self._layers) + 1 if self._layers else ''}"
        self._layers[name] = None
        model = TracedModel(self, name)
        model._layer = self._ask(f"{name}.build_model", self._subject.build_model, (config, arrays), Model)
        return model

    def build_loader(self, base: dict[str, np.ndarray], kinds: dict[str, str]) -> "TracedLoader":
        name = f"loader{len(self._layers) + 1 if self._layers else ''}"
        self._layers[name] = None
        loader = TracedLoader(self, name)
        made = self._ask(f"{name}.build_loader", self._subject.build_loader, (base, kinds), Loader)
        loader._layer = self._layers[name] = made
        return loader

    def _offered(self, method: str) -> None:
        if method not in self.methods:
            reason = Unsupported(f"the method {method}")
            reason.method = "build"
            raise reason

    def _ask(self, label: str, action, args: tuple, answer=None) -> Any:
        """Makes the call and records it. `label` is the layer's name, a point and the method's name."""
        name, method = label.split(".")
        readable = self._record
        if readable:
            self.elements += sum(a.size for a in arrays(args))
            readable = self.elements <= MAX_SCRIPT_ELEMENTS
        if readable and method == "load" and isinstance(self._layers[name], Loader):
            self.files[str(args[0])] = contents(Path(args[0]))
        call = Call(name, method, _copied(args), None, False, self._layers[name]) if readable else None
        raised, result = True, None
        try:
            result = action(*args)
            raised = False
        except Unsupported as reason:
            call = None  # the call is not recorded
            reason.method = method
            raise
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # also what a search uses to end itself
            raise SubjectError(f"{method}()", error) from error
        finally:
            np.seterr(all="ignore")  # the subject may have changed it
            if call is not None:
                self.calls.append((call._replace(answer=_copied(result), raised=raised), args))
        if isinstance(result, Odd) or answer is not None and not isinstance(result, answer):
            want = " or ".join(t.__name__ for t in (answer if isinstance(answer, tuple) else (answer,)) if t)
            raise Mismatch(f"what {method}() returns", _called(result), want or "nothing (None)")
        return _kept(method, result)

    def script(self, spec: str) -> str | None:  # type: ignore[override] the calls are its own
        """The calls as a Python script: the subject's own if it writes one, and otherwise one that uses this package. None if
        it would be too long."""
        if self.elements > MAX_SCRIPT_ELEMENTS or not self.calls:
            return None
        calls = told([call._replace(changed=bits(call.args) != bits(args)) for call, args in self.calls])
        own = None
        if any(call.method == "build_loader" for call, _ in self.calls):
            return wrapped(loader_script.script([call for call, _ in self.calls], self.files, spec))
        with suppress(Exception, SystemExit):  # a report must not fail here; and a subject need not have `script`
            own = self._subject.script(calls, spec)
        return wrapped(own or through_this_package(calls, spec))


def contents(path: Path) -> dict[str, bytes]:
    """The files of a folder by name, or one file under ""."""
    if path.is_dir():
        return {entry.name: entry.read_bytes() for entry in sorted(path.iterdir())}
    return {"": path.read_bytes()} if path.exists() else {}


class TracedModel(Model):
    """Passes every method of Model on to the subject's model."""

    _layer: Model

    def __init__(self, subject: Traced, name: str):
        self._subject, self._name = subject, name


class TracedLoader(Loader):
    """Passes every method of Loader on to the subject's loader."""

    _layer: Loader

    def __init__(self, subject: Traced, name: str):
        self._subject, self._name = subject, name


class TracedLayer(Layer):
    """Passes every method of Layer on to the subject's layer."""

    _layer: Layer

    def __init__(self, subject: Traced, name: str):
        self._subject, self._name = subject, name


def _called(value) -> str:
    if isinstance(value, Odd):
        return value.words
    return "nothing (None)" if value is None else type(value).__name__


def _kept(method: str, result):
    """A copy of an answer, since a layer may use its buffers again. Raises a Mismatch unless its numbers are real floats."""
    if isinstance(result, np.ndarray):
        return _numbers(f"what {method}() returns", result)
    if not isinstance(result, dict):
        return result
    strange = [key for key in result if not isinstance(key, str)]
    expect(not strange, f"keys of what {method}() returns", strange, "names")
    if method == "trainable":
        for key, shape in result.items():
            plain = isinstance(shape, tuple) and all(type(n) is int for n in shape)
            expect(plain, f"what trainable() gives for {key!r}", shape, "a shape")
        return dict(result)
    if method == "adapter":
        expect({"A", "B"} <= set(result), "keys of what adapter() returns", sorted(result), ["A", "B"])
    if method == "as_module":
        return {key: _numbers(f"{key} of as_module()", fact) if isinstance(fact, np.ndarray) else fact
                for key, fact in result.items()}
    for key, array in result.items():
        expect(isinstance(array, np.ndarray), f"what {method}() gives for {key!r}", _called(array), "ndarray")
    return {key: _numbers(f"what {method}() gives for {key!r}", array) for key, array in result.items()}


def _numbers(what: str, array: np.ndarray) -> np.ndarray:
    expect(not isinstance(array, np.ma.MaskedArray), what, "a masked array", "an array without a mask")
    real = array.dtype.isnative and array.dtype.kind == "f" or array.dtype in DTYPES.values()
    expect(real, f"dtype of {what}", array.dtype, "a real floating-point dtype")
    return np.array(array, subok=False)


def _passed_on(method: str):
    def ask(self: TracedLayer | TracedModel | TracedLoader, *args):
        return self._subject._ask(f"{self._name}.{method}", getattr(self._layer, method), args, _ANSWERS.get(method))

    return ask


for _kind, _traced in (Layer, TracedLayer), (Model, TracedModel), (Loader, TracedLoader):
    for _method in [name for name, value in vars(_kind).items() if callable(value) and not name.startswith("_")]:
        setattr(_traced, _method, _passed_on(_method))


def _copied(value) -> Any:
    """A copy of a value. Arrays keep their strides."""
    if isinstance(value, np.ndarray):
        copy = value.copy()
        if not value.flags.c_contiguous and not any(stride % value.itemsize for stride in value.strides):
            items, first, _ = memory(value)
            copy = np.ndarray(value.shape, value.dtype, items, first * value.itemsize, value.strides)
        copy.flags.writeable = value.flags.writeable
        return copy
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return tuple(map(_copied, value)) if isinstance(value, tuple) else value
