"""loralib's Linear.

It merges on eval() and unmerges on train(). Files hold lora_state_dict, as its README shows."""

NEEDS = ("torch", "loralib")
ENVIRONMENT = "torch"


def subject():
    import importlib.metadata

    import loralib
    import torch

    from conformance.record.torch_script import script, written
    from conformance.subject import LayerConfig, Subject, Unsupported
    from conformance.torch import TorchLayer, set_seed

    class LoralibLayer(TorchLayer):
        def merge(self):
            self.module.eval()

        def unmerge(self):
            self.module.train()

        def save(self, directory):
            torch.save(loralib.lora_state_dict(self.module), f"{directory}/lora.pt")

        def load(self, directory):
            self.module.load_state_dict(torch.load(f"{directory}/lora.pt", weights_only=True), strict=False)

    def options(config: LayerConfig) -> dict:
        return {
            "r": config.rank, "lora_alpha": config.alpha, "lora_dropout": config.dropout, "bias": config.bias,
            "device": config.device, "dtype": getattr(torch, config.dtype),
        }

    class Loralib(Subject):
        name, version = "loralib", importlib.metadata.version("loralib")
        freezes = "mark_only_lora_as_trainable"

        def build(self, config: LayerConfig, weight, bias):
            if config.scaling != "standard":
                raise Unsupported(f"{config.scaling} scaling")
            set_seed(config)
            module = loralib.Linear(config.in_features, config.out_features, **options(config))
            loralib.mark_only_lora_as_trainable(module)
            layer = LoralibLayer(
                module, W="weight", b="bias" if config.bias else None, A="lora_A", B="lora_B", transposed="AB"
            )
            layer.set_base(weight, bias)
            return layer

        def script(self, calls, spec):
            return script(calls, ["import loralib"], self.construction)

        def construction(self, config: LayerConfig, name: str) -> list[str]:
            made = written("loralib.Linear", loralib.Linear, config.in_features, config.out_features, **options(config))
            return [f"{name} = {made}", f"loralib.mark_only_lora_as_trainable({name})"]

    return Loralib()
