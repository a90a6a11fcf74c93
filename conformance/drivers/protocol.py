"""The messages between the harness and an implementation in another process, and a server for implementations in Python.

PROTOCOL.md describes the protocol in full, and protocol.schema.json is its JSON schema. Each message is one line with a JSON
object: a request on the program's standard input, one answer to it on its standard output.

    {"id":7,"method":"forward","layer":1,"x":{"shape":[1,2],"dtype":"float32","data":"AACAPwAAAEA="}}
    {"id":7,"result":{"shape":[1,1],"dtype":"float32","data":"AABAQA=="}}

Both sides use `encode` and `decode`. `serve` makes a program of a Subject, for instance in another interpreter.
"""

import base64
import collections
import inspect
import json
import math
import os
from dataclasses import asdict
from typing import Any

import ml_dtypes
import numpy as np

from conformance.loader import Loader
from conformance.model import Model, ModelConfig
from conformance.record.script import Name, memory
from conformance.subject import Call, Layer, LayerConfig, Subject, Unsupported

VERSION = 1
REMEMBERED = 64  # the number of arrays, handed over last, whose later changes are reported
DTYPES = {dtype.name: dtype for dtype in map(np.dtype, (
    np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.longdouble, np.bool_, np.int8, np.int16, np.int32, np.int64,
    np.uint8, np.uint16, np.uint32, np.uint64))}
WORDS = 2000  # characters of a message that a subject wrote
WIRE = {"weight": "W", "bias": "b"}  # parameters of `build` that have other names in a message


def encode(value: Any, strided: bool = False) -> Any:
    """An argument or an answer as JSON can hold it. With `strided`, arrays keep their layout in memory. Raises TypeError for
    anything that a message cannot hold."""
    if isinstance(value, np.ndarray):
        return _array(value, strided)
    if isinstance(value, LayerConfig | ModelConfig):
        value = asdict(value)
    if isinstance(value, dict):
        return {str(key): encode(item, strided) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [encode(item, strided) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return {np.inf: "Infinity", -np.inf: "-Infinity"}.get(value, "NaN")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} is nothing that a message can hold")


def decode(value: Any, plain: bool = False) -> Any:
    """The value that `encode` encoded. Arrays are new copies, and lists become tuples. With `plain`, arrays must lie in order,
    as those of an answer do. Raises ValueError, TypeError or KeyError for an array that is not what it says."""
    if isinstance(value, list):
        return tuple(decode(item, plain) for item in value)
    if not isinstance(value, dict):
        return value
    if "data" not in value or "dtype" not in value:
        return {key: decode(item, plain) for key, item in value.items()}
    name, shape, data = value["dtype"], value["shape"], base64.b64decode(value["data"], validate=True)
    if name not in DTYPES or plain and name == np.dtype(np.longdouble).name:  # its size depends on the machine
        raise ValueError(f"dtype {str(name)[:80]!r}, expected one of {', '.join(DTYPES)}")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"shape {str(shape)[:80]}, expected a list of whole numbers, none below 0")
    dtype = DTYPES[name]
    if "strides" in value and not plain:
        strides = tuple(stride * dtype.itemsize for stride in value["strides"])
        array = np.ndarray(tuple(shape), dtype, bytearray(data), value["first"] * dtype.itemsize, strides)
        array.flags.writeable = value["writeable"]
        return array
    if math.prod(shape) * dtype.itemsize != len(data) or "strides" in value:
        wanted = math.prod(shape) * dtype.itemsize
        raise ValueError(f"{len(data)} bytes of data, expected {wanted}: shape {str(shape)[:80]}, {name}")
    return np.frombuffer(bytearray(data), dtype).reshape(shape)


def _array(array: np.ndarray, strided: bool) -> dict:
    if isinstance(array, np.ma.MaskedArray) or DTYPES.get(array.dtype.name) != array.dtype:
        raise TypeError(f"an array of {array.dtype} is nothing that a message can hold")
    message = {"shape": list(array.shape), "dtype": array.dtype.name}
    plain = array.flags.c_contiguous and array.flags.writeable
    if plain or not strided or any(stride % array.itemsize for stride in array.strides):
        return message | {"data": base64.b64encode(array.tobytes()).decode()}
    items, first, strides = memory(array)
    more = {"strides": list(strides), "first": first, "writeable": array.flags.writeable}
    return message | {"data": base64.b64encode(items.tobytes()).decode()} | more


def parameters(kind: type, method: str, args: tuple) -> dict[str, Any]:
    """The arguments of a method of Layer, Model, Loader or Subject, under their names in a message."""
    bound = inspect.signature(getattr(kind, method)).bind(None, *args)
    bound.apply_defaults()
    return {WIRE.get(name, name): value for name, value in list(bound.arguments.items())[1:]}


