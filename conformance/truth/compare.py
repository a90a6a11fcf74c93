"""The only file that decides how far apart two arrays may be.

Four kinds of judgement, none with a chosen tolerance:
* `expect_equal`: bit equality, for cases in which every honest way of computing is exact;
* `expect_within`: componentwise, |got − want| ≤ bound; the bound is derived in `lora_ref.error.bounds`;
* `expect_within_spread`: the same for whole models; the bound is a quantile of the spread that `lora_ref.error.noise` measures;
* statistics of random draws, each with a false-alarm probability of at most ALARM for an honest implementation.

Each returns error / bound (0 where equal), or raises a Mismatch that holds what a report needs.
"""

import itertools
import math
from functools import cache
from statistics import NormalDist

import numpy as np

from conformance.truth import rational
from lora_ref.error import noise
from lora_ref.error.bounds import PRECISIONS

ALARM = 1e-11  # false-alarm probability of one statistical check; a run has fewer than 100, so at most 1e-9 a run
MEANS = 10_000  # checks of `expect_mean`, and of `repetitions`, which share one ALARM
PATCH = 8  # rows and columns of the smallest patch of a mask that must not come again
TILES = (8, 32, 128)  # rows and columns of the tiles in which code may draw a mask


# A rounding case is used only if a relative error of the scale of this size exceeds its bounds. In half precision that is
# coarse: there, exact cases decide.
FAULT_OF_INTEREST = {"float64": 1e-3, "float32": 1e-3, "float16": 0.25, "bfloat16": 0.5}


class Mismatch(AssertionError):
    """The subject's answer is not the one expected."""

    def __init__(self, what: str, got, want, *, where: str = "", error: float | None = None, bound: float | None = None,
                 arrays: tuple[np.ndarray, np.ndarray] | None = None):
        self.what, self.where, self.error, self.bound = what, where, error, bound
        self.arrays = arrays  # all of got and want, if `got` and `want` are one component
        self.got, self.want = _text(got), _text(want)
        if self.got == self.want and error:
            self.got, self.want = repr(got), repr(want)  # they differ only in the last digits
        super().__init__(f"{what}{where}: got {self.got}, want {self.want}{self.ratio_text()}")

    @property
    def ratio(self) -> float | None:
        """error / bound: infinite if the bound is zero, None if no two numbers were compared."""
        if self.error is None or self.bound is None:
            return None
        return self.error / self.bound if self.bound else math.inf

    def ratio_text(self) -> str:
        if self.error is None or self.bound is None:
            return ""
        if not self.bound:
            return f" (error {self.error:.3g} / 0: it must be equal bit for bit)"
        return f" (error {self.error:.3g} / bound {self.bound:.3g} = {self.ratio:.3g})"


def expect_equal(got, want, what: str) -> float:
    """Demands equal values, in whatever dtype each is stored. −0 equals 0, and NaN equals NaN."""
    got, want = np.asarray(got), np.asarray(want)
    if np.array_equal(got, want) if got.dtype == want.dtype else np.array_equal(_fast(got), _fast(want)):
        return 0.0
    got, want = wide(got), wide(want)
    _same_shape(got, want, what)
    wrong = ~((got == want) | (np.isnan(got) & np.isnan(want)))
    if wrong.any():
        raise _at(what, got, want, np.zeros(got.shape), wrong)
    return 0.0


