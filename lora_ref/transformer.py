"""A small causal transformer with hand-written gradients, and every method of this package on any of its places, by name.

    1. h = embed_tokens[tokens], prompts inserted
    2. h += embed_positions[length of the prefix, …]
    3. in each layer   h += attention(norm(h)),  h += mlp(norm(h))
    4. logits = norm(h) lm_headᵀ at the tokens

    tokens (batch, T)    h (batch, T + prompts, width)    logits (batch, T, vocabulary): one row for each token, whatever
    prompts and prefix there are, so that logits[:, t] always speaks of the token after tokens[:, t]

All arrays, frozen and trained, are in one dict by name; `methods` says what is at which place, and `train` which of the
arrays get a gradient. LoRA at any linear layer: "layers.0.q_proj" (k_proj, v_proj, o_proj, up_proj, gate_proj, down_proj;
qkv_proj if fused), "lm_head". An adapter behind a sub-layer ("layers.0.attention.output", "layers.0.mlp.output": Houlsby),
behind the layer ("layers.0.output": Pfeiffer), or beside a sub-layer ("layers.0.attention", "layers.0.mlp": parallel). A
prefix at "prefix", prompts at "prompt". Full fine-tuning is `train` with the names of the base arrays.

Sources: Vaswani et al. 2017; Radford et al. 2019 (GPT-2: norms first, learned positions, tanh GELU, residual projections
started smaller by √(2 layers)); Touvron et al. 2023 and Shazeer 2020 (RMSNorm, gated SiLU). Left out: dropout, rotary
positions, a cache of keys for generation.
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from lora_ref import adapter, attention, linear, lora, ops, prefix, ptuning
from lora_ref.places import ATTENTION, MLP, Arrays, Config, Methods, shapes, take
from lora_ref.shapes import check_dtype, rows

__all__ = ["Cache", "Config", "backward", "base_names", "forward", "init", "init_methods", "merge", "shapes"]


class Cache(NamedTuple):
    """What backward needs. It refers to the arrays: change none of them in between."""

    config: Config
    methods: Methods
    arrays: Arrays
    tokens: np.ndarray
    kept: dict[str, Any]  # by place, what the place's own backward needs


def init(rng: np.random.Generator, config: Config, dtype: DTypeLike = np.float64) -> Arrays:
    """The base arrays as GPT-2 starts: N(0, 0.02²), residual projections smaller by √(2 layers), biases 0, norms 1."""
    check_dtype("transformer.init", "dtype", dtype)
    arrays = {}
    for name, shape in shapes(config).items():
        if name.endswith("norm.weight"):
            arrays[name] = np.ones(shape, dtype)
        elif name.endswith(".bias"):
            arrays[name] = np.zeros(shape, dtype)
        else:
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            deviation = 0.02 / (2 * config.layers) ** 0.5 if residual else 0.02
            arrays[name] = (deviation * rng.standard_normal(shape)).astype(dtype)
    return arrays


def init_methods(rng: np.random.Generator, config: Config, methods: Methods, dtype: DTypeLike = np.float64) -> Arrays:
    """What the methods train, each as its own file starts it; the names that `shapes` has beyond those of the base."""
    base, arrays = shapes(config, methods), {}
    for place, spec in methods.items():
        if isinstance(spec, lora.Spec):
            out, n_in = base[f"{place}.weight"]
            p = lora.init(rng, n_in, out, spec.rank, dtype)
        elif isinstance(spec, adapter.Spec):
            p = adapter.init(rng, config.width, spec.bottleneck, dtype, spec.start)
        elif isinstance(spec, ptuning.Spec):
            p = ptuning.init(rng, len(spec.positions), config.width, spec.encoder, spec.hidden, dtype)
        elif spec.hidden is None:
            p = prefix.init(rng, config.layers, spec.length, config.kv_width, dtype)
        else:
            p = prefix.init_reparameterised(
                rng, config.layers, spec.length, config.kv_width, spec.hidden, config.width, dtype)
        arrays |= {f"{place}.{field}": array for field, array in p._asdict().items()}
    return arrays


def base_names(config: Config) -> tuple[str, ...]:
    """The names of what full fine-tuning trains, and everything else keeps frozen."""
    return tuple(shapes(config))


def forward(
    tokens: np.ndarray, arrays: Mapping[str, np.ndarray], config: Config, methods: Methods | None = None,
    mask: np.ndarray | None = None,
) -> tuple[np.ndarray, Cache]:
    """logits (batch, T, vocabulary) of the tokens (batch, T), and the cache. `mask` (batch, T) is False for padding.

    Raises ValueError for tokens or a mask of a wrong shape, dtype or range, more positions than the context has, and for
    missing, unknown or misshapen arrays.
    """
    methods = methods or {}
    run = Cache(config, methods, _checked(arrays, config, methods), tokens, {})
    prompt = methods.get("prompt")
    length, count = (methods["prefix"].length if "prefix" in methods else 0), len(prompt.positions) if prompt else 0
    _check_tokens(tokens, mask, config, length + count)
    # 1. h = embed_tokens[tokens], prompts inserted
    h = ops.embedding(tokens, arrays["embed_tokens.weight"])                                  # (batch, T, width)
    if prompt:
        prompts, run.kept["prompt"] = ptuning.forward(take(ptuning.ENCODERS[prompt.encoder], "prompt", arrays))
        h = ptuning.insert(h, prompts, prompt.positions)                                      # (batch, T + prompts, width)
        if mask is not None:
            mask = ptuning.insert(mask[..., None], np.ones((), bool), prompt.positions)[..., 0]
    # 2. h += embed_positions[…]
    T = h.shape[1]
    h += arrays["embed_positions.weight"][length : length + T]
    # 3. the layers
    past, run.kept["prefix"] = _prefix(run)
    hidden = attention.hidden(T, mask, length, h.dtype)
    for i in range(config.layers):
        h = _layer(h, i, hidden, past, run)
    # 4. logits = norm(h) lm_headᵀ at the tokens
    if prompt:
        h = h[:, ptuning.tokens_at(tokens.shape[1], prompt.positions)]
    return _linear(_norm(h, "norm", run), config.head, run), run


def backward(dlogits: np.ndarray, cache: Cache, train: Collection[str]) -> Arrays:
    """The gradient of every array named in `train`, by name; of no other is one formed. dlogits (batch, T, vocabulary).

    Raises ValueError for a name that is not there, and a shape that is not that of the logits.
    """
    config, methods, arrays, tokens, kept = cache
    unknown = [name for name in train if name not in arrays]
    if unknown:
        raise ValueError(f"transformer.backward: train has {unknown[0]!r}, expected names of arrays: {', '.join(arrays)}")
    expected = (*tokens.shape, config.vocabulary)
    if dlogits.shape != expected:
        raise ValueError(f"transformer.backward: dlogits is {dlogits.shape}, expected {expected} because the logits are")
    back = _Back(cache, frozenset(train), {})
    # 4. logits = norm(h) lm_headᵀ at the tokens
    dh = _norm_backward(_linear_backward(dlogits, config.head, back), "norm", back)
    if prompt := methods.get("prompt"):
        real, wide = ptuning.tokens_at(tokens.shape[1], prompt.positions), dh
        dh = np.zeros_like(wide, shape=(len(wide), wide.shape[1] + len(prompt.positions), config.width))
        dh[:, real] = wide
    # 3. the layers
    dpast = []
    for i in reversed(range(config.layers)):
        dh, dprefix = _layer_backward(dh, i, back)
        dpast.insert(0, dprefix)
    if "prefix" in methods:
        _prefix_backward(prefix.Prefix(*(np.stack(parts) for parts in zip(*dpast, strict=True))), back)
    # 2. h += embed_positions[…]
    if "embed_positions.weight" in back.train:
        first = methods["prefix"].length if "prefix" in methods else 0
        dE = np.zeros_like(arrays["embed_positions.weight"])
        dE[first : first + dh.shape[1]] = dh.sum(0)
        back.add("embed_positions.weight", dE)
    # 1. h = embed_tokens[tokens], prompts inserted
    if prompt:
        dh, dprompts = ptuning.insert_backward(dh, prompt.positions)
        back.add_all("prompt", ptuning.backward(dprompts, kept["prompt"]))
    if "embed_tokens.weight" in back.train:
        back.add("embed_tokens.weight", ops.embedding_backward(dh, tokens, config.vocabulary))
    return {name: back.gradients[name] for name in train}


def merge(arrays: Mapping[str, np.ndarray], config: Config, methods: Methods) -> tuple[Arrays, Methods]:
    """The same model with nothing left of LoRA but its sum in W, the prefix without its MLP, and the prompts without their
    encoder; adapters stay, since they cannot be merged. The arguments are not changed."""
    merged, left = _checked(arrays, config, methods), {}
    for place, spec in methods.items():
        if isinstance(spec, adapter.Spec):
            left[place] = spec
            continue
        own = {name: merged.pop(name) for name in list(merged) if name in shapes(config, {place: spec}, only=True)}
        if isinstance(spec, lora.Spec):
            W = f"{place}.weight"
            merged[W], _ = lora.merge(merged[W], None, take(lora.LoRA, place, own), spec.scale)
            continue
        if isinstance(spec, ptuning.Spec):
            p, left[place] = ptuning.fold(take(ptuning.ENCODERS[spec.encoder], place, own)), spec._replace(encoder="embedding")
        else:
            p = take(prefix.Reparameterised if spec.hidden else prefix.Prefix, place, own)
            p, left[place] = (prefix.fold(p, config.layers) if spec.hidden else p), spec._replace(hidden=None)
        merged |= {f"{place}.{field}": array for field, array in p._asdict().items()}
    return merged, left


class _Back(NamedTuple):
    """A backward pass on its way."""

    run: Cache
    train: frozenset[str]
    gradients: Arrays

    def add(self, name: str, gradient: np.ndarray | None) -> None:
        if name in self.train and gradient is not None:
            self.gradients[name] = self.gradients[name] + gradient if name in self.gradients else gradient

    def add_all(self, place: str, gradients: Any) -> None:
        for field, gradient in gradients._asdict().items():
            self.add(f"{place}.{field}", gradient)


def _layer(h: np.ndarray, i: int, hidden: np.ndarray, past: prefix.Prefix | None, run: Cache) -> np.ndarray:
    name = f"layers.{i}"
    own = None if past is None else prefix.Prefix(past.keys[i], past.values[i])
    # 1. h += attention(norm(h))
    h = h + _with_adapters(_norm(h, f"{name}.attention_norm", run), f"{name}.attention", run,
                           lambda x: _attention(x, name, hidden, own, run))
    # 2. h += mlp(norm(h))
    h += _with_adapters(_norm(h, f"{name}.mlp_norm", run), f"{name}.mlp", run, lambda x: _mlp(x, name, run))
    # 3. h += Ad(h)
    return _behind(h, f"{name}.output", run)


def _layer_backward(dh: np.ndarray, i: int, back: _Back) -> tuple[np.ndarray, prefix.Prefix | None]:
    name, dprefix = f"layers.{i}", []

    def through_attention(dy: np.ndarray) -> np.ndarray:
        dx, d = _attention_backward(dy, name, back)
        dprefix.append(d)
        return dx

    # 3. h += Ad(h)
    dh = _behind_backward(dh, f"{name}.output", back)
    # 2. h += mlp(norm(h))
    dx = _with_adapters_backward(dh, f"{name}.mlp", back, lambda dy: _mlp_backward(dy, name, back))
    dh = dh + _norm_backward(dx, f"{name}.mlp_norm", back)
    # 1. h += attention(norm(h))
    dx = _with_adapters_backward(dh, f"{name}.attention", back, through_attention)
    dh += _norm_backward(dx, f"{name}.attention_norm", back)
    return dh, dprefix[0]


def _attention(x: np.ndarray, name: str, hidden: np.ndarray, past: prefix.Prefix | None, run: Cache) -> np.ndarray:
    config = run.config
    # 1. q, k, v
    if config.fused:
        q, k, v = np.split(_linear(x, f"{name}.qkv_proj", run), config.splits, axis=-1)
    else:
        q, k, v = (_linear(x, f"{name}.{part}_proj", run) for part in "qkv")
    # 2. y = o_proj(softmax(q kᵀ) v)
    y, run.kept[f"{name}.{ATTENTION}.core"] = attention.forward(q, k, v, hidden, config.kv_heads, config.size, past)
    return _linear(y, f"{name}.o_proj", run)


def _attention_backward(dy: np.ndarray, name: str, back: _Back) -> tuple[np.ndarray, prefix.Prefix | None]:
    # 2. y = o_proj(softmax(q kᵀ) v)
    dy = _linear_backward(dy, f"{name}.o_proj", back)
    *parts, dprefix = attention.backward(dy, back.run.kept[f"{name}.{ATTENTION}.core"])
    # 1. q, k, v
    if back.run.config.fused:
        return _linear_backward(np.concatenate(parts, axis=-1), f"{name}.qkv_proj", back), dprefix
    dq, dk, dv = (_linear_backward(d, f"{name}.{part}_proj", back) for part, d in zip("qkv", parts, strict=True))
    dq += dk
    dq += dv
    return dq, dprefix


def _mlp(x: np.ndarray, name: str, run: Cache) -> np.ndarray:
    f = ops.ACTIVATIONS[run.config.activation][0]
    # 1. a = f(up x), or f(gate x) · up x
    up = _linear(x, f"{name}.up_proj", run)
    if run.config.activation == "silu":
        gate, inner = f(_linear(x, f"{name}.gate_proj", run))
        run.kept[f"{name}.{MLP}.core"] = inner, gate, up
        a = gate * up
    else:
        a, run.kept[f"{name}.{MLP}.core"] = f(up)
    # 2. y = down a
    return _linear(a, f"{name}.down_proj", run)


def _mlp_backward(dy: np.ndarray, name: str, back: _Back) -> np.ndarray:
    f_backward, kept = ops.ACTIVATIONS[back.run.config.activation][1], back.run.kept[f"{name}.{MLP}.core"]
    # 2. y = down a
    da = _linear_backward(dy, f"{name}.down_proj", back)
    # 1. a = f(up x), or f(gate x) · up x
    if back.run.config.activation != "silu":
        return _linear_backward(f_backward(da, kept), f"{name}.up_proj", back)
    inner, gate, up = kept
    dx = _linear_backward(f_backward(da * up, inner), f"{name}.gate_proj", back)
    dx += _linear_backward(da * gate, f"{name}.up_proj", back)
    return dx


def _with_adapters(x: np.ndarray, place: str, run: Cache, sub: Any) -> np.ndarray:
    """The sub-layer of x, with what is beside it and behind it."""
    y = sub(x)
    if place in run.methods:  # y += Ad(x)
        more, run.kept[place] = _adapter(x, place, run)
        y += more
    return _behind(y, f"{place}.output", run)


def _with_adapters_backward(dy: np.ndarray, place: str, back: _Back, sub: Any) -> np.ndarray:
    dy = _behind_backward(dy, f"{place}.output", back)
    dx = sub(dy)
    if place in back.run.methods:
        more, dp = adapter.backward(dy, back.run.kept[place])
        back.add_all(place, dp)
        dx += more
    return dx


def _behind(y: np.ndarray, place: str, run: Cache) -> np.ndarray:
    """y + Ad(y), if there is an adapter at the place."""
    if place not in run.methods:
        return y
    more, run.kept[place] = _adapter(y, place, run)
    return y + more


def _behind_backward(dy: np.ndarray, place: str, back: _Back) -> np.ndarray:
    if place not in back.run.methods:
        return dy
    more, dp = adapter.backward(dy, back.run.kept[place])
    back.add_all(place, dp)
    return dy + more


def _adapter(x: np.ndarray, place: str, run: Cache) -> tuple[np.ndarray, adapter.Cache]:
    spec = run.methods[place]
    return adapter.forward(x, take(adapter.Adapter, place, run.arrays), spec.activation, spec.scale)


def _linear(x: np.ndarray, place: str, run: Cache) -> np.ndarray:
    """x Wᵀ + b, and LoRA if it is there."""
    W, b = run.arrays[f"{place}.weight"], run.arrays.get(f"{place}.bias")
    if spec := run.methods.get(place):
        y, cache = lora.forward(x, W, b, take(lora.LoRA, place, run.arrays), spec.scale)
    else:
        y, cache = linear.forward(x, W, b)
    run.kept[place] = x, cache
    return y


def _linear_backward(dy: np.ndarray, place: str, back: _Back) -> np.ndarray:
    x, cache = back.run.kept[place]
    # y = x Wᵀ + b: what the package's frozen layer has no need of
    if f"{place}.weight" in back.train:
        back.add(f"{place}.weight", rows(dy).T @ rows(x))                                     # (out, in)
    if f"{place}.bias" in back.train:
        back.add(f"{place}.bias", rows(dy).sum(0))
    if isinstance(cache, lora.Cache):
        dx, dp = lora.backward(dy, cache)
        back.add_all(place, dp)
        return dx
    return linear.backward(dy, cache)


def _norm(h: np.ndarray, place: str, run: Cache) -> np.ndarray:
    y, run.kept[place] = ops.norm(h, run.arrays[f"{place}.weight"], run.arrays.get(f"{place}.bias"))
    return y


def _norm_backward(dy: np.ndarray, place: str, back: _Back) -> np.ndarray:
    cache = back.run.kept[place]
    if f"{place}.weight" in back.train or f"{place}.bias" in back.train:
        dw, db = ops.norm_weights(dy, cache)
        back.add(f"{place}.weight", dw)
        back.add(f"{place}.bias", db)
    return ops.norm_backward(dy, cache)


def _prefix(run: Cache) -> tuple[prefix.Prefix | None, prefix.Cache | None]:
    """The keys and values of all layers."""
    if "prefix" not in run.methods:
        return None, None
    if run.methods["prefix"].hidden is None:
        return take(prefix.Prefix, "prefix", run.arrays), None
    return prefix.forward(take(prefix.Reparameterised, "prefix", run.arrays), run.config.layers)


def _prefix_backward(dprefix: prefix.Prefix, back: _Back) -> None:
    cache = back.run.kept["prefix"]
    back.add_all("prefix", dprefix if cache is None else prefix.backward(dprefix, cache))


def _checked(arrays: Mapping[str, np.ndarray], config: Config, methods: Methods) -> Arrays:
    """The arrays as a dict. Raises ValueError for what is missing, unknown, misshapen or of a dtype of its own."""
    expected, first = shapes(config, methods), next(iter(arrays.values()), None)
    for name in (*expected, *arrays):
        if name not in arrays or name not in expected:
            what = "is missing from" if name in expected else "is unknown among"
            raise ValueError(f"transformer: {name} {what} arrays, expected the names that shapes(config, methods) gives")
    dtype = check_dtype("transformer", next(iter(expected)), first.dtype if isinstance(first, np.ndarray) else object)
    for name, shape in expected.items():
        array = arrays[name]
        if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
            got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            raise ValueError(f"transformer: {name} is {got}, expected {dtype} {shape} because of config and the other arrays")
    return dict(arrays)


def _check_tokens(tokens: np.ndarray, mask: np.ndarray | None, config: Config, virtual: int) -> None:
    if not isinstance(tokens, np.ndarray) or tokens.ndim != 2 or tokens.dtype.kind not in "iu":
        got = f"{tokens.dtype} {tokens.shape}" if isinstance(tokens, np.ndarray) else type(tokens).__name__
        raise ValueError(f"transformer.forward: tokens is {got}, expected integers (batch, T)")
    if tokens.size and not (tokens.min() >= 0 and tokens.max() < config.vocabulary):
        span, top = f"{tokens.min()} … {tokens.max()}", config.vocabulary - 1
        raise ValueError(f"transformer.forward: tokens are {span}, expected 0 … {top} because of the vocabulary")
    if tokens.shape[1] + virtual > config.context:
        got = f"{tokens.shape[1]} tokens and {virtual} virtual ones"
        raise ValueError(f"transformer.forward: there are {got}, expected at most {config.context} because that is the context")
    if mask is not None and not (isinstance(mask, np.ndarray) and mask.dtype == bool and mask.shape == tokens.shape):
        got = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        raise ValueError(f"transformer.forward: mask is {got}, expected bool {tokens.shape} because tokens is {tokens.shape}")
