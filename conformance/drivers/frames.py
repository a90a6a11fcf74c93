"""Messages between the judge and the process of a Python subject: a line of JSON for what is said, and the bytes of the arrays.

A frame is the length of the JSON and the length of the bytes (8 bytes each), the JSON, the bytes. In the JSON, numbers, text
and None stand for themselves, and everything else is a list whose first item says what it is. The arrays follow each other in
the bytes. What comes from a subject's process is checked when it is decoded: nothing in it is run, and a shape that does not
fit its bytes, an unknown dtype or bytes that are left over are Malformed.

`Given` keeps the arrays that were handed over, so that an array that is handed over again is the same array there, too, and so
that each side knows what has become of it.
"""

import math
import struct
from collections import OrderedDict
from json import JSONDecoder, JSONEncoder
from os import PathLike, fspath
from typing import Any

import numpy as np

from conformance.drivers.protocol import DTYPES, REMEMBERED, WORDS
from conformance.model import ModelConfig
from conformance.record.script import Name, Odd, memory
from conformance.subject import LayerConfig

HEAD = struct.Struct("<QQ")
BEFORE = 8  # of a view's own memory, at most so many items are kept that lie before it
# All arrays that are remembered are looked at after every call. So beyond these bytes in all, only the LAST ones are.
REMEMBERED_BYTES, LAST = 1 << 18, 16
BESIDE = 4  # times the size of a view, at most, is the memory that is sent with it
LARGEST = 1 << 28  # bytes of a frame
NAMES = {dtype: name for name, dtype in DTYPES.items()}
# Made here, before a subject can have changed anything, and once: to make them takes longer than to use them.
dumps, loads = JSONEncoder(separators=(",", ":")).encode, JSONDecoder().decode
CONFIGS = {"LayerConfig": LayerConfig, "ModelConfig": ModelConfig}


class Malformed(Exception):
    """A message that does not follow the rules. The text says what is wrong with it."""


class Given:
    """The arrays that were handed over last, by number, in the order in which they were last used."""

    def __init__(self) -> None:
        self._next = 0
        # The array, the memory that it lies in if that is in one piece, and the bytes of it when last looked at.
        self._known: OrderedDict[int, tuple[np.ndarray, memoryview | None, bytearray]] = OrderedDict()
        self._bytes = 0
        self._numbers: dict[int, int] = {}  # id() of the array → its number, on the side that hands over

    def number(self, array: np.ndarray) -> int | None:
        number = self._numbers.get(id(array))
        if number is not None:
            self._known.move_to_end(number)
        return number

    def keep(self, array: np.ndarray, number: int | None = None) -> int:
        """Remembers the array, under the next number unless it has one. The one that was used longest ago is forgotten."""
        if number is None:
            number = self._next
            self._next += 1
        memory = _in_one_piece(array)
        self._known[number] = (array, memory, bytearray(memory or array.tobytes()))
        self._numbers[id(array)] = number
        self._bytes += array.nbytes
        while len(self._known) > REMEMBERED or self._bytes > REMEMBERED_BYTES and len(self._known) > LAST:
            _, (old, _, _) = self._known.popitem(last=False)
            self._numbers.pop(id(old), None)
            self._bytes -= old.nbytes
        return number

    def peek(self, number: int) -> np.ndarray:
        return self._known[number][0]

    def __getitem__(self, number: int) -> np.ndarray:
        self._known.move_to_end(number)
        return self._known[number][0]

    def forget(self) -> None:
        self._known.clear()
        self._numbers.clear()
        self._bytes = 0

    def same(self, number: int) -> bool:
        """Whether the array, and what lies beside it, holds what it held when it was last looked at. Looks at it."""
        array, memory, before = self._known[number]
        now = memory or array.tobytes()
        if before == now:  # a bytearray is compared without a copy
            return True
        before[:] = now
        return False

    def changed(self) -> list[int]:
        """The numbers of the arrays that have changed since they were last looked at."""
        return [number for number in list(self._known) if not self.same(number)]

    def put(self, number: int, items: bytes) -> None:
        """Writes these bytes into the array, even where its owner may only read it."""
        array, memory, before = self._known[number]
        now = np.frombuffer(items, array.dtype).reshape(array.shape)
        writeable = array
        while not writeable.flags.writeable and isinstance(writeable.base, np.ndarray):
            writeable = writeable.base
        if array.flags.writeable:
            array[...] = now
        elif writeable.flags.writeable:
            start, own = (a.__array_interface__["data"][0] for a in (array, writeable))
            np.ndarray(array.shape, array.dtype, writeable.view(np.uint8).data, start - own, array.strides)[...] = now
        before[:] = memory or array.tobytes()


