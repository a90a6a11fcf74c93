"""What the calls to a layer show of the levels of `space`: an observer is told of each call.

It knows no case. A level that no call has shown yet is not there: that gradients add up shows at the second backward pass.
Where the calls fit several levels, all of them are there.
"""

import numpy as np

from conformance.subject import Arrays, LayerConfig
from conformance.truth.case import BITS
from conformance.truth.compare import same_number
from conformance.truth.space import BY_NAME, Level, Levels, scale_of

Seen = tuple[Level, ...]
BUILT = ("in", "out", "rank", "bias", "format", "scaling", "scale", "rate")
STATE = (*BUILT, "history", "content")
FORWARD = (*STATE, "mode", "needs", "merged", "rows", "alike", "leading", "x lies", "calls")
# For each kind of call the factors whose levels it can show.
SEEN_AT = {
    "set": STATE, "load": STATE, "step": STATE, "zero": STATE, "unmerge": STATE, "merge": (*STATE, "mode", "needs", "merged"),
    "forward": FORWARD, "backward": (*FORWARD, "dy lies"),
}
ODD = ("NaN", "infinity", "zeros", "tiny", "huge", "tiny dy")  # levels of content that x shows, and the last one dy
# Levels that such a call can never show: x or dy alone shows them, or they come about after it.
NEVER_AT = {
    **{call: {"content": ODD} for call in ("load", "step", "zero", "unmerge", "merge")},
    "set": {"content": ODD, "history": ("stepped", "loaded", "unmerged", "cycled")},
    "forward": {"calls": ("other mode before backward",), "content": ("tiny dy",)}, "backward": {},
}
# For what gets no gradient, the level of "needs".
NEEDS = {frozenset(names): level for names, level in (
    ("", "all"), ("x", "not x"), ("A", "not A"), ("B", "not B"), ("AB", "only x"), ("xB", "only A"), ("xA", "only B"),
    ("xAB", "nothing"))}
ALIGNED = 16  # the address of an array that NumPy makes is a multiple of it


class Observer:
    """The calls to one layer so far, as levels."""

    def __init__(self, config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None):
        root = config.rank**0.5 if config.scaling == "rslora" else config.rank
        scale = config.alpha / root if config.rank else 0.0
        self.rate, self.format = config.dropout, config.dtype
        self.built: dict[str, Seen] = {
            "in": (config.in_features,), "out": (config.out_features,), "rank": (config.rank,), "bias": (bias is not None,),
            "format": (config.dtype,), "scaling": (config.scaling,), "rate": (config.dropout,),
            "scale": tuple(level for level in BY_NAME["scale"].levels
                           if same_number(scale, float(scale_of({"scale": level, "format": config.dtype})))),
        }
        self.weights = {"W": weight} if bias is None else {"W": weight, "b": bias}
        self._by_weights: bool | None = None  # whether the weights have many bits, once that is known
        self.training, self.merged, self.withheld = True, False, set()
        self.counts = {"set": 0, "load": 0, "step": 0, "unmerge": 0}
        self.x = self.dy = None
        self._anew()

    def _anew(self) -> None:
        """Forgets the passes before: the factors or the weight have changed."""
        self.pending: list[tuple[np.ndarray, np.ndarray]] = []  # each x since the last backward pass, and a copy
        self.added = False  # whether a gradient waits that the next one is added to
        self.calls: Seen = ()
        self.mode_then = self.training

    # --- calls -----------------------------------------------------------------------------------------------------------

    def changed(self, kind: str, factors: Arrays) -> None:
        """The layer was told to set, load, step, merge or unmerge, and did. It has these factors now."""
        self.weights |= factors
        self._by_weights = None
        self.merged = {"merge": True, "unmerge": False}.get(kind, self.merged)
        if kind in self.counts:
            self.counts[kind] += 1
        if kind != "step":  # the gradients are still there
            self._anew()
        self.x = self.dy = None

    def zeroed(self) -> None:
        self._anew()

    def needs_grad(self, name: str, needed: bool) -> None:
        (self.withheld.discard if needed else self.withheld.add)(name)

    def forward(self, x: np.ndarray) -> None:
        self.calls = (self._of_forward(x), *(("accumulated",) if self.added else ()))
        self.pending.append((x, x.copy()))
        self.x, self.dy, self.mode_then = x, None, self.training

    def _of_forward(self, x: np.ndarray) -> str:
        if not self.pending:
            return "once"
        before, copy = self.pending[-1]
        if before.shape != x.shape:
            return "other shape first"
        same = before.ctypes.data == x.ctypes.data and before.strides == x.strides
        return "x changed in place" if same and copy.tobytes() != x.tobytes() else "two before backward"

    def backward(self, dy: np.ndarray) -> None:
        self.dy = dy
        other = ("other mode before backward",) if self.mode_then != self.training else ()
        self.calls = (*(("accumulated",) if self.added else ()), *other) or self.calls
        self.added, self.pending = True, []

    # --- levels ----------------------------------------------------------------------------------------------------------

    def levels(self, name: str) -> Seen:
        """The levels of this factor that fit the current call; none if it shows none."""
        if name in self.built:
            return self.built[name]
        if name == "history":
            return self._history()
        if name == "merged":
            return (self.merged,)
        if name == "mode":
            training = self.training if self.dy is None else self.mode_then  # a backward pass counts with its forward pass
            return ("inference" if not training else "dropout" if self.rate else "training",)
        if name == "needs":
            return (NEEDS[frozenset(self.withheld)],)
        if name == "content":
            return self._content()
        if name == "dy lies":
            return () if self.dy is None else lies_dy(self.dy)
        if self.x is None:
            return ()
        if name == "rows":
            return (int(np.prod(self.x.shape[:-1], dtype=int)),)
        if name == "alike":
            pairs = (str(level).split(" = ") for level in BY_NAME[name].levels[1:])
            return ("none", *(f"{a} = {b}" for a, b in pairs if self.levels(a) == self.levels(b)))
        return {"leading": (self.x.ndim - 1,), "x lies": (lies(self.x),), "calls": self.calls}[name]

    def _history(self) -> Seen:
        count = self.counts
        if not (count["set"] or count["load"]):
            return ()
        return (next(level for holds, level in (
            (count["step"], "stepped"), (count["load"], "loaded"), (count["unmerge"] > 1, "cycled"),
            (count["unmerge"], "unmerged"), (count["set"] > 1, "set again"), (True, "set")) if holds),)

    @property
    def _unit(self) -> float:
        """A number that the usual entries of x and dy are near."""
        return 1 / 16 if self.format == "float16" else 1.0

    def _content(self) -> Seen:
        x = None if self.x is None else self.x.astype(np.float64)
        if x is not None and np.isnan(x).any():
            return ("NaN",)
        if x is not None and np.isinf(x).any():
            return ("infinity",)
        if self._by_weights is None:
            self._by_weights = any(has_many_bits(array, BITS[self.format]) for array in self.weights.values())
        if self.dy is not None and self.dy.size and float(np.abs(self.dy.astype(np.float64)).max()) < self._unit / 2:
            return ("tiny dy",)
        if self._by_weights or any(a is not None and has_many_bits(a, BITS[self.format]) for a in (self.x, self.dy)):
            return ("many bits",)
        if x is not None:
            most = float(np.abs(x).max(initial=0.0))
            if x.size and not x.any(-1).all():
                return ("zeros",)
            if not self._unit / 2 < most < 4 * self._unit:
                return ("tiny" if most < self._unit else "huge",)
        return ("few bits",)


