"""A small causal transformer with hand-written gradients, and every method of this package on any of its places, by name.

    1. h = embed_tokens[tokens], prompts inserted
    2. h += embed_positions[length of the prefix, …]
    3. in each layer   h += attention(norm(h)),  h += mlp(norm(h))
    4. logits = norm(h) lm_headᵀ at the tokens

    tokens (batch, T)    h (batch, T + prompts, width)    logits (batch, T, vocabulary): one row for each token, whatever
    prompts and prefix there are, so that logits[:, t] always speaks of the token after tokens[:, t]

All arrays are in one dict by name. `methods` says which method is at which place, and `train` says which arrays get a
gradient. LoRA stands at a linear layer: "layers.0.q_proj" (k_proj, v_proj, o_proj, up_proj, gate_proj, down_proj; qkv_proj if
fused), "lm_head". An adapter stands behind a sub-layer ("layers.0.attention.output", "layers.0.mlp.output": Houlsby), behind
the layer ("layers.0.output": Pfeiffer), or beside a sub-layer ("layers.0.attention", "layers.0.mlp": parallel). A prefix
stands at "prefix", prompts stand at "prompt". For full fine-tuning, `train` has the names of the base arrays. `places.py` says
what a further method needs.

Sources: Vaswani et al. 2017; Radford et al. 2019 (GPT-2: norms first, learned positions, GELU with tanh, residual projections
that start smaller by √(2 layers)); Touvron et al. 2023 and Shazeer 2020 (RMSNorm, gated SiLU). Left out: dropout, rotary
positions, a cache of keys for generation.
"""

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import DTypeLike

from lora_ref import attention, block, ops, prefix, ptuning
from lora_ref.block import Cache
from lora_ref.checks import check_tokens, check_train, checked_arrays
from lora_ref.places import Arrays, Config, Methods, method_arrays, method_of, shapes, sizes, trained_names
from lora_ref.shapes import check_dtype

__all__ = ["Cache", "Config", "backward", "base_names", "forward", "init", "init_methods", "merge", "shapes", "trained_names"]


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
    """The arrays that the methods add, as each method starts them. `trained_names` says which of them train."""
    arrays = {}
    for place, own in methods.items():
        p = method_of(own, place).init_at(rng, own, *sizes(config, place, own), dtype)
        arrays |= {f"{place}.{name}": array for name, array in p._asdict().items()}
    return arrays


def base_names(config: Config) -> tuple[str, ...]:
    """The names of the base arrays. Full fine-tuning trains all of them; every method keeps them frozen."""
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
    arrays = checked_arrays(arrays, config, methods)
    cache = Cache(config, methods, arrays, method_arrays(config, methods, arrays), tokens, {})
    length, positions = virtual(methods)
    check_tokens(tokens, mask, config, length + len(positions))
    # 1. h = embed_tokens[tokens], prompts inserted
    h = ops.embedding(tokens, arrays["embed_tokens.weight"])                                  # (batch, T, width)
    if "prompt" in methods:
        prompts, cache.caches["prompt"] = method_of(methods["prompt"], "prompt").forward(cache.p["prompt"])
        h = ptuning.insert(h, prompts, positions)                                             # (batch, T + prompts, width)
        if mask is not None:
            mask = ptuning.insert(mask[..., None], np.ones((), bool), positions)[..., 0]
    # 2. h += embed_positions[length of the prefix, …]
    T = h.shape[1]
    h = h + arrays["embed_positions.weight"][length : length + T]
    # 3. the layers
    past = None
    if "prefix" in methods:
        past, cache.caches["prefix"] = method_of(methods["prefix"], "prefix").forward(cache.p["prefix"], config.layers)
    attention_mask = attention.attention_mask(T, mask, length, h.dtype)
    for i in range(config.layers):
        own = None if past is None else prefix.Prefix(past.keys[i], past.values[i])
        h = block.forward(h, i, attention_mask, own, cache)
    # 4. logits = norm(h) lm_headᵀ at the tokens
    h = h[:, ptuning.tokens_at(tokens.shape[1], positions)]                                   # (batch, T, width)
    return block.linear_forward(block.norm_forward(h, "norm", cache), config.output_layer, cache), cache


