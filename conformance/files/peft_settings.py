"""The settings of adapter_config.json: which are known, what they may be, and the scale of each module by them.

Clauses P-3 to P-5. diffusers and torchtune take their settings from here, too.
"""

import math
import re
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

from conformance.files import container
from conformance.files.meaning import Meaning, Scale

DEFAULT = 8  # of r and of lora_alpha
# What a setting does to a trained adapter: nothing, once it is loaded.
NO_MATTER = {
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config", "inference_mode",
    "init_lora_weights", "loftq_config", "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core",
    "monteclora_config", "peft_version", "qalora_group_size", "revision", "runtime_config", "task_type", "velora_config",
}
USED = {
    "alpha_pattern", "bias", "exclude_modules", "fan_in_fan_out", "layers_pattern", "layers_to_transform", "lora_alpha",
    "lora_bias", "modules_to_save", "peft_type", "r", "rank_pattern", "target_modules", "use_dora", "use_rslora",
}
# They change the function, and have no meaning here yet.
OTHER = {
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "target_parameters",
    "trainable_token_indices",
    "use_bdlora", "use_qalora",
}
KINDS: dict[str, tuple[type, ...]] = {
    "r": (int,), "lora_alpha": (int, float), "use_rslora": (bool,), "use_dora": (bool,), "lora_bias": (bool,),
    "fan_in_fan_out": (bool,), "rank_pattern": (dict, type(None)), "alpha_pattern": (dict, type(None)), "bias": (str,),
    "modules_to_save": (list, type(None)), "target_modules": (list, str, type(None)),
    "exclude_modules": (list, str, type(None)),
    "layers_to_transform": (list, int, type(None)), "layers_pattern": (list, str, type(None)), "peft_type": (str,),
}
CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
BIASES = ("none", "all", "lora_only")


def load(meaning: Meaning, path: Path) -> dict[str, Any] | None:
    """The configuration of the folder, with what is wrong with it as issues. None if there is none to go by."""
    if path.exists() and not path.is_file():
        return meaning.say("FILE-010", str(path), "it is no file")
    try:
        with path.open("rb") as file:
            said = container.loads(file.read(container.LONGEST).decode())
    except OSError as error:
        return meaning.say("FILE-010", str(path), error.strerror or str(error))
    except container.Twice as error:
        return meaning.say("FILE-005", str(error), f"twice in {path.name}")
    except ValueError as error:
        return meaning.say("FILE-010", str(path), f"is no JSON: {error}")
    if not isinstance(said, dict):
        return meaning.say("FILE-010", str(path), f"is {type(said).__name__}, expected an object")
    return said


def that_count(given: dict[str, Any]) -> dict[str, Any]:
    """The settings that change the function, as they were given."""
    return {name: given[name] for name in sorted(USED & given.keys()) if given[name] not in (None, False, [], {}, "none")}


def checked(meaning: Meaning, said: dict[str, Any]) -> dict[str, Any]:
    """The settings that are known and have a value of the right kind. The others become issues."""
    found = {}
    for name, value in said.items():
        plain = value is None or value in (False, "", [], {})
        if name in OTHER and not plain:
            meaning.say("FILE-011", name, f"{str(value)[:80]}; it changes the function, and is not carried out here")
        elif name not in USED | NO_MATTER | OTHER and not plain:
            meaning.say("FILE-012", name, f"{str(value)[:80]}; it may change the function")
        elif name in KINDS and not (isinstance(value, KINDS[name]) and (bool in KINDS[name] or not isinstance(value, bool))):
            expected = " or ".join("null" if kind is type(None) else kind.__name__ for kind in KINDS[name])
            meaning.say("FILE-013", name, f"{str(value)[:80]}, expected {expected}")
        elif name in USED:
            found[name] = value
    for name in ("rank_pattern", "alpha_pattern"):
        found[name] = _pattern(meaning, name, found.get(name) or {})
    for name, right, expected in (
            ("r", lambda r: 1 <= r < 1 << 31, "a number from 1 to 2³¹"), ("lora_alpha", is_number, "a number"),
            ("bias", lambda bias: bias in BIASES, f"one of {', '.join(BIASES)}")):
        if name in found and not right(found[name]):
            meaning.say("FILE-013", name, f"{str(found.pop(name))[:80]}, expected {expected}")
    targets, start = found.get("target_modules"), said.get("init_lora_weights")
    if isinstance(targets, str) and targets.lower() != "all-linear" and (wrong := _no_expression(targets)):
        meaning.say("FILE-013", "target_modules", wrong)
    if isinstance(start, str) and start.lower().startswith(CHANGED_BASE):
        meaning.say("FILE-016", "init_lora_weights", f"{start[:40]!r}; unless the file was converted when it was saved")
    return found


