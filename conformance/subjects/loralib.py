"""loralib's Linear, as it is recognised: it merges on eval() and unmerges on train().

Files hold lora_state_dict, as its README shows."""

NEEDS = ("torch", "loralib")
ENVIRONMENT = "torch"


def subject():
    import importlib.metadata

    import loralib
    import torch

    from conformance.drivers.torch_module import ModuleSubject
    from conformance.torch import TorchLayer

    class Files(TorchLayer):
        def save(self, directory):
            torch.save(loralib.lora_state_dict(self.module), f"{directory}/lora.pt")

        def load(self, directory):
            self.module.load_state_dict(torch.load(f"{directory}/lora.pt", weights_only=True), strict=False)

    made = ModuleSubject(loralib.Linear, files=Files)
    made.name, made.version = "loralib", importlib.metadata.version("loralib")
    return made
