"""The model and the adapter of merged checkpoints. judge.py says how much of ΔW is left once W + ΔW is stored.

W is normal with a deviation of 0.07 and stored in the dtype. ΔW of rank 4 is about 1 % of W, as after a fine-tuning. A and B
are exact in every dtype.
"""

from typing import Any

import ml_dtypes
import numpy as np

from conformance.files import llama
from conformance.files.binary import Arrays
from conformance.files.corpus.made import drawn

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
SETTINGS: dict[str, Any] = {"r": 4, "lora_alpha": 3, "target_modules": ["q_proj", "v_proj"]}
SCALE = SETTINGS["lora_alpha"] / SETTINGS["r"]


def targets() -> list[str]:
    return [f"model.layers.{i}.self_attn.{name}" for i in range(llama.LAYERS) for name in SETTINGS["target_modules"]]


def factors(module: str) -> tuple[np.ndarray, np.ndarray]:
    """A (rank, in) and B (out, rank), float32."""
    rows, columns = llama.SHAPES[module.partition(".")[2].partition(".")[2].partition(".")[2]]
    return drawn(f"A {module}", SETTINGS["r"], columns) / 32, drawn(f"B {module}", rows, SETTINGS["r"]) / 32


def base(dtype: str) -> Arrays:
    """All weights of the Llama, in the dtype."""
    rng = np.random.default_rng(0)
    every = {name: 0.07 * rng.standard_normal(array.shape) for name, array in llama.weights().items()}
    return {name: array.astype(DTYPES[dtype]) for name, array in (every | llama.norms()).items()}


def llama_of(dtype: str):
    """The model of transformers with these weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings: dict[str, Any] = llama.CONFIG | {"attention_bias": False, "mlp_bias": False}
    model = LlamaForCausalLM(LlamaConfig(**settings))
    state = {name: torch.from_numpy(array.astype(np.float32)) for name, array in base(dtype).items()}
    model.load_state_dict(state)  # float32 holds all of them
    return model.to(getattr(torch, dtype))