def is_number(value: object) -> bool:
    """Whether it is a number that a float can hold."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def _no_expression(pattern: str) -> str:
    """Why it is no regular expression, or nothing."""
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return f"{pattern[:80]!r} is no regular expression: {error}"
    return ""


def _pattern(meaning: Meaning, name: str, said: dict) -> dict[re.Pattern, float]:
    found = {}
    for key, value in said.items():
        number = is_number(value) and (name != "rank_pattern" or isinstance(value, int))
        if wrong := _no_expression(rf"(?:.*\.)?({key})"):
            meaning.say("FILE-013", name, wrong)
        elif number:
            found[re.compile(rf"(?:.*\.)?({key})")] = value
        else:
            meaning.say("FILE-013", name, f"{key!r} has {str(value)[:40]}, expected a number")
    return found


def matched(patterns: dict[re.Pattern, float], module: str) -> float | None:
    """The value of the first pattern that matches the name, or its end after a dot."""
    return next((value for pattern, value in patterns.items() if pattern.fullmatch(module)), None)


def scale_by(meaning: Meaning, said: dict[str, Any]) -> Callable[[str, int], Scale]:
    """The function from a module and its rank to the scale (P-3, P-4)."""
    def scale(module: str, rank: int) -> Scale:
        own = matched(said["rank_pattern"], module)
        expected = said.get("r", DEFAULT) if own is None else own
        if expected != rank:
            source = "r" if own is None else "rank_pattern"
            meaning.say("FILE-023", module, f"{source} is {expected}, and the factors have {rank}")
        alpha, source = matched(said["alpha_pattern"], module), "alpha_pattern"
        if alpha is None:
            alpha, source = said.get("lora_alpha"), "lora_alpha"
        if alpha is None:
            meaning.say("FILE-032", module, f"lora_alpha is not given, and is {DEFAULT}")
            alpha, source = DEFAULT, f"default alpha {DEFAULT}"
        if said.get("use_rslora"):
            return Scale(alpha / math.sqrt(rank), f"{source} {alpha:g} / √{rank}")
        return Scale(alpha / rank, f"{source} {alpha:g} / {rank}")

    return scale


def is_lora(meaning: Meaning, given: dict[str, Any]) -> bool:
    """Whether the settings are those of LoRA. If not, that is an issue (P-12)."""
    if given.get("peft_type", "LORA") != "LORA":
        meaning.say("FILE-014", "peft_type", f"{str(given['peft_type'])[:40]!r}, expected 'LORA'")
    return given.get("peft_type", "LORA") == "LORA"


def agree(meaning: Meaning, said: dict[str, Any], module: str, roles: Container[str]) -> None:
    """Adds an issue where the settings and the tensors of a module contradict each other (P-5, P-6, P-11)."""
    if not is_target(module, said):
        meaning.say("FILE-024", module, f"target_modules is {str(said.get('target_modules'))[:80]}")
    for role, setting in ("magnitude", "use_dora"), ("B.bias", "lora_bias"):
        if (role in roles) != bool(said.get(setting)):
            meaning.say("FILE-011", module, f"a {role} without {setting}" if role in roles else f"{setting} without a {role}")


def is_target(module: str, said: dict[str, Any]) -> bool:
    """Whether the settings ask for an adapter at the module (P-5), as far as its name alone can tell."""
    targets, left_out, whole = (said.get(name) for name in ("target_modules", "exclude_modules", "modules_to_save"))
    if left_out and is_named(module, left_out):
        return False
    if any(_found(rf"(^|.*\.){name}($|\..*)", module) for name in whole or () if isinstance(name, str)):
        return False  # it is trained whole
    if targets is None or isinstance(targets, str):
        return targets is None or targets.lower() == "all-linear" or is_named(module, targets)
    return module in targets or is_named(module, targets) and _in_a_layer(module, said)


def _in_a_layer(module: str, said: dict[str, Any]) -> bool:
    """Whether the module is in one of the layers that the settings name, if they name some. The first number in its name that
    stands behind a list of layers counts."""
    layers, lists = said.get("layers_to_transform"), said.get("layers_pattern") or ()
    if layers is None or layers == []:
        return True
    patterns = [rf"(?:^|.*?\.){name}\.(\d+)\." for name in ([lists] if isinstance(lists, str) else lists)]
    found = next(filter(None, (_found(pattern, module) for pattern in patterns or [r".*?\.[^.]*\.(\d+)\."])), None)
    return found is not None and int(found[1]) in (layers if isinstance(layers, list) else [layers])


def _found(pattern: str, text: str) -> re.Match | None:
    """The match at the beginning of the text. None if there is none, or if the pattern is no expression."""
    return None if _no_expression(pattern) else re.match(pattern, text)


def is_named(module: str, names: list | str) -> bool:
    """Whether the expression matches the whole name, or one of the names is the end of it after a dot."""
    if isinstance(names, str):
        return bool(_no_expression(names)) or re.fullmatch(names, module) is not None  # no expression: an issue of its own
    return any(module == name or module.endswith(f".{name}") for name in names)
