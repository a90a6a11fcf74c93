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

import numpy as np
from numpy.typing import DTypeLike

from lora_ref import adapter, attention, block, lora, ops, prefix, ptuning
from lora_ref.block import Cache
from lora_ref.places import Arrays, Config, Methods, shapes, take
from lora_ref.shapes import check_dtype

__all__ = ["Cache", "Config", "backward", "base_names", "forward", "init", "init_methods", "merge", "shapes"]


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
        h = block.layer(h, i, hidden, past, run)
    # 4. logits = norm(h) lm_headᵀ at the tokens
    if prompt:
        h = h[:, ptuning.tokens_at(tokens.shape[1], prompt.positions)]
    return block.linear_forward(block.norm_forward(h, "norm", run), config.head, run), run


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
    back = block.Back(cache, frozenset(train), {}, [])
    # 4. logits = norm(h) lm_headᵀ at the tokens
    dh = block.norm_backward(block.linear_backward(dlogits, config.head, back), "norm", back)
    if prompt := methods.get("prompt"):
        real, wide = ptuning.tokens_at(tokens.shape[1], prompt.positions), dh
        dh = np.zeros_like(wide, shape=(len(wide), wide.shape[1] + len(prompt.positions), config.width))
        dh[:, real] = wide
    # 3. the layers
    for i in reversed(range(config.layers)):
        dh = block.layer_backward(dh, i, back)
    if "prefix" in methods:
        _prefix_backward(back)
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
        own = {name: merged.pop(name) for name in shapes(config, {place: spec}, only=True)}
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


def _prefix(run: Cache) -> tuple[prefix.Prefix | None, prefix.Cache | None]:
    """The keys and values of all layers."""
    if "prefix" not in run.methods:
        return None, None
    if run.methods["prefix"].hidden is None:
        return take(prefix.Prefix, "prefix", run.arrays), None
    return prefix.forward(take(prefix.Reparameterised, "prefix", run.arrays), run.config.layers)


def _prefix_backward(back: block.Back) -> None:
    dprefix = prefix.Prefix(*(np.stack(parts[::-1]) for parts in zip(*back.dpast, strict=True)))
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
