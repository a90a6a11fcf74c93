"""What can be demanded of the answers of a layer with dropout, whose mask nobody knows.

Where a layer drops entries of x, the gradient of x shows the mask: dx = dy W + m ∘ (s (dy Bᵀ) Aᵀ), and m is 0 or 1 / (1 − p).
With the mask every other answer is known. A few entries stay open, since dx does not depend on them, or by less than rounding
does. Whatever they are, they change an answer by no more than a known amount, which then adds to the bound of rounding.
"""

import math
from typing import NamedTuple

import numpy as np

from conformance.truth.case import Case, holds
from conformance.truth.compare import Mismatch, expect, expect_mean, expect_within, repetitions, wide, within
from conformance.truth.lattice import Answers
from lora_ref import lora
from lora_ref.error import bounds

MORE = 2  # roundings on the LoRA path with dropout: that of 1 / (1 − p), and that of its product with x


class Pass(NamedTuple):
    """A forward and a backward pass of a layer: x, dy, y, and dx if it is there."""

    x: np.ndarray
    dy: np.ndarray
    y: np.ndarray
    dx: np.ndarray | None


class Mask(NamedTuple):
    """The mask of a pass: each entry of x (rows, in) was multiplied by `middle` ± `open`."""

    middle: np.ndarray
    open: np.ndarray


def read(dx: np.ndarray, dy: np.ndarray, case: Case) -> Mask:
    """The mask that the gradient of x shows. Raises a Mismatch where no mask of entries of x explains an entry."""
    got, dy, W, A, B = (_rows(a) for a in (dx, dy, case.W, case.A, case.B))
    base, most = dy @ W, 1 / (1 - case.config.dropout)                                         # (rows, in)
    part = most * case.scale * (dy @ B.T) @ A.T
    bound, _ = bounds.backward(dy, np.zeros_like(base), W, lora.LoRA(A, B), most * case.scale, case.config.dtype, more=MORE)
    bound = _of_two(case) * bound
    expect(got.shape == base.shape, "shape of dx", got.shape, base.shape)
    none, whole = within(got, base, bound), within(got, base + part, bound)
    wrong = ~(none | whole)
    if wrong.any():
        place = tuple(np.argwhere(wrong)[0].tolist())
        raise Mismatch(f"dx with dropout, row {place[0]}, column {place[1]}", f"{got[place]:.9g}",
                       f"{base[place]:.9g} or {(base + part)[place]:.9g}")
    return Mask(most * np.where(none & whole, 0.5, whole), most * np.where(none & whole, 0.5, 0.0))


def explain(passes: list[Pass], found: dict[str, np.ndarray], case: Case) -> None:
    """Demands that each y, and dA and dB where they are found, have the masks that dx shows. dA and dB are sums over passes."""
    W, A, B, s = *(_rows(a) for a in (case.W, case.A, case.B)), case.scale
    b = 0.0 if case.b is None else case.b.astype(np.float64)
    p, largest, dtype = lora.LoRA(A, B), s / (1 - case.config.dropout), case.config.dtype
    wants, errs = [], []
    for one in passes:
        assert one.dx is not None
        mask, x, dy = read(one.dx, one.dy, case), _rows(one.x), _rows(one.dy)
        kept, open = x * mask.middle, abs(s) * np.abs(x) * mask.open                           # (rows, in)
        u, h = s * dy @ B.T, s * kept @ A                                                      # (rows, rank)
        bound = bounds.forward(x, W, case.b, p, largest, dtype, more=MORE)
        expect_within(_rows(one.y), x @ W.T + b + h @ B, _of_two(case) * bound + open @ np.abs(A @ B),
                      "y with the mask that dx shows")
        _, bound = bounds.backward(dy, x, W, p, largest, dtype, more=MORE)
        wants.append(lora.LoRA(kept.T @ u, h.T @ dy))
        errs.append(lora.LoRA(bound.A + open.T @ np.abs(dy @ B.T), bound.B + (open @ np.abs(A)).T @ np.abs(dy)))
    added = bounds.total(wants, dtype)
    for name in sorted({"A", "B"} & set(found)):
        want, err = (sum(getattr(each, name) for each in several) for several in (wants, errs))
        expect_within(found[name], want, _of_two(case) * (err + getattr(added, name)), f"d{name} with the mask that dx shows")


def fits(case: Case, times: int) -> bool:
    """Whether the gradients of A and B of so many passes, added up, stay in the range of the format, whatever the masks are."""
    x, dy, A, B = (np.abs(_rows(a)) for a in (case.x, case.dy, case.A, case.B))
    largest = times * abs(case.scale) / (1 - case.config.dropout)
    return all(holds(case.config.dtype, largest * sums) for sums in (x.T @ (dy @ B.T), (x @ A).T @ dy))


def _rows(array: np.ndarray) -> np.ndarray:
    return wide(array).astype(np.float64).reshape(-1, array.shape[-1])


def _of_two(case: Case) -> int:
    """What a bound is multiplied by. What is expected is computed in float64, and is rounded like an answer in that format."""
    return 2 if case.config.dtype == "float64" else 1


