"""Functions that prepare a layer for a case and judge its answers."""

import os
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from conformance.record.trace import refuses
from conformance.subject import Layer, Subject, Unsupported
from conformance.truth.case import Case
from conformance.truth.compare import expect, expect_equal, expect_within, wide

SCRATCH = "CONFORMANCE_SCRATCH"  # names the folder for directories; the run removes it, also after it had to kill a process


def fresh(subject: Subject, case: Case) -> Layer:
    """The layer as built, around copies of W and b, in training mode."""
    layer = subject.build(case.config, case.W.copy(), None if case.b is None else case.b.copy())
    set_mode(layer, training=True)
    return layer


def prepared(subject: Subject, case: Case, training: bool = False) -> Layer:
    """The layer with the case's A and B. They are set in training mode, since some layers merge on eval()."""
    layer = fresh(subject, case)
    layer.set_adapter({name: array.copy() for name, array in case.adapter.items()})
    if not training:
        set_mode(layer, training)
    return layer


def set_mode(layer: Layer, training: bool) -> None:
    """Sets training or inference mode. A layer without modes is the same in both."""
    with suppress(Unsupported):
        layer.train(training)


def merge(layer: Layer, training: bool = True) -> None:
    """Merges a layer that is in training mode, or in inference mode. A layer may refuse to merge in one of the two modes.
    Then it is merged in the other one, and an error there counts."""
    if refuses(layer.merge):
        set_mode(layer, not training)
        layer.merge()


def gradients(layer: Layer, x: np.ndarray, dy: np.ndarray) -> dict[str, np.ndarray]:
    """The gradients of one forward and one backward pass. A layer that gives no dA or no dB fails."""
    layer.forward(x)
    found = layer.backward(dy)
    for name in ("A", "B"):
        expect(name in found, f"gradients after backward: d{name}", f"only {sorted(found)}", f"d{name} among them")
    return found


def gradient(layer, case: Case, name: str) -> np.ndarray:
    layer.forward(case.x)
    found = layer.backward(case.dy)
    expect(name in found, f"gradients after backward: d{name}", f"only {sorted(found)}", f"d{name} among them")
    return found[name]


def judged(found, case: Case, judge, note: str = "") -> float:
    """Judges dx, dA and dB, as far as they are there, by `exactly` or `within_bound`."""
    return max((judge(found[n], case, f"d{n}", f"d{n}{note}") for n in ("x", "A", "B") if n in found), default=0.0)


def exactly(got, case: Case, name: str, what: str) -> float:
    return expect_equal(got, getattr(case.truth, name), what)


def within_bound(got, case: Case, name: str, what: str) -> float:
    return expect_within(got, getattr(case.truth, name), getattr(case.bound, name), what)


def scratch() -> "tempfile.TemporaryDirectory[str]":
    """An empty directory, in the folder that the run has for them, if there is one."""
    return tempfile.TemporaryDirectory(dir=os.environ.get(SCRATCH) or in_memory(), prefix="conformance-")


def in_memory() -> str | None:
    """A folder in memory, where the system has one, since a directory on a disk takes milliseconds. Otherwise None."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@contextmanager
def saved(layer):
    """A directory that holds what the layer saved."""
    with scratch() as name:
        directory = Path(name)
        layer.save(directory)
        expect(any(directory.iterdir()), "what save() wrote", "nothing", "at least one file")
        yield directory


def known_weight(layer):
    try:
        return wide(layer.weight())
    except Unsupported:
        return None
