"""Small transformers with each fine-tuning method, which several tests use."""

from typing import Any, NamedTuple

import numpy as np

from lora_ref import adapter, lora, ops, prefix, ptuning, transformer
from lora_ref.places import Arrays, Config, Methods

BASE = Config(vocabulary=7, width=8, layers=2, heads=4, kv_heads=4, mlp_width=6, context=12)
CONFIGS = {
    "gelu": BASE,
    "tied": BASE._replace(tied=True, bias=False),
    "grouped": BASE._replace(kv_heads=2, activation="silu", norm="rms"),
    "fused": BASE._replace(kv_heads=2, fused=True),
}
METHODS: dict[str, Methods] = {
    "full": {},
    "lora": {
        "layers.0.q_proj": lora.Config(2, 1.5), "layers.0.v_proj": lora.Config(3, -0.5),
        "layers.1.down_proj": lora.Config(1, 2.0),
    },
    "houlsby": {f"layers.{i}.{part}.output": adapter.Config(3, "gelu") for i in range(2) for part in ("attention", "mlp")},
    "pfeiffer": {f"layers.{i}.output": adapter.Config(3, "relu") for i in range(2)},
    "parallel": {"layers.0.mlp": adapter.Config(3, "relu", 4.0), "layers.1.attention": adapter.Config(2, "silu", 0.5)},
    "prefix": {"prefix": prefix.Config(3)},
    "prefix-mlp": {"prefix": prefix.Config(2, hidden_size=4)},
    "prompt": {"prompt": ptuning.Config((0, 3))},
    "prompt-mlp": {"prompt": ptuning.Config((1, 6), "mlp", 9)},
    "prompt-lstm": {"prompt": ptuning.Config((1, 2, 4), "lstm", 3)},
    "everything": {
        "layers.1.o_proj": lora.Config(2, 0.5), "layers.0.mlp.output": adapter.Config(2), "prefix": prefix.Config(2),
        "prompt": ptuning.Config((0,)),
    },
}


class Trial(NamedTuple):
    config: Config
    methods: Methods
    arrays: Arrays
    tokens: np.ndarray
    targets: np.ndarray
    mask: np.ndarray | None


def trial(config: str, method: str, seed: int = 0, dtype: Any = np.float64, mask: bool = False) -> Trial:
    """Nothing at its initial value: every array is moved by a third."""
    c, methods = CONFIGS[config], METHODS[method]
    if c.fused and method == "lora":  # of one matrix
        methods = {"layers.0.qkv_proj": lora.Config(2, 1.5), "lm_head": lora.Config(1, 2.0)}
    rng = np.random.default_rng(seed)
    arrays = transformer.init(rng, c) | transformer.init_methods(rng, c, methods)
    arrays = {name: (a + 0.3 * rng.standard_normal(a.shape)).astype(dtype) for name, a in arrays.items()}
    tokens, targets = rng.integers(0, c.vocabulary, (2, 2, 5))
    targets[0, -1] = ops.IGNORED
    seen = np.ones((2, 5), bool)
    seen[0, :2] = seen[1, -1] = False
    return Trial(c, methods, arrays, tokens, targets, seen if mask else None)


def run(t: Trial, arrays: Any = None, train: Any = None) -> dict[str, np.ndarray]:
    """logits, loss, and the gradients of what trains: of all arrays unless `train` says which."""
    arrays = t.arrays if arrays is None else arrays
    logits, cache = transformer.forward(t.tokens, arrays, t.config, t.methods, t.mask)
    loss, kept = ops.loss(logits, t.targets)
    gradients = transformer.backward(ops.loss_backward(kept), cache, list(arrays) if train is None else train)
    return {"logits": logits, "loss": np.asanyarray(loss)} | gradients
