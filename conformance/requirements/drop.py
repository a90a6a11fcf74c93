"""DROP: dropout on the LoRA path."""

import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from conformance.record.trace import refuses
from conformance.requirements import LORALIB, PEFT, Group, requirement
from conformance.requirements.helpers import masks
from conformance.requirements.helpers.dropped import MORE
from conformance.requirements.helpers.layers import fresh, gradients, known_weight, prepared, scratch, set_mode
from conformance.requirements.helpers.masks import WIDTH, at_size, form, mask_of, revealing, without_repeats
from conformance.requirements.helpers.variants import windows
from conformance.subject import Layer, Unsupported
from conformance.truth.case import DTYPES, Case
from conformance.truth.compare import (
    expect,
    expect_equal,
    expect_few_in_common,
    expect_fraction,
    expect_fractions,
    expect_kept_factor,
    expect_no_patch_twice,
    expect_unlike,
    expect_within,
    wide,
)
from conformance.truth.strategies import among, exact, sized
from lora_ref import lora
from lora_ref.error import bounds

GROUP = Group("DROP", "Dropout", order=70, profile="training", asks="backward")
SOURCES = (
    "Srivastava et al. 2014, Dropout, JMLR 15",
    f"{PEFT}, Linear.forward: lora_B(lora_A(dropout(x)))",
    f"{LORALIB}, Linear.forward",
)
NEEDS = "set_adapter forward train"
PASSES = 512  # passes to read where all rows share a mask: each gives one row
K = 32  # in = out = rank = K in the cases that read the mask off the output
RATES = 0.1, 0.25, 0.3, 0.9  # other than ½
SMALL = 0.0021  # a rate that eight random bits cannot give
POOL = 40  # passes among which a mask that comes from a pool comes again


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
    """A layer that shows its mask, and a function that makes a forward pass and returns its mask as multiples of x. If
    `rows` is given, x is (4, rows, in)."""
    x = np.ones((4, rows, case.config.in_features), case.dtype) if rows else case.x
    layer = revealing(subject, case)
    return layer, lambda: wide(layer.forward(x)) / case.scale


