"""What can be wrong in an answer: the effects of planted faults, and where each can show.

An effect changes one answer of a layer that is right otherwise. It computes in float64 with the layer's own arrays:
x (rows, in), dy (rows, out), W (out, in), b (out), A (in, rank), B (rank, out) and the scale s.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from conformance.requirements.helpers.life import can_tell_each_bit
from conformance.run.planted.observed import NEEDS, NEVER_AT, ODD, SEEN_AT
from conformance.subject import Arrays
from conformance.truth.case import DTYPES
from conformance.truth.space import BY_NAME, Level

if TYPE_CHECKING:
    from conformance.run.planted.triggers import Triggered

FEWER = {"float64": 24, "float32": 11, "float16": 8, "bfloat16": 4}  # bits of the next narrower format; of float32: tf32
TILE = 8
# For x, A and B, the levels of "needs" with which it gets no gradient.
WITHHELD = {name: tuple(level for names, level in NEEDS.items() if name in names) for name in "xAB"}
# Where an effect cannot show, by the definition of the space: levels that hide it, under the name of what it changes.
SHOWS: dict[str, dict[str, tuple[Level, ...]]] = {
    "LoRA": {"scale": ("0",)},  # the LoRA part is zero, and so are its gradients and its steps
    "scale": {"scale": ("0", "1")},  # to leave out the scale changes nothing, or the part is zero
    "x": {"needs": WITHHELD["x"]},  # no gradient of x is asked for
    "A": {"needs": WITHHELD["A"], "merged": (True,)},  # no gradient is asked for; a merged layer may withhold it
    # A number in x that is not finite makes all of dB so.
    "B": {"needs": WITHHELD["B"], "merged": (True,), "content": ("NaN", "infinity")},
    "no mask": {"mode": ("dropout",)},  # the effect is computed without a mask
    "merged": {"merged": (True,)},  # then the LoRA part, with its mask and its gradients, is not computed
    "rows": {"rows": (1,), "leading": (0,)},  # another order of one row is the same
    "bias": {"content": ("huge",)},  # it is lost beside such numbers, or may be
    "mask": {"needs": ("nothing",)},  # no backward pass shows it
    "bit": {},  # see Effect.shows
    "written x": {"x lies": ("broadcast",)},  # such an array cannot be written to
    "written dy": {"dy lies": ("broadcast", "one token", "one number")},
}


class Effect(NamedTuple):
    """One thing that is wrong: `change` gets the layer and the right answer of the call `at`, and gives the wrong one."""

    name: str
    group: str
    at: str  # the call whose answer it changes; "before backward": it does something else first
    change: Callable[["Triggered", Any], Any]
    needs: dict[str, tuple[Level, ...]] = {}  # levels without which it cannot show
    hidden: tuple[str, ...] = ()  # keys of SHOWS

    @property
    def call(self) -> str:
        """The kind of the call, a key of SEEN_AT."""
        return self.at.split()[-1]

    def shows(self, levels: dict[str, Level]) -> bool:
        """Whether it can show with a trigger of these levels."""
        never = NEVER_AT[self.call]
        if not set(levels) <= set(SEEN_AT[self.call]) or any(levels.get(name, object()) in never[name] for name in never):
            return False
        if any(levels.get(name) not in allowed for name, allowed in self.needs.items()):
            return False
        one_row = levels.get("rows") == 1 or levels.get("leading") == 0
        if one_row and {levels.get("x lies"), levels.get("dy lies")} & {"transposed", "broadcast", "one token"}:
            return False  # one row lies in memory as it does in any array
        if levels.get("mode") == "dropout" and levels.get("content") in ODD:
            return False  # such numbers are tried without dropout
        if "bit" in self.hidden and not can_tell_each_bit(levels):
            return False
        return not any(levels.get(name, object()) in hiding for key in self.hidden for name, hiding in SHOWS[key].items())


def fewer_bits(array: np.ndarray, bits: int) -> np.ndarray:
    """The numbers rounded to so many bits."""
    mantissa, exponent = np.frexp(array.astype(np.float64))
    return np.ldexp(np.rint(np.ldexp(mantissa, bits)), exponent - bits)


def tails(size: int, last_one: bool) -> slice:
    """The last element, or the last tile, whole or not."""
    return slice(size - 1 if last_one else TILE * ((size - 1) // TILE), size)


def in_part(array: np.ndarray, where: Any, other: np.ndarray | float) -> np.ndarray:
    """A copy that has the other's numbers there."""
    changed = array.copy()
    changed[where] = other if np.ndim(other) == 0 else np.asarray(other)[where]
    return changed


