"""LyCORIS's LoCon on one nn.Linear, through create_lycoris and apply_to.

This follows its README. Files are written by save_weights. To merge, its example calls restore() and then a merge. The library
has two merges. onfly_merge is used here, because it can be undone.
"""

from typing import Any

NEEDS = ("torch", "lycoris")
ENVIRONMENT = "torch"


def subject():
    import importlib
    import importlib.metadata
    import logging

    import torch
    from torch import nn

    from conformance.record.torch_script import script, written
    from conformance.subject import LayerConfig, Subject, Unsupported
    from conformance.torch import TorchLayer, set_seed

    lycoris: Any = importlib.import_module("lycoris")  # a type checker takes the name for this file
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)

    class LycorisLayer(TorchLayer):
        module: Any  # whose `network` is the LycorisNetwork

        def trainable(self):
            return {self._name(f"network.{path}"): tuple(p.shape) for path, p in self.module.network.named_parameters()}

        def trainable_source(self, name):
            return [f"print({{path: tuple(p.shape) for path, p in {name}.network.named_parameters()}})"]

        def step(self, lr):
            torch.optim.SGD(self.module.network.parameters(), lr).step()

        def merge(self):
            self.module.network.restore()
            self.module.network.onfly_merge()

        def unmerge(self):
            self.module.network.onfly_restore()
            self.module.network.apply_to()

        def save(self, directory):
            self.module.network.save_weights(f"{directory}/lycoris.safetensors", None, {})

        def load(self, directory):
            self.module.network.load_weights(f"{directory}/lycoris.safetensors")

    def linear_options(config: LayerConfig) -> dict:
        return {"bias": config.bias, "device": config.device, "dtype": getattr(torch, config.dtype)}

    def options(config: LayerConfig) -> dict:
        return {"linear_dim": config.rank, "linear_alpha": config.alpha, "algo": "lora"} | (
            {"dropout": config.dropout} if config.dropout else {})

    class Lycoris(Subject):
        name, version = "lycoris", importlib.metadata.version("lycoris-lora")

        def build(self, config: LayerConfig, weight, bias):
            if config.scaling != "standard":
                raise Unsupported(f"{config.scaling} scaling: create_lycoris has no option for it")
            set_seed(config)
            linear: Any = nn.Linear(config.in_features, config.out_features, **linear_options(config))
            linear.network = lycoris.create_lycoris(linear, 1.0, **options(config))
            linear.network.apply_to()
            linear.network.to(linear.weight)
            factor = "network.lycoris_.lora_{}.weight".format
            layer = LycorisLayer(
                linear, W="weight", b="bias" if config.bias else None, A=factor("down"), B=factor("up"), transposed="AB"
            )
            layer.set_base(weight, bias)
            return layer

        def script(self, calls, spec):
            return script(calls, ["import lycoris"], self.construction)

        def construction(self, config: LayerConfig, name: str) -> list[str]:
            made = written("torch.nn.Linear", nn.Linear, config.in_features, config.out_features, **linear_options(config))
            network = ", ".join([f"lycoris.create_lycoris({name}, 1.0", *(f"{k}={v!r}" for k, v in options(config).items())])
            return [
                f"{name} = {made}", f"{name}.network = {network})", f"{name}.network.apply_to()",
                f"{name}.network.to({name}.weight)",
            ]

    return Lycoris()
