"""loralib.Linear. It merges on eval() and unmerges on train(); files hold lora_state_dict, as its README shows."""

NEEDS = ("torch", "loralib")


def subject():
    import importlib.metadata
    from pathlib import Path

    import loralib
    import torch

    from conformance.subject import LayerConfig, Subject, Unsupported
    from conformance.torch import TorchLayer

    class LoralibLayer(TorchLayer):
        def merge(self):
            self.module.eval()

        def unmerge(self):
            self.module.train()

        def save(self, directory):
            torch.save(loralib.lora_state_dict(self.module), Path(directory) / "lora.pt")

        def load(self, directory):
            self.module.load_state_dict(torch.load(Path(directory) / "lora.pt", weights_only=True), strict=False)

    class Loralib(Subject):
        name, version = "loralib", importlib.metadata.version("loralib")

        def build(self, config: LayerConfig, weight, bias):
            if config.scaling != "standard":
                raise Unsupported(f"{config.scaling} scaling")
            torch.manual_seed(config.seed)
            module = loralib.Linear(
                config.in_features, config.out_features, r=config.rank,
                lora_alpha=config.alpha,  # pyright: ignore[reportArgumentType] any number works
                lora_dropout=config.dropout, bias=config.bias, device=config.device, dtype=getattr(torch, config.dtype),
            )
            loralib.mark_only_lora_as_trainable(module)
            layer = LoralibLayer(
                module, W="weight", b="bias" if config.bias else None, A="lora_A", B="lora_B", transposed="AB"
            )
            layer.set_base(weight, bias)
            return layer

    return Loralib()
