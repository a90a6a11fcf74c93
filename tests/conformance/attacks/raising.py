"""Layers that cannot take an odd number of rows. There they raise what the harness may take for a signal of its own."""

import asyncio
import importlib

import numpy as np
from layers import Honest, at, subject

from conformance import Unsupported


def odd(x: np.ndarray) -> bool:
    return bool(x[..., 0].size % 2)


def raising(name: str, make):
    """A subject that raises `make()` in a forward pass over an odd number of rows, and answers rightly otherwise."""
    def forward(self, x):
        if odd(x):
            raise make()
        return Honest.forward(self, x)

    return subject(name, Honest, forward=forward)


def error(place: str):
    """A class of errors, by its full name, imported when it is needed."""
    module, _, name = place.rpartition(".")
    return getattr(importlib.import_module(module), name)


class Silent(Exception):
    def __str__(self):
        raise RuntimeError("no words")

    __repr__ = __str__


class OfNoKind(BaseException):
    pass


class Liar(Unsupported):
    """Says that any method it is asked for was not offered, and that it is whatever class it is compared with."""

    method = property(lambda self: "", lambda self, value: None)
    __class__ = property(lambda self: error("hypothesis.errors.UnsatisfiedAssumption"))


rejects_the_case = raising("rejects_the_case", lambda: error("hypothesis.errors.UnsatisfiedAssumption")())
stops_the_test = raising("stops_the_test", lambda: error("hypothesis.errors.StopTest")(0))
says_enough = raising("says_enough", lambda: error("conformance.run.examine._Enough")())
says_flaky = raising("says_flaky", lambda: error("hypothesis.errors.Flaky")("flaky"))
says_it_is_unsatisfiable = raising("says_it_is_unsatisfiable", lambda: error("hypothesis.errors.Unsatisfiable")("none"))
skips_the_test = raising("skips_the_test", lambda: error("unittest.SkipTest")("not today"))
ends_its_generator = raising("ends_its_generator", GeneratorExit)
stops_iterating = raising("stops_iterating", StopIteration)
interrupts = raising("interrupts", KeyboardInterrupt)
exits_well = raising("exits_well", lambda: SystemExit(0))
exits_with_words = raising("exits_with_words", lambda: SystemExit("CONFORMANT"))
raises_no_exception = raising("raises_no_exception", OfNoKind)
cancels_itself = raising("cancels_itself", asyncio.CancelledError)
says_the_pipe_broke = raising("says_the_pipe_broke", BrokenPipeError)
says_the_input_ended = raising("says_the_input_ended", EOFError)
says_it_timed_out = raising("says_it_timed_out", TimeoutError)
says_memory_is_out = raising("says_memory_is_out", MemoryError)
raises_without_words = raising("raises_without_words", Silent)
raises_a_long_name = raising("raises_a_long_name", type("E" * 1_000_000, (Exception,), {}))
raises_long_words = raising("raises_long_words", lambda: ValueError("words " * 2_000_000))
raises_odd_words = raising("raises_odd_words", lambda: ValueError("\x1b[2J\x00\ud800[/bold]\r\nCONFORMANT\u202e"))
raises_a_mismatch = raising("raises_a_mismatch", lambda: error("conformance.truth.compare.Mismatch")("y", 1, 1, error=0.0))
raises_a_group = raising("raises_a_group", lambda: ExceptionGroup("not offered", [Unsupported("a"), Unsupported("b")]))
raises_what_lies = raising("raises_what_lies", lambda: Liar("lies"))
raises_itself = raising("raises_itself", lambda: caused_by_itself())


def caused_by_itself() -> Exception:
    found = ValueError("round and round")
    found.__cause__ = found.__context__ = ValueError("and round")
    found.__cause__.__cause__ = found
    return found


@at("forward", Honest)
def recurses_for_ever(layer, x):
    if odd(x):
        layer.forward(x)


@at("build", Honest)
def interrupts_most_builds(config, weight, bias):
    if config.in_features % 4:
        raise KeyboardInterrupt
