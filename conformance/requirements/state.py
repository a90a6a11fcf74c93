"""STATE: saving, loading, and the state of a layer after any sequence of calls."""

from contextlib import suppress
from pathlib import Path

import ml_dtypes
import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from conformance.record.trace import refuses
from conformance.requirements import HIGHAM, PAPER, PEFT, Group, requirement
from conformance.requirements.helpers.layers import fresh, gradients, known_weight, merge, prepared, saved, scratch, set_mode
from conformance.requirements.helpers.sequences import RATE, SEQUENCES, follow, moved
from conformance.subject import Unsupported
from conformance.truth.case import DTYPES, exact_in_any_order
from conformance.truth.compare import Mismatch, expect, expect_equal, wide
from conformance.truth.strategies import exact, rounding

GROUP = Group("STATE", "Saving and loading", order=80, profile="files", asks="save")
SEQUENCE_SOURCES = (f"{PAPER}, §4.1", "gradient descent on ½ ‖y − target‖²")
SOURCES = ("torch.nn.Module.state_dict and load_state_dict", f"{PEFT.split(',')[0]}, utils/save_and_load.py")
NEEDS = "set_adapter adapter forward save load"


def other(case):
    """The configuration of the case with another seed, so that a fresh layer does not have the same factors by chance."""
    return case.replace(seed=case.config.seed + 1)


@requirement(
    "STATE-01",
    "Loading what was saved into a fresh layer MUST give the same A and B, bit for bit, in every dtype.",
    formula="load(save(A, B)) = A, B", sources=SOURCES, needs="set_adapter adapter save load",
    faults="13 22 24 112 113 115 116 117", cases=rounding(only=("float32", "float64", "float16", "bfloat16")),
)
def arrays_survive(subject, case):
    """A file in another precision loses the training. So do tensors that are skipped because they have other names. The order
    in which the factors are named, and the order of their numbers in memory, must not matter."""
    if case.config.dtype != "float16":  # the range of float16 is too small
        case = case.replace(A=np.ldexp(wide(case.A), 20).astype(case.dtype), B=np.ldexp(wide(case.B), -20).astype(case.dtype))
    layer = fresh(subject, case)
    layer.set_adapter({name: np.asfortranarray(case.adapter[name].copy()) for name in ("B", "A")})
    before = {name: array.copy() for name, array in layer.adapter().items()}
    with saved(layer) as directory:
        again = fresh(subject, other(case))
        again.load(directory)
    for name, want in before.items():
        expect_equal(want, case.adapter[name], f"{name} after set_adapter")
        expect_equal(again.adapter()[name], want, f"{name} after save and load")


@requirement(
    "STATE-02",
    "Loading what was saved into a fresh layer MUST give the same function, in both modes.",
    formula="f ∘ load ∘ save = f", sources=SOURCES, needs=NEEDS, faults="11 13 14 24 111 114 115 117 118", cases=exact(),
    examples=0.5,
)
def function_survives(subject, case):
    """The arrays may be right while the scale or the base weight is wrong. The function is that of a layer with the same
    factors that was neither saved nor loaded: whether it is the right one, FWD-01 says."""
    layer, want = prepared(subject, case, training=True), {}
    for training in (True, False):
        set_mode(layer, training)
        want[training] = layer.forward(case.x)
    with saved(prepared(subject, case, training=True)) as directory:
        again = fresh(subject, other(case))
        again.load(directory)
    for training, y in want.items():
        set_mode(again, training)
        expect_equal(again.forward(case.x), y, f"y after save and load, in {'training' if training else 'inference'} mode")


