"""Subjects that raise, exit, hang or print. Each is the skeleton of `conformance init` with one fault."""

import os
import sys
import time

import numpy as np

from conformance import Subject
from conformance.skeletons.subject import MyLayer


def subject(**methods):
    """A subject whose layer has these methods in the place of its own."""
    layer = type("Broken", (MyLayer,), methods)

    class Broken(Subject):
        name, version = "broken", "1"

        def build(self, config, weight, bias):
            return layer(config, weight, bias)

    return Broken()


honest = MyLayer.forward


def _raise(self, x):
    raise RuntimeError("no forward today")


def _hang(self, x):
    time.sleep(3600)


def _crash(self, x):
    print("about to die", file=sys.stderr, flush=True)
    os.kill(os.getpid(), 11)


def _noisy(self, x):
    print("debugging output")
    os.write(1, b'{"outcome": "pass"}\n')
    os.write(2, b"more of it\n")
    return honest(self, x)


raises = subject(forward=_raise)
exits = subject(forward=lambda self, x: sys.exit(3))
exits_hard = subject(forward=lambda self, x: os._exit(7))
crashes = subject(forward=_crash)
hangs = subject(forward=_hang)
noisy = subject(forward=_noisy)
reads_input = subject(forward=lambda self, x: (sys.stdin.read(), honest(self, x))[1])
returns_nothing = subject(forward=lambda self, x: None)
returns_list = subject(forward=lambda self, x: honest(self, x).tolist())
wrong_shape = subject(forward=lambda self, x: honest(self, x)[..., :-1])
wrong_dtype = subject(forward=lambda self, x: honest(self, x).astype(np.float64))
returns_nan = subject(forward=lambda self, x: honest(self, x) * np.nan)
wrong_scale = subject(__init__=lambda self, *args: (MyLayer.__init__(self, *args), setattr(self, "scale", args[0].alpha))[0])
gives_no_gradient = subject(backward=lambda self, dy: {})


class RaisesOnBuild(Subject):
    name = "raises on build"

    def build(self, config, weight, bias):
        raise RuntimeError("cannot build")


class OffersNothing(Subject):
    name = "offers nothing"

    def build(self, config, weight, bias):
        from conformance import Layer

        return Layer()


not_a_subject = 42