def found(change: Callable[["Triggered", np.ndarray], np.ndarray], name: str) -> Callable[["Triggered", Arrays], Arrays]:
    """Changes the gradient of this name, if there is one."""
    return lambda t, gradients: gradients | {name: change(t, gradients[name])} if name in gradients else gradients


EFFECTS: list[Effect] = []


def _add(name: str, group: str, at: str, change: Callable, hidden: str = "", **needs: tuple[Level, ...]) -> None:
    named = {factor.replace("_", " ").strip(): levels for factor, levels in needs.items()}
    EFFECTS.append(Effect(name, group, at, change, named, tuple(key for key in hidden.split(", ") if key)))


# --- y -------------------------------------------------------------------------------------------------------------------

LATE, CHANGED = ("two before backward", "x changed in place"), ("stepped", "loaded", "set again")
NOT_PLAIN = tuple(level for level in BY_NAME["x lies"].levels if level != "plain")
_add("y has no LoRA part", "LoRA part", "forward", lambda t, y: t.base, "LoRA")
_add("y has the LoRA part twice", "LoRA part", "forward", lambda t, y: 2 * y - t.base, "LoRA")
_add("y has the LoRA part without scale", "LoRA part", "forward",
     lambda t, y: t.base + t.part(t.x) / (t.s or 1), "scale, no mask")
_add("y has the LoRA part with the scale's absolute value", "LoRA part", "forward",
     lambda t, y: t.base + t.part(t.x) * abs(t.s) / t.s, "no mask", scale=("-1/4",))
_add("y has no bias", "LoRA part", "forward", lambda t, y: y - t.b, "bias", bias=(True,))
_add("y has the base of the rows in reverse order", "LoRA part", "forward", lambda t, y: y - t.base + t.base[::-1], "rows")
_add("y is that of the pass before", "state", "forward",
     lambda t, y: t.y_before if t.y_before is not None and t.y_before.shape == y.shape else y, calls=LATE)
_add("y has the factors before the last change", "state", "forward",
     lambda t, y: t.base + t.s * (t.x @ t.before["A"]) @ t.before["B"], "LoRA, no mask", history=CHANGED)
_add("a NaN in y is 0", "LoRA part", "forward", lambda t, y: np.nan_to_num(y, nan=0.0), content=("NaN",))
_add("an infinity in x counts as a large number", "LoRA part", "forward",
     lambda t, y: t.of(np.nan_to_num(t.x, posinf=3.0, neginf=-3.0)), "no mask", content=("infinity",))
_add("y of a row of zeros is 0", "LoRA part", "forward",
     lambda t, y: in_part(y, ~t.x.any(1), 0.0), content=("zeros",), bias=(True,))
_add("y of a row of zeros is that of the row before", "LoRA part", "forward",
     lambda t, y: in_part(y, ~t.x.any(1), np.roll(y, 1, 0)), "rows", content=("zeros",))
_add("small numbers in x are 0", "LoRA part", "forward", lambda t, y: t.of(0 * t.x), content=("tiny",))
_add("large numbers in x are cut off", "LoRA part", "forward",
     lambda t, y: t.of(np.clip(t.x, -1.0, 1.0) / 2), content=("huge",))

