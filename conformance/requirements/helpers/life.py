"""One case of the space in one life of a layer: it is built, gets its factors the way the case says, is merged or not, and
computes forwards and backwards. Everything that it answers is compared with the truth.

What fails raises Broken, which says which kind of answer was wrong. `breaks` gives the requirement that this answer and these
levels break.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property

import numpy as np

from conformance.record.trace import SubjectError, refuses
from conformance.requirements.helpers import dropped
from conformance.requirements.helpers.inputs import Odd, laid, odd
from conformance.requirements.helpers.layers import merge, saved, set_mode
from conformance.subject import Layer, Subject, Unsupported
from conformance.truth import lattice
from conformance.truth.case import Case, exact_in_any_order, holds, last_bit
from conformance.truth.compare import Mismatch, expect, expect_equal, expect_within, wide, within
from conformance.truth.lattice import Answers
from conformance.truth.space import Levels, scale_of
from lora_ref import lora
from lora_ref.error import bounds

ADDED = 4  # gradients that are added up: a power of two, so that their sum has no more bits than one of them
NEEDLESS = {"all": "", "not x": "", "not A": "A", "not B": "B", "only x": "AB", "only A": "B", "only B": "A",
            "nothing": "AB"}  # the factors that need no gradient
WITHOUT_X = ("not x", "only A", "only B", "nothing")  # where x needs none


# The levels of `handled` that say how each pass goes, and the function of conformance/torch_experiments.py that makes it.
WAYS = {"threaded": "threaded", "checkpointed": "under_checkpoint", "functional": "by_functional_call"}


class Broken(Exception):
    """An answer was wrong: `failure` is a Mismatch, or a SubjectError where the subject gave none. `kind` says what was asked:
    y, y without a graph, y with dropout, one mask, dropout in inference, dx, dA, dB, W, A, B, x, dy, state, or the format of y
    or dx."""

    def __init__(self, kind: str, failure: Mismatch | SubjectError):
        self.kind, self.failure = kind, failure
        super().__init__(f"{kind}: {failure}")


@contextmanager
def asked(kind: str) -> Iterator[None]:
    """What goes wrong inside is Broken of this kind."""
    try:
        yield
    except (Mismatch, SubjectError) as failure:
        raise Broken(kind, failure) from failure


def prepared(levels: Levels, seed: int) -> Case:
    """The case of these levels, with x and dy as they lie in memory, and with factors that a step can have led to."""
    case = lattice.build(levels, seed)
    if _steps_to_it(levels, case):
        case = _reached(case)
    return replace(case, x=laid(case.x, str(levels["x lies"])), dy=laid(case.dy, str(levels["dy lies"])))


def _steps_to_it(levels: Levels, case: Case) -> bool:
    """Whether the factors of the case are reached by exact steps. If not, any step is taken, and they are set after it."""
    exact = levels["content"] != "many bits" and _root_is_a_power(case.scale) and not levels["rate"]
    whole = case.config.scaling == "standard" or (case.config.rank**0.5).is_integer()  # a division by another root is rounded
    return levels["history"] == "stepped" and exact and whole


def _reached(case: Case) -> Case:
    """The case with a last column of B, and a last row of A, that one SGD step each has made of zeros: see `_step`."""
    A, B, odd = case.A.copy(), case.B.copy(), _odd(case.scale)
    B[:, -1] = -odd * wide(A[0])
    if len(A) > 1:
        A[-1] = -odd * wide(B[:, -1])
    return case.replace(A=A, B=B)


def _odd(scale: float) -> float:
    """The scale divided by its power of two: 9 for 9/4."""
    return scale / _power(scale)


def _root_is_a_power(scale: float) -> bool:
    """Whether √|scale| is a power of two. A layer may multiply each factor by it, and another root is rounded."""
    root = abs(scale) ** 0.5
    return root > 0 and _power(root) == root


REPEATED = {"broadcast", "one token", "one number"}  # arrays whose sums have several terms, whatever the content


def can_tell_each_bit(levels: Levels) -> bool:
    """Whether an answer of many bits with these levels, or with some choice of those that are not given, must be right in each
    bit. A division by a number that is no power of two is rounded."""
    rank = int(levels.get("rank", 1))
    divisors = {"standard": rank, "rslora": rank**0.5}
    scale = float(scale_of({"format": "float32", "scale": "1"} | levels))
    return (not REPEATED & {levels.get("x lies"), levels.get("dy lies")} and (not scale or _root_is_a_power(scale))
            and any(_power(d) == d for rule, d in divisors.items() if levels.get("scaling", rule) == rule))


def _power(scale: float) -> float:
    """The largest power of two that divides the scale; 1 for 0."""
    return last_bit(np.array(scale)) if scale else 1.0


def live(subject: Subject, levels: Levels, case: Case, drops_x: bool = False, thorough: bool = False) -> None:
    """Lives the case. Raises Broken for a wrong answer and Unsupported for what is not offered. With `drops_x` dropout acts on
    entries of x, so that the gradient of x shows the mask. If `thorough`, a layer that will be merged, or not be differentiated
    for all, makes the same passes before that: a merge hides dropout and the gradients of A and B."""
    true = lattice.truth(case)
    layer = _started(_built(subject, case), levels)
    with asked("state"):
        layer = _with_history(subject, layer, levels, case)
        _handle(layer, levels, case)
    before = levels | {"merged": False, "needs": "all"}
    if thorough and levels != before and not _lacks(layer.zero_grad):
        _passes(layer, before, case, true, drops_x)
        set_mode(layer, True)
        layer.zero_grad()
    if levels["needs"] in WITHOUT_X:
        layer.input_needs_grad(False)
    for name in NEEDLESS[str(levels["needs"])]:
        layer.factor_needs_grad(name, False)
    if levels["merged"]:
        with asked("W"):
            _merge(layer, levels["mode"] != "inference")
        with asked("state"):
            _handle(layer, levels, case, merged=True)
    _passes(layer, levels, case, true, drops_x)
    if levels["needs"] == "only x" and not levels["merged"] and not _lacks(layer.zero_grad):
        _thawed(layer, levels, case, drops_x)


def _handle(layer: Layer, levels: Levels, case: Case, merged: bool = False) -> None:
    """Does with the layer what the case says that torch does with the module."""
    how = str(levels["handled"])
    if how == "copied":
        layer.as_module("replaced", {})
    elif how not in ("plainly", *WAYS) and not (merged and how in ("reloaded", "assigned")):  # a load may be refused then
        layer.as_module("handled", {"x": case.x, "how": how})


def _thawed(layer: Layer, levels: Levels, case: Case, drops_x: bool) -> None:
    """A layer with frozen factors gets others. Then they are to train again."""
    case = case.replace(A=-case.A)
    true = lattice.truth(case)
    set_mode(layer, True)
    _set(layer, case.A, case.B)
    _Pass(layer, levels, case, true, _go(layer, False, False), graded=False).run()
    levels = levels | {"needs": "all"}
    for name in ("A", "B"):
        layer.factor_needs_grad(name, True)
    layer.input_needs_grad(True)
    layer.zero_grad()
    _Pass(layer, levels, case, true, _go(layer, levels["mode"] != "inference", False), drops_x=drops_x).run()


def _passes(layer: Layer, levels: Levels, case: Case, true: Answers, drops_x: bool) -> None:
    """The passes of the case, and those of the case with the numbers that its content says."""
    training = _go(layer, levels["mode"] != "inference", bool(levels["merged"]))
    usual = _Pass(layer, levels, case, true, training, drops_x=drops_x)
    usual.run()
    if levels["content"] not in ("few bits", "many bits"):
        training = _go(layer, training and not usual.random, usual.merged)  # dropout hides what x does
        graded = not _lacks(layer.zero_grad)
        case, true, numbers = odd(levels, case, true)
        unusual = _Pass(layer, levels, case, true, training, numbers, graded)
        if not unusual.random:  # a merged layer may have refused to leave training mode
            unusual.run()


def drops_x(subject: Subject, case: Case) -> bool:
    """Whether the gradient of x shows a mask of x in a layer of this case, which has dropout."""
    try:
        layer = _built(subject, case)
        _set(layer, case.A, case.B)
        layer.forward(case.x)
        dropped.read(layer.backward(case.dy)["x"], case.dy, case)
    except (Broken, Mismatch, SubjectError, Unsupported, KeyError):
        return False
    return True


def _lacks(method: Callable[[], None]) -> bool:
    try:
        method()
    except Unsupported:
        return True
    return False


def _built(subject: Subject, case: Case) -> Layer:
    try:
        layer = subject.build(case.config, case.W.copy(), None if case.b is None else case.b.copy())
    except SubjectError as refusal:
        wide_rank = case.config.rank > min(case.config.in_features, case.config.out_features)
        if refusal.broke or case.config.alpha > 0 and not wide_rank:
            raise Broken("state", refusal) from refusal
        reason = Unsupported("a rank above in or out" if wide_rank else f"alpha {case.config.alpha:g}")
        reason.method = "build"
        raise reason from refusal
    set_mode(layer, True)
    return layer


def _started(layer: Layer, levels: Levels) -> Layer:
    """The layer, whose passes go from now on as the case says."""
    if levels["handled"] in WAYS:
        layer.as_module("passes_go", {"way": WAYS[str(levels["handled"])]})
    return layer


def _set(layer: Layer, A: np.ndarray, B: np.ndarray) -> None:
    layer.set_adapter({"A": A.copy(), "B": B.copy()})


def _with_history(subject: Subject, layer: Layer, levels: Levels, case: Case) -> Layer:
    """The layer with the case's factors, after what the history says."""
    history = levels["history"]
    if history == "stepped":
        (_step if _steps_to_it(levels, case) else _any_step)(layer, case)
    elif history == "loaded":
        _set(layer, case.A, case.B)
        with saved(layer) as directory:
            layer = _started(_built(subject, case.replace(seed=case.config.seed + 1)), levels)
            layer.load(directory)
    elif history == "set again":
        _set(layer, np.flip(case.A), np.flip(case.B))
        with asked("y"):
            layer.forward(case.x)
        _set(layer, case.A, case.B)
    else:
        _set(layer, case.A, case.B)
    for _ in range({"unmerged": 1, "cycled": 3}.get(str(history), 0)):
        _merge(layer, True)
        if history == "cycled":
            with asked("y"):
                layer.forward(case.x)
            _go(layer, False, merged=True)
        _handle(layer, levels, case, merged=True)
        _unmerge(layer)
    return layer


