"""lora-adapters' LoraLinear, as it is recognised: it merges on eval() and unmerges on train().

Files hold lora_state_dict, as its README shows."""

from typing import Any

NEEDS = ("torch", "lora_adapters")
ENVIRONMENT = "torch"


def subject():
    import importlib
    import importlib.metadata

    import torch

    from conformance.drivers.torch_module import ModuleSubject
    from conformance.torch import TorchLayer

    lora_adapters: Any = importlib.import_module("lora_adapters")  # a type checker takes the name for this file

    class Files(TorchLayer):
        def save(self, directory):
            torch.save(lora_adapters.lora_state_dict(self.module), f"{directory}/updates.ckpt")

        def load(self, directory):
            self.module.load_state_dict(torch.load(f"{directory}/updates.ckpt"), strict=False)

    made = ModuleSubject(lora_adapters.LoraLinear, files=Files)
    made.name, made.version = "lora_adapters", importlib.metadata.version("lora-adapters")
    return made
