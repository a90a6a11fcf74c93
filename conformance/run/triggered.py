"""The power of the suite, measured without a list: faults by construction, which are a trigger × an effect, in honest builds.

A trigger is any one, two or three levels of the space. Each honest build lives the whole array once. An observer records
which levels each call shows. A fault is then tried on those cases alone in which its trigger shows at the call that it
changes. In any other case it answers as the honest build does. A fault that passes all of these is tried on the ordinary
requirements.

A size in a trigger is meant in one of two ways, half and half: this size exactly, or a regime. That is "from this size on" or
"no multiple of a tile". Beside another size and a third factor, the space counts a size by the place that it is near
(`space.COVERED`), and so does a trigger there.
"""

import importlib
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.util import find_spec
from multiprocessing import get_context

import numpy as np

from conformance.mutants import LayerSubject, honest, variations
from conformance.requirements import all_requirements
from conformance.run import case_bank
from conformance.run.examine import offered
from conformance.run.planted.effects import EFFECTS, NAMED
from conformance.run.planted.observed import SEEN_AT, Seen, can_be_seen
from conformance.run.planted.triggers import Fault, Planted, When
from conformance.run.selftest import one_thread
from conformance.run.sweep import Sweeper
from conformance.subject import Subject, Unsupported
from conformance.truth import covering
from conformance.truth.case import DTYPES
from conformance.truth.space import FACTORS, Column, Level, Levels, size_near

TILES = (8, 16, 32, 64, 128)
DRAWN = tuple(factor for factor in FACTORS if factor.name in SEEN_AT["backward"])  # those that calls show
CASES = 8  # of each ordinary requirement, for a fault that the array does not show
ENOUGH = {1: 1.0, 2: 1.0, 3: 0.99}  # the share of faults that must be killed, by the number of levels of the trigger
# Honest builds that sum in different orders, scale at different places, and keep and merge their state in different ways.
CLASSES = {c.__name__: c for c in (
    honest.Honest, variations.DeltaFirst, variations.ScalesB, variations.UnmergesBySubtraction, variations.UpdatesInPlace)}
SUBJECTS = {"lora_ref": "numpy", "lora_torch": "torch"}  # subjects of conformance/subjects, and what they need


def builds() -> tuple[str, ...]:
    return (*CLASSES, *(name for name, needs in SUBJECTS.items() if find_spec(needs)))


def subject(build: str) -> Subject:
    if build in CLASSES:
        return LayerSubject(CLASSES[build])
    return importlib.import_module(f"conformance.subjects.{build}").subject()


# --- the honest builds over the array ------------------------------------------------------------------------------------


@dataclass
class Lived:
    """What an honest build has shown over the array."""

    build: str
    false_alarms: list[str] = field(default_factory=list)  # the cases that failed, in words
    lacking: frozenset[tuple[str, Level]] = frozenset()  # levels that it does not offer
    formats: frozenset[Level] = frozenset()
    calls: list[tuple[int, str, dict[str, Seen]]] = field(default_factory=list)  # number of the case, call, and its levels
    cases: int = 0

    def index(self) -> dict[tuple[str, str], dict[Level, set[int]]]:
        """For each kind of call and each factor: level → the places in `calls` that show it."""
        found: dict[tuple[str, str], dict[Level, set[int]]] = {}
        for place, (_, call, seen) in enumerate(self.calls):
            for name, levels in seen.items():
                for level in levels:
                    found.setdefault((call, name), {}).setdefault(level, set()).add(place)
        return found

    def offers(self, name: str, level: Level) -> bool:
        return (name, level) not in self.lacking and (name != "format" or level in self.formats)


def lived(build: str, seed: int, every: int = 1) -> Lived:
    """The honest build over the array, or over one in so many of its cases."""
    found, sweeper = Lived(build), _sweeper(build, seed)
    planted = Planted(subject(build))
    sweeper.subject, done = planted, set()
    with quiet():
        for number, levels in list(enumerate(covering.array(seed)))[::every]:
            planted.record.clear()
            broken, _ = sweeper.outcome(levels, number, done)
            found.cases += 1
            if broken is not None:
                found.false_alarms.append(f"{build}, case {number} of the array: {broken}")
            found.calls += [(number, call, seen) for call, seen in planted.record]
    found.lacking = frozenset(sweeper.lacking)
    found.formats = frozenset(dtype for dtype, _ in sweeper.kinds)
    return found


