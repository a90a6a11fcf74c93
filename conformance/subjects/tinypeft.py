"""TinyPEFT's inject_lora on one nn.Linear.

It merges with merge_lora_weights and unmerges with unmerge_lora_weights. Files hold what get_lora_state_dict gives, as its
README shows."""

from typing import Any

NEEDS = ("torch", "tinypeft")
ENVIRONMENT = "torch"


def subject():
    import contextlib
    import importlib
    import importlib.metadata
    import io

    import torch
    from torch import nn

    from conformance.record.torch_script import script, written
    from conformance.subject import LayerConfig, Subject, Unsupported
    from conformance.torch import TorchLayer, set_seed

    tinypeft: Any = importlib.import_module("tinypeft")  # a type checker takes the name for this file

    class TinyPeftLayer(TorchLayer):
        module: Any

        @property
        def measured(self):
            return self.module[0]

        def merge(self):
            with contextlib.redirect_stdout(io.StringIO()):  # TinyPEFT prints that it has merged
                tinypeft.merge_lora_weights(self.module)

        def merge_source(self, name):
            return [f"tinypeft.merge_lora_weights({name})"]

        def unmerge(self):
            with contextlib.redirect_stdout(io.StringIO()):
                tinypeft.unmerge_lora_weights(self.module)

        def unmerge_source(self, name):
            return [f"tinypeft.unmerge_lora_weights({name})"]

        def save(self, directory):
            torch.save(tinypeft.get_lora_state_dict(self.module), f"{directory}/lora_adapter.pt")

        def load(self, directory):
            tinypeft.load_lora_state_dict(self.module, torch.load(f"{directory}/lora_adapter.pt"))

    def linear_options(config: LayerConfig) -> dict:
        return {"bias": config.bias, "device": config.device, "dtype": getattr(torch, config.dtype)}

    def options(config: LayerConfig) -> dict:
        return {"r": config.rank, "alpha": config.alpha, "dropout": config.dropout}

    class TinyPeft(Subject):
        name, version = "tinypeft", importlib.metadata.version("tinypeft")

        def build(self, config: LayerConfig, weight, bias):
            if config.scaling != "standard":
                raise Unsupported(f"{config.scaling} scaling")
            set_seed(config)
            linear = nn.Linear(config.in_features, config.out_features, **linear_options(config))
            module, _ = tinypeft.inject_lora(nn.Sequential(linear), **options(config))
            layer = TinyPeftLayer(
                module, W="0.base.weight", b="0.base.bias" if config.bias else None, A="0.A", B="0.B", transposed="AB"
            )
            layer.set_base(weight, bias)
            return layer

        def script(self, calls, spec):
            return script(calls, ["import tinypeft", "from torch import nn"], self.construction)

        def construction(self, config: LayerConfig, name: str) -> list[str]:
            linear = written("nn.Linear", nn.Linear, config.in_features, config.out_features, **linear_options(config))
            model = f"tinypeft.inject_lora(nn.Sequential({linear})"
            made = written("inject", tinypeft.inject_lora, **options(config)).removeprefix("inject(")
            return [f"{name}, _ = {model}, {made}"]

    return TinyPeft()
