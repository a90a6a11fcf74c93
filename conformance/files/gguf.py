"""GGUF adapters, as llama.cpp reads them. Clauses G-1 and G-2.

A file holds "GGUF", a version, and pairs of a key and a value. Then it has for each tensor its name, its dimensions from the
last to the first, its type and its place. Then come the numbers, each tensor at a multiple of the alignment.

Source: ggml-org/ggml, docs/gguf.md.
"""

import math
import os
import re
import struct
from typing import Any, BinaryIO

from conformance.files.clauses import Issue
from conformance.files.container import DTYPES, Container, Tensor
from conformance.files.meaning import Meaning, Other, Scale, pair, sort_out

MAGIC = b"GGUF"
NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
TYPES = {0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"}
MOST = 1 << 16  # keys, tensors, bytes of a name, items of an array
ROLES = re.compile(r"(.+)\.lora_(a|b)")


class Broken(ValueError):
    """The file ends early, or says what no file can mean."""


def is_one(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == MAGIC


def container(path: str) -> tuple[Container, dict[str, Any], list[Issue]]:
    """The tensors, and the keys with their values."""
    empty = Container(path, {}, {})
    try:
        with open(path, "rb") as file:
            return _read(path, file)
    except OSError as error:
        return empty, {}, [Issue("FILE-001", path, error.strerror or str(error))]
    except Broken as error:
        return empty, {}, [Issue("FILE-002", path, str(error))]
    except UnicodeDecodeError:
        return empty, {}, [Issue("FILE-003", path, "a name is not in UTF-8")]


def _read(path: str, file: BinaryIO) -> tuple[Container, dict[str, Any], list[Issue]]:
    size = os.fstat(file.fileno()).st_size
    if file.read(4) != MAGIC:
        raise Broken("it does not begin with GGUF")
    version, tensors, pairs = _number(file, "<I"), _number(file, "<Q"), _number(file, "<Q")
    if version not in (2, 3) or max(tensors, pairs) > MOST:
        found = f"version {version}, {tensors} tensors and {pairs} keys"
        raise Broken(f"{found}; expected version 2 or 3, and at most {MOST} of each")
    issues, keys, found = [], {}, {}
    for _ in range(pairs):
        name = _string(file)
        if name in keys:
            issues.append(Issue("FILE-005", name, "twice among the keys"))
        keys[name] = _value(file, _number(file, "<I"))
    entries = []
    for _ in range(tensors):
        name, dimensions = _string(file), _number(file, "<I")
        if dimensions > 8:
            raise Broken(f"{name[:80]} has {dimensions} dimensions")
        shape = tuple(reversed([_number(file, "<Q") for _ in range(dimensions)]))
        entries.append((name, shape, _number(file, "<I"), _number(file, "<Q")))
    align = keys.get("general.alignment", 32)
    if type(align) is not int or not 0 < align <= 1 << 20:
        raise Broken(f"general.alignment is {str(align)[:40]}")
    start = -(-file.tell() // align) * align
    for name, shape, kind, place in entries:
        if name in found:
            issues.append(Issue("FILE-005", name, "twice among the tensors"))
        elif kind not in TYPES:
            issues.append(Issue("FILE-008", name, f"type {kind} of ggml is not read here"))
        elif max(shape, default=0) >= 1 << 48 or start + place + math.prod(shape) * DTYPES[TYPES[kind]].itemsize > size:
            issues.append(Issue("FILE-004", name, f"{TYPES[kind]} of shape {shape} at {place} does not lie in the file"))
        else:
            found[name] = Tensor(name, TYPES[kind], shape, start + place)
    return Container(path, found, {}), keys, issues


def _exactly(file: BinaryIO, count: int) -> bytes:
    got = file.read(count)
    if len(got) < count:
        raise Broken("it ends in the middle of its header")
    return got


def _number(file: BinaryIO, form: str) -> Any:
    return struct.unpack(form, _exactly(file, struct.calcsize(form)))[0]


def _string(file: BinaryIO) -> str:
    length = _number(file, "<Q")
    if length > MOST:
        raise Broken(f"a name of {length} bytes")
    return _exactly(file, length).decode()


def _value(file: BinaryIO, kind: int, depth: int = 0) -> Any:
    if kind in NUMBERS:
        return _number(file, NUMBERS[kind])
    if kind == STRING:
        return _string(file)
    if kind != ARRAY or depth > 2:
        raise Broken(f"a value of type {kind}")
    inner, count = _number(file, "<I"), _number(file, "<Q")
    if count > MOST:
        raise Broken(f"an array of {count} items")
    return [_value(file, inner, depth + 1) for _ in range(count)]


def read(path: str) -> Meaning:
    """What the file says."""
    meaning = Meaning("GGUF", path)
    held, keys, issues = container(path)
    meaning.issues += issues
    if not held.tensors and issues:
        return meaning
    for key, expected in (("general.type", "adapter"), ("adapter.type", "lora")):
        if keys.get(key) != expected:
            meaning.say("FILE-014", key, f"{str(keys.get(key))[:40]!r}, expected {expected!r}")
    alpha = keys.get("adapter.lora.alpha", 0.0)
    if type(alpha) not in (int, float):
        meaning.say("FILE-013", "adapter.lora.alpha", f"{str(alpha)[:40]}, expected a number")
        return meaning
    if keys.get("adapter.alora.invocation_tokens"):
        meaning.say("FILE-011", "adapter.alora.invocation_tokens", "the adapter is to be used after these tokens alone")
    meaning.settings = {key: keys[key] for key in ("general.architecture", "adapter.lora.alpha") if key in keys}
    if not alpha:
        meaning.say("FILE-032", "adapter.lora.alpha", "absent or 0: the scale is 1")

    def roles(name: str) -> tuple[str, str] | None:
        if name.endswith("_norm.weight"):
            return name, "norm"
        found = ROLES.fullmatch(name)
        return found and (found[1], found[2].upper())

    def scale(module: str, rank: int) -> Scale:
        return Scale(alpha / rank, f"adapter.lora.alpha {alpha:g} / {rank}") if alpha else Scale(1.0, "alpha is 0")

    for module, all_of in sort_out(meaning, held, roles).items():
        if "norm" in all_of:
            meaning.others.append(Other(module, "a whole weight, which llama.cpp leaves out"))
            meaning.say("FILE-050", module, "a whole weight, which llama.cpp leaves out")
            continue
        if module.endswith("token_embd.weight"):  # A is stored as (rows, rank): llama.cpp takes a row of it for each token
            pair(meaning, held, module, all_of, scale, (False, False), kind="embedding")
        else:
            pair(meaning, held, module, all_of, scale, (True, False))
    return meaning