@requirement(
    "STATE-03",
    "Loading into a layer of another rank or another size MUST be refused.",
    formula="shapes differ ⇒ an error", sources=SOURCES, needs="set_adapter save load", faults="102 107 115", cases=exact(),
    examples=0.5,
)
def other_shapes_are_refused(subject, case):
    """Cutting, padding, broadcasting or skipping tensors changes the model silently."""
    config = case.config
    with saved(prepared(subject, case, training=True)) as directory:
        fresh(subject, case).load(directory)
        for changed in (
            case.replace(rank=config.rank + 1, alpha=config.alpha * (config.rank + 1) / config.rank),
            case.replace(in_features=config.in_features + 1, W=case.W[:, :1].repeat(config.in_features + 1, 1)),
            case.replace(
                out_features=config.out_features + 1, W=case.W[:1].repeat(config.out_features + 1, 0),
                b=None if case.b is None else case.b[:1].repeat(config.out_features + 1),
            ),
        ):
            layer = fresh(subject, changed)
            if not refuses(layer.load, directory):
                its, theirs = (f"rank {c.rank}, in {c.in_features}, out {c.out_features}" for c in (config, changed.config))
                raise Mismatch(f"a file of {its}", f"accepted by a layer of {theirs}", "an error")


@requirement(
    "STATE-04",
    "Saving MUST change nothing: not the function, not W, A, B or the mode; and saving twice MUST load the same.",
    formula="f after save = f before", sources=SOURCES, needs=NEEDS, faults="87 92 93 122 123", cases=exact(), examples=0.5,
)
def saving_is_pure(subject, case):
    """A save may merge the layer and leave it merged. The second save shows that."""
    for training in (True, False):
        layer = prepared(subject, case, training)
        if not training:  # dropout would show that saving left inference mode
            with suppress(Unsupported):
                layer = prepared(subject, case.replace(dropout=0.5), training)
        layer.forward(case.x)  # some layers merge by themselves here
        weight = known_weight(layer)
        for _ in range(2):
            with saved(layer) as directory:
                expect_equal(layer.forward(case.x), case.truth.y, "y after save")
                for name, want in case.adapter.items():
                    expect_equal(layer.adapter()[name], want, f"{name} after save")
                if weight is not None:
                    expect_equal(layer.weight(), weight, "W after save")
                again = fresh(subject, other(case))
                again.load(directory)
                expect_equal(again.forward(case.x), case.truth.y, "y of a fresh layer, loaded")


@requirement(
    "STATE-05",
    "What is saved MUST NOT depend on the mode.",
    formula="save ∘ eval = save ∘ train", sources=SOURCES, needs=f"{NEEDS} train", faults="87 111", cases=exact(), examples=0.5,
)
def mode_does_not_matter(subject, case):
    """A layer that merges in inference mode must not write the merged weight under the name of the base weight."""
    layer = prepared(subject, case, training=True)
    layer.train(False)
    with saved(layer) as directory:
        again = fresh(subject, other(case))
        again.load(directory)
    judge_loaded(again, case, "saved in inference mode")


@requirement(
    "STATE-06",
    "What is saved MUST NOT depend on whether the layer is merged, or saving while merged is refused.",
    formula="save ∘ merge = save", sources=SOURCES, needs=f"{NEEDS} merge", faults="87 92 111",
    cases=exact(), optional=True, examples=0.5,
)
def merged_does_not_matter(subject, case):
    """If W is saved merged and loaded as unmerged, the delta counts twice, and W drifts with every cycle. A layer may be merged
    after the load, if it can be unmerged."""
    layer = prepared(subject, case, training=True)
    merge(layer)
    weight = known_weight(layer)
    with scratch() as directory:
        if refuses(layer.save, Path(directory)):
            return
        if weight is not None:
            expect_equal(layer.weight(), weight, "W after a save while merged")
        again = fresh(subject, other(case))
        again.load(Path(directory))
    expect_equal(again.forward(case.x), case.truth.y, "y, saved while merged")
    weight = known_weight(again)
    if weight is not None and not np.array_equal(weight, wide(case.W)):
        with suppress(Unsupported):
            refuses(again.unmerge)
    judge_loaded(again, case, "saved while merged")


