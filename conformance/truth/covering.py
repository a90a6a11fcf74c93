"""Covering arrays: few rows of levels that together hold every combination that `space.COVERED` asks for.

One row after another is made greedily (Cohen, Dalal, Fredman and Patton, *The AETG system*, IEEE Trans. Software Eng. 23(7),
1997). A row starts from a combination that is still missing. Every further factor takes the level with which most missing
combinations become present. `missing` is the checker. It shares no code with the search.
"""

from collections.abc import Iterable, Iterator
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np

from conformance.truth.space import BY_NAME, COVERED, FACTORS, NAMES, NEAR, RULES, Column, Level, Levels, possible, size_near

WIDTH = len(FACTORS)
COUNTS = [len(factor.levels) for factor in FACTORS]
Row = tuple[int, ...]  # for each factor the place of its level
# One row a line, one digit for each factor: the place of its level.
STORED = {exact: Path(__file__).with_name(name) for exact, name in ((True, "covering.txt"), (False, "covering-near.txt"))}
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def array(seed: int, exact: bool = True) -> list[Levels]:
    """Rows that cover the space, those that cover most first. Another seed gives other rows. `exact` is as in `space.covered`.

    A search takes several seconds, so the rows of one are in STORED. The seed exchanges levels that no rule tells apart, and
    the factors `in` and `out`: the rows then cover as much."""
    rng, rows = np.random.default_rng(seed), _stored(exact).copy()
    n_in, n_out = NAMES.index("in"), NAMES.index("out")
    if rng.random() < 0.5:
        rows[:, [n_in, n_out]] = rows[:, [n_out, n_in]]
    for factor, alike in _alike().items():
        to = np.arange(COUNTS[factor])
        for group in alike:
            to[group] = rng.permutation(group)
        rows[:, factor] = to[rows[:, factor]]
    return [{f.name: f.levels[level] for f, level in zip(FACTORS, row, strict=True)} for row in rows]


@cache
def _stored(exact: bool) -> np.ndarray:
    rows = STORED[exact].read_text().split()
    return np.array([[DIGITS.index(digit) for digit in row] for row in rows])


@cache
def _alike() -> dict[int, list[list[int]]]:
    """For each factor that is no size, groups of levels of which one can stand for the other in every rule."""
    found = {}
    for factor in (f for f in range(WIDTH) if not FACTORS[f].is_size):
        groups: list[list[int]] = []
        for level in range(COUNTS[factor]):
            alike = next((group for group in groups if _stands_for(factor, group[0], level)), None)
            if alike is None:
                groups.append([level])
            else:
                alike.append(level)
        found[factor] = groups
    return found


def _stands_for(factor: int, one: int, other: int) -> bool:
    """Whether every rule says the same of the two levels of the factor, whatever levels the other factors have."""
    name, levels = NAMES[factor], FACTORS[factor].levels
    for rule in (rule for rule in RULES if name in rule.factors):
        for rest in product(*(BY_NAME[n].levels for n in rule.factors if n != name)):
            at = rule.factors.index(name)
            if rule.holds(*rest[:at], levels[one], *rest[at:]) != rule.holds(*rest[:at], levels[other], *rest[at:]):
                return False
    return True


def search(seed: int) -> None:
    """Makes the rows anew and stores them: `python -m conformance.truth.covering`. It is needed when the space has changed."""
    for exact, path in STORED.items():
        path.write_text("".join("".join(DIGITS[level] for level in row) + "\n" for row in _Search(seed, COVERED[exact]).rows()))


