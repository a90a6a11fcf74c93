"""INIT: the state of a layer before any training."""

from contextlib import nullcontext, suppress

import numpy as np

from conformance.record.trace import refuses
from conformance.requirements import LORALIB, PAPER, PEFT, Group, requirement
from conformance.requirements.helpers.layers import fresh, set_mode
from conformance.subject import Unsupported
from conformance.truth.case import DTYPES
from conformance.truth.compare import expect, expect_equal, expect_same_spread, expect_within, expect_zero_mean, wide
from conformance.truth.strategies import exact, rounding, sized

GROUP = Group("INIT", "Initialisation", order=20, profile="training", asks="backward")
SOURCES = (f"{PAPER}, §4.1", f"{PEFT}, reset_lora_parameters", f"{LORALIB}, Linear.reset_parameters")


@requirement(
    "INIT-01",
    "A fresh layer MUST equal the base layer with the given weights, bit for bit, in both modes.",
    formula="f(x) = x Wᵀ + b", sources=SOURCES, needs="forward", faults="27 31 43 54", cases=exact(degenerate=True),
)
def fresh_equals_base(subject, case):
    """Training must start from the pretrained model, not from a random change of it. The output is compared with that of the
    weights that were handed over, not of the weights that the layer says it has."""
    layer = fresh(subject, case)
    for training in (True, False):
        set_mode(layer, training)
        expect_equal(layer.forward(case.x), case.truth.base, "y of a fresh layer")


@requirement(
    "INIT-02",
    "The frozen weight and bias of a fresh layer MUST be the given ones, bit for bit.",
    formula="W = W₀, b = b₀", sources=SOURCES, needs="weight bias", faults="31", cases=rounding(), examples=0.5,
)
def keeps_given_weights(subject, case):
    """A constructor destroys the model if it initialises its base layer after it was given the weights, or if it reads the
    weights in the order in which they lie in memory."""
    layer = subject.build(case.config, np.asfortranarray(case.W.copy()), None if case.b is None else case.b.copy())
    expect_equal(layer.weight(), case.W, "W of a fresh layer")
    if case.b is not None:
        expect_equal(layer.bias(), case.b, "b of a fresh layer")


@requirement(
    "INIT-03",
    "Exactly one of A and B MUST be zero in a fresh layer.",
    formula="A = 0 ≠ B or B = 0 ≠ A", sources=SOURCES, needs="adapter", faults="26 27", cases=sized(12, 7, 5, 10.0),
    examples=0.25,
)
def exactly_one_factor_is_zero(subject, case):
    """With neither zero the model is altered before the first step; with both zero both gradients are zero, and it
    never learns. Which of the two is zero is a convention: the paper zeroes B, embeddings often A."""
    for dtype in DTYPES:
        with nullcontext() if dtype == case.config.dtype else suppress(Unsupported):
            b = None if case.b is None else case.b.astype(DTYPES[dtype])
            arrays = fresh(subject, case.replace(dtype=dtype, W=case.W.astype(DTYPES[dtype]), b=b)).adapter()
            zero = {name: not wide(arrays[name]).any() for name in ("A", "B")}
            expect(sum(zero.values()) == 1, f"which factors are zero in a fresh layer in {dtype}", zero, "exactly one")


@requirement(
    "INIT-04",
    "The factor that is not zero MUST have mean 0 and a standard deviation above 0.",
    formula="E[A] = 0, Var[A] > 0", sources=SOURCES, needs="adapter", faults="28", cases=sized(256, 192, 16, 32.0),
    examples=0.1,
)
def random_factor_is_centred(subject, case):
    """If all entries have a common offset, all ranks share one direction. The test is statistical; its false-alarm probability
    is given in conformance/truth/compare.py."""
    factor = random_factor(fresh(subject, case))
    expect(factor.std() > 0, "spread of the random factor", 0, "more")
    return expect_zero_mean(factor, "mean of the random factor")


@requirement(
    "INIT-05",
    "The factor that is not zero MUST have full rank, and no row or column of zeros, also with a rank above in and out.",
    formula="rank(A) = min(in, rank)", sources=SOURCES, needs="adapter", cases=sized(48, 40, 8, 16.0), examples=0.25,
)
def random_factor_has_full_rank(subject, case):
    """A repeated column, or a column of zeros, takes memory and time but adds nothing to what the layer can learn. Code that
    tells A from B by their shapes takes one for the other where in, out and rank are the same number."""
    n_in, n_out, rank = case.config.in_features, case.config.out_features, case.config.rank
    for sizes in ((n_in, n_out, rank), (rank, n_out, rank), (n_in, rank, rank), (rank, rank, rank), (n_in, n_out, 2 * n_in)):
        alpha, b = case.config.alpha / rank * sizes[2], None if case.b is None else case.b[: sizes[1]]
        shaped = case.replace(in_features=sizes[0], out_features=sizes[1], rank=sizes[2], alpha=alpha, b=b,
                              W=case.W[: sizes[1], : sizes[0]])
        if sizes[2] > sizes[0] and refuses(fresh, subject, shaped):
            continue
        factor = random_factor(fresh(subject, shaped)).astype(np.float64)
        what = f"random factor {factor.shape}"
        expect(np.linalg.matrix_rank(factor) == min(factor.shape), f"rank of the {what}",
               int(np.linalg.matrix_rank(factor)), min(factor.shape))
        zeros = int(sum((~factor.any(axis=axis)).sum() for axis in (0, 1)))
        expect(not zeros, f"rows and columns of zeros of the {what}", zeros, "none")


