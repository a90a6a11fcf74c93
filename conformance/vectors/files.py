"""How vectors and results lie on the disk.

    manifest.json              version, seed, and the SHA-256 of every other file
    forward.json, …            the vectors of one operation, and what the operation does
    vectors.txt                the same vectors without what only people read, one array a line, for languages without JSON
    vectors.schema.json        the JSON Schema of these files; results.schema.json is that of a file of results
"""

import hashlib
import json
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from conformance import __version__
from conformance.requirements import Requirement, all_requirements
from conformance.truth.case import DTYPES
from conformance.vectors import FORMAT, layer, methods, prefixes
from conformance.vectors.vector import Answer, Interval, Vector

MANIFEST, TEXT = "manifest.json", "vectors.txt"
SCHEMAS = ("vectors.schema.json", "results.schema.json")
OPERATIONS = layer.OPERATIONS | methods.OPERATIONS | prefixes.OPERATIONS


@cache
def requirements() -> dict[str, Requirement]:
    """By id."""
    return {requirement.id: requirement for requirement in all_requirements()}


def spelled(array: np.ndarray) -> dict[str, Any]:
    """The array in decimal and as bits: for each number, the hexadecimal digits of its IEEE 754 bits, the sign first."""
    size = array.dtype.itemsize
    bits = np.ascontiguousarray(array).view(f"u{size}")
    return {"dtype": array.dtype.name, "shape": list(array.shape), "values": [decimal(number) for number in array.ravel()],
            "bits": "".join(f"{int(number):0{2 * size}x}" for number in bits.ravel())}


def decimal(number: np.generic) -> float | int | str:
    """The shortest decimal number that float64 reads as this number; "NaN" and so on for what JSON cannot write."""
    value = float(number)
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return int(value) if value == int(value) and abs(value) < 2**53 else value


def array_of(spelt: dict[str, Any]) -> np.ndarray:
    """The array that `spelled` wrote, from its bits. Raises ValueError or KeyError for what is none."""
    dtype, bits = DTYPES[spelt["dtype"]], bytes.fromhex(spelt["bits"])
    return np.frombuffer(bits, np.dtype(f">u{dtype.itemsize}")).astype(f"u{dtype.itemsize}").view(dtype).reshape(spelt["shape"])


def as_dict(vector: Vector) -> dict[str, Any]:
    requirement = requirements()[vector.requirement]
    return {
        "id": vector.id, "requirement": vector.requirement, "level": requirement.level, "note": requirement.why,
        "dtype": vector.dtype, "settings": vector.settings,
        "given": {name: spelled(array) for name, array in vector.given.items()},
        "answers": {name: _answer(answer) for name, answer in vector.answers.items()},
        "kills": list(vector.kills), "nearest": vector.nearest, "power": vector.power,
    }


def _answer(answer: Answer) -> dict[str, Any]:
    if answer.exact:
        return {"equal": spelled(answer.accepted.low)}
    pairs = {"accepted": answer.accepted, "certified": answer.certified}
    return {name: {"low": spelled(pair.low), "high": spelled(pair.high)} for name, pair in pairs.items()}


def vector_of(said: dict[str, Any], operation: str) -> Vector:
    """The vector that `as_dict` wrote. Raises ValueError or KeyError for what is none."""
    answers = {}
    for name, spelt in said["answers"].items():
        if "equal" in spelt:
            equal = array_of(spelt["equal"])
            answers[name] = Answer(Interval(equal, equal), Interval(*[equal.astype(np.float64)] * 2))
        else:
            answers[name] = Answer(*(Interval(*(array_of(spelt[part][side]) for side in ("low", "high")))
                                     for part in ("accepted", "certified")))
    given = {name: array_of(spelt) for name, spelt in said["given"].items()}
    return Vector(said["id"], said["requirement"], operation, said["dtype"], said["settings"], given, answers,
                  tuple(said["kills"]), said["nearest"], said["power"])


def contents(vectors: list[Vector], seed: int) -> dict[str, bytes]:
    """All files of a set of vectors, by name."""
    found: dict[str, bytes] = {}
    for operation in OPERATIONS:
        of = [vector for vector in vectors if vector.operation == operation]
        if of:
            head = {"format": FORMAT, "operation": operation, "does": OPERATIONS[operation]}
            sentences = {id: requirements()[id].sentence for id in sorted({vector.requirement for vector in of})}
            rows = ",\n".join(json.dumps(as_dict(vector), ensure_ascii=False, allow_nan=False) for vector in of)
            start = json.dumps(head | {"requirements": sentences}, ensure_ascii=False, indent=1)[:-2]
            found[f"{operation}.json"] = f'{start},\n "vectors": [\n{rows}\n]}}\n'.encode()
    ordered = sorted(vectors, key=lambda vector: list(OPERATIONS).index(vector.operation))
    found[TEXT] = ("\n".join(line for vector in ordered for line in _lines(vector)) + "\n").encode()
    for name in SCHEMAS:
        found[name] = (Path(__file__).parent / name).read_bytes()
    listed = {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in sorted(found.items())}
    head = {"format": FORMAT, "conformance": __version__, "seed": seed, "vectors": len(vectors), "set": set_of(listed)}
    found[MANIFEST] = (json.dumps(head | {"files": listed}, indent=1) + "\n").encode()
    return found


def set_of(listed: dict[str, dict]) -> str:
    """The name of a set of vectors: a hash of all its files."""
    return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()[:16]


def _lines(vector: Vector) -> Iterator[str]:
    """The vector as lines of words that are divided by one space each. docs/vectors.md describes them."""
    yield f"vector {vector.id} {vector.operation} {vector.dtype}"
    for name, value in vector.settings.items():
        if isinstance(value, dict):
            yield from (f"set {name}.{key} {_word(one)}" for key, one in value.items())
        else:
            yield f"set {name} {_word(value)}"
    for name, array in vector.given.items():
        yield _line("give", name, array)
    for name, answer in vector.answers.items():
        if answer.exact:
            yield _line("equal", name, answer.accepted.low)
        else:
            yield _line("low", name, answer.accepted.low)
            yield _line("high", name, answer.accepted.high)
    yield "end"


def _line(word: str, name: str, array: np.ndarray) -> str:
    return " ".join([word, name, *map(str, (array.ndim, *array.shape)), *(str(decimal(number)) for number in array.ravel())])


def _word(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(int(value)) if isinstance(value, bool) else str(value)


def read(folder: Path) -> tuple[dict[str, Any], list[Vector]]:
    """The manifest and the vectors of a folder. Raises ValueError for what is no set of vectors."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = [folder / f"{operation}.json" for operation in OPERATIONS if f"{operation}.json" in manifest["files"]]
        said = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']}, expected {FORMAT}: export the vectors again")
        return manifest, [vector_of(one, file["operation"]) for file in said for one in file["vectors"]]
    except FileNotFoundError as error:
        raise ValueError(f"{folder} holds no vectors: there is no {error.filename}") from error
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder} holds no vectors that can be read: {type(error).__name__}: {error}") from error
