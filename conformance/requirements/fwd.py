"""FWD: what a layer computes."""

import itertools
from contextlib import suppress
from fractions import Fraction

import ml_dtypes
import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from conformance.record.trace import refuses
from conformance.requirements import HIGHAM, LORALIB, PAPER, PEFT, Group, requirement
from conformance.requirements.helpers import life
from conformance.requirements.helpers.layers import fresh, merge, prepared
from conformance.requirements.helpers.variants import SQUARE, large_or_round, layouts, regauged
from conformance.subject import Unsupported
from conformance.truth.case import Case, exact_in_any_order
from conformance.truth.compare import expect, expect_equal, expect_within, wide
from conformance.truth.space import PLAIN
from conformance.truth.strategies import exact, rounding

GROUP = Group("FWD", "Forward", order=10, profile="inference", asks="forward")
FORMULA = "y = x Wᵀ + b + scale · (x A) B"
FAR, FAR_ROWS = 12_293, 65_539  # in or out, and rows: primes, more than other cases have, and than a grid of CUDA has blocks
# Large products in float32 may be made of products of 16 bits, which loses bits.
MANY_ROWS = {"rows": FAR_ROWS, "in": 17, "out": 19, "rank": 16, "content": "many bits", "format": "float32"}
MANY_BITS = {"rows": 67, "in": 2_053, "out": 97, "content": "many bits", "format": "float32"}
SOURCES = (f"{PAPER}, §4.1 eq. 3", f"{PEFT}, Linear.forward", f"{LORALIB}, Linear.forward")


@requirement(
    "FWD-01",
    "The output MUST equal x Wᵀ + b + scale · (x A) B, for x with one leading dimension or several.",
    formula=FORMULA, sources=SOURCES, needs="set_adapter forward", faults="01 02 03 43 52 78", cases=exact(), examples=2,
)
def formula(subject, case):
    """This is the definition of the layer. On small integers every honest way of computing it is exact, so the answer must be
    equal bit for bit. There is no tolerance in which a wrong term, factor, sign or orientation could hide."""
    return expect_equal(prepared(subject, case).forward(case.x), case.truth.y, "y")


@requirement(
    "FWD-02",
    "On real numbers the output MUST be within the rounding-error bound of the formula.",
    formula="|y − exact| ≤ γ(in + …) |x||W|ᵀ + γ(2 in + …) |scale| (|x||A|)|B| + …", sources=(HIGHAM,),
    needs="set_adapter forward", faults="53 126", cases=rounding(), examples=2,
)
def formula_within_rounding(subject, case):
    """Exact cases hold small numbers only. Real numbers show a lower precision on the way, a flushed or clipped value, or an
    approximation. The bound is derived in lora_ref/error/bounds.py and covers every order of summation."""
    return expect_within(prepared(subject, case).forward(case.x), case.truth.y, case.bound.y, "y")


@requirement(
    "FWD-03",
    "A single sample without a leading dimension, x of shape (in,), MUST give y of shape (out,).",
    formula=FORMULA, sources=SOURCES, needs="set_adapter forward", faults="44",
    cases=exact(leading=st.just(())), examples=0.5,
)
def no_leading_dimension(subject, case):
    """The formula holds for a single vector. Leading dimensions are only a convention for batches."""
    return expect_equal(prepared(subject, case).forward(case.x), case.truth.y, "y")


@requirement(
    "FWD-04",
    "An empty batch, x of shape (0, in) or with a 0 among more leading dimensions, MUST give an empty y of that shape.",
    formula=FORMULA, sources=SOURCES, needs="set_adapter forward",
    cases=exact(leading=st.sampled_from([(0,), (0, 3), (3, 0), (2, 0, 3)]), degenerate=True), examples=0.5,
)
def empty_batch(subject, case):
    """Filtering and sharding make empty batches. A layer must not fail on them."""
    return expect_equal(prepared(subject, case).forward(case.x), case.truth.y, "y")


@requirement(
    "FWD-05",
    "With three or four leading dimensions the output MUST be that of the flattened rows, in the same places.",
    formula="y[i, j, k] = f(x[i, j, k])", sources=SOURCES, needs="set_adapter forward", faults="44",
    cases=exact(leading=st.lists(st.integers(1, 3), min_size=3, max_size=4).map(tuple)), examples=0.5,
)
def many_leading_dimensions(subject, case):
    """An implementation that tells shapes apart by their number of dimensions takes a 4-d input for an image."""
    return expect_equal(prepared(subject, case).forward(case.x), case.truth.y, "y")