for _last in (True, False):
    _which = "last one" if _last else "last tile"

    def _tail(size: int, last: bool = _last) -> slice:
        return tails(size, last)

    _add(f"y has no LoRA part in the {_which} of the rows", "tail", "forward",
         lambda t, y, tail=_tail: in_part(y, tail(len(y)), t.base), "LoRA")
    _add(f"y is 0 in the {_which} of the rows", "tail", "forward", lambda t, y, tail=_tail: in_part(y, tail(len(y)), 0.0))
    _add(f"y has no LoRA part in the {_which} of the out features", "tail", "forward",
         lambda t, y, tail=_tail: in_part(y.T, tail(y.shape[1]), t.base.T).T, "LoRA")
    _add(f"y is 0 in the {_which} of the out features", "tail", "forward",
         lambda t, y, tail=_tail: in_part(y.T, tail(y.shape[1]), 0.0).T)
    _add(f"the LoRA part of y does without the {_which} of the in features", "tail", "forward",
         lambda t, y, tail=_tail: y - t.part(in_part(0 * t.x.T, tail(t.x.shape[1]), t.x.T).T), "LoRA, no mask")
    _add(f"the base of y does without the {_which} of the in features", "tail", "forward",
         lambda t, y, tail=_tail: y - in_part(0 * t.x.T, tail(t.x.shape[1]), t.x.T).T @ t.W.T)
    _add(f"the LoRA part of y does without the {_which} of the ranks", "tail", "forward",
         lambda t, y, tail=_tail: y - t.s * t.x @ t.A[:, tail(len(t.B))] @ t.B[tail(len(t.B))], "LoRA, no mask")
    _add(f"dx has no LoRA part in the {_which} of the in features", "tail", "backward", found(
         lambda t, g, tail=_tail: in_part(g.T, tail(g.shape[1]), t.dx_base.T).T, "x"), "LoRA, x")
    _add(f"dx is 0 in the {_which} of the rows", "tail", "backward", found(
         lambda t, g, tail=_tail: in_part(g, tail(len(g)), 0.0), "x"), "x")
    _add(f"dA is 0 in the {_which} of the in features", "tail", "backward", found(
         lambda t, g, tail=_tail: in_part(g, tail(len(g)), 0.0), "A"), "LoRA, A")
    _add(f"dA is 0 in the {_which} of the ranks", "tail", "backward", found(
         lambda t, g, tail=_tail: in_part(g.T, tail(g.shape[1]), 0.0).T, "A"), "LoRA, A")
    _add(f"dB is 0 in the {_which} of the ranks", "tail", "backward", found(
         lambda t, g, tail=_tail: in_part(g, tail(len(g)), 0.0), "B"), "LoRA, B")
    _add(f"dB is 0 in the {_which} of the out features", "tail", "backward", found(
         lambda t, g, tail=_tail: in_part(g.T, tail(g.shape[1]), 0.0).T, "B"), "LoRA, B")
    for _name in "AB":
        _add(f"d{_name} does without the {_which} of the rows", "tail", "backward", found(
             lambda t, g, tail=_tail, name=_name: g - t.gradient(name, tail(len(t.x))), _name), f"LoRA, {_name}, no mask")
    _add(f"merged W has no LoRA part in the {_which} of the out features", "merging", "merge",
         lambda t, W, tail=_tail: in_part(W, tail(len(W)), t.W), "LoRA", merged=(True,))
    _add(f"merged W has no LoRA part in the {_which} of the in features", "merging", "merge",
         lambda t, W, tail=_tail: in_part(W.T, tail(W.shape[1]), t.W.T).T, "LoRA", merged=(True,))
    _add(f"B is 0 in the {_which} of the ranks after load", "state", "load",
         lambda t, now, tail=_tail: {"B": in_part(now["B"], tail(len(now["B"])), 0.0)}, history=("loaded",))
    _add(f"B is 0 in the {_which} of the ranks after set", "state", "set",
         lambda t, now, tail=_tail: {"B": in_part(now["B"], tail(len(now["B"])), 0.0)})

# --- gradients -----------------------------------------------------------------------------------------------------------

_add("dx has no LoRA part", "gradients", "backward", found(lambda t, g: t.dx_base, "x"), "LoRA, x")
_add("dx has the LoRA part twice", "gradients", "backward", found(lambda t, g: 2 * g - t.dx_base, "x"), "LoRA, x")
_add("dx has the LoRA part without scale", "gradients", "backward",
     found(lambda t, g: t.dx_base + (g - t.dx_base) / (t.s or 1), "x"), "scale, x")
_add("dx has no base part", "gradients", "backward", found(lambda t, g: g - t.dx_base, "x"), "x")
_add("dx is added to the one before", "gradients", "backward",
     lambda t, now: now | {"x": now["x"] + t.found_before["x"]} if {"x"} <= set(now) & set(t.found_before) else now,
     "x", calls=("accumulated",))
