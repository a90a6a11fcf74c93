"""One fine-tuning of the comparison: a method on the pretrained model, trained with AdamW on words of the language."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lora_ref import ops, optim, transformer
from lora_ref.places import Arrays, Config, Methods
from lora_ref.study import language

CONFIG = Config(vocabulary=32, width=64, layers=2, heads=4, kv_heads=4, mlp_width=256, context=64)
LENGTH, BATCH = 32, 16  # words in a sequence, sequences in a training step


class Method(NamedTuple):
    """A way to fine-tune: the methods at their places, and whether the base trains too."""

    name: str
    methods: Methods
    full: bool = False
    config: Config = CONFIG


def start(base: Arrays, method: Method, rng: np.random.Generator) -> tuple[Arrays, list[str]]:
    """The base with a fresh method on it, and the names of what trains."""
    arrays = fused(base) if method.config.fused else dict(base)
    own = transformer.init_methods(rng, method.config, method.methods, np.float32)
    return arrays | own, list(arrays if method.full else transformer.trained_names(method.config, method.methods))


def fused(arrays: Arrays) -> Arrays:
    """The same model with one matrix for q, k and v."""
    joined = {}
    for name, a in arrays.items():
        if ".k_proj." not in name and ".v_proj." not in name:
            parts = [arrays[name.replace(".q_proj.", f".{part}_proj.")] for part in "qkv"] if ".q_proj." in name else [a]
            joined[name.replace(".q_proj.", ".qkv_proj.")] = np.concatenate(parts)
    return joined


def train(
    arrays: Arrays, names: list[str], config: Config, methods: Methods, source: language.Language, rng: np.random.Generator,
    rate: float, steps: int, tick: Callable[[], None],
) -> Arrays:
    """The arrays after `steps` steps of AdamW without decay. The rate rises over the first 20 steps, then falls to 0."""
    state = optim.adamw_init({name: arrays[name] for name in names})
    for i in range(steps):
        words = language.sample(rng, source, BATCH, LENGTH + 1)
        now = rate * min(1, (i + 1) / 20) * (1 - i / steps)
        arrays, state = step(arrays, names, config, methods, words, now, state)
        tick()
    return arrays


def step(
    arrays: Arrays, names: list[str], config: Config, methods: Methods, words: np.ndarray, rate: float, state: optim.State
) -> tuple[Arrays, optim.State]:
    """The arrays and AdamW's state after one step on these words."""
    logits, cache = transformer.forward(words[:, :-1], arrays, config, methods)
    _, kept = ops.loss(logits, words[:, 1:])
    gradients = transformer.backward(ops.loss_backward(kept), cache, names)
    return optim.adamw(arrays, gradients, state, rate, decay=0.0)


def loss(arrays: Arrays, config: Config, methods: Methods, words: np.ndarray) -> float:
    """The mean loss over the words from the third on, because a word depends on the two before it."""
    logits, _ = transformer.forward(words[:, :-1], arrays, config, methods)
    return float(ops.loss(logits[:, 1:], words[:, 2:])[0])
