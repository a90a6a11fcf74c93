"""Writers of adapter files, one module each: an adapter with the settings of a feature, as a library saves it.

    NEEDS, ENVIRONMENT    as in readers
    FORMATS               what is in the folder that it makes
    write(settings, folder, base)    settings, an empty folder and the base weights → ΔW by module, as the writer computes it
    merge(dtype, folder)             writes a merged checkpoint: see merging.py. Not all have it

Each attaches an adapter to a model of the base weights, sets its factors, and measures what its layers compute before it
saves. So the truth is the trainer's own model, and a reader is wrong if it computes something else from the file. The names of
modules are those of the file. A writer raises NotOffered for a feature that it has not.
"""

import importlib
from collections.abc import Callable
from typing import Any

from conformance.files import llama
from conformance.files.binary import Arrays
from conformance.files.corpus.made import base_model
from conformance.files.readers import NotAvailable

WRITERS = {  # the name on the command line → the module
    "peft": "peft", "lora_torch": "lora_torch", "mlx-lm": "mlx_lm", "torchtune": "torchtune", "diffusers": "diffusers",
    "lycoris": "lycoris",
}
Settings = dict[str, Any]  # in the words of PEFT's LoraConfig
Write = Callable[[Settings, str, Arrays], Arrays]
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
OF_THE_CORPUS = ("fan_in_fan_out",)  # features whose layers a Llama has not


class NotOffered(Exception):
    """The writer has no such feature."""


def find(name: str) -> tuple[tuple[str, ...], Write]:
    """The formats and the function of the writer of that name. Raises NotAvailable."""
    if name not in WRITERS:
        raise NotAvailable(f"{name}: expected one of {', '.join(WRITERS)}")
    module = importlib.import_module(f"{__name__}.{WRITERS[name]}")
    return module.FORMATS, module.write


def merge_of(name: str) -> Callable[[str, str], None] | None:
    """The function of the writer that merges, if it has one."""
    return getattr(importlib.import_module(f"{__name__}.{WRITERS[name]}"), "merge", None)


def settings(feature: str) -> Settings:
    """All settings of the feature."""
    return {"r": 4, "lora_alpha": 3, "target_modules": QV} | FEATURES[feature]


def base_of(feature: str) -> Arrays:
    """The weights of the base model of the feature."""
    return base_model() if feature in OF_THE_CORPUS else llama.weights()


def only(settings: Settings, *offered: str) -> None:
    """Raises NotOffered for a setting that is not among these, and not one of those that every writer has."""
    for name in settings.keys() - {"r", "lora_alpha", "target_modules", *offered}:
        raise NotOffered(name)