for _name in "AB":
    _add(f"d{_name} is 0", "gradients", "backward", found(lambda t, g: 0 * g, _name), f"LoRA, {_name}")
    _add(f"d{_name} is doubled", "gradients", "backward", found(lambda t, g: 2 * g, _name), f"LoRA, {_name}")
    _add(f"d{_name} is without scale", "gradients", "backward", found(lambda t, g: g / (t.s or 1), _name), f"scale, {_name}")
    _add(f"d{_name} is not added to the one before", "gradients", "backward",
         found(lambda t, g, name=_name: g - t.found_before.get(name, 0.0), _name), f"LoRA, {_name}", calls=("accumulated",))
    _add(f"d{_name} is of the x before", "state", "backward",
         found(lambda t, g, name=_name: t.gradient(name, x=t.x_before), _name), f"LoRA, {_name}, no mask", calls=LATE)
    _add(f"d{_name} has the factors before the last change", "state", "backward",
         found(lambda t, g, name=_name: t.gradient(name, factors=t.before), _name), f"LoRA, {_name}, no mask", history=CHANGED)
    _add(f"d{_name} is there though {_name} needs none", "gradients", "backward",
         lambda t, now, name=_name: now | {name: t.gradient(name)}, "LoRA, merged",
         needs=tuple(level for level in WITHHELD[_name] if level != "nothing"))  # then the pass may be refused
    _add(f"{_name} is not loaded", "state", "load", lambda t, now, name=_name: {name: t.before[name]}, history=("loaded",))
    _add(f"{_name} takes no step", "state", "step", lambda t, now, name=_name: {name: t.before[name]}, "LoRA",
         history=("stepped",))
    _add(f"{_name} takes the step twice", "state", "step",
         lambda t, now, name=_name: {name: 2 * now[name] - t.before[name]}, "LoRA", history=("stepped",))
    _add(f"{_name} takes the step backwards", "state", "step",
         lambda t, now, name=_name: {name: 2 * t.before[name] - now[name]}, "LoRA", history=("stepped",))
    _add(f"{_name} is not set again", "state", "set", lambda t, now, name=_name: {name: t.before[name]}, history=("set again",))
    _add(f"{_name} is set with one bit less", "precision", "set",
         lambda t, now, name=_name: {name: fewer_bits(now[name], t.bits - 1)}, content=("many bits",))
_add("the gradients are not set to zero", "state", "zero", lambda t, now: True, "LoRA", history=("stepped",))

# --- dropout -------------------------------------------------------------------------------------------------------------

DROPOUT = ("dropout",)
_add("the mask is drawn anew before backward", "dropout", "before backward", lambda t, now: True, "LoRA, merged, mask",
     mode=DROPOUT)
_add("y has no dropout", "dropout", "forward", lambda t, y: t.base + t.part(t.x), "LoRA, merged", mode=DROPOUT)
_add("y has dropout without 1 / (1 − rate)", "dropout", "forward",
     lambda t, y: t.base + (1 - t.config.dropout) * (y - t.base), "LoRA, merged", mode=DROPOUT)
_add("y has dropout in inference", "dropout", "forward", lambda t, y: y + t.part(t.dropped(t.x) - t.x), "LoRA, merged",
     mode=("inference",), rate=(0.1, 0.5, 0.9))
for _name in "AB":
    _add(f"d{_name} has no dropout", "dropout", "backward",
         found(lambda t, g, name=_name: t.gradient(name), _name), f"LoRA, {_name}", mode=DROPOUT)
_add("dx has no dropout", "dropout", "backward",
     found(lambda t, g: t.dx_base + t.s * t.dy @ t.B.T @ t.A.T, "x"), "LoRA, x, merged", mode=DROPOUT)

# --- precision -----------------------------------------------------------------------------------------------------------

MANY = ("many bits",)


def other_dtype(array: np.ndarray) -> np.ndarray:
    return array.astype(DTYPES["float64" if array.dtype == DTYPES["float32"] else "float32"])


_add("y has another dtype", "precision", "after forward", lambda t, y: other_dtype(y))
_add("dx has another dtype", "precision", "after backward",
     lambda t, now: now | {"x": other_dtype(now["x"])} if "x" in now else now, "x")