def within(got: np.ndarray, want: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """For each component whether it is within its bound. NaN is not."""
    return np.abs(got - want) <= bound


def expect_within(got, want, bound, what: str) -> float:
    """Demands that each component is within its bound. Returns the largest error / bound."""
    got, want = wide(got), wide(want)
    _same_shape(got, want, what)
    bound = np.broadcast_to(np.asarray(bound, np.float64), got.shape)
    error = np.abs(got - want)
    wrong = ~(error <= bound)  # in this form NaN counts as wrong
    if wrong.any():
        raise _at(what, got, want, bound, wrong)
    inside = bound > 0
    return float((error[inside] / bound[inside]).max()) if inside.any() else 0.0


def accepted(low: np.ndarray, high: np.ndarray, bound, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """For each component the smallest and the largest number of the format that lie within the bound of a right answer, which
    is between the rational numbers `low` and `high`."""
    margin = rational.exact(np.broadcast_to(np.asarray(bound, np.float64), low.shape))
    return rational.inward(low - margin, high + margin, dtype)


def expect_between(got, low: np.ndarray, high: np.ndarray, what: str) -> float:
    """Demands low ≤ got ≤ high of each component, after it was rounded to their format. Where low is NaN, it demands NaN or
    infinity. Returns the largest distance from the middle, in units of half the width."""
    got = np.asarray(got)
    _same_shape(got, low, what)
    with np.errstate(over="ignore"):  # what is beyond the format becomes infinite
        got, low, high = (array.astype(low.dtype).astype(np.float64) for array in (got, low, high))
    lost = np.isnan(low)
    middle, half = (low + high) / 2, np.where(lost, 0, (high - low) / 2)
    wrong = np.where(lost, np.isfinite(got), ~((low <= got) & (got <= high)))
    error = np.abs(got - middle)
    if wrong.any():
        raise _at(what, wide(got), wide(middle), half, wrong)
    inside = half > 0
    return float((error[inside] / half[inside]).max()) if inside.any() else 0.0


def expect_within_spread(got, want, deviation, what: str) -> float:
    """Demands that each component is within `reach()` times its standard deviation. An honest error exceeds that with
    probability ALARM: the deviation is estimated from `lora_ref.error.noise.RUNS` runs, so error / deviation has Student's
    distribution."""
    return expect_within(got, want, reach() * np.asarray(deviation, np.float64), what)


def largest_ratio(error, bound) -> float:
    """The largest |error| / bound. Infinite where no number came out, or where an error has no bound."""
    error, bound = np.abs(wide(error)), np.asarray(bound, np.float64)
    if not np.isfinite(error).all() or error[bound == 0].any():
        return math.inf
    return float((error / np.where(bound == 0, 1, bound)).max(initial=0.0))


def ratio_within_spread(error, deviation) -> float:
    """The largest error / bound of errors that `expect_within_spread` would judge."""
    return largest_ratio(error, reach() * np.asarray(deviation, np.float64))


def rounding_beside(error, deviation) -> float:
    """By how many times the rounding of a program is wider than that which has this deviation, measured on a case whose right
    answer is not in doubt; at least 1. It may store in half precision what was taken for float32. Errors of the same program
    elsewhere have so many times the deviation there: to first order they are proportional to its unit roundoff."""
    return max(1.0, float(np.sqrt(np.square(wide(error) / np.asarray(deviation, np.float64)).mean())))


def reach() -> float:
    """The multiple of an estimated standard deviation that an honest error exceeds with probability ALARM."""
    return _student(ALARM, noise.RUNS)


def noise_reach(first: int, second: int) -> float:
    """How many times as large as that of `second` independent draws the root mean square of `first` draws of the same noise may
    be: an honest one is larger with probability ALARM. The log of a root mean square of n normal draws has variance 1/(2 n).
    Draws that are means of several numbers, such as those of one prompt, vary less."""
    return math.exp(_z(ALARM) * math.sqrt(1 / (2 * first) + 1 / (2 * second)))


def smallest_noise(spread: float) -> float:
    """The noise of a program that computes in float32, as the truth of a probe does, if random relative errors of size 1 in the
    place of each of its roundings would move the answers by `spread`."""
    return noise.ROUNDINGS * PRECISIONS["float32"].u * spread


def alike(first, second, bound) -> bool:
    """Whether two answers may come from one formula: they are equal, or differ by no more than twice the bound."""
    first, second = wide(first), wide(second)
    if first.shape != second.shape:
        return False
    equal = (first == second) | (np.isnan(first) & np.isnan(second))
    if bound is not None and np.shape(bound) == first.shape:
        equal |= np.abs(first - second) <= 2 * bound
    return bool(equal.all())


def ratio_of(got, want, dtype: str = "float64") -> float | None:
    """The number c with got = c · want in every component, up to the rounding of the division and that of an answer of this
    dtype. None if there is no such c, or if fewer than two components of `want` are not zero."""
    got, want = wide(got), wide(want)
    there = want != 0
    if got.shape != want.shape or there.sum() < 2 or got[~there].any() or not np.isfinite(got).all():
        return None
    ratios = got[there] / want[there]
    return float(ratios[0]) if all(same_number(r, ratios[0], dtype) for r in ratios) else None


def same_number(first: float, second: float, dtype: str = "float64") -> bool:
    """Whether two numbers are equal to within a few roundings of the dtype, such as one or two divisions or roots cause."""
    return abs(first - second) <= 4 * float(np.finfo(dtype).eps) * abs(second)


def expect(condition, what: str, got, want) -> None:
    """Raises a Mismatch with `got` and `want` unless the condition holds."""
    if not condition:
        raise Mismatch(what, got, want)


def expect_zero_mean(sample: np.ndarray, what: str) -> float:
    """Demands mean zero of independent draws from one symmetric, light-tailed distribution (normal, uniform)."""
    sample = wide(sample).ravel()
    bound = mean_bound(sample.size) * float(sample.std())
    return _statistic(float(sample.mean()), 0.0, bound, what)


def expect_same_spread(first: np.ndarray, second: np.ndarray, what: str) -> float:
    """Demands that two samples have the same standard deviation. The log of a sample's standard deviation has variance
    1/(2 N) for normal draws, and less for uniform ones."""
    first, second = wide(first).ravel(), wide(second).ravel()
    expect(first.std() > 0 and second.std() > 0, what, "one without any spread", "two with a spread")
    bound = spread_bound(first.size, second.size)
    return _statistic(math.log(float(first.std())) - math.log(float(second.std())), 0.0, bound, what)


def expect_fraction(count: int, trials: int, probability: float, what: str) -> float:
    """Demands that `count` successes in independent `trials` fit that probability, by Chernoff's bound: a fraction is as far
    off, to one side, with probability at most exp(−n D): see `expect_fractions`."""
    distance, bound = trials * float(_divergence(np.array(count / trials), probability)), math.log(2 / ALARM)
    if not distance <= bound:
        raise Mismatch(what, count / trials, probability, error=distance, bound=bound)
    return distance / bound


def repetitions(probability: float) -> int:
    """How often in a row something of this probability must happen to be as seldom as a false alarm. A run makes such a check
    up to MEANS times, and shares one ALARM among them."""
    return math.ceil(math.log(ALARM / MEANS) / math.log(probability))


def expect_mean(got: float, mean: float, widths: np.ndarray, what: str) -> float:
    """Demands that `got` fits a sum of independent draws with this mean, each from an interval of one of these widths, by
    Hoeffding's inequality. A run makes this check up to MEANS times, and shares one ALARM among them."""
    bound = math.sqrt(math.log(2 * MEANS / ALARM) / 2 * float((widths**2).sum()))
    return _statistic(got, mean, bound, what)


def expect_few_in_common(first: np.ndarray, second: np.ndarray, what: str) -> None:
    """Demands that two tables of fair coin flips, n rows of k flips each, have few rows in common. Each of the n² pairs of rows
    is equal with probability 2⁻ᵏ, so m pairs are equal with probability at most (n² 2⁻ᵏ)ᵐ."""
    rows = [set(map(tuple, table.tolist())) for table in (first, second)]
    chance = len(first) * len(second) * 2.0 ** -first.shape[1]
    allowed = math.floor(math.log(ALARM) / math.log(chance))  # one more is less likely than ALARM
    common = len(rows[0] & rows[1])
    expect(common <= allowed, what, common, f"at most {allowed} of {len(second)}, by chance")


def expect_unlike(draws: np.ndarray, probability: float, what: str) -> float:
    """Demands that independent draws, each 1 with that probability p and else 0, agree no more often than by chance with those
    that stand n entries later, for every n. The products of the deviations of both from p are martingale differences, and each
    lies in a range of at most c = max(p, 1 − p) once the earlier draw is known. So a sum of m of them exceeds c √(m l / 2),
    l = ln(2 / a), with probability at most a (Azuma and Hoeffding's inequality). Here a is ALARM, divided by the number of
    distances and by 4: the deviations are taken from the mean that was found, so that a wrong p alone fails nothing. This
    changes a sum by 3 l / 2 at most, unless the sum of all deviations, or of the first or last m, exceeds √(m l / 2), too."""
    deviations = draws.ravel() - draws.mean()
    count = deviations.size
    size = min(odd << math.ceil(math.log2(2 * count / odd)) for odd in (1, 3, 5, 9, 15))  # a length of which FFTs are fast
    sums = np.fft.irfft(np.abs(np.fft.rfft(deviations, size)) ** 2, size)[1:count]
    terms = np.arange(count - 1, 0, -1)
    log = math.log(8 * len(terms) / ALARM)
    bounds = max(probability, 1 - probability) * np.sqrt(terms * log / 2) + 1.5 * log
    worst = int((np.abs(sums) / bounds).argmax())
    spread = terms[worst] * probability * (1 - probability)
    return _statistic(float(sums[worst] / spread), 0.0, float(bounds[worst] / spread),
                      f"correlation of {what} that are {worst + 1} entries apart")


def expect_no_patch_twice(tables: list[np.ndarray], what: str) -> None:
    """Demands that tables of fair coin flips, (rows, columns) each, have no patch in common with one another or with
    themselves. A patch is 8 rows by 8 columns, and begins at multiples of 8. Two of n patches are equal with probability at
    most n² 2⁻⁶⁵, so m of them repeat others with probability at most (n² 2⁻⁶⁵)ᵐ."""
    patches = []
    for table in tables:
        rows, columns = (length // PATCH for length in table.shape)
        cut = (table[: rows * PATCH, : columns * PATCH] != 0).reshape(rows, PATCH, columns, PATCH)
        patches.append(np.packbits(cut.swapaxes(1, 2).reshape(-1, PATCH * PATCH), axis=1).view(np.uint64).ravel())
    found = np.concatenate(patches)
    allowed = math.floor(math.log(ALARM) / math.log(len(found) ** 2 * 2.0 ** -(PATCH * PATCH + 1)))  # one more is too rare
    again = len(found) - len(np.unique(found))
    expect(again <= allowed, f"8 × 8 patches {what} that occur a second time", f"{again} of {len(found)}", allowed)


def expect_fractions(draws: np.ndarray, probability: float, what: str) -> float:
    """Demands that draws (passes, rows, columns), each 1 with that probability p and else 0, have the right fraction of
    ones: in each row, in each column, in all, and in each tile of TILES rows or columns, tiles that the edge cuts included.
    A fraction q of n draws is as far off, to one side, with probability at most exp(−n D), D = q ln(q / p) + (1 − q) ln((1
    − q) / (1 − p)) (Chernoff's bound). ALARM is divided by the number of sides of all tiles."""
    passes, *shape = draws.shape
    ones = np.pad((draws != 0).sum(0).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    tiles = [(1, shape[1]), (shape[0], 1), *itertools.product((*TILES, shape[0]), (*TILES, shape[1]))]
    edges = [[np.append(np.arange(0, *sides), sides[0]) for sides in zip(shape, tile, strict=True)] for tile in tiles]
    bound = math.log(2 * sum((len(rows) - 1) * (len(columns) - 1) for rows, columns in edges) / ALARM)
    ratios = [0.0]
    for rows, columns in edges:
        counts = np.diff(np.diff(ones[np.ix_(rows, columns)], axis=0), axis=1)
        trials = passes * np.outer(np.diff(rows), np.diff(columns))
        distances = trials * _divergence(counts / trials, probability)
        i, j = np.unravel_index(int(distances.argmax()), distances.shape)
        if not distances[i, j] <= bound:
            where = f" in rows {rows[i]} to {rows[i + 1] - 1}, columns {columns[j]} to {columns[j + 1] - 1}"
            raise Mismatch(f"fraction of {what}", float(counts[i, j] / trials[i, j]), probability, where=where,
                           error=float(distances[i, j]), bound=bound)
        ratios.append(float(distances[i, j]) / bound)
    return max(ratios)


def _divergence(found: np.ndarray, probability: float) -> np.ndarray:
    """D = q ln(q / p) + (1 − q) ln((1 − q) / (1 − p)) for each q of `found`, where 0 ln 0 = 0."""
    parts = [q * np.log(np.where(q > 0, q, 1) / p) for q, p in ((found, probability), (1 - found, 1 - probability))]
    return parts[0] + parts[1]


def expect_kept_factor(found: np.ndarray, rate: float, dtype: str, what: str) -> float:
    """Demands that entries that are not zero are 1 / (1 − rate), computed in that dtype or a wider one, with a rounding
    after every step. Six steps round the result: 1 − rate, the reciprocal, the products with x and with the scale, the
    scale itself and the output. A rounding of the rate is magnified by rate / (1 − rate). Each step is a factor of at most
    1 / (1 − u), where u is the unit roundoff. A sum of one number and of zeros does not round."""
    steps = 6 + rate / (1 - rate)
    want = 1 / (1 - wide(rate))
    return expect_within(found, np.where(found != 0, want, 0), want * ((1 - wide(PRECISIONS[dtype].u)) ** -steps - 1), what)


def wide(array) -> np.ndarray:
    """The same values in longdouble, which represents every dtype of a subject exactly."""
    array = np.asarray(array)
    if array.dtype != np.longdouble:
        array = array.astype(np.float64)  # bfloat16 has no cast of its own to longdouble
    return array.astype(np.longdouble)


def _fast(array: np.ndarray) -> np.ndarray:
    """The same values in float64, unless they are in longdouble: operations on longdouble take much longer."""
    return array if array.dtype == np.longdouble else array.astype(np.float64)


def _statistic(got: float, want: float, bound: float, what: str) -> float:
    error = abs(got - want)
    if not error <= bound:
        raise Mismatch(what, got, want, error=error, bound=bound)
    return error / bound if bound else 0.0


def mean_bound(count: int) -> float:
    """What the mean of so many independent draws of mean 0 exceeds with probability ALARM, in units of their deviation."""
    return _z(ALARM) / math.sqrt(count)


def spread_bound(*counts: int) -> float:
    """What the log of the ratio of the deviations of two such samples exceeds with probability ALARM."""
    return _z(ALARM) * math.sqrt(sum(1 / (2 * count) for count in counts))


def _z(alarm: float) -> float:
    return -NormalDist().inv_cdf(alarm / 2)


@cache
def _student(alarm: float, freedom: int) -> float:
    """The t that |T| exceeds with that probability. T has Student's distribution with an even number of degrees of freedom,
    for which P(|T| ≤ t) = sin θ (1 + ½ cos² θ + ½ ¾ cos⁴ θ + …), tan θ = t / √freedom, freedom / 2 terms (Abramowitz and
    Stegun, *Handbook of Mathematical Functions*, 26.7.4)."""
    def beyond(t: float) -> float:
        theta, term, total = math.atan(t / math.sqrt(freedom)), 1.0, 0.0
        for k in range(freedom // 2):
            total += term
            term *= (2 * k + 1) / (2 * k + 2) * math.cos(theta) ** 2
        return 1 - math.sin(theta) * total

    low, high = 0.0, 1e6
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if beyond(middle) > alarm else (low, middle)
    return high


def _same_shape(got: np.ndarray, want: np.ndarray, what: str) -> None:
    if got.shape != want.shape:
        raise Mismatch(f"shape of {what}", got.shape, want.shape)


def _at(what: str, got: np.ndarray, want: np.ndarray, bound: np.ndarray, wrong: np.ndarray) -> Mismatch:
    """A Mismatch about the component with the largest error."""
    error = np.abs(got - want)
    severity = np.where(wrong, np.where(np.isnan(error), np.inf, error), -1)
    index = np.unravel_index(int(severity.argmax()), severity.shape)
    where = f"[{', '.join(map(str, index))}]" if index else ""
    return Mismatch(
        what, float(got[index]), float(want[index]), where=where, error=float(error[index]), bound=float(bound[index]),
        arrays=(got, want),
    )


def _text(value) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)
