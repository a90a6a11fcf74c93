"""The initial values of A. Each function draws an (in, rank) matrix from a generator; B always starts at zero.

The paper wants A "random Gaussian" (Hu et al. 2021, §4.1) and states no standard deviation. This file has one reading of the
paper, what well-known libraries do instead, and a common mistake:

    gaussian         N(0, 1/in)            each component of x A has the mean square of x, whatever the sizes
    kaiming_uniform  U(−1/√in, 1/√in)      loralib, PEFT and others: kaiming_uniform_(a=√5) on a (rank, in) tensor
    kaiming_rank     N(0, 2/(1.0001 rank)) kaiming_normal_(a=0.01) on an (in, rank) tensor, whose fan-in is *rank*

Every function draws in float64 and then rounds, so that one seed gives the same matrix in every dtype. Every function raises
ValueError for a size that is not a positive integer and for a dtype in which the package does not compute.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import DTypeLike

from lora_ref.shapes import check_dtype, check_size

Initialiser = Callable[[np.random.Generator, int, int, DTypeLike], np.ndarray]


def gaussian(rng: np.random.Generator, in_features: int, rank: int, dtype: DTypeLike = np.float64) -> np.ndarray:
    """(in, rank), normal with standard deviation 1/√in_features. The fan-in is the number of features that A sums over.

    The paper states no standard deviation; this one is our choice.
    """
    _check("init.gaussian", in_features, rank, dtype)
    return rng.normal(0, in_features**-0.5, (in_features, rank)).astype(dtype)


def kaiming_uniform(rng: np.random.Generator, in_features: int, rank: int, dtype: DTypeLike = np.float64) -> np.ndarray:
    """(in, rank), uniform in ±1/√in_features, standard deviation 1/√(3 in_features).

    PyTorch's bound is gain √(3/fan_in) with gain √(2/(1 + a²)); a = √5 makes that 1/√fan_in, with fan-in in_features.
    """
    _check("init.kaiming_uniform", in_features, rank, dtype)
    bound = in_features**-0.5
    return rng.uniform(-bound, bound, (in_features, rank)).astype(dtype)


def kaiming_rank(rng: np.random.Generator, in_features: int, rank: int, dtype: DTypeLike = np.float64) -> np.ndarray:
    """(in, rank), normal with standard deviation √(2/((1 + 0.01²) rank)): `kaiming_normal_(A, a=0.01)` taken literally.

    PyTorch takes a matrix to be (fan_out, fan_in), so the fan-in of an (in, rank) tensor is rank, and in_features has no
    influence. Where rank is much smaller than in_features, A starts far larger than with `gaussian`.
    """
    _check("init.kaiming_rank", in_features, rank, dtype)
    return rng.normal(0, (2 / ((1 + 0.01**2) * rank)) ** 0.5, (in_features, rank)).astype(dtype)


def _check(where: str, in_features: int, rank: int, dtype: DTypeLike) -> None:
    check_size(where, "in_features", in_features)
    check_size(where, "rank", rank)
    check_dtype(where, "dtype", dtype)
