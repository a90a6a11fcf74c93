"""torchtune's own adapter checkpoint, loaded into its Llama as its recipes do.

Rank and alpha are those of the settings beside it. ΔW is measured in torchtune's order of rows and given in that of Hugging
Face, by torchtune's own conversion of weights.
"""

import json
from pathlib import Path

import numpy as np

from conformance.files import llama
from conformance.files.binary import Arrays

NEEDS, ENVIRONMENT = ("torch", "torchtune"), "torch-old"
CORPUS, LOGITS = False, False
FORMATS = ("torchtune",)
NAMES = {  # of the modules of a layer: Hugging Face → torchtune
    "q_proj": "attn.q_proj", "k_proj": "attn.k_proj", "v_proj": "attn.v_proj", "o_proj": "attn.output_proj",
    "gate_proj": "mlp.w1", "down_proj": "mlp.w2", "up_proj": "mlp.w3",
}
MLP = {"gate_proj", "down_proj", "up_proj"}
SIZES = {"num_heads": llama.HEADS, "num_kv_heads": llama.KV_HEADS, "dim": llama.WIDTH}


def read(place: str, base: Arrays) -> Arrays:
    from torchtune.modules.peft import validate_missing_and_unexpected_for_lora
    from torchtune.training.checkpointing._utils import safe_torch_load

    said = json.loads(Path(place, "adapter_config.json").read_text(encoding="utf-8"))
    targets = said["target_modules"]
    model = model_of(base, targets, said["r"], said["lora_alpha"])
    missing, unexpected = model.load_state_dict(safe_torch_load(Path(place, "adapter_model.pt")), strict=False)
    validate_missing_and_unexpected_for_lora(
        lora_attn_modules=attention(targets), apply_lora_to_mlp=bool(MLP & set(targets)),
        apply_lora_to_output="lm_head" in targets, lora_missing=missing, lora_unexpected=unexpected)
    return deltas(model, base)


def attention(targets: list[str]) -> list[str]:
    return [NAMES[name].rpartition(".")[2] for name in targets if name in NAMES and name not in MLP]


def model_of(base: Arrays, targets: list[str], rank: int, alpha: float, dropout: float = 0.0):
    """torchtune's Llama of llama.py, with LoRA at these targets. Raises ValueError for some of the MLP's modules alone."""
    import torch
    from torchtune.models.convert_weights import hf_to_tune
    from torchtune.models.llama3 import lora_llama3

    if MLP & set(targets) not in (set(), MLP):
        raise ValueError(f"LoRA in {', '.join(sorted(MLP & set(targets)))} alone")
    model = lora_llama3(
        attention(targets), bool(MLP & set(targets)), "lm_head" in targets, vocab_size=llama.VOCABULARY,
        num_layers=llama.LAYERS, num_heads=llama.HEADS, num_kv_heads=llama.KV_HEADS, embed_dim=llama.WIDTH, max_seq_len=64,
        intermediate_dim=llama.INNER, norm_eps=llama.EPSILON, rope_base=int(llama.THETA), lora_rank=rank, lora_alpha=alpha,
        lora_dropout=dropout)
    state = {name: torch.from_numpy(array) for name, array in (base | llama.norms()).items()}
    _, unexpected = model.load_state_dict(hf_to_tune(state, **SIZES), strict=False)
    assert not unexpected, unexpected
    return model.eval()


def deltas(model, base: Arrays) -> Arrays:
    """ΔW of every module that computes something else than with the base weights, under its name in Hugging Face's models."""
    import torch
    from torchtune.models.convert_weights import tune_to_hf

    found = {}
    with torch.no_grad():
        for name, module in model.named_modules():
            if hasattr(module, "lora_a"):
                found[f"{name}.weight"] = module(torch.eye(module.in_dim)).double().T - module.weight.double()
        turned = tune_to_hf(found, **SIZES)
    return {name.removesuffix(".weight"): np.asarray(delta) for name, delta in turned.items() if delta.any()}
