"""How a file of the corpus is made: numbers, containers, and the right answer beside them."""

import hashlib
import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from conformance.files.binary import safetensors

IN, OUT, RANK = 12, 10, 4
Q, K, V = (f"model.layers.0.self_attn.{name}_proj" for name in "qkv")
TURNED, CONV1D, EMBEDDING, HEAD = "model.layers.1.mlp.up_proj", "h.0.attn.c_proj", "model.embed_tokens", "lm_head"
VOCABULARY = 14
Arrays = dict[str, np.ndarray]


class Case(NamedTuple):
    format: str
    clause: str
    name: str
    files: dict[str, bytes]
    truth: Arrays  # ΔW by module; nothing for an invalid file
    power: float  # 0 for an invalid file
    codes: tuple[str, ...]  # the issues that it has to have
    base: Arrays = {}  # weights of the base model that this case has in the place of the corpus's
    ranks: dict[str, int] = {}  # by module
    at: str = ""  # the folder, of a case that was not made here

    @property
    def valid(self) -> bool:
        return bool(self.truth)

    @property
    def source(self) -> str:
        """The format of a file of the corpus, or who wrote it."""
        return f"by {self.clause}" if self.at else self.format

    @property
    def title(self) -> str:
        return f"by {self.clause}: {self.name}" if self.at else self.folder

    @property
    def folder(self) -> str:
        return self.at or f"{self.format}/{self.clause}-{'pass' if self.valid else 'fail'}-{self.name}"


