"""lora-pytorch's LoRA.from_module on one nn.Linear.

merge_lora gives a plain module. The library has no alpha and no files of its own. It does not freeze the base: it hides the
base's parameters from parameters() and computes the base without gradients."""

from typing import Any

NEEDS = ("torch", "lora_pytorch")
ENVIRONMENT = "torch"


def subject():
    import importlib
    import importlib.metadata

    import torch
    from torch import nn

    from conformance.record.torch_script import script, written
    from conformance.subject import LayerConfig, Subject, Unsupported
    from conformance.torch import TorchLayer, set_seed

    LoRA: Any = importlib.import_module("lora_pytorch").LoRA  # a type checker takes the name for this file

    class LoraPytorchLayer(TorchLayer):
        module: Any  # a LoRA, or what merge_lora makes of it

        def trainable(self):
            known = {id(parameter): self._name(path) for path, parameter in self.module.named_parameters()}
            return {known[id(p)]: tuple(p.shape) for p in self.module.parameters() if p.requires_grad}

        def merge(self):
            self.module = self.module.merge_lora()
            self.paths = {name: path.removeprefix("module.") for name, path in self.paths.items() if name in "Wb"}

        def tensor(self, name):
            if name not in self.paths:
                raise Unsupported("factors of a merged layer: merge_lora gives a plain nn.Linear")
            return super().tensor(name)

        def save(self, directory):
            self.tensor("A")
            super().save(directory)

        def load(self, directory):
            self.tensor("A")
            super().load(directory)

    def linear_options(config: LayerConfig) -> dict:
        return {"bias": config.bias, "device": config.device, "dtype": getattr(torch, config.dtype)}

    class LoraPytorch(Subject):
        name, version = "lora_pytorch", importlib.metadata.version("lora-pytorch")
        scale = 1.0

        def build(self, config: LayerConfig, weight, bias):
            if config.scaling != "standard" or config.dropout:
                raise Unsupported("rslora and dropout: from_module has no options for them")
            set_seed(config)
            linear = nn.Linear(config.in_features, config.out_features, **linear_options(config))
            module = LoRA.from_module(linear, rank=config.rank)
            layer = LoraPytorchLayer(
                module, W="module.weight", b="module.bias" if config.bias else None, A="lora_module.in_proj",
                B="lora_module.out_proj",
            )
            layer.set_base(weight, bias)
            return layer

        def script(self, calls, spec):
            return script(calls, ["from lora_pytorch import LoRA"], self.construction)

        def construction(self, config: LayerConfig, name: str) -> list[str]:
            made = written("torch.nn.Linear", nn.Linear, config.in_features, config.out_features, **linear_options(config))
            return [f"{name} = LoRA.from_module({made}, rank={config.rank})"]

    return LoraPytorch()