def _go(layer: Layer, training: bool, merged: bool) -> bool:
    """Sets the mode, and says which it is then. A merged layer may refuse to change it."""
    try:
        set_mode(layer, training)
    except SubjectError as refusal:
        if refusal.broke or not merged:
            raise Broken("state", refusal) from refusal
        return not training
    return training


def _merge(layer: Layer, training: bool) -> None:
    """Merges the layer in this mode, or in the other one if it refuses that."""
    set_mode(layer, training)
    merge(layer, training)


def _unmerge(layer: Layer) -> None:
    """Unmerges the layer and sets training mode. Some layers unmerge by themselves in training mode."""
    try:
        layer.unmerge()
    except SubjectError as refusal:
        if refusal.broke:
            raise
        set_mode(layer, True)
        with suppress(Unsupported):
            refuses(layer.unmerge)
    set_mode(layer, True)


def _step(layer: Layer, case: Case) -> None:
    """Sets factors from which two SGD steps lead to those of the case. The first fills the last column of B, which is zero,
    from the first row of A. The second fills the last row of A, which is zero, from that column. With one number in x and one
    in dy, and with the scale's power of two taken out by the rate, each step is exact."""
    A, B, rate = case.A.copy(), case.B.copy(), 1 / _power(case.scale)
    B[:, -1] = 0
    A[-1] *= len(A) == 1
    _set(layer, A, B)
    for row in range(min(2, len(A))):
        x, dy = np.zeros((1, len(A)), case.dtype), np.zeros((1, B.shape[1]), case.dtype)
        x[0, -row], dy[0, -1] = 1, 1
        layer.forward(x)
        layer.backward(dy)
        layer.step(rate)
        layer.zero_grad()


