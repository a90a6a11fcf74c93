"""Sweeps the space: lives every case of a covering array, and makes each failure as plain as it still fails.

The array is divided into PARTS, which judges take like requirements. A part finds an outcome for each requirement that one of
its cases breaks. Where a subject does not offer a level, the plain one takes its place: what is covered of the others stays
covered.
"""

import math
import shlex
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property

import numpy as np

from conformance.record.trace import Traced
from conformance.requirements.helpers import life
from conformance.requirements.helpers.broken import breaks
from conformance.requirements.helpers.life import Broken
from conformance.run.examine import Outcome, described, failed
from conformance.subject import Subject, Unsupported
from conformance.truth import covering
from conformance.truth.space import BY_NAME, FACTORS, PLAIN, Level, Levels, possible, word

PARTS = tuple(f"SPACE-{number:02}" for number in range(1, 17))
ONE = "SPACE"  # stands for one case, whose levels the user gave
CAUSES = 6  # failures that one part makes plain; further ones are most likely the same again
OTHER_NUMBERS = (10_001, 10_002)  # cases with other entries that are tried while a failure is made plain: a few hide it
PATIENCE = 3  # a part has this many times the limit of one requirement: it has about a hundred cases, and machines can be slow
SHARE, PLAIN_SHARE = 0.7, 0.9  # of the time that a part has: for its cases, and until the last failure has to be plain
OF_SQUARES = ("in", "out", "alike")  # what a square case changes
KINDS = tuple((dtype, bias) for bias in (True, False) for dtype in ("float32", "float64", "float16", "bfloat16"))
# The levels that need a method of Layer. For `build` it is tried which of them the subject does not offer.
NEEDED = {
    "build": (("scaling", "rslora"), ("scale", "0"), ("scale", "-1/4"), ("rate", 0.1), ("rate", 0.5), ("rate", 0.9)),
    "merge": (("merged", True), ("history", "unmerged"), ("history", "cycled")),
    "unmerge": (("history", "unmerged"), ("history", "cycled")),
    "save": (("history", "loaded"),), "load": (("history", "loaded"),),
    "backward": (("history", "stepped"), ("calls", "accumulated")), "step": (("history", "stepped"),),
    "zero_grad": (("history", "stepped"),), "input_needs_grad": tuple(("needs", level) for level in life.WITHOUT_X),
    "as_module": tuple(("handled", level) for level in BY_NAME["handled"].levels[1:]),
    "factor_needs_grad": tuple(("needs", level) for level, names in life.NEEDLESS.items() if names),
}


@dataclass
class Failure:
    """A case of the space that fails, with levels as plain as it still fails."""

    id: str  # of the requirement that it breaks
    levels: Levels
    passes: dict[str, Level]  # for a size that is needed, the next smaller one, with which it passes
    broken: Broken
    number: int
    plain: Levels = field(default_factory=lambda: PLAIN)  # the plain levels, as far as the subject offers them

    @property
    def needed(self) -> str:
        """The levels that are not the plain ones, in words."""
        words = []
        for name, level in self.levels.items():
            if level != self.plain[name]:
                less = f" (not {self.passes[name]})" if name in self.passes else ""
                words.append(f"{name} {word(level)}{less}")
        return ", ".join(words)

    @property
    def arguments(self) -> list[str]:
        """The levels as arguments of --space."""
        needed = {name: level for name, level in self.levels.items() if level != PLAIN[name]}
        return [f"number={self.number}", *(f"{name}={word(level)}" for name, level in needed.items())]


@dataclass
class Sweep:
    """What the cases of a part have shown."""

    lived: int = 0  # cases that were judged
    left: int = 0  # cases that were not lived: enough had failed, or there was no time
    late: int = 0  # of these, those for which there was no time
    declined: Counter[str] = field(default_factory=Counter)  # levels, in words, that are not offered → cases that had them
    failures: dict[str, Failure] = field(default_factory=dict)  # by the id of the requirement


