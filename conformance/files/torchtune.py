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
    if given and not peft_settings.is_lora(meaning, given):
        return meaning
    said = peft_settings.checked(meaning, given) if given else {}
    by_settings = peft_settings.scale_by(meaning, said) if all(name in said for name in NEEDED) else None

    def scale(module: str, rank: int) -> Scale:
        unknown = Scale(None, f"no {peft.CONFIG} beside the file gives r and lora_alpha")
        return by_settings(module, rank) if by_settings else unknown

    for module, all_of in sort_out(meaning, held, roles).items():
        pair(meaning, held, module, all_of, scale, (True, False))
        if by_settings:  # the targets may have torchtune's names or Hugging Face's, and not all recipes write use_dora
            own = {"target_modules": None, "use_dora": said.get("use_dora") or "magnitude" in all_of}
            peft_settings.agree(meaning, said | own, module, all_of)
    return meaning
