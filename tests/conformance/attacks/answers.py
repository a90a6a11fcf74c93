"""Wrong layers whose answers are not what they seem, and right ones with answers that no protocol can carry."""

import ctypes
import mmap
import tempfile
import threading
import time

import numpy as np
from layers import Honest, Wrong, at, subject

from conformance import Unsupported


def wrong(layer, x) -> np.ndarray:
    return Wrong.forward(layer, x)


class EqualToAll(np.ndarray):
    def __eq__(self, other):
        return np.ones(np.shape(other), bool)

    def __ne__(self, other):
        return np.zeros(np.shape(other), bool)

    __hash__ = None


class EveryFunction(np.ndarray):
    """No difference, no NaN, nothing wrong: whatever function of NumPy is asked."""

    def __array_function__(self, function, types, args, kwargs):
        return np.zeros(self.shape, bool)

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        return np.ones(self.shape, bool) if ufunc is np.equal else np.zeros(self.shape, bool)


class Unlike(np.ndarray):
    """Its parts contradict each other."""

    shape = property(lambda self: (1,))
    dtype = property(lambda self: np.dtype("V8"))
    nbytes = property(lambda self: 1 << 62)
    __class__ = property(lambda self: np.ma.MaskedArray)

    def tobytes(self, order="C"):
        return b"short"

    def __array_finalize__(self, other):
        raise RuntimeError("copies are not made of me")