class Sweeper:
    """Sweeps a part of the space for one subject."""

    def __init__(self, subject: Subject, kinds: frozenset[tuple[str, bool]], seed: int, device: str = "cpu",
                 until: float = float("inf"), exact: bool = True, plain_until: float = float("inf")):
        self.subject, self.kinds, self.seed, self.device = subject, kinds, seed, device
        self.until, self.plain_until, self.exact, self.found = until, plain_until, exact, Sweep()
        self.square, self.rank = getattr(subject, "square", False), getattr(subject, "rank", None)
        self.wide_rank = True  # whether it offers ranks above in or out
        self.lacking: set[tuple[str, Level]] = set()  # levels that the subject does not offer
        fixed = [getattr(subject, name, None) for name in ("scale", "alpha")]
        self.scale, self.alpha = (None if number is None else Fraction(number) for number in fixed)

    def part(self, number: int, parts: int = len(PARTS), explain: bool = True) -> Sweep:
        """Lives every `parts`-th case, from the one of this number on."""
        rows = list(enumerate(covering.array(self.seed, self.exact)))[number::parts]
        done: set[tuple[Level, ...]] = set()
        for place, (at, levels) in enumerate(rows):
            if time.perf_counter() > self.until:
                self.found.left = self.found.late = len(rows) - place
                break
            broken, levels = self.outcome(levels, at, done)
            if broken is None or self._explained(broken, levels):
                continue
            failure = self.made_plain(broken, levels, at) if explain else self._failure(levels, {}, broken, at)
            if time.perf_counter() > self.plain_until and self._failed_before(broken.kind):
                self.found.left = self.found.late = len(rows) - place - 1
                break  # its levels may not be needed, and would accuse another requirement
            self.found.failures.setdefault(failure.id, failure)
            everywhere = not failure.needed and explain  # the other cases would say the same
            if everywhere or len(self.found.failures) >= CAUSES or getattr(broken.failure, "broke", False):
                self.found.left = len(rows) - place - 1
                break
        return self.found

    def _failed_before(self, kind: str) -> bool:
        return any(failure.broken.kind == kind for failure in self.found.failures.values())

    def _explained(self, broken: Broken, levels: Levels) -> bool:
        """Whether an earlier failure of this kind has needed no level that this case does not have."""
        return any(
            failure.broken.kind == broken.kind and all(
                levels[name] == level or BY_NAME[name].is_size and int(levels[name]) >= int(level)
                for name, level in failure.levels.items() if level != PLAIN[name])
            for failure in self.found.failures.values())

    def outcome(self, levels: Levels, number: int, done: set[tuple[Level, ...]]) -> tuple[Broken | None, Levels]:
        """How the case went, and its levels with those that the subject offers. None if nothing was wrong."""
        wanted = levels
        while True:
            levels = self.offered(wanted)
            if tuple(levels.values()) in done:
                return None, levels
            done.add(tuple(levels.values()))
            try:
                broken = self.lived(levels, number)
            except Unsupported as reason:
                if self.wide_rank and reason.method == "build" and int(levels["rank"]) > _most(levels):
                    with suppress(Unsupported):
                        self.lived(levels | {"rank": 1}, number)
                        self.wide_rank = False
                        continue
                more = [pair for pair in NEEDED.get(reason.method, ()) if levels[pair[0]] == pair[1]]
                if not more or not set(more) - self.lacking:
                    self.found.declined[str(reason)] += 1
                    return None, levels
                lacking = self._lacking(more, levels, number) if reason.method == "build" else more
                self.lacking |= {(name, level) for name, level in lacking if self._declined_alone(name, level, number)}
                if self.offered(wanted) == levels:
                    self.found.declined[str(reason)] += 1
                    return None, levels
                continue
            self.found.lived += 1
            silent = (OF_SQUARES if self.square else ()) + (() if self.rank is None else ("rank", "alike"))
            told = (name for name in wanted if levels[name] != wanted[name] and name not in silent)
            changed = [f"{name} {word(wanted[name])}" for name in told]
            changed += ["in other than out"] * (self.square and wanted["in"] != wanted["out"])
            changed += [f"a rank other than {self.rank}"] * (self.rank not in (None, wanted["rank"]))
            self.found.declined.update(changed)
            return broken, levels

    def _lacking(self, pairs: list[tuple[str, Level]], levels: Levels, number: int) -> Iterator[tuple[str, Level]]:
        """Those of the pairs, of a factor and its level, without which the layer can be built."""
        for name, level in pairs:
            with suppress(Unsupported):
                self.lived(_plainer(levels, name), number)
                yield name, level
                return

    def _declined_alone(self, name: str, level: Level, number: int) -> bool:
        """Whether the plain case with this level is declined, too. If not, only some cases with the level are: it counts as
        offered, so that the others are lived."""
        alone = self.offered(PLAIN) | {name: level}
        with suppress(Unsupported):
            self.lived(alone, number)
            return False
        return True

    def offered(self, levels: Levels) -> Levels:
        """The levels with the plain one in the place of each that the subject does not offer."""
        for name, level in self.lacking:
            if levels[name] == level:
                levels = _plainer(levels, name)
        kind = levels["format"], levels["bias"]
        if kind not in self.kinds:
            near = [k for k in KINDS if k in self.kinds and (k[0] == kind[0] or k[1] == kind[1])]
            dtype, bias = (near or [k for k in KINDS if k in self.kinds])[0]
            levels = levels | {"format": dtype, "bias": bias}
        if self.square:
            size = _most(levels)
            levels = levels | {"in": size, "out": size, "alike": levels["alike"] if levels["alike"] == "in = out" else "none"}
        if self.rank is not None:
            equal = str(levels["alike"]).endswith("= rank")
            levels = levels | {"rank": self.rank, "alike": "none" if equal else levels["alike"]}
        if not self.wide_rank and int(levels["rank"]) > _most(levels):
            levels = levels | {"rank": max(size for size in BY_NAME["rank"].levels if int(size) <= _most(levels))}
        if self.alpha is not None:
            rank = self.rank or 2 ** (int(levels["rank"]).bit_length() - 1)  # 1 / rank is exact for such a rank
            levels = levels | {"rank": rank, "scale": str(self.alpha / rank), "scaling": "standard"}
        if self.scale is not None:
            levels = levels | {"scale": str(self.scale), "scaling": "standard"}
        return levels

    def lived(self, levels: Levels, number: int, record: bool = False) -> Broken | None:
        """Lives the case once. Raises Unsupported."""
        case = life.prepared(levels, self.seed_of(number))
        case = case if self.device == "cpu" else case.replace(device=self.device)
        self.traced = Traced(self.subject, record)
        try:
            life.live(self.traced, levels, case, levels["mode"] == "dropout" and self.drops_x, self.exact)
        except Broken as broken:
            return broken
        return None

    @cached_property
    def drops_x(self) -> bool:
        """Whether dropout acts on entries of x, and the gradient of x shows them. It is tried on a case of 31 rows and 9 ranks.
        With a mask of x A some of their halves are dropped, and that looks like no mask of x."""
        levels = self.offered(PLAIN | {"mode": "dropout", "rate": 0.5, "rows": 31, "in": 16, "out": 17, "rank": 9})
        return levels["mode"] == "dropout" and life.drops_x(Traced(self.subject), life.prepared(levels, self.seed))

    def seed_of(self, number: int) -> int:
        """The seed of the numbers of a case."""
        return (self.seed * 1_000_003 + number) % 2**31

    def one(self, levels: Levels, number: int) -> Sweep:
        """Lives one case."""
        broken, levels = self.outcome(levels, number, set())
        if broken is not None:
            failure = self._failure(levels, {}, broken, number)
            self.found.failures[failure.id] = failure
        return self.found

    def _failure(self, levels: Levels, passes: dict[str, Level], broken: Broken, number: int) -> Failure:
        """The failure of the case. What the subject has in the place of a plain level counts as that."""
        plain = self.offered(PLAIN)
        counted = {name: PLAIN[name] if level == plain[name] else level for name, level in levels.items()}
        return Failure(breaks(broken.kind, counted), levels, passes, broken, number, plain)

    def made_plain(self, broken: Broken, levels: Levels, number: int) -> Failure:
        """The failure with every factor at its plain level, or at the smallest size, with which an answer of the same kind is
        still wrong."""
        passes: dict[str, Level] = {}
        if getattr(broken.failure, "broke", False):  # each further try would start a process
            return self._failure(levels, passes, broken, number)

        def fails(candidate: Levels) -> bool:
            """Whether the case fails that has these levels, as far as they are offered. Then its levels are kept."""
            nonlocal broken, number, levels
            candidate = self.offered(candidate)
            if not possible(candidate) or candidate == levels:
                return False
            for other in (number, *OTHER_NUMBERS):
                if time.perf_counter() > self.plain_until:
                    return False
                with suppress(Unsupported):
                    now = self.lived(candidate, other)
                    if now is not None and now.kind == broken.kind and not getattr(now.failure, "broke", False):
                        broken, number, levels = now, other, candidate
                        return True
            return False

        before: Levels = {}
        while levels != before:  # one factor may have kept another from its plain level
            before = dict(levels)
            for factor in FACTORS:
                name, known = factor.name, levels[factor.name]
                if known == factor.plain:
                    continue
                plain = self.offered(PLAIN)
                both = {size: plain[size] for size in ("in", "out")} if self.square and name in ("in", "out") else {}
                if not fails(_plainer(levels, name) | both) and factor.is_size:
                    passes.pop(name, None)
                    between = [size for size in factor.levels if factor.size < int(size) < int(known)]
                    smaller = next((size for size in between if fails(levels | {name: size})), known)
                    below = [size for size in factor.levels if factor.size <= int(size) < int(smaller)]
                    less = self.offered(levels | {name: below[-1]}) if below else levels
                    if below and possible(less) and less[name] == below[-1]:
                        passes[name] = below[-1]
        return self._failure(levels, passes, broken, number)

    def script(self, failure: Failure, spec: str) -> str | None:
        """The calls of the failure as a script, if it is short enough to be read."""
        with suppress(Unsupported):
            if self.lived(failure.levels, failure.number, record=True) is not None:
                return self.traced.script(spec)
        return None