@requirement(
    "STATE-07",
    "A layer in inference mode SHOULD load like one in training mode.",
    formula="load ∘ eval = load ∘ train", sources=SOURCES, needs=f"{NEEDS} train", faults="111", cases=exact(), examples=0.5,
)
def loading_in_inference_mode(subject, case):
    """Most models are in inference mode when an adapter is loaded. A layer that has merged zeros there may ignore the load."""
    with saved(prepared(subject, case, training=True)) as directory:
        again = fresh(subject, other(case))
        again.train(False)
        again.load(directory)
    expect_equal(again.forward(case.x), case.truth.y, "y, loaded in inference mode, and still there")
    judge_loaded(again, case, "loaded in inference mode")


@requirement(
    "STATE-08",
    "A load that is refused SHOULD leave the layer as it was.",
    formula="load fails ⇒ A, B as before", sources=SOURCES, needs="set_adapter adapter save load", faults="104 115",
    cases=exact(), examples=0.5,
)
def refused_load_changes_nothing(subject, case):
    """A caller may catch the error. Then the layer must not go on with one factor of the file and one of its own."""
    n_in, n_out = case.config.in_features, case.config.out_features
    wider = case.replace(in_features=n_in + 1, W=case.W[:, :1].repeat(n_in + 1, 1))
    higher = case.replace(
        out_features=n_out + 1, W=case.W[:1].repeat(n_out + 1, 0), b=None if case.b is None else case.b[:1].repeat(n_out + 1)
    )
    for name, changed in ((f"in {n_in + 1}", wider), (f"out {n_out + 1}", higher)):
        with saved(prepared(subject, case, training=True)) as directory:
            layer = fresh(subject, changed)
            before = {name: array.copy() for name, array in layer.adapter().items()}
            if not refuses(layer.load, directory):
                raise Mismatch(f"a file of in {n_in}, out {n_out}", f"accepted by a layer of {name}", "an error")
        for factor, want in before.items():
            expect_equal(layer.adapter()[factor], want, f"{factor} after a load into a layer of {name}, refused")


@requirement(
    "STATE-09",
    "Any sequence of forward, backward, step, zero_grad, train, eval, merge, unmerge, set_adapter, save and load, into this "
    "layer or a fresh one, MUST leave function, W, A and B as the sequence says.",
    formula="the layer = the model, after every operation", sources=SEQUENCE_SOURCES, needs="set_adapter adapter forward",
    faults="16 75 86 87 100 105 111", profile="training", examples=2,
    cases=exact(only=("float32", "float64"), scales=(4.0, 0.25), operations=SEQUENCES),
)
def sequences(subject, case):
    """Most faults of state need three operations in an order that nobody thinks of testing. All numbers are exact, so no fault
    can hide in rounding errors."""
    return follow(subject, case, exact=True)


@requirement(
    "STATE-10",
    "After a load the layer MUST go on training.",
    formula="gradients and step after load = those of the loaded A, B", sources=SOURCES,
    needs=f"{NEEDS} backward step zero_grad", faults="26 65", profile="training", optional=True,
    cases=exact(only=("float32", "float64")), examples=0.5,
)
def training_after_load(subject, case):
    """Many files are written to resume training. Parameters that the load replaced or froze do not move."""
    with saved(prepared(subject, case, training=True)) as directory:
        layer = fresh(subject, other(case))
        layer.load(directory)
    set_mode(layer, True)
    layer.zero_grad()
    found = gradients(layer, case.x, case.dy)
    layer.step(0.5)
    for name, before in case.adapter.items():
        gradient = getattr(case.truth, f"d{name}")
        expect_equal(found[name], gradient, f"d{name} after load")
        expect_equal(layer.adapter()[name], before - 0.5 * gradient, f"{name} after load and a step")


@requirement(
    "STATE-11",
    "Loading from a directory that holds nothing MUST be refused.",
    formula="no file ⇒ an error", sources=SOURCES, needs="set_adapter save load", faults="115 117 118", cases=exact(),
    examples=0.2,
)
def nothing_to_load(subject, case):
    """If a wrong path is accepted, the layer keeps its random start, which is noticed only after the evaluation."""
    layer = prepared(subject, case, training=True)
    with saved(layer) as directory:
        layer.load(directory)
    with scratch() as name:
        expect(refuses(layer.load, Path(name)), "load of an empty directory", "accepted", "an error")


