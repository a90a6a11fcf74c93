"""lora_ref.error.noise: its deviations are those of rounding errors, its error of a sum is that of the theory, and the runs
that it makes together give the same as runs one after the other.

ALARM is the probability with which a test of random numbers fails though all is right. Errors are sums of normal numbers, to
first order in the unit, so the sum of the squares of n of them, over the variance, has the χ² distribution of n degrees of
freedom: outside [n − 2√(nx), n + 2√(nx) + 2x] with a probability of at most 2 e⁻ˣ (Laurent and Massart, "Adaptive Estimation of
a Quadratic Functional by Model Selection", 2000, lemma 1).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from small_models import CONFIGS, METHODS, run, trial

from lora_ref import ops
from lora_ref.error import noise

UNIT = 2.0**-24
ALARM = 1e-10


class Sequential(np.ndarray):
    """Noisy arithmetic of a single run, to compare with."""

    unit: float
    rng: np.random.Generator

    def __array_finalize__(self, obj: Any) -> None:
        self.unit, self.rng = getattr(obj, "unit", 0.0), getattr(obj, "rng", None)  # type: ignore[assignment]

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **kwargs: Any) -> Any:
        one = next(a for a in (*inputs, *(out or ())) if isinstance(a, Sequential))
        plain = [np.asarray(a) if isinstance(a, Sequential) else a for a in inputs]
        if method == "at":  # one addition after another, each rounded
            place, index, values = inputs
            for i, value in zip(index, values, strict=True):
                place[i] = place[i] + value
            return None
        y = getattr(ufunc, method)(*plain, **kwargs)
        if ufunc in (np.greater, np.maximum, np.negative):
            return y if np.asarray(y).dtype == bool else sequential(y, one.unit, one.rng)
        size, terms = np.abs(y), 1
        if ufunc is np.matmul:
            size, terms = np.matmul(*map(np.abs, plain)), np.shape(plain[0])[-1]
        elif method != "__call__":
            size = getattr(ufunc, method)(np.abs(plain[0]), *plain[1:], **kwargs)
            terms = np.size(plain[0]) // max(np.size(y), 1)
        xi = one.rng.standard_normal(np.shape(y))
        error = noise.ROUNDINGS * one.unit * max(terms, 1) ** 0.5 * np.where(np.isfinite(size), size, 0) * xi
        made = sequential(y + error, one.unit, one.rng)
        if out is None:
            return made
        out[0][...] = made
        return out[0]

    def __array_function__(self, func: Callable, types: Any, args: Any, kwargs: Any) -> Any:
        if func is np.einsum:
            _, a, b = args
            return np.matmul(a[..., None, :], b[..., None])[..., 0, 0]
        return super().__array_function__(func, types, args, kwargs)  # pyright: ignore[reportAttributeAccessIssue]


def sequential(a: Any, unit: float, rng: np.random.Generator) -> Sequential:
    made = np.asarray(a).view(Sequential)
    made.unit, made.rng = unit, rng
    return made


def one_after_the_other(f: noise.Program, arrays: dict[str, np.ndarray], unit: float, seed: int) -> dict[str, np.ndarray]:
    """The answers of RUNS runs of f, made one after the other, in the form of noise.runs."""
    rng = np.random.default_rng(seed)
    wide = {name: np.asarray(a, np.longdouble) for name, a in arrays.items()}
    found = [f({name: sequential(a, unit, rng) for name, a in wide.items()}) for _ in range(noise.RUNS)]
    return {name: np.stack([np.asarray(one[name]) for one in found]) for name in found[0]}


def reach(n: int, tests: int) -> tuple[float, float]:
    """Within which the mean of the squares of n errors of variance 1 is, in all of the tests together."""
    x = np.log(2 * tests / ALARM)
    return 1 - 2 * np.sqrt(x / n), 1 + 2 * np.sqrt(x / n) + 2 * x / n


def expect_same_variance(first: np.ndarray, second: np.ndarray, n: int) -> None:
    """Fails unless two estimates, from n errors each, can be of the same variances. Where one is zero, so is the other."""
    assert ((first == 0) == (second == 0)).all()
    low, high = reach(n, 2 * first.size)
    ratio = first[first > 0] / second[first > 0]
    assert low / high < ratio.min() and ratio.max() < high / low, (ratio.min(), ratio.max(), high / low)


def variance(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.square((found - truth).astype(float)).mean(0)


def test_an_exact_operation_makes_no_error():
    x = np.arange(6.0).reshape(2, 3)
    _, deviation = noise.spread(lambda a: {"y": -a["x"].T[1:].reshape(4)}, {"x": x}, UNIT)
    assert not deviation["y"].any()


@pytest.mark.parametrize("unit", [UNIT, 2.0**-53])
def test_the_error_of_one_product_and_of_a_sum(unit):
    """v |a b|, and v √k Σ |aᵢ bᵢ|: the mean square over thousands of equal numbers is that."""
    n, v = 4000, noise.ROUNDINGS * unit
    row = {"a": np.full((n, 16), -0.25), "b": np.full((16, 1), 1.0), "index": np.zeros((1, n))}
    sums = {
        "product": (lambda g: g["a"][:, 0] * g["b"][0], 0.25),
        "matmul": (lambda g: g["a"] @ g["b"], 4 * 4.0),
        "sum": (lambda g: g["a"].sum(-1), 4 * 4.0),
        "of all but one axis": (lambda g: g["a"].reshape(4, 4, n).sum((0, 1)), 4 * 4.0),
        "einsum": (lambda g: np.einsum("...i,...i->...", g["a"], g["a"]), 4 * 1.0),
        "reduceat": (lambda g: np.add.reduceat(g["a"].T, [0, 4, 8, 12], axis=0), 2 * 1.0),
        "add.at": (lambda g: added_at(g["a"]), 4 * 4.0),
    }
    for name, (f, size) in sums.items():
        truth, deviation = noise.spread(lambda g, f=f: {"y": f(g)}, row, unit)
        low, high = reach(truth["y"].size * noise.RUNS, len(sums))
        assert low < (deviation["y"] ** 2).mean() / (v * size) ** 2 < high, name


def added_at(a: np.ndarray) -> np.ndarray:
    """The sums of the rows of 16."""
    y = np.zeros_like(a, shape=(1, len(a)))
    np.add.at(y, np.zeros(16, int), a.T)
    return y


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mask", [False, True])
def test_without_noise_every_run_is_the_plain_one(config, method, mask):
    """The logits, the loss and all gradients are equal bit for bit."""
    t = trial(config, method, seed=3, dtype=np.longdouble, mask=mask)
    want, found = run(t), noise.runs(lambda arrays: run(t, arrays), t.arrays, 0.0)
    assert list(found) == list(want)
    for name, array in want.items():
        assert found[name].shape == (noise.RUNS, *array.shape) and found[name].dtype == np.longdouble
        assert all(np.array_equal(one, array) for one in found[name]), name


PROGRAMS: dict[str, Callable] = {
    "index": lambda a, b: a[1],
    "slice": lambda a, b: a[:, 1:, ::-1],
    "new axis": lambda a, b: a[..., None, 0],
    "array": lambda a, b: a[np.array([2, 0])],
    "list": lambda a, b: a[:, [2, 0, 1]],
    "rows": lambda a, b: a[:, :, [[0, 3]]],
    "two arrays": lambda a, b: a[:, np.array([1, 2]), np.array([0, 3])],
    "mask": lambda a, b: a[np.eye(3, dtype=bool)],
    "last": lambda a, b: a[..., np.array([0, 0])],
    "integer and array": lambda a, b: a[0, np.array([1, 2])],
    "T": lambda a, b: a.T,
    "swapaxes": lambda a, b: a.swapaxes(-1, 0),
    "transpose": lambda a, b: a.transpose(2, 0, 1),
    "negative": lambda a, b: a.transpose((-1, 0, -2)),
    "moveaxis": lambda a, b: np.moveaxis(a, 0, -1),
    "reshape": lambda a, b: a.reshape(2, -1),
    "reshaped": lambda a, b: a.reshape((9, 4)),
    "ravel": lambda a, b: a.ravel(),
    "sum": lambda a, b: a.sum(),
    "sum 0": lambda a, b: a.sum(0),
    "sum -1": lambda a, b: a.sum(-1, keepdims=True),
    "sum two": lambda a, b: np.sum(a, axis=(0, -1)),
    "max": lambda a, b: a.max(-1, keepdims=True),
    "min": lambda a, b: np.min(a, 1),
    "smaller": lambda a, b: a + b,
    "first smaller": lambda a, b: b[0] * a,
    "scalar": lambda a, b: 1 - a[0, 0, 0] * a,
    "plain larger": lambda a, b: b + np.arange(24.0).reshape(2, 3, 4),
    "plain smaller": lambda a, b: a / np.arange(1.0, 5),
    "matmul": lambda a, b: a @ b.T,
    "stacked": lambda a, b: a @ a.swapaxes(1, 2),
    "broadcast": lambda a, b: b @ a.swapaxes(1, 2),
    "plain first": lambda a, b: np.ones((2, 3)) @ a,
    "vector": lambda a, b: b @ a[0, 0],
    "vector first": lambda a, b: b[:, 0] @ b,
    "outer": lambda a, b: np.outer(a[0, 0], b),
    "concatenate": lambda a, b: np.concatenate([a, b[None], np.ones((1, 3, 4))]),
    "stack": lambda a, b: np.stack([b, b], axis=1),
    "concatenate -1": lambda a, b: np.concatenate([a, a], axis=-1),
    "split": lambda a, b: np.split(a, [1, 3], axis=-1)[1],
    "where": lambda a, b: np.where(a > b, a, 0),
    "where plain": lambda a, b: np.where(np.eye(4)[:3] > 0, b, a[0, 0]),
    "broadcast_to": lambda a, b: np.broadcast_to(b, (5, 3, 4)),
    "expand_dims": lambda a, b: np.expand_dims(b, 1),
    "take_along_axis": lambda a, b: np.take_along_axis(a, np.array([[[3], [0], [1]]] * 3), -1),
    "real": lambda a, b: np.real(a),
    "astype": lambda a, b: a.astype(np.float64),
    "copy": lambda a, b: np.abs(a.copy()),
    "iterated": lambda a, b: sum(row * i for i, row in enumerate(a)),
    "relu": lambda a, b: a * (a > 0),
    "zeros_like": lambda a, b: np.zeros_like(a, shape=(2, 3)) + b[0, 0],
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_axis_is_mixed_up(program):
    """Each run has numbers of its own, and what comes of them is what the plain program makes of these."""
    rng, f = np.random.default_rng(0), PROGRAMS[program]
    a, b = rng.standard_normal((noise.RUNS, 3, 3, 4)), rng.standard_normal((noise.RUNS, 3, 4))
    exact = noise.Noise(0.0, 0)
    y = f(noise._noisy(a, exact), noise._noisy(b, exact))
    for i in range(noise.RUNS):
        want = np.asarray(f(a[i], b[i]))
        assert (y.shape, y.dtype) == (want.shape, want.dtype)
        assert np.array_equal(y.runs[i], want)


def put(a: np.ndarray, b: np.ndarray) -> None:
    a[0], a[1:, :, 2], a[2, [0, 2]] = b, b[:, 0], b[0]
    a[..., 0] = np.arange(3.0)
    np.put_along_axis(b, np.array([[1], [2], [3]]), 1.5, -1)


def change(a: np.ndarray, b: np.ndarray) -> None:
    a += b
    a[1:] *= b[0]
    view = a.reshape(9, 4)
    view -= 1.5
    a[0] /= np.full((3, 4), 2.0)
    np.negative(b, out=b)
    np.add.at(b, np.array([0, 0, 2]), a[1])
    np.add.at(b, (np.array([1, 1]), np.array([0, 3])), np.ones(2))


@pytest.mark.parametrize("program", [put, change])
def test_what_is_written_goes_to_the_same_places(program):
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((noise.RUNS, 3, 3, 4)), rng.standard_normal((noise.RUNS, 3, 4))
    exact, (of_a, of_b) = noise.Noise(0.0, 0), (a.copy(), b.copy())
    program(noise._noisy(of_a, exact), noise._noisy(of_b, exact))
    for i in range(noise.RUNS):
        program(a[i], b[i])
    assert np.array_equal(of_a, a) and np.array_equal(of_b, b)


def chain(g: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Everything that rounds, for each row of x on its own."""
    n, kept = ops.norm(g["x"], g["w"], g["b"])
    found = {"norm": n, "softmax": ops.softmax(n @ g["W"].T)}
    for name, (f, f_backward) in ops.ACTIVATIONS.items():
        y, cache = f(n)
        found |= {name: y, f"d {name}": f_backward(n, cache)}
    return found | {"dx": ops.norm_backward(n, kept), "ds": ops.softmax_backward(n @ g["W"].T, found["softmax"])}


