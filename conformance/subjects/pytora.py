"""pytora's apply_lora: a parametrization of nn.Linear's weight.

remove_lora merges and leaves a plain layer. The library has no files and no freezing of its own."""

from typing import Any

NEEDS = ("torch", "pytora")
ENVIRONMENT = "torch"


def subject():
    import importlib
    import importlib.metadata

    import torch
    from torch import nn

    from conformance.record.torch_script import script, written
    from conformance.subject import LayerConfig, Subject, Unsupported
    from conformance.torch import TorchLayer, set_seed

    pytora: Any = importlib.import_module("pytora")  # a type checker takes the name for this file
    base, factor = "0.parametrizations.weight.original", "0.parametrizations.weight.0.lora_"
    merged = "the factors of a merged layer: remove_lora has taken them out"

    class PytoraLayer(TorchLayer):
        module: Any

        @property
        def measured(self):
            return self.module[0]

        def tensor(self, name):
            if name not in self.paths:
                raise Unsupported(merged)
            return super().tensor(name)

        def merge(self):
            pytora.remove_lora(self.module, merge=True)
            self.paths = {"W": "0.weight"} | ({"b": "0.bias"} if "b" in self.paths else {})

        def save(self, directory):
            self.tensor("A")
            super().save(directory)

        def load(self, directory):
            self.tensor("A")
            super().load(directory)

    def linear_options(config: LayerConfig) -> dict:
        return {"bias": config.bias, "device": config.device, "dtype": getattr(torch, config.dtype)}

    def options(config: LayerConfig) -> dict:
        return {"lora_r": config.rank, "lora_alpha": config.alpha, "lora_dropout": config.dropout}

    class Pytora(Subject):
        name, version = "pytora", importlib.metadata.version("pytora")

        def build(self, config: LayerConfig, weight, bias):
            if config.scaling != "standard":
                raise Unsupported(f"{config.scaling} scaling")
            set_seed(config)
            linear = nn.Linear(config.in_features, config.out_features, **linear_options(config))
            module = nn.Sequential(linear)
            pytora.apply_lora(module, **options(config))
            layer = PytoraLayer(module, W=base, b="0.bias" if config.bias else None, A=f"{factor}A", B=f"{factor}B")
            layer.set_base(weight, bias)
            return layer

        def script(self, calls, spec):
            return script(calls, ["import pytora", "from torch import nn"], self.construction)

        def construction(self, config: LayerConfig, name: str) -> list[str]:
            linear = written("nn.Linear", nn.Linear, config.in_features, config.out_features, **linear_options(config))
            given = written("", pytora.apply_lora, **options(config)).removeprefix("(")
            return [f"{name} = nn.Sequential({linear})", f"pytora.apply_lora({name}, {given}"]

    return Pytora()
