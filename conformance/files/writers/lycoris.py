"""lycoris' LycorisNetwork of LoRA, and its save_weights: kohya's format."""

import re

from conformance.files.binary import Arrays
from conformance.files.readers.lycoris import kohya
from conformance.files.torch_model import measured, model_of, set_factors
from conformance.files.writers import NotOffered, only

NEEDS, ENVIRONMENT = ("torch", "lycoris"), "torch"
FORMATS = ("kohya",)


def write(settings: dict, folder: str, base: Arrays) -> Arrays:
    import os

    from lycoris.wrapper import LycorisNetwork

    only(settings, "use_rslora", "lora_dropout", "rank_pattern", "alpha_pattern", "exclude_modules")
    targets = settings["target_modules"]
    if targets in ("all-linear", ["embed_tokens"]):
        raise NotOffered("an embedding" if "embed_tokens" in targets else "all linear layers by a word")
    model = model_of(base)
    names = re.compile(targets) if isinstance(targets, str) else None
    modules = [name for name, _ in model.named_modules()
               if (names.fullmatch(name) if names else name.rpartition(".")[2] in targets)]
    excluded = [f".*{name}" for name in settings.get("exclude_modules", [])]
    ranks, alphas = settings.get("rank_pattern", {}), settings.get("alpha_pattern", {})
    own = {f".*{name}": {"algo": "lora"} | ({"dim": ranks[name]} if name in ranks else {})
           | ({"alpha": alphas[name]} if name in alphas else {}) for name in {**ranks, **alphas}}
    LycorisNetwork.apply_preset({
        "target_module": [], "target_name": modules, "exclude_name": excluded, "module_algo_map": {}, "name_algo_map": own})
    network = LycorisNetwork(
        model, 1.0, lora_dim=settings["r"], alpha=settings["lora_alpha"], network_module="lora",
        dropout=settings.get("lora_dropout", 0.0), rs_lora=settings.get("use_rslora", False))
    network.apply_to()
    model.requires_grad_(False)
    network.requires_grad_(True)
    set_factors(network)
    found = measured(model, base)
    os.makedirs(folder)
    network.save_weights(f"{folder}/lycoris.safetensors", None, {})
    return {kohya(LycorisNetwork.LORA_PREFIX, module): delta for module, delta in found.items()}