def _in_one_piece(array: np.ndarray) -> memoryview | None:
    """The bytes of the array, or of the array that it is a view of, if they lie in one piece. To compare them takes no copy.
    None for a view of little in a lot of memory."""
    whole = array if array.flags.c_contiguous else array.base
    if isinstance(whole, np.ndarray) and whole.flags.c_contiguous and whole.nbytes <= BESIDE * array.nbytes:
        return whole.reshape(-1).view(np.uint8).data
    return None


class Writer:
    """Makes a frame. `say` turns a value into what JSON can hold, and keeps the bytes of its arrays."""

    def __init__(self, given: Given | None = None):
        """With `given`, the arrays count as handed over: they keep their strides, and are sent once."""
        self.given, self.bytes = given, []

    def frame(self, message: Any) -> bytes:
        said = dumps(message).encode()
        body = b"".join(self.bytes)
        return HEAD.pack(len(said), len(body)) + said + body

    def say(self, value: Any) -> Any:
        kind = type(value)
        if value is None or kind in (bool, float, str) or kind is int and abs(value) < 1 << 63:
            return value
        if isinstance(value, np.ndarray):
            return self._array(value)
        # The contents of a subclass are taken as they are: its own methods may say otherwise, and are not asked.
        if isinstance(value, tuple | list):
            plain = tuple if isinstance(value, tuple) else list
            return [plain.__name__, *map(self.say, plain.__iter__(value))]  # pyright: ignore[reportArgumentType]
        if isinstance(value, dict):
            return ["dict", *([self.say(key), self.say(item)] for key, item in dict.items(value))]
        if isinstance(value, LayerConfig | ModelConfig):
            return [kind.__name__, self.say(vars(value))]
        if isinstance(value, Name):
            return ["Name", str(value)]
        if isinstance(value, PathLike):
            return fspath(value)
        if isinstance(value, np.generic) and value.dtype.kind in "fiub":
            return value.item()
        if isinstance(value, str):
            return str.__str__(value)
        return ["odd", kind.__name__[:WORDS]]

    def _array(self, array: np.ndarray) -> Any:
        if isinstance(array, np.ma.MaskedArray):
            return ["odd", "a masked array"]
        array = np.asarray(array)  # of a subclass, the plain array in the same memory
        name = NAMES.get(array.dtype)
        if name is None:
            return ["odd", f"an array of dtype {array.dtype.str if array.dtype.name in DTYPES else array.dtype.name}"[:WORDS]]
        if self.given is None:
            self.bytes.append(array.tobytes())
            return ["array", name, list(array.shape)]
        number = self.given.number(array)
        if number is not None:
            if self.given.same(number):
                return ["again", number]
            self.bytes.append(array.tobytes())
            return ["again", number, array.nbytes]
        plain = array.flags.c_contiguous or any(stride % array.itemsize for stride in array.strides)
        items, first, strides = (array, 0, None) if plain else _with_what_lies_beside(array) or memory(array)
        self.bytes.append(items.tobytes())
        return ["given", self.given.keep(array), name, list(array.shape), items.size, first, strides, array.flags.writeable,
                _items_before(array)]


