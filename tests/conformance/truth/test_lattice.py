"""The exact cases of every size: they are exact in each format and in any order, and they show what is lost or exchanged.
With HYPOTHESIS_PROFILE=thorough every row of a covering array is tried, and otherwise a few random rows."""

from collections import Counter
from fractions import Fraction
from functools import cache

import ml_dtypes
import numpy as np
import pytest
import torch
from thorough import THOROUGH

from conformance.truth import covering, lattice
from conformance.truth.case import BITS, DTYPES, Case, exact_in_any_order, in_range
from conformance.truth.lattice import Answers, build, truth
from conformance.truth.seen import AXES, by_any, seen
from conformance.truth.space import FACTORS, Levels, possible, scale_of

OPERANDS = tuple(AXES)
SHAPES = ("rows", "in", "out", "rank")

IN_NUMBERS = [factor for factor in FACTORS if factor.name != "handled"]  # what the numbers of a case depend on

def random_levels(seed: int, largest: int = 1025, fixed: Levels | None = None) -> Levels:
    """Random levels that no rule forbids, whose scale is exact: with rank-stabilised scaling the rank is a square."""
    rng = np.random.default_rng(seed)
    while True:
        levels: Levels = {f.name: f.levels[rng.integers(len(f.levels))] for f in IN_NUMBERS} | (fixed or {})
        if possible(levels) and exact_scale(levels) and all(int(levels[name]) <= largest for name in SHAPES):
            return levels


def exact_scale(levels: Levels) -> bool:
    return levels["scaling"] == "standard" or round(int(levels["rank"]) ** 0.5) ** 2 == levels["rank"]


@cache
def sample() -> list[Levels]:
    if THOROUGH:
        return [levels for levels in covering.array(0) if exact_scale(levels)]
    return [random_levels(seed, fixed={"content": "many bits"} if seed % 3 == 0 else {}) for seed in range(60)]


def cases(many: bool | None = None):
    for seed, levels in enumerate(sample()):
        if many is None or many == (levels["content"] == "many bits"):
            yield levels, build(levels, seed)


def small_cases():
    for seed in range(200 if THOROUGH else 20):
        levels = random_levels(seed, largest=9)
        yield levels, build(levels, seed)


def same(first: np.ndarray, second: np.ndarray) -> bool:
    return np.array_equal(np.ravel(first), np.ravel(second))


def test_the_arrays_are_what_the_levels_say():
    for levels, case in cases():
        rows, n_in, n_out, rank = (int(levels[name]) for name in SHAPES)
        assert (case.W.shape, case.A.shape, case.B.shape) == ((n_out, n_in), (n_in, rank), (rank, n_out))
        assert (case.b is not None) == levels["bias"] and (case.b is None or case.b.shape == (n_out,))
        assert case.x.shape[:-1] == case.dy.shape[:-1] and len(case.x.shape[:-1]) == levels["leading"]
        assert (case.x.size, case.dy.size, case.x.shape[-1]) == (rows * n_in, rows * n_out, n_in)
        arrays = [array for array in (case.W, case.b, case.A, case.B, case.x, case.dy) if array is not None]
        assert all(a.dtype == DTYPES[str(levels["format"])] and a.flags.c_contiguous for a in arrays)
        assert Fraction(case.scale) == scale_of(levels)
        assert all(np.isfinite(array.astype(float)).all() for array in arrays)


def test_leading_dimensions_are_in_random_places_and_differ_if_they_can():
    rng = np.random.default_rng(0)
    assert {lattice.leading(rng, 7, 3) for _ in range(50)} == {(1, 1, 7), (1, 7, 1), (7, 1, 1)}
    assert all(len(set(lattice.leading(rng, 32, 2))) == 2 for _ in range(50))
    assert {(8, 8)} < {lattice.leading(rng, 64, 2) for _ in range(50)}  # a square is often split into equal ones
    assert lattice.leading(rng, 1, 0) == () and lattice.leading(rng, 12, 1) == (12,)


