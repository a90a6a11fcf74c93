"""torchtune's names of tensors, in a safetensors file with or without adapter_config.json. Clauses T-1 to T-3."""

import re
from pathlib import Path
from typing import Any

from conformance.files import peft, peft_settings
from conformance.files.container import Container
from conformance.files.meaning import Meaning, Scale, pair, sort_out

ROLES = re.compile(r"(.+)\.(lora_a\.weight|lora_b\.weight|magnitude)")
NAMES = {"lora_a.weight": "A", "lora_b.weight": "B", "magnitude": "magnitude"}
NEEDED = ("r", "lora_alpha")


def is_one(held: Container) -> bool:
    return any(re.fullmatch(r".+\.lora_[ab]\.weight", name) for name in held.tensors)


def read(meaning: Meaning, held: Container) -> Meaning:
    """Fills in what the file says, with the settings beside it."""
    def roles(name: str) -> tuple[str, str] | None:
        found = ROLES.fullmatch(name)
        return found and (found[1], NAMES[found[2]])

    beside = Path(held.path).parent / peft.CONFIG
    given: dict[str, Any] | None = peft_settings.load(meaning, beside) if beside.exists() else {}
    known = all(type((given or {}).get(name)) in (int, float) for name in NEEDED)
    by_settings = peft_settings.scale_by(meaning, peft_settings.checked(meaning, given)) if given and known else None

    def scale(module: str, rank: int) -> Scale:
        unknown = Scale(None, f"no {peft.CONFIG} beside the file gives r and lora_alpha")
        return by_settings(module, rank) if by_settings else unknown

    for module, all_of in sort_out(meaning, held, roles).items():
        pair(meaning, held, module, all_of, scale, (True, False))
    return meaning