def _sweeper(build: str, seed: int) -> Sweeper:
    return Sweeper(subject(build), offered(subject(build), tuple(DTYPES)), seed)


@contextmanager
def quiet() -> Iterator[None]:
    """No warning of a build or of an effect is shown."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def shown(fault: Fault, lives: Lived, index: dict) -> list[int]:
    """The numbers of the cases in which the trigger shows at the call that the effect changes."""
    call = NAMED[fault.effect].call
    places = None
    for test in fault.trigger:
        levels = index.get((call, test.factor), {})
        fitting = set().union(*(found for level, found in levels.items() if test.counts(level)))
        places = fitting if places is None else places & fitting
    return sorted({lives.calls[place][0] for place in places or ()})


# --- drawing faults ------------------------------------------------------------------------------------------------------


def drawn(count: int, seed: int, lives: dict[str, Lived]) -> list[Fault]:
    """Different faults. The strengths 1, 2 and 3 take turns, and so do the builds. All factors are as likely."""
    rng, found = np.random.default_rng(seed), dict[Fault, None]()
    tries = 0
    while len(found) < count and tries < 200 * count:
        tries += 1
        build = list(lives)[len(found) // 3 % len(lives)]
        fault = _draw(rng, 1 + len(found) % 3, lives[build])
        if fault is not None:
            found[fault] = None
    return list(found)


def _draw(rng: np.random.Generator, strength: int, lives: Lived) -> Fault | None:
    """A fault of this build, or None if these levels do not go together, or nothing can show with them."""
    factors = [DRAWN[place] for place in sorted(rng.choice(len(DRAWN), strength, replace=False))]
    levels: Levels = {factor.name: factor.levels[rng.integers(len(factor.levels))] for factor in factors}
    if not all(lives.offers(name, level) for name, level in levels.items()) or not can_be_seen(levels):
        return None
    near = sum(factor.is_size for factor in factors) > 1 and strength > 2
    tests = tuple(_test(rng, f.name, levels[f.name], near) if f.is_size else When(f.name, levels[f.name]) for f in factors)
    columns = tuple(Column(test.factor, test.how == "near") for test in tests)
    if not covering.can_be(columns, tuple(size_near(int(t.level)) if t.how == "near" else t.level for t in tests)):
        return None
    effects = [effect for effect in EFFECTS if effect.shows(levels)]
    special = [effect for effect in effects if effect.needs]
    if special and rng.random() < 0.5:
        effects = special  # those that show with few triggers are as likely as all others
    return Fault(tests, effects[rng.integers(len(effects))].name, lives.build) if effects else None


def _test(rng: np.random.Generator, name: str, size: Level, near: bool) -> When:
    if rng.random() < 0.5:
        return When(name, size, "near" if near else "is")
    tiles = [tile for tile in TILES if tile < int(size) and int(size) % tile]
    if tiles and rng.random() < 0.5:
        return When(name, size, "not a multiple", tiles[rng.integers(len(tiles))])
    return When(name, size, "from")


# --- trying them ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tried:
    """How a fault went: `by` is what failed it, "case N" of the array or a requirement, and empty if it survives."""

    fault: Fault
    by: str
    cases: int  # in which its trigger shows

    @property
    def strength(self) -> int:
        return len(self.fault.trigger)

    @property
    def group(self) -> str:
        return NAMED[self.fault.effect].group


def tried(fault: Fault, numbers: list[int], lacking: frozenset[tuple[str, Level]], seed: int) -> Tried:
    """Lives the cases of these numbers until one fails, and then the ordinary requirements."""
    sweeper = _known_sweeper(fault.build, seed)
    sweeper.subject, sweeper.lacking = Planted(subject(fault.build), fault), set(lacking)
    rows = _array(seed)
    with quiet():
        for number in numbers:
            with suppress(Unsupported):
                broken = sweeper.lived(sweeper.offered(rows[number]), number)
                if broken is not None:
                    return Tried(fault, f"case {number}: {broken.kind}", len(numbers))
        by = _failing(Planted(subject(fault.build), fault), seed, _known_failing(fault.build, seed))
    return Tried(fault, by[0] if by else "", len(numbers))


_array = cache(covering.array)
_known_sweeper = cache(_sweeper)


@cache
def _known_failing(build: str, seed: int) -> frozenset[str]:
    """The requirements that fail the honest build: conventions that a SHOULD is against."""
    return frozenset(_failing(subject(build), seed, frozenset(), first=False))


def _failing(tested: Subject, seed: int, known: frozenset[str], first: bool = True) -> list[str]:
    """The requirements that fail the subject, but for those that are known to; if `first`, only the first one."""
    found = []
    for requirement in all_requirements():
        if requirement.id in known:
            continue
        verdict, _ = case_bank.judge(requirement, tested, _cases(requirement.id, seed))
        if verdict in ("fail", "error"):
            found.append(requirement.id)
            if first:
                break
    return found


@cache
def _cases(id: str, seed: int) -> list:
    requirement = next(r for r in all_requirements() if r.id == id)
    return case_bank.first(requirement, tuple(DTYPES), CASES, seed)


# --- all of it -----------------------------------------------------------------------------------------------------------


Of = Callable[[Tried], str | int]


@dataclass
class Power:
    """What became of the faults, and of the honest builds."""

    tried: list[Tried] = field(default_factory=list)
    honest: dict[str, int] = field(default_factory=dict)  # build → cases of the array
    false_alarms: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def survivors(self) -> list[Tried]:
        return sorted((t for t in self.tried if not t.by), key=lambda t: (t.strength, t.group, t.fault.words))

    def rates(self, by: Of) -> dict[str | int, tuple[int, int, int]]:
        """For each value of `by`: the faults that the array killed, those that the requirements did, and all."""
        every = Counter(by(t) for t in self.tried)
        array = Counter(by(t) for t in self.tried if t.by.startswith("case"))
        dead = Counter(by(t) for t in self.tried if t.by)
        return {key: (array[key], dead[key] - array[key], every[key]) for key in sorted(every)}

    @property
    def problems(self) -> list[str]:
        found = [f"an honest build is failed: {words}" for words in self.false_alarms]
        for strength, (array, others, every) in self.rates(lambda t: t.strength).items():
            if array + others < ENOUGH[int(strength)] * every:
                found.append(f"{every - array - others} of {every} faults with {strength} level{'s' * (strength != 1)} survive")
        return found

    def as_dict(self) -> dict:
        rates = {name: {str(key): dict(zip(("array", "requirements", "all"), value, strict=True))
                        for key, value in self.rates(by).items()}
                 for name, by in (("strengths", lambda t: t.strength), ("groups", lambda t: t.group))}
        every, dead = (Counter((test.factor, t.group) for t in which for test in t.fault.trigger)
                       for which in (self.tried, [t for t in self.tried if t.by]))
        cells = [{"factor": factor, "group": group, "killed": dead[factor, group], "all": count}
                 for (factor, group), count in sorted(every.items())]
        survivors = [{"trigger": [test.words for test in t.fault.trigger], "effect": t.fault.effect, "build": t.fault.build,
                      "cases": t.cases} for t in self.survivors]
        return {"schema": 1, "seconds": round(self.seconds, 1), **rates, "cells": cells, "honest": self.honest,
                "false_alarms": self.false_alarms, "survivors": survivors}


def count(faults: int) -> int:
    """How often `run` calls `progress`."""
    return len(builds()) + faults


def run(faults: int, jobs: int, progress: Callable[[str], None] = lambda words: None, *, seed: int = 0) -> Power:
    """Tries so many faults. `progress` is called for each build and for each fault."""
    started, found = time.perf_counter(), Power()
    one_thread()
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        lives = {}
        for life in pool.map(partial(lived, seed=seed), builds()):
            lives[life.build] = life
            found.honest[life.build] = life.cases
            found.false_alarms += life.false_alarms
            progress(f"{life.build} lived")
        for one in _all_tried(pool, drawn(faults, seed, lives), lives, seed):
            found.tried.append(one)
            progress(one.fault.effect)
    found.seconds = time.perf_counter() - started
    return found


def _all_tried(pool: ProcessPoolExecutor, faults: list[Fault], lives: dict[str, Lived], seed: int) -> Iterator[Tried]:
    index = {build: one.index() for build, one in lives.items()}
    numbers = [shown(fault, lives[fault.build], index[fault.build]) for fault in faults]
    lacking = [lives[fault.build].lacking for fault in faults]
    yield from pool.map(partial(tried, seed=seed), faults, numbers, lacking, chunksize=4)
