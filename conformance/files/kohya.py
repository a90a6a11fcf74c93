"""The format of kohya's sd-scripts and of ComfyUI: one safetensors file. Clauses K-1 to K-4."""

import re
from functools import partial

from conformance.files.container import FLOATS, Container
from conformance.files.meaning import Meaning, Scale, pair, sort_out

ROLES = re.compile(r"([^.]+)\.(?:lora_(down|up)\.weight|(alpha))")
OTHER_METHODS = re.compile(r".*\.(hada_|lokr_|oft_|lora_mid|dora_scale|glora_|a1\.|b1\.)")
NAMES = {"down": "A", "up": "B"}


def is_one(held: Container) -> bool:
    return any(re.fullmatch(r"[^.]+\.lora_(down|up)\.weight", name) or OTHER_METHODS.match(name) for name in held.tensors)


def read(meaning: Meaning, held: Container) -> Meaning:
    """Fills in what the file says."""
    def roles(name: str) -> tuple[str, str] | None:
        if OTHER_METHODS.match(name):
            return name, "method"
        found = ROLES.fullmatch(name)
        return found and (found[1], NAMES.get(found[2], "alpha"))

    found = sort_out(meaning, held, roles)
    for module, all_of in found.items():
        if "method" in all_of:
            meaning.say("FILE-014", module, "belongs to another method than LoRA")
            continue
        alpha = alpha_of(meaning, held, all_of.pop("alpha", None))
        if not all_of:
            meaning.say("FILE-027", f"{module}.alpha", "an alpha, and no factors")
            continue
        pair(meaning, held, module, all_of, partial(scale, meaning, held, alpha), (True, False))
    return meaning


def alpha_of(meaning: Meaning, held: Container, name: str | None) -> float | None:
    """The one number of a tensor of alpha. None if there is none, or if it is 0."""
    if name is None:
        return None
    tensor = held.tensors[name]
    if tensor.size != 1 or tensor.dtype not in (*FLOATS, "I64", "I32", "I16", "I8", "U8"):
        meaning.say("FILE-013", name, f"{tensor.dtype} of shape {tensor.shape}, expected one number")
        return None
    return float(held.array(name).reshape(())) or None  # 0 stands for none


def scale(meaning: Meaning, held: Container, alpha: float | None, module: str, rank: int) -> Scale:
    """The scale by the tensor, else 1 (K-2). What the metadata says is compared with it (K-3)."""
    if alpha is None:
        meaning.say("FILE-032", module, "no alpha: it is the rank, and the scale is 1")
    for key, own in (("ss_network_alpha", rank if alpha is None else alpha), ("ss_network_dim", rank)):
        try:
            told = float(held.metadata.get(key, own))
        except ValueError:
            continue  # "Dynamic", and such
        if told != own:
            meaning.say("FILE-031", module, f"the metadata has {key} = {told:g}, the tensors say {own:g}, and count")
    return Scale(1.0, "alpha = rank") if alpha is None else Scale(alpha / rank, f"alpha {alpha:g} / {rank}")
