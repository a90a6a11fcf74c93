"""What a file adds to which module of a model.

    ΔW = scale · (A B)ᵀ  (out, in)        A (in, rank)   B (rank, out)   in float64

Files store the factors in one of two ways, and a Factor remembers which: (rank, n), or (n, rank). The numbers are read when
they are asked for, a block at a time, so that the truth of a file of gigabytes needs little memory.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from conformance.files.clauses import ERROR, Issue
from conformance.files.container import DTYPES, FLOATS, Container

BLOCK = 1 << 20  # numbers that are widened at a time
CONV: dict[str, Any] = {"kind": "conv"}
LARGEST_RANK = 4096  # above it no norm is computed: it takes rank² numbers


class Factor(NamedTuple):
    """A or B, as it is stored."""

    container: Container
    name: str
    rank_first: bool  # (rank, n), else (n, rank)
    order: np.ndarray | None = None  # which of the stored n stands in each place, if they were put in another order

    @property
    def shape(self) -> tuple[int, ...]:
        return self.container.tensors[self.name].shape

    @property
    def rank(self) -> int:
        return self.shape[0] if self.rank_first else self.shape[1]

    @property
    def size(self) -> int:
        """The number of inputs of A, or of outputs of B; of a convolution, inputs times the size of its window."""
        return math.prod(self.shape) // max(1, self.rank)

    def blocks(self) -> Iterator[np.ndarray]:
        """The factor as (n, rank), float64, a block of rows at a time."""
        tensor = self.container.tensors[self.name]
        if not tensor.size:
            return
        stored = np.memmap(self.container.path, DTYPES[tensor.dtype], "r", tensor.begin, tensor.shape)
        flat = stored.reshape(self.rank, self.size) if self.rank_first else stored.reshape(self.size, self.rank)
        step = max(1, BLOCK // self.rank)
        for i in range(0, self.size, step):
            some = slice(i, i + step) if self.order is None else self.order[i : i + step]
            yield (flat[:, some].T if self.rank_first else flat[some]).astype(np.float64)

    def stored(self) -> np.ndarray:
        """The whole factor in its dtype, as it is stored but for the order."""
        array = self.container.array(self.name)
        return array if self.order is None else np.take(array, self.order, 1 if self.rank_first else 0)

    def whole(self) -> np.ndarray:
        """(n, rank), float64."""
        return np.concatenate([np.empty((0, self.rank)), *self.blocks()])

    def gram(self) -> np.ndarray:
        """The products of all columns of (n, rank) with each other: (rank, rank)."""
        return sum((block.T @ block for block in self.blocks()), np.zeros((self.rank, self.rank)))

    def facts(self) -> tuple[bool, bool]:
        """Whether all of its numbers are finite, and whether all are zero."""
        finite, zero = True, True
        for block in self.blocks():
            finite, zero = finite and bool(np.isfinite(block).all()), zero and not block.any()
        return finite, zero


class Scale(NamedTuple):
    """The scale of one module, None if nobody can know it, and where it came from, in words."""

    value: float | None
    source: str


@dataclass(frozen=True)
class Part:
    """What the file adds to one module."""

    module: str
    A: Factor
    B: Factor
    scale: Scale
    kind: str = "linear"  # or "embedding", whose W is (rows, columns), or "conv"
    fan_in_fan_out: bool = False  # the base model stores W as (in, out)
    magnitude: str = ""  # the tensor of DoRA
    bias: str = ""  # the tensor of lora_bias

    @property
    def rank(self) -> int:
        return self.A.rank

    @property
    def is_turned(self) -> bool:
        """Whether the base model stores W as (in, out): Conv1D of GPT-2, and an embedding, whose inputs are its rows."""
        return self.kind == "embedding" or self.fan_in_fan_out

    @property
    def weight(self) -> tuple[int, int]:
        """The shape of W as the base model stores it; of a convolution with its window flattened."""
        return (self.A.size, self.B.size) if self.is_turned else (self.B.size, self.A.size)

    def delta(self, weight: np.ndarray | None = None) -> np.ndarray:
        """ΔW as the base model stores W, in float64. It has as many numbers as W. DoRA needs W itself (P-6). Raises ValueError
        without a scale, and without the W that is needed."""
        if self.scale.value is None:
            raise ValueError(f"{self.module}: the scale cannot be known")
        product = self.scale.value * (self.A.whole() @ self.B.whole().T)  # (in, out)
        delta = product if self.is_turned else product.T
        if not self.magnitude:
            return delta
        if weight is None or weight.shape != delta.shape:
            raise ValueError(f"{self.module}: DoRA needs W of shape {delta.shape}")
        base = weight.astype(np.float64)
        adapted = (base + delta).T if self.is_turned else base + delta  # (out, in)
        lengths = self.A.container.array(self.magnitude).astype(np.float64).reshape(-1, 1)
        right = lengths * adapted / np.linalg.norm(adapted, axis=1, keepdims=True)
        return (right.T if self.is_turned else right) - base

    def norm(self) -> float | None:
        """‖ΔW‖, the root of the sum of squares, from the products of columns alone. None if it cannot be told."""
        if self.scale.value is None or self.rank > LARGEST_RANK:
            return None
        with np.errstate(all="ignore"):  # factors that are not finite are an issue of their own
            square = float(np.sum(self.A.gram() * self.B.gram()))
        norm = abs(self.scale.value) * math.sqrt(abs(square)) if math.isfinite(square) else math.nan
        return norm if math.isfinite(norm) else None


class Other(NamedTuple):
    """A tensor that has a meaning and is no factor."""

    name: str
    words: str  # what it takes the place of, or does
    place: str = ""  # the parameter of the base model in whose place it stands


@dataclass
class Meaning:
    """What a whole file says."""

    format: str  # its name: PEFT, kohya …
    path: str
    parts: list[Part] = field(default_factory=list)
    others: list[Other] = field(default_factory=list)
    issues: list[Issue] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)  # those that change the function, as they were given

    @property
    def right(self) -> bool:
        return not any(issue.severity == ERROR for issue in self.issues)

    def say(self, code: str, where: str, words: str) -> None:
        self.issues.append(Issue(code, where, words))


Sorted = dict[str, dict[str, str]]  # module → role → tensor


def sort_out(meaning: Meaning, container: Container, roles: Callable[[str], tuple[str, str] | None]) -> Sorted:
    """The tensors of the file by module and role: A, B, alpha, magnitude … What has no role is an issue."""
    found: Sorted = {}
    for name in container.tensors:
        role = roles(name)
        if role is None:
            meaning.say("FILE-020", name, f"shape {container.tensors[name].shape}; no clause says what it is")
        elif role[1] in found.setdefault(role[0], {}):
            meaning.say("FILE-005", name, f"says the same as {found[role[0]][role[1]]}")
        else:
            found[role[0]][role[1]] = name
    return found


def pair(meaning: Meaning, container: Container, module: str, roles: dict[str, str], scale: Callable[[str, int], Scale],
         rank_first: tuple[bool, bool], **more: Any) -> None:
    """Adds the part of a module, if its two factors are there and fit each other. What is wrong becomes an issue.

    `scale` takes the module and its rank. `rank_first` says of A and of B whether they are stored (rank, n). Beside A and B
    there may be the `magnitude` of DoRA."""
    if ("A" in roles) != ("B" in roles):
        has, lacks = ("A", "B") if "A" in roles else ("B", "A")
        meaning.say("FILE-021", roles[has], f"{lacks} of {module or 'the model'} is not in the file")
        return
    if "A" not in roles:
        meaning.say("FILE-027", next(iter(roles.values())), f"neither A nor B of {module or 'the model'} is in the file")
        return
    A, B = (Factor(container, roles[role], first) for role, first in zip("AB", rank_first, strict=True))
    for factor in (A, B):
        dtype = container.tensors[factor.name].dtype
        if dtype not in FLOATS:
            meaning.say("FILE-008", factor.name, f"{dtype}, expected one of {', '.join(FLOATS)}")
            return
    conv = len(A.shape) > 2 and more.get("kind", "linear") == "linear"
    if len(A.shape) != len(B.shape) or len(A.shape) not in (2, 3, 4, 5) or (conv and any(n != 1 for n in B.shape[2:])):
        meaning.say("FILE-022", A.name, f"{A.shape}, and B is {B.shape}")
        return
    if A.rank != B.rank or not A.rank or not A.size or not B.size:
        expected = f"A is {A.shape}, B is {B.shape}: ranks {A.rank} and {B.rank}, expected the same, of at least 1"
        meaning.say("FILE-022", A.name, expected)
        return
    found = scale(module, A.rank)
    if magnitude := roles.get("magnitude", ""):
        meaning.say("FILE-050", magnitude, "DoRA: a magnitude for each row of W")
    part = Part(module, A, B, found, magnitude=magnitude, **more | (CONV if conv else {}))
    if found.value is None:
        meaning.say("FILE-030", module, found.source)
    elif not math.isfinite(found.value):
        meaning.say("FILE-035", module, f"{found.value:g}, from {found.source}")
    elif not found.value:
        meaning.say("FILE-033", module, found.source)
    for factor in (A, B):
        finite, zero = factor.facts()
        if not finite:
            meaning.say("FILE-009", factor.name, "has NaN or infinity in it")
        elif zero and factor is B:
            meaning.say("FILE-051", factor.name, "all of its numbers are zero")
    meaning.parts.append(part)
