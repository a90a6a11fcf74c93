"""Decides which of the alternatives a server's answers come from.

    distance   the root mean square of what the server says, less what the alternative gives
    bound      how far honest answers may be, from the noise that was measured on the base alone (truth/compare.py)
    power      how far the alternative is from the expected one, over the bound

If two alternatives are more than two bounds apart, no answer is within the bound of both.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from conformance.files.probe.alternatives import APPLIED, PARTLY, Alternative
from conformance.files.probe.fit import explained, fit
from conformance.files.probe.truth import Places, Truth, rms
from conformance.truth import compare

MIXED, UNKNOWN, NOTHING = "mixed up", "wrong, for no known reason", "cannot tell"


@dataclass
class Noise:
    """How far the server's answers of the base model are from the truth."""

    size: float  # root mean square, nat
    prompts: int
    spread: float  # how far rounding moves the answers of the base model: Truth.spread
    spreads: dict[str, float] = field(default_factory=dict)  # the same for alternatives, by their words

    def bound(self, truth: Truth, places: Places, alternative: Alternative, prompts: int) -> float:
        """The distance that honest answers to so many prompts keep from an alternative: the noise of the base model, times as
        much more as rounding moves the answers of the alternative, times what chance may do."""
        if alternative.words not in self.spreads:
            self.spreads[alternative.words] = truth.spread(places, alternative.changes)
        more = max(1.0, self.spreads[alternative.words] / self.spread)
        return compare.noise_reach(prompts, self.prompts) * self.size * more


def noise_of(truth: Truth, places: Places, values: np.ndarray) -> Noise:
    """The noise, from the server's answers of the base model alone."""
    spread = truth.spread(places, [])
    size = max(rms(values - truth.at(places, [])), compare.smallest_noise(spread))
    return Noise(size, len(set(places.prompt)), spread)


class Row(NamedTuple):
    """One alternative beside the answers."""

    alternative: Alternative
    distance: float  # of the answers from it, nat
    power: float  # of it from what is expected, in bounds


class Verdict(NamedTuple):
    right: bool  # it is what was expected
    kind: str
    words: str
    bound: float
    rows: list[Row]  # from near to far
    possible: list[str] = []  # other alternatives that the answers are within the bound of
    strength: tuple[float, float] | None = None  # of an adapter that is applied, and how far that may be off
    factors: dict[str, float] = {}  # of groups of modules, where they were fitted


def judge(truth: Truth, places: Places, values: np.ndarray, alternatives: list[Alternative], noise: Noise) -> Verdict:
    """What the values are. The first alternative is what is expected."""
    expected = alternatives[0]
    gives = [truth.at(places, alternative.changes, alternative.cache) for alternative in alternatives]
    prompts = len(set(places.prompt))
    bound = noise.bound(truth, places, expected, prompts)
    rows = sorted((Row(alternative, rms(values - given), rms(given - gives[0]) / bound)
                   for alternative, given in zip(alternatives, gives, strict=True)), key=lambda row: row.distance)
    near = rows[0].alternative
    within = [row.alternative for row in rows if row.distance <= bound]
    if expected in within:
        possible = [other.words for other in within if other is not expected]
        rivals = [other.words for other in within if other.kind not in (expected.kind, PARTLY)]
        if rivals:
            words = f"the noise is too large to tell it from: {'; '.join(rivals)}"
            return Verdict(False, NOTHING, words, bound, rows, possible)
        strength = _strength(truth, places, values, expected, bound)
        return Verdict(True, expected.kind, expected.words, bound, rows, possible, strength)
    if not np.isfinite(values).all():
        return Verdict(False, UNKNOWN, "log-probabilities that are no finite numbers", bound, rows)
    if rows[0].distance <= noise.bound(truth, places, near, prompts):
        return Verdict(False, near.kind, near.words, bound, rows, [other.words for other in within if other is not near])
    if mixture := _mixture(truth, places, values, alternatives, gives, noise):
        kinds = {alternative.kind for alternative, _ in mixture if alternative is not expected}
        words = ", ".join(f"{count} prompts: {alternative.words}" for alternative, count in mixture)
        return Verdict(False, kinds.pop() if len(kinds) == 1 else MIXED, words, bound, rows)
    if expected.kind == APPLIED and len(expected.changes) == 1 and (
            found := explained(truth, places, values, expected.changes[0], near, bound)):
        return Verdict(False, *found[:2], bound, rows, factors=found[2])
    return Verdict(False, UNKNOWN, f"the nearest is {rows[0].distance:.3g} nat away: {near.words}", bound, rows)


def _strength(truth: Truth, places: Places, values: np.ndarray, expected: Alternative,
              bound: float) -> tuple[float, float] | None:
    """The factor of the adapter as a whole that fits best, and how far a factor moves the answers by a bound."""
    if expected.kind != APPLIED or len(expected.changes) != 1:
        return None
    adapter = expected.changes[0]
    factors, reach, _ = fit(truth, places, values, adapter, {"all": list(adapter)}, adapter)
    return float(factors[0]), float(reach[0] * bound)


def _mixture(truth: Truth, places: Places, values: np.ndarray, alternatives: list[Alternative], gives: list[np.ndarray],
             noise: Noise) -> list[tuple[Alternative, int]]:
    """How many prompts got which alternative, if each of them got one; else nothing."""
    found = []
    for prompt in set(places.prompt):
        distances = [rms((values - given)[places.prompt == prompt]) for given in gives]
        nearest = int(np.argmin(distances))
        if distances[nearest] > noise.bound(truth, places, alternatives[nearest], 1):
            return []
        found.append(nearest)
    counts = Counter(found).most_common()
    return [(alternatives[number], count) for number, count in counts] if len(counts) > 1 else []