def _most(levels: Levels) -> int:
    return min(int(levels["in"]), int(levels["out"]))


def _plainer(levels: Levels, name: str) -> Levels:
    """The levels with the plain one of this factor; a dropout rate goes with its mode."""
    changed = levels | {name: PLAIN[name]}
    if name == "rate" and levels["mode"] == "dropout":
        changed["mode"] = PLAIN["mode"]
    if name == "mode" and levels["mode"] == "dropout":
        changed["rate"] = PLAIN["rate"]
    return changed


def given(arguments: list[str]) -> tuple[Levels, int]:
    """The levels and the number that arguments of --space name. Every other factor is at its plain level. Raises ValueError."""
    levels, number = dict(PLAIN), 0
    for argument in arguments:
        name, _, text = argument.partition("=")
        if name == "number" and text.isdecimal():
            number = int(text)
            continue
        if name not in BY_NAME:
            raise ValueError(f"--space {argument}: no factor {name!r}, expected one of {', '.join(BY_NAME)}")
        known = {word(level): level for level in (*BY_NAME[name].levels, BY_NAME[name].plain)}
        if text not in known:
            raise ValueError(f"--space {argument}: {name} has no level {text!r}, expected one of {', '.join(known)}")
        levels[name] = known[text]
    if not possible(levels):
        raise ValueError(f"--space {' '.join(arguments)}: these levels do not go together; SPEC.md has the rules")
    return levels, number


