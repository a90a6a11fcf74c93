"""The places of a transformer by name: which arrays a configuration has, and which a method adds at its place."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from lora_ref import adapter, lora, prefix, ptuning
from lora_ref.shapes import check_size

Arrays = dict[str, np.ndarray]
Spec = lora.Spec | adapter.Spec | prefix.Spec | ptuning.Spec
Methods = dict[str, Any]  # place → Spec
Shape = tuple[int, ...]
ATTENTION, MLP = "attention", "mlp"


class Config(NamedTuple):
    """What a transformer is; `check` says what it may be."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp_width: int
    context: int
    activation: str = "gelu"  # or "silu", gated
    norm: str = "layer"  # or "rms"
    bias: bool = True  # of every linear layer but lm_head
    fused: bool = False  # q, k and v are one matrix, qkv_proj
    tied: bool = False  # lm_head is embed_tokens

    @property
    def size(self) -> int:
        """Of one head."""
        return self.width // self.heads

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.size

    @property
    def splits(self) -> tuple[int, int]:
        """Where k and v begin among the rows of qkv_proj."""
        return self.width, self.width + self.kv_width

    @property
    def head(self) -> str:
        return "embed_tokens" if self.tied else "lm_head"


def check(config: Config) -> None:
    """Raises ValueError naming the field, what it is, what was expected and why."""
    for name in ("vocabulary", "width", "layers", "heads", "kv_heads", "mlp_width", "context"):
        check_size("transformer", name, getattr(config, name))
    parts = ("width", config.heads, "heads share it"), ("heads", config.kv_heads, "they share kv_heads")
    for name, whole, why in parts:
        if getattr(config, name) % whole:
            raise ValueError(f"transformer: {name} is {getattr(config, name)}, expected a multiple of {whole} because {why}")
    for name, known in ("activation", ("gelu", "silu")), ("norm", ("layer", "rms")):
        if getattr(config, name) not in known:
            raise ValueError(f"transformer: {name} is {getattr(config, name)!r}, expected one of {', '.join(known)}")


def linears(config: Config) -> dict[str, tuple[int, int]]:
    """Every linear layer: place → (out, in)."""
    d, kv, m = config.width, config.kv_width, config.mlp_width
    parts = {"qkv_proj": (d + 2 * kv, d)} if config.fused else {"q_proj": (d, d), "k_proj": (kv, d), "v_proj": (kv, d)}
    gate = {"gate_proj": (m, d)} if config.activation == "silu" else {}
    parts |= {"o_proj": (d, d), "up_proj": (m, d), **gate, "down_proj": (d, m)}
    found = {f"layers.{i}.{name}": shape for i in range(config.layers) for name, shape in parts.items()}
    return found if config.tied else found | {"lm_head": (config.vocabulary, d)}


def shapes(config: Config, methods: Mapping[str, Any] | None = None, only: bool = False) -> dict[str, Shape]:
    """Name → shape of every array, those of the base first; of what the methods train alone if `only`.

    Raises ValueError for a configuration that cannot be, an unknown place, and a method where it cannot go.
    """
    check(config)
    found = {} if only else _base(config)
    for place, spec in (methods or {}).items():
        found |= {f"{place}.{name}": shape for name, shape in _of_method(place, spec, config).items()}
    return found


def take(kind: type, place: str, arrays: Mapping[str, np.ndarray]) -> Any:
    """The arrays of a place as the NamedTuple that its method works on."""
    return kind(*(arrays[f"{place}.{field}"] for field in kind._fields))  # type: ignore[attr-defined]


def _base(config: Config) -> dict[str, Shape]:
    d = config.width
    norms = {"weight": (d,), "bias": (d,)} if config.norm == "layer" else {"weight": (d,)}
    found: dict[str, Shape] = {
        "embed_tokens.weight": (config.vocabulary, d), "embed_positions.weight": (config.context, d)}
    for name in [f"layers.{i}.{part}_norm" for i in range(config.layers) for part in (ATTENTION, MLP)] + ["norm"]:
        found |= {f"{name}.{field}": shape for field, shape in norms.items()}
    for name, (out, n_in) in linears(config).items():
        found[f"{name}.weight"] = (out, n_in)
        if config.bias and name != "lm_head":
            found[f"{name}.bias"] = (out,)
    return found


def _of_method(place: str, spec: Any, config: Config) -> dict[str, Shape]:
    d, kv = config.width, config.kv_width
    if isinstance(spec, lora.Spec):
        out, n_in = linears(config)[_known(place, spec, linears(config))]
        check_size(place, "rank", spec.rank)
        return {"A": (n_in, spec.rank), "B": (spec.rank, out)}
    if isinstance(spec, adapter.Spec):
        _known(place, spec, adapter_places(config))
        check_size(place, "bottleneck", spec.bottleneck)
        m = spec.bottleneck
        return {"down": (d, m), "down_bias": (m,), "up": (m, d), "up_bias": (d,)}
    if isinstance(spec, ptuning.Spec):
        _known(place, spec, ("prompt",))
        return ptuning.shapes(len(spec.positions), d, spec.encoder, spec.hidden)
    if not isinstance(spec, prefix.Spec):
        raise ValueError(f"transformer: {place} has {spec!r}, expected a Spec of lora, adapter, prefix or ptuning")
    _known(place, spec, ("prefix",))
    check_size(place, "length", spec.length)
    if spec.hidden is None:
        return {"keys": (config.layers, spec.length, kv), "values": (config.layers, spec.length, kv)}
    check_size(place, "hidden", spec.hidden)
    out = 2 * config.layers * kv
    return {"embedding": (spec.length, d), "W1": (spec.hidden, d), "b1": (spec.hidden,), "W2": (out, spec.hidden), "b2": (out,)}


def adapter_places(config: Config) -> tuple[str, ...]:
    """Beside each sub-layer, behind it, and behind the layer."""
    parts = (ATTENTION, f"{ATTENTION}.output", MLP, f"{MLP}.output", "output")
    return tuple(f"layers.{i}.{part}" for i in range(config.layers) for part in parts)


def _known(place: str, spec: Any, places: Any) -> str:
    if place not in places:
        kind = type(spec).__module__.rpartition(".")[2]
        raise ValueError(f"transformer: {kind} is at {place!r}, expected one of its places: {', '.join(places)}")
    return place
