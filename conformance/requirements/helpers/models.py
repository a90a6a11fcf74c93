"""Functions that prepare a model for a case and judge its answers."""

import numpy as np

from conformance.model import Model
from conformance.subject import Subject
from conformance.truth.compare import expect, expect_equal, expect_within_spread
from conformance.truth.model_case import ModelCase

NEEDS = "build_model set_arrays forward"
SHARE = 0.5  # share of the usual number of cases: a case of a model costs more, and checks more, than one of a layer


def fresh(subject: Subject, case: ModelCase) -> Model:
    """The model as built, around copies of the base arrays."""
    return subject.build_model(case.config, {name: array.copy() for name, array in case.base.items()})


def prepared(subject: Subject, case: ModelCase) -> Model:
    """The model with the case's trained arrays."""
    model = fresh(subject, case)
    if case.trained:
        model.set_arrays({name: array.copy() for name, array in case.trained.items()})
    return model


def plain(subject: Subject, case: ModelCase, base: dict[str, np.ndarray] | None = None) -> Model:
    """The model without a method, around the base arrays of the case or others."""
    return fresh(subject, case.replace(method="none", base=case.base if base is None else base))


def right_logits(model: Model, case: ModelCase) -> float:
    truth, deviation = case.spread
    return expect_within_spread(model.forward(case.tokens, case.mask), truth["logits"], deviation["logits"], "logits")


def right_where_seen(model: Model, case: ModelCase) -> float:
    """Judges the logits of the tokens that are not padding."""
    assert case.mask is not None
    (truth, deviation), seen = case.spread, case.mask.copy()
    logits = model.forward(case.tokens, case.mask)
    want = truth["logits"]
    expect(logits.shape == want.shape, "shape of the logits", logits.shape, want.shape)
    return expect_within_spread(logits[seen], want[seen], deviation["logits"][seen], "logits of what is not padding")


def names_are(found: dict, wanted, what: str) -> None:
    expect(set(found) == set(wanted), what, sorted(found), sorted(wanted))


def right_gradients(model: Model, case: ModelCase) -> float:
    """Judges the gradients of everything that trains. Nothing else may have a gradient."""
    truth, deviation = case.spread
    model.forward(case.tokens, case.mask)
    found = model.backward(case.dlogits)
    wanted = {name.removeprefix("d ") for name in truth if name.startswith("d ")}
    names_are(found, wanted, "names of what got a gradient")
    return max(expect_within_spread(found[n], truth[f"d {n}"], deviation[f"d {n}"], f"gradient of {n}") for n in sorted(wanted))


def frozen_and_moved(subject: Subject, case: ModelCase) -> float:
    """Demands that a step moves what trains by −lr · gradient and leaves the base as it was, bit for bit."""
    model, rate = prepared(subject, case), 0.25
    model.zero_grad()
    model.forward(case.tokens, case.mask)
    model.backward(case.dlogits)
    model.step(rate)
    (truth, deviation), base, after = case.spread, model.base(), model.arrays()
    names_are(base, case.base, "names of the base after a step")
    names_are(after, case.trained, "names of what trains after a step")
    for name, array in base.items():
        expect_equal(array, case.base[name], f"{name} of the base after a step")
    for name, array in case.trained.items():
        kind = np.longdouble
        want, spread = array.astype(kind) - kind(rate) * truth[f"d {name}"], rate * deviation[f"d {name}"]
        expect_within_spread(after[name], want, spread + 2 * case.unit * np.abs(want).astype(float), f"{name} after a step")
    return 0.0


def only_these_train(subject: Subject, case: ModelCase, count: int) -> None:
    """Demands that the arrays of the method train, with the shapes of their definition, and nothing of the base."""
    found = fresh(subject, case).trainable()
    wanted = {name: array.shape for name, array in case.trained.items()}
    expect(found == wanted, "what is trainable", dict(sorted(found.items())), dict(sorted(wanted.items())))
    total = sum(int(np.prod(shape)) for shape in found.values())
    expect(total == count, "number of trainable parameters", total, count)


def switched_off(subject: Subject, case: ModelCase) -> float:
    model = prepared(subject, case)
    on = model.forward(case.tokens)
    model.switch(False)
    expect_equal(model.forward(case.tokens), plain(subject, case).forward(case.tokens), "logits with the method switched off")
    model.switch(True)
    return expect_equal(model.forward(case.tokens), on, "logits with the method on again")


def folded(subject, case: ModelCase) -> float:
    model = prepared(subject, case)
    before = model.forward(case.tokens)
    model.fold()
    truth, deviation = case.merged
    found, wanted = model.arrays(), set(truth) - set(case.base) - {"logits"}
    names_are(found, wanted, "names of what is left after folding")
    for name in sorted(wanted):
        expect_within_spread(found[name], truth[name], deviation[name], f"{name} after folding")
    after = model.forward(case.tokens)
    expect_within_spread(after, truth["logits"], deviation["logits"], "logits after folding")
    return expect_within_spread(before, truth["logits"], deviation["logits"], "logits before folding")