def _any_step(layer: Layer, case: Case) -> None:
    """A step from the factors of the case, which takes the rate times the gradients that the layer gives. They may be those of
    any mask. Then the factors are set again."""
    _set(layer, case.A, case.B)
    dy, rate = np.zeros((1, case.config.out_features), case.dtype), 1 / _power(case.scale)
    dy[0, np.abs(wide(case.B)).sum(0).argmax()] = 1
    layer.forward(np.ones((1, case.config.in_features), case.dtype))
    found = layer.backward(dy)
    layer.step(rate)
    with suppress(Unsupported):
        after, before = layer.adapter(), lora.LoRA(*(wide(case.adapter[name]) for name in "AB"))
        if set("AB") <= set(found) and all(np.isfinite(wide(after[name])).all() for name in "AB"):
            gradients = lora.LoRA(*(wide(found[name]) for name in "AB"))
            bound = bounds.step(before, gradients, rate, case.config.dtype)
            for name in "AB":
                want = getattr(before, name) - rate * getattr(gradients, name)
                expect_within(after[name], want, getattr(bound, name), f"{name} after a step, from the gradient of the layer")
    layer.zero_grad()
    _set(layer, case.A, case.B)


class _Pass:
    """The forward and backward pass that is judged, the calls around it, and the state that they leave."""

    def __init__(self, layer: Layer, levels: Levels, case: Case, true: Answers, training: bool, numbers: "Odd | None" = None,
                 graded: bool = True, drops_x: bool = False):
        """Without `graded` no backward pass is made."""
        self.drops_x = drops_x
        self.passes: list[dropped.Pass] = []  # that the gradients of A and B are of
        self.layer, self.levels, self.case, self.true = layer, levels, case, true
        self.training = training
        self.merged = bool(levels["merged"]) and self.other_weight()  # some layers unmerge by themselves in training mode
        self.random = training and levels["mode"] == "dropout" and not (self.merged and self.delta)
        self.times = 1  # how often the gradients of A and B have been added up
        self.odd = numbers or Odd(case)
        self.graded = graded
        self.refused = False  # whether a backward pass was refused that may be
        self.withholds = False  # whether a layer that is merged in inference mode may give no gradients of A and B

    def run(self) -> None:
        x, dy, calls = self.case.x, self.case.dy, self.levels["calls"]
        kept, suspect = (x.copy(), dy.copy()), False
        with asked("W"):
            self.refuse_what_is_rounded()
        self.calls_before(str(calls), x, dy)
        with asked("y"):
            y = self.layer.forward(x)
        if self.random:
            with asked("y with dropout"):
                expect(bool(np.isfinite(wide(y)).all()), "y with dropout", "numbers that are not finite", "finite ones")
                suspect = dropped.nothing_seems_dropped(y, self.case, self.true, self.drops_x)
                dropped.near_its_mean(y, self.case, self.true, self.drops_x)
        else:
            self.judge_y(y)
        with asked("format of y"):
            expect(y.dtype == self.case.dtype, "dtype of y", y.dtype, self.case.dtype)
        self.withholds = not self.training and self.other_weight()
        if calls == "other mode before backward":
            _go(self.layer, not self.training, self.merged)
            self.withholds |= self.training and self.other_weight()
        with suppress(Unsupported):
            if self.graded:
                self.judge_gradients(self.gradients(dy, x, y))
        _go(self.layer, self.training, self.merged)
        for name, array, before in (("x", x, kept[0]), ("dy", dy, kept[1])):
            with asked(name):
                expect_equal(array, before, f"{name} after the passes")
        self.judge_state()
        if not self.training:
            self.judge_y_without_graph(x)
        if suspect:
            self.judge_whether_anything_is_dropped(str(calls), x, dy)
        if self.random:
            self.judge_without_dropout(x, dy)

    def judge_whether_anything_is_dropped(self, calls: str, x: np.ndarray, dy: np.ndarray) -> None:
        with asked("y with dropout"):
            for _ in range(dropped.tries(self.case, self.drops_x)):
                self.calls_before(calls, x, dy)
                if not dropped.nothing_seems_dropped(self.layer.forward(x), self.case, self.true, self.drops_x):
                    return
            raise Mismatch("y with dropout, in many passes", "that without dropout", "another one")

    def calls_before(self, calls: str, x: np.ndarray, dy: np.ndarray) -> None:
        with asked("y"):
            if calls == "other shape first":
                rows = x.reshape(-1, x.shape[-1])
                self.layer.forward(np.concatenate([rows, rows]) if len(rows) == 1 else rows[: len(rows) // 2].copy())
            elif calls in ("two before backward", "accumulated"):
                y = self.layer.forward(_turned(x))
            elif calls == "x changed in place":
                memory = x if x.flags.writeable else x.base  # of a broadcast array
                assert memory is not None
                memory[...] = -memory
                self.layer.forward(x)
                memory[...] = -memory
        if calls == "accumulated" and (not self.random or dropped.fits(self.case, ADDED)):
            with asked("dx"), suppress(Unsupported):
                self.gradients(_turned(dy), _turned(x), y)
                for _ in range(ADDED - 2):
                    self.gradients(dy, x, self.layer.forward(x))
                self.times = ADDED

    def judge_y(self, y: np.ndarray, note: str = "") -> None:
        with asked("y"):
            self.same(y, "y", f"y{note}")

    def judge_y_without_graph(self, x: np.ndarray) -> None:
        """The same pass under no_grad, as a layer that serves makes it. Only a torch module is asked for it."""
        with suppress(Unsupported):
            self.layer.as_module("entered", {"where": "under no_grad", "device": self.case.config.device})
            with asked("y without a graph"):
                try:
                    y = self.layer.forward(x)
                finally:
                    self.layer.as_module("left", {})
                self.same(y, "y", "y in inference mode under no_grad")

    def judge_y_after_dropout(self, x: np.ndarray, y: np.ndarray) -> None:
        try:
            self.judge_y(y, " in inference mode, after training with dropout")
        except Broken as broken:
            with asked("y"):
                again = [self.layer.forward(x) for _ in range(3)]
            if any(not np.array_equal(wide(y), wide(other), equal_nan=True) for other in again):
                raise Broken("dropout in inference", broken.failure) from broken
            raise

    def judge_without_dropout(self, x: np.ndarray, dy: np.ndarray) -> None:
        """The passes of a layer with dropout in inference mode, where every entry of an answer is known."""
        _go(self.layer, False, self.merged)
        graded = self.graded and not _lacks(self.layer.zero_grad)
        with asked("y"):
            y = self.layer.forward(x)
        self.judge_y_after_dropout(x, y)
        self.random, self.training, self.times, self.withholds = False, False, 1, True
        with suppress(Unsupported):
            if graded:
                self.judge_gradients(self.gradients(dy, x, y))

    def gradients(self, dy: np.ndarray, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
        """The gradients, or none where a backward pass may be refused. x and y are those of the forward pass."""
        try:
            found = self.layer.backward(dy)
            self.passes.append(dropped.Pass(x, dy, y, found.get("x") if self.levels["needs"] not in WITHOUT_X else None))
            return found
        except SubjectError as refusal:
            usual = self.training and not self.merged and self.levels["calls"] != "other mode before backward"
            usual &= self.levels["needs"] != "nothing"
            if refusal.broke or usual:
                raise Broken("dx", refusal) from refusal
            self.refused = True
            return {}

    def judge_gradients(self, found: dict[str, np.ndarray]) -> None:
        needs = self.levels["needs"]
        if not found and (self.refused or not self.training or self.merged or needs == "nothing"):
            return
        if "x" in found and needs not in WITHOUT_X and not self.random:
            with asked("format of dx"):
                expect(found["x"].dtype == self.case.x.dtype, "dtype of dx", found["x"].dtype, self.case.x.dtype)
            with asked("dx"):
                self.same(found["x"], "dx", "dx")
        elif "x" not in found and needs not in WITHOUT_X:
            with asked("dx"):
                raise Mismatch("gradients after backward", f"only {sorted(found)}", "that of x among them")
        if self.merged:
            return  # they may be withheld, and then others may be there
        for name in ("A", "B"):
            with asked(f"d{name}"):
                if name in NEEDLESS[str(needs)]:
                    expect(name not in found or not found[name].any(), f"d{name} while {name} needs none", "a gradient", "none")
                elif name not in found:
                    expect(self.withholds, "gradients after backward", f"only {sorted(found)}", f"that of {name} among them")
                elif not self.random and holds(self.case.config.dtype, self.times * getattr(self.true, f"d{name}")):
                    self.same(found[name], f"d{name}", f"d{name}", self.times)
        if self.random:
            with asked("one mask"):
                judged = {*"AB"} - {*NEEDLESS[str(needs)]} if dropped.fits(self.case, self.times) else set()
                found = {name: array for name, array in found.items() if name in judged}
                dropped.of_one_mask(self.passes, found, self.case)
                if self.drops_x and all(passed.dx is not None for passed in self.passes):
                    dropped.explain(self.passes, found, self.case)

    @cached_property
    def delta(self) -> bool:
        """Whether a merge changes W."""
        return not np.array_equal(self.true.merged, self.case.W)

    def other_weight(self) -> bool:
        """Whether the layer may be merged now, by its weight, or because it has no factors."""
        try:
            with asked("W"):
                if not self.delta or not np.array_equal(self.layer.weight(), self.case.W):
                    return True
            with asked("A"):
                self.layer.adapter()
        except Unsupported:
            return True
        return False

    def refuse_what_is_rounded(self) -> None:
        """Raises Unsupported for a layer that was to be merged, has unmerged by itself, and has another W by the rounding
        errors of that: nothing that it computes now is that of the case."""
        if not self.levels["merged"] or not self.training:
            return
        try:
            weight = self.layer.weight()
        except Unsupported:
            return
        case, W = self.case, wide(weight)
        bound = bounds.unmerge(case.W, lora.LoRA(case.A, case.B), case.scale, case.config.dtype)
        back, merged = within(W, wide(case.W), bound).all(), within(W, wide(self.true.merged), case.bound.merged).all()
        if back and not merged and not np.array_equal(weight, case.W):
            raise Unsupported("a merge that stays in training mode")

    def judge_state(self) -> None:
        with asked("A"), suppress(Unsupported):
            found = self.layer.adapter()
            for name, want in self.case.adapter.items():
                expect_equal(found[name], want, f"{name} after the passes")
        with asked("W"), suppress(Unsupported):
            weight = self.layer.weight()
            if self.merged or not self.training:  # some layers merge by themselves in inference mode, and unmerge after it
                if not np.array_equal(weight, self.case.W):
                    self.same(weight, "merged", "W" if self.merged else "W in inference mode")
            else:
                expect_equal(weight, self.case.W, "W after the passes")

    def same(self, got: np.ndarray, name: str, what: str, times: int = 1) -> None:
        """Demands equal bits. Only where the case is not exact in every honest order, the bound decides what is not equal."""
        want = times * getattr(self.true, name)
        got = self.odd.judged(got, want, name, what)
        try:
            expect_equal(got, want, what)
        except Mismatch:
            if self.one_term or self.exact and times == 1:
                raise
            expect_within(got, want, self.bound(name, times), what)

    @cached_property
    def one_term(self) -> bool:
        """Whether each sum has one term, and no honest way of computing it is rounded."""
        return self.levels["content"] == "many bits" and can_tell_each_bit(self.levels)

    @cached_property
    def exact(self) -> bool:
        """Whether no honest way of computing the answers is rounded."""
        if self.levels["content"] == "many bits" and not REPEATED & {self.levels["x lies"], self.levels["dy lies"]}:
            return False
        if self.merged and _power(self.case.config.rank) != self.case.config.rank:
            return False  # (A B) · alpha / rank: JAX, for one, divides by a number by multiplying with its rounded reciprocal
        return exact_in_any_order(self.odd.even)

    def bound(self, name: str, times: int) -> np.ndarray:
        case = self.odd.even if self.odd.lost else self.case
        bound = getattr(case.bound, name)
        if case.config.dtype == "float64":
            bound = 2 * bound  # `lattice.truth` is in float64, too: where the case is not exact, it is rounded like an answer
        if self.merged and name in ("y", "dx"):
            given, merged = (case.x, case.bound.merged.T) if name == "y" else (case.dy, case.bound.merged)
            bound = bound + np.abs(wide(given)) @ merged
        if times > 1:
            added = bounds.total([lora.LoRA(self.true.dA, self.true.dB)] * times, case.config.dtype)
            bound = times * bound + getattr(added, name[1:])
        return bound


def _turned(array: np.ndarray) -> np.ndarray:
    """The array with the opposite signs, and with the rows in reverse order. For x and dy the gradients of A and B are the
    same."""
    return -np.flip(array, tuple(range(array.ndim - 1)))
