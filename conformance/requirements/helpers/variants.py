"""The same case in other forms (other factors with the same product, other memory layouts), and sizes that groups share."""

import math

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from conformance.subject import Unsupported
from conformance.truth import lattice
from conformance.truth.case import Case, exact_in_any_order
from conformance.truth.space import PLAIN, Levels
from conformance.truth.strategies import exact

SQUARE = st.shared(st.integers(2, 4), key="side of a square layer")
LARGE = exact(
    in_features=st.sampled_from((257, 321)), out_features=st.sampled_from((258, 322)),
    rank=st.sampled_from((128, 256)), leading=st.sampled_from([(3,), (67,)]), only=("float32", "float64"),
    scales=(4.0, 0.25), small=True,
)


# Round numbers, multiples of many tiles, and the ranks among them.
ROUND = (48, 60, 72, 96, 100, 120, 144, 192, 200, 240, 300, 384, 480, 500, 576, 600, 640, 720, 768, 800, 896, 960, 1000)
ROUNDEST = (1920, 2400)  # of nearly all
WIDE = (264, 288, 300, 320)  # ranks above a block of 256 that are no multiples of it
RANKS = (12, 20, 24, 36, 40, 48, 60, 72, 80, 96, 100, 112, 120)


def large_or_round(dtypes: tuple[str, ...]) -> st.SearchStrategy[Case]:
    """A tenth of the cases are those of LARGE, and a tenth have a rank of WIDE. In the others rows, in or out is a round
    number, or one above or below."""
    formats = [dtype for dtype in ("float32", "float64") if dtype in dtypes]  # whose sums are exact
    if not formats:
        raise Unsupported("float32 or float64")
    around = st.builds(int.__add__, st.sampled_from(ROUND) | st.sampled_from(ROUNDEST), st.sampled_from((0, 0, 0, 0, -1, 1)))
    few, low, above, ranks = st.integers(2, 5), st.integers(4, 9), st.integers(max(RANKS), 131), st.sampled_from(RANKS)
    kinds = ({"rows": around, "in": low, "out": low, "rank": st.integers(1, 4)},  # no rank is above in or out
             {"rows": few, "in": around, "out": above, "rank": ranks}, {"rows": few, "in": above, "out": around, "rank": ranks})
    wide = {"rows": few, "in": st.just(321), "out": st.just(323), "rank": st.sampled_from(WIDE)}
    rest = {"format": st.sampled_from(formats), "bias": st.booleans(), "scale": st.sampled_from(("4", "1/4"))}
    drawn = st.one_of(*(st.fixed_dictionaries(kind | rest) for kind in kinds))
    drawn = drawn.filter(lambda levels: levels["rank"] <= min(levels["in"], levels["out"]))

    def made(levels: st.SearchStrategy[Levels]) -> st.SearchStrategy[Case]:
        built = st.builds(lambda levels, seed: lattice.build(PLAIN | levels, seed), levels, st.integers(0, 2**31))
        return built.filter(exact_in_any_order)

    return st.one_of(LARGE(dtypes), made(st.fixed_dictionaries(wide | rest)), *(made(drawn),) * 8)


def regauged(case):
    """The case with A M and M⁻¹ B, and M (rank, rank). M and M⁻¹ hold integers: M turns signs and adds one rank to another."""
    r = case.config.rank
    M, inverse = -np.eye(r), -np.eye(r)
    if r > 1:
        M[0, 1], inverse[0, 1] = 1, -1  # (−I + E)(−I − E) = I, since E² = 0
    changed = case.replace(A=(case.A.astype(float) @ M).astype(case.dtype),
                           B=(inverse @ case.B.astype(float)).astype(case.dtype))
    assume(exact_in_any_order(changed))
    return changed, M


def layouts(x: np.ndarray) -> dict[str, np.ndarray]:
    """Views of the shape of x (…, k) that do not lie in memory in order. x must have at least two dimensions."""
    reversed_copy = np.ascontiguousarray(x[::-1])[::-1]
    strided = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    strided[..., ::2] = x
    wider = np.zeros((*x.shape[:-1], x.shape[-1] + 3), x.dtype)
    wider[..., : x.shape[-1]] = x
    frozen = x.copy()
    frozen.flags.writeable = False
    return {
        "transposed": np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 0, -1)), -1, 0),
        "strided": strided[..., ::2],
        "cut out": wider[..., : x.shape[-1]],
        "reversed": reversed_copy,
        "Fortran-ordered": np.asfortranarray(x),
        "broadcast": np.broadcast_to(x[:1], x.shape),
        "read-only": frozen,
        "windowed": windows(x),
    }


def windows(x: np.ndarray) -> np.ndarray:
    """Rows of the shape of x (…, k) that overlap in memory: each begins one number after the one before."""
    rows, k = x.size // x.shape[-1], x.shape[-1]
    memory = np.resize(x, rows + k - 1)
    strides = [x.itemsize * math.prod(x.shape[axis + 1 : -1]) for axis in range(x.ndim - 1)]
    return np.lib.stride_tricks.as_strided(memory, x.shape, (*strides, x.itemsize), writeable=False)