def drawn(name: str, *shape: int) -> np.ndarray:
    """Sixteenths between −1 and 1, none of them zero, in float32."""
    count = math.prod(shape)
    hashed = b"".join(hashlib.sha256(f"{name} {i}".encode()).digest() for i in range(-(-count // 32)))
    numbers = np.frombuffer(hashed, np.uint8)[:count].astype(np.int64) % 32 - 16
    return (np.where(numbers >= 0, numbers + 1, numbers) / 16).astype(np.float32).reshape(shape)


def base_model() -> Arrays:
    """W of every module that a case of PEFT can be about, by the name of the weight."""
    linear = dict.fromkeys((Q, K, V, TURNED, HEAD), (OUT, IN))
    shapes = linear | {CONV1D: (IN, OUT), EMBEDDING: (VOCABULARY, IN)}
    return {f"{module}.weight": drawn(f"W {module}", *shape) for module, shape in shapes.items()}


def kinds(base: Arrays) -> dict[str, str]:
    """The kind of the module of each weight: linear, embedding or conv1d."""
    modules = [name.removesuffix(".weight") for name in base if name.endswith(".weight")]
    return {module: {EMBEDDING: "embedding", CONV1D: "conv1d"}.get(module, "linear") for module in modules}


def power(A: np.ndarray, B: np.ndarray, scale: float) -> float:
    """How far the nearest known fault moves scale · B A, for A (rank, in) and B (out, rank), in units of its norm."""
    A, B = A.reshape(A.shape[0], -1).astype(np.float64), B.reshape(B.shape[0], -1).astype(np.float64)
    rank, right = A.shape[0], scale * B @ A
    faults = {
        "no adapter": 0 * right,
        "no scale": B @ A,
        "√rank too much": right * math.sqrt(rank),
        "rank too much": right * rank,
        "√rank too little": right / math.sqrt(rank),
        "rank too little": right / rank,
        "sign": -right,
        "last rank left out": scale * B[:, :-1] @ A[:-1],
        "ranks turned round": scale * B[:, ::-1] @ A,
        "rows of B shifted": np.roll(right, 1, 0),
        "columns of A shifted": np.roll(right, 1, 1),
        "A read in the other order": scale * B @ A.reshape(A.shape[::-1]).T,
        "B read in the other order": scale * B.reshape(B.shape[::-1]).T @ A,
    }
    apart = [float(np.linalg.norm(wrong - right) / np.linalg.norm(right)) for wrong in faults.values()]
    return min(distance for distance in apart if distance)  # a fault that changes nothing here, as √1 too much, is none


def peft(
    clause: str,
    name: str,
    *,
    scale: float | dict[str, float] = 0.75,
    rank: int | dict[str, int] = RANK,
    dtype: Any = np.float32,
    modules: tuple[str, ...] = (Q, V),
    settings: dict[str, Any] | None = None,
    more: Arrays | None = None,
    codes: tuple[str, ...] = (),
    valid: bool = True,
    change: Callable[[Arrays], Any] = lambda arrays: None,
    turned: bool = False,
    prefix="base_model.model.",
) -> Case:
    """A folder of PEFT. `scale` and `rank` are those that the settings mean, by module if they differ."""
    arrays, truth, powers = {}, {}, []
    for module in modules:
        own = scale[module] if isinstance(scale, dict) else scale
        r = rank[module] if isinstance(rank, dict) else rank
        A, B = drawn(f"{name} A {module}", r, IN), drawn(f"{name} B {module}", OUT, r)
        arrays |= {f"{prefix}{module}.lora_A.weight": A.astype(dtype), f"{prefix}{module}.lora_B.weight": B.astype(dtype)}
        product = own * (B.astype(np.float64) @ A.astype(np.float64))
        truth[module] = product.T if turned else product
        powers.append(power(A, B, own))
    arrays |= more or {}
    change(arrays)
    said = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 3,
        "target_modules": sorted({module.rpartition(".")[2] for module in modules}),
    }
    config = json.dumps(
        {key: value for key, value in (said | (settings or {})).items() if value != "absent"}, indent=1
    ).encode()
    files = {"adapter_config.json": config, "adapter_model.safetensors": safetensors(arrays)}
    smallest = min(powers, default=0.0) if valid else 0.0
    ranks = {module: rank[module] if isinstance(rank, dict) else rank for module in modules}
    return Case("peft", clause, name, files, truth if valid else {}, smallest, codes, ranks=ranks)


def wrong(clause: str, name: str, code: str, **more: Any) -> Case:
    return peft(clause, name, codes=(code,), valid=False, **more)


def spoiled(clause: str, name: str, code: str, weights: bytes) -> Case:
    """A folder of PEFT whose weights are these bytes."""
    case = wrong(clause, name, code)
    return case._replace(files=case.files | {"adapter_model.safetensors": weights})


def one_file(
    format: str,
    clause: str,
    name: str,
    arrays: Arrays,
    parts: dict[str, tuple[np.ndarray, np.ndarray, float]],
    metadata: dict[str, str] | None = None,
    beside: dict[str, Any] | None = None,
    codes: tuple[str, ...] = (),
    called: str = "adapter.safetensors",
) -> Case:
    """A file, and what it means: for each module A (rank, in), B (out, rank) and the scale. Without parts it is invalid."""
    files = {called: safetensors(arrays, metadata)}
    if beside is not None:
        files["adapter_config.json"] = json.dumps(beside, indent=1).encode()
    flat = {module: (A.reshape(len(A), -1), B.reshape(len(B), -1), scale) for module, (A, B, scale) in parts.items()}
    truth = {module: scale * (B.astype(np.float64) @ A.astype(np.float64)) for module, (A, B, scale) in flat.items()}
    smallest = min((power(*part) for part in flat.values()), default=0.0)
    return Case(format, clause, name, files, truth, smallest, codes, ranks={module: len(A) for module, (A, *_) in flat.items()})


def factors(name: str, rank: int = RANK) -> tuple[np.ndarray, np.ndarray]:
    """A (rank, in) and B (out, rank)."""
    return drawn(f"{name} A", rank, IN), drawn(f"{name} B", OUT, rank)


def key(module: str, ending: str) -> str:
    return f"base_model.model.{module}.{ending}"
