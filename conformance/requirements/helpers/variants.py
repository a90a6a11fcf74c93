"""The same case in other forms (other factors with the same product, other memory layouts), and sizes that groups share."""

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from conformance.truth.case import exact_in_any_order
from conformance.truth.strategies import exact

SQUARE = st.shared(st.integers(2, 4), key="side of a square layer")
LARGE = exact(
    in_features=st.sampled_from((257, 321)), out_features=st.sampled_from((258, 322)),
    rank=st.sampled_from((128, 256)), leading=st.sampled_from([(3,), (67,)]), only=("float32", "float64"),
    scales=(4.0, 0.25), small=True,
)


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
    }
