"""Whether a failure follows from one that is more basic: a LoRA part that is a multiple of the right one, in every layer.

The multiple is measured on a few layers. A requirement whose cases all pass when alpha is divided by it fails because of it.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from hypothesis.errors import UnsatisfiedAssumption

from conformance.record.trace import SubjectError, Traced
from conformance.requirements import Requirement
from conformance.requirements.helpers.layers import set_mode
from conformance.run import case_bank
from conformance.subject import Layer, LayerConfig, Subject, Unsupported
from conformance.truth.case import DTYPES, Case
from conformance.truth.compare import Mismatch, same_number

BASIC = ("FWD-01", "SCALE-01")  # shown in full, with the smallest case
CASES = 6  # of a requirement, with the measured multiple
MULTIPLES: dict[str, Callable[[float, float], float]] = {  # of alpha and rank
    "the rank": lambda alpha, rank: rank, "1 / rank": lambda alpha, rank: 1 / rank, "√rank": lambda alpha, rank: rank**0.5,
    "1 / √rank": lambda alpha, rank: rank**-0.5, "alpha / rank": lambda alpha, rank: alpha / rank,
    "rank / alpha": lambda alpha, rank: rank / alpha,
}
PROBES = ((1.0, 1), (8.0, 2), (3.0, 4), (5.0, 7))  # alpha and rank


class Scaled(Subject):
    """The subject, with an alpha that makes up for a multiple of its LoRA part."""

    def __init__(self, subject: Subject, multiple: Callable[[float, float], float]):
        self.subject, self.multiple = subject, multiple
        self.name, self.methods = getattr(subject, "name", ""), subject.methods

    def build(self, config: LayerConfig, weight: np.ndarray, bias: np.ndarray | None) -> Layer:
        usable = config.method == "lora" and isinstance(config.rank, int) and config.rank > 0 and np.isfinite(config.alpha)
        if not usable or not config.alpha or config.scaling != "standard":
            return self.subject.build(config, weight, bias)
        return self.subject.build(replace(config, alpha=config.alpha / self.multiple(config.alpha, config.rank)), weight, bias)


class Compensation:
    """The multiple by which the LoRA part of a subject is off, if it is off by one, and whether it explains a failure."""

    def __init__(self, subject: Subject):
        self.subject = subject
        self._known: tuple[str, Callable[[float, float], float]] | None = None
        self._measured = False

    def words(self, requirement: Requirement, case: object, dtypes: tuple[str, ...], seed: int) -> str:
        """What explains the failure of the requirement on the case: a sentence, or "" if nothing does."""
        if not self._measured:
            self._known, self._measured = _measured(self.subject), True
        if self._known is None or not isinstance(case, Case):
            return ""
        name, multiple = self._known
        others = [c for c in case_bank.first(requirement, dtypes, CASES, seed) if isinstance(c, Case)]
        passed = 0
        for each in (case, *others):
            try:
                requirement.check(Traced(Scaled(self.subject, multiple), record=False), each.copy())
                passed += 1
            except (Unsupported, UnsatisfiedAssumption):
                pass
            except (Mismatch, SubjectError):
                return ""
        return f"the LoRA part is {name} times what it should be" if passed else ""


def _measured(subject: Subject) -> tuple[str, Callable[[float, float], float]] | None:
    """The multiple, and its name. None if there is none, or if it is 1, or if its scale or alpha is fixed."""
    if getattr(subject, "scale", None) is not None or getattr(subject, "alpha", None) is not None:
        return None
    seen = []
    for alpha, rank in PROBES:
        try:
            seen.append((alpha, rank, _scale(subject, alpha, rank) / (alpha / rank)))
        except (Unsupported, SubjectError, Mismatch, LookupError, ValueError):
            return None
    first = seen[0][2]
    if not all(np.isfinite(found) and found for *_, found in seen):
        return None
    if all(same_number(found, first) for *_, found in seen):
        return None if first == 1 else (f"{first:g}", lambda alpha, rank: first)
    named = [(name, rule) for name, rule in MULTIPLES.items()
             if all(same_number(found, rule(alpha, rank)) for alpha, rank, found in seen)]
    return named[0] if named else None


def _scale(subject: Subject, alpha: float, rank: int) -> float:
    """The scale of a layer of zeros with identities, cut to shape, as factors: it is the first number of y."""
    dtype, n_out = "float64", 9 if getattr(subject, "square", False) else 8
    for bias in (False, True):
        config, W = LayerConfig(9, n_out, rank, alpha, bias=bias, dtype=dtype), np.zeros((n_out, 9), DTYPES[dtype])
        try:
            layer = Traced(subject, record=False).build(config, W, np.zeros(n_out, W.dtype) if bias else None)
        except Unsupported:
            continue
        layer.set_adapter({"A": np.eye(9, rank, dtype=W.dtype), "B": np.eye(rank, n_out, dtype=W.dtype)})
        set_mode(layer, False)
        return float(layer.forward(np.eye(9, dtype=W.dtype)[:1])[0, 0])
    raise Unsupported("a layer in float64")
