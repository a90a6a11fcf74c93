"""Writes what failed with an adapter file as a script: it makes the files and repeats the calls. It uses this package."""

import json
from os import PathLike, fspath
from typing import Any

import ml_dtypes
import numpy as np

from conformance.record.script import nested
from conformance.subject import Call

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
Contents = dict[str, bytes]  # of the files of a folder by name, or of one file under ""


def script(calls: list[Call], files: dict[str, Contents], spec: str) -> str:
    """`files` are those that were loaded, by the path that the call had. Of what the subject itself saved there are none."""
    places: dict[str, str] = {}  # of a path: the variable that holds it
    lines, written = [], set()
    for number, call in enumerate(calls):
        args = []
        for arg in call.args:
            if isinstance(arg, PathLike):
                path = fspath(arg)
                name = places.setdefault(path, f"path{len(places) + 1 if places else ''}")
                if path not in written:
                    lines += _made(name, files.get(path) if call.method == "load" else None)
                    written.add(path)
                args.append(name)
            else:
                args.append(_source(arg))
        said = _called(call, args, number in (len(calls) - 1, _last(calls, "delta"), _last(calls, "base")))
        lines += [line for line in said if call.method != "build_loader" or line not in lines]  # the base is said once
    text = "\n".join(lines)
    head = ["import json", "import ml_dtypes", "import numpy as np", "from pathlib import Path", "from tempfile import mkdtemp",
            "from conformance import load", "from conformance.files.binary import safetensors"]
    used = {"json": "json.", "ml_dtypes": "bfloat16", "safetensors": "safetensors(", "tempfile": "mkdtemp", "pathlib": "Path("}
    kept = [line for line in head if all(word not in line or use in text for word, use in used.items())]
    return "\n".join([*kept, f"subject = load({spec!r})", text])


def _last(calls: list[Call], method: str) -> int:
    return max((number for number, call in enumerate(calls) if call.method == method), default=-1)


def _called(call: Call, args: list[str], shown: bool) -> list[str]:
    """The lines of the call. An answer that matters is printed, and so is what was saved at the end. An error that does not end
    the script is caught."""
    if call.method == "build_loader":
        return [f"base = {args[0]}", f"kinds = {args[1]}", f"{call.layer} = subject.build_loader(base, kinds)"]
    text = f"{call.layer}.{call.method}({', '.join(args)})"
    if call.raised and not shown:
        return ["try:", f"    {text}", "except Exception as error:", "    print(error)"]
    if call.method == "save" and shown and not call.raised:
        return [text, f"for file in sorted({args[0]}.iterdir()): print(file.name, file.read_bytes())"]
    reads = call.method in ("delta", "base") and shown and not call.raised
    return [f"print({{name: array.tolist() for name, array in {text}.items()}})" if reads else text]


def _made(name: str, contents: Contents | None) -> list[str]:
    """The lines that make a path and what is in it."""
    lines = [f"{name} = Path(mkdtemp())"]
    if contents is None:
        return lines
    if "" in contents:  # a file
        return [*lines, f"{name} /= 'adapter.safetensors'", f"{name}.write_bytes({_bytes(contents[''])})"]
    return [*lines, *(f"({name} / {file!r}).write_bytes({_bytes(content)})" for file, content in contents.items())]


def _bytes(content: bytes) -> str:
    """Source of the bytes: of settings and tensors as such, and of what is neither as it stands."""
    try:
        said = json.loads(content)
        if json.dumps(said, indent=1).encode() == content:
            return f"json.dumps({said!r}, indent=1).encode()"
    except (ValueError, RecursionError):
        pass
    tensors = _tensors(content)
    return repr(content) if tensors is None else f"safetensors({tensors})"


def _tensors(content: bytes) -> str | None:
    """Source of the tensors and the metadata of a whole safetensors file, in the order of their numbers. Otherwise None."""
    length = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + length])
        metadata, body, at, said = header.pop("__metadata__", None), content[8 + length :], 0, []
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            dtype = np.dtype(ml_dtypes.bfloat16 if entry["dtype"] == "BF16" else DTYPES[entry["dtype"]])
            array = np.frombuffer(body[begin:end], dtype).reshape(entry["shape"])
            if begin != at:
                return None
            at = end
            said.append(f"{name!r}: {_source(array)}")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return None if at != len(body) else "{" + ", ".join(said) + "}" + (f", {metadata!r}" if metadata else "")


def _source(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_source(item)}" for key, item in value.items()) + "}"
    return f"np.array({nested(value)}, {value.dtype.name!r})" if isinstance(value, np.ndarray) else repr(value)