@requirement(
    "STATE-12",
    "After any such sequence in real numbers, function, W, A and B MUST be within what the roundings of its operations can "
    "have added up to.",
    formula="|the layer − the model| ≤ the sum of the bounds of all operations, after every one",
    sources=(*SEQUENCE_SOURCES, HIGHAM),
    needs="set_adapter adapter forward", faults="98 100", profile="training",
    cases=rounding(only=tuple(DTYPES), sizes=st.integers(2, 8), rank=st.integers(1, 3), operations=SEQUENCES),
)
def drifting_sequences(subject, case):
    """A conversion to half precision changes real numbers, but not small integers. The allowed error grows with the operations:
    each cycle of merging, each step and each gradient adds its own bound."""
    return follow(subject, case, exact=False)


@requirement(
    "STATE-13",
    "What is read from a directory MUST be what was last saved there, whatever was saved elsewhere or trained since.",
    formula="load ∘ save to one of two = its own", sources=SOURCES, needs=f"{NEEDS} backward step", faults="122",
    optional=True, cases=exact(), examples=0.5,
)
def two_directories(subject, case):
    """A user may go back to the earlier of two checkpoints. Arrays that stay mapped to a file change it when they train."""
    new = case.with_other_factors
    assume(exact_in_any_order(new) and not np.array_equal(wide(new.truth.y), wide(case.truth.y)))
    with saved(prepared(subject, case, training=True)) as first, saved(prepared(subject, new, training=True)) as second:
        for directory, want in ((first, case), (second, new), (first, case)):
            layer = fresh(subject, other(case))
            layer.load(directory)
            expect_equal(layer.forward(case.x), want.truth.y, "y, loaded from one of two directories")
            gradients(layer, case.x, case.dy)
            layer.step(0.5)


@requirement(
    "STATE-14",
    "In inference mode, as long as it is not merged, the layer MUST apply what was set, loaded or learned at once.",
    formula="f ∘ change ∘ eval = f ∘ change", sources=SOURCES, needs=f"{NEEDS} train weight backward step", faults="110",
    optional=True, cases=exact(), examples=0.5,
)
def changes_in_inference_mode(subject, case):
    """If a layer keeps a delta, or a copy of a factor, for speed, it must renew it when a factor changes. Layers that merge by
    themselves in inference mode are left out here; MERGE-11 and STATE-07 are about them."""
    new = case.with_other_factors
    stepped = moved(case, case.truth.dA, case.truth.dB)
    assume(exact_in_any_order(new) and stepped is not None)
    assert stepped is not None

    def load(layer):
        with saved(prepared(subject, new, training=True)) as directory:
            layer.load(directory)

    changes = {
        "a set_adapter": (lambda layer: layer.set_adapter({k: v.copy() for k, v in new.adapter.items()}), new),
        "a load": (load, new),
        "a step": (lambda layer: layer.step(RATE), stepped),
    }
    for name, (change, want) in changes.items():
        layer = prepared(subject, case, training=True)
        gradients(layer, case.x, case.dy)
        set_mode(layer, False)
        if not np.array_equal(wide(layer.weight()), wide(case.W)):
            return
        layer.forward(case.x)
        change(layer)
        expect_equal(layer.forward(case.x), want.truth.y, f"y after {name} in inference mode")


