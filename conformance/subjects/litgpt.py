"""LitGPT's LoRALinear, with its mark_only_lora_as_trainable.

Files hold what its lora_filter selects, as in its finetuning scripts. It merges and cannot unmerge."""

from typing import Any

NEEDS = ("torch", "litgpt")
ENVIRONMENT = "torch"


def subject():
    import importlib
    import importlib.metadata

    import torch

    from conformance.record.torch_script import script, written
    from conformance.subject import LayerConfig, Subject, Unsupported
    from conformance.torch import TorchLayer, set_seed

    lora: Any = importlib.import_module("litgpt.lora")  # a type checker takes the name for this file

    class LitGptLayer(TorchLayer):
        def save(self, directory):
            state = {key: value for key, value in self.module.state_dict().items() if lora.lora_filter(key, value)}
            torch.save({"model": state}, f"{directory}/lit_model.pth.lora")

        def load(self, directory):
            state = torch.load(f"{directory}/lit_model.pth.lora", mmap=True)["model"]
            self.module.load_state_dict(state, strict=False)

    def options(config: LayerConfig) -> dict:
        return {"r": config.rank, "lora_alpha": config.alpha, "lora_dropout": config.dropout, "bias": config.bias}

    class LitGpt(Subject):
        name, version = "litgpt", importlib.metadata.version("litgpt")
        freezes = "mark_only_lora_as_trainable"

        def build(self, config: LayerConfig, weight, bias):
            if config.scaling != "standard":
                raise Unsupported(f"{config.scaling} scaling")
            set_seed(config)
            module = lora.LoRALinear(config.in_features, config.out_features, **options(config))
            lora.mark_only_lora_as_trainable(module)
            module.to(config.device, getattr(torch, config.dtype))
            layer = LitGptLayer(
                module, W="linear.weight", b="linear.bias" if config.bias else None, A="lora_A", B="lora_B", transposed="AB"
            )
            layer.set_base(weight, bias)
            return layer

        def script(self, calls, spec):
            return script(calls, ["from litgpt import lora"], self.construction)

        def construction(self, config: LayerConfig, name: str) -> list[str]:
            made = written("lora.LoRALinear", lora.LoRALinear, config.in_features, config.out_features, **options(config))
            to = [repr(config.device)] * (config.device != "cpu") + [f"torch.{config.dtype}"] * (config.dtype != "float32")
            moved = [f"{name}.to({', '.join(to)})"] if to else []
            return [f"{name} = {made}", f"lora.mark_only_lora_as_trainable({name})", *moved]

    return LitGpt()