class OnlyAnArray:
    """Not an array: it can become one, a different one each time."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def __array__(self, dtype=None, copy=None):
        return np.full(self.shape, np.nan)


class ElementEqualToAll(float):
    def __eq__(self, other):
        return True

    __hash__ = float.__hash__


class KeyOfAnyName(str):
    def __eq__(self, other):
        return True

    def __hash__(self):
        return hash("A")


class Lying(dict):
    """Says that it holds A, and has something else when its items are asked for."""

    def __contains__(self, key):
        return True

    def __len__(self):
        return 2

    def items(self):
        return [("A", np.zeros(0)), ("B", np.zeros(0))]

    def __missing__(self, key):
        return np.full(1, np.nan)


@at("forward")
def is_equal_to_all(layer, x):
    return wrong(layer, x).view(EqualToAll)


@at("forward")
def overrides_every_function(layer, x):
    return wrong(layer, x).view(EveryFunction)


@at("forward")
def contradicts_itself(layer, x):
    return np.ndarray.view(wrong(layer, x), Unlike)


@at("forward")
def becomes_an_array(layer, x):
    return OnlyAnArray(wrong(layer, x))


@at("forward")
def is_masked(layer, x):
    return np.ma.masked_all_like(wrong(layer, x))


@at("forward")
def is_a_matrix(layer, x):
    y = wrong(layer, x)
    return np.asmatrix(y.reshape(-1, y.shape[-1]))


@at("forward")
def holds_objects(layer, x):
    y = wrong(layer, x)
    found = np.empty(y.shape, object)
    found[...] = ElementEqualToAll(1.0)
    return found


@at("forward")
def holds_structures(layer, x):
    y = wrong(layer, x)
    return y.view([("re", y.dtype)])


@at("forward")
def is_complex(layer, x):
    return wrong(layer, x).astype(np.complex128)


@at("forward")
def is_of_integers(layer, x):
    return wrong(layer, x).astype(np.int64)


@at("forward")
def is_of_booleans(layer, x):
    return wrong(layer, x).astype(bool)


@at("forward")
def is_of_texts(layer, x):
    return wrong(layer, x).astype(str)


@at("forward")
def is_of_dates(layer, x):
    return wrong(layer, x).astype(np.int64).view("m8[s]")


@at("forward")
def is_a_long_double(layer, x):
    return wrong(layer, x).astype(np.longdouble)


@at("forward")
def is_big_endian(layer, x):
    y = wrong(layer, x)
    return y.astype(y.dtype.newbyteorder(">"))


@at("forward", Honest)
def swaps_its_bytes(layer, x):
    """The right bytes, under the name of the other byte order."""
    y = Honest.forward(layer, x)
    return y.view(y.dtype.newbyteorder(">"))


@at("forward")
def is_a_million_squared(layer, x):
    return np.lib.stride_tricks.as_strided(np.zeros(1, x.dtype), (10**6, 10**6), (0, 0))


@at("forward")
def is_all_nan(layer, x):
    return np.full_like(wrong(layer, x), np.nan)


@at("forward")
def is_all_infinite(layer, x):
    return np.full_like(wrong(layer, x), np.inf)


@at("forward")
def broadcasts(layer, x):
    return wrong(layer, x)[:1] if x.ndim == 2 else wrong(layer, x)[None]


@at("forward")
def is_empty(layer, x):
    return np.zeros((0, *wrong(layer, x).shape[1:]), x.dtype)


@at("forward")
def is_a_list(layer, x):
    return wrong(layer, x).tolist()


@at("forward")
def is_a_buffer(layer, x):
    return memoryview(wrong(layer, x))


@at("forward")
def is_a_generator(layer, x):
    return (row for row in wrong(layer, x))


@at("forward")
def is_x_itself(layer, x):
    return x


@at("forward")
def lies_in_a_file_that_ends(layer, x):
    """A memory map of a file that is cut off: whoever reads it gets SIGBUS."""
    with tempfile.TemporaryFile() as file:
        file.truncate(1 << 20)
        y = np.frombuffer(mmap.mmap(file.fileno(), 1 << 20), x.dtype)[: layer.W.shape[0]]
        file.truncate(0)
    return np.broadcast_to(y, (*x.shape[:-1], layer.W.shape[0]))


@at("forward")
def lies_where_there_is_no_memory(layer, x):
    shape = (*x.shape[:-1], layer.W.shape[0])
    return np.ctypeslib.as_array(ctypes.cast(8, ctypes.POINTER(ctypes.c_float)), shape)


@at("forward")
def takes_its_time_to_go(layer, x):
    class Slow(np.ndarray):
        def __del__(self):
            time.sleep(0.3)

    return wrong(layer, x).view(Slow)


@at("forward", Honest)
def answers_and_changes_them(layer, x):
    """A right answer that a thread makes wrong some time after it was given."""
    y = Honest.forward(layer, x)

    def spoil():
        time.sleep(0.001)
        y[...] = 0

    threading.Thread(target=spoil, daemon=True).start()
    return y


@at("backward")
def gradients_in_a_dict_that_lies(layer, dy):
    return Lying(Wrong.backward(layer, dy))


@at("backward")
def gradients_under_any_name(layer, dy):
    found = Wrong.backward(layer, dy)
    return {KeyOfAnyName("A"): found["A"], "x": found["x"], "B": found["B"]}


@at("backward")
def gradients_that_are_equal_to_all(layer, dy):
    return {name: array.view(EqualToAll) for name, array in Wrong.backward(layer, dy).items()}


@at("backward")
def gradients_within_themselves(layer, dy):
    found: dict = Wrong.backward(layer, dy)
    found["A"] = found
    return found


@at("backward", Honest)
def gradients_without_end(layer, dy):
    """The right ones, among many others."""
    return Honest.backward(layer, dy) | {f"p{number}": np.zeros(1) for number in range(100_000)}


@at("backward")
def gradients_of_numbers(layer, dy):
    return {name: float(array.sum()) for name, array in Wrong.backward(layer, dy).items()}


@at("backward", Honest)
def gradients_with_odd_names(layer, dy):
    return Honest.backward(layer, dy) | {"\x00\ud800[/]": np.zeros(1), 3: np.zeros(1)}


class ShapeEqualToAll(tuple):
    def __eq__(self, other):
        return True

    __hash__ = tuple.__hash__


def shapes(name: str, of):
    """A subject with a third parameter that trains, and that `trainable` shows as `of` makes it."""
    return subject(name, Honest, trainable=lambda self: {"A": self.A.shape, "B": self.B.shape, "W": of(self.W.shape)})


trains_the_base = shapes("trains_the_base", ShapeEqualToAll)
trains_numpy_integers = subject("trains_numpy_integers", Wrong, trainable=lambda self: {
    "A": tuple(map(np.int64, self.A.shape)), "B": tuple(map(np.int64, self.B.shape))})
trains_a_negative_shape = shapes("trains_a_negative_shape", lambda shape: (-1, 3))
trains_a_fraction = shapes("trains_a_fraction", lambda shape: (2.5, 3))
trains_truth_values = shapes("trains_truth_values", lambda shape: (True, False))
trains_too_much = shapes("trains_too_much", lambda shape: (10**4000,))
trains_text = shapes("trains_text", lambda shape: "A")
trains_anything = subject("trains_anything", Honest, trainable=lambda self: Lying(A=self.A.shape, W=self.W.shape))


class NoLayer:
    """Has the methods of a Layer that is wrong, and is none."""

    def __init__(self, config, weight, bias):
        self.layer = Wrong(config, weight, bias)

    def __getattr__(self, name):
        return getattr(self.layer, name)


@at("build")
def is_no_layer(config, weight, bias):
    return NoLayer(config, weight, bias)


@at("build")
def builds_a_class(config, weight, bias):
    return Wrong


@at("build", Honest)
def builds_the_same_again(config, weight, bias, _made=[]):  # noqa: B006 it is kept on purpose
    """One layer for all configurations: the first."""
    if not _made:
        _made.append(Honest(config, weight, bias))
    return _made[0]


@at("forward")
def changes_x_before_it_answers(layer, x):
    try:
        x.flags.writeable = True
        x[...] = 0
    except ValueError:
        raise Unsupported("an x that cannot be written to") from None


@at("build")
def changes_w_before_it_answers(config, weight, bias):
    for array in (weight, weight.base, bias):
        if isinstance(array, np.ndarray):
            array.flags.writeable = True
            array[...] = 0


@at("set_adapter")
def changes_the_factors_it_gets(layer, arrays):
    for name in ("A", "B"):
        arrays[name][...] = 0


@at("backward")
def changes_dy_before_it_answers(layer, dy):
    dy[...] = 0


@at("forward", Honest)
def changes_x_and_restores_it(layer, x):
    """The right answer, though x is another one meanwhile."""
    kept = x.copy()
    if x.flags.writeable:
        x[...] = 7
        x[...] = kept


@at("forward", Honest)
def answers_in_the_same_memory(layer, x, _kept={}):  # noqa: B006 it is kept on purpose
    """The right answers, each in the memory of the one before."""
    y = Honest.forward(layer, x)
    memory = _kept.setdefault((y.shape, y.dtype), np.empty_like(y))
    memory[...] = y
    return memory