def sweep(part: str, subject: Subject, spec: str, kinds: frozenset[tuple[str, bool]], seed: int, *,
          levels: list[str] | None, device: str = "cpu", seconds: float = math.inf, again: Callable[[str], str]) -> Outcome:
    """The outcome of a part of the space, or of the one case with these levels. It passes if the sweep came about: what it
    found is in `swept`. Without `levels` sizes count as near in the covering array. `again` gives the command that tries a
    requirement again."""
    started = time.perf_counter()
    sweeper = Sweeper(subject, kinds, seed, device, started + SHARE * seconds, exact=levels is not None,
                      plain_until=started + PLAIN_SHARE * seconds)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            found = sweeper.one(*given(levels or [])) if part == ONE else sweeper.part(PARTS.index(part))
        except Exception as error:
            return Outcome(part, "error", f"the harness itself failed: {type(error).__name__}: {error}")
        broken = {}
        for failure in found.failures.values():
            command = f"{again(failure.id)} --space {shlex.join(failure.arguments)}"
            script = None if getattr(failure.broken.failure, "broke", False) else sweeper.script(failure, spec)
            case = described(life.prepared(failure.levels, sweeper.seed_of(failure.number)))
            outcome = failed(failure.id, failure.broken.failure, case, script, command)
            outcome.failure |= {"needed": failure.needed} if failure.needed else {}
            broken[failure.id] = outcome.as_dict()
    swept = {"cases": found.lived + found.left, "lived": found.lived, "left": found.left, "late": found.late,
             "declined": dict(found.declined), "broken": broken}
    return Outcome(part, "pass", examples=found.lived, seconds=time.perf_counter() - started, swept=swept)