@requirement(
    "FWD-06",
    "A rank of 1 MUST be computed like any other.",
    formula=FORMULA, sources=SOURCES, needs="set_adapter forward", cases=exact(rank=st.just(1), degenerate=True),
    examples=0.5,
)
def rank_one(subject, case):
    """With a dimension of 1, code that broadcasts where it should multiply matrices does not fail with an error."""
    if case.config.rank != 1:  # the only one that there is
        raise Unsupported("a rank of 1")
    return expect_equal(prepared(subject, case).forward(case.x), case.truth.y, "y")


@requirement(
    "FWD-07",
    "A rank greater than min(in, out) MUST be computed and merged like any other, or be refused when the layer is built.",
    formula=FORMULA, sources=SOURCES, needs="set_adapter forward",
    cases=exact(in_features=st.integers(1, 3), out_features=st.integers(1, 3), rank=st.integers(4, 6), degenerate=True,
                wide_rank=True),
    examples=0.5,
)
def rank_above_both_sizes(subject, case):
    """Such a rank is useless for training, but well defined. Clipping it is a silent change of the configuration."""
    if case.config.rank <= min(case.config.in_features, case.config.out_features):
        raise Unsupported("a rank above in and out")
    if refuses(fresh, subject, case):
        return 0.0
    layer = prepared(subject, case, training=True)
    with suppress(Unsupported):
        merge(layer)
        expect_equal(layer.forward(case.x), case.truth.y, "y after merge")
        layer.unmerge()
    return expect_equal(layer.forward(case.x), case.truth.y, "y")


@requirement(
    "FWD-08",
    "A layer without a bias MUST compute x Wᵀ + scale · (x A) B.",
    formula="y = x Wᵀ + scale · (x A) B", sources=SOURCES, needs="set_adapter forward", optional=True,
    cases=exact(bias=st.just(False)), examples=0.5,
)
def no_bias(subject, case):
    """Most projections of today's language models have none."""
    return expect_equal(prepared(subject, case).forward(case.x), case.truth.y, "y")