@requirement(
    "INIT-06",
    "Layers of different seeds MUST differ in the factor that is not zero.",
    formula="A(seed 1) ≠ A(seed 2)", sources=SOURCES, needs="adapter", cases=sized(12, 7, 5, 10.0), examples=0.25,
)
def seeds_differ(subject, case):
    """Otherwise every layer of a model, or every run of an experiment, starts from the same numbers."""
    first = random_factor(fresh(subject, case))
    for more in (1, 16, 256, 65536):  # large differences, too: some layers use only a few bits of the seed
        second = random_factor(fresh(subject, case.replace(seed=case.config.seed + more)))
        expect(not np.array_equal(first, second), f"the random factor of seeds that differ by {more}", "equal", "different")


@requirement(
    "INIT-07",
    "The spread of the random factor SHOULD NOT depend on the rank.",
    formula="std(A | rank 4) = std(A | rank 32)", sources=(*SOURCES, "torch.nn.init: fan_in of a 2-d tensor is its size(1)"),
    needs="adapter", faults="29 30", cases=sized(768, 512, 4, 8.0), examples=0.1,
)
def spread_is_independent_of_rank(subject, case):
    """Kaiming initialisers take the second dimension as the fan-in. If A is stored as (in, rank), they divide by the rank in
    place of in_features. Then the size of an update depends on the rank twice: here and in the scale."""
    per_rank = case.config.alpha / case.config.rank
    narrow, wider = (random_factor(fresh(subject, case.replace(rank=r, alpha=per_rank * r))) for r in (4, 32))
    return expect_same_spread(narrow, wider, "log(std at rank 4 / std at rank 32)")


@requirement(
    "INIT-08",
    "After one SGD step the zero factor MUST have moved, and after two the other one as well.",
    formula="dB ≠ 0 at B = 0; dA ≠ 0 once B ≠ 0", sources=SOURCES, needs="adapter forward backward zero_grad step",
    faults="26 58", cases=sized(6, 5, 3, 6.0), examples=0.25,
)
def both_factors_start_to_learn(subject, case):
    """The start is a saddle point: the zero factor moves first, and then its value lets the other factor move."""
    layer = fresh(subject, case)
    start = {name: array.copy() for name, array in layer.adapter().items()}
    for _ in range(2):
        layer.zero_grad()
        layer.forward(case.x)
        layer.backward(case.dy)
        layer.step(0.125)
        first = "B" if not wide(start["B"]).any() else "A"
        moved = not np.array_equal(wide(layer.adapter()[first]), wide(start[first]))
        expect(moved, f"{first}, zero at the start, after an SGD step", "unchanged", "changed")
    for name in ("A", "B"):
        moved = not np.array_equal(wide(layer.adapter()[name]), wide(start[name]))
        expect(moved, f"{name} after two SGD steps", "unchanged", "changed")


@requirement(
    "INIT-09",
    "On real numbers a fresh layer MUST be within the rounding-error bound of the base layer, and give the same bits as "
    "with both factors zero, unless repeating the same call changes bits, too.",
    formula="f(x) = f(x; A = B = 0)", sources=SOURCES, needs="set_adapter forward", faults="27 54", cases=rounding(),
    examples=0.5,
)
def fresh_adds_nothing(subject, case):
    """INIT-01 again, at realistic sizes and with real numbers, which show a B that is small and random."""
    zero = case.replace(A=0 * case.A, B=0 * case.B)
    layer = fresh(subject, case)
    set_mode(layer, False)
    y = layer.forward(case.x).copy()
    ratio = expect_within(y, zero.truth.y, zero.bound.y, "y of a fresh layer")
    allowed = 2 * zero.bound.y * (not np.array_equal(layer.forward(case.x), y))  # sums in another order with every call
    set_mode(layer, True)
    layer.set_adapter(zero.adapter)
    set_mode(layer, False)
    expect_within(layer.forward(case.x), y, allowed, "y with both factors zero, against the fresh layer")
    return ratio


@requirement(
    "INIT-10",
    "Two layers of one configuration, seed included, SHOULD start from the same factors.",
    formula="A(seed) = A(seed)", sources=SOURCES, needs="adapter", cases=sized(12, 7, 5, 10.0), examples=0.25,
)
def seed_repeats(subject, case):
    """Experiments must be repeatable. 0 is a seed like any other."""
    for seed in (case.config.seed, 0):
        first, second = (random_factor(fresh(subject, case.replace(seed=seed))) for _ in range(2))
        expect_equal(second, first, f"the random factor of a second layer with seed {seed}")


def random_factor(layer) -> np.ndarray:
    """The factor of a fresh layer that is not zero."""
    arrays = layer.adapter()
    factor = wide(arrays["A"] if wide(arrays["A"]).any() else arrays["B"])
    expect(factor.any(), "the factors of a fresh layer", "both zero", "exactly one zero")
    return factor