def drawn(subject, case: Case) -> np.ndarray:
    """The mask of one pass, without samples or rows that repeat the first. If few are left, the first rows of many passes."""
    _, read = showing(subject, case, rows=1024)
    found = without_repeats(read())
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
    """Inverted dropout needs no correction at inference. A factor of 1 − p there weakens the adapter. A layer that merges in
    inference mode may have dropout all the same, which shows after it was unmerged."""
    layer = prepared(subject, case, training=True)
    layer.train(False)
    expect_equal(layer.forward(case.x), case.truth.y, "y in inference mode")
    with suppress(Unsupported):
        if np.array_equal(wide(layer.weight()), wide(case.W)):
            return  # it has not merged by itself
        inference = not refuses(layer.unmerge) and layer.as_module("part_modes", {})["modes"][:1] == ["the layer: False"]
        if inference:  # some layers unmerge by going to training mode
            expect_equal(layer.forward(case.x), case.truth.y, "y in inference mode, after unmerge")


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
    It also shows a rate that is off by 0.01, since 131,072 entries are read at each rate. Two of the rates are usual, one is
    not, and two are so small that eight random bits cannot give them. If all rows share a mask (which DROP-07 forbids), fewer
    draws are read, each of them once."""
    ratios = []
    for rate in (0.75, 0.125, 0.05, 0.001, SMALL):
        found = drawn(subject, case.replace(dropout=rate))
        kept = found != 0
        if rate == 0.75:  # 1 / (1 − p) = 4 is exact
            expect_equal(found, np.where(kept, 4.0, 0.0), "entries of the LoRA path in training mode, as multiples of x")
        ratios.append(expect_fraction(int(kept.sum()), kept.size, 1 - rate, f"fraction of kept entries at p = {rate}"))
        alike = kept[..., 1::2] == kept[..., ::2]
        what = f"neighbours that are dropped or kept alike, p = {rate}"
        ratios.append(expect_fraction(int(alike.sum()), alike.size, rate**2 + (1 - rate) ** 2, what))
    for dtype in {"float16", "bfloat16"} - {case.config.dtype}:
        with suppress(Unsupported):
            kept = drawn(subject, case.replace(dropout=SMALL).stored_as(dtype)) != 0
            what = f"fraction of kept entries at p = {SMALL} in {dtype}"
            ratios.append(expect_fraction(int(kept.sum()), kept.size, 1 - SMALL, what))
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
    for times, words in ((1, "train, eval, train"), (2, "train, eval twice, train twice")):
        for _ in range(times):
            layer.train(False)
        whole = read()
        expect_equal(whole, np.ones_like(whole), "entries of the LoRA path in inference mode, as multiples of x")
        for _ in range(times):
            layer.train(True)
        drops(read, f"after {words}")


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
    layer, one = revealing(subject, case), np.ones(K, case.dtype)
    repeated = wide(layer.forward(np.broadcast_to(one, (4, 16, K)))) / case.scale
    for axis, name in enumerate(("of the samples of a batch", "of the rows of a sample")):
        expect((repeated != repeated.take([0], axis)).any(), f"the masks {name}, which is one row that was expanded",
               "all equal", "different")
    overlapping = wide(layer.forward(windows(np.ones((64, K), case.dtype))))
    alike = (overlapping[1:, :-1] == overlapping[:-1, 1:]).mean()
    expect(alike < 1, "the masks of rows that overlap in memory, where they are the same numbers", "all equal", "different")
    with suppress(Unsupported):
        layer.input_needs_grad(False)
        samples = np.broadcast_to(np.ones((1, 16, K), case.dtype), (4, 16, K))
        repeated = wide(layer.forward(samples))
        expect((repeated != repeated[:1]).any(), "the masks of samples that are one sample, expanded, which needs no gradient",
               "all equal", "different")


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
    """The input of the base product is never dropped, whether the layer is merged or not. If a layer refuses to merge in
    training mode, there is nothing to judge."""
    layer = prepared(subject, case, training=True)
    if refuses(layer.merge):
        return 0.0
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
    "After merge and unmerge there MUST be dropout as before: in training mode some, in inference mode none.",
    formula="unmerge ∘ merge changes no mode", sources=SOURCES, needs=f"{NEEDS} merge unmerge", faults="75", profile="merge",
    optional=True, cases=readable(0.5), examples=0.1,
)
def comes_back_after_unmerge(subject, case):
    """A merge for an evaluation during training must not end the dropout, nor may one that is refused in training mode. An
    unmerge in inference mode must not begin it. Where a layer merges by its modes, an unmerge is training mode."""
    layer, read = showing(subject, case, rows=16)
    if not refuses(layer.merge):
        layer.unmerge()
    drops(read, "after merge and unmerge")
    layer = revealing(subject, case)
    before = known_weight(layer)
    set_mode(layer, training=False)
    after = known_weight(layer)
    by_mode = before is None or after is None or not np.array_equal(after, before)
    if by_mode or refuses(layer.merge):
        return
    layer.unmerge()
    x = np.ones((4, 16, case.config.in_features), case.dtype)
    expect_equal(wide(layer.forward(x)) / case.scale, np.ones(x.shape), "entries after merge and unmerge in inference mode")


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


@requirement(
    "DROP-15",
    "At any size, no part of a mask MUST come again: not in another row, tile, pass or layer, and not after an evaluation.",
    formula="mᵢⱼ independent", sources=SOURCES, needs=NEEDS, faults="69 70", optional=True, cases=at_size(0.5), examples=0.08,
)
def masks_never_come_again(subject, case):
    """Fast code draws a mask by tiles, keeps a pool of masks, or counts rows and calls with few bits. It then repeats itself
    only where x is large, or after many passes. A million entries are read, and compared at every distance."""
    first, shape = form(case, 0)
    layer, other = revealing(subject, first), revealing(subject, first.replace(seed=first.config.seed + 1))
    seen = [mask_of(each, first, shape) for each in (layer, other, layer)]
    layer.train(False)
    mask_of(layer, first, shape)
    layer.train(True)
    seen += [mask_of(layer, first, shape), *(mask_of(layer, first, (16, WIDTH)) for _ in range(POOL))]
    for number in range(2, 1 + len(case.operations)):
        further, shape = form(case, number)
        seen.append(mask_of(revealing(subject, further), further, shape))
    expect_no_patch_twice(seen, "of the masks")
    entries = np.concatenate([mask.ravel() for mask in seen])
    ratio = expect_unlike(entries != 0, 0.5, "entries of the masks")
    tall, shape = masks.many_rows(case)
    mask = mask_of(revealing(subject, tall), tall, shape)
    ratios = [ratio, expect_unlike(mask != 0, 0.5, f"entries of the mask for x {shape}")]
    broad, shape, columns = masks.many_columns(case)
    kept = wide(prepared(subject, broad, training=True).forward(np.ones(shape, broad.dtype))) != 0
    alike = len({column.tobytes() for column in np.ascontiguousarray(kept.T)})
    expect(alike == len(columns), f"features of x {shape} with a mask of their own, among {len(columns)}", alike, len(columns))
    for number, rate in enumerate(RATES):
        made, shape = form(case.replace(dropout=rate), number)
        layer = revealing(subject, made)
        found = np.stack([mask_of(layer, made, shape) for _ in range(2)])
        ratios.append(expect_unlike(found != 0, 1 - rate, f"entries of the masks for x {shape} at p = {rate}"))
    return max(ratios)


@requirement(
    "DROP-16",
    "At any size and any rate p, every entry MUST be dropped with probability p, and kept ones scaled by 1 / (1 − p).",
    formula="x̃ = x · m / (1 − p), m ~ Bernoulli(1 − p)", sources=SOURCES, needs=NEEDS, faults="69 70 71 72", optional=True,
    cases=at_size(0.5), examples=0.13,
)
def rates_at_size(subject, case):
    """Code for whole tiles may leave out the rows and columns that fill none, or know usual rates alone. The rates have no
    exact factor, so the factor is judged by the roundings of an honest layer. If passes, samples or rows share a mask (which
    DROP-07 forbids), it is read once."""
    ratios = []
    for number, rate in enumerate(RATES):
        made, shape = form(case.replace(dropout=rate), number)
        layer = revealing(subject, made)
        found = without_repeats(np.stack([mask_of(layer, made, shape).reshape(shape) for _ in range(2)]))
        entries = f"for x {shape} in {made.config.dtype}, p = {rate}"
        what = f"entries of the LoRA path {entries}, as multiples of x"
        ratios.append(expect_kept_factor(found, rate, made.config.dtype, what))
        passes = found.reshape(len(found), -1, WIDTH)
        ratios.append(expect_fractions(passes != 0, 1 - rate, f"kept entries {entries}"))
    tall, shape = masks.many_rows(case.replace(dropout=0.25))
    passes = without_repeats(mask_of(revealing(subject, tall), tall, shape)[None])
    return max(*ratios, expect_fractions(passes != 0, 0.75, f"kept entries for x {shape}, p = 0.25"))


@requirement(
    "DROP-17",
    "At any size, every gradient MUST hold the mask of its forward pass in every entry, whatever happens between the two.",
    formula="dx = s · m ∘ dy, dA = dB = s · mᵀ dy, where W = 0, A = B = I, x = 1", sources=SOURCES,
    needs=f"{NEEDS} backward zero_grad", faults="70 73", optional=True, cases=at_size(0.75), examples=0.13,
)
def every_gradient_has_the_mask(subject, case):
    """A backward pass that draws the mask anew, to save memory, needs the same state of the generator and the same order of
    entries. Between the passes other layers are built, seeded and used, and the mode changes, where that changes no weight.
    The rate is not ½, at which 1 / p is 1 / (1 − p)."""
    if abs(math.frexp(case.scale)[0]) != 0.5:
        raise Unsupported("a scale that is a power of two, so that the sums are exact in every dtype")
    for number, leading in enumerate(masks.SUMMED[1:]):
        made, _ = form(case, number)
        gradients_have_the_mask(revealing(subject, made), made, (*leading, WIDTH))
    last, _ = form(case, len(masks.SUMMED))
    layer = revealing(subject, last)
    for what, between in masks.events(subject, layer, last):
        gradients_have_the_mask(layer, last, (*masks.SUMMED[0], WIDTH), between, f" {what}")


def gradients_have_the_mask(layer: Layer, case: Case, shape: tuple[int, ...], between=lambda: None, when: str = "") -> None:
    """Demands gradients with the mask of a forward pass with x of that shape, where `between` is called before the backward
    pass. Dropout of x A, and of x A B, has other gradients of A and B, which are right, too."""
    read, kept = mask_of(layer, case, shape).astype(np.float64), 1 / (1 - case.config.dropout)
    mask = np.where(read > kept / 2, kept, 0.0)
    between()
    dy = np.random.default_rng([case.config.seed, *shape]).choice([-1.0, 1.0], mask.shape)
    layer.zero_grad()
    found = layer.backward(dy.reshape(shape).astype(case.dtype))
    words = f"for x {shape} in {case.config.dtype}{when}"
    err: dict[str, np.ndarray] = {} if np.array_equal(read, mask) else bounds_with(mask, dy, case)
    if "x" in found:
        equal_or_within(found["x"].reshape(mask.shape), case.scale * mask * dy, err.get("x"), f"dx {words}")
    before, after = mask.T @ dy, np.broadcast_to((mask * dy).sum(0), case.A.shape)
    for name in ("A", "B"):
        expect(name in found, f"d{name} {words}", "none", "a gradient")
        if not np.array_equal(wide(found[name]), case.scale * after):
            equal_or_within(found[name], case.scale * before, err.get(name), f"d{name} {words}")


def equal_or_within(got: np.ndarray, want: np.ndarray, err: np.ndarray | None, what: str) -> None:
    """Demands an answer within the bound if there is one, and equality if not."""
    if err is None:
        expect_equal(got, want, what)
    else:
        expect_within(got, want, err, what)


def bounds_with(mask: np.ndarray, dy: np.ndarray, case: Case) -> dict[str, np.ndarray]:
    """Bounds of the gradients with this mask (rows, in), of a layer whose scale is rounded: it may multiply by a rounded
    1 / rank, and the rank here is no power of two."""
    eye = np.eye(mask.shape[1])
    identity, dtype, kept = lora.LoRA(eye, eye), case.config.dtype, 1 / (1 - case.config.dropout)
    dx, _ = bounds.backward(kept * dy, mask, 0 * eye, identity, case.scale, dtype, more=MORE)
    _, factors = bounds.backward(dy, mask, 0 * eye, identity, case.scale, dtype, more=MORE)
    return {"x": dx, "A": factors.A, "B": factors.B}


@requirement(
    "DROP-18",
    "At any size, nothing MUST be dropped in inference mode, and nothing in training mode with p = 0.",
    formula="W = 0, A = B = I ⇒ y = scale · x", sources=SOURCES, needs=NEEDS, faults="74", optional=True,
    cases=at_size(0.5), examples=0.08,
)
def nothing_dropped_at_size(subject, case):
    """Code that is chosen for large x alone needs to look at the mode and at the rate, too."""
    for number in range(len(case.operations)):
        for rate, when in ((0.5, "in inference mode"), (0.0, "in training mode with p = 0")):
            made, shape = form(case.replace(dropout=rate), number)
            layer = revealing(subject, made)
            layer.train(rate == 0)
            found = mask_of(layer, made, shape)
            words = f"entries of the LoRA path for x {shape} in {made.config.dtype} {when}, as multiples of x"
            expect_equal(found, np.ones_like(found), words)
