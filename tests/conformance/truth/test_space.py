"""The declared space, and the covering arrays of it."""

from itertools import combinations

import pytest
from thorough import THOROUGH

from conformance.truth import covering
from conformance.truth.space import (
    BETWEEN,
    BY_NAME,
    COVERED,
    FACTORS,
    LARGEST,
    NEAR,
    PLAIN,
    RULES,
    STATE,
    possible,
    size_near,
)


def test_sizes_are_at_and_around_those_of_tiles():
    for name, largest in LARGEST.items():
        near = {size for n in NEAR for size in (n - 1, n, n + 1) if 0 < size <= largest}
        assert near | {*BETWEEN} == set(BY_NAME[name].levels)
        assert all(abs(NEAR[size_near(size)] - size) <= 1 for size in near)


def test_the_plain_case_is_possible_and_its_sizes_differ():
    assert possible(PLAIN)
    assert len({PLAIN[f.name] for f in FACTORS if f.is_size}) == 4
    assert all(f.plain in f.levels or f.is_size for f in FACTORS)


def test_a_plain_level_takes_the_place_of_any_other_of_its_factor_that_is_no_size():
    """So a level that is not offered can be replaced. A dropout rate and its mode are replaced together."""
    rows = covering.array(0)
    for factor in (f for f in FACTORS if not f.is_size and f.name not in ("mode", "rate", "leading")):
        assert all(possible(row | {factor.name: factor.plain}) for row in rows), factor.name


def test_any_three_factors_are_covered_and_each_size_with_the_state():
    for exact, covered in COVERED.items():
        names = [{column.factor for column in columns} for columns in covered]
        assert all(set(few) in names for count in (2, 3) for few in combinations(BY_NAME, count))
        assert all({f.name, *STATE} in names for f in FACTORS if f.is_size)
        for columns in covered:
            sizes = [column for column in columns if BY_NAME[column.factor].is_size]
            near = len(columns) > 2 and (not exact or len(sizes) > 1)
            assert {column.near for column in sizes} <= {near}


@pytest.mark.parametrize(("seed", "exact"), [(1, False), *([(0, True), (20_000, True)] if THOROUGH else [])])
def test_every_combination_is_in_some_row(seed, exact):
    rows, some = covering.array(seed, exact), COVERED[exact] if THOROUGH else COVERED[exact][::5]
    assert all(map(possible, rows))
    assert covering.missing(rows, some) == {}


def test_the_checker_sees_what_is_missing():
    """Without the rows of one level, and without one row, combinations are missing, and the checker names them."""
    rows = covering.array(0)
    with_content = tuple(columns for columns in COVERED[True] if "content" in {column.factor for column in columns})
    some = with_content if THOROUGH else with_content[::5]
    missing = covering.missing([row for row in rows if row["content"] != "NaN"], some)
    assert all(any("NaN" in combination for combination in missing[columns]) for columns in some)
    if THOROUGH:
        assert covering.missing(rows[:-1])


def test_another_seed_gives_other_rows():
    first, second = ({tuple(row.values()) for row in covering.array(seed)} for seed in (0, 1))
    assert len(first & second) < len(first) / 2


def test_the_search_finds_rows_that_cover():
    """The stored rows are those of a search over the whole space. Here it covers a part of it, quickly."""
    few = {"rank", "in", "leading", "rows", "mode"}
    part = tuple(columns for columns in COVERED[True] if {column.factor for column in columns} <= few)
    found = covering._Search(3, part).rows()
    rows = [{f.name: f.levels[level] for f, level in zip(FACTORS, row, strict=True)} for row in found]
    assert all(map(possible, rows))
    assert covering.missing(rows, part) == {}


def test_impossible_levels_are_named_by_a_rule():
    assert all(rule.says for rule in RULES)
    assert not possible(PLAIN | {"scale": "9/4", "content": "many bits"})
    assert not possible(PLAIN | {"leading": 0})
