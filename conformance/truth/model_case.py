"""A case of a whole model: arrays, tokens and configuration, and the right answers from `lora_ref.transformer`.

All is drawn from a seed. A softmax has no exact cases, so answers are judged by the spread of honest rounding errors.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from conformance.model import ModelConfig, places
from conformance.subject import Arrays
from conformance.truth import cache
from conformance.truth.case import BITS, DTYPES
from conformance.truth.compare import reach
from conformance.truth.strategies import among
from lora_ref import adapter, lora, prefix, ptuning, transformer
from lora_ref.error import noise
from lora_ref.places import Config, Methods

Spread = tuple[Arrays, Arrays]  # the right answers, and the standard deviations of honest errors
# The sources that a spread depends on, besides the case. They are hashed at import, before other code can change them.
SOURCES = cache.hashed_files([*Path(transformer.__file__).parent.rglob("*.py"), Path(__file__), Path(cache.__file__)])


def reference(config: ModelConfig) -> tuple[Config, Methods]:
    """The configuration and the methods in the form that `lora_ref.transformer` takes."""
    fields = {name: getattr(config, name) for name in Config._fields}
    scale = config.alpha / config.rank
    spec = {
        "lora": lora.Config(config.rank, scale),
        "adapter": adapter.Config(config.bottleneck, config.nonlinearity, config.adapter_scale, config.start),
        "prefix": prefix.Config(config.length, config.hidden_size),
        "ptuning": ptuning.Config(config.positions, config.encoder, config.hidden_size),
    }
    return Config(**fields), dict.fromkeys(places(config), spec.get(config.method))


@dataclass(frozen=True, eq=False)
class ModelCase:
    """Base and trained arrays by name, tokens (batch, T), mask (batch, T) or None, dlogits (batch, T, vocabulary)."""

    config: ModelConfig
    base: Arrays
    trained: Arrays
    tokens: np.ndarray
    mask: np.ndarray | None
    dlogits: np.ndarray
    known: bool = False  # whether its right answers may be kept on the disk, where a subject may read or write them

    @property
    def size(self) -> float:
        """Size of the case: fewer numbers are easier to read."""
        return float(self.numbers)

    @property
    def numbers(self) -> int:
        return sum(a.size for a in (*self.base.values(), *self.trained.values(), self.tokens))

    def replace(self, **changes) -> "ModelCase":
        own = {k: v for k, v in changes.items() if k in ("base", "trained", "tokens", "mask", "dlogits")}
        config = replace(self.config, **{k: v for k, v in changes.items() if k not in own})
        return replace(self, config=config, **own)

    def copy(self) -> "ModelCase":
        mask = None if self.mask is None else self.mask.copy()
        return replace(self, tokens=self.tokens.copy(), mask=mask, dlogits=self.dlogits.copy())

    @property
    def spread(self) -> Spread:
        """The spread of the logits, and of the gradients of the trained arrays, whose names begin with "d "."""
        return self._spread("spread", lambda arrays, config, methods: (arrays, methods))

    @property
    def merged(self) -> Spread:
        """The spread of the logits after LoRA was merged, or a network folded, and of the arrays that this gives."""
        return self._spread("merged", transformer.merge, gradients=False)

    def of(self, tokens: np.ndarray, methods: Methods, arrays: Arrays) -> Spread:
        """The spread of the logits of other tokens, with other methods and arrays."""
        config = reference(self.config)[0]

        def logits(given: Arrays) -> Arrays:
            return {"logits": transformer.forward(tokens, given, config, methods)[0]}

        return self._once(logits, arrays, "of", config, methods, tokens)

    def _once(self, f: noise.Program, arrays: Arrays, *follows: object) -> Spread:
        """The spread of f, from the cache if it is there. f may depend on nothing but the arrays and `follows`."""
        drawn = noise.ROUNDINGS, noise.RUNS, self.unit
        key = cache.hashed(SOURCES, drawn, arrays, *follows)
        truth, deviation = cache.once(key, lambda: noise.spread(f, arrays, self.unit), files=self.known)
        return truth, deviation

    def bound(self, name: str) -> np.ndarray | None:
        """The bound that `expect_within_spread` uses for the answer of that name; None if there is none."""
        known = "logits" if name == "forward" else "d " + name.removeprefix("backward ")
        deviation = self.spread[1].get(known)
        return None if deviation is None else reach() * deviation

    @property
    def unit(self) -> float:
        return 2.0 ** -BITS[self.config.dtype]

    def _spread(self, what: str, first: Callable, gradients: bool = True) -> Spread:
        config, methods = reference(self.config)
        train = list(self.base if self.config.method == "full" else self.trained)

        def run(given: Arrays) -> Arrays:
            arrays, left = first(given, config, methods)
            logits, kept = transformer.forward(self.tokens, arrays, config, left, self.mask)
            if not gradients:
                return {"logits": logits} | arrays
            found = transformer.backward(self.dlogits.astype(logits.dtype), kept, train)
            return {"logits": logits} | {f"d {name}": array for name, array in found.items()}

        return self._once(run, self.base | self.trained, what, config, methods, train, self.tokens, self.mask, self.dlogits)

    @property
    def described(self) -> str:
        """The case in a few words."""
        c = self.config
        own = {
            "lora": f"rank {c.rank}, alpha {c.alpha:g} on {', '.join(c.targets)}",
            "adapter": f"{c.form}, bottleneck {c.bottleneck}, {c.nonlinearity}, scale {c.adapter_scale:g}, start {c.start}",
            "prefix": f"length {c.length}" + (f", hidden {c.hidden_size}" if c.hidden_size else ""),
            "ptuning": f"positions {c.positions}, {c.encoder}",
        }
        text = c.method + (": " + own[c.method] if c.method in own else "")
        text += f"; {c.layers} layers, width {c.width}, {c.heads} heads"
        text += "" if c.kv_heads == c.heads else f" of {c.kv_heads} groups"
        kind = f"{c.activation}, {c.norm}{', fused' if c.fused else ''}{', tied' if c.tied else ''}"
        return f"{text}, {kind}; tokens {self.tokens.shape}{', masked' if self.mask is not None else ''}, {c.dtype}"


GPT2 = st.just({"activation": "gelu", "norm": "layer", "fused": True, "tied": True})
GATED = st.just({"activation": "silu", "norm": "rms", "fused": False, "tied": False, "bias": False})


@functools.cache
def models(method: str, *, masked: bool = False, only: tuple[str, ...] = ("float64", "float32"), base=None, **fixed):
    """Small models with the method. No trained array is at its initial value. `fixed` are fields of ModelConfig."""
    def of(dtypes: tuple[str, ...]):
        @st.composite
        def case(draw) -> ModelCase:
            dtype = draw(among(only, dtypes))
            heads = draw(st.sampled_from((2, 1, 4)))
            kind = draw(base if base is not None else st.one_of(GPT2, GPT2, GATED))
            groups = draw(st.sampled_from([n for n in (1, 2, 4) if heads % n == 0])) if kind["activation"] == "silu" else heads
            T, batch = draw(st.integers(3, 5)), draw(st.integers(1, 3))
            names = ("qkv_proj",) if kind["fused"] else ("q_proj", "k_proj", "v_proj")
            gate = ("gate_proj",) if kind["activation"] == "silu" else ()
            length = draw(st.integers(1, 3))
            n = draw(st.integers(1, 2))
            positions = sorted(draw(st.sets(st.integers(0, T + n - 1), min_size=n, max_size=n)))
            if positions == list(range(n)):  # most libraries put all in front, so this case does not
                positions[-1] = T + n - 1
            matrices = st.sampled_from((*names, "o_proj", "up_proj", *gate, "down_proj"))
            own = {
                "targets": tuple(sorted(draw(st.sets(matrices, min_size=1)))),
                "rank": draw(st.integers(1, 3)), "alpha": draw(st.sampled_from((3.0, 8.0, 0.5))),
                "form": draw(st.sampled_from(("houlsby", "pfeiffer", "parallel"))), "bottleneck": draw(st.integers(2, 3)),
                "nonlinearity": draw(st.sampled_from(("gelu", "relu") if dtype == "float64" else ("gelu",))),
                "adapter_scale": draw(st.sampled_from((1.0, 4.0, 0.5))), "length": length,
                "positions": tuple(positions),
            }
            width = heads * draw(st.integers(2, 3) if heads > 1 else st.integers(4, 5))  # a norm of two numbers gives only ±1
            config = ModelConfig(
                vocabulary=draw(st.integers(5, 9)), width=width, layers=draw(st.integers(2, 3)), heads=heads,
                mlp_width=draw(st.integers(3, 6)), context=12, kv_heads=groups, method=method, dtype=dtype,
                seed=draw(st.integers(0, 2**31 - 1)), **(own | kind | fixed))
            return drawn(config, batch, T, masked)

        return case()

    return of


def drawn(config: ModelConfig, batch: int, T: int, masked: bool) -> ModelCase:
    """The arrays of a case, from the seed of the configuration."""
    rng, (reference_config, methods) = np.random.default_rng(config.seed), reference(config)

    def moved(arrays: Arrays) -> Arrays:
        return {name: (a + 0.3 * rng.standard_normal(a.shape)).astype(DTYPES[config.dtype]) for name, a in arrays.items()}

    base = moved(transformer.init(rng, reference_config))
    trained = moved(transformer.init_methods(rng, reference_config, methods))
    tokens = rng.integers(0, config.vocabulary, (batch, T))
    mask = None
    if masked:
        mask = rng.random((batch, T)) < 0.6
        mask[:, -1] = False  # some padding, at the end
        mask[:, 1] = True
    dlogits = rng.standard_normal((batch, T, config.vocabulary)).astype(DTYPES[config.dtype])
    return ModelCase(config, base, trained, tokens, mask, dlogits)


def keys_of(case: ModelCase, tokens: np.ndarray, count: int) -> Arrays:
    """The keys and values of the base at the first `count` of the tokens (1, T): a prefix that acts like those tokens."""
    _, run = transformer.forward(tokens, case.base, reference(case.config)[0])
    kept = [run.caches[f"layers.{i}.attention.core"] for i in range(case.config.layers)]
    found = {}
    for name, part in ("keys", "k"), ("values", "v"):
        heads = np.stack([getattr(core, part)[0, :, :count] for core in kept])                # (layers, heads, count, s)
        found[f"prefix.{name}"] = heads.swapaxes(1, 2).reshape(len(kept), count, -1)
    return found