@pytest.mark.parametrize("unit", [UNIT, 2.0**-53])
def test_deviations_are_those_of_runs_one_after_the_other(unit):
    """The rows are alike, so each column of an answer has thousands of independent errors of the same variance: the two
    estimates of it are within a tenth of each other."""
    rng = np.random.default_rng(2)
    rows, arrays = 1000, {"w": rng.standard_normal(6), "b": rng.standard_normal(6), "W": rng.standard_normal((4, 6))}
    arrays |= {"x": np.tile(rng.standard_normal(6), (rows, 1))}
    truth, found = noise.spread(chain, arrays, unit)
    for name, runs in one_after_the_other(chain, arrays, unit, seed=1).items():
        expect_same_variance((found[name] ** 2).mean(0), variance(runs, truth[name]).mean(0), rows * noise.RUNS)


def test_deviations_of_a_model_are_those_of_runs_one_after_the_other():
    """Its numbers are few, and have errors in common, so only the seeds tell of them: to a factor of less than three."""
    t, seeds = trial("fused", "prompt-mlp", seed=5, mask=True), 16
    of_one_layer = {name: a for name, a in t.arrays.items() if not name.startswith("layers.1")}
    t = t._replace(config=t.config._replace(layers=1), arrays=of_one_layer)
    wide = {name: array.astype(np.longdouble) for name, array in t.arrays.items()}
    truth = run(t, wide)
    totals = []
    for make in noise.runs, one_after_the_other:
        drawn = [make(lambda arrays: run(t, arrays), t.arrays, UNIT, seed) for seed in range(seeds)]
        totals.append({name: sum(variance(one[name], truth[name]) for one in drawn) / seeds for name in truth})
    first, second = (np.concatenate([a.ravel() for a in total.values()]) for total in totals)
    expect_same_variance(first, second, seeds * noise.RUNS)


