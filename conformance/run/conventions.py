"""Finds out by experiment what an implementation has chosen where it is free to choose: layout, scale, initialisation, place of
the dropout, merging, number formats. Also how an adapter of one implementation becomes an adapter of another.

Each probe asks a layer and says in words what it saw. A probe that the subject does not offer says "not offered". A probe that
breaks says "no answer: …".
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from conformance.record.trace import SubjectError, Traced, refuses
from conformance.requirements.helpers.layers import set_mode
from conformance.requirements.init import random_factor
from conformance.subject import Layer, LayerConfig, Subject, Unsupported
from conformance.truth.case import DTYPES
from conformance.truth.compare import Mismatch, expect_equal, expect_same_spread, wide
from conformance.truth.rules import SCALES

NOT_OFFERED = "not offered"
SPREADS: dict[str, Callable[[int, int], float]] = {  # standard deviations in use, from the inputs and the rank
    "1 / √(3 in)": lambda n, r: (3 * n) ** -0.5, "√(2 / in)": lambda n, r: (2 / n) ** 0.5, "1 / √in": lambda n, r: n**-0.5,
    "1 / √(3 rank)": lambda n, r: (3 * r) ** -0.5, "√(2 / rank)": lambda n, r: (2 / r) ** 0.5,
    "1 / √rank": lambda n, r: r**-0.5, "1 / rank": lambda n, r: 1 / r, "0.01": lambda n, r: 0.01, "0.02": lambda n, r: 0.02,
    "1": lambda n, r: 1.0,
}
EXTENTS = {"uniform": 3**0.5, "normal, cut at 2 σ": 2 / 0.8796, "normal": 4.0}  # largest / standard deviation, of many draws


def conventions(subject: Subject) -> dict[str, str]:
    """The name of each probe → what it found."""
    return {name: _answer(probe, subject) for name, probe in PROBES.items()}


def _answer(probe: Callable[[Subject], str], subject: Subject) -> str:
    try:
        with np.errstate(all="ignore"):
            return probe(Traced(subject))
    except Unsupported:
        return NOT_OFFERED
    except (SubjectError, Mismatch) as error:
        return f"no answer: {error}"


RANK = 4  # a division by it is exact


def _config(subject: Subject, n_in: int = 7, n_out: int = 5, rank: int = RANK, **more) -> LayerConfig:
    """A configuration with a scale that the implementation has. All sizes differ, so that a shape identifies its axes."""
    return LayerConfig(n_in, n_out, rank, **{"alpha": rank * (_fixed(subject, rank) or 1.0), "bias": False} | more)


def _fixed(subject: Subject, rank: int) -> float | None:
    """The scale of the implementation at this rank, if it cannot be chosen."""
    return subject.scale if subject.alpha is None else subject.alpha / rank


def _fixed_words(subject: Subject) -> str:
    return f"{subject.scale:g}" if subject.alpha is None else f"{subject.alpha:g} / rank"


def _built(subject: Subject, config: LayerConfig, W: np.ndarray | None = None) -> Layer:
    """A layer around W, or around zeros. It has a bias of zeros if the subject has no layers without a bias."""
    if W is None:
        W = np.zeros((config.out_features, config.in_features), DTYPES[config.dtype])
    try:
        return subject.build(config, W, None)
    except Unsupported:
        return subject.build(replace(config, bias=True), W, np.zeros(len(W), W.dtype))


# --- probes: what each implementation has chosen ---------------------------------------------------------------


def layout(subject: Subject) -> str:
    stored = Stored.of(_built(subject, _config(subject)))
    return f"{stored.A} ({', '.join(stored.axes_of_A)}), {stored.B} ({', '.join(stored.axes_of_B)})"


def scale_rule(subject: Subject, scaling: str = "standard") -> str:
    """Reads the scale off the output of a layer with W = 0 and with identities, cut to shape, as factors."""
    found, seen = list(SCALES), []
    for alpha, rank in ((1.0, 1), (8.0, 2), (3.0, 4), (5.0, 7)):
        fixed = _fixed(subject, rank)
        alpha = alpha if fixed is None else fixed * rank
        layer = _built(subject, _config(subject, 9, 8, rank, alpha=alpha, scaling=scaling))
        layer.set_adapter({"A": np.eye(9, rank, dtype=np.float32), "B": np.eye(rank, 8, dtype=np.float32)})
        set_mode(layer, False)
        scale = f"{float(layer.forward(np.eye(9, dtype=np.float32)[:1])[0, 0]):.5g}"
        found = [name for name in found if scale == f"{SCALES[name](alpha, rank):.5g}"]
        seen.append(f"{scale} for alpha {alpha:g}, rank {rank}")
    if fixed is not None:
        return f"always {_fixed_words(subject)}: there is no alpha"
    if subject.scale_argument and scaling == "standard":
        return f"{subject.scale_argument}, an argument that is the scale itself: there is no alpha"
    return found[0] if found else "; ".join(seen)


def rank_stabilised(subject: Subject) -> str:
    return scale_rule(subject, "rslora")


def zero_factor(subject: Subject) -> str:
    arrays = _built(subject, _config(subject)).adapter()
    zero = [name for name in ("A", "B") if not wide(arrays[name]).any()]
    return f"{zero[0]} is zero" if len(zero) == 1 else "neither is zero" if not zero else "both are zero"


def random_factor_law(subject: Subject) -> str:
    draws = []
    for n_in, rank in ((768, 8), (768, 32), (192, 32)):
        layer = _built(subject, _config(subject, n_in, 160, rank))
        factor = np.asarray(random_factor(layer), np.float64)
        draws.append((n_in if factor.shape == (n_in, rank) else 160, rank, factor))
    extent = max(float(np.abs(factor).max() / factor.std()) for *_, factor in draws)
    law = min(EXTENTS, key=lambda name: abs(np.log(extent / EXTENTS[name])))
    rng = np.random.default_rng(0)
    for name, spread in SPREADS.items():
        try:
            for n, rank, factor in draws:
                expect_same_spread(factor, spread(n, rank) * rng.standard_normal(factor.shape), name)
        except Mismatch:
            continue
        return f"{law}, standard deviation {name}"
    seen = ", ".join(f"{factor.std():.3g} for {n} inputs and rank {rank}" for n, rank, factor in draws)
    return f"{law}, standard deviation {seen}"


def dropout_site(subject: Subject) -> str:
    """A holds powers of two in its two columns, and B holds 1 and 64. The sums that come out then show what was dropped."""
    layer = _built(subject, _config(subject, 8, 6, 2, dropout=0.5))
    A, B = np.zeros((8, 2), np.float32), np.ones((2, 6), np.float32)
    A[:4, 0] = A[4:, 1] = 1, 2, 4, 8
    B[1] = 64
    layer.set_adapter({"A": A, "B": B})
    set_mode(layer, True)
    y = np.stack([wide(layer.forward(np.ones((8, 8), np.float32))) for _ in range(8)]).reshape(-1, 6) / 2
    if (y != y[:, :1]).any():
        return "on the output of B" if set(y.ravel()) <= {0, 975} else "on the delta, scale · A B"
    if not (y != y[0]).any():
        return "nothing is dropped"
    return "on h, between A and B" if set(y[:, 0] % 64) <= {0, 15} else "on x, before A"


def merging(subject: Subject) -> str:
    layer = _probed(subject)
    before = wide(layer.weight())
    set_mode(layer, False)
    at_eval = bool((wide(layer.weight()) != before).any())
    set_mode(layer, True)
    layer.merge()
    moved = "adds to W" if (wide(layer.weight()) != before).any() else "leaves W alone"
    return f"{moved}{', and so does eval()' if at_eval else ''}"


def merging_twice(subject: Subject) -> str:
    layer = _probed(subject)
    layer.merge()
    once = wide(layer.weight())
    if refuses(layer.merge):
        return "refused"
    return "changes nothing" if (wide(layer.weight()) == once).all() else "adds again"


def unmerging(subject: Subject) -> str:
    layer = _probed(subject)
    before = wide(layer.weight())
    layer.merge()
    layer.unmerge()
    back = (wide(layer.weight()) == before).all()
    return "gives back the very bits" if back else "subtracts: the last bits differ"


def trained(subject: Subject) -> str:
    names = ", ".join(_built(subject, _config(subject)).trainable()) or "nothing"
    return f"{names}{subject.freezes and f' (frozen by {subject.freezes})'}"


def number_formats(subject: Subject) -> str:
    found = []
    for dtype in DTYPES:
        try:
            layer = _built(subject, _config(subject, dtype=dtype))
            factors = {array.dtype.name for array in layer.adapter().values()}
            found.append(dtype if factors == {dtype} else f"{dtype} with factors in {' and '.join(sorted(factors))}")
        except Unsupported:
            pass
        except SubjectError as error:
            found.append(f"{dtype} raises {type(error.error).__name__}")
    return ", ".join(found) or NOT_OFFERED


def rank_zero(subject: Subject, rank: int = 0) -> str:
    config, W = replace(_config(subject), rank=rank, bias=True), np.ones((5, 7), np.float32)
    try:
        y = subject.build(config, W, np.ones(5, np.float32)).forward(np.ones((1, 7), np.float32))
    except SubjectError:
        return "refused"
    return "taken for no adapter" if np.array_equal(y, np.full((1, 5), 8)) else "accepted, and y is not that of the base"


def negative_rank(subject: Subject) -> str:
    return rank_zero(subject, -1)


PROBES: dict[str, Callable[[Subject], str]] = {
    "layout": layout, "scale": scale_rule, "rslora": rank_stabilised, "at the start": zero_factor,
    "the other factor": random_factor_law, "dropout": dropout_site, "trains": trained, "merge": merging,
    "merge again": merging_twice, "unmerge": unmerging, "number formats": number_formats, "rank 0": rank_zero,
    "rank −1": negative_rank,
}


def _probed(subject: Subject) -> Layer:
    """A layer of real numbers, with its adapter set, in training mode."""
    rng, config = np.random.default_rng(0), _config(subject, 40, 48, 4)
    W, A, B = (rng.standard_normal(shape).astype(np.float32) for shape in ((48, 40), (40, 4), (4, 48)))
    layer = _built(subject, config, W)
    set_mode(layer, True)
    layer.set_adapter({"A": A, "B": B})
    return layer


# --- converting an adapter ----------------------------------------------------------------------------------------


class Stored(NamedTuple):
    """The names under which an implementation stores A and B, and the order of their axes."""

    A: str
    B: str
    axes_of_A: tuple[str, str]
    axes_of_B: tuple[str, str]

    @classmethod
    def of(cls, layer: Layer) -> "Stored":
        """Reads them off a layer with the sizes of _config. Raises Unsupported if A and B are not stored as two matrices."""
        stored, arrays = layer.stored(), layer.adapter()
        if len(stored) != 2:
            raise Unsupported("two arrays")
        axes: list[tuple[str, str]] = []
        for (name, found), (factor, (first, last)) in zip(stored.items(), {"A": ("in", "rank"), "B": ("rank", "out")}.items(),
                                                          strict=True):
            turned = found.shape != arrays[factor].shape
            expect_equal(found.T if turned else found, arrays[factor], f"{name}, as it is stored")
            axes.append((last, first) if turned else (first, last))
        A, B = stored
        return cls(A, B, *axes)


def conversion(source: Subject, target: Subject) -> list[str]:
    """How an adapter of `source` becomes an adapter of `target`, in words. It is tried: both must compute the same bits."""
    source, target = Traced(source), Traced(target)
    has, wants = _fixed(source, RANK), _fixed(target, RANK)
    scale = 2.0 if has is None else has  # of the source; 2 if it can be chosen
    configs = _config(source, alpha=RANK * scale), _config(target, alpha=RANK * (scale if wants is None else wants))
    layers = [_built(subject, config) for subject, config in zip((source, target), configs, strict=True)]
    theirs, ours = map(Stored.of, layers)
    factor = 1.0 if wants is None else scale / wants
    A, B = (np.arange(n * m, dtype=np.float32).reshape(n, m) - 7 for n, m in ((7, RANK), (RANK, 5)))
    layers[0].set_adapter({"A": A, "B": B})
    layers[1].set_adapter({"A": A, "B": np.float32(factor) * B})
    for layer in layers:
        set_mode(layer, False)
    x = np.eye(7, dtype=np.float32)
    expect_equal(layers[1].forward(x), layers[0].forward(x), "y of the converted adapter")
    lines = []
    for name, before, after in (("A", theirs.axes_of_A, ours.axes_of_A), ("B", theirs.axes_of_B, ours.axes_of_B)):
        turned = "as it is" if before == after else "transposed"
        lines.append(f"{getattr(ours, name)} ({', '.join(after)}) = {getattr(theirs, name)} ({', '.join(before)}), {turned}")
    if has is None and wants is None:
        lines.append(_chosen(source, target))
    elif wants is None:
        rule = f"{source.alpha:g}" if source.alpha is not None else f"{has:g} · rank"
        rule = _fixed_words(source) if target.scale_argument else rule
        name = target.scale_argument or "alpha"
        lines.append(f"{name}: {rule}, since {source.name} has a fixed scale of {_fixed_words(source)}")
    elif has is None:
        divisor = _fixed_words(target) if target.alpha is None else f"({_fixed_words(target)})"
        lines.append(f"{ours.B}: times the scale of {source.name} / {divisor}, since {target.name} has no alpha")
    elif _fixed_words(source) != _fixed_words(target):
        by = f"({_fixed_words(source)}) / ({_fixed_words(target)})" if source.alpha or target.alpha else f"{factor:g}"
        lines.append(f"{ours.B}: times {by}, the quotient of the fixed scales")
    return lines


def _chosen(source: Subject, target: Subject) -> str:
    """How the choice of the scale becomes one of the target, where both have a choice."""
    if source.scale_argument and target.scale_argument:
        return f"{target.scale_argument}: the {source.scale_argument} of {source.name}"
    if source.scale_argument:
        return f"alpha: {source.scale_argument} · rank, since {source.scale_argument} of {source.name} is the scale itself"
    if target.scale_argument:
        return f"{target.scale_argument}: the scale of {source.name}, since {target.scale_argument} is the scale itself"
    return "alpha: the same, and the same rule of the scale"
