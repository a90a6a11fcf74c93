"""Bad arguments are refused, and the message names the function, what came, what was expected and why."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lora_ref import init, linear, lora, prefix, ptuning
from lora_ref.error.gradcheck import complex_step, relative_error
from lora_ref.lora import LoRA

X, W, BIAS, A, B, DY = (np.zeros(shape) for shape in ((2, 3, 6), (8, 6), 8, (6, 7), (7, 8), (2, 3, 8)))
FOUR = "expected float32, float64, longdouble or complex128"


def zeros(*shape: int, dtype: Any = float) -> np.ndarray:
    return np.zeros(shape, dtype)


def forward(**other: Any) -> Any:
    a = {"x": X, "W": W, "b": BIAS, "A": A, "B": B, "scale": 2.0, "mask": np.ones_like(X)} | other
    return lora.forward(a["x"], a["W"], a["b"], LoRA(a["A"], a["B"]), a["scale"], a["mask"])


def backward(dy: Any) -> Any:
    return lora.backward(dy, forward()[1])


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


PREFIXES = (prefix.init(rng(), 2, 3, 4), prefix.init(rng(), 2, 3, 4, 5, 6))
KEYS = "expected (layers, length, width) = (2, 3, 4) because keys is (2, 3, 4)"
PROMPTS = (ptuning.init(rng(), 3, 4), ptuning.init(rng(), 3, 4, "mlp", 5), ptuning.init(rng(), 3, 4, "lstm", 2))
REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: forward(A=zeros(4, 7)), "lora.forward: A is (4, 7), expected (in, rank) = (6, rank) because x is (…, 6)"),
    (lambda: forward(A=zeros(6)), "lora.forward: A is (6), expected (in, rank) = (6, rank) because x is (…, 6)"),
    (
        lambda: forward(B=zeros(3, 5)),
        "lora.forward: B is (3, 5), expected (rank, out) = (7, 8) because A is (6, 7) and W is (8, 6)",
    ),
    (lambda: forward(W=zeros(6, 8)), "lora.forward: W is (6, 8), expected (out, in) = (out, 6) because x is (…, 6)"),
    (lambda: forward(b=zeros(1)), "lora.forward: b is (1), expected (out) = (8) because W is (8, 6)"),
    (lambda: forward(b=zeros(1, 8)), "lora.forward: b is (1, 8), expected (out) = (8) because W is (8, 6)"),
    (
        lambda: forward(mask=np.ones((3, 6))),
        "lora.forward: mask is (3, 6), expected (…, in) = (2, 3, 6) because x is (2, 3, 6)",
    ),
    (lambda: forward(x=zeros()), "lora.forward: x is (), expected (…, in)"),
    (lambda: forward(x=[[1.0] * 6]), "lora.forward: x is a list, expected a NumPy array"),
    (lambda: forward(W=None), "lora.forward: W is a NoneType, expected a NumPy array"),
    (
        lambda: forward(x=X.astype("float16")),
        f"lora.forward: x is float16, {FOUR} because NumPy would accumulate in half precision",
    ),
    (
        lambda: forward(x=X.astype(int)),
        f"lora.forward: x is int64, {FOUR} because every step is done in the arguments' own dtype",
    ),
    (lambda: forward(W=W.astype("f")), "lora.forward: W is float32, expected float64 because x is float64"),
    (lambda: forward(mask=X == 0), "lora.forward: mask is bool, expected float64 because x is float64"),
    *(
        (
            lambda s=s: forward(scale=s),
            f"lora.forward: scale is {s!r}, expected a real number that is finite in float64",
        )
        for s in (np.nan, np.inf, -np.inf, 10**400, np.longdouble(10) ** 4000, "2", None, 1j, np.array(2.0))
    ),
    (
        lambda: lora.merge(W.astype("f"), None, LoRA(A.astype("f"), B.astype("f")), 1e39),
        "lora.merge: scale is 1e+39, expected a real number that is finite in float32",
    ),
    (
        lambda: backward(zeros(2, 8)),
        "lora.backward: dy is (2, 8), expected (…, out) = (2, 3, 8) because x is (2, 3, 6) and W is (8, 6)",
    ),
    (lambda: backward(DY.astype("f")), "lora.backward: dy is float32, expected float64 because x is float64"),
    (
        lambda: lora.merge(W, BIAS, LoRA(zeros(5, 7), B), 1.0),
        "lora.merge: A is (5, 7), expected (in, rank) = (6, rank) because W is (8, 6)",
    ),
    (
        lambda: lora.merge(W, zeros(7), LoRA(A, B), 1.0),
        "lora.merge: b is (7), expected (out) = (8) because W is (8, 6)",
    ),
    (
        lambda: lora.merge(W, BIAS, LoRA(A, B), np.nan),
        "lora.merge: scale is nan, expected a real number that is finite in float64",
    ),
    (
        lambda: linear.forward(X, zeros(8, 5), None),
        "linear.forward: W is (8, 5), expected (out, in) = (out, 6) because x is (…, 6)",
    ),
    (
        lambda: linear.backward(X, linear.Cache(W)),
        "linear.backward: dy is (2, 3, 6), expected (…, out) = (…, 8) because W is (8, 6)",
    ),
    *(
        (lambda p=p, d=d: prefix.backward(prefix.Prefix._make(d), prefix.forward(p, 2)[1]), f"prefix.backward: {message}")
        for p in PREFIXES for d, message in (
            ((zeros(2, 3, 5), zeros(2, 3, 4)), f"dkeys is (2, 3, 5), {KEYS}"),
            ((zeros(2, 3, 4), zeros(3, 2, 4)), f"dvalues is (3, 2, 4), {KEYS}"),
            ((zeros(3, 4), zeros(3, 4)), f"dkeys is (3, 4), {KEYS}"),
            ((zeros(2, 3, 4), zeros(48)), f"dvalues is (48), {KEYS}"),
            ((zeros(2, 3, 4).astype("f"), zeros(2, 3, 4)), "dkeys is float32, expected float64 because keys is float64"),
            ((zeros(2, 3, 4), None), "dvalues is a NoneType, expected a NumPy array"),
        )
    ),
    *(
        (lambda p=p, d=d: ptuning.backward(d, ptuning.forward(p)[1]), f"ptuning.backward: dprompts is {got} because {why}")
        for p, why in zip(PROMPTS, ("embedding is (3, 4)", *["embedding is (3, 4) and W2 is (4, {})"] * 2), strict=True)
        for why in [why.format(getattr(p, "W2", zeros(4, 1)).shape[1])] for d, got in (
            (zeros(3, 5), "(3, 5), expected (n, width) = (3, 4)"),
            (zeros(1, 4), "(1, 4), expected (n, width) = (3, 4)"),
            (zeros(1, 3, 4), "(1, 3, 4), expected (n, width) = (3, 4)"),
        )
    ),
    (
        lambda: ptuning.backward(zeros(3, 4).astype("f"), ptuning.forward(PROMPTS[2])[1]),
        "ptuning.backward: dprompts is float32, expected float64 because embedding is float64",
    ),
    (lambda: lora.scale(np.inf, 2), "lora.scale: alpha is inf, expected a real number that is finite in float64"),
    (
        lambda: lora.scale(1, 2, "Standard"),
        "lora.scale: scaling is 'Standard', expected 'standard' (alpha / rank) or 'rslora' (alpha / √rank)",
    ),
    *(
        (
            lambda rate=rate: lora.dropout_mask(rng(), (2, 2), rate),
            f"lora.dropout_mask: rate is {rate!r}, expected 0 ≤ rate < 1 because what is kept is divided by 1 − rate",
        )
        for rate in (-0.1, 1, 1.5)
    ),
    (
        lambda: lora.dropout_mask(rng(), (2, 2), np.nan),
        "lora.dropout_mask: rate is nan, expected a real number that is finite in float64",
    ),
    (
        lambda: lora.dropout_mask(rng(), (2, 2), 0.5, "float16"),
        f"lora.dropout_mask: dtype is float16, {FOUR} because NumPy would accumulate in half precision",
    ),
    (
        lambda: lora.init(rng(), 3, 4, 2, "int64"),
        f"lora.init: dtype is int64, {FOUR} because every step is done in the arguments' own dtype",
    ),
    *(
        (
            lambda make=make: make(rng(), 3, 2, "float16"),
            f"init.{make.__name__}: dtype is float16, {FOUR} because NumPy would accumulate in half precision",
        )
        for make in (init.gaussian, init.kaiming_uniform, init.kaiming_rank)
    ),
    (
        lambda: complex_step(lambda a: a[0], [zeros(2)], zeros(2)),
        "gradcheck.complex_step: f returns complex128 (), expected complex128 (2,) because dy is (2,)",
    ),
    (
        lambda: complex_step(lambda a: a.real, [zeros(2)], zeros(2)),
        "gradcheck.complex_step: f returns float64 (2,), expected complex128 (2,) because dy is (2,)",
    ),
    (
        lambda: relative_error(zeros(2), zeros(1, 2), zeros(2)),
        "gradcheck.relative_error: got is (2,), want is (1, 2), terms is (2,), expected one shape",
    ),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=range(len(REFUSED)))
def test_it_is_refused_in_these_words(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value) == message


@pytest.mark.parametrize("size", [0, -1, 2.5, 2.0, True, "2", None, np.float64(2)], ids=repr)
def test_a_size_that_is_no_positive_integer_is_refused(size: Any) -> None:
    expected = f"is {size!r}, expected an integer of at least 1 because it is an axis' size"
    for where, call in {
        "lora.init: in_features": lambda: lora.init(rng(), size, 4, 2),
        "lora.init: out_features": lambda: lora.init(rng(), 3, size, 2),
        "lora.init: rank": lambda: lora.init(rng(), 3, 4, size),
        "lora.parameter_count: in_features": lambda: lora.parameter_count(size, 4, 2),
        "lora.parameter_count: out_features": lambda: lora.parameter_count(3, size, 2),
        "lora.parameter_count: rank": lambda: lora.parameter_count(3, 4, size),
        "lora.scale: rank": lambda: lora.scale(1, size),
        "init.gaussian: in_features": lambda: init.gaussian(rng(), size, 2),
        "init.kaiming_uniform: rank": lambda: init.kaiming_uniform(rng(), 3, size),
        "init.kaiming_rank: rank": lambda: init.kaiming_rank(rng(), 3, size),
    }.items():
        with pytest.raises(ValueError) as error:
            call()
        assert str(error.value) == f"{where} {expected}"
