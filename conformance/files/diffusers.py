"""diffusers' format: one safetensors file, with the parts of a pipeline in the names. Clauses D-1 and D-2."""

import re
from typing import Any

from conformance.files import container, kohya, peft_settings
from conformance.files.container import Container
from conformance.files.meaning import Meaning, Scale, pair, sort_out

KEY = "lora_adapter_metadata"
PARTS = r"unet|transformer|transformer_2|text_encoder|text_encoder_2|text_encoder_3|prior|diffusion_model"
PART = re.compile(rf"(?:{PARTS})\.")
ROLES = re.compile(
    rf"((?:{PARTS})\..+?)\.(?:lora_(A|B)\.weight|lora\.(down|up)\.weight|(alpha)|lora_(magnitude_vector)(?:\.weight)?)")
NAMES = {"A": "A", "B": "B", "down": "A", "up": "B", "alpha": "alpha", "magnitude_vector": "magnitude"}


def is_one(held: Container) -> bool:
    return any(ROLES.fullmatch(name) for name in held.tensors)


def read(meaning: Meaning, held: Container) -> Meaning:
    """Fills in what the file says."""
    def roles(name: str) -> tuple[str, str] | None:
        found = ROLES.fullmatch(name)
        return found and (found[1], NAMES[next(filter(None, found.groups()[1:]))])

    told = _metadata(meaning, held)
    settings = {part: peft_settings.checked(meaning, of_part) for part, of_part in told.items()
                if peft_settings.is_lora(meaning, of_part)}
    meaning.settings = {f"{part}.{name}": value for part, of_part in told.items()
                        for name, value in peft_settings.that_count(of_part).items()}
    for module, all_of in sort_out(meaning, held, roles).items():
        alpha = kohya.alpha_of(meaning, held, all_of.pop("alpha", None))
        part, _, inner = module.partition(".")

        def scale(name: str, rank: int, part=part, inner=inner, alpha=alpha) -> Scale:
            own = Scale(1.0, "alpha = rank") if alpha is None else Scale(alpha / rank, f"alpha {alpha:g} / {rank}")
            if part not in settings:
                if alpha is None:
                    meaning.say("FILE-032", name, "no metadata and no alpha: the scale is 1")
                return own
            if alpha is not None:
                meaning.say("FILE-034", name, f"{own.source} in the tensor, and {KEY} has settings for {part}")
            first = peft_settings.scale_by(meaning, settings[part])(inner, rank)
            return Scale(first.value, f"metadata: {first.source}")

        if all_of:
            turned = bool(settings.get(part, {}).get("fan_in_fan_out"))
            pair(meaning, held, module, all_of, scale, (True, False), fan_in_fan_out=turned)
            if part in settings:
                peft_settings.agree(meaning, settings[part], inner, all_of)
        else:
            meaning.say("FILE-027", f"{module}.alpha", "an alpha, and no factors")
    return meaning


def _metadata(meaning: Meaning, held: Container) -> dict[str, dict[str, Any]]:
    """The settings in the metadata, by part of the pipeline."""
    if KEY not in held.metadata:
        return {}
    try:
        told = container.loads(held.metadata[KEY])
        if not isinstance(told, dict):
            raise ValueError(f"is {type(told).__name__}, expected an object")
    except container.Twice as error:
        meaning.say("FILE-005", str(error), f"twice in {KEY}")
        return {}
    except ValueError as error:
        meaning.say("FILE-010", KEY, str(error))
        return {}
    found: dict[str, dict[str, Any]] = {}
    for name, value in told.items():
        part, _, setting = name.partition(".")
        found.setdefault(part, {})[setting] = value
    return found
