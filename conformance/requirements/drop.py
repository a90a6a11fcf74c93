"""DROP: dropout on the LoRA path."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from conformance.requirements import LORALIB, PEFT, Group, requirement
from conformance.requirements.helpers.layers import fresh, gradients, prepared, scratch
from conformance.subject import Layer
from conformance.truth.case import DTYPES, Case
from conformance.truth.compare import expect, expect_equal, expect_few_in_common, expect_fraction, wide
from conformance.truth.strategies import among, exact, sized

GROUP = Group("DROP", "Dropout", order=70, profile="training", asks="backward")
SOURCES = (
    "Srivastava et al. 2014, Dropout, JMLR 15",
    f"{PEFT}, Linear.forward: lora_B(lora_A(dropout(x)))",
    f"{LORALIB}, Linear.forward",
)
NEEDS = "set_adapter forward train"
PASSES = 512  # passes to read where all rows share a mask: each gives one row
K = 32  # in = out = rank = K in the cases that read the mask off the output


def readable(rate: float):
    return sized(K, K, K, 4.0 * K, dropout=rate)


def forms(dtypes: tuple[str, ...]):
    """Cases that show the mask, in every dtype, scaling and number of leading dimensions. √16, of the rank, is exact."""
    leading = st.sampled_from([(), (1,), (1, 1), (3,), (2, 3)])

    def of(form) -> st.SearchStrategy[Case]:
        dtype, scaling, lead = form
        alpha = 16.0 if scaling == "rslora" else 64.0
        ones = np.ones((*lead, 16), DTYPES[dtype])
        cases = sized(16, 16, 16, alpha, only=(dtype,), dropout=0.5, scaling=scaling)(dtypes)
        return cases.map(lambda case: case.replace(x=ones, dy=ones))

    return st.tuples(among(tuple(DTYPES), dtypes), st.sampled_from(("standard", "rslora")), leading).flatmap(of)


def showing(subject, case: Case, rows: int = 0) -> tuple[Layer, Callable[[], np.ndarray]]:
    """A training-mode layer with W = 0, b = 0 and A = B = I, so that the output is scale · mask · x / (1 − rate), and a
    function that makes a forward pass and returns its mask as multiples of x. If `rows` is given, x is (4, rows, in)."""
    eye = np.eye(case.config.in_features, dtype=case.dtype)
    x = np.ones((4, rows, len(eye)), case.dtype) if rows else case.x
    case = case.replace(W=0 * case.W, b=None if case.b is None else 0 * case.b, A=eye, B=eye, x=x)
    layer = prepared(subject, case, training=True)
    layer.train(True)
    return layer, lambda: wide(layer.forward(x)) / case.scale


def drawn(subject, case: Case) -> np.ndarray:
    """The mask of one pass, without samples or rows that repeat the first. If few are left, the first rows of many passes."""
    _, read = showing(subject, case, rows=1024)
    found = read()
    for axis in (0, 1):
        if (found == found.take([0], axis)).all():
            found = found.take([0], axis)
    if found[..., 0].size < PASSES:
        _, read = showing(subject, case, rows=1)
        found = np.stack([read()[0, 0] for _ in range(PASSES)])
    return found


def drops(read: Callable[[], np.ndarray], when: str) -> None:
    """Demands a dropped entry, at a rate of ½. None of n entries is dropped with probability 2⁻ⁿ; n is at least 128 here."""
    found = read()
    expect((found == 0).any(), f"dropped entries {when}", 0, f"about {found.size // 2}")


@requirement(
    "DROP-01",
    "In inference mode there MUST be no dropout: the output is that of the formula.",
    formula="eval: y = x Wᵀ + b + scale · (x A) B", sources=SOURCES, needs=NEEDS, faults="74", optional=True,
    cases=exact(dropout=0.5), examples=0.5,
)
def none_in_inference(subject, case):
    """Inverted dropout needs no correction at inference. A factor of 1 − p there weakens the adapter."""
    layer = prepared(subject, case, training=True)
    layer.train(False)
    return expect_equal(layer.forward(case.x), case.truth.y, "y in inference mode")


@requirement(
    "DROP-02",
    "Dropout MUST act on the LoRA path only: the base product gets x without dropout.",
    formula="B = 0 ⇒ y = x Wᵀ + b in training mode", sources=SOURCES, needs=NEEDS, faults="43 60", optional=True,
    cases=exact(dropout=0.5), examples=0.5,
)
def base_path_is_not_dropped(subject, case):
    """The frozen model was not trained with a part of its input missing."""
    case = case.replace(B=0 * case.B)
    return expect_equal(prepared(subject, case, training=True).forward(case.x), case.truth.base,
                        "y in training mode with B = 0")


@requirement(
    "DROP-03",
    "In training mode every entry MUST be dropped with probability p, and kept ones scaled by 1 / (1 − p).",
    formula="x̃ = x · m / (1 − p), m ~ Bernoulli(1 − p)", sources=SOURCES, needs=NEEDS, faults="69 70 71 72",
    optional=True, cases=readable(0.75), examples=0.05,
)
def inverted_scaling(subject, case):
    """With A = B = I the mask can be read off the output. This shows a rate that is never used, and p used in place of 1 − p.
    It also shows a rate that is off by 0.02, since 131,072 entries are read at each rate. Two of the rates are usual, one is
    not. If all rows share a mask (which DROP-07 forbids), fewer draws are read, each of them once."""
    ratios = []
    for rate in (0.75, 0.125, 0.05):
        found = drawn(subject, case.replace(dropout=rate))
        kept = found != 0
        if rate == 0.75:  # 1 / (1 − p) = 4 is exact
            expect_equal(found, np.where(kept, 4.0, 0.0), "entries of the LoRA path in training mode, as multiples of x")
        ratios.append(expect_fraction(int(kept.sum()), kept.size, 1 - rate, f"fraction of kept entries at p = {rate}"))
        alike = kept[..., 1::2] == kept[..., ::2]
        what = f"neighbours that are dropped or kept alike, p = {rate}"
        ratios.append(expect_fraction(int(alike.sum()), alike.size, rate**2 + (1 - rate) ** 2, what))
    return max(ratios)


@requirement(
    "DROP-04",
    "The backward pass MUST use the mask of its forward pass: ⟨dy, y⟩ = ⟨dx, x⟩ = ⟨dA, A⟩ = ⟨dB, B⟩ when W and b are zero.",
    formula="⟨dy, y⟩ = ⟨dx, x⟩ = ⟨dA, A⟩ = ⟨dB, B⟩", sources=(*SOURCES, "the LoRA part is linear in x, in A and in B"),
    needs=f"{NEEDS} backward", faults="70 73", optional=True,
    cases=exact(dropout=0.5, only=("float32", "float64"), leading=st.tuples(st.integers(2, 6))),
)
def one_mask_for_both_passes(subject, case):
    """The identity holds whatever mask was drawn and wherever it was applied. A mask that is drawn again in the backward pass,
    or left out of one gradient, breaks it. A comparison of outputs cannot show this fault."""
    case = case.replace(W=0 * case.W, b=None if case.b is None else 0 * case.b)
    layer = prepared(subject, case, training=True)
    layer.train(True)
    layer.forward(case.x)  # with a mask of its own
    y = wide(layer.forward(case.x))
    found = layer.backward(case.dy)
    want = (wide(case.dy) * y).sum()
    for name, array in {"A": case.A, "B": case.B, "x": case.x}.items():
        if name == "x" and name not in found:
            continue
        expect(name in found, f"d{name} in training mode", "none", "a gradient")
        expect_equal((wide(found[name]) * wide(array)).sum(), want, f"⟨d{name}, {name}⟩ against ⟨dy, y⟩")


@requirement(
    "DROP-05",
    "Going to inference mode and back MUST bring the dropout back.",
    formula="train → eval → train", sources=SOURCES, needs=NEEDS, faults="75", optional=True,
    cases=readable(0.5), examples=0.1,
)
def comes_back_after_inference(subject, case):
    """With this fault a training run goes on without dropout after its first evaluation, and no loss curve shows it."""
    layer, read = showing(subject, case, rows=16)
    layer.train(False)
    whole = read()
    expect_equal(whole, np.ones_like(whole), "entries of the LoRA path in inference mode, as multiples of x")
    layer.train(True)
    drops(read, "after train, eval, train")


@requirement(
    "DROP-06",
    "With p = 0 training mode MUST change nothing.",
    formula="p = 0 ⇒ y = x Wᵀ + b + scale · (x A) B", sources=SOURCES, needs="set_adapter forward", cases=exact(),
    examples=0.5,
)
def rate_zero(subject, case):
    """p = 0 means no dropout. It must not lead to code that computes something else."""
    return expect_equal(prepared(subject, case, training=True).forward(case.x), case.truth.y, "y in training mode with p = 0")


@requirement(
    "DROP-07",
    "Every forward pass in training mode MUST draw a new mask, and MUST draw every entry of every row independently.",
    formula="m₁ ≠ m₂; mᵢⱼ independent", sources=SOURCES, needs=NEEDS, faults="69 70", optional=True,
    cases=readable(0.5), examples=0.1,
)
def masks_differ(subject, case):
    """A mask that is drawn only once makes the layer smaller and does not regularise. Two masks of 2048 entries are equal by
    chance with probability 2⁻²⁰⁴⁸. The checks on the rows and entries of one mask fail by chance with less than 2⁻¹⁰⁰."""
    _, read = showing(subject, case, rows=16)
    first, second = read(), read()
    expect(not np.array_equal(first, second), "the masks of two forward passes", "equal", "different")
    for axis, name in enumerate(("of the samples of a batch", "of the rows of a sample", "of the entries of a row")):
        expect((first != first.take([0], axis)).any(), f"the masks {name}", "all equal", "different")
    kept = (first != 0).sum(-1)
    expect(len(np.unique(kept)) > 1, "the number of kept entries of a row", f"always {kept.max()}", "different by chance")
    counts = {int((read() != 0).sum()) for _ in range(16)}
    expect(len(counts) > 1, "the number of kept entries of 16 masks", f"always {max(counts)}", "different by chance")
    columns = first.reshape(-1, K).T.tolist()  # 32 of 64 rows: two are equal with a probability of 2⁻⁶⁴
    expect(len(set(map(tuple, columns))) == K, "entries that are dropped independently", len(set(map(tuple, columns))), K)
    expect_few_in_common(first.reshape(-1, K) != 0, second.reshape(-1, K) != 0,
                         "rows of a mask that were rows of the one before")


@requirement(
    "DROP-08",
    "A fresh layer with dropout MUST equal the base layer in training mode, too.",
    formula="A B = 0 ⇒ y = x Wᵀ + b", sources=SOURCES, needs="forward", faults="43", optional=True,
    cases=exact(dropout=0.5, degenerate=True), examples=0.5,
)
def fresh_with_dropout(subject, case):
    """The mask multiplies zero, so it has no effect."""
    return expect_equal(fresh(subject, case).forward(case.x), case.truth.base, "y of a fresh layer in training mode")


@requirement(
    "DROP-09",
    "In training mode the gradient of x MUST hold the whole gradient of the base path, without dropout.",
    formula="B = 0 ⇒ dx = dy W in training mode", sources=SOURCES, needs=f"{NEEDS} backward", faults="43", optional=True,
    cases=exact(dropout=0.5), examples=0.5,
)
def base_gradient_is_not_dropped(subject, case):
    """The counterpart of DROP-02. It shows a mask that is applied to the gradient of both paths."""
    case = case.replace(B=0 * case.B)
    found = gradients(prepared(subject, case, training=True), case.x, case.dy)
    return expect_equal(found.get("x", np.zeros(0)), case.truth.dx, "dx in training mode with B = 0")


@requirement(
    "DROP-10",
    "A layer that was merged in training mode MUST NOT drop anything: there is no LoRA path left.",
    formula="merged: y = x W'ᵀ + b", sources=SOURCES, needs=f"{NEEDS} merge", faults="43", profile="merge", optional=True,
    cases=exact(dropout=0.5), examples=0.5,
)
def merged_does_not_drop(subject, case):
    """The input of the base product is never dropped, whether the layer is merged or not."""
    layer = prepared(subject, case, training=True)
    layer.merge()
    return expect_equal(layer.forward(case.x), case.truth.y, "y merged, in training mode")


@requirement(
    "DROP-11",
    "Dropout MUST be the same in every dtype, with either scaling, and for any number of leading dimensions.",
    formula="x̃ = x · m / (1 − p)", sources=SOURCES, needs=NEEDS, faults="69 72", optional=True, cases=forms,
)
def any_form_of_x(subject, case):
    """A single row, a vector or half precision may have code of its own, which may forget the mask or the factor. 128 entries
    are read. All of them, or none, are dropped with a probability of 2⁻¹²⁷."""
    _, read = showing(subject, case)
    found = np.concatenate([read().ravel() for _ in range(-(-128 // case.x.size))])
    kept = found != 0
    expect_equal(found, np.where(kept, 2.0, 0.0), f"entries of the LoRA path for x {case.x.shape}, as multiples of x")
    expect(kept.any() and not kept.all(), f"dropped entries for x {case.x.shape}", int((~kept).sum()),
           f"about {kept.size // 2}")


@requirement(
    "DROP-12",
    "After merge and unmerge in training mode there MUST be dropout as before.",
    formula="unmerge ∘ merge changes no mode", sources=SOURCES, needs=f"{NEEDS} merge unmerge", faults="75", profile="merge",
    optional=True, cases=readable(0.5), examples=0.1,
)
def comes_back_after_unmerge(subject, case):
    """A merge for an evaluation during training must not end the dropout."""
    layer, read = showing(subject, case, rows=16)
    layer.merge()
    layer.unmerge()
    drops(read, "after merge and unmerge")


@requirement(
    "DROP-13",
    "Two layers MUST NOT share their dropout: neither the rate, nor the mask.",
    formula="m₁ ≠ m₂, p₁ whatever p₂", sources=SOURCES, needs=f"{NEEDS} backward", faults="17 70", optional=True,
    cases=readable(0.5), examples=0.1,
)
def layers_share_no_dropout(subject, case):
    """Layers with the same seed drop the same entries in the whole model. A mask that is stored in the class is the mask of the
    layer that ran last."""
    case = case.replace(x=np.ones((4, K), case.dtype), dy=np.ones((4, K), case.dtype))
    (first, read), (second, read_second) = (showing(subject, case.replace(seed=case.config.seed + i)) for i in (0, 1))
    mask, other = read(), read_second()
    expect(not np.array_equal(mask, other), "the masks of two layers", "equal", "different")
    found = first.backward(case.dy)
    if "x" in found:
        expect_equal(found["x"], mask * case.scale, "dx of the first layer, after the second one ran")
    showing(subject, case.replace(dropout=0.0))[1]()
    drops(read, "after a layer without dropout was built and used")


@requirement(
    "DROP-14",
    "After a load in training mode there MUST be dropout as before.",
    formula="load changes no mode", sources=SOURCES, needs=f"{NEEDS} save load", faults="75", profile="files",
    optional=True, cases=readable(0.5), examples=0.1,
)
def comes_back_after_load(subject, case):
    """Training that goes on from a checkpoint needs dropout like any other training."""
    layer, read = showing(subject, case, rows=16)
    with scratch() as directory:
        layer.save(Path(directory))
        layer.load(Path(directory))
    drops(read, "after a load")