def _with_what_lies_beside(array: np.ndarray) -> tuple[np.ndarray, int, tuple[int, ...]] | None:
    """The memory that a view was cut out of, the place of its first item there, and its strides in items. None for a view that
    runs backwards, or one of little in a lot of memory."""
    owner = array.base
    if not isinstance(owner, np.ndarray) or owner.dtype != array.dtype or not owner.flags.c_contiguous:
        return None
    if min(array.strides) < 0 or owner.size > BESIDE * array.size:
        return None
    start, own = (a.__array_interface__["data"][0] for a in (array, owner))
    return owner.reshape(-1), (start - own) // array.itemsize, tuple(stride // array.itemsize for stride in array.strides)


def _items_before(array: np.ndarray) -> int:
    """How many items of its own memory lie before the array: 1 for a view that leaves out the first one. At most BEFORE."""
    owner = array.base
    if not isinstance(owner, np.ndarray) or owner.dtype != array.dtype or not owner.flags.c_contiguous:
        return 0
    start, own = (a.__array_interface__["data"][0] for a in (array, owner))
    return min(max(0, (start - own) // array.itemsize), BEFORE) if array.flags.c_contiguous else 0


class Reader:
    """Reads the values of one frame."""

    def __init__(self, said: bytes, body: bytes | memoryview, given: Given | None = None):
        """With `given`, what was handed over is kept in it. Raises Malformed if `said` is no JSON."""
        self.body, self.at, self.given = memoryview(body), 0, given
        try:
            self.message = loads(said.decode())
        except (ValueError, RecursionError) as error:
            raise Malformed(f"it is no JSON: {type(error).__name__}: {error}") from None

    def value(self, said: Any) -> Any:
        """The value that Writer.say turned into `said`. Arrays are copies. Raises Malformed."""
        try:
            return self._value(said)
        except (ValueError, TypeError, IndexError, KeyError, RecursionError, OverflowError) as error:
            raise Malformed(f"{type(error).__name__}: {error}") from None

    def end(self) -> None:
        if self.at != len(self.body):
            raise Malformed(f"{len(self.body) - self.at} bytes belong to no array")

    def _value(self, said: Any) -> Any:
        if not isinstance(said, list):
            if isinstance(said, dict):
                raise Malformed("an object stands where a value should be")
            return said
        what, *rest = said
        if what == "array":
            return self._array(*rest)
        if what in ("tuple", "list"):
            items = map(self._value, rest)
            return tuple(items) if what == "tuple" else list(items)
        if what == "dict":
            return {self._value(key): self._value(item) for key, item in rest}
        if what == "odd":
            return Odd(str(rest[0]))
        if self.given is not None:
            if what == "given":
                return self._handed(*rest)
            if what == "again":
                if len(rest) > 1:
                    self.given.put(rest[0], self.taken(rest[1]))
                return self.given[rest[0]]
            if what == "Name":
                return Name(rest[0])
            if what in CONFIGS:
                return CONFIGS[what](**self._value(rest[0]))
        raise Malformed(f"{str(what)[:80]!r} is no kind of value")

    def taken(self, count: int) -> bytes:
        if count > len(self.body) - self.at:
            raise Malformed(f"an array of {count} bytes, where {len(self.body) - self.at} are left")
        self.at += count
        return bytes(self.body[self.at - count : self.at])

    def _array(self, name: str, shape: list) -> np.ndarray:
        if not all(type(n) is int and n >= 0 for n in shape):
            raise Malformed(f"{str(shape)[:80]} is no shape")
        dtype = DTYPES[name]
        return np.frombuffer(bytearray(self.taken(math.prod(shape) * dtype.itemsize)), dtype).reshape(shape)

    def _handed(self, number: int, name: str, shape: list, count: int, first: int, strides: list | None, writeable: bool,
                before: int):
        assert self.given is not None
        items = self._array(name, [count])
        if before:
            items = np.concatenate([np.zeros(before, items.dtype), items])[before:]
        size = items.itemsize
        array = items.reshape(shape) if strides is None else np.ndarray(
            tuple(shape), items.dtype, items, first * size, tuple(stride * size for stride in strides))
        array.flags.writeable = writeable
        self.given.keep(array, number)
        return array

