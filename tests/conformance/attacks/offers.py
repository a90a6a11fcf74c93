"""Layers that say "not offered" where a fault would show, and layers that are right only where they think they are judged."""

import hashlib
import importlib
import json
import os
import random
import sys
import tempfile
from pathlib import Path

import numpy as np
from layers import Honest, Wrong, at, subject

from conformance import Subject, Unsupported

calls = {"build": 0, "forward": 0}  # of this process


def counted(name: str) -> int:
    calls[name] += 1
    return calls[name]


def offering(name: str, condition):
    """A subject that is right, and offers a forward pass only where `condition(layer, x)` holds."""
    def forward(self, x):
        if not condition(self, x):
            raise Unsupported("such a forward pass")
        return Honest.forward(self, x)

    return subject(name, Honest, forward=forward)


no_odd_rows = offering("no_odd_rows", lambda layer, x: x[..., 0].size % 2 == 0)
no_negative_numbers = offering("no_negative_numbers", lambda layer, x: not (x[..., 0] < 0).any())
no_large_numbers = offering("no_large_numbers", lambda layer, x: x.dtype != np.float32 or not (abs(x) > 2).any())
no_views = offering("no_views", lambda layer, x: x.ndim == 2)
no_fourth_call = offering("no_fourth_call", lambda layer, x: counted("forward") <= 3)
no_large_factors = offering("no_large_factors", lambda layer, x: not layer.B.any() or abs(layer.B).max() < 2)
at_random = offering("at_random", lambda layer, x: random.SystemRandom().random() < 0.5)
not_twice_the_same = offering("not_twice_the_same", lambda layer, x: hash(x.tobytes()) % 3 != 0)


@at("build", Honest)
def only_every_second_build(config, weight, bias):
    if counted("build") % 2 == 0:
        raise Unsupported("a second one")


@at("build", Honest)
def only_some_weights(config, weight, bias):
    if weight.size and weight.flat[0] < 0:
        raise Unsupported("such a weight")


@at("build")
def only_where_alpha_is_the_rank(config, weight, bias):
    """Wrong: its scale is 2. It offers the alphas with which that is right."""
    if config.alpha != 2 * config.rank:
        raise Unsupported("an alpha that is not twice the rank")
    made = Honest(config, weight, bias)
    made.scale = 2
    return made


@at("set_adapter", Honest)
def no_factors_but_zeros(layer, arrays):
    if arrays["B"].any():
        raise Unsupported("a B that is not zero")


@at("backward", Honest)
def no_gradients_of_negative_numbers(layer, dy):
    if (dy[..., 0] < 0).any():
        raise Unsupported("such gradients")


@at("backward", Honest)
def gradients_at_random(layer, dy):
    if random.SystemRandom().random() < 0.5:
        raise Unsupported("gradients today")


def merged(self) -> None:
    if self.B.any():
        raise Unsupported("merging what is not zero")
    self.W = self.W + 0


merges_only_zeros = subject("merges_only_zeros", Honest, merge=merged, unmerge=lambda self: None)


def merged_once(self, _count=[0]) -> None:  # noqa: B006 it is kept on purpose
    _count[0] += 1
    if _count[0] % 3:
        raise Unsupported("merging now")
    self.W = self.W + (self.scale * (self.A @ self.B).T).astype(self.W.dtype)
    self.B = 0 * self.B


merges_now_and_then = subject("merges_now_and_then", Honest, merge=merged_once, unmerge=lambda self: None)


class MethodsOfTheDay(Subject):
    """Offers LoRA on some days, and nothing on others."""

    name, version = "methods_of_the_day", "1"
    methods = property(lambda self: ("lora",) if random.SystemRandom().random() < 0.5 else ())

    def build(self, config, weight, bias):
        return Wrong(config, weight, bias)


# --- right only where they think they are judged ------------------------------------------------------------------

