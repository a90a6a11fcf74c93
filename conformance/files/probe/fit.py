"""Fits the strength of an adapter, or of groups of its modules, to the answers of a server.

    values ≈ truth(factors)        one factor for each group; Gauss–Newton with halved steps
"""

import numpy as np

from conformance.files.probe.alternatives import BASE, PARTLY, STRENGTH, Adapter, Alternative, kinds, layers, scaled
from conformance.files.probe.truth import Places, Truth, rms

STEP = 2.0**-5  # of a factor, to see what it changes
HALVED = 4  # times that a step may be halved
GAIN = 0.75  # of the distance may be left by a step, or the fit ends: near its goal, it leaves much less
FEWEST = 4  # numbers for each factor
Groups = dict[str, list[str]]  # of modules


def explained(truth: Truth, places: Places, values: np.ndarray, adapter: Adapter, near: Alternative,
              bound: float) -> tuple[str, str, dict[str, float]] | None:
    """The kind, the words and the factors of groups of modules under which the adapter gives these values, for the coarsest
    groups that do. The fit starts at the nearest alternative, and at the adapter."""
    starts = [near.changes[0] if near.changes else {}] if near.kind in (BASE, PARTLY, STRENGTH) else []
    for groups in ({"all modules": list(adapter)}, kinds(adapter), layers(adapter), {name: [name] for name in adapter}):
        for start in [*starts, adapter] if len(groups) * FEWEST <= len(values) else []:
            factors, reach, distance = fit(truth, places, values, adapter, groups, start)
            if distance <= bound:
                return _said(groups, factors, reach * bound)
    return None


def fit(truth: Truth, places: Places, values: np.ndarray, adapter: Adapter, groups: Groups,
        start: Adapter) -> tuple[np.ndarray, np.ndarray, float]:
    """The factors of the groups that bring the truth nearest to the values; by how much a factor moves when the answers move by
    1 nat; and the distance that is left."""
    number = {module: i for i, modules in enumerate(groups.values()) for module in modules}

    def at(factors: np.ndarray) -> np.ndarray:
        return truth.at(places, [scaled(adapter, lambda name, _: float(factors[number[name]]))])

    ratios = {name: start[name].scale / change.scale if name in start and change.scale else 0.0
              for name, change in adapter.items()}
    factors = np.array([np.mean([ratios[name] for name in modules]) for modules in groups.values()])
    given, slopes = at(factors), np.ones((len(values), len(groups)))
    while True:
        slopes = np.stack([(at(factors + STEP * unit) - given) / STEP for unit in np.eye(len(groups))], 1)
        step = np.linalg.lstsq(slopes, values - given)[0]
        before = rms(values - given)
        tries = ((tried, at(tried)) for tried in (factors + step / 2**halved for halved in range(HALVED)))
        factors, given = next(((f, g) for f, g in tries if rms(values - g) < before), (factors, given))
        if rms(values - given) > GAIN * before:
            break
    size = np.sqrt(np.mean(slopes**2, axis=0))
    return factors, np.divide(1, size, out=np.full(len(size), np.inf), where=size > 0), rms(values - given)


def _said(groups: Groups, factors: np.ndarray, reach: np.ndarray) -> tuple[str, str, dict[str, float]]:
    """Names what was fitted. A factor is known up to `reach`: so far it moves the answers by one bound."""
    found = dict(zip(groups, map(float, factors), strict=True))
    missing, right = ([name for name, far in zip(groups, np.abs(factors - of) <= reach, strict=True) if far] for of in (0, 1))
    if len(missing) == len(found):
        return BASE, "the base model alone", found
    if missing and len({*missing, *right}) == len(found):
        return PARTLY, f"without {', '.join(missing)}", found
    return STRENGTH, ", ".join(f"{name} × {factor:.3g}" for name, factor in found.items()), found
