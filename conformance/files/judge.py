"""Judges what a reader made of a file: ΔW by module, or the log-probabilities of the small Llama, against the right ΔW.

ΔW has to be equal bit for bit: all of its numbers are exact in float32. Log-probabilities may be off by what rounding does to
them. compare.py has the bound; the reader's own rounding is measured on the base model alone.

Where log-probabilities are wrong, the factors f of the modules are looked for, with f · ΔW in the place of ΔW. They are found
if the log-probabilities with them are those that came out, within the same bound.
"""

import math
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from conformance.files import container, llama, merging
from conformance.files.binary import Arrays
from conformance.truth import compare
from lora_ref.error import bounds, noise
from lora_ref.error.bounds import PRECISIONS
from lora_ref.lora import LoRA

STEPS = 12  # of Gauss and Newton


class Right(NamedTuple):
    """What a file means: ΔW by module, and, where the file says them, ranks, scales and the one alpha of the settings."""

    truth: Arrays
    ranks: dict[str, int]
    scales: dict[str, float]
    alpha: float | None = None


class Verdict(NamedTuple):
    """What is wrong, in words, empty if nothing is. Of log-probabilities: error / bound, and how far the adapter moves them."""

    words: str
    ratio: float | None = None
    effect: float | None = None


def of_deltas(found: Arrays, right: Right) -> Verdict:
    words = {module: what for module in sorted(found.keys() | right.truth.keys())
             if (what := _difference(found.get(module), module, right))}
    return Verdict(_together(words))


def _difference(got: np.ndarray | None, module: str, right: Right) -> str:
    """What is wrong with ΔW of one module, by which known fault, or by which factor. Empty if nothing is."""
    want = right.truth.get(module)
    if want is None:
        return "changed, and the file is not about it" if got is not None and got.any() else ""
    if got is None:
        return factor_words(0.0, module, right) if want.any() else ""
    if got.shape != want.shape:
        return f"ΔW is {got.shape}, expected {want.shape}"
    if np.array_equal(got, want):
        return ""
    if got.shape == want.shape[::-1] and np.array_equal(got, want.T):
        return "transposed"
    with np.errstate(all="ignore"):
        factor = float((got * want).sum() / (want * want).sum())
    if np.array_equal(got.astype(np.float32), (factor * want).astype(np.float32)):
        return factor_words(factor, module, right)
    distance = float(np.linalg.norm(got - want) / np.linalg.norm(want))
    return f"off by {distance:.3g} of ‖ΔW‖"


def faults(module: str, right: Right) -> dict[str, float]:
    """What a wrong ΔW may be a multiple of the right one by, in words."""
    rank, scale = right.ranks.get(module, 0), right.scales.get(module)
    found = {"the LoRA part is left out": 0.0}
    if right.alpha is not None and rank and scale:
        found["the scale is lora_alpha / r, whatever use_rslora and alpha_pattern say"] = right.alpha / rank / scale
    if rank > 1:
        root = math.sqrt(rank)
        found |= {"√rank is missing": 1 / root, "√rank is there once more": root,
                  "the rank is missing: alpha is not divided by it": float(rank),
                  "alpha is divided by the rank twice": 1 / rank}
    return found | {"the sign is wrong": -1.0}


def factor_words(factor: float, module: str, right: Right) -> str:
    single = np.float32(factor)
    named = next((words for words, of in faults(module, right).items() if np.float32(of) == single), "")
    return named if factor == 0 else f"{factor:.4g} times ΔW" + (f": {named}" if named else "")


def _together(words: dict[str, str]) -> str:
    """Modules of which the same is said, together."""
    ordered = sorted(words, key=lambda module: words[module])
    groups = [(what, list(modules)) for what, modules in groupby(ordered, lambda module: words[module])]
    return "; ".join(f"{', '.join(modules)}: {what}" for what, modules in groups)


