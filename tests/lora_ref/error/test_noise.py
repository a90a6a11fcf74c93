"""lora_ref.error.noise: its deviations are those of rounding, and what it says of a sum is what the theory says."""

import numpy as np
import pytest
from small_models import METHODS, run, trial

from lora_ref.error import noise

UNIT = 2.0**-24


def test_an_exact_operation_makes_no_error():
    x = np.arange(6.0).reshape(2, 3)
    _, deviation = noise.spread(lambda a: {"y": -a["x"].T[1:].reshape(4)}, {"x": x}, UNIT)
    assert not deviation["y"].any()


def test_the_error_of_one_product_and_of_a_sum():
    """v |a b|, and v √k Σ |aᵢ bᵢ|: the root mean square over thousands of equal numbers is that, to three deviations of it."""
    n, v = 4000, noise.ROUNDINGS * UNIT
    one = {"a": np.full(n, 3.0), "b": np.full(n, 0.5)}
    _, deviation = noise.spread(lambda g: {"y": g["a"] * g["b"]}, one, UNIT)
    assert abs(np.sqrt((deviation["y"] ** 2).mean()) / (1.5 * v) - 1) < 3 / np.sqrt(2 * n * noise.RUNS)
    row = {"a": np.full((n, 16), 0.25), "b": np.ones((16, 1))}
    _, deviation = noise.spread(lambda g: {"y": g["a"] @ g["b"]}, row, UNIT)
    assert abs(np.sqrt((deviation["y"] ** 2).mean()) / (4 * v * 4.0) - 1) < 3 / np.sqrt(2 * n * noise.RUNS)


@pytest.mark.parametrize("method", METHODS)
def test_honest_float32_stays_within_and_a_fault_does_not(method):
    """Every gradient of the float32 run lies within four deviations; with one array off by 1e-4 some gradient does not."""
    t = trial("gelu", method, seed=4, dtype=np.float32)
    truth, deviation = noise.spread(lambda arrays: run(t, arrays), t.arrays, UNIT)

    def worst(found):
        with np.errstate(invalid="ignore", divide="ignore"):
            return max(np.nanmax(np.abs(found[name] - truth[name]) / deviation[name]) for name in truth)

    name = next(reversed(t.arrays))
    assert worst(run(t)) < 4
    assert worst(run(t, t.arrays | {name: t.arrays[name] * np.float32(1.001)})) > 20


def test_what_it_cannot_follow_is_refused():
    with pytest.raises(NotImplementedError, match="einsum"):
        noise.spread(lambda a: {"y": np.einsum("ij,jk->ik", a["x"], a["x"])}, {"x": np.eye(2)}, UNIT)
