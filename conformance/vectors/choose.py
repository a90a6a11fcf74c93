"""Which vectors there are. Each family is about one requirement, and has cases of chosen levels of `conformance.truth.space`.

The numbers come from the seed and the id of the vector, so that a vector stays what it is when others are added.
"""

import hashlib
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from conformance.requirements.helpers.sequences import RATE
from conformance.subject import LayerConfig
from conformance.truth import lattice
from conformance.truth.case import (
    DTYPES,
    Case,
    FurtherAdapter,
    exact_in_any_order,
    exact_together,
    in_range,
    resolution,
    shows_the_lora_part,
)
from conformance.truth.compare import FAULT_OF_INTEREST
from conformance.truth.space import PLAIN
from conformance.truth.strategies import EXACT_SCALES, WEIGHTS, all_differ, normals
from conformance.vectors.vector import Vector, settings_of

TRIES = 3000  # draws of one case; few of them are exact in a half format
SINGLE, HALF = ("float32", "float64"), ("float16", "bfloat16")
ALL = (*SINGLE, *HALF)
GIVEN = {"forward": "W b A B x", "backward": "W b A B x dy", "merge": "W b A B", "fresh": "W b x",
         "dropout": "W b A B x dy mask", "several": "W b A B x", "sequence": "W b A B x dy",
         "refused": "W b A B x dy", "parameters": "W b"}
TRAIN = ("forward", "backward", "step")
CYCLE = ("merge", "unmerge")


class Family(NamedTuple):
    requirement: str
    operation: str
    formats: tuple[str, ...] = ALL
    count: int = 2  # of vectors, for each format
    levels: dict[str, tuple] = {}
    real: bool = False  # numbers of a normal distribution, judged by bounds
    change: Callable[[Case], Case] = lambda case: case
    asks: tuple[str, ...] = ()  # the answers that count; (): all
    more: dict[str, Any] = {}  # settings beside those of the layer


def base_away(case: Case) -> Case:
    return case.replace(W=0 * case.W, b=None if case.b is None else 0 * case.b)


def empty(case: Case) -> Case:
    return case.replace(x=case.x[:0], dy=case.dy[:0])


def too_wide(case: Case) -> Case:
    return case.replace(x=np.concatenate([case.x, case.x[..., :1]], -1))


def one_not_finite(case: Case) -> Case:
    x = case.x.copy()
    x[0, 0] = np.nan if case.config.seed % 2 else np.inf
    W = np.where(case.W == 0, np.ones_like(case.W), case.W)  # no zeros, since infinity times zero is NaN
    return case.replace(x=x, W=W)


