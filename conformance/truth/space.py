"""The space of cases: what a layer may be asked, as factors with their levels. Nothing here is about one implementation.

A real fault lives in a regime: the tail of a tile, a stride, a number format in one mode, a value of alpha. A regime is a
combination of levels. Kuhn, Wallace and Gallo (IEEE Trans. Software Eng. 30(6), 2004; NIST SP 800-142) found that hardly any
fault needs more than three factors together, and few more than one or two. So every combination of three levels has to be in
some case: `covering.py` makes such an array of cases, and `COVERED` says exactly which combinations it must hold.

A level that an implementation does not offer is replaced by the plain level of its factor. What is covered of the other
levels stays covered.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from itertools import combinations
from typing import NamedTuple

NEAR = (1, 2, 8, 16, 32, 64, 128, 256, 1024, 4096)  # tiles and blocks of real kernels have such sizes
BETWEEN = (20, 102)  # even, and no multiples of 8: code for pairs, or for vectors, has tails there
LARGEST = {"rows": 4097, "in": 1025, "out": 1025, "rank": 129}
WORK = 2**21  # the most multiplications of one product, counted with the sizes of NEAR
Levels = dict[str, "Level"]
Level = int | float | str | bool


def around(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Each size with the one below and the one above."""
    return tuple(sorted({n for size in sizes for n in (size - 1, size, size + 1) if n > 0}))


def word(level: Level) -> str:
    """The level as users write it."""
    return ("yes" if level else "no") if isinstance(level, bool) else str(level)


class Factor(NamedTuple):
    """One thing that cases differ in. Its first level is the plain one, unless it is a size: then `plain` is."""

    name: str
    levels: tuple[Level, ...]
    says: str
    size: int = 0  # the plain size: small, and different for each size; 0: it is no size

    @property
    def is_size(self) -> bool:
        return self.size > 0

    @property
    def plain(self) -> Level:
        return self.size or self.levels[0]


def sizes(name: str) -> tuple[int, ...]:
    return tuple(sorted(size for size in (*around(NEAR), *BETWEEN) if size <= LARGEST[name]))


PAIRS = tuple(combinations(LARGEST, 2))

FACTORS = (
    Factor("rows", sizes("rows"), "rows of x, over all leading dimensions", 3),
    Factor("in", sizes("in"), "in_features", 7),
    Factor("out", sizes("out"), "out_features", 9),
    Factor("rank", sizes("rank"), "rank", 2),
    Factor("alike", ("none", *(f"{a} = {b}" for a, b in PAIRS)), "sizes that are equal, perhaps besides others"),
    Factor("leading", (1, 0, 2, 3, 4, 5), "leading dimensions of x"),
    Factor("bias", (True, False), "whether the layer has a bias"),
    Factor("format", ("float32", "float64", "float16", "bfloat16"), "number format of the layer and of x"),
    Factor("scaling", ("standard", "rslora"), "rule of the scale: alpha / rank or alpha / √rank"),
    Factor("scale", ("4", "1", "9/4", "-1/4", "0", "1/64", "64", "far below", "far above"),
           "scale that alpha gives; 1: alpha equal to the rank; far: 2 to the power of ∓16, in float16 of ∓8"),
    Factor("mode", ("training", "inference", "dropout"), "training without dropout, inference, training with dropout"),
    Factor("rate", (0.0, 0.1, 0.5, 0.9), "dropout rate of the configuration"),
    Factor("x lies", ("plain", "transposed", "strided", "cut out", "reversed", "broadcast", "shifted"), "x in memory"),
    Factor("dy lies", ("plain", "transposed", "strided", "broadcast", "one token", "one number", "shifted"),
           "dy in memory; one token: the same in all rows of a sample"),
    Factor("needs", ("all", "not x", "not A", "not B", "only x", "only A", "only B", "nothing"),
           "what gets a gradient, of x, A and B"),
    Factor("merged", (False, True), "whether the layer is merged"),
    Factor("history", ("set", "stepped", "loaded", "unmerged", "cycled", "set again"), "what happened to the layer before"),
    Factor("calls", ("once", "two before backward", "accumulated", "other mode before backward", "other shape first",
                     "x changed in place"), "the calls around the one that is judged"),
    Factor("handled", ("plainly", "copied", "reloaded", "assigned", "converted", "swapped", "served", "threaded",
                       "checkpointed", "functional"),
           "what torch does with the module between the steps, or how each pass goes"),
    Factor("content", ("few bits", "many bits", "NaN", "infinity", "zeros", "tiny", "huge", "tiny dy"), "the numbers"),
)
PLAIN: Levels = {factor.name: factor.plain for factor in FACTORS}
NAMES = tuple(factor.name for factor in FACTORS)
BY_NAME = {factor.name: factor for factor in FACTORS}
STATE = ("format", "mode", "history")  # with each size, every combination of four


