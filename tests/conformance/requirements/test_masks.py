"""The cases that read masks at real sizes, and what they count."""

import numpy as np
import pytest
from hypothesis import given, settings

from conformance.mutants import LayerSubject
from conformance.mutants.honest import Honest
from conformance.mutants.variations import DropsHidden, MergesAtEval, NoMergeNoFiles
from conformance.requirements import all_requirements
from conformance.requirements.helpers.masks import at_size, events, form, mask_of, revealing, without_repeats
from conformance.run import case_bank
from conformance.truth import compare
from conformance.truth.case import DTYPES

REQUIREMENTS = {r.id: r for r in all_requirements()}


@settings(max_examples=5, deadline=None)
@given(at_size(0.5)(tuple(DTYPES)))
def test_a_case_stands_for_every_dtype_and_number_of_leading_dimensions(case):
    forms = [form(case, number) for number in range(4)]
    assert {made.config.dtype for made, _ in forms} == set(DTYPES)
    assert {len(shape) for _, shape in forms} == {2, 3, 4, 5}
    assert len({made.config.seed for made, _ in forms}) == 4
    made, shape = forms[0]
    for layer in (Honest, DropsHidden):
        mask = mask_of(revealing(LayerSubject(layer), made), made, shape)
        assert mask.shape == (np.prod(shape[:-1]), shape[-1]) and set(np.unique(mask)) == {0, 2}


def test_masks_without_repeats():
    masks = np.random.default_rng(0).random((2, 3, 5, 7)) < 0.5
    assert without_repeats(masks) is masks
    assert without_repeats(np.broadcast_to(masks[:, :, :1], masks.shape)).shape == (2, 3, 1, 7)
    assert without_repeats(np.broadcast_to(masks[:1, :1], masks.shape)).shape == (1, 1, 5, 7)


@pytest.mark.parametrize(("layer", "left_out"), [
    (Honest, None), (MergesAtEval, "after going to inference mode"), (NoMergeNoFiles, "where x needs no gradient"),
])
def test_what_happens_between_the_passes(layer, left_out):
    """What a layer does not offer, or what changes its weights, is left out. The layer trains again afterwards."""
    case = case_bank.first(REQUIREMENTS["DROP-17"], tuple(DTYPES), 1)[0]
    subject = LayerSubject(layer)
    made = revealing(subject, case)  # pyright: ignore[reportArgumentType]
    words = []
    for what, between in events(subject, made, case):  # pyright: ignore[reportArgumentType]
        between()
        words.append(what)
    assert len(words) == 3 - (left_out is not None) - (layer is NoMergeNoFiles)
    assert left_out not in words
    assert made.training  # type: ignore[attr-defined]


class ByReciprocal(Honest):
    """Multiplies by alpha and by the rounded 1 / rank, as XLA does where it is not compiled as a whole."""

    def scaled(self, array):
        return self.wide(self.config.alpha) * self.up(array) * self.up(self.rounded(np.array(1 / self.config.rank)))


class ForgetsTheMaskOfOneRow(ByReciprocal):
    """dA does without the mask of the last row of x."""

    def gradient_of_A(self, dy):
        mask = self.mask
        self.mask = mask.copy()
        self.mask[-1] = 1
        found = super().gradient_of_A(dy)
        self.mask = mask
        return found


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_rounded_scale_is_judged_by_the_bound(dtype):
    case = case_bank.first(REQUIREMENTS["DROP-17"], (dtype,), 1)[0]
    REQUIREMENTS["DROP-17"].check(LayerSubject(ByReciprocal), case)
    with pytest.raises(compare.Mismatch, match="^dA for x "):
        REQUIREMENTS["DROP-17"].check(LayerSubject(ForgetsTheMaskOfOneRow), case)


def test_statistical_checks_are_few_enough(monkeypatch):
    """ALARM holds for one check. A run may make 100."""
    counts = dict.fromkeys((
        "expect_zero_mean", "expect_same_spread", "expect_fraction", "expect_few_in_common", "expect_unlike",
        "expect_no_patch_twice", "expect_fractions"), 0)
    used = [r for r in REQUIREMENTS.values() if set(counts) & set(r.check.__globals__)]

    def counted(name):
        def check(*arguments):
            counts[name] += 1
            return getattr(compare, name)(*arguments)
        return check

    for r in used:
        for name in set(counts) & set(r.check.__globals__):
            monkeypatch.setitem(r.check.__globals__, name, counted(name))
    for r in used:
        status, _ = case_bank.judge(r, LayerSubject(Honest), case_bank.first(r, tuple(DTYPES), 24))
        assert status == "pass", r.id
    assert all(counts.values())
    assert sum(counts.values()) < 100