ODD = {"rank": (3, 5, 6, 7), "in": (8, 9), "out": (10, 11)}
ROOT = {"scaling": ("rslora",), "rank": (4,), "in": (5, 7), "out": (6, 9), "scale": ("4", "-1/4")}
SQUARE = {"in": (4,), "out": (4,), "rank": (4,)}
LARGE = {"in": (33, 17), "out": (18, 34), "rank": (2, 8), "rows": (5,)}
FAMILIES = (
    Family("FWD-01", "forward", levels={"leading": (1, 2)}),
    Family("FWD-02", "forward", SINGLE, 3, real=True),
    Family("FWD-03", "forward", levels={"leading": (0,), "rows": (1,)}, count=1),
    Family("FWD-04", "forward", change=empty, count=1),
    Family("FWD-05", "forward", levels={"leading": (3, 4), "rows": (4,)}, count=1),
    Family("FWD-06", "forward", levels={"rank": (1,)}, count=1),
    Family("FWD-07", "forward", SINGLE, 1, {"rank": (8,), "in": (3, 5), "out": (4, 6)}),
    Family("FWD-08", "forward", levels={"bias": (False,)}, count=1),
    Family("FWD-13", "forward", SINGLE, 2, {"rows": (2, 3)}, change=one_not_finite),
    Family("FWD-18", "forward", levels=SQUARE, count=1),
    Family("FWD-19", "forward", SINGLE, 2, LARGE),
    Family("INIT-01", "fresh"),
    Family("GRAD-01", "backward", asks=("dx",)),
    Family("GRAD-02", "backward", asks=("dA",)),
    Family("GRAD-03", "backward", asks=("dB",)),
    Family("GRAD-04", "backward", SINGLE, 3, real=True),
    Family("GRAD-05", "backward", count=1, change=lambda case: case.replace(B=0 * case.B), asks=("dx",)),
    Family("GRAD-05", "backward", count=1, change=lambda case: case.replace(W=0 * case.W), asks=("dx",)),
    Family("GRAD-06", "backward", count=1, change=lambda case: case.replace(B=0 * case.B), asks=("dA", "dB")),
    Family("GRAD-07", "sequence", SINGLE, 1, asks=("dA", "dB"),
           more={"steps": ("forward", "backward", "forward", "backward")}),
    Family("GRAD-07", "sequence", SINGLE, 1, asks=("dA", "dB"),
           more={"steps": ("forward", "backward", "zero_grad", "forward", "backward")}),
    Family("GRAD-14", "backward", SINGLE, 1, {"leading": (0,), "rows": (1,)}),
    Family("GRAD-14", "backward", SINGLE, 1, {"leading": (3, 4), "rows": (4, 6)}),
    Family("GRAD-14", "backward", SINGLE, 1, change=empty, asks=("dx",)),  # no dA is as good as zero
    Family("GRAD-19", "backward", SINGLE, 1, LARGE),
    Family("INPUT-01", "refused", ("float32",), 2, change=too_wide),
    Family("PARAM-01", "parameters", ("float32",), 2),
    Family("PARAM-04", "sequence", SINGLE, 2, asks=("A", "B"), more={"steps": TRAIN, "lr": RATE}),
    Family("SCALE-01", "forward", levels={"rank": (2, 3, 5, 6), "in": (7, 8), "out": (9, 10)}, change=base_away),
    Family("SCALE-02", "forward", SINGLE, 2, ODD, real=True, change=lambda case: base_away(case.replace(alpha=16.0))),
    Family("SCALE-03", "forward", levels=ROOT),
    Family("SCALE-04", "forward", SINGLE, 2, ODD | {"scaling": ("rslora",)}, real=True),
    Family("SCALE-06", "forward", SINGLE, 1, change=lambda case: case.replace(alpha=0.0)),
    Family("SCALE-09", "backward", SINGLE, 1, ROOT),
    Family("SCALE-10", "merge", SINGLE, 1, ROOT),
    Family("SCALE-11", "forward", SINGLE, 1, change=lambda case: case.replace(alpha=-case.config.alpha)),
    Family("SCALE-12", "forward", SINGLE, 1, {"scale": ("far below", "far above")}),
    Family("MERGE-01", "merge"),
    Family("MERGE-02", "merge", SINGLE, 3, real=True),
    Family("MERGE-03", "sequence", count=1, asks=("y",), more={"steps": ("merge",)}),
    Family("MERGE-04", "sequence", ("float32",), 2, real=True, asks=("y",), more={"steps": ("merge",)}),
    Family("MERGE-06", "sequence", count=1, asks=("W", "y"), more={"steps": CYCLE * 2}),
    Family("MERGE-07", "sequence", ("float32",), 2, real=True, asks=("W",), more={"steps": CYCLE}),
    Family("MERGE-10", "sequence", SINGLE, 1, asks=("A", "B", "y"), more={"steps": (*CYCLE, *TRAIN), "lr": RATE}),
    Family("MERGE-15", "merge", levels=SQUARE, count=1),
    Family("DROP-02", "dropout", SINGLE, 2, change=lambda case: case.replace(dropout=0.5, B=0 * case.B), asks=("y",)),
    Family("DROP-04", "dropout", SINGLE, 2, change=lambda case: case.replace(dropout=0.5)),
    Family("DROP-09", "dropout", SINGLE, 1, change=lambda case: case.replace(dropout=0.5, B=0 * case.B), asks=("dx",)),
    Family("STATE-09", "sequence", SINGLE, 2, {"rows": (1, 2), "in": (3, 5), "rank": (2,), "scale": ("4", "-1/4")},
           asks=("y", "A", "B", "W"), more={"steps": (*TRAIN, *CYCLE, "zero_grad", *TRAIN, *CYCLE), "lr": RATE}),
    Family("STATE-12", "sequence", ("float32",), 3, real=True, asks=("y", "A", "B", "W"),
           more={"steps": (*TRAIN, *CYCLE, "zero_grad", *TRAIN), "lr": RATE}),
    Family("DTYPE-03", "forward", ("float16",), 3, real=True),
    Family("DTYPE-04", "forward", ("bfloat16",), 3, real=True),
    Family("DTYPE-05", "backward", HALF, 3, real=True),
    Family("DTYPE-06", "merge", HALF, 3, real=True),
    Family("DTYPE-08", "backward", HALF, 2),
    Family("MULTI-03", "several", SINGLE, 2, asks=("y",)),
    Family("MULTI-08", "several", SINGLE, 2, asks=("W",)),
    Family("MULTI-14", "several", SINGLE, 1, ROOT, asks=("y",)),
    Family("INIT-03", "initial", ("float32",), 1, asks=("zero_factors",)),
    Family("INIT-04", "initial", ("float32",), 1, asks=("mean",)),
    Family("INIT-07", "initial", ("float32",), 1, asks=("log_spread",)),
    Family("ADAPT-02", "adapter", SINGLE, 2, asks=("y",)),
    Family("ADAPT-03", "adapter", SINGLE, 2),
    Family("PTUNE-08", "prompts", SINGLE, 2, asks=("y",)),
    Family("PTUNE-09", "prompts", SINGLE, 2),
    Family("PREFIX-02", "attention", SINGLE, 2, real=True),
    Family("PREFIX-07", "network", SINGLE, 2, real=True, asks=("keys", "values")),
    Family("PREFIX-08", "network", SINGLE, 2, real=True),
)