@cache
def size_near(size: int) -> int:
    """The place in NEAR of the size that this one is nearest to."""
    return min(range(len(NEAR)), key=lambda place: abs(NEAR[place] - size))


def scale_of(levels: Levels) -> Fraction:
    """The scale of a case with these levels."""
    power = 2 ** (8 if levels["format"] == "float16" else 16)  # float16 ends at 65504
    far = {"far below": Fraction(1, power), "far above": Fraction(power)}
    return far.get(str(levels["scale"])) or Fraction(str(levels["scale"]))


class Rule(NamedTuple):
    """A constraint: the combinations of these factors' levels that are possible."""

    factors: tuple[str, ...]
    holds: Callable[..., bool]
    says: str


TOO_LONG = "a case that takes longer is not in the space"
RULES = (
    Rule(("rows", "in", "out"), lambda *sizes: _work(*sizes) <= WORK / 2, TOO_LONG),
    Rule(("in", "out", "rank"), lambda *sizes: _work(*sizes) <= WORK, TOO_LONG),
    Rule(("rows", "in", "rank"), lambda *sizes: _work(*sizes) <= WORK, TOO_LONG),
    Rule(("rows", "out", "rank"), lambda *sizes: _work(*sizes) <= WORK, TOO_LONG),
    Rule(("alike", *LARGEST), lambda alike, *sizes: alike == "none" or _equal(alike, sizes), "that is what the words mean"),
    Rule(("leading", "rows"), lambda leading, rows: leading != 0 or rows == 1, "x without leading dimension is one row"),
    Rule(("mode", "rate"), lambda mode, rate: {"training": rate == 0, "dropout": rate > 0}.get(mode, True),
         "that is what these modes mean"),
    Rule(("handled", "calls"), lambda handled, calls: (handled, calls) != ("checkpointed", "other mode before backward"),
         "the second pass of a checkpoint is in the mode that the layer has then"),
    Rule(("content", "scale"), lambda content, scale: content != "many bits" or scale != "9/4",
         "the product of two numbers of many bits is rounded"),
)


def _equal(alike: str, sizes: tuple[int, ...]) -> bool:
    first, second = alike.split(" = ")
    of = dict(zip(LARGEST, sizes, strict=True))
    return of[first] == of[second]


def _work(*sizes: int) -> int:
    return math.prod(NEAR[size_near(size)] for size in sizes)


def possible(levels: Levels) -> bool:
    """Whether no rule forbids these levels. Factors that are not among them count as free."""
    return all(rule.holds(*(levels[name] for name in rule.factors)) for rule in RULES if set(rule.factors) <= set(levels))


class Column(NamedTuple):
    """A factor as it counts in a combination: by its levels, or, if `near`, a size by its place in NEAR."""

    factor: str
    near: bool = False


def covered(exact: bool) -> tuple[tuple[Column, ...], ...]:
    """The sets of columns of which every possible combination must be in some case.

    These are any two factors, any three, and each size with STATE. In a pair a size counts exactly. Of three factors two sizes
    or more count by their places in NEAR. One size among other factors counts exactly if `exact`, or else by its place."""
    found = [tuple(Column(factor.name) for factor in two) for two in combinations(FACTORS, 2)]
    for three in combinations(FACTORS, 3):
        near = not exact or sum(factor.is_size for factor in three) > 1
        found.append(tuple(Column(factor.name, near and factor.is_size) for factor in three))
    sizes = [factor.name for factor in FACTORS if factor.is_size]
    found += [(Column(size, not exact), *map(Column, STATE)) for size in sizes]
    return tuple(found)


COVERED = {exact: covered(exact) for exact in (True, False)}
# What a covering array holds, in words.
STRENGTH = {
    True: "every combination of any 3 levels, and of 4 for size × format × mode × history",
    False: "every pair of levels, and every combination of any 3, and of 4 for size × format × mode × history, with sizes near "
           "the size of a tile",
}
