"""PEFT's format: a folder with adapter_config.json and adapter_model.safetensors. Clauses P-1 to P-13."""

import re
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from conformance.files import container, peft_settings
from conformance.files.container import Container
from conformance.files.meaning import Meaning, Other, Scale, pair, sort_out
from conformance.files.peft_settings import is_target

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
OTHERS = {
    "saved": "a whole module of modules_to_save", "bias": "takes the place of the model's bias",
    "base": "the weight under the factors, saved with them",
}
FACTORS = tuple(re.compile(rf"(.+)\.lora_{ending}") for ending in (  # the name of the module, and its role
    r"(A|B)\.weight", r"(embedding_A|embedding_B)", r"(magnitude_vector)(?:\.weight)?", r"(B\.bias)"))
WITH_A_NAME = re.compile(r".+\.lora_(?:embedding_)?[AB]\.(.+?)(?:\.weight)?")


def read(folder: Path) -> Meaning:
    """What the folder says."""
    meaning = Meaning("PEFT", str(folder))
    given = peft_settings.load(meaning, folder / CONFIG)
    weights = folder / WEIGHTS
    if not weights.exists() and (folder / PICKLE).exists():
        meaning.say("FILE-007", PICKLE, f"there is no {WEIGHTS}")
        return meaning
    held, issues = container.read(str(weights))
    meaning.issues += issues
    if given is None or issues and not held.tensors:
        return meaning
    return understood(meaning, held, given)


def understood(meaning: Meaning, held: Container, given: dict[str, Any]) -> Meaning:
    """Fills in what the tensors mean under these settings."""
    if not peft_settings.is_lora(meaning, given):
        return meaning
    said = peft_settings.checked(meaning, given)
    meaning.settings = peft_settings.that_count(given)
    scale = peft_settings.scale_by(meaning, said)
    for module, roles in sort_out(meaning, held, partial(_role, meaning, said)).items():
        role, name = next(iter(roles.items()))
        if role in OTHERS:
            place = name.removeprefix(PREFIX).replace(".base_layer.", ".")
            meaning.others.append(Other(name, OTHERS[role], place))
        elif role != "wrong":
            _module(meaning, held, said, module, roles, scale)
    targets = said.get("target_modules")
    for name in filter(lambda name: isinstance(name, str), targets if isinstance(targets, list) else ()):
        if not any(peft_settings.is_named(part.module, [name]) for part in meaning.parts):
            meaning.say("FILE-025", name, "is in target_modules, and has no factors in the file")
    if said.get("lora_bias"):
        meaning.say("FILE-050", "lora_bias", "a bias beside B, times the scale")
    if meaning.others:
        words = f"one of {len(meaning.others)} that are no factors: biases or whole modules"
        meaning.say("FILE-050", meaning.others[0].name, words)
    return meaning


def _role(meaning: Meaning, said: dict[str, Any], name: str) -> tuple[str, str] | None:
    """The module and the role of a tensor; for one that is no factor of a module, its whole name and what it is."""
    if not name.startswith(PREFIX):
        meaning.say("FILE-026", name, f"expected it to begin with {PREFIX}")
        return name, "wrong"
    inner = name.removeprefix(PREFIX)
    for pattern in FACTORS:
        if found := pattern.fullmatch(inner):
            return found[1], found[2]
    if found := WITH_A_NAME.fullmatch(inner):
        meaning.say("FILE-026", name, f"{found[1]!r} is taken for the name of an adapter")
        return name, "wrong"
    above = accumulate(inner.split("."), lambda path, part: f"{path}.{part}")  # the module, and those that it is in
    whole = tuple(entry for entry in said.get("modules_to_save") or () if isinstance(entry, str))
    if any(path.endswith(whole) for path in above):
        return name, "saved"
    if inner.endswith(".base_layer.weight"):
        return name, "base"
    module, _, last = inner.replace(".base_layer.", ".").rpartition(".")
    kept = said.get("bias", "none")
    return (name, "bias") if last == "bias" and (kept == "all" or kept == "lora_only" and is_target(module, said)) else None


def _module(meaning: Meaning, held: Container, said: dict[str, Any], module: str, roles: dict[str, str],
            scale: Callable[[str, int], Scale]) -> None:
    """Adds the part of a module."""
    kind = "embedding" if {"embedding_A", "embedding_B"} & roles.keys() else "linear"
    factors = {role.removeprefix("embedding_").removesuffix("_vector"): name for role, name in roles.items()}
    pair(meaning, held, module, factors, scale, (True, False), kind=kind, fan_in_fan_out=bool(said.get("fan_in_fan_out")),
         bias=roles.get("B.bias", ""))
    peft_settings.agree(meaning, said, module, factors)
