"""Writes adapters of a known effect, one for each group of modules of a base model, in PEFT's format.

The factors are random. B is scaled so that the adapter moves the log-probabilities of the prompts by EFFECT in the root mean
square: enough to stand out of the noise of half precision, and little enough that the answers stay those of a language model.
"""

import json
from pathlib import Path

import torch
from torch import nn

from conformance.files import binary, peft
from conformance.files.probe.alternatives import kinds
from conformance.files.probe.truth import Change, Truth, rms

EFFECT = 1.0  # nat
RANK, ALPHA = 4, 6  # the scale is 1.5, or 3 as rslora
ROUNDS = 6  # of the search for the size of B
ALL = "all"


def write(truth: Truth, folder: Path) -> dict[str, float]:
    """A folder for each group of linear layers with the same name, and `all`, for all of them. Gives the effect of each in nat.
    Raises ValueError if it is there and no empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is no empty folder; nothing was written")
    linear = {name: module for name, module in truth.modules.items() if isinstance(module, nn.Linear) and "." in name}
    drawn = {name: _drawn(module, seed) for seed, (name, module) in enumerate(linear.items())}
    groups = kinds(drawn)
    return {name: _write(truth, {module: drawn[module] for module in modules}, folder / name)
            for name, modules in {**groups, **({ALL: list(drawn)} if len(groups) > 1 else {})}.items()}


def _drawn(module: nn.Linear, seed: int) -> Change:
    random = torch.Generator().manual_seed(seed)
    A, B = (torch.randn(shape, generator=random) for shape in ((module.in_features, RANK), (RANK, module.out_features)))
    return Change(A / module.in_features**0.5, B, ALPHA / RANK)


def _write(truth: Truth, adapter: dict[str, Change], folder: Path) -> float:
    places = truth.every_place()
    base = truth.at(places, [])

    def sized(size: float) -> dict[str, Change]:
        return {name: change._replace(B=change.B * size) for name, change in adapter.items()}

    def effect(size: float) -> float:
        return rms(truth.at(places, [sized(size)]) - base)

    size = 2.0**-10
    for _ in range(ROUNDS):  # the effect grows nearly as the size, and more slowly where it is large
        size *= EFFECT / effect(size)
    made = sized(size)
    arrays = {f"{peft.PREFIX}{name}.lora_{letter}.weight": factor.T.contiguous().numpy()
              for name, change in made.items() for letter, factor in (("A", change.A), ("B", change.B))}
    said = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA,
            "target_modules": sorted(kinds(made)), "base_model_name_or_path": None, "bias": "none", "use_rslora": False,
            "use_dora": False, "modules_to_save": None}
    folder.mkdir(parents=True)
    (folder / peft.WEIGHTS).write_bytes(binary.safetensors(arrays))
    (folder / peft.CONFIG).write_text(json.dumps(said, indent=1) + "\n")
    return effect(size)
