"""What recognition found, in words."""

from conformance.drivers.look.actions import Forward
from conformance.drivers.look.arrays import SEEN
from conformance.drivers.look.building import dropouts
from conformance.drivers.look.methods import Methods
from conformance.drivers.look.recognised import Found

AXES = {"W": ("out", "in"), "A": ("in", "rank"), "B": ("rank", "out"), "b": ("out",)}


def told(found: Found, methods: Methods, zero: tuple[str, ...]) -> list[tuple[str, str]]:
    """Rows of a table. `zero` are those of A and B that are zero at the start."""
    rows = [("built as", found.plan.words)]
    rows += [("y is of", found.way)] if found.way else []
    for step in found.plan.then:
        if isinstance(step.call, Forward):
            needed = " and ".join([*step.roles, *step.literals])
            rows.append(("forward", f"needs {needed} besides x. This was given: {step.words}"))
    rows += [(name, _array(found, name, zero)) for name in ("W", "b", "A", "B")]
    rows.append(("bias", "by choice" if len(found.bias) == 2 else "always" if found.bias[0] else "never"))
    rows.append(("rank", "by choice" if found.rank is None else f"always {found.rank}"))
    rule = f"{found.direct}, which is the scale itself" if found.direct else found.rule
    rows.append(("scale", rule or "not found: the LoRA part is no multiple of (x A) B"))
    rows.append(("dropout", _dropout(found)))
    undone = f", undone by {methods.unmerge}" if methods.unmerge else ""
    rows.append(("merging", f"{methods.merge}{undone}" if methods.merge else "none"))
    rows += [("", note) for note in methods.notes]
    rows.append(("freezing", _freezing(found)))
    if also := found.also_trains:
        rows.append(("trains, too", ", ".join(also)))
    if found.places.dimensions:
        rows.append(("x", f"must have {'three' if found.places.dimensions == 3 else 'four'} dimensions"))
    if found.mixed:
        rows.append(("formats", "the LoRA part is computed in float32, over a base of any format"))
    rows += [("not offered", f"{dtype}: {what}") for dtype, what in (found.formats or {}).items() if not found.mixed]
    error = found.places.error
    rows.append(("seen", "; ".join(found.places.seen) or f"nothing: y is not computed. {type(error).__name__}: {error}"))
    missed = [what for what in SEEN if what not in found.places.seen]
    return rows + ([("not seen", "; ".join(missed))] if missed else [])


def _dropout(found: Found) -> str:
    """How the rate of dropout is chosen."""
    if found.plan.offers("dropout"):
        return "by choice"
    places = {f"{type(part).__name__}.{name}" for part, name in dropouts(found.module(found.probe))}
    return f"no argument; {' and '.join(sorted(places))} holds the rate, and is set" if places else "none"


def _freezing(found: Found) -> str:
    """Who freezes those of W and b that train after construction."""
    if not found.base_trains:
        return "the class"
    if found.freezer:
        return f"{found.freezer.removeprefix('.')}()"
    if found.unreached == found.base_trains:
        return f"the class: no gradient reaches {' and '.join(found.unreached)}, though marked as trainable"
    left = " and ".join(found.base_trains)
    if set(found.thawed) - set(found.unreached):
        return f"nobody: the class makes {' and '.join(found.thawed)} train, also where the caller froze it"
    return f"the caller, who gives it {left}" if found.given else f"nobody freezes {left}, which the class makes"


def _array(found: Found, name: str, zero: tuple[str, ...]) -> str:
    if name not in found.places.paths:
        return "none"
    axes = AXES[name][::-1] if name in found.places.transposed else AXES[name]
    trains = name in found.base_trains and name not in found.unreached
    more = ", trains" if trains else ", zero at the start" if name in zero else ""
    return f"{found.places.paths[name]} ({', '.join(axes)}){more}"
