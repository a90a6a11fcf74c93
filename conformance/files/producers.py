"""Writers of adapter files, as functions: settings, a folder and the base weights → ΔW by module, as the writer computes it.

Each attaches an adapter to the base model of the corpus, sets its factors, and measures what its layers compute before it
saves. So the truth is the trainer's own model, and a reader is wrong if it computes something else from the file.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

from conformance.files.consumers import Arrays, NotAvailable, measured, model_of
from conformance.files.corpus.made import drawn

Settings = dict[str, Any]  # in the words of PEFT's LoraConfig
Producer = Callable[[Settings, str, Arrays], Arrays]
QV = ["q_proj", "v_proj"]
FEATURES: dict[str, Settings] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "alpha with a fraction": {"lora_alpha": 2.5},
    "negative alpha": {"lora_alpha": -2},
    "rank above the sizes": {"r": 16},
    "rank pattern": {"rank_pattern": {"q_proj": 2}},
    "alpha pattern": {"alpha_pattern": {"v_proj": 8}},
    "both patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"self_attn.q_proj": 8}},
    "patterns and rslora": {"rank_pattern": {"q_proj": 16}, "alpha_pattern": {"q_proj": 8}, "use_rslora": True},
    "a pattern that is an expression": {"alpha_pattern": {r"layers\.\d+\..*v_proj": 8}},
    "overlapping patterns": {"alpha_pattern": {"q_proj": 1, r".*_proj": 8}},
    "targets by an expression": {"target_modules": r".*\.(q|v)_proj"},
    "all linear layers": {"target_modules": "all-linear"},
    "excluded modules": {"target_modules": ["q_proj", "k_proj", "v_proj"], "exclude_modules": ["k_proj"]},
    "some layers": {"target_modules": [*QV, "up_proj"], "layers_to_transform": [0]},
    "fan_in_fan_out": {"target_modules": ["c_proj"], "fan_in_fan_out": True},
    "embedding": {"target_modules": ["embed_tokens"]},
    "output head": {"target_modules": ["lm_head"]},
    "biases of the targets": {"bias": "lora_only"},
    "all biases": {"bias": "all"},
    "a whole module": {"modules_to_save": ["lm_head"]},
    "dropout": {"lora_dropout": 0.5},
    "a bias beside B": {"lora_bias": True},
}
WORDS = {  # of PEFT → of lora_torch.attach
    "r": "rank", "lora_alpha": "alpha", "target_modules": "targets", "exclude_modules": "exclude",
    "layers_to_transform": "layers", "lora_dropout": "dropout",
}


class NotOffered(Exception):
    """The writer has no such feature."""


def peft(settings: Settings, folder: str, base: Arrays) -> Arrays:
    """PEFT's get_peft_model and save_pretrained."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(model_of(base), LoraConfig(**settings))
    set_factors(model)
    found = measured(model.base_model.model, base)
    model.save_pretrained(folder)
    return found


def lora_torch(settings: Settings, folder: str, base: Arrays) -> Arrays:
    """lora_torch.attach and save_adapter."""
    from lora_torch import attach, save_adapter

    if settings.get("lora_bias"):
        raise NotOffered("lora_bias")
    words = {WORDS.get(name, name): value for name, value in settings.items() if name not in ("use_rslora", "fan_in_fan_out")}
    model = model_of(base)
    attach(model, **words, scaling="rslora" if settings.get("use_rslora") else "standard")
    set_factors(model)
    found = measured(model, base)
    save_adapter(model, folder)
    return found


PRODUCERS: dict[str, tuple[str, Producer]] = {"peft": ("peft", peft), "lora_torch": ("lora_torch", lora_torch)}


def find(name: str) -> Producer:
    """The function of that name. Raises NotAvailable."""
    package, function = PRODUCERS.get(name, ("", None))
    if function is None or importlib.util.find_spec(package) is None:
        why = f"{package} is not installed" if package else f"expected one of {', '.join(PRODUCERS)}"
        raise NotAvailable(f"{name}: {why}")
    return function


def set_factors(model: Any) -> None:
    """Sets all that trains to sixteenths between −1 and 1."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.from_numpy(drawn(name, *parameter.shape)).to(parameter.dtype))


def settings(feature: str) -> Settings:
    """All settings of the feature."""
    return {"r": 4, "lora_alpha": 3, "target_modules": QV} | FEATURES[feature]
