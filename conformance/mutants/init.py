"""Faults of the initialisation."""

import math

import numpy as np

from conformance.mutants import mutant
from conformance.mutants.honest import Honest
from conformance.subject import LayerConfig


@mutant("27", kills="INIT-01 INIT-03 INIT-09 DROP-08")
class BothRandom(Honest):
    """B is drawn like A, so the layer differs from the base layer before the first step."""

    def init_factors(self, n_in: int, n_out: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
        return super().init_factors(n_in, n_out, rank)[0], self.rng.standard_normal((rank, n_out)) / math.sqrt(rank)


@mutant("27", kills="INIT-03 INIT-09")
class AlmostZeroB(Honest):
    """B is drawn with a tiny spread and not set to zero."""

    def init_factors(self, n_in: int, n_out: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
        return super().init_factors(n_in, n_out, rank)[0], 1e-5 * self.rng.standard_normal((rank, n_out))


@mutant("26", kills="INIT-03 INIT-08")
class BothZero(Honest):
    """Both factors are zero, so both gradients are zero, and the layer never learns."""

    def init_factors(self, n_in: int, n_out: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((n_in, rank)), np.zeros((rank, n_out))


@mutant("31", kills="INIT-01 INIT-02")
class WeightDrawnAgain(Honest):
    """The constructor is given the pretrained W, and then initialises it anew."""

    def __init__(self, config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None):
        super().__init__(config, weight, bias)
        self.W = self.rounded(self.rng.uniform(-1, 1, weight.shape))


@mutant("31", kills="INIT-01 INIT-02")
class BiasDrawnAgain(Honest):
    """The layer uses the given bias only as a sign that it has one, and draws the bias anew."""

    def __init__(self, config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None):
        super().__init__(config, weight, bias)
        self.b = None if bias is None else self.rounded(self.rng.uniform(-1, 1, bias.shape))


@mutant(kills="INIT-02 INIT-09")
class WeightInFloat16(Honest):
    """W is kept in float16, whatever the dtype of the layer."""

    def __init__(self, config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None):
        super().__init__(config, weight.astype(np.float16).astype(weight.dtype), bias)


@mutant("19", kills="INIT-01 INIT-02 INIT-03")
class PrincipalPartSubtracted(Honest):
    """The factors start as the principal part of W. That part is subtracted from W without the scale with which it is added
    back."""

    def __init__(self, config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None):
        super().__init__(config, weight, bias)
        u, s, v = np.linalg.svd(self.up(weight).T, full_matrices=False)
        r = min(config.rank, len(s))
        self.A[:, :r], self.B[:r] = u[:, :r] * s[:r], v[:r]
        self.A[:, r:] = 0
        self.W = self.rounded(self.up(weight) - self.product(self.A, self.B).T)


@mutant("28", kills="INIT-04")
class UniformFromZero(Honest):
    """A is drawn from [0, 1), so its mean is one half and not zero."""

    def init_factors(self, n_in: int, n_out: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
        return self.rng.uniform(0, 1, (n_in, rank)), np.zeros((rank, n_out))


@mutant(kills="INIT-04 INIT-05 INIT-06")
class Constant(Honest):
    """A is filled with one number, so its columns are equal and stay equal."""

    def init_factors(self, n_in: int, n_out: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
        return np.full((n_in, rank), 1 / math.sqrt(n_in)), np.zeros((rank, n_out))


@mutant(kills="INIT-05")
class ColumnRepeated(Honest):
    """Two columns of A are equal."""

    def init_factors(self, n_in: int, n_out: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
        A, B = super().init_factors(n_in, n_out, rank)
        A[:, -1] = A[:, 0]
        return A, B


@mutant(kills="INIT-05")
class NoMoreColumnsThanInputs(Honest):
    """The columns of A are orthogonal. With a rank above in, those beyond it are zero and never train."""

    def init_factors(self, n_in: int, n_out: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
        A, B = super().init_factors(n_in, n_out, rank)
        A[:, n_in:] = 0
        return A, B


@mutant(kills="INIT-05")
class ZeroIsToldByShape(Honest):
    """What has the shape of B, transposed or not, is zero at the start. Where in is the rank, that is A as well."""

    def init_factors(self, n_in: int, n_out: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
        A, B = super().init_factors(n_in, n_out, rank)
        return A * (n_in != rank), B


@mutant(kills="INIT-06")
class SeedIsConstant(Honest):
    """The seed is a constant, so all layers start from the same A."""

    def init_factors(self, n_in: int, n_out: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
        self.rng = np.random.default_rng(42)
        return super().init_factors(n_in, n_out, rank)


@mutant("29", kills="INIT-07")
class FanIsTheRank(Honest):
    """The fan-in that sets the spread of A is taken to be the rank, because A is stored as (in, rank)."""

    def init_factors(self, n_in: int, n_out: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
        return self.rng.standard_normal((n_in, rank)) / math.sqrt(rank), np.zeros((rank, n_out))


@mutant(kills="INIT-07")
class FanIsOfAShard(Honest):
    """The fan-in that sets the spread of A is that of one shard of A: here the rank."""

    def init_factors(self, n_in: int, n_out: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
        return self.rng.standard_normal((n_in, rank)) / math.sqrt(n_in / rank), np.zeros((rank, n_out))


@mutant(kills="INIT-06")
class SeedOfFourBits(Honest):
    """Only the last four bits of the seed count."""

    def init_factors(self, n_in: int, n_out: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
        self.rng = np.random.default_rng(self.config.seed % 16)
        return super().init_factors(n_in, n_out, rank)


@mutant(kills="INIT-10")
class ZeroIsNoSeed(Honest):
    """A seed of 0 is taken for a missing one, and every layer starts from other numbers."""

    def init_factors(self, n_in: int, n_out: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
        self.rng = np.random.default_rng(self.config.seed or None)
        return super().init_factors(n_in, n_out, rank)


@mutant(kills="INIT-10")
class SeedsCountLayers(Honest):
    """The factors depend on how many layers were built before."""

    built = 0

    def init_factors(self, n_in: int, n_out: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
        type(self).built += 1
        self.rng = np.random.default_rng([self.config.seed, self.built])
        return super().init_factors(n_in, n_out, rank)


@mutant(kills="INIT-02")
class WeightInMemoryOrder(Honest):
    """The numbers of the given weight are read in their order in memory. The strides are ignored."""

    def __init__(self, config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None):
        super().__init__(config, weight.ravel(order="K").reshape(weight.shape), bias)


@mutant("26", kills="INIT-03")
class HalfStartsAtZero(Honest):
    """In half formats neither factor is random at the start."""

    def init_factors(self, n_in: int, n_out: int, rank: int) -> tuple[np.ndarray, np.ndarray]:
        A, B = super().init_factors(n_in, n_out, rank)
        return (0 * A if self.config.dtype in ("float16", "bfloat16") else A), B
