"""Where W, b, A and B are in a module: found by their shapes, and settled by what the module computes with them."""

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from conformance.torch import TorchLayer
from conformance.truth.compare import ratio_of

SIZES = (7, 5, 3)  # in, out and rank of the layer that is looked at: primes, so that a shape tells which axis is which
MOST = 64  # candidates that are tried
HINTS = {"W": ("weight", "base", "linear", "original", "org"), "b": ("bias",), "A": ("a", "down"), "B": ("b", "up")}
RANKS = range(1, 129)
DIMENSIONS = (0, 3, 4)  # of x, that are tried
Kind = TypeVar("Kind", bound=TorchLayer)


class Places(NamedTuple):
    """The paths of the arrays, which of them are stored transposed, and what was seen when they were tried."""

    paths: dict[str, str]
    transposed: str
    rank: int
    scale: float | None  # of the LoRA part. None if it is no multiple of (x A) B
    seen: tuple[str, ...]  # what holds, in words
    dimensions: int = 0  # how many x must have. 0: any number
    error: Exception | None = None  # why y is not computed

    def layer(self, kind: type[Kind], module: nn.Module, bias: bool) -> Kind:
        """The module as a layer of this kind."""
        b = self.paths.get("b") if bias else None
        return kind(module, W=self.paths["W"], b=b, A=self.paths["A"], B=self.paths["B"], transposed=self.transposed)


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """The arrays of the module by their paths: parameters, buffers, and those that are plain attributes."""
    found = dict([*module.named_parameters(), *module.named_buffers()])
    for prefix, part in module.named_modules():
        for name, value in vars(part).items():
            if isinstance(value, Tensor) and value.is_floating_point():
                found.setdefault(f"{prefix}.{name}".lstrip("."), value)
    return {path: tensor for path, tensor in found.items() if tensor.is_floating_point() and _can_be_read(path)}


def _can_be_read(path: str) -> bool:
    """Whether the path leads there by attributes: some dicts have keys that are no names."""
    return all(part.isdecimal() or part.isidentifier() for part in path.split("."))


def candidates(module: nn.Module, n_in: int, n_out: int, rank: int | None) -> Iterator[tuple[dict[str, str], str, int]]:
    """Paths that have the shapes of W, b, A and B, those with fitting names first, with what is transposed, and the rank. If
    `rank` is None, any rank will do."""
    have = tensors(module)
    for r in RANKS if rank is None else (rank,):
        shapes = {"W": (n_out, n_in), "b": (n_out,), "A": (n_in, r), "B": (r, n_out)}
        fitting: dict[str, list[str | None]] = {name: [*_named(have, name, shape)] for name, shape in shapes.items()}
        fitting["b"] = fitting["b"] or [None]
        for chosen in itertools.islice(itertools.product(*(fitting[name] for name in "WABb")), MOST):
            paths = {name: path for name, path in zip("WABb", chosen, strict=True) if path}
            if len(set(paths.values())) < len(paths):
                continue
            turned = "".join(name for name in "WAB" if tuple(have[paths[name]].shape) != shapes[name])
            yield paths, turned, r
            if n_in == n_out:
                yield paths, "W" * ("W" not in turned) + turned.replace("W", ""), r


def _named(have: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> list[str]:
    fitting = [path for path, tensor in have.items() if tuple(tensor.shape) in (shape, shape[::-1])]
    hints = set(HINTS[name])
    named = [path for path in fitting if hints & set(path.lower().replace(".", "_").split("_"))]
    return [*named, *(path for path in fitting if path not in named)]


def found(make: Callable[[], nn.Module], n_in: int, n_out: int, rank: int | None) -> Places | None:
    """The places that explain best what the module computes. `make` makes the same module anew for each trial. None if no
    arrays have the shapes of W, A and B."""
    best: Places | None = None
    for paths, turned, r in itertools.islice(candidates(make(), n_in, n_out, rank), MOST):
        places = tried(make, paths, turned, (n_in, n_out, r))
        if best is None or len(places.seen) > len(best.seen):
            best = places
        if len(places.seen) == len(SEEN):
            break
    return best


SEEN = ("y is computed", "x Wᵀ + b where B is zero", "B moves y", "A moves y", "W moves y",
        "the LoRA part is a multiple of (x A) B")


def tried(make: Callable[[], nn.Module], paths: dict[str, str], turned: str, sizes: tuple[int, int, int]) -> Places:
    """What holds when the arrays of a layer of these sizes, in, out and rank, hold small whole numbers."""
    n_in, n_out, rank = sizes
    rng, seen, scale, dimensions = np.random.default_rng(0), [], None, 0
    failed: Exception | None = None
    try:
        layer = Tried(make(), W=paths["W"], b=paths.get("b"), A=paths["A"], B=paths["B"], transposed=turned)
        dtype = layer.weight().dtype
        W, A, B = (rng.integers(1, 4, shape).astype(dtype) for shape in ((n_out, n_in), (n_in, rank), (rank, n_out)))
        b = np.arange(1, n_out + 1).astype(dtype) if "b" in paths else None
        x = np.eye(n_in).astype(dtype)

        def y(A: np.ndarray, B: np.ndarray, W: np.ndarray = W, b: np.ndarray | None = b) -> np.ndarray:
            layer.set_base(W, b)
            layer.set_adapter({"A": A, "B": B})
            return layer.forward(x.copy())  # a module may write into it

        for dimensions in DIMENSIONS:
            layer.dimensions = dimensions
            try:
                zero = y(A, 0 * B)
                if zero.shape != (n_in, n_out):
                    raise ValueError(f"y is {zero.shape}, expected {(n_in, n_out)}")
                break
            except Exception as error:
                failed = failed or error
        else:
            raise failed or RuntimeError("no forward pass")
        failed = None
        base = W.T if b is None else W.T + b
        both = y(A, B)
        seen += [SEEN[0]]
        seen += [SEEN[1]] * np.array_equal(zero, base)
        seen += [SEEN[2]] * (not np.array_equal(both, y(A, B + 1)))
        seen += [SEEN[3]] * (not np.array_equal(both, y(2 * A, B)))
        seen += [SEEN[4]] * (not np.array_equal(both, y(A, B, W + 1)))
        scale = ratio_of(y(A, B, 0 * W, None if b is None else 0 * b), A @ B, dtype.name)
        seen += [SEEN[5]] * (scale is not None and scale != 0)
    except Exception as error:
        failed = error
    return Places(paths, turned, rank, scale or None, tuple(seen), dimensions if seen else 0, failed)


class Tried(TorchLayer):
    """A layer while it is looked at. `dimensions` says how many x must have."""

    dimensions = 0

    def through(self, module: nn.Module, x: Tensor) -> Tensor:
        y = with_dimensions(module, x, self.dimensions) if self.dimensions else module(x)
        with torch._C.DisableTorchFunctionSubclass():  # the class of y may say other numbers than it holds
            return y.as_subclass(Tensor) if isinstance(y, Tensor) else y


def with_dimensions(module: nn.Module, x: Tensor, dimensions: int) -> Tensor:
    """y of x (…, in), which the module gets as (1, rows, in), or with one more dimension of size 1 before it."""
    y = module(x.reshape(*[1] * (dimensions - 2), -1, x.shape[-1]))
    return y.reshape(*x.shape[:-1], y.shape[-1])