def test_many_bits_refuse_a_scale_that_is_no_power_of_two():
    with pytest.raises(ValueError, match="power of two"):
        build(random_levels(0) | {"content": "many bits", "scale": "9/4"}, 0)


def test_equal_seeds_give_equal_cases_and_others_do_not():
    levels = random_levels(5, fixed={"rows": 9, "in": 9, "out": 16, "leading": 1})
    first, again, other = build(levels, 1), build(levels, 1), build(levels, 2)
    assert all(same(getattr(first, name), getattr(again, name)) for name in ("W", "A", "B", "x", "dy"))
    assert not same(first.x, other.x)


def test_the_truth_is_what_fractions_give():
    for _, case in small_cases():
        arrays = (a.astype(float).reshape(-1, a.shape[-1]) for a in (case.W, case.A, case.B, case.x, case.dy))
        W, A, B, x, dy = (np.vectorize(Fraction, otypes=[object])(a) for a in arrays)
        b = np.vectorize(Fraction, otypes=[object])(np.zeros(len(W)) if case.b is None else case.b.astype(float))
        s, found = Fraction(case.scale), truth(case)
        base, u = x @ W.T + b, dy @ B.T
        dA, dB = s * (x.T @ u), s * ((x @ A).T @ dy)
        want = Answers(base + s * (x @ A @ B), base, dy @ W + s * (u @ A.T), dA, dB, W + s * (A @ B).T)
        for name, array in want._asdict().items():
            assert [Fraction(n) for n in np.ravel(getattr(found, name))] == list(np.ravel(array)), (name, case.config)


def test_the_truth_of_large_cases_is_what_whole_numbers_give():
    """All terms are multiples of `unit`, and int64 holds their sums."""
    for levels, case in cases(many=False):
        if str(levels["scale"]).startswith("far"):
            continue  # W has units of its own there
        x, dy = (a.astype(float).reshape(-1, a.shape[-1]) * 16 for a in (case.x, case.dy))
        W, A, B = (a.astype(float) * unit for a, unit in ((case.W, 64), (case.A, 8), (case.B, 8)))
        found, s = truth(case), case.scale
        assert all((a == np.rint(a)).all() for a in (x, dy, W, A, B))
        h = (x @ A).astype(np.int64)  # sums of fewer than 2^53 units
        lora = h @ B.astype(np.int64)
        base = (x @ W.T).astype(np.int64) / 1024 + (0.0 if case.b is None else case.b.astype(float))
        assert same(found.base, base) and same(found.y, base + s * (lora / 1024))
        assert same(found.dB, s * ((h.T @ dy.astype(np.int64)) / 2048))


def computed(case: Case, order: np.random.Generator | None = None) -> Answers:
    """The answers by torch, in the case's own format. With an order: in float32 or float64, summed in a random order."""
    arrays = [tensor(a).reshape(-1, a.shape[-1]) for a in (case.W, case.A, case.B, case.x, case.dy)]
    b = tensor(np.zeros(len(case.W), case.dtype) if case.b is None else case.b)
    if order is not None:
        b, *arrays = (a if a.dtype == torch.float64 else a.float() for a in (b, *arrays))
    W, A, B, x, dy = arrays
    lengths = len(x), len(A), len(W), len(B)
    n, i, o, r = (torch.arange(k) if order is None else torch.from_numpy(order.permutation(k)) for k in lengths)
    s, h, u = case.scale, x[:, i] @ A[i], dy[:, o] @ B[:, o].T
    product = x[:, i] @ W[:, i].T
    base = product + b
    y = base + s * (h[:, r] @ B[r]) if order is None else product + (s * h[:, r]) @ B[r] + b
    dx = dy[:, o] @ W[o] + (s * u[:, r]) @ A[:, r].T
    merged = W + s * (A[:, r] @ B[r]).T
    found = y, base, dx, s * (x[n].T @ u[n]), (s * h[n]).T @ dy[n], merged
    return Answers(*(t.double().numpy() for t in found))