class _Search:
    """All combinations of all targets stand in one flat table, `missing`. The combination of a target whose factors have the
    levels l, m, … stands at start + offset(l) + offset(m) + …"""

    def __init__(self, seed: int, covered: tuple[tuple[Column, ...], ...]):
        self.rng = np.random.default_rng(seed)
        self.rules = _Rules()
        tables, self.targets = [], []  # of each target: its factors, and where its combinations begin
        self.offset = np.zeros((len(covered), WIDTH, max(COUNTS)), np.int64)
        self.member = np.zeros((len(covered), WIDTH), bool)
        start = 0
        for number, columns in enumerate(covered):
            factors = [NAMES.index(column.factor) for column in columns]
            table = self.rules.table(factors)
            stride = 1
            for axis, column in reversed(list(enumerate(columns))):
                classes = _classes(column)
                table = np.logical_or.reduceat(table, np.unique(classes, return_index=True)[1], axis=axis)
                self.offset[number, factors[axis], : len(classes)] = classes * stride
                stride *= int(classes.max()) + 1
            self.offset[number, factors[0]] += start
            self.member[number, factors] = True
            self.targets.append((factors, start))
            tables.append(table.ravel())
            start += table.size
        self.missing = np.concatenate(tables)
        self.sizes = [table.size for table in tables]

    def rows(self) -> Iterator[Row]:
        left = np.array([int(self.missing[s : s + n].sum()) for (_, s), n in zip(self.targets, self.sizes, strict=True)])
        while left.any():
            row = self._row(int(left.argmax()))
            at = self.offset[:, np.arange(WIDTH), row].sum(1)
            left -= self.missing[at]
            self.missing[at] = False
            yield tuple(map(int, row))

    def _row(self, target: int) -> np.ndarray:
        row = np.full(WIDTH, -1)
        factors, start = self.targets[target]
        there = start + self.rng.choice(np.flatnonzero(self.missing[start : start + self.sizes[target]]))
        for level_of in self.rng.permutation(list(self._levels(target, factors, int(there)))):
            row[factors] = level_of
            if self.rules.allowed(row, factors[0]).any():
                break
        for factor in self.rng.permutation(np.flatnonzero(row < 0)):
            allowed = np.flatnonzero(self.rules.allowed(row, int(factor)))
            row[factor] = allowed[self._best(row, int(factor), allowed)]
        return row

    def _levels(self, target: int, factors: list[int], there: int) -> Iterator[Row]:
        """The levels of the target's factors that stand at this place: several where a column counts sizes as near."""
        for levels in product(*(range(COUNTS[factor]) for factor in factors)):
            if sum(int(self.offset[target, f, level]) for f, level in zip(factors, levels, strict=True)) == there:
                yield levels

    def _best(self, row: np.ndarray, factor: int, allowed: np.ndarray) -> int:
        """The place among `allowed` of the level with which most missing combinations become present. Of the best sizes it
        is one near to the plain size, which takes the least time."""
        known = row >= 0
        known[factor] = True
        whole = self.member[:, factor] & ~(self.member & ~known).any(1)  # targets whose other factors have levels
        others = np.flatnonzero(known & (np.arange(WIDTH) != factor))
        at = self.offset[np.ix_(whole, others)][:, np.arange(len(others)), row[others]].sum(1)
        gain = self.missing[at[:, None] + self.offset[whole, factor][:, allowed]].sum(0)
        best = np.flatnonzero(gain == gain.max())
        if FACTORS[factor].is_size:
            sizes = [NEAR[size_near(int(FACTORS[factor].levels[level]))] for level in allowed[best]]
            far = np.abs(np.log(np.array(sizes) / FACTORS[factor].size))
            best = best[far == far.min()]
        return int(self.rng.choice(best))


