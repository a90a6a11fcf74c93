"""The places of a transformer by name, the arrays of the base, and the arrays that a method adds at a place.

A method stands at a place if `methods` has its Config there: {"layers.0.q_proj": lora.Config(rank=4, scale=2.0)}. The file in
which that Config is defined is the method: `method_of` finds it, and nothing is registered. Such a file has

    PLACE                                  the kind of place where the method can stand, see below
    Config                                 its hyperparameters at one place
    shapes(config, *sizes)                 a NamedTuple with the shapes of its arrays; the field names are theirs
    FROZEN                                 the names of those arrays that do not train
    init_at(rng, config, *sizes, dtype)    the same NamedTuple with the arrays at the start
    forward, backward, merge               with the arguments below; backward gives a NamedTuple of the gradients of what trains

    kind          places                     sizes                      arguments of forward and of merge
    "linear"      layers.0.q_proj, lm_head   in, out                    x, W, b, p, config.scale    W, b, p, config.scale
    "sublayer"    see `sublayers`            width                      x, p, config.activation, config.scale
    "prefix"      prefix                     layers, kv_width, width    p, layers                   p, layers
    "prompt"      prompt                     width                      p                           p

p is the NamedTuple of arrays. At "prefix" and "prompt" the method stays after a merge, with `config.merged`. A method without
`merge` stays as it is.
"""

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from lora_ref.shapes import check_size

Arrays = dict[str, np.ndarray]
Methods = dict[str, Any]  # place → Config of a method
Shape = tuple[int, ...]
ATTENTION, MLP = "attention", "mlp"


class Config(NamedTuple):
    """The architecture of a transformer. `check` says which values are allowed."""

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
    def head_size(self) -> int:
        return self.width // self.heads

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_size

    @property
    def splits(self) -> tuple[int, int]:
        """The rows of qkv_proj at which k and v begin."""
        return self.width, self.width + self.kv_width

    @property
    def output_layer(self) -> str:
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


def sublayers(config: Config) -> tuple[str, ...]:
    """The places beside a sub-layer ("layers.0.mlp"), behind it ("layers.0.mlp.output"), and behind the layer."""
    parts = (ATTENTION, f"{ATTENTION}.output", MLP, f"{MLP}.output", "output")
    return tuple(f"layers.{i}.{part}" for i in range(config.layers) for part in parts)


def places(config: Config) -> dict[str, dict[str, Shape]]:
    """Kind → place → the sizes from which a method there gets the shapes of its arrays."""
    return {
        "linear": {place: (n_in, out) for place, (out, n_in) in linears(config).items()},
        "sublayer": dict.fromkeys(sublayers(config), (config.width,)),
        "prefix": {"prefix": (config.layers, config.kv_width, config.width)},
        "prompt": {"prompt": (config.width,)},
    }


def method_of(config: Any, place: str) -> Any:
    """The method at the place: the module that defines its Config. Raises ValueError for anything but a method's Config."""
    module: Any = sys.modules[type(config).__module__]
    if not hasattr(module, "PLACE") or type(config) is not module.Config:
        raise ValueError(f"transformer: {place} has {config!r}, expected a Config of a method, such as lora.Config")
    return module


def sizes(config: Config, place: str, own: Any) -> Shape:
    """The sizes of the place, for the method whose Config is `own`. Raises ValueError if that method cannot stand there."""
    method = method_of(own, place)
    known = places(config)[method.PLACE]
    if place not in known:
        name = method.__name__.rpartition(".")[2]
        raise ValueError(f"transformer: {name} is at {place!r}, expected one of its places: {', '.join(known)}")
    return known[place]


def method_shapes(config: Config, methods: Mapping[str, Any]) -> dict[str, Any]:
    """Place → the shapes of the method's arrays there, as its NamedTuple."""
    return {place: method_of(own, place).shapes(own, *sizes(config, place, own)) for place, own in methods.items()}


def method_arrays(config: Config, methods: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Place → the method's arrays there, as its NamedTuple."""
    found = method_shapes(config, methods)
    return {place: p._make(arrays[f"{place}.{name}"] for name in p._fields) for place, p in found.items()}


def shapes(config: Config, methods: Mapping[str, Any] | None = None, only: bool = False) -> dict[str, Shape]:
    """Name → shape of every array, the base first; with `only`, of the arrays that the methods add.

    Raises ValueError for a configuration that is not allowed, an unknown place, and a method where it cannot stand.
    """
    check(config)
    found = {} if only else _base(config)
    for place, p in method_shapes(config, methods or {}).items():
        found |= {f"{place}.{name}": shape for name, shape in p._asdict().items()}
    return found


def trained_names(config: Config, methods: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the arrays that train with the methods: those that they add, without the frozen ones."""
    frozen = {f"{place}.{name}" for place, own in methods.items() for name in method_of(own, place).FROZEN}
    return tuple(name for name in shapes(config, methods, only=True) if name not in frozen)


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