def tensor(array: np.ndarray) -> torch.Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def test_every_case_is_exact_in_its_format_and_in_any_order():
    for seed, (levels, case) in enumerate(cases()):
        want = truth(case)
        for order in (None, np.random.default_rng(seed)):
            for name, array in computed(case, order)._asdict().items():
                assert same(array, getattr(want, name)), (name, order is None, levels)


def test_the_answers_can_be_stored_in_the_format():
    for levels, case in cases():
        for name, array in truth(case)._asdict().items():
            with np.errstate(over="ignore"):
                assert same(array.astype(case.dtype).astype(np.float64), array), (name, levels)


def test_few_bits_are_exact_in_any_way_where_the_format_has_many():
    """Also with the LoRA part multiplied by alpha before it is divided, or with √|s| in A and B; not at scales far from 1."""
    count, exact = Counter(), Counter()
    for levels, case in cases(many=False):
        if not str(levels["scale"]).startswith("far"):
            count[levels["format"]] += 1
            exact[levels["format"]] += exact_in_any_order(case) and in_range(case)
    print({name: f"{exact[name]} of {count[name]}" for name in count})
    assert all(exact[name] == count[name] for name in ("float32", "float64"))
    assert exact["float16"] + exact["bfloat16"]


def test_a_lost_lora_part_shows():
    for levels, case in cases():
        found, without = truth(case), truth(case.replace(A=np.zeros_like(case.A)))
        lost = [not same(getattr(found, name), getattr(without, name)) for name in ("y", "dx", "merged")]
        if levels["content"] != "many bits":
            assert all(lost) == any(lost) == (case.scale != 0), levels
        assert found.dA.any() == found.dB.any() == (case.scale != 0) or levels["content"] == "many bits", levels


def narrower(array: np.ndarray, kind: str) -> np.ndarray:
    if kind == "tf32":
        bits = array.astype(np.float32).view(np.uint32)
        return ((bits + np.uint32(1 << 12)) & np.uint32(0xFFFFE000)).view(np.float32).astype(array.dtype)
    return array.astype(DTYPES[kind]).astype(array.dtype)


NARROW = {"float64": ("float32", "tf32"), "float32": ("tf32", "float16", "bfloat16"), "float16": ("bfloat16",), "bfloat16": ()}


def test_a_detour_through_a_narrower_format_changes_an_answer():
    """If only one operand or one intermediate takes it, this shows whenever that has many bits."""
    detected = Counter()
    for levels, case in cases(many=True):
        want = truth(case)
        for kind in NARROW[case.config.dtype]:
            for group in (OPERANDS, *((name,) for name in OPERANDS)):
                arrays = {name: getattr(case, name) for name in group if getattr(case, name) is not None}
                rounded = {name: narrower(array, kind) for name, array in arrays.items()}
                found = truth(case.replace(**rounded))
                differ = [name for name in Answers._fields if not same(getattr(found, name), getattr(want, name))]
                detected.update(differ if len(group) > 1 else [])
                moved = any(not same(rounded[name], array) for name, array in arrays.items())
                hidden = case.scale == 0 and group in (("A",), ("B",))
                assert bool(differ) == moved or hidden, (levels, kind, group)
                assert moved or len(group) == 1
            x, dy, A, B = (a.reshape(-1, a.shape[-1]).astype(float) for a in (case.x, case.dy, case.A, case.B))
            h, u = x @ A, dy @ B.T
            for name, inner, outer, answer in (("h", h, dy, want.dB), ("u", u, x, want.dA.T)):
                less = narrower(inner.astype(case.dtype), kind).astype(float)
                got = case.scale * (less.T @ outer)
                detected[name] += not same(got, answer)
    assert all(detected[name] for name in ("h", "u", *Answers._fields)), detected