_add("y has one bit less", "precision", "forward", lambda t, y: fewer_bits(y, t.bits - 1), "bit", content=MANY)
for _name in ("x", "A", "B"):
    _add(f"d{_name} has one bit less", "precision", "backward",
         found(lambda t, g: fewer_bits(g, t.bits - 1), _name), f"{'' if _name == 'x' else 'LoRA, '}{_name}, bit", content=MANY)
_add("W takes a detour through a narrower format", "precision", "forward",
     lambda t, y: y + t.x @ (fewer_bits(t.W, FEWER[t.config.dtype]) - t.W).T, "bit", content=MANY)
_add("x takes a detour through a narrower format", "precision", "forward",
     lambda t, y: t.of(fewer_bits(t.x, FEWER[t.config.dtype])), "no mask, bit", content=MANY)
for _name in "AB":
    _add(f"{_name} takes a detour through a narrower format", "precision", "forward",
         lambda t, y, name=_name: y - t.part(t.x) + t.part(t.x, fewer_bits(getattr(t, name), FEWER[t.config.dtype]), name),
         "LoRA, no mask, bit", content=MANY)

# --- memory --------------------------------------------------------------------------------------------------------------


def misread(array: np.ndarray) -> np.ndarray:
    """The numbers of an array as code reads them that takes its memory for contiguous: rows as (n, last)."""
    rows = array.astype(np.float64).reshape(-1, array.shape[-1])
    if any(stride < 0 for stride in array.strides):
        return rows[::-1]
    if 0 in array.strides:
        return in_part(rows, slice(1, None), 0.0)
    if sorted(array.strides, reverse=True) != list(array.strides):
        return array.astype(np.float64).ravel("K").reshape(rows.shape)
    return np.roll(rows.reshape(-1), 1).reshape(rows.shape)


_add("x is read as if it were contiguous", "memory", "forward",
     lambda t, y: t.of(misread(t.x_given)), "no mask", x_lies=NOT_PLAIN)
_add("dx is of a dy read as if it were contiguous", "memory", "backward",
     found(lambda t, g: misread(t.dy_given) @ (t.W + t.s * (t.A @ t.B).T), "x"), "x, no mask",
     dy_lies=("transposed", "strided", "broadcast"))
_add("dB is of a dy read as if it were contiguous", "memory", "backward",
     found(lambda t, g: t.gradient("B", dy=misread(t.dy_given)), "B"), "LoRA, B, no mask",
     dy_lies=("transposed", "strided", "broadcast"))


def _write(array: np.ndarray) -> None:
    if array.flags.writeable:
        array[(-1,) * array.ndim] += 1


_add("x is written to", "memory", "forward", lambda t, y: (_write(t.x_given), y)[1], "written x")
_add("dy is written to", "memory", "backward", lambda t, now: (_write(t.dy_given), now)[1], "written dy")

# --- merging -------------------------------------------------------------------------------------------------------------

_add("merge changes nothing", "merging", "merge", lambda t, W: t.W, "LoRA", merged=(True,))
_add("merged W has the LoRA part twice", "merging", "merge", lambda t, W: 2 * W - t.W, "LoRA", merged=(True,))
_add("merged W has the LoRA part without scale", "merging", "merge", lambda t, W: t.W + (t.A @ t.B).T, "scale", merged=(True,))
_add("merged W has the LoRA part with the scale's absolute value", "merging", "merge",
     lambda t, W: t.W + abs(t.s) * (t.A @ t.B).T, merged=(True,), scale=("-1/4",))
_add("merged W has one bit less", "merging", "merge", lambda t, W: fewer_bits(W, t.bits - 1), "bit", merged=(True,),
     content=MANY)
UNMERGED = ("unmerged", "cycled")
_add("W keeps the LoRA part after unmerge", "merging", "unmerge",
     lambda t, W: W + t.s * (t.A @ t.B).T, "LoRA", history=UNMERGED)
_add("W has one bit less after unmerge", "merging", "unmerge",
     lambda t, W: fewer_bits(W, t.bits - 1), history=UNMERGED, content=MANY)

NAMED = {effect.name: effect for effect in EFFECTS}