class _Rules:
    """Which levels go together, as tables. Factors that some rule ties together, however indirectly, share a table."""

    def __init__(self):
        groups: list[set[int]] = []
        for rule in RULES:
            tied = {NAMES.index(name) for name in rule.factors}
            for group in [group for group in groups if group & tied]:
                groups.remove(group)
                tied |= group
            groups.append(tied)
        groups += [{f} for f in range(WIDTH) if not any(f in group for group in groups)]
        self.groups = {f: tuple(sorted(group)) for group in groups for f in group}
        self.known: dict[tuple[int, ...], np.ndarray] = {}

    def table(self, factors: list[int] | tuple[int, ...]) -> np.ndarray:
        """The possible combinations of these factors' levels, with one axis for each factor, in the order given."""
        key = tuple(factors)
        if key not in self.known:
            whole = np.ones([COUNTS[f] for f in factors], bool)
            for group in {self.groups[f] for f in factors}:
                inside = [f for f in group if f in factors]
                part = self._whole(group).any(axis=tuple(axis for axis, f in enumerate(group) if f not in factors))
                order = sorted(inside, key=factors.index)
                part = np.moveaxis(np.asarray(part), [inside.index(f) for f in order], range(len(order)))
                whole &= part.reshape([COUNTS[f] if f in inside else 1 for f in factors])
            self.known[key] = whole
        return self.known[key]

    def _whole(self, group: tuple[int, ...]) -> np.ndarray:
        if group not in self.known:
            whole = np.ones([COUNTS[f] for f in group], bool)
            for rule in RULES:
                own = [NAMES.index(name) for name in rule.factors]
                if own[0] in group:
                    levels = product(*(FACTORS[f].levels for f in own))
                    holds = np.array([rule.holds(*each) for each in levels]).reshape([COUNTS[f] for f in own])
                    order = sorted(own)
                    holds = np.moveaxis(holds, [own.index(f) for f in order], range(len(order)))
                    whole &= holds.reshape([COUNTS[f] if f in own else 1 for f in group])
            self.known[group] = whole
        return self.known[group]

    def allowed(self, row: np.ndarray, factor: int) -> np.ndarray:
        """For each level of the factor whether it goes together with the levels of the row, as far as it has any."""
        group = self.groups[factor]
        fixed = [f for f in group if f != factor and row[f] >= 0]
        return self.table((factor, *fixed))[(slice(None), *(row[f] for f in fixed))]


def _classes(column: Column) -> np.ndarray:
    """For each level of the column's factor the number under which the column counts it."""
    levels = BY_NAME[column.factor].levels
    return np.array([size_near(int(size)) for size in levels]) if column.near else np.arange(len(levels))


def missing(rows: Iterable[Levels], covered: tuple[tuple[Column, ...], ...] = COVERED[True]
            ) -> dict[tuple[Column, ...], set[tuple[Level, ...]]]:
    """For each target the combinations that are possible and that no row holds. Only targets that miss some are there."""
    rows, found = list(rows), {}
    for columns in covered:
        present = {tuple(_counted(column, row[column.factor]) for column in columns) for row in rows}
        wanted = set(product(*({_counted(c, level) for level in BY_NAME[c.factor].levels} for c in columns)))
        if lacking := {combination for combination in wanted - present if can_be(columns, combination)}:
            found[columns] = lacking
    return found


def _counted(column: Column, level: Level) -> Level:
    return size_near(int(level)) if column.near else level


def can_be(columns: tuple[Column, ...], combination: tuple[Level, ...]) -> bool:
    """Whether some row with this combination breaks no rule."""
    tied = {name for rule in RULES for name in rule.factors}
    pairs = zip(columns, combination, strict=True)
    return _completes(frozenset((column, wanted) for column, wanted in pairs if column.factor in tied))


@cache
def _completes(wanted: frozenset[tuple[Column, Level]]) -> bool:
    """Whether levels that count like this can be completed to a row that breaks no rule, by trying."""
    choices = {name: BY_NAME[name].levels for rule in RULES for name in rule.factors}
    for column, counted in wanted:
        choices[column.factor] = tuple(x for x in choices[column.factor] if _counted(column, x) == counted)

    def going_on(levels: Levels, left: list[str]) -> bool:
        if not possible(levels):
            return False
        return not left or any(going_on(levels | {left[0]: level}, left[1:]) for level in choices[left[0]])

    given = {column.factor for column, _ in wanted}  # first, then the sizes, whose rules are the hardest to keep
    return going_on({}, sorted(choices, key=lambda name: (name not in given, not BY_NAME[name].is_size)))


if __name__ == "__main__":
    search(0)