class Planned(NamedTuple):
    """A vector that is to be made: the place of its family in FAMILIES."""

    id: str
    family: int
    dtype: str


def planned(groups: set[str]) -> list[Planned]:
    """All vectors, or those of some groups. Ids count the vectors of one requirement and one format."""
    counts, found = Counter(), []
    for place, family in enumerate(FAMILIES):
        for dtype in family.formats * family.count:
            key = f"{family.requirement}-{dtype}"
            counts[key] += 1
            found.append(Planned(f"{key}-{counts[key]}", place, dtype))
    return [plan for plan in found if not groups or plan.id.partition("-")[0] in groups]


def vector(plan: Planned, seed: int, attempt: int = 0) -> Vector:
    """The vector without its answers. Another attempt gives other numbers."""
    id, family, dtype = plan.id, FAMILIES[plan.family], plan.dtype
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(f"{seed} {id} {attempt}".encode()).digest()[:8], "big"))
    settings = dict(family.more) | ({"asks": family.asks} if family.operation == "sequence" else {})
    if family.operation == "initial":
        own = {"in_features": 768, "out_features": 64, "rank": 4, "further_rank": 32, "alpha": 8.0}
        return Vector(id, family.requirement, family.operation, dtype, own, {})
    method = {"adapter": _adapter, "prompts": _prompts, "network": _network, "attention": _attention}.get(family.operation)
    if method is not None:
        return Vector(id, family.requirement, family.operation, dtype, *method(dtype, rng))
    case = next(case for case in (_case(family, dtype, rng) for _ in range(TRIES)) if case is not None)
    case = family.change(case)
    arrays: dict[str, np.ndarray | None] = {name: getattr(case, name, None) for name in GIVEN[family.operation].split()}
    if family.operation == "dropout":
        settings["dropout"] = case.config.dropout
        mask = rng.random(case.x.shape) >= case.config.dropout
        arrays["mask"] = (mask / (1 - case.config.dropout)).astype(case.dtype)
    if family.operation == "several":
        settings |= {"further": {other.name: other.alpha for other in case.others}, "weights": case.all_weights}
        arrays |= {f"{other.name}.{name}": getattr(other, name) for other in case.others for name in "AB"}
    given = {name: array for name, array in arrays.items() if array is not None}
    return Vector(id, family.requirement, family.operation, dtype, settings_of(case) | settings, given)


def _case(family: Family, dtype: str, rng: np.random.Generator) -> Case | None:
    """A case of the family's levels. None if it is not exact, or does not show enough."""
    small = {"rows": (2, 3), "in": (3, 4, 5), "out": (2, 4, 5), "rank": (2,), "scale": ("4", "-1/4")} if dtype in HALF else {
        "rows": (2, 3, 4), "in": (3, 5, 7), "out": (4, 6, 9), "rank": (2, 4), "scale": ("4", "9/4", "-1/4")}
    levels = PLAIN | {"format": dtype, "bias": bool(rng.random() < 0.75)}
    for name, among in (small | family.levels).items():
        levels[name] = among[rng.integers(len(among))]
    sizes = [int(levels[name]) for name in ("rows", "in", "out", "rank")]
    if len(set(sizes[1:])) < 3 and family.levels is not SQUARE:
        return None
    if family.real:
        return _real(levels, sizes, dtype, rng)
    case = lattice.build(levels, int(rng.integers(2**31)))
    if not exact_in_any_order(case) or not shows_the_lora_part(case):
        return None
    return _several(case, rng) if family.operation == "several" else case


