"""The bytes of a safetensors file: a header of names, dtypes, shapes and places, then the numbers.

Nothing is believed: a header may be cut off, enormous, or lie about places. What is wrong becomes an issue, never a crash.
Arrays are read by slices, so that a file of gigabytes needs little memory.

Source: huggingface/safetensors, README, Format.
"""

import json
import math
import os
from collections.abc import Iterator
from typing import NamedTuple

import ml_dtypes
import numpy as np

from conformance.files.clauses import Issue

LONGEST = 100_000_000  # bytes of a header, as in safetensors
SLICE = 1 << 24  # bytes that are read at a time
DTYPES = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"), "U8": np.dtype("u1"),
    "U16": np.dtype("<u2"), "U32": np.dtype("<u4"), "U64": np.dtype("<u8"), "BOOL": np.dtype("?"),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn), "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")
FLOATS = ("F64", "F32", "F16", "BF16")


class Tensor(NamedTuple):
    name: str
    dtype: str  # a key of DTYPES
    shape: tuple[int, ...]
    begin: int  # of its bytes, from the beginning of the file

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class Container(NamedTuple):
    """The tensors of a file, by name, and its metadata."""

    path: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    def array(self, name: str) -> np.ndarray:
        """A whole tensor. For small ones."""
        tensor = self.tensors[name]
        return np.concatenate([np.empty(0, DTYPES[tensor.dtype]), *self.slices(name)]).reshape(tensor.shape)

    def slices(self, name: str) -> Iterator[np.ndarray]:
        """The numbers of a tensor in row-major order, a part at a time."""
        tensor = self.tensors[name]
        dtype = DTYPES[tensor.dtype]
        with open(self.path, "rb") as file:
            file.seek(tensor.begin)
            left = tensor.size
            while left:
                part = np.fromfile(file, dtype, min(left, SLICE // dtype.itemsize))
                if not part.size:
                    raise OSError(f"{self.path} has become shorter")
                left -= part.size
                yield part


class Twice(ValueError):
    """A name that occurs twice in a JSON object."""


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        raise Twice(next(name for name, _ in pairs if name in seen or seen.add(name)))
    return found


def loads(text: bytes | str) -> object:
    """What JSON says. Raises Twice for a name that occurs twice, and ValueError for what is no JSON, NaN and Infinity too."""
    def refuse(word: str):
        raise ValueError(f"{word} is no JSON")

    def number(digits: str) -> float:
        found = float(digits)
        return found if math.isfinite(found) else refuse(digits)

    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=refuse, parse_float=number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read(path: str) -> tuple[Container, list[Issue]]:
    """The header of the file. A file that is no safetensors file has no tensors, and an issue that says why."""
    empty = Container(path, {}, {})
    if os.path.exists(path) and not os.path.isfile(path):
        return empty, [Issue("FILE-001", path, "it is no file")]
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > min(LONGEST, size - 8):
                if start.startswith(PICKLES):  # the length of a true header may begin so, too
                    return empty, [Issue("FILE-007", path, "it begins as a pickle, or as a zip archive of torch.save, does")]
                words = f"a header of {length} bytes is announced; the file has {size}, and a header at most {LONGEST}"
                return empty, [Issue("FILE-002", path, words)]
            said = file.read(length)
    except OSError as error:
        return empty, [Issue("FILE-001", path, error.strerror or str(error))]
    try:
        header = loads(said.decode())
    except Twice as error:
        return empty, [Issue("FILE-005", str(error), "twice in the header")]
    except ValueError as error:
        return empty, [Issue("FILE-003", path, f"the header is no JSON: {error}")]
    if not isinstance(header, dict):
        return empty, [Issue("FILE-003", path, f"the header is {type(header).__name__}, expected an object")]
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata  # mlx writes null
    if not (isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())):
        return empty, [Issue("FILE-003", "__metadata__", "expected an object whose values are strings")]
    tensors, issues = {}, []
    for name, entry in header.items():
        found = _tensor(name, entry, 8 + length, size)
        if isinstance(found, Issue):
            issues.append(found)
        else:
            tensors[name] = found
            if name.startswith(("/", "\\")) or ".." in name or "\0" in name:
                issues.append(Issue("FILE-006", name, "it is taken as a name"))
    if not issues:
        issues = _places(path, list(tensors.values()), 8 + length, size)
    return Container(path, tensors, metadata), issues


def _tensor(name: str, entry: object, start: int, size: int) -> Tensor | Issue:
    if not isinstance(entry, dict) or {"dtype", "shape", "data_offsets"} - entry.keys():
        return Issue("FILE-003", name, "expected an object with dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        return Issue("FILE-008", name, f"dtype {str(dtype)[:40]!r} is not known")
    sizes, places = (isinstance(of, list) and len(of) <= 16 and all(type(n) is int and 0 <= n < 1 << 48 for n in of)
                     for of in (shape, offsets))
    if not sizes or not places or len(offsets) != 2:
        return Issue("FILE-003", name, f"no sizes or no places: shape {str(shape)[:50]}, data_offsets {str(offsets)[:50]}")
    bytes_ = math.prod(shape) * DTYPES[dtype].itemsize
    begin, end = offsets
    if end - begin != bytes_ or start + end > size:
        words = f"{dtype} of shape {tuple(shape)} takes {bytes_} bytes; from {begin} to {end} are {end - begin}"
        return Issue("FILE-004", name, f"{words}, and the file has {size - start}")
    return Tensor(name, dtype, tuple(shape), start + begin)


def _places(path: str, tensors: list[Tensor], start: int, size: int) -> list[Issue]:
    at = start
    for tensor in sorted(tensors, key=lambda tensor: (tensor.begin, tensor.size)):
        if tensor.begin != at:
            words = "overlaps the one before it" if tensor.begin < at else f"follows {tensor.begin - at} bytes of no tensor"
            return [Issue("FILE-004", tensor.name, words)]
        at += tensor.size * DTYPES[tensor.dtype].itemsize
    return [] if at == size else [Issue("FILE-004", path, f"{size - at} bytes at its end belong to no tensor")]