def about(subject: Subject) -> dict:
    """What a process says about its subject. A subject that is no Subject by class may lack some of it."""
    own = {name: getattr(subject, name, getattr(Subject, name)) for name in (
        "name", "version", "scale", "alpha", "rank", "square", "scale_argument", "freezes", "methods")}
    more = {"compensates": dict(subject.compensates)} if getattr(subject, "compensates", {}) else {}
    return own | {"methods": list(own["methods"]), "models": offers_models(subject), "loaders": offers_loaders(subject)} | more


def offers_models(subject: Subject) -> bool:
    return getattr(subject, "models", getattr(type(subject), "build_model", Subject.build_model) is not Subject.build_model)


def offers_loaders(subject: Subject) -> bool:
    own = getattr(type(subject), "build_loader", Subject.build_loader)
    return getattr(subject, "loaders", own is not Subject.build_loader)


def numbers(config: dict) -> dict:
    """The configuration with "NaN" and "Infinity" as numbers."""
    return {key: _number(value) for key, value in config.items()}


def _number(value: Any) -> Any:
    return float(value) if value in ("NaN", "Infinity", "-Infinity") else value


def serve(subject: Subject) -> None:
    """Answers requests until standard input ends. What the subject prints goes to standard error."""
    requests, answers = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    server = _Server(subject)
    for line in requests:
        request = json.loads(line)
        answers.write(json.dumps({"id": request["id"]} | server.answer(request)) + "\n")
        answers.flush()


class _Server:
    """Answers requests. It keeps the program's layers, models and loaders, under the numbers that the harness gave them."""

    def __init__(self, subject: Subject):
        self.subject = subject
        self.layers: dict[int, Layer | Model | Loader] = {}
        self.handed: collections.deque = collections.deque(maxlen=REMEMBERED)

    def answer(self, request: dict) -> dict:
        try:
            result = {"result": encode(self.do(request))}
        except Unsupported as reason:
            result = {"unsupported": str(reason)}
        except SystemExit:
            raise
        except Exception as error:
            result = {"error": str(error), "type": type(error).__name__}
        changed = self.changed()
        return result | ({"changed": changed} if changed else {})

    def do(self, request: dict) -> Any:
        given = {key: value for key, value in request.items() if key not in ("id", "method", "layer")}
        method, number = request["method"], request.get("layer", 0)
        if method == "hello":
            return self.hello()
        if method == "forget":
            self.layers.pop(number, None)
            return None
        if method == "script":
            return self.subject.script([self.call(call) for call in given["calls"]], given["spec"])
        arguments = {name: _number(value) if name in ("alpha", "lr") else value for name, value in decode(given).items()}
        if "weights" in arguments:
            arguments["weights"] = numbers(arguments["weights"])
        for name, value in arguments.items():
            found = value.items() if isinstance(value, dict) else [("", value)]
            self.handed += [[request["id"], name, key, array, array.tobytes()] for key, array in found
                            if isinstance(array, np.ndarray)]
        if method == "build":
            config = LayerConfig(**numbers(arguments["config"]))
            self.layers[number] = self.subject.build(config, arguments["W"], arguments["b"])
            return None
        if method == "build_model":
            config = ModelConfig(**numbers(arguments["config"]))
            self.layers[number] = self.subject.build_model(config, arguments["arrays"])
            return None
        if method == "build_loader":
            self.layers[number] = self.subject.build_loader(arguments["base"], arguments["kinds"])
            return None
        return getattr(self.layers[number], method)(**arguments)

    def hello(self) -> dict:
        return {"protocol": VERSION, "strided": True} | about(self.subject)

    def call(self, told: dict) -> Call:
        """The Call that a request describes, for Subject.script."""
        request = told["request"]
        arguments = decode({key: value for key, value in request.items() if key not in ("method", "layer")})
        if "config" in arguments:
            arguments["config"] = LayerConfig(**numbers(arguments["config"]))
        args = tuple(Name(value) if key == "directory" else value for key, value in arguments.items())
        target = self.layers.get(request["layer"])
        method, answer = request["method"], decode(told["answer"])
        return Call(told["name"], method, args, answer, told["raised"], target, told["shown"], told["changed"])

    def changed(self) -> list[dict]:
        """The arrays among the last arguments that have changed since they were handed over or last reported."""
        found = []
        for entry in self.handed:
            id, name, key, array, before = entry
            if array.tobytes() != before:
                entry[-1] = array.tobytes()
                found.append({"id": id, "argument": name, "key": key, "value": encode(array)})
        return found


def program(name: str) -> None:
    """Serves a built-in subject. This runs in the environment of the subject."""
    import importlib

    serve(importlib.import_module(f"conformance.subjects.{name}").subject())