def log_probabilities(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def changed(truth: Arrays, factors: dict[str, float]) -> Arrays:
    """The weights of the Llama with factor · ΔW added to each. Raises KeyError for a module that it has not."""
    arrays = base()
    for module, delta in truth.items():
        f = factors.get(module, 1.0)
        if module.endswith(".bias"):
            arrays[module] = f * delta
        else:
            arrays[f"{module}.weight"] = arrays[f"{module}.weight"] + f * delta
    return arrays


def base() -> Arrays:
    return {name: array.astype(np.float64) for name, array in (llama.weights() | llama.norms()).items()}


def with_adapter(truth: Arrays, factors: dict[str, float]) -> np.ndarray:
    return log_probabilities(llama.logits(changed(truth, factors)))


def deviation(arrays: Arrays) -> np.ndarray:
    """The standard deviation that rounding in float32 causes, of every log-probability."""
    _, found = noise.spread(lambda given: {"y": log_probabilities(llama.logits(given))}, arrays, PRECISIONS["float32"].u)
    return found["y"]


@cache
def of_base() -> tuple[np.ndarray, np.ndarray]:
    """The log-probabilities of the base model and their deviation."""
    return log_probabilities(llama.logits(base())), deviation(base())


def of_logits(got: np.ndarray, got_base: np.ndarray, right: Right) -> Verdict:
    """`got_base` is what the same reader gave without an adapter."""
    got, (plain, its_deviation) = log_probabilities(got), of_base()
    wider = compare.rounding_beside(log_probabilities(got_base) - plain, its_deviation)
    names = list(right.truth)
    want = with_adapter(right.truth, {})
    effect = float(np.abs(want - plain).max())
    if not np.isfinite(got).all():
        return Verdict("log-probabilities that are no numbers", None, effect)

    def ratio(factors: dict[str, float]) -> float:
        error = got - with_adapter(right.truth, factors)
        return compare.ratio_within_spread(error, wider * deviation(changed(right.truth, factors)))

    own = ratio({})
    if own <= 1:
        return Verdict("", own, effect)
    for start in (0.0, 1.0, 0.5, *sorted({f for name in names for f in faults(name, right).values()})):
        found = fitted(got, right.truth, start)
        if ratio(found) > 1:
            continue
        for name in names:  # the nearest number that has a name, or is whole, if the log-probabilities allow it
            known = [*faults(name, right).values(), float(round(found[name]))]
            exact = found | {name: min(known, key=partial(_apart, found[name]))}
            found = exact if ratio(exact) <= 1 else found
        words = {name: factor_words(found[name], name, right) for name in names if found[name] != 1}
        return Verdict(_together(words), own, effect)
    off = float(np.abs(got - want).max())
    return Verdict(f"log-probabilities are off by {off:.3g}, where the adapter moves them by {effect:.3g}", own, effect)


def _apart(one: float, other: float) -> float:
    return abs(one - other)


def fitted(got: np.ndarray, truth: Arrays, start: float) -> dict[str, float]:
    """The factors whose log-probabilities are nearest to these, by the steps of Gauss and Newton from one start."""
    names = list(truth)
    f = np.full(len(names), start)

    def y(f: np.ndarray) -> np.ndarray:
        return with_adapter(truth, dict(zip(names, f, strict=True))).ravel()

    small = 1e-6
    for _ in range(STEPS):
        here = y(f)
        slopes = np.stack([(y(f + small * row) - here) / small for row in np.eye(len(names))], -1)
        if not np.isfinite(slopes).all():
            break
        step = np.linalg.lstsq(slopes, got.ravel() - here, rcond=None)[0]
        f = f + step / max(1.0, float(np.abs(step).max()))
    return dict(zip(names, f.tolist(), strict=True))


class Merged(NamedTuple):
    """error / bound: of merged weights, and of the share, whose rounding errors are independent.

    Of ΔW: the share ⟨W' − W, ΔW⟩ / ‖ΔW‖² that is left in W', and what rounding adds to it, ‖W' − W − ΔW‖ / ‖ΔW‖. Both again
    for the exact W + ΔW, rounded once."""

    ratio: float
    share_ratio: float
    share: float
    added: float
    best_share: float
    best_added: float


def of_checkpoint(folder: Path, dtype: str) -> Merged:
    """Compares the checkpoint in the folder with W + ΔW. A weight may be off by what rounding after every step does to it.
    Raises ValueError for a weight that is not there, or in another dtype."""
    held, _ = container.read(str(folder / "model.safetensors"))
    W, ratios, found, deltas, widths = merging.base(dtype), [], [], [], []
    for module in merging.targets():
        name = f"{module}.weight"
        stored = held.array(name) if name in held.tensors else np.empty(0)
        if stored.dtype != W[name].dtype:
            raise ValueError(f"{name} is {stored.dtype if stored.size else 'not there'}, expected {dtype}")
        A, B = (factor.astype(np.float64) for factor in merging.factors(module))
        before, after, delta = W[name].astype(np.float64), stored.astype(np.float64), merging.SCALE * (B @ A)
        once = (before + delta).astype(W[name].dtype).astype(np.float64)
        bound = bounds.merge(before, LoRA(A.T, B.T), merging.SCALE, dtype)
        ratios.append(compare.largest_ratio(after - (before + delta), bound))
        found.append(np.stack([after - before, once - before]).reshape(2, -1))
        deltas.append(delta.ravel())
        widths.append(2 * (bound * np.abs(delta)).ravel())
    moved, delta = np.concatenate(found, -1), np.concatenate(deltas)
    try:
        share_ratio = compare.expect_mean(
            float((moved[0] * delta).sum()), float((delta**2).sum()), np.concatenate(widths), "the share of ΔW")
    except compare.Mismatch as error:
        share_ratio = error.ratio or math.inf
    (share, best_share), norm = (moved * delta).sum(-1) / (delta**2).sum(), np.linalg.norm(delta)
    added, best_added = np.linalg.norm(moved - delta, axis=-1) / norm
    return Merged(max(ratios), share_ratio, float(share), float(added), float(best_share), float(best_added))