@requirement(
    "FWD-09",
    "Each row of a batch of 1, 65, 257 or 1030 MUST give what it gives alone.",
    formula="f(x)[i] = f(x[i])", sources=SOURCES, needs="set_adapter forward", faults="53",
    cases=exact(leading=st.sampled_from([(257,), (65,), (1030,), (1,)]), only=("float32", "float64")), examples=0.25,
)
def rows_are_independent(subject, case):
    """Kernels work in tiles. They often go wrong in the last tile, which is not full."""
    layer = prepared(subject, case)
    y = layer.forward(case.x)
    rows = sorted({0, len(case.x) // 2, len(case.x) - 1})
    for i in rows:
        expect_equal(layer.forward(case.x[i : i + 1]), wide(y)[i : i + 1], f"y of row {i} alone, against the batch")
    everything = np.concatenate([layer.forward(case.x[i : i + 31]) for i in range(0, len(case.x), 31)])
    expect_equal(y, everything, "y of the batch, against 31 rows at a time")
    for dtype in ("float16", case.config.dtype):
        with suppress(Unsupported):
            beside_an_outlier(subject, case.stored_as(dtype))


def beside_an_outlier(subject, case: Case) -> None:
    """One row holds numbers near the end of the range, and the others small ones. A factor for all rows that brings the one
    back is the end of the others."""
    small = np.ldexp(wide(case.x), -12).astype(np.float64).astype(case.dtype)
    layer, x = prepared(subject, case.replace(b=None if case.b is None else 0 * case.b)), small.copy()
    x[len(x) // 2] = ml_dtypes.finfo(case.dtype).max / 4
    others = np.arange(len(x)) != len(x) // 2
    found, want = layer.forward(x), layer.forward(small)
    expect_equal(found[others], want[others], f"y of the rows beside one of very large numbers, in {case.config.dtype}")


@requirement(
    "FWD-10",
    "Non-contiguous, broadcast, reversed and read-only inputs MUST give what a plain copy of them gives.",
    formula=FORMULA, sources=SOURCES, needs="set_adapter forward", faults="61",
    cases=exact(leading=st.lists(st.integers(2, 3), min_size=1, max_size=2).map(tuple)), examples=0.5,
)
def any_memory_layout(subject, case):
    """Only the numbers of x count, not where they lie in memory. Code that reads the buffer in order gets the wrong numbers."""
    layer = prepared(subject, case)
    for name, view in layouts(case.x).items():
        expect_equal(layer.forward(view), layer.forward(view.copy()), f"y of a {name} x, against its copy")


@requirement(
    "FWD-11",
    "A forward pass MUST NOT change its input.",
    formula="x after = x before", sources=SOURCES, needs="set_adapter forward", faults="66 122", cases=exact(), examples=0.5,
)
def input_is_not_changed(subject, case):
    """The caller still needs x. In a transformer the query, key and value projections share it."""
    for training in (False, True):
        x = case.x.copy()
        prepared(subject, case, training).forward(x)
        expect_equal(x, case.x, "x after the forward pass")


@requirement(
    "FWD-12",
    "In inference mode the same input MUST give the same output again: the same bits, where every sum is exact.",
    formula="f(x) = f(x)", sources=SOURCES, needs="set_adapter forward", cases=exact(), examples=0.5,
)
def deterministic_in_inference(subject, case):
    """A forward pass must not change a state that the next one uses, and must not cache results by the address of x."""
    layer = prepared(subject, case)
    first = layer.forward(case.x).copy()
    layer.forward(case.x[:1])
    expect_equal(layer.forward(case.x), first, "y at the second call, against the first")
    x = case.x.copy()
    layer.forward(x)
    x *= -1
    return expect_equal(layer.forward(x), layer.forward(x.copy()),
                        "y of a buffer that holds other numbers by now, against a copy")


@requirement(
    "FWD-13",
    "NaN and infinity in the input or in the factors MUST reach every output that depends on them, and no other row; such "
    "factors MAY be refused.",
    formula="x[i] not finite ⇒ y[i] not finite", sources=SOURCES, needs="set_adapter forward",
    cases=exact(leading=st.tuples(st.integers(2, 3))), examples=0.5,
)
def not_finite_propagates(subject, case):
    """If a layer hides an overflow, nobody finds the fault that caused it."""
    W = np.where(case.W == 0, np.ones_like(case.W), case.W)  # no zeros, since infinity times zero is NaN
    case = case.replace(W=W)
    layer = prepared(subject, case)
    clean = layer.forward(case.x).copy()
    for bad in (np.nan, np.inf):
        x = case.x.copy()
        x[0, 0] = bad
        y = wide(layer.forward(x))
        expect(not np.isfinite(y[0]).any(), f"y[0] where x[0, 0] is {bad}", y[0].astype(float), "nothing finite")
        expect_equal(y[1:], clean[1:], f"the other rows of y where x[0, 0] is {bad}")
    A, B = case.A.copy(), case.B.copy()
    A[0, 0] = B[0, 0] = np.nan
    for training, words in ((False, ""), (True, " in training mode")):
        if not refuses(prepared, subject, case.replace(A=A), training):
            y = wide(prepared(subject, case.replace(A=A), training).forward(case.x))
            expect(np.isnan(y).all(), f"y where A[0, 0] is nan{words}", y.astype(float), "nan")
        if not refuses(prepared, subject, case.replace(B=B), training):
            y = wide(prepared(subject, case.replace(B=B), training).forward(case.x))
            expect(np.isnan(y[:, 0]).all(), f"y[:, 0] where B[0, 0] is nan{words}", y[:, 0].astype(float), "nan")
            expect_equal(y[:, 1:], clean[:, 1:], f"the other columns of y where B[0, 0] is nan{words}")


@requirement(
    "FWD-14",
    "Replacing A by A M and B by M⁻¹ B, for an invertible M, MUST change nothing.",
    formula="f(A M, M⁻¹ B) = f(A, B)", sources=(*SOURCES, "(x A M)(M⁻¹ B) = (x A) B"), needs="set_adapter forward",
    cases=exact(), examples=0.5,
)
def gauge_invariance(subject, case):
    """The output depends on the product A B only. Code that treats one factor in a special way breaks this law."""
    changed, _ = regauged(case)
    return expect_equal(prepared(subject, changed).forward(case.x), prepared(subject, case).forward(case.x), "y of A M, M⁻¹ B")


@requirement(
    "FWD-15",
    "A layer whose factors are those of two adapters side by side MUST compute the sum of the two.",
    formula="f([A A'], [B; B']) = f(A, B) + f(A', B') − base", sources=(*SOURCES, "[A A'] [B; B'] = A B + A' B'"),
    needs="set_adapter forward", faults="130", examples=0.5,
    cases=exact(in_features=st.integers(4, 8), out_features=st.integers(4, 8), rank=st.sampled_from((1, 2))),
)
def concatenated_ranks_add(subject, case):
    """This is the exact way to combine two adapters into one. Adding up the As and the Bs instead gives cross terms."""
    other = case.with_other_factors
    both = case.replace(
        rank=2 * case.config.rank, alpha=2 * case.config.alpha,
        A=np.concatenate([case.A, other.A], 1), B=np.concatenate([case.B, other.B]),
    )
    assume(exact_in_any_order(both) and exact_in_any_order(other))
    parts = [wide(prepared(subject, c).forward(c.x)) - c.truth.base for c in (case, other)]
    together = wide(prepared(subject, both).forward(case.x)) - case.truth.base
    return expect_equal(together, sum(parts), "LoRA part of both, against the sum")


@requirement(
    "FWD-16",
    "The order of the ranks MUST NOT matter.",
    formula="f(A P, Pᵀ B) = f(A, B) for a permutation P", sources=SOURCES, needs="set_adapter forward", faults="119",
    cases=exact(rank=st.sampled_from((2, 4))), examples=0.5,
)
def order_of_ranks(subject, case):
    """Code that cuts off, masks or pads one rank treats it differently from the others, so the order shows it."""
    reversed_ranks = case.replace(A=case.A[:, ::-1].copy(), B=case.B[::-1].copy())
    y = prepared(subject, reversed_ranks).forward(case.x)
    return expect_equal(y, prepared(subject, case).forward(case.x), "y with the ranks in reverse order")


@requirement(
    "FWD-17",
    "Moving a power of two from B to A MUST NOT change a bit of the output, unless repeating the same call changes bits, too.",
    formula="f(2ᵏ A, 2⁻ᵏ B) = f(A, B)", sources=(HIGHAM, "scaling by a power of two is exact"), needs="set_adapter forward",
    cases=rounding(), examples=0.5,
)
def powers_of_two_move(subject, case):
    """Multiplying by a power of two changes no rounding. So this shows a factor that is kept on a fixed grid, or in a format of
    less range. Some layers add up in another order with every call, such as with atomic operations. For them the bound is
    used in place of equal bits."""
    layer = prepared(subject, case)
    y = layer.forward(case.x).copy()
    allowed = 2 * case.bound.y * (not np.array_equal(layer.forward(case.x), y))
    for k in (-20, -6, 5, 20):
        moved = case.replace(A=np.ldexp(case.A, k), B=np.ldexp(case.B, -k))
        expect_within(prepared(subject, moved).forward(case.x), y, allowed, f"y of 2^{k} A, 2^{-k} B, against that of A, B")


@requirement(
    "FWD-18",
    "A layer with in = out = rank MUST be computed like any other.",
    formula=FORMULA, sources=SOURCES, needs="set_adapter forward", faults="77 79 103",
    cases=exact(in_features=SQUARE, out_features=SQUARE, rank=SQUARE, square=True), examples=0.5,
)
def all_sizes_equal(subject, case):
    """Here a matrix and its transpose have the same shape. Code that transposes depending on the shape goes wrong."""
    if case.config.rank != case.config.in_features:
        raise Unsupported("a rank that is in and out")
    return expect_equal(prepared(subject, case).forward(case.x), case.truth.y, "y")


@requirement(
    "FWD-19",
    "Sizes and ranks larger than a tile MUST be computed like small ones.",
    formula=FORMULA, sources=SOURCES, needs="set_adapter forward", faults="53", cases=large_or_round, examples=1.75,
)
def large_sizes(subject, case):
    """Kernels divide the features and the rank into tiles as well, and what is left over into smaller ones. Some sizes here are
    from 257 to 323, with ranks from 128 to 320. Others are round numbers, such as 96, 200 and 720, or one above or below: they
    are multiples of many tiles, so that nothing is left over."""
    return expect_equal(prepared(subject, case).forward(case.x), case.truth.y, "y")


@requirement(
    "FWD-20",
    "More than ten thousand rows, inputs or outputs MUST be computed like few: forwards, backwards and merged.",
    formula=FORMULA, sources=SOURCES, needs="set_adapter forward", faults="53", cases=exact(), examples=0.05, costly=True,
)
def far_sizes(subject, case):
    """Work is divided among a fixed number of workers, or into blocks that were never more than a few. Batches of tokens and
    vocabularies are that large. The other sizes are small, so that this takes no time."""
    scale = subject.scale if subject.alpha is None else Fraction(subject.alpha) / int(PLAIN["rank"])
    kind = {"format": case.config.dtype, "bias": case.config.bias} | ({} if scale is None else {"scale": str(Fraction(scale))})
    specials = ({}, {"merged": True}, {"mode": "inference"})
    lives = [{size: far} | special for size, far in (("rows", FAR_ROWS), ("in", FAR), ("out", FAR)) for special in specials]
    lives += [MANY_ROWS] if scale is None else []
    cases = [(levels, life.prepared(levels, case.config.seed)) for levels in (PLAIN | kind | levels for levels in lives)]
    for name in ("x", "A") if scale is None else ():
        for special in specials:
            levels = PLAIN | kind | MANY_BITS | special
            tries = (life.prepared(levels, seed) for seed in itertools.count(case.config.seed))
            cases.append((levels, next(drawn for drawn in tries if has_many_bits(getattr(drawn, name)))))
    for number, (levels, drawn) in enumerate(cases):
        try:
            life.live(subject, levels, drawn.replace(device=case.config.device))
        except life.Broken as broken:
            raise broken.failure from None
        except Unsupported:
            if not number:
                raise


def has_many_bits(array: np.ndarray) -> bool:
    """Whether some number has more bits than bfloat16."""
    return bool((array.astype(ml_dtypes.bfloat16).astype(array.dtype) != array).any())
