"""A small Llama with random weights: its checkpoint, as Hugging Face has it, and its logits in NumPy.

Some readers show no ΔW. There the logits for TOKENS decide. Every weight is a multiple of 1/128, so that ΔW is exact in
float32.

    h = embed_tokens[tokens]
    in each layer   h += o_proj(attention(rotated q, rotated k, v)) of norm(h),   h += down(silu(gate) · up) of norm(h)
    logits = norm(h) lm_headᵀ                                              # (T, vocabulary)

Sources: Touvron et al. 2023; Su et al. 2021 (rotary positions); the names and the order of rows are those of transformers.
"""

import json
from pathlib import Path

import numpy as np

from conformance.files.binary import Arrays, safetensors
from conformance.files.corpus.made import drawn

WIDTH, INNER, HEADS, KV_HEADS, SIZE, LAYERS, VOCABULARY = 64, 96, 2, 1, 32, 2, 256  # SIZE is that of a head
EPSILON, THETA = 1e-5, 10000.0
TOKENS = (1, 17, 200, 44, 91, 3, 250, 128)
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": INNER,
    "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": SIZE,
    "vocab_size": VOCABULARY, "max_position_embeddings": 64, "rms_norm_eps": EPSILON, "rope_theta": THETA, "hidden_act": "silu",
    "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
    "torch_dtype": "float32",
}
SHAPES = {
    "self_attn.q_proj": (HEADS * SIZE, WIDTH), "self_attn.k_proj": (KV_HEADS * SIZE, WIDTH),
    "self_attn.v_proj": (KV_HEADS * SIZE, WIDTH), "self_attn.o_proj": (WIDTH, HEADS * SIZE),
    "mlp.gate_proj": (INNER, WIDTH), "mlp.up_proj": (INNER, WIDTH), "mlp.down_proj": (WIDTH, INNER),
}
NORMS = [f"model.layers.{i}.{name}_layernorm.weight" for i in range(LAYERS) for name in ("input", "post_attention")]


def weights() -> Arrays:
    """W of every module that can have an adapter, by the name of the weight."""
    shapes = {f"model.layers.{i}.{name}": shape for i in range(LAYERS) for name, shape in SHAPES.items()}
    shapes |= {"model.embed_tokens": (VOCABULARY, WIDTH), "lm_head": (VOCABULARY, WIDTH)}
    return {f"{module}.weight": drawn(f"W {module}", *shape) / 8 for module, shape in shapes.items()}


def norms() -> Arrays:
    """The weights of the norms, between 1/2 and 3/2."""
    return {name: 1 + drawn(name, WIDTH) / 2 for name in [*NORMS, "model.norm.weight"]}


def biases() -> Arrays:
    """Zeros, so that a reader has where to put the biases of an adapter."""
    shapes = {f"model.layers.{i}.{name}.bias": shape[0] for i in range(LAYERS) for name, shape in SHAPES.items()}
    return {name: np.zeros(size, np.float32) for name, size in shapes.items()}


def checkpoint(folder: Path, base: Arrays, biased: bool = True) -> None:
    """Writes the model with these weights, and biases of zeros unless it has none, as Hugging Face's libraries read it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG | {"attention_bias": biased, "mlp_bias": biased}
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    arrays = base | norms() | (biases() if biased else {})
    (folder / "model.safetensors").write_bytes(safetensors(arrays, {"format": "pt"}))


def logits(arrays: Arrays) -> np.ndarray:
    """(T, VOCABULARY) for TOKENS, from the weights by name, those of the norms included, in their dtype. A module may have a
    bias."""
    def linear(x, module):
        y = x @ arrays[f"{module}.weight"].T
        return y + arrays[f"{module}.bias"] if f"{module}.bias" in arrays else y

    def norm(x, name):
        return x / np.sqrt((x * x).sum(-1, keepdims=True) / WIDTH + EPSILON) * arrays[name]

    def heads(x, count):
        return x.reshape(len(TOKENS), count, SIZE).swapaxes(0, 1)  # (count, T, SIZE)

    def rotated(x):
        first, second = x[..., : SIZE // 2], x[..., SIZE // 2 :]
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)

    angles = np.arange(len(TOKENS))[:, None] * THETA ** (-np.arange(SIZE // 2) / (SIZE // 2))
    cos, sin = np.cos(angles), np.sin(angles)
    ahead = np.triu(np.full((len(TOKENS), len(TOKENS)), -1e9), 1)
    own = np.arange(HEADS) * KV_HEADS // HEADS  # the key and value that each head uses
    h = arrays["model.embed_tokens.weight"][list(TOKENS)]  # (T, WIDTH)
    for i in range(LAYERS):
        at = f"model.layers.{i}"
        x = norm(h, f"{at}.input_layernorm.weight")
        q, k, v = (heads(linear(x, f"{at}.self_attn.{name}_proj"), count)
                   for name, count in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)))
        scores = rotated(q) @ rotated(k)[own].swapaxes(1, 2) / SIZE**0.5 + ahead  # (HEADS, T, T)
        likely = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = likely / likely.sum(-1, keepdims=True) @ v[own]  # (HEADS, T, SIZE)
        h = h + linear(mixed.swapaxes(0, 1).reshape(len(TOKENS), HEADS * SIZE), f"{at}.self_attn.o_proj")
        x = norm(h, f"{at}.post_attention_layernorm.weight")
        gate = linear(x, f"{at}.mlp.gate_proj")
        h = h + linear(gate / (1 + np.exp(-gate)) * linear(x, f"{at}.mlp.up_proj"), f"{at}.mlp.down_proj")
    return linear(norm(h, "model.norm.weight"), "lm_head")