def test_every_significand_of_many_bits_is_full():
    for _, case in cases(many=True):
        arrays = [np.ravel(a).astype(float) for a in (case.W, case.b, case.A, case.B, case.x, case.dy) if a is not None]
        whole = np.ldexp(np.abs(np.frexp(np.concatenate(arrays))[0]), BITS[case.config.dtype]).astype(np.int64)
        assert (whole % 2 == 1).any() and ((whole % 2 == 1) | (whole & (whole - 1) == 0)).all()


def unseen_columns(case: Case) -> int:
    """How many columns no case of many bits with these sizes and a scale of zero can show: an answer y is a single product."""
    rows, (n_out, n_in) = case.x.size // case.x.shape[-1], case.W.shape
    classes = min(rows, n_in)
    return sum(max(0, len(range(c, n_in, classes)) - n_out) for c in range(classes))


def test_everything_that_is_left_out_shows():
    for levels, case in cases():
        for fault, answers in seen(case, truth(case)).items():
            none = levels["content"] == "many bits" and case.config.rank > min(case.A.shape[0], case.B.shape[1])
            if fault.width and not (fault.axis == "rank" and (case.scale == 0 or none)):  # such ranks are zero
                unseen = int((~by_any(answers)).sum())
                if levels["content"] == "many bits" and case.scale == 0 and fault.axis == "in":
                    assert unseen <= unseen_columns(case), (fault, levels)
                else:
                    assert unseen == 0, (fault, levels)


def test_nearly_every_exchange_shows_in_cases_of_few_bits():
    """Of neighbours and of i and i + 2^k, in one operand alone. A scale of zero hides A and B."""
    shown, count = Counter(), Counter()
    for _, case in cases(many=False):
        for fault, answers in seen(case, truth(case)).items():
            if fault.operand and not (fault.operand in "AB" and case.scale == 0):
                shown[fault] += by_any(answers).sum()
                count[fault] += len(by_any(answers))
    assert all(shown[fault] >= 0.99 * count[fault] for fault in count), {f: shown[f] / count[f] for f in count}


@pytest.mark.parametrize("what", ["left out", "exchanged"])
def test_what_is_seen_is_what_happens(what: str):
    """Each fault is done, and the answers are computed anew."""
    for levels, case in small_cases():
        want = truth(case)
        for fault, predicted in seen(case, want).items():
            size = int(levels[fault.axis])
            if what == "left out" and fault.width:
                places = [(k, min(k + fault.width, size)) for k in range(0, size, fault.width)]
                faulty = [without(case, fault.axis, slice(*place)) for place in places]
            elif what == "exchanged" and not fault.width:
                steps = [2**k for k in range(10) if 2**k < size]
                faulty = [exchanged(case, fault.operand, fault.axis, i, i + k) for k in steps for i in range(size - k)]
            else:
                continue
            for answer, changes in predicted.items():
                found = [getattr(truth(other), answer) for other in faulty]
                wanted = getattr(want, answer)
                assert list(changes) == [not same(array, wanted) for array in found], (fault, answer, case.config)


def without(case: Case, axis: str, tile: slice) -> Case:
    operands = [name for name in OPERANDS if axis in AXES[name] and name != "b"]
    return changed(case, operands, axis, lambda a: a.__setitem__(tile, 0))


def exchanged(case: Case, operand: str, axis: str, i: int, j: int) -> Case:
    return changed(case, [operand], axis, lambda a: a.__setitem__([i, j], a[[j, i]]))


def changed(case: Case, operands: list[str], axis: str, change) -> Case:
    arrays = {}
    for name in operands:
        array = getattr(case, name).copy()
        change(np.moveaxis(array.reshape(-1, array.shape[-1]) if name != "b" else array, AXES[name].index(axis), 0))
        arrays[name] = array
    return case.replace(**arrays)
