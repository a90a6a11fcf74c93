"""torchtune's lora_llama3, and what FullModelHFCheckpointer saves: PEFT's files, with its own beside them."""

import shutil
import tempfile
from pathlib import Path

from conformance.files import llama, merging
from conformance.files.binary import Arrays
from conformance.files.readers.torchtune import NAMES, attention, deltas, model_of
from conformance.files.torch_model import set_factors
from conformance.files.writers import NotOffered, only

NEEDS, ENVIRONMENT = ("torch", "torchtune"), "torch-old"
FORMATS = ("peft", "torchtune")


def write(settings: dict, folder: str, base: Arrays) -> Arrays:
    from torchtune.modules import peft
    from torchtune.training import ADAPTER_CONFIG, ADAPTER_KEY, MODEL_KEY, FullModelHFCheckpointer

    only(settings, "lora_dropout")
    if "model.embed_tokens.weight" not in base:
        raise NotOffered("a model that is no Llama")
    targets = list(NAMES) if settings["target_modules"] == "all-linear" else settings["target_modules"]
    if isinstance(targets, str) or not attention(targets):
        raise NotOffered("targets by an expression" if isinstance(targets, str) else "none of the attention's modules")
    model = model_of(base, targets, settings["r"], settings["lora_alpha"], settings.get("lora_dropout", 0.0))
    peft.set_trainable_params(model, peft.get_adapter_params(model))
    set_factors(model)
    found = deltas(model, base)
    config = {"peft_type": "LORA", "r": settings["r"], "lora_alpha": settings["lora_alpha"],
              "target_modules": [({"lm_head": "output"} | NAMES)[name].rpartition(".")[2] for name in targets]}
    with tempfile.TemporaryDirectory() as scratch:
        llama.checkpoint(Path(scratch) / "base", base, biased=False)
        saver = FullModelHFCheckpointer(
            f"{scratch}/base", ["model.safetensors"], model_type="LLAMA3", output_dir=f"{scratch}/out", safe_serialization=True)
        saver.load_checkpoint()
        adapter = {ADAPTER_KEY: peft.get_adapter_state_dict(model.state_dict()), ADAPTER_CONFIG: config}
        saver.save_checkpoint({**adapter, MODEL_KEY: {}}, epoch=0, adapter_only=True)
        Path(folder).mkdir()
        for name in ("adapter_model.safetensors", "adapter_model.pt", "adapter_config.json"):
            shutil.copy(f"{scratch}/out/epoch_0/{name}", folder)
    return found


def merge(dtype: str, folder: str) -> None:
    """get_merged_lora_ckpt, and what FullModelHFCheckpointer saves of it."""
    import torch
    from torchtune.modules import peft
    from torchtune.training import MODEL_KEY, FullModelHFCheckpointer

    with tempfile.TemporaryDirectory() as scratch:
        weights = {name: array for name, array in merging.base(dtype).items() if not name.endswith("norm.weight")}
        (Path(scratch) / "base").mkdir()
        llama.checkpoint(Path(scratch) / "base", weights, biased=False)
        model = model_of({name: array.astype("float32") for name, array in weights.items()}, merging.SETTINGS["target_modules"],
                         merging.SETTINGS["r"], merging.SETTINGS["lora_alpha"]).to(getattr(torch, dtype))
        with torch.no_grad():
            for module in merging.targets():
                A, B = (torch.from_numpy(factor) for factor in merging.factors(module))
                _, _, layer, _, name = module.split(".")
                if name == "q_proj":  # torchtune's order of rows
                    B = B.view(llama.HEADS, 2, llama.SIZE // 2, -1).transpose(1, 2).reshape(B.shape)
                own = model.get_submodule(f"layers.{layer}.{NAMES[name]}")
                own.lora_a.weight.copy_(A)
                own.lora_b.weight.copy_(B)
        saver = FullModelHFCheckpointer(
            f"{scratch}/base", ["model.safetensors"], model_type="LLAMA3", output_dir=f"{scratch}/out", safe_serialization=True)
        saver.load_checkpoint()
        merged = peft.get_merged_lora_ckpt(model.state_dict(), merging.SETTINGS["r"], merging.SETTINGS["lora_alpha"])
        saver.save_checkpoint({MODEL_KEY: merged}, epoch=0)
        Path(folder).mkdir()
        (made,) = Path(f"{scratch}/out/epoch_0").glob("*.safetensors")
        shutil.copy(made, f"{folder}/model.safetensors")
