"""mlx-lm's format: a folder with adapter_config.json and adapters.safetensors. Clauses M-1 to M-3."""

import re
from pathlib import Path

from conformance.files import peft, peft_settings
from conformance.files.container import Container
from conformance.files.meaning import Meaning, Scale, pair, sort_out

WEIGHTS = "adapters.safetensors"
ROLES = re.compile(r"(.+)\.(lora_a|lora_b|m)")
NAMES = {"lora_a": "A", "lora_b": "B", "m": "magnitude"}
EMBEDDING = re.compile(  # what mlx-lm's models call their embeddings
    r"(.+\.)?(embed|embed_in|embed_tokens(_per_layer)?|embeddings?|(tok|token|word)_embeddings|position_embedding_table|wte)")
HARMLESS = {  # of training, or where the layers are: the file's names say that
    "adapter_path", "batch_size", "config", "data", "dropout", "grad_checkpoint", "iters", "keys", "learning_rate",
    "lr_schedule",
    "mask_prompt", "max_seq_length", "model", "num_layers", "optimizer", "optimizer_config", "project_name", "report_to",
    "resume_adapter_file", "save_every", "seed", "steps_per_eval", "steps_per_report", "test", "test_batches", "train",
    "val_batches",
    "grad_accumulation_steps", "wandb", "hf_dataset", "lora_layers", "clear_cache_threshold",
}
OWN = {"dropout", "keys", "rank", "scale"}  # of lora_parameters


def is_one(held: Container) -> bool:
    return any(re.fullmatch(r".+\.lora_[ab]", name) for name in held.tensors)


def read(meaning: Meaning, held: Container) -> Meaning:
    """Fills in what the file says, with the settings beside it."""
    given = peft_settings.load(meaning, Path(held.path).parent / peft.CONFIG)
    if given is None:
        return meaning
    kind, own = given.get("fine_tune_type", "lora"), given.get("lora_parameters")
    if kind not in ("lora", "dora"):
        meaning.say("FILE-014", "fine_tune_type", f"{str(kind)[:40]!r}, expected 'lora' or 'dora'")
        return meaning
    own = own if isinstance(own, dict) else {}
    for name in sorted(given.keys() - HARMLESS - {"fine_tune_type", "lora_parameters"} | own.keys() - OWN):
        meaning.say("FILE-012", name, "it may change the function")
    shown = {f"lora_parameters.{name}": own[name] for name in ("rank", "scale") if name in own}
    meaning.settings = {"fine_tune_type": kind} | shown

    def roles(name: str) -> tuple[str, str] | None:
        found = ROLES.fullmatch(name)
        return found and (found[1], NAMES[found[2]])

    def scale(module: str, rank: int) -> Scale:
        if "rank" in own and own["rank"] != rank:
            meaning.say("FILE-023", module, f"lora_parameters.rank is {own['rank']}, and the factors have {rank}")
        value = own.get("scale")
        if value is None or not peft_settings.is_number(value):
            return Scale(None, f"lora_parameters.scale is {str(value)[:40]}, expected a number")
        return Scale(float(value), f"lora_parameters.scale {value:g}")

    for module, all_of in sort_out(meaning, held, roles).items():
        layer = "embedding" if EMBEDDING.fullmatch(module) else "linear"  # a file's names alone say which
        pair(meaning, held, module, all_of, scale, (False, True), kind=layer)
        if ("magnitude" in all_of) != (kind == "dora"):
            has = "a" if "magnitude" in all_of else "no"
            meaning.say("FILE-011", module, f"fine_tune_type is {kind}, and it has {has} magnitude")
    return meaning