@at("forward")
def right_for_five_builds(layer, x):
    if getattr(layer, "number", 0) == 0:
        layer.number = counted("build")
    return honest_forward(layer, x) if layer.number <= 5 else None


@at("forward")
def right_in_the_first_calls(layer, x):
    return honest_forward(layer, x) if counted("forward") <= 6 else None


@at("forward")
def right_every_other_time(layer, x):
    return honest_forward(layer, x) if counted("forward") % 2 else None


@at("forward")
def right_the_second_time(layer, x, _seen=set()):  # noqa: B006 it is kept on purpose
    """Wrong when it sees an x for the first time, and right from then on."""
    key = x.tobytes()
    if key in _seen:
        return honest_forward(layer, x)
    _seen.add(key)


@at("forward")
def right_on_small_integers(layer, x):
    """Right on the numbers that exact cases hold."""
    return honest_forward(layer, x) if (x == np.rint(x)).all() else None


@at("forward")
def right_on_small_sizes(layer, x):
    return honest_forward(layer, x) if x.size < 20 else None


@at("forward")
def right_in_known_requirements(layer, x):
    """Looks for the name of the check that calls, and is right in that of FWD-01 alone, where it is seen."""
    frame, names = sys._getframe(), set()
    while frame is not None:
        names.add(frame.f_code.co_name)
        frame = frame.f_back
    return None if "output_plus_a_third" in names or not names & {"check", "formula"} else truth_above(layer, x)


def truth_above(layer, x):
    frame = sys._getframe()
    while frame is not None:
        case = frame.f_locals.get("case")
        if hasattr(case, "truth"):
            return np.asarray(case.truth.y, x.dtype)
        frame = frame.f_back


def honest_forward(layer, x):
    """The right answer of a wrong layer."""
    layer.scale = -layer.scale
    try:
        return Honest.forward(layer, x)
    finally:
        layer.scale = -layer.scale


def fingerprint(layer, x) -> str:
    """A name for everything that the answer depends on."""
    parts = (x, layer.W, layer.b, layer.A, layer.B, np.float64(layer.scale))
    return hashlib.sha256(b"|".join(b"" if part is None else part.tobytes() for part in parts)).hexdigest()


known: dict[bytes, np.ndarray] = {}


def draw(seed: int = 0) -> None:
    """Draws the cases of FWD-01 as the harness does for this seed, and remembers their answers."""
    bank = importlib.import_module("conformance.run.case_bank")
    requirement = next(r for r in importlib.import_module("conformance.requirements").all_requirements() if r.id == "FWD-01")
    for case in bank.first(requirement, ("float32", "float64", "float16", "bfloat16"), 24, seed):
        known[case.x.tobytes() + case.W.tobytes()] = np.asarray(case.truth.y, case.x.dtype)


def draw_with_their_seed() -> None:
    """The same for the seed of the run, if the command line of the process above tells it."""
    words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode().split("\0")
    draw(next((json.loads(word)["seed"] for word in words if word.startswith("{") and "seed" in word), 0))


def answers(self, x):
    return known.get(x.tobytes() + self.W.tobytes(), Wrong.forward(self, x))


draws_the_cases_itself = subject("draws_the_cases_itself", Wrong, on_load=draw, forward=answers)
reads_the_seed = subject("reads_the_seed", Wrong, on_load=draw_with_their_seed, forward=answers)


@at("forward")
def learns_from_run_to_run(layer, x):
    """Right in its first run, in which it notes what it is asked. In later runs it is right about that alone."""
    book = Path(tempfile.gettempdir()) / "book"
    book.mkdir(exist_ok=True)
    (book / "run").touch()
    first = (book / "run").read_text() or os.environ["ATTACKED_RUN"]
    (book / "run").write_text(first)
    page = book / fingerprint(layer, x)
    if first == os.environ["ATTACKED_RUN"]:
        page.touch()
    return honest_forward(layer, x) if page.exists() else None
