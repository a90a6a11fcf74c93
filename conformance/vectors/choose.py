"""Draws the numbers of each vector.

They come from the seed and the id of the vector, so that a vector stays what it is when others are added.
"""

import hashlib
from collections import Counter
from typing import Any, NamedTuple

import numpy as np

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
from conformance.vectors.families import FAMILIES, HALF, SQUARE, Family
from conformance.vectors.vector import Vector, settings_of

TRIES = 3000  # draws of one case; few of them are exact in a half format
GIVEN = {"forward": "W b A B x", "backward": "W b A B x dy", "merge": "W b A B", "fresh": "W b x",
         "dropout": "W b A B x dy mask", "several": "W b A B x", "sequence": "W b A B x dy",
         "refused": "W b A B x dy", "parameters": "W b"}


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
