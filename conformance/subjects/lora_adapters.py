"""lora-adapters' LoraLinear, through apply_adapter.

It merges on eval() and unmerges on train(). Files hold lora_state_dict, as its README shows."""

from typing import Any

NEEDS = ("torch", "lora_adapters")
ENVIRONMENT = "torch"


def subject():
    import importlib
    import importlib.metadata

    import torch
    from torch import nn

    from conformance.record.torch_script import script, written
    from conformance.subject import LayerConfig, Subject, Unsupported
    from conformance.torch import TorchLayer, set_seed

    lora_adapters: Any = importlib.import_module("lora_adapters")  # a type checker takes the name for this file

    class LoraAdaptersLayer(TorchLayer):
        module: Any

        @property
        def measured(self):
            return self.module[0]

        def merge(self):
            self.module.eval()

        def unmerge(self):
            self.module.train()

        def save(self, directory):
            torch.save(lora_adapters.lora_state_dict(self.module), f"{directory}/updates.ckpt")

        def load(self, directory):
            self.module.load_state_dict(torch.load(f"{directory}/updates.ckpt"), strict=False)

    def linear_options(config: LayerConfig) -> dict:
        return {"bias": config.bias, "device": config.device, "dtype": getattr(torch, config.dtype)}

    def options(config: LayerConfig) -> dict:
        dropout = {"lora_dropout": config.dropout} if config.dropout else {}
        return {"rank": config.rank, "lora_alpha": config.alpha, **dropout}

    class LoraAdapters(Subject):
        name, version = "lora_adapters", importlib.metadata.version("lora-adapters")
        freezes = "mark_only_lora_as_trainable"

        def build(self, config: LayerConfig, weight, bias):
            if config.scaling != "standard":
                raise Unsupported(f"{config.scaling} scaling")
            set_seed(config)
            linear = nn.Linear(config.in_features, config.out_features, **linear_options(config))
            module = lora_adapters.apply_adapter(nn.Sequential(linear), lora_adapters.LoraLinear, **options(config))
            module = lora_adapters.mark_only_lora_as_trainable(module)
            layer = LoraAdaptersLayer(
                module, W="0.weight", b="0.bias" if config.bias else None, A="0.lora_A", B="0.lora_B", transposed="AB"
            )
            layer.set_base(weight, bias)
            return layer

        def script(self, calls, spec):
            return script(calls, ["import lora_adapters", "from torch import nn"], self.construction)

        def construction(self, config: LayerConfig, name: str) -> list[str]:
            linear = written("nn.Linear", nn.Linear, config.in_features, config.out_features, **linear_options(config))
            given = ", ".join(f"{key}={value!r}" for key, value in options(config).items())
            return [
                f"{name} = lora_adapters.apply_adapter(nn.Sequential({linear}), lora_adapters.LoraLinear, {given})",
                f"lora_adapters.mark_only_lora_as_trainable({name})",
            ]

    return LoraAdapters()