@requirement(
    "STATE-15",
    "Loading a file of a layer of a larger rank, in_features or out_features MUST be refused.",
    formula="shapes differ ⇒ an error", sources=SOURCES, needs="set_adapter save load", cases=exact(), examples=0.5,
)
def larger_shapes_are_refused(subject, case):
    """STATE-03 the other way round. A load that copies what fits cuts the other numbers off, and the model is another one."""
    config = case.config
    with saved(prepared(subject, case, training=True)) as directory:
        fresh(subject, case).load(directory)
    for larger in (
        case.replace(rank=config.rank + 1, alpha=config.alpha * (config.rank + 1) / config.rank,
                     A=case.A[:, :1].repeat(config.rank + 1, 1), B=case.B[:1].repeat(config.rank + 1, 0)),
        case.replace(in_features=config.in_features + 1, W=case.W[:, :1].repeat(config.in_features + 1, 1),
                     A=case.A[:1].repeat(config.in_features + 1, 0)),
        case.replace(out_features=config.out_features + 1, W=case.W[:1].repeat(config.out_features + 1, 0),
                     b=None if case.b is None else case.b[:1].repeat(config.out_features + 1),
                     B=case.B[:, :1].repeat(config.out_features + 1, 1)),
    ):
        with saved(prepared(subject, larger, training=True)) as directory:
            if not refuses(fresh(subject, case).load, directory):
                its, theirs = (f"rank {c.rank}, in {c.in_features}, out {c.out_features}" for c in (larger.config, config))
                raise Mismatch(f"a file of {its}", f"accepted by a layer of {theirs}", "an error")


@requirement(
    "STATE-16",
    "NaN and infinity in A and B MUST survive set_adapter, save and load, or be refused.",
    formula="load(save(A, B)) = A, B", sources=(*SOURCES, "IEEE 754-2019, §6"), needs="set_adapter adapter save load",
    cases=exact(), examples=0.5,
)
def not_finite_survives(subject, case):
    """If a file holds zeros where the training gave NaN, nobody sees that it failed."""
    for first, last in ((np.nan, np.inf), (-np.inf, np.nan)):
        A, B = case.A.copy(), case.B.copy()
        A.flat[0], B.flat[0], A.flat[-1] = first, first, last
        layer, again = fresh(subject, case), fresh(subject, other(case))
        if refuses(layer.set_adapter, {"A": A.copy(), "B": B.copy()}):
            continue
        for name, want in (("A", A), ("B", B)):
            expect_equal(layer.adapter()[name], want, f"{name} after set_adapter")
        with scratch() as directory:
            if refuses(layer.save, Path(directory)) or refuses(again.load, Path(directory)):
                continue
        for name, want in (("A", A), ("B", B)):
            expect_equal(again.adapter()[name], want, f"{name} after save and load")


@requirement(
    "STATE-17",
    "The largest and the smallest numbers of a format, subnormal ones among them, MUST survive set_adapter, save and load, "
    "bit for bit.",
    formula="load(save(A, B)) = A, B", sources=(*SOURCES, "IEEE 754-2019, §3.4"), needs="set_adapter adapter save load",
    cases=exact(), examples=0.5,
)
def extremes_survive(subject, case):
    """Small gradients leave small numbers in B. A file in another format rounds them to zero, or the largest to infinity."""
    limits = ml_dtypes.finfo(case.dtype)
    smallest, eps = wide(limits.smallest_subnormal), wide(limits.eps)
    kinds = [limits.max, limits.min, limits.tiny, smallest, -3 * smallest, 1 + eps]
    numbers = np.array([float(wide(number)) for number in kinds]).astype(case.dtype)
    A, B = (np.resize(turned, array.shape) for turned, array in ((numbers, case.A), (np.flip(numbers), case.B)))
    layer, again = fresh(subject, case), fresh(subject, other(case))
    layer.set_adapter({"A": A.copy(), "B": B.copy()})
    with saved(layer) as directory:
        again.load(directory)
    for name, want in (("A", A), ("B", B)):
        expect_equal(layer.adapter()[name], want, f"{name} after set_adapter")
        expect_equal(again.adapter()[name], want, f"{name} after save and load")


def judge_loaded(layer, case, how: str) -> None:
    """Judges the output in both modes, and W in training mode if the layer shows it."""
    for training in (True, False, True):
        set_mode(layer, training)
        expect_equal(layer.forward(case.x), case.truth.y, f"y, {how}, in {'training' if training else 'inference'} mode")
    weight = known_weight(layer)
    if weight is not None:
        expect_equal(weight, case.W, f"W, {how}")