def has_many_bits(array: np.ndarray, bits: int) -> bool:
    """Whether some number has about as many bits as the format."""
    mantissa, _ = np.frexp(array.astype(np.float64))
    scaled = np.ldexp(mantissa, bits - 2)  # a whole number, if two bits less are enough
    return bool((scaled != np.rint(scaled)).any())


def can_be_seen(levels: Levels) -> bool:
    """Whether an observer can see these levels together. One row is contiguous, however it was cut out or transposed."""
    one_row = levels.get("leading") == 0 or levels.get("rows") == 1
    return not one_row or not {"cut out", "transposed"} & {levels.get("x lies"), levels.get("dy lies")}


def lies_dy(dy: np.ndarray) -> Seen:
    """How dy lies in memory: levels of "dy lies". With few dimensions, numbers that are there once fit several of them."""
    repeats = [axis for axis, (stride, size) in enumerate(zip(dy.strides, dy.shape, strict=True)) if size > 1 and not stride]
    if not repeats:
        return (lies(dy),)
    long = [axis for axis, size in enumerate(dy.shape) if size > 1]
    fits = {"broadcast": repeats == long[:1] and repeats[0] < dy.ndim - 1, "one token": repeats == [dy.ndim - 2],
            "one number": repeats == long}
    return tuple(level for level, holds in fits.items() if holds)


def lies(array: np.ndarray) -> str:
    """How the array lies in memory: a level of "x lies". Dimensions of one element tell nothing."""
    item = array.itemsize
    strides = [stride for stride, size in zip(array.strides, array.shape, strict=True) if size > 1]
    if any(stride < 0 for stride in strides):
        return "reversed"
    if any(stride == 0 for stride in strides):
        return "broadcast"
    if array.flags.c_contiguous:
        return "shifted" if array.ctypes.data % ALIGNED else "plain"
    if strides != sorted(strides, reverse=True):
        return "transposed"
    if array.shape[-1] > 1:
        return "strided" if strides[-1] > item else "cut out"
    return "strided" if strides[-1] == 2 * item else "cut out"