def _real(levels: dict, sizes: list[int], dtype: str, rng: np.random.Generator) -> Case | None:
    rows, n_in, n_out, rank = sizes
    alpha = rank * (2.75, 0.3, 1.7, 8.0)[rng.integers(4)]
    config = LayerConfig(n_in, n_out, rank, alpha, levels["bias"], dtype, scaling=levels["scaling"])
    case = Case(
        config, W=normals(rng, (n_out, n_in), n_in**-0.5, dtype), b=normals(rng, (n_out,), 1.0, dtype) if config.bias else None,
        A=normals(rng, (n_in, rank), n_in**-0.5, dtype), B=normals(rng, (rank, n_out), rank**-0.5, dtype),
        x=normals(rng, (rows, n_in), 1.0, dtype), dy=normals(rng, (rows, n_out), 1.0, dtype))
    return case if in_range(case) and resolution(case) <= FAULT_OF_INTEREST[dtype] else None


def _several(case: Case, rng: np.random.Generator) -> Case | None:
    config, others = case.config, []
    for name, rank in (("second", 1), ("third", 2 if config.scaling == "standard" else 4)):
        shapes = (config.in_features, rank), (rank, config.out_features)
        A, B = (rng.integers(-2, 3, shape).astype(case.dtype) for shape in shapes)
        alpha = EXACT_SCALES[rng.integers(5)] * (rank if config.scaling == "standard" else rank**0.5)
        others.append(FurtherAdapter(name, A, B, alpha))
    weights = tuple(WEIGHTS[rng.integers(len(WEIGHTS))] for _ in range(3))
    whole = Case(config, case.W, case.b, case.A, case.B, case.x, case.dy, others=tuple(others), weights=weights)
    return whole if exact_together(whole) and all_differ(whole) else None


Method = tuple[dict[str, Any], dict[str, np.ndarray]]  # settings and arrays


def _whole(dtype: str, rng: np.random.Generator, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    return [rng.integers(-3, 4, shape).astype(DTYPES[dtype]) for shape in shapes]


def _adapter(dtype: str, rng: np.random.Generator) -> Method:
    """Whole numbers, and d of odd multiples of a half: so no number comes to the kink of ReLU."""
    x, D, d, U, u, dy = _whole(dtype, rng, (3, 5), (5, 4), (4,), (4, 5), (5,), (3, 5))
    return {"scale": (4.0, -0.5, 0.25)[rng.integers(3)]}, {"x": x, "D": D, "d": d + d.dtype.type(0.5), "U": U, "u": u, "dy": dy}


def _prompts(dtype: str, rng: np.random.Generator) -> Method:
    """As in `_adapter`."""
    E, W1, b1, W2, b2, dy = _whole(dtype, rng, (3, 3), (4, 3), (4,), (5, 4), (5,), (3, 5))
    return {}, {"E": E, "W1": W1, "b1": b1 + b1.dtype.type(0.5), "W2": W2, "b2": b2, "dy": dy}


def _network(dtype: str, rng: np.random.Generator) -> Method:
    layers, length, width, hidden = 2, 3, 4, 5
    shapes = {"E": (length, width), "W1": (hidden, width), "b1": (hidden,), "W2": (2 * layers * width, hidden),
              "b2": (2 * layers * width,), "dkeys": (layers, length, width), "dvalues": (layers, length, width)}
    return {"layers": layers}, {name: normals(rng, shape, 0.5, dtype) for name, shape in shapes.items()}


def _attention(dtype: str, rng: np.random.Generator) -> Method:
    T, length, heads, kv_heads, size = 4, 3, 4, 2, 3
    shapes = {"q": (T, heads * size), "k": (T, kv_heads * size), "v": (T, kv_heads * size),
              "P_k": (length, kv_heads * size), "P_v": (length, kv_heads * size)}
    return {"heads": heads, "kv_heads": kv_heads}, {name: normals(rng, shape, 1.0, dtype) for name, shape in shapes.items()}