def test_runs_have_errors_of_their_own():
    """Of n independent normal errors each, two runs have a correlation beyond c with a probability of at most
    2 exp(−n c² / 2), that of a cap of the sphere."""
    n = 4000
    errors = noise.runs(lambda g: {"y": g["x"] * 1.0}, {"x": np.ones(n)}, UNIT)["y"] - 1
    correlation = errors @ errors.T / np.sqrt(np.outer(*[(errors**2).sum(1)] * 2))
    pairs = correlation[np.triu_indices(noise.RUNS, 1)]
    assert np.abs(pairs).max() < np.sqrt(2 * np.log(2 * len(pairs) / ALARM) / n)


def test_a_seed_gives_the_same_errors_again_and_another_gives_others():
    def f(g: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": g["x"] @ g["x"]}

    x = {"x": np.random.default_rng(0).standard_normal((3, 3))}
    first, again, other = (noise.spread(f, x, UNIT, seed)[1]["y"] for seed in (0, 0, 1))
    assert np.array_equal(first, again) and (first != other).all()


@pytest.mark.parametrize("method", METHODS)
def test_honest_float32_stays_within_and_a_fault_does_not(method):
    """Every gradient of a float32 run lies within four deviations. If one array is off by 1e-4, some gradient does not."""
    t = trial("gelu", method, seed=4, dtype=np.float32)
    truth, deviation = noise.spread(lambda arrays: run(t, arrays), t.arrays, UNIT)

    def worst(found):
        with np.errstate(invalid="ignore", divide="ignore"):
            return max(np.nanmax(np.abs(found[name] - truth[name]) / deviation[name]) for name in truth)

    name = next(reversed(t.arrays))
    assert worst(run(t)) < 4
    assert worst(run(t, t.arrays | {name: t.arrays[name] * np.float32(1.001)})) > 20


REFUSED: dict[str, tuple[str, Callable]] = {
    "einsum": ("einsum 'ij,jk->ik'", lambda x: np.einsum("ij,jk->ik", x, x)),
    "dot": ("dot", lambda x: x.dot(x)),
    "function": ("cumsum", lambda x: np.cumsum(x, 0)),
    "method": ("argsort", lambda x: x.argsort()),
    "accumulate": ("add.accumulate", lambda x: np.add.accumulate(x)),
    "two answers": ("modf", lambda x: np.modf(x)[0]),
    "of a run": ("__bool__", lambda x: x if x[0, 0] else -x),
    "number": ("__float__", lambda x: x * float(x[0, 0])),
    "index": ("depends on the run", lambda x: x[x > 0]),
    "both sides": ("both sides of a slice", lambda x: x[None][0, :, [0, 1]]),
    "larger item": ("an item of", lambda x: x.copy().__setitem__(0, np.ones((16, 2)))),
    "memory": ("data", lambda x: x.data),
    "plain out": ("into an array", lambda x: np.add(x, x, out=np.zeros((2, 2)))),
    "initial": ("initial", lambda x: x.sum(initial=1.0)),
    "plain answer": ("plain ndarray", lambda x: np.asarray(x)),
    "unseen": ("no number", lambda x: x + np.array(x)),
    "written to a plain array": ("no number", lambda x: x + np.stack([np.ones(2), np.ones(2)]).__iadd__(0) * as_plain(x)),
    "where": ("where without values", lambda x: np.where(x > 0)),
    "view": ("view", lambda x: x.view(np.ndarray)),
}


def as_plain(x: np.ndarray) -> np.ndarray:
    plain = np.zeros(x.shape)
    plain[:] = x
    return plain


@pytest.mark.parametrize("what", REFUSED)
def test_what_it_cannot_follow_is_refused(what):
    words, f = REFUSED[what]
    with pytest.raises(NotImplementedError, match=words):
        noise.spread(lambda a: {"y": f(a["x"])} if isinstance(a["x"], noise.Noisy) else {"y": a["x"]}, {"x": np.eye(2)}, UNIT)


def test_an_argument_is_not_written_to():
    with pytest.raises(ValueError, match="read-only"):
        noise.runs(lambda a: {"y": a["x"].__iadd__(1)}, {"x": np.eye(2)}, UNIT)
