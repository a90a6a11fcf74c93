"""Readers of adapter files as plain functions: one that is right, and one with a fault. They import nothing of this project."""

import json
import math

from safetensors.numpy import load_file


def right(path, base):
    """Has plain adapters and rsLoRA. It takes no bfloat16, and refuses all else."""
    with open(f"{path}/adapter_config.json", encoding="utf-8") as file:
        said = json.load(file, object_pairs_hook=once)
    known = {"peft_type", "r", "lora_alpha", "target_modules", "use_rslora"}
    if said["peft_type"] != "LORA" or any(said[name] for name in said if name not in known):
        raise ValueError("a setting")
    if type(said["r"]) is not int or isinstance(said["lora_alpha"], str) or said.get("use_rslora", False) not in (True, False):
        raise ValueError("a value")
    if isinstance(said["target_modules"], str):
        raise ValueError("an expression")
    tensors, found = load_file(f"{path}/adapter_model.safetensors"), {}
    for name, W in base.items():
        module = name.removesuffix(".weight")
        if not any(f".{module}".endswith(f".{target}") for target in said["target_modules"]):
            continue
        A, B = (tensors.pop(f"base_model.model.{module}.lora_{factor}.weight") for factor in "AB")
        if A.shape != (said["r"], W.shape[1]) or B.shape != (len(W), said["r"]):
            raise ValueError("a shape")
        found[module] = scale(said) * (B.astype("float64") @ A.astype("float64"))
    if tensors or not all(math.isfinite(delta.sum()) for delta in found.values()):
        raise ValueError("tensors")
    return found


def without_rslora(path, base):
    """Leaves use_rslora out."""
    with open(f"{path}/adapter_config.json", encoding="utf-8") as file:
        said = json.load(file)
    return {module: delta / (said["r"] ** 0.5 if said.get("use_rslora") else 1) for module, delta in right(path, base).items()}


def scale(said):
    return said["lora_alpha"] / (math.sqrt(said["r"]) if said.get("use_rslora") else said["r"])


def once(pairs):
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name twice")
    return dict(pairs)