def nothing_seems_dropped(y: np.ndarray, case: Case, true: Answers, drops_x: bool) -> bool:
    """Whether y with dropout is that without it, although dropout may change it: of x, and where the layer may drop at another
    place, of x A or of x A B, some entry counts. Accidents happen: what is kept is doubled, say, and can make up for what is
    dropped. `tries` says how many passes tell."""
    x, A, B = (wide(a).astype(np.float64) for a in (case.x.reshape(-1, case.x.shape[-1]), case.A, case.B))
    places = [x.any(0) & (A @ B).any(1)] + [(x @ A).any(0) & B.any(1), (x @ A @ B).any(0)] * (not drops_x)
    counts = bool(case.scale) and all(bool(place.any()) for place in places)
    return counts and np.array_equal(wide(y), wide(true.y.astype(case.dtype)))


def tries(case: Case, drops_x: bool) -> int:
    """Passes that all look as if nothing was dropped only where nothing is. A number of y is a sum over entries of x, or of
    x A, each of which is dropped or not, and changes it by more than a rounding: see `probability`. An entry of x A B is
    dropped for its column of y alone."""
    rate, (x, A, B) = case.config.dropout, (wide(a) for a in (case.x.reshape(-1, case.x.shape[-1]), case.A, case.B))
    in_h, in_x = _entries(x @ A, B), _entries(x, A @ B)
    found = [probability(int(in_x.max()), rate)]
    if not drops_x:
        found += [probability(int(in_h.max()), rate), max(rate, 1 - rate) ** int(in_h.any(0).sum())]
    return repetitions(max(found))


def _entries(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """For each number of a product how many terms of its sum are not zero."""
    return (left != 0).astype(np.float32) @ (right != 0).astype(np.float32)


MOST_ENTRIES = 500  # more make an accident more seldom yet


def probability(entries: int, rate: float) -> float:
    """An upper bound of the probability of any one value of a sum over so many entries that are dropped at this rate. An entry
    is a fair coin with the probability 2 min(p, 1 − p), and else always the same. A sum of n fair coins has no value with more
    than C(n, n/2) / 2ⁿ (Erdős, Bull. Amer. Math. Soc. 51, 1945)."""
    fair, entries = 2 * min(rate, 1 - rate), min(entries, MOST_ENTRIES)
    return sum(math.comb(entries, n) * fair**n * (1 - fair) ** (entries - n) * math.comb(n, n // 2) / 2.0**n
               for n in range(entries + 1))


def near_its_mean(y: np.ndarray, case: Case, true: Answers, drops_x: bool) -> None:
    """Demands of the LoRA part with dropout that it is, in all, as large as without. Dropout multiplies each entry of x, of
    x A or of x A B by a number between 0 and 1 / (1 − p) with mean 1. The rows of a column count as one draw, since rows may
    share their mask. Where it is not known which of the three is dropped, the widest spread counts."""
    part = true.y - true.base
    x, g = (wide(a).astype(np.float64).reshape(-1, a.shape[-1]) for a in (case.x, part))
    A, B = (wide(a).astype(np.float64) for a in (case.A, case.B))
    h, u = x @ A, g @ B.T                                                                      # (rows, rank)
    places = [x * (u @ A.T)] + [h * u, h @ B * g] * (not drops_x)
    widths = [np.abs(case.scale * terms).sum(0) / (1 - case.config.dropout) for terms in places]
    got = float((part * (wide(y).astype(np.float64) - true.base)).sum())
    expect_mean(got, float(case.scale * places[0].sum()), max(widths, key=lambda width: float((width**2).sum())),
                "the LoRA part with dropout, times that without it")


def of_one_mask(passes: list[Pass], found: dict[str, np.ndarray], case: Case) -> None:
    """Demands ⟨dA, A⟩ = ⟨dB, B⟩ = ⟨LoRA part of dx, x⟩ = ⟨dy, LoRA part of y⟩, added up over the passes: all have the same
    masks."""
    W, b = wide(case.W).astype(np.float64), 0.0 if case.b is None else wide(case.b).astype(np.float64)
    products: dict[str, list[tuple]] = {"dy": [], "dx": [], "dA": [], "dB": []}
    for one in passes:
        x, dy = (wide(a).astype(np.float64) for a in (one.x, one.dy))
        bound = case.replace(x=x / (1 - case.config.dropout), dy=dy).bound
        products["dy"].append((dy, wide(one.y) - (x @ W.T + b), bound.y))
        if one.dx is not None:
            products["dx"].append((x, wide(one.dx) - dy @ W, bound.dx / (1 - case.config.dropout)))
        for name in {"A", "B"} & set(found):
            products[f"d{name}"].append((getattr(case, name), found[name] / len(passes), getattr(bound, f"d{name}")))
    got = {name: sum((wide(a) * wide(d)).sum() for a, d, _ in terms) for name, terms in products.items() if terms}
    off = {name: _of_two(case) * sum(float((np.abs(a.astype(np.float64)) * bound).sum()) for a, _, bound in terms)
           for name, terms in products.items()}
    for name in set(got) - {"dy"}:
        expect_within(got[name], got["dy"], off[name] + off["dy"], f"⟨{name}, {name[1:]}⟩, against ⟨dy, y − base⟩")
