"""lora_torch.LinearLoRA, this project's PyTorch layer."""

NEEDS = ("torch",)


def subject():
    import torch

    import lora_torch
    from conformance import __version__
    from conformance.subject import LayerConfig, Subject
    from conformance.torch import TorchLayer
    from conformance.torch_script import script, written

    def arguments(config: LayerConfig) -> dict:
        return {
            "in_features": config.in_features, "out_features": config.out_features, "rank": config.rank,
            "alpha": config.alpha, "bias": config.bias, "dropout": config.dropout, "scaling": config.scaling,
            "device": config.device, "dtype": getattr(torch, config.dtype),
        }

    class LoRATorch(Subject):
        name, version = "lora_torch", __version__

        def build(self, config: LayerConfig, weight, bias):
            torch.manual_seed(config.seed)
            module = lora_torch.LinearLoRA(**arguments(config))
            layer = TorchLayer(
                module, W="pre_trained_weight.weight", b="pre_trained_weight.bias" if config.bias else None,
                A="lora_A", B="lora_B",
            )
            layer.set_base(weight, bias)
            return layer

        def script(self, calls, spec):
            return script(calls, ["import lora_torch"], self.construction)

        def construction(self, config: LayerConfig, name: str) -> list[str]:
            return [f"{name} = " + written("lora_torch.LinearLoRA", lora_torch.LinearLoRA, **arguments(config))]

    return LoRATorch()
