"""Writes a failure as a script of a few lines: selects the calls that it needs, and writes them with this package. For PyTorch
layers, torch_script.py writes a script that does not need this package."""

import ast
import textwrap
from contextlib import suppress

import numpy as np

from conformance.subject import Call, LayerConfig

READINGS = ("adapter", "trainable", "weight", "bias")  # methods that change nothing
CHANGES = (
    "set_adapter", "step", "load", "merge", "unmerge", "train", "add_adapter", "remove_adapter", "activate", "combine",
)  # methods after which a reading may give another answer
WIDTH = 100  # of a line


class Name(str):
    """The variable that stands for an argument."""


class Odd:
    """Stands for an answer of a process that is nothing a message can hold. `words` say what it is."""

    def __init__(self, words: str):
        self.words = words


def told(calls: list[Call]) -> list[Call]:
    """The calls without the readings that a script does not need. `shown` is set where the script must print the answer: for an
    output from which no gradient is taken, for the last gradients, for a reading at the end, and for a reading that differs
    from the next one although no call between them should change it. Directories get names."""
    found, directories = [], {}
    for i, call in enumerate(calls):
        later = calls[i + 1 :]
        same_layer = [c for c in later if c.layer == call.layer]
        if call.method in READINGS:
            after = [c for c in same_layer if c.method == call.method or c.method in CHANGES and not c.raised]
            if any(c.method == call.method for c in after):  # it is read again
                needed = after[0].method == call.method and bits(after[0].answer) != bits(call.answer)
            else:
                needed = all(c.method in READINGS for c in later)
            if not needed and not call.raised:
                continue
            shown = True
        elif call.method == "forward":
            shown = next((c.method for c in same_layer if c.method in ("forward", "backward")), "") != "backward"
        else:
            last = call.method == "backward" and all(c.method != "backward" for c in later)
            shown = last or call.method in ("forward_mixed", "as_module")
        paths = [str(arg) for arg in call.args if hasattr(arg, "__fspath__")]
        for path in paths:
            directories.setdefault(path, Name(f"directory{len(directories) + 1 if directories else ''}"))
        args = tuple(directories.get(str(arg), arg) if paths else arg for arg in call.args)
        found.append(call._replace(args=args, shown=shown))
    return found


def through_this_package(calls: list[Call], spec: str) -> str:
    """A script that uses this package. It can be written for every subject."""
    dtype = next(call.args[0].dtype for call in calls if call.method == "build")
    lines, config, changed = [], None, []
    for i, call in enumerate(calls):
        args, said = [_source(arg, dtype) for arg in call.args], []
        frozen = call.method in ("forward", "backward") and not call.args[0].flags.writeable
        if call.method != "build" and (call.changed or frozen):
            name = f"given{i}"
            said += [f"{name} = {args[0]}"] + [f"{name}.flags.writeable = False"] * frozen
            args = [name]
            changed += [name] * call.changed
        text = f"{call.layer}.{call.method}({', '.join(args)})"
        if call.method == "build":
            said += [f"config = {args[0]}"] * (args[0] != config)
            text = f"{call.layer} = subject.build({', '.join(['config', *args[1:]])})"
            config = args[0]
        said.append(_printed(text, call.answer, dtype) if call.shown and not call.raised else text)
        lines += caught("\n".join(said)) if call.raised and call is not calls[-1] else said
    lines += [f"print({name})" for name in changed]
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
    """The lines that catch and print an error. An error of the last call is not caught."""
    return ["try:", *textwrap.indent(text, "    ").splitlines(), "except Exception as error:", "    print(error)"]


def wrapped(script: str) -> str:
    """The script with long lines broken, where that does not change the meaning."""
    options = {"width": WIDTH, "break_long_words": False, "break_on_hyphens": False}
    lines = [textwrap.fill(line, subsequent_indent=" " * 8, **options) for line in script.splitlines()]
    broken = "\n".join(lines)
    with suppress(SyntaxError):
        return broken if ast.dump(ast.parse(broken)) == ast.dump(ast.parse(script)) else script
    return script


def number(value, whole: str = "") -> str:
    """Python source of a number, as short as its dtype allows. `whole` is appended to a number without a fraction."""
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
    """A copy of the stretch of memory that a view spans, the position of its first item, and its strides, counted in items."""
    strides = tuple(stride // array.itemsize for stride in array.strides)
    first = -sum(min(0, (n - 1) * stride) for n, stride in zip(array.shape, strides, strict=True))
    last = first + sum(max(0, (n - 1) * stride) for n, stride in zip(array.shape, strides, strict=True))
    items = np.zeros(last + 1, array.dtype)
    np.ndarray(array.shape, array.dtype, items, first * array.itemsize, array.strides)[...] = array
    return items, first, strides


def arrays(value):
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, dict | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from arrays(item)


def bits(value):
    """A form of the value in which two values are equal if their bits are."""
    if isinstance(value, np.ndarray):
        return value.shape, value.tobytes()
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    return [bits(item) for item in value] if isinstance(value, tuple) else value


def _printed(text: str, answer, dtype: str) -> str:
    """The statement that prints an answer: its numbers, or its repr if it is no array of the right dtype."""
    found = list(arrays(answer))
    whole = len(found) == (len(answer) if isinstance(answer, dict) else 1)
    if not whole or any(array.dtype.name != dtype or not array.size for array in found):
        return f"print(repr({text}))"
    if isinstance(answer, dict):
        return f"print({{name: array.tolist() for name, array in {text}.items()}})"
    return f"print({text}.tolist())"


def _source(value, dtype: str) -> str:
    """Python source of an argument. `a` makes an array of the dtype of the case."""
    if isinstance(value, np.ndarray):
        name = value.dtype.name
        if not value.flags.c_contiguous:
            items, first, _ = memory(value)
            return f"np.ndarray({value.shape}, {name!r}, {_source(items, dtype)}, {first * value.itemsize}, {value.strides})"
        if value.size > 2 and not value.any() or not value.size:
            return f"np.zeros({value.shape if value.ndim > 1 else value.size}, {name!r})"
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
    """Python source of a plain value. A number that is not finite has no literal, so it is written as float('…')."""
    if isinstance(value, Name):
        return value
    return f"float('{value}')" if isinstance(value, float) and not np.isfinite(value) else repr(value)
