"""LitGPT's LoRALinear, as it is recognised, with its mark_only_lora_as_trainable.

Files hold what its lora_filter selects, as in its finetuning scripts. It merges and cannot unmerge."""

from typing import Any

NEEDS = ("torch", "litgpt")
ENVIRONMENT = "torch"


def subject():
    import importlib
    import importlib.metadata

    import torch

    from conformance.drivers.torch_module import ModuleSubject
    from conformance.torch import TorchLayer

    lora: Any = importlib.import_module("litgpt.lora")  # a type checker takes the name for this file

    class Files(TorchLayer):
        def save(self, directory):
            state = {key: value for key, value in self.module.state_dict().items() if lora.lora_filter(key, value)}
            torch.save({"model": state}, f"{directory}/lit_model.pth.lora")

        def load(self, directory):
            state = torch.load(f"{directory}/lit_model.pth.lora", mmap=True)["model"]
            self.module.load_state_dict(state, strict=False)

    made = ModuleSubject(lora.LoRALinear, files=Files)
    made.name, made.version = "litgpt", importlib.metadata.version("litgpt")
    return made
