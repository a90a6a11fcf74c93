"""The initialisers draw from the distributions that they state. Seeds are fixed. With random seeds a check would fail once in
1e10 runs."""

import numpy as np
import pytest

from lora_ref.init import Initialiser, gaussian, kaiming_rank, kaiming_uniform

IN, RANK = 400, 50
N = IN * RANK
T = np.log(4e10)  # exp(−T) is half of half of 1e-10: two checks for each, two sides for each check


def draw(initialiser: Initialiser, dtype: type = np.float64) -> np.ndarray:
    return initialiser(np.random.default_rng(11), IN, RANK, dtype)


@pytest.mark.parametrize(
    ("initialiser", "variance"), [(gaussian, 1 / IN), (kaiming_rank, 2 / ((1 + 0.01**2) * RANK))]
)
def test_normal_with_the_stated_variance(initialiser: Initialiser, variance: float) -> None:
    A = draw(initialiser)
    assert A.shape == (IN, RANK)
    # the mean of N normals: P(|mean| ≥ σ √(2 T / N)) ≤ 2 exp(−T)
    assert abs(A.mean()) < np.sqrt(2 * T * variance / N)
    # chi-squared, Laurent and Massart 2000, lemma 1: |Σ a²/σ² / N − 1| ≥ 2 √(T/N) + 2 T/N with probability ≤ 2 exp(−T)
    assert abs((A**2).mean() / variance - 1) < 2 * np.sqrt(T / N) + 2 * T / N
    # a normal passes 3 σ in 0.27 % of draws: P(never in N) = exp(−54). A uniform of this variance ends at √3 σ
    assert np.abs(A).max() > 3 * np.sqrt(variance)


def test_uniform_with_the_stated_bound() -> None:
    A, bound = draw(kaiming_uniform), 1 / np.sqrt(IN)
    assert A.shape == (IN, RANK) and np.abs(A).max() <= bound
    # Hoeffding, for a in ±bound and for a² in [0, bound²] with mean bound² / 3
    assert abs(A.mean()) < bound * np.sqrt(2 * T / N)
    assert abs((A**2).mean() - bound**2 / 3) < bound**2 * np.sqrt(T / (2 * N))
    # P(none of N beyond 99 % of the bound) = 0.99^N = exp(−201)
    assert A.max() > 0.99 * bound and A.min() < -0.99 * bound


def test_the_spread_follows_in_features_or_rank_as_stated() -> None:
    # 256 numbers in three shapes are the same draws, and a factor of 4 in a size a factor of 2 in the spread: all exact
    shapes = (4, 64), (16, 16), (64, 4)
    for initialiser, factor in (gaussian, 2), (kaiming_uniform, 2), (kaiming_rank, 0.5):
        wide, square, tall = (initialiser(np.random.default_rng(5), *size).ravel() for size in shapes)
        assert np.array_equal(wide, factor * square) and np.array_equal(square, factor * tall)


@pytest.mark.parametrize("initialiser", [gaussian, kaiming_uniform, kaiming_rank])
def test_one_seed_gives_one_matrix_in_every_dtype(initialiser: Initialiser) -> None:
    A = draw(initialiser)
    for dtype in np.float32, np.longdouble, np.complex128:
        other = draw(initialiser, dtype)
        assert other.dtype == dtype and np.array_equal(other, A.astype(dtype))
    assert not np.array_equal(A, initialiser(np.random.default_rng(12), IN, RANK, np.float64))