def backward(dlogits: np.ndarray, cache: Cache, train: Collection[str]) -> Arrays:
    """The gradients of the arrays named in `train`, by name. No other gradient is formed. dlogits (batch, T, vocabulary).

    Raises ValueError for a name that no array has or that a method keeps frozen, and for a shape that is not that of the
    logits.
    """
    config, methods, arrays, _, tokens, caches = cache
    check_train(train, arrays, config, methods)
    expected = (*tokens.shape, config.vocabulary)
    if dlogits.shape != expected:
        raise ValueError(f"transformer.backward: dlogits is {dlogits.shape}, expected {expected} because the logits are")
    length, positions = virtual(methods)
    back = block.Backward(cache, frozenset(train), {}, [])
    # 4. logits = norm(h) lm_headᵀ at the tokens
    dtokens = block.norm_backward(block.linear_backward(dlogits, config.output_layer, back), "norm", back)
    dh = np.zeros_like(dtokens, shape=(len(tokens), tokens.shape[1] + len(positions), config.width))
    dh[:, ptuning.tokens_at(tokens.shape[1], positions)] = dtokens
    # 3. the layers
    for i in reversed(range(config.layers)):
        dh = block.backward(dh, i, back)
    if "prefix" in methods:
        dkeys, dvalues = (np.stack(layers[::-1]) for layers in zip(*back.dprefixes, strict=True))
        dp = method_of(methods["prefix"], "prefix").backward(prefix.Prefix(dkeys, dvalues), caches["prefix"])
        back.add_all("prefix", dp)
    # 2. h += embed_positions[length of the prefix, …]
    if "embed_positions.weight" in back.train:
        dE = np.zeros_like(arrays["embed_positions.weight"])
        dE[length : length + dh.shape[1]] = dh.sum(0)
        back.add("embed_positions.weight", dE)
    # 1. h = embed_tokens[tokens], prompts inserted
    if "prompt" in methods:
        dh, dprompts = ptuning.insert_backward(dh, positions)
        back.add_all("prompt", method_of(methods["prompt"], "prompt").backward(dprompts, caches["prompt"]))
    if "embed_tokens.weight" in back.train:
        back.add("embed_tokens.weight", ops.embedding_backward(dh, tokens, config.vocabulary))
    return {name: back.gradients[name] for name in train}


def merge(arrays: Mapping[str, np.ndarray], config: Config, methods: Methods) -> tuple[Arrays, Methods]:
    """The same model with every method merged that can be merged, and the methods that are left.

    A method at a linear layer goes into W and b. A prefix loses its MLP, prompts lose their encoder. Adapters stay. No
    argument is changed.
    """
    merged, left = checked_arrays(arrays, config, methods), {}
    for place, p in method_arrays(config, methods, merged).items():
        own, method = methods[place], method_of(methods[place], place)
        if not hasattr(method, "merge"):
            left[place] = own
            continue
        for name in p._fields:
            del merged[f"{place}.{name}"]
        if method.PLACE == "linear":
            W, b = method.merge(merged[f"{place}.weight"], merged.get(f"{place}.bias"), p, own.scale)
            merged[f"{place}.weight"] = W
            if b is not None:
                merged[f"{place}.bias"] = b
        else:
            p, left[place] = method.merge(p, config.layers) if place == "prefix" else method.merge(p), own.merged
            merged |= {f"{place}.{name}": array for name, array in p._asdict().items()}
    return merged, left


def virtual(methods: Methods) -> tuple[int, tuple[int, ...]]:
    """The length of the prefix and the positions of the prompts; 0 and none where there is no such method."""
    length = methods["prefix"].length if "prefix" in methods else 0
    return length, methods["prompt"].positions if "prompt" in methods else ()
