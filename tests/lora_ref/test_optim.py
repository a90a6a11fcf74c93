"""SGD and AdamW compute the formulas of their papers, number by number."""

from fractions import Fraction

import numpy as np
import pytest

from lora_ref import optim


def test_sgd_moves_what_has_a_gradient_and_nothing_else():
    p = {"A": np.array([1.0, 2.0]), "W": np.array([3.0])}
    q = optim.sgd(p, {"A": np.array([4.0, -2.0])}, 0.25)
    assert q["A"].tolist() == [0.0, 2.5] and q["W"] is p["W"] and p["A"].tolist() == [1.0, 2.0]


def test_adamw_is_its_formula():
    """Five steps of one number, with the square root alone not exact: the gradients are such that all roots are."""
    rate, decay, b1, b2 = Fraction(1, 8), Fraction(1, 4), Fraction(1, 2), Fraction(1, 2)
    p, m, v = Fraction(3), Fraction(0), Fraction(0)
    a, state = {"A": np.array([3.0])}, optim.adamw_init({"A": np.array([3.0])})
    for t in range(1, 6):
        d = Fraction(2)  # so that v / (1 − β₂ᵗ) = 4
        m, v = b1 * m + (1 - b1) * d, b2 * v + (1 - b2) * d * d
        p = p - rate * decay * p - rate * (m / (1 - b1**t)) / 2
        assert v / (1 - b2**t) == 4
        a, state = optim.adamw(a, {"A": np.array([2.0])}, state, float(rate), (float(b1), float(b2)), 0.0, float(decay))
        assert state.t == t and Fraction(float(state.v["A"][0])) == v
        assert abs(float(a["A"][0]) - float(p)) <= 4 * np.spacing(float(p))


def test_rates_and_decays_by_name():
    p = {"A": np.array([1.0]), "B": np.array([1.0])}
    d = {"A": np.array([1.0]), "B": np.array([1.0])}
    assert optim.sgd(p, d, {"A": 0.5, "B": 2.0}) == {"A": np.array([0.5]), "B": np.array([-1.0])}
    q, _ = optim.adamw(p, d, optim.adamw_init(p), {"A": 0.0, "B": 0.5}, epsilon=0.0, decay={"A": 1.0, "B": 0.0})
    assert q["A"][0] == 1.0 and q["B"][0] == 0.5  # a first step is the rate, whatever the gradient


def test_state_and_arguments_are_not_changed():
    p, d = {"A": np.ones(2, np.float32)}, {"A": np.ones(2, np.float32)}
    state = optim.adamw_init(p)
    q, after = optim.adamw(p, d, state, 0.1)
    assert q["A"].dtype == np.float32 and p["A"].tolist() == [1, 1] and not state.m["A"].any() and (state.t, after.t) == (0, 1)


@pytest.mark.parametrize("dp,rate,words", [
    ({"C": np.ones(2)}, 0.1, "dp has 'C', expected one of A because a gradient moves an array of p"),
    ({"A": np.ones(3)}, 0.1, r"dp\['A'\] is \(3\), expected \(…\) = \(2\) because p\['A'\] is \(2\)"),
    ({"A": np.ones((1, 2))}, 0.1, r"dp\['A'\] is \(1, 2\), expected \(…\) = \(2\) because p\['A'\] is \(2\)"),
    ({"A": np.float64(1)}, 0.1, r"dp\['A'\] is a float64, expected a NumPy array"),
    ({"A": [1.0, 1.0]}, 0.1, r"dp\['A'\] is a list, expected a NumPy array"),
    ({"A": np.ones(2, np.float32)}, 0.1, r"dp\['A'\] is float32, expected float64 because p\['A'\] is float64"),
    ({"A": np.ones(2)}, {}, "rate has no 'A'"),
    *(
        ({"A": np.ones(2)}, rate, f"rate is {words}, expected a real number that is finite in float64")
        for rate, words in ((np.nan, "nan"), (np.inf, "inf"), ("1", "'1'"), (None, "None"), (1j, "1j"), ({"A": np.inf}, "inf"))
    ),
])
def test_bad_arguments_are_refused(dp, rate, words):
    p = {"A": np.ones(2)}
    with pytest.raises(ValueError, match=words):
        optim.sgd(p, dp, rate)
    with pytest.raises(ValueError, match=words):
        optim.adamw(p, dp, optim.adamw_init(p), rate)
    with pytest.raises(ValueError, match="expected names that adamw_init was given"):
        optim.adamw(p, {"A": np.ones(2)}, optim.adamw_init({}), 0.1)
