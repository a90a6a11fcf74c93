"""TinyPEFT's inject_lora, as it is recognised: it merges with merge_lora_weights and unmerges with unmerge_lora_weights.

Files hold what get_lora_state_dict gives, as its README shows."""

from typing import Any

NEEDS = ("torch", "tinypeft")
ENVIRONMENT = "torch"


def subject():
    import importlib
    import importlib.metadata

    import torch

    from conformance.drivers.torch_module import ModuleSubject
    from conformance.torch import TorchLayer

    tinypeft: Any = importlib.import_module("tinypeft")  # a type checker takes the name for this file

    class Files(TorchLayer):
        def save(self, directory):
            torch.save(tinypeft.get_lora_state_dict(self.module), f"{directory}/lora_adapter.pt")

        def load(self, directory):
            tinypeft.load_lora_state_dict(self.module, torch.load(f"{directory}/lora_adapter.pt"))

    made = ModuleSubject(tinypeft.inject_lora, files=Files)
    made.name, made.version = "tinypeft", importlib.metadata.version("tinypeft")
    return made
