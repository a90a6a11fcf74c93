"""lora_torch.LinearLoRA, this project's PyTorch layer."""

NEEDS = ("torch",)


def subject():
    import torch

    import lora_torch
    from conformance import __version__
    from conformance.subject import LayerConfig, Subject
    from conformance.torch import TorchLayer

    class LoRATorch(Subject):
        name, version = "lora_torch", __version__

        def build(self, config: LayerConfig, weight, bias):
            torch.manual_seed(config.seed)
            module = lora_torch.LinearLoRA(
                config.in_features, config.out_features, config.rank, config.alpha, bias=config.bias,
                dropout=config.dropout, scaling=config.scaling, device=config.device, dtype=getattr(torch, config.dtype),
            )
            layer = TorchLayer(
                module, W="pre_trained_weight.weight", b="pre_trained_weight.bias" if config.bias else None,
                A="lora_A", B="lora_B",
            )
            layer.set_base(weight, bias)
            return layer

    return LoRATorch()
